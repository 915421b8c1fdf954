"""`jobctl session`: opening, showing, letting go of and closing connections to a real sshd."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pexpect
import pytest
from conftest import (
    PROGRAM,
    at_home,
    at_rest,
    first_of,
    nothing_left,
    processes_with,
    rows_of,
    wait_until,
)
from far import Far
from sshd import MakeSshd, Sshd, free_port, keygen, program

from jobctl import links

pytest_plugins = ("sshd",)
HEADER = ["Id", "Name", "Transport", "Host", "State", "Availability", "Jobs"]
SECONDS = 60
Make = Callable[[Sshd], Far]


@pytest.fixture
def make_far(tmp_path: Path) -> Iterator[Make]:
    """Give a function that makes a computer of a server's own; nothing of it is left, nor amiss."""
    made: list[Far] = []
    before: list[int] = []

    def make(server: Sshd) -> Far:
        before.extend(at_home(server.home))
        made.append(Far(tmp_path / f"state{len(made) or ''}", tmp_path, server))
        return made[-1]

    yield make
    for far in made:
        far.close()
        log = far.state_dir / "agent.log"
        text = log.read_text() if log.exists() else ""
        assert not [line for line in text.splitlines() if " agent " not in line], text
    nothing_left(tmp_path, *(far.sshd.home for far in made), but=before)


@pytest.fixture
def far(make_far: Make, sshd: Sshd) -> Far:
    return make_far(sshd)


def sessions(far: Far, *words: str) -> list[dict[str, Any]]:
    """Return the records that `session get` prints."""
    records: list[dict[str, Any]] = json.loads(far.out("session", "get", "-o", "json", *words))
    return records


def until(far: Far, name: str, state: str, seconds: float = SECONDS) -> dict[str, Any]:
    """Wait until a session is in a state; return its record."""

    def there() -> dict[str, Any] | None:
        record = sessions(far, name)[0]
        return record if record["state"] == state else None

    record: dict[str, Any] = wait_until(there, seconds)
    return record


def at_terminal(far: Far, *words: str) -> pexpect.spawn[str]:
    """Start the program on a terminal."""
    environ = {**far.env, "TERM": "xterm"}
    return pexpect.spawn(
        PROGRAM, list(words), env=environ, encoding="utf-8", timeout=SECONDS, dimensions=(24, 200)
    )


def status_of(child: pexpect.spawn[str]) -> int | None:
    """Return the exit status of what ran on a terminal, once it has ended."""
    child.expect(pexpect.EOF)
    child.close()
    return child.exitstatus


# --- new ---


def test_new_prints_the_session(far: Far) -> None:
    header, row = far.out("session", "new", "web1").splitlines()
    assert header.split() == HEADER
    assert row.split() == ["1", "web1", "ssh", "web1", "Opened", "Available", "0"]
    assert far.out("session", "new", "-q", "--name", "db 1", "web2") == "2\n"
    rows = far.out("session", "get").splitlines()
    assert [row.split()[0] for row in rows] == ["Id", "1", "2"]
    assert far.run("session", "new", "web3", "-o", "jsonl").stderr == b""


def test_json_has_what_the_contract_lists(far: Far) -> None:
    port = str(far.sshd.port)
    far.run("session", "new", "--name", "a", "--user", far.sshd.user, "--port", port, "web1")
    (record,) = sessions(far, "a")
    assert (
        list(record)
        == (
            "id name transport host user port state availability jobs reason"
            " created_at connected_at"
        ).split()
    )
    stamps = [record.pop(key) for key in ("created_at", "connected_at")]
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", stamp) for stamp in stamps)
    assert record == {
        "id": "1",
        "name": "a",
        "transport": "ssh",
        "host": "web1",
        "user": far.sshd.user,
        "port": far.sshd.port,
        "state": "Opened",
        "availability": "Available",
        "jobs": 0,
        "reason": "",
    }
    far.run("session", "new", "web2")
    assert [sessions(far, "web2")[0][key] for key in ("user", "port")] == [None, None]
    assert far.out("session", "get", "-o", "wide").splitlines()[0].split() == [*HEADER, "Reason"]


