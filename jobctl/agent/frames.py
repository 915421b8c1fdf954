"""The frames that a host sends: their words, and how many bytes may follow, as serve.sh has it.

What is no frame at all breaks the connection. A host that sends more than it ever has to is
refused, as nothing that it has done so far is a reason to go on.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from jobctl.model import printable
from jobctl.transport.base import Denied, Lost


class Frame(NamedTuple):
    """The line that a frame begins with."""

    words: list[bytes]
    length: int | None
    """How many bytes follow, and then a newline; None: nothing does."""


class Kind(NamedTuple):
    """What frames begin with one word."""

    words: re.Pattern[bytes]
    """All words of the line."""
    most: int | None
    """How many bytes may follow, as the last word says; None: nothing follows."""


_NUMBER = rb"\d{1,18}"


def _kind(words: bytes, most: int | None = None) -> Kind:
    """Return a kind: N stands for a number, STREAM for the name of one."""
    pattern = words.replace(b"STREAM", rb"(?:out|err)").replace(b"N", _NUMBER)
    return Kind(re.compile(pattern), most)


_OVERLAP = 64
"""Bytes that are sent once more with what is new of a stream."""
KINDS = {
    b"out": _kind(b"out N N N", (1 << 25) + _OVERLAP),
    b"err": _kind(b"err N N N", (1 << 25) + _OVERLAP),
    b"emptied": _kind(b"emptied N (?:N )?STREAM"),
    b"run": _kind(b"run N N", 1_000_000),
    b"progress": _kind(b"progress N N", 4096),
    b"state": _kind(rb"state N [!-~]"),
    b"exit": _kind(b"exit N N", 1 << 16),
    b"gone": _kind(b"gone N(?: [a-z]+)?"),
    b"much": _kind(b"much N"),
    b"item": _kind(b"item N N STREAM N N", (1 << 20) + _OVERLAP),
    b"self": _kind(b"self N N N", 4096),
    b"journal": _kind(b"journal N N N N", 1 << 20),
    b"job": _kind(rb"job \S+ \S N N N N N N N", 1 << 25),
}
"""All kinds there are, by their first word."""
MOST_SURVEYED = 1 << 27
"""Bytes that all records of a survey may have: those of some 100,000 jobs."""
MOST_ANSWERED = 1 << 24
"""Bytes that an answer may have: the ids of some 400,000 jobs."""


def parse(line: bytes) -> Frame:
    """Return a frame by the line that it begins with.

    :raises Lost: it is none.
    :raises Denied: these are more than such a frame ever has.
    """
    words = line.split()
    kind = KINDS.get(words[0]) if words else None
    if kind is None or not kind.words.fullmatch(line.rstrip(b"\n")):
        shown = printable(line[:80].decode("utf-8", "replace").strip())
        raise Lost(f"the host sends what makes no sense: {shown}")
    if kind.most is None:
        return Frame(words, None)
    length = int(words[-1])
    if length > kind.most:
        raise too_much(f"{length} bytes as '{words[0].decode()}'")
    return Frame(words, length)


def too_much(what: str) -> Denied:
    """Return the error that a host sends more than it was asked for, or ever has to."""
    return Denied(f"the host breaks the protocol: it sends {what}")
