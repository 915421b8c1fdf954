"""The job folder: the truth about one job, in plain files that this file alone names.

The header of runner.sh says what is in them, but for `received`, the read marks, and
`progress`, which belongs to the command.
"""

from __future__ import annotations

import fcntl
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, BinaryIO

from jobctl import process, quoting, records, whole
from jobctl.errors import BadUsage
from jobctl.model import TYPE_REMOTE, Job, Marks, State, parent_of
from jobctl.process import Identity, Place
from jobctl.timing import Moment

if TYPE_CHECKING:
    from jobctl.links import Links
    from jobctl.target import Target

STREAMS = ("stdout", "stderr")
GONE = ".gone"
"""What the name of a removed job's folder ends in, until nothing is left of it."""
FOR_HOSTS = ("far.env", "far.env.odd", "far.send")
"""Files with what is for the environment of a job on its host."""
SENT = (
    *("type", "location", "host", "session", "results", "instance_id", "path"),
    *("ssh_identities", "ssh_options", "ssh_connect_timeout", "ssh_accept_new", "ssh_config"),
)
"""What of a spec is written down once more when a host may have the job, in the file `sent`: so it
can be reached there, be the spec damaged."""
PIECE = 1 << 20
"""Bytes moved at a time."""

_UUID = re.compile(r"[0-9a-f-]{36}", re.ASCII)
_HOST = re.compile(r"[\w.-]+", re.ASCII)
_LOST = {Place.HERE: "lost: runner was killed", Place.BEFORE: "lost: host rebooted"}
_EMPTIED = re.compile(rb"(\d{1,18}) (stdout|stderr)")
"""A line of the file emptied."""
MISSING = "damaged: the folder {} is missing"


