"""Logging in over SSH: keys, certificates, agents, passwords and questions."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import paramiko
import pytest
from conftest import rows_of, wait_until
from paramiko.server import InteractiveQuery
from sshd import (
    MakeSshd,
    Person,
    Sshd,
    keygen,
    program,
    reach,
)

from jobctl.target import Target
from jobctl.transport.base import (
    Connection,
    Denied,
)
from jobctl.transport.ssh import connect


def works(connection: Connection) -> None:
    assert connection.open("exit 7").wait() == 7
    connection.close()


def authorize(server: Sshd, *keys: Path, options: str = "") -> None:
    server.authorized_keys.write_text(
        "".join(f"{options}{key.with_name(key.name + '.pub').read_text()}" for key in keys)
    )


@pytest.mark.parametrize(
    ("kind", "options"),
    rows_of(
        [
            ("ed25519", ()),
            ("ecdsa", ("-b", "256")),
            ("ecdsa", ("-b", "384")),
            ("ecdsa", ("-b", "521", "-m", "PEM")),
            ("rsa", ("-b", "2048")),
            ("rsa", ("-b", "2048", "-m", "PEM")),
            ("rsa", ("-b", "2048", "-m", "PKCS8")),
        ],
        plain=3,
    ),
)
@pytest.mark.parametrize("passphrase", ["", "open sésame"])
def test_key_files(
    sshd: Sshd, tmp_path: Path, kind: str, options: tuple[str, ...], passphrase: str
) -> None:
    key = keygen(tmp_path / "key", kind, passphrase, *options)
    authorize(sshd, key)
    person = Person("wrong", passphrase)
    works(reach(sshd, person, identities=(str(key),)))
    prompt = f"web1: Enter passphrase for key '{key}': "
    assert person.prompts == ([prompt, prompt] if passphrase else [])
    key.with_suffix(".pub").unlink()
    works(reach(sshd, Person(passphrase), identities=(str(key),)))


def test_no_passphrase_is_asked_for_a_key_that_is_not_taken(sshd: Sshd, tmp_path: Path) -> None:
    key = keygen(tmp_path / "key", passphrase="secret")
    person = Person()
    works(reach(sshd, person, identities=(str(key),)))
    assert person.prompts == []


def test_a_passphrase_is_asked_for_three_times(sshd: Sshd, tmp_path: Path) -> None:
    key = keygen(tmp_path / "key", passphrase="secret")
    authorize(sshd, key)
    person = Person("a", "b", "c", "secret")
    with pytest.raises(Denied, match=f"tried key {key}, which needs another passphrase"):
        reach(sshd, person, identities=(str(key),))
    assert len(person.prompts) == 3
    with pytest.raises(Denied, match=f"tried key {key}, which needs its passphrase"):
        reach(sshd, Person(), identities=(str(key),))
    person = Person("secret")
    with pytest.raises(Denied):
        reach(sshd, person, options=("BatchMode=yes",), identities=(str(key),))
    assert person.prompts == []


def test_keys_that_cannot_be_used(sshd: Sshd, tmp_path: Path) -> None:
    garbage = tmp_path / "garbage"
    garbage.write_text("-----BEGIN RSA PRIVATE KEY-----\nnonsense\n-----END RSA PRIVATE KEY-----")
    garbage.chmod(0o600)
    works(reach(sshd, identities=(str(garbage),)))
    public = keygen(tmp_path / "open")
    public.chmod(0o644)
    authorize(sshd, public)
    with pytest.raises(Denied, match="can be read by others: chmod 600 it"):
        reach(sshd, identities=(str(public),))
    with pytest.raises(Denied, match="key file /nowhere does not exist"):
        reach(sshd, identities=("/nowhere",))


def test_a_refused_login_is_tried_once(
    make_sshd: MakeSshd, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = make_sshd("LogLevel VERBOSE")
    server.authorized_keys.write_text("")
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    why = "SSH_AUTH_SOCK is not set, so no key agent is asked"
    refusal = rf"web1 refuses the login of \S+: tried key \S+; {why}; it takes publickey"
    with pytest.raises(Denied, match=refusal):
        reach(server, options=("IdentityAgent=SSH_AUTH_SOCK",))
    wait_until(lambda: "Connection closed by authenticating" in server.log.read_text())
    assert server.log.read_text().count("Connection from") == 1


def test_too_many_keys_is_told(make_sshd: MakeSshd, tmp_path: Path) -> None:
    server = make_sshd("MaxAuthTries 2")
    keys = tuple(str(keygen(tmp_path / f"key{number}")) for number in range(4))
    with pytest.raises(Denied, match="the server says: Too many authentication failures"):
        reach(server, identities=keys)


@pytest.mark.parametrize("suffix", ["", "+ca"])
def test_user_certificates(make_sshd: MakeSshd, tmp_path: Path, suffix: str) -> None:
    authority = keygen(tmp_path / "ca")
    server = make_sshd(f"TrustedUserCAKeys {authority}.pub")
    server.authorized_keys.write_text("")
    for kind, options in (("ed25519", ()), ("rsa", ("-b", "2048")), ("ecdsa", ())):
        key = keygen(tmp_path / kind, kind, "", *options)
        sign = [program("ssh-keygen"), "-q", "-s", str(authority), "-I", "me", "-n", server.user]
        subprocess.run([*sign, f"{key}.pub"], check=True)
        if suffix:
            moved = tmp_path / f"{kind}.certificate"
            key.with_name(f"{kind}-cert.pub").rename(moved)
            works(reach(server, identities=(str(key),), options=(f"CertificateFile={moved}",)))
        else:
            works(reach(server, identities=(str(key),)))


@pytest.fixture
def key_agent(tmp_path: Path) -> Iterator[Path]:
    """Give the socket of an ssh-agent that holds nothing."""
    path = Path("/tmp") / f"jobctl-agent-{os.getpid()}-{tmp_path.name[-12:]}"
    process = subprocess.Popen([program("ssh-agent"), "-D", "-a", str(path)], stdout=-3)
    wait_until(path.exists)
    yield path
    process.terminate()
    process.wait()
    path.unlink(missing_ok=True)


def add(agent: Path, *words: str) -> None:
    env = {**os.environ, "SSH_AUTH_SOCK": str(agent)}
    subprocess.run([program("ssh-add"), "-q", *words], env=env, check=True)


@pytest.mark.parametrize("kind", ["ed25519", "ecdsa", "rsa"])
def test_the_agent(sshd: Sshd, tmp_path: Path, key_agent: Path, kind: str) -> None:
    key = keygen(tmp_path / "key", kind)
    authorize(sshd, key)
    add(key_agent, str(key))
    key.unlink()
    sshd.hosts("Host web1", "IdentitiesOnly no", "IdentityAgent SSH_AUTH_SOCK")
    environ = {**os.environ, "SSH_AUTH_SOCK": str(key_agent)}
    works(connect(Target("web1"), Person(), str(sshd.config), environ))
    works(reach(sshd, options=(f"IdentityAgent={key_agent}",)))
    with pytest.raises(Denied):
        reach(sshd, options=("IdentityAgent=none",))
    with pytest.raises(Denied):
        reach(sshd, options=(f"IdentityAgent={key_agent}", "IdentitiesOnly=yes"))
    # The public part of a key says which of the agent's is meant.
    only = ("IdentitiesOnly=yes", f"IdentityAgent={key_agent}")
    works(reach(sshd, options=only, identities=(f"{key}.pub",)))


def test_certificates_in_the_agent(make_sshd: MakeSshd, tmp_path: Path, key_agent: Path) -> None:
    authority = keygen(tmp_path / "ca")
    server = make_sshd(f"TrustedUserCAKeys {authority}.pub")
    server.authorized_keys.write_text("")
    key = keygen(tmp_path / "key", "rsa", "", "-b", "2048")
    sign = [program("ssh-keygen"), "-q", "-s", str(authority), "-I", "me", "-n", server.user]
    subprocess.run([*sign, f"{key}.pub"], check=True)
    add(key_agent, str(key))
    key.unlink()
    key.with_name("key-cert.pub").unlink()
    works(reach(server, options=(f"IdentityAgent={key_agent}", "IdentitiesOnly=no")))


def test_keys_that_are_not_there_are_named(sshd: Sshd, tmp_path: Path, key_agent: Path) -> None:
    def refusal(*options: str, who: Person | None = None) -> str:
        with pytest.raises(Denied) as caught:
            reach(sshd, who, ("IdentityFile=/none", *options))
        return str(caught.value)

    sshd.authorized_keys.write_text("")
    sshd.hosts("Host web1", "IdentitiesOnly no")
    sshd.config.write_text(sshd.config.read_text().replace("IdentityFile", "#"))
    user = f"web1 refuses the login of {sshd.user}: tried "
    missing = "key /none, which does not exist"
    takes = "; it takes publickey"
    assert refusal("IdentityAgent=none") == user + missing + takes
    unset = "; NO_SOCKET is not set, so no key agent is asked"
    assert refusal("IdentityAgent=$NO_SOCKET") == user + missing + unset + takes
    silent = f"; the key agent at {tmp_path}/s does not answer: "
    said = refusal(f"IdentityAgent={tmp_path}/s")
    assert said == user + missing + silent + "no such file or directory" + takes
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{tmp_path}/s")
    said = refusal(f"IdentityAgent={tmp_path}/s")
    assert said == user + missing + silent + "connection refused" + takes
    empty = "; the key agent holds no keys, or is locked"
    assert refusal(f"IdentityAgent={key_agent}") == user + missing + empty + takes
    for name, text, problem in (
        ("garbage", b"x", "is no private key that can be used"),
        ("putty", b"PuTTY-User-Key-File-3: ssh-ed25519\n", "is a key of PuTTY: puttygen -O "),
        ("public", sshd.key.with_suffix(".pub").read_bytes(), "is the public part alone"),
        ("folder", None, "cannot be read: it is a directory, not a plain file"),
    ):
        path = tmp_path / name
        path.mkdir() if text is None else path.write_bytes(text)
        options = ("IdentityAgent=none", f"IdentityFile={path}")
        assert f", key {path}, which {problem}" in refusal(*options)
    locked = keygen(tmp_path / "locked", passphrase="secret")
    authorize(sshd, locked)
    said = refusal("IdentityAgent=none", f"IdentityFile={locked}")
    asks = "; 'jobctl session new' at a terminal asks for what it needs"
    assert said == f"{user}{missing}, key {locked}, which needs its passphrase{takes}{asks}"
    # A key that is not there for ssh's own reasons is nothing to speak of.
    sshd.hosts("Host web1", f"IdentityFile {tmp_path}/.ssh/id_rsa")
    sshd.config.write_text(sshd.config.read_text().replace("IdentityFile /none", "#"))
    with pytest.raises(Denied) as caught:
        reach(sshd, identities=(), options=(f"IdentityFile={tmp_path}/.ssh/id_rsa",))
    assert "id_rsa" not in str(caught.value)


def test_an_agent_that_is_none(sshd: Sshd, tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            with contextlib.suppress(OSError):
                peer, _ = listener.accept()
                peer.sendall(b"\0\0\0\x05\x0c\0\0\0\x05")
                peer.close()

        thread = threading.Thread(target=serve)
        thread.start()
        works(reach(sshd, options=(f"IdentityAgent={path}",)))
        thread.join()
    works(reach(sshd, options=("IdentityAgent=/nowhere",)))


# Passwords and questions, from a server of paramiko's: OpenSSH would need an account for them.


class Interface(paramiko.ServerInterface):
    """A server that wants whatever its script says."""

    def __init__(self, steps: Sequence[str], password: str) -> None:
        self.steps = list(steps)
        self.password = password
        self.attempts: list[str] = []

    def get_allowed_auths(self, username: str) -> str:
        return self.steps[0]

    def _next(self, method: str, right: bool) -> int:
        self.attempts.append(method)
        if not right or self.steps[0] != method:
            return paramiko.common.AUTH_FAILED
        self.steps.pop(0)
        if self.steps:
            return paramiko.common.AUTH_PARTIALLY_SUCCESSFUL
        return paramiko.common.AUTH_SUCCESSFUL

    def check_auth_none(self, username: str) -> int:
        return paramiko.common.AUTH_FAILED

    def check_auth_password(self, username: str, password: str) -> int:
        return self._next("password", password == self.password)

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        return self._next("publickey", True)

    def check_auth_interactive(
        self, username: str, submethods: str | bytes
    ) -> int | InteractiveQuery:
        return InteractiveQuery("Token", "Look at\x1b it", ("Code:", False), ("PIN:", True))

    def check_auth_interactive_response(self, responses: list[str]) -> int:
        return self._next("keyboard-interactive", responses == [self.password, "1234"])


@pytest.fixture
def scripted(sshd: Sshd) -> Iterator[tuple[type[Interface], list[Interface], Path]]:
    """Give a function that makes a server ask for some steps, and its client configuration."""
    listener = socket.create_server(("127.0.0.1", 0))
    key = paramiko.PKey.from_path(str(sshd.host_keys[0]))
    waiting: list[Interface] = []

    def serve() -> None:
        while True:
            try:
                peer, _ = listener.accept()
            except OSError:
                return
            transport = paramiko.Transport(peer)
            transport.add_server_key(key)
            with contextlib.suppress(paramiko.SSHException, EOFError):
                transport.start_server(server=waiting[-1])

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield Interface, waiting, sshd.hosts(port=listener.getsockname()[1])
    listener.close()


@pytest.mark.parametrize(
    ("steps", "secrets", "asked"),
    [
        (["password"], ["right"], 1),
        (["password"], ["wrong", "again", "right"], 3),
        (["keyboard-interactive"], ["right", "1234"], 2),
        (["keyboard-interactive"], ["right", "123", "right", "1234"], 4),
        (["publickey", "password"], ["right"], 1),
        (["publickey", "keyboard-interactive", "password"], ["right", "1234", "right"], 3),
    ],
)
def test_steps(
    scripted: tuple[type[Interface], list[Interface], Path],
    steps: list[str],
    secrets: list[str],
    asked: int,
) -> None:
    interface, waiting, path = scripted
    waiting.append(interface(steps, "right"))
    person = Person(*secrets)
    connect(Target("web1"), person, str(path)).close()
    assert len(person.prompts) == asked
    assert all(prompt.replace("\n", "").isprintable() for prompt in person.prompts)


@pytest.mark.parametrize("method", ["password", "keyboard-interactive"])
def test_refused_answers(
    scripted: tuple[type[Interface], list[Interface], Path], method: str
) -> None:
    interface, waiting, path = scripted
    for person, tries in ((Person(*"123456789"), 3), (Person(), 0)):
        waiting.append(interface([method], "right"))
        with pytest.raises(Denied, match="web1 refuses the login of") as caught:
            connect(Target("web1", "me"), person, str(path))
        # By the name that was given, which tells it from others of the same address.
        assert all("me@web1" in prompt for prompt in person.prompts)
        assert waiting[-1].attempts.count(method) in (tries, tries or 1)
        assert (f"tried {method}" in str(caught.value)) == bool(tries)
        assert ("'jobctl session new' at a terminal asks" in str(caught.value)) == (not tries)
    for option in ("BatchMode=yes", "PreferredAuthentications=publickey"):
        waiting.append(interface([method], "right"))
        person = Person("right", "1234")
        with pytest.raises(Denied, match=f"it takes {method}"):
            connect(Target("web1", options=(option,)), person, str(path))
        assert person.prompts == []


def test_two_keys_one_after_the_other(make_sshd: MakeSshd, tmp_path: Path) -> None:
    server = make_sshd("AuthenticationMethods publickey,publickey")
    second = keygen(tmp_path / "second")
    authorize(server, server.key, second)
    works(reach(server, identities=(str(second), str(server.key))))
    with pytest.raises(Denied):
        reach(server)