def test_several_at_once(far: Far) -> None:
    far.sshd.hosts("Host nowhere", "  HostName 127.0.0.1", f"  Port {free_port()}")
    assert far.out("session", "new", "-q", "web1,web2") == "1\n2\n"
    result = far.run("session", "new", "-q", "web3,nowhere,web1,web4", status=5)
    assert result.stdout == b"3\n5\n"
    first, second = result.stderr.decode().splitlines()
    assert first == "jobctl: cannot connect to nowhere: connection refused"
    assert "there is a session 'web1' already" in second
    assert [record["name"] for record in sessions(far)] == ["web1", "web2", "web3", "web4"]
    assert "--name" in far.refused(2, "session", "new", "--name", "x", "web1,web2")


def test_names(far: Far) -> None:
    far.run("session", "new", "--name", "été 'x' \"y\" .. %41 @[1]:2", "web1")
    far.run("session", "new", "--name", ".hidden", "web1")
    far.run("session", "new", f"{far.sshd.user}@web1")
    assert [record["name"] for record in sessions(far)] == [
        "été 'x' \"y\" .. %41 @[1]:2",
        ".hidden",
        f"{far.sshd.user}@web1",
    ]
    assert "already" in far.refused(4, "session", "new", "--name", ".hidden", "web2")
    for name in ("", "12", "12.3", "3-8", "-x", "a\nb", "a\x1b[31m", " ", "x" * 256, "\u00fc" * 90):
        far.refused(2, "session", "new", "--name", name, "web1")
    # No id is used again.
    far.run("session", "remove", "--all")
    assert sessions(far) == []
    assert far.out("session", "new", "-q", "web1") == "4\n"


@pytest.mark.parametrize(
    "host", ["", "web1,", "-oProxyCommand=touch x", "a;b", "a b", "a\nb", "$(a)"]
)
def test_bad_hosts(far: Far, host: str) -> None:
    far.refused(2, "session", "new", "--", host)
    far.refused(2, "session", "run", "--", host, "true")
    far.refused(2, "session", "get", "--on", host)
    assert sessions(far) == []
    assert far.agent() is None


def test_bad_options(far: Far) -> None:
    marker = far.sshd.folder / "injected"
    for words in (
        ("--user", "-oProxyCommand=x"),
        ("--user", "a;b"),
        ("--user", ""),
        ("--user", "a\nProxyCommand touch x"),
        ("--port", "0"),
        ("--port", "65536"),
        ("--port", "22 -oX=y"),
        ("--port", "-1"),
        ("--port", "²"),
        ("--identity", ""),
        ("--identity", "a\nb"),
        ("--option", "ProxyCommand"),
        ("--option", "-oProxyCommand=x"),
        ("--option", f"User=x\nProxyCommand=touch {marker}"),
        ("--option", "=x"),
        ("--connect-timeout", "0"),
        ("--connect-timeout", "soon"),
    ):
        far.refused(2, "session", "new", *words, "web1")
    assert not marker.exists()
    assert far.agent() is None
    # What ssh itself does not know is found out by asking it.
    far.refused(5, "session", "new", "--option", "NoSuchThing=1", "web1")
    assert sessions(far) == []


def test_the_way_to_the_host_may_be_told(far: Far, tmp_path: Path) -> None:
    config = tmp_path / "other config"
    config.write_text(
        f"Host h\n UserKnownHostsFile {far.sshd.known_hosts}\n GlobalKnownHostsFile /dev/null\n"
        " IdentitiesOnly yes\n IdentityAgent none\n"
    )
    far.env["JOBCTL_SSH_CONFIG"] = "other config"
    key = tmp_path / "a key"
    key.write_bytes(far.sshd.key.read_bytes())
    key.chmod(0o600)
    words = ["--port", str(far.sshd.port), "--identity", "a key", "--option", "HostName=127.0.0.1"]
    words += ["--connect-timeout", "9", "--user", far.sshd.user]
    far.run("session", "new", "--name", "told", *words, "h", cwd=tmp_path)
    far.kill_agent()
    # All of it is remembered.
    far.env["JOBCTL_SSH_CONFIG"] = str(config)
    far.run("session", "run", "told", "true")
    assert until(far, "told", "Opened")["user"] == far.sshd.user


# --- host keys ---


