"""What a job is: what was asked for, what became of it, and the states in between."""

from __future__ import annotations

import enum
import fnmatch
import os
import re
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, NamedTuple

from jobctl import quoting
from jobctl.errors import BadUsage
from jobctl.quoting import printable as printable

if TYPE_CHECKING:
    from jobctl.target import Target

TYPE_BACKGROUND = "BackgroundJob"
TYPE_REMOTE = "RemoteJob"
TYPE_TASK = "TaskJob"
LOCALHOST = "localhost"

_ID_LIKE = re.compile(r"\d+([.-]\d+)?", re.ASCII)
_SET = re.compile(r"\[[!^]?\]?[^]]*\]")


class State(enum.Enum):
    """Where a job is in its life."""

    NOT_STARTED = "NotStarted"
    RUNNING = "Running"
    COMPLETED = "Completed"
    FAILED = "Failed"
    STOPPED = "Stopped"
    STOPPING = "Stopping"
    SUSPENDED = "Suspended"
    DISCONNECTED = "Disconnected"
    BLOCKED = "Blocked"

    @property
    def finished(self) -> bool:
        """Whether this is the last state of a job."""
        return self in (State.COMPLETED, State.FAILED, State.STOPPED)


class Place(NamedTuple):
    """A host to run a job on."""

    target: Target
    """The way to it, also should the session be removed."""
    session: str = ""
    """The session to reach it through, if there is one."""

    @property
    def host(self) -> str:
        """As the caller named it."""
        return self.target.label


class JobSpec(NamedTuple):
    """What to run, as the caller asked for it. Durations are in seconds.

    One of argv (a program and its arguments), text (for `sh -c`) and script (an open file)
    says what to run; argv holds the arguments of the latter two.
    """

    argv: tuple[str, ...]
    cwd: str
    env: dict[str, str]
    umask: int
    text: str = ""
    script: int | None = None
    script_name: str = ""
    name: str = ""
    init: str = ""
    stdin: int | None = None
    """An open file or pipe that the job gets a copy of, to its end."""
    merge: bool = False
    timeout: float | None = None
    timeout_text: str = ""
    retries: int = 0
    after: tuple[str, ...] = ()
    after_ok: tuple[str, ...] = ()
    caller: int | None = None
    """The process whose end stops the job."""
    on_finish: str = ""
    places: tuple[Place, ...] = ()
    """The hosts to run on; none means here."""
    location: str = ""
    """How people write down all of these, if not as a list."""
    throttle: int = 32
    """How many of its children run at once."""
    per_host: int = 0
    """How many items run at once on each host; 0 means one per CPU there."""
    items: Iterable[bytes] | None = None
    """What to run it for, one child each; taken once."""
    results_stay: bool = False
    """Whether the output stays on the host until somebody asks for it."""
    variables: dict[str, str] = {}  # noqa: RUF012  # nobody changes it
    sendable: dict[str, str] = {}  # noqa: RUF012
    """What was set for this job alone; a host adds it to its own environment."""
    caller_cwd: str = "/"

    @property
    def words(self) -> tuple[str, ...]:
        """The command as words, as JSON shows it."""
        if self.text:
            return ("sh", "-c", self.text, *(("sh", *self.argv) if self.argv else ()))
        if self.script is not None:
            return (self.script_name, *self.argv)
        return self.argv

    @property
    def command(self) -> str:
        """The command as people read it."""
        if self.text and not self.argv:
            return self.text
        return quoting.readable(self.words)


