"""Puts the outputs of many jobs together: what is the same is shown once, under its hosts."""

from __future__ import annotations

import hashlib
import os
import re
from typing import NamedTuple

from jobctl import nodes
from jobctl.folder import PIECE, Folder
from jobctl.jobs import Jobs
from jobctl.model import Job, Marks, State, printable
from jobctl.ops.receive import Manner

_RULE = "---------------\n"


class Group(NamedTuple):
    """Jobs that wrote the same and ended alike."""

    jobs: list[Job]
    empty: bool
    """Whether there is nothing to show: no output, and no failure that was not told yet."""

    @property
    def header(self) -> bytes:
        """What stands above their output, as clush -b has it."""
        # Items have an id each, but not a host.
        hosts = [job.id if job.item is not None else job.location for job in self.jobs]
        several = len(set(hosts)) > 1
        text = hosts[0]
        if several:
            text = ",".join(hosts) if any("[" in host for host in hosts) else nodes.fold(hosts)
        count = f" ({len(hosts)})" if len(hosts) > 1 else ""
        first = self.jobs[0]
        reason = "" if first.state is State.COMPLETED else f": {printable(first.reason)}"
        return os.fsencode(f"{_RULE}{text}{count}{reason}\n{_RULE}")


def grouped(jobs: Jobs, ended: list[Job], manner: Manner) -> list[Group]:
    """Return finished jobs in groups, in the order of the first of each.

    What counts is the output that a receive in this manner would deliver, but for what carriage
    returns had the rest of a line written over (progress bars differ by pace), and the reason.
    """
    groups: dict[tuple[object, ...], Group] = {}
    for job in ended:
        folder = jobs.folder(job.id)
        marks = Marks() if manner.again else folder.marks()
        sums = [_sum(folder, stream, marks) for stream in manner.streams]
        key = (job.state, job.reason, *(digest for digest, _ in sums))
        told = job.state is State.COMPLETED or (marks.told and not manner.again)
        empty = told and not any(length for _, length in sums)
        groups.setdefault((*key, empty), Group([], empty)).jobs.append(job)
    return list(groups.values())


def _sum(folder: Folder, stream: str, marks: Marks) -> tuple[bytes, int]:
    """Return what tells the rest of a stream from another one, and how long it is."""
    digest, length = _Visible(), 0
    try:
        with folder.output(stream) as source:
            while span := marks.next(stream, folder.size(stream)):
                start, end = span
                piece = os.pread(source.fileno(), min(PIECE, end - start), start)
                if not piece:
                    break
                digest.update(piece)
                length += len(piece)
                marks = marks.moved(stream, start, len(piece))
    except FileNotFoundError:
        pass
    return digest.digest(), length


_ENDS = re.compile(rb"([\r\n])")


class _Visible:
    """The digest of what a terminal shows in the end: the last text of each line."""

    def __init__(self) -> None:
        self._lines = hashlib.sha256()
        self._line = self._lines.copy()
        """With the text of the last line besides."""
        self._returned = False
        """Whether a carriage return came last."""

    def update(self, data: bytes) -> None:
        """Go on with data."""
        for piece in _ENDS.split(data):
            if piece == b"\n":
                self._line.update(b"\n")
                self._lines = self._line.copy()
                self._returned = False
            elif piece == b"\r":
                self._returned = True
            elif piece:
                if self._returned:
                    self._line, self._returned = self._lines.copy(), False
                self._line.update(piece)

    def digest(self) -> bytes:
        """Return the digest of all there was."""
        return self._line.digest()
