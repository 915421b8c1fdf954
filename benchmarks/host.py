"""A host for one measurement: a real sshd on this machine, and a stage from which it is reached."""

from __future__ import annotations

import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import probe
from probe import Broken
from stage import JOBCTL, Stage, stage

sys.path.append(os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "tests"))

if TYPE_CHECKING:
    from sshd import Sshd, Wire

T = TypeVar("T")

_PATIENCE = 300.0
_NAMED = "Host web1 web2 web3 web4"


class Host:
    """A host that answers to every name, and the computer that runs its jobs there."""

    def __init__(self, place: Stage, server: Sshd, wire: Wire) -> None:
        self.place = place
        self.server = server
        self.wire = wire
        """What lies before the host when it is called `slow`."""
        self.environment = place.environment
        config = server.hosts("Host slow", f"    Port {wire.port}")
        config.write_text(config.read_text().replace(_NAMED, "Host *"))
        self.environment["JOBCTL_SSH_CONFIG"] = str(config)
        ssh = shutil.which("ssh") or "ssh"
        self.ssh = (ssh, "-F", str(config), "-c", "aes128-gcm@openssh.com", "web1")
        """What a command of ssh on it begins with."""

    def agent(self) -> int | None:
        """Return the process of the agent, if there is one."""
        with suppress(OSError):
            log = Path(self.place.file("state/agent.log")).read_text()
            for pid in re.findall(r"begins, process (\d+)", log)[::-1]:
                with suppress(OSError):
                    words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                    if os.fsencode(self.place.file("state")) in words:
                        return int(pid)
        return None

    def agent_now(self) -> int:
        """Return the process of the agent, which must be there."""
        return until(self.agent) or 0

    def open(self, *names: str) -> None:
        """Open sessions to the host under these names."""
        self.place.command("session", "new", "-q", ",".join(names))

    def run(self, to: str, *words: str, stdout: int | None = None) -> float:
        """Return the seconds that `session run` takes."""
        argv = (JOBCTL, "session", "run", to, "--", *words)
        return probe.seconds(argv, self.environment, stdout)

    def start(self, *words: str) -> float:
        """Return the seconds that `start -q -H web1` takes."""
        return self.place.start("-H", "web1", *words)

    def start_and_end(self, *words: str) -> float:
        """Do the same, and return after the job has ended: it shall not disturb what follows."""
        taken = self.start(*words)
        self.wait()
        return taken

    def wait(self) -> None:
        """Return after the end of the last job has come here."""
        until(lambda: self._said("exit"))
        time.sleep(0.05)  # the runner on the host ends a little later

    def running(self) -> None:
        """Return after it has come here that the command of the last job runs."""
        until(lambda: b"pid=" in self._said("run"))

    def _said(self, name: str) -> bytes:
        with suppress(OSError), open(self.place.last.file(name), "rb") as file:
            return file.read()
        return b""

    def number(self) -> str:
        """Return the id of the last job."""
        return self.place.last.path.rpartition("/")[2]

    def forget(self) -> None:
        """Remove all jobs, here and on the host."""
        # Where one machine is a hundred hosts, some may not answer in the time that they get.
        with suppress(Broken):
            self.place.end()
        self.place.end()

    def end_agent(self) -> None:
        """End the agent, if there is one."""
        if pid := self.agent():
            os.kill(pid, signal.SIGKILL)
            until(lambda: self.agent() is None)


def until(condition: Callable[[], T]) -> T:
    """Return what condition returns once that is true."""
    deadline = time.monotonic() + _PATIENCE
    while not (result := condition()):
        if time.monotonic() > deadline:
            raise Broken(f"what was waited for did not come within {_PATIENCE:.0f} s")
        time.sleep(0.01)
    return result


def available() -> bool:
    """Whether there is what a host takes; says what is missing."""
    try:
        import sshd
    except ImportError as error:
        print(f"hosts: skipped, {error.name} is not installed")
        return False
    for name in ("ssh", "sshd"):
        if shutil.which(name, path=f"{os.environ.get('PATH', '')}:{sshd._ADMIN_PATHS}") is None:
            print(f"hosts: skipped, {name} is not installed")
            return False
    return True


@contextmanager
def host() -> Iterator[Host]:
    """Give a host; at the end nothing is left of it, and nothing runs on it."""
    from sshd import Sshd, Wire

    with stage() as place:
        server = Sshd(Path(place.file("host")))
        wire = Wire(server.port)
        server.start()
        made = Host(place, server, wire)
        try:
            yield made
        finally:
            try:
                made.forget()
            finally:
                made.end_agent()
                wire.close()
                server.stop()