class Job(NamedTuple):
    """What is known of a job. Times are seconds since 1970, UTC."""

    id: str
    name: str = ""
    instance_id: str = ""
    type: str = TYPE_BACKGROUND
    state: State = State.NOT_STARTED
    reason: str = ""
    exit_code: int | None = None
    signal: int | None = None
    has_more_data: bool = True
    location: str = LOCALHOST
    session: str | None = None
    command: str = ""
    argv: tuple[str, ...] = ()
    cwd: str = ""
    pid: int | None = None
    item: str | None = None
    created_at: float | None = None
    began_at: float | None = None
    ended_at: float | None = None
    percent: float | None = None
    message: str | None = None
    parent: str | None = None
    child_count: int = 0
    """How many children it has."""
    began_uptime: float | None = None
    """Seconds from our boot to began; None where that is not known, or was on another boot."""
    elapsed: float | None = None
    """Seconds from began to ended, by the clock since boot, which nobody sets."""
    ended_boot: str = ""
    ended_uptime: float | None = None
    """Seconds from that boot to ended: what orders the ends, whatever the clock did."""
    still_written: bool = False
    """Finished, but something it left running can write more output."""
    tally: tuple[tuple[str, int], ...] = ()
    """How many children are in which state, in the order of State."""
    told: bool = False
    """Whether a receiver has told why it Failed."""

    @property
    def children(self) -> tuple[str, ...]:
        """The ids of its children."""
        return tuple(f"{self.id}.{number}" for number in range(1, self.child_count + 1))

    @property
    def key(self) -> tuple[int, ...]:
        """What orders jobs as their ids do."""
        return order(self.id)

    @property
    def final(self) -> bool:
        """Whether nothing of this will change any more but what was received."""
        return self.state.finished and not self.still_written

    def running_for(self, now: float, uptime: float | None) -> float | None:
        """Return the seconds since it began, to its end or to now (since 1970, since boot)."""
        if self.elapsed is not None or self.began_at is None:
            return self.elapsed
        if self.began_uptime is not None and uptime is not None:
            return max(0.0, uptime - self.began_uptime)
        return max(0.0, now - self.began_at)

    def took(self) -> float | None:
        """Return the seconds from began to ended, for what has no clock since boot."""
        if self.began_at is None or self.ended_at is None:
            return None
        return max(0.0, self.ended_at - self.began_at)

    @property
    def pass_through_status(self) -> int:
        """The exit status of a command that passes this finished job's own one through."""
        if self.exit_code is not None:
            return self.exit_code
        return 125 if self.signal is None else 128 + self.signal


def order(job_id: str) -> tuple[int, ...]:
    """Return what orders ids: 9, 12, 12.1, 12.10."""
    return tuple(map(int, job_id.split(".")))


def parent_of(job: Job, children: list[Job]) -> Job:
    """Return a job that has children, from what is known of these."""
    failed = next((child for child in children if child.state is State.FAILED), None)
    began = [child.began_at for child in children if child.began_at is not None]
    state = _state_of([child.state for child in children], bool(began))
    last = max(children, key=lambda child: child.ended_at or 0.0, default=job)
    reason = ""
    if state is State.FAILED and failed:
        reason = failed.reason
    elif state in (State.STOPPED, State.NOT_STARTED, State.DISCONNECTED):
        reason = next((child.reason for child in children if child.state is state), "")
    job = job._replace(
        state=state,
        reason=reason,
        has_more_data=any(child.has_more_data for child in children),
        began_at=min(began, default=None),
        tally=tuple(
            (state.value, count)
            for state in State
            if (count := sum(child.state is state for child in children))
        ),
        still_written=any(child.still_written for child in children),
    )
    if not state.finished:
        return job
    job = job._replace(
        ended_at=last.ended_at,
        ended_boot=last.ended_boot,
        ended_uptime=last.ended_uptime,
    )
    return job._replace(elapsed=job.took())


def _state_of(states: list[State], begun: bool) -> State:
    """Return the state of a job from those of its children, and whether any of them began."""
    unfinished = {state for state in states if not state.finished}
    if unfinished & {State.RUNNING, State.STOPPING}:
        return State.RUNNING
    if State.NOT_STARTED in unfinished:
        ended = len(states) > sum(state is State.NOT_STARTED for state in states)
        return State.RUNNING if begun or ended else State.NOT_STARTED
    for state in (State.BLOCKED, State.SUSPENDED, State.DISCONNECTED):
        if state in unfinished:
            return state
    for state in (State.FAILED, State.STOPPED):
        if state in states:
            return state
    return State.COMPLETED


