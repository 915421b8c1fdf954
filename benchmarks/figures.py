"""The figures: each function measures some, on stages of its own, and returns their rows."""

from __future__ import annotations

import os
import shutil
import statistics
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import probe
from probe import PYTHON
from report import Row
from stage import JOBCTL, Stage, stage

_OUTPUT = 512 << 20
_ROOM = 600 << 20
_MB, _KB = 2**20, 2**10


@dataclass(frozen=True)
class Effort:
    """How often and on how much to measure."""

    rounds: int
    long_rounds: int
    """Of what takes a second or more."""
    waited_for: int
    """Running jobs that one `wait` waits for."""
    lines: int
    """Lines of which is measured how late they come."""
    long: bool = False
    """Also what takes some minutes of its own."""


FULL = Effort(rounds=31, long_rounds=7, waited_for=300, lines=40)
QUICK = Effort(rounds=7, long_rounds=3, waited_for=60, lines=10)


def commands(effort: Effort) -> list[Row]:
    """Commands that end at once, beside the modules that they cannot do without."""
    with stage() as empty, stage() as twenty:
        twenty.finished(20)
        time_of = probe.medians(
            {
                "floor": lambda: _imports("click, sqlite3", empty),
                "start": lambda: empty.start_and_end("true"),
                "get": lambda: twenty.command("get"),
                "completion": lambda: _completion(twenty, ""),
                "click": lambda: _imports("click", empty),
                "version": lambda: empty.command("--version"),
            },
            effort.rounds,
        )
    beside = "import click, sqlite3"
    floor = time_of["floor"]
    return [
        Row("start -q true", time_of["start"], "ms", beside, floor, 1.5),
        Row("get, 20 jobs", time_of["get"], "ms", beside, floor, 1.6),
        Row("completion of JOB, 20 jobs", time_of["completion"], "ms", beside, floor, 1.6),
        Row("--version", time_of["version"], "ms", "import click", time_of["click"], 1.3),
    ]


def _completion(stage: Stage, typed: str) -> float:
    completing = {"_JOBCTL_COMPLETE": "bash_complete", "COMP_WORDS": f"jobctl stop {typed}"}
    return probe.seconds((JOBCTL,), stage.environment | completing | {"COMP_CWORD": "2"})


def many(effort: Effort) -> list[Row]:
    """A store of 10,000 finished jobs, beside one of few."""
    newest = ("get", "--newest", "20")
    with stage() as empty, stage() as twenty, stage() as full:
        twenty.finished(20)
        full.finished(10_000)
        gets = probe.medians(
            {
                "few": lambda: twenty.command(*newest),
                "many": lambda: full.command(*newest),
            },
            effort.rounds,
        )
        listing = probe.medians(
            {"jsonl": lambda: full.command("get", "-o", "jsonl")}, effort.long_rounds
        )

        completing = probe.medians(
            {
                "few": lambda: _completion(twenty, "17"),
                "many": lambda: _completion(full, "17"),
            },
            effort.rounds,
        )

        def rebuild() -> float:
            full.forget_index()
            return full.command(*newest)

        rebuilding = probe.medians({"rebuild": rebuild}, effort.long_rounds)
        starts = probe.medians(
            {
                "few": lambda: empty.start_and_end("true"),
                "many": lambda: full.start_and_end("true"),
            },
            effort.rounds,
        )
        after = probe.medians(
            {
                "few": lambda: _get_after_start(twenty, newest),
                "many": lambda: _get_after_start(full, newest),
            },
            effort.rounds,
        )
    few = "the same, 20 jobs"
    return [
        Row(
            "start -q true, 10,000 jobs",
            starts["many"],
            "ms",
            "the same, empty",
            starts["few"],
            1.15,
        ),
        Row("get --newest 20, 10,000 jobs", gets["many"], "ms", few, gets["few"], 1.3),
        Row("the same, first after a start", after["many"], "ms", few, after["few"]),
        Row("completion of 17, 10,000 jobs", completing["many"], "ms", few, completing["few"], 1.3),
        Row("get -o jsonl, 10,000 jobs", listing["jsonl"], "s", limit=1.0),
        Row("get --newest 20, no index of 10,000", rebuilding["rebuild"], "s"),
    ]


