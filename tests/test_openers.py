"""Whose ssh-agent a connection is made with, when several people and cron jobs ask for it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from conftest import processes_with, wait_until
from far import Far
from sshd import keygen
from test_ssh_login import add, authorize, key_agent

from jobctl.agent.openers import Openers

__all__ = ("key_agent",)  # a fixture
SOCKETS = ("first", "second")


@pytest.fixture
def at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Give two sockets, called first and second, in the current directory."""
    monkeypatch.chdir(tmp_path)
    with ExitStack() as stack:
        for name in SOCKETS:
            listener = stack.enter_context(socket.socket(socket.AF_UNIX))
            listener.bind(name)
            listener.listen()
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
    openers.asked({"HOME": "/home/me"})
    assert "SSH_AUTH_SOCK" not in openers.environ("web1")


@pytest.mark.usefixtures("at")
def test_who_asks_after_a_failure() -> None:
    openers = Openers()
    openers.asked(of("first"))
    openers.opens("web1")
    openers.failed("web1")
    openers.opens("web1")  # by itself: nobody has asked since
    assert openers.environ("web1")["SSH_AUTH_SOCK"] == "first"
    openers.asked(of("second"))
    openers.opens("web1")
    assert openers.environ("web1")["SSH_AUTH_SOCK"] == "second"


@pytest.mark.usefixtures("at")
def test_an_agent_that_does_not_answer() -> None:
    """It is told of to him who names it, and to nobody else."""
    openers = Openers()
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind("dead")
    for environ in (of("dead"), of("none"), {}, of("dead"), {}):
        openers.asked(environ)
        openers.opens("web1", environ)
        found = openers.environ("web1")
        assert {k: found[k] for k in found if k == "SSH_AUTH_SOCK"} == environ
    openers.opens("web1", of("first"))
    openers.asked(of("dead"))
    openers.opens("web1", of("dead"))
    assert openers.environ("web1")["SSH_AUTH_SOCK"] == "first"


def test_the_first_who_comes_is_heard_before_anything_is_done(
    far: Far, tmp_path: Path, key_agent: Path
) -> None:
    """Whoever starts an agent of ours has his ssh-agent asked by it."""
    key = keygen(tmp_path / "key")
    authorize(far.sshd, key)
    add(key_agent, str(key))
    key.unlink()
    far.sshd.hosts("Host web*", "IdentitiesOnly no", "IdentityAgent SSH_AUTH_SOCK")
    env = {**far.env, "SSH_AUTH_SOCK": str(key_agent)}
    job = far.start("-H", "web[1-2]", "true", env=env)
    assert far.outcome(job) == ("Completed", "", None)


@pytest.mark.long
def test_who_asks_next_has_it_made_in_his_name(far: Far, tmp_path: Path) -> None:
    """What failed in the name of another one, whose PATH lacks a program, say, does not stick."""
    tools = tmp_path / "tools"
    tools.mkdir()
    way = tools / "own-way"
    way.write_text(f"#!/bin/sh\nexec {sys.executable} {tools}/way.py\n")
    way.chmod(0o755)
    (tools / "way.py").write_text(
        "import os, socket, sys, threading\n"
        f"wire = socket.create_connection(('127.0.0.1', {far.sshd.port}))\n"
        "def out():\n"
        "    while data := wire.recv(65536):\n"
        "        os.write(1, data)\n"
        "    os._exit(0)\n"
        "threading.Thread(target=out, daemon=True).start()\n"
        "while data := os.read(0, 65536):\n"
        "    wire.sendall(data)\n"
        "os._exit(0)\n"
    )
    far.sshd.hosts("Host web*", "ProxyCommand own-way")
    better = {**far.env, "PATH": f"{tools}:{far.env['PATH']}"}
    far.run("session", "new", "web3", env=better)  # the agent stays
    run = ("session", "run", "web1", "--", "echo", "hi")
    assert b"own-way: not found" in far.run(*run, status=125).stderr
    assert far.out(*run, env=better) == "hi\n"
    assert far.out(*run) == "hi\n"  # over what is there
    far.run("session", "new", "web2", env=better)
    far.kill_agent()
    far.run("session", "get")
    job = far.out("start", "-q", "-s", "web2", "true").strip()
    wait_until(lambda: "own-way: not found" in far.job(job)["reason"])
    assert far.out("session", "run", "web2", "--", "echo", "hi", env=better) == "hi\n"
    far.run("wait", job)
    far.run("session", "remove", "--all")


def test_an_agent_has_nothing_of_whoever_came_first(far: Far) -> None:
    marks = {"RUNNER_TRACKING_ID": "github_1", "LD_LIBRARY_PATH": "/opt/conda/lib", "FOO": "bar"}
    dead = {"SSH_AUTH_SOCK": "/nowhere", "JOBCTL_OUTPUT": "json", "JOBCTL_ID": "7"}
    far.run("session", "new", "web1", env=far.env | marks | dead)
    (pid,) = processes_with(f"jobctl.agent {far.state_dir} ")
    environ = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    found = dict(entry.decode().split("=", 1) for entry in environ if entry)
    assert json.loads(found.pop("JOBCTL_ASKED"))["SSH_AUTH_SOCK"] == "/nowhere"
    assert found.keys() == {"HOME", "PATH", "JOBCTL_STATE_DIR", "JOBCTL_RUNNER"}
    assert not any(mark in str(environ) for mark in marks)
    # What he has goes to nobody else's commands.
    assert far.out("session", "run", "web1", "sh", "-c", 'echo "${FOO-none}"') == "none\n"


@pytest.mark.long
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


CLOSES_LATE = """
import os, sys
from jobctl.agent import client
held, forks = open(os.devnull), iter((None, None, 1))
os.register_at_fork(after_in_child=lambda: next(forks, None) and held.close())
assert held.fileno() == 3
client.begin(sys.argv[1])
"""
"""Starts an agent as one does who leaves an open file to be closed late, with other garbage."""


def test_what_an_agent_is_started_by_closes_only_its_own_files(far: Far) -> None:
    far.run("session", "new", "web1")
    far.kill_agent()
    words = [sys.executable, "-c", CLOSES_LATE, str(far.state_dir)]
    subprocess.run(words, env=far.env, check=True)
    wait_until(far.agent)
    assert "Traceback" not in (far.state_dir / "agent.log").read_text()
