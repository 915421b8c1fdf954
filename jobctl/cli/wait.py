"""`jobctl wait`."""

from __future__ import annotations

import os
import sys
import time
from typing import Any

import click

from jobctl import process
from jobctl.cli import options, render
from jobctl.errors import Refused
from jobctl.model import TYPE_TASK, Job, State, printable
from jobctl.ops.wait import finished

_TIMED_OUT = 124
_MESSAGE = 40
"""Characters of a job's own message that the bar shows."""
_BEAT, _LONG = 0.5, 3600.0
"""Seconds between looks at a job's progress, and where nobody watches."""


@click.command("wait", epilog="Example: jobctl wait --any --timeout 10m build test")
@options.selectors
@options.all_jobs
@options.filters
@click.option("--any", "first", is_flag=True, help="Until one is finished; print just that one.")
@click.option("--timeout", type=options.DURATION, help="Give up after this time, with status 124.")
@click.option(
    "--force",
    is_flag=True,
    help="Go on also where a session was disconnected on purpose.",
)
@options.output
def command(
    first: bool, timeout: float | None, force: bool, form: str, quiet: bool, **values: Any
) -> int:
    """Wait until jobs are finished, and print their records.

    Ends with status 1 if one of them Failed or was Stopped, with 124 when time is up.
    To interrupt it does nothing to the jobs.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    chosen = options.Chosen(values)
    chosen.check()
    found = options.found(chosen)
    status = render.tell_all(found.missing)
    try:
        done, waiting, removed = _until_finished(found.jobs, first, deadline, force)
    except Refused as error:
        render.say(str(error))
        return error.status
    if first:
        done = done[:1]
    render.records(sorted(done, key=lambda job: job.key), "ids" if quiet else form)
    if status:
        return status
    if waiting and not (first and done):
        return _TIMED_OUT
    return int(removed or any(job.state is not State.COMPLETED for job in done))


def _parts(job: Job) -> tuple[str, ...]:
    """Return the ids of what to wait for instead of a job; one with items is told of whole."""
    return job.children if job.child_count and job.type != TYPE_TASK else (job.id,)


def _until_finished(
    jobs: list[Job], first: bool, deadline: float | None, force: bool
) -> tuple[list[Job], set[str], bool]:
    """Return the jobs that finished, in that order, and the ids of those that did not.

    And whether others were removed meanwhile.
    """
    done: list[Job] = []
    boot = process.boot_id()
    removed = False
    waiting = {job.id for job in jobs}
    folders = options.jobs()
    left = {job.id: set(_parts(job)) for job in jobs}
    """The parts of each job that are not finished."""
    waited_for = set[str]().union(*left.values())
    total = len(waited_for)
    shown = bool(jobs) and os.isatty(2)
    only = folders.folder(jobs[0].id) if total == 1 else None

    def message(_: int | None) -> str | None:
        return printable(only.progress()[1] or "")[:_MESSAGE] if only else None

    with click.progressbar(
        length=100 if only else total,
        label=f"job {jobs[0].id}" if len(jobs) == 1 else f"{len(jobs)} jobs",
        item_show_func=message,
        show_eta=False,
        hidden=not shown,
        file=sys.stderr,
    ) as bar:
        beat = _BEAT if shown else _LONG
        for ended in finished(folders, sorted(waited_for), deadline, beat, force):
            for part, _ in ended:
                waited_for.discard(part)
                whole = part.partition(".")[0]
                # A child may have been asked for beside its parent.
                for job_id in {whole, part} & left.keys():
                    left[job_id].discard(part)
                    if left[job_id]:
                        continue
                    waiting.discard(job_id)
                    job = folders.folder(job_id).read(boot)
                    if job is None:
                        render.say(f"job {job_id} was removed meanwhile")
                        removed = True
                    else:
                        done.append(job)
            if first and done:
                break
            if only and waiting:
                bar.update(round(only.progress()[0] or 0) - bar.pos)
            elif shown:
                bar.update((100 if only else total - len(waited_for)) - bar.pos)
    return done, waiting, removed
