"""Where to: a machine as a person names it, checked so that no part of it passes for an option."""

from __future__ import annotations

import re
from typing import NamedTuple

from jobctl.errors import BadUsage
from jobctl.quoting import printable

# What ssh(1) itself refuses in the name of a machine or a user since 9.6, because a
# ProxyCommand gets it on a shell's command line (CVE-2023-51385), and what cannot be part of
# a name: space, control characters, and in a machine "@", "/" and brackets.
_BAD_IN_HOST = re.compile(r"""['"`$\\;&<>|(){}\[\]@/,*?#!\s\x00-\x1f\x7f-\x9f]""")
_BAD_IN_USER = re.compile(r"""['"`;&<>|(){}\s\x00-\x1f\x7f-\x9f]|\\$""")
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_OPTION = re.compile(r"([A-Za-z][A-Za-z0-9]*)[ ]*=[ ]*(.+)")


class Target(NamedTuple):
    """A machine, and what was said about the way to it. What is empty, ssh's configuration says."""

    host: str
    """A name from ssh's configuration, a DNS name or an address, without brackets."""
    user: str = ""
    port: int | None = None
    identities: tuple[str, ...] = ()
    """Private key files."""
    options: tuple[str, ...] = ()
    """KEY=VALUE as for `ssh -o`."""
    connect_timeout: float | None = None
    """Seconds."""
    accept_new: bool = False
    """Whether an unknown host key is accepted; a changed one never is."""
    config: str = ""
    """The file to use instead of ssh's configuration, by its absolute name."""

    @property
    def label(self) -> str:
        """The name that people know it by, as parse_target() takes it."""
        host = f"[{self.host}]" if ":" in self.host and self.port is not None else self.host
        user = f"{self.user}@" if self.user else ""
        return user + host + ("" if self.port is None else f":{self.port}")


def parse_target(text: str) -> Target:
    """Return the machine that [USER@]HOST[:PORT] or [USER@][ADDRESS]:PORT names.

    Raises BadUsage for what ssh would refuse, or take for something else.
    """
    user, at, rest = text.rpartition("@")
    if at and not user:
        raise BadUsage(f"user name missing in '{printable(text)}'")
    if at:
        check_user(user)
    host, port = _split(rest)
    if not host:
        raise BadUsage(f"host name missing in '{printable(text)}'" if text else "empty host name")
    if host.startswith("-") or _BAD_IN_HOST.search(host) or not host.isprintable():
        raise BadUsage(f"not a host name: '{printable(host)}'")
    return Target(host, user, None if port is None else check_port(port))


def _split(text: str) -> tuple[str, str | None]:
    """Return the host and the port in text; a bare IPv6 address has no port."""
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise BadUsage(f"not a host name: '{printable(text)}'")
        return host, rest[1:] if rest else None
    if text.count(":") == 1:
        host, _, port = text.partition(":")
        return host, port
    return text, None


def check_user(user: str) -> str:
    """Return a login name; raise BadUsage for one that ssh would refuse."""
    if not user or user.startswith("-") or _BAD_IN_USER.search(user) or not user.isprintable():
        raise BadUsage(f"not a user name: '{printable(user)}'")
    return user


def check_port(text: str) -> int:
    """Return a TCP port; raise BadUsage for what is none."""
    if not (text.isascii() and text.isdigit() and 0 < int(text[:6]) < 65536 and len(text) < 6):
        raise BadUsage(f"not a port: '{printable(text)}'")
    return int(text)


def check_option(text: str) -> str:
    """Return KEY=VALUE as `ssh -o` takes it; raise BadUsage for anything else."""
    match = _OPTION.fullmatch(text)
    if not match or _UNPRINTABLE.search(text):
        raise BadUsage(f"not an ssh option, which are KEY=VALUE: '{printable(text)}'")
    return f"{match[1]}={match[2]}"


def check_identity(path: str) -> str:
    """Return the name of a key file; raise BadUsage for what can be none."""
    if not path or _UNPRINTABLE.search(path):
        raise BadUsage(f"not a key file: '{printable(path)}'")
    return path
