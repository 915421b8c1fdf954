"""The items of a job that are run on several hosts: who gets which, and how they come home.

A host has a share of the job: a folder like that of a job with items here, whose slots run the
items that it was given. What they write comes into the one folder here, and each journal into
one of our own. So whoever reads that sees no difference.

`given` in the folder of a share says which items that host was given, before it is. When an
agent was killed, the next one goes on from there.
"""

from __future__ import annotations

import functools
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence

from jobctl import items, records
from jobctl.agent.far import Elsewhere, Far, NotDone
from jobctl.agent.hands import hand
from jobctl.carried import STREAMS, Carried
from jobctl.errors import JobctlError, Unreachable
from jobctl.folder import FOR_HOSTS
from jobctl.journal import lines_in
from jobctl.model import State
from jobctl.runner import Sent, sent
from jobctl.share import FarTask
from jobctl.timing import Clocks
from jobctl.whole import lack

_AHEAD = 1.0
"""For how many seconds a host is given items that it cannot run yet, so that it never waits."""
_MOST = 250
"""Items in a block."""
_BEAT = 0.5
_SILENCE = 10.0
"""Seconds without any news from a host that has items, after which it is told of them again."""
_TO_BE_TOLD = 20.0
"""Seconds that it takes, at most, to be known here what has become of the items of a host that was
told to end them."""
_GONE = "gone"
"""What a host says that has no folder of the job."""
_UNLIMITED = 1 << 31
"""More items than there are."""
_MOST_SLOTS = 10_000
"""Slots that a host may have had for one job, besides one for each item that it was given: others
are made only when some were killed."""


