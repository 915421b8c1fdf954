"""Variables that go to a host with a command: SendEnv and SetEnv of ssh_config(5)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from sshd import MakeSshd
from test_session import Make, at_terminal, far, make_far, status_of

from jobctl.target import parse_target
from jobctl.transport import config, sendenv

pytest_plugins = ("sshd",)
__all__ = ["far", "make_far"]
SHOW = 'echo "[$SENT_A][$SENT_B][$SET_A][$SET_B][$OTHER][$DENIED]"'


def test_they_go_with_jobs_commands_and_shells(make_far: Make, make_sshd: MakeSshd) -> None:
    server = make_sshd("AcceptEnv SENT_* SET_* OTHER")
    far = make_far(server)
    lines = ("SendEnv SENT_A SENT_B", "SendEnv DENIED", "SetEnv SET_A=\"a 'b' $c\" SET_B=x")
    server.hosts("Host web1 web2", *lines)
    far.env |= {"SENT_A": "one two", "OTHER": "not named", "DENIED": "by the server"}
    told = "[one two][][a 'b' $c][x][][]\n"
    assert far.out("start", "-w", "-q", "-H", "web1", "-c", SHOW) == told
    items = ("start", "-w", "-q", "-H", "web1", "--foreach", "-", "-c", SHOW)
    assert far.out(*items, input=b"x\n") == told
    far.run("session", "new", "web1")
    assert far.out("session", "run", "web1", "-c", SHOW) == told
    # Each command has those of its own caller, also over a connection that others share.
    far.env["SENT_A"] = "three"
    far.env["SENT_B"] = "four"
    told = "[three][four][a 'b' $c][x][][]\n"
    assert far.out("session", "run", "web1", "-c", SHOW) == told
    assert far.out("start", "-w", "-q", "-H", "web1", "-c", SHOW) == told
    del far.env["SENT_A"]
    told = "[][four][a 'b' $c][x][][]\n"
    assert far.out("session", "run", "web1", "-c", SHOW) == told
    assert far.out("start", "-w", "-q", "-H", "web1", "-c", SHOW) == told
    assert far.out(*items, input=b"x\n") == told
    assert far.out("start", "-w", "-q", "-e", "SENT_B=own", "-H", "web1", "-c", SHOW) == (
        told.replace("four", "own")
    )
    assert not list(far.state_dir.glob("jobs/**/far.*"))
    child = at_terminal(far, "session", "enter", "web1")
    child.expect_exact("[web1] ")
    child.sendline(SHOW)
    child.expect_exact("[][four][a 'b' $c][x][][]\r\n")
    child.sendline("exit")
    assert status_of(child) == 0
    # Of a session's own options, which no file has.
    words = ("--option", "SetEnv=SET_B=own", "--option", "SendEnv=OTHER", "--name", "own")
    far.run("session", "new", *words, "web3")
    assert far.out("session", "run", "own", "-c", SHOW) == "[][][][own][not named][]\n"
    job = far.out("start", "-q", "-s", "own", "-c", SHOW).strip()
    far.run("wait", job)
    assert far.out("receive", job) == "[][][][own][not named][]\n"
    far.run("session", "remove", "--all")


def test_both_readers_agree(tmp_path: Path) -> None:
    path = tmp_path / "config"
    path.write_text(
        "SendEnv A* B\nHost x\n  SendEnv C -B\n  SetEnv Q='a b' R=\"c d\" S=e\n"
        "Host *\n  SetEnv T=late\n"
    )
    for options in ((), ("SetEnv=U=first",)):
        target = parse_target("x")._replace(options=options)
        with_ssh, without = (
            config.read(target, str(path), {**os.environ, "PATH": where})
            for where in (os.environ["PATH"], "/nowhere")
        )
        assert with_ssh.send_env == without.send_env == ("A*", "C")
        assert with_ssh.set_env == without.set_env
        assert len(with_ssh.set_env) == (1 if options else 3)


def test_what_a_caller_hands_on_is_all_that_may_be_meant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ssh/more").mkdir(parents=True)
    (tmp_path / ".ssh/config").write_text(
        'Include more/*\nHost x\n  sendenv="A*" B?\n# SendEnv C\nInclude config\nSendEnvy D\n'
    )
    (tmp_path / ".ssh/more/one").write_text("SendEnv E\n")
    (tmp_path / ".ssh/more/two").write_bytes(b"\xff\nSendEnv F\n")
    environ = dict.fromkeys(("A", "A1", "a", "B", "BB", "C", "D", "E", "F", "G", "H"), "1")
    found = sendenv.candidates("", ["SendEnv=G", "SetEnv=H=1"], environ)
    assert found.keys() - {"LANG"} == {"A", "A1", "BB", "E", "F", "G"}
    assert sendenv.candidates("/nowhere", [], environ) == {}
