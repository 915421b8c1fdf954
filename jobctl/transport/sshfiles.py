"""The files of ssh_config(5), line by line, Include followed: no matter for whom a line holds.

Nothing but the standard library is imported, as each command pays for it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

from jobctl import configfile

_SYSTEM = "/etc/ssh/ssh_config"
_DEEPEST = 16
"""Levels of Include, as many as ssh(1) follows."""
_MOST_BYTES = 1 << 20
_INCLUDE = re.compile(r"\s*include\b[\s=]*(.*)", re.IGNORECASE)


def lines(config: str | None, home: str = "~", strict: bool = False) -> Iterator[str]:
    """Yield what stands in the files that can be read.

    :param config: the file to read in the place of the user's and the system's.
    :param home: where the user's is.
    :param strict: whether to refuse what is no plain file.
    :raises configfile.NotPlain: there is one, and it is to be refused.
    """
    folder = os.path.expanduser(f"{home}/.ssh")
    files = [(config, folder)] if config else [(f"{folder}/config", folder), (_SYSTEM, "/etc/ssh")]
    for path, includes in files:
        yield from _in_file(path, includes, strict, 0)


def check(config: str | None, home: str) -> None:
    """Refuse files for which ssh itself would wait.

    :raises configfile.NotPlain: there is one.
    """
    for _ in lines(config, home, strict=True):
        pass


def _in_file(path: str, folder: str, strict: bool, depth: int) -> Iterator[str]:
    try:
        with open(path, encoding="utf-8", errors="replace", opener=configfile.opener) as file:
            found = file.read(_MOST_BYTES).splitlines()
    except OSError as error:
        if strict and isinstance(error, configfile.NotPlain):
            raise
        return
    for line in found:
        match = _INCLUDE.match(line)
        if not match:
            yield line
        elif depth < _DEEPEST:
            from glob import glob

            for word in match[1].replace('"', "").split():
                for included in sorted(glob(os.path.join(folder, os.path.expanduser(word)))):
                    yield from _in_file(included, folder, strict, depth + 1)
