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
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import NamedTuple

from jobctl import quoting
from jobctl.model import Marks, State
from jobctl.timing import Moment

_LONGEST = 1 << 26
"""Bytes of a record that are read; a job may have made it larger than the memory."""
OF_ALL = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
"""Errors of which no file is the reason, but all that goes on."""
_NUMBER = re.compile(r"[1-9]\d{0,8}", re.ASCII)
_NO_FILE = (errno.EISDIR, errno.ELOOP, errno.ENOTDIR, errno.ENXIO)
_TRACED = 64
"""Bytes before a mark by which it is seen whether a file still holds what was received."""
_RANGE = re.compile(r"(stdout|stderr):(\d{1,18})-(\d{1,18})", re.ASCII)
_CLAIM = re.compile(r"(stdout|stderr):(\d{1,18}):(\S+)", re.ASCII)

_CODE = re.compile(r"([01]?\d?\d|2[0-4]\d|25[0-5])?", re.ASCII)
_SIGNAL = re.compile(r"([1-9]\d?|1[01]\d|12[0-7])?", re.ASCII)
DAMAGED = "damaged: the file {} cannot be read"


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
    """Return the record in a file, an empty one if there is no such file that can be read."""
    return quoting.load(content(path, _LONGEST))


def content(path: str, most: int = -1, at: int = 0) -> bytes:
    """Return what a file holds from a position on, nothing if it is not there or unreadable.

    :raises OSError: there are too many open files, say.
    """
    try:
        with open(path, "rb", buffering=0, opener=opened) as file:
            size = max(0, os.fstat(file.fileno()).st_size - at)
            return os.pread(file.fileno(), size if most < 0 else min(size, most), at)
    except OSError as error:
        if error.errno in OF_ALL:
            raise
        return b""


def numbered(path: str) -> list[int]:
    """Return the numbers that name something in a folder, none if it cannot be read."""
    try:
        return [int(name) for name in os.listdir(path) if _NUMBER.fullmatch(name)]
    except OSError:
        return []


def whole_lines(content: bytes, form: re.Pattern[bytes]) -> Iterator[re.Match[bytes]]:
    """Yield what fits a form of the lines that have their end.

    A full disk, or who was killed, may have left a part of a line. So the last word of a form is to
    be one of which no part fits.
    """
    return filter(None, map(form.fullmatch, content.split(b"\n")[:-1]))


def stamp(path: str) -> tuple[int, int]:
    """Return size and time of the last change of a file, which differ when it was written to."""
    try:
        about = os.stat(path)
    except OSError:
        return 0, 0
    return about.st_size, about.st_mtime_ns


def size(path: str) -> int:
    """Return the bytes in a file, 0 if there is no such file."""
    try:
        about = os.stat(path)
    except OSError:
        return 0
    return about.st_size if stat.S_ISREG(about.st_mode) else 0


def inode_and_size(path: str) -> tuple[int, int]:
    """Return which file has a name, and the bytes in it, zeros if there is no plain one."""
    try:
        about = os.stat(path)
    except OSError:
        return 0, 0
    return (about.st_ino, about.st_size) if stat.S_ISREG(about.st_mode) else (0, 0)


def being_written(path: str) -> bool:
    """Whether some process has a file open for writing; False where that is not told."""
    return bool(_writers(path))


def tells_writers(path: str) -> bool:
    """Whether that is told of a file that is there, and so of others on its file system."""
    return _writers(path) is not None


def _writers(path: str) -> bool | None:
    """Return whether some process has a file open for writing, None if that is not told.

    Linux then refuses a read lease: F_SETLEASE in F_GETLEASE(2const).
    """
    if sys.platform != "linux":
        return None
    try:
        fd = opened(path)
    except (FileNotFoundError, PermissionError):
        return None
    try:
        # Should somebody open it right now, we are told by a signal, which is not to end us.
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except BlockingIOError:
        return True
    except OSError:  # a file system without leases
        return None
    finally:
        os.close(fd)
    return False


# --- what is in a record ---


def one_line(reason: str) -> str:
    """Return a reason as a record holds it: one line, of no more than 1,000 bytes."""
    return os.fsdecode(os.fsencode(" ".join(reason.split()))[:1000])


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

    def pairs(key: str) -> tuple[tuple[str, int, int], ...]:
        found = _RANGE.findall(text(record.get(key)))
        return tuple((stream, int(first), int(second)) for stream, first, second in found)

    return Marks(
        integer(record.get("stdout")) or 0,
        integer(record.get("stderr")) or 0,
        record.get("told") == b"1",
        pairs("returned"),
        pairs("traces"),
        held=tuple(
            (stream, int(end), holder)
            for stream, end, holder in _CLAIM.findall(text(record.get("held")))
        ),
    )