class Share(Carried):
    """What one host does of a job with items."""

    def __init__(self, task: FarTask, number: int) -> None:
        self.task = task
        self.number = number
        self.spread: Spread
        self.place = task.share(number)
        super().__init__(self.place)
        self.slots = 0
        """How many items the host runs at once; 0 until it is known."""
        self.hopeless = False
        """Whether it cannot be reached, and nothing of it is there."""
        self.reason = ""
        """Why that is so."""
        self._sent = set[int]()
        """First items of the blocks that the host has got over this connection."""
        self._withdrawn_over: Far | None = None
        """Over which connection the host said that it begins none of them any more."""
        self._slots = set[int]()
        """Those that the host has told of."""
        self._heard = time.monotonic()
        self._ended: deque[float] = deque(maxlen=_MOST)
        """When items ended."""

    # --- as Link and Mirror see it ---

    def end(self, state: str, reason: str) -> bool:
        """Take down that the host does nothing more of it; others may go on."""
        if self.folder.has("accepted"):
            self.spread.fail(self, reason)
        else:
            self.spread.lost(self, reason)
        return False

    def note_host(self, name: str, clocks: Clocks) -> None:
        """Write it down, for those who read its journals."""
        self.place.note_host(name, clocks)

    def hand_over(self, far: Far) -> None:
        """Have the host be ready for items, for the first time and never again."""
        spec, environment, odd = self.parts(far.differing)
        cpus = far.request("share", self.instance_id.encode(), spec, environment, odd).strip()
        self.note_accepted(cpus)

    def go_on(self, far: Far) -> None:
        """Have the host be given items over this connection."""
        cpus = self.folder.get("accepted")
        self.slots = self.spread.per_host or (int(cpus) if cpus.isdigit() else 1) or 1
        self.doubt()

    @property
    def stop_asked(self) -> bool:
        """Whether somebody asked for the end of the whole job."""
        return self.task.has("stop")

    def may_be_fed(self, far: Far) -> bool:
        """Whether the host can be told of items without running what was stopped."""
        return not self.stop_asked or self._withdrawn_over is far

    def end_items(self, far: Far, numbers: Iterable[int], grace: float, reason: str) -> bytes:
        """End what the host runs of some items, 0 meaning all; return those of which some is left.

        :raises JobctlError: it cannot be told, or does not do it.
        """
        numbers = list(numbers)
        words = map(str.encode, self.task.stop_targets(numbers))
        hundredths = b"%.0f" % (grace * 100)
        path = os.fsencode(self.path)
        seconds = grace + 60
        answer = far.request(
            "end_items", path, hundredths, os.fsencode(reason), *words, seconds=seconds
        )
        if 0 in numbers:
            self._withdrawn_over = far
        return answer

    def wish(self, handle: bytes) -> str:
        """Return how to ask the host for what is not here yet."""
        task = self.task
        journals = " ".join(f"{k}:{size}" for k, size in task.journal_sizes(self.number))
        partly = " ".join(f"{n}:{out}:{err}" for n, out, err in task.partly_here(self.number))
        slots = self.slots or 1
        return f"carry_items {handle.decode()} {self.path} {slots} '{journals}' '{partly}'"

    def misfit(self, words: list[bytes], content: bytes) -> str:
        """Return what is wrong if the host tells of what it was not given, else ""."""
        numbers: Iterable[int] = ()
        if words[0] in (b"self", b"journal"):
            self._slots.add(int(words[2]))
            if len(self._slots) > _MOST_SLOTS:
                most = _MOST_SLOTS + sum(count for _, count in self.place.given())
                if len(self._slots) > most:
                    return f"it tells of more than {most} slots"
        if words[0] == b"journal":
            numbers = (number for number, _ in lines_in(content))
        elif words[0] in (b"item", b"emptied") and len(words) > 3:
            numbers = (records.integer(words[2]) or 0,)
        holds, none = self.place.holder(), not os.path.lexists(self.place.file("given"))
        other = next((number for number in numbers if none or not holds(number)), None)
        return "" if other is None else f"it tells of item {other}, which it was not given"

    def take(self, words: list[bytes], content: bytes) -> bool:
        """Write down what came; return False if it is not what was asked for."""
        task = self.task
        if words[0] == b"item":
            stream = STREAMS[words[3]]
            return task.append(int(words[2]), stream, int(words[4]), content)
        if words[0] == b"self":
            task.put_slot(self.number, int(words[2]), content)
            return True
        return words[0] == b"journal" and task.append_journal(
            self.number, int(words[2]), int(words[3]), content
        )

    def begin_anew(self, stream: str, number: int | None = None) -> None:
        """Take down that an item has emptied a stream there."""
        if number is not None:
            self.task.begin_anew(number, stream)

    # --- giving ---

    def note_ended(self, count: int) -> None:
        """Take down that items have ended on the host now."""
        self._heard = time.monotonic()
        self._ended.extend([self._heard] * count)

    def silent_for(self, seconds: float) -> bool:
        """Whether nothing was heard of it for so long, for the first time."""
        now = time.monotonic()
        if now - self._heard < seconds:
            return False
        self._heard = now
        return True

    def enough(self) -> int:
        """Return how many items the host should have: those that run, and some that wait."""
        if self.spread.throttled:
            return self.slots
        now = time.monotonic()
        while self._ended and now - self._ended[0] > 2.0:
            self._ended.popleft()
        if len(self._ended) < 2:
            return self.slots
        rate = len(self._ended) / max(0.05, now - self._ended[0])
        # Of what is left, others are to have some when this host turns out to be slow.
        others = sum(not share.hopeless for share in self.spread.shares) - 1
        fair = self.spread.left // (2 * others + 2) if others else _MOST
        return self.slots + min(_MOST, int(rate * _AHEAD), fair)

    def feed(self, far: Far, first: int, block: list[bytes]) -> None:
        """Give items to the host, again if it may not have got them.

        :raises Unreachable: the connection broke.
        :raises NotDone: the host does not take them.
        """
        words = (self.slots, len(block), first)
        line = items.line(block).rstrip(b"\n")
        far.request("feed", self.instance_id.encode(), *(b"%d" % word for word in words), line)
        self._sent.add(first)
        far.look()

    def unsure(self) -> list[tuple[int, int]]:
        """Return the blocks that the host may not have got, as it was not told of them since."""
        found = []
        for first, count in self.place.given():
            if first not in self._sent:
                if len(self.task.ended_of(range(first, first + count))) == count:
                    self._sent.add(first)
                else:
                    found.append((first, count))
        return found

    def doubt(self) -> None:
        """Take none of the blocks for sure that the host has got."""
        self._sent.clear()


