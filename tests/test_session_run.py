"""`jobctl session run`: a command on a host behaves as one that ssh runs."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import onegroup
import pytest
from conftest import PROGRAM, at_home, at_rest, first_of, rows_of, sleeper, sleeping, wait_until
from far import Far
from sshd import MakeSshd, Sshd
from test_session import Make, at_terminal, far, make_far, sessions, status_of

pytest_plugins = ("sshd",)
__all__ = ["far", "make_far"]
SHOW_WORDS = (sys.executable, "-c", "import os, sys; print(list(map(os.fsencode, sys.argv[1:])))")
WORDS = (
    *(b"a b", b"", b"'", b'"', b"\n", b" x \n\n", b"$HOME", b"`id`", b"\\", b"\\\\n", b"*", b"~"),
    *(b"-x", b"--", b"!!", b"#", b"\t", b";", b"&", b"%s", b"\xff\xfe", bytes(range(1, 256))),
)


@pytest.fixture
def web(far: Far) -> Far:
    """Give the program with a session to web1."""
    far.run("session", "new", "web1")
    return far


def running(far: Far, text: str) -> list[int]:
    """Return the processes on the host that have text among their words."""
    return [pid for pid, words in at_home(far.sshd.home).items() if text in words]


# --- streams ---


def test_streams_are_passed_through(web: Far) -> None:
    data = bytes(range(256)) * 5000 + b"no newline at the end"
    result = web.run("session", "run", "web1", "cat", input=data)
    assert result.stdout == data
    assert result.stderr == b""
    result = web.run("session", "run", "web1", "--", "sh", "-c", "cat >&2; echo out", input=data)
    assert result.stderr == data
    assert result.stdout == b"out\n"
    assert web.run("session", "run", "web1", "cat").stdout == b""
    assert web.run("session", "run", "web1", "wc", "-c", input=b"").stdout.strip() == b"0"


def test_input_that_cannot_be_read_is_none(web: Far) -> None:
    with open(os.devnull, "wb") as unreadable:
        assert web.run("session", "run", "web1", "cat", stdin=unreadable).stdout == b""
    words = ["sh", "-c", f"exec {PROGRAM} session run web1 cat <&-"]
    assert subprocess.run(words, env=web.env, timeout=20, capture_output=True).stdout == b""


def test_input_ends_before_output(web: Far) -> None:
    text = "while read -r line; do echo got $line; done; echo over"
    process = web.popen(
        "session", "run", "web1", "-c", text, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    for word in (b"one", b"two"):
        process.stdin.write(word + b"\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"got " + word + b"\n"
    process.stdin.close()
    assert process.stdout.read() == b"over\n"
    assert process.wait(60) == 0
    process.stdout.close()


def test_what_was_not_sent_stays_where_it_is(web: Far, tmp_path: Path) -> None:
    # As ssh, it takes what there is, and as with ssh there is a remedy.
    (tmp_path / "lines").write_text("1\n2\n3\n")
    loop = "while read -r n; do {} session run web1 echo $n{}; done <lines"
    for redirect, output in (("", b"1\n"), (" </dev/null", b"1\n2\n3\n")):
        words = ["sh", "-c", loop.format(PROGRAM, redirect)]
        result = subprocess.run(words, env=web.env, cwd=tmp_path, timeout=60, capture_output=True)
        assert result.stdout == output


def test_a_command_need_not_read(web: Far) -> None:
    with open("/dev/zero", "rb") as zeros:
        assert web.run("session", "run", "web1", "echo", "hi", stdin=zeros).stdout == b"hi\n"


def test_who_reads_may_leave(web: Far) -> None:
    words = f"{PROGRAM} session run web1 yes | head -n 1"
    result = subprocess.run(["sh", "-c", words], env=web.env, timeout=20, capture_output=True)
    assert (result.stdout, result.stderr) == (b"y\n", b"")
    wait_until(lambda: not running(web, "yes"))
    said = web.run("session", "run", "web1", "yes", status=125, stdout=os.open("/dev/full", 1))
    assert b"cannot write to standard output: No space left" in said.stderr
    # Without standard error it goes on.
    read, write = os.pipe()
    os.close(read)
    text = "seq 100000 >&2; echo out; exit 3"
    result = web.run("session", "run", "web1", "-c", text, status=3, stderr=write)
    assert result.stdout == b"out\n"
    os.close(write)


@pytest.mark.long
def test_much_output_needs_no_memory(web: Far) -> None:
    pid = wait_until(web.agent)

    def peak() -> int:
        return int(Path(f"/proc/{pid}/status").read_text().split("VmHWM:")[1].split()[0])

    web.run("session", "run", "web1", "--", "head", "-c", "1000000", "/dev/zero")
    before = peak()
    size = 200 << 20
    text = f"head -c {size} /dev/zero"
    count = web.popen("session", "run", "web1", "-c", text, stdout=subprocess.PIPE)
    assert count.stdout is not None
    total = 0
    time.sleep(0.5)  # a slow reader at first
    while piece := count.stdout.read(1 << 20):
        total += len(piece)
    assert total == size
    assert count.wait() == 0
    assert peak() - before < 40000
    with (
        open("/dev/zero", "rb") as zeros,
        subprocess.Popen(
            ["head", "-c", str(100 << 20)], stdin=zeros, stdout=subprocess.PIPE
        ) as source,
    ):
        assert web.out("session", "run", "web1", "wc", "-c", stdin=source.stdout) == "104857600\n"
    assert peak() - before < 40000


# --- words and ends ---


def test_words_are_verbatim(web: Far) -> None:
    shown = web.run("session", "run", "web1", "--", *SHOW_WORDS, *WORDS).stdout
    assert shown.decode().strip() == str(list(WORDS))
    assert web.out("session", "run", "web1", "-c", 'echo "$2$1"', "a", "-b") == "-ba\n"
    assert web.out("session", "run", "-c", "echo $0 $#", "web1", "--", "--") == "sh 1\n"
    big = b"x" * 100_000
    result = web.run("session", "run", "web1", "printf", "%s", big)
    assert hashlib.sha256(result.stdout).digest() == hashlib.sha256(big).digest()
    assert web.out("session", "run", "web1", "pwd").strip() == str(web.sshd.home)
    assert "=" in web.out("session", "run", "--", "web1", "env")


@pytest.mark.parametrize(
    ("words", "status", "said"),
    rows_of(
        [
            (("true",), 0, b""),
            (("-c", "exit 77"), 77, b""),
            (("-c", "exit 255"), 255, b""),
            (("no-such-command",), 127, b"jobctl: command not found: no-such-command\n"),
            (("cd", "/"), 127, b"jobctl: command not found: cd; use -c for shell text\n"),
            (("echo a; exit",), 127, b"command not found: echo a; exit; use -c for shell text\n"),
            (("true", "|", "wc"), 0, b"'|' is given to true as it is; use -c for shell text\n"),
            (("~/x", "y"), 127, b"command not found: ~/x; use -c for shell text\n"),
            (("a=b", "env"), 127, b"; use -c for shell text, in which variables can be set\n"),
            (("/etc/passwd",), 126, b"jobctl: cannot execute /etc/passwd: permission denied\n"),
            (("/",), 126, b"jobctl: cannot execute /: it is a directory\n"),
            (("-c", "kill -9 $$"), 137, b""),
            (("-c", "kill -TERM $$"), 143, b""),
            (("-c", "kill -SEGV $$"), 139, b""),
            (("-c", "kill -INT $$"), 130, b""),
        ],
        plain=8,
    ),
)
def test_exit_status(web: Far, words: tuple[str, ...], status: int, said: bytes) -> None:
    result = web.run("session", "run", "web1", *words, status=status)
    assert said in result.stderr.lower()
    assert bool(said) == bool(result.stderr)
    assert result.stdout == b""


@pytest.mark.long
def test_a_script_whose_interpreter_is_not_there(web: Far) -> None:
    """It is named, in one line, as for a job; what only may be wrong is left to the system."""
    path = web.sshd.home / "w"
    (web.sshd.home / "bin").mkdir()
    (web.sshd.home / "bin/found7").symlink_to(path)
    missing, dos = "command not found: ./w: its interpreter", "cannot execute ./w: its interpreter"
    for line, status, said in (
        ("#!/nosuch/sh", 127, f"{missing} /nosuch/sh is not there"),
        ("#!/bin/sh\r", 127, f"{missing} /bin/sh\\r is not there"),
        ("#!/usr/bin/env nosuch7\r", 127, f"{missing} nosuch7\\r is not there"),
        ("#!/bin/sh -e\r", 126, f"{dos} /bin/sh is given '-e\\r', as the file has"),
        ("#! /bin/sh \r", 126, f"{dos} /bin/sh is given '\\r', as the file has"),
        ("#!/bin/sh -e", 3, ""),
    ):
        path.write_text(f"{line}\nexit 3\n")
        path.chmod(0o755)
        for word in ("./w", str(path)):
            result = web.run("session", "run", "web1", word, status=status)
            told = f"jobctl: {said}".replace("./w", word) if said else ""
            assert result.stderr.decode().startswith(told)
            assert len(result.stderr.splitlines()) == bool(said)
            job = web.on("web1", word)
            web.run("wait", job, status=1)
            assert said.replace("./w", word) in web.job(job)["reason"]
            assert (web.job(job)["exit_code"] == 3) is not bool(said)
    path.write_text("#!/nosuch/sh\n")
    text = "PATH=$PATH:$HOME/bin found7"
    assert b"found7" in web.run("session", "run", "web1", "-c", text, status=127).stderr


def test_bad_usage(far: Far) -> None:
    for words in (("web1",), ("web1", ""), ("web1", "--"), (), ("--", "-x", "true")):
        far.refused(2, "session", "run", *words)
    assert far.agent() is None
    said = far.refused(125, "session", "run", "no-such-host.invalid", "true")
    assert "no-such-host.invalid" in said


def test_a_host_without_a_session(far: Far) -> None:
    assert far.out("session", "run", "web3", "echo", "hi") == "hi\n"
    assert sessions(far) == []
    far.run("session", "new", "--name", "other", "web3")
    text = "set -- $SSH_CONNECTION; echo $2"
    port = far.out("session", "run", "other", "-c", text)
    # Over the session that there is, by then.
    assert far.out("session", "run", "web3", "-c", text) == port


def test_a_session_that_was_disconnected_is_not_used(web: Far) -> None:
    web.run("session", "disconnect", "web1")
    said = web.refused(125, "session", "run", "web1", "true")
    assert said == (
        "jobctl: session 'web1' is disconnected; 'jobctl session connect' connects it again"
    )


# --- being ended ---


@pytest.mark.parametrize(
    ("number", "status"), [("INT", 130), ("TERM", 143), ("HUP", 129), ("QUIT", 131)]
)
def test_a_signal_ends_the_command_and_its_children(web: Far, number: str, status: int) -> None:
    nap = sleeper()
    text = f"echo begun; {nap} & {nap}; echo after"
    process = web.popen("session", "run", "web1", "-c", text, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"begun\n"
    # One that is about to run it does not heed INT: dash keeps that for itself, and then waits.
    wait_until(lambda: len(sleeping(nap)) == 2)
    process.send_signal(getattr(signal, f"SIG{number}"))
    assert process.wait(60) == status
    # Also what sh started in the background, deaf to two of these signals.
    wait_until(lambda: not running(web, nap))
    assert process.stdout.read() == b""
    process.stdout.close()


def test_a_command_may_handle_signals(web: Far) -> None:
    text = "trap 'echo caught; exit 7' INT; echo begun; while :; do sleep 0.05; done"
    process = web.popen("session", "run", "web1", "-c", text, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"begun\n"
    process.send_signal(signal.SIGINT)
    assert process.stdout.read() == b"caught\n"
    assert process.wait(60) == 7
    # Who insists is let go, and the command, which ignores it, loses its terminal and streams.
    text = "trap '' INT; echo begun; while :; do sleep 0.05; done"
    process.stdout.close()
    process = web.popen("session", "run", "web1", "-c", text, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"begun\n"
    while process.poll() is None:
        process.send_signal(signal.SIGINT)
        time.sleep(0.05)
    assert process.returncode == 130
    wait_until(lambda: not running(web, "sleep 0.05"))
    process.stdout.close()


def test_a_killed_client_ends_the_command(web: Far) -> None:
    process = web.popen("session", "run", "web1", "sleep", "4321")
    wait_until(lambda: running(web, "sleep 4321"))
    process.kill()
    process.wait()
    wait_until(lambda: not running(web, "sleep 4321"))
    assert sessions(web)[0]["state"] == "Opened"
    wait_until(lambda: sessions(web)[0]["availability"] == "Available")


def test_a_killed_agent_is_told(web: Far) -> None:
    process = web.popen(
        "session", "run", "web1", "cat", stdin=subprocess.PIPE, stderr=subprocess.PIPE
    )
    wait_until(lambda: sessions(web)[0]["availability"] == "Busy")
    wait_until(lambda: [w for w in at_home(web.sshd.home).values() if w == "cat "])
    web.kill_agent()
    assert process.wait(60) == 125
    assert process.stderr is not None
    assert b"the agent was killed" in process.stderr.read()
    wait_until(lambda: not [w for w in at_home(web.sshd.home).values() if w == "cat "])
    for file in (process.stdin, process.stderr):
        assert file is not None
        file.close()


def test_interrupted_while_connecting(make_far: Make, make_sshd: MakeSshd) -> None:
    far = make_far(make_sshd("ForceCommand cat >/dev/null"))
    process = far.popen("session", "run", "web1", "true", stderr=subprocess.PIPE)
    wait_until(lambda: far.sshd.connections())
    at_rest(process)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert process.stderr is not None
    assert process.stderr.read() == b""
    process.stderr.close()


def test_a_terminal_is_read_only_in_the_foreground(web: Far) -> None:
    shell = at_terminal(web, "session", "run", "web1", "cat")
    shell.sendline("typed")
    shell.expect("typed\r\n.*typed\r\n")
    shell.sendeof()
    assert status_of(shell) == 0
    # The agent has no part in the terminal, and would read on while its caller is stopped.
    shell = at_terminal(web, "session", "run", "web1", "sleep", "50")
    wait_until(lambda: running(web, "sleep 50"))
    assert shell.pid
    os.kill(shell.pid, signal.SIGSTOP)
    shell.sendline("for somebody else")
    time.sleep(0.3)
    os.kill(shell.pid, signal.SIGCONT)
    shell.sendintr()
    assert status_of(shell) == 130


# --- many, and few channels ---


@pytest.mark.parametrize("most", first_of(2, 1, 10))
def test_many_at_once(make_far: Make, make_sshd: MakeSshd, most: int) -> None:
    far = make_far(make_sshd(f"MaxSessions {most}"))
    far.run("session", "new", "web1")
    barrier = far.sshd.home / "barrier"
    text = f"echo >>{barrier}; while [ $(wc -l <{barrier}) -lt 20 ]; do sleep 0.05; done; cat"
    outputs: dict[int, bytes] = {}

    def one(number: int) -> None:
        data = b"%d" % number * 1000
        outputs[number] = far.run("session", "run", "web1", "-c", text, input=data).stdout

    threads = [threading.Thread(target=one, args=(n,)) for n in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outputs == {n: b"%d" % n * 1000 for n in range(20)}
    # What it took beside the session's own connection is closed again.
    wait_until(lambda: len(far.sshd.connections()) <= (2 if most > 1 else 4))
    assert far.out("start", "-q", "-s", "web1", "--wait", "echo", "hi") == "hi\n"


# --- unusual hosts ---


@pytest.mark.parametrize("shell", first_of("tcsh", "fish", "zsh", "noisy bash", "stays"))
def test_login_shells(make_far: Make, make_sshd: MakeSshd, shell: str) -> None:
    command = f'{shell} -c "$SSH_ORIGINAL_COMMAND"'
    if shell == "noisy bash":
        command = (
            "head -c 100000 /dev/urandom; seq 1000 >&2; echo -n jobctl-read; echo -n jobctl >&2;"
            ' echo "have /tmp"; exec sh -c "$SSH_ORIGINAL_COMMAND"'
        )
    elif shell == "stays":
        command = 'sh -c "$SSH_ORIGINAL_COMMAND"; exit $?'
    far = make_far(make_sshd(f"ForceCommand {command}"))
    far.run("session", "new", "web1")
    result = far.run(
        "session", "run", "web1", "-c", "cat; echo err >&2; exit 5", input=b"a\0b", status=5
    )
    assert (result.stdout, result.stderr) == (b"a\0b", b"err\n")
    shown = far.run("session", "run", "web1", "--", *SHOW_WORDS, *WORDS).stdout
    assert shown.decode().strip() == str(list(WORDS))
    process = far.popen("session", "run", "web1", "sleep", "4322")
    wait_until(lambda: running(far, "sleep 4322"))
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    wait_until(lambda: not running(far, "sleep 4322"))


def test_a_home_with_spaces_and_quotes(make_far: Make, make_sshd: MakeSshd, tmp_path: Path) -> None:
    home = tmp_path / "a 'home' \"of\" $x `y` *"
    home.mkdir()
    far = make_far(make_sshd(environ={"HOME": str(home), "XDG_STATE_HOME": ""}))
    far.run("session", "new", "web1")
    assert far.out("session", "run", "web1", "-c", 'echo "$HOME"; pwd') == f"{home}\n" * 2
    assert (home / ".local/state/jobctl/lib").is_dir()
    assert far.out("session", "run", "web1", "-c", "command -v true >/dev/null; echo hi") == "hi\n"


def test_nothing_shows_in_ps(web: Far) -> None:
    secret = f"{sleeper()} #SECRET"
    process = web.popen(
        "session", "run", "web1", "--", "sh", "-c", f"echo; {secret}", stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.readline()
    listing = subprocess.run(["ps", "-A", "-ww", "-o", "args="], stdout=subprocess.PIPE, text=True)
    seen = {line for line in listing.stdout.splitlines() if secret in line}
    # On the host the command itself, and here what the user typed.
    assert {line for line in seen if "session run" not in line} == {f"sh -c echo; {secret}"}
    assert "SECRET" not in (web.state_dir / "agent.log").read_text()
    process.terminate()
    process.wait()
    process.stdout.close()


def test_the_server_may_go_while_something_runs(web: Far, sshd: Sshd) -> None:
    process = web.popen("session", "run", "web1", "sleep", "4323", stderr=subprocess.PIPE)
    wait_until(lambda: running(web, "sleep 4323"))
    sshd.kill_connections()
    assert process.wait(60) == 125
    assert process.stderr is not None
    assert b"connection to web1 lost: " in process.stderr.read()
    process.stderr.close()
    # The next one waits for the connection to be there again.
    assert web.out("session", "run", "web1", "echo", "hi") == "hi\n"
    for pid in running(web, "sleep 4323"):
        os.kill(pid, signal.SIGKILL)


@pytest.mark.long
@pytest.mark.parametrize("has_setsid", [True, False])
def test_only_one_command_is_interrupted_where_the_server_makes_no_groups(
    far: Far, tmp_path: Path, has_setsid: bool
) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    for folder in ("/bin", "/usr/bin"):
        for name in os.listdir(folder):
            if name != "setsid" and not (tools / name).is_symlink():
                (tools / name).symlink_to(f"{folder}/{name}")
    path = os.defpath if has_setsid else str(tools)
    server = subprocess.Popen(
        [sys.executable, onegroup.__file__, far.sshd.host_keys[0], far.sshd.home, path],
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        assert server.stdout
        far.sshd.hosts(port=int(server.stdout.readline()))
        far.run("session", "new", "web1")
        job = far.out("start", "-q", "-s", "web1", "sleep", "9151").strip()
        words = [PROGRAM, "session", "run", "web1", "-c"]
        first, second = (
            subprocess.Popen([*words, f"trap '' TERM; sleep {n}; echo on"], env=far.env, stdout=-1)
            for n in (9152, 9153)
        )
        wait_until(lambda: all(running(far, f"sleep {n} ") for n in (9151, 9152, 9153)))
        first.send_signal(signal.SIGINT)
        assert first.wait(60) == 130
        wait_until(lambda: not running(far, "sleep 9152 "))
        assert sessions(far, "web1")[0]["state"] == "Opened"
        assert far.job(job)["state"] == "Running"
        # The whole tree of the other one is hit, and nothing else of it is.
        for pid in running(far, "sleep 9153 "):
            os.kill(pid, signal.SIGKILL)
        assert second.communicate(timeout=60)[0] == b"on\n"
        far.run("stop", job)
    finally:
        far.run("session", "remove", "--all", "--force", status=None)
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
