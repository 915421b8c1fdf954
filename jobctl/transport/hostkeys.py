"""What known_hosts files say about a machine's key. The format is in sshd(8)."""

from __future__ import annotations

import base64
import binascii
import enum
import errno
import hashlib
import hmac
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from jobctl import configfile

CERT_SUFFIX = "-cert-v01@openssh.com"
_REVOKED = "@revoked"
_AUTHORITY = "@cert-authority"
_KRL = b"SSHKRL\n"


class Entry(NamedTuple):
    """A line about the machine."""

    where: str
    """FILE:LINE"""
    marker: str
    key_type: str
    blob: bytes
    exact: bool
    """Whether it names the machine with its port, where that is not 22."""


class Verdict(enum.Enum):
    """What the files say about a key."""

    KNOWN = "known"
    NEW = "unknown"
    CHANGED = "changed"
    REVOKED = "revoked"


class HostKeys(NamedTuple):
    """The lines of several files that are about one machine."""

    entries: tuple[Entry, ...]

    @property
    def plain(self) -> Iterator[Entry]:
        """The lines that hold a key of the machine itself."""
        return (entry for entry in self.entries if not entry.marker)

    @property
    def has_authority(self) -> bool:
        """Whether certificates of some authority count for the machine."""
        return any(entry.marker == _AUTHORITY for entry in self.entries)

    def trusts(self, authority: bytes) -> bool:
        """Whether certificates signed with this key count for the machine."""
        return any(entry.marker == _AUTHORITY and entry.blob == authority for entry in self.entries)

    def revoked(self, *blobs: bytes) -> Entry | None:
        """Return the line that revokes one of these keys."""
        for entry in self.entries:
            if entry.marker == _REVOKED and entry.blob in blobs:
                return entry
        return None

    def judge(self, blob: bytes) -> tuple[Verdict, Entry | None]:
        """Return what is known about a key, and the line that says so.

        A machine of which only keys of other types are known has changed as well: the types
        that are known are asked for first, so it no longer has any of them. ssh(1) takes such
        a key for a new one, and accepts it with StrictHostKeyChecking accept-new.

        A line without the port counts if it has the key. If it has another one, that is the
        key of what listens on port 22.
        """
        entry = self.revoked(blob)
        if entry:
            return Verdict.REVOKED, entry
        exact = [entry for entry in self.plain if entry.exact]
        for entry in exact or self.plain:
            if entry.blob == blob:
                return Verdict.KNOWN, entry
        same_type = [entry for entry in exact if entry.key_type == type_of(blob)]
        for entry in same_type + exact:
            return Verdict.CHANGED, entry
        return Verdict.NEW, None

    def order(self, algorithms: Iterable[str]) -> tuple[str, ...]:
        """Return the host key algorithms to ask for: those of known keys first.

        Certificates come before all others where an authority counts, else only if there is nothing
        else to ask for.
        """
        algorithms = tuple(algorithms)
        types = {entry.key_type for entry in self.plain}
        certificates = [name for name in algorithms if name.endswith(CERT_SUFFIX)]
        others = [name for name in algorithms if not name.endswith(CERT_SUFFIX)]
        others.sort(key=lambda name: _key_type(name) not in types)
        return (*(certificates if self.has_authority or not others else ()), *others)


def _key_type(algorithm: str) -> str:
    """Return the type of the keys that an algorithm is for."""
    return "ssh-rsa" if algorithm.startswith("rsa-sha2-") else algorithm


def type_of(blob: bytes) -> str:
    """Return the type that a key names itself, its first string."""
    length = int.from_bytes(blob[:4], "big")
    return blob[4 : 4 + length].decode("ascii", "replace")


def fingerprint(blob: bytes) -> str:
    """Return the SHA-256 of a key as OpenSSH shows it."""
    return "SHA256:" + base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")


def load(paths: Sequence[str], name: str, bare_name: str = "") -> HostKeys:
    """Return what the files say about a machine; bare_name is its name without the port.

    Raises OSError for a file that cannot be read.
    """
    found: list[Entry] = []
    for path in paths:
        try:
            with open(path, encoding="utf-8", errors="replace", opener=configfile.opener) as lines:
                found += _entries(path, lines, name, bare_name)
        except (FileNotFoundError, NotADirectoryError):
            continue
    return HostKeys(tuple(found))


def load_revoked(path: str) -> HostKeys:
    """Return the keys that a RevokedHostKeys file lists.

    Raises OSError if it cannot be read, or is a KRL of ssh-keygen: only ssh can read that, and
    not to know what is revoked is no reason to trust.
    """
    found = []
    with open(path, "rb", opener=configfile.opener) as lines:
        for number, line in enumerate(lines, 1):
            if line.startswith(_KRL):
                raise OSError(errno.EINVAL, "it is a KRL, which only ssh can read", path)
            words = line.split()
            if len(words) > 1 and not words[0].startswith(b"#"):
                blob = _decode(words[1])
                found.append(Entry(f"{path}:{number}", _REVOKED, type_of(blob), blob, True))
    return HostKeys(tuple(found))


def _decode(text: str | bytes) -> bytes:
    """Return what is written in base64; nothing if that is wrong."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return b""


def _entries(path: str, lines: Iterable[str], name: str, bare_name: str) -> Iterator[Entry]:
    for number, line in enumerate(lines, 1):
        words = line.split()
        marker = words.pop(0) if words and words[0].startswith("@") else ""
        if len(words) < 3 or words[0].startswith("#") or marker not in ("", _REVOKED, _AUTHORITY):
            continue
        exact = _means(words[0], name)
        if not exact and not (bare_name and _means(words[0], bare_name)):
            continue
        blob = _decode(words[2])
        if type_of(blob) == words[1]:
            yield Entry(f"{path}:{number}", marker, words[1], blob, exact)


def _means(field: str, name: str) -> bool:
    """Whether the first field of a line is about a machine."""
    if field.startswith("|"):
        parts = field.split("|")
        if len(parts) != 4 or parts[1] != "1":
            return False
        return hmac.compare_digest(_hashed(name, _decode(parts[2])), field)
    found = False
    for pattern in field.lower().split(","):
        if fits(pattern.lstrip("!"), name.lower()):
            if pattern.startswith("!"):
                return False
            found = True
    return found


def fits(pattern: str, name: str) -> bool:
    """Whether a name is of a pattern, in which only * and ? are special."""
    parts = {"*": ".*", "?": "."}
    text = "".join(parts.get(character, re.escape(character)) for character in pattern)
    return re.fullmatch(re.sub(r"(\.\*)+", ".*", text), name, re.DOTALL) is not None


def _hashed(name: str, salt: bytes) -> str:
    digest = hmac.new(salt, name.encode(), "sha1").digest()
    return f"|1|{base64.b64encode(salt).decode()}|{base64.b64encode(digest).decode()}"


def append(path: str, name: str, blob: bytes, hashed: bool) -> None:
    """Add a machine's key to a file, in one write at its end. Raises OSError."""
    os.makedirs(os.path.dirname(path) or ".", mode=0o700, exist_ok=True)
    field = _hashed(name, os.urandom(20)) if hashed else name
    line = f"{field} {type_of(blob)} {base64.b64encode(blob).decode()}\n".encode()
    with open(os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600), "r+b", 0) as file:
        if _lacks_newline(file.fileno()):
            line = b"\n" + line
        file.write(line)


def _lacks_newline(descriptor: int) -> bool:
    """Whether a file ends in the middle of a line."""
    try:
        size = os.lseek(descriptor, 0, os.SEEK_END)
        return size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
    except OSError:  # a device: UserKnownHostsFile /dev/null is common
        return False
