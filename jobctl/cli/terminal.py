"""The person at the terminal: asked for secrets, and given a shell on another machine."""

from __future__ import annotations

import os
import signal
import sys
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from jobctl.agent.client import Talk
from jobctl.cli import render
from jobctl.errors import BadUsage, JobctlError
from jobctl.model import printable

_FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP)


def ask(question: dict[str, Any]) -> object:
    """Return what a person says to the agent's question, None where there is no terminal."""
    try:
        terminal = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY)
    except OSError:
        return None
    text = "\n".join(printable(line) for line in str(question["text"]).split("\n"))
    with open(terminal, "r+b", buffering=0) as file:
        if question["ask"] == "confirm":
            file.write(f"{text} (yes/no) ".encode())
            return _line(file.fileno()).strip().lower() in (b"yes", b"y")
        file.write(text.encode())
        with _unseen(file.fileno()):
            answer = _line(file.fileno())
        file.write(b"\n")
        return answer.rstrip(b"\r\n").decode("utf-8", "surrogateescape")


def _line(fd: int) -> bytes:
    line = b""
    while not line.endswith(b"\n") and (piece := os.read(fd, 4096)):
        line += piece
    return line


@contextmanager
def _unseen(fd: int) -> Iterator[None]:
    """Show nothing of what is typed."""
    before = termios.tcgetattr(fd)
    silent = termios.tcgetattr(fd)
    silent[3] &= ~termios.ECHO
    termios.tcsetattr(fd, termios.TCSAFLUSH, silent)
    try:
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSAFLUSH, before)


def run(state_dir: str, to: str, line: bytes) -> int:
    """Run a line of sh on a host with our own standard files; return its exit status.

    What would end us is sent to it.
    """
    request = {"op": "run", "to": to, "line": line.decode("utf-8", "surrogateescape")}
    talk = Talk(state_dir, request, (0, 1, 2))

    def forward(number: int, frame: object) -> None:
        talk.say({"signal": signal.Signals(number).name.removeprefix("SIG")})

    for number in _FORWARDED:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, forward)
    return _status(talk)


def enter(state_dir: str, to: str) -> int:
    """Give the terminal to a shell on a host until it ends; return its exit status.

    :raises BadUsage: there is no terminal.
    """
    if not (os.isatty(0) and os.isatty(1)):
        raise BadUsage("'session enter' needs a terminal; 'session run' does without")
    columns, rows = os.get_terminal_size(0)
    terminal = [os.environ.get("TERM", "dumb"), columns, rows]
    talk = Talk(state_dir, {"op": "run", "to": to, "terminal": terminal, "mark": to}, (0, 1, 2))

    def resized(number: int, frame: object) -> None:
        with suppress(OSError):
            talk.say({"size": list(os.get_terminal_size(0))})

    signal.signal(signal.SIGWINCH, resized)
    before = termios.tcgetattr(0)
    try:
        # Not before the agent has asked all it has to.
        return _status(talk, entered=lambda: tty.setraw(0))
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)


def _status(talk: Talk, entered: Any = None) -> int:
    """Return the exit status of what runs on the other side."""
    for answer in talk.answers():
        if "ask" in answer:
            talk.say({"answer": ask(answer)})
        elif "begun" in answer:
            if entered:
                entered()
        elif "error" in answer:
            # Any other status would be taken for the command's.
            status = answer["status"] if answer["status"] == 2 else JobctlError.status
            if entered:
                sys.stderr.write("\r")
            render.say(answer["error"])
            return int(status)
        elif answer["status"] is None:
            raise JobctlError("the host did not tell how the command ended")
        else:
            return int(answer["status"])
    raise JobctlError("the agent was killed; the command may go on")