def wait(effort: Effort) -> list[Row]:
    """How late `wait` returns, and what it costs while it waits."""
    with stage() as one:
        late = statistics.median(_lateness(one) for _ in range(effort.rounds))
    count = effort.waited_for
    with stage() as busy:
        for _ in range(count):
            busy.start("sleep", "600")
        waiting = (JOBCTL, "wait", "--all")
        pid = probe.spawn(waiting, busy.environment)
        probe.settle(pid)
        used = probe.processor_seconds(pid)
        time.sleep(5)
        used = probe.processor_seconds(pid) - used
        ending = busy.end()
        with suppress(probe.Broken):  # as it should: the jobs did not complete
            probe.reap(pid, waiting)
    return [
        Row("wait, from the command's end", late, "ms", limit=0.040),
        Row(f"wait on {count} running jobs, CPU in 5 s", used, "ms", limit=0.150),
        Row(f"remove --all --force of {count} running jobs", ending, "s"),
    ]


def idle(effort: Effort) -> list[Row]:
    """The memory of what stays behind with a running job."""
    return [
        Row("a running job's runner, PSS", _left_behind(), "kB", limit=600 * _KB),
        Row("the same with --timeout", _left_behind("--timeout", "1h"), "kB"),
    ]


def memory(effort: Effort) -> list[Row]:
    """The peak memory of commands, and how fast 512 MB of output are received."""
    with stage() as twenty:
        twenty.finished(20)
        getting = probe.peak((JOBCTL, "get"), twenty.environment)
    rows = [Row("peak memory of get, 20 jobs", getting, "MB", limit=40 * _MB)]
    with stage() as large:
        if shutil.disk_usage(large.path).free < _ROOM:
            print("receive of 512 MB: skipped, there are no 600 MB free for temporary files")
            return rows
        large.start_and_end("head", "-c", str(_OUTPUT), "/dev/zero")
        received = partial(_receive, large)
        cat = ("/bin/cat", large.last.file("stdout"))
        reader = ("/bin/cat",)
        to_null = received(lambda argv: probe.peak(argv, large.environment))
        to_pipe = received(lambda argv: _piped_peak(argv, large))
        time_of = probe.medians(
            {
                "null": lambda: received(lambda argv: probe.seconds(argv, large.environment)),
                "cat": lambda: probe.seconds(cat, large.environment),
                "pipe": lambda: received(
                    lambda argv: probe.piped_seconds(argv, reader, large.environment)
                ),
                "cat to cat": lambda: probe.piped_seconds(cat, reader, large.environment),
            },
            effort.long_rounds,
        )
    speed = {name: _OUTPUT / taken for name, taken in time_of.items()}
    return [
        *rows,
        Row("peak memory of receive, 512 MB to /dev/null", to_null, "MB", limit=40 * _MB),
        Row("peak memory of receive, 512 MB through a pipe", to_pipe, "MB", limit=40 * _MB),
        Row("receive of 512 MB to /dev/null", speed["null"], "MB/s", "cat", speed["cat"]),
        Row(
            "receive of 512 MB through a pipe",
            speed["pipe"],
            "MB/s",
            "cat to cat",
            speed["cat to cat"],
        ),
    ]


