"""The hosts that ssh's configuration names, for completion: nothing is run, nobody is asked."""

from __future__ import annotations

import glob
import os
import shlex

_DEEPEST = 16
"""Levels of Include, as many as ssh(1) follows."""


def configured(config: str | None) -> list[str]:
    """Return the names in Host lines of ssh_config(5), Include followed, without patterns.

    :param config: the file to read in the place of the user's and the system's.
    """
    home = os.path.expanduser("~/.ssh")
    files = [(config, home)] if config else [(f"{home}/config", home), (_SYSTEM, "/etc/ssh")]
    names: dict[str, None] = {}
    for path, folder in files:
        _read(path, folder, names, 0)
    return list(names)


_SYSTEM = "/etc/ssh/ssh_config"


def _read(path: str, folder: str, names: dict[str, None], depth: int) -> None:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            lines = file.read(1 << 20).splitlines()
    except OSError:
        return
    for line in lines:
        try:
            words = shlex.split(line.replace("=", " ", 1), comments=True)
        except ValueError:
            continue
        if not words:
            continue
        key = words[0].lower()
        if key == "host":
            names |= {word: None for word in words[1:] if not set(word) & set("*?!")}
        elif key == "include" and depth < _DEEPEST:
            for pattern in words[1:]:
                whole = os.path.join(folder, os.path.expanduser(pattern))
                for included in sorted(glob.glob(whole)):
                    _read(included, folder, names, depth + 1)