def dump_marks(marks: Marks) -> bytes:
    """Return marks as a record, filled up to a multiple of the size of a disk's sector."""

    def joined(pairs: tuple[tuple[str, int, int], ...]) -> bytes:
        return " ".join(f"{stream}:{first}-{second}" for stream, first, second in pairs).encode()

    held = " ".join(f"{stream}:{end}:{holder}" for stream, end, holder in marks.held)
    record = quoting.dump(
        {
            "stdout": b"%d" % marks.stdout,
            "stderr": b"%d" % marks.stderr,
            "told": b"1" if marks.told else b"",
            "returned": joined(marks.returned_ranges),
            "traces": joined(marks.traces),
            **({"held": held.encode()} if held else {}),
        }
    )
    return record + b"\n" * (-len(record) % 512)


def put_at(fd: int, content: bytes, at: int) -> None:
    """Write something into a file, whole and with one call.

    :raises OSError: it cannot be written, or only a part of it.
    """
    if os.pwrite(fd, content, at) != len(content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def move_marks(fd: int, marks: Marks) -> None:
    """Write down how much was received.

    In place, and with one call: that takes no room which a full disk does not have.

    :raises OSError: it cannot be written.
    """
    record = dump_marks(marks)
    put_at(fd, record, 0)
    if os.fstat(fd).st_size > len(record):
        os.ftruncate(fd, len(record))


# --- whether the files still hold what was received ---

# A job can empty its own output: who opens /dev/stdout anew with > does so on Linux, as that
# leads to the plain file. Then what was received is gone from it, and what it holds is new.


def checked(marks: Marks, path_of: Callable[[str], str]) -> Marks:
    """Return marks, anew for each stream whose file holds no more what was received of it.

    A file that is not there, or cannot be read, says nothing.
    """
    for stream, offset in (("stdout", marks.stdout), ("stderr", marks.stderr)):
        if offset and not _holds(path_of(stream), offset, marks.trace(stream, offset)):
            marks = marks.begun_anew(stream)
    return marks


def traced(marks: Marks, path_of: Callable[[str], str]) -> Marks:
    """Return marks with what checked() needs, taken from the files where the marks were moved."""
    traces = list[tuple[str, int, int]]()
    for stream, offset in (("stdout", marks.stdout), ("stderr", marks.stderr)):
        known = marks.trace(stream, offset)
        if offset and known is None:
            with suppress(OSError), open(path_of(stream), "rb", opener=opened) as file:
                known = _sum(_bytes_before(file.fileno(), offset))
        if offset and known is not None:
            traces.append((stream, offset, known))
    return marks._replace(traces=tuple(traces), emptied=())


class Place:
    """What an open file holds around an offset, before the bytes from there on are delivered."""

    def __init__(self, fd: int, at: int) -> None:
        self._fd = fd
        self._at = at
        self._before = _bytes_before(fd, at)
        self._after = os.pread(fd, _TRACED, at)

    @property
    def trace(self) -> int:
        """The checksum of what is before the offset."""
        return _sum(self._before)

    def trace_after(self, count: int) -> int:
        """Return that of what was before the end of what was delivered, 0 if nobody can tell.

        The file may have been emptied since.
        """
        if count <= _TRACED:
            return _sum(self._before + self._after[:count])
        last = _bytes_before(self._fd, self._at + count)
        return _sum(last) if os.pread(self._fd, _TRACED, self._at) == self._after else 0


def _bytes_before(fd: int, end: int) -> bytes:
    return os.pread(fd, min(_TRACED, end), max(0, end - _TRACED))


def _sum(text: bytes) -> int:
    """Return the checksum of the last bytes of a text, which bare.sh computes with awk."""
    found = 0
    for byte in text[-_TRACED:]:
        found = (found * 257 + byte + 1) % 0x7FFFFFFF
    return found


def _holds(path: str, end: int, known: int | None) -> bool:
    try:
        fd = opened(path)
    except OSError:
        return True
    try:
        return os.fstat(fd).st_size >= end and known in (None, _sum(_bytes_before(fd, end)))
    finally:
        os.close(fd)


class End(NamedTuple):
    """How a finished job ended."""

    state: State
    reason: str
    code: int | None
    """The exit status, 0 to 255."""
    signal: int | None


def end_in(record: Mapping[str, bytes], where: str = "exit") -> End:
    """Return how a finished job ended, and why, by the record of its end.

    What cannot be true of a process (POSIX wait(2)) is damage to the file `where`.
    """
    code, signal = text(record.get("code")), text(record.get("signal"))
    with suppress(ValueError):
        state = State(text(record.get("state")))
        possible = state.finished and _CODE.fullmatch(code) and _SIGNAL.fullmatch(signal)
        if possible and (state is not State.COMPLETED or (code in ("", "0") and not signal)):
            reason = os.fsdecode(record.get("reason", b""))
            return End(state, reason, int(code) if code else None, int(signal) if signal else None)
    return End(State.FAILED, DAMAGED.format(where), None, None)
