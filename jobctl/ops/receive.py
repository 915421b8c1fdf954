"""Receives output: what was not received yet, to the byte, once, whoever else receives.

Bytes are handed over in pieces, and the mark is moved with each. Only for as long as that
takes the folder is locked, so that a reader who takes his time holds up nobody else. What he
has not taken when he leaves is given back.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from types import FrameType

from jobctl import process, records
from jobctl.errors import CannotWrite, JobctlError, ReaderLeft
from jobctl.folder import STREAMS, Folder
from jobctl.jobs import Jobs
from jobctl.model import Job, Marks, State, order, printable
from jobctl.ops.delivery import Origin, Part, Sink, uninterrupted
from jobctl.ops.lines import Stretch, TaggedLines
from jobctl.ops.wait import Ends
from jobctl.whole import lack

_LIVELY = 0.01
_QUIET = 0.04
"""Seconds between looks for new output: right after some came, and otherwise."""
_AGAIN = 0.5
"""Seconds until it is tried again to note what is received, where there was no room."""
_REST = 4
"""How many times as long as a look took that brought nothing it is, at least, to the next."""
_ALL = 1.0
"""Seconds between looks at jobs that have not grown: what a reader gave back is theirs, too."""
_AT_ONCE = 1 << 20
"""Bytes to hand over before others get their turn."""
_LAST_CHANCE = 1.0
"""Seconds that a reader gets to take what is in the pipe when we are interrupted."""
_STANDARD = {"stdout": (1, "standard output"), "stderr": (2, "standard error")}


@dataclass(frozen=True)
class Manner:
    """How to receive."""

    keep: bool = False
    again: bool = False
    streams: tuple[str, ...] = STREAMS
    tag: bool = False
    output_dir: str | None = None
    umask: int = 0o077
    """What the files in output_dir are not to allow."""
    sure: bool = True
    """Whether a job that is final gets no more output: see records.tells_writers()."""

    def wants(self, job: Job) -> bool:
        """Whether a job, as it is now, may have something: of thousands most are received."""
        told = job.told or job.state in (State.COMPLETED, State.STOPPED)
        over = self.sure and job.final and told and not job.has_more_data
        return not over or self.again or self.output_dir is not None


@dataclass
class Listener:
    """What is told on standard error of what happens besides output."""

    failed: Callable[[Job], str]
    """Makes the line that is told once the last byte of a Failed job was delivered, or nothing."""
    emptied: Callable[[str, str], str]
    """Makes the line for a job, by its id, that has emptied a stream of its own."""
    waiting: Callable[[str], None] | None = None
    """Is told once why nothing can be noted here, and that there is a wait for room therefore."""
    changed: Callable[[Job], str] | None = None
    """Makes the line for a job in another state than before, or seen for the first time."""


class Unmarkable(JobctlError):
    """What was received of a job cannot be written down, so that it gets no output delivered."""

    def __init__(self, job_id: str, error: OSError) -> None:
        """Say so of a job."""
        self.error = error
        super().__init__(
            f"job {job_id}: cannot note what is received: {error.strerror}; use --keep or --again"
        )


class Unmarked(JobctlError):
    """What was delivered of a job cannot be written down, so that it comes once more."""

    def __init__(self, job_id: str, stream: str, count: int, error: Unmarkable) -> None:
        """Say so of some bytes of a stream."""
        super().__init__(
            f"job {job_id}: {count} bytes of its {stream} were delivered, and that cannot be noted:"
            f" {error.error.strerror}; the next receive delivers them again"
        )


class Unreadable(JobctlError):
    """A job has made an output file of its own such that it cannot be read."""

    def __init__(self, job_id: str, stream: str, error: OSError) -> None:
        """Say so of a job."""
        super().__init__(f"job {job_id}: cannot read its {stream}: {error.strerror}")


class Receiver:
    """Delivers the output of some jobs."""

    def __init__(self, jobs: Jobs, manner: Manner, listener: Listener) -> None:
        self._jobs = jobs
        self._manner = manner
        self._listener = listener
        self._boot = process.boot_id()
        self._sinks: dict[object, Sink] = {}
        self._begun: set[str] = set()
        self._private: dict[str, Marks] = {}
        """The marks of this process alone, where those in the folder are to stay."""
        self._states: dict[str, State] = {}
        self._tags: dict[str, bytes] = {}
        self._lines = TaggedLines(self._tag)
        self._name = ""
        """That of this process, once it holds something."""
        self._holding: set[str] = set()
        """Jobs of which it may hold the rest of a line."""
        self._stamps: dict[str, list[tuple[int, int]]] = {}
        self._emptied: list[tuple[str, str]] = []
        """Jobs, and streams that they have emptied, that is yet to be told."""
        self._all_seen_at = 0.0
        self._lacking = set[str]()
        """Jobs of which nothing can be noted before there is room again."""
        self._told_lack = False
        self.errors: dict[str, JobctlError] = {}
        """Why nothing more of a job was delivered, by its id."""

    def now(self, jobs: list[Job]) -> None:
        """Deliver what there is, job by job.

        :param jobs: as they are now.
        """
        with self._accounting():
            for job in jobs:
                self._collect(job)

    def together(self, groups: Iterable[tuple[bytes, list[str]]]) -> None:
        """Deliver the output of the first of each group of jobs for all of it, below a header."""
        with self._accounting():
            for header, (first, *others) in groups:
                folder = self._jobs.folder(first)
                job = folder.read(self._boot)
                if job is None:
                    continue
                self._write_words(job, header)
                self._collect(job)
                if self._unfinished_line(folder):
                    self._write_words(job, b"\n")
                for sink in self._sinks.values():
                    sink.drain()
                for job_id in (first, *others):
                    self._skip(self._jobs.folder(job_id))

    def _write_words(self, job: Job, words: bytes) -> None:
        """Write what comes from no job."""
        with self._sink(job, "stdout") as sink:
            sink.wait()
            while sink.write(Part(before=words)) is None:
                sink.wait()

    def _unfinished_line(self, folder: Folder) -> bool:
        size = folder.size("stdout")
        if "stdout" not in self._manner.streams or not size:
            return False
        with folder.output("stdout") as source:
            return os.pread(source.fileno(), 1, size - 1) != b"\n"

    def _skip(self, folder: Folder) -> None:
        """Count what there is of a job as received."""
        with suppress(FileNotFoundError), uninterrupted(), self._moving(folder) as move:
            marks = self._marks(folder)
            for stream in self._manner.streams:
                while span := marks.next(stream, folder.size(stream)):
                    marks = marks.moved(stream, span[0], span[1] - span[0])
            move(marks._replace(told=True))

    def follow(self, ends: Ends, deadline: float | None) -> list[Job]:
        """Deliver output as it comes until all jobs are finished; return those that are.

        :param ends: of these jobs.
        :param deadline: when to give up, by time.monotonic().
        :raises Refused: a session was disconnected on purpose, and ends does not go on then.
        """
        with self._accounting():
            return list(self._follow(ends, deadline))

    def _follow(self, ends: Ends, deadline: float | None) -> Iterator[Job]:
        pause, look_at = 0.0, 0.0
        unnoted = list[Job]()
        while ends.unfinished or unnoted:
            now = time.monotonic()
            late = deadline is not None and now >= deadline
            if not ends.unfinished:
                time.sleep(_AGAIN)
            # A job removed meanwhile has nothing more to deliver.
            ended = [job for _, job in ends.wait(max(0.0, look_at - now)) if job is not None]
            began = time.monotonic()
            # Not with each piece of news: there may be many, and many jobs.
            if late or began >= look_at:
                moved = False
                for job_id in self._stirring(ends.lively):
                    moved = self._collect(self._current(job_id)) or moved
                now = time.monotonic()
                pause = _LIVELY if moved else min(_QUIET, pause * 1.5 + 0.001)
                look_at = now + (pause if moved else max(pause, _REST * (now - began)))
                if deadline is not None:
                    look_at = min(look_at, deadline)
            for job in ended:
                self._note(job)
            again, unnoted = unnoted, []
            for job in again + ended:
                self._lacking.discard(job.id)
                self._collect(job)
                if job.id in self._lacking:
                    unnoted.append(job)
                    continue
                self._stamps.pop(job.id, None)
                yield job
            for sink in self._sinks.values():
                sink.check()
            if late:
                return

    def _stirring(self, ids: set[str]) -> list[str]:
        """Return the ids of those of some jobs at which it is time to look, in order."""
        now = time.monotonic()
        if self._listener.changed or now > self._all_seen_at + _ALL:
            self._all_seen_at = now
            return sorted(ids, key=order)
        return [job_id for job_id in sorted(ids, key=order) if self._has_grown(job_id)]

    def _has_grown(self, job_id: str) -> bool:
        folder = self._jobs.folder(job_id)
        stamps = [folder.stamp(stream) for stream in self._manner.streams]
        before, self._stamps[job_id] = self._stamps.get(job_id), stamps
        return stamps != before

    def _current(self, job_id: str) -> Job:
        """Return a job that may be unfinished, with no more read than is needed."""
        if self._listener.changed is None:
            return Job(job_id)
        job = self._jobs.folder(job_id).read(self._boot) or Job(job_id)
        if not job.state.finished:
            self._note(job)
        return job

    def _note(self, job: Job) -> None:
        if self._listener.changed and self._states.get(job.id) is not job.state:
            self._states[job.id] = job.state
            sink = self._standard("stderr")
            sink.wait()
            while not self._say(sink, self._listener.changed(job)):
                sink.wait()

    def _say(self, sink: Sink, line: str) -> bool:
        """Tell something on standard error; return False if there is no room for it now."""
        return not line or self._lines.say(sink, f"{line}\n".encode("utf-8", "replace"))

    # --- one job ---

    def _collect(self, job: Job) -> bool:
        """Deliver what there is of one job; return whether that was anything."""
        if job.id in self.errors:
            return False
        try:
            return self._deliver(job)
        except (Unmarkable, Unmarked) as error:
            if self._waits_for_room(job, error):
                return False
            if self._jobs.folder(job.id).exists():
                self.errors[job.id] = error
            return False

    def _waits_for_room(self, job: Job, error: JobctlError) -> bool:
        """Whether an error passes when there is room, for which somebody waits; tell so once."""
        why = isinstance(error, Unmarkable) and lack(self._jobs.state_dir, error.error)
        if not (why and self._listener.waiting):
            return False
        self._lacking.add(job.id)
        if not self._told_lack:
            self._told_lack = True
            self._listener.waiting(why)
        return True

    def _deliver(self, job: Job) -> bool:
        folder = self._jobs.folder(job.id)
        marks, moved = self._marks(folder), False
        for stream in self._manner.streams:
            new = stream in marks.emptied or marks.next(stream, folder.size(stream))
            if self._manner.output_dir or new:
                try:
                    with self._sink(job, stream) as sink, folder.output(stream) as source:
                        while self._hand_over(job, folder, stream, source.fileno(), sink):
                            moved = True
                        self._lines.leave(sink)
                        self._release()
                except FileNotFoundError:
                    pass  # a job removed meanwhile has nothing more to deliver
                except PermissionError as error:
                    self.errors[job.id] = Unreadable(job.id, stream, error)
        self._tell_emptied()
        if job.state is State.FAILED and not self._marks(folder).told:
            self._tell(job, folder)
        return moved

    def _hand_over(self, job: Job, folder: Folder, stream: str, source: int, sink: Sink) -> bool:
        """Deliver as much of a stream as the sink takes now; return whether there was any."""
        sink.wait()
        with uninterrupted(), self._moving(folder) as move:
            before = self._marks(folder)
            marks = noted = before._replace(emptied=())
            if marks != before or self._next(marks, stream, folder.size_of(stream, source)):
                move(marks)  # what cannot be noted afterwards is not delivered
            self._emptied += [(job.id, name) for name in before.emptied]
            left = _AT_ONCE
            span: tuple[int, int] | None = None
            taken: int | None = None
            try:
                while left > 0:
                    size = folder.size_of(stream, source)
                    if not (span := self._next(marks, stream, size)):
                        break
                    place = records.Place(source, span[0])
                    if marks.trace(stream, span[0]) not in (None, place.trace):
                        taken = 0  # emptied since we began
                        break
                    if self._manner.tag:
                        over = job.state.finished or span[1] < size
                        here = Stretch(job.id, stream, *span, over)
                        taken = self._lines.write(sink, source, here)
                    else:
                        taken = self._write(job, stream, source, sink, span)
                    if taken is None:
                        break
                    reached = span[0] + taken
                    marks = marks.moved(stream, span[0], taken)
                    marks = marks.with_trace(stream, reached, place.trace_after(taken))
                    if end := self._lines.begun(job.id, stream):
                        marks = self._claimed(marks, job, stream, reached, end)
                        marks = marks.with_trace(stream, end, records.Place(source, end).trace)
                    try:
                        move(marks)
                    except Unmarkable as error:
                        raise Unmarked(job.id, stream, taken, error) from None
                    noted = marks
                    if not taken:
                        break
                    left -= taken
            finally:
                passed = folder.emptied_between(stream, before, noted)
                self._emptied += [(job.id, stream)] * passed
            return marks != before or (bool(span) and taken is not None)

    def _next(self, marks: Marks, stream: str, size: int) -> tuple[int, int] | None:
        """Return what of a stream is for us to deliver next: the rest of our line before all."""
        others = {holder for _, _, holder in marks.held} - {self._name}
        others = {holder for holder in others if process.may_live(holder)}
        mine = marks.held_by(self._name, stream)
        return mine if mine and mine[1] <= size else marks.next(stream, size, others)

    def _claimed(self, marks: Marks, job: Job, stream: str, start: int, end: int) -> Marks:
        """Return marks after we have begun a line: nobody else is to deliver the rest of it."""
        self._name = self._name or process.own_name()
        self._holding.add(job.id)
        return marks.claimed(stream, start, end, self._name)

    def _release(self) -> None:
        """Leave to others what we hold and do not deliver."""
        while self._holding:
            folder = self._jobs.folder(self._holding.pop())
            with suppress(Unmarkable), uninterrupted(), self._moving(folder) as move:
                marks = self._marks(folder)
                if (free := marks.released(self._name)) != marks:
                    move(free)

    def _write(self, job: Job, stream: str, source: int, sink: Sink, span: tuple[int, int]) -> int:
        """Write some of a span of a stream; return how many bytes, 0 if there is no room."""
        start, end = span
        piece = os.pread(source, min(sink.room(), end - start), start)
        # Receivers that share the output are to get whole lines each.
        piece = piece[: piece.rfind(b"\n") + 1] or piece
        origin = Origin(job.id, stream, start, start + len(piece))
        taken = sink.write(Part(piece, origin))
        return taken.delivered if taken else 0

    def _tag(self, job_id: str) -> bytes:
        """Return what each line of a job begins with: `12.3 web1: `."""
        if job_id not in self._tags:
            job = self._jobs.folder(job_id).read(self._boot) or Job(job_id)
            self._tags[job_id] = os.fsencode(f"{job_id} {job.location}: ")
        return self._tags[job_id]

    def _tell_emptied(self) -> None:
        """Tell which streams were emptied by their jobs, once for each time."""
        while self._emptied:
            for sink in self._sinks.values():
                sink.drain()
            with suppress(CannotWrite):  # nothing can be done if nobody can be told
                sink = self._standard("stderr")
                sink.wait()
                while not self._say(sink, self._listener.emptied(*self._emptied[0])):
                    sink.wait()
            del self._emptied[0]

    def _tell(self, job: Job, folder: Folder) -> None:
        """Tell why a job failed if its last byte was delivered and nobody told it before."""
        for sink in self._sinks.values():
            sink.drain()  # else what is told would count as output not taken
        sink, said = self._standard("stderr"), False
        while not said:
            with suppress(CannotWrite):  # nothing can be done if nobody can be told
                sink.wait()
            with uninterrupted(), self._moving(folder) as move:
                marks = self._marks(folder)
                rest = (marks.next(stream, folder.size(stream)) for stream in STREAMS)
                if marks.told or any(rest):
                    return
                said = True
                with suppress(CannotWrite):
                    said = self._say(sink, self._listener.failed(job))
                if said:
                    move(marks._replace(told=True))

    # --- marks ---

    def _marks(self, folder: Folder) -> Marks:
        if self._manner.keep or self._manner.again:
            first = Marks() if self._manner.again else folder.marks()._replace(held=())
            return folder.checked(self._private.setdefault(folder.id, first))
        return folder.marks()

    @contextmanager
    def _moving(self, folder: Folder) -> Iterator[Callable[[Marks], None]]:
        """Give what moves the marks, while nobody else can."""
        if self._manner.keep or self._manner.again:
            yield lambda marks: self._private.update({folder.id: folder.traced(marks)})
        else:
            with ExitStack() as stack:
                try:
                    move = stack.enter_context(folder.receiving())
                except OSError as error:
                    raise Unmarkable(folder.id, error) from None

                def moved(marks: Marks) -> None:
                    try:
                        move(marks)
                    except OSError as error:
                        raise Unmarkable(folder.id, error) from None

                yield moved

    @contextmanager
    def _accounting(self) -> Iterator[None]:
        """See to it that what readers do not take is given back, however this ends."""
        try:
            with _interruptible():
                yield
                for sink in self._sinks.values():
                    sink.drain()
        except KeyboardInterrupt:
            for sink in self._sinks.values():
                try:
                    sink.drain(_LAST_CHANCE)
                except ReaderLeft:
                    self._give_back(sink)
            raise
        except CannotWrite:
            for sink in self._sinks.values():
                self._give_back(sink)
            raise
        finally:
            self._release()

    def _give_back(self, sink: Sink) -> None:
        if self._manner.keep or self._manner.again:
            return
        lost = sink.lost()
        for job_id in {origin.job for origin in lost}:
            folder = self._jobs.folder(job_id)
            if folder.exists():
                # At once, or another receiver would take a piece of a line for a whole one.
                with folder.receiving() as move:
                    marks = folder.marks().released(self._name)
                    for origin in lost:
                        if origin.job == job_id:
                            marks = marks.returned(origin.stream, origin.start, origin.end)
                    move(marks)

    # --- sinks ---

    @contextmanager
    def _sink(self, job: Job, stream: str) -> Iterator[Sink]:
        """Give what takes a stream of a job; a file is begun anew once for `again`."""
        directory = self._manner.output_dir
        if directory is None:
            yield self._standard(stream)
            return
        path = os.path.join(directory, f"{job.id}.{stream}")
        anew = self._manner.again and path not in self._begun
        before = os.umask(self._manner.umask)
        try:
            fd = os.open(
                path, os.O_WRONLY | os.O_CREAT | (os.O_TRUNC if anew else os.O_APPEND), 0o666
            )
        except OSError as error:
            nowhere = os.path.islink(path) and not os.path.exists(path)
            why = "it is a link that leads nowhere" if nowhere else error.strerror
            raise CannotWrite(f"cannot write {printable(path)}: {why}") from None
        finally:
            os.umask(before)
        self._begun.add(path)
        try:
            yield Sink(fd, path)
        finally:
            os.close(fd)

    def _standard(self, stream: str) -> Sink:
        fd, name = _STANDARD[stream]
        about = os.fstat(fd)
        # Both may be the same pipe, and then what is on the way is so in one order.
        key = (about.st_dev, about.st_ino)
        if key not in self._sinks:
            self._sinks[key] = Sink(fd, name)
        return self._sinks[key]


class Terminated(KeyboardInterrupt):
    """A signal asked us to end; what is to be kept in order is."""

    def __init__(self, number: int) -> None:
        self.number = number


@contextmanager
def _interruptible() -> Iterator[None]:
    """Make TERM and HUP raise, as INT does, that the accounts may be settled."""

    def end(number: int, frame: FrameType | None) -> None:
        raise Terminated(number)

    before = {
        number: signal.signal(number, end)
        for number in (signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
