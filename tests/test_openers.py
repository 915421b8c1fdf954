"""Whose ssh-agent a connection is made with, when several people and cron jobs ask for it."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from conftest import processes_with
from far import Far

from jobctl.agent.openers import Openers

SOCKETS = ("first", "second")


@pytest.fixture
def at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Give two sockets, called first and second, in the current directory."""
    monkeypatch.chdir(tmp_path)
    with ExitStack() as stack:
        for name in SOCKETS:
            listener = stack.enter_context(socket.socket(socket.AF_UNIX))
            listener.bind(name)
        yield


def of(name: str) -> dict[str, str]:
    return {"SSH_AUTH_SOCK": name}


@pytest.mark.usefixtures("at")
def test_whose_agent() -> None:
    openers = Openers()
    openers.asked(of("first") | {"HOME": "/home/me"})
    openers.opens("web1", of("first"))
    openers.asked({"HOME": "/home/me"})  # cron
    openers.opens("web1", {"HOME": "/home/me"})
    openers.opens("web1")
    assert openers.environ("web1")["SSH_AUTH_SOCK"] == "first"
    openers.asked(of("second"))
    openers.opens("web1")
    assert openers.environ("web1")["SSH_AUTH_SOCK"] == "first"
    openers.opens("web2")
    assert openers.environ("web2")["SSH_AUTH_SOCK"] == "second"
    os.unlink("first")  # he has logged out
    assert openers.environ("web1")["SSH_AUTH_SOCK"] == "second"
    openers.opens("web1", of("second"))  # and opens it anew
    openers.asked(of("nowhere"))
    assert openers.environ("web1")["SSH_AUTH_SOCK"] == "second"
    openers.forget("web1")
    assert openers.environ("web1")["SSH_AUTH_SOCK"] == "nowhere"


def test_an_agent_has_nothing_of_whoever_came_first(far: Far) -> None:
    marks = {"RUNNER_TRACKING_ID": "github_1", "LD_LIBRARY_PATH": "/opt/conda/lib", "FOO": "bar"}
    dead = {"SSH_AUTH_SOCK": "/nowhere", "JOBCTL_OUTPUT": "json", "JOBCTL_ID": "7"}
    far.run("session", "new", "web1", env=far.env | marks | dead)
    (pid,) = processes_with(f"jobctl.agent {far.state_dir} ")
    environ = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    names = {entry.partition(b"=")[0].decode() for entry in environ if entry}
    assert names == {"HOME", "PATH", "JOBCTL_STATE_DIR", "JOBCTL_RUNNER"}
    # What he has goes to nobody else's commands.
    assert far.out("session", "run", "web1", "sh", "-c", 'echo "${FOO-none}"') == "none\n"


def test_an_interpreter_that_needs_more_to_start(far: Far, tmp_path: Path) -> None:
    """An agent is begun with it, and hands it to nobody; where none begins, that is said."""
    python, library = tmp_path / "python", tmp_path / "library"
    python.write_text(
        '#!/bin/sh\n[ "$NEEDED_7391" ] || { echo "libpython7391.so: cannot open" >&2; exit 127; }\n'
        f'exec {sys.executable} "$@"\n'
    )
    python.chmod(0o755)
    library.mkdir()
    (library / "sitecustomize.py").write_text(f"import sys; sys.executable = {str(python)!r}\n")
    far.env["PYTHONPATH"] = str(library)
    for words in (("session", "new", "web1"), ("start", "-w", "-H", "web1", "true")):
        failed = far.run(*words, status=125)
        said = f"the agent does not start: libpython7391.so: cannot open; see {far.state_dir}/agent"
        assert said in failed.stderr.decode()
    with far.sshd.config.open("a") as config:
        config.write(f'Match exec "env >{tmp_path}/asked"\n  ServerAliveInterval 15\n')
    environ = far.env | {"NEEDED_7391": "1"}
    out = far.run("session", "run", "web1", "env", env=environ).stdout.decode()
    assert len(processes_with(f"jobctl.agent {far.state_dir} ")) == 1
    for environment in (out, (tmp_path / "asked").read_text()):
        assert "NEEDED_7391" not in environment
        assert str(library) not in environment
    far.out("start", "-w", "-H", "web1", "true")
