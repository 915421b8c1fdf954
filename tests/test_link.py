"""When a link tries to connect to a host that refuses it, and when it leaves the host alone."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import PATIENCE, wait_until

from jobctl import draft, links
from jobctl.agent import link
from jobctl.agent.far import Far
from jobctl.carried import Carried
from jobctl.errors import Unreachable
from jobctl.folder import Folder
from jobctl.links import Links
from jobctl.model import JobSpec, Place
from jobctl.target import Target
from jobctl.transport.base import Ask, Cancelled, Connection, Denied, Lost, NoConnection

WEB1 = Target("web1")


class Company:
    """Takes down what it is told."""

    def __init__(self) -> None:
        self.held: list[tuple[list[str], str]] = []
        self.people: list[Ask] = []

    def ended(self, job: Carried) -> None:
        """Do nothing."""

    def changed(self, job: Carried) -> None:
        """Do nothing."""

    def back(self, job: Carried, far: Far) -> None:
        """Do nothing."""

    def held_up(self, jobs: Iterable[Carried], reason: str, but: Ask | None = None) -> None:
        """Take it down."""
        self.held.append(([job.id for job in jobs], reason))

    def told(self, jobs: list[str], why: str) -> bool:
        """Whether it was told last that these jobs are held up, with a reason that so begins."""
        return bool(self.held) and self.held[-1][0] == jobs and self.held[-1][1].startswith(why)

    def person(self, jobs: Iterable[Carried]) -> Ask | None:
        """Return the first one."""
        return next(iter(self.people), None)


class Refusing:
    """Stands for a host: counts the attempts to connect."""

    def __init__(self) -> None:
        self.error: Unreachable = Denied("web1 refuses the login")
        self.attempts = 0

    def __call__(self, target: Target, ask: Ask) -> Connection:
        self.attempts += 1
        ask.secret("?")
        raise self.error


class Staying:
    """Somebody who answers."""

    def __init__(self) -> None:
        self.questions = 0
        self.shown: list[str] = []

    def secret(self, prompt: str) -> str | None:
        """Answer."""
        self.questions += 1
        return "x"

    def confirm(self, question: str, fingerprint: str) -> bool:
        """Say yes."""
        return True

    def show(self, text: str) -> None:
        """Read it."""
        self.shown.append(text)


class Leaving(Staying):
    """Somebody who leaves when he is asked."""

    def __init__(self, people: list[Ask]) -> None:
        super().__init__()
        self.people = people

    def secret(self, prompt: str) -> str | None:
        """Leave."""
        self.people.remove(self)
        raise Cancelled("left")


@pytest.fixture
def host() -> Refusing:
    """Give a host."""
    return Refusing()


@pytest.fixture
def sent(unsent: Callable[[], Carried]) -> Callable[[], Carried]:
    """Give a function that makes a job which the host has already."""

    def make() -> Carried:
        job = unsent()
        job.note_sent()
        return job

    return make


@pytest.fixture
def unsent(tmp_path: Path) -> Callable[[], Carried]:
    """Give a function that makes a job of which the host does not know."""

    def make() -> Carried:
        number = len(os.listdir(tmp_path / "jobs")) + 1 if (tmp_path / "jobs").exists() else 1
        folder = Folder(str(tmp_path / f"jobs/{number}"))
        os.makedirs(folder.path)
        draft.write(folder, JobSpec(("true",), "/", {}, 0o22, places=(Place(WEB1),)))
        draft.commit(folder)
        return Carried(folder)

    return make


@pytest.fixture
def company() -> Company:
    """Give those who are told."""
    return Company()


@pytest.fixture
def to_web1(
    tmp_path: Path, host: Refusing, company: Company, monkeypatch: pytest.MonkeyPatch
) -> Iterator[link.Link]:
    """Give a link whose pauses are hours, unless the test has others."""
    monkeypatch.setattr(link, "_REFUSED", (3600.0, 3600.0))
    made = link.Link("web1", WEB1, host, Links(str(tmp_path)), company)
    wait_until(lambda: made.error)
    yield made
    made.close()


@pytest.fixture
def gate() -> threading.Event:
    """Give what lets the attempt to connect fail."""
    return threading.Event()


@pytest.fixture
def to_temporary(tmp_path: Path, gate: threading.Event, company: Company) -> Iterator[link.Link]:
    """Give a link that is there for jobs alone."""

    def connect(target: Target, ask: Ask) -> Connection:
        gate.wait(PATIENCE)
        raise NoConnection("cannot connect to web1: no route to host")

    made = link.Link(links.temporary(WEB1), WEB1, connect, Links(str(tmp_path)), company)
    yield made
    made.close()


def test_a_refusal_is_left_alone_until_somebody_asks(
    to_web1: link.Link, host: Refusing, company: Company, sent: Callable[[], Carried]
) -> None:
    before = host.attempts
    first = sent()
    assert to_web1.add(first)
    wait_until(lambda: host.attempts > before)
    wait_until(lambda: company.told([first.id], "web1 refuses the login"))
    before = host.attempts
    to_web1.heed(["999"])  # is about somebody else's job
    assert host.attempts == before
    to_web1.heed([first.id])
    wait_until(lambda: host.attempts == before + 1)
    wait_until(lambda: to_web1.error)
    assert to_web1.add(sent())
    wait_until(lambda: host.attempts == before + 2)


def test_another_one_is_asked_when_one_leaves(
    to_web1: link.Link, company: Company, sent: Callable[[], Carried]
) -> None:
    stays = Staying()
    company.people.append(Leaving(company.people))
    company.people.append(stays)
    assert to_web1.add(sent())
    wait_until(lambda: company.told(["1"], "web1 refuses"))
    assert stays.questions == 1
    assert company.people == [stays]
    company.people[0] = Leaving(company.people)
    to_web1.heed(["1"])
    wait_until(lambda: company.told(["1"], "left"))
    assert company.people == []


def test_who_waits_beside_one_who_leaves_is_asked(to_web1: link.Link) -> None:
    """He hears why he waits, and does not fail as another one leaves a question unanswered."""
    asked, leaves = threading.Event(), threading.Event()

    class First(Staying):
        def secret(self, prompt: str) -> str | None:
            asked.set()
            leaves.wait(PATIENCE)
            raise Cancelled("left")

    second = Staying()
    with ThreadPoolExecutor(2) as pool:
        one = pool.submit(to_web1.opened, First())
        assert asked.wait(PATIENCE)
        other = pool.submit(to_web1.opened, second)
        wait_until(lambda: second.shown)
        leaves.set()
        for refused in (one, other):
            with pytest.raises(Denied):
                refused.result(PATIENCE)
    assert second.questions == 1
    assert second.shown == ["jobctl: waiting: web1 has asked a question at another terminal"]


@pytest.mark.parametrize("error", [Denied("refused"), Lost("broke")])
def test_a_host_with_jobs_is_tried_again_by_itself(
    to_web1: link.Link,
    host: Refusing,
    sent: Callable[[], Carried],
    monkeypatch: pytest.MonkeyPatch,
    error: Unreachable,
) -> None:
    monkeypatch.setattr(link, "_REFUSED", (0.001, 0.01))
    monkeypatch.setattr(link, "_PAUSES", (0.001, 0.01))
    host.error = error
    assert to_web1.add(sent())
    wait_until(lambda: host.attempts > 6)
    assert not to_web1.closed


def test_a_job_that_cannot_be_failed_keeps_no_other_from_it(
    to_temporary: link.Link, gate: threading.Event, unsent: Callable[[], Carried]
) -> None:
    """Its folder goes at that very moment, say."""
    jobs = [unsent() for _ in range(2)]
    for job in jobs:
        assert to_temporary.add(job)
    shutil.rmtree(jobs[0].folder.path)
    gate.set()
    wait_until(jobs[1].folder.finished)
