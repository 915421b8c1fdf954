"""Calls the program without a start of Python for each call, which is most of what a call costs.

For each subcommand there is one process that has imported it, and nothing else of its own
accord; a call is a fork of it that gets the words, the environment, the folder and the
standard files of the call, and then does what the program's own script does. What shows
how a process was started is called as users call it: see can().
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
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, NoReturn

COMMANDS = ("start", "get", "receive", "wait", "stop", "remove", "session")
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


class _Call:
    """The files of a call: what goes to the program, and our ends of the pipes."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.theirs: list[int] = []
        self.ours: list[int | None] = []
        stdin = subprocess.PIPE if options.get("input") is not None else options.get("stdin")
        for number, how in enumerate((stdin, options.get("stdout"), options.get("stderr"))):
            self._add(number, how)
        self._pipe(writing=False)  # on which we are told the pid, and then the status

    def _add(self, number: int, how: Any) -> None:
        if how == subprocess.PIPE:
            self._pipe(writing=number == 0)
            return
        self.ours.append(None)
        if how == subprocess.DEVNULL:
            self.theirs.append(os.open(os.devnull, os.O_RDWR))
        else:
            fd = self.theirs[1] if how == subprocess.STDOUT else number if how is None else how
            self.theirs.append(os.dup(fd if isinstance(fd, int) else fd.fileno()))

    def _pipe(self, *, writing: bool) -> None:
        reader, writer = os.pipe()
        self.ours.append(writer if writing else reader)
        self.theirs.append(reader if writing else writer)

    def sent(self) -> None:
        """Close what the program has now."""
        while self.theirs:
            os.close(self.theirs.pop())

    def close(self) -> None:
        """Close all."""
        self.sent()
        for fd in self.ours:
            if fd is not None:
                os.close(fd)
        self.ours.clear()

    def talk(self, data: bytes, deadline: float) -> list[bytes | None]:
        """Write its input, and return what it wrote to files 1 and 2, and the answer.

        :raises TimeoutError: it takes too long; its argument is what came of the answer.
        """
        got = [bytearray() for _ in self.ours]  # bytes would be copied with each piece
        piped = [fd is not None for fd in self.ours]
        left = memoryview(data)
        poll = select.poll()
        for number, fd in enumerate(self.ours):
            if fd is not None:
                os.set_blocking(fd, False)
                poll.register(fd, select.POLLIN if number else select.POLLOUT)
        while any(fd is not None for fd in self.ours):
            ready = poll.poll(max(0.0, deadline - time.monotonic()) * 1000)
            if not ready:
                raise TimeoutError(bytes(got[3]))
            for fd, _ in ready:
                number = self.ours.index(fd)
                if number == 0:
                    with suppress(BrokenPipeError, BlockingIOError):
                        left = left[os.write(fd, left[:65536]) :] if left else left
                        if left:
                            continue
                elif part := os.read(fd, 65536):
                    got[number] += part
                    continue
                poll.unregister(fd)
                os.close(fd)
                self.ours[number] = None
        return [bytes(part) if was else None for part, was in zip(got, piped, strict=True)][1:]


def run(
    program: str, words: Sequence[str | bytes], timeout: float, **options: Any
) -> subprocess.CompletedProcess[bytes]:
    """Do what subprocess.run() does with the program and these words, if can()."""
    request = {
        "words": [os.fsdecode(word) for word in words],
        "env": [[os.fsdecode(k), os.fsdecode(v)] for k, v in options["env"].items()],
        "cwd": os.fsdecode(options.get("cwd") or os.getcwd()),
        "session": bool(options.get("start_new_session")),
        "umask": options.get("umask", -1),
    }
    data = json.dumps(request).encode()
    call = _Call(options)
    try:
        with _one_at_a_time:
            way = _server(program, words[0])
            socket.send_fds(way, [len(data).to_bytes(4, "big")], call.theirs)
            way.sendall(data)
        call.sent()
        out, err, answer = call.talk(options.get("input") or b"", time.monotonic() + timeout)
    except TimeoutError as error:
        if error.args[0]:
            with suppress(ProcessLookupError):
                os.kill(int(error.args[0].split()[0]), signal.SIGKILL)
        raise subprocess.TimeoutExpired([program, *words], timeout) from None
    finally:
        call.close()
    assert answer is not None
    return subprocess.CompletedProcess([program, *words], int(answer.split()[1]), out, err)


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
    importlib.import_module(f"jobctl.cli.{command}")
    gc.freeze()
    _serve(socket.socket(fileno=way))


if __name__ == "__main__":
    _begin(sys.argv[1], sys.argv[2], int(sys.argv[3]))
