"""Sessions: named connections that are kept up, and what other computers left on a host."""

from __future__ import annotations

import os
from typing import NamedTuple

from jobctl import draft, paths, quoting, records
from jobctl.agent import client
from jobctl.agent.client import Asked
from jobctl.errors import JobctlError, Refused, Unreachable
from jobctl.folder import STREAMS, cookie
from jobctl.jobs import Jobs
from jobctl.links import Links, LinkState, Session
from jobctl.model import TYPE_BACKGROUND, TYPE_REMOTE, Job, Place, State, printable
from jobctl.ops.find import parts
from jobctl.ops.stop import stop
from jobctl.store import Store
from jobctl.target import Target, parse_target
from jobctl.timing import Clocks, Moment

_GRACE = 10.0


class Shown(NamedTuple):
    """A session as people look at it."""

    session: Session
    state: LinkState
    availability: str
    """Available, Busy, or None when it is not open."""
    jobs: int
    """How many unfinished ones it has."""
    reason: str
    connected_at: float | None


def shown(state_dir: str, names: list[str]) -> tuple[list[Shown], list[JobctlError]]:
    """Return sessions, all of them or those named, and an error for each unknown name."""
    book, errors = Links(state_dir), list[JobctlError]()
    if names:
        chosen = []
        for name in dict.fromkeys(names):
            try:
                chosen.append(book.known(name))
            except JobctlError as error:
                errors.append(error)
        chosen.sort(key=lambda session: int(session.id))
    else:
        chosen = book.sessions()
        errors += book.distrusted()
    if any(session.wanted for session in chosen) and not book.agent_alive():
        client.wake(state_dir)
    store = Store(state_dir)
    store.refresh()
    return [_shown(book, store, session) for session in chosen], errors


def _shown(book: Links, store: Store, session: Session) -> Shown:
    link = book.link(session.name)
    state, reason = link.state, link.reason
    if not session.wanted:
        state, reason = LinkState.DISCONNECTED, "disconnected by user"
    elif state is LinkState.CLOSED:
        state = LinkState.OPENING
    opened = state is LinkState.OPENED
    availability = ("Busy" if link.busy else "Available") if opened else "None"
    jobs = len(unfinished(store, session.name))
    return Shown(session, state, availability, jobs, reason, link.connected_at if opened else None)


def unfinished(store: Store, name: str) -> list[Job]:
    """Return the unfinished jobs of a session, as of the last refresh()."""
    jobs = parts(store, store.select("NOT final AND type = ?", [TYPE_REMOTE]))
    return [job for job in jobs if not job.state.finished and job.session == name]


def create(state_dir: str, name: str, target: Target, ask: Asked) -> Session:
    """Open a new session; where that cannot be done there is none.

    :raises Refused: there is one of that name.
    :raises Unreachable: the host cannot be reached, or does not let us in.
    """
    book = Links(state_dir)
    session = book.create(name, target)
    try:
        client.call(state_dir, {"op": "open", "session": name, "new": True}, ask=ask)
    except BaseException:
        book.remove(name)
        client.call(state_dir, {"op": "close", "session": name})
        raise
    # Only the first time: a key that has changed is never accepted.
    session = session._replace(target=target._replace(accept_new=False))
    book.save(session)
    return session


def connect(state_dir: str, name: str, ask: Asked) -> None:
    """Have a session connected; nothing happens to one that is.

    :raises NotFound: there is no such session.
    :raises Unreachable: it cannot be.
    """
    book = Links(state_dir)
    session = book.known(name)
    if not session.wanted:
        book.save(session._replace(wanted=True))
    client.call(state_dir, {"op": "open", "session": session.name}, ask=ask)


def reconnect(state_dir: str, to: str, ask: Asked) -> None:
    """Have a session connected that was disconnected on purpose; any other thing is left alone.

    :raises Unreachable: it cannot be.
    """
    if Links(state_dir).disconnected(to):
        connect(state_dir, to, ask)


def disconnect(state_dir: str, name: str) -> None:
    """Let go of a session's connection. Its jobs go on.

    :raises NotFound: there is no such session.
    """
    book = Links(state_dir)
    session = book.known(name)
    if session.wanted:
        book.save(session._replace(wanted=False))
    if book.agent_alive():
        client.call(state_dir, {"op": "close", "session": session.name})


def remove(state_dir: str, name: str, leave_running: bool) -> None:
    """Forget a session.

    :param leave_running: although it has unfinished jobs.
    :raises NotFound: there is no such session.
    :raises Refused: it has unfinished jobs.
    """
    book = Links(state_dir)
    name = book.known(name).name
    store = Store(state_dir)
    store.refresh()
    if (jobs := unfinished(store, name)) and not leave_running:
        ids = ", ".join(job.id for job in jobs[:5]) + (" …" if len(jobs) > 5 else "")
        raise Refused(
            f"session '{printable(name)}' has unfinished jobs ({ids}); give --force to stop"
            " them or --leave-running to let them go on"
        )
    book.remove(name)
    if book.agent_alive():
        client.call(state_dir, {"op": "close", "session": name})
        client.wake(state_dir)  # its jobs go on over a connection of their own


# --- what is on a host ---


class Found(NamedTuple):
    """A job that lies on a host."""

    path: str
    """Its folder, below the state directory there."""
    spec: dict[str, bytes]
    """What its spec says, with the time by our clock."""
    job: Job


