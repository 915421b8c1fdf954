"""Which machines OpenSSH's configuration does not tell from each other, but for their names.

For those it is enough to ask `ssh -G` once: of 64 hosts, that takes as long as a third of the
logins. Where a setting may depend on the name otherwise, ssh is asked for each of them.
"""

from __future__ import annotations

import os
import pwd
import re
import threading
from collections.abc import Callable, Hashable
from concurrent.futures import Future

from jobctl.errors import JobctlError
from jobctl.target import Target
from jobctl.transport import plainconfig
from jobctl.transport.base import Denied

Lines = list[tuple[str, str]]

_NAME = re.compile(r"[a-z0-9._-]+", re.ASCII)
_BY_NAME = ("canonicalizehostname", "proxyjump")
"""What ssh does differently for some names: it does not jump over the machine that it goes to."""
_TOKENS = ("%", "$")
_LEFT_ALONE = ("controlpath", "proxycommand", "localcommand", "remotecommand")
"""Tokens in these ssh leaves to us, or they are of no use to us."""
_MOST = 1000


class _Held(plainconfig.Reader):
    """Collects the lines that hold for one machine, and the files that they come from."""

    def __init__(self, host: str) -> None:
        super().__init__(host)
        self.lines: list[Hashable] = []

    def file(self, path: str, depth: int = 0) -> None:
        """Read a file; ssh refuses one that others can write to."""
        about = os.stat(path)
        self.lines.append((path, about.st_mode, about.st_uid))
        super().file(path, depth)

    def include(self, patterns: list[str], path: str, depth: int) -> None:
        """Read the files that an Include line names."""
        if os.path.expanduser("~") != pwd.getpwuid(os.getuid()).pw_dir:
            raise Denied("ssh looks for them elsewhere")
        for pattern in patterns:
            self.set("include", pattern)
        super().include(patterns, path, depth)

    def set(self, keyword: str, value: str) -> None:
        """Note a line."""
        named = any(token in value for token in _TOKENS) and keyword not in _LEFT_ALONE
        if named or keyword in _BY_NAME:
            raise Denied(f"{keyword} may depend on the name")
        self.lines.append((keyword, value.lower() if keyword == "hostname" else value))


_known: dict[Hashable, Future[tuple[str, Lines]]] = {}
_lock = threading.Lock()


def lines_for(target: Target, files: list[str], asked: Hashable, ask: Callable[[], Lines]) -> Lines:
    """Return what ssh says of target: what it said of one like it, or else what it says now.

    :param files: of the configuration, those that exist.
    :param asked: what else the answer depends on.
    :param ask: asks ssh; its errors are passed on.
    """
    kind = _kind_of(target.host, files)
    if kind is None:
        return ask()
    key = (asked, kind)
    with _lock:
        known = _known.get(key)
        if first := known is None:
            if len(_known) >= _MOST:
                _known.clear()
            known = _known[key] = Future()
    if not first:
        try:
            name, lines = known.result()
        except (JobctlError, OSError):
            return ask()
        return [_renamed(line, name, target.host) for line in lines]
    try:
        lines = ask()
    except BaseException as error:
        with _lock:
            _known.pop(key, None)
        known.set_exception(error)
        raise
    known.set_result((target.host, lines))
    return lines


def _kind_of(host: str, files: list[str]) -> Hashable | None:
    """Return what is the same for machines that differ by their names; None: ask ssh."""
    if not _NAME.fullmatch(host):
        return None
    held = _Held(host)
    try:
        for path in files:
            held.file(path)
    except (Denied, OSError, KeyError):
        return None
    # This would look as if nothing were said of it.
    return None if ("hostname", host) in held.lines else tuple(held.lines)


def _renamed(line: tuple[str, str], before: str, name: str) -> tuple[str, str]:
    if line[0] in ("host", "hostname") and line[1] == before:
        return line[0], name
    return line
