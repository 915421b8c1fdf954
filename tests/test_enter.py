"""`jobctl session enter`: a shell on a host, driven through a terminal."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import termios
from pathlib import Path

import pexpect
import pytest
from conftest import PROGRAM, at_home, first_of, wait_until
from far import Far
from sshd import MakeSshd, free_port
from test_session import Make, at_terminal, far, make_far, sessions, status_of

pytest_plugins = ("sshd",)
__all__ = ["far", "make_far"]
SHELLS = {"bash": "bash", "zsh": "zsh -f", "dash": "dash", "fish": "fish"}


def entered(far: Far, to: str = "web1", mark: str = "") -> pexpect.spawn[str]:
    """Enter a host; return the terminal when the prompt is there."""
    child = at_terminal(far, "session", "enter", to)
    child.setecho(True)
    child.expect_exact(f"[{mark or to}] ")
    return child


def says(child: pexpect.spawn[str], line: str, answer: str) -> None:
    """Type a line, and wait for what it prints."""
    child.sendline(line)
    child.expect(answer)


def with_shell(make_far: Make, make_sshd: MakeSshd, shell: str) -> Far:
    """Return a computer, and a host where the login shell is another one."""
    path = subprocess.run(["which", shell], stdout=subprocess.PIPE, text=True).stdout.strip()
    if not path:
        pytest.fail(f"{shell} is not installed; tests/run.sh installs it")
    return make_far(make_sshd(environ={"SHELL": path, "XDG_CONFIG_HOME": "/nonexistent"}))


@pytest.mark.parametrize("shell", first_of("bash", "zsh", "dash", "fish"))
def test_shells(make_far: Make, make_sshd: MakeSshd, shell: str) -> None:
    far = with_shell(make_far, make_sshd, shell)
    far.run("session", "run", "web1", "true")
    lib = next((far.there / "lib").iterdir())
    (lib / "zsh").mkdir()
    for half in ("rc.bash", "rc.sh", "zsh/.zshrc"):
        (lib / half).write_text("half=")
    (far.sshd.home / ".zshrc").write_text("PS1='%# '; set_there=zshrc\n")
    (far.sshd.home / ".profile").write_text("set_there=profile; PS1='$ '\n")
    far.run("session", "new", "--name", "my host", "web1")
    child = entered(far, "my host", "my_host")
    if shell != "fish":
        says(child, "echo [$set_there]", r"\[(profile|zshrc)\]\r\n")
    says(child, "pwd", re.escape(str(far.sshd.home)))
    says(child, "echo $TERM", r"xterm")
    says(child, "umask", r"0?022")
    says(child, "command -v jobctl", r"/jobctl\r\n")
    says(child, "sh -c 'echo [$JOBCTL_MARK$JOBCTL_BIN]'", r"\[\]" if shell != "fish" else r"\[.*\]")
    # Job control, and what the keyboard sends.
    says(child, "sleep 44 &", "")
    says(child, "jobs", r"(sleep 44|Running)")
    says(child, "kill %1; wait; echo kil''led", "killed")
    says(child, "sleep 45; echo not''here", "")
    wait_until(lambda: "sleep 45 " in at_home(far.sshd.home).values())
    child.sendintr()
    says(child, "echo inter''rupted", r"interrupted")
    assert "nothere" not in (child.before or "")
    child.sendline("sleep 46")
    wait_until(lambda: "sleep 46 " in at_home(far.sshd.home).values())
    child.send("\x1a")
    says(child, "echo stop''ped", r"stopped")
    says(child, "kill -9 %1; echo go''ne", r"gone")
    # At the prompt, not before: a ^D that comes while a command runs is lost, as everywhere.
    says(child, "sh -c 'echo le''ave; exit 3'", r"leave.*\[my_host\] ")
    if shell == "fish":
        child.sendline("exit 3")
    else:
        child.sendeof()
    assert status_of(child) == 3
    assert "job control" not in str(child.before)
    assert sessions(far)[0]["state"] == "Opened"


def test_the_window(far: Far) -> None:
    child = at_terminal(far, "session", "enter", "web1")
    child.expect_exact("[web1] ")
    says(child, "stty size", r"24 200\r")

    def size() -> str:
        child.sendline("stty size; echo as''ked")
        child.expect(r"(\d+ \d+)\r\nasked")
        assert isinstance(child.match, re.Match)
        return str(child.match[1])

    child.setwinsize(40, 123)
    wait_until(lambda: size() == "40 123")
    told = 'trap "echo resi\\zed; exit" WINCH; echo re\\ady; while :; do sleep 0.1; done'
    says(child, f"sh -c '{told}'", "ready")
    child.setwinsize(41, 124)
    child.expect("resized")
    says(child, "exit 7", "")
    assert status_of(child) == 7
    # It was connected for this, and is not kept as a session.
    assert sessions(far) == []


def test_full_screen_and_colours(far: Far) -> None:
    (far.sshd.home / "text").write_text("".join(f"line {n}\n" for n in range(1000)))
    child = entered(far)
    child.sendline("less text")
    child.expect("line 22\r\n")
    child.send("G")
    child.expect("line 999")
    child.send("q")
    says(child, "tput setaf 1 | od -c | head -n 1", r"033\s+\[\s+3\s+1\s+m")
    child.sendline("vi -u NONE text")
    child.expect("line 22")
    child.send(":q!\r")
    says(child, "printf '\\033[31mred\\033[0m\\n'", r"\x1b\[31mred\x1b\[0m")
    says(child, "exit", "")
    assert status_of(child) == 0


@pytest.mark.long
def test_much_at_once(far: Far) -> None:
    child = entered(far)
    child.sendline("seq 200000; echo do''ne")
    child.expect("\n199999\r\n200000\r\ndone")
    child.sendline("yes")
    for _ in range(20):
        child.expect("(y\r\n){1000}")
    child.sendintr()
    child.timeout = 60  # what was on the way comes first
    says(child, "echo still he''re", "still here")
    child.sendline("exit")
    assert status_of(child) == 0


def test_jobs_go_on_after_leaving(far: Far) -> None:
    child = entered(far)
    # One of the host's own, as there is one on a bare host.
    child.sendline("PATH=/usr/bin:/bin:${PATH##*:}")
    says(child, "command -v jobctl", re.escape(str(far.there)))
    says(
        child,
        "jobctl start -n inside -c 'echo in; while [ ! -e go ]; do sleep 0.1; done'",
        "Running",
    )
    says(child, "jobctl get", r"inside .*Running.*localhost")
    says(child, "jobctl receive inside", r"in\r\n")
    child.sendline("exit")
    assert status_of(child) == 0
    listing = far.out("session", "get", "--on", "web1")
    assert re.search(r"\n\d+ +inside +BackgroundJob +Running .* web1 ", listing)
    child = entered(far)
    child.sendline("PATH=/usr/bin:/bin:${PATH##*:}")
    says(child, "touch go; jobctl wait inside", "Completed")
    says(child, "jobctl start -w -c 'echo $((1+1)); exit 3'; echo =$?", r"2\r\n.*=3\r\n")
    says(child, "jobctl remove inside; jobctl get -q; echo =$?", r"\d+\r\n=0")
    child.sendline("exit")
    assert status_of(child) == 0


def modes(child: pexpect.spawn[str]) -> object:
    """Return how a terminal is set."""
    return termios.tcgetattr(child.child_fd)[:4]


@pytest.mark.parametrize("how", first_of("agent killed", "exit", "connection lost", "TERM", "HUP"))
def test_the_terminal_is_as_it_was(far: Far, how: str) -> None:
    environ = {**far.env, "TERM": "xterm", "PS1": "here> ", "ENV": ""}
    shell = pexpect.spawn(
        "/bin/sh", ["-i"], env=environ, encoding="utf-8", timeout=60, dimensions=(24, 200)
    )
    shell.expect_exact("here> ")
    before = modes(shell)
    shell.sendline(f"{PROGRAM} session enter web1; echo ended=$?")
    shell.expect_exact("[web1] ")
    assert modes(shell) != before
    status = 125
    if how == "exit":
        shell.sendline("exit 9")
        status = 9
    elif how == "agent killed":
        far.kill_agent()
    elif how == "connection lost":
        far.sshd.kill_connections()
    else:
        (pid,) = [
            pid
            for pid, words in at_home(Path(far.env["HOME"])).items()
            if "session enter" in words and "sh -i" not in words
        ]
        number = getattr(signal, f"SIG{how}")
        os.kill(pid, number)
        status = 128 + number
    shell.expect(f"ended={status}\r\n")
    said = shell.before or ""
    if how == "agent killed":
        assert "\r\njobctl: the agent was killed; the command may go on\r\n" in said
    if how == "connection lost":
        assert "jobctl: connection to web1 lost: " in said
    shell.expect_exact("here> ")
    assert modes(shell) == before
    # The shell there has ended with its terminal.
    wait_until(lambda: not [w for w in at_home(far.sshd.home).values() if "rc.bash" in w])
    shell.sendline("exit")
    shell.expect(pexpect.EOF)
    shell.close()


def test_without_a_terminal(far: Far) -> None:
    assert "needs a terminal" in far.refused(2, "session", "enter", "web1")
    assert far.agent() is None


def test_hosts_that_cannot_be_entered(far: Far) -> None:
    far.sshd.hosts("Host nowhere", "  HostName 127.0.0.1", f"  Port {free_port()}")
    child = at_terminal(far, "session", "enter", "nowhere")
    child.expect_exact("jobctl: cannot connect to nowhere: connection refused\r\n")
    assert status_of(child) == 125
    child = at_terminal(far, "session", "enter", "a;b")
    child.expect("not a host name")
    assert status_of(child) == 2


def test_a_server_without_channels_left(make_far: Make, make_sshd: MakeSshd) -> None:
    far = make_far(make_sshd("MaxSessions 2"))
    far.run("session", "new", "web1")
    children = [entered(far) for _ in range(3)]
    for number, child in enumerate(children):
        says(child, f"exit {number + 5}", "")
        assert status_of(child) == number + 5


def test_a_home_with_spaces_and_quotes(make_far: Make, make_sshd: MakeSshd, tmp_path: Path) -> None:
    home = tmp_path / "a 'home' $x *"
    home.mkdir()
    far = make_far(make_sshd(environ={"HOME": str(home), "XDG_STATE_HOME": ""}))
    child = entered(far)
    says(child, "pwd", re.escape(str(home)))
    child.sendline("PATH=/usr/bin:/bin:${PATH##*:}")
    says(child, "jobctl start -w echo a''b", r"ab\r\n")
    child.sendline("exit")
    assert status_of(child) == 0
