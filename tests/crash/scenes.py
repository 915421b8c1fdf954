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
            (record["state"], record["reason"])
            for _ in range(2)
            for record in json.loads(self.jobctl("get", "-o", "json").stdout)
        ]
        if len(told) != 2 or told[0] != told[1]:
            yield f"is told as {told}"
        elif told[0][0] != "Failed" or told[0][1] not in ("exit status 7", _KILLED):
            yield f"exited 7, and is {told[0]}"


_KILLED = "lost: runner was killed"
SCENES: dict[str, Callable[[Path], Scene]] = {scene.name: scene for scene in (Start, Items, End)}
