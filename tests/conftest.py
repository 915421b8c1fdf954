"""What every test has: a state directory of its own, and the program as users call it."""

from __future__ import annotations

import itertools
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import keeper
import pytest
import quick
from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]

pytest_plugins = ("sshd", "far")

PROGRAM = os.path.join(os.path.dirname(sys.executable), "jobctl")
ENDS = {
    "true": ("Completed", "", 0, None),
    "exit 3": ("Failed", "exit status 3", 3, None),
    "kill -9 $$": ("Failed", "killed by signal 9 (KILL)", None, 9),
    "kill -TERM $$": ("Failed", "killed by signal 15 (TERM)", None, 15),
    "exit 137": ("Failed", "exit status 137", 137, None),
}
"""Shell text, and the state, reason, exit status and signal that it ends with."""
WEIRD = "a'; echo foo $(b) \"\n\\ *"
"""A name that whoever quotes wrongly falls over."""


def first_of(*values: Any) -> list[Any]:
    """Return parameters that hardly differ: a plain run tries the first alone, --all all."""
    return [values[0], *(pytest.param(value, marks=pytest.mark.long) for value in values[1:])]


def rows_of(table: Sequence[tuple[Any, ...]], plain: int) -> list[Any]:
    """Return rows of parameters that hardly differ: a plain run tries so many of them."""
    rest = (pytest.param(*row, marks=pytest.mark.long) for row in table[plain:])
    return [*table[:plain], *rest]


SHELLS = ("dash", "bash --posix", "busybox sh")
"""What a host may have as its sh."""
ONE_SHELL = first_of(*SHELLS)
"""The same for what depends little on the shell."""


def strace(calls: str, *words: str, log: str | Path = os.devnull) -> list[str]:
    """Return the words that trace some system calls, and let all others go at full speed.

    Not so where a signal is injected: the kernel passes over one at a stop of seccomp.
    """
    fast = [] if any(":signal=" in word for word in words) else ["--seccomp-bpf"]
    return ["strace", "-f", *fast, "-qq", "-o", str(log), "-e", f"trace={calls}", *words]


LEFT_OUT = pytest.StashKey[int]()
KEEPER = pytest.StashKey[keeper.Keeper]()
PATIENCE = 60.0
"""Seconds after which what should come about will not; they cost nothing where it does."""


def shell_words(shell: str) -> list[str]:
    """Return the words that call one of SHELLS, and fail if it is not here."""
    name, *rest = shell.split()
    path = shutil.which(name)
    if path is None:
        pytest.fail(f"{name} is not installed; tests/run.sh installs it")
    return [path, *rest]


def wait_until(predicate: Callable[[], object], seconds: float = PATIENCE) -> Any:
    """Return what predicate returns once that is true; fail with what it last returned.

    It looks for a sixth of the time at most, as looking may be dear.
    """
    began = looked = time.monotonic()
    while not (result := _found(predicate)):
        now = time.monotonic()
        if now > began + seconds:
            pytest.fail(f"still {result!r} after {seconds} s")
        time.sleep(max(0.01, 5 * (now - looked)))
        looked = time.monotonic()
    return result


def _found(predicate: Callable[[], object]) -> object:
    """Return what predicate returns; False if the file that it reads is not there yet."""
    try:
        return predicate()
    except FileNotFoundError:
        return False


def shown(leader: int) -> bytes:
    """Return what a terminal shows, to the end of a line.

    The kernel hands over in pieces what was written at once.
    """
    text, deadline = b"", time.monotonic() + PATIENCE
    while not text.endswith(b"\n"):
        if not select.select([leader], [], [], max(0.0, deadline - time.monotonic()))[0]:
            pytest.fail(f"a terminal shows {text!r}, and no end of a line")
        text += os.read(leader, 4096)
    return text


