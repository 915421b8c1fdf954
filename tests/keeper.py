"""Ends what a run of tests leaves behind, however it ended: servers, agents, jobs, workers, disks.

The tests start this beside them, with a pipe as standard input that nobody else holds. When
that closes without a word, the run was killed, and all that bears its mark is ended at
once. Told `end`, it first gives what is about to end some time, and names what does not.

The mark is the run's own temporary directory. It is in the environment of all that a run
starts, as its home or as MARK, and among the words of sshd; what cleared it is known by its
parent, its session, or by having no terminal and being in that directory.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import disk

MARK = "TESTS_OF_JOBCTL_BELOW"
"""The variable with the run's temporary directory, in what has another home."""
_GRACE = 5.0
_LONGEST = 30.0


class _Process:
    """What is known of a process."""

    def __init__(self, pid: int, parent: int, session: int, *, marked: bool, words: str) -> None:
        self.pid = pid
        self.parent = parent
        self.session = session
        self.marked = marked
        self.words = words


def _from_proc(folder: Path, base: bytes) -> _Process | None:
    try:
        stat = (folder / "stat").read_text(errors="replace").rpartition(") ")[2].split()
        if stat[0] in "ZX":
            return None
        with_mark = (folder / "environ").read_bytes() + b"\0"
        if stat[4] == "0":  # no terminal
            with_mark += os.fsencode(os.readlink(folder / "cwd")) + b"\0"
        words = (folder / "cmdline").read_text(errors="replace").replace("\0", " ")
    except OSError:
        return None
    if words.startswith("sshd"):  # it writes what it does over its environment
        with_mark += os.fsencode(words)
    marked = base + b"/" in with_mark or base + b"\0" in with_mark
    return _Process(int(folder.name), int(stat[1]), int(stat[3]), marked=marked, words=words)


def _from_ps(base: bytes) -> list[_Process]:
    """Where there is no /proc: `ps` has the environments of our own processes."""
    words = ["ps", "-A", "-E", "-ww", "-o", "pid=,ppid=,sess=,command="]
    listing = subprocess.run(words, stdout=subprocess.PIPE).stdout
    found = []
    for line in listing.splitlines():
        fields = line.split(None, 3)
        if len(fields) == 4 and fields[0].isdigit() and fields[1].isdigit():
            marked = base + b"/" in line or base + b" " in line + b" "
            pid, parent, session = int(fields[0]), int(fields[1]), int(fields[2], 16)
            text = fields[3].decode(errors="replace")
            found.append(_Process(pid, parent, session, marked=marked, words=text))
    return found


def left(base: Path, but: set[int]) -> dict[int, str]:
    """Return the living processes of a run, with what they run.

    :param base: its temporary directory.
    :param but: who does not count, nor what they started.
    """
    mark = os.fsencode(base)
    if os.path.isdir("/proc/self"):
        found = [_from_proc(folder, mark) for folder in Path("/proc").glob("[0-9]*")]
        all_ = {process.pid: process for process in found if process}
    else:
        all_ = {process.pid: process for process in _from_ps(mark)}
    ours: set[int] = set()
    while True:
        more = {
            process.pid
            for process in all_.values()
            if (process.marked or process.parent in ours or process.session in ours)
            and process.pid not in but
        }
        if more <= ours:
            return {pid: all_[pid].words for pid in sorted(ours)}
        ours |= more


def end(base: Path, but: set[int], grace: float) -> dict[int, str]:
    """End what is left of a run, and return what did not end by itself within so many seconds."""
    began = time.monotonic()
    named: dict[int, str] = {}
    while (found := left(base, but)) and time.monotonic() - began < grace + _LONGEST:
        if time.monotonic() - began >= grace:
            named.update(found)
            for pid in found:
                with suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)
    return named


def unmounted(base: Path) -> list[str]:
    """Unmount what a run has left mounted, and return where that was."""
    with suppress(FileNotFoundError):  # as where nothing is mounted by tests
        lines = Path("/proc/mounts").read_text().splitlines()
        paths = [line.split()[1] for line in lines]
        found = [path for path in reversed(paths) if path.startswith(f"{base}/")]
        for path in found:
            disk.unmount(Path(path))
        return found
    return []


class Keeper:
    """The process that watches over a run, for the run."""

    def __init__(self, base: Path) -> None:
        """Have it watch over what bears this mark."""
        os.environ[MARK] = str(base)
        words = [sys.executable, __file__, str(base), str(os.getpid())]
        self._process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True, cwd="/"
        )

    def end(self) -> str:
        """End what is left; return what that was, a line each."""
        return self._process.communicate(b"end")[0].decode()


def main(base: Path, run: int) -> None:
    """Wait for the end of a run, and end what is left of it."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    ended = sys.stdin.buffer.read()
    named = end(base, {os.getpid(), run}, _GRACE if ended else 0.0)
    lines = [f"{pid} {words}" for pid, words in named.items()]
    lines += [f"{path} mounted" for path in unmounted(base)]
    with suppress(BrokenPipeError):
        print("".join(f"{line}\n" for line in lines), end="", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
