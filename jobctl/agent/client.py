"""Speaks with the agent: one request on a connection, starting the agent where there is none.

A request is a line of JSON, with file descriptors beside it where it needs some. Answers are
lines of JSON: {"ask": ...} for what a person must say, {"error": ..., "status": ...},
{"retired": true} from an agent that leaves the request to another one, or the result.

Nothing but the standard library is imported here, as each command pays for it.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import socket
import stat
import struct
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from jobctl import descriptors
from jobctl.errors import BadUsage, JobctlError, NotFound, Refused, Unreachable
from jobctl.links import Links, agent_alive
from jobctl.model import printable
from jobctl.paths import ssh_config
from jobctl.transport.sendenv import candidates

_TAIL = 1000
_PATIENCE = 20.0
"""Seconds that an agent gets to start."""
_HEARD = 3.0
"""Seconds in which an agent says that it has heard of a job, where it can."""
_LONGEST_PATH = 90
"""Bytes: unix(7) allows 108, other systems less."""
_TOLD = (
    *("JOBCTL_SSH_CONFIG", "SSH_AUTH_SOCK", "HOME", "PATH"),
    *("USER", "LOGNAME", "SHELL", "TERM", "LANG"),
)
"""What of a caller's environment says how hosts are reached."""
KEPT = ("HOME", "PATH", "USER", "LOGNAME", "LANG", "TMPDIR")
"""What of the environment of whoever starts it the agent has: it serves others after him."""
_FOR_PYTHON = ("PYTHONPATH", "PYTHONHOME")
"""What its interpreter has besides, to start."""
_RETIRED = b'{"retired"'
"""What an agent begins with that leaves a request to another one."""
_MOST_LOSSES = 3
"""Agents that are killed before they read a request, until it is given up."""
_NOT_BEGUN = "the agent does not start"
ASKED = "JOBCTL_ASKED"
"""The variable in which an agent gets what it is told of whoever starts it, as JSON."""
_ERRORS = {kind.status: kind for kind in (BadUsage, NotFound, Refused, Unreachable)}


Asked = Callable[[dict[str, Any]], object]
"""Has a person answer what the agent wants to know, or shows what it has to show."""


