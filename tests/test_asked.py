"""Who is asked what a host wants to know, and what becomes of what hosts say to people."""

from __future__ import annotations

import os
import pty
import re
import signal
import socket
import termios
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pexpect
import pytest
from conftest import PROGRAM, rows_of, shown, wait_until
from far import Far
from sshd import MakeSshd, keygen
from test_session import (
    Make,
    at_terminal,
    far,
    fingerprint_of,
    make_far,
    sessions,
    status_of,
    until,
)

from jobctl.agent.caller import Client, People
from jobctl.cli.terminal import _secret
from jobctl.transport.base import Cancelled

pytest_plugins = ("sshd",)
__all__ = ["far", "make_far"]
CANCELLED = "the login was cancelled at the terminal"
WAY_OUT = "; 'jobctl session new' at a terminal asks for what it needs"


def locked(far: Far) -> Path:
    """Have the host know only a key with the passphrase "sesame"; return its file."""
    key = far.sshd.folder / f"asked{time.monotonic_ns()}"
    keygen(key, "ed25519", "sesame")
    far.sshd.authorized_keys.write_bytes(key.with_suffix(".pub").read_bytes())
    far.sshd.hosts(f"IdentityFile {key}")
    text = far.sshd.config.read_text()
    far.sshd.config.write_text(text.replace(f"IdentityFile {far.sshd.key}", ""))
    return key


def says(child: pexpect.spawn[str], question: str, answer: str) -> None:
    """Wait for a question, and answer it."""
    child.expect_exact(question)
    child.sendline(answer)


# --- questions ---


def test_who_starts_a_job_and_waits_is_asked(far: Far) -> None:
    key = locked(far)
    far.sshd.known_hosts.write_text("")
    prompt = f"Enter passphrase for key '{key}': "
    child = at_terminal(far, "start", "-w", "-H", "web1", "-c", "echo out; exit 7")
    says(child, "(yes/no/[fingerprint])? ", fingerprint_of(far))
    says(child, prompt, "wrong")
    says(child, prompt, "sesame")
    child.expect_exact("out\r\n")
    assert status_of(child) == 7
    # The same with children, which are asked for one after the other, and with items.
    far.kill_agent()
    for words in (("-H", "web2,web3"), ("-H", "web4", "--foreach", "/etc/hostname")):
        child = at_terminal(far, "start", "-w", *words, "echo", "said")
        hosts = set(words[1].split(","))
        while hosts:
            child.expect(f"(web.): {prompt}")
            assert isinstance(child.match, re.Match)
            hosts.remove(child.match[1])  # each question names its host
            child.sendline("sesame")
        child.expect_exact("said")
        assert status_of(child) == 0


def test_who_waits_for_a_job_is_asked(far: Far) -> None:
    key = locked(far)
    prompt = f"Enter passphrase for key '{key}': "
    child = at_terminal(far, "session", "new", "web1")
    says(child, prompt, "sesame")
    assert status_of(child) == 0
    job = far.out("start", "-q", "-s", "web1", "-c", "echo out; sleep 8642").strip()
    wait_until(lambda: far.job(job)["state"] == "Running")
    for words in (("wait", job), ("receive", "--wait", job)):
        far.kill_agent()
        child = at_terminal(far, *words)
        says(child, prompt, "sesame")
        until(far, "web1", "Opened")
        assert ("out\r\n" in (child.before or "")) == (words[0] == "receive")
        child.sendintr()
        assert status_of(child) == 130
    # Without a terminal nobody is asked, and the reason says what asks.
    far.kill_agent()
    reason = until(far, "web1", "Broken")["reason"]
    assert reason.endswith(f"which needs its passphrase; it takes publickey{WAY_OUT}")
    far.sshd.authorized_keys.write_bytes(far.sshd.key.with_suffix(".pub").read_bytes())
    far.sshd.hosts()
    far.run("session", "connect", "web1")


def test_without_a_terminal_the_reason_names_the_way_out(far: Far) -> None:
    locked(far)
    state, reason, _ = far.outcome(far.on("web1", "true", start_new_session=True))
    assert (state, reason.endswith(f"which needs its passphrase; it takes publickey{WAY_OUT}")) == (
        "Failed",
        True,
    )
    result = far.run("start", "-w", "-H", "web1", "true", status=125, start_new_session=True)
    assert result.stderr.decode().endswith(f"publickey{WAY_OUT}\n")


