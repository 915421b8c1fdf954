"""Calls the program without a start of Python for each call, which is most of what a call costs.

For each subcommand there is one process that has imported it, and what many calls import when
they come to it (MOST); a call is a fork of it that gets the words, the environment, the folder
and the standard files of the call, and then does what the program's own script does. What
shows how a process was started is called as users call it: see can().
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from typing import Any, NoReturn

COMMANDS = ("start", "get", "receive", "wait", "stop", "remove", "session")
MOST = ("jobctl.store", "jobctl.ops.find", "tabulate", "click._termui_impl", "difflib", "shlex")
_OPTIONS = {"env", "cwd", "input", "stdin", "stdout", "stderr", "start_new_session", "umask"}
_READ_AT_START = ("LC_", "LANG", "PYTHON", "COVERAGE_", "LD_")
"""What Python and the loader take from the environment when they start."""
_LARGEST = 64 * 1024
"""Bytes of words and environment; more is for the kernel to judge."""


def can(words: Sequence[str | bytes], options: Mapping[str, Any]) -> bool:
    """Whether a call does the same this way."""
    pairs = [(os.fsdecode(k), os.fsdecode(v)) for k, v in options["env"].items()]
    return (
        bool(words)
        and words[0] in COMMANDS
        and "--with-parent" not in words
        and options.keys() <= _OPTIONS
        and not any(name.startswith(_READ_AT_START) for name, _ in pairs)
        and sum(map(len, words)) + sum(len(k) + len(v) for k, v in pairs) < _LARGEST
    )


# --- on the side of the tests ---

_servers: dict[str, socket.socket] = {}
_one_at_a_time = threading.Lock()


def _server(program: str, word: str | bytes) -> socket.socket:
    """Return the way to the process for a subcommand, which ends when we do."""
    command = os.fsdecode(word)
    if command not in _servers:
        ours, theirs = socket.socketpair()
        with theirs:
            words = [sys.executable, __file__, program, command, str(theirs.fileno())]
            environ = {"PATH": os.environ["PATH"]}
            subprocess.Popen(
                words, env=environ, cwd="/", stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()]
            )
        _servers[command] = ours
    return _servers[command]


def end() -> None:
    """End the processes that are forked."""
    while _servers:
        _servers.popitem()[1].close()


class Process(subprocess.Popen[bytes]):
    """What subprocess.Popen() returns for the program and these words, if can()."""

    def __init__(self, program: str, words: Sequence[str | bytes], **options: Any) -> None:
        self._child_created = False  # what Popen's own methods ask for
        self._communication_started = False
        self._input: bytes | None = None
        self.text_mode = self.encoding = self.errors = None
        self._sigint_wait_secs = 0.25
        self.args = [program, *words]
        self.returncode: int | None = None
        self._theirs: list[int] = []
        with ExitStack() as theirs:
            self.stdin = self._file(theirs, 0, options.get("stdin"))
            self.stdout = self._file(theirs, 1, options.get("stdout"))
            self.stderr = self._file(theirs, 2, options.get("stderr"))
            self._answer = self._file(theirs, 3, subprocess.PIPE)
            self._call(program, words, options)
        self._told = os.read(self._answer.fileno(), 64)
        self.pid = int(self._told.split()[0])
        self._child_created = True

    def _file(self, theirs: ExitStack, number: int, how: Any) -> Any:
        """Return our end of a file, if it is a pipe, and have theirs go when they have it."""
        ours = None
        if how == subprocess.PIPE:
            reader, writer = os.pipe()
            fd, own = (reader, writer) if number == 0 else (writer, reader)
            ours = open(own, "wb" if number == 0 else "rb")
        elif how == subprocess.DEVNULL:
            fd = os.open(os.devnull, os.O_RDWR)
        elif how == subprocess.STDOUT:
            fd = os.dup(self._theirs[1])
        else:
            fd = number if how is None else how if isinstance(how, int) else how.fileno()
            fd = os.dup(fd)
        self._theirs.append(fd)
        theirs.callback(os.close, fd)
        return ours

    def _call(self, program: str, words: Sequence[str | bytes], options: Mapping[str, Any]) -> None:
        request = {
            "words": [os.fsdecode(word) for word in words],
            "env": [[os.fsdecode(k), os.fsdecode(v)] for k, v in options["env"].items()],
            "cwd": os.fsdecode(options.get("cwd") or os.getcwd()),
            "session": bool(options.get("start_new_session")),
            "umask": options.get("umask", -1),
        }
        data = json.dumps(request).encode()
        with _one_at_a_time:
            way = _server(program, words[0])
            socket.send_fds(way, [len(data).to_bytes(4, "big")], self._theirs)
            way.sendall(data)

    def left(self, seconds: float) -> None:
        """Fail, and end it, if it goes on for so long once nobody has its files any more."""
        for file in (self.stdin, self.stdout, self.stderr):
            if file:
                with suppress(BrokenPipeError):
                    file.close()
        try:
            self.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise

    def _internal_poll(self, *_: Any, **__: Any) -> int | None:
        return self._ended(0)

    def _wait(self, timeout: float | None) -> int:
        status = self._ended(timeout)
        if status is None:
            assert timeout is not None
            raise subprocess.TimeoutExpired(self.args, timeout)
        return status

    def _ended(self, seconds: float | None) -> int | None:
        """Return how it ended, if it does within this time."""
        while self.returncode is None:
            if not select.select([self._answer], [], [], seconds)[0]:
                return None
            if part := os.read(self._answer.fileno(), 64):
                self._told += part
                continue
            self._answer.close()
            self.returncode = int(self._told.split()[1])
        return self.returncode


def run(
    program: str, words: Sequence[str | bytes], timeout: float, **options: Any
) -> subprocess.CompletedProcess[bytes]:
    """Do what subprocess.run() does with the program and these words, if can()."""
    data = options.pop("input", None)
    if data is not None:
        options["stdin"] = subprocess.PIPE
    with Process(program, words, **options) as process:
        try:
            out, err = process.communicate(data, timeout)
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(process.args, process.wait(), out, err)


# --- the process that is forked ---


def _become(request: dict[str, Any], files: list[int]) -> NoReturn:
    """Be the program, called so."""
    for number, fd in enumerate(files[:3]):
        os.dup2(fd, number)
    os.closerange(3, 1024)
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if request["session"]:
        os.setsid()
    if request["umask"] != -1:
        os.umask(request["umask"])
    os.chdir(request["cwd"])
    own = {k: v for k, v in os.environ.items() if k == "LC_CTYPE"}  # Python set it, see PEP 538
    os.environ.clear()
    os.environ.update({**own, **dict(request["env"])})
    sys.argv[1:] = request["words"]
    how = ("r", "w", "w"), ("surrogateescape", "surrogateescape", "backslashreplace")
    sys.stdin, sys.stdout, sys.stderr = (
        open(fd, mode, errors=errors, closefd=False)
        for fd, (mode, errors) in enumerate(zip(*how, strict=True))
    )
    from jobctl.cli.main import main

    main()


def _serve(way: socket.socket) -> None:
    """Fork for each call, until the tests have ended."""
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    answers: dict[int, int] = {}
    while True:
        ready = select.select([way.fileno(), woken], [], [])[0]
        if woken in ready:
            os.read(woken, 1024)
        while answers:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                break
            with suppress(BrokenPipeError), open(answers.pop(pid), "w") as answer:
                answer.write(f" {os.waitstatus_to_exitcode(status)}")
        if way.fileno() not in ready:
            continue
        size, files, _, _ = socket.recv_fds(way, 4, 4)
        if not size:
            return
        data = way.recv(int.from_bytes(size, "big"), socket.MSG_WAITALL)
        pid = os.fork()
        if not pid:
            try:
                _become(json.loads(data), files)
            finally:
                traceback.print_exc()
                os._exit(1)
        for fd in files[:3]:
            os.close(fd)
        answers[pid] = files[3]
        try:
            os.write(files[3], str(pid).encode())
        except BrokenPipeError:  # nobody waits for it any more
            os.kill(pid, signal.SIGKILL)


def _begin(program: str, command: str, way: int) -> None:
    import gc
    import importlib

    # As if the program's own script had been called.
    sys.path[0] = os.path.dirname(program)
    sys.argv = [program]
    importlib.import_module("jobctl.__main__")
    for module in (f"jobctl.cli.{command}", *MOST):
        importlib.import_module(module)
    gc.freeze()
    _serve(socket.socket(fileno=way))


if __name__ == "__main__":
    _begin(sys.argv[1], sys.argv[2], int(sys.argv[3]))
