"""The index: what the job folders say, in SQLite, so that nothing is proportional to them.

It is derived from the folders and may be deleted at any time: `index.db` is a link to a file
with a name that no other index had, see Store._place(). Finished jobs in it are final
and their folders not looked at again; unfinished ones, and those that left something running
which can write output, are read anew by every refresh().
"""

from __future__ import annotations

import fcntl
import json
import os
import sqlite3
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, NamedTuple, TypeVar

from jobctl import process
from jobctl.jobs import Jobs
from jobctl.model import Job, State, glob

T = TypeVar("T")

_MIGRATIONS = (
    """
    CREATE TABLE jobs (
        id INTEGER PRIMARY KEY,
        final INTEGER NOT NULL,          -- need not be read again
        name TEXT NOT NULL,
        instance_id TEXT NOT NULL,
        state TEXT NOT NULL,
        has_more INTEGER NOT NULL,
        location TEXT NOT NULL,
        command TEXT NOT NULL,
        ended REAL,                      -- seconds since 1970
        boot INTEGER,                    -- of boots, in which it ended
        ended_uptime REAL,               -- seconds since that boot
        record TEXT NOT NULL             -- the whole Job, JSON
    );
    CREATE INDEX unfinished ON jobs (id) WHERE NOT final;
    CREATE INDEX by_name ON jobs (name);
    CREATE INDEX by_instance ON jobs (instance_id);
    CREATE INDEX by_end ON jobs (final, boot DESC, ended_uptime DESC, ended DESC, id DESC);
    CREATE TABLE boots (rank INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE);
    CREATE TABLE seen (one INTEGER PRIMARY KEY, boot TEXT NOT NULL, stamp INTEGER NOT NULL);
    """,
    """
    ALTER TABLE jobs ADD COLUMN finished INTEGER NOT NULL DEFAULT 0;
    UPDATE jobs SET final = 0;
    DROP INDEX by_end;
    CREATE INDEX by_end ON jobs (finished, boot DESC, ended_uptime DESC, ended DESC, id DESC);
    """,
    """
    ALTER TABLE jobs ADD COLUMN type TEXT NOT NULL DEFAULT '';
    ALTER TABLE jobs ADD COLUMN session TEXT;
    UPDATE jobs SET final = 0;
    """,
    """
    UPDATE jobs SET final = 0 WHERE instr(record, '"children": []') = 0; -- these have a tally now
    """,
    """
    DELETE FROM jobs; -- they have a count instead of their children's ids
    DELETE FROM seen;
    """,
    """
    UPDATE jobs SET final = 0; -- they say whether it was told why they failed
    """,
)
_PATIENCE = 30.0
"""Seconds to wait for others that write."""
_OLD = 60.0
"""Seconds after which nobody goes on with an index to which index.db leads no more."""
_SETTLED = 100_000_000
"""Nanoseconds after which a folder's time stamp tells it from any later change."""

_FILLED = 0x6A6F6273
"""What marks an index with all jobs in it."""

NEWEST_FIRST = "finished, boot DESC, ended_uptime DESC, ended DESC, id DESC"


class Brief(NamedTuple):
    """What tells people which job is meant."""

    id: int
    name: str
    state: str
    command: str


