"""Keeps up a connection to one host for as long as somebody wants it, and does its jobs there."""

from __future__ import annotations

import functools
import os
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from typing import Protocol

from jobctl import links
from jobctl.agent.caller import Nobody, One, Whoever
from jobctl.agent.commands import ENDED, Commands, NoPlace
from jobctl.agent.far import Far, NotDone, begun, unreachable
from jobctl.agent.hands import hand
from jobctl.agent.mirror import Mirror
from jobctl.agent.room import Room
from jobctl.agent.shares import Share
from jobctl.carried import Carried
from jobctl.errors import Unreachable
from jobctl.links import Links, LinkState
from jobctl.records import OF_ALL
from jobctl.target import Target
from jobctl.transport.base import Ask, Cancelled, Connection, Denied, Lost

_LINGER = 30.0
"""Seconds that a temporary connection is kept when nothing needs it any more."""
_PAUSES = (1.0, 60.0)
"""Seconds between attempts to get a broken connection back: the first, and the longest."""
_REFUSED = (60.0, 1800.0)
"""The same where a login or a host key was refused: some servers take repeated refusals amiss."""
_STEADY = 10.0
"""Seconds after which a connection that breaks is made anew without a pause."""
_LOOKS = (0.05, 60.0)
"""Seconds until the host is told to see what a new job has written, and between later looks,
should what wakes the host by itself have been killed."""
_MOST_LOSSES = 3
"""Connections that break before all is set up, until a job that waits for one has failed."""


