"""`jobctl receive`, and the same for the job that `jobctl start --wait` has begun."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import click

from jobctl import paths, timing
from jobctl.cli import options, render
from jobctl.errors import BadUsage, JobctlError, ReaderLeft
from jobctl.folder import STREAMS
from jobctl.model import Job, State, order, printable
from jobctl.ops.find import parts
from jobctl.ops.receive import Listener, Manner, Receiver
from jobctl.ops.stop import ask_hosts
from jobctl.ops.wait import Ends, News, finished
from jobctl.records import tells_writers
from jobctl.store import Store

_TIMED_OUT = 124


@click.command(
    "receive", cls=options.Command, epilog="Example: jobctl receive --wait %nightly > nightly.log"
)
@options.selectors
@options.all_jobs
@options.filters
@click.option("-k", "--keep", is_flag=True, help="Do not move the read mark.")
@click.option("--again", is_flag=True, help="All output from the start; the mark stays.")
@click.option(
    "-w",
    "--wait",
    "-f",
    "--follow",
    "wait",
    is_flag=True,
    help="Until the jobs are finished, live.",
)
@click.option(
    "--timeout", type=options.DURATION, help="With --wait: give up after this time, status 124."
)
@click.option("--auto-remove", is_flag=True, help="With --wait: remove the jobs afterwards.")
@click.option(
    "--write-events", is_flag=True, help="With --wait: states as JSON lines on standard error."
)
@click.option(
    "--force",
    is_flag=True,
    help="With --wait: also where a session was disconnected on purpose.",
)
@click.option(
    "--stream",
    type=click.Choice([*STREAMS, "both"]),
    default="both",
    show_default=True,
    help="Which output.",
)
@click.option(
    "--no-recurse",
    is_flag=True,
    help="Not the output of a job's children.",
)
@click.option("--tag", is_flag=True, help="Put job and host before each line.")
@click.option("--gather", is_flag=True, help="Wait; then write what several jobs wrote alike once.")
@click.option(
    "--output-dir",
    metavar="DIR",
    shell_complete=options.complete_directory,
    help="Write a file per job and stream in there.",
)
def command(
    keep: bool,
    again: bool,
    wait: bool,
    timeout: float | None,
    auto_remove: bool,
    write_events: bool,
    force: bool,
    stream: str,
    no_recurse: bool,
    tag: bool,
    gather: bool,
    output_dir: str | None,
    **values: Any,
) -> int:
    """Write the output of jobs that was not received yet, byte for byte.

    What was written to a job's standard error goes to standard error. Nothing is deleted, and
    what the reader did not take is not received: `jobctl receive 12 | head -1` loses nothing.

    With --wait and one job, ends with the status of the job's command.
    """
    for name, given in (
        ("--tag", tag),
        ("--output-dir", output_dir),
        ("--write-events", write_events),
    ):
        if gather and given:
            raise BadUsage(f"--gather and {name} contradict each other")
    wait = wait or gather
    for name, given in (
        ("--auto-remove", auto_remove),
        ("--write-events", write_events),
        ("--force", force),
    ):
        if given and not wait:
            raise BadUsage(f"{name} needs --wait")
    if keep and again:
        raise BadUsage("--keep and --again contradict each other; --again keeps the mark too")
    deadline = None if timeout is None else time.monotonic() + timeout
    chosen = options.Chosen(values)
    chosen.check()
    found = options.found(chosen)
    status = render.tell_all(found.missing)
    if output_dir is not None and found.jobs:
        _make_directory(output_dir)
    # A parent has no output of its own.
    jobs = [job for job in found.jobs if not (no_recurse and job.children)]
    manner = Manner(
        keep=keep,
        again=again,
        streams=STREAMS if stream == "both" else (stream,),
        tag=tag or tags_by_default(jobs),
        output_dir=output_dir,
        umask=options.caller_umask,
        sure=tells_writers(f"{paths.state_dir()}/index.db"),
    )
    if gather:
        ended = _gather(jobs, replace(manner, tag=False), deadline, auto_remove, force)
    elif wait:
        ended = follow(jobs, manner, deadline, write_events, auto_remove, force)
    else:
        ended = deliver(jobs, manner)
    return status or ended


def tags_by_default(jobs: list[Job]) -> bool:
    """Whether several children write to a terminal: then one must be told from the other."""
    return os.isatty(1) and sum(len(job.children) or bool(job.parent) for job in jobs) > 1


def _make_directory(path: str) -> None:
    """Make a directory, and those it is in, where there is none.

    :raises BadUsage: some part of the path does not allow it.
    """
    before = os.umask(options.caller_umask)
    try:
        os.makedirs(path, exist_ok=True)
    except OSError as error:
        why = _in_the_way(path) or error.strerror
        raise BadUsage(f"cannot make --output-dir '{printable(path)}': {why}") from None
    finally:
        os.umask(before)
    if not os.access(path, os.W_OK | os.X_OK):
        raise BadUsage(f"--output-dir '{printable(path)}' cannot be written to")


def _in_the_way(path: str) -> str:
    """Return what is wrong with the last part of a path that is there."""
    part = path.rstrip("/")
    while part and not os.path.lexists(part):
        part = os.path.dirname(part)
    shown = printable(part or ("/" if path.startswith("/") else "."))
    if part and not os.path.exists(part):
        return f"{shown} is a link that leads nowhere"
    if part and not os.path.isdir(part):
        return f"{shown} is not a directory"
    return "" if os.access(part or ".", os.W_OK | os.X_OK) else f"{shown} cannot be written to"


def deliver(jobs: list[Job], manner: Manner) -> int:
    """Deliver the output there is; return the exit status."""
    store = Store(paths.state_dir())
    jobs = [job for job in jobs if manner.wants(job)]
    errors = _fetched(store, jobs)
    pieces = [job for job in parts(store, jobs) if manner.wants(job)]
    ids = [job.id for job in pieces]
    with _doubting(ids):
        receiver = Receiver(store.jobs, manner, Listener(_failure, _emptied))
        receiver.now(pieces)
    return render.tell_all([*errors, *receiver.errors.values()])


def _fetched(store: Store, jobs: list[Job], deadline: float | None = None) -> list[JobctlError]:
    """Bring home what was to stay on hosts; return an error for each that is out of reach.

    :raises TimeoutError: it is not here by then, by time.monotonic().
    """
    some = parts(store, [job for job in jobs if _leaves_results(store, job)])
    there = [job for job in some if store.jobs.folder(job.id).stays_there()]
    return ask_hosts(store.jobs, "fetch", there, options.person(there, deadline), deadline)


def _brought(store: Store, jobs: list[Job], deadline: float | None) -> bool:
    """Bring home what was to stay on hosts; return False if the time is up before it is here.

    :raises JobctlError: a host is out of reach.
    """
    try:
        for error in _fetched(store, jobs, deadline):
            raise error
    except TimeoutError:
        return False
    return True


def _leaves_results(store: Store, job: Job) -> bool:
    """Whether the output of a job was to stay where it ran."""
    folder = store.jobs.folder(job.id)
    one = folder.child(1) if job.child_count else folder
    return one.spec().get("results") == b"remote"


def follow(
    jobs: list[Job],
    manner: Manner,
    deadline: float | None = None,
    events: bool = False,
    auto_remove: bool = False,
    force: bool = False,
    news: News | None = None,
) -> int:
    """Deliver output until jobs are finished; return the exit status.

    That of one job's command is passed on, and every failure of our own is then 125.

    :param news: of these jobs, if somebody listens already.
    """
    from jobctl.cli import terminal

    store = Store(paths.state_dir())
    alone = len(jobs) == 1 and not jobs[0].children
    over = [] if alone or events else [job for job in jobs if not manner.wants(job)]
    """Those of which there is nothing more to tell."""
    received = {job.id for job in over}
    goes_on = [job for job in jobs if job.id not in received]
    ids = sorted({part for job in goes_on for part in job.children or (job.id,)}, key=order)
    listener = Listener(_failure, _emptied, _waiting, _event if events else None)
    receiver = Receiver(store.jobs, manner, listener)
    try:
        fetched = _brought(store, goes_on, deadline)  # if not, what is here is delivered
        with _doubting(ids):
            ends = Ends(store.jobs, ids, force, terminal.person(deadline), news, render.say)
            ended = receiver.follow(ends, deadline)
        if auto_remove and fetched and len(ended) == len(ids) and not receiver.errors:
            _remove([job.id for job in jobs], manner)
    except ReaderLeft:
        raise
    except JobctlError as error:
        raise JobctlError(str(error)) if alone else error from None
    if receiver.errors:
        return render.tell_all([*receiver.errors.values()])
    late = deadline is not None and time.monotonic() >= deadline
    if not fetched or (late and len(ended) < len(ids)):
        return _TIMED_OUT
    if alone:
        return _status_of(ended[0]) if ended else JobctlError.status  # was removed
    ended += over
    failed = any(job.state is not State.COMPLETED for job in ended)
    return int(failed or len(ended) < len(ids) + len(over))


def _status_of(job: Job) -> int:
    """Return the exit status of a finished job's command; one that did not do well has none of 0.

    Who waits is told why it never began; of a Failed one he was told so already.
    """
    if job.state is State.STOPPED and job.pid is None:
        render.say(f"job {job.id} stopped: {job.reason}")
    return job.pass_through_status or int(job.state is not State.COMPLETED)


def _gather(
    jobs: list[Job], manner: Manner, deadline: float | None, auto_remove: bool, force: bool
) -> int:
    """Deliver the outputs of jobs together when they are finished; return the exit status."""
    from jobctl import nodes
    from jobctl.cli import terminal
    from jobctl.ops.gather import grouped

    store = Store(paths.state_dir())
    ids = [job.id for job in parts(store, jobs, items=False)]
    nodes.fold(())  # which headers need: a fault of its configuration is told before the wait
    whole = list[Job]()
    for news in finished(
        store.jobs, ids, deadline, force=force, ask=terminal.person(deadline), tell=render.say
    ):
        whole += [job for _, job in news if job is not None]
    ended = parts(store, whole)
    if not _brought(store, ended, deadline):
        return _TIMED_OUT
    groups = grouped(store.jobs, ended, manner)
    receiver = Receiver(store.jobs, manner, Listener(lambda job: "", _emptied))
    with _doubting(ids):
        receiver.together(
            [(group.header, [job.id for job in group.jobs]) for group in groups if not group.empty]
        )
    if receiver.errors:
        return render.tell_all([*receiver.errors.values()])
    if len(whole) < len(ids) and deadline is not None and time.monotonic() >= deadline:
        return _TIMED_OUT
    if auto_remove:
        _remove([job.id for job in jobs], manner)
    return int(len(whole) < len(ids) or any(j.state is not State.COMPLETED for j in ended))


@contextmanager
def _doubting(ids: list[str]) -> Iterator[None]:
    """Have the index look again at jobs whose read marks this may move."""
    store = Store(paths.state_dir())
    store.doubt(ids)  # should we be killed
    try:
        yield
    finally:
        store.doubt(ids)


def _remove(ids: list[str], manner: Manner) -> None:
    """Remove jobs, but not what was not received."""
    from jobctl.ops.remove import plan, remove

    store = Store(paths.state_dir())
    jobs = [job for job_id in ids if (job := store.jobs.folder(job_id).read(store.boot))]
    if not (manner.keep or manner.again):
        for job in jobs:
            if job.has_more_data:
                render.say(f"job {job.id} is kept: not all of its output was received")
        jobs = [job for job in jobs if not job.has_more_data]
    todo = plan(jobs, force=False, local_only=False)
    for error in remove(store, todo, options.person(jobs)):
        raise error


def _failure(job: Job) -> str:
    return render.message(f"job {job.id} failed: {job.reason}")


def _waiting(why: str) -> None:
    render.say(f"waiting: {printable(why)}")


def _emptied(job_id: str, stream: str) -> str:
    return render.message(
        f"job {job_id} has emptied its own {stream}, and what it holds now is received;"
        f" to add to it, open /dev/{stream} with >> (tee -a)"
    )


def _event(job: Job) -> str:
    event = {
        "time": timing.rfc3339(time.time()),
        "id": job.id,
        "name": job.name,
        "state": job.state.value,
        "reason": job.reason,
    }
    return json.dumps(event)