def test_an_unknown_key_is_refused_without_a_terminal(far: Far) -> None:
    far.sshd.known_hosts.write_text("")
    way_out = "; if that is the right one, 'jobctl session new --accept-new web1' accepts it"
    told = f"jobctl: host key of web1 is unknown: ED25519 {fingerprint_of(far)}{way_out}"
    assert far.refused(5, "session", "new", "web1", start_new_session=True) == told
    assert far.refused(125, "session", "run", "web1", "true", start_new_session=True) == told
    _, reason, _ = far.outcome(far.on("web1", "true", start_new_session=True))
    assert f"jobctl: {reason}" == told
    far.sshd.hosts("StrictHostKeyChecking yes")
    assert far.refused(5, "session", "new", "web1", start_new_session=True) == told
    assert sessions(far) == []
    assert far.sshd.known_hosts.read_text() == ""


def fingerprint_of(far: Far) -> str:
    """Return the fingerprint of a host's key, as ssh-keygen has it."""
    public = f"{far.sshd.host_keys[0]}.pub"
    words = [program("ssh-keygen"), "-l", "-f", public]
    return subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True).stdout.split()[1]


@pytest.mark.parametrize("answer", ["yes", "no", "", "fingerprint"])
def test_an_unknown_key_is_asked_about_on_a_terminal(far: Far, answer: str) -> None:
    far.sshd.known_hosts.write_text("")
    child = at_terminal(far, "session", "new", "web1")
    child.expect_exact(f"ED25519 key fingerprint is {fingerprint_of(far)}.\r\n")
    child.expect_exact("continue connecting (yes/no/[fingerprint])? ")
    for unclear in ("y", "SHA256:"):
        child.sendline(unclear)
        child.expect_exact("Please type 'yes', 'no' or the fingerprint: ")
    child.sendline(fingerprint_of(far) if answer == "fingerprint" else answer)
    if answer in ("yes", "fingerprint"):
        child.expect("Opened")
        assert status_of(child) == 0
        assert "127.0.0.1" in far.sshd.known_hosts.read_text()
    else:
        child.expect("host key of web1 is unknown")
        assert status_of(child) == 5
        assert sessions(far) == []


def test_a_new_key_may_be_accepted_but_never_a_changed_one(far: Far) -> None:
    far.sshd.known_hosts.write_text("")
    far.run("session", "new", "--accept-new", "web1")
    line = far.sshd.known_hosts.read_text()
    assert line.startswith(f"[127.0.0.1]:{far.sshd.port} ssh-ed25519 ")
    other = keygen(far.sshd.folder / f"other{time.monotonic_ns()}").with_suffix(".pub").read_text()
    far.sshd.known_hosts.write_text(f"# a comment\n{line.split()[0]} {other}")
    where = f"host key of web2 has changed: {far.sshd.known_hosts}:2 "
    assert where in far.refused(5, "session", "new", "--accept-new", "web2")
    child = at_terminal(far, "session", "new", "--accept-new", "web2")
    child.expect_exact(where.rstrip())
    assert status_of(child) == 5
    # Nor does a session that once accepted one accept another.
    far.sshd.known_hosts.write_text("")
    far.kill_agent()
    record = until(far, "web1", "Broken")
    assert "host key of web1 is unknown" in record["reason"]
    assert record["availability"] == "None"


# --- hosts that do not answer ---


def test_hosts_that_cannot_be_reached(far: Far) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    silent = listener.getsockname()[1]
    far.sshd.hosts(
        *("Host refusing", "  HostName 127.0.0.1", f"  Port {free_port()}"),
        *("Host silent", "  HostName 127.0.0.1", f"  Port {silent}"),
    )
    for host, reason in (
        ("refusing", "connection refused"),
        ("silent", "no answer within 1 seconds"),
        ("no-such-host.invalid", ""),
    ):
        said = far.refused(5, "session", "new", "--connect-timeout", "1", host)
        assert said.startswith(f"jobctl: cannot connect to {host}: {reason}")
        assert sessions(far) == []
    said = far.refused(125, "session", "run", "refusing", "true")
    assert said == "jobctl: cannot connect to refusing: connection refused"
    listener.close()


