"""The job folder: the truth about one job, in plain files that this file alone names.

The header of runner.sh says what is in them, but for `received`, the read marks, and
`progress`, which belongs to the command.
"""

from __future__ import annotations

import fcntl
import os
import re
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from jobctl import process, quoting, timing
from jobctl.model import LOCALHOST, TYPE_BACKGROUND, Job, JobSpec, Marks, State
from jobctl.process import Identity

STREAMS = ("stdout", "stderr")
PIECE = 1 << 20
"""Bytes moved at a time."""

_SHELL_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
# Names that sh keeps for itself, will not have set, or behaves differently by.
_SHELLS_OWN = frozenset(
    "BASHOPTS BASH_COMPAT BASH_XTRACEFD DIRSTACK EPOCHREALTIME EPOCHSECONDS EUID EXECIGNORE"
    " FUNCNAME FUNCNEST GLOBIGNORE GROUPS HISTCMD IFS LINENO OPTIND PPID PS4 RANDOM SECONDS"
    " SHELLOPTS SRANDOM TMOUT UID".split()
)
_NUMBER = re.compile(r"[1-9]\d{0,17}", re.ASCII)
_RANGE = re.compile(r"(stdout|stderr):(\d{1,18})-(\d{1,18})", re.ASCII)
_DAMAGED = "damaged: the file {} cannot be read"


