"""Receives output: what was not received yet, to the byte, once, whoever else receives."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from jobctl import process
from jobctl.errors import CannotWrite
from jobctl.folder import PIECE, STREAMS, Folder, Jobs, move_marks
from jobctl.model import Job, Marks, State, printable
from jobctl.ops.delivery import Segment, Sink
from jobctl.ops.wait import Ends

_LIVELY = 0.01
_QUIET = 0.04
"""Seconds between looks for new output: right after some came, and otherwise."""

_LINE = re.compile(rb"[^\n]*\n|[^\n]+")
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


@dataclass
class Listener:
    """Who is told what happens besides output."""

    failed: Callable[[Job], None]
    """The last byte of a Failed job was delivered."""
    changed: Callable[[Job], None] | None = None
    """A job is in another state than before, or seen for the first time."""


class Receiver:
    """Delivers the output of some jobs."""

    def __init__(self, jobs: Jobs, manner: Manner, listener: Listener) -> None:
        self._jobs = jobs
        self._manner = manner
        self._listener = listener
        self._boot = process.boot_id()
        self._sinks: dict[str, Sink] = {}
        self._from: dict[int, Marks] = {}
        """Where the next bytes come from, where that is not what the folder says."""
        self._begun: set[str] = set()
        self._states: dict[int, State] = {}

    def now(self, numbers: list[int]) -> dict[int, Job]:
        """Deliver what there is, job by job, and return the jobs."""
        jobs = {}
        for number in numbers:
            job = self._jobs.folder(number).read(self._boot)
            if job is not None:
                jobs[number] = job
                self._collect(job)
        return jobs

    def follow(self, numbers: list[int], deadline: float | None) -> Iterator[Job]:
        """Deliver output as it comes, and yield each job after its last byte.

        Ends when all are finished or the deadline (by time.monotonic()) has passed.
        """
        ends = Ends(self._jobs, numbers)
        pause = 0.0
        while ends.open:
            ended = [job for _, job in ends.wait(pause) if job is not None]
            moved = False
            for number in sorted(ends.open):
                moved = self._collect(self._current(number)) or moved
            for job in ended:
                self._note(job)
                self._collect(job)
                yield job
            pause = _LIVELY if moved else min(_QUIET, pause * 1.5 + 0.001)
            if deadline is not None:
                if time.monotonic() >= deadline:
                    return
                pause = min(pause, deadline - time.monotonic())

    def _current(self, number: int) -> Job:
        """Return a job that may be unfinished, with no more read than is needed."""
        if self._listener.changed is None:
            return Job(str(number))
        job = self._jobs.folder(number).read(self._boot) or Job(str(number))
        if not job.state.finished:
            self._note(job)
        return job

    def _note(self, job: Job) -> None:
        if self._listener.changed and self._states.get(job.number) is not job.state:
            self._states[job.number] = job.state
            self._listener.changed(job)

    def _collect(self, job: Job) -> bool:
        """Deliver what there is of one job; return whether that was anything."""
        folder = self._jobs.folder(job.number)
        if not self._pending(job, folder):
            return False
        with self._marks(folder) as (marks, move):
            start = marks
            for stream in self._manner.streams:
                for offset in self._deliver(job, folder, stream, getattr(marks, stream)):
                    marks = marks.moved(stream, offset)
                    move(marks)
            told = all(folder.size(s) <= getattr(marks, s) for s in self._manner.streams)
            if job.state is State.FAILED and told and not marks.told:
                self._listener.failed(job)
                marks = marks._replace(told=True)
                move(marks)
            return marks != start

    def _pending(self, job: Job, folder: Folder) -> bool:
        """Return whether there may be something to deliver, without a lock."""
        marks = self._from.get(job.number)
        if marks is None:
            marks = Marks() if self._manner.again else folder.marks()
        unbegun = self._manner.output_dir and job.number not in self._from
        return (
            bool(unbegun)
            or (job.state is State.FAILED and not marks.told)
            or any(folder.size(stream) > getattr(marks, stream) for stream in self._manner.streams)
        )

    @contextmanager
    def _marks(self, folder: Folder) -> Iterator[tuple[Marks, Callable[[Marks], None]]]:
        """Give the marks to deliver from, and what moves them."""
        if not self._manner.keep and not self._manner.again:
            with folder.receiving() as fd:
                yield folder.marks(), lambda marks: move_marks(fd, marks)
            return
        number = folder.number
        if number not in self._from:
            self._from[number] = Marks() if self._manner.again else folder.marks()

        def move(marks: Marks) -> None:
            self._from[number] = marks

        yield self._from[number], move

    def _deliver(self, job: Job, folder: Folder, stream: str, offset: int) -> Iterator[int]:
        """Deliver a stream from offset to its present end; yield where the mark belongs."""
        end = folder.size(stream)
        if offset >= end and not self._manner.output_dir:
            return
        with self._sink(job, stream) as sink, open(folder.file(stream), "rb") as file:
            while offset < end:
                piece = os.pread(file.fileno(), min(PIECE, end - offset), offset)
                segments = self._segments(job, piece, offset + len(piece) >= end)
                if not segments:
                    return
                for arrived in sink.send(segments):
                    yield offset + arrived
                offset += sum(segment.source for segment in segments)

    def _segments(self, job: Job, piece: bytes, last: bool) -> list[Segment]:
        """Return a piece as it is, or as lines with their tags; a part of a line waits."""
        if not self._manner.tag:
            return [Segment(piece, len(piece))] if piece else []
        lines = _LINE.findall(piece)
        complete = (last and job.state.finished) or (len(lines) == 1 and len(piece) == PIECE)
        if lines and not lines[-1].endswith(b"\n") and not complete:
            lines.pop()
        tag = f"{job.id} {job.location}: ".encode()
        return [Segment(tag + line.removesuffix(b"\n") + b"\n", len(line)) for line in lines]

    @contextmanager
    def _sink(self, job: Job, stream: str) -> Iterator[Sink]:
        """Give what takes a stream of a job; a file is begun anew once for `again`."""
        directory = self._manner.output_dir
        if directory is None:
            if stream not in self._sinks:
                self._sinks[stream] = Sink(*_STANDARD[stream])
            yield self._sinks[stream]
            return
        path = os.path.join(directory, f"{job.id}.{stream}")
        anew = self._manner.again and path not in self._begun
        flags = os.O_WRONLY | os.O_CREAT | (os.O_TRUNC if anew else os.O_APPEND)
        try:
            fd = os.open(path, flags, 0o666 & ~self._manner.umask)
        except OSError as error:
            raise CannotWrite(f"cannot write {printable(path)}: {error.strerror}") from None
        self._begun.add(path)
        try:
            yield Sink(fd, path)
        finally:
            os.close(fd)
