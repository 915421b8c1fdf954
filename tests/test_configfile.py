"""What stands in the place of a configuration file and is none: named, and never waited for."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Jobctl

from jobctl import configfile, nodes
from jobctl.errors import BadUsage
from jobctl.target import Target
from jobctl.transport import config, hostkeys, names, sendenv
from jobctl.transport.base import Denied

A_PIPE = "it is a pipe, not a plain file"


@pytest.fixture
def pipe(tmp_path: Path) -> Path:
    path = tmp_path / "a pipe"
    os.mkfifo(path)
    return path


def read(path: Path | str) -> bytes:
    with open(path, "rb", opener=configfile.opener) as file:
        return file.read()


def test_what_is_a_file(tmp_path: Path, pipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "plain").write_bytes(b"text")
    (tmp_path / "link").symlink_to("plain")
    for path in ("plain", "link"):
        configfile.check(str(tmp_path / path))
        assert read(tmp_path / path) == b"text"
    configfile.check(os.devnull)
    configfile.check("/nowhere")
    assert read(os.devnull) == b""
    with pytest.raises(FileNotFoundError):
        read("/nowhere")
    monkeypatch.chdir(tmp_path)  # whose name may be too long for a socket
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
        for name, kind in ((str(pipe), "pipe"), ("socket", "socket"), (".", "directory")):
            refused(name, f"it is a {kind}, not a plain file")
    refused("/dev/zero", "it is a device, not a plain file")


def refused(path: str, why: str) -> None:
    """Check that both ways of looking at a file refuse it, and say why."""
    look: Callable[[str], object]
    for look in (configfile.check, read):
        with pytest.raises(configfile.NotPlain) as caught:
            look(path)
        assert (caught.value.filename, caught.value.strerror) == (path, why)


def test_files_of_ssh(tmp_path: Path, pipe: Path) -> None:
    said = rf"cannot read {pipe}: {A_PIPE}"
    inner, outer = tmp_path / "inner", tmp_path / "outer"
    inner.write_text(f'Include "{tmp_path}/a?pipe"\n')
    # ssh reads it whomever it is for, and so do we before ssh would wait.
    outer.write_text(f"Host web2\n  Include {inner}\nHost *\n  SendEnv A\n")
    for file in (pipe, inner, outer):
        assert names.configured(str(file)) == (["web2"] if file == outer else [])
        assert len(sendenv.candidates(str(file), (), {"A": "1"})) == (file == outer)
        with pytest.raises(Denied, match=said):
            config.read(Target("web1"), str(file), os.environ)
    for file in (pipe, inner):
        with pytest.raises(Denied, match=said):
            config.read(Target("web1"), str(file), {**os.environ, "PATH": "/nowhere"})
    with pytest.raises(configfile.NotPlain):
        hostkeys.load((str(pipe),), "web1")
    with pytest.raises(configfile.NotPlain):
        hostkeys.load_revoked(str(pipe))
    assert hostkeys.load((os.devnull,), "web1").entries == ()


def test_files_of_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLUSTERSHELL_CFGDIR", str(tmp_path))
    main = "[Main]\ndefault: y\nconfdir: $CFGDIR/more\nautodir: $CFGDIR/d /nowhere\n"
    for place in ("more", "d"):
        (tmp_path / place).mkdir()
    for name, text in (
        ("groups.conf", ""),
        ("more/a.conf", "[y]\nmap: echo web1\n"),
        ("d/a.yaml", "y:\n  g: web1\n"),
        ("defaults.conf", ""),
    ):
        (tmp_path / "groups.conf").write_text(f"{main}[z]\nmap: echo web2\n")
        path = tmp_path / name
        path.unlink(missing_ok=True)
        os.mkfifo(path)
        with pytest.raises(BadUsage, match=f"cannot read {path}: {A_PIPE}"):
            nodes.expand("@y:g")
        path.unlink()
        if text:
            path.write_text(text)
            assert nodes.expand("@y:g") == ["web1"]
            path.unlink()


def test_what_the_shell_makes_of_a_command_is_no_configuration(jobctl: Jobctl, pipe: Path) -> None:
    jobctl.env["JOBCTL_SSH_CONFIG"] = str(pipe)
    said = f"jobctl: JOBCTL_SSH_CONFIG={pipe}: {A_PIPE}\n"
    for words in (("start", "-H", "web1"), ("session", "run", "web1")):
        result = jobctl.run(*words, "true", status=2)
        assert (result.stdout, result.stderr.decode()) == (b"", said)
    assert jobctl.out("get") == ""
