"""`jobctl get`."""

from __future__ import annotations

import os
import time
from typing import Any

import click

from jobctl.cli import options, render

_REDRAW = 1.0


@click.command("get", epilog="Example: jobctl get --state Failed --newest 5 -o wide")
@options.selectors
@options.filters
@click.option(
    "--children",
    is_flag=True,
    expose_value=False,  # no job has any yet
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
def command(watch: bool, form: str, quiet: bool, **values: Any) -> int:
    """Show jobs, all of them or those that JOB and the filters select.

    JOB is an id, a range such as 3-8, a name, a name with wildcards, an instance id or eight
    or more of its first characters, or - to read more of them from standard input.
    """
    chosen = options.Chosen(values)
    form = "ids" if quiet else form
    if watch:
        _watch(chosen, form)
    found = options.found(chosen)
    render.records(found.jobs, form)
    return render.tell_all(found.missing)


def _watch(chosen: options.Chosen, form: str) -> None:
    """Show the jobs each time they have changed, on a terminal in place, until ^C."""
    before = None
    while True:
        text = render.rendered(options.found(chosen).jobs, form)
        if text != before:
            render.out(("\x1b[H\x1b[2J" if os.isatty(1) else "") + text)
            before = text
        time.sleep(_REDRAW)
