"""Whose key a host shows over SSH, and what ssh's configuration says about it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from sshd import (
    MakeSshd,
    Person,
    Sshd,
    keygen,
    program,
    reach,
)

from jobctl.target import Target, parse_target
from jobctl.transport import algorithms, config, hostkeys, plainconfig
from jobctl.transport.base import (
    Connection,
    Denied,
    NoConnection,
)
from jobctl.transport.ssh import connect


def works(connection: Connection) -> None:
    assert connection.open("exit 7").wait() == 7
    connection.close()


def known(server: Sshd, text: str) -> None:
    server.known_hosts.write_text(text)


def public(path: Path) -> str:
    return " ".join(path.with_name(path.name + ".pub").read_text().split()[:2])


def listed(path: Path, name: str) -> str:
    words = [program("ssh-keygen"), "-F", name, "-f", str(path)]
    return subprocess.run(words, stdout=subprocess.PIPE, text=True).stdout


@pytest.mark.parametrize(
    "line",
    [
        "{name} {key} comment",
        "other,{name} {key}",
        "[127.0.0.?]:* {key}",
        "*,!web1 {key}",
        "127.0.0.1 {key}",
        "# nothing\n\nbad line\n{name} ssh-rsa AAAA\n{name} {key}",
    ],
)
def test_known_hosts(sshd: Sshd, line: str) -> None:
    name = f"[127.0.0.1]:{sshd.port}"
    known(sshd, line.format(name=name, key=public(sshd.host_keys[0])) + "\n")
    works(reach(sshd))


@pytest.mark.parametrize("line", ["", "*,!*127.0.0.* {key}", "[127.0.0.1]:1 {key}", "{key}"])
def test_unknown_hosts(sshd: Sshd, line: str) -> None:
    text = line.format(key=public(sshd.host_keys[0])) + "\n"
    known(sshd, text)
    person = Person()
    with pytest.raises(Denied, match="host key of web1 is unknown: ED25519 SHA256:"):
        reach(sshd, person)
    shown = subprocess.run(
        [program("ssh-keygen"), "-l", "-f", f"{sshd.host_keys[0]}.pub"], stdout=-1, text=True
    ).stdout.split()[1]
    assert f"ED25519 key fingerprint is {shown}." in person.questions[0]
    for option in ("StrictHostKeyChecking=yes", "BatchMode=yes"):
        person = Person(trusting=True)
        with pytest.raises(Denied, match="host key of web1 is unknown"):
            reach(sshd, person, options=(option,))
        assert person.questions == []
    assert sshd.known_hosts.read_text() == text


@pytest.mark.parametrize("how", ["asked", "accept-new", "no", "said"])
@pytest.mark.parametrize("hashed", ["yes", "no"])
def test_a_new_key_is_written_down(sshd: Sshd, tmp_path: Path, how: str, hashed: str) -> None:
    path = tmp_path / "new" / "known hosts"
    options = [f'UserKnownHostsFile="{path}" {sshd.known_hosts}', f"HashKnownHosts={hashed}"]
    options += [f"StrictHostKeyChecking={how}"] if how in ("accept-new", "no") else []
    known(sshd, "")
    person = Person(trusting=how == "asked")
    works(reach(sshd, person, options=options, accept_new=how == "said"))
    assert len(person.questions) == (how == "asked")
    name = f"[127.0.0.1]:{sshd.port}"
    assert public(sshd.host_keys[0]) in listed(path, name)
    assert (name in path.read_text()) == (hashed == "no")
    works(reach(sshd, options=[*options, "StrictHostKeyChecking=yes"]))
    assert len(path.read_text().splitlines()) == 1


def test_a_new_key_that_cannot_be_written_down(sshd: Sshd) -> None:
    """It is taken all the same, as by ssh, and whoever looks on is told."""
    person = Person(trusting=True)
    path = "/proc/none/known_hosts"
    options = ["StrictHostKeyChecking=accept-new", f"UserKnownHostsFile={path}"]
    reach(sshd, person, options).close()
    assert person.shown == [
        f"cannot write the host key of web1 to {path}: No such file or directory"
    ]


def test_a_new_key_after_an_unfinished_line(tmp_path: Path) -> None:
    path = tmp_path / "known_hosts"
    path.write_text("a ssh-rsa AAAA")
    hostkeys.append(str(path), "b", b"\0\0\0\x01x", False)
    hostkeys.append(str(path), "c", b"\0\0\0\x01x", False)
    assert path.read_text() == "a ssh-rsa AAAA\nb x AAAAAXg=\nc x AAAAAXg=\n"
    hostkeys.append("/dev/null", "b", b"", True)


@pytest.mark.parametrize("how", ["accept-new", "no", "ask"])
def test_a_changed_key_is_never_taken(sshd: Sshd, tmp_path: Path, how: str) -> None:
    other = public(keygen(tmp_path / "other"))
    text = f"# x\n[127.0.0.1]:{sshd.port} {other}\n"
    known(sshd, text)
    person = Person(trusting=True)
    where = f"{sshd.known_hosts}:2"
    with pytest.raises(Denied, match=f"host key of web1 has changed: {where} "):
        reach(sshd, person, options=[f"StrictHostKeyChecking={how}"], accept_new=True)
    # Nor one of another type, where it used to have one of this.
    other = public(keygen(tmp_path / "rsa", "rsa", "", "-b", "2048"))
    known(sshd, f"\n[127.0.0.1]:{sshd.port} {other}\n")
    with pytest.raises(Denied, match=f"host key of web1 has changed: {where} "):
        reach(sshd, person, options=[f"StrictHostKeyChecking={how}"])
    assert person.questions == []


def test_another_key_on_port_22_is_no_change(sshd: Sshd, tmp_path: Path) -> None:
    known(sshd, f"127.0.0.1 {public(keygen(tmp_path / 'other'))}\n")
    with pytest.raises(Denied, match="host key of web1 is unknown"):
        reach(sshd)
    works(reach(sshd, accept_new=True))
    works(reach(sshd, options=["StrictHostKeyChecking=yes"]))


def test_the_key_that_is_known_is_asked_for(make_sshd: MakeSshd) -> None:
    server = make_sshd(host_keys=("ed25519", "ecdsa", "rsa"))
    for key in server.host_keys:
        known(server, f"web1 {public(key)}\n")
        works(reach(server, options=["HostKeyAlias=WEB1"]))


def test_revoked_keys(sshd: Sshd) -> None:
    key = public(sshd.host_keys[0])
    known(sshd, f"* {key}\n@revoked * {key}\n")
    with pytest.raises(Denied, match=f"host key of web1 is revoked: {sshd.known_hosts}:2"):
        reach(sshd, Person(trusting=True), accept_new=True)


def test_a_file_of_revoked_keys(sshd: Sshd, tmp_path: Path) -> None:
    path = tmp_path / "revoked"
    options = [f"RevokedHostKeys={path}"]
    path.write_text("# none\n")
    works(reach(sshd, options=options))
    path.write_text(f"# one\n{public(sshd.host_keys[0])}\n")
    with pytest.raises(Denied, match=f"host key of web1 is revoked: {path}:2"):
        reach(sshd, options=options)
    words = [program("ssh-keygen"), "-q", "-k", "-f", str(path), f"{sshd.host_keys[0]}.pub"]
    subprocess.run(words, check=True)
    with pytest.raises(Denied, match=f"cannot read {path}: it is a KRL"):
        reach(sshd, options=options)
    path.unlink()
    with pytest.raises(Denied, match=f"cannot read {path}: No such file"):
        reach(sshd, options=options)


def test_an_authority_is_no_host(sshd: Sshd) -> None:
    known(sshd, f"@cert-authority * {public(sshd.host_keys[0])}\n")
    with pytest.raises(Denied, match="host key of web1 is unknown"):
        reach(sshd)


def certify(server: Sshd, authority: Path, *options: str) -> None:
    words = [program("ssh-keygen"), "-q", "-s", str(authority), "-I", "h", "-h", *options]
    for key in server.host_keys:
        subprocess.run([*words, f"{key}.pub"], check=True)
    lines = (server.folder / "sshd_config").read_text()
    more = "".join(f"HostCertificate {key}-cert.pub\n" for key in server.host_keys)
    (server.folder / "sshd_config").write_text(more + lines)
    server.restart()


@pytest.mark.parametrize("kind", ["ed25519", "ecdsa", "rsa"])
def test_host_certificates(make_sshd: MakeSshd, tmp_path: Path, kind: str) -> None:
    authority, other = keygen(tmp_path / "ca"), keygen(tmp_path / "other")
    server = make_sshd(host_keys=(kind,))
    certify(server, authority, "-n", "127.0.0.1,web*")
    known(server, f"@cert-authority * {public(authority)}\n")
    works(reach(server))
    works(reach(server, options=["HostKeyAlias=web7"]))
    with pytest.raises(Denied, match=r"unknown, its certificate is for 127\.0\.0\.1, web\*"):
        reach(server, options=["HostKeyAlias=db1"])
    known(server, f"@cert-authority * {public(other)}\n")
    with pytest.raises(Denied, match="certificate is signed by an authority that is not trusted"):
        reach(server)
    known(server, f"@cert-authority * {public(authority)}\n@revoked * {public(authority)}\n")
    with pytest.raises(Denied, match="revoked"):
        reach(server)
    # Without a word about authorities the plain key counts.
    known(server, f"* {public(server.host_keys[0])}\n")
    works(reach(server))


def test_host_certificates_end(make_sshd: MakeSshd, tmp_path: Path) -> None:
    authority = keygen(tmp_path / "ca")
    server = make_sshd()
    certify(server, authority, "-V", "20200101:20210101")
    known(server, f"@cert-authority * {public(authority)}\n")
    with pytest.raises(Denied, match="its certificate has expired"):
        reach(server)


def test_localhost_without_a_key(sshd: Sshd) -> None:
    known(sshd, "")
    works(reach(sshd, options=["NoHostAuthenticationForLocalhost=yes"]))


# Configuration


def test_match_and_include_are_honoured(sshd: Sshd, tmp_path: Path) -> None:
    included = tmp_path / "included"
    included.write_text(f"Match host alias exec true\n  Port {sshd.port}\n")
    sshd.hosts("Host alias", f"Include {included}", "HostName 127.0.0.1", "HostKeyAlias x")
    text = sshd.config.read_text().replace("Host web1 ", "Host alias web1 ").replace("Port", "#")
    sshd.config.write_text(text)
    connection = connect(parse_target("alias"), Person(), str(sshd.config))
    works(connection)


def test_a_bad_configuration_is_told(sshd: Sshd) -> None:
    sshd.hosts("Nonsense yes")
    with pytest.raises(Denied, match=r"ssh refuses its settings for web1: .*Bad configuration opt"):
        reach(sshd)
    with pytest.raises(Denied, match="ssh refuses its settings for web1"):
        reach(sshd, options=["Nonsense=yes"])
    with pytest.raises(Denied):
        connect(parse_target("web1"), Person(), "/nowhere")


def test_where_there_is_no_ssh(sshd: Sshd, tmp_path: Path) -> None:
    environ = {**os.environ, "PATH": str(tmp_path)}
    works(connect(Target("web1"), Person(), str(sshd.config), environ))
    with pytest.raises(NoConnection):
        connect(Target("web1", port=1), Person(), str(sshd.config), environ)
    sshd.hosts("Match exec true", "User nobody")
    with pytest.raises(Denied, match=r"ssh_config:1: only ssh can tell whether this Match holds"):
        connect(Target("web1"), Person(), str(sshd.config), environ)


def test_an_ssh_that_does_not_work(sshd: Sshd, tmp_path: Path) -> None:
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib/libcrypto.so.3").write_bytes(b"")
    # With the libraries of others it is asked without them; only ssh can follow the Match.
    sshd.hosts("Match exec true", "  Compression yes")
    for name in ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "LD_PRELOAD"):
        environ = {**os.environ, name: f"{tmp_path}/lib"}
        settings = config.read(Target("web1"), str(sshd.config), environ)
        assert settings.flag("compression")
        works(connect(Target("web1"), Person(), str(sshd.config), environ))
    # One that works in no way is as if there were none.
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin/ssh"
    for number, text in enumerate(
        (
            "echo ssh: error while loading shared libraries: libcrypto.so.3 >&2; exit 127",
            "echo OpenSSL version mismatch. Built against 30000020 >&2; exit 255",
            "kill -SEGV $$",
        )
    ):
        program.write_text(f"#!/bin/sh\n{text}\n")
        program.chmod(0o700)
        environ = {**os.environ, "PATH": f"{tmp_path}/bin:/bin", "HOME": f"/nowhere/{number}"}
        sshd.hosts("Match exec true", "  Compression yes")
        with pytest.raises(Denied, match="only ssh can tell whether this Match holds"):
            connect(Target("web1"), Person(), str(sshd.config), environ)
        sshd.hosts()
        works(connect(Target("web1"), Person(), str(sshd.config), environ))
    program.write_text("not a program")
    works(connect(Target("web1"), Person(), str(sshd.config), environ))


def test_algorithms_that_a_server_has_alone(make_sshd: MakeSshd) -> None:
    for line, said in (
        ("Ciphers chacha20-poly1305@openssh.com", "no cipher in common: it has chacha20-poly1305"),
        (
            "KexAlgorithms sntrup761x25519-sha512@openssh.com",
            "no key exchange in common: it has sntrup761x25519-sha512@openssh.com; jobctl has cu",
        ),
        (
            "Ciphers aes256-ctr\nMACs umac-128@openssh.com",
            "no MAC in common: it has umac-128@openssh.com; jobctl has hmac-sha2-256-etm@op",
        ),
    ):
        with pytest.raises(Denied, match=f"cannot connect to web1: {said}"):
            reach(make_sshd(line))
    # A cipher that needs no MAC, and an exchange under its newer name alone.
    works(reach(make_sshd("MACs umac-128@openssh.com", "KexAlgorithms curve25519-sha256")))


def test_algorithms_that_the_configuration_chooses(make_sshd: MakeSshd, tmp_path: Path) -> None:
    server = make_sshd("LogLevel DEBUG2")

    def agreed(*options: str) -> str:
        before = len(server.log.read_text())
        works(reach(server, options=options))
        return server.log.read_text()[before:]

    assert "cipher: aes128-gcm@openssh.com MAC: <implicit>" in agreed()
    chacha = "chacha20-poly1305@openssh.com"
    assert "cipher: aes128-gcm@openssh.com " in agreed(f"Ciphers=-{chacha}")
    assert "cipher: aes256-gcm@openssh.com " in agreed(f"Ciphers={chacha},aes256-gcm@openssh.com")
    log = agreed("Ciphers=aes192-ctr,aes128-gcm@openssh.com", "MACs=hmac-sha2-512")
    assert "cipher: aes192-ctr MAC: hmac-sha2-512 " in log
    log = agreed("KexAlgorithms=ecdh-sha2-nistp384,curve25519-sha256")
    assert "kex: algorithm: ecdh-sha2-nistp384 " in log
    for option in (
        f"Ciphers={chacha}",
        "MACs=umac-64@openssh.com",
        "HostKeyAlgorithms=sk-ssh-ed25519@openssh.com",
    ):
        keyword, _, value = option.partition("=")
        with pytest.raises(Denied, match=f"of {keyword} {value} in its settings, jobctl has none"):
            reach(server, options=[option])
    certified = "ssh-ed25519-cert-v01@openssh.com"
    with pytest.raises(Denied, match=f"no type of host key in common: .*; jobctl has {certified}"):
        reach(server, options=[f"HostKeyAlgorithms={certified}"])
    agreed("HostKeyAlgorithms=-ssh-rsa", "HostKeyAlgorithms=ssh-*")
    rsa = keygen(tmp_path / "rsa", "rsa", "", "-b", "2048")
    server.authorized_keys.write_text(f"{public(rsa)}\n")
    for option, name in (("+ssh-dss", "512"), ("rsa-sha2-256,rsa-sha2-512", "256")):
        log = agreed(f"PubkeyAcceptedAlgorithms={option}", f"IdentityFile={rsa}")
        assert f"public key rsa-sha2-{name} " in log
    ours = ["PubkeyAcceptedAlgorithms=ssh-ed25519", f"IdentityFile={rsa}"]
    with pytest.raises(Denied, match=f"key {rsa}, which PubkeyAcceptedAlgorithms .* leaves out"):
        reach(server, options=ours)


def test_both_readers_agree(tmp_path: Path) -> None:
    more = tmp_path / "more.conf"
    more.write_text("Port 77\nUser included\n")
    path = tmp_path / "config"
    path.write_text(
        f"Include {tmp_path}/*.conf\n"
        "Host *.example !not.example\n  HostName %h.org\n  User=first # comment\n"
        'Host "a.example" b\n  ProxyJump none\n  UserKnownHostsFile "/a b" /c\n'
        "Host a.example\n  IdentityFile /x/%r\n  IdentityFile /y\n  StrictHostKeyChecking off\n"
        "Host not.example\n  ConnectTimeout 3\n  ProxyCommand nc %h %p # not a comment\n"
    )
    for name in ("a.example", "not.example", "b"):
        target = parse_target(name)
        settings = [
            config.read(target, str(path), {**os.environ, "PATH": where})
            for where in (os.environ["PATH"], "/nowhere")
        ]
        for field in ("hostname", "user", "port", "connect_timeout", "strict", "user_known_hosts"):
            assert len({str(getattr(one, field)) for one in settings}) == 1, (name, field)
        assert settings[0].word("proxycommand") == settings[1].word("proxycommand")
        assert settings[0].word("proxyjump") == settings[1].word("proxyjump") == ""
        if name == "a.example":
            assert settings[0].identity_files == settings[1].identity_files
    with pytest.raises(Denied):
        plainconfig.read(target, "/nowhere", [])


def test_algorithms_of_which_we_have_none() -> None:
    """They are refused also where there is no ssh that tells what it takes by itself."""
    for keyword, value in (
        ("Ciphers", "chacha20-poly1305@openssh.com"),
        ("MACs", "umac-64@openssh.com,umac-128@openssh.com"),
        ("KexAlgorithms", "diffie-hellman-group18-sha512"),
    ):
        for where in (os.environ["PATH"], "/nowhere"):
            target = Target("web1", options=(f"{keyword}={value}",))
            settings = config.read(target, "/dev/null", {**os.environ, "PATH": where})
            with pytest.raises(Denied, match=f"of {keyword} {value} .* none; it has a, b"):
                algorithms.allowed(settings, keyword, ["a", "b"])
            nothing = config.read(Target("web1"), "/dev/null", {**os.environ, "PATH": where})
            assert algorithms.allowed(nothing, keyword, ["a", "b"]) == ("a", "b")


def test_what_debian_sets_for_batches_does_not_count() -> None:
    for option in ("BatchMode=yes", "ServerAliveInterval=0"):
        target = Target("web1", options=(option,))
        settings = config.read(target, "/dev/null", os.environ)
        assert settings.alive == config.DEFAULT_ALIVE
