"""What the kernel says of processes: which one is meant, is it alive, when does it end.

A process is known by its pid, when it started (clock ticks since boot, field 22 of
proc_pid_stat(5), where there is /proc, else the words of ps's lstart) and the boot: pids
come round. runner.sh writes the same three down.
"""

from __future__ import annotations

import enum
import errno
import functools
import os
import re
import select
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import NamedTuple

from jobctl import descriptors
from jobctl.timing import Moment

_PROC = os.path.exists("/proc/self/stat")


class Identity(NamedTuple):
    """One process, for ever: no other one will have the same three."""

    pid: int
    start: str
    boot: str


class Place(enum.Enum):
    """Where a record of processes was written, seen from here."""

    HERE = "here"
    BEFORE = "before"
    """Here, but the system was started again since."""
    ELSEWHERE = "elsewhere"
    """On a machine that shares the state directory: only that one can judge it."""
    NOWHERE = "nowhere"
    """It does not say."""


class Sight(NamedTuple):
    """What is to be seen of a process now."""

    start: str
    condition: str
    """The letter of proc_pid_stat(5): R, S, T (stopped), Z and so on."""
    parent: int

    def began_by(self, uptime: float) -> bool:
        """Whether it was there so many seconds after boot, where the kernel tells its start."""
        ticks = os.sysconf("SC_CLK_TCK")
        return self.start.isdigit() and int(self.start) <= round(uptime * 100) * ticks / 100


@functools.cache
def boot_id() -> str:
    """Return what differs after each start of the system."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return file.read().strip()
    except OSError:
        return (
            _output("sysctl", "-n", "kern.bootsessionuuid")
            or _output("sysctl", "-n", "kern.boottime")
        ).strip()


def hostname() -> str:
    """Return the name this machine gives itself, in characters that mean nothing in a record."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", os.fsencode(os.uname().nodename).decode("latin-1"))


def place_of(host: str, recorded: str, boot: str) -> Place:
    """Return where a record was written that names a host and a boot; place_of in runner.sh.

    Two containers can have one boot id, and hosts of one name can have two.

    :param boot: the present one.
    """
    if host and host != hostname():
        return Place.ELSEWHERE
    if not recorded:
        return Place.NOWHERE
    if recorded == boot:
        return Place.HERE
    return Place.BEFORE if host else Place.NOWHERE


def was_given(name: str) -> bool:
    """Return whether we were started with this variable; True where that is not told."""
    try:
        with open("/proc/self/environ", "rb") as file:
            return any(pair.startswith(f"{name}=".encode()) for pair in file.read().split(b"\0"))
    except OSError:
        return True


def words_given() -> list[bytes]:
    """Return the words that this process was started with, the interpreter and its options too.

    :raises UnicodeEncodeError: see as_given().
    """
    try:
        with open("/proc/self/cmdline", "rb") as file:
            kept = file.read()
    except OSError:
        kept = b""
    return as_given(kept, sys.orig_argv)


def as_given(kept: bytes, decoded: Sequence[str]) -> list[bytes]:
    """Return the words of a process, byte for byte.

    :param kept: what proc_pid_cmdline(5) has of them: some systems cut it off, or have none.
    :param decoded: what Python made of them. From some encodings that does not lead back.
    :raises UnicodeEncodeError: they are not kept, and it does not lead back.
    """
    *words, rest = kept.split(b"\0")
    return words if not rest and len(words) == len(decoded) else [*map(os.fsencode, decoded)]


def uptime() -> float | None:
    """Return the seconds since boot, sleep included, or None where that is not told."""
    try:
        # Not clock_gettime: in containers the two differ, and runner.sh reads this one.
        with open("/proc/uptime") as file:
            return float(file.read().split()[0])
    except OSError:
        return None


def now() -> Moment:
    """Return what the clocks of this machine show."""
    return Moment(time.time(), uptime(), boot_id())


def processors() -> int:
    """Return how many CPUs this process may use."""
    allowed = getattr(os, "sched_getaffinity", None)  # not on every system
    return len(allowed(0)) if allowed else os.cpu_count() or 1


def look(pid: int) -> Sight | None:
    """Return what is to be seen of pid, None if there is no such process."""
    if not _PROC:
        columns = ("-o", "ppid=", "-o", "state=", "-o", "lstart=")
        words = _output("ps", *columns, "-p", str(pid)).split()
        return Sight("_".join(words[2:]), words[1], int(words[0])) if words else None
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # The second field is the program's name in brackets and may hold anything.
            fields = file.read().rpartition(b") ")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return Sight(fields[19].decode(), fields[0].decode(), int(fields[1]))


def alive(identity: Identity | None, boot: str) -> Sight | None:
    """Return what is to be seen of a process if it is still there and no zombie."""
    if identity is None or identity.boot != boot:
        return None
    sight = look(identity.pid)
    if sight is None or sight.start != identity.start or sight.condition[0] in "ZX":
        return None
    return sight


def own_name() -> str:
    """Return what names this process for others, who may be on another machine: see may_live()."""
    sight = look(os.getpid())
    parts = (str(os.getpid()), sight.start if sight else "", boot_id(), hostname())
    return "/".join(re.sub(r"\s", "_", part) for part in parts)


