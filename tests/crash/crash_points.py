"""Which faults a system call can meet, and which of them are worth a run: from a list of keys.

A key is what inject.py calls a system call: `WHO: CALL PATH... #N`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

_KEY = re.compile(r"(?P<who>[^:]*): (?P<call>\w+) (?P<paths>.*) #(?P<nth>\d+)")
_GROWS = ("open", "creat", "write", "mkdir", "link", "symlink", "mknod", "rename", "fallocate")
_FAULTS = {
    "KILL": None,
    "EIO": None,
    "ENOSPC": (*_GROWS, "fsync", "truncate"),
    "FULL": ("open", "write", "mkdir", "link", "pwrite"),
    "SHORT": ("write", "pwrite"),
    "EINTR": ("open", "write", "pwrite", "fsync"),
    "EINVAL": ("fsync",),
}
"""The calls that each fault is given to; None: all. EINVAL is what a file system says that syncs
no folders. To write over what there is takes no room, so pwrite has no ENOSPC of its own."""
_NOT_OURS = re.compile(r">(dash|sleep): ")
"""The job's own command, which may write into the folder, too."""
_INDEX = re.compile(r"S/index\b")
_MORE = re.compile(r" S/index\S+ #([3-9]|\d\d+)$")
"""The index once more: how often, is up to SQLite, and to what there is to see by then."""
_DECISIVE = re.compile(
    r"/(spec|exit|received|accepted|given|run|journal)\b|/last\b|/(taken|begun)/|/(stop|sent)\b"
)
"""Files whose fate is the job's."""


class Point(NamedTuple):
    """A call, and what it is to meet."""

    key: str
    fault: str


def of(keys: Iterable[str], who: str = "") -> Iterator[Point]:
    """Yield all faults of all calls, in the order in which they are made.

    :param who: a regular expression: only of those processes.
    """
    for key in dict.fromkeys(keys):
        found = _KEY.fullmatch(key)
        if (
            not found
            or _NOT_OURS.search(key)
            or _MORE.search(key)
            or not re.search(who, found["who"])
        ):
            continue
        for fault, calls in _FAULTS.items():
            # The index can be deleted: it is only not to bring anything down.
            wanted = fault in ("KILL", "FULL", "EIO") or not _INDEX.search(key)
            if wanted and (calls is None or found["call"] in calls):
                yield Point(key, fault)


def few(points: Sequence[Point], commit: str, most: int) -> list[Point]:
    """Return the faults that a plain run has time for: around the commit, and of decisive files.

    Each of them is given one fault before any is given a second, and its neighbour another one.

    :param commit: the key of the call from which on the operation counts.
    """
    keys = list(dict.fromkeys(point.key for point in points))
    at = keys.index(commit) if commit in keys else len(keys)
    of_key = {key: [point for point in points if point.key == key] for key in keys}

    def rank(point: Point) -> tuple[int, int, int]:
        place, faults = keys.index(point.key), of_key[point.key]
        distance = abs(place - at)
        turn = (faults.index(point) - (place - at)) % len(faults)
        dear = bool(_DECISIVE.search(point.key))
        return turn, 0 if distance <= 1 else 1 if dear else 2, distance

    return sorted(sorted(points, key=rank)[:most], key=points.index)


def after(commit: str, log: Sequence[dict[str, object]]) -> bool:
    """Whether the commit of an operation was made, by the log of a run with a fault."""
    return any(line.get("key") == commit and "did" not in line for line in log)
