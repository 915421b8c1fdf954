"""What a job with items on hosts asks each host to do, over a stand-in for the far end."""

from __future__ import annotations

import functools
import os
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from conftest import PATIENCE, wait_until

from jobctl import draft
from jobctl.agent import shares
from jobctl.agent.caller import People
from jobctl.agent.far import Far
from jobctl.agent.queue import Queue
from jobctl.agent.shares import Share, Spread
from jobctl.folder import Folder
from jobctl.journal import Journals
from jobctl.model import JobSpec, Place, State
from jobctl.runner import Sent
from jobctl.share import FarTask
from jobctl.target import Target
from jobctl.transport.base import Lost


class Host:
    """Takes down what is asked of it, and ends the items that it is told to."""

    def __init__(self, task: FarTask, number: int) -> None:
        self._task = task
        self._number = number
        self.asked = list[set[int]]()
        self.lost = False
        self.tell: Callable[[], None]
        """Tells that lines of journals have come."""

    def request(self, verb: str, *words: bytes, seconds: float = 0) -> bytes:
        """Do it, and tell of nothing that is left."""
        if self.lost:
            raise Lost("the connection broke before the host answered")
        first = {"end_items": 3, "signal_items": 2}[verb]
        numbers = {int(word.split(b":")[0]) for word in words[first:]}
        self.asked.append(numbers)
        if verb == "end_items":
            ((_, size),) = self._task.journal_sizes(self._number)
            running = self._task.runs_on(self._number)
            ended = running if 0 in numbers else running & numbers
            lines = b"".join(b"%d X 0 15 1 1 stopped\n" % n for n in sorted(ended))
            assert self._task.append_journal(self._number, 1, size, lines)
            self.tell()
        return b""


GIVEN = {1: (1, 4), 2: (5, 4)}
"""The first item and how many there are, by host: the third has none, two items nobody has."""


@pytest.fixture
def task(tmp_path: Path) -> FarTask:
    """Give a job with ten items on three hosts."""
    folder = Folder(str(tmp_path / "jobs/1"))
    os.makedirs(folder.path)
    places = tuple(Place(Target(f"web{n}")) for n in (1, 2, 3))
    items = (b"%d" % n for n in range(1, 11))
    draft.write(folder, JobSpec(("echo",), "/", {}, 0o22, places=places, items=items))
    draft.commit(folder)
    task = FarTask(folder.path)
    for number, block in GIVEN.items():
        task.share(number).give(*block)
        task.share(number).put("accepted", b"2\n")
        lines = b"".join(b"%d B %d 1 1 1 1\n" % (n, n) for n in range(block[0], sum(block)))
        task.append_journal(number, 1, 0, lines)
    return task


@pytest.fixture
def hosts(task: FarTask) -> dict[int, Host]:
    """Give what stands for the far ends."""
    return {number: Host(task, number) for number in (1, 2, 3)}


def ignore(job_id: str) -> None:
    """Do nothing with what is told of a job."""


@pytest.fixture
def spread(task: FarTask, hosts: dict[int, Host]) -> Iterator[Spread]:
    """Give the job as the agent has it."""

    def far_of(share: object) -> Far:
        return hosts[share.number]  # type: ignore[attr-defined,return-value]

    spread = Spread(task, far_of, ignore, ignore, ignore)
    spread.begin()
    for share in spread.shares:
        hosts[share.number].tell = functools.partial(spread.news, share)
    yield spread
    task.delete()


def test_a_host_that_is_lost_keeps_no_other_from_a_signal(
    spread: Spread, hosts: dict[int, Host]
) -> None:
    hosts[1].lost = True
    said, error = spread.signal({1, 7}, "USR1")
    assert (hosts[2].asked, said.missed) == ([{7}], set())
    assert "broke" in str(error)


STOPPED = [
    ({10}, {}, {10}),
    ({9, 10}, {}, {9, 10}),
    ({1, 10}, {1: {1}}, {10}),
    ({2, 3, 7}, {1: {2, 3}, 2: {7}}, set()),
    ({5}, {2: {5}}, set()),
    (set(), {}, set()),
    (None, {1: {0}, 2: {0}}, set()),
]
"""Items to stop (None: all), what each host is asked to stop, and what is stopped here."""


@pytest.mark.parametrize(("numbers", "there", "here"), STOPPED)
def test_stop(
    spread: Spread,
    task: FarTask,
    hosts: dict[int, Host],
    numbers: set[int] | None,
    there: dict[int, set[int]],
    here: set[int],
) -> None:
    assert spread.stop(numbers, 1.0, "enough") == (False, None)
    asked = {n: chosen for n, host in hosts.items() for chosen in host.asked}
    assert asked == there
    if numbers is not None:
        told = set[int]().union(*there.values())
        assert {n for n in range(1, 11) if task.ended(n)} == here | told
        states = {n: task.child(n).read("") for n in here}
        assert all(job and job.state is State.STOPPED for job in states.values())


