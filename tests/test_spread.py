"""What a job with items on hosts asks each host to do, over a stand-in for the far end."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from conftest import wait_until

from jobctl import draft
from jobctl.agent.far import Far
from jobctl.agent.shares import Spread
from jobctl.folder import Folder
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


@pytest.fixture
def spread(task: FarTask, hosts: dict[int, Host]) -> Iterator[Spread]:
    """Give the job as the agent has it."""

    def far_of(share: object) -> Far:
        return hosts[share.number]  # type: ignore[attr-defined,return-value]

    def ignore(job_id: str) -> None:
        pass

    spread = Spread(task, far_of, ignore, ignore, ignore)
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
