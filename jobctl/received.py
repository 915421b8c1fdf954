"""What was received of the children of a job with items: a line for each, in one file."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from jobctl import records
from jobctl.model import Marks

_PIECE = 1 << 20
_LINE = 60
"""Bytes for a child: two sizes, two checksums as in Marks.traces, "-" for none, and flags."""


class PartMarks:
    """The read marks of the children of one job."""

    def __init__(self, path: str, count: Callable[[], int]) -> None:
        """Take the job's folder, and what returns how many children it has."""
        self._count = count
        self._path = f"{path}/received"
        self._children = f"{path}/children"

    def all(self) -> Callable[[int], Marks]:
        """Return what gives the marks of a child by its number, all read at once."""
        text = records.content(self._path)
        return lambda number: self._load(number, text[_LINE * (number - 1) : _LINE * number])

    def of(self, number: int) -> Marks:
        """Return how much of a child was received."""
        return self._load(number, records.content(self._path, _LINE, _LINE * (number - 1)))

    def _load(self, number: int, line: bytes) -> Marks:
        fields = line.replace(b"\0", b" ").split()
        if len(fields) != 5:
            return Marks()
        out, err = records.integer(fields[0]) or 0, records.integer(fields[1]) or 0
        known = (("stdout", out, fields[2]), ("stderr", err, fields[3]))
        traces = tuple((name, at, int(sum_)) for name, at, sum_ in known if sum_.isdigit())
        flags = fields[4]
        marks = Marks(out, err, b"t" in flags, traces=traces)
        if b"r" not in flags:
            return marks
        more = self._more(number)
        return marks._replace(returned_ranges=more.returned_ranges, held=more.held)

    def _more(self, number: int) -> Marks:
        return records.load_marks(self._returned(number))

    def _returned(self, number: int) -> str:
        return f"{self._children}/{number}.returned"

    def _put_more(self, number: int, marks: Marks) -> None:
        fd = records.opened(self._returned(number), os.O_WRONLY | os.O_CREAT)
        try:
            records.move_marks(fd, marks)
        finally:
            os.close(fd)

    @contextmanager
    def moving(self, number: int) -> Iterator[Callable[[Marks], None]]:
        """Hold the right to move the marks of a child; gives what moves them.

        :raises OSError: they cannot be written.
        """
        fd, at = records.opened(self._path, os.O_RDWR | os.O_CREAT), _LINE * (number - 1)

        def move(marks: Marks) -> None:
            flags = "-" + "t" * marks.told
            if marks.returned_ranges:
                # More than fits; and before the line that says so, as that moves a mark back.
                try:
                    self._put_more(number, marks)
                    flags += "r"
                except OSError:
                    marks = marks.rewound()  # rather once more than never
            sums = {stream: str(known) for stream, _, known in marks.traces}
            words = (sums.get("stdout", "-"), sums.get("stderr", "-"), flags)
            line = f"{marks.stdout:016d} {marks.stderr:016d} {' '.join(words)}"
            records.put_at(fd, line.encode().ljust(_LINE - 1) + b"\n", at)

        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            # What is delivered is to be noted in any case: so there is room before, for all.
            whole = _LINE * self._count()
            while (size := os.fstat(fd).st_size) < whole:
                records.put_at(fd, bytes(min(whole - size, _PIECE)), size)
            yield move
        finally:
            os.close(fd)