class Folder:
    """One job's folder. It is a job's from the moment it holds a spec."""

    most_children = 100_000
    """More than that many no job has: then its spec is damaged."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._spec: dict[str, bytes] = {}
        self.damaged = False
        """Whether the spec, once it was read, turned out not to be whole."""

    @property
    def id(self) -> str:
        """The job's id: the folder's name, of a child after its parent's."""
        parent, _, name = self.path.rpartition("/")
        if not self.is_child:
            return name
        return f"{os.path.basename(os.path.dirname(parent))}.{name}"

    @property
    def is_child(self) -> bool:
        """Whether this is the folder of a part of a job."""
        return os.path.basename(os.path.dirname(self.path)) == "children"

    @property
    def state_dir(self) -> str:
        """The state directory it is in."""
        up = os.path.dirname(os.path.dirname(self.path))
        return os.path.dirname(os.path.dirname(up)) if self.is_child else up

    @property
    def remote(self) -> bool:
        """Whether this is the folder of a job that runs on hosts."""
        return self.spec().get("type") == TYPE_REMOTE.encode()

    @property
    def is_far(self) -> bool:
        """Whether this is the folder of one command on a host."""
        return self.remote and not self.spec().get("children")

    @property
    def session(self) -> str:
        """The name of the session through which it runs, if any."""
        return os.fsdecode(self.spec().get("session", b""))

    @property
    def target(self) -> Target:
        """The machine that it runs on, if that is not this one.

        :raises BadUsage: the spec is damaged.
        """
        from jobctl import links

        return links.target_of(self.spec())

    def child(self, number: int) -> Folder:
        """Return the folder of a child that need not exist."""
        return Folder(f"{self.path}/children/{number}")

    def file(self, name: str) -> str:
        """Return the path of a file in here."""
        return f"{self.path}/{name}"

    # --- reading a job ---

    def exists(self) -> bool:
        """Whether this is a job's folder: something is called spec, be it damaged.

        That of a part of a job is one from the first.
        """
        return os.path.lexists(self.path if self.is_child else self.file("spec"))

    def finished(self) -> bool:
        """Whether the job's end is written down."""
        try:
            return os.path.getsize(self.file("exit")) > 0
        except OSError:
            return False

    def read(self, boot: str) -> Job | None:
        """Return the job as it is now, or None if this is no job's folder.

        A job whose runner was killed, or whose host was rebooted, is found out here, and
        written down as lost.
        """
        job = self._now(boot) if self.exists() else None
        return job if self.exists() else None  # what is deleted meanwhile looks damaged

    def _now(self, boot: str) -> Job:
        job = self.planned()
        parts = self._children(job.child_count, boot)
        return self._as_damaged(parent_of(job, parts) if parts else self._one(job, boot))

    def _as_damaged(self, job: Job) -> Job:
        """Return a job, as a failed one if it is over and its spec is damaged."""
        if not self.damaged or not job.state.finished:
            return job
        reason = records.DAMAGED.format("spec")
        return job._replace(state=State.FAILED, reason=reason, exit_code=job.exit_code or None)

    def planned(self) -> Job:
        """Return what the job is to be, without a look at what became of it."""
        spec = self.spec()
        job = Job(
            self.id,
            name=os.fsdecode(spec.get("name", b"")),
            instance_id=cookie(spec.get("instance_id")),
            command=os.fsdecode(spec.get("command", b"")),
            argv=tuple(map(os.fsdecode, quoting.split(spec.get("words", b"")))),
            cwd=os.fsdecode(spec.get("cwd", b"")),
            created_at=records.number(spec.get("created")),
            child_count=records.integer(spec.get("children")) or 0,
            parent=self.id.partition(".")[0] if self.is_child else None,
        )
        if not self.remote:
            return job
        location = os.fsdecode(spec.get("location", b""))
        return job._replace(type=TYPE_REMOTE, location=location, session=self.session or None)

    def children(self, boot: str) -> list[Job]:
        """Return its children as they are now, none of a job that is deleted meanwhile."""
        found = self._children(records.integer(self.spec().get("children")) or 0, boot)
        return found if self.exists() else []

    def _children(self, count: int, boot: str) -> list[Job]:
        return [
            self.child(number).read(boot) or self._lost_child(number)
            for number in range(1, count + 1)
        ]

    def _lost_child(self, number: int) -> Job:
        child, reason = f"{self.id}.{number}", MISSING.format(f"children/{number}")
        return Job(child, type=TYPE_REMOTE, state=State.FAILED, reason=reason, parent=self.id)

    def _one(self, planned: Job, boot: str) -> Job:
        """Return a job without children as it is now."""
        remote = planned.type == TYPE_REMOTE
        unfinished = None
        if not self.finished():
            unfinished = self._unfinished_there(planned) if remote else self._unfinished(boot)
        end = {} if unfinished else self._end()
        known = unfinished or self._finished(end)
        run = records.load(self.file("run"))
        began = records.moment(run, "began", "boot")
        known["percent"], known["message"] = self.progress()
        job = planned._replace(
            **known,
            pid=records.integer(run.get("pid")),
            began_at=began.time,
            began_uptime=_seen(run, "began").at_boot(boot),
        )
        if unfinished:
            return job
        return job._replace(elapsed=records.moment(end, "ended", "boot").took(began))

    def link_name(self, book: Links) -> str:
        """Return the name of the connection over which a job on a host is reached."""
        from jobctl import links

        with suppress(BadUsage):
            session = book.way(self.session, self.target)
            return session.name if session else links.temporary(self.target)
        return self.session  # the spec is damaged

    def _unfinished_there(self, planned: Job) -> dict[str, Any]:
        """Return what is known of an unfinished job on a host: what that host last said."""
        from jobctl import links

        if self.damaged and not self.spec().get("host"):
            return {"state": State.FAILED, "reason": records.DAMAGED.format("spec")}
        book = links.Links(self.state_dir)
        name = self.link_name(book)
        link = book.link(name)
        run = records.load(self.file("run"))
        opened = link.state is links.LinkState.OPENED
        condition = self.get("condition")
        begun = "pid" in run or condition not in (b"", b"E")
        if not begun and (opened or not self.has("sent")):
            other = records.text(run.get("waiting"))
            why = f"waiting for job {other}" if other else link.reason
            if "held" in run:
                why = "waiting for a slot"
            return {"state": State.NOT_STARTED, "reason": why or f"waiting for {planned.location}"}
        if condition == b"E":
            host = place_of(run, "")[0] or "another machine"
            reason = f"runs on {host}, which shares the state directory of {planned.location}"
            return {"state": State.DISCONNECTED, "reason": reason}
        if not opened:
            reason = link.reason or f"connecting to {planned.location}"
            if planned.session and book.disconnected(name):
                reason = f"session {name} was disconnected by user"
            return {"state": State.DISCONNECTED, "reason": reason}
        if self.has("stop"):
            return {"state": State.STOPPING}
        return {"state": State.SUSPENDED if condition in (b"T", b"t") else State.RUNNING}

    def _unfinished(self, boot: str) -> dict[str, Any] | None:
        """Return what is known of an unfinished job, None if it turns out to be finished."""
        run = records.load(self.file("run"))
        host, place = place_of(run, boot)
        if place is Place.ELSEWHERE and not self.finished():
            return {
                "state": State.DISCONNECTED,
                "location": host,
                "reason": f"runs on {host}, which shares this state directory",
            }
        runner = process.alive(_identity(run, "runner", "runner_ticks", boot), boot)
        command = process.alive(_identity(run, "pid", "ticks", boot), boot)
        if runner or command:
            if "pid" not in run and not records.size(self.file("lock")):
                other = records.text(run.get("waiting"))
                reason = f"waiting for job {other}" if other else "starting"
                return {"state": State.NOT_STARTED, "reason": reason}
            if os.path.exists(self.file("stop")):
                return {"state": State.STOPPING}
            if command and command.condition in "Tt":
                return {"state": State.SUSPENDED}
            return {"state": State.RUNNING}
        if self.finished():
            return None
        if place is not Place.BEFORE and self._locked():
            if not host:  # the job deleted or damaged the file
                return {"state": State.RUNNING}
            reason = "runs in another container of this machine"
            return {"state": State.DISCONNECTED, "reason": reason}
        reason = _LOST.get(place, records.DAMAGED.format("run"))
        self._settle_lost(reason, boot)
        if self.finished():
            return None
        return {"state": State.FAILED, "reason": reason}  # the disk takes nothing

    def _end(self) -> dict[str, bytes]:
        """Return what is written down of the end."""
        return records.load(self.file("exit"))

    def _finished(self, record: dict[str, bytes]) -> dict[str, Any]:
        """Return what is known of a finished job, by the record of its end."""
        end = records.end_in(record)
        # Asked first: what is written after that is seen when it is asked again.
        still_written = any(records.being_written(self.file(stream)) for stream in STREAMS)
        marks = self.marks()
        ended = _seen(record, "ended")
        return {
            "state": end.state,
            "reason": end.reason,
            "exit_code": end.code,
            "signal": end.signal,
            "ended_at": ended.time,
            "ended_boot": ended.boot,
            "ended_uptime": ended.uptime,
            "still_written": still_written,
            "told": marks.told,
            "has_more_data": self.stays_there()
            or any(marks.next(stream, self.size(stream)) for stream in STREAMS),
        }

    def _settle_lost(self, reason: str, boot: str) -> None:
        """Write down that nobody knows how the job ended, unless somebody does."""
        with suppress(OSError):  # who only looks goes on, and the next one tries again
            self._settle_as(State.FAILED, reason, boot)

    def _settle_as(self, state: State, reason: str, boot: str) -> None:
        """Write down the end of a job that no runner writes down.

        :raises OSError: the disk is full, say.
        """
        why = records.one_line(reason)
        record = {"state": state.value, "code": "", "signal": "", "reason": why}
        ended = records.dump_moment(process.now()._replace(boot=boot), "ended", "boot")
        self.settle(quoting.dump({key: os.fsencode(v) for key, v in record.items()} | ended))

    def settle(self, content: bytes) -> bool:
        """Write down the job's end; return False if somebody did so before.

        :raises OSError: the disk is full, say; then all that is there stays.
        """
        aside = f"exit.{os.getpid()}.{threading.get_ident()}"
        try:
            self.put(aside, content)
            first = self._becomes_end(aside)
        except OSError as error:
            try:
                first = self._settle_in_kept_room(content)
            except FileNotFoundError:
                raise error from None
        finally:
            self.unlink(aside)
        for name in ("exit.new", *FOR_HOSTS):
            self.unlink(name)
        if not self.has("sent") and not self.spec().get("on_finish"):
            for name in ("env", "env.odd"):  # as the runner would have done
                self.unlink(name)
        return first

    def _locked(self) -> bool:
        """Whether a runner started here has not ended, whatever became of its record."""
        try:
            with open(self.file("lock"), "rb", opener=records.opened) as lock:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            pass
        return False

    def watched(self, boot: str) -> Identity | None:
        """Return the process whose end may be the job's, None if all have ended."""
        run = records.load(self.file("run"))
        for names in (("runner", "runner_ticks"), ("pid", "ticks")):
            identity = _identity(run, *names, boot)
            if process.alive(identity, boot):
                return identity
        return None

    def names_command(self) -> bool:
        """Whether its record says which process its command is, or was."""
        return "pid" in records.load(self.file("run"))

    def stays_there(self) -> bool:
        """Whether its output is on a host, and does not come here by itself."""
        if self.spec().get("results") != b"remote" or self.has("home"):
            return False
        if self.finished():
            return self.has("sent") or self.has("adopted")  # else the host never had any
        return not self.has("wanted")

    def progress(self) -> tuple[float | None, str | None]:
        """Return percent and message of what the job last wrote to its progress file."""
        try:
            with open(self.file("progress"), "rb", opener=records.opened) as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - 4096))
                lines = file.read(4096).split(b"\n")
        except OSError:
            return None, None
        last = next((line.strip() for line in reversed(lines) if line.strip()), b"")
        if not last:
            return None, None
        text = last.decode("utf-8", "replace")
        first, _, rest = text.partition(" ")
        percent = records.number(first.removesuffix("%").encode())
        if percent is None or not 0 <= percent <= 100:
            return None, text
        return percent, rest.strip()

    # --- its files ---

    def spec(self) -> dict[str, bytes]:
        """Return what the job was to be, which is read once: it does not change."""
        if not self._spec or self.damaged:
            self._spec = records.load(self.file("spec"))
            children = self._spec.get("children")
            number = records.integer(children) if children else 0
            counted = number is not None and number <= self.most_children
            # The instance id is in the last line: without it, the end is missing.
            self.damaged = not (counted and cookie(self._spec.get("instance_id")))
            if self.damaged and self.exists():  # else it is being written
                self._spec |= self._known_otherwise()
        return self._spec

    def _known_otherwise(self) -> dict[str, bytes]:
        """Return what other files than spec tell of what stood there."""
        known, children = records.load(self.file("sent")), self.highest("children")
        if children:
            known["type"] = TYPE_REMOTE.encode()
        return known | {"children": b"%d" % children if children else b""}

    def highest(self, name: str) -> int:
        """Return the highest number that anything has in a folder in here, 0 if nothing has one."""
        return max(records.numbered(self.file(name)), default=0)

    def _settle_in_kept_room(self, content: bytes) -> bool:
        """Write down the job's end where room was kept for it when the job was made."""
        with open(records.opened(self.file("exit.new"), os.O_RDWR), "r+b") as kept:
            # Of two that do so, the second one would write over the end itself.
            fcntl.flock(kept, fcntl.LOCK_EX)
            if self.finished():
                return False
            whole.over(kept.fileno(), content)
            return self._becomes_end("exit.new")

    def _becomes_end(self, name: str) -> bool:
        """Make a file the record of the job's end; return False if there is one already."""
        try:
            os.link(self.file(name), self.file("exit"))
        except FileExistsError:
            if self.finished():
                return False
            os.replace(self.file(name), self.file("exit"))  # its bytes were lost with the power
        return True

    def has(self, name: str) -> bool:
        """Whether there is a file of that name."""
        return os.path.isfile(self.file(name))

    def get(self, name: str) -> bytes:
        """Return what a file holds, nothing if there is none."""
        try:
            with open(self.file(name), "rb", opener=records.opened) as file:
                return file.read()
        except OSError:
            return b""

    def head(self, name: str, most: int) -> bytes:
        """Return the first bytes of a file, nothing if there is none."""
        try:
            with open(self.file(name), "rb", opener=records.opened) as file:
                return file.read(most)
        except OSError:
            return b""

    def put(self, name: str, content: bytes) -> None:
        """Make a file.

        :raises OSError: the disk is full, say; then there is none.
        """
        whole.write(self.file(name), content)

    def replace(self, name: str, content: bytes) -> None:
        """Make a file anew, at once for whoever looks."""
        self.put(f"{name}.next", content)
        os.replace(self.file(f"{name}.next"), self.file(name))

    def unlink(self, name: str) -> None:
        """Delete a file, if there is one."""
        with suppress(OSError):
            os.unlink(self.file(name))

    def claim(self, name: str) -> bool:
        """Make a file; return False if there is one."""
        try:
            os.close(os.open(self.file(name), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        except OSError:
            return False
        return True

    def log(self) -> str:
        """Return what the runner's shell last had to say."""
        try:
            with open(self.file("log"), "rb", opener=records.opened) as file:
                return os.fsdecode(file.read(4096).strip())
        except OSError:
            return ""

    # --- output and marks ---

    def size(self, stream: str) -> int:
        """Return how many bytes a stream has."""
        return records.size(self.file(stream))

    def stamp(self, stream: str) -> tuple[int, int]:
        """Return size and time of the last change of a stream."""
        return records.stamp(self.file(stream))

    def size_of(self, stream: str, fd: int) -> int:
        """Return how many bytes an open stream has, 0 if another file has taken its place."""
        with suppress(OSError):
            about = os.fstat(fd)
            if os.path.samestat(about, os.stat(self.file(stream))):
                return about.st_size
        return 0

    def emptied_at(self, stream: str) -> list[int]:
        """Return where, in what came from a host, that follows which the job wrote anew there."""
        lines = records.whole_lines(self.get("emptied"), _EMPTIED)
        return [int(line[1]) for line in lines if line[2] == stream.encode()]

    def emptied_between(self, stream: str, before: Marks, after: Marks) -> int:
        """Return how often a job on a host has emptied a stream between two marks."""
        first, last = before.mark(stream), after.mark(stream)
        return sum(first <= at < last for at in self.emptied_at(stream))

    def output(self, stream: str) -> BinaryIO:
        """Return a stream, open for reading.

        :raises FileNotFoundError: it, or the job, is gone.
        """
        return open(self.file(stream), "rb", opener=records.opened)

    def marks(self) -> Marks:
        """Return how much was received of what the streams hold now."""
        return self.checked(records.load_marks(self.file("received")))

    def checked(self, marks: Marks) -> Marks:
        """Return marks, anew for each stream that the job has emptied since."""
        return records.checked(marks, self.file)

    def traced(self, marks: Marks) -> Marks:
        """Return marks with what tells later whether the job has emptied a stream since."""
        return records.traced(marks, self.file)

    @contextmanager
    def receiving(self) -> Iterator[Callable[[Marks], None]]:
        """Hold the right to move the marks; gives what moves them.

        :raises OSError: they cannot be written.
        """
        fd = records.opened(self.file("received"), os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield lambda marks: records.move_marks(fd, self.traced(marks))
        finally:
            os.close(fd)

    # --- the end ---

    def delete(self) -> None:
        """Delete the job. It is whole, or set aside in one step and none any more.

        Whoever is killed afterwards leaves the rest to Jobs.numbers().

        :raises OSError: nobody may do that here.
        """
        import shutil

        gone = self.path + GONE
        shutil.rmtree(gone, ignore_errors=True)  # of another one that had this number
        with suppress(FileNotFoundError):
            os.rename(self.path, gone)
        shutil.rmtree(gone, ignore_errors=True)

    def abandoned(self, boot: str) -> bool:
        """Whether this is what a killed `start` left; one that holds the lock reads a pipe."""
        with suppress(OSError):
            old = time.time() - os.stat(self.path).st_mtime > 60
            return old and not (self.exists() or self._locked() or self.watched(boot))
        return False


def began(folder: Folder) -> tuple[Moment, Moment]:
    """Return when the command of a job on a host began, by the clocks of the host and by ours."""
    run = records.load(folder.file("run"))
    return records.moment(run, "began", "boot"), _seen(run, "began")


def cookie(value: bytes | None) -> str:
    """Return an instance id, which goes to other programs, "" if value is none."""
    text = records.text(value)
    return text if _UUID.fullmatch(text) else ""


def _seen(record: dict[str, bytes], name: str) -> Moment:
    """Return when something happened, by the clocks of this machine: see Carried."""
    moment = records.moment(record, name, "boot")
    seen = records.moment(record, "seen", "seen_boot")
    return seen._replace(time=moment.time) if seen.boot else moment


def place_of(run: dict[str, bytes], boot: str) -> tuple[str, Place]:
    """Return the host that the record of a runner names, and where it was written."""
    host = records.text(run.get("host"))
    host = host if _HOST.fullmatch(host) else ""
    return host, process.place_of(host, records.text(run.get("boot")), boot)


def _identity(run: dict[str, bytes], pid: str, start: str, boot: str) -> Identity | None:
    number = records.integer(run.get(pid))
    if number is None or number <= 0 or place_of(run, boot)[1] is not Place.HERE:
        return None
    return Identity(number, records.text(run.get(start)), boot)
