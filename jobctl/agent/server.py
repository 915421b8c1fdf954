"""The agent: holds the connections of one state directory, and carries jobs over them.

It keeps nothing that is not in the folders: killed at any moment, the next one goes on.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from jobctl import __version__, links, quoting
from jobctl.agent.client import peer_of
from jobctl.agent.link import Link
from jobctl.agent.passing import pass_through
from jobctl.carried import Carried
from jobctl.errors import BadUsage, JobctlError, Unreachable
from jobctl.links import Links
from jobctl.model import TYPE_REMOTE
from jobctl.runner import SCRIPT, SHELL
from jobctl.store import Store
from jobctl.target import Target, parse_target
from jobctl.transport.base import Ask, Connection, Terminal

_IDLE = 5.0
"""Seconds without anything to do after which the agent ends."""
_LONGEST_LOG = 1 << 20
_BEAT = 1.0


class Agent:
    """What one process does for one state directory, which is the current one."""

    def __init__(self, state_dir: str) -> None:
        self._state_dir = state_dir
        self._book = Links(state_dir)
        self._links: dict[str, Link] = {}
        self._lock = threading.Lock()
        self._looking = threading.Lock()
        self._clients = 0
        self._listeners: set[Client] = set()
        self._waiting: set[str] = set()
        """Ids of jobs that wait for others."""
        self._store = Store(state_dir)
        self._environ = dict(os.environ)
        """The environment of whoever last wanted something: where his ssh-agent is, and so on."""

    def serve(self, listener: socket.socket) -> None:
        """Answer whoever connects, until there has been nothing to do for a while."""
        idle_since = time.monotonic()
        listener.settimeout(_BEAT)
        threading.Thread(target=self.look, daemon=True).start()
        while True:
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                if self._waiting:
                    self.look()
                if (
                    self._clients
                    or self._waiting
                    or any(not l.closed for l in self._links.values())
                ):
                    idle_since = time.monotonic()
                elif time.monotonic() - idle_since > _IDLE:
                    return
                continue
            idle_since = time.monotonic()
            if peer_of(connection) not in (None, os.geteuid()):
                connection.close()
                continue
            threading.Thread(target=self._client, args=(connection,), daemon=True).start()

    def _client(self, connection: socket.socket) -> None:
        with self._lock:
            self._clients += 1
        client = Client(connection)
        try:
            request = client.request()
            if request:
                self._environ = {**os.environ, **request.get("environ", {})}
                operation = getattr(self, "op_" + str(request.get("op")), None)
                if operation is None:
                    raise BadUsage("the agent is of another version; end it")
                client.say(operation(client, request) or {})
        except JobctlError as error:
            client.say({"error": str(error), "status": error.status})
        except (OSError, ValueError, KeyError) as error:
            log(f"a request failed: {error!r}")
            client.say({"error": f"the agent failed: {error}", "status": 125})
        finally:
            client.close()
            with self._lock:
                self._clients -= 1
                self._listeners.discard(client)

    # --- jobs ---

    def op_look(self, client: Client, request: dict[str, Any]) -> None:
        """Find what there is to do in the job folders."""
        client.say({})
        self.look()

    def look(self) -> None:
        """Have a link look after each unfinished job on a host."""
        with self._looking:
            self._store.refresh()
            for job in self._store.select("NOT final AND type = ?", [TYPE_REMOTE]):
                for part in job.children or (job.id,):
                    folder = self._store.jobs.folder(part)
                    if folder.exists() and not folder.finished():
                        carried = Carried(folder)
                        if self._may_begin(carried):
                            self._link_of(carried).add(carried)
            for session in self._book.sessions():
                if session.wanted:
                    self._link(session.name, session.target)

    def _may_begin(self, job: Carried) -> bool:
        """Whether the jobs that this one waits for are finished; ends it if they went wrong."""
        spec = job.folder.spec()
        self._waiting.discard(job.id)
        if job.sent:
            return True
        if job.folder.has("stop"):
            job.end("Stopped", os.fsdecode(job.folder.get("stop").strip()))
            self.ended(job)
            return False
        for key in ("after", "after_ok"):
            for number in spec.get(key, b"").decode().split():
                other = self._store.jobs.folder(number)
                now = other.read(self._store.boot)
                if now is not None and not now.state.finished:
                    self._waiting.add(job.id)
                    job.folder.replace("run", quoting.dump({"waiting": number.encode()}))
                    return False
                if key == "after_ok" and (now is None or now.state.value != "Completed"):
                    job.end("Stopped", f"not begun: job {number} did not complete")
                    self.ended(job)
                    return False
        return True

    def ended(self, job: Carried) -> None:
        """Tell that a job is finished, and do what was to be done then."""
        self.changed(job)
        if job.on_finish:
            threading.Thread(
                target=subprocess.run,
                args=([*SHELL, SCRIPT, "announce", job.folder.path],),
                kwargs={"env": {"JOBCTL_RUNNER": "1"}, "stdin": subprocess.DEVNULL},
                daemon=True,
            ).start()

    def changed(self, job: Carried) -> None:
        """Tell those who wait for news that a job has changed."""
        for client in list(self._listeners):
            client.say({"job": job.id})

    def op_subscribe(self, client: Client, request: dict[str, Any]) -> None:
        """Tell of each change of a job until the client leaves."""
        with self._lock:
            self._listeners.add(client)
        client.say({})
        self.look()
        client.until_gone(lambda message: None)

    def _link_of(self, job: Carried) -> Link:
        if job.session:
            session = self._book.session(job.session)
            if session is not None:
                return self._link(session.name, session.target)
        target = parse_target(job.host)
        return self._link(links.temporary(target.label), target)

    def _link(self, name: str, target: Target) -> Link:
        with self._lock:
            link = self._links.get(name)
            if link is None or link.closed:
                link = self._links[name] = Link(name, target, self._connect, self._book, self)
            return link

    def _connect(self, target: Target, ask: Ask) -> Connection:
        # Not before it is needed: paramiko takes a while to load.
        from jobctl.transport.ssh import connect

        environ = self._environ
        return connect(target, ask, environ.get("JOBCTL_SSH_CONFIG"), environ)

    def _jobs_by_link(self, ids: list[str]) -> dict[Link, list[Carried]]:
        found: dict[Link, list[Carried]] = {}
        for job_id in ids:
            folder = self._store.jobs.folder(job_id)
            if folder.exists():
                job = Carried(folder)
                found.setdefault(self._link_of(job), []).append(job)
        return found

    def op_stop(self, client: Client, request: dict[str, Any]) -> dict[str, Any]:
        """Stop jobs; return the ids of those of which something is left, and errors by id."""
        reason, grace = request["reason"], request["grace"]
        left, errors = list[str](), dict[str, str]()
        for link, jobs in self._jobs_by_link(request["jobs"]).items():
            there = []
            for job in jobs:
                if not job.folder.finished():
                    job.folder.put("stop", os.fsencode(reason) + b"\n")
                if link.drop(job.id) or (not job.sent and not job.adopted):
                    job.end("Stopped", reason)
                    self._waiting.discard(job.id)
                    self.ended(job)
                else:
                    link.add(job)
                    there.append(job)
            try:
                left += self._end(link, there, f"{grace * 100:.0f}", reason)
            except Unreachable as error:
                for job in there:
                    job.folder.unlink("stop")
                errors |= {job.id: str(error) for job in there}
        return {"left": left, "errors": errors}

    def _end(self, link: Link, jobs: list[Carried], grace: str, reason: str) -> list[str]:
        """Stop jobs on a host; return the ids of those of which something is left."""
        left = []
        for folder, group in _by_folder(jobs).items():
            words = (folder, grace.encode(), os.fsencode(reason), *group)
            answer = _opened(link).request("end", *words, seconds=float(grace) / 100 + 60)
            left += [group[name].id for name in group if name.partition(b":")[0] in answer.split()]
        for job in jobs:
            _wait_until(job.folder.finished, 20.0)
        return left

    def op_signal(self, client: Client, request: dict[str, Any]) -> dict[str, Any]:
        """Send a signal to jobs; return errors by id."""
        errors = dict[str, str]()
        for link, jobs in self._jobs_by_link(request["jobs"]).items():
            try:
                for folder, group in _by_folder([job for job in jobs if job.sent]).items():
                    _opened(link).request("signal", folder, request["name"].encode(), *group)
            except Unreachable as error:
                errors |= {job.id: str(error) for job in jobs}
        return {"errors": errors}

    def op_erase(self, client: Client, request: dict[str, Any]) -> dict[str, Any]:
        """Delete finished jobs on their hosts, with what they left running; return errors by id."""
        errors = dict[str, str]()
        for link, jobs in self._jobs_by_link(request["jobs"]).items():
            there = [job for job in jobs if job.sent or job.adopted]
            try:
                self._end(link, there, "1000", "removed")
                for job in there:
                    _opened(link).request("erase", os.fsencode(job.path))
            except Unreachable as error:
                errors |= {job.id: str(error) for job in there}
            except JobctlError as error:
                errors |= {job.id: str(error) for job in there}
            for job in jobs:
                link.drop(job.id)
        return {"errors": errors}

    def op_fetch(self, client: Client, request: dict[str, Any]) -> dict[str, Any]:
        """Bring home the output of jobs that was to stay on the host, as far as it is there."""
        errors = dict[str, str]()
        for link, jobs in self._jobs_by_link(request["jobs"]).items():
            try:
                _opened(link)
                for job in jobs:
                    job.want()
                    link.again(job)
                for job in jobs:
                    # As long as something comes: it may be much.
                    while not job.caught_up.wait(1.0):
                        _opened(link)
            except Unreachable as error:
                errors |= {job.id: str(error) for job in jobs}
        return {"errors": errors}

    # --- sessions ---

    def op_open(self, client: Client, request: dict[str, Any]) -> None:
        """Open a session, with the help of the person at the terminal."""
        session = self._book.known(request["session"])
        self._link(session.name, session.target).opened(client)
        self.look()

    def op_close(self, client: Client, request: dict[str, Any]) -> None:
        """Let go of the connection of a session."""
        with self._lock:
            link = self._links.pop(request["session"], None)
        if link:
            link.close()

    def op_run(self, client: Client, request: dict[str, Any]) -> dict[str, Any]:
        """Run a command on a host with the client's descriptors; return its exit status."""
        link = self._asked_for(request)
        fds = client.fds()
        link.used(+1)
        try:
            far = link.opened(client)
            terminal = request.get("terminal")
            if terminal:
                stream = far.enter(Terminal(*terminal), request["mark"])
            else:
                stream = far.run(request["line"].encode("utf-8", "surrogateescape"))
            over = threading.Event()
            pid = getattr(stream, "pid", 0)

            def said(message: dict[str, Any]) -> None:
                if "size" in message:
                    stream.resize(*message["size"])
                elif "signal" in message and pid:
                    with suppress(JobctlError):
                        far.request("hit", message["signal"].encode(), b"%d" % pid)

            def watch() -> None:
                client.until_gone(said)
                if not over.is_set():
                    said({"signal": "HUP"})
                    stream.close()

            threading.Thread(target=watch, daemon=True).start()
            return {"status": pass_through(stream, fds, over)}
        finally:
            for fd in fds:
                os.close(fd)
            link.used(-1)

    def op_survey(self, client: Client, request: dict[str, Any]) -> dict[str, Any]:
        """Return what jobs there are on a host, as serve.sh prints them."""
        link = self._asked_for(request)
        link.used(+1)
        try:
            far = link.opened(client)
            answer = far.request("survey", seconds=300.0)
            return {"jobs": answer.decode("utf-8", "surrogateescape"), "host": far.host}
        finally:
            link.used(-1)

    def _asked_for(self, request: dict[str, Any]) -> Link:
        """Return the link to the session, or else the machine, that a request names."""
        if session := self._book.session(request["to"]):
            return self._link(session.name, session.target)
        target = parse_target(request["to"])
        if session := self._book.to(target.label):
            return self._link(session.name, session.target)
        return self._link(links.temporary(target.label), target)


