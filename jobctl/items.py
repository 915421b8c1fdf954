"""Items: what they are read from, how they are kept, and where they stand in a command."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator

from jobctl import descriptors, quoting
from jobctl.errors import BadUsage

ITEM, NUMBER = "{}", "{#}"
LONGEST = 131_072 - len("JOBCTL_ITEM=") - 1
"""Bytes in an item: a word or a variable of a command takes no more, see execve(2)."""
MOST = 10_000_000
"""Items of a job."""
_PLACE = re.compile(r"\{#?\}")
_IN_TEXT = re.compile(r"\{\}|(?<!\$)\{\#\}")
"""${#} is the shell's own."""
_PIECE = 1 << 20
_FULL = 250, 1 << 16
"""Items, and bytes, that are kept together."""
_SPECIAL = {
    "": re.compile(
        r"""\\.|'|"|`|\$\(\(|\$\(|\(|\)|(?<![^\s;&|()])\#[^\n]*|<<-?\s*[^\s;&|()<>]+|\n"""
    ),
    '"': re.compile(r"""\\.|"|`|\$\(\(|\$\("""),
    "'": re.compile(r"'"),
    "((": re.compile(r"\(|\)"),
    "<<": re.compile(r"""\\.|`|\$\(\(|\$\(|\n"""),
}
"""What means something in shell text: outside quotes, inside, in arithmetic, in a here-document."""


def read(source: int, separator: bytes) -> Iterator[bytes]:
    """Yield the items of an open file or pipe, to its end, without holding more than one piece.

    :raises BadUsage: one of them cannot be an item, or there are none.
    """
    number, rest = 0, b""
    while piece := descriptors.read(source, _PIECE):
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
    if number > MOST:
        raise BadUsage(f"--foreach has more than {MOST} items; start several jobs")
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

    def variable(found: str, quotes: str) -> str:
        name = "${JOBCTL_ITEM}" if found == ITEM else "${JOBCTL_ID##*.}"
        return {"": f'"{name}"', "'": f"'\"{name}\"'"}.get(quotes, name)

    return _replaced(text, variable)


def shown(text: str, item: str, number: int) -> str:
    """Return shell text for people, with an item and its number in their places."""

    def value(found: str, quotes: str) -> str:
        word = item if found == ITEM else str(number)
        if quotes == "":
            return quoting.readable([word])
        if quotes == "'":
            return word.replace("'", "'\\''")
        return re.sub(r"[\\$`]" if quotes == "<<" else r'[\\$`"]', r"\\\g<0>", word)

    return _replaced(text, value)


class _Reader:
    """Where in shell text we are: in which quotes, commands, and here-documents."""

    def __init__(self) -> None:
        self.within = [""]
        """Keys of _SPECIAL, or ` and $( for what is like text outside quotes, from outside."""
        self._depths = list[int]()
        """Open parentheses in each $( and $((."""
        self._due = list[str]()
        """Words that end the here-documents which begin with the next line."""
        self._end = ""

    @property
    def quotes(self) -> str:
        """The key of _SPECIAL that is meant."""
        return {"`": "", "$(": ""}.get(self.within[-1], self.within[-1])

    def see(self, found: str, rest: str) -> int:
        """Take in what means something; return how much of the rest is to be passed over."""
        inside = self.within[-1]
        if found in ("'", '"', "`"):
            if inside == found:
                self.within.pop()
            else:
                self.within.append(found)
        elif found in ("$(", "$(("):
            self.within.append(found[1:] if found == "$((" else found)
            self._depths.append(len(found) - 1)
        elif found in ("(", ")") and inside in ("$(", "(("):
            self._depths[-1] += 1 if found == "(" else -1
            if not self._depths[-1]:
                self._depths.pop()
                self.within.pop()
        elif found.startswith("<<"):
            self._due.append(found.lstrip("<-").strip())
        elif found == "\n":
            return self._line(rest)
        return 0

    def _line(self, rest: str) -> int:
        """Begin a line: of a here-document, if one is due."""
        if self.within[-1] == "<<":
            if rest.partition("\n")[0].lstrip("\t") != self._end:
                return 0
            self.within.pop()
        passed = 0
        while self._due:
            self._end = re.sub(r"""[\\'"]""", "", word := self._due.pop(0))
            if self._end == word:
                self.within.append("<<")
                return passed + self._line(rest[passed:])
            # Quoted: the shell reads nothing in it, and neither do we.
            end = re.search(rf"^\t*{re.escape(self._end)}$", rest[passed:], re.MULTILINE)
            passed = passed + end.end() if end else len(rest)
        return passed


def _replaced(text: str, put: Callable[[str, str], str]) -> str:
    """Return shell text with the places of item and number filled.

    :param put: what stands for either, between ", ' or neither ("").
    """
    reader, done, at = _Reader(), list[str](), 0
    while True:
        special = _SPECIAL[reader.quotes].search(text, at)
        place = _IN_TEXT.search(text, at, special.start() if special else len(text))
        match = place or special
        if match is None:
            return "".join(done) + text[at:]
        done.append(text[at : match.start()])
        at, found = match.end(), match.group()
        if place:
            done.append(put(found, reader.quotes))
        else:
            passed = reader.see(found, text[at:])
            done.append(found + text[at : at + passed])
            at += passed


def expanded(words: Iterable[str], item: str, number: int) -> tuple[str, ...]:
    """Return words with an item and its number in their places."""
    values = {ITEM: item, NUMBER: str(number)}
    return tuple(_PLACE.sub(lambda match: values[match.group()], word) for word in words)
