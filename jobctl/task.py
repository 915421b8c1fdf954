"""The folder of a job that runs its command for each of many items, and of such a child.

items.sh says what is in it. A child has no folder: its files begin with its number, how it
ended is a line in the journal of the slot that ran it, and what was received of it a line
of the file `received`. So ten thousand of them are read at once.
"""

from __future__ import annotations

import bisect
import fcntl
import functools
import os
import signal
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from jobctl import items, process, quoting, records
from jobctl.folder import MISSING, STREAMS, Folder
from jobctl.journal import STATES, Journals, Run
from jobctl.model import TYPE_TASK, Job, Marks, State, parent_of
from jobctl.process import Identity, Place
from jobctl.received import PartMarks
from jobctl.timing import Clocks

_RUNS_ON = "runs on {}, which shares this state directory"
FOLDERS = ("children", "items", "taken", "slots")
_UNRECORDED = "damaged: the folder slots/ does not tell what became of it"
_KILLED = "lost: runner was killed"
_REBOOTED = "lost: host rebooted"


class Task(Folder):
    """The folder of a job with items."""

    most_children = items.MOST

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self._journals = Journals(f"{path}/slots", self.clocks, self.holds)
        self.part_marks = PartMarks(path, lambda: self.count)
        """What was received of the children."""
        self._block: tuple[int, list[bytes]] = (0, [])
        self._firsts: list[int] = []

    def clocks(self, slot: str, boot: str) -> Clocks | None:
        """Return how the clocks of a slot's host stand to ours, None where they are the same."""
        return None

    def holds(self, slot: str) -> Callable[[int], bool]:
        """Return what tells of which items a slot can say something: of those that there are."""
        count = self.count
        return lambda number: number <= count

    @staticmethod
    def is_at(path: str) -> bool:
        """Whether a job folder is of this kind."""
        if any(os.path.lexists(f"{path}/{name}") for name in ("items", "slots")):
            return True
        # Somebody may have taken both away. A job without items has a file `run` from the first.
        return not os.path.lexists(f"{path}/run") and "item_argv" in records.load(f"{path}/spec")

    def child(self, number: int) -> Folder:
        """Return the files of a child that need not exist."""
        return Part(self, number)

    @property
    def count(self) -> int:
        """How many items there are."""
        return records.integer(self.spec().get("children")) or 0

    def cookie(self, number: int) -> str:
        """Return the instance id of a child."""
        return f"{records.text(self.spec().get('instance_id'))[:-12]}{number:012d}"

    def _known_otherwise(self) -> dict[str, bytes]:
        last = self.highest("items")
        block = quoting.split(self.get(f"items/{last}")) if last else []
        return {"children": b"%d" % (last - 1 + len(block)) if last else b""}

    # --- what its files say ---

    def interrupted(self) -> bool:
        """Whether it is not finished, and no slot of it lives."""
        return not self.finished() and not self._locked()

    def ended_since(self, at: int) -> list[int]:
        """Return the numbers of the items that have ended, but for the first `at` of them."""
        self._journals.catch_up()
        return self._journals.newest[at:]

    def ended_count(self) -> int:
        """Return how many items have ended."""
        self._journals.catch_up()
        return len(self._journals.ends)

    def running(self) -> list[int]:
        """Return the numbers of the items that run."""
        return sorted(self._journals.runs())

    def ended(self, number: int) -> bool:
        """Whether an item has ended."""
        if number not in self._journals.ends:
            self._journals.catch_up()
        return number in self._journals.ends or self.finished()

    def ended_of(self, numbers: Collection[int]) -> set[int]:
        """Return those of some items that have ended, which are looked for once."""
        self._journals.catch_up()
        over = self.finished()
        return {number for number in numbers if over or number in self._journals.ends}

    # --- reading it as a job ---

    def _known(self) -> dict[str, Any]:
        spec = self.spec()
        return {
            "name": os.fsdecode(spec.get("name", b"")),
            "instance_id": records.text(spec.get("instance_id")),
            "type": TYPE_TASK,
            "command": os.fsdecode(spec.get("command", b"")),
            "argv": tuple(map(os.fsdecode, quoting.split(spec.get("words", b"")))),
            "cwd": os.fsdecode(spec.get("cwd", b"")),
            "created_at": records.number(spec.get("created")),
        }

    def _now(self, boot: str) -> Job:
        runs = self._runs(boot)
        states = self._states(runs, boot)
        tally = [(state.value, n) for state in State if (n := states.count(state))]
        job = Job(self.id, **self._known(), child_count=self.count, tally=tuple(tally))
        job = job._replace(began_at=self._journals.first_began())
        if self.finished():
            return self._whole_end(job)
        whole = parent_of(Job("0"), [Job("0", state=state) for state in set(states)])
        if State.NOT_STARTED in states and not runs and not self._begun():
            return job._replace(state=State.NOT_STARTED, reason=self._rest()[1])
        # If all have ended, somebody is about to write that down.
        if whole.state is State.DISCONNECTED:
            location = self._where(whole.state, boot) or job.location
            job = job._replace(reason=self.elsewhere(boot), location=location)
        return job._replace(state=State.RUNNING if whole.state.finished else whole.state)

    def _begun(self) -> bool:
        """Whether an item ever began, or was found impossible to begin."""
        ends = self._journals.ends.values()
        return self._journals.first_began() is not None or any(line[:1] != b"X" for line in ends)

    def _runs(self, boot: str) -> dict[int, Run]:
        """Return what runs, once it is written down what does no more."""
        if self.interrupted():
            with suppress(OSError):  # the disk takes nothing; the next one tries again
                self.recover(boot)
        runs = self._journals.runs()
        if not self.finished():
            for number, run in list(runs.items()):
                if self._lost(number, run, boot):
                    del runs[number]
        return runs

    def _lost(self, number: int, run: Run, boot: str) -> bool:
        """Write down the end of an item whose slot was killed, if its command has ended.

        Returns whether it runs no more.
        """
        if not self._journals.deserted(run, self._variable(number), boot):
            return False
        self._journals.catch_up()  # the slot may have ended by itself since we looked
        if number in self._journals.ends:
            return True
        state, reason = State.FAILED, self._damage(f"slots/{run.slot}") or _KILLED
        if self.has(name := f"children/{number}.stop"):
            state = State.STOPPED
            reason = os.fsdecode(self.get(name).strip()) or "stopped by user"
        self._journals.note_end(number, state, reason, later=True)
        return True

    def _states(self, runs: dict[int, Run], boot: str) -> list[State]:
        """Return the states of all children, in no order."""
        states = [STATES[line[:1]] for line in self._journals.ends.values()]
        states += [self._state_of(number, run, boot) for number, run in runs.items()]
        rest = self.count - len(states)
        return states + [self._rest()[0]] * rest

    def _rest(self) -> tuple[State, str]:
        """Return state and reason of the items that were not begun."""
        if self.finished():
            return self._unbegun_end()
        if reason := self.elsewhere(process.boot_id()):
            return State.DISCONNECTED, reason
        other = records.text(records.load(self.file("run")).get("waiting"))
        return State.NOT_STARTED, f"waiting for job {other}" if other else "waiting for a slot"

    def _unbegun_end(self) -> tuple[State, str]:
        """Return how what no journal tells of has ended: Stopped only if somebody asked for it."""
        if self.has("lost"):
            return State.FAILED, os.fsdecode(self.get("lost").strip())
        if self.has("stop"):
            return State.STOPPED, os.fsdecode(self.get("stop").strip()) or "stopped by user"
        return State.FAILED, _UNRECORDED

    def _state_of(self, number: int, run: Run, boot: str) -> State:
        if self.finished():
            return self._rest()[0]
        if self._journals.place(run.slot, boot) is Place.ELSEWHERE:
            return State.DISCONNECTED
        sight = self._journals.sight(run, self._variable(number), boot)
        if self.has("stop") or self.has(f"children/{number}.stop"):
            return State.STOPPING
        return State.SUSPENDED if sight and sight.condition in "Tt" else State.RUNNING

    def _reason_of(self, state: State, run: Run) -> str:
        """Return why an item that was begun, and of which no end is written down, is in a state."""
        if state is State.DISCONNECTED:
            return _RUNS_ON.format(self._journals.host(run.slot))
        return self._rest()[1] if state.finished else ""

    def elsewhere(self, boot: str) -> str:
        """Return why only another machine can act on it, "" if that is not so."""
        host = "" if self.finished() else self._journals.elsewhere(boot)
        return host and _RUNS_ON.format(host)

    def _where(self, state: State, boot: str, slot: str = "") -> str:
        """Return the other machine that has it, or what runs in a slot; "" if there is none."""
        if state is not State.DISCONNECTED:
            return ""
        return self._journals.host(slot) if slot else self._journals.elsewhere(boot)

    def _whole_end(self, job: Job) -> Job:
        """Return a finished job with all that is known of its end."""
        end = super()._finished(self._end())
        fields = ("state", "reason", "ended_at", "ended_boot", "ended_uptime")
        job = job._replace(**{key: end[key] for key in fields})
        sizes = self._unreceived()
        job = job._replace(has_more_data=next(sizes, None) is not None)
        job = job._replace(still_written=not self.damaged and self._has_leftovers())
        return self._as_damaged(job._replace(elapsed=job.took()))

    def _variable(self, number: int) -> str:
        """Return what marks the processes of an item."""
        return f"JOBCTL_INSTANCE_ID={self.cookie(number)}"

    def _has_leftovers(self) -> bool:
        """Whether something that an item started still runs, where the system tells."""
        return process.any_with(self._variable(0)[:-12].encode())

    def children(self, boot: str) -> list[Job]:
        """Return all children as they are now, none of a job that is deleted meanwhile."""
        runs, known, marks = self._runs(boot), self._known(), self.part_marks.all()
        numbers = range(1, self.count + 1)
        found = [self._part(number, runs, known, marks(number), boot) for number in numbers]
        return found if self.exists() else []

    def part(self, number: int, boot: str) -> Job | None:
        """Return a child as it is now, None if there is none of that number."""
        if not self.exists() or not 1 <= number <= self.count:
            return None
        runs = {} if number in self._journals.ends else self._runs(boot)
        return self._part(number, runs, self._known(), self.part_marks.of(number), boot)

    def _part(
        self, number: int, runs: dict[int, Run], known: dict[str, Any], marks: Marks, boot: str
    ) -> Job:
        item = os.fsdecode(self.item(number))
        words = items.expanded(self._words, item, number)
        job = Job(f"{self.id}.{number}", **known)
        job = job._replace(
            instance_id=self.cookie(number),
            item=item,
            argv=words,
            command=self._command_of(words, item, number),
            parent=self.id,
        )
        line = self._journals.ends.get(number)
        if line is not None:
            return self._part_end(job, number, line, marks)
        if run := runs.get(number):
            state = self._state_of(number, run, boot)
            percent, message = self.child(number).progress()
            return job._replace(
                state=state,
                location=self._where(state, boot, run.slot) or job.location,
                reason=self._reason_of(state, run),
                pid=run.pid,
                began_at=run.began.time,
                began_uptime=run.began.at_boot(boot),
                percent=percent,
                message=message,
            )
        state, reason = self._rest()
        job = job._replace(
            state=state,
            location=self._where(state, boot) or job.location,
            reason=reason,
            has_more_data=not state.finished,
        )
        if not state.finished:
            return job
        end = super()._finished(self._end())
        return job._replace(**{key: end[key] for key in ("ended_at", "ended_boot", "ended_uptime")})

    def _part_end(self, job: Job, number: int, line: bytes, marks: Marks) -> Job:
        fields = (line.split(b" ", 5) + [b""] * 6)[:6]
        state, code, signal, _, _, reason = fields
        told = {"state": STATES[state].value.encode(), "reason": reason}
        numbers = {"code": code.strip(b"-"), "signal": signal.strip(b"-")}
        end = records.end_in(told | numbers, "journal")
        run, ended = self._journals.run(number), self._journals.ended(number)
        return job._replace(
            state=end.state,
            reason=end.reason,
            exit_code=end.code,
            signal=end.signal,
            pid=run.pid or None,
            began_at=run.began.time,
            ended_at=ended.time,
            ended_uptime=ended.uptime,
            ended_boot=ended.boot,
            elapsed=ended.took(run.began),
            has_more_data=self._has_more(number, lambda number: marks),
            told=marks.told,
        )

    def _command_of(self, words: tuple[str, ...], item: str, number: int) -> str:
        """Return the command of an item as people read it."""
        text = os.fsdecode(self.spec().get("text", b""))
        if not text:
            return quoting.readable(words)
        if len(words) == 3:
            return items.shown(text, item, number)
        return quoting.readable((*words[:2], items.shown(text, item, number), *words[3:]))

    @functools.cached_property
    def _words(self) -> tuple[str, ...]:
        """The words of the command: of shell text what the shell gets, of others with places."""
        spec = self.spec()
        words = tuple(map(os.fsdecode, quoting.split(spec.get("words", b""))))
        text = os.fsdecode(spec.get("item_text", b""))
        if not items.stands_in(words):
            words = (*words, *(("sh",) if text and len(words) == 3 else ()), items.ITEM)
        return (*words[:2], text, *words[3:]) if text else words

    def item(self, number: int) -> bytes:
        """Return an item, b"" where it is lost."""
        first, block = self._block
        if not first <= number < first + len(block):
            if not self._firsts:
                self._firsts = sorted(records.numbered(self.file("items")))
            at = bisect.bisect_right(self._firsts, number)
            if not at:
                return b""
            first = self._firsts[at - 1]
            block = quoting.split(self.get(f"items/{first}"))
            self._block = first, block
        return block[number - first] if number < first + len(block) else b""

    def _unreceived(self) -> Iterator[int]:
        """Yield the numbers of the children with output that was not received."""
        self._journals.catch_up()
        marks = self.part_marks.all()
        for number in range(1, self.count + 1):
            if self._has_more(number, marks):
                yield number

    def _has_more(self, number: int, marks: Callable[[int], Marks]) -> bool:
        """Whether there is output of a child that was not received."""
        path = f"{self.path}/children/{number}."
        known = None
        for stream in STREAMS:
            if size := records.size(path + stream):
                known = known or records.checked(marks(number), path.__add__)
                if known.next(stream, size):
                    return True
        return False

    # --- what is done when something was killed ---

    def recover(self, boot: str) -> int:
        """Write down what is lost; return how many items are to be run, in new slots.

        Does nothing while a slot lives.
        """
        with self.alone() as lock:
            return 0 if lock is None else self.recovered(boot)

    @contextmanager
    def alone(self) -> Iterator[int | None]:
        """Give the lock of the job, held, unless a slot lives."""
        fd = records.opened(self.file("lock"), os.O_RDWR | os.O_CREAT)
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                yield None
            else:
                yield fd
        finally:
            os.close(fd)

    def recovered(self, boot: str) -> int:
        """Do the work of recover(); nobody else does so now."""
        if self.finished() or not self.exists():
            return 0
        runs, places = self._journals.runs(), self._journals.places(boot)
        if Place.ELSEWHERE in places:
            return 0
        if Place.BEFORE in places:
            self.put("lost", _REBOOTED.encode() + b"\n")
            self._conclude(boot)
            return 0
        if damage := self._damage():
            self.put("lost", damage.encode() + b"\n")
            self._conclude(boot)
            return 0
        living = sum(not self._lost(number, run, boot) for number, run in runs.items())
        unrecorded = self._judge_unrecorded(runs)
        left = 0 if self.has("stop") else self._give_back(runs) - unrecorded
        if left <= 0 and not living and not unrecorded:
            self._conclude(boot)
        return left

    def _damage(self, *more: str) -> str:
        """Return which folder is missing, if one is, of those that all jobs have and of more.

        Or that nobody can tell what to run.
        """
        self.spec()
        if self.damaged:
            return records.DAMAGED.format("spec")
        gone = (name for name in (*FOLDERS, *more) if not os.path.isdir(self.file(name)))
        return "".join(MISSING.format(name) for name in [*gone][:1])

    def _judge_unrecorded(self, runs: dict[int, Run]) -> int:
        """Write down as failed what has begun, though no journal says so, and does not run.

        Returns how much of that runs.
        """
        known = self._journals.ends.keys() | runs.keys()
        unrecorded = self._marked() - known
        if not unrecorded:
            return 0
        cookies = process.bearing(self._variable(0)[:-12].encode())
        running = {n for n in unrecorded if b"%012d" % n in cookies}
        for number in sorted(unrecorded - running):
            self._journals.note_end(number, State.FAILED, _UNRECORDED)
        return len(running)

    def _marked(self) -> set[int]:
        """Return what has begun, for all that is known where no journal tells."""
        for name in ("begun", "taken"):
            if os.path.isdir(self.file(name)):
                return set(records.numbered(self.file(name)))
        return set()

    def _give_back(self, runs: dict[int, Run]) -> int:
        """Give back what was taken but never begun; return how many items can be taken."""
        begun = self._journals.ends.keys() | runs.keys() | self._marked()
        for number in records.numbered(self.file("taken")):
            if number not in begun and not self._clear(f"taken/{number}"):
                self._journals.note_end(number, State.FAILED, f"cannot write taken/{number}")
        return self.count - len(self._journals.ends.keys() | runs.keys())

    def _clear(self, name: str) -> bool:
        """Take away a file, or what somebody put in its place; return whether it is gone."""
        import shutil

        self.unlink(name)
        shutil.rmtree(self.file(name), ignore_errors=True)
        return not os.path.lexists(self.file(name))

    def note_stop(self, name: str, reason: str) -> None:
        """Have slots stop, or not begin, what this file is for. The first reason counts."""
        if not self.size(name):
            self.replace(name, os.fsencode(reason) + b"\n")

    def withdraw(self, number: int, reason: str) -> bool:
        """Stop an item that nobody has taken; return False if somebody has."""
        if not self.claim(f"taken/{number}"):
            return False
        self._journals.note_end(number, State.STOPPED, reason)
        return True

    def _conclude(self, boot: str) -> None:
        """Write down how the whole has ended.

        :raises OSError: the disk is full, say; then nothing is forgotten.
        """
        self._journals.catch_up()
        self._journals.flush()
        children = [
            (number, STATES[line[:1]], line.split(b" ", 5)[-1])
            for number, line in self._journals.ends.items()
        ]
        if len(children) < self.count:
            rest, why = self._unbegun_end()
            children.append((self.count + 1, rest, os.fsencode(why)))
        state, reason = State.COMPLETED, b""
        for worst in (State.STOPPED, State.FAILED):
            if such := [(child[0], child[2]) for child in children if child[1] is worst]:
                state, reason = worst, min(such)[1]
        self._settle_as(state, os.fsdecode(reason), boot)
        for name in ("taken", "begun"):
            self._clear(name)

    def watched(self, boot: str) -> Identity | None:
        """Return a slot that lives, None if there is none."""
        return self._journals.living(boot)

    def never_began(self) -> str:
        """Return why an item could not be started, if that is so of the first that ended."""
        self._journals.catch_up()
        for number in self._journals.newest[:1]:
            fields = self._journals.ends[number].split(b" ", 5)
            if fields[0] == b"F" and not self._journals.run(number).pid:
                return os.fsdecode(fields[-1])
        return ""

    def wake_slots(self) -> None:
        """Have slots go on that somebody has stopped."""
        for slot in self._journals.alive(process.boot_id()):
            with suppress(OSError):
                os.kill(slot.pid, signal.SIGCONT)

    def stop_targets(self, numbers: Iterable[int]) -> list[str]:
        """Return items, or 0 for the whole job, as items.sh names them."""
        return [f"{number}:{self.cookie(number)}" for number in numbers]

    def ids_of(self, numbers: Iterable[str]) -> set[str]:
        """Return the ids of what items.sh names by number."""
        return {self.id if number == "0" else f"{self.id}.{number}" for number in numbers}


