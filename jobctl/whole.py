"""Writes files and lines of a job folder whole: a full disk leaves no half of one."""

from __future__ import annotations

import errno
import os
from contextlib import suppress

from jobctl.records import opened, put_at

_LONGEST_LOG = 1 << 20
"""Bytes of a log, until it begins anew."""
CUT = b"\x01\n"
"""What ends a part of a line: its writer was told that it failed, and so it is to fit no form."""
_LACKS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


def lack(state_dir: str, error: BaseException | None) -> str:
    """Return what to say of an error if the state directory lacks room, or is read-only."""
    if not isinstance(error, OSError) or error.errno not in _LACKS:
        return ""
    return f"cannot write in {state_dir}: {error.strerror}"


def write(path: str, content: bytes) -> None:
    """Make a file of its own with some content; where that fails, there is none.

    :raises OSError: the disk is full, say.
    """
    fd = opened(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    try:
        with open(fd, "wb") as file:
            file.write(content)
    except OSError:
        with suppress(OSError):
            os.unlink(path)
        raise


def over(fd: int, content: bytes) -> None:
    """Write over all that is in a file, which needs no room if that is no less.

    What is left of it becomes empty lines.

    :raises OSError: nothing more can be written, say.
    """
    put_at(fd, content.ljust(os.fstat(fd).st_size, b"\n"), 0)


def append(path: str, line: bytes) -> None:
    """Write a line at the end of a file, also after a part of one, which CUT then ends.

    Nothing is taken back where that fails, as others may have written since: see whole_lines().

    :raises OSError: the disk is full, say.
    """
    fd = opened(path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
    with open(fd, "r+b", buffering=0) as file:
        size = os.fstat(fd).st_size
        if size and os.pread(fd, 1, size - 1) != b"\n":
            line = CUT + line
        if file.write(line) != len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)


def log(fd: int, text: str) -> None:
    """Add to an open log, which begins anew when it has become long.

    :raises OSError: the disk is full, say.
    """
    if os.fstat(fd).st_size > _LONGEST_LOG:
        os.ftruncate(fd, 0)
    os.write(fd, text.encode("utf-8", "backslashreplace"))
