"""`jobctl remove`."""

from __future__ import annotations

import time
from typing import Any

import click

from jobctl.cli import options, render
from jobctl.ops import remove
from jobctl.paths import state_dir
from jobctl.store import Store


@click.command(
    "remove", cls=options.Command, epilog="Example: jobctl remove --state Completed --older-than 7d"
)
@options.selectors
@options.all_jobs
@options.filters
@click.option("--force", is_flag=True, help="Stop jobs that are not finished, then delete them.")
@click.option(
    "--older-than", type=options.DURATION, help="Only jobs that ended this long ago or longer."
)
@click.option("--local-only", is_flag=True, help="Delete what is here, even if a host is away.")
@click.option("--dry-run", is_flag=True, help="Show what would be deleted, and delete nothing.")
@options.output
def command(
    force: bool,
    older_than: float | None,
    local_only: bool,
    dry_run: bool,
    form: str,
    quiet: bool,
    **values: Any,
) -> int:
    """Delete jobs with their output, and end what they left running.

    Jobs that are not finished are refused, unless with --force.
    """
    if older_than is not None:
        limit = time.time() - older_than
        values["before"] = min(limit, values["before"] or limit)
    chosen = options.Chosen(values)
    chosen.check()
    found = options.found(chosen, resume=False)
    todo = remove.plan(found.jobs, force, local_only)
    if dry_run:
        unwanted = sorted((*todo.delete, *todo.forget), key=lambda job: job.key)
        render.records(unwanted, "ids" if quiet else form)
        return render.tell_all([*found.missing, *todo.errors])
    return render.tell_all(
        [*found.missing, *remove.remove(Store(state_dir()), todo, options.person(todo.delete))]
    )
