"""Sets runner.sh going: the one way in which a job's command is ever run."""

from __future__ import annotations

import fcntl
import os
import signal
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import NamedTuple

from jobctl import process
from jobctl.folder import Folder
from jobctl.task import Task

SHELL = ("/bin/sh",)
"""The words that run a script of sh."""
SCRIPT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "runner.sh")
_ITEMS = os.path.join(os.path.dirname(SCRIPT), "items.sh")

_CHANGEABLE = signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}
_ENVIRONMENT = {"JOBCTL_RUNNER": "1"}
"""Nothing of ours, least of all the cookie of the job that may have called us; and what tells
a runner from what a job started, should it be called from there."""
_HIGH = 20
"""Descriptors from here on are out of the way of those the runner gets."""


class Runner:
    """A runner of one job, waiting to hear that the job is real."""

    def __init__(self, folder: Folder) -> None:
        """Start it, in a session of its own.

        :raises OSError: there are no processes or descriptors left.
        """
        lock = os.open(folder.file("lock"), os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX)
        go, self._go = os.pipe()
        said, say = os.pipe()
        null = os.open(os.devnull, os.O_RDWR)
        _spawn("run", folder.path, descriptors={0: go, 1: say, 2: null, 9: lock})
        for fd in (go, say, null, lock):
            os.close(fd)
        self._said = open(said, "rb")

    def ready(self) -> bool:
        """Wait until the runner has named itself in the folder; False if it died before."""
        return self._said.readline() == b"ready\n"

    def go(self) -> str:
        """Let it begin; return "began", "waiting", or "" when the job is finished already."""
        with suppress(BrokenPipeError):
            os.write(self._go, b"%.6f\n" % time.time())
        os.close(self._go)
        with self._said:
            return self._said.readline().decode().strip()

    def abandon(self) -> None:
        """Let it end without a job, and wait until it has: it writes into the folder."""
        os.close(self._go)
        with self._said:
            while self._said.readline() == b"ready\n":
                pass


def begin_slots(task: Task, lock: int, number: int) -> None:
    """Start so many slots of a job with items; return when one of them has begun an item.

    Or waits for another job, or finds nothing to do.

    :param lock: the lock of the job, held.
    :raises OSError: there are no processes or descriptors left.
    """
    slots = task.file("slots")
    first = task.highest("slots") + 1
    last = first + number - 1
    for slot in range(first, last + 1):
        os.mkdir(f"{slots}/{slot}", 0o700)
    said, say = os.pipe()
    null = os.open(os.devnull, os.O_RDWR)
    words = ("slots", task.path, str(first), str(last))
    _spawn(*words, script=_ITEMS, descriptors={0: null, 1: say, 2: null, 9: lock})
    os.close(say)
    os.close(null)
    with open(said, "rb") as lines:
        lines.readline()


def resume(task: Task) -> None:
    """Go on with a job with items whose slots were killed, and that has items left."""
    boot = process.boot_id()
    if not task.interrupted():
        return
    with task.alone() as lock:
        left = 0
        if lock is not None:
            with suppress(OSError):  # the disk is full, say; it is tried again
                left = task.recovered(boot)
        if lock is not None and left:
            throttle = int(task.spec().get("throttle", b"1"))
            begin_slots(task, lock, max(1, min(left, throttle)))


class Cut(Exception):
    """The process that acts on jobs was killed before it had done so."""


def stop_items(task: Task, numbers: list[int], grace: float, reason: str) -> set[str]:
    """End what runs of some items of a job; return the ids of those of which something is left.

    :param numbers: 0 is the whole job.
    :raises Cut: that may not have been done.
    """
    if not numbers:
        return set()
    words = ("stop", task.path, f"{grace * 100:.0f}", *task.stop_targets(numbers))
    return task.ids_of(_said(*words, script=_ITEMS, told=reason))


class Sent(NamedTuple):
    """What is said of jobs or items that were sent a signal."""

    missed: set[str]
    """Those of which it reached nothing, though something lives."""
    unbegun: set[str]
    """Those that have not begun."""


def sent(words: Iterable[str]) -> Sent:
    """Return what a script prints of a signal, by the numbers that it was given."""
    marks = [word.partition(":")[::2] for word in words if "@" not in word]
    missed, unbegun = ({n for n, mark in marks if mark == what} for what in ("", "unbegun"))
    return Sent(missed, unbegun)


