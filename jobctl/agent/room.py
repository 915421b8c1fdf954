"""Whether the state directory here takes what is written; if not, it is asked now and then."""

from __future__ import annotations

import errno
import os
import threading
import time

from jobctl.whole import lack

_BEAT = 1.0
"""Seconds between two tries."""
_PROBE = b"\n" * (1 << 16)
"""As much as comes from a host at once."""


class Room:
    """That in one state directory, for one connection."""

    def __init__(self, state_dir: str) -> None:
        self._state_dir = state_dir
        self._next = 0.0
        self.lacking = ""
        """What is wrong, if the last write failed."""

    def lacks(self, error: OSError) -> bool:
        """Take down that a write failed; return False if that is not for want of room."""
        if why := lack(self._state_dir, error):
            self.lacking, self._next = why, time.monotonic() + _BEAT
        return bool(why)

    def pause(self) -> float | None:
        """Return the seconds until the next try; None where nothing is wrong."""
        return max(0.0, self._next - time.monotonic()) if self.lacking else None

    def found(self) -> bool:
        """Try to write; return whether there is room again."""
        path = f"{self._state_dir}/.room.{os.getpid()}.{threading.get_ident()}"
        try:
            with open(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), "wb", 0) as file:
                os.unlink(path)  # it is gone when it is closed, or we are killed
                if file.write(_PROBE) != len(_PROBE):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self.lacking = ""
        except OSError as error:
            self.lacks(error)
            self._next = time.monotonic() + _BEAT
        return not self.lacking