class Client:
    """Whoever made a request, and the person at his terminal."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._rest = b""
        self._fds: list[int] = []
        self._lock = threading.Lock()

    def request(self) -> dict[str, Any]:
        """Return what is asked for, {} if he left without a word."""
        while b"\n" not in self._rest:
            data, fds, _, _ = socket.recv_fds(self._socket, 1 << 16, 3)
            self._fds += fds
            if not data:
                return {}
            self._rest += data
        return self._take()

    def _take(self) -> dict[str, Any]:
        line, _, self._rest = self._rest.partition(b"\n")
        message = json.loads(line)
        return message if isinstance(message, dict) else {}

    def fds(self) -> tuple[int, int, int]:
        """Return the descriptors that came with the request; they are to be closed."""
        if len(self._fds) != 3:
            raise BadUsage("three descriptors were to come with the request")
        first, second, third = self._fds
        self._fds = []
        return first, second, third

    def say(self, message: dict[str, Any]) -> None:
        """Send an answer, to nobody if he has gone."""
        with self._lock, suppress(OSError):
            self._socket.sendall(json.dumps(message).encode() + b"\n")

    def _hear(self) -> dict[str, Any] | None:
        while b"\n" not in self._rest:
            try:
                data = self._socket.recv(1 << 16)
            except OSError:
                return None
            if not data:
                return None
            self._rest += data
        return self._take()

    def until_gone(self, said: Callable[[dict[str, Any]], None]) -> None:
        """Hand on what he says, until he leaves."""
        while (message := self._hear()) is not None:
            with suppress(Unreachable):
                said(message)

    def secret(self, prompt: str) -> str | None:
        """Have a person type what is not shown."""
        self.say({"ask": "secret", "text": prompt})
        answer = (self._hear() or {}).get("answer")
        return answer if isinstance(answer, str) else None

    def confirm(self, question: str) -> bool:
        """Have a person say yes or no."""
        self.say({"ask": "confirm", "text": question})
        return (self._hear() or {}).get("answer") is True

    def close(self) -> None:
        """End the connection."""
        for fd in self._fds:
            os.close(fd)
        self._socket.close()


def _opened(link: Link) -> Any:
    return link.opened()


def _by_folder(jobs: list[Carried]) -> dict[bytes, dict[bytes, Carried]]:
    """Return jobs as serve.sh names them, by the folder of their folders."""
    found: dict[bytes, dict[bytes, Carried]] = {}
    for job in jobs:
        folder, _, name = os.fsencode(job.path).rpartition(b"/")
        found.setdefault(folder, {})[name + b":" + job.instance_id.encode()] = job
    return found


def _wait_until(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)


def log(text: str) -> None:
    """Write a line to the agent's log, which begins anew when it has become long."""
    with suppress(OSError):
        if os.fstat(2).st_size > _LONGEST_LOG:
            os.ftruncate(2, 0)
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S")
        os.write(2, f"{stamp} {text}\n".encode("utf-8", "backslashreplace"))


def _locked(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def main() -> None:
    """Serve the state directory that is the first argument, unless somebody does so."""
    state_dir = sys.argv[1]
    os.umask(0o077)
    os.chdir(state_dir)
    lock = os.open("agent.lock", os.O_RDWR | os.O_CREAT, 0o600)
    while not _locked(lock):
        # Another one that is about to end will not hear what we were started for.
        if os.path.exists("agent.sock"):
            return
        time.sleep(0.02)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.excepthook = lambda given: log(f"a thread failed: {given.exc_value!r}")
    with suppress(FileNotFoundError):
        os.unlink("agent.sock")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind("agent.sock")
    listener.listen(128)
    Links(state_dir).forget()
    log(f"agent {__version__} begins, process {os.getpid()}")
    Agent(state_dir).serve(listener)
    os.unlink("agent.sock")
    log("agent ends: nothing to do")
    os._exit(0)
