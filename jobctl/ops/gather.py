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

    What counts is the output that a receive in this manner would deliver, each line as a terminal
    shows it in the end (progress bars differ by pace), and the reason.
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


_LONGEST = 1 << 16
"""Bytes of a line that are held to find out what is shown of it; a longer one counts as it is."""
_CONTROL = re.compile(r"(\x1b\[[0-9;]*[A-Za-z])")


class _Visible:
    """The digest of what a terminal shows in the end of each line."""

    def __init__(self) -> None:
        self._sum = hashlib.sha256()
        self._line = b""
        """What the last line has so far."""
        self._long = False
        """Whether a part of it was taken in already."""

    def update(self, data: bytes) -> None:
        """Go on with data."""
        lines = (self._line + data).split(b"\n")
        self._line = lines.pop()
        for line in lines:
            self._sum.update(self._shown(line) + b"\n")
            self._long = False
        if len(self._line) > _LONGEST:
            self._sum.update(self._line)
            self._line, self._long = b"", True

    def _shown(self, line: bytes) -> bytes:
        return line if self._long or len(line) > _LONGEST else shown(line)

    def digest(self) -> bytes:
        """Return the digest of all there was."""
        whole = self._sum.copy()
        whole.update(self._shown(self._line))
        return whole.digest()


def shown(line: bytes) -> bytes:
    """Return what a terminal shows of a line in the end, after all carriage returns.

    What comes after one takes the place of as many cells as it has; the rest stays, unless
    ESC [ K erases it. Spaces at the end are not seen.
    """
    if b"\r" not in line:
        return line
    cells, before = list[str](), ""
    for piece in line.decode("utf-8", "surrogateescape").split("\r"):
        at = 0
        for part in _CONTROL.split(piece):
            if part in ("\x1b[K", "\x1b[0K"):
                del cells[at:]
            elif part == "\x1b[2K":
                cells = [" "] * at
            elif _CONTROL.fullmatch(part):
                before += part  # a colour takes no room
            else:
                for character in part:
                    wide = not character.isascii() and _is_wide(character)
                    cells[at : at + 1 + wide] = [before + character] + [""] * wide
                    at, before = at + 1 + wide, ""
    return "".join(cells).rstrip(" ").encode("utf-8", "surrogateescape")


def _is_wide(character: str) -> bool:
    import unicodedata

    return unicodedata.east_asian_width(character) in "WF"
