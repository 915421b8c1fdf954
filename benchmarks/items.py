"""Figures of jobs with items: how many a second, and what ten thousand children cost."""

from __future__ import annotations

import itertools
import os
import shutil
import time
from collections.abc import Callable
from functools import partial

import probe
from figures import Effort
from report import Row
from stage import JOBCTL, Stage, stage

_ITEMS, _SLOTS = 2000, 8
_CHILDREN = 10_000
_FORGOTTEN = 6.0


def items(effort: Effort) -> list[Row]:
    """Many short commands beside GNU parallel and xargs, and one job of 10,000 children."""
    return [*_throughput(effort), *_children(effort)]


def _throughput(effort: Effort) -> list[Row]:
    with stage() as one:
        path = _numbers(one, _ITEMS)
        slots, out = str(_SLOTS), one.file("results")
        contenders: dict[str, Callable[[], float]] = {"jobctl": partial(_run, one, path)}
        if xargs := shutil.which("xargs"):
            words = (xargs, f"-P{slots}", "-n1", "-a", path, "/bin/echo")
            contenders["xargs"] = lambda: probe.seconds(words, one.environment)
        if parallel := shutil.which("parallel"):
            log = one.file("joblog")
            kept, rest = ("--will-cite", "--joblog", log), ("-j", slots, "/bin/echo", "::::", path)
            serial = itertools.count()

            def run_parallel() -> float:
                theirs = (parallel, *kept, "--results", f"{out}/{next(serial)}", *rest)
                return probe.seconds(theirs, one.environment)

            contenders["parallel"] = run_parallel
        time_of = probe.medians(contenders, effort.long_rounds)
    what = f"{_ITEMS:,} items, {_SLOTS} slots, to the end of wait"
    rows = []
    if "xargs" in time_of:
        rows.append(Row(what, time_of["jobctl"], "s", f"xargs -P{slots}", time_of["xargs"], 2.0))
    if "parallel" in time_of:
        beside = "parallel --joblog --results"
        rows.append(Row(what, time_of["jobctl"], "s", beside, time_of["parallel"], 0.33))
    return rows


def _children(effort: Effort) -> list[Row]:
    with stage() as small, stage() as large:
        small.finished(20)
        path = _numbers(large, _CHILDREN)
        began = time.perf_counter()
        source, sink = os.pipe()
        feeder = (shutil.which("cat") or "/bin/cat", path)
        feeding = probe.spawn(feeder, large.environment, stdout=sink)
        words = (JOBCTL, "start", "-q", "--foreach", "-", "-t", str(_SLOTS), "/bin/echo")
        starting = probe.spawn(words, large.environment, stdin=source)
        os.close(source)
        os.close(sink)
        probe.reap(feeding, feeder)
        probe.reap(starting, words)
        started = time.perf_counter() - began
        large.command("wait", "1")
        run = time.perf_counter() - began

        def receive() -> float:
            os.truncate(large.file("state/jobs/1/received"), 0)
            return large.command("receive", "1")

        large.command("get")
        gets = probe.medians(
            {"small": lambda: small.command("get"), "large": lambda: large.command("get")},
            effort.rounds,
        )
        time_of = probe.medians(
            {
                "jsonl": lambda: large.command("get", "--children", "-o", "jsonl"),
                "receive": receive,
                "first": lambda: large.command("get"),
            },
            effort.long_rounds,
        )
        removed = large.command("remove", "1")
    return [
        Row("start of 10,000 items from a pipe", started, "s"),
        Row("the same to the end", run, "s"),
        Row("get, 10,000 children", gets["large"], "ms", "get, 20 jobs", gets["small"], 1.3),
        Row("the same, first after receive", time_of["first"], "ms"),
        Row("get --children -o jsonl of these", time_of["jsonl"], "s", limit=1.5),
        Row("receive of these", time_of["receive"], "s", limit=2.0),
        Row("remove of these", removed, "s", limit=3.0),
    ]


def _run(one: Stage, path: str) -> float:
    """Return the seconds from a start to the end of all items."""
    # ext4 passes over inodes that were deleted less than five seconds ago, one by one, and GNU
    # parallel has just deleted thousands.
    time.sleep(_FORGOTTEN)
    began = time.perf_counter()
    one.start("--foreach", path, "-t", str(_SLOTS), "/bin/echo")
    one.command("wait", str(one.last.id))
    return time.perf_counter() - began


def _numbers(where: Stage, count: int) -> str:
    path = where.file("numbers")
    with open(path, "w") as file:
        file.writelines(f"{number}\n" for number in range(1, count + 1))
    return path


FIGURES = {"items": items}
