"""Turns values into what is printed. Data goes to standard output, messages to standard error."""

from __future__ import annotations

import errno
import io
import os
import stat
import sys
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import accumulate
from types import SimpleNamespace
from typing import Any, BinaryIO, cast

from jobctl import process, timing
from jobctl.descriptors import gone, write
from jobctl.errors import CannotWrite, JobctlError, ReaderLeft
from jobctl.model import Job, State, printable

FORMATS = ("table", "wide", "json", "jsonl", "ids")

_CUT = ("Name", "Location", "Host", "Command", "Reason")
"""Columns whose values are cut where a terminal is too narrow for all of them."""
_NARROWEST = 12
"""Cells that such a column keeps while others can still be left out."""
_LEFT_OUT = ("Type", "HasMoreData")
"""Columns that are left out then, in this order."""
_EMOJI, _SOFT_HYPHEN = "\ufe0f", "\xad"
"""What makes the character before it an emoji, two cells wide; and a hyphen that shows or not."""
_COLOURS = {
    State.RUNNING: "cyan",
    State.COMPLETED: "green",
    State.FAILED: "red",
    State.STOPPED: "yellow",
    State.STOPPING: "yellow",
    State.SUSPENDED: "magenta",
    State.DISCONNECTED: "magenta",
    State.BLOCKED: "magenta",
}


def open_standard_files() -> None:
    """Put something behind descriptors 0 to 2 where our caller closed them.

    Else the next file opened would get one of these numbers, and what is printed with it.
    Each is opened for what is not done with it, so that using it fails, as it should.
    """
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            # It gets the lowest number that is free: this one.
            os.open(os.devnull, os.O_RDONLY if fd else os.O_WRONLY)
    # What libraries print goes the same way as what we do.
    sys.stdout, sys.stderr = _stream(1), _stream(2)


class _Descriptor(io.RawIOBase):
    """A file descriptor that takes all it is given."""

    def __init__(self, fd: int) -> None:
        super().__init__()
        self._fd = fd

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._fd

    def isatty(self) -> bool:
        """Whether it leads to a terminal."""
        return os.isatty(self._fd)

    def writable(self) -> bool:
        """Whether it takes anything."""
        return True

    def write(self, data: Any) -> int:
        """Write all of data and return how many bytes that were."""
        whole = bytes(data)
        write(self._fd, whole)
        return len(whole)


def _stream(fd: int) -> io.TextIOWrapper:
    raw = cast(BinaryIO, _Descriptor(fd))
    return io.TextIOWrapper(raw, "utf-8", "surrogateescape", write_through=True)


def out(text: str) -> None:
    """Write data to standard output, all of it.

    :raises ReaderLeft: nobody reads it any more.
    :raises CannotWrite: the disk is full, say.
    """
    with _told():
        write(1, text.encode("utf-8", "surrogateescape"))


def pause(seconds: float) -> None:
    """Wait for a while, for as long as somebody reads standard output.

    :raises ReaderLeft: nobody does any more.
    """
    if gone(1, seconds):
        raise ReaderLeft("the reader of standard output has gone")


def ready() -> None:
    """Make sure that standard output takes something, before what is told of there is done.

    A disk may be full all the same, and a reader may leave.

    :raises CannotWrite: it takes nothing.
    """
    if stat.S_ISSOCK(os.fstat(1).st_mode):
        return  # to which nothing can be a message
    try:
        with _told():
            os.write(1, b"")
    except CannotWrite as error:
        raise CannotWrite(f"{error}; nothing was done") from None


