"""The figures of jobs on hosts and of sessions, each beside what OpenSSH takes for the same."""

from __future__ import annotations

import os
import random
import shutil
import statistics
import time
from collections.abc import Callable
from contextlib import suppress

import probe
from figures import Effort
from host import Host, available, host, until
from probe import Broken
from report import Row
from stage import JOBCTL

_MB = 2**20
_OUTPUT = 512 << 20
_MUCH = 1 << 30
_VERY_MUCH = 4 << 30
_ONE_WAY = 0.05
"""Seconds by which the slow wire is slow."""
_SESSIONS = 64
_SILENT = 20
_WATCHED = 20.0
"""Seconds in which processor time is counted."""
_CALM = 12.0
"""Seconds after which silent jobs are looked at as seldom as ever."""


def remote(effort: Effort) -> list[Row]:
    """Commands and jobs on a host, and how late their lines come."""
    if not available():
        return []
    with host() as far:
        far.open("web1")
        far.start_and_end("true")
        true = (*far.ssh, "true")
        time_of = probe.medians(
            {
                "run": lambda: far.run("web1", "true"),
                "ssh": lambda: probe.seconds(true, far.environment),
                "start": lambda: far.start_and_end("true"),
                "local": lambda: far.place.start_and_end("true"),
                "whole": lambda: _start_and_wait(far, "true"),
            },
            effort.rounds,
        )
        late = _lateness(far, effort.lines)
    ssh = time_of["ssh"]
    return [
        Row("session run, warm", time_of["run"], "ms", "ssh web1 true", ssh, 0.6),
        Row("start -q -H web1 true", time_of["start"], "ms", "start", time_of["local"], 1.5),
        Row("the same with wait", time_of["whole"], "ms", "ssh web1 true", ssh),
        Row("a line, from there to receive --wait", late, "ms", limit=0.060),
        *_slow(effort),
    ]


def _start_and_wait(far: Host, *words: str) -> float:
    """Return the seconds from the call of `start` to the end of `wait`."""
    taken = far.start(*words)
    return taken + far.place.command("wait", far.number())


def _lateness(far: Host, count: int) -> float:
    """Return the seconds from a line's being written to its being here: the median.

    Each line is the time at which it was written, by the clock of this machine.
    """
    dice = random.Random(3)
    pauses = [f"{dice.uniform(0.2, 1.5):.3f}" for _ in range(count)]
    text = 'for pause; do sleep "$pause"; date +%s.%N; done'
    far.start("-c", text, *pauses)
    words = (JOBCTL, "receive", "--wait", far.number())
    source, sink = os.pipe()
    pid = probe.spawn(words, far.environment, stdout=sink)
    os.close(sink)
    with open(source) as file:
        late = [time.time() - float(line) for line in file]
    probe.reap(pid, words)
    if len(late) != count:
        raise Broken(f"{len(late)} lines came instead of {count}")
    return statistics.median(late)


def _slow(effort: Effort) -> list[Row]:
    """What `session run` takes where everything takes 100 ms there and back."""
    with host() as far:
        far.open("slow")

        def run(one_way: float, rest: float) -> Callable[[], float]:
            def measure() -> float:
                far.wire.delay(one_way)
                time.sleep(rest)
                return far.run("slow", "true")

            return measure

        time_of = probe.medians(
            {
                "floor": run(0.0, 0.5),
                "slow": run(_ONE_WAY, 0.8),
                "again": run(_ONE_WAY, 0.0),
            },
            effort.rounds // 2,
        )
    trips = {name: (taken - time_of["floor"]) / (2 * _ONE_WAY) for name, taken in time_of.items()}
    return [
        Row("session run at 100 ms, above that at 0", trips["slow"], "trips", limit=1.5),
        Row("the same, right after another one", trips["again"], "trips"),
    ]


def output(effort: Effort) -> list[Row]:
    """How fast much output comes home."""
    if not (available() and _room(4 * _OUTPUT)):
        return []
    with host() as far:
        far.open("web1")
        there, here = far.place.file("there"), far.place.file("here")
        _write(there, _OUTPUT)
        cat = (*far.ssh, f"cat {there}")

        def job() -> float:
            taken = _start_and_wait(far, "cat", there)
            _check(far, _OUTPUT)
            far.forget()
            return taken

        def into_file(measure: Callable[[int], float]) -> Callable[[], float]:
            def measured() -> float:
                fd = os.open(here, os.O_WRONLY | os.O_CREAT, 0o600)
                try:
                    taken = measure(fd)
                    if os.fstat(fd).st_size != _OUTPUT:
                        raise Broken("not all came")
                    return taken
                finally:
                    os.close(fd)
                    os.unlink(here)

            return measured

        time_of = probe.medians(
            {
                "job": job,
                "ssh": into_file(lambda fd: probe.seconds(cat, far.environment, fd)),
                "run": into_file(lambda fd: far.run("web1", "cat", there, stdout=fd)),
            },
            effort.long_rounds,
        )
    ssh = time_of["ssh"]
    rows = [
        Row("512 MiB of a job's output, home and finished", time_of["job"], "s", "ssh", ssh, 1.5),
        Row("session run, 512 MiB of output", time_of["run"], "s", "ssh cat FILE >file", ssh),
    ]
    return rows + (_very_much() if effort.long and _room(2 * _VERY_MUCH) else [])


