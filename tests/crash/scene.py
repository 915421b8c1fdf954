"""An operation in a state directory of its own, one call of which is broken, and what is left."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import crash_points
from crash_points import Point

HERE = Path(__file__).resolve().parent
PROGRAM = os.path.join(os.path.dirname(sys.executable), "jobctl")
_TOLD = (0, 1, 4, 5, 124, 125)
"""How a command line may end that met a fault."""


class Traced:
    """A command line with all that it starts, one call of which may be broken."""

    def __init__(
        self, base: Path, env: dict[str, str], words: list[str], point: Point | None
    ) -> None:
        self.log = base / "log"
        self.room = base / "log.room"
        inject = [
            sys.executable,
            str(HERE / "inject.py"),
            str(self.log),
            f"S={env['JOBCTL_STATE_DIR']}",
        ]
        fault = [point.fault, point.key] if point else []
        self.out, self.err = base / "out", base / "err"
        with open(self.out, "wb") as out, open(self.err, "wb") as err:
            self._process = subprocess.Popen(
                [*inject, *fault, "--", PROGRAM, *words], env=env, stdout=out, stderr=err, stdin=-3
            )

    def lines(self) -> list[dict[str, Any]]:
        """Return what the log says so far."""
        text = self.log.read_text() if self.log.exists() else ""
        return [json.loads(line) for line in text.splitlines(keepends=True) if line[-1:] == "\n"]

    def ended(self, seconds: float = 30.0) -> int | None:
        """Return the exit status of the command line, None if it was killed; wait for that.

        There is room again after a while: a runner waits for that, and `start` for the runner.
        """
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(2)
        self.room.touch()
        status = self._process.wait(seconds)
        return status if status >= 0 else None

    def at_rest(self, seconds: float = 30.0) -> None:
        """Wait until all that it has started has ended, too; there is room again meanwhile."""
        self.room.touch()
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            last = (self.lines() or [{}])[-1]
            if "fault" in last:
                raise OSError(f"the tracer: {last['fault']}")
            if "over" in last:
                return
            time.sleep(0.01)
        raise TimeoutError(f"something goes on after {seconds} s")

    def end(self) -> None:
        """End all that is left: it goes with the tracer."""
        self._process.kill()
        self._process.wait()
        lines = self.lines()
        if lines and "over" not in lines[-1]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(lines[0]["tracer"], signal.SIGKILL)


class Scene:
    """An operation in a state directory that is made anew for each run."""

    name = ""
    commit = ""
    """The key of the call from which on it counts."""
    who = ""
    """Whose calls are broken: a regular expression."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.fault = ""
        self.out = base / "out"
        self.logs = base / "logs"
        self.logs.mkdir(parents=True)
        self.env = {
            "PATH": "/usr/local/bin:/usr/bin:/bin",
            "HOME": str(base),
            "TMPDIR": str(base),
            "JOBCTL_STATE_DIR": str(base / "state"),
        }

    def prepare(self) -> None:
        """Make what is there before."""

    def words(self) -> list[str]:
        """Return the words of the operation."""
        raise NotImplementedError

    def check(self, status: int | None, said: str, committed: bool) -> Iterator[str]:
        """Yield what is wrong afterwards."""
        raise NotImplementedError

    def jobctl(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run the program as it is."""
        return subprocess.run(
            [PROGRAM, *words], env=self.env, stdin=-3, capture_output=True, text=True, timeout=60
        )

    def ran(self, token: str) -> list[str]:
        """Return the lines of a command's own log that say that it began."""
        path = self.logs / token
        return [x for x in path.read_text().splitlines() if x == "B"] if path.exists() else []

    def command(self, token: str, code: str = "0") -> list[str]:
        """Return the words of a command that writes such a log, and three lines of output."""
        return ["/bin/dash", str(HERE / "command.sh"), str(self.logs / token), code]

    def whole(self) -> Iterator[str]:
        """Yield what is wrong with the state directory, whatever was done to it."""
        shown = self.jobctl("get", "-o", "json", "--children")
        if shown.returncode or "Traceback" in shown.stderr or "a fault" in shown.stderr:
            yield f"get: {shown.returncode} {shown.stderr[:300]}"
            return
        for record in json.loads(shown.stdout):
            if (record["reason"] or "").startswith("damaged"):
                yield f"{record['id']} is {record['reason']}"
        later = self.jobctl("start", "-w", *self.command("later"))
        if later.returncode or later.stdout.count("\n") != 3 or len(self.ran("later")) != 1:
            yield f"a later start: {later.returncode} {later.stderr[:300]}"

    def emptied(self) -> Iterator[str]:
        """Yield what is left when all was removed."""
        for folder in (self.base / "state/jobs").glob("[0-9]*"):
            # What a killed start has left is deleted by whoever looks a minute later.
            os.utime(folder, (1e9, 1e9))
        removed = self.jobctl("remove", "--all", "--force")
        if removed.returncode:
            yield f"remove --all: {removed.returncode} {removed.stderr[:300]}"
        yield from self.left()

    def left(self) -> Iterator[str]:
        """Yield what is there of jobs that are gone, if anything is."""
        left = sorted(path.name for path in (self.base / "state/jobs").iterdir())
        if left:
            yield f"left in jobs/: {left}"

    # --- one run ---

    def run(self, point: Point | None) -> tuple[list[str], list[dict[str, Any]]]:
        """Carry it out, with a fault or without one; return what is wrong, and the log."""
        self.prepare()
        self.fault = point.fault if point else ""
        traced = Traced(self.base, self.env, self.words(), point)
        wrong = list[str]()
        try:
            status = traced.ended()
            traced.at_rest()
            said = traced.err.read_text(errors="replace") + traced.out.read_text(errors="replace")
            log = traced.lines()
            if point and not any("did" in line for line in log):
                return ["not reached"], log
            if status is not None and status not in _TOLD:
                wrong.append(f"ended with {status}")
            if "Traceback" in said or "a fault in jobctl" in said:
                wrong.append(said[-600:])
            committed = crash_points.after(self.commit, log)
            wrong += self.check(status, said, committed)
            wrong += self.whole()
            wrong += self.emptied()
        except (TimeoutError, subprocess.TimeoutExpired, OSError, ValueError) as error:
            wrong.append(repr(error))
            log = traced.lines()
        finally:
            traced.end()
        return wrong, log


@contextlib.contextmanager
def fresh(make: Callable[[Path], Scene]) -> Iterator[Scene]:
    """Give a scene in a folder of its own."""
    base = Path(tempfile.mkdtemp(prefix="crash."))
    try:
        yield make(base)
    finally:
        shutil.rmtree(base, ignore_errors=True)
