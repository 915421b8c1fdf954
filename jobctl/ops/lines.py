"""Lines with tags: where one ends, and which one goes on before anything else is written."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import NamedTuple

from jobctl import records
from jobctl.ops.delivery import PIECE, Origin, Part, Sink

_END = re.compile(rb"\r?\n|\r(?=[^\n])")
_ERASE = b"\x1b[K"
"""Has a terminal clear the rest of the row."""
_WRAP = {False: b"\x1b[?7l", True: b"\x1b[?7h"}
"""Has a terminal go on in the next row at the end of one, or not."""


class Stretch(NamedTuple):
    """What may be received of a stream of a job."""

    job: str
    stream: str
    start: int
    end: int
    over: bool
    """Whether nothing is to come after it."""


class _Line(NamedTuple):
    """Where a line begins and is over in its stream, and what of it is to be written now."""

    begin: int
    stop: int
    parts: tuple[Part, ...]

    def size(self, tag: bytes) -> int:
        """Return how many bytes it has with its tag; one more if it lacks its newline."""
        return len(tag) + self.stop - self.begin + 1


class _Begun(NamedTuple):
    """A line that is written in part."""

    sink: Sink
    job: str
    stream: str
    at: int
    """Where it goes on."""
    stop: int


class TaggedLines:
    """Writes lines of jobs, each whole and behind the tag of its job.

    A carriage return ends one, too: progress bars write nothing else for minutes, and what they
    write over is not to be the tag.
    """

    def __init__(self, tag: Callable[[str], bytes]) -> None:
        """Write nothing yet.

        :param tag: makes one from the id of a job.
        """
        self._tag = tag
        self._begun: _Begun | None = None
        self._returned: dict[str, tuple[str, str, int]] = {}
        """Where a carriage return came last, by sink: what follows it in its stream."""
        self._searched: dict[tuple[str, str, int], tuple[int, int]] = {}
        """Up to where a line that is not complete was looked through, by where it begins.

        And the trace of what was there: the job may have emptied the stream since.
        """

    def write(self, sink: Sink, source: int, here: Stretch) -> int | None:
        """Write the lines that a stretch begins with, as far as there is room.

        :param source: the stream, open for reading.
        :return: how many bytes of it were taken, 0 if there was no room, None if no line in it
            is complete.
        :raises CannotWrite: the disk is full, say, or the reader has gone.
        """
        begun = self._begun
        if begun and begun[:4] != (sink, *here[:3]):
            self._break_off(begun)
            return 0
        lines = [] if begun else self._short(sink, source, here)
        lines = lines or self._long(sink, source, here)
        if not lines:
            return None
        if not begun and not sink.fits(lines[0].size(self._tag(here.job))):
            return 0
        taken = sink.write(*(part for line in lines for part in line.parts))
        if taken is None:
            return 0
        reached = here.start + taken.delivered
        self._begun = None
        self._returned.pop(sink.name, None)
        rest = next((line for line in lines if line.stop > reached), None)
        if rest and (taken.begun or reached > rest.begin):
            self._begun = _Begun(sink, here.job, here.stream, reached, rest.stop)
        elif taken.delivered and taken.last == b"\r":
            self._returned[sink.name] = (here.job, here.stream, reached)
        return taken.delivered

    def leave(self, sink: Sink) -> None:
        """End the line that is begun in a sink: the rest of it is not to be had here.

        :raises CannotWrite: the disk is full, say, or the reader has gone.
        """
        while self._begun and self._begun.sink is sink:
            sink.wait()
            self._break_off(self._begun)

    def say(self, sink: Sink, words: bytes) -> bool:
        """Write words between lines; return False if there is no room for them now.

        Whoever takes his time to read them does not keep us.

        :raises CannotWrite: the disk is full, say, or the reader has gone.
        """
        if sink.terminal and sink.name in self._returned:
            words = b"\n" + words
        if sink.write(Part(before=words, awaited=False)) is None:
            return False
        self._returned.pop(sink.name, None)
        return True

    def begun(self, job: str, stream: str) -> int | None:
        """Return where the line ends that is begun of a stream, None if there is none."""
        begun = self._begun
        return begun.stop if begun and (begun.job, begun.stream) == (job, stream) else None

    def _break_off(self, begun: _Begun) -> None:
        if begun.sink.write(Part(before=b"\n")) is not None:
            self._begun = None

    def _short(self, sink: Sink, source: int, here: Stretch) -> list[_Line]:
        """Return the complete lines that can be written at once."""
        room, lines, size, at = sink.room(), list[_Line](), 0, here.start
        piece = os.pread(source, min(room, here.end - at), at)
        before = self._returned.get(sink.name)
        tag, returned = self._tag(here.job), before is not None
        # The second half of the end of a line, whose first half was all there was then.
        words = b"" if before == here[:3] and piece[:1] == b"\n" else tag
        for match in _END.finditer(piece):
            data = piece[at - here.start : match.end()]
            size += len(words) + len(data)
            if lines and size > room:
                break
            lines.append(self._line(here, at, words, data, sink.terminal, returned))
            at, words, returned = at + len(data), tag, data.endswith(b"\r")
        return lines

    def _line(
        self, here: Stretch, at: int, words: bytes, data: bytes, terminal: bool, returned: bool
    ) -> _Line:
        """Return a line that is to be written whole.

        :param terminal: it goes to one, where it is to leave nothing if it is to be written over.
        :param returned: it goes where another one may show.
        """
        stop = at + len(data)
        erase, passing = terminal and returned, terminal and data.endswith(b"\r")
        text = data.rstrip(b"\r\n") if erase or passing else data
        before = _WRAP[False] if passing else b""
        parts = [Part(text, _origin(here, at, text), before + words)]
        if end := data[len(text) :]:
            after = _ERASE * erase + _WRAP[True] * passing
            parts.append(Part(end, _origin(here, stop - len(end), end), after))
        return _Line(at, stop, tuple(parts))

    def _long(self, sink: Sink, source: int, here: Stretch) -> list[_Line]:
        """Return what comes next of a line that is long, begun, or has no end."""
        begun, start = self._begun, here.start
        stop = begun.stop if begun else self._end_of_line(source, here)
        if stop is None:
            if not here.over:
                return []
            stop = here.end
        body = os.pread(source, min(PIECE, stop - start, here.end - start), start)
        if not body:
            return []
        words = b"" if begun else self._tag(here.job)
        lacking = start + len(body) == stop and not body.endswith((b"\n", b"\r"))
        after = b"\n" if lacking else b""
        return [_Line(start, stop, (Part(body, _origin(here, start, body), words, after),))]

    def _end_of_line(self, source: int, here: Stretch) -> int | None:
        """Return where the line ends that a stretch begins with, None if it does not in there."""
        place = here[:3]
        at, trace = self._searched.pop(place, (here.start, 0))
        if at > here.end or records.Place(source, at).trace != trace:
            at = here.start
        while piece := os.pread(source, min(PIECE, here.end - at), at):
            if found := _END.search(piece):
                return at + found.end()
            if piece == b"\r":
                return at + 1
            at += len(piece) - piece.endswith(b"\r")
        self._searched[place] = at, records.Place(source, at).trace
        return None


def _origin(here: Stretch, start: int, data: bytes) -> Origin:
    return Origin(here.job, here.stream, start, start + len(data))
