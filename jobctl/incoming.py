"""A stream of a job on a host as it comes home: which byte there is which one here.

A job can empty its own output there. What had come stays here, and what it writes anew follows:
`emptied` in its folder says from which byte on, a line for each time: OFFSET STREAM. It is written
before any of these bytes, so that the next agent goes on at the very byte.
"""

from __future__ import annotations

import os

from jobctl import records, whole
from jobctl.folder import Folder


class EmptiedThere(Exception):
    """The host has other bytes where we have some: the stream begins anew there."""


class Incoming:
    """The file of one stream, being appended to."""

    def __init__(self, folder: Folder, stream: str) -> None:
        """Open it.

        :raises FileNotFoundError: the job was removed.
        """
        self._folder = folder
        self._stream = stream
        self._fd = records.opened(folder.file(stream), os.O_RDWR | os.O_APPEND | os.O_CREAT)
        self._base = _base(folder, stream)
        """Where here the first byte is of what the file there holds now."""

    def append(self, offset: int, data: bytes) -> bool:
        """Write what there is from an offset there; False if something before it is missing here.

        :raises EmptiedThere: the job has emptied it meanwhile, and it is to be asked for anew.
        :raises OSError: the disk is full, say.
        """
        start, size = self._base + offset, os.fstat(self._fd).st_size
        if start > size:
            return False
        known = os.pread(self._fd, min(size - start, len(data)), start)
        if known != data[: len(known)]:
            self.begin_anew()
            raise EmptiedThere
        view = memoryview(data)[len(known) :]
        while view:
            view = view[os.write(self._fd, view) :]
        return True

    def begin_anew(self) -> None:
        """Take down that the stream is empty there, and that its next bytes follow here."""
        size = os.fstat(self._fd).st_size
        if size > self._base:
            line = b"%d %s\n" % (size, self._stream.encode())
            whole.append(self._folder.file("emptied"), line)
            self._base = size

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._fd)


def sizes_there(folder: Folder) -> tuple[int, int]:
    """Return how many bytes are here of what both streams hold there."""
    out, err = (folder.size(s) - _base(folder, s) for s in ("stdout", "stderr"))
    return out, err


def _base(folder: Folder, stream: str) -> int:
    emptied = folder.emptied_at(stream)
    return min(emptied[-1], folder.size(stream)) if emptied else 0
