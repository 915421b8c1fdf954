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
from typing import Any, BinaryIO

from jobctl import process, quoting, records, timing
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
_UUID = re.compile(r"[0-9a-f-]{36}", re.ASCII)
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
        self._write("received", records.dump_marks(Marks()))
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
        return os.path.isfile(self.file("spec"))

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
        spec = records.load(self.file("spec"))
        known: dict[str, Any] = {
            "name": os.fsdecode(spec.get("name", b"")),
            "instance_id": _cookie(spec.get("instance_id")),
            "command": os.fsdecode(spec.get("command", b"")),
            "argv": tuple(map(os.fsdecode, quoting.split(spec.get("words", b"")))),
            "cwd": os.fsdecode(spec.get("cwd", b"")),
            "created_at": records.number(spec.get("created")),
        }
        unfinished = None if self.finished() else self._unfinished(boot)
        known |= unfinished or self._finished()
        run = records.load(self.file("run"))
        known |= {
            "pid": records.integer(run.get("pid")),
            "began_at": records.number(run.get("began")),
            "began_uptime": records.number(run.get("began_uptime")),
        }
        known["percent"], known["message"] = self.progress()
        job = Job(str(self.number), **known)
        if unfinished:
            return job
        return job._replace(elapsed=_elapsed(job, records.text(run.get("boot"))))

    def _unfinished(self, boot: str) -> dict[str, Any] | None:
        """Return what is known of an unfinished job, None if it turns out to be finished."""
        run = records.load(self.file("run"))
        runner = process.alive(_identity(run, "runner", "runner_ticks"), boot)
        command = process.alive(_identity(run, "pid", "ticks"), boot)
        if runner or command:
            if "pid" not in run:
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
        host = run.get("host", b"").decode("utf-8", "replace")
        if not host and self._locked():  # the job deleted or damaged the file
            return {"state": State.RUNNING}
        if records.text(run.get("boot")) == boot:
            reason = "lost: runner was killed"
        elif not host:
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
        record = records.load(self.file("exit"))
        try:
            state, reason = State(records.text(record.get("state"))), record.get("reason", b"")
            if not state.finished:
                raise ValueError(state)
        except ValueError:
            state, reason = State.FAILED, _DAMAGED.format("exit").encode()
        # Asked first: what is written after that is seen when it is asked again.
        still_written = any(records.being_written(self.file(stream)) for stream in STREAMS)
        marks = self.marks()
        return {
            "state": state,
            "reason": os.fsdecode(reason),
            "exit_code": records.integer(record.get("code")),
            "signal": records.integer(record.get("signal")),
            "ended_at": records.number(record.get("ended")),
            "ended_boot": records.text(record.get("boot")),
            "ended_uptime": records.number(record.get("ended_uptime")),
            "still_written": still_written,
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
            identity = _identity(run, *names)
            if process.alive(identity, boot):
                return identity
        return None

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

    def output(self, stream: str) -> BinaryIO:
        """Return a stream, open for reading.

        :raises FileNotFoundError: it, or the job, is gone.
        """
        return open(self.file(stream), "rb", opener=records.opened)

    def marks(self) -> Marks:
        """Return how much was received."""
        return records.load_marks(self.file("received"))

    @contextmanager
    def receiving(self) -> Iterator[int]:
        """Hold the right to move the marks; gives what records.move_marks() takes.

        :raises OSError: they cannot be written.
        """
        fd = records.opened(self.file("received"), os.O_RDWR | os.O_CREAT)
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
            if self.exists():
                os.unlink(self.file("spec"))
        shutil.rmtree(self.path, ignore_errors=True)

    def abandoned(self, boot: str) -> bool:
        """Whether this is what a killed `start` left behind."""
        try:
            age = time.time() - os.stat(self.path).st_mtime
        except OSError:
            return False
        return age > 60 and not self.exists() and self.watched(boot) is None


class Jobs:
    """The folder of all job folders."""

    def __init__(self, state_dir: str) -> None:
        self.path = f"{state_dir}/jobs"
        self._state_dir = state_dir

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
        here, and `last.copy` should somebody delete or damage it. mkdir has the last word.

        :raises OSError: the disk is full, say.
        """
        os.makedirs(self.path, mode=0o700, exist_ok=True)
        with self._counter("last") as last, self._counter("last.copy") as copy:
            fcntl.flock(last, fcntl.LOCK_EX)
            number = max(_counted(last), _counted(copy)) or max(self.numbers(), default=0)
            while True:
                number += 1
                try:
                    os.mkdir(f"{self.path}/{number}", 0o700)
                    break
                except FileExistsError:
                    continue
            try:
                for counter in (copy, last):
                    os.pwrite(counter.fileno(), b"%020d\n" % number, 0)
            except OSError:
                os.rmdir(f"{self.path}/{number}")
                raise
        return self.folder(number)

    def _counter(self, name: str) -> BinaryIO:
        path = f"{self._state_dir}/{name}"
        return open(records.opened(path, os.O_RDWR | os.O_CREAT), "r+b", buffering=0)


def _counted(counter: BinaryIO) -> int:
    """Return the number in a file, 0 if there is none that can be a job's."""
    digits = records.text(os.pread(counter.fileno(), 21, 0).strip().lstrip(b"0"))
    return int(digits) if _NUMBER.fullmatch(digits) else 0


def _cookie(value: bytes | None) -> str:
    """Return an instance id, which goes to other programs, "" if value is none."""
    text = records.text(value)
    return text if _UUID.fullmatch(text) else ""


def _identity(run: dict[str, bytes], pid: str, start: str) -> Identity | None:
    number = records.integer(run.get(pid))
    if number is None or number <= 0:
        return None
    return Identity(number, records.text(run.get(start)), records.text(run.get("boot")))


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


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _sync(path: str) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
