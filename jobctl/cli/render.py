"""Turns values into what is printed. Data goes to standard output, messages to standard error."""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from jobctl import process, timing
from jobctl.errors import CannotWrite, JobctlError, ReaderLeft
from jobctl.model import Job, State, printable

FORMATS = ("table", "wide", "json", "jsonl", "ids")

_NARROWEST = 12
"""Characters that a column keeps however narrow the terminal."""
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
    Opened for reading only, so that writing fails, as it should.
    """
    while (fd := os.open(os.devnull, os.O_RDONLY)) <= 2:
        pass
    os.close(fd)
    sys.stdout = sys.stdout or os.fdopen(1, "w")
    sys.stderr = sys.stderr or os.fdopen(2, "w")


def out(text: str) -> None:
    """Write data to standard output, all of it.

    :raises ReaderLeft: nobody reads it any more.
    :raises CannotWrite: the disk is full, say.
    """
    data = memoryview(text.encode("utf-8", "surrogateescape"))
    try:
        while data:
            data = data[os.write(1, data) :]
    except OSError as error:
        if error.errno == errno.EPIPE:
            raise ReaderLeft("the reader of standard output has gone") from None
        raise CannotWrite(f"cannot write to standard output: {error.strerror}") from None


def say(message: str) -> None:
    """Tell people something, in one line. Nothing can be done if they cannot be told."""
    with suppress(OSError):
        os.write(2, f"jobctl: {printable(message)}\n".encode("utf-8", "replace"))


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
        out(_tabulated([[printable(cell) for cell in row] for row in rows], list(names)))


def _as_text(values: Sequence[object], form: str) -> str:
    import json

    if form == "json":
        return json.dumps(values, indent=2) + "\n"
    return "".join(json.dumps(value) + "\n" for value in values)


def _tabulated(rows: list[list[str]], names: list[str]) -> str:
    import tabulate

    tabulate.MIN_PADDING = 0  # two spaces between columns are enough
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
        _fit(rows, names, _terminal_width())
        if not os.environ.get("NO_COLOR"):
            _colour(rows, jobs)
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


def _fit(rows: list[list[str]], names: list[str], width: int) -> None:
    """Cut the longest values of the widest columns until the table fits the width."""
    widths = [max(len(name), *(len(row[i]) for row in rows)) for i, name in enumerate(names)]
    can_be_cut = [names.index(name) for name in ("Name", "Command", "Reason") if name in names]
    while sum(widths) + 2 * (len(widths) - 1) > width:
        widest = max(can_be_cut, key=lambda column: widths[column])
        if widths[widest] <= _NARROWEST:
            break
        widths[widest] -= 1
    for row in rows:
        for column in can_be_cut:
            if len(row[column]) > widths[column]:
                row[column] = row[column][: widths[column] - 1] + "…"


def _colour(rows: list[list[str]], jobs: Sequence[Job]) -> None:
    import click

    for row, job in zip(rows, jobs, strict=True):
        if colour := _COLOURS.get(job.state):
            row[3] = click.style(row[3], fg=colour)


def _terminal_width() -> int:
    try:
        return os.get_terminal_size(1).columns or 80
    except OSError:
        return 80
