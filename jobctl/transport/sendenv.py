"""Which of a caller's variables SendEnv of ssh_config(5) may mean, without asking ssh.

Whoever calls has them, and only the agent finds out what holds for a host: so all that some line
names are handed on. Nothing but the standard library is imported, as each command pays for it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from fnmatch import fnmatchcase

_DEEPEST = 16
_MOST_BYTES = 1 << 20
_LINE = re.compile(r"\s*(sendenv|include)\b[\s=]*(.*)", re.IGNORECASE)


def candidates(config: str, options: Iterable[str], environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that may be sent to some host.

    :param config: the file to read in the place of the user's and the system's; "" if none.
    :param options: further lines, KEY=VALUE.
    """
    home = os.path.expanduser("~/.ssh")
    files = [(config, home)] if config else [(f"{home}/config", home), (_SYSTEM, "/etc/ssh")]
    patterns = [word for path, folder in files for word in _in_file(path, folder, 0)]
    patterns += [word for _, words in _found(options) for word in words]
    return {
        name: value
        for name, value in environ.items()
        if any(fnmatchcase(name, pattern) for pattern in patterns)
    }


_SYSTEM = "/etc/ssh/ssh_config"


def _found(lines: Iterable[str]) -> Iterator[tuple[str, list[str]]]:
    """Yield the keywords and words of the lines that matter."""
    for line in lines:
        if match := _LINE.match(line):
            yield match[1].lower(), match[2].replace('"', "").split()


def _in_file(path: str, folder: str, depth: int) -> Iterator[str]:
    lines = list[str]()
    with suppress(OSError), open(path, encoding="utf-8", errors="replace") as file:
        lines = file.read(_MOST_BYTES).splitlines()
    for keyword, words in _found(lines):
        if keyword == "sendenv":
            yield from words
        elif depth < _DEEPEST:
            from glob import glob

            for word in words:
                for included in glob(os.path.join(folder, os.path.expanduser(word))):
                    yield from _in_file(included, folder, depth + 1)
