"""The hosts that ssh's configuration names, for completion: nothing is run, nobody is asked."""

from __future__ import annotations

import shlex

from jobctl.transport import sshfiles


def configured(config: str | None) -> list[str]:
    """Return the names in Host lines of ssh_config(5), Include followed, without patterns.

    :param config: the file to read in the place of the user's and the system's.
    """
    names: dict[str, None] = {}
    for line in sshfiles.lines(config):
        try:
            words = shlex.split(line.replace("=", " ", 1), comments=True)
        except ValueError:
            continue
        if words and words[0].lower() == "host":
            names |= {word: None for word in words[1:] if not set(word) & set("*?!")}
    return list(names)
