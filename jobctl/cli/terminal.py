"""The person at the terminal: asked for secrets, and given a shell on another machine."""

from __future__ import annotations

import errno
import functools
import os
import select
import signal
import termios
import threading
import time
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from typing import Any

from jobctl.agent.client import Asked, Talk
from jobctl.descriptors import read, wait, write
from jobctl.errors import BadUsage, JobctlError
from jobctl.model import printable

_FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP)
_ENDING = (signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP, signal.SIGTSTP)
"""What ends or stops a process; INT is an exception in Python anyway."""
_PATIENCE = 2
"""Signals that are passed on; who sends one more wants us to end whatever the host does."""


def person(deadline: float | None = None) -> Asked | None:
    """Return what asks the person at the terminal, None where we are not what he looks at.

    :param deadline: when there is no more time for an answer, by time.monotonic().
    """
    try:
        terminal = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY)
    except OSError:
        return None
    with open(terminal, "rb", buffering=0):
        ours = os.tcgetpgrp(terminal) == os.getpgrp()
    return functools.partial(ask, deadline=deadline) if ours else None


def ask(question: dict[str, Any], deadline: float | None = None) -> object:
    """Return what a person says to the agent's question, None where there is no terminal or time.

    Or show what it has to show, where messages go to a terminal.
    """
    if "show" in question:
        if os.isatty(2):
            write(2, (_lines(question["show"]) + "\n").encode("utf-8", "replace"))
        return None
    try:
        terminal = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY)
    except OSError:
        return None
    text = _lines(question["text"])
    with open(terminal, "r+b", buffering=0) as file, _hung_up(terminal):
        if question["ask"] == "confirm":
            return _confirmed(file, text, str(question["fingerprint"]), deadline)
        answer = _secret(file, text, deadline)
        # The end of input is an empty answer, as to ssh.
        return answer.rstrip(b"\r\n").decode("utf-8", "surrogateescape")
    return None


@contextmanager
def _hung_up(terminal: int) -> Iterator[None]:
    """Pass over what fails with a terminal, and end as is usual if it has gone.

    The signal HUP is sent to the first process on it alone, which may be late to pass it on.
    """
    with suppress(OSError, termios.error):
        yield
    if not os.isatty(terminal):
        os.kill(os.getpid(), signal.SIGHUP)


def _lines(text: object) -> str:
    """Return some lines with nothing in them that could steer the terminal."""
    return "\n".join(printable(line) for line in str(text).split("\n"))


def _confirmed(file: FileIO, question: str, fingerprint: str, deadline: float | None) -> bool:
    """Return whether a person trusts a key: says yes, or types its fingerprint, as to ssh."""
    prompt = f"{question} (yes/no/[fingerprint])? "
    while True:
        file.write(prompt.encode())
        answer = _line(file.fileno(), deadline).strip().decode("utf-8", "replace")
        if answer.lower() in ("", "no"):
            return False
        if answer == fingerprint or answer.lower() == "yes":
            return True
        prompt = "Please type 'yes', 'no' or the fingerprint: "


class _Signal(Exception):
    """A signal that ends or stops a process came while the terminal was silent."""


def _secret(file: FileIO, prompt: str, deadline: float | None) -> bytes:
    """Return a line that is not shown, b"" at the end of input; raise TimeoutError.

    Who goes on after ^Z is asked again.
    """
    while True:
        try:
            with _silent(file):
                file.write(prompt.encode())
                return _line(file.fileno(), deadline)
        except _Signal as caught:
            os.kill(os.getpid(), caught.args[0])


def _line(fd: int, deadline: float | None) -> bytes:
    """Return a line, b"" at the end of input; raise TimeoutError, or OSError if fd has gone."""
    poll, line = select.poll(), b""
    poll.register(fd, select.POLLIN)
    while not line.endswith(b"\n"):
        events = wait(poll, None if deadline is None else max(0.0, deadline - time.monotonic()))
        if not events:
            raise TimeoutError
        if events[0][1] & (select.POLLHUP | select.POLLERR):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        piece = read(fd, 4096)
        if not piece:
            break
        line += piece
    return line


def _restore(terminal: int, when: int, before: list[Any]) -> None:
    """Set a terminal as it was before, unless it has gone.

    :param when: see termios(3).
    """
    with suppress(termios.error):
        termios.tcsetattr(terminal, when, before)


