"""The agent: holds the connections of one state directory, and carries jobs over them.

It keeps nothing that is not in the folders: killed at any moment, the next one goes on.
"""

from __future__ import annotations

import functools
import json
import os
import resource
import signal
import socket
import sys
import threading
import time
from contextlib import suppress
from typing import Any

import jobctl
from jobctl import __version__, links, process
from jobctl.agent.caller import Client, People
from jobctl.agent.client import ASKED, KEPT, peer_of
from jobctl.agent.hands import attempt, hand, log
from jobctl.agent.link import Link
from jobctl.agent.openers import Openers
from jobctl.agent.passing import run
from jobctl.agent.post import NotTheAgent, Post
from jobctl.agent.queue import Queue
from jobctl.carried import Carried
from jobctl.errors import BadUsage, JobctlError, Refused, Unreachable
from jobctl.links import Links, Session
from jobctl.model import printable
from jobctl.target import Target, parse_target
from jobctl.transport import config as configuration
from jobctl.transport.base import Ask, Cancelled, Connection, Denied
from jobctl.whole import lack

_IDLE = 5.0
"""Seconds without anything to do after which the agent ends."""
_BEAT = 1.0
_OWN = {*KEPT, ASKED, "JOBCTL_STATE_DIR", "JOBCTL_RUNNER"}
"""The variables that an agent has."""
_LIMITS = (
    *(resource.RLIMIT_NOFILE, resource.RLIMIT_FSIZE, resource.RLIMIT_CPU),
    *(resource.RLIMIT_AS, resource.RLIMIT_DATA),
)
_MOST_FILES = 10_240
"""Open files that an agent may have, where that is allowed: macOS allows no more."""
_LOCK_FLAGS = os.O_RDWR | os.O_CREAT


