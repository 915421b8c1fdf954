"""Machines that the configuration treats alike: ssh is asked once, and the answer is the same."""

from __future__ import annotations

import os
import pwd
import shutil
from pathlib import Path

import pytest

from jobctl.target import Target, parse_target
from jobctl.transport import config
from jobctl.transport.base import Denied

NAMES = ("web1", "web2", "web3", "db1", "db2", "10.0.0.1", "other.example.com")


class Ssh:
    """A real ssh that counts how often it is run."""

    def __init__(self, folder: Path) -> None:
        self._calls = folder / "calls"
        self._calls.touch()
        program = folder / "bin" / "ssh"
        program.parent.mkdir()
        program.write_text(f'#!/bin/sh\necho >>{self._calls}\nexec {shutil.which("ssh")} "$@"\n')
        program.chmod(0o700)
        self.environ = {"PATH": f"{program.parent}:/usr/bin:/bin", "HOME": str(Path.home())}
        self.config = folder / "config"

    @property
    def calls(self) -> int:
        return len(self._calls.read_text().splitlines())

    def read(self, target: Target | str) -> config.Settings:
        target = Target(target) if isinstance(target, str) else target
        return config.read(target, str(self.config), self.environ)

    def read_alone(self, name: str) -> config.Settings:
        """Return what ssh says of a machine if none was asked for before: by another path."""
        self.config.rename(self.config.with_name(f"config-{name}"))
        self.config = self.config.with_name(f"config-{name}")
        return self.read(name)


def useful(settings: config.Settings) -> config.Settings:
    """Return settings without the one that is of no use to us."""
    values = {key: value for key, value in settings.values.items() if key != "controlpath"}
    return settings._replace(values=values)


@pytest.fixture
def ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ssh:
    # ssh looks there, whatever the variable says; only where it agrees is an Include followed.
    monkeypatch.setenv("HOME", pwd.getpwuid(os.getuid()).pw_dir)
    return Ssh(tmp_path)


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        ("", 1),
        ("User me\nPort=2222\n# %h\n", 1),
        ("Host web*\n  User me\nHost *\n  User you\n", 2),
        ("Host * !web2\n  Port 23\n", 2),
        ("Host web1\n  HostName web1\nHost db1\n  HostName 10.0.0.9\n", 3),
        ("HostName web2\n", 2),
        ("HostName WEB2\n", 2),
        ("HostName %h.example.com\n", len(NAMES)),
        ("Host db*\n  HostName %h.example.com\n", 3),
        ("IdentityFile ~/.ssh/%n\n", len(NAMES)),
        ("IdentityFile ~/.ssh/${SOME}\n", len(NAMES)),
        ("ProxyJump jump\n", len(NAMES)),
        ("ProxyCommand nc %h %p\nControlPath ~/.ssh/%r@%h\n", 1),
        ("Match all\n  Port 7\n", 1),
        ("Match host web1\n  Port 7\n", len(NAMES)),
        ('Match exec "test %n = web2"\n  Port 7\n', len(NAMES)),
        ("Match originalhost web*,!web2\n  Port 7\n", 2),
        ("CanonicalizeHostname yes\n", len(NAMES)),
        ("Include {more}\n", 2),
        ("Host nothing\n  Include {more}\n", 1),
    ],
)
def test_what_is_read_is_what_ssh_says(ssh: Ssh, tmp_path: Path, text: str, calls: int) -> None:
    (tmp_path / "more").write_text("Host web1\n  Port 7\n")
    ssh.environ["SOME"] = "some"
    ssh.config.write_text(text.replace("{more}", str(tmp_path / "more")))
    read = {name: ssh.read(name) for name in NAMES}
    assert ssh.calls == calls
    for name, settings in read.items():
        alone = ssh.read_alone(name)
        assert useful(settings) == useful(alone)
        assert settings.name == name


def test_whatever_changes_has_ssh_asked_again(ssh: Ssh) -> None:
    ssh.config.write_text("User me\n")
    first = [ssh.read("web1"), ssh.read("web2")]
    ssh.config.write_text("User you\n")
    assert [settings.user for settings in first] == ["me", "me"]
    assert ssh.read("web1").user == ssh.read("web2").user == "you"
    assert ssh.calls == 2


@pytest.mark.parametrize("to", ["me@web2", "web2:23", "WEB2"])
def test_other_words_of_the_user_count(ssh: Ssh, to: str) -> None:
    ssh.config.write_text("")
    ssh.read("web1")
    settings = ssh.read(parse_target(to))
    assert ssh.calls == 2
    assert settings.hostname.lower() == "web2"


def test_a_refusal_is_told_for_each(ssh: Ssh) -> None:
    ssh.config.write_text("Nonsense yes\n")
    for name in ("web1", "web2"):
        with pytest.raises(Denied, match=f"ssh refuses its settings for {name}"):
            ssh.read(name)
