"""What the slots of a job with items write down: what each runs, and how its items ended.

items.sh says what is in their files.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Iterator
from typing import NamedTuple

from jobctl import process, records, whole
from jobctl.model import State
from jobctl.process import Identity, Place, Sight
from jobctl.timing import Clocks, Moment

STATES = {b"C": State.COMPLETED, b"F": State.FAILED, b"X": State.STOPPED}
"""How an item can end, by the letter that says so in a journal."""
_SLOT = re.compile(r"(0|[1-9]\d{0,8})(\.(0|[1-9]\d{0,8}))?", re.ASCII)
_LINE = re.compile(
    rb"([1-9]\d{0,8}) "
    rb"(B \d{1,10} \S+ \d+ [\d.]+ [\d.-]+|[CFX] (?:\d+|-) (?:\d+|-) [\d.]+ [\d.-]+ [^\x01]*)"
)
"""What items.sh and note_end() write; what is no such line says nothing, as whole.CUT."""


def lines_in(text: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield what the lines of a journal say: the numbers of items, and the rest."""
    for found in map(_LINE.fullmatch, text.split(b"\n")):
        if found:
            yield int(found[1]), found[2]


class Run(NamedTuple):
    """A command that was begun."""

    pid: int
    start: str
    began: Moment
    slot: str


