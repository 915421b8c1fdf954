"""Brings home what the jobs of one host write, into their folders here."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable

from jobctl.agent.far import Far, NotDone
from jobctl.agent.shares import Share
from jobctl.carried import STREAMS, Carried
from jobctl.folder import MISSING
from jobctl.incoming import EmptiedThere
from jobctl.records import OF_ALL
from jobctl.task import FOLDERS
from jobctl.transport.base import Lost

_OFTEN = 100
"""How many records of one job are written in a second: many more than a host has reason to send."""
_RECORDS = {b"run", b"progress", b"state", b"self", b"emptied"}
"""What of a job is written anew, or into a new file, each time it comes."""


class Pace:
    """How long who is too fast is to wait: each file that we write takes the disk's time."""

    def __init__(self, most: int) -> None:
        """Let that many go by in a second, of each kind."""
        self._most = most
        self._since = 0.0
        self._counts: Counter[bytes] = Counter()

    def pause(self, kind: bytes, now: float) -> float:
        """Count one more of a kind; return the seconds to wait before it is taken.

        :param now: seconds of a clock that only goes forward.
        """
        if now - self._since >= 1.0:
            self._since = now
            self._counts.clear()
        self._counts[kind] += 1
        return self._since + 1.0 - now if self._counts[kind] > self._most else 0.0


