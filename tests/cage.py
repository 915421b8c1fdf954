"""A machine of its own for a test that breaks things: its processes and mounts are nobody else's.

    python cage.py PROGRAM WORD...    runs a program of Python as the only user of such a machine

In there, /proc shows nothing but what the program has started: so whatever is left when it has
ended its own is a finding, and nothing it kills can be anybody else's. When it ends, or is killed,
or the first process outside is, the kernel ends all that is left, and its mounts go with the last
one.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from disk import Disk, mount

_WORD = "JOBCTL_TESTS_CAGE"
"""The variable that says that we are in there, in what is started by enter()."""
_OURS = ("unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child")


def enter(words: Sequence[str], **options: object) -> int:
    """Run a program of Python in a machine of its own, to its end; return its exit status.

    It takes the right to make namespaces: to be root, say.
    """
    inside = [*_OURS, "--mount-proc", sys.executable, __file__, *words]
    environ = {**os.environ, _WORD: "1"}
    return subprocess.run(inside, env=environ, **options).returncode  # type: ignore[call-overload,no-any-return]


def caged() -> bool:
    """Whether we are in there: the first process is ours, and others are not to be seen."""
    return _WORD in os.environ and b"cage.py" in Path("/proc/1/cmdline").read_bytes()


def processes() -> dict[int, str]:
    """Return all living processes of this machine but the first and us, with their words."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            condition = (folder / "stat").read_text().rpartition(") ")[2][0]
            words = (folder / "cmdline").read_bytes().replace(b"\0", b" ")
            if condition not in "ZX" and int(folder.name) not in (1, os.getpid()):
                found[int(folder.name)] = words.decode(errors="replace").strip()
    return found


def small_disk(path: Path, size: str) -> Disk:
    """Mount a small file system at path, which goes with the machine."""
    mount(path, f"size={size}")
    return Disk(path)


def main(words: list[str]) -> int:
    """Be the first process: run a program to its end, and take whatever ends before."""
    program = os.posix_spawn(sys.executable, [sys.executable, *words], os.environ)
    while True:
        pid, status = os.wait()
        if pid == program:
            return os.waitstatus_to_exitcode(status) % 256


if __name__ == "__main__":
    if _WORD in os.environ:
        sys.exit(main(sys.argv[1:]))
    sys.exit(enter(sys.argv[1:]))
