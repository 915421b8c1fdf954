"""What is known here of the connections: which ones stand, which are wanted, and to where.

sessions/NAME is what the user wants, written by `session`; links/NAME is how that goes,
written by the agent, and worth something only while one lives. Temporary connections have a
link and no session; their names begin with a tab, as no session's can.
"""

from __future__ import annotations

import enum
import fcntl
import os
import stat
import threading
import time
import urllib.parse
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple, TextIO

from jobctl import quoting, records
from jobctl.errors import BadUsage, JobctlError, NotFound, Refused
from jobctl.model import printable
from jobctl.target import Target, parse_target

_LONGEST = 240
"""Bytes in a file's name; a little less than systems allow."""


class LinkState(enum.Enum):
    """How a connection is."""

    OPENING = "Opening"
    OPENED = "Opened"
    DISCONNECTED = "Disconnected"
    BROKEN = "Broken"
    CLOSED = "Closed"


class Link(NamedTuple):
    """A connection as the agent last saw it. Times are seconds since 1970."""

    state: LinkState = LinkState.CLOSED
    reason: str = ""
    connected_at: float | None = None
    busy: bool = False


class Session(NamedTuple):
    """A connection that somebody wants, under a name."""

    id: str
    name: str
    target: Target
    wanted: bool = True
    """False after `session disconnect`."""
    created_at: float | None = None