@pytest.mark.parametrize(
    ("numbers", "there", "unbegun"),
    [
        ({10}, {}, {"1.10"}),
        ({1, 10}, {1: {1}}, {"1.10"}),
        (set(), {}, set()),
        (None, {1: {0}, 2: {0}}, set()),
    ],
)
def test_signal(
    spread: Spread,
    hosts: dict[int, Host],
    numbers: set[int] | None,
    there: dict[int, set[int]],
    unbegun: set[str],
) -> None:
    assert spread.signal(numbers, "USR1") == (Sent(set(), unbegun), None)
    assert {n: chosen for n, host in hosts.items() for chosen in host.asked} == there


def test_no_host_is_left_while_nothing_can_be_written(spread: Spread, task: FarTask) -> None:
    """As on a full disk: what no host can be given has its end when there is room again."""
    journal = Path(task.file("slots/0/journal"))
    journal.mkdir(parents=True)
    for share in spread.shares:
        with suppress(OSError):
            spread.lost(share, "refused")
    assert not any(task.ended(number) for number in range(1, 11))
    journal.rmdir()
    wait_until(task.finished)
    assert {task.child(n).read("").state for n in range(1, 11)} == {State.FAILED}  # type: ignore[union-attr]


def end(number: int) -> bytes:
    return b"%d C 0 - 1 1 \n" % number


@pytest.mark.parametrize("number", [0, 5, 9, 11, 41, 10**9, 10**12])
def test_what_a_host_was_not_given(spread: Spread, task: FarTask, number: int) -> None:
    """It may not tell of it, neither an end nor output; of what it was given, it may."""
    share = spread.shares[0]
    size = Path(task.file("slots/1.1/journal")).stat().st_size
    told: list[tuple[list[bytes], bytes]] = [
        ([b"item", b"1", b"%d" % number, b"out", b"0", b"1"], b"x"),
        ([b"emptied", b"1", b"%d" % number, b"out"], b""),
    ]
    if 0 < number < 10**9:  # else it is no line of a journal
        told.append(([b"journal", b"1", b"1", b"%d" % size, b"9"], end(1) + end(number)))
    for words, content in told:
        assert share.misfit(words, content) == f"it tells of item {number}, which it was not given"
    assert not share.misfit([b"journal", b"1", b"1", b"%d" % size, b"9"], end(1))
    assert not share.misfit([b"item", b"1", b"4", b"err", b"0", b"1"], b"x")
    assert not share.misfit([b"self", b"1", b"9", b"4"], b"1 2\n")
    # Be it in a journal all the same, it says nothing.
    assert task.append_journal(1, 1, size, end(number))
    assert task.append_journal(4, 1, 0, end(1))
    assert not any(task.ended(n) for n in range(1, 11))
    assert task.ended_count() == 0


@pytest.mark.parametrize("file", ["stop", "lost", ""])
def test_what_nobody_tells_of(task: FarTask, file: str) -> None:
    """It is Stopped only if somebody asked for that."""
    if file:
        task.put(file, b"enough\n")
    task.conclude()
    ends = {(job.state, job.reason) for job in task.children("")}
    if file:
        state = State.STOPPED if file == "stop" else State.FAILED
        assert ends == {(state, "enough")}
    else:
        ((state, reason),) = ends
        assert (state, reason.partition(":")[0]) == (State.FAILED, "damaged")
    whole = task.read("")
    assert whole
    assert whole.state is state