class Spread:
    """One job with items on hosts: its shares, each fed by a thread of its own."""

    def __init__(
        self,
        task: FarTask,
        far_of: Callable[[Share], Far | None],
        changed: Callable[[str], None],
        ended: Callable[[str], None],
        held_up: Callable[[str], None],
    ) -> None:
        """Find out how far it is.

        :param far_of: the far end of a share's connection, while that stands.
        :param changed: is told the id of the job when there is news.
        :param ended: is told its id when it is finished.
        :param held_up: is told why it does not go on here.
        """
        self.task = task
        self._far_of = far_of
        self._changed = changed
        self._job_ended = ended
        self._held_up = held_up
        spec = task.spec()
        number = {key: int(spec.get(key) or b"0") for key in ("throttle", "per_host")}
        self.throttle = number["throttle"] or _UNLIMITED
        self.per_host = number["per_host"]
        self.shares = self.shares_of(task)
        for share in self.shares:
            share.spread = self
        self._change = threading.Condition()
        given = [entry for share in self.shares for entry in share.place.given()]
        taken = {n for first, count in given for n in range(first, first + count)}
        self._next = max(taken, default=0) + 1
        self._returned = deque(n for n in range(1, self._next) if n not in taken)
        self._unended = {share.number: self._left(share) for share in self.shares}
        self._over = False

    def begin(self) -> None:
        """Feed the shares, until all has ended."""
        for share in self.shares:
            hand(functools.partial(self._feed, share))

    @property
    def left(self) -> int:
        """How many items no host has."""
        return max(0, self.task.count + 1 - self._next) + len(self._returned)

    @property
    def throttled(self) -> bool:
        """Whether the hosts may run more items at once, all together, than is allowed."""
        if self.throttle == _UNLIMITED:
            return False
        slots = [share.slots or _UNLIMITED for share in self.shares if not share.hopeless]
        return sum(slots) > self.throttle

    @staticmethod
    def shares_of(task: FarTask) -> list[Share]:
        """Return the shares of a job that nobody may be working on."""
        return [Share(task, number) for number in range(1, task.share_count + 1)]

    def _left(self, share: Share) -> set[int]:
        given = {n for at, count in share.place.given() for n in range(at, at + count)}
        return given - self.task.ended_of(given)

    def news(self, share: Share) -> None:
        """Take in that lines of a share's journals have come."""
        with self._change:
            ended = self.task.ended_of(self._unended[share.number])
            self._unended[share.number] -= ended
            share.note_ended(len(ended))
            self._change.notify_all()
        self._changed(self.task.id)
        self.conclude()

    def lost(self, share: Share, reason: str) -> None:
        """Give the items of a host that was never reached to others."""
        self._take_back(share, reason, share.place.given())

    def _take_back(self, share: Share, reason: str, blocks: list[tuple[int, int]]) -> None:
        """Give items to others that a host has not got, and no more to that one."""
        with self._change:
            self._abandon(share, reason)
            kept = [block for block in share.place.given() if block not in blocks]
            share.place.keep_given(kept)
            for first, count in blocks:
                numbers = range(first, first + count)
                self._returned.extend(numbers)
                self._unended[share.number].difference_update(numbers)
            self._change.notify_all()
        self._fail_if_alone()

    def _abandon(self, share: Share, reason: str) -> None:
        share.reason = reason
        share.hopeless = True

    def fail(self, share: Share, reason: str) -> None:
        """Fail all items that a host was given, as it has forgotten them."""
        with self._change:
            self._abandon(share, reason)
            for number in sorted(self._unended[share.number]):
                if not self.task.ended(number):
                    self.task.note_end(number, State.FAILED, reason)
            self._unended[share.number].clear()
            self._change.notify_all()
        self.conclude()
        self._fail_if_alone()

    def _fail_if_alone(self) -> None:
        """Fail all that no host can be given, if none is left.

        :raises OSError: the disk is full, say; then nothing is forgotten.
        """
        if not all(share.hopeless for share in self.shares):
            return
        reasons = [share.reason for share in self.shares]
        with self._change:
            numbers = [*self._returned, *range(self._next, self.task.count + 1)]
            for at, number in enumerate(sorted(numbers)):
                if not self.task.ended(number):
                    self.task.note_end(number, State.FAILED, reasons[at % len(reasons)])
            self._returned.clear()
            self._next = self.task.count + 1
        self.conclude()

    def _retire(self, share: Share) -> None:
        """Do again what a full disk may have kept from being done when a host was given up."""
        if not share.begun and (given := share.place.given()):
            self._take_back(share, share.reason, given)
        self._fail_if_alone()

    def conclude(self) -> None:
        """Write down the end of the whole if all has ended."""
        with self._change:
            stopped = self.task.has("stop") and not any(self._begun(s) for s in self.shares)
            if self._over or not (self.task.ended_count() >= self.task.count or stopped):
                return
        try:
            self.task.conclude()
        except OSError as error:  # tried again with each beat
            self._held_up(
                lack(self.task.state_dir, error) or f"cannot write exit: {error.strerror}"
            )
            return
        with self._change:
            if self._over:
                return
            self._over = True
            self._change.notify_all()
        for share in self.shares:
            for name in FOR_HOSTS:
                share.place.unlink(name)
        self._job_ended(self.task.id)

    def _begun(self, share: Share) -> bool:
        """Whether something of a share may be running."""
        return share.folder.has("accepted") and bool(self._unended[share.number])

    def _feed(self, share: Share) -> None:
        """In a thread of its own: give a host what it can take."""
        while not self._over and self.task.exists():
            far = self._far_of(share) if share.slots else None
            try:
                if far and share.may_be_fed(far) and self._give(share, far):
                    continue
                self.conclude()  # which a full disk may have kept from being done
                if share.hopeless:
                    self._retire(share)
            except (Unreachable, OSError) as error:
                if why := lack(self.task.state_dir, error):
                    self._held_up(why)
                time.sleep(_BEAT)
            with self._change:
                if self._over:
                    return
                self._change.wait(_BEAT)
                # Its disk may have been full, so that no slot could take an item.
                if (
                    self._unended[share.number]
                    and share.silent_for(_SILENCE)
                    and not self.task.runs_on(share.number)
                ):
                    share.doubt()
        if not self._over:  # it was removed
            self._job_ended(self.task.id)

    def _give(self, share: Share, far: Far) -> bool:
        """Give a host some items, if it can take any; return whether it got some."""
        if unsure := share.unsure():
            for first, count in unsure:
                self._send(share, far, range(first, first + count), again=True)
            return True
        with self._change:
            if share.stop_asked or share.hopeless:
                return False
            enough, has = share.enough(), len(self._unended[share.number])
            # Some at a time, before the half of what is to wait there is used up.
            if has >= share.slots and 2 * (has - share.slots) >= enough - share.slots:
                return False
            room = enough - has
            if self.throttled:
                room = min(room, self.throttle - sum(map(len, self._unended.values())))
            room = min(room, _MOST)
            numbers = self._take(room)
            if not numbers:
                return False
            try:
                share.place.give(numbers[0], len(numbers))
            except OSError:
                self._returned.extendleft(reversed(numbers))
                raise
            self._unended[share.number].update(numbers)
        self._send(share, far, numbers)
        return True

    def _send(self, share: Share, far: Far, numbers: Sequence[int], again: bool = False) -> None:
        try:
            share.feed(far, numbers[0], [self.task.item(number) for number in numbers])
        except NotDone as error:
            gone, damaged = str(error) == _GONE, str(error).startswith("damaged")
            reason = share.removed_there if gone else f"{share.host}: {error}"
            if not (again and (gone or damaged)):
                self._take_back(share, reason, [(numbers[0], len(numbers))])
            if gone or (again and damaged):
                self.fail(share, reason)  # it may have begun some, and nobody knows which

    def _take(self, room: int) -> list[int]:
        """Return the next items, no more than there is room for, in a row."""
        numbers = list[int]()
        while len(numbers) < room:
            if self._returned and (not numbers or self._returned[0] == numbers[-1] + 1):
                number = self._returned.popleft()
            elif not self._returned and self._next <= self.task.count:
                number = self._next
                self._next += 1
            else:
                break
            if self.task.ended(number):  # stopped
                if numbers:
                    break
                continue
            if numbers and number != numbers[-1] + 1:
                self._returned.appendleft(number)
                break
            numbers.append(number)
        return numbers

    # --- what is done to it ---

    def stop(
        self, numbers: set[int] | None, grace: float, reason: str
    ) -> tuple[bool, JobctlError | None]:
        """Stop items, or all; return whether something is left, and why a host was not reached."""
        left, asked = False, numbers is None and self.task.has("stop")
        error: JobctlError | None = None
        if numbers is None:
            self._note_stop(reason)
        else:
            numbers = {n for n in numbers if not self._withdrawn(n, reason)}
        for share in self.shares:
            # Of one that has ended, something may be left.
            mine = share.place.holds(numbers) if numbers is not None else set()
            if not share.folder.has("accepted") or (numbers is not None and not mine):
                continue
            far = self._far_of(share)
            if far is None:
                error = error if self._over else Unreachable(f"{share.host} cannot be reached")
                continue
            try:
                chosen = [0] if numbers is None else sorted(mine)
                some = bool(share.end_items(far, chosen, grace, reason).split())
            except Elsewhere as failure:
                error = failure
                continue
            except JobctlError as failure:
                error, asked = failure, True  # it may have got the request
                continue
            left, asked = left or some, True
            if numbers is None and not some and not self._settled(share):
                error = JobctlError(f"{share.host} has not told yet what became of all its items")
        if error and numbers is None:
            if asked:
                error.args = (f"{error}; the rest is stopped as soon as it can be",)
            else:
                self.task.unlink("stop")
        self.conclude()
        return left, error

    def _note_stop(self, reason: str) -> None:
        try:
            self.task.note_stop("stop", reason)
        except OSError:
            if not any(map(self._begun, self.shares)):
                raise
            # The hosts write it down as well: what fills a disk can be stopped.

    def stop_there(self, share: Share, far: Far, grace: float) -> bool:
        """Have a host end what it has of a job that was stopped; return whether that is done.

        :raises JobctlError: it cannot be told, or does not do it.
        """
        share.end_items(far, [0], grace, os.fsdecode(self.task.get("stop").strip()))
        done = self._settled(share)
        self.conclude()
        return done

    def _withdrawn(self, number: int, reason: str) -> bool:
        """Stop an item that no host was given; return False if one was."""
        with self._change:
            if any(share.place.holds({number}) for share in self.shares):
                return False
            if self.task.ended(number):
                return True
            self.task.note_end(number, State.STOPPED, reason)
            return True

    def _settled(self, share: Share) -> bool:
        """Wait until the host has told of all that it was given; return whether it has."""
        with self._change:
            return self._change.wait_for(
                lambda: not self._unended[share.number] or share.hopeless, _TO_BE_TOLD
            )

    def signal(self, numbers: set[int] | None, name: str) -> tuple[Sent, JobctlError | None]:
        """Send a signal to items, or all.

        :return: what is said of them, by their ids, and why a host was not reached.
        """
        missed = set[str]()
        error: JobctlError | None = None
        chosen = {0} if numbers is None else {n for n in numbers if not self.task.ended(n)}
        begun = {0} if numbers is None and self.task.ended_count() else set[int]()
        for share in self.shares:
            # What has begun there may not be known here yet.
            mine = chosen if numbers is None else share.place.holds(chosen)
            if not mine or not self._begun(share):
                continue
            far = self._far_of(share)
            if far is None:
                error = error if self._over else Unreachable(f"{share.host} cannot be reached")
                begun |= mine  # as far as is known
                continue
            words = self.task.stop_targets(sorted(mine))
            try:
                answer = far.request(
                    "signal_items", os.fsencode(share.path), name.encode(), *map(str.encode, words)
                )
            except JobctlError as failure:
                error = failure
                begun |= mine
                continue
            said = sent(answer.decode().split())
            missed |= self.task.ids_of(said.missed)
            begun |= mine - set(map(int, said.unbegun))
        return Sent(missed, self.task.ids_of(map(str, chosen - begun))), error
