"""The files of a job folder as such: opened without waiting, read as records, and by whom held.

A job can put anything in the place of a file of its folder: what is no plain file is none.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import signal
import stat
import sys
from collections.abc import Mapping

from jobctl import quoting
from jobctl.model import Marks
from jobctl.timing import Moment

_LONGEST = 1 << 26
"""Bytes of a record that are read; a job may have made it larger than the memory."""
_NO_FILE = (errno.EISDIR, errno.ELOOP, errno.ENOTDIR, errno.ENXIO)
_RANGE = re.compile(r"(stdout|stderr):(\d{1,18})-(\d{1,18})", re.ASCII)


def opened(path: str, flags: int = os.O_RDONLY) -> int:
    """Return a descriptor of a plain file, got without waiting; a new file is private.

    :raises FileNotFoundError: there is none, be it that something else has its name.
    """
    try:
        fd = os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY, 0o600)
    except OSError as error:
        if error.errno in _NO_FILE:
            raise _no_file(path) from None
        raise
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise _no_file(path)
    return fd


def _no_file(path: str) -> FileNotFoundError:
    return FileNotFoundError(errno.ENOENT, f"'{os.path.basename(path)}' is no plain file", path)


def load(path: str) -> dict[str, bytes]:
    """Return the record in a file, an empty one if there is no such file."""
    try:
        with open(path, "rb", opener=opened) as file:
            return quoting.load(file.read(_LONGEST))
    except FileNotFoundError:
        return {}


def size(path: str) -> int:
    """Return the bytes in a file, 0 if there is no such file."""
    try:
        about = os.stat(path)
    except OSError:
        return 0
    return about.st_size if stat.S_ISREG(about.st_mode) else 0


def being_written(path: str) -> bool:
    """Whether some process has a file open for writing; False where that is not told.

    Linux then refuses a read lease: F_SETLEASE in F_GETLEASE(2const).
    """
    if sys.platform != "linux":
        return False
    try:
        fd = opened(path)
    except (FileNotFoundError, PermissionError):
        return False
    try:
        # Should somebody open it right now, we are told by a signal, which is not to end us.
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except BlockingIOError:
        return True
    except OSError:  # a file system without leases
        pass
    finally:
        os.close(fd)
    return False


# --- what is in a record ---


def text(value: bytes | None) -> str:
    """Return a value that is ASCII where nothing is amiss."""
    return (value or b"").decode("ascii", "replace")


def integer(value: bytes | None) -> int | None:
    """Return a number from 0 on, None if value is none."""
    return int(value) if value and value.isdigit() and len(value) < 21 else None


def number(value: bytes | None) -> float | None:
    """Return a number that can be a time, None if value is none."""
    try:
        result = float(value or b"")
    except ValueError:
        return None
    return result if abs(result) < 1e12 else None


def moment(record: Mapping[str, bytes], name: str, boot: str) -> Moment:
    """Return the point in time `name` of a record; `boot` is the key of that on which it was."""
    uptime = number(record.get(f"{name}_uptime"))
    return Moment(number(record.get(name)), uptime, text(record.get(boot)))


def dump_moment(moment: Moment, name: str, boot: str) -> dict[str, bytes]:
    """Return what moment() reads."""
    times = {name: moment.time, f"{name}_uptime": moment.uptime}
    dumped = {key: b"" if at is None else b"%.6f" % at for key, at in times.items()}
    return dumped | {boot: moment.boot.encode()}


# --- read marks ---


def load_marks(path: str) -> Marks:
    """Return the read marks in a file."""
    return marks_in(load(path))


def marks_in(record: Mapping[str, bytes]) -> Marks:
    """Return the read marks in a record."""
    return Marks(
        integer(record.get("stdout")) or 0,
        integer(record.get("stderr")) or 0,
        record.get("told") == b"1",
        tuple(
            (stream, int(start), int(end))
            for stream, start, end in _RANGE.findall(text(record.get("returned")))
        ),
    )


def dump_marks(marks: Marks) -> bytes:
    """Return marks as a record, filled up to a multiple of the size of a disk's sector."""
    ranges = (f"{stream}:{start}-{end}" for stream, start, end in marks.returned_ranges)
    record = quoting.dump(
        {
            "stdout": b"%d" % marks.stdout,
            "stderr": b"%d" % marks.stderr,
            "told": b"1" if marks.told else b"",
            "returned": " ".join(ranges).encode(),
        }
    )
    return record + b"\n" * (-len(record) % 512)


def move_marks(fd: int, marks: Marks) -> None:
    """Write down how much was received.

    In place, and with one call: that takes no room which a full disk does not have.
    """
    record = dump_marks(marks)
    os.pwrite(fd, record, 0)
    if os.fstat(fd).st_size > len(record):
        os.ftruncate(fd, len(record))