class Marks(NamedTuple):
    """How much of a job's output was received, in bytes, and whether its reason was told."""

    stdout: int = 0
    stderr: int = 0
    told: bool = False
    returned_ranges: tuple[tuple[str, int, int], ...] = ()
    """Ranges of a stream before its mark that did not arrive after all."""
    traces: tuple[tuple[str, int, int], ...] = ()
    """Of streams, an offset and the checksum of the bytes before it: see records.traced()."""
    emptied: tuple[str, ...] = ()
    """Streams whose files were found to hold no more what was received of them."""
    held: tuple[tuple[str, int, str], ...] = ()
    """Of ranges, by stream and end, the process that is delivering them: see claimed()."""

    def next(self, stream: str, size: int, others: Collection[str] = ()) -> tuple[int, int] | None:
        """Return start and end of what is to be received next of a stream of that size.

        :param others: processes that are to keep the ranges which they hold.
        """
        theirs = {(name, end) for name, end, holder in self.held if holder in others}
        for name, start, end in self.returned_ranges:
            if name == stream and (name, end) not in theirs and start < (stop := min(end, size)):
                return start, stop
        mark = self.mark(stream)
        return (mark, size) if mark < size else None

    def mark(self, stream: str) -> int:
        """Return how many bytes of a stream were received, from its beginning."""
        return self.stdout if stream == "stdout" else self.stderr

    def moved(self, stream: str, start: int, count: int) -> Marks:
        """Return the marks after count bytes from start, where next() began, were received."""
        for entry in self.returned_ranges:
            if entry[:2] == (stream, start):
                return self._instead(entry, (stream, start + count, entry[2]))
        return self._at(stream, start + count)

    def _instead(self, entry: tuple[str, int, int], *rest: tuple[str, int, int]) -> Marks:
        """Return the marks with what is left of a range in the place of it."""
        ranges = [other for other in self.returned_ranges if other is not entry]
        ranges += [part for part in rest if part[1] < part[2]]
        ends = {(stream, end) for stream, _, end in ranges}
        held = tuple(claim for claim in self.held if claim[:2] in ends)
        return self._replace(returned_ranges=tuple(sorted(ranges)), held=held)

    def claimed(self, stream: str, start: int, end: int, holder: str) -> Marks:
        """Return the marks after a process has begun a line that it alone is to end.

        For all others the rest, from start, where next() begins, counts as received. It is a
        range that was given back, for whoever does not know of holders or finds this one dead.
        """
        claim = (stream, end, holder)
        if claim in self.held:
            return self
        held = self._replace(held=(*self.held, claim))
        for entry in self.returned_ranges:
            if entry[:2] == (stream, start):
                return held._instead(entry, (stream, start, end), (stream, end, entry[2]))
        ranges = tuple(sorted((*self.returned_ranges, (stream, start, end))))
        return held._replace(returned_ranges=ranges)._at(stream, end)

    def held_by(self, holder: str, stream: str) -> tuple[int, int] | None:
        """Return start and end of what a process holds of a stream."""
        mine = {claim[1] for claim in self.held if claim[0] == stream and claim[2] == holder}
        found = ((r[1], r[2]) for r in self.returned_ranges if r[0] == stream and r[2] in mine)
        return next(found, None)

    def rewound(self) -> Marks:
        """Return the marks moved back to the first of what came back, instead of a list of it."""
        first = {"stdout": self.stdout, "stderr": self.stderr}
        for stream, start, _ in self.returned_ranges:
            first[stream] = min(first[stream], start)
        marks = self._replace(stdout=first["stdout"], stderr=first["stderr"])
        return marks._replace(returned_ranges=(), held=())

    def released(self, holder: str) -> Marks:
        """Return the marks after a process has let go of what it holds."""
        held = tuple(claim for claim in self.held if claim[2] != holder)
        return self._replace(held=held)._joined("stdout")._joined("stderr")

    def returned(self, stream: str, start: int, end: int) -> Marks:
        """Return the marks after what was received from start to end has come back."""
        if start >= self.mark(stream):  # it was not received yet
            return self
        ranges = (*self.returned_ranges, (stream, start, end))
        return self._replace(returned_ranges=tuple(sorted(ranges)))._joined(stream)

    def _joined(self, stream: str) -> Marks:
        """Return the marks with ranges that touch made one, as they may be parts of one line."""
        taken = {claim[:2] for claim in self.held}
        free, others = list[tuple[str, int, int]](), list[tuple[str, int, int]]()
        for entry in self.returned_ranges:
            if entry[0] != stream or (stream, entry[2]) in taken:
                others.append(entry)
            elif free and free[-1][2] == entry[1]:
                free[-1] = (stream, free[-1][1], entry[2])
            else:
                free.append(entry)
        mark = self.mark(stream)
        if free and free[-1][2] == mark:
            mark = free.pop()[1]
        return self._replace(returned_ranges=tuple(sorted([*others, *free])))._at(stream, mark)

    def trace(self, stream: str, offset: int) -> int | None:
        """Return the checksum of what is before an offset, None if that is not known."""
        found = (known for name, at, known in self.traces if (name, at) == (stream, offset))
        return next(found, None)

    def with_trace(self, stream: str, offset: int, trace: int) -> Marks:
        """Return marks with the checksum of what is before an offset, where that is one of them."""
        if offset != self.mark(stream):
            return self
        others = tuple(entry for entry in self.traces if entry[0] != stream)
        return self._replace(traces=(*others, (stream, offset, trace)))

    def begun_anew(self, stream: str) -> Marks:
        """Return the marks after the job has emptied a stream: what it holds now is all new."""
        others = tuple(entry for entry in self.returned_ranges if entry[0] != stream)
        traces = tuple(entry for entry in self.traces if entry[0] != stream)
        emptied = (*self.emptied, stream)
        held = tuple(claim for claim in self.held if claim[0] != stream)
        anew = self._replace(returned_ranges=others, traces=traces, emptied=emptied, held=held)
        return anew._at(stream, 0)

    def _at(self, stream: str, offset: int) -> Marks:
        return self._replace(stdout=offset) if stream == "stdout" else self._replace(stderr=offset)