def send_to_items(task: Task, numbers: list[int], name: str) -> Sent:
    """Send the signal called name, without SIG, to all that some items started.

    :param numbers: 0 is the whole job.
    :return: what is said of them, by their ids.
    :raises Cut: it may not have reached all.
    """
    words = ("signal", task.path, name, *task.stop_targets(numbers))
    return Sent(*map(task.ids_of, sent(_said(*words, script=_ITEMS))))


def stop(targets: list[tuple[Folder, str]], grace: float, reason: str) -> set[str]:
    """End all that jobs, each a folder and an instance id, started: TERM, later KILL.

    Returns when it is over.

    :param grace: seconds from TERM to KILL.
    :return: the ids of the jobs of which something cannot be ended.
    :raises Cut: that may not have been done.
    """
    if not targets:
        return set()
    jobs = os.path.dirname(targets[0][0].path)
    return _said("stop", jobs, f"{grace * 100:.0f}", *_named(targets), told=reason)


def send(targets: list[tuple[Folder, str]], name: str) -> Sent:
    """Send the signal called name, without SIG, to all that jobs started.

    :return: what is said of them, by their ids.
    :raises Cut: it may not have reached all.
    """
    if not targets:
        return Sent(set(), set())
    return sent(_said("signal", os.path.dirname(targets[0][0].path), name, *_named(targets)))


def _said(*words: str, script: str = SCRIPT, told: str = "") -> set[str]:
    """Run a script to its end and return the words that it prints before "done".

    :param told: a line for it that is not for all who can list the processes.
    """
    said, say = os.pipe()
    heard, tell = os.pipe()
    pid = _spawn(*words, script=script, descriptors={0: heard, 1: say})
    os.close(say)
    os.close(heard)
    with suppress(BrokenPipeError), open(tell, "wb") as line:
        line.write(os.fsencode(told) + b"\n")
    with open(said) as lines:
        found = set(lines.read().split())
    os.waitpid(pid, 0)
    if "done" not in found:
        raise Cut
    return found - {"done"}


def _named(targets: list[tuple[Folder, str]]) -> list[str]:
    return [f"{folder.id}:{instance_id}" for folder, instance_id in targets]


def bearers() -> set[str]:
    """Return the instance ids of all jobs that have processes here."""
    import subprocess

    # In an environment without the cookie of the job that may have called us.
    result = subprocess.run([*SHELL, SCRIPT, "cookies"], env=_ENVIRONMENT, stdout=subprocess.PIPE)
    lines = result.stdout.decode("ascii", "replace").splitlines()
    return {instance_id for _, _, instance_id in (line.partition(" ") for line in lines)}


def advice(command: str) -> str:
    """Return what helps who took shell text for the name of a command, "" if it is none."""
    import subprocess

    words = [*SHELL, SCRIPT, "advise", command]
    result = subprocess.run(words, env=_ENVIRONMENT, stdout=subprocess.PIPE)
    return result.stdout.decode().strip()


def _spawn(*words: str, script: str = SCRIPT, descriptors: dict[int, int] | None = None) -> int:
    """Run a script and return its pid, in a session of its own: a job may stop itself.

    Not by posix_spawn: that of glibc leaves signals 32 and 33 ignored.

    :param descriptors: what it gets as which descriptor, besides nothing but 0 to 2.
    """
    inherited = [fd for fd in _inheritable() if fd > 2]
    pid = os.fork()
    if pid:
        return pid
    try:
        os.setsid()
        for number in _CHANGEABLE:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        for fd in inherited:
            os.close(fd)
        # First out of the way of each other, then to where they belong.
        moved = {
            theirs: fcntl.fcntl(ours, fcntl.F_DUPFD_CLOEXEC, _HIGH)
            for theirs, ours in (descriptors or {}).items()
        }
        for theirs, ours in moved.items():
            os.dup2(ours, theirs)
        os.execve(SHELL[0], [*SHELL, script, *words], _ENVIRONMENT)
    finally:
        os._exit(127)


def _inheritable() -> list[int]:
    """Return the descriptors that our caller left open for whoever comes after us."""
    found = []
    for name in os.listdir("/dev/fd"):
        with suppress(OSError):
            if os.get_inheritable(int(name)):
                found.append(int(name))
    return found