@contextmanager
def _silent(file: FileIO) -> Iterator[None]:
    """Show nothing of what is typed, and forget what was typed before and is left in the end.

    The terminal is as it was before anything ends or stops us; _Signal says what wants to.
    """
    before = termios.tcgetattr(file)
    silent = termios.tcgetattr(file)
    silent[3] &= ~termios.ECHO
    over, handlers = False, {}

    def caught(number: int, frame: object) -> None:
        if not over:
            raise _Signal(number)

    try:
        for number in _ENDING:
            if signal.getsignal(number) is signal.SIG_DFL:
                handlers[number] = signal.signal(number, caught)
        termios.tcsetattr(file, termios.TCSAFLUSH, silent)
        yield
    finally:
        over = True
        _restore(file.fileno(), termios.TCSAFLUSH, before)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        with suppress(OSError):  # it may have gone
            file.write(b"\n")


def run(state_dir: str, to: str, line: bytes) -> int:
    """Run a line of sh on a host with our own standard files; return its exit status.

    What would end us is sent to it, from when it has begun.

    :raises JobctlError: it could not be run, or nobody knows how it ended.
    """
    request = {"op": "run", "to": to, "line": line.decode("utf-8", "surrogateescape")}
    talk = Talk(state_dir, request)
    last = list[int]()

    def begun() -> None:
        numbers = {n for n in _FORWARDED if signal.getsignal(n) is not signal.SIG_IGN}
        # What comes as soon as the command can be heard of is for the command.
        signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
        _give(talk)
        threading.Thread(target=_forward, args=(talk, numbers, last), daemon=True).start()

    try:
        return _status(talk, begun)
    except JobctlError:
        if last:
            return 128 + last[0]
        raise


def _forward(talk: Talk, numbers: set[signal.Signals], last: list[int]) -> None:
    """Send signals, which nobody else takes, to the command, until somebody insists.

    :param last: gets the number of that one; then the agent is not listened to any more.

    A handler would run late where the signal comes just before the process waits for an answer: it
    then runs with the answer.
    """
    for _ in range(_PATIENCE):
        name = signal.Signals(signal.sigwait(numbers)).name
        talk.say({"signal": name.removeprefix("SIG")})
    last.append(signal.sigwait(numbers))
    talk.hang_up()


def enter(state_dir: str, to: str) -> int:
    """Give the terminal to a shell on a host until it ends; return its exit status.

    :raises BadUsage: there is no terminal.
    :raises JobctlError: the shell could not be run, or nobody knows how it ended.
    """
    if not (os.isatty(0) and os.isatty(1)):
        raise BadUsage("'session enter' needs a terminal; 'session run' does without")
    columns, rows = os.get_terminal_size(0)
    terminal = [os.environ.get("TERM", "dumb"), columns, rows]
    talk = Talk(state_dir, {"op": "run", "to": to, "terminal": terminal, "mark": to})

    def resized(number: int = 0, frame: object = None) -> None:
        with suppress(OSError):
            talk.say({"size": list(os.get_terminal_size(0))})

    def leave(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    def begun() -> None:
        # Not before the agent has asked all it has to.
        with suppress(termios.error):  # it may have gone; then the shell there ends at once
            tty.setraw(0, termios.TCSADRAIN)
        _give(talk)
        signal.signal(signal.SIGWINCH, resized)
        resized()

    before = termios.tcgetattr(0)
    try:
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, leave)
        return _status(talk, begun)
    except JobctlError:
        with suppress(OSError):  # the terminal may have gone
            write(2, b"\r\n")  # what the shell wrote last may be a prompt
        raise
    finally:
        _restore(0, termios.TCSADRAIN, before)


def _give(talk: Talk) -> None:
    """Give the agent our standard files.

    A terminal we read ourselves: the kernel lets us do so only while we are in the
    foreground, but the agent, which is no part of our session, at any time.
    """
    if not os.isatty(0):
        talk.give((0, 1, 2))
        return
    source, sink = os.pipe()
    talk.give((source, 1, 2))
    os.close(source)
    threading.Thread(target=_feed, args=(sink,), daemon=True).start()


def _feed(sink: int) -> None:
    """Write to sink what is typed, to its end."""
    with _hung_up(0), open(sink, "wb", buffering=0) as file:
        while piece := read(0):
            file.write(piece)


def _status(talk: Talk, begun: Callable[[], None]) -> int:
    """Return the exit status of what runs on the other side.

    :raises JobctlError: there is none.
    """
    for answer in talk.answers():
        if talk.heed(answer, ask):
            continue
        if "begun" in answer:
            begun()
        elif "error" in answer:
            # Any other status would be taken for the command's.
            usage = answer["status"] == BadUsage.status
            raise (BadUsage if usage else JobctlError)(answer["error"])
        elif answer["status"] is None:
            raise JobctlError("the host did not tell how the command ended")
        else:
            return int(answer["status"])
    raise JobctlError("the agent was killed; the command may go on")
