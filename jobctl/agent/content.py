"""The bytes of a frame that a host sends, which may turn out to be fewer than it said."""

from __future__ import annotations

import time
from typing import Protocol

from jobctl.transport.base import Lost

_MUCH = 1 << 18
"""Bytes that are better taken at once than packet by packet, at a system call or two each."""
_A_MOMENT = 0.001
"""Seconds in which as much comes on a fast line, and which nobody notices on a slow one."""


class Source(Protocol):
    """Where the bytes come from."""

    mark: bytes
    """What ends a frame that is shorter than was said."""

    def some(self, most: int) -> bytes:
        """Return 1 to most bytes; Lost at the end."""

    def exactly(self, count: int) -> bytes:
        """Return that many bytes."""

    def give_back(self, count: int) -> None:
        """Have the last bytes of what some() has just returned be returned once more."""


class Content:
    """The bytes of one frame: as many as was said, or up to the channel's mark if that comes first.

    The host cannot know how many there are before it reads them: the job may be emptying its file.
    """

    def __init__(self, channel: Source, length: int, follows: bool) -> None:
        self._channel = channel
        self._left = length
        self._held = b""
        """Bytes that may be the beginning of the mark."""
        self.over = not follows

    def more(self) -> bytes:
        """Return the next bytes, b"" at the end.

        :raises Lost: the connection broke, or what came makes no sense.
        """
        while not self.over:
            piece = self._held + (self._channel.some(self._left) if self._left else b"")
            self._left -= len(piece) - len(self._held)
            self._held = b""
            mark = self._channel.mark
            if (at := piece.find(mark)) >= 0:
                self._channel.give_back(len(piece) - at - len(mark))
                self._end(b"")
                return piece[:at]
            held = next((n for n in range(len(mark) - 1, 0, -1) if piece.endswith(mark[:n])), 0)
            if not self._left:
                self._end(mark[held:] if held else b"")
                # What was held is of the mark if the rest of that came, too.
                return piece[: len(piece) - held] if self._marked else piece
            if held:
                piece, self._held = piece[:-held], piece[-held:]
            if self._left >= _MUCH and len(piece) < _MUCH:
                time.sleep(_A_MOMENT)
            if piece:
                return piece
        return b""

    def _end(self, rest: bytes) -> None:
        """Read to the end of the frame: a newline, perhaps after the rest of a mark."""
        self.over = True
        byte = self._channel.exactly(1)
        self._marked = byte != b"\n"
        if self._marked and byte + self._channel.exactly(len(rest)) != rest + b"\n":
            raise Lost("the host sent fewer bytes than it said")
