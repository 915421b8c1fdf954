"""Measures what jobctl costs: the time of its commands, and the memory of what stays behind.

    python benchmarks/run.py [--quick] [--long] [NAME...]

NAME is one of `commands` (start, get, completion and --version beside Python with the modules
that they cannot do without), `many` (the same with 10,000 jobs), `wait` (how late it returns,
what it costs meanwhile), `idle` (the memory of a running job's runner), `memory` (the peak of
get and of receive with 512 MB, and its speed beside cat), `peers` (task-spooler and nq, where
installed), `items` (many short commands beside xargs and GNU parallel, and a job with 10,000
children), `remote` (session run and start -H beside ssh, how late lines come), `output` (512
MiB of a remote job's output beside ssh; with --long also 4 GiB), `agent` (its memory and
processor time) and `fan` (64 hosts beside parallel-ssh, clush and ansible, 500 items on one
beside GNU parallel). Without any, all are measured. The last four reach this machine over SSH,
through an sshd of their own, and need what the tests need.

It is to be run by the Python of a virtual environment in which jobctl is installed normally.
An editable install adds some 10 ms to each start of Python, through the finder that it
installs; this is warned of.

Times are of whole processes, from posix_spawn to wait4. What is compared takes turns in the
same run, and medians are shown: so noise hits all alike. Each measurement has a state
directory of its own that is removed afterwards, and the jobs are ended. The report is for
people: the exit status is 0 also where a limit is exceeded, 1 if something broke.
"""

from __future__ import annotations

import argparse
import glob
import os
import platform
import signal
import sys
import sysconfig
import time
from dataclasses import replace

import fan
import figures
import items
import remote
from figures import FULL, QUICK
from probe import Broken
from report import table

import jobctl

# First what makes many files: ext4 passes over the places of those that were just deleted.
FIGURES = items.FIGURES | figures.FIGURES | remote.FIGURES | fan.FIGURES


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure what jobctl costs.")
    parser.add_argument("--quick", action="store_true", help="fewer rounds, fewer jobs")
    parser.add_argument("--long", action="store_true", help="also what takes minutes: 4 GiB")
    parser.add_argument(
        "names", metavar="NAME", nargs="*", help=f"which figures: {', '.join(FIGURES)}"
    )
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(FIGURES):
        parser.error(f"no figures are called {', '.join(sorted(unknown))}")
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _leave)
    if _editable():
        print(
            "warning: an editable install slows every start of Python down; install normally",
            file=sys.stderr,
        )
    effort = replace(QUICK if arguments.quick else FULL, long=arguments.long)
    rows = []
    load = os.getloadavg()[0]
    for name, measure in FIGURES.items():
        if name in (arguments.names or FIGURES):
            began = time.monotonic()
            rows += measure(effort)
            print(f"{name}: measured in {time.monotonic() - began:.0f} s", file=sys.stderr)
    print(
        f"jobctl {jobctl.__version__}, Python {platform.python_version()},"
        f" {platform.system()}, {os.cpu_count()} cores, {time.strftime('%Y-%m-%d')},"
        f" load average {load:.1f} before, {os.getloadavg()[0]:.1f} after\n"
    )
    print(table(rows))
    return 0


def _leave(number: int, _: object) -> None:
    """End after clearing up, which a second signal does not interrupt: jobs would stay behind."""
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
    sys.exit(128 + number)


def _editable() -> bool:
    """Return whether this environment holds an editable install, be it of jobctl or not."""
    places = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    marks = ("__editable__*", "*.egg-link")
    own = os.path.dirname(os.path.dirname(os.path.abspath(jobctl.__file__)))
    return own not in places or any(glob.glob(os.path.join(p, m)) for p in places for m in marks)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Broken as error:
        sys.exit(f"broken: {error}")