@pytest.mark.parametrize(
    ("shell", "reason"),
    rows_of(
        [
            ("cat >/dev/null", "its login shell does not answer within 1 seconds"),
            ("exit 1", "web1: the login shell of this host ended before it ran /bin/sh"),
            ("echo; echo jobctl-ready; cat >/dev/null", ""),
            ("echo; echo jobctl-ready 1; echo no; cat >/dev/null", ""),
            ("echo; echo jobctl-ready 1; echo have /tmp; echo serv", "web1: "),
            ("cat /dev/zero", ""),
        ],
        plain=2,
    ),
)
def test_hosts_that_talk_nonsense(
    make_far: Make, make_sshd: MakeSshd, shell: str, reason: str
) -> None:
    far = make_far(make_sshd(f"ForceCommand {shell}"))
    said = far.refused(5, "session", "new", "--connect-timeout", "1", "web1")
    assert reason in said
    assert sessions(far) == []
    if shell != "cat >/dev/null":  # without a connect timeout, one waits for longer
        far.refused(125, "session", "run", "web1", "true")


def test_asking_is_ended_by_hanging_up(far: Far) -> None:
    far.sshd.known_hosts.write_text("")
    child = at_terminal(far, "session", "new", "web1")
    child.expect("yes/no/")
    child.kill(signal.SIGKILL)
    child.close()
    wait_until(lambda: sessions(far) == [])


# --- secrets ---


def test_a_passphrase_is_asked_for_and_never_kept(far: Far) -> None:
    secret = "correct horse"
    key = far.sshd.folder / f"locked{time.monotonic_ns()}"
    keygen(key, "ed25519", secret)
    far.sshd.authorized_keys.write_bytes(key.with_suffix(".pub").read_bytes())
    said = far.refused(5, "session", "new", "--identity", str(key), "web1", start_new_session=True)
    assert "needs its passphrase" in said
    child = at_terminal(far, "session", "new", "--identity", str(key), "web1")
    child.expect_exact(f"Enter passphrase for key '{key}': ")
    child.sendline("wrong")
    child.expect_exact("Enter passphrase for key")
    child.sendline(secret)
    child.expect("Opened")
    assert status_of(child) == 0
    assert secret not in (child.before or "")
    for path in far.state_dir.rglob("*"):
        assert path.is_dir() or path.is_socket() or secret.encode() not in path.read_bytes()
    # Another agent cannot ask, and says so; but who is at a terminal is asked again.
    far.kill_agent()
    assert "needs its passphrase" in until(far, "web1", "Broken")["reason"]
    said = far.refused(5, "session", "connect", "web1", start_new_session=True)
    assert "needs its passphrase" in said
    assert len(sessions(far)) == 1
    child = at_terminal(far, "session", "connect", "web1")
    child.expect_exact("Enter passphrase for key")
    child.sendline(secret)
    child.expect("Opened")
    assert status_of(child) == 0
    assert far.out("session", "run", "web1", "echo", "hi") == "hi\n"


def test_what_is_asked_for_in_secret_is_never_shown(far: Far) -> None:
    key = far.sshd.folder / f"asked{time.monotonic_ns()}"
    keygen(key, "ed25519", "sesame")
    far.sshd.authorized_keys.write_bytes(key.with_suffix(".pub").read_bytes())
    words = f"{PROGRAM} session new --identity {key} web1"
    environ = {**far.env, "TERM": "xterm", "PS1": "here> ", "ENV": ""}
    shell = pexpect.spawn("/bin/sh", ["-i"], env=environ, encoding="utf-8", timeout=SECONDS)

    def shows() -> bool:
        return bool(termios.tcgetattr(shell.child_fd)[3] & termios.ECHO)

    def asked(line: str) -> None:
        shell.expect_exact("here> ")
        assert shows()
        shell.sendline(line)
        shell.expect_exact(f"passphrase for key '{key}': ")
        assert not shows()

    def pid() -> int:
        (found,) = [
            pid
            for pid, line in at_home(Path(far.env["HOME"])).items()
            if "session new" in line and "sh -i" not in line
        ]
        return found

    asked(words)
    shell.sendintr()
    asked(words)
    os.kill(pid(), signal.SIGTERM)
    asked(words)
    shell.send("\x1a")
    asked("fg")
    shell.sendline("sesame")
    shell.expect_exact("Opened")
    assert "sesame" not in (shell.before or "")
    shell.expect_exact("here> ")
    assert shows()
    shell.sendline("exit")
    shell.expect(pexpect.EOF)
    shell.close()