def test_time_is_up_while_somebody_is_asked() -> None:
    master, terminal = pty.openpty()
    with open(terminal, "r+b", buffering=0) as file:
        with pytest.raises(TimeoutError):
            _secret(file, "password: ", time.monotonic() - 1)
        assert termios.tcgetattr(file)[3] & termios.ECHO
        assert shown(master) == b"password: \r\n"
    os.close(master)


def test_people_who_wait_for_the_same_job() -> None:
    people, ends = People(), [socket.socketpair() for _ in range(2)]
    first, second = (Client(ours) for ours, _ in ends)
    for client in (first, second):
        people.come(client, ["1", "2"])
    assert people.who_waits(["1"]) is first
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(first.secret, "?")
        ends[0][1].recv(1000)  # the question has come
        ends[0][1].close()
        first.until_gone(lambda message: None)
        with pytest.raises(Cancelled):
            answer.result()
    assert people.who_waits(["1"]) is second
    people.leave(first)
    people.leave(second)  # who was asked nothing
    gone = people.who_waits(["2", "3"])
    assert gone
    with pytest.raises(Cancelled):
        gone.secret("?")
    assert people.who_waits(["3"]) is None
    second.asked = False
    people.come(second, ["2"])
    assert people.who_waits(["2"]) is second
    for client in (first, second):
        client.close()
    ends[1][1].close()


@pytest.mark.long
def test_who_leaves_while_he_is_asked(far: Far) -> None:
    key = locked(far)
    for number in (signal.SIGINT, signal.SIGKILL):
        child = at_terminal(far, "start", "-w", "-n", f"left{number}", "-H", "web1", "true")
        child.expect_exact(f"Enter passphrase for key '{key}': ")
        child.kill(number)
        child.expect(pexpect.EOF)
        child.close()
        outcome = far.outcome(far.jobs()[-1]["id"])
        assert outcome == ("Failed", f"cannot connect to web1: {CANCELLED}", None)


def test_others_who_wait_are_told_that_somebody_is_asked(far: Far, tmp_path: Path) -> None:
    """In a script, in one that comes to it later, and at a second terminal."""
    key = locked(far)
    prompt = f"Enter passphrase for key '{key}': "
    why = "jobctl: waiting: web1 has asked a question at another terminal"
    first = at_terminal(far, "start", "-w", "-H", "web1", "echo", "first")
    first.expect_exact(prompt)
    job = far.jobs()[-1]["id"]
    said = tmp_path / "said"
    with said.open("wb") as file:
        script = far.popen("wait", job, stderr=file, start_new_session=True)
        beside = far.popen(
            "start", "-qw", "-H", "web1", "true", stderr=file, start_new_session=True
        )
    wait_until(lambda: said.read_text() == f"{why}\n" * 2)
    second = at_terminal(far, "session", "run", "web1", "echo", "second")
    second.expect_exact(why)
    first.sendline("sesame")
    first.expect_exact("first\r\n")
    assert why not in (first.before or "")
    assert [status_of(child) for child in (first, second)] == [0, 0]
    assert [process.wait(60) for process in (script, beside)] == [0, 0]
    assert said.read_text() == f"{why}\n" * 2


def test_who_cancels_a_question_of_one_host_answers_no_other(far: Far) -> None:
    key = locked(far)
    child = at_terminal(far, "start", "-w", "-q", "-H", "web1,web2", "true")
    child.expect(rf"web([12]): Enter passphrase for key '{re.escape(str(key))}': ")
    assert isinstance(child.match, re.Match)
    asked = child.match[1]
    child.sendintr()
    assert status_of(child) == 130
    job = far.jobs()[-1]["id"]
    for number in "12":
        state, reason, _ = far.outcome(f"{job}.{number}")
        assert state == "Failed"
        if number == asked or CANCELLED in reason:
            assert reason == f"cannot connect to web{number}: {CANCELLED}"
        else:  # it came to ask when nobody was there any more
            assert reason.startswith(f"web{number} refuses the login")
            assert "needs its passphrase" in reason