class Journals:
    """The slots of one job. What was read once is not read again: journals only grow.

    Several threads may ask it.
    """

    def __init__(
        self,
        path: str,
        clocks: Callable[[str, str], Clocks | None],
        holds: Callable[[str], Callable[[int], bool]],
    ) -> None:
        """Look at the slots in a folder that need not exist.

        :param clocks: returns how the clocks of a slot's host stood to ours at its boot, None if
            it is here.
        :param holds: returns what tells of which items a slot can say something.
        """
        self._lock = threading.RLock()
        """Held while something is read or written down: who finds it read finds all of it."""
        self._path = path
        self._clocks = clocks
        self._holds = holds
        self._offsets: dict[str, int] = {}
        self._begun: dict[int, tuple[str, bytes]] = {}
        """Slots and lines of the items that were begun, without their numbers."""
        self.ends: dict[int, bytes] = {}
        """The lines of the items that have ended."""
        self._ended_in: dict[int, str] = {}
        """In which slots they did."""
        self._boots: dict[str, str] = {}
        """The boots that slots are of."""
        self._machines: dict[str, str] = {}
        """What the machines call themselves that slots were begun on, where they say so."""
        self._unwritten: dict[int, bytes] = {}
        """The lines for which the disk had no room."""
        self.newest: list[int] = []
        """Their numbers, in the order in which we read them."""

    def slots(self) -> list[str]:
        """Return the names of the folders of slots: of a host's, its number, a dot, the slot's."""
        try:
            return list(filter(_SLOT.fullmatch, os.listdir(self._path)))
        except OSError:
            return []

    def _self(self, slot: str) -> list[bytes]:
        """Return pid, start, boot and host of a slot, nothing where they are not known."""
        try:
            with open(f"{self._path}/{slot}/self", "rb", opener=records.opened) as file:
                words = file.read(4096).split()
        except OSError:
            return []
        return words if len(words) >= 4 and words[0].isdigit() else []

    def place(self, slot: str, boot: str) -> Place:
        """Return where a slot was begun."""
        return self._place(self._self(slot), boot)

    @staticmethod
    def _place(words: list[bytes], boot: str) -> Place:
        if not words:
            return Place.NOWHERE
        return process.place_of(records.text(words[3]), records.text(words[2]), boot)

    def places(self, boot: str) -> set[Place]:
        """Return where the slots were begun that have not come to their end, for all we know."""
        slots = (slot for slot in self.slots() if not self._done(slot))
        return {self.place(slot, boot) for slot in slots}

    def elsewhere(self, boot: str) -> str:
        """Return the name of another machine that has slots which have not come to their end."""
        for slot in self.slots():
            words = self._self(slot)
            if self._place(words, boot) is Place.ELSEWHERE and not self._done(slot):
                return records.text(words[3])
        return ""

    def machine(self, slot: str) -> str:
        """Return the same as host() did when the slot was last heard of, without a look."""
        return self._machines.get(slot, "")

    def host(self, slot: str) -> str:
        """Return the name of the machine that a slot was begun on."""
        words = self._self(slot)
        return records.text(words[3]) if words else ""

    def _done(self, slot: str) -> bool:
        return os.path.exists(f"{self._path}/{slot}/done")

    def keeper(self, slot: str, boot: str) -> Identity | None:
        """Return a slot that lives, None if it does not."""
        return self._keeper(self._self(slot), boot)

    def _keeper(self, words: list[bytes], boot: str) -> Identity | None:
        if self._place(words, boot) is not Place.HERE:
            return None
        identity = Identity(records.integer(words[0]) or 0, records.text(words[1]), boot)
        return identity if process.alive(identity, boot) else None

    def living(self, boot: str) -> Identity | None:
        """Return a slot that lives, None if none does."""
        return next(self.alive(boot), None)

    def alive(self, boot: str) -> Iterator[Identity]:
        """Yield the slots that live."""
        yield from filter(None, (self.keeper(slot, boot) for slot in self.slots()))

    def runs(self) -> dict[int, Run]:
        """Return what was begun and has not ended, by number of item."""
        with self._lock:
            self.catch_up()
            return {number: self.run(number) for number in self._begun.keys() - self.ends.keys()}

    def run(self, number: int) -> Run:
        """Return how an item was begun last; one that never was has no pid."""
        return self._run(*self._begun.get(number, ("", b"")))

    def _run(self, slot: str, line: bytes) -> Run:
        fields = (line.split(b" ") + [b""] * 6)[:6]
        _, pid, start, _, began, uptime = fields
        moment = self._moment(slot, began, uptime)
        return Run(records.integer(pid) or 0, records.text(start), moment, slot)

    def ended(self, number: int) -> Moment:
        """Return when an item that has ended did."""
        fields = (self.ends[number].split(b" ", 5) + [b""] * 5)[:5]
        return self._moment(self._ended_in[number], *fields[3:])

    def _moment(self, slot: str, time: bytes, uptime: bytes) -> Moment:
        """Return by our clocks what the line of a slot says by those of its host."""
        boot = self._boots.get(slot, "")
        moment = Moment(records.number(time), records.number(uptime), boot)
        clocks = self._clocks(slot, boot)
        return clocks.ours(moment) if clocks else moment

    def sight(self, run: Run, cookie: str, boot: str) -> Sight | None:
        """Return what is to be seen of a command, None if it has ended."""
        return self._sight(run, self._self(run.slot), cookie, boot)

    def _sight(self, run: Run, words: list[bytes], cookie: str, boot: str) -> Sight | None:
        """Return what is to be seen of a command whose slot says this of itself, or nothing.

        It is the one that wrote that it began if it was there then; or, where two clocks of the
        system differ, if it is the child of its slot or bears its cookie.
        """
        if not run.pid or (words and self._place(words, boot) is not Place.HERE):
            return None
        if run.start != "-":
            return process.alive(Identity(run.pid, run.start, boot), boot)
        sight = process.look(run.pid)
        if sight is None or sight.condition[0] in "ZX":
            return None
        keeper = self._keeper(words, boot)
        itself = run.began.uptime is not None and sight.began_by(run.began.uptime)
        itself = itself or bool(keeper and sight.parent == keeper.pid)
        return sight if itself or process.has_variable(run.pid, cookie) else None

    def deserted(self, run: Run, cookie: str, boot: str) -> bool:
        """Whether a command has ended whose slot was killed here before.

        What that slot says of itself is read once: its folder may be taken away meanwhile.
        """
        words = self._self(run.slot)
        if words and (self._place(words, boot) is not Place.HERE or self._keeper(words, boot)):
            return False
        if not words and process.any_with_words(self._words_of(run.slot)):
            return False
        return self._sight(run, words, cookie, boot) is None

    def _words_of(self, slot: str) -> bytes:
        """Return words with which a slot was begun, and that no other one has."""
        return b" slots %s %s " % (os.fsencode(os.path.dirname(self._path)), os.fsencode(slot))

    def catch_up(self) -> None:
        """Read what the journals say that is not known yet."""
        with self._lock:
            self._catch_up()

    def _catch_up(self) -> None:
        for slot in self.slots():
            path, at = f"{self._path}/{slot}/journal", self._offsets.get(slot, 0)
            if records.size(path) <= at:
                continue
            text = records.content(path, at=at)
            text = text[: text.rfind(b"\n") + 1]
            self._offsets[slot] = at + len(text)
            itself = self._self(slot)
            self._boots[slot] = records.text(itself[2]) if itself else process.boot_id()
            self._machines[slot] = records.text(itself[3]) if itself else ""
            holds = self._holds(slot)
            for number, rest in lines_in(text):
                if not holds(number):
                    continue
                if rest[:1] == b"B":
                    self._begun[number] = slot, rest
                elif number not in self.ends:
                    self._take_end(slot, number, rest)
                elif self._ended_in[number] == slot:
                    self.ends[number] = rest  # a full disk took a part of the first one

    def first_began(self) -> float | None:
        """Return when the first item began."""
        first = dict[str, tuple[float, bytes]]()
        with self._lock:
            begun = list(self._begun.values())
        for slot, line in begun:
            began = records.number(line.split(b" ", 5)[4])
            if began is not None and (slot not in first or began < first[slot][0]):
                first[slot] = began, line
        times = (self._run(slot, line).began.time for slot, (_, line) in first.items())
        return min((began for began in times if began is not None), default=None)

    def note_end(self, number: int, state: State, reason: str, later: bool = False) -> None:
        """Write down the end of an item that no slot writes down.

        :param later: where the disk takes nothing, let flush() do so; here it counts already.
        :raises OSError: the disk is full, say.
        """
        letter = next(key for key, known in STATES.items() if known is state).decode()
        now = process.now()
        ended = f"{now.time:.2f} {'-' if now.uptime is None else f'{now.uptime:.2f}'}"
        rest = os.fsencode(f"{letter} - - {ended} {records.one_line(reason)}")
        with self._lock:
            self._unwritten[number] = rest
            try:
                self.flush()
            except OSError:
                if not later:
                    del self._unwritten[number]
                    raise
                self._take_end("0", number, rest)
            else:
                self.catch_up()

    def flush(self) -> None:
        """Write down the ends for which the disk had no room.

        :raises OSError: it still has none.
        """
        with self._lock:
            for number, rest in list(self._unwritten.items()):
                os.makedirs(f"{self._path}/0", 0o700, exist_ok=True)
                whole.append(f"{self._path}/0/journal", b"%d %s\n" % (number, rest))
                del self._unwritten[number]

    def _take_end(self, slot: str, number: int, rest: bytes) -> None:
        self._ended_in[number] = slot
        self.ends[number] = rest
        self.newest.append(number)
