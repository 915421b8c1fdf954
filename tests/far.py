"""The program with jobs on hosts: a real sshd, and nothing left running on either side."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Jobctl, at_home, nothing_left, wait_until
from sshd import Sshd


class Far(Jobctl):
    """The command line of one computer, with a host that it reaches as web1 to web4."""

    def __init__(self, state_dir: Path, home: Path, sshd: Sshd, *where: str) -> None:
        """Start jobs with the options in where, if no others are given."""
        super().__init__(state_dir, home)
        self.sshd = sshd
        self.where = where
        self.env["JOBCTL_SSH_CONFIG"] = str(sshd.config)
        self.there = sshd.home / ".local/state/jobctl"
        """The state directory on the host."""

    @property
    def remote(self) -> bool:
        """Whether jobs are started on the host."""
        return bool(self.where)

    def start(self, *words: str | bytes, **options: Any) -> str:
        """Start a job there and return its id."""
        return self.out("start", "-q", *self.where, *words, **options).strip()

    def on(self, host: str, *words: str | bytes, **options: Any) -> str:
        """Start a job on a host and return its id."""
        return self.out("start", "-q", "-H", host, *words, **options).strip()

    def guest(self, job: str) -> Path:
        """Return the folder of a job on the host."""
        return self.there / "guest" / str(self.job(job)["instance_id"])

    def output(self, job: str) -> str:
        """Return all that came home of a job's standard output."""
        folder, _, child = job.partition(".")
        path = self.folder(folder) / "children" / child if child else self.folder(folder)
        return (path / "stdout").read_text()

    def outcome(self, job: str) -> tuple[str, str, int | None]:
        """Return state, reason and exit status of a job, once it is finished."""
        self.run("wait", job, "--timeout", "100", status=None)
        record = self.job(job)
        return record["state"], record["reason"], record["exit_code"]

    def agent(self) -> int | None:
        """Return the agent's process, None if there is none."""
        try:
            log = (self.state_dir / "agent.log").read_text()
        except FileNotFoundError:
            return None
        for pid in map(int, re.findall(r"begins, process (\d+)", log)[::-1]):
            try:
                words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if os.fsencode(self.state_dir) in words:
                return pid
        return None

    def kill_agent(self) -> int:
        """Kill the agent, which must be there, without a warning; return its process."""
        pid: int = wait_until(self.agent)
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: self.agent() is None)
        return pid

    def close(self) -> None:
        """End all that this computer started."""
        if self.state_dir.is_dir():
            self.stop_all()
            if pid := self.agent():
                os.kill(pid, signal.SIGKILL)
            log = self.state_dir / "agent.log"
            text = log.read_text() if log.exists() else ""
            assert "failed" not in text, text


@pytest.fixture
def far(tmp_path: Path, sshd: Sshd) -> Iterator[Far]:
    """Give the program with its jobs on the host web1."""
    before = at_home(sshd.home)
    program = Far(tmp_path / "state", tmp_path, sshd, "-H", "web1")
    yield program
    program.close()
    nothing_left(tmp_path, sshd.home, but=before)


@pytest.fixture
def second(tmp_path: Path, sshd: Sshd, far: Far) -> Iterator[Far]:
    """Give a second computer that reaches the same host."""
    program = Far(tmp_path / "second", tmp_path, sshd, "-H", "web1")
    yield program
    program.close()


@pytest.fixture(params=["here", "there"])
def either(request: pytest.FixtureRequest, tmp_path: Path, sshd: Sshd) -> Iterator[Far]:
    """Give the program with its jobs here, and then with its jobs on a host."""
    where = ("-H", "web1") if request.param == "there" else ()
    before = at_home(sshd.home)
    program = Far(tmp_path / "state", tmp_path, sshd, *where)
    yield program
    program.close()
    nothing_left(tmp_path, sshd.home, but=before)