@pytest.mark.long
def test_whatever_needs_a_host_asks(far: Far) -> None:
    key = locked(far)
    prompt = f"web1: Enter passphrase for key '{key}': "
    words = ("start", "-w", "-q", "--results", "remote", "-H", "web1", "-n")
    child = at_terminal(far, *words, "done", "echo", "out")
    says(child, prompt, "sesame")
    assert status_of(child) == 0
    for name, *options in (
        ("stays", "--results", "remote", "echo", "out"),
        ("runs", "sleep", "8643"),
    ):
        far.run("start", "-q", "-H", "web1", "-n", name, *options)
    far.run("wait", "stays")
    wait_until(lambda: far.jobs()[-1]["state"] == "Running")
    for line, said in (
        (("receive", "--again", "stays"), "out\r\n"),
        (("stop", "--signal", "CONT", "runs"), ""),
        (("stop", "runs"), ""),
        (("remove", "done", "stays", "runs"), ""),
    ):
        far.kill_agent()
        child = at_terminal(far, *line)
        child.expect_exact(prompt)
        child.sendintr()
        assert status_of(child) == 130
        child = at_terminal(far, *line)
        says(child, prompt, "sesame")
        child.expect_exact(f"\r\n{said}")
        assert status_of(child) == 0
        assert far.run(*line, status=None, start_new_session=True).stderr.count(b"\n") < 4
    assert far.jobs() == []


def test_a_question_comes_in_the_place_of_the_bar(far: Far) -> None:
    key = locked(far)
    child = at_terminal(far, "start", "-w", "-q", "-H", "web1", "sleep", "8644")
    says(child, f"web1: Enter passphrase for key '{key}': ", "sesame")
    wait_until(lambda: far.jobs()[-1]["state"] == "Running")
    child.sendintr()
    assert status_of(child) == 130
    far.kill_agent()
    child = at_terminal(far, "wait", "1")
    child.expect_exact("job 1  [")
    child.expect_exact(f"\r\x1b[Kweb1: Enter passphrase for key '{key}': ")
    child.sendline("sesame")
    far.run("stop", "1")
    assert status_of(child) == 1


@pytest.mark.long
def test_a_terminal_that_goes_away(far: Far, tmp_path: Path) -> None:
    reports = tmp_path / "reports"
    reports.mkdir()
    far.env["TMPDIR"] = str(reports)
    far.run("session", "new", "web1")
    entered = at_terminal(far, "session", "enter", "web1")
    entered.expect_exact("[web1] ")
    key = locked(far)
    for words in (
        ("session", "enter", "web2"),
        ("session", "run", "web2", "true"),
        ("start", "-w", "-H", "web2", "true"),
    ):
        child = at_terminal(far, *words)
        child.expect_exact(f"Enter passphrase for key '{key}': ")
        hang_up(child, str(words))
    far.sshd.known_hosts.write_text("")
    child = at_terminal(far, "session", "new", "web3")
    child.expect_exact("(yes/no/[fingerprint])? ")
    hang_up(child, "host key")
    hang_up(entered, "enter")
    # The system tells only the first process on the terminal, which is a shell here.
    status = tmp_path / "status"
    text = f"trap : HUP; {PROGRAM} session enter web1; echo $? >{status}"
    environ = {**far.env, "TERM": "xterm"}
    shell = pexpect.spawn("/bin/sh", ["-c", text], env=environ, encoding="utf-8", timeout=60)
    shell.expect_exact("[web1] ")
    take_away(shell)
    assert status.read_text() == "129\n"
    assert list(reports.iterdir()) == []


def take_away(child: pexpect.spawn[str]) -> None:
    """Take a terminal away from what runs on it, and wait for the end of that."""
    with open(os.devnull, "rb") as null:
        os.dup2(null.fileno(), child.child_fd, inheritable=False)
    child.wait()


def hang_up(child: pexpect.spawn[str], what: str) -> None:
    """Take a terminal away from what runs on it; HUP ends that."""
    take_away(child)
    assert signal.SIGHUP in (child.signalstatus, (child.exitstatus or 0) - 128), what