class Agent:
    """What one process does for one state directory, which is the current one."""

    def __init__(self, state_dir: str, post: Post) -> None:
        self._state_dir = state_dir
        self._post = post
        self._book = Links(state_dir)
        self._links: dict[str, Link] = {}
        self._lock = threading.Lock()
        self._clients = 0
        self._listeners: set[Client] = set()
        self._installed = _installed()
        self._people = People()
        self._queue = Queue(state_dir, self._link_of, self.tell, self.tell_why, self._people)
        self._openers = Openers()
        self._openers.asked(json.loads(os.environ.pop(ASKED, "{}")))

    def serve(self) -> None:
        """Answer whoever connects, until there has been nothing to do for a while.

        :raises NotTheAgent: others are to do that now.
        """
        idle_since = time.monotonic()
        threading.Thread(target=_load, daemon=True).start()
        self._look_soon()
        seen_at = idle_since
        while True:
            if time.monotonic() > seen_at + _BEAT:
                seen_at = time.monotonic()
                for link in list(self._links.values()):
                    attempt(link.check)
                if not self._post.keep():
                    log("agent goes on: its socket was gone, and is there again")
                    self._look_soon()  # nobody could tell us of anything
                if self._queue.waiting:
                    attempt(self._look)
            self._post.listener.settimeout(_BEAT)
            try:
                connection, _ = self._post.listener.accept()
            except OSError as error:
                if not isinstance(error, TimeoutError):  # there are too many open files, say
                    log(f"cannot accept a connection: {error.strerror}")
                    time.sleep(_BEAT)
                if (
                    self._clients
                    or self._queue.busy
                    or any(not link.closed for link in self._links.values())
                ):
                    idle_since = time.monotonic()
                elif time.monotonic() - idle_since > _IDLE:
                    return
                continue
            idle_since = time.monotonic()
            if peer_of(connection) not in (None, os.geteuid()):
                connection.close()
                continue
            hand(functools.partial(self._client, connection))

    def _client(self, connection: socket.socket) -> None:
        with self._lock:
            self._clients += 1
        client = Client(connection)
        try:
            request = client.request()
            if request:
                self._retire_if_outdated(client)
                self._openers.asked(request.get("environ", {}))
                operation = getattr(self, "op_" + str(request.get("op")), None)
                if operation is None:
                    raise BadUsage("the agent is of another version; end it")
                client.say(operation(client, request) or {})
        except JobctlError as error:
            client.say({"error": str(error), "status": error.status})
        except (OSError, ValueError, LookupError) as error:
            log(f"a request failed: {error!r}")
            why = lack(self._state_dir, error) or f"the agent failed: {error}"
            client.say({"error": why, "status": 125})
        finally:
            client.close()
            with self._lock:
                self._clients -= 1
                self._listeners.discard(client)
            self._people.leave(client)

    def _retire_if_outdated(self, client: Client) -> None:
        """End, if another version was installed since; but not while a command runs through us."""
        with self._lock:
            needed = self._clients - len(self._listeners) > 1
        if not needed and _installed() != self._installed:
            client.say({"retired": True})
            self._post.leave()
            log("agent ends: the program was replaced")
            os._exit(0)

    # --- jobs ---

    def op_look(self, client: Client, request: dict[str, Any]) -> None:
        """Find what there is to do in the job folders, all of them or those of some jobs."""
        client.say({})
        if request.get("jobs"):
            self._queue.look(request["jobs"])
            return
        for link in list(self._links.values()):
            link.sweep()
        self._look()

    def _look(self) -> None:
        """Have each job looked after, and each session connected that is to be."""
        self._queue.look()
        for session in self._book.sessions():
            if session.wanted:
                attempt(functools.partial(self._see_to, session))

    def _see_to(self, session: Session) -> None:
        """Have a session connected."""
        self._link(session.name, session.target)
        now = self._book.session(session.name)
        if now is None or not now.wanted:  # since we looked
            self._let_go(session.name)

    def tell_why(self, jobs: set[str], reason: str, but: Ask | None = None) -> None:
        """Tell those who wait for some jobs, but one, why these do not go on."""
        for client in list(self._listeners):
            if client.jobs & jobs and client is not but:
                client.tell({"waiting": reason})

    def _look_soon(self) -> None:
        threading.Thread(target=self._look, daemon=True).start()

    def tell(self, job_id: str) -> None:
        """Tell those who wait for news that a job has changed."""
        for client in list(self._listeners):
            client.tell({"job": job_id})

    def op_subscribe(self, client: Client, request: dict[str, Any]) -> None:
        """Tell of each change of a job until the client leaves, who waits for some.

        If there is a person, that one is asked meanwhile what their hosts want to know.
        """
        client.jobs = frozenset(request["jobs"])
        with self._lock:
            self._listeners.add(client)
        if request.get("person"):
            self._people.come(client, request["jobs"])
        for link in list(self._links.values()):
            link.heed(client.jobs)
        client.say({})
        self._queue.look(request["jobs"])
        client.until_gone(lambda message: None)

    def _link_of(self, job: Carried) -> Link:
        if session := self._book.way(job.session, job.target):
            return self._link(session.name, session.target)
        return self._passing(job.target)

    def _passing(self, target: Target) -> Link:
        """Return the link to a machine that lasts as long as something needs it."""
        return self._link(links.temporary(target), target)

    def _link(self, name: str, target: Target, environ: dict[str, str] | None = None) -> Link:
        """Return the link of that name.

        :param environ: of one who asks for it, not for jobs over it.
        """
        self._openers.opens(name, environ)
        with self._lock:
            link = self._links.get(name)
            if link is None or link.closed:
                connect = functools.partial(self._connect, name)
                link = Link(name, target, connect, self._book, self._queue)
                self._links[name] = link
            return link

    def _connect(self, name: str, target: Target, ask: Ask) -> Connection:
        environ, config = self._openers.environ(name), target.config or None
        # Not at the top: paramiko takes a while to load.
        from jobctl.transport.ssh import connect

        settings = None
        try:
            settings = configuration.read(target, config, environ)
            return connect(target, ask, config, environ, settings)
        except Cancelled:
            why = f"cannot connect to {target.label}: the login was cancelled at the terminal"
            raise Cancelled(why) from None
        except JobctlError as error:
            # That a network is down says nothing of him in whose name it was tried.
            if isinstance(error, Denied) or not settings or settings.word("proxycommand"):
                self._openers.failed(name)
            raise

    def op_stop(self, client: Client, request: dict[str, Any]) -> dict[str, Any]:
        """Stop jobs; return the ids of those of which something is left, and errors by id.

        Of an error, here and below: the exit status of what asks, and what to say.
        """
        words = request["jobs"], request["grace"], request["reason"]
        left, errors = self._queue.stop(*words, _person_of(client, request))
        return {"left": left, "errors": _told(errors)}

    def op_signal(self, client: Client, request: dict[str, Any]) -> dict[str, Any]:
        """Send a signal to jobs.

        Returns the ids of those it did not reach, and of those not begun, and errors by id.
        """
        sent, errors = self._queue.signal(
            request["jobs"], request["name"], _person_of(client, request)
        )
        return {
            "missed": sorted(sent.missed),
            "unbegun": sorted(sent.unbegun),
            "errors": _told(errors),
        }

    def op_erase(self, client: Client, request: dict[str, Any]) -> dict[str, Any]:
        """Delete finished jobs on their hosts, with what they left running; return errors by id."""
        return {"errors": _told(self._queue.erase(request["jobs"], _person_of(client, request)))}

    def op_fetch(self, client: Client, request: dict[str, Any]) -> dict[str, Any]:
        """Bring home the output of jobs that was to stay on the host; return errors by id."""
        return {"errors": _told(self._queue.fetch(request["jobs"], _person_of(client, request)))}

    # --- sessions ---

    def op_open(self, client: Client, request: dict[str, Any]) -> None:
        """Open a session, with the help of the person at the terminal.

        One that is new is forgotten when that fails, also if nobody is there any more to hear.
        """
        session = self._book.known(request["session"])
        try:
            self._link(session.name, session.target, request["environ"]).opened(client)
        except Unreachable:
            if request.get("new"):
                self._book.remove(session.name)
                self._let_go(session.name)
            raise
        self._look()

    def op_close(self, client: Client, request: dict[str, Any]) -> None:
        """Let go of the connection of a session."""
        self._let_go(request["session"])

    def _let_go(self, name: str) -> None:
        with self._lock:
            link = self._links.pop(name, None)
        self._openers.forget(name)
        if link:
            jobs = link.close()
            for job in jobs:
                self.tell(job.id)

    def op_run(self, client: Client, request: dict[str, Any]) -> dict[str, Any]:
        """Run a command on a host with the client's descriptors; return its exit status."""
        link = self._asked_for(request)
        link.used(+1)
        try:
            open_it = link.opened if request.get("terminal") else link.commands
            return run(client, open_it(client), request)
        finally:
            link.used(-1)

    def op_survey(self, client: Client, request: dict[str, Any]) -> dict[str, Any]:
        """Return what jobs there are on a host, as serve.sh prints them."""
        link = self._asked_for(request)
        link.used(+1)
        try:
            far = link.opened(client)
            answer = far.request("survey", seconds=300.0)
            jobs = answer.decode("utf-8", "surrogateescape")
            return {"jobs": jobs, "host": far.host, "clocks": far.clocks.renewed(process.now())}
        finally:
            link.used(-1)

    def _asked_for(self, request: dict[str, Any]) -> Link:
        """Return the link to the session, or else the machine, that a request names.

        :raises Refused: the session was disconnected on purpose.
        """
        if session := self._book.session(request["to"]):
            if not session.wanted:
                raise Refused(
                    f"session '{printable(session.name)}' is disconnected;"
                    " 'jobctl session connect' connects it again"
                )
            return self._link(session.name, session.target, request["environ"])
        config = request["environ"].get("JOBCTL_SSH_CONFIG", "")
        target = parse_target(request["to"])._replace(config=config)
        if session := self._book.to(config).get(target.label):
            return self._link(session.name, session.target, request["environ"])
        return self._link(links.temporary(target), target, request["environ"])