class Jobctl:
    """The command line, with a state directory of its own."""

    def __init__(self, state_dir: Path, home: Path) -> None:
        self.state_dir = state_dir
        self.env = {
            "PATH": f"{os.path.dirname(PROGRAM)}:/usr/local/bin:/usr/bin:/bin",
            "HOME": str(home),
            "JOBCTL_STATE_DIR": str(state_dir),
        }
        self.forked: list[quick.Process] = []

    def run(
        self, *words: str | bytes, status: int | None = 0, **options: Any
    ) -> subprocess.CompletedProcess[bytes]:
        """Run it to its end and check its exit status."""
        options.setdefault("env", self.env)
        if "input" not in options:
            options.setdefault("stdin", subprocess.DEVNULL)
        options.setdefault("stdout", subprocess.PIPE)
        options.setdefault("stderr", subprocess.PIPE)
        timeout = options.pop("timeout", 120)
        if quick.can(words, options):
            result = quick.run(PROGRAM, words, timeout, **options)
        else:
            result = subprocess.run([PROGRAM, *words], timeout=timeout, **options)
        if status is not None:
            assert result.returncode == status, (words, result)
        return result

    def out(self, *words: str | bytes, status: int | None = 0, **options: Any) -> str:
        """Run it and return what it wrote to standard output."""
        return self.run(*words, status=status, **options).stdout.decode()

    def refused(self, status: int, *words: str | bytes, **options: Any) -> str:
        """Run it, check that it refuses with one line on stderr and none on stdout."""
        result = self.run(*words, status=status, **options)
        assert result.stdout == b"", result
        lines = result.stderr.decode().splitlines()
        assert len(lines) == 1, result
        assert lines[0].startswith("jobctl: ")
        assert lines[0].isprintable()
        return lines[0]

    def popen(self, *words: str, **options: Any) -> subprocess.Popen[bytes]:
        """Start it without waiting for its end."""
        options.setdefault("env", self.env)
        options.setdefault("stdin", subprocess.DEVNULL)
        if not quick.can(words, options):
            return subprocess.Popen([PROGRAM, *words], **options)
        self.forked.append(quick.Process(PROGRAM, words, **options))
        return self.forked[-1]

    def start(self, *words: str | bytes, **options: Any) -> str:
        """Start a job and return its id."""
        return self.out("start", "-q", *words, **options).strip()

    def sh(self, text: str, *options: str) -> str:
        """Start shell text as a job and return its id."""
        return self.start(*options, "-c", text)

    def done(self, *words: str | bytes, **options: Any) -> str:
        """Start a job, wait for its end and return its id."""
        job = self.start(*words, **options)
        self.run("wait", job, status=None)
        return job

    def jobs(self, *words: str) -> list[dict[str, Any]]:
        """Return the records that `get` prints."""
        records: list[dict[str, Any]] = json.loads(self.out("get", "-o", "json", *words))
        return records

    def job(self, job: str) -> dict[str, Any]:
        """Return the record of one job."""
        return self.jobs(job)[0]

    def state(self, job: str) -> str:
        """Return the state of one job."""
        return str(self.job(job)["state"])

    def folder(self, job: str) -> Path:
        """Return the folder of a job."""
        return self.state_dir / "jobs" / job

    def until(self, job: str, state: str) -> None:
        """Wait until a job is in a state."""
        wait_until(lambda: self.state(job) == state or None)

    def stop_all(self) -> None:
        """Stop the jobs that may be unfinished, if there are any."""
        if self.state_dir.is_dir():
            self.state_dir.chmod(0o700)
        folders = list(self.state_dir.glob("jobs/[0-9]*"))
        if not all((folder / "exit").exists() for folder in folders):
            self.run("stop", "--all", "--grace", "0", status=None)
        while self.forked:  # nothing_left() does not see them: their environment is another's
            self.forked.pop().left(PATIENCE / 2)

    def runner_pid(self, job: str) -> int:
        """Return the process that runs a job's command."""
        line = (self.folder(job) / "run").read_text().splitlines()[0]
        return int(line.removeprefix("runner='").removesuffix("'"))