@contextmanager
def _told() -> Iterator[None]:
    """Raise what out() does where standard output cannot be written to."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.EPIPE:
            raise ReaderLeft("the reader of standard output has gone") from None
        why = "it is closed" if error.errno == errno.EBADF else error.strerror
        raise CannotWrite(f"cannot write to standard output: {why}") from None


def say(text: str) -> None:
    """Tell people something, in one line. Nothing can be done if they cannot be told."""
    with suppress(OSError):
        write(2, f"{message(text)}\n".encode("utf-8", "replace"))


def message(text: str) -> str:
    """Return the line in which people are told something."""
    return f"jobctl: {printable(text)}"


def tell_all(errors: Sequence[JobctlError]) -> int:
    """Say what went wrong; return the exit status of the first of it, 0 if nothing did."""
    for error in errors:
        say(str(error))
    return errors[0].status if errors else 0


def records(jobs: Sequence[Job], form: str) -> None:
    """Print jobs in one of FORMATS."""
    text = rendered(jobs, form)
    if text:
        out(text)


def rendered(jobs: Sequence[Job], form: str) -> str:
    """Return jobs in one of FORMATS, as whole lines."""
    if form == "ids":
        return "".join(f"{job.id}\n" for job in jobs)
    if form in ("json", "jsonl"):
        return _as_text([as_json(job) for job in jobs], form)
    return _table(jobs, form == "wide") if jobs else ""


def as_json(job: Job) -> dict[str, object]:
    """Return a job as the JSON object that the contract describes."""
    progress = {"percent": job.percent, "message": job.message}
    return {
        "id": job.id,
        "name": job.name,
        "instance_id": job.instance_id,
        "type": job.type,
        "state": job.state.value,
        "reason": job.reason,
        "exit_code": job.exit_code,
        "signal": job.signal,
        "has_more_data": job.has_more_data,
        "location": job.location,
        "session": job.session,
        "command": job.command,
        "argv": job.argv,
        "cwd": job.cwd,
        "pid": job.pid,
        "item": job.item,
        "created_at": timing.rfc3339(job.created_at),
        "began_at": timing.rfc3339(job.began_at),
        "ended_at": timing.rfc3339(job.ended_at),
        "progress": None if job.message is None else progress,
        "parent": job.parent,
        "children": job.children,
    }


def things(
    rows: Sequence[tuple[str, ...]], names: tuple[str, ...], values: Sequence[object], form: str
) -> None:
    """Print what is no job: rows of a table, or values as JSON. The first column is the id."""
    if form == "ids":
        out("".join(f"{row[0]}\n" for row in rows))
    elif form in ("json", "jsonl"):
        out(_as_text(values, form))
    elif rows:
        shown, headings = [[printable(cell) for cell in row] for row in rows], list(names)
        if os.isatty(1):
            fit(shown, headings, terminal_width(1))
        out(_tabulated(shown, headings))


def _as_text(values: Sequence[object], form: str) -> str:
    import json

    if form == "json":
        return json.dumps(values, indent=2) + "\n"
    return "".join(json.dumps(value) + "\n" for value in values)


def _tabulated(rows: list[list[str]], names: list[str]) -> str:
    import tabulate

    tabulate.MIN_PADDING = 0  # two spaces between columns are enough
    # By itself it would count characters, or with wcwidth, if there is one, another way than fit().
    vars(tabulate).update(wcwidth=SimpleNamespace(wcswidth=cells), WIDE_CHARS_MODE=True)
    return tabulate.tabulate(rows, names, tablefmt="plain", disable_numparse=True) + "\n"


def _table(jobs: Sequence[Job], wide: bool) -> str:
    columns: dict[str, Callable[[Job], str]] = {
        "Id": lambda job: job.id,
        "Name": lambda job: job.name,
        "Type": lambda job: job.type,
        "State": lambda job: job.state.value,
        "HasMoreData": lambda job: str(job.has_more_data),
        "Location": lambda job: job.location,
        "Command": lambda job: job.command,
    }
    if wide:
        now, uptime = time.time(), process.uptime()
        columns |= {
            "Exit": _exit,
            "Began": lambda job: timing.local(job.began_at),
            "Elapsed": lambda job: timing.spell(job.running_for(now, uptime)),
            "Reason": _reason,
        }
    rows = [[printable(show(job)) for show in columns.values()] for job in jobs]
    names = list(columns)
    if os.isatty(1):
        fit(rows, names, terminal_width(1))
        if not os.environ.get("NO_COLOR"):
            _colour(rows, names, jobs)
    return _tabulated(rows, names)


def _exit(job: Job) -> str:
    if job.signal is not None:
        return f"signal {job.signal}"
    return "" if job.exit_code is None else str(job.exit_code)


def _reason(job: Job) -> str:
    """Return the reason, after how many children are in which state, if it has some."""
    if not job.tally:
        return job.reason
    names = {State.NOT_STARTED.value: "not started"}
    counts = ", ".join(f"{count:,} {names.get(s, s.lower())}" for s, count in job.tally)
    whole = f"{counts} of {sum(count for _, count in job.tally):,}"
    return f"{whole}: {job.reason}" if job.reason else whole


def fit(rows: list[list[str]], names: list[str], width: int) -> None:
    """Have a table fit into a width in cells: cut long values, then leave columns out.

    :param rows: the values, changed in place as names are.
    """
    widths = [max(map(cells, [name, *values])) for name, *values in zip(names, *rows, strict=True)]
    widths = [min(size, width) for size in widths]
    narrowest = _NARROWEST
    while sum(widths) + 2 * (len(widths) - 1) > width:
        can_be_cut = [i for i, name in enumerate(names) if name in _CUT and widths[i] > narrowest]
        others = [names.index(name) for name in _LEFT_OUT if name in names]
        if can_be_cut:
            widths[max(can_be_cut, key=lambda column: widths[column])] -= 1
        elif others:
            _drop(others[0], rows, names, widths)
        elif narrowest > 1:
            narrowest = 1
        elif len(names) > 1:
            _drop(len(names) - 1, rows, names, widths)
        else:
            break
    for row in rows:
        row[:] = [cut(value, most) for value, most in zip(row, widths, strict=True)]
    names[:] = [cut(value, most) for value, most in zip(names, widths, strict=True)]


def _drop(column: int, rows: list[list[str]], names: list[str], widths: list[int]) -> None:
    del widths[column]
    for values in (*rows, names):
        del values[column]


def cells(text: str) -> int:
    """Return how many cells of a terminal printable text takes, at most.

    Terminals differ in what they put together: a row that is too short does not wrap.
    """
    return len(text) if text.isascii() else sum(_sizes(text))


def _sizes(text: str) -> Iterator[int]:
    """Yield how many cells each character of a text takes, or adds to the one before."""
    import unicodedata

    before = 0
    for character in text:
        if character == _EMOJI and before == 1:
            size = 1
        elif unicodedata.category(character) in ("Mn", "Me", "Cf") and character != _SOFT_HYPHEN:
            size = 0
        else:
            size = before = 2 if unicodedata.east_asian_width(character) in "WF" else 1
        yield size


def cut(text: str, most: int) -> str:
    """Return text, with an ellipsis for its end if it takes more than so many cells."""
    if cells(text) <= most:
        return text
    sums = accumulate(_sizes(text))
    return f"{text[: bisect_right(list(sums), most - 1)]}…"[: max(0, most)]


def _colour(rows: list[list[str]], names: list[str], jobs: Sequence[Job]) -> None:
    import click

    if "State" not in names:
        return
    column = names.index("State")
    for row, job in zip(rows, jobs, strict=True):
        if colour := _COLOURS.get(job.state):
            row[column] = click.style(row[column], fg=colour)


def terminal_width(fd: int) -> int:
    """Return how many cells a line of the terminal behind a descriptor has; 80 if it is none."""
    try:
        return os.get_terminal_size(fd).columns or 80
    except OSError:
        return 80