def survey(state_dir: str, to: str, ask: Asked) -> list[Found]:
    """Return all jobs that any computer keeps on a host, a session's or one by its name.

    The oldest comes first.

    :raises Unreachable: it cannot be reached.
    """
    answer = client.call(state_dir, {"op": "survey", "to": to}, ask=ask)
    data = answer["jobs"].encode("utf-8", "surrogateescape")
    clocks = Clocks(*(Moment(*moment) for moment in answer["clocks"]))
    found, at = [], 0
    while at < len(data):
        end = data.index(b"\n", at) + 1
        words = data[at:end].split()
        size = int(words[-1])  # the agent has looked at it
        found.append(_found(words, data[end : end + size], to, clocks))
        at = end + size + 1
    here = {job.instance_id: job.has_more_data for job in known_here(state_dir, found)}
    found = [
        entry._replace(job=entry.job._replace(has_more_data=here[entry.job.instance_id]))
        if entry.job.instance_id in here
        else entry
        for entry in found
    ]
    return sorted(found, key=lambda entry: (entry.job.created_at or 0.0, entry.path))


def _found(words: list[bytes], data: bytes, location: str, clocks: Clocks) -> Found:
    """Return a job that lies on a host, its times by our clocks.

    :param words: what serve.sh says of it; data are the files that it tells the lengths of.
    """
    path, letter = words[1].decode("ascii", "replace"), words[2]
    begun_there, finished = path.startswith("jobs/"), letter == b"="
    files = list[dict[str, bytes]]()
    for size in map(int, words[5:9]):
        files.append(quoting.load(data[:size]))
        data = data[size:]
    spec, run, end, received = files

    def text(key: str) -> str:
        return os.fsdecode(spec.get(key, b""))

    def ours(record: dict[str, bytes], name: str) -> float | None:
        return clocks.ours(records.moment(record, name, "boot")).time

    if begun_there and (created := ours(spec, "created")) is not None:
        spec["created"] = b"%.6f" % created  # else it is by the clock of whoever started it
    ended = records.end_in(end) if finished else records.End(*_unfinished(letter, run), None, None)
    instance_id, marks = cookie(spec.get("instance_id")), records.marks_in(received)
    sizes = zip(STREAMS, map(records.integer, words[3:5]), strict=False)
    unreceived = any(marks.next(stream, size or 0) for stream, size in sizes)
    job = Job(
        path.rpartition("/")[2] if begun_there or not instance_id else instance_id,
        name=text("name"),
        instance_id=instance_id,
        type=TYPE_BACKGROUND,
        state=ended.state,
        reason=ended.reason,
        has_more_data=not finished or unreceived,
        exit_code=ended.code,
        signal=ended.signal,
        location=location,
        command=text("command"),
        argv=tuple(map(os.fsdecode, quoting.split(spec.get("words", b"")))),
        cwd=text("cwd"),
        pid=records.integer(run.get("pid")),
        created_at=records.number(spec.get("created")),
        began_at=ours(run, "began"),
        ended_at=ours(end, "ended"),
        elapsed=records.moment(end, "ended", "boot").took(records.moment(run, "began", "boot")),
    )
    return Found(path, spec, job)


def _unfinished(letter: bytes, run: dict[str, bytes]) -> tuple[State, str]:
    if letter == b"E":
        host = os.fsdecode(run.get("host", b""))
        return State.DISCONNECTED, f"runs on {host}, which shares the state directory"
    if letter in (b"T", b"t"):
        return State.SUSPENDED, ""
    return State.RUNNING if "pid" in run or letter == b"R" else State.NOT_STARTED, ""


def adopt(state_dir: str, to: str, found: list[Found]) -> list[str]:
    """Make records here of the jobs on a host that this computer does not know.

    Their output comes home by itself, from the first byte on; that of finished ones is here
    in the end.

    :return: the ids they have here.
    :raises Unreachable: the connection broke meanwhile; they are known here all the same.
    """
    store = Store(state_dir)
    store.refresh()
    if session := Links(state_dir).session(to):
        place = Place(session.target, session.name)
    else:
        place = Place(parse_target(to)._replace(config=paths.ssh_config()))
    known = {job.instance_id for job in known_here(state_dir, found)}
    new, over = [], []
    for entry in found:
        if entry.job.instance_id not in known:
            folder = Jobs(state_dir).allocate()
            draft.adopt(folder, entry.spec, place, entry.path)
            new.append(folder.id)
            if entry.job.state.finished:
                over.append(folder.id)
    if new:
        client.wake(state_dir, *new)
    answer = client.call(state_dir, {"op": "fetch", "jobs": over})
    for _, error in answer["errors"].values():
        raise Unreachable(error)
    return new


def known_here(state_dir: str, found: list[Found]) -> list[Job]:
    """Return the records that this computer has of jobs on a host."""
    there = {entry.job.instance_id for entry in found}
    store = Store(state_dir)
    store.refresh()
    jobs = parts(store, store.select("type = ?", [TYPE_REMOTE]))
    return [job for job in jobs if job.instance_id in there]


def stop_jobs(state_dir: str, name: str) -> list[JobctlError]:
    """Stop the unfinished jobs of a session; return an error for each that is still there."""
    name = Links(state_dir).known(name).name
    store = Store(state_dir)
    store.refresh()
    return stop(store.jobs, unfinished(store, name), _GRACE, "session removed")