def false_clock(offset: str) -> dict[str, str]:
    """Return the variables that have programs see another time, earlier or later by offset.

    faketime tells. It fails if one of the same process id was killed, whose memory is still there.
    """
    words = ["faketime", "-f", offset, "printenv", "LD_PRELOAD"]
    for _ in range(100):
        told = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        if not told.returncode:
            library = told.stdout.strip()
            known = {"LD_PRELOAD": library, "FAKETIME": offset}
            return {**known, "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    pytest.fail(f"{words} always fails")


def at_rest(process: subprocess.Popen[bytes]) -> None:
    """Wait until a process has begun and does nothing any more but wait, for half a second.

    One that only waits for a processor is not at rest.
    """
    used, began, since = "", False, time.monotonic()
    deadline = since + PATIENCE
    while time.monotonic() - since < 0.5 or not began:
        if time.monotonic() > deadline:
            pytest.fail(f"process {process.pid} is never at rest")
        folder = Path(f"/proc/{process.pid}")
        try:  # hundredths of a second, of which one that was forked may use none
            fields = (folder / "stat").read_text().rpartition(") ")[2].split()
            now, sleeps = str(fields[11:13]), fields[0] == "S"
            began = began or (folder / "schedstat").read_text().split()[0] != "0"
        except OSError:
            words = ["ps", "-o", "time=", "-p", str(process.pid)]
            now = subprocess.run(words, stdout=subprocess.PIPE, text=True).stdout
            began = sleeps = True
        if now != used or not sleeps:
            used, since = now, time.monotonic()
        elif process.poll() is not None:
            return
        time.sleep(0.02)


def at_home(home: Path) -> dict[int, str]:
    """Return the living processes that have this home directory, with what they run."""
    found, wanted = {}, b"\0" + os.fsencode(f"HOME={home}") + b"\0"
    for pid, environ in _of_all("environ"):
        if wanted in b"\0" + environ:
            with suppress(OSError):
                found[pid] = _content(f"/proc/{pid}/cmdline").replace(b"\0", b" ")
    return {pid: os.fsdecode(words) for pid, words in found.items() if words}


def _of_all(name: str) -> Iterator[tuple[int, bytes]]:
    """Yield what a file below /proc holds of all processes but this one."""
    for pid in os.listdir("/proc") if os.path.isdir("/proc") else []:
        if pid.isdigit() and int(pid) != os.getpid():
            with suppress(OSError):
                yield int(pid), _content(f"/proc/{pid}/{name}")


def _content(path: str) -> bytes:
    """Return what a file holds: this takes a third of the time of pathlib, thousands of times."""
    fd = os.open(path, os.O_RDONLY)
    try:
        pieces = [os.read(fd, 1 << 15)]
        while pieces[-1]:
            pieces.append(os.read(fd, 1 << 15))
    finally:
        os.close(fd)
    return b"".join(pieces)


def living_slots(folder: Path) -> list[int]:
    """Return the processes of the slots that live, of all jobs with items in or below a folder."""
    found = []
    for path in folder.glob("**/slots/*/self"):
        words = path.read_text().split()
        if not words:
            continue  # it is about to say who it is
        pid, start = words[:2]
        try:
            stat = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
        except OSError:
            continue
        if stat[19] == start and stat[0] != "Z":
            found.append(int(pid))
    return found


_SLEEPERS = itertools.cycle(range(100))


def sleeper() -> str:
    """Return a command that sleeps for decades, and that nobody else runs on this machine.

    Tests run beside each other, and whole runs of them do. All numbers are of the same length, so
    that none begins as another one does.
    """
    return f"sleep 1{os.getpid():07}{next(_SLEEPERS):02}"


def processes_with(text: str) -> list[int]:
    """Return the pids of living processes that have text among their arguments."""
    return [pid for pid, arguments in _living() if text in arguments]


def sleeping(nap: str) -> list[int]:
    """Return the pids of living processes that run just this command.

    A shell that is about to run it has it among its arguments too.
    """
    return [pid for pid, arguments in _living() if arguments.strip() == nap]


def _living() -> Iterator[tuple[int, str]]:
    """Yield the pids of all living processes but this one, with their arguments."""
    if sys.platform == "linux":
        for number, words in _of_all("cmdline"):
            if words:  # a zombie has none
                yield number, os.fsdecode(words.replace(b"\0", b" "))
        return
    listing = subprocess.run(
        ["ps", "-A", "-ww", "-o", "pid=,state=,args="], stdout=subprocess.PIPE, text=True
    ).stdout
    for line in listing.splitlines():
        pid, state, arguments = line.split(None, 2)
        if state[0] not in "ZX" and int(pid) != os.getpid():
            yield int(pid), arguments


def parent_of(pid: int) -> int:
    """Return the parent of a process, 0 if that has ended; only on Linux."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[1])
    except OSError:
        return 0


def nothing_left(*homes: Path, but: Iterable[int] = ()) -> None:
    """Fail if a process goes on that has one of these home directories; end it.

    :param but: those that were there before.
    """
    deadline = time.monotonic() + PATIENCE / 2  # less than most sleepers sleep

    def of_ours() -> dict[int, str]:
        found = {pid: words for home in homes for pid, words in at_home(home).items()}
        return {pid: words for pid, words in found.items() if pid not in but}

    while left := of_ours():
        if time.monotonic() > deadline:
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            pytest.fail(f"left running: {left}")
        time.sleep(0.05)


@pytest.fixture(autouse=True)
def _home_untouched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Keep every test from the real home and the real jobs."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in [name for name in os.environ if name.startswith(("JOBCTL_", "XDG_"))]:
        monkeypatch.delenv(name)


@pytest.fixture
def jobctl(tmp_path: Path) -> Iterator[Jobctl]:
    """Give the program, and leave no job behind."""
    program = Jobctl(tmp_path / "state", tmp_path)
    yield program
    program.stop_all()
    nothing_left(tmp_path)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let the long tests be asked for."""
    parser.addoption("--all", action="store_true", help="run the long tests too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the long tests that are not asked for; see pytest_terminal_summary()."""
    named = "".join(config.args)

    def wanted(item: pytest.Item) -> bool:
        return (
            config.option.all
            or not item.get_closest_marker("long")
            or item.nodeid.partition("[")[0] in named
        )

    left_out = [item for item in items if not wanted(item)]
    items[:] = [item for item in items if wanted(item)]
    config.hook.pytest_deselected(items=left_out)
    config.stash[LEFT_OUT] = len(left_out)
    if hasattr(config, "workeroutput"):
        config.workeroutput["left_out"] = len(left_out)


class _ByFunction(LoadScopeScheduling):  # type: ignore[misc]
    """What one function tests is run in one process, one after the other: it has its names."""

    def _split_scope(self, nodeid: str) -> str:
        return nodeid.partition("[")[0]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> _ByFunction:
    """Share the tests out among the processes of pytest-xdist."""
    return _ByFunction(config, log)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take over from a process of pytest-xdist how many tests it left out."""
    left_out = getattr(node, "workeroutput", {}).get("left_out", 0)
    node.config.stash[LEFT_OUT] = left_out


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Say what was not run."""
    if left_out := config.stash.get(LEFT_OUT, 0):
        how = "'sh tests/run.sh --all' runs them too"
        terminalreporter.write_sep("=", f"{left_out} long tests were left out; {how}", yellow=True)


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    """Have somebody watch over the run who ends what it leaves behind; see keeper.py."""
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
        # As behind nohup or `&`. With a function, only we ignore it, and not what we start.
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, lambda *_: None)
    if not hasattr(config, "workerinput") and not config.option.collectonly:
        base = config._tmp_path_factory.getbasetemp()  # type: ignore[attr-defined]
        config.stash[KEEPER] = keeper.Keeper(base)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> Generator[None, object, object]:
    """Once all is over, say what was left running, which is a failure."""
    result = yield
    if watcher := session.config.stash.get(KEEPER, None):
        quick.end()
        if left := watcher.end():
            print(f"\nleft running by the tests:\n{left}", file=sys.stderr)
            session.exitstatus = session.exitstatus or pytest.ExitCode.TESTS_FAILED
    return result