class Company(Protocol):
    """Who is told what happens on a connection."""

    def ended(self, job: Carried) -> None:
        """A job is finished."""

    def changed(self, job: Carried) -> None:
        """A job began, or goes on differently."""

    def back(self, job: Carried, far: Far) -> None:
        """The host has a job, and can be told what was asked of it meanwhile."""

    def held_up(self, jobs: Iterable[Carried], reason: str, but: Ask | None = None) -> None:
        """Jobs cannot go on, as the host was not reached yet; but one who waits knows that."""

    def person(self, jobs: Iterable[Carried]) -> Ask | None:
        """Return somebody at a terminal who waits for one of these jobs."""


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
        again = functools.partial(self.add, anew=True)
        self._room = Room(book.state_dir)
        self._mirror = Mirror(self._ended, company.changed, again, self._lacks_room, self._harmed)
        self._change = threading.Condition()
        self._begin: deque[Carried] = deque()
        self._jobs: dict[str, Carried] = {}
        self._far: Far | None = None
        self._bare: Commands | None = None
        """For commands on a host without a place for our files; kept while somebody runs one."""
        self._whoever = Whoever(
            target.label,
            lambda: company.person(self._all()),
            lambda why, but: company.held_up(self._all(), why, but),
        )
        self._asked = False
        """Somebody wants the connection now, and a refusal is no reason not to try again."""
        self._losses = 0
        """How many connections broke in a row while they were set up."""
        self._closed, self._users = False, 0
        self._idle_since = time.monotonic()
        self._connected_at: float | None = None
        self._noted: links.Link | None = None
        self._look_at: float | None = None
        """When the host is to be told to look; None while there are no jobs."""
        self.state = LinkState.OPENING
        self.error: Unreachable | None = None
        self._note(LinkState.OPENING)
        hand(self._run)

    @property
    def temporary(self) -> bool:
        """Whether no session wants it."""
        return self.name == links.temporary(self.target)

    @property
    def closed(self) -> bool:
        """Whether it is of no use any more."""
        with self._change:
            return self._closed

    # --- for other threads ---

    def add(self, job: Carried, anew: bool = False) -> bool:
        """Look after a job, unless that is done already; return False if this is closed.

        :param anew: also if it is done, as the job is to be carried differently.
        """
        with self._change:
            if not self._closed and (anew or job.id not in self._jobs):
                self._jobs[job.id] = job
                self._begin.append(job)
                self._asked = self._asked or self._far is None
                self._change.notify_all()
            return not self._closed

    def withdraw(self, job: Carried) -> bool:
        """Do not hand a job to the host; return False if that was just done."""
        with self._change:
            if not job.sent:
                self._jobs.pop(job.id, None)
            return not job.sent

    def drop(self, job_id: str) -> None:
        """Look after a job no longer."""
        with self._change:
            job, far = self._jobs.pop(job_id, None), self._far
            self._idle_since = time.monotonic()
            self._change.notify_all()
        if job and far:
            with suppress(Unreachable, BrokenPipeError):
                self._mirror.leave(far, job)

    def sweep(self) -> None:
        """Look after jobs no longer that were removed here while they run there."""
        with self._change:
            far, jobs = self._far, [job for job in self._jobs.values() if not job.exists()]
            for job in jobs:
                del self._jobs[job.id]
            self._idle_since = time.monotonic()
            self._change.notify_all()
        if far:
            with suppress(Unreachable, BrokenPipeError):
                for job in jobs:
                    self._mirror.leave(far, job)

    def opened(self, ask: Ask | None = None) -> Far:
        """Return the far end once the connection stands.

        :param ask: who answers questions meanwhile.
        :raises Unreachable: it could not be opened this time.
        """
        with self._whoever.beside(ask), self._change:
            self._idle_since = time.monotonic()  # something is to be asked for
            if self._far and self._far.alive():
                return self._far
            self._far = None  # it broke, and its thread has yet to find out
            if self._closed:
                raise self.error or Unreachable(f"{self.target.label} was disconnected")
            self._asked = True
            self.error = None
            self._change.notify_all()
            while self._far is None and self.error is None and not self._closed:
                self._change.wait()
            if self._far is None:
                raise self.error or Unreachable(f"{self.target.label} was disconnected")
            return self._far

    def commands(self, ask: Ask) -> Commands:
        """Return what runs commands on the host; who calls is counted by used() meanwhile.

        :param ask: who answers questions meanwhile.
        :raises Unreachable: it could not be opened this time.
        """
        tried = False
        while not ((bare := self._bare) and bare.alive()):
            try:
                return self.opened(ask)
            except NoPlace:
                # The first attempt may have been one from before its caller was counted.
                if tried and not self._bare:
                    raise
                tried = True
        return bare

    def heed(self, ids: Collection[str]) -> None:
        """Try at once to connect if one of these whole jobs needs it, for whom somebody waits."""
        with self._change:
            if self._far is None and any(job.whole in ids for job in self._jobs.values()):
                self._asked = True
                self._change.notify_all()
        self._whoever.remind()

    def used(self, more: int) -> None:
        """Count who uses the connection, so that it stays: +1, and -1 afterwards."""
        with self._change:
            self._users += more
            bare = None
            if not self._users:
                bare, self._bare = self._bare, None
            self._idle_since = time.monotonic()
            self._change.notify_all()
            if not self._closed:
                self._note(self.state, self.error)
        if bare:
            bare.close()

    def check(self) -> None:
        """Give the connection up if what serves us on the host does not answer."""
        far = self._far
        if far and (self._jobs or far.owes):
            try:
                far.check()
            except Lost as error:
                lost = Lost(f"connection to {self.target.label} lost: {error}")
                hand(functools.partial(self._lost, far, lost))

    @property
    def lacking(self) -> str:
        """Why nothing of its jobs can be written down here now, "" if it can."""
        return self._room.lacking

    @property
    def far(self) -> Far | None:
        """The far end, while the connection stands."""
        return self._far

    def close(self) -> list[Carried]:
        """End the connection; return the jobs that go on without it."""
        with self._change:
            far = self._shut()
            jobs = list(self._jobs.values())
        for end in (far, self._bare):
            if end:
                end.close()
        self._mirror.clear()
        return jobs

    def _shut(self) -> Far | None:
        """Take no more jobs and write that down, once; return the far end if there was one."""
        if not self._closed:
            self._closed = True
            self._book.note(self.name, links.Link(LinkState.CLOSED))
        far, self._far = self._far, None
        self._change.notify_all()
        return far

    # --- the thread ---

    def _run(self) -> None:
        try:
            self._keep_up()
        finally:
            self.close()

    def _keep_up(self) -> None:
        pause, refused = _PAUSES[0], _REFUSED[0]
        while not self._closed:
            try:
                far = self._open()
            except Exception as error:  # whatever it is, who waits is to be told
                self._failed(unreachable(error))
                denied = isinstance(self.error, Denied)
                if not self._rest(refused if denied else pause, denied):
                    break
                if denied:
                    refused = min(refused * 2, _REFUSED[1])
                else:
                    pause = min(pause * 2, _PAUSES[1])
                continue
            began = time.monotonic()
            self._serve(far)
            if isinstance(self.error, Denied):  # it broke the protocol
                if not self._rest(refused, True):
                    break
                refused = min(refused * 2, _REFUSED[1])
                continue
            refused = _REFUSED[0]
            lasted = time.monotonic() - began
            if lasted > 2 * pause:
                pause = _PAUSES[0]
            # A host that hangs up right after each login is not to be stormed.
            if lasted < _STEADY:
                if not self._rest(pause, False):
                    break
                pause = min(pause * 2, _PAUSES[1])

    def _open(self) -> Far:
        self._note(LinkState.OPENING, self.error)
        self._whoever.unheard = False
        connection = self._connect(self.target, self._whoever)
        try:
            far = begun(connection, self._another, self.target.label)
        except BaseException as error:
            if not (isinstance(error, NoPlace) and self._keep_bare(connection)):
                connection.close()
            raise
        with self._change:
            if self._closed:
                far.close()
                raise Unreachable("it was closed")
            self._far, self.error, self._asked, self._losses = far, None, False, 0
            # What had begun is carried on from where it ends here.
            self._begin.clear()
            self._begin.extend(self._jobs.values())
            self._idle_since = time.monotonic()
            self._connected_at = time.time()
            self._note(LinkState.OPENED)
            self._change.notify_all()
        return far

    def _keep_bare(self, connection: Connection) -> bool:
        """Keep a connection for commands if somebody may want to run one; return whether."""
        with self._change:
            wanted = self._users > 0 and not self._closed
            if wanted and not (self._bare and self._bare.alive()):
                self._bare = Commands(connection, self._another)
                return True
        return False

    def _another(self, ask: Ask | None) -> Connection:
        return self._connect(self.target, One(ask, self._whoever))

    def _all(self) -> list[Carried]:
        with self._change:
            return list(self._jobs.values())

    def _failed(self, error: Unreachable) -> None:
        """Tell who waits; jobs that never began and have no session to wait for have failed."""
        with self._change:
            unanswered = isinstance(error, Cancelled) or self._whoever.unheard
            if unanswered and not isinstance(self._whoever.present(), Nobody):
                self._asked = True
                return  # who can answer came too late, or another one is there: once more
            self.error = error
            self._asked = False
            self._note(LinkState.BROKEN, error)
            self._losses = self._losses + 1 if isinstance(error, Lost) else _MOST_LOSSES
            hopeless = []
            if self.temporary and self._losses >= _MOST_LOSSES:
                hopeless = [job for job in self._jobs.values() if not job.sent]
            for job in hopeless:
                del self._jobs[job.id]
            others = list(self._jobs.values())
            self._change.notify_all()
        for job in hopeless:
            try:
                self._give_up(job, str(error))
            except OSError as failure:
                if self._lacks_room(failure) or job.exists():
                    with self._change:
                        self._jobs[job.id] = job  # it fails when that can be written down
        self._company.held_up(others, f"{error}; it is tried again")

    def _rest(self, pause: float, denied: bool) -> bool:
        """Wait before the next attempt; return whether there is to be one.

        A login that was refused is tried again only for jobs that go on there, or when somebody
        asks for it.
        """
        deadline = time.monotonic() + pause * random.uniform(0.75, 1.25)
        with self._change:
            while not self._closed:
                if self._asked:
                    return True
                if self.temporary and not self._jobs and not self._users:
                    self._shut()
                    return False
                unneeded = denied and not self._jobs
                left = None if unneeded else deadline - time.monotonic()
                if left is not None and left <= 0:
                    return True
                self._change.wait(left)
        return False

    def _serve(self, far: Far) -> None:
        """Do the jobs, until the connection breaks or nobody wants it."""
        movers = [self._moving(far)]
        if not self.temporary:
            # For commands run over it; a connection that is made for a job has none.
            threading.Thread(target=far.stand_by, daemon=True).start()
        try:
            while (job := self._next(far)) is not None:
                if job.bulky and far.open_bulk():
                    movers.append(self._moving(far, bulk=True))
                self._see_to_it(far, job)
        except Unreachable as error:
            self._lost(far, error)
        except BrokenPipeError:
            self._lost(far, Lost(ENDED))
        except OSError as error:
            self._lost(far, Lost(f"cannot read here: {error.strerror}"))
        far.close()
        for mover in movers:
            mover.join()
        self._mirror.clear()

    def _next(self, far: Far) -> Carried | None:
        """Return the next job to begin or to carry on; None when the connection is to end."""
        while True:
            self._see_to_room()
            with self._change:
                if self._closed or self._far is not far:
                    return None
                if self._begin:
                    return self._begin.popleft()
                left = self._left()
                if (pause := self._room.pause()) is not None:
                    self._change.wait(pause)
                    continue
                if left is None or left > 0:
                    self._change.wait(left)
                    continue
                if self._look_at is None:
                    self._shut()
                    return None
                self._look_at = None
            far.look()

    def _lacks_room(self, error: OSError) -> bool:
        """Wait with all jobs if it is for want of room here that something was not written."""
        if not self._room.lacks(error):
            return False
        self._tell_of_room()
        with self._change:
            self._change.notify_all()
        return True

    def _see_to_room(self) -> None:
        """Go on with all jobs once there is room again."""
        if self._room.pause() != 0:
            return
        if not self._jobs or self._room.found():
            self._room.lacking = ""
            with self._change:
                self._begin.extend(self._jobs.values())
        else:
            self._tell_of_room()

    def _tell_of_room(self) -> None:
        self._company.held_up(self._all(), self._room.lacking)

    def _left(self) -> float | None:
        """Return the seconds until there is something to do of which nobody tells; None: never."""
        now = time.monotonic()
        if self._jobs:
            self._look_at = self._look_at or now + _LOOKS[1]
            return self._look_at - now
        self._look_at = None
        if self._far and self._far.owes:
            self._idle_since = now  # to ask the host for something is a use
        idle = self.temporary and not self._users
        return self._idle_since + _LINGER - now if idle else None

    def _see_to_it(self, far: Far, job: Carried) -> None:
        """Begin a job or carry it on; what is wrong with its folder here is its trouble alone."""
        try:
            self._hand_over(far, job)
        except BrokenPipeError:
            raise
        except OSError as error:
            if self._lacks_room(error):
                return
            if error.errno in OF_ALL:
                raise
            self._harmed(job, error)
        except (ValueError, LookupError, NotDone) as error:
            self._harmed(job, error)

    def _harmed(self, job: Carried, error: Exception) -> None:
        """End a job whose folder here is damaged, for us; the others go on."""
        self.drop(job.id)
        reason = getattr(error, "strerror", None) or str(error)
        try:
            self._give_up(job, reason if reason.startswith("damaged: ") else f"damaged: {reason}")
        except OSError:
            self._company.ended(job)  # as far as others go
        job.caught_up.set()

    def _hand_over(self, far: Far, job: Carried) -> None:
        with self._change:
            if job.id not in self._jobs:
                job.caught_up.set()  # its end has come meanwhile, or it was removed
                return
            finished = job.folder.finished()
            over = not job.exists() or (finished and not job.incomplete)
            new = not (over or finished or job.adopted or job.begun)
            if over:
                del self._jobs[job.id]
            elif new:
                job.note_sent()
        if over:
            job.caught_up.set()
            self._company.changed(job)  # nobody else tells who waits that somebody else ended it
            return
        try:
            followed = new and self._begun_there(far, job)
        except NotDone as error:
            self._give_up(job, f"{self.target.label}: {error}")
        except FileNotFoundError:
            self.drop(job.id)  # it was removed meanwhile
        else:
            if not followed:
                if isinstance(job, Share):
                    job.go_on(far)
                self._mirror.follow(far, job)
            self._company.back(job, far)

    def _give_up(self, job: Carried, reason: str) -> None:
        self._ended(job, job.end("Failed", reason))

    def _begun_there(self, far: Far, job: Carried) -> bool:
        """Have the host take a job; return whether it is followed already."""
        for name in job.attached():
            with open(job.folder.file(name), "rb") as source:
                far.put(job.instance_id, name, source.fileno())
        if isinstance(job, Share):
            job.hand_over(far)
            return False
        self._mirror.begin(far, job)
        self._look_at = time.monotonic() + _LOOKS[0]
        return True

    def _moving(self, far: Far, bulk: bool = False) -> threading.Thread:
        """Return a new thread that writes down what comes from the host."""
        mover = threading.Thread(target=self._move, args=(far, bulk), daemon=True)
        mover.start()
        return mover

    def _move(self, far: Far, bulk: bool) -> None:
        try:
            self._mirror.work(far, bulk)
        except Unreachable as error:
            self._lost(far, error)
        except OSError as error:
            self._lost(far, Lost(f"cannot write here: {error.strerror}"))
        except (ValueError, LookupError):
            self._lost(far, Lost("the host sends what makes no sense"))

    def _lost(self, far: Far, error: Unreachable) -> None:
        with self._change:
            if self._far is not far:
                return
            self._far = None
            self.error = error
            self._note(LinkState.BROKEN, error)
            self._change.notify_all()
        far.close()

    def _ended(self, job: Carried, first: bool) -> None:
        with self._change:
            self._jobs.pop(job.id, None)
            self._idle_since = time.monotonic()
            self._change.notify_all()
        if first:
            self._company.ended(job)
        else:  # another agent wrote it down, say, whose place we took
            self._company.changed(job)

    def _note(self, state: LinkState, error: Unreachable | None = None) -> None:
        with self._change:
            if self._closed:
                return  # there may be another link of this name
            self.state = state
            if state is LinkState.OPENED:
                reason = self._far.warning if self._far else ""
            else:
                reason = str(error or "")
            now = links.Link(state, reason, self._connected_at, self._users > 0)
            if now == self._noted:
                return
            try:
                self._book.note(self.name, now)
                self._noted = now
            except OSError:  # the disk is full: then others see an older state
                with suppress(OSError):
                    os.write(2, b"cannot write the state of a connection\n")