def _very_much() -> list[Row]:
    """4 GiB of output, and whether they ever stand still."""
    with host() as far:
        far.open("web1")
        began = time.monotonic()
        far.start("head", "-c", str(_VERY_MUCH), "/dev/zero")
        size, moved, still = 0, time.monotonic(), 0.0

        def all_there() -> bool:
            nonlocal size, moved, still
            now = os.path.getsize(far.place.last.file("stdout"))
            if now != size:
                size, moved = now, time.monotonic()
            still = max(still, time.monotonic() - moved)
            return size == _VERY_MUCH

        until(all_there)
        far.wait()
        taken = time.monotonic() - began
    return [
        Row("4 GiB of a job's output", _VERY_MUCH / taken, "MB/s"),
        Row("the same, the longest without a byte", still, "s", limit=1.0),
    ]


def agent(effort: Effort) -> list[Row]:
    """The memory and the processor time of the agent."""
    if not available():
        return []
    return [*_sessions(), *_growth(), *_silent()]


def _sessions() -> list[Row]:
    with host() as far:
        far.open("s1")
        one = probe.resident(far.agent_now(), "Rss")
        far.open(*(f"s{number}" for number in range(2, _SESSIONS + 1)))
        probe.settle(far.agent_now())
        many = probe.resident(far.agent_now(), "Rss")
        share, _ = _shares(far)
    return [
        Row("agent with 1 session, RSS", one, "MB"),
        Row(f"agent with {_SESSIONS} sessions, RSS", many, "MB", limit=90 * _MB),
        Row(f"agent with {_SESSIONS} idle sessions, CPU", share, "%"),
    ]


def _growth() -> list[Row]:
    """The memory that the agent takes while much passes through it."""
    if not _room(3 * _MUCH):
        return []
    grown = []
    words = ("head", "-c", str(_MUCH), "/dev/zero")
    with host() as far:
        far.open("web1")
        far.start_and_end("true")
        far.run("web1", "true")
        pid = far.agent_now()
        ways: tuple[Callable[[], float], ...] = (
            lambda: far.start_and_end(*words),
            lambda: far.run("web1", *words),
        )
        for way in ways:
            probe.settle(pid)
            before = probe.resident(pid, "Rss")
            probe.forget_peak(pid)
            way()
            grown.append(probe.peak_so_far(pid) - before)
        _check(far, _MUCH)
    limit = 30 * _MB
    return [
        Row("agent, growth while 1 GiB comes home", grown[0], "MB", limit=limit),
        Row("the same through session run, then", grown[1], "MB", limit=limit),
    ]


def _silent() -> list[Row]:
    with host() as far:
        far.open("web1")
        for _ in range(_SILENT):
            far.start("sleep", "1000")
        far.running()
        time.sleep(_CALM)
        share, there = _shares(far)
    return [
        Row(f"agent with {_SILENT} silent jobs, CPU", share, "%", limit=0.01),
        Row("the same on the host", there, "%"),
    ]


def _shares(far: Host) -> tuple[float, float]:
    """Return which shares of a processor are used by the agent, and on the host for it."""
    pid = far.agent_now()
    before = probe.processor_seconds(pid), _used_there(far)
    began = time.monotonic()
    time.sleep(_WATCHED)
    after = probe.processor_seconds(pid), _used_there(far)
    taken = time.monotonic() - began
    return (after[0] - before[0]) / taken, (after[1] - before[1]) / taken


def _used_there(far: Host) -> float:
    """Return the processor time of what serves us there, jobs' runners included."""
    used = 0.0
    ours = b"serve.sh\0control\0" + os.fsencode(far.server.home)
    for name in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError), open(f"/proc/{name}/cmdline", "rb") as file:
            if ours in file.read():
                used += probe.processor_seconds(int(name), children=True)
    return used


def _check(far: Host, size: int) -> None:
    """Make sure that the output of the last job is here."""
    if os.path.getsize(far.place.last.file("stdout")) != size:
        raise Broken("not all output came home")


def _room(size: int) -> bool:
    if shutil.disk_usage(os.environ.get("TMPDIR", "/tmp")).free > size:
        return True
    print(f"output: skipped, there are no {size / _MB:.0f} MB free for temporary files")
    return False


def _write(path: str, size: int) -> None:
    piece = random.Random(3).randbytes(_MB)
    with open(path, "wb") as file:
        for _ in range(size // _MB):
            file.write(piece)
    os.sync()  # so that writing it back does not go on meanwhile


FIGURES: dict[str, Callable[[Effort], list[Row]]] = {
    "remote": remote,
    "output": output,
    "agent": agent,
}