class Folder:
    """One job's folder. It is a job's from the moment it holds a spec."""

    def __init__(self, path: str) -> None:
        self.path = path

    @property
    def number(self) -> int:
        """The job's number, which is the folder's name."""
        return int(os.path.basename(self.path))

    def file(self, name: str) -> str:
        """Return the path of a file in here."""
        return f"{self.path}/{name}"

    # --- making a job ---

    def write(self, spec: JobSpec) -> None:
        """Write down a job that commit() will make real.

        :raises OSError: the disk is full, say.
        """
        instance_id = str(uuid.uuid4())
        name = spec.name or f"Job{self.number}"
        environment = {
            **spec.env,
            "JOBCTL_ID": str(self.number),
            "JOBCTL_NAME": name,
            "JOBCTL_INSTANCE_ID": instance_id,
            "JOBCTL_HOST": LOCALHOST,
        }
        self._write_environment(environment)
        for stream in (*STREAMS, "lock"):
            self._write(stream, b"")
        self._write("received", _marks_text(Marks()))
        script = ""
        if spec.script is not None:
            # Without #! it would be up to the system what runs it: sh then does.
            executable = self._copy(spec.script, "script") == b"#!"
            script = "executable" if executable else "text"
            os.chmod(self.file("script"), 0o700)
        if spec.stdin is not None:
            self._copy(spec.stdin, "stdin")
        record = {
            "format": "1",
            "instance_id": instance_id,
            "name": name,
            "type": TYPE_BACKGROUND,
            "location": LOCALHOST,
            "command": spec.command,
            "text": spec.text,
            "script": script,
            "init": spec.init,
            "cwd": spec.cwd,
            "umask": f"{spec.umask:04o}",
            "stdin": "/dev/null" if spec.stdin is None else "stdin",
            "merge": "1" if spec.merge else "",
            "timeout": "" if spec.timeout is None else timing.plain(spec.timeout),
            "timeout_text": spec.timeout_text,
            "retries": str(spec.retries),
            "after": " ".join(map(str, spec.after)),
            "after_ok": " ".join(map(str, spec.after_ok)),
            "caller": "" if spec.caller is None else _caller(spec.caller),
            "on_finish": spec.on_finish,
            "created": f"{time.time():.6f}",
        }
        fields = {key: os.fsencode(value) for key, value in record.items()}
        fields["argv"] = quoting.join(map(os.fsencode, spec.argv))
        fields["words"] = quoting.join(map(os.fsencode, spec.words))
        self._write("spec.new", quoting.dump(fields))
        _sync(self.file("spec.new"))

    def commit(self) -> None:
        """Make the job real, and that durable."""
        os.rename(self.file("spec.new"), self.file("spec"))
        _sync(self.path)
        _sync(os.path.dirname(self.path))

    def _write_environment(self, environment: dict[str, str]) -> None:
        lines, odd = [], []
        for name, value in environment.items():
            pair = os.fsencode(f"{name}={value}")
            if not _SHELL_NAME.fullmatch(name) or name in _SHELLS_OWN or name[:7] == "jobctl_":
                odd.append(pair)
            elif name != "_":  # the shell's word for what it last ran
                lines.append(b"export " + quoting.quote(pair) + b"\n")
        self._write("env", b"".join(lines))
        if odd:
            self._write("env.odd", b"set -- /usr/bin/env " + quoting.join(odd) + b' "$@"\n')

    def _write(self, name: str, content: bytes) -> None:
        with open(self.file(name), "wb", opener=_private) as file:
            file.write(content)

    def _copy(self, source: int, name: str) -> bytes:
        """Copy an open file to its end; return its first two bytes."""
        start = b""
        with open(self.file(name), "wb", opener=_private) as file:
            while piece := os.read(source, PIECE):
                start = (start + piece[:2])[:2]
                file.write(piece)
        return start

    # --- reading a job ---

    def exists(self) -> bool:
        """Whether this is a job's folder."""
        return os.path.exists(self.file("spec"))

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
        if not self.exists():
            return None
        spec = self._record("spec")
        known: dict[str, Any] = {
            "name": os.fsdecode(spec.get("name", b"")),
            "instance_id": _ascii(spec.get("instance_id")),
            "command": os.fsdecode(spec.get("command", b"")),
            "argv": tuple(map(os.fsdecode, quoting.split(spec.get("words", b"")))),
            "cwd": os.fsdecode(spec.get("cwd", b"")),
            "created_at": _number(spec.get("created")),
        }
        unfinished = None if self.finished() else self._unfinished(boot)
        known |= unfinished or self._finished()
        run = self._record("run")
        known |= {
            "pid": _integer(run.get("pid")),
            "began_at": _number(run.get("began")),
            "began_uptime": _number(run.get("began_uptime")),
        }
        known["percent"], known["message"] = self.progress()
        job = Job(str(self.number), **known)
        return job if unfinished else job._replace(elapsed=_elapsed(job, _ascii(run.get("boot"))))

    def _unfinished(self, boot: str) -> dict[str, Any] | None:
        """Return what is known of an unfinished job, None if it turns out to be finished."""
        run = self._record("run")
        runner = process.alive(_identity(run, "runner", "runner_ticks"), boot)
        command = process.alive(_identity(run, "pid", "ticks"), boot)
        if runner or command:
            if "pid" not in run:
                other = _ascii(run.get("waiting"))
                reason = f"waiting for job {other}" if other else "starting"
                return {"state": State.NOT_STARTED, "reason": reason}
            if os.path.exists(self.file("stop")):
                return {"state": State.STOPPING}
            if command and command.condition in "Tt":
                return {"state": State.SUSPENDED}
            return {"state": State.RUNNING}
        if self.finished():
            return None
        if not run and self._locked():  # the job deleted the file
            return {"state": State.RUNNING}
        host = run.get("host", b"").decode("utf-8", "replace")
        if _ascii(run.get("boot")) == boot:
            reason = "lost: runner was killed"
        elif not run:
            reason = _DAMAGED.format("run")
        elif host == process.hostname():
            reason = "lost: host rebooted"
        else:
            # A home directory shared by several machines: only that one can tell.
            return {
                "state": State.DISCONNECTED,
                "location": host,
                "reason": f"runs on {host}, which shares this state directory",
            }
        self._settle_lost(reason, boot)
        if self.finished():
            return None
        return {"state": State.FAILED, "reason": reason}  # the disk takes nothing

    def _finished(self) -> dict[str, Any]:
        """Return what is known of a finished job."""
        record = self._record("exit")
        try:
            state, reason = State(_ascii(record.get("state"))), record.get("reason", b"")
            if not state.finished:
                raise ValueError(state)
        except ValueError:
            state, reason = State.FAILED, _DAMAGED.format("exit").encode()
        marks = self.marks()
        return {
            "state": state,
            "reason": os.fsdecode(reason),
            "exit_code": _integer(record.get("code")),
            "signal": _integer(record.get("signal")),
            "ended_at": _number(record.get("ended")),
            "ended_boot": _ascii(record.get("boot")),
            "ended_uptime": _number(record.get("ended_uptime")),
            "has_more_data": any(marks.next(stream, self.size(stream)) for stream in STREAMS),
        }

    def _settle_lost(self, reason: str, boot: str) -> None:
        """Write down that nobody knows how the job ended, unless somebody does."""
        uptime = process.uptime()
        record = {
            "state": State.FAILED.value,
            "code": "",
            "signal": "",
            "reason": reason,
            "ended": f"{time.time():.6f}",
            "ended_uptime": "" if uptime is None else f"{uptime:.2f}",
            "boot": boot,
        }
        aside = f"exit.{os.getpid()}"
        with suppress(OSError):
            self._write(aside, quoting.dump({key: os.fsencode(v) for key, v in record.items()}))
            try:
                os.link(self.file(aside), self.file("exit"))
            except FileExistsError:
                if not self.finished():  # empty: its bytes were lost with the power
                    os.replace(self.file(aside), self.file("exit"))
        for name in (aside, "env", "env.odd", "exit.new"):  # as the runner would have done
            with suppress(OSError):
                os.unlink(self.file(name))

    def _locked(self) -> bool:
        """Whether a runner started here has not ended, whatever became of its record."""
        try:
            with open(self.file("lock"), "rb") as lock:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            pass
        return False

    def watched(self, boot: str) -> Identity | None:
        """Return the process whose end may be the job's, None if all have ended."""
        run = self._record("run")
        for names in (("runner", "runner_ticks"), ("pid", "ticks")):
            identity = _identity(run, *names)
            if process.alive(identity, boot):
                return identity
        return None

    def progress(self) -> tuple[float | None, str | None]:
        """Return percent and message of what the job last wrote to its progress file."""
        try:
            with open(self.file("progress"), "rb", opener=_at_once) as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - 4096))
                lines = file.read(4096).split(b"\n")
        except OSError:
            return None, None
        last = next((line.strip() for line in reversed(lines) if line.strip()), b"")
        if not last:
            return None, None
        text = last.decode("utf-8", "replace")
        first, _, rest = text.partition(" ")
        percent = _number(first.removesuffix("%").encode())
        if percent is None or not 0 <= percent <= 100:
            return None, text
        return percent, rest.strip()

    def log(self) -> str:
        """Return what the runner's shell last had to say."""
        try:
            with open(self.file("log"), "rb") as file:
                return os.fsdecode(file.read(4096).strip())
        except OSError:
            return ""

    def _record(self, name: str) -> dict[str, bytes]:
        try:
            with open(self.file(name), "rb", opener=_at_once) as file:
                return quoting.load(file.read())
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            return {}

    # --- output and marks ---

    def size(self, stream: str) -> int:
        """Return how many bytes a stream has."""
        try:
            return os.stat(self.file(stream)).st_size
        except OSError:
            return 0

    def marks(self) -> Marks:
        """Return how much was received."""
        record = self._record("received")
        ranges = _RANGE.findall(_ascii(record.get("returned")))
        return Marks(
            _integer(record.get("stdout")) or 0,
            _integer(record.get("stderr")) or 0,
            record.get("told") == b"1",
            tuple((stream, int(start), int(end)) for stream, start, end in ranges),
        )

    @contextmanager
    def receiving(self) -> Iterator[int]:
        """Hold the right to move the marks; gives what move_marks() takes."""
        fd = _private(self.file("received"), os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield fd
        finally:
            os.close(fd)

    # --- the end ---

    def delete(self) -> None:
        """Delete the job. From the first moment on it is none any more."""
        import shutil

        with suppress(FileNotFoundError):
            os.unlink(self.file("spec"))
        shutil.rmtree(self.path, ignore_errors=True)

    def abandoned(self, boot: str) -> bool:
        """Whether this is what a killed `start` left behind."""
        try:
            age = time.time() - os.stat(self.path).st_mtime
        except OSError:
            return False
        return age > 60 and not self.exists() and self.watched(boot) is None


def move_marks(fd: int, marks: Marks) -> None:
    """Write down how much was received.

    In place, and with one call: that takes no room which a full disk does not have.
    """
    text = _marks_text(marks)
    os.pwrite(fd, text, 0)
    if os.fstat(fd).st_size > len(text):
        os.ftruncate(fd, len(text))


def _marks_text(marks: Marks) -> bytes:
    """Return marks as a record, filled up to a multiple of the size of a disk's sector."""
    ranges = (f"{stream}:{start}-{end}" for stream, start, end in marks.returned_ranges)
    text = quoting.dump(
        {
            "stdout": b"%d" % marks.stdout,
            "stderr": b"%d" % marks.stderr,
            "told": b"1" if marks.told else b"",
            "returned": " ".join(ranges).encode(),
        }
    )
    return text + b"\n" * (-len(text) % 512)


class Jobs:
    """The folder of all job folders."""

    def __init__(self, state_dir: str) -> None:
        self.path = f"{state_dir}/jobs"
        self._last = f"{state_dir}/last"

    def folder(self, number: int) -> Folder:
        """Return the folder of a job that need not exist."""
        return Folder(f"{self.path}/{number}")

    def numbers(self) -> list[int]:
        """Return the numbers of all folders, in no order."""
        try:
            return [int(name) for name in os.listdir(self.path) if _NUMBER.fullmatch(name)]
        except FileNotFoundError:
            return []

    def stamp(self) -> int:
        """Return what changes when a folder comes or goes: nanoseconds since 1970."""
        try:
            return os.stat(self.path).st_mtime_ns
        except FileNotFoundError:
            return 0

    def allocate(self) -> Folder:
        """Make the folder of the next job. Its number was never used before.

        The file `last` keeps the highest number given out, as removed jobs leave no trace
        here. mkdir has the last word.

        :raises OSError: the disk is full, say.
        """
        os.makedirs(self.path, mode=0o700, exist_ok=True)
        with open(_private(self._last, os.O_RDWR | os.O_CREAT), "r+b") as last:
            fcntl.flock(last, fcntl.LOCK_EX)
            number = _integer(last.read(21).strip()) or max(self.numbers(), default=0)
            while True:
                number += 1
                try:
                    os.mkdir(f"{self.path}/{number}", 0o700)
                    break
                except FileExistsError:
                    continue
            try:
                os.pwrite(last.fileno(), b"%020d\n" % number, 0)
            except OSError:
                os.rmdir(f"{self.path}/{number}")
                raise
        return self.folder(number)


def _identity(run: dict[str, bytes], pid: str, start: str) -> Identity | None:
    number = _integer(run.get(pid))
    if number is None or number <= 0:
        return None
    return Identity(number, _ascii(run.get(start)), _ascii(run.get("boot")))


def _elapsed(job: Job, began_boot: str) -> float | None:
    """Return the seconds that a finished job took, by the clock that nobody sets if can be."""
    if job.began_at is None or job.ended_at is None:
        return None
    if began_boot == job.ended_boot and None not in (job.began_uptime, job.ended_uptime):
        return max(0.0, (job.ended_uptime or 0.0) - (job.began_uptime or 0.0))
    return max(0.0, job.ended_at - job.began_at)


def _caller(pid: int) -> str:
    sight = process.look(pid)
    return f"{pid} {sight.start if sight else ''}"


def _ascii(text: bytes | None) -> str:
    return (text or b"").decode("ascii", "replace")


def _integer(text: bytes | None) -> int | None:
    return int(text) if text and text.isdigit() and len(text) < 21 else None


def _number(text: bytes | None) -> float | None:
    try:
        number = float(text or b"")
    except ValueError:
        return None
    return number if abs(number) < 1e12 else None


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _at_once(path: str, flags: int) -> int:
    """Open a file without waiting: a job may have put a pipe in its place."""
    return os.open(path, flags | os.O_NONBLOCK)


def _sync(path: str) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