class Talk:
    """A connection to the agent, on which one request was made."""

    def __init__(self, state_dir: str, request: dict[str, Any]) -> None:
        """Connect, start the agent if need be, and send the request.

        :raises JobctlError: it does not start.
        """
        self._state_dir = state_dir
        self._request = _encoded(state_dir, request)
        self._ask_for_it()

    def _ask_for_it(self) -> None:
        self.socket = _connected(self._state_dir)
        with suppress(BrokenPipeError, ConnectionResetError):  # then so does the first read
            self.socket.sendall(self._request)
        self._lines, self._rest = list[bytes](), b""
        self._poll = select.poll()
        self._poll.register(self.socket, select.POLLIN)

    def say(self, message: dict[str, Any]) -> None:
        """Send one more line."""
        with suppress(OSError):
            self.socket.sendall(json.dumps(message).encode() + b"\n")

    def give(self, fds: Sequence[int]) -> None:
        """Have the agent use open files of ours as its own."""
        with suppress(OSError):
            socket.send_fds(self.socket, [b"{}\n"], list(fds))

    def answers(self, deadline: float | None = None) -> Iterator[dict[str, Any]]:
        """Yield what the agent says, one thing after the other, to its end.

        :param deadline: until when, by time.monotonic().
        :raises TimeoutError: there is more by then.
        """
        heard, losses = False, 0
        while True:
            try:
                line = self._line(deadline)
            except ConnectionResetError:
                # It was killed, and had not read what we ask for.
                losses += 1
                again = not heard and losses <= _MOST_LOSSES
                line = b""
            else:
                again = line.startswith(_RETIRED)
            if again:
                self.close()
                self._ask_for_it()
            elif line:
                heard = True
                yield json.loads(line)
            else:
                return

    def pending(self) -> list[dict[str, Any]] | None:
        """Return what has come, once there is something to read; None if the agent has gone."""
        with suppress(OSError):
            if self._hear():
                lines, self._lines = self._lines, []
                return [json.loads(line) for line in lines]
        return None

    def _line(self, deadline: float | None) -> bytes:
        """Return the next line, once there is one; b"" if the agent has gone.

        :raises ConnectionResetError: it was killed, and had not read what we ask for.
        :raises TimeoutError: there is none by then.
        """
        while not self._lines:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not descriptors.wait(self._poll, left):
                raise TimeoutError
            if not self._hear():
                return b""
        return self._lines.pop(0)

    def _hear(self) -> bool:
        """Take what has come; return whether there was something, which is so until the end."""
        data = self.socket.recv(1 << 16)
        *lines, self._rest = (self._rest + data).split(b"\n")
        self._lines += lines
        return bool(data)

    def heed(self, message: dict[str, Any], ask: Asked | None) -> bool:
        """Have a person answer a question, or read something; return whether it was that.

        :param ask: None where there is nobody.
        """
        if "ask" in message:
            self.say({"answer": ask(message) if ask else None})
        elif "show" in message and ask:
            ask(message)
        return bool(message.keys() & {"ask", "show"})

    def result(self, ask: Asked | None = None, deadline: float | None = None) -> dict[str, Any]:
        """Return the result, having a person asked what the agent wants to know.

        :param deadline: until when, by time.monotonic().
        :raises JobctlError: the agent says why it did not do it.
        :raises TimeoutError: it has not done it by then.
        """
        for answer in self.answers(deadline):
            if self.heed(answer, ask):
                continue
            if "error" in answer:
                raise _ERRORS.get(answer["status"], JobctlError)(answer["error"])
            return answer
        raise JobctlError(f"the agent was killed; see {self._state_dir}/agent.log, and try again")

    def hang_up(self) -> None:
        """Have who listens for answers find none any more."""
        with suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End the connection."""
        self.socket.close()


def call(state_dir: str, request: dict[str, Any], **options: Any) -> dict[str, Any]:
    """Make a request and return the result; see Talk."""
    talk = Talk(state_dir, request)
    try:
        return talk.result(**options)
    finally:
        talk.close()


_started = set[str]()
"""The state directories for which this process has started an agent."""


def begin(state_dir: str) -> None:
    """Start an agent, if there is none, for what wake() will tell it of."""
    if not agent_alive(state_dir):
        _spawn(state_dir)


def wake(state_dir: str, *jobs: str) -> None:
    """Have an agent look at these jobs' folders soon, or else at all, without waiting for that."""
    try:
        with _attempt(state_dir) as connection:
            connection.settimeout(_HEARD)  # it was stopped, say; it reads this when it goes on
            connection.sendall(_encoded(state_dir, {"op": "look", "jobs": jobs}))
            if connection.recv(2) == b"{}":
                return
    except OSError:
        pass
    # One that we have started looks as soon as it listens. Else there is none, or it is about to
    # end.
    if state_dir not in _started or not agent_alive(state_dir):
        _spawn(state_dir)


def _encoded(state_dir: str, request: dict[str, Any]) -> bytes:
    """Return a request with what the agent is told of the caller."""
    return json.dumps({**request, "environ": _told(state_dir)}).encode() + b"\n"


def _told(state_dir: str) -> dict[str, str]:
    """Return what the caller's environment says of the way to hosts, and what may be for them."""
    told = sendable(state_dir)
    told |= {name: os.environ[name] for name in _TOLD if name in os.environ}
    if config := ssh_config():
        told["JOBCTL_SSH_CONFIG"] = config
    return told


def sendable(state_dir: str) -> dict[str, str]:
    """Return what of the caller's environment may be for hosts."""
    options = [option for way in Links(state_dir).sessions() for option in way.target.options]
    return candidates(ssh_config(), options, os.environ)


def _connected(state_dir: str) -> socket.socket:
    deadline = time.monotonic() + _PATIENCE
    spawned, log = 0.0, f"{state_dir}/agent.log"
    while True:
        try:
            return _attempt(state_dir)
        except OSError as error:
            now = time.monotonic()
            if now > deadline:
                raise JobctlError(f"{_NOT_BEGUN}: {error.strerror}; see {log}") from None
            alive = agent_alive(state_dir)
            if spawned and not alive and (said := _last_line(log)).startswith(_NOT_BEGUN):
                raise JobctlError(f"{said}; see {log}") from None
            if now > spawned + 2.0 and not alive:
                _spawn(state_dir)
                spawned = now
            time.sleep(0.01)


