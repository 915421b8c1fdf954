"""The folder of a job whose items are run on hosts, as it is here, and that of a host's share.

The agent writes into it what the hosts say: outputs into `children/`, as slots here would, and
the journal of slot K of the Hth host into `slots/H.K/`.
"""

from __future__ import annotations

import bisect
import itertools
import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from jobctl import process, quoting, records, whole
from jobctl.folder import Folder
from jobctl.incoming import Incoming, sizes_there
from jobctl.journal import Run
from jobctl.model import TYPE_REMOTE, Job, State
from jobctl.task import Task
from jobctl.timing import Clocks

_GIVEN = re.compile(rb"(\d{1,9}) (\d{1,9}) items")
"""A line of the file given: the first item of a block, and how many these are."""
_CLOCKS = ("clocks", "clocks.before")
"""Files with how the clocks of a host stand to ours, and how they did at its boot before."""


class FarTask(Task):
    """The folder of a job with items on hosts."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self._shares: list[ShareFolder] = []
        self._holders: dict[int, ShareFolder] = {}
        self._held: list[tuple[int, int]] = []

    @staticmethod
    def is_at(path: str) -> bool:
        """Whether a job folder is of this kind."""
        return os.path.isdir(f"{path}/hosts")

    def share(self, number: int) -> ShareFolder:
        """Return the folder of a host's share, from 1 on."""
        return ShareFolder(self, number)

    @property
    def share_count(self) -> int:
        """How many hosts there are."""
        return min(records.integer(self.spec().get("hosts")) or 0, self.highest("hosts"))

    def _known_otherwise(self) -> dict[str, bytes]:
        known = {"type": TYPE_REMOTE.encode(), "hosts": b"%d" % self.highest("hosts")}
        return super()._known_otherwise() | known

    def interrupted(self) -> bool:
        """Whether nobody here goes on with it: the agent does."""
        return False

    def elsewhere(self, boot: str) -> str:
        """Return nothing: the agent acts on it."""
        return ""

    # --- as a job ---

    def _known(self) -> dict[str, Any]:
        self._look_at_shares()
        where = os.fsdecode(self.spec().get("location", b""))
        known = super()._known() | {"type": TYPE_REMOTE, "location": where}
        sessions = {share.session for share in self.shares()}
        return known | {"session": sessions.pop() or None if len(sessions) == 1 else None}

    def shares(self) -> list[ShareFolder]:
        """Return the folders of all shares."""
        if not self._shares:
            self._shares = [self.share(number) for number in range(1, self.share_count + 1)]
        return self._shares

    def clocks(self, slot: str, boot: str) -> Clocks | None:
        """Return how the clocks of a slot's host stood to ours at a boot, as far as is known."""
        share = self._share_with(slot)
        return share.clocks(boot) if share else None

    def holds(self, slot: str) -> Callable[[int], bool]:
        """Return what tells of which items a slot can say something: of what its host was given."""
        if "." not in slot:
            return super().holds(slot)  # what we write down ourselves
        share = self._share_with(slot)
        return share.holder() if share else lambda number: False

    def _share_with(self, slot: str) -> ShareFolder | None:
        """Return the share that a slot of a host belongs to, if there is such a host."""
        host, dot, _ = slot.partition(".")
        return self.shares()[int(host) - 1] if dot and int(host) <= len(self.shares()) else None

    def _share_of(self, number: int) -> ShareFolder | None:
        """Return the share that an item is in, if it was given to a host."""
        share = self._share_with(self._journals.run(number).slot)
        return share or self._holders.get(number)

    def _look_at_shares(self) -> None:
        """Find out which host was given what."""
        for share in self.shares():
            share.forget()
        held = [block for share in self.shares() for block in share.given()]
        if held != self._held:
            self._held = held
            self._holders = {
                number: share
                for share in self.shares()
                for first, count in share.given()
                for number in range(first, first + count)
            }

    def _part(self, number: int, *rest: Any) -> Job:
        job = super()._part(number, *rest)
        if share := self._share_of(number):
            job = job._replace(location=share.host, session=share.session or None)
        if job.state is State.NOT_STARTED and share:
            away, reason = share.away()
            if away:
                return job._replace(state=State.DISCONNECTED, reason=reason)
        return job

    def _lost(self, number: int, run: Run, boot: str) -> bool:
        return False  # the host tells

    def _state_of(self, number: int, run: Run, boot: str) -> State:
        if self.finished():
            return self._rest()[0]
        share = self._share_with(run.slot)
        if share and (share.away()[0] or share.another(self._journals.machine(run.slot))):
            return State.DISCONNECTED
        stopping = self.has("stop") or self.has(f"children/{number}.stop")
        return State.STOPPING if stopping else State.RUNNING

    def _reason_of(self, state: State, run: Run) -> str:
        share = self._share_with(run.slot)
        if state is State.DISCONNECTED and share:
            machine = self._journals.machine(run.slot)
            why = f"runs on {machine}, which shares the state directory of {share.host}"
            return share.away()[1] or why
        return super()._reason_of(state, run)

    def _rest(self) -> tuple[State, str]:
        if self.finished() or self.has("run"):
            return super()._rest()
        # Why none can begin, if that is so.
        reasons = [share.away()[1] for share in self.shares()]
        return State.NOT_STARTED, reasons[0] if all(reasons) else "waiting for a slot"

    # --- what comes from the hosts ---

    def journal_sizes(self, host: int) -> Iterator[tuple[int, int]]:
        """Yield the slots of a host, and how much of each one's journal is here."""
        for name in self._journals.slots():
            share, _, slot = name.partition(".")
            if share == str(host) and slot:
                yield int(slot), records.size(self.file(f"slots/{name}/journal"))

    def runs_on(self, host: int) -> set[int]:
        """Return the items that run on a host, as far as is known."""
        runs = self._journals.runs().items()
        return {number for number, run in runs if run.slot.partition(".")[0] == str(host)}

    def partly_here(self, host: int) -> Iterator[tuple[int, int, int]]:
        """Yield the items of a host that have not ended, and how much of their output is here."""
        for first, count in self.share(host).given():
            for number in range(first, first + count):
                if not self.ended(number):
                    folder = self.child(number)
                    if sum(sizes := sizes_there(folder)):
                        yield number, *sizes

    def append(self, number: int, stream: str, offset: int, content: bytes) -> bool:
        """Write what an item's output goes on with; False if something before it is missing here.

        :raises EmptiedThere: it is to be asked for anew.
        :raises OSError: the disk is full, say.
        """
        with self._incoming(number, stream) as incoming:
            return incoming.append(offset, content)

    def begin_anew(self, number: int, stream: str) -> None:
        """Take down that an item has emptied a stream there."""
        with self._incoming(number, stream) as incoming:
            incoming.begin_anew()

    @contextmanager
    def _incoming(self, number: int, stream: str) -> Iterator[Incoming]:
        os.makedirs(self.file("children"), 0o700, exist_ok=True)
        incoming = Incoming(self.child(number), stream)
        try:
            yield incoming
        finally:
            incoming.close()

    def append_journal(self, host: int, slot: int, offset: int, content: bytes) -> bool:
        """Write what a journal goes on with; False if that is not where it ends here.

        :raises OSError: the disk is full, say.
        """
        done = self._append(f"slots/{host}.{slot}/journal", offset, content)
        self._journals.catch_up()
        return done

    def put_slot(self, host: int, slot: int, content: bytes) -> None:
        """Write down who a slot is."""
        os.makedirs(self.file(f"slots/{host}.{slot}"), 0o700, exist_ok=True)
        self.put(f"slots/{host}.{slot}/self", content)

    def _append(self, name: str, offset: int, content: bytes) -> bool:
        os.makedirs(os.path.dirname(self.file(name)), 0o700, exist_ok=True)
        fd = records.opened(self.file(name), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        with open(fd, "wb", buffering=0) as file:
            if os.fstat(fd).st_size != offset:
                return False
            view = memoryview(content)
            while view:
                view = view[file.write(view) or 0 :]
        return True

    def note_end(self, number: int, state: State, reason: str) -> None:
        """Write down the end of an item that no host tells of."""
        self._journals.note_end(number, state, reason)

    def conclude(self) -> None:
        """Write down how the whole has ended.

        :raises OSError: the disk is full, say; then nothing is forgotten.
        """
        self._conclude(process.boot_id())


class ShareFolder(Folder):
    """What is known here of the share that a host has of a job with items."""

    def __init__(self, task: FarTask, number: int) -> None:
        super().__init__(f"{task.path}/hosts/{number}")
        self.task = task
        self.number = number
        spec = self.spec()
        self.host = os.fsdecode(spec.get("host", b""))
        self._away: tuple[bool, str] | None = None
        self._clocks: list[Clocks] = []
        self._machine: bytes | None = None
        """What the machine calls itself that answered last, once it was asked for."""
        self._reading = threading.RLock()
        """Held while given is read: several threads ask what is in it."""
        self._given: list[tuple[int, int]] = []
        self._sorted: list[tuple[int, int]] = []
        self._given_read = (0, 0)
        """Which file, by its inode, and how much of it."""

    @property
    def id(self) -> str:
        """What tells it from all jobs and other shares."""
        return f"{self.task.id}@{self.number}"

    @property
    def state_dir(self) -> str:
        """The state directory it is in."""
        return self.task.state_dir

    def finished(self) -> bool:
        """Whether the whole job is."""
        return self.task.finished()

    def forget(self) -> None:
        """Forget what changes with the connection."""
        self._away = self._machine = None
        self._clocks = []

    def clocks(self, boot: str) -> Clocks | None:
        """Return how the host's clocks stood to ours when it was last connected.

        :param boot: of the host, at which that is to have been if it can be.
        """
        if not self._clocks:
            known = (records.load(self.file(name)) for name in _CLOCKS)
            now = process.now()
            self._clocks = [_clocks(record).renewed(now) for record in known if record]
        found = [clocks for clocks in self._clocks if clocks.there.boot == boot] + self._clocks
        return found[0] if found else None

    def note_host(self, name: str, clocks: Clocks) -> None:
        """Write down what the machine that answers calls itself, and how its clocks stand to ours.

        How they stood at its last boot is kept: since then its clock may be another.
        """
        record = records.dump_moment(clocks.there, "there", "there_boot")
        record |= records.dump_moment(clocks.here, "here", "here_boot")
        record["host"] = os.fsencode(name)
        new, old = _CLOCKS
        with suppress(OSError):  # it was removed, or the disk is full: then what was there stays
            known = records.load(self.file(new))
            if known and records.text(known.get("there_boot")) != clocks.there.boot:
                self.replace(old, quoting.dump(known))
            self.replace(new, quoting.dump(record))

    def another(self, machine: str) -> bool:
        """Whether a machine is not the one that answers now, where several share a home."""
        if self._machine is None:
            self._machine = records.load(self.file(_CLOCKS[0])).get("host", b"")
        return bool(machine and self._machine) and os.fsencode(machine) != self._machine

    def away(self) -> tuple[bool, str]:
        """Return whether the host has items and cannot be reached now, and why nothing begins.

        The latter is empty where the connection stands.
        """
        if self._away is None:
            from jobctl import links

            book = links.Links(self.state_dir)
            link = book.link(self.link_name(book))
            reason = link.reason or f"waiting for {self.host}"
            if self.session and book.disconnected(self.session):
                reason = f"session {self.session} was disconnected by user"
            if link.state is links.LinkState.OPENED:
                self._away = False, ""
            else:
                self._away = self.has("accepted"), reason
        return self._away

    # --- what it was given ---

    def given(self) -> list[tuple[int, int]]:
        """Return the first items and sizes of the blocks that the host was given."""
        with self._reading:
            inode, size = records.inode_and_size(self.file("given"))
            known, at = self._given_read
            if inode != known or size < at:
                self._given, self._sorted, at = [], [], 0
            if size > at or inode != known:
                text = records.content(self.file("given"), at=at)
                text = text[: text.rfind(b"\n") + 1]
                # Others may be looking through those that there were.
                self._given, self._sorted = self._given.copy(), self._sorted.copy()
                most = self.task.count
                for line in records.whole_lines(text, _GIVEN):
                    block = int(line[1]), min(int(line[2]), most)
                    if 0 < block[0] <= most:
                        self._given.append(block)
                        bisect.insort(self._sorted, block)
                self._given_read = inode, at + len(text)
            return self._given

    def holds(self, numbers: set[int]) -> set[int]:
        """Return those of some items that the host was given."""
        return {n for n in numbers if any(at <= n < at + count for at, count in self.given())}

    def holder(self) -> Callable[[int], bool]:
        """Return what tells whether the host was given an item, up to now.

        Where that is no file any more, it may have been given any.
        """
        most = self.task.count
        if not self.has("given"):
            return lambda number: number <= most
        with self._reading:
            self.given()
            blocks = self._sorted

        def held(number: int) -> bool:
            at = bisect.bisect_right(blocks, (number, most)) - 1
            return at >= 0 and number < sum(blocks[at]) and number <= most

        return held

    def give(self, first: int, count: int) -> None:
        """Write down that the host is about to be given items.

        :raises OSError: the disk is full, say.
        """
        whole.append(self.file("given"), _given(first, count))

    def keep_given(self, blocks: list[tuple[int, int]]) -> None:
        """Write down that the host has got these, and no others."""
        self.replace("given", b"".join(itertools.starmap(_given, blocks)))


def _clocks(record: dict[str, bytes]) -> Clocks:
    there = records.moment(record, "there", "there_boot")
    return Clocks(there, records.moment(record, "here", "here_boot"))


def _given(first: int, count: int) -> bytes:
    return b"%d %d items\n" % (first, count)