def peers(effort: Effort) -> list[Row]:
    """Programs for the same purpose that are written in C, where they are installed."""
    rows = []
    with stage() as own, stage() as twenty:
        enqueue = {"start": lambda: own.start_and_end("true")}
        show = {"get": lambda: twenty.command("get")}
        twenty.finished(20)
        nq = _installed("nq")
        if nq:
            queue = own.environment | {"NQDIR": own.file("nq")}
            enqueue["nq"] = lambda: _calm(probe.seconds((nq, "true"), queue))
        tsp = _installed("tsp")
        servers = [place.environment | {"TS_SOCKET": place.file("tsp")} for place in (own, twenty)]
        try:
            if tsp:
                for _ in range(20):
                    probe.seconds((tsp, "true"), servers[1])
                enqueue["tsp"] = lambda: _calm(probe.seconds((tsp, "true"), servers[0]))
                show["tsp"] = lambda: probe.seconds((tsp,), servers[1])
            enqueued = probe.medians(enqueue, effort.rounds)
            shown = probe.medians(show, effort.rounds)
        finally:
            for server in servers:
                if tsp and os.path.exists(server["TS_SOCKET"]):
                    probe.seconds((tsp, "-K"), server)
    for name in ("tsp", "nq"):
        if name in enqueued:
            rows.append(
                Row("start -q true", enqueued["start"], "ms", f"{name} true", enqueued[name])
            )
    if "tsp" in shown:
        rows.append(Row("get, 20 jobs", shown["get"], "ms", "tsp, 20 jobs", shown["tsp"]))
    return rows


FIGURES: dict[str, Callable[[Effort], list[Row]]] = {
    "commands": commands,
    "many": many,
    "wait": wait,
    "idle": idle,
    "memory": memory,
    "peers": peers,
}


def _imports(modules: str, place: Stage) -> float:
    return probe.seconds((PYTHON, "-c", f"import {modules}"), place.environment)


def _get_after_start(place: Stage, get: tuple[str, ...]) -> float:
    place.start_and_end("true")
    return place.command(*get)


def _lateness(place: Stage) -> float:
    """Return the seconds from the end of a command to that of the `wait` for its job.

    The command ends when a line comes through a pipe, and the last it does is to write the
    time.
    """
    gate, ended = place.file("gate"), place.file("ended")
    os.mkfifo(gate)
    place.start("-c", 'read -r _ <"$1"; exec date +%s.%N >"$2"', gate, ended)
    waiting = (JOBCTL, "wait", place.last.path.rpartition("/")[2])
    pid = probe.spawn(waiting, place.environment)
    probe.settle(pid)
    with open(gate, "w") as file:
        file.write("\n")
    probe.reap(pid, waiting)
    returned = time.time()
    os.unlink(gate)
    with open(ended) as file:
        return returned - float(file.read())


def _left_behind(*options: str) -> float:
    """Return the bytes that one of five running jobs needs besides its command: the most."""
    with stage() as place:
        runs = []
        for _ in range(5):
            place.start(*options, "sleep", "600")
            runs.append(place.record(place.last, "run"))
        time.sleep(0.5)
        return max(map(_pss, runs))


def _pss(run: dict[str, str]) -> float:
    runner, command = int(run["runner"]), int(run["pid"])
    ours = {runner} | probe.descendants(runner)
    ours -= {command} | probe.descendants(command)
    return sum(map(probe.resident, ours))


def _receive(place: Stage, measure: Callable[[tuple[str, ...]], float]) -> float:
    """Return what is measured of the receipt of everything that the last job wrote."""
    with suppress(FileNotFoundError):
        os.unlink(place.last.file("received"))
    return measure((JOBCTL, "receive", place.last.path.rpartition("/")[2]))


def _piped_peak(argv: tuple[str, ...], place: Stage) -> float:
    source, sink = os.pipe()
    reader = probe.spawn(("/bin/cat",), place.environment, stdin=source)
    os.close(source)
    try:
        return probe.peak(argv, place.environment, stdout=sink)
    finally:
        os.close(sink)
        os.waitpid(reader, 0)


def _installed(name: str) -> str | None:
    path = shutil.which(name)
    if path is None:
        print(f"{name}: skipped, it is not installed")
    return path


def _calm(taken: float) -> float:
    """Return a time after a moment in which what was enqueued comes to its end."""
    time.sleep(0.02)
    return taken