class Links:
    """The connections of one state directory."""

    def __init__(self, state_dir: str) -> None:
        self.state_dir = state_dir
        self._alive: bool | None = None
        self._read: dict[str, tuple[tuple[int, ...], Session | None]] = {}
        """Sessions by name as they were read, and what tells their files from later ones."""

    def agent_alive(self) -> bool:
        """Return whether there is an agent; asked once."""
        if self._alive is None:
            self._alive = agent_alive(self.state_dir)
        return self._alive

    def link(self, name: str) -> Link:
        """Return how the connection called name is."""
        if not self.agent_alive():
            return Link()
        record = _load(self._path("links", name))
        try:
            state = LinkState(record.get("state", b"").decode())
        except ValueError:
            return Link()
        return Link(
            state,
            os.fsdecode(record.get("reason", b"")),
            _number(record.get("connected_at")),
            record.get("busy") == b"1",
        )

    def note(self, name: str, link: Link) -> None:
        """Write down how a connection is; what is closed leaves no trace."""
        path = self._path("links", name)
        if link.state is LinkState.CLOSED:
            with suppress(FileNotFoundError):
                os.unlink(path)
            return
        record = {
            "state": link.state.value,
            "reason": link.reason,
            "connected_at": "" if link.connected_at is None else f"{link.connected_at:.6f}",
            "busy": "1" if link.busy else "",
        }
        try:
            _replace(path, record)
        except OSError:
            if not _overwrite(path, record):
                raise

    def forget(self) -> None:
        """Forget what another agent saw."""
        with suppress(FileNotFoundError):
            for name in os.listdir(f"{self.state_dir}/links"):
                os.unlink(f"{self.state_dir}/links/{name}")

    # --- sessions ---

    def sessions(self) -> list[Session]:
        """Return all sessions, in the order in which they were made."""
        try:
            names = os.listdir(f"{self.state_dir}/sessions")
        except FileNotFoundError:
            return []
        found = (self.session(urllib.parse.unquote(name)) for name in names if name[0] != ".")
        return sorted(filter(None, found), key=lambda session: int(session.id))

    def session(self, name: str) -> Session | None:
        """Return the session called name, if there is one."""
        if not name:
            return None
        path = self._path("sessions", name)
        try:
            about = os.lstat(path)
        except OSError:
            return None
        seen = about.st_ino, about.st_mtime_ns, about.st_ctime_ns
        before, session = self._read.get(name, (None, None))
        if seen != before:
            session = _session(name, _load(path))
            self._read[name] = seen, session
        return session

    def way(self, name: str, target: Target) -> Session | None:
        """Return the session called name, if that is one to this machine still."""
        session = self.session(name)
        return session if session and session.target.label == target.label else None

    def disconnected(self, name: str) -> bool:
        """Whether there is a session of that name which is not to be connected."""
        session = self.session(name)
        return session is not None and not session.wanted

    def known(self, name: str) -> Session:
        """Return the session called name, or else the one with that id.

        :raises NotFound: there is none.
        """
        session = self.session(name)
        if session is None and name:
            self._distrust(self._path("sessions", name))
            session = next((known for known in self.sessions() if known.id == name), None)
        if session is None:
            raise NotFound(
                f"there is no session '{printable(name)}'; 'jobctl session get' lists them"
            )
        return session

    def distrusted(self) -> list[JobctlError]:
        """Return an error for each session that somebody else may have made."""
        errors = list[JobctlError]()
        with suppress(FileNotFoundError):
            for name in sorted(os.listdir(f"{self.state_dir}/sessions")):
                try:
                    self._distrust(f"{self.state_dir}/sessions/{name}")
                except Refused as error:
                    errors.append(error)
        return errors

    def _distrust(self, path: str) -> None:
        """Raise Refused if there is something that is not a file of ours alone."""
        with suppress(OSError):  # none is called so, or nothing can be
            if not _ours(os.lstat(path)):
                raise Refused(f"{path} is not a file that only you can write to; remove it")

    def to(self, config: str) -> dict[str, Session]:
        """Return the oldest wanted session to each machine, as this configuration calls it."""
        wanted = [s for s in self.sessions() if s.wanted and s.target.config == config]
        return {session.target.label: session for session in reversed(wanted)}

    def create(self, name: str, target: Target) -> Session:
        """Make a session.

        :raises Refused: there is one of that name.
        """
        folder = f"{self.state_dir}/sessions"
        if len(os.path.basename(self._path("sessions", name))) > _LONGEST:
            raise BadUsage(f"name '{printable(name)[:20]}…' is too long; choose a shorter one")
        with self._told(), _open_last(folder) as last:
            fcntl.flock(last, fcntl.LOCK_EX)
            if self.session(name):
                raise Refused(f"there is a session '{printable(name)}' already; choose a --name")
            number = max([int(session.id) for session in self.sessions()], default=0)
            text = last.read().strip()
            number = max(number, int(text) if text.isdigit() else 0) + 1
            session = Session(str(number), name, target, True, time.time())
            records.put_at(last.fileno(), b"%020d\n" % number, 0)
            self.save(session)
        return session

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Name the directory of what cannot be written."""
        try:
            yield
        except OSError as error:
            folder = f"{self.state_dir}/sessions"
            raise JobctlError(f"cannot write in {folder}: {error.strerror}") from error

    def save(self, session: Session) -> None:
        """Write a session down."""
        target = session.target
        record = {
            "id": session.id,
            "host": target.host,
            "user": target.user,
            "port": "" if target.port is None else str(target.port),
            **dump_way(target),
            "wanted": "1" if session.wanted else "",
            "created": f"{session.created_at or 0:.6f}",
        }
        with self._told():
            _replace(self._path("sessions", session.name), record)

    def remove(self, name: str) -> None:
        """Forget a session."""
        with suppress(FileNotFoundError):
            os.unlink(self._path("sessions", name))

    def _path(self, kind: str, name: str) -> str:
        file = urllib.parse.quote(os.fsencode(name), safe="@:[] ")
        if file.startswith("."):
            file = "%2E" + file[1:]
        return f"{self.state_dir}/{kind}/{file}"


def _session(name: str, told: dict[str, bytes]) -> Session | None:
    """Return the session that a record tells of, if it does."""
    record = {key: os.fsdecode(value) for key, value in told.items()}
    if not record.get("host") or not record.get("id", "").isdigit():
        return None
    port = record.get("port", "")
    to = Target(record["host"], record.get("user", ""), int(port) if port.isdigit() else None)
    wanted, created = record.get("wanted") == "1", _number(told.get("created"))
    return Session(record["id"], name, load_way(to, told), wanted, created)


def agent_alive(state_dir: str) -> bool:
    """Return whether an agent serves this state directory: it holds a lock."""
    try:
        with open(f"{state_dir}/agent.lock", "rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        pass
    return False


def temporary(target: Target) -> str:
    """Return the name of the link to a machine that no session is open to."""
    # What is said about the way there is a part of what machine it is.
    way = target._replace(host="", user="", port=None)
    told = f"\t{zlib.crc32(repr(way).encode()):08x}" if way != Target("") else ""
    return f"\t{target.label}{told}"


def dump_way(target: Target, prefix: str = "") -> dict[str, str]:
    """Return as a record what was said about the way to a machine.

    :param prefix: of the keys.
    """
    seconds = target.connect_timeout
    record = {
        "identities": os.fsdecode(quoting.join(map(os.fsencode, target.identities))),
        "options": os.fsdecode(quoting.join(map(os.fsencode, target.options))),
        "connect_timeout": "" if seconds is None else str(seconds),
        "accept_new": "1" if target.accept_new else "",
        "config": target.config,
    }
    return {prefix + key: value for key, value in record.items() if value}


def load_way(to: Target, record: dict[str, bytes], prefix: str = "") -> Target:
    """Return a machine with what dump_way() returned of the way to it."""

    def words(key: str) -> tuple[str, ...]:
        return tuple(map(os.fsdecode, quoting.split(record.get(prefix + key, b""))))

    return to._replace(
        identities=words("identities"),
        options=words("options"),
        connect_timeout=_number(record.get(prefix + "connect_timeout")),
        accept_new=record.get(prefix + "accept_new") == b"1",
        config=os.fsdecode(record.get(prefix + "config", b"")),
    )


def target_of(spec: dict[str, bytes]) -> Target:
    """Return the machine that a job's spec says it is to run on.

    :raises BadUsage: the spec is damaged.
    """
    return load_way(parse_target(os.fsdecode(spec.get("host", b""))), spec, "ssh_")


def _load(path: str) -> dict[str, bytes]:
    """Return the record in a file that is ours and that nobody else can write to."""
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW), "rb") as file:
            if not _ours(os.fstat(file.fileno())):
                return {}
            return quoting.load(file.read(1 << 20))
    except OSError:
        return {}


def _ours(about: os.stat_result) -> bool:
    """Whether something is a file of ours that nobody else can write to."""
    shared = about.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return stat.S_ISREG(about.st_mode) and about.st_uid == os.geteuid() and not shared


def _replace(path: str, record: dict[str, str]) -> None:
    aside = f"{os.path.dirname(path)}/.{os.getpid()}.{threading.get_ident()}.new"
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    try:
        fd = os.open(aside, flags, 0o600)
    except FileNotFoundError:
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        fd = os.open(aside, flags, 0o600)
    try:
        with open(fd, "wb") as file:
            file.write(_dumped(record))
        os.replace(aside, path)
    except OSError:
        with suppress(OSError):
            os.unlink(aside)
        raise


def _overwrite(path: str, record: dict[str, str]) -> bool:
    """Write a record in the place of one that is there, which takes no room; return whether."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    except OSError:
        return False
    with open(fd, "wb", buffering=0) as file, suppress(OSError):
        content = _dumped(record)
        content += b"\n" * (os.fstat(fd).st_size - len(content))
        return file.write(content) == len(content)
    return False


def _dumped(record: dict[str, str]) -> bytes:
    return quoting.dump({key: os.fsencode(value) for key, value in record.items()})


def _open_last(folder: str) -> TextIO:
    """Return the file with the last id of a session."""
    os.makedirs(folder, mode=0o700, exist_ok=True)
    return open(os.open(f"{folder}/.last", os.O_RDWR | os.O_CREAT, 0o600), "r+")


def _number(text: bytes | None) -> float | None:
    try:
        return float(text or b"")
    except ValueError:
        return None
