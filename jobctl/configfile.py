"""Opens the configuration files of people and of other programs: a pipe is not waited for."""

from __future__ import annotations

import errno
import os
import stat

_KINDS = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
)


class NotPlain(OSError):
    """What has the name of a configuration file is something else, and may keep us waiting."""


def opener(path: str, flags: int) -> int:
    """Return a descriptor of a plain file, or of /dev/null, as open() wants it from its opener.

    :raises NotPlain: there is something else.
    :raises OSError: it cannot be opened.
    """
    try:
        fd = os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError as error:
        if error.errno != errno.ENXIO:  # which a socket is, or a device without a driver
            raise
        raise _not_plain(path, os.stat(path)) from None
    about = os.fstat(fd)
    if not (stat.S_ISREG(about.st_mode) or _is_null(about)):
        os.close(fd)
        raise _not_plain(path, about)
    return fd


def check(path: str) -> None:
    """Refuse what somebody else is about to read, and might wait for.

    :raises NotPlain: it is no plain file. That it is not there, or closed to us, is not our affair.
    """
    try:
        about = os.stat(path)
    except OSError:
        return
    if not (stat.S_ISREG(about.st_mode) or _is_null(about)):
        raise _not_plain(path, about)


def _is_null(about: os.stat_result) -> bool:
    return stat.S_ISCHR(about.st_mode) and about.st_rdev == os.stat(os.devnull).st_rdev


def _not_plain(path: str, about: os.stat_result) -> NotPlain:
    kinds = [kind for fits, kind in _KINDS if fits(about.st_mode)]
    why = f"it is {kinds[0] if kinds else 'a device'}, not a plain file"
    return NotPlain(errno.EINVAL, why, path)