def _told(errors: dict[str, JobctlError]) -> dict[str, tuple[int, str]]:
    return {job_id: (error.status, str(error)) for job_id, error in errors.items()}


def _person_of(client: Client, request: dict[str, Any]) -> Ask | None:
    """Return who answers questions for a request, None where nobody is at a terminal."""
    return client if request.get("person") else None


def _load() -> None:
    """Load what takes a while and will be needed, while others have something else to do."""
    import jobctl.transport.ssh  # noqa: F401


def _installed() -> tuple[int, int] | None:
    """Return what tells the installed program from one that takes its place."""
    try:
        about = os.stat(jobctl.__file__)
    except OSError:
        return None
    return about.st_ino, about.st_mtime_ns


def _have_own_limits() -> None:
    """Have as high ones as are allowed, and not those of whoever came first.

    Each host takes a descriptor, and each job on it two.
    """
    for kind in _LIMITS:
        soft, hard = resource.getrlimit(kind)
        most = hard
        if kind == resource.RLIMIT_NOFILE:
            most = _MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_FILES)
        if soft != resource.RLIM_INFINITY and (most == resource.RLIM_INFINITY or soft < most):
            with suppress(OSError, ValueError):
                resource.setrlimit(kind, (most, hard))


def main() -> None:
    """Serve the state directory that is the first argument, unless somebody does so.

    The second may be a descriptor of its lock, which may be held already; the third one, on which
    somebody waits to hear that we have begun.
    """
    for name in set(os.environ) - _OWN:
        del os.environ[name]  # this interpreter may have needed it; nobody else is to have it
    state_dir = sys.argv[1]
    os.umask(0o077)
    os.chdir(state_dir)
    lock = int(sys.argv[2]) if len(sys.argv) > 2 else os.open("agent.lock", _LOCK_FLAGS, 0o600)
    os.set_inheritable(lock, False)
    post = Post(state_dir, lock)
    if not post.take():
        return
    if len(sys.argv) > 3:
        with suppress(OSError), open(int(sys.argv[3]), "wb") as waiting:
            waiting.write(b".")
    _have_own_limits()
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.excepthook = lambda given: log(f"a thread failed: {given.exc_value!r}")
    Links(state_dir).forget()
    log(f"agent {__version__} begins, process {os.getpid()}")
    try:
        Agent(state_dir, post).serve()
    except NotTheAgent:
        log("agent ends: its files have gone, or another one has taken its place")
    else:
        post.leave()
        log("agent ends: nothing to do")
    os._exit(0)
