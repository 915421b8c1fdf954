"""`jobctl get`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from jobctl.cli import options, render
from jobctl.model import TYPE_REMOTE, Job
from jobctl.paths import state_dir

if TYPE_CHECKING:
    from jobctl.ops.find import Found

_REDRAW = 1.0
_LOWEST = 3
"""Lines of a terminal that has room for a head, a line of what is left out and a row."""


@click.command(
    "get", cls=options.Command, epilog="Example: jobctl get --state Failed --newest 5 -o wide"
)
@options.selectors
@options.filters
@click.option(
    "--children",
    is_flag=True,
    help="Show the children of jobs as well.",
)
@click.option(
    "--child-state",
    "child_states",
    type=options.STATE,
    multiple=True,
    help="Only jobs with a child in this state.",
)
@click.option("--watch", is_flag=True, help="Show again and again, until interrupted.")
@options.output
def command(children: bool, watch: bool, form: str, quiet: bool, **values: Any) -> int:
    """Show jobs, all of them or those that JOB and the filters select.

    JOB is an id, a range such as 3-8, a name, a name with wildcards, an instance id or eight
    or more of its first characters, or - to read more of them from standard input.
    """
    chosen = options.Chosen(values)
    form = "ids" if quiet else form
    found = _watched(chosen, children, form) if watch else options.found(chosen)
    _look_after(found.jobs)
    render.records(_shown(found.jobs, chosen, children), form)
    if not watch and not found.missing:
        _tell_if_none(found.jobs, chosen, form)
    return render.tell_all(found.missing)


def _tell_if_none(jobs: list[Job], chosen: options.Chosen, form: str, more: str = "") -> None:
    """Say on a terminal that there is nothing to show."""
    if not jobs and form != "json" and os.isatty(1):
        every = chosen.jobs is None and chosen.filter.empty
        render.say(f"{'there are no jobs' if every else 'no job matches'}{more}")


def _look_after(jobs: list[Job]) -> None:
    """Have an agent carry what runs on hosts, should the last one have been killed."""
    if any(job.type == TYPE_REMOTE and not job.state.finished for job in jobs):
        from jobctl.agent import client
        from jobctl.links import agent_alive

        if not agent_alive(state_dir()):
            client.wake(state_dir())


def _shown(jobs: list[Job], chosen: options.Chosen, children: bool) -> list[Job]:
    """Return jobs with their children after them, if these are to be shown."""
    states = chosen.filter.child_states
    if not children and not states:
        return jobs
    from jobctl.ops.find import children_of
    from jobctl.store import Store

    store, shown = Store(state_dir()), {job.id: job for job in jobs}
    for job in jobs:
        for child in children_of(store, job):
            if not states or child.state in states:
                shown[child.id] = child
    return sorted(shown.values(), key=lambda job: job.key)


def _on_one_screen(text: str) -> str:
    """Return the head of a table and as many of its last rows as a terminal shows at once."""
    lines, room = text.splitlines(keepends=True), os.get_terminal_size(1).lines - 1
    if len(lines) <= room or room < _LOWEST:
        return text
    rows = lines[2 - room :]
    return "".join([lines[0], f"… {len(lines) - 1 - len(rows)} more\n", *rows])


def _watched(chosen: options.Chosen, children: bool, form: str) -> Found:
    """Show the jobs each time they have changed, on a terminal in place, until ^C.

    Return when nothing that was asked for is there, or is any more.
    """
    before = None
    while (found := options.found(chosen)).jobs or not found.missing:
        if before is None:
            render.tell_all(found.missing)
        _look_after(found.jobs)
        text = render.rendered(_shown(found.jobs, chosen, children), form)
        if form in ("table", "wide") and os.isatty(1):
            text = _on_one_screen(text)
        if text != before:
            render.out(("\x1b[H\x1b[2J" if os.isatty(1) else "") + text)
            before = text
            _tell_if_none(found.jobs, chosen, form, "; those that come are shown, until ^C")
        render.pause(_REDRAW)
    return found
