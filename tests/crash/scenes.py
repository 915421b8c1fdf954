"""The operations that are broken, and what each must keep to, wherever it is."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

from scene import Scene


class Start(Scene):
    """A plain job: there is none, or a whole one, and the caller is told which."""

    name = "start"
    commit = "jobctl start: rename S/jobs/1/spec.new S/jobs/1/spec #1"
    who = "^jobctl start|^runner run"

    def words(self) -> list[str]:
        """Start a job."""
        return ["start", "-q", *self.command("a")]

    def check(self, status: int | None, said: str, committed: bool) -> Iterator[str]:
        """Recorded and run once, or neither."""
        self.jobctl("wait", "--all", "--timeout", "20")
        listed = self.jobctl("get", "-q").stdout.split()
        begun = len(self.ran("a"))
        if begun > 1:
            yield f"ran {begun} times"
        if "nothing was recorded" in said and (listed or begun):
            yield f"'nothing was recorded', and it {'ran' if begun else 'is listed'}"
        if self.fault in ("", "EINVAL", "EINTR") and status != 0:
            yield f"{self.fault} is no error, and start ended with {status}"
        if status == 0 and not listed:
            yield "said 0, and is not listed"
        if begun and not listed:
            yield "ran, and is not listed"
        if committed and not listed:
            yield "was committed, and is not listed"
        if listed:
            record = json.loads(self.jobctl("get", "-o", "json").stdout)[0]
            ended = bool(begun) and "E 0" in (self.logs / "a").read_text()
            if record["state"] == "Completed" and not ended:
                yield "Completed, and did not end"
            if record["state"] not in ("Completed", "Failed"):
                yield f"is {record['state']} {record['reason']!r}"
            got = self.jobctl("receive", listed[0]).stdout.count("\n")
            if ended and got != 3:
                yield f"{got} lines of 3 were received"


class Items(Scene):
    """A job with three items: there is none, or a whole one, of which each item runs once."""

    name = "items"
    commit = Start.commit
    who = Start.who

    def words(self) -> list[str]:
        """Start a job for three lines of a file."""
        (self.base / "items").write_text("1\n2\n3\n")
        return ["start", "-q", "--foreach", str(self.base / "items"), *self.command("a")]

    def check(self, status: int | None, said: str, committed: bool) -> Iterator[str]:
        """Recorded and each run once, or none is."""
        listed = self.jobctl("get", "-q").stdout.split()
        waited = self.jobctl("wait", "--all", "--timeout", "20").returncode
        if waited not in (0, 1):
            yield f"wait: {waited}"
        begun = [len(self.ran(f"a.{number}")) for number in (1, 2, 3)]
        if committed != bool(listed) or (status == 0 and not listed):
            yield f"committed: {committed}, ended with {status}, listed: {listed}"
        if begun != [int(bool(listed))] * 3:
            yield f"listed: {listed}, runs of the items: {begun}"


class End(Scene):
    """The end of a command is the end of its job: no other one is ever told."""

    name = "end"
    commit = "runner run: write S/jobs/1/exit #1"
    who = "^runner run"

    def words(self) -> list[str]:
        """Start a job that fails."""
        return ["start", "-q", *self.command("a", "7")]

    def check(self, status: int | None, said: str, committed: bool) -> Iterator[str]:
        """It failed so, or its runner was lost; and a second look says the same."""
        self.jobctl("wait", "--all", "--timeout", "20")
        if not self.ran("a"):
            return  # the runner was broken before that: see Start
        told = [
            (record["state"], record["reason"], record["exit_code"])
            for _ in range(2)
            for record in json.loads(self.jobctl("get", "-o", "json").stdout)
        ]
        if len(told) != 2 or told[0] != told[1]:
            yield f"is told as {told}"
        elif told[0] not in (("Failed", "exit status 7", 7), ("Failed", _KILLED, None)):
            yield f"exited 7, and is {told[0]}"


class Remove(Scene):
    """A finished job is as it was, or gone; and what was begun ends with the next command."""

    name = "remove"
    commit = "jobctl remove: rename S/jobs/1 S/jobs/1.gone #1"
    who = "^jobctl remove"

    def prepare(self) -> None:
        """Have one."""
        self.jobctl("start", "-q", "-w", *self.command("a"))

    def words(self) -> list[str]:
        """Remove it."""
        return ["remove", "1"]

    def check(self, status: int | None, said: str, committed: bool) -> Iterator[str]:
        """Whole or gone."""
        listed = self.jobctl("get", "-o", "json")
        records = json.loads(listed.stdout)
        if status == 0 and records:
            yield "said 0, and is still listed"
        if committed and records:
            yield "was set aside, and is listed"
        if records:
            got = self.jobctl("receive", "--again", "1").stdout
            if records[0]["state"] != "Completed" or got != _OUTPUT:
                yield f"is listed, {records[0]['state']}, with {got!r}"
            again = self.jobctl("remove", "1")
            if again.returncode:
                yield f"a second remove: {again.returncode} {again.stderr[:300]}"
        yield from self.left()


class RemoveItems(Remove):
    """The same of a job with items."""

    name = "remove-items"

    def prepare(self) -> None:
        """Have one."""
        (self.base / "items").write_text("1\n")
        foreach = ("--foreach", str(self.base / "items"))
        self.jobctl("start", "-q", "-w", *foreach, *self.command("a"))


class Receive(Scene):
    """What is received goes out once: twice only where the receiver was killed, or says so."""

    name = "receive"
    commit = "jobctl receive: pwrite S/jobs/1/received #1"
    who = "^jobctl receive"

    def prepare(self) -> None:
        """Have a finished job of which nothing was received."""
        self.jobctl("start", "-q", *self.command("a"))
        self.jobctl("wait", "1")

    def words(self) -> list[str]:
        """Receive it."""
        return ["receive", "1"]

    def sink(self) -> str:
        """Return what the broken one has put out."""
        return self.out.read_text()

    def check(self, status: int | None, said: str, committed: bool) -> Iterator[str]:
        """All of it comes, in this call or in the next."""
        first, second = self.sink(), self.jobctl("receive", "1").stdout
        told = self.fault == "KILL" or "the next receive delivers them again" in said
        repeated = told and first == second == _OUTPUT
        if first + second != _OUTPUT and not repeated:
            yield f"{first!r}, then {second!r}; ended with {status}: {said[-300:]}"
        if self.fault and "standard output" in said:
            yield f"standard output is blamed: {said[-200:]}"
        if status == 0 and first != _OUTPUT:
            yield f"said 0, and put out {first!r}"


class Stop(Scene):
    """A job that runs is stopped, or that it could not be is said, and a second one does it."""

    name = "stop"
    commit = "runner stop: write S/jobs/1/stop #1"
    who = "^jobctl stop|^runner stop"

    def prepare(self) -> None:
        """Have one that runs."""
        self.jobctl("start", "-q", *self.command("a", "forever"))

    def words(self) -> list[str]:
        """Stop it."""
        return ["stop", "1", "--grace", "1"]

    def check(self, status: int | None, said: str, committed: bool) -> Iterator[str]:
        """What was said is so."""
        if status == 0 and (state := self._state()) != "Stopped":
            yield f"said 0, and is {state}"
        again = self.jobctl("stop", "1")
        if again.returncode or (state := self._state()) != "Stopped":
            yield f"a second stop: {again.returncode} {again.stderr[:300]}, and is {self._state()}"

    def _state(self) -> str:
        return str(json.loads(self.jobctl("get", "-o", "json", "1").stdout)[0]["state"])


_KILLED = "lost: runner was killed"
_OUTPUT = "line 1\nline 2\nline 3\n"
_ALL: tuple[type[Scene], ...] = (Start, Items, End, Remove, RemoveItems, Receive, Stop)
SCENES: dict[str, Callable[[Path], Scene]] = {scene.name: scene for scene in _ALL}