def _attempt(state_dir: str) -> socket.socket:
    """Return a connection to the agent, who must be ourselves.

    :raises OSError: there is none.
    """
    name = f"{state_dir}/agent.sock"
    about = os.lstat(name)
    if not stat.S_ISSOCK(about.st_mode) or about.st_uid != os.geteuid():
        raise Refused(f"{name} is no socket of yours; remove it")
    connection = socket.socket(socket.AF_UNIX)
    try:
        with _short(name) as path:
            connection.connect(path)
        if (peer := peer_of(connection)) not in (None, os.geteuid()):
            raise Refused(f"{name} is served by user {peer}; remove it")
    except BaseException:
        connection.close()
        raise
    return connection


def peer_of(connection: socket.socket) -> int | None:
    """Return the user at the other end, None where the system does not tell."""
    if not hasattr(socket, "SO_PEERCRED"):
        return None
    packed = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    return int(struct.unpack("3i", packed)[1])


@contextmanager
def _short(path: str) -> Iterator[str]:
    """Give a name for path that is short enough for a socket, by being there if need be."""
    if len(os.fsencode(path)) <= _LONGEST_PATH:
        yield path
        return
    here = os.open(".", os.O_RDONLY)
    try:
        os.chdir(os.path.dirname(path))
        yield os.path.basename(path)
    finally:
        os.fchdir(here)
        os.close(here)


def _spawn(state_dir: str) -> None:
    """Start an agent; if another one is starting too, one of both ends.

    If it can be had it holds the lock from now on, by which others know that it is there.
    """
    environment = {k: v for k, v in os.environ.items() if k in (*KEPT, *_FOR_PYTHON)}
    environment["JOBCTL_STATE_DIR"] = state_dir
    # Who starts it need not be heard before it connects. It is no environment to be handed down.
    environment[ASKED] = json.dumps(_told(state_dir))
    # Jobs that call us are not to take us with them when they are stopped.
    environment["JOBCTL_RUNNER"] = "1"
    null = os.open(os.devnull, os.O_RDWR)
    log = os.open(f"{state_dir}/agent.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    lock = os.open(f"{state_dir}/agent.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        with suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _started.add(state_dir)
        pid = os.fork()
        if pid:
            os.waitpid(pid, 0)
            return
        try:
            os.setsid()
            # Python looks for modules where it is started, which may be anybody's folder.
            os.chdir("/")
            if not os.fork():
                _keep_of_files(null, null, log)
                os.set_inheritable(lock, True)
                words = [sys.executable, "-X", "utf8", "-m", "jobctl.agent", state_dir, str(lock)]
                _see_it_begin(words, environment, f"{state_dir}/agent.log")
        finally:
            os._exit(0)
    finally:
        for fd in (null, log, lock):
            os.close(fd)


def _keep_of_files(*standard: int) -> None:
    """Have these as standard files, and none besides that the caller had given us.

    What this process has opened itself goes when the agent begins. Nothing is put in its place
    before: an object that has a number closes it, whatever that leads to by then.
    """
    for number, fd in enumerate(standard):
        os.dup2(fd, number)
    for fd in range(len(standard), 256):
        with suppress(OSError):
            if os.get_inheritable(fd):
                os.close(fd)


def _see_it_begin(words: list[str], environment: dict[str, str], log: str) -> None:
    """Start the agent, and stay until it is there.

    An interpreter may need more of our environment to start: then it gets all of it, and the
    agent hands none of that on. Should that not do either, the log has why.
    """
    for environ in (environment, {**os.environ, **environment}):
        ours, theirs = os.pipe()
        pid = os.fork()
        if not pid:
            os.set_inheritable(theirs, True)
            try:
                os.execve(sys.executable, [*words, str(theirs)], environ)
            except OSError as error:
                os.write(2, f"{sys.executable}: {error.strerror}\n".encode())
            os._exit(127)
        os.close(theirs)
        # It ends well without a word where another one serves already.
        if os.read(ours, 1) or not os.waitpid(pid, 0)[1]:
            return
        os.close(ours)
    why = _last_line(log)
    os.write(2, f"{_NOT_BEGUN}: {why or sys.executable}\n".encode("utf-8", "replace"))


def _last_line(path: str) -> str:
    """Return the last line of a file, as people may see it."""
    with open(path, "rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL))
        lines = file.read(_TAIL).decode("utf-8", "replace").split("\n")
    return printable(next((line for line in reversed(lines) if line.strip()), ""))
