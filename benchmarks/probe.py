"""Runs whole processes and says what each took: seconds, processor seconds, memory."""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

Environment = Mapping[str, str]
Contender = Callable[[], float]

PYTHON = sys.executable
_TICKS = os.sysconf("SC_CLK_TCK")
_SETTLED = 0.3
"""Seconds without using the processor after which a process is taken to wait."""

# A process begins with the peak of whoever spawned it, so that a small one has to do that:
# Linux counts the memory it shared until exec, see exec_mmap() in fs/exec.c.
_PEAK = """
import posix, sys
pid = posix.posix_spawn(sys.argv[1], sys.argv[1:], posix.environ)
_, status, usage = posix.wait4(pid, 0)
posix.write(2, b"%d" % usage.ru_maxrss)
posix._exit(posix.waitstatus_to_exitcode(status) != 0)
"""


class Broken(Exception):
    """Something that is measured did not do its work."""


def spawn(
    argv: Sequence[str],
    environment: Environment,
    stdin: int | None = None,
    stdout: int | None = None,
    stderr: int | None = None,
) -> int:
    """Start a process with /dev/null for what is not given; return its pid."""
    actions: list[tuple[int, int, str, int, int] | tuple[int, int, int]] = []
    for theirs, ours in enumerate((stdin, stdout, stderr)):
        if ours is None:
            actions.append((os.POSIX_SPAWN_OPEN, theirs, os.devnull, os.O_RDWR, 0))
        else:
            actions.append((os.POSIX_SPAWN_DUP2, ours, theirs))
    return os.posix_spawn(argv[0], list(argv), environment, file_actions=actions)


def reap(pid: int, argv: Sequence[str]) -> None:
    """Wait until a process ends.

    :raises Broken: with another status than 0.
    """
    status = os.waitstatus_to_exitcode(os.wait4(pid, 0)[1])
    if status:
        raise Broken(f"'{' '.join(argv)}' ended with status {status}")


def seconds(argv: Sequence[str], environment: Environment, stdout: int | None = None) -> float:
    """Return the seconds from the start of a process to its end.

    :raises Broken: it failed.
    """
    began = time.perf_counter()
    reap(spawn(argv, environment, stdout=stdout), argv)
    return time.perf_counter() - began


def piped_seconds(argv: Sequence[str], reader: Sequence[str], environment: Environment) -> float:
    """Return the seconds that a process takes to write to another one, until both ended."""
    began = time.perf_counter()
    source, sink = os.pipe()
    pids = (
        (spawn(reader, environment, stdin=source), reader),
        (spawn(argv, environment, stdout=sink), argv),
    )
    os.close(source)
    os.close(sink)
    for pid, words in pids:
        reap(pid, words)
    return time.perf_counter() - began


def peak(argv: Sequence[str], environment: Environment, stdout: int | None = None) -> float:
    """Return the most memory that a process had at any time, in bytes; at least some 8 MB.

    :raises Broken: it failed.
    """
    source, sink = os.pipe()
    words = (PYTHON, "-I", "-S", "-c", _PEAK, *argv)
    pid = spawn(words, environment, stdout=stdout, stderr=sink)
    os.close(sink)
    with open(source) as file:
        said = file.read()
    reap(pid, argv)
    return int(said.split()[-1]) * (1 if sys.platform == "darwin" else 1024)


def medians(contenders: Mapping[str, Contender], rounds: int) -> dict[str, float]:
    """Return the median of each contender; they take turns, so that noise hits all alike."""
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    for contender in contenders.values():
        contender()  # what is read from the disk for the first time is not counted
    for _ in range(rounds):
        for name, contender in contenders.items():
            taken[name].append(contender())
    return {name: statistics.median(values) for name, values in taken.items()}


def processor_seconds(pid: int, children: bool = False) -> float:
    """Return the processor time that a running process has used: user and system.

    :param children: with that of those which it started and which have ended.
    """
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(") ")[2].split()
    return sum(map(int, fields[11 : 15 if children else 13])) / _TICKS


def settle(pid: int, patience: float = 10.0) -> None:
    """Return when a process has come to rest, or patience seconds later."""
    before, deadline = -1.0, time.monotonic() + patience
    while (now := processor_seconds(pid)) != before and time.monotonic() < deadline:
        before = now
        time.sleep(_SETTLED)


def resident(pid: int, kind: str = "Pss") -> int:
    """Return the memory of a process in bytes: of shared pages its share, or (Rss) all."""
    with open(f"/proc/{pid}/smaps_rollup") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(f"{kind}:"))


def forget_peak(pid: int) -> None:
    """Have the most memory that a running process had be that which it has."""
    with open(f"/proc/{pid}/clear_refs", "w") as file:
        file.write("5")  # see proc_pid_clear_refs(5)


def peak_so_far(pid: int) -> int:
    """Return the most memory that a running process had (RSS), in bytes."""
    with open(f"/proc/{pid}/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM:"))


def descendants(pid: int) -> set[int]:
    """Return the processes that a process started, directly or not."""
    parents: dict[int, int] = {}
    for name in filter(str.isdecimal, os.listdir("/proc")):
        with suppress(OSError), open(f"/proc/{name}/stat") as file:
            parents[int(name)] = int(file.read().rpartition(") ")[2].split()[1])
    found, more = set[int](), {pid}
    while more:
        more = {child for child, parent in parents.items() if parent in more}
        found |= more
    return found