def may_live(name: str) -> bool:
    """Whether a process of that name lives, as far as can be told here."""
    pid, start, boot, host, *_ = *name.split("/"), "", "", ""
    now = boot_id()
    place = place_of(host, now if boot == re.sub(r"\s", "_", now) else boot, now)
    if place is Place.ELSEWHERE:
        return True
    identity = Identity(int(pid), start, now) if pid.isdigit() else None
    return place is Place.HERE and alive(identity, now) is not None


def has_variable(pid: int, variable: str) -> bool:
    """Whether a process has this in its environment; False where the system does not tell."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as environ:
            return variable.encode() in environ.read().split(b"\0")
    except OSError:
        return False


def sessions() -> set[int]:
    """Return the ids of all sessions that have processes, none where the system does not tell."""
    found = set[int]()
    for pid in filter(str.isdigit, os.listdir("/proc") if _PROC else ()):
        with suppress(OSError), open(f"/proc/{pid}/stat", "rb") as file:
            found.add(int(file.read().rpartition(b") ")[2].split()[3]))
    return found


def bearing(prefix: bytes) -> set[bytes]:
    """Return how all variables of processes that begin so go on, as far as the system tells."""
    variables = (each for environ in _environments() for each in environ.split(b"\0"))
    return {each[len(prefix) :] for each in variables if each.startswith(prefix)}


def any_with_words(words: bytes) -> bool:
    """Whether a process that may lead a session has these among its arguments, between spaces."""
    if not _PROC:
        return words in os.fsencode(_output("ps", "-A", "-ww", "-o", "args="))
    for pid in sessions():
        with suppress(OSError), open(f"/proc/{pid}/cmdline", "rb") as file:
            if words in file.read().replace(b"\0", b" "):
                return True
    return False


def any_with(variable: bytes) -> bool:
    """Whether a process has this in its environment; False where the system does not tell."""
    return any(variable in environ for environ in _environments())


def _environments() -> Iterator[bytes]:
    """Yield the environments of all processes that we may read, none where there is no /proc."""
    for pid in filter(str.isdigit, os.listdir("/proc") if os.path.isdir("/proc/self") else ()):
        with suppress(OSError):
            with open(f"/proc/{pid}/environ", "rb") as file:
                environ = file.read()
            yield environ


class Watch:
    """Tells which of a set of processes end, asleep until one does.

    By pidfd on Linux, by kqueue where that is; a process that neither takes (more of them
    than descriptors, say) is looked at 20 times a second.
    """

    def __init__(self) -> None:
        self._boot = boot_id()
        self._last = os.sysconf("SC_OPEN_MAX") - 12
        """Descriptors from here on are left for whatever else there is to do."""
        self._pidfds: dict[int, str] = {}
        self._kqueued: dict[int, str] = {}
        self._others: dict[str, Identity] = {}
        self._heard: dict[int, str] = {}
        self._poll = select.poll()
        if sys.platform != "linux":
            self._kqueue = select.kqueue()
            self._poll.register(self._kqueue.fileno(), select.POLLIN)

    def add(self, key: str, process: Identity) -> None:
        """Watch a process; wait() will tell its key."""
        try:
            if sys.platform == "linux":
                fd = os.pidfd_open(process.pid)
                if fd >= self._last:
                    os.close(fd)
                    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
                self._pidfds[fd] = key
                self._poll.register(fd, select.POLLIN)
            else:
                flags = select.KQ_EV_ADD | select.KQ_EV_ONESHOT
                self._kqueue.control(
                    [select.kevent(process.pid, select.KQ_FILTER_PROC, flags, select.KQ_NOTE_EXIT)],
                    0,
                )
                self._kqueued[process.pid] = key
        except OSError:
            self._others[key] = process
        # Since it was named it may have ended, and its pid be somebody else's by now.
        if alive(process, self._boot) is None:
            self._others[key] = process

    def listen(self, key: str, fd: int) -> None:
        """Have wait() tell key when there is something to read."""
        self._heard[fd] = key
        self._poll.register(fd, select.POLLIN)

    def ignore(self, fd: int) -> None:
        """Listen to it no longer."""
        del self._heard[fd]
        self._poll.unregister(fd)

    def wait(self, timeout: float) -> set[str]:
        """Return the keys of those that ended, none if that takes over timeout seconds.

        Each key is told at least once.
        """
        if self._others:
            timeout = 0 if self._ended_others() else min(timeout, 0.05)
        ended = set()
        for fd, _ in descriptors.wait(self._poll, max(0.0, timeout)):
            if fd in self._pidfds:
                self._poll.unregister(fd)
                os.close(fd)
                ended.add(self._pidfds.pop(fd))
            elif fd in self._heard:
                ended.add(self._heard[fd])
        if sys.platform != "linux" and self._kqueued:
            for event in self._kqueue.control(None, len(self._kqueued), 0):
                ended.add(self._kqueued.pop(event.ident))
        for key in self._ended_others():
            del self._others[key]
            ended.add(key)
        return ended

    def _ended_others(self) -> list[str]:
        return [key for key, process in self._others.items() if not alive(process, self._boot)]


def _output(*command: str) -> str:
    import subprocess

    environment = {"PATH": "/usr/bin:/bin:/usr/sbin:/sbin", "LC_ALL": "C", "TZ": "UTC0"}
    return subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ).stdout
