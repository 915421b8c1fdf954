"""What the slots of a job with items write down: what each runs, and how its items ended.

items.sh says what is in their files.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from typing import NamedTuple

from jobctl import process, records
from jobctl.model import State
from jobctl.process import Identity

STATES = {b"C": State.COMPLETED, b"F": State.FAILED, b"X": State.STOPPED}
"""How an item can end, by the letter that says so in a journal."""


class Run(NamedTuple):
    """A command that a slot runs, or ran when it was killed. Times as in Job."""

    command: Identity
    began: float | None
    began_uptime: float | None


class Journals:
    """The slots of one job. What was read once is not read again: journals only grow."""

    def __init__(self, path: str) -> None:
        """Look at the slots in a folder that need not exist."""
        self._path = path
        self._offsets: dict[str, int] = {}
        self.ends: dict[int, bytes] = {}
        """The lines of the items that have ended, without their numbers."""
        self.boots: dict[int, str] = {}
        """On which boot they did."""
        self.newest: list[int] = []
        """Their numbers, in the order in which we read them."""

    def _slots(self) -> list[str]:
        try:
            return os.listdir(self._path)
        except FileNotFoundError:
            return []

    def _words(self, slot: str, name: str) -> list[bytes]:
        try:
            with open(f"{self._path}/{slot}/{name}", "rb", opener=records.opened) as file:
                return file.read(4096).split()
        except OSError:
            return []

    def selves(self) -> list[list[bytes]]:
        """Return pid, start, boot and host of every slot that there ever was."""
        found = (self._words(slot, "self") for slot in self._slots())
        return [words for words in found if len(words) >= 4]

    def living(self, boot: str) -> Identity | None:
        """Return a slot that lives, None if there is none."""
        for pid, start, *_ in (words for words in self.selves() if records.text(words[2]) == boot):
            slot = Identity(records.integer(pid) or 0, records.text(start), boot)
            if process.alive(slot, boot):
                return slot
        return None

    def runs(self) -> dict[int, Run]:
        """Return what was begun and has not ended, by number of item."""
        begun = {}
        for slot in self._slots():
            words = self._words(slot, "run")
            if len(words) >= 6 and words[0].isdigit():
                itself = self._words(slot, "self")
                pid, start = records.integer(words[1]) or 0, records.text(words[2])
                boot = records.text(itself[2]) if len(itself) > 2 else ""
                times = records.number(words[4]), records.number(words[5])
                begun[int(words[0])] = Run(Identity(pid, start, boot), *times)
        # After that: what has ended since is in a journal now.
        self.catch_up()
        return {number: run for number, run in begun.items() if number not in self.ends}

    def catch_up(self) -> None:
        """Read what the journals say that is not known yet."""
        for slot in self._slots():
            path, at = f"{self._path}/{slot}/journal", self._offsets.get(slot, 0)
            if records.size(path) <= at:
                continue
            with suppress(FileNotFoundError), open(path, "rb", opener=records.opened) as journal:
                journal.seek(at)
                text = journal.read()
            text = text[: text.rfind(b"\n") + 1]
            self._offsets[slot] = at + len(text)
            itself = self._words(slot, "self")
            boot = records.text(itself[2]) if len(itself) > 2 else process.boot_id()
            for line in text.splitlines():
                number, _, rest = line.partition(b" ")
                if number.isdigit() and rest[:1] in STATES and int(number) not in self.ends:
                    self.ends[int(number)] = rest
                    self.boots[int(number)] = boot
                    self.newest.append(int(number))

    def began(self, number: int) -> float | None:
        """Return when an item that has ended began."""
        return records.number(self.ends[number].split(b" ", 6)[5])

    def note_end(self, number: int, state: State, reason: str, run: Run | None = None) -> None:
        """Write down the end of an item that no slot writes down.

        :raises OSError: the disk is full, say.
        """
        letter = next(key for key, known in STATES.items() if known is state).decode()
        uptime = process.uptime()
        began = "- - -"
        if run:
            began = f"{run.command.pid} {run.began or '-'} {run.began_uptime or '-'}"
        ended = f"{time.time():.2f} {'-' if uptime is None else f'{uptime:.2f}'}"
        line = f"{number} {letter} - - 1 {began} {ended} {' '.join(reason.split())}\n"
        os.makedirs(f"{self._path}/0", 0o700, exist_ok=True)
        path = f"{self._path}/0/journal"
        with open(records.opened(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), "wb", 0) as journal:
            journal.write(os.fsencode(line))
        self.catch_up()