def test_an_end_is_known_whole_or_not_at_all(
    task: FarTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also by one of several threads, while another one is reading it."""
    task.append_journal(1, 1, *_journal_of(task, 1, end(1)))
    other = FarTask(task.path)
    other.ended(9)
    reads, goes_on = threading.Event(), threading.Event()

    def slow(journals: Journals, slot: str) -> list[bytes]:
        reads.set()
        goes_on.wait(PATIENCE)
        return own(journals, slot)

    own = Journals._self
    task.append_journal(2, 1, *_journal_of(task, 2, end(5)))
    monkeypatch.setattr(Journals, "_self", slow)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(other.ended, 5)
        reads.wait(PATIENCE)
        second = pool.submit(other.ended_of, {1, 5, 6})
        with pytest.raises(TimeoutError):
            second.result(0.3)
        goes_on.set()
        assert (first.result(), second.result()) == (True, {1, 5})


def _journal_of(task: FarTask, number: int, line: bytes) -> tuple[int, bytes]:
    ((_, size),) = task.journal_sizes(number)
    return size, line


def test_what_was_given_is_read_once(task: FarTask) -> None:
    mine, theirs = task.share(3), FarTask(task.path).share(3)
    assert (mine.given(), theirs.given()) == ([], [])
    blocks = [(9, 1), (1, 2), (4, 1)]
    for at, block in enumerate(blocks):
        mine.give(*block)
        assert mine.given() == theirs.given() == blocks[: at + 1]
    Path(mine.file("given")).open("ab").write(b"5 2 items")  # a full disk took the rest
    assert theirs.given() == blocks
    mine.give(10, 1)
    blocks.append((10, 1))
    assert mine.given() == theirs.given() == blocks
    holds = theirs.holder()
    assert [n for n in range(12) if holds(n)] == [1, 2, 4, 9, 10]
    mine.keep_given([(7, 1), *blocks])
    assert theirs.given() == mine.given() == [(7, 1), *blocks]


def test_what_was_given_is_read_by_several_at_once(task: FarTask) -> None:
    """While it grows, and while another one takes its place."""
    place = task.share(3)
    place.keep_given([(1, 1)])
    over = threading.Event()

    def reads() -> None:
        while not over.is_set():
            assert place.holder()(1)
            blocks = place.given()
            assert len(blocks) == len(set(blocks))

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(3) as pool:
            readers = [pool.submit(reads) for _ in range(3)]
            for _ in range(60):
                for first in range(2, 11):
                    place.give(first, 1)
                place.keep_given([(1, 1)])
            over.set()
            for reader in readers:
                reader.result()
    finally:
        over.set()
        sys.setswitchinterval(before)


def test_each_item_may_have_a_slot_of_its_own(spread: Spread, monkeypatch: Any) -> None:
    """As a slot ends that has had nothing to do for a while."""
    monkeypatch.setattr(shares, "_MOST_SLOTS", 3)
    share = spread.shares[0]
    words = [b"journal", b"1", b"0", b"0"]
    for slot in range(1, 8):
        words[2] = b"%d" % slot
        assert share.misfit(words, end(1)) == ""
    words[2] = b"8"
    assert share.misfit(words, end(1)) == "it tells of more than 7 slots"


@pytest.mark.parametrize("removed", [False, True])
def test_a_job_that_is_over_keeps_nobody_busy(task: FarTask, removed: bool) -> None:
    """All had ended when the last agent was killed; or it was removed here alone."""
    if not removed:
        for number, (first, count) in GIVEN.items():
            lines = b"".join(end(n) for n in range(first, first + count))
            assert task.append_journal(number, 1, *_journal_of(task, number, lines))
        task.note_end(9, State.FAILED, "refused")
        task.note_end(10, State.FAILED, "refused")

    class Idle:
        far = None

        def add(self, job: object) -> bool:
            return True

        def drop(self, job_id: str) -> None:
            pass

    def ignore(*_: object) -> None:
        pass

    queue = Queue(task.state_dir, lambda job: Idle(), ignore, ignore, People())  # type: ignore[arg-type,return-value]
    queue.look(["1"])
    if removed:
        task.delete()
    wait_until(lambda: not queue.busy)
    assert removed or task.finished()


def test_a_share_that_is_damaged_keeps_no_other_from_going_on(task: FarTask) -> None:
    os.unlink(task.share(1).file("spec"))
    looked_after = set[str]()

    class Idle:
        far = None

        def add(self, job: Share) -> bool:
            looked_after.add(job.id)
            return True

        def drop(self, job_id: str) -> None:
            pass

    def link_of(job: Share) -> Idle:
        assert job.target
        return Idle()

    def ignore(*_: object) -> None:
        pass

    queue = Queue(task.state_dir, link_of, ignore, ignore, People())  # type: ignore[arg-type]
    queue.look(["1"])
    assert looked_after == {"1@2", "1@3"}
    wait_until(lambda: all(task.ended(number) for number in range(1, 5)))
    task.delete()


@pytest.mark.parametrize(
    ("throttle", "slots", "held"),
    [
        (6, (2, 2, 2), False),
        (5, (2, 2, 2), True),
        (100, (2, 2, 0), True),  # it is not known yet what the third can run
        (4, (2, 2, None), False),  # it will never run any
        (3, (2, 2, None), True),
        (shares._UNLIMITED, (2, 2, 0), False),
    ],
)
def test_items_wait_on_hosts_unless_a_throttle_holds_them_here(
    task: FarTask,
    monkeypatch: pytest.MonkeyPatch,
    throttle: int,
    slots: tuple[int | None, ...],
    held: bool,
) -> None:
    monkeypatch.setattr(Spread, "left", 1000)
    spread = Spread(task, lambda share: None, ignore, ignore, ignore)
    spread.throttle = throttle
    for share, number in zip(spread.shares, slots, strict=True):
        share.slots = number or 0
        share.hopeless = number is None
    first = spread.shares[0]
    first.note_ended(100)
    assert spread.throttled == held
    assert (first.enough() == first.slots) == held


def test_nothing_is_given_to_a_host_that_is_given_up_meanwhile(
    task: FarTask, hosts: dict[int, Host], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody would tell of it any more: the job would never end."""
    spread = Spread(task, lambda share: None, ignore, ignore, ignore)
    third = spread.shares[2]
    third.slots = 2

    def given_up(share: Share) -> bool:
        spread.fail(share, "it lies")
        return False

    monkeypatch.setattr(Share, "stop_asked", property(given_up))
    assert not spread._give(third, hosts[3])  # type: ignore[arg-type]
    assert (spread.left, third.place.given()) == (2, [])