class Store:
    """The index of one state directory."""

    def __init__(self, state_dir: str) -> None:
        self.jobs = Jobs(state_dir)
        self.boot = process.boot_id()
        self._path = f"{state_dir}/index.db"
        self._lock = f"{state_dir}/index.lock"
        self._db: sqlite3.Connection | None = None

    def refresh(self) -> None:
        """Bring the index up to what the folders say now."""
        self._attempt(self._refresh)

    def select(self, where: str, values: Iterable[object] = (), order: str = "id") -> list[Job]:
        """Return the jobs for which the SQL condition holds, as refresh() left them.

        glob(pattern, text) may be used in it.
        """
        return self._selected("record", where, values, order, lambda row: _load(row[0]))

    def ids(self, where: str, values: Iterable[object] = (), order: str = "id") -> list[int]:
        """Return the ids of the jobs for which the SQL condition holds."""
        return self._selected("id", where, values, order, lambda row: int(row[0]))

    def briefs(self, where: str, values: Iterable[object] = (), order: str = "id") -> list[Brief]:
        """Return a few words on each of the jobs for which the SQL condition holds."""
        return self._selected("id, name, state, command", where, values, order, Brief._make)

    def _selected(
        self,
        columns: str,
        where: str,
        values: Iterable[object],
        order: str,
        made: Callable[[tuple[Any, ...]], T],
    ) -> list[T]:
        values = list(values)
        query = f"SELECT {columns} FROM jobs WHERE {where} ORDER BY {order}"
        return self._attempt(lambda db: [*map(made, _filled(db).execute(query, values))])

    def unsettled(self, where: str, values: Iterable[object] = ()) -> list[int]:
        """Return the ids of the jobs that are unfinished, as far as the index knows.

        :param where: the SQL condition that holds for them. Jobs that the index has never seen
            are among them, whatever they are: that spares reading them whole.
        """
        seen = self._attempt(lambda db: _filled(db).execute("SELECT boot FROM seen").fetchone())
        if seen not in (None, (self.boot,)):
            self.refresh()  # see _refresh()
        settled = self.ids(f"finished OR NOT ({where})", values)
        return sorted(set(self.jobs.numbers()).difference(settled))

    def doubt(self, ids: Iterable[str]) -> None:
        """Have the next refresh() read these jobs' folders again."""
        chosen = ",".join({job_id.partition(".")[0] for job_id in ids})
        if not chosen:
            return
        try:
            self._connection().execute(f"UPDATE jobs SET final = 0 WHERE id IN ({chosen})")
        except sqlite3.Error:  # damaged, or the disk is full: it is to be made anew
            with suppress(OSError):
                os.unlink(self._path)

    def _attempt(self, action: Callable[[sqlite3.Connection], T]) -> T:
        """Do something with the index; where it turns out damaged, make it anew first.

        Where none can be kept (read-only, full), one in memory serves this process.
        """
        try:
            return action(self._connection())
        except sqlite3.Error:
            pass
        try:
            self._discard()
            return self._refreshed(action)
        except (sqlite3.Error, OSError):
            self._db = _opened(":memory:")
            return self._refreshed(action)

    def _refreshed(self, action: Callable[[sqlite3.Connection], T]) -> T:
        self._refresh(self._connection())
        return action(self._connection())

    def _connection(self) -> sqlite3.Connection:
        if self._db is None:
            self._db = _opened(self._place())
        return self._db

    def _place(self) -> str:
        """Return the file to which index.db leads, the name of a new one if it leads nowhere.

        To SQLite, the journal of an index that was deleted while it was written is one of the
        index that has the same name now: it would put pages of the one into the other.
        """
        try:
            return self._beside(os.readlink(self._path))
        except FileNotFoundError:
            with suppress(OSError):
                os.symlink(f"index.{os.getpid()}.{time.time_ns()}.db", self._path)
                self._sweep()
        except OSError:
            return self._path  # no link
        with suppress(OSError):
            return self._beside(os.readlink(self._path))
        return self._path  # the file system has none

    def _beside(self, name: str) -> str:
        return os.path.join(os.path.dirname(self._path), os.path.basename(name))

    def _sweep(self) -> None:
        """Delete what is left of former indexes, but of those that were just in use."""
        for name in os.listdir(os.path.dirname(self._path)):
            if name.startswith("index.") and name[6:7].isdigit():
                with suppress(FileNotFoundError):
                    if time.time() - os.stat(self._beside(name)).st_mtime > _OLD:
                        os.unlink(self._beside(name))

    def _discard(self) -> None:
        """Take a damaged index away, unless somebody else just did."""
        damaged = self._identity()
        if self._db is not None:
            self._db.close()
            self._db = None
        with open(os.open(self._lock, os.O_RDWR | os.O_CREAT, 0o600), "rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if self._identity() == damaged and not self._sound():
                with suppress(FileNotFoundError):
                    os.unlink(self._path)

    def _sound(self) -> bool:
        try:
            db = self._connection()
            for (record,) in db.execute("SELECT record FROM jobs"):
                _load(record)
            return bool(_one(db, "PRAGMA quick_check") == "ok")
        except sqlite3.Error:
            self._db = None
            return False

    def _identity(self) -> int:
        try:
            return os.stat(self._path).st_ino
        except OSError:
            return 0

    # --- refreshing ---

    def _refresh(self, db: sqlite3.Connection) -> None:
        stamp = self.jobs.stamp()
        seen = db.execute("SELECT boot, stamp FROM seen").fetchone()
        if seen == (self.boot, stamp) and not any(self._news(db)):
            return
        # Read with the index to ourselves: whoever moves a read mark doubts the job after
        # that, so that what was read before cannot be written after.
        db.execute("BEGIN IMMEDIATE")
        try:
            stamp = self.jobs.stamp()
            if seen and seen[0] != self.boot:
                # Nothing here is synced: what another boot left may be old.
                db.execute("DELETE FROM jobs")
            changed, gone = self._news(db)
            on_disk = set(self.jobs.numbers(sweep=True))
            indexed = {number for (number,) in db.execute("SELECT id FROM jobs")}
            gone |= indexed - on_disk
            new = {number: self._read_new(number) for number in sorted(on_disk - indexed)}
            changed += filter(None, new.values())
            db.executemany("DELETE FROM jobs WHERE id = ?", [(number,) for number in gone])
            # In the order of their ends, which ranks boots that are new here.
            for job in sorted(changed, key=lambda job: job.ended_at or 0.0):
                _insert(db, job)
            # A change within the clock's granularity would leave the same stamp, and a folder
            # that is being made leaves it as well when it becomes a job's.
            if None not in new.values() and time.time_ns() - stamp > _SETTLED:
                db.execute("INSERT OR REPLACE INTO seen VALUES (1, ?, ?)", (self.boot, stamp))
            db.execute(f"PRAGMA application_id = {_FILLED}")
            db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise

    def _news(self, db: sqlite3.Connection) -> tuple[list[Job], set[int]]:
        """Return the jobs not known as final that have changed, and those that are gone."""
        changed, gone = list[Job](), set[int]()
        for number, record in db.execute("SELECT id, record FROM jobs WHERE NOT final").fetchall():
            job = self.jobs.folder(number).read(self.boot)
            if job is None:
                gone.add(number)
            elif job.final or record != _dump(job):
                changed.append(job)
        return changed, gone

    def _read_new(self, number: int) -> Job | None:
        """Return the job of a folder that the index does not know, if it is one."""
        folder = self.jobs.folder(number)
        job = folder.read(self.boot)
        if job is None and folder.abandoned(self.boot):
            with suppress(OSError):
                folder.delete()
        return job


def _opened(path: str) -> sqlite3.Connection:
    """Return a connection to an index of our version, made if need be.

    :raises sqlite3.DatabaseError: it is damaged, or of another version.
    """
    db = sqlite3.connect(path, timeout=_PATIENCE, isolation_level=None)
    try:
        # A rollback journal works on network file systems, where WAL does not. Nothing is
        # synced: the index of another boot is made anew, and what is lost with the power is
        # in the folders.
        db.execute("PRAGMA journal_mode = TRUNCATE")
        db.execute("PRAGMA synchronous = OFF")
        db.create_function("glob", 2, _matches, deterministic=True)
        _migrate(db)
    except BaseException:
        db.close()  # else a transaction might stay open
        raise
    return db


def _filled(db: sqlite3.Connection) -> sqlite3.Connection:
    """Return an index that was refreshed once.

    :raises sqlite3.DatabaseError: it was not, as somebody has just deleted another one.
    """
    if _one(db, "PRAGMA application_id") != _FILLED:
        raise sqlite3.DatabaseError("it is new")
    return db


def _migrate(db: sqlite3.Connection) -> None:
    """Bring an index up to our version."""
    if _version(db) == len(_MIGRATIONS):
        return
    db.execute("BEGIN IMMEDIATE")
    version = _version(db)
    if not 0 <= version <= len(_MIGRATIONS):
        raise sqlite3.DatabaseError(f"unknown version {version}")
    for number, script in enumerate(_MIGRATIONS[version:], version + 1):
        for statement in script.split(";"):
            db.execute(statement)
        db.execute(f"PRAGMA user_version = {number}")
    db.execute("COMMIT")


def _version(db: sqlite3.Connection) -> int:
    return int(_one(db, "PRAGMA user_version"))


def _one(db: sqlite3.Connection, query: str, *values: object) -> Any:
    """Return the one value that a query is sure to have.

    :raises sqlite3.DatabaseError: it has none, so the index is damaged.
    """
    for (value,) in db.execute(query, values):
        return value
    raise sqlite3.DatabaseError("a row is missing")


def _matches(pattern: str, text: str) -> bool:
    return glob(pattern).match(text) is not None


def _insert(db: sqlite3.Connection, job: Job) -> None:
    rank = None
    if job.ended_boot:
        db.execute("INSERT OR IGNORE INTO boots (id) VALUES (?)", (job.ended_boot,))
        rank = _one(db, "SELECT rank FROM boots WHERE id = ?", job.ended_boot)
    db.execute(
        "INSERT OR REPLACE INTO jobs VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            int(job.id),
            job.final,
            _text(job.name),
            job.instance_id,
            job.state.value,
            job.has_more_data,
            job.location,
            _text(job.command),
            job.ended_at,
            rank,
            job.ended_uptime,
            _dump(job),
            job.state.finished,
            job.type,
            job.session,
        ),
    )


def _text(text: str) -> str:
    """Return text with bytes that are not UTF-8 replaced: SQLite takes no surrogates."""
    return text.encode("utf-8", "replace").decode()


def _dump(job: Job) -> str:
    return json.dumps({**job._asdict(), "state": job.state.value})


def _load(record: str) -> Job:
    try:
        fields = json.loads(record)
        fields["state"] = State(fields["state"])
        # There are many jobs with the same, and all of them are in memory at a time.
        for key in ("type", "reason", "location", "command", "cwd", "ended_boot"):
            fields[key] = sys.intern(fields[key])
        fields["argv"] = tuple(map(sys.intern, fields["argv"]))
        return Job(**fields)
    except (ValueError, TypeError, KeyError) as error:
        raise sqlite3.DatabaseError("a record cannot be read") from error