class Mirror:
    """Writes what comes from a host into job folders."""

    def __init__(
        self,
        ended: Callable[[Carried, bool], None],
        changed: Callable[[Carried], None],
        again: Callable[[Carried], object],
        lacks_room: Callable[[OSError], bool],
        harmed: Callable[[Carried, Exception], object],
    ) -> None:
        """Write for nobody yet.

        :param ended: is told a job whose end has come, and whether that was news.
        :param changed: is told a job that goes on differently.
        :param again: is told a job that is to be followed anew.
        :param lacks_room: is told why something could not be written; returns whether all jobs are
            to be followed anew later.
        :param harmed: is told a job of which nothing can be written down, and why.
        """
        self._ended = ended
        self._changed = changed
        self._again = again
        self._lacks_room = lacks_room
        self._harmed = harmed
        self._pace = Pace(_OFTEN)
        self._lock = threading.Lock()
        self._jobs: dict[bytes, Carried] = {}
        self._last = 0

    def follow(self, far: Far, job: Carried) -> None:
        """Have a host send what a job writes, from where it ends here.

        :raises NotDone: it is not known which job that is there.
        :raises Lost: the connection broke.
        """
        if job.nowhere:
            raise NotDone(job.nowhere)
        with self._lock:
            wish = job.wish(self._enlist(far, job))
        far.carry(wish, job.bulky)

    def begin(self, far: Far, job: Carried) -> None:
        """Have a host start a job, and send what it writes.

        :raises NotDone: it cannot.
        :raises Lost: the connection broke.
        """
        parts = job.parts(far.differing)
        with self._lock:
            handle = self._enlist(far, job)
        try:
            far.request("accept", job.instance_id.encode(), *parts, *job.wanted_from(handle))
        except NotDone:
            self._forget(handle)
            raise
        job.note_accepted()

    def _enlist(self, far: Far, job: Carried) -> bytes:
        """Return the number by which a job is followed from now on."""
        job.note_host(far.host, far.clocks)
        self._last += 1
        handle = b"%d" % self._last
        self._drop(far, job)
        self._jobs[handle] = job
        return handle

    def leave(self, far: Far, job: Carried) -> None:
        """Have a host send no more of what a job writes.

        :raises Lost: the connection broke.
        """
        with self._lock:
            self._drop(far, job)

    def _drop(self, far: Far, job: Carried) -> None:
        for handle, known in list(self._jobs.items()):
            if known.id == job.id:
                del self._jobs[handle]
                known.close()
                far.carry(f"drop {handle.decode()}", known.bulky)

    def _leave_all(self, far: Far) -> None:
        with self._lock:
            for job in list(self._jobs.values()):
                self._drop(far, job)

    def work(self, far: Far, bulk: bool = False) -> None:
        """Write down what comes, until the connection breaks.

        :param bulk: of the jobs with much output.
        :raises Lost: it did.
        :raises OSError: the disk here is full, say.
        """
        for words, more in far.frames(bulk):
            job = self._jobs.get(words[1])
            try:
                self._take(words, job, more)
            except EmptiedThere:
                if job is not None:
                    self.follow(far, job)
            except OSError as error:
                if self._lacks_room(error):
                    self._leave_all(far)
                elif job is not None and not job.exists():
                    self._forget(words[1])  # it was removed here
                    self._ended(job, False)
                elif job is None or error.errno in OF_ALL:
                    raise
                else:
                    self._harmed(job, error)
            for _ in iter(more, b""):
                pass  # of a job that we do not follow any more

    def _take(self, words: list[bytes], job: Carried | None, more: Callable[[], bytes]) -> None:
        """Write down one frame."""
        if job is None:
            return
        if words[0] in _RECORDS:
            time.sleep(self._pace.pause(words[1], time.monotonic()))
        if words[0] in STREAMS and not isinstance(job, Share):
            self._stream(words, job, more)
            return
        if words[0] == b"much":
            self._forget(words[1])
            job.bulky = True
            self._again(job)
            return
        if words[0] == b"emptied":
            if isinstance(job, Share) and self._misfits(words, job, b""):
                return
            number = int(words[2]) if len(words) > 3 else None
            with self._lock:
                if words[1] in self._jobs:
                    job.begin_anew(STREAMS[words[-1]], number)
            return
        content = b"".join(iter(more, b""))
        if isinstance(job, Share):
            self._share(words, job, content)
            return
        if words[0] == b"exit":
            self._finish(words[1], job, content)
            return
        if words[0] == b"gone":
            self._gone(words[1], job)
            return
        if words[0] == b"run":
            job.note_run(content)
        elif words[0] == b"progress":
            job.note_progress(content)
        elif words[0] == b"state":
            job.note_condition(words[2].decode())
            job.caught_up.set()
        else:
            raise Lost("the host sends what makes no sense")
        self._changed(job)

    def _stream(self, words: list[bytes], job: Carried, more: Callable[[], bytes]) -> None:
        offset = int(words[2])
        for piece in iter(more, b""):
            with self._lock:
                if words[1] not in self._jobs:
                    return  # followed anew meanwhile, from where it ends here now
                if not job.append(STREAMS[words[0]], offset, piece):
                    raise Lost("the host sends another part of the output than was asked for")
            offset += len(piece)

    def _share(self, words: list[bytes], job: Share, content: bytes) -> None:
        if words[0] == b"gone":
            names = [name for name in FOLDERS if words[2:] == [name.encode()]]
            self._gone(words[1], job, *(f"{job.host}: {MISSING.format(name)}" for name in names))
            return
        if self._misfits(words, job, content):
            return
        with self._lock:
            if words[1] not in self._jobs:
                return
            if not job.take(words, content):
                raise Lost("the host sends another part of the output than was asked for")
        if words[0] == b"journal":
            job.spread.news(job)  # which may have us let go of it

    def _misfits(self, words: list[bytes], job: Share, content: bytes) -> bool:
        """Give up a share whose host tells of what it was not given; return whether it does."""
        why = job.misfit(words, content)
        if why:
            self._gone(words[1], job, f"{job.host}: {why}")
        return bool(why)

    def _finish(self, handle: bytes, job: Carried, content: bytes) -> None:
        self._forget(handle)
        first = job.finish(content)
        job.caught_up.set()
        self._ended(job, first)

    def _gone(self, handle: bytes, job: Carried, why: str = "") -> None:
        self._forget(handle)
        job.gone = True
        first = job.end("Failed", why or job.removed_there)
        job.caught_up.set()
        self._ended(job, first)

    def _forget(self, handle: bytes) -> None:
        with self._lock:
            self._jobs.pop(handle, None)

    def clear(self) -> None:
        """Forget all jobs, as after the connection broke."""
        with self._lock:
            for job in self._jobs.values():
                job.close()
            self._jobs.clear()
