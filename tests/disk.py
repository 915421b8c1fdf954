"""Small file systems in memory, which a test fills. To mount one is for root, and on Linux."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def mount(path: Path, *options: str) -> None:
    """Mount one at path, with options of mount(8); it stays until somebody unmounts it.

    :raises PermissionError: we may not.
    """
    path.mkdir(0o700, parents=True, exist_ok=True)
    chosen = ",".join((*options, "mode=0700"))
    words = ["mount", "-t", "tmpfs", "-o", chosen, "none", str(path)]
    result = subprocess.run(words, stderr=subprocess.PIPE, text=True)
    if result.returncode:
        raise PermissionError(f"this test needs the right to mount: {result.stderr.strip()}")


@contextmanager
def mounted(path: Path, *options: str) -> Iterator[Path]:
    """Have one at path for a while."""
    mount(path, *options)
    try:
        yield path
    finally:
        unmount(path)


def unmount(path: Path) -> None:
    """Unmount one, also if somebody still uses it."""
    subprocess.run(["umount", "--lazy", str(path)], check=True)


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
