"""Which of a caller's variables SendEnv of ssh_config(5) may mean, without asking ssh.

Whoever calls has them, and only the agent finds out what holds for a host: so all that some line
names are handed on. Nothing but the standard library is imported, as each command pays for it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase

from jobctl.transport import sshfiles

_LINE = re.compile(r"\s*sendenv\b[\s=]*(.*)", re.IGNORECASE)


def candidates(config: str, options: Iterable[str], environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that may be sent to some host.

    :param config: the file to read in the place of the user's and the system's; "" if none.
    :param options: further lines, KEY=VALUE.
    """
    patterns = [*_patterns(sshfiles.lines(config)), *_patterns(options)]
    return {
        name: value
        for name, value in environ.items()
        if any(fnmatchcase(name, pattern) for pattern in patterns)
    }


def _patterns(lines: Iterable[str]) -> Iterator[str]:
    """Yield the words of the lines that matter."""
    for line in lines:
        if match := _LINE.match(line):
            yield from match[1].replace('"', "").split()