def check_name(name: str) -> str:
    """Return name if a job may be called so.

    :raises BadUsage: it is empty, could be taken for an id, a range, an option or a word of job
        control, or holds characters that do not print.
    """
    shown = printable(name)
    if not name.strip():
        raise BadUsage("a name must not be empty")
    if _ID_LIKE.fullmatch(name):
        raise BadUsage(f"name '{shown}' looks like a job id or a range; put a letter in it")
    if name.startswith("-"):
        raise BadUsage(f"name '{shown}' begins with '-' and would be taken for an option")
    if name.startswith("%"):
        raise BadUsage(
            f"name '{shown}' begins with '%' and would be taken for a word of job control"
        )
    if shown != name:
        raise BadUsage(f"name '{shown}' contains control or unprintable characters")
    if len(os.fsencode(name)) > 255:
        raise BadUsage(f"name '{shown[:20]}…' is longer than 255 bytes")
    return name


def glob(pattern: str) -> re.Pattern[str]:
    """Return what matches whole strings as the shell's *, ? and [...] do, case counting.

    As in most shells, ^ turns a set round as ! does. A backslash is no more than itself.
    """
    return re.compile(fnmatch.translate(_SET.sub(_as_fnmatch_has_it, pattern)))


def _as_fnmatch_has_it(found: re.Match[str]) -> str:
    text = found.group()
    return f"[!{text[2:]}" if text.startswith("[^") else text
