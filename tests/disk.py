"""A small file system that a test fills."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path


class Disk:
    """A small file system, mounted at path."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fill = path / "fill"

    def fill(self, free: int = 0) -> None:
        """Leave so many bytes free; again and again it takes what others free, too."""
        with open(self._fill, "ab", buffering=0) as file:
            with suppress(OSError):
                while file.write(b"x" * 4096):
                    pass
            if free:
                file.truncate(max(0, file.tell() - free))

    def free(self) -> None:
        """Have room again."""
        self._fill.unlink(missing_ok=True)
