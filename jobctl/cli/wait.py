"""`jobctl wait`."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING, Any

import click

from jobctl import process
from jobctl.cli import options, render, terminal
from jobctl.descriptors import write
from jobctl.errors import Refused
from jobctl.jobs import Jobs
from jobctl.model import Job, State, printable
from jobctl.ops.find import has_items
from jobctl.ops.wait import finished
from jobctl.task import Task

if TYPE_CHECKING:
    from jobctl.agent.client import Asked

_TIMED_OUT = 124
_BAR = 36
"""Cells of the bar, where there is room."""
_AROUND, _RATE = 12, 25
"""Cells of percent, brackets and spaces, and of the time left and the rate with them, at most."""
_BEAT, _LONG = 0.5, 3600.0
"""Seconds between looks at a job's progress, and where nobody watches."""


@click.command(
    "wait", cls=options.Command, epilog="Example: jobctl wait --any --timeout 10m %build %test"
)
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
    render.ready()
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


def _parts(jobs: Jobs, job: Job) -> tuple[str, ...]:
    """Return the ids of what to wait for instead of a job; one with items is told of whole."""
    return job.children if job.child_count and not has_items(jobs, job) else (job.id,)


def _until_finished(
    jobs: list[Job], first: bool, deadline: float | None, force: bool
) -> tuple[list[Job], set[str], bool]:
    """Return the jobs that finished, in that order, and the ids of those that did not.

    And whether others were removed meanwhile.
    """
    done = [job for job in jobs if job.final]
    boot = process.boot_id()
    removed = False
    waiting = {job.id for job in jobs if not job.final}
    folders = options.jobs()
    left = {job.id: set(_parts(folders, job)) for job in jobs if not job.final}
    """The parts of each job that are not finished."""
    waited_for = set[str]().union(*left.values())
    if first and done:
        return done, waiting, removed
    bar = _Bar(jobs, folders, waited_for)
    with bar.shown:
        ask = bar.asking(terminal.person(deadline))
        for ended in finished(folders, sorted(waited_for), deadline, bar.beat, force, ask, bar.say):
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
                        bar.say(f"job {job_id} was removed meanwhile")
                        removed = True
                    else:
                        done.append(job)
            if first and done:
                break
            bar.show()
    return done, waiting, removed


class _Bar:
    """What a person sees meanwhile: how much is done, or a single job's own progress."""

    def __init__(self, jobs: list[Job], folders: Jobs, waited_for: set[str]) -> None:
        """Show nothing yet.

        :param waited_for: the parts that were not finished, which others take out.
        """
        self._waited_for = waited_for
        over = sum(max(1, job.child_count) for job in jobs if job.final)
        self._parts = len(waited_for) + over
        self._tasks = [
            folder
            for job in jobs
            if job.child_count and not job.final
            for folder in [folders.folder(job.id)]
            if isinstance(folder, Task)
        ]
        total = self._parts + sum(task.count - 1 for task in self._tasks)
        self._only = folders.folder(jobs[0].id) if total == 1 and not self._tasks else None
        visible = bool(jobs) and os.isatty(2)
        self.beat = _BEAT if visible else _LONG
        early = sum(folders.folder(part).finished() for part in waited_for) if visible else 0
        self._began, self._first = time.monotonic(), self._now(early) if visible else 0
        self._room = 0
        """Cells that are left for words: a bar that wraps cannot be redrawn."""
        self.shown = click.progressbar(
            length=100 if self._only else total,
            label=f"job {jobs[0].id}" if len(jobs) == 1 else f"{len(jobs)} jobs",
            item_show_func=self._words,
            hidden=not visible,
            update_min_steps=0,
            file=sys.stderr,
        )
        self.shown.pos = self._first
        self._fit()

    def _fit(self) -> None:
        """Take as much room as the terminal has now."""
        columns = render.terminal_width(2) - len("^C ")
        words = 0 if self._only else _RATE
        room = columns - len(self.shown.label) - _AROUND
        # Click takes 0 for "all there is".
        self.shown.width = max(1, min(room - words, _BAR))
        self._room = max(0, room - self.shown.width)
        self.shown.show_eta = not self._only and self._room >= _RATE
        if self.shown.max_width is not None:
            self.shown.max_width = min(self.shown.max_width, max(1, columns))

    def _done(self) -> int:
        """Return how many parts and items have ended."""
        ended = self._parts - len(self._waited_for)
        for task in self._tasks:
            # A whole job is a part too, and counts when all its items have.
            whole = task.id not in self._waited_for
            ended += task.count - 1 if whole else min(task.ended_count(), task.count - 1)
        return ended

    def _words(self, _: int | None) -> str | None:
        if self._only:
            message = render.cut(printable(self._only.progress()[1] or ""), self._room)
            # Click clears what was there by its number of characters.
            return message + " " * (self._room - render.cells(message))
        if self.shown.finished or self.shown.pos <= self._first or self._room < _RATE:
            return None
        rate = (self.shown.pos - self._first) / (time.monotonic() - self._began)
        return f"{rate:.1f}/s"

    def say(self, text: str) -> None:
        """Say something in the place of the bar, which comes again when there is news."""
        self._make_way()
        render.say(text)

    def asking(self, ask: Asked | None) -> Asked | None:
        """Return what has the person at the terminal asked in the place of the bar."""

        def in_its_place(question: dict[str, Any]) -> object:
            self._make_way()
            return ask(question) if ask else None

        return in_its_place if ask else None

    def _make_way(self) -> None:
        if self.beat != _LONG:
            write(2, b"\r\x1b[K")

    def show(self) -> None:
        """Show how it is now, which may be less than before."""
        if self.beat != _LONG:
            self._fit()
            self.shown.pos, self.shown.finished = self._now(), False
            self.shown.update(0)

    def _now(self, early: int = 0) -> int:
        """Return where the bar is.

        :param early: how many of the parts that are waited for are known to be finished.
        """
        if self._only:
            waits = len(self._waited_for) > early
            return round(self._only.progress()[0] or 0) if waits else 100
        return self._done() + early