def test_nothing_is_open_to_others(far: Far) -> None:
    far.run("session", "new", "web1")
    far.run("session", "run", "web1", "--", "sh", "-c", ": topsecret")
    for folder in (far.state_dir, far.there):
        for path in (folder, *folder.rglob("*")):
            assert not path.lstat().st_mode & 0o077 or path.is_symlink(), path
    assert "topsecret" not in (far.state_dir / "agent.log").read_text()
    far.sshd.home.chmod(0o700)


# --- what somebody planted ---


@pytest.mark.parametrize("kind", ["file", "folder", "fifo", "symlink", "foreign"])
def test_a_planted_socket_is_not_used(far: Far, kind: str) -> None:
    far.run("get")
    path = far.state_dir / "agent.sock"
    if kind == "file":
        path.write_text("")
    elif kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "symlink":
        path.symlink_to("/run/x")
    else:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
        if os.getuid():
            pytest.skip("only root can give a file away")
        os.chown(path, 12345, 12345)
    said = far.refused(4, "session", "new", "web1")
    assert said == f"jobctl: {path} is no socket of yours; remove it"
    assert stat.S_IFMT(path.lstat().st_mode) != 0
    (path.rmdir if kind == "folder" else path.unlink)()
    assert sessions(far) == []


def test_a_socket_that_nobody_serves_any_more_does_not_matter(far: Far) -> None:
    far.run("session", "new", "web1")
    far.kill_agent()
    assert (far.state_dir / "agent.sock").is_socket()
    assert far.out("session", "run", "web1", "echo", "hi") == "hi\n"


def test_an_agent_is_killed_before_it_hears_what_is_asked_for(far: Far) -> None:
    far.run("session", "new", "web1")
    agent = far.agent()
    assert agent
    os.kill(agent, signal.SIGSTOP)
    with far.popen("session", "run", "web1", "echo", "hi", stdout=-1) as asking:
        at_rest(asking)
        os.kill(agent, signal.SIGKILL)
        assert asking.stdout
        assert asking.stdout.read() == b"hi\n"


@pytest.mark.parametrize("deleted", first_of("agent.sock", "*", "agent.lock", "agent.[sl]*", ""))
def test_files_of_the_agent_are_deleted_while_it_lives(far: Far, deleted: str) -> None:
    """It is reached again or replaced, and takes away only what is its own."""

    def agents() -> list[int]:
        return processes_with(f"jobctl.agent {far.state_dir} ")

    far.run("session", "new", "web1")
    (before,) = agents()
    for path in list(far.state_dir.glob(deleted)) if deleted else [far.state_dir]:
        while path.exists():  # the agent may be making files in there
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink()
    assert far.out("start", "-w", "-H", "web2", "echo", "there") == "there\n"
    wait_until(lambda: len(agents()) == 1)
    if not deleted:
        assert agents() != [before]
    assert far.out("start", "-w", "-H", "web2", "echo", "again") == "again\n"
    assert (far.state_dir / "agent.sock").is_socket()
    assert links.agent_alive(str(far.state_dir))
    for pid in agents():
        os.kill(pid, signal.SIGKILL)


@pytest.mark.long
@pytest.mark.parametrize("kind", ["symlink", "writable", "foreign", "folder", "fifo"])
def test_a_planted_session_is_not_trusted(far: Far, kind: str, tmp_path: Path) -> None:
    far.run("session", "new", "web1,web2")
    path = far.state_dir / "sessions" / "web1"
    if kind == "symlink":
        path.rename(tmp_path / "elsewhere")
        path.symlink_to(tmp_path / "elsewhere")
    elif kind == "writable":
        path.chmod(0o620)
    elif kind == "foreign":
        if os.getuid():
            pytest.skip("only root can give a file away")
        os.chown(path, 12345, 12345)
    else:
        path.unlink()
        path.mkdir() if kind == "folder" else os.mkfifo(path)
    reason = f"jobctl: {path} is not a file that only you can write to; remove it"
    assert far.refused(4, "session", "get", "web1") == reason
    assert far.refused(4, "session", "connect", "web1") == reason
    result = far.run("session", "get", status=4)
    assert result.stderr.decode() == reason + "\n"
    assert "web2" in result.stdout.decode()
    assert "web1" not in result.stdout.decode()