class Part(Folder):
    """The files of one child."""

    def __init__(self, task: Task, number: int) -> None:
        super().__init__(f"{task.path}/children/{number}")
        self.task = task
        self.number = number

    def file(self, name: str) -> str:
        """Return the path of one of its files."""
        return f"{self.path}.{name}"

    def exists(self) -> bool:
        """Whether the job has such a child."""
        return self.task.exists() and 1 <= self.number <= self.task.count

    def finished(self) -> bool:
        """Whether its end is written down."""
        return self.task.ended(self.number)

    def spec(self) -> dict[str, bytes]:
        """Return what the whole job was to be."""
        return self.task.spec()

    def read(self, boot: str) -> Job | None:
        """Return the child as it is now, None if there is none."""
        job = self.task.part(self.number, boot)
        return job if self.task.exists() else None

    def children(self, boot: str) -> list[Job]:
        """Return none: it is a child."""
        return []

    def watched(self, boot: str) -> Identity | None:
        """Return nothing: its end is in the journal only after that of its command."""
        return None

    def marks(self) -> Marks:
        """Return how much was received."""
        return self.checked(self.task.part_marks.of(self.number))

    @contextmanager
    def receiving(self) -> Iterator[Callable[[Marks], None]]:
        """Hold the right to move the marks; see Folder.receiving()."""
        with self.task.part_marks.moving(self.number) as move:
            yield lambda marks: move(self.traced(marks))
