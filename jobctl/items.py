"""Items: what they are read from, how they are kept, and where they stand in a command."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator

from jobctl import quoting
from jobctl.errors import BadUsage

ITEM, NUMBER = "{}", "{#}"
LONGEST = 131_072 - len("JOBCTL_ITEM=") - 1
"""Bytes in an item: a word or a variable of a command takes no more, see execve(2)."""
_PLACE = re.compile(r"\{#?\}")
_PIECE = 1 << 20
_FULL = 250, 1 << 16
"""Items, and bytes, that are kept together."""
_SPECIAL = {
    "": re.compile(r"""\\.|'|"|\$\(\(|\{#?\}""", re.DOTALL),
    '"': re.compile(r"""\\.|"|\$\(\(|\{#?\}""", re.DOTALL),
    "'": re.compile(r"'|\{#?\}"),
    "((": re.compile(r"\(|\)|\{#?\}"),
}
"""What means something in shell text: outside quotes, inside, and in arithmetic."""


def read(source: int, separator: bytes) -> Iterator[bytes]:
    """Yield the items of an open file or pipe, to its end, without holding more than one piece.

    :raises BadUsage: one of them cannot be an item, or there are none.
    """
    number, rest = 0, b""
    while piece := os.read(source, _PIECE):
        *whole, rest = (rest + piece).split(separator)
        for item in whole:
            number += 1
            yield _checked(item, number)
        _checked(rest, number + 1)
    if rest:
        number += 1
        yield _checked(rest, number)
    if not number:
        raise BadUsage("--foreach has no items: it is empty")


def _checked(item: bytes, number: int) -> bytes:
    if len(item) > LONGEST:
        raise BadUsage(f"item {number} is longer than {LONGEST} bytes, which no command takes")
    if b"\0" in item:
        raise BadUsage(f"item {number} has a NUL in it; if NULs end the items, use -0")
    return item


# --- as they are kept ---


def blocks(items: Iterable[bytes]) -> Iterator[tuple[int, int, bytes]]:
    """Yield items in blocks: the number of the first, how many there are, a line for sh."""
    first, block, size = 1, list[bytes](), 0
    for item in items:
        block.append(item)
        size += len(item)
        if len(block) == _FULL[0] or size > _FULL[1]:
            yield first, len(block), line(block)
            first, block, size = first + len(block), [], 0
    if block:
        yield first, len(block), line(block)


def line(block: list[bytes]) -> bytes:
    """Return a block as sh reads it."""
    return b"set -- " + quoting.join(block) + b"\n"


# --- in a command ---


def stands_in(words: Iterable[str]) -> bool:
    """Whether the item has a place in any of these."""
    return any(ITEM in word for word in words)


def expression(word: bytes) -> bytes:
    """Return a word of a command as sh is to see it, where items.sh has the item."""
    pieces = []
    for piece in re.split(rb"(\{#?\})", word):
        if piece == ITEM.encode():
            pieces.append(b'"$jobctl_item"')
        elif piece == NUMBER.encode():
            pieces.append(b'"$jobctl_number"')
        elif piece:
            pieces.append(quoting.quote(piece))
    return b"".join(pieces) or b"''"


def in_text(text: str) -> str:
    """Return shell text with variables in the places of item and number.

    The shell does not read their values as text, whatever is in an item. They are one word
    each, also between quotes.
    """
    outer, quote, depth, at = "", "", 0, 0
    done = list[str]()
    while match := _SPECIAL[quote].search(text, at):
        done.append(text[at : match.start()])
        at, found = match.end(), match.group()
        if found in (ITEM, NUMBER):
            name = "${JOBCTL_ITEM}" if found == ITEM else "${JOBCTL_ID##*.}"
            found = {"": f'"{name}"', "'": f"'\"{name}\"'"}.get(quote, name)
        elif found in ("'", '"'):
            quote = "" if quote else found
        elif found == "$((":
            outer, quote, depth = quote, "((", 2
        elif quote == "((":
            depth += 1 if found == "(" else -1
            quote = quote if depth else outer
        done.append(found)
    return "".join(done) + text[at:]


def expanded(words: Iterable[str], item: str, number: int) -> tuple[str, ...]:
    """Return words with an item and its number in their places."""
    values = {ITEM: item, NUMBER: str(number)}
    return tuple(_PLACE.sub(lambda match: values[match.group()], word) for word in words)