def test_a_state_directory_that_others_can_write_to_on_the_host(
    make_far: Make, make_sshd: MakeSshd
) -> None:
    far = make_far(make_sshd())
    far.there.mkdir(parents=True)
    far.there.chmod(0o770)
    said = far.refused(4, "session", "new", "web1")
    assert said == (
        f"jobctl: web1: others can write to the state directory {far.there}, and may have done so:"
        " move it away, or set JOBCTL_STATE_DIR by SetEnv in ssh_config"
    )
    far.there.chmod(0o707)
    assert "others can write" in far.refused(4, "session", "new", "web1")
    far.there.chmod(0o700)
    far.there.parent.chmod(0o777)
    said = far.refused(4, "session", "new", "web1")
    assert said == (
        f"jobctl: web1: others can replace the state directory {far.there}: they can write to"
        f" {far.there.parent}; chmod go-w it, or set JOBCTL_STATE_DIR by SetEnv in ssh_config"
    )
    far.there.parent.chmod(0o755)
    far.there.chmod(0o700)
    os.chown(far.there, 4321, -1)
    assert "belongs to user 4321, not to you" in far.refused(4, "session", "new", "web1")
    os.chown(far.there, os.getuid(), -1)
    far.run("session", "new", "web1")


def test_a_relative_state_directory_on_the_host(make_far: Make, make_sshd: MakeSshd) -> None:
    far = make_far(make_sshd(environ={"JOBCTL_STATE_DIR": "a b/c"}))
    far.run("session", "new", "web1")
    job = far.out("start", "-q", "-H", "web1", "true").strip()
    far.run("wait", job)
    assert far.out("session", "run", "web1", "--", "jobctl", "start", "-q", "true") == "1\n"
    assert {path.name for path in (far.sshd.home / "a b/c").iterdir()} >= {"guest", "jobs", "lib"}
    assert not far.there.exists()


def test_modules_are_not_taken_from_where_one_is(far: Far, tmp_path: Path) -> None:
    for name in ("json", "socket", "paramiko", "jobctl"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path)!r} + '/taken', 'w')")
    far.run("session", "new", "web1", cwd=tmp_path)
    assert not (tmp_path / "taken").exists()
    assert program("ssh")


@pytest.mark.long
@pytest.mark.parametrize("to", ["web2", "other"])
def test_jobs_left_running_by_a_session(far: Far, to: str) -> None:
    if to == "other":  # of which ssh's configuration knows nothing
        said = (
            "HostName=127.0.0.1",
            f"Port={far.sshd.port}",
            f"UserKnownHostsFile={far.sshd.known_hosts}",
            f"HostKeyAlias=[127.0.0.1]:{far.sshd.port}",
        )
        options = [word for option in said for word in ("--option", option)]
        to = f"{far.sshd.user}@other"
        far.run("session", "new", "--name", "s", "--identity", str(far.sshd.key), *options, to)
    else:
        far.run("session", "new", "--name", "s", to)
    ended = far.out("start", "-q", "-s", "s", "true").strip()
    far.run("wait", ended)
    go = far.state_dir.parent / "go"
    wait = f"while [ ! -e {go} ]; do sleep 0.05; done"
    job = far.out("start", "-q", "-s", "s", "-c", f"echo a; {wait}; echo b").strip()
    words = ("--foreach", "-", "-c", f"{wait}; echo")
    items = far.out("start", "-q", "-s", "s", *words, input=b"1\n")
    far.until(job, "Running")
    assert "unfinished jobs" in far.refused(4, "session", "remove", "s")
    far.run("session", "remove", "--leave-running", "s")
    far.until(job, "Running")  # and not Disconnected
    far.run("session", "new", "--name", "s", "web4")  # no other has to do with these jobs
    go.touch()
    assert far.out("receive", "--wait", job) == "a\nb\n"
    assert far.out("receive", "--wait", items.strip()) == "\n"
    guests = [far.guest(done) for done in (job, ended)]
    assert all(guest.exists() for guest in guests)
    far.run("remove", job, ended, items.strip())
    assert not any(guest.exists() for guest in guests)