# --- what hosts say ---


@pytest.mark.long
def test_a_banner_is_for_who_waits_at_a_terminal(make_far: Make, make_sshd: MakeSshd) -> None:
    server = make_sshd()
    banner = server.folder / "banner"
    banner.write_bytes(b"\n  Authorized \x1b[31m use\nonly f\xfcr\n")
    config = server.folder / "sshd_config"
    config.write_text(f"Banner {banner}\n{config.read_text()}")
    server.restart()
    far = make_far(server)
    shown = "  Authorized \\x1b[31m use\r\nonly f\ufffdr\r\n"
    result = far.run("session", "run", "web1", "echo", "hi")
    assert (result.stdout, result.stderr) == (b"hi\n", b"")
    far.kill_agent()
    for words in (("session", "run", "web1", "true"), ("start", "-w", "-H", "web1", "true")):
        child = at_terminal(far, *words)
        child.expect_exact(shown)
        assert status_of(child) == 0
        far.kill_agent()
    server.hosts("LogLevel QUIET")
    child = at_terminal(far, "session", "new", "web1")
    assert status_of(child) == 0
    assert "Authorized" not in (child.before or "")
    # Who is refused hears how it begins: there may be nothing else that says why.
    far.kill_agent()
    server.authorized_keys.write_text("")
    said = far.refused(5, "session", "new", "web2")
    assert f"tried key {server.key}; it says: Authorized \\x1b[31m use; it takes publickey" in said


def test_a_banner_is_shown_once(make_far: Make, make_sshd: MakeSshd) -> None:
    server = make_sshd("ForceCommand exit 1")
    banner = server.folder / "banner"
    banner.write_text("Authorized use\n")
    config = server.folder / "sshd_config"
    config.write_text(f"Banner {banner}\n{config.read_text()}")
    server.restart()
    far = make_far(server)
    for words in (("start", "-w", "-H", "web1", "true"), ("session", "run", "web1", "true")):
        child = at_terminal(far, *words)
        status_of(child)
        assert str(child.before).count("Authorized use") == 1, words
        far.kill_agent()


@pytest.mark.parametrize(
    ("shell", "said"),
    rows_of(
        [
            (
                "echo; echo ' This account is currently not available.'; echo more; exit 1",
                "the login shell of this host ended before it ran /bin/sh:"
                " This account is currently not available.",
            ),
            ("echo 'Only gi\x1bt' >&2; exit 1", "before it ran /bin/sh: Only gi\\x1bt"),
            ("printf '\\377 t\\n'; exit 1", "before it ran /bin/sh: \\xff t"),
            ("printf 'no newline'", "before it ran /bin/sh: no newline"),
            ("exit 1", "the login shell of this host ended before it ran /bin/sh"),
            ("echo; echo Press any key; cat >/dev/null", "within 1 seconds: Press any key"),
            ("printf 'Choose: '; cat >/dev/null", "within 1 seconds: Choose:"),
        ],
        plain=2,
    ),
)
def test_what_a_login_shell_says_is_in_the_reason(
    make_far: Make, make_sshd: MakeSshd, shell: str, said: str
) -> None:
    far = make_far(make_sshd(f"ForceCommand {shell}"))
    told = far.refused(5, "session", "new", "--connect-timeout", "1", "web1")
    assert told.endswith(said)
    assert sessions(far) == []
    if "cat" not in shell:
        assert far.refused(125, "session", "run", "web1", "true").endswith(said)
        _, reason, _ = far.outcome(far.on("web1", "true"))
        assert reason.endswith(said)


@pytest.mark.long
def test_a_login_shell_that_was_killed_refuses_nothing(make_far: Make, make_sshd: MakeSshd) -> None:
    server = make_sshd(
        "ForceCommand echo welcome; [ -e ~/killed ] || { : >~/killed; kill -9 $$; };"
        ' exec sh -c "$SSH_ORIGINAL_COMMAND"'
    )
    far = make_far(server)
    assert far.out("start", "-w", "-H", "web1", "echo", "hi") == "hi\n"
    assert (server.home / "killed").exists()
