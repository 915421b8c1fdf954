"""`jobctl stop`."""

from __future__ import annotations

import signal
from typing import Any

import click
from click.shell_completion import CompletionItem

from jobctl.cli import options, render
from jobctl.errors import BadUsage
from jobctl.ops import stop


def _signal(text: str) -> str:
    """Return the name, without SIG, of a signal given by name or number."""
    try:
        if text.isdecimal():
            return signal.Signals(int(text)).name.removeprefix("SIG")
        return signal.Signals["SIG" + text.upper().removeprefix("SIG")].name.removeprefix("SIG")
    except (ValueError, KeyError):
        raise BadUsage(f"'{text}' is not a signal; 'kill -l' lists them") from None


def _complete_signal(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    names = (number.name.removeprefix("SIG") for number in signal.Signals)
    return [CompletionItem(name) for name in names if name.startswith(incomplete.upper())]


@click.command(
    "stop", cls=options.Command, epilog="Example: jobctl stop --reason 'wrong input' %nightly"
)
@options.selectors
@options.all_jobs
@options.filters
@click.option(
    "--grace",
    type=options.DURATION,
    default="10s",
    show_default=True,
    help="Time from TERM to KILL.",
)
@click.option(
    "--signal",
    "signal_name",
    metavar="NAME",
    type=options.Parsed("signal", _signal),
    shell_complete=_complete_signal,
    help="Only send this signal, such as HUP, USR1, STOP or CONT.",
)
@click.option("--reason", default="", metavar="TEXT", help="Why, for people to read in get.")
def command(grace: float, signal_name: str | None, reason: str, **values: Any) -> int:
    """End everything that jobs started: TERM first, KILL to what is left after --grace.

    Returns when nothing is left. Finished jobs stay as they are, but what they left running
    is ended too.
    """
    chosen = options.Chosen(values)
    chosen.check()
    found = options.found(chosen, resume=False)
    jobs = options.jobs()
    pieces = options.parts(found.jobs)
    person = options.person(pieces)
    if signal_name is None:
        # Leftovers of what was not named are no reason to connect to a host.
        errors = stop.stop(jobs, pieces, grace, reason, chosen.jobs is not None, person)
    else:
        errors = stop.send(jobs, found.jobs, pieces, signal_name, person)
    return render.tell_all([*found.missing, *errors])
