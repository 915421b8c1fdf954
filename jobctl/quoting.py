"""Words in other forms: for sh and Python to read back byte for byte, and for people to look at."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

# Only at the beginning of a line, and of limited length: what is read may be damaged, and a
# megabyte of letters is not to be tried from each of them.
_ENTRY = re.compile(rb"^([a-z_]{1,32})='([^']*(?:'\\''[^']*)*)'\n", re.MULTILINE)
_WORD = re.compile(rb"'([^']*(?:'\\''[^']*)*)'")
_PLAIN = re.compile(r"[\w@%+=:,./-]+", re.ASCII)
_INVISIBLE = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
SHELLS = frozenset("ash bash dash ksh mksh sh zsh".split())
"""Programs that read shell text."""
_ESCAPES = {"\n": "\\n", "\t": "\\t", "\r": "\\r"}


def quote(value: bytes) -> bytes:
    """Return value as one word of sh, between single quotes."""
    return b"'" + value.replace(b"'", b"'\\''") + b"'"


def unquote(quoted: bytes) -> bytes:
    """Return what stands between the single quotes of a quoted word."""
    return quoted.replace(b"'\\''", b"'")


def join(words: Iterable[bytes]) -> bytes:
    """Return words as text that `eval "set -- $text"` makes into the same words."""
    return b" ".join(map(quote, words))


def split(text: bytes) -> list[bytes]:
    """Return the words that join() was given."""
    return [unquote(word) for word in _WORD.findall(text)]


def dump(record: Mapping[str, bytes]) -> bytes:
    """Return record as lines of key='value', as in os-release(5)."""
    return b"".join(key.encode() + b"=" + quote(value) + b"\n" for key, value in record.items())


def load(text: bytes) -> dict[str, bytes]:
    """Return the record in text; of equal keys the last. What is no entry is passed over."""
    return {key.decode(): unquote(value) for key, value in _ENTRY.findall(text)}


def readable(words: Iterable[str]) -> str:
    """Return words as a person would type them in a shell."""
    return " ".join(
        word if _PLAIN.fullmatch(word) else "'" + word.replace("'", "'\\''") + "'" for word in words
    )


def printable(text: str) -> str:
    """Return text in one line with what could steer a terminal, or is no text, escaped."""
    return _INVISIBLE.sub(_escape, text)


def _escape(match: re.Match[str]) -> str:
    character = match.group()
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is not UTF-8, see os.fsdecode
        code -= 0xDC00
    if character in _ESCAPES:
        return _ESCAPES[character]
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
