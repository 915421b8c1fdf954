"""Keeps up a connection to one host for as long as somebody wants it, and does its jobs there."""

from __future__ import annotations

import os
import random
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

from jobctl import links
from jobctl.agent.far import Far, NotDone
from jobctl.agent.mirror import Mirror
from jobctl.carried import Carried
from jobctl.errors import Unreachable
from jobctl.links import Links, LinkState
from jobctl.target import Target
from jobctl.transport.base import Ask, Connection, Denied, Lost

_LINGER = 30.0
"""Seconds that a temporary connection is kept when nothing needs it any more."""
_PAUSES = (1.0, 60.0)
"""Seconds between attempts to get a broken connection back: the first, and the longest."""


class Nobody:
    """No person at a terminal."""

    def secret(self, prompt: str) -> str | None:
        """Return None."""
        return None

    def confirm(self, question: str) -> bool:
        """Return False."""
        return False


class Company(Protocol):
    """Who is told what happens on a connection."""

    def ended(self, job: Carried) -> None:
        """A job is finished."""

    def changed(self, job: Carried) -> None:
        """A job began, or goes on differently."""


class Link:
    """A connection to a host. Its methods are for other threads; its own does the work."""

    def __init__(
        self,
        name: str,
        target: Target,
        connect: Callable[[Target, Ask], Connection],
        book: Links,
        company: Company,
    ) -> None:
        self.name = name
        self.target = target
        self._connect = connect
        self._book = book
        self._company = company
        self._mirror = Mirror(self._ended, company.changed)
        self._change = threading.Condition()
        self._begin: deque[Carried] = deque()
        self._jobs: dict[str, Carried] = {}
        self._far: Far | None = None
        self._ask: Ask = Nobody()
        self._asked = False
        """Somebody wants the connection now, and a refusal is no reason not to try again."""
        self._closed = False
        self._users = 0
        self._idle_since = time.monotonic()
        self._connected_at: float | None = None
        self.state = LinkState.OPENING
        self.error: Unreachable | None = None
        self._note(LinkState.OPENING)
        threading.Thread(target=self._run, daemon=True).start()

    @property
    def temporary(self) -> bool:
        """Whether no session wants it."""
        return self.name == links.temporary(self.target.label)

    @property
    def closed(self) -> bool:
        """Whether it is of no use any more."""
        return self._closed

    # --- for other threads ---

    def add(self, job: Carried) -> None:
        """Look after an unfinished job, unless that is done already."""
        with self._change:
            if job.id not in self._jobs:
                self._jobs[job.id] = job
                self._begin.append(job)
                self._change.notify_all()

    def again(self, job: Carried) -> None:
        """Look after a job anew, as it is to be carried differently."""
        with self._change:
            self._jobs[job.id] = job
            self._begin.append(job)
            self._change.notify_all()

    def drop(self, job_id: str) -> bool:
        """Look after a job no longer; return whether it was never handed to the host."""
        with self._change:
            job = self._jobs.pop(job_id, None)
            return job is not None and not job.sent

    def opened(self, ask: Ask | None = None) -> Far:
        """Return the far end once the connection stands.

        :param ask: who answers questions meanwhile.
        :raises Unreachable: it could not be opened this time.
        """
        with self._change:
            if self._far and self._far.alive():
                return self._far
            if self._closed:
                raise Unreachable(f"the connection to {self.target.label} was closed")
            self._ask = ask or Nobody()
            self._asked = True
            self.error = None
            self._change.notify_all()
            try:
                while self._far is None and self.error is None and not self._closed:
                    self._change.wait()
            finally:
                self._ask = Nobody()
            if self._far is None:
                raise self.error or Unreachable(f"{self.target.label} was disconnected")
            return self._far

    def used(self, more: int) -> None:
        """Count who uses the connection, so that it stays: +1, and -1 afterwards."""
        with self._change:
            self._users += more
            self._idle_since = time.monotonic()
            self._change.notify_all()
        if not self._closed:
            self._note(self.state, self.error)

    @property
    def far(self) -> Far | None:
        """The far end, while the connection stands."""
        return self._far

    def close(self) -> None:
        """End the connection. Jobs go on."""
        with self._change:
            self._closed = True
            far, self._far = self._far, None
            self._change.notify_all()
        if far:
            far.close()
        self._mirror.clear()
        self._book.note(self.name, links.Link(LinkState.CLOSED))

    # --- the thread ---

    def _run(self) -> None:
        pause = _PAUSES[0]
        while not self._closed:
            try:
                far = self._open()
            except Unreachable as error:
                self._failed(error)
                if not self._rest(pause, isinstance(error, Denied)):
                    break
                pause = min(pause * 2, _PAUSES[1])
                continue
            began = time.monotonic()
            self._serve(far)
            # A host that hangs up right after each login is not to be stormed.
            pause = _PAUSES[0] if time.monotonic() - began > 10 else min(pause * 2, _PAUSES[1])
            if not self._closed and time.monotonic() - began < 10 and not self._rest(pause, False):
                break
        self.close()

    def _open(self) -> Far:
        self._note(LinkState.OPENING, self.error)
        connection = self._connect(self.target, self._ask_now())
        try:
            far = Far(connection)
        except BaseException:
            connection.close()
            raise
        with self._change:
            if self._closed:
                far.close()
                raise Unreachable("it was closed")
            self._far, self.error, self._asked = far, None, False
            # What had begun is carried on from where it ends here.
            self._begin.clear()
            self._begin.extend(self._jobs.values())
            self._idle_since = time.monotonic()
            self._connected_at = time.time()
            self._note(LinkState.OPENED)
            self._change.notify_all()
        return far

    def _ask_now(self) -> Ask:
        """Return who asks whoever waits for the connection at the time of the question."""
        link = self

        class Current:
            def secret(self, prompt: str) -> str | None:
                return link._ask.secret(prompt)

            def confirm(self, question: str) -> bool:
                return link._ask.confirm(question)

        return Current()

    def _failed(self, error: Unreachable) -> None:
        """Tell who waits; jobs that never began and have no session to wait for have failed."""
        with self._change:
            self.error = error
            self._asked = False
            self._note(LinkState.BROKEN, error)
            hopeless = [j for j in self._jobs.values() if self.temporary and not j.sent]
            for job in hopeless:
                del self._jobs[job.id]
            self._change.notify_all()
        for job in hopeless:
            job.end("Failed", str(error))
            self._company.ended(job)

    def _rest(self, pause: float, denied: bool) -> bool:
        """Wait before the next attempt; return whether there is to be one.

        A login that was refused is tried again only when somebody asks for it: some servers
        take repeated refusals amiss.
        """
        deadline = time.monotonic() + pause * random.uniform(0.75, 1.25)
        with self._change:
            while not self._closed:
                if self._asked:
                    return True
                if self.temporary and not self._jobs and not self._users:
                    return False
                left = None if denied else deadline - time.monotonic()
                if left is not None and left <= 0:
                    return True
                self._change.wait(left)
        return False

    def _serve(self, far: Far) -> None:
        """Do the jobs, until the connection breaks or nobody wants it."""
        mover = threading.Thread(target=self._move, args=(far,), daemon=True)
        mover.start()
        threading.Thread(target=far.stand_by, daemon=True).start()
        try:
            while (job := self._next(far)) is not None:
                self._hand_over(far, job)
        except (Lost, Unreachable) as error:
            self._lost(far, error)
        far.close()
        mover.join()
        self._mirror.clear()

    def _next(self, far: Far) -> Carried | None:
        """Return the next job to begin or to carry on; None when the connection is to end."""
        with self._change:
            while not self._closed and self._far is far:
                if self._begin:
                    return self._begin.popleft()
                idle = self.temporary and not self._jobs and not self._users
                left = self._idle_since + _LINGER - time.monotonic() if idle else None
                if left is not None and left <= 0:
                    self._closed = True
                    break
                self._change.wait(left)
        return None

    def _hand_over(self, far: Far, job: Carried) -> None:
        if job.id not in self._jobs or job.folder.finished():
            return
        if not job.adopted:
            try:
                if not job.begun:
                    job.note_sent()
                    self._accept(far, job)
            except NotDone as error:
                self._jobs.pop(job.id, None)
                job.end("Failed", f"{self.target.label}: {error}")
                self._company.ended(job)
                return
        self._mirror.follow(far, job)

    def _accept(self, far: Far, job: Carried) -> None:
        for name in job.attached():
            with open(job.folder.file(name), "rb") as source:
                far.put(job.instance_id, name, source.fileno())
        spec, environment, odd = job.parts()
        far.request("accept", job.instance_id.encode(), spec, environment, odd)

    def _move(self, far: Far) -> None:
        """In a thread of its own: write down what comes from the host."""
        try:
            self._mirror.work(far)
        except Unreachable as error:
            self._lost(far, error)
        except OSError as error:
            self._lost(far, Lost(f"cannot write here: {error.strerror}"))

    def _lost(self, far: Far, error: Unreachable) -> None:
        with self._change:
            if self._far is not far:
                return
            self._far = None
            self.error = error
            self._note(LinkState.BROKEN, error)
            self._change.notify_all()
        far.close()

    def _ended(self, job: Carried) -> None:
        with self._change:
            self._jobs.pop(job.id, None)
            self._idle_since = time.monotonic()
            self._change.notify_all()
        self._company.ended(job)

    def _note(self, state: LinkState, error: Unreachable | None = None) -> None:
        self.state = state
        reason = str(error) if error and state is not LinkState.OPENED else ""
        try:
            self._book.note(
                self.name, links.Link(state, reason, self._connected_at, self._users > 0)
            )
        except OSError:  # the disk is full: then others see an older state
            os.write(2, b"cannot write the state of a connection\n")
