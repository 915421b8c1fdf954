"""What the monkey is going to do: jobs, command lines and faults, each at its time, from a seed.

The same seed gives the same plan, on every version of Python: only Random.random() is used. Whom a
fault hits is said by a role and a number, and found out when its time has come.
"""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

_T = TypeVar("_T")

HOSTS = ("h1", "h2")
"""Each is a server of its own, with a home of its own, behind a wire of its own."""
ROLES = (
    *("agent", "agent", "runner", "runner", "slot", "slot", "helper", "line", "line"),
    *("serve", "serve", "sshd", "there-runner", "there-slot", "tail", "command"),
)
"""Whom a kill hits; twice, who has the most to lose. `line` is a command line of jobctl."""
_TERMS = ("default", "default", "polite", "zero", "deaf")


@dataclass(frozen=True)
class Job:
    """One start of a job."""

    token: str
    """What its command is called in its words and in its log."""
    at: float
    hosts: tuple[str, ...] = ()
    items: int = 0
    per_host: int = 0
    session: bool = False
    stays: bool = False
    """Its output stays on the host until it is received."""
    after: str = ""
    retries: int = 0
    timeout: float = 0.0
    secret: bool = False
    """It has a variable of its own, and an input, which are to be gone with it."""
    bursts: int = 4
    lines: int = 10
    pause: float = 0.4
    good: int = 1
    """The attempt that succeeds; 0: none."""
    code: int = 3
    term: str = "default"
    leaves: bool = False
    killed: float = 0.0
    """Seconds after which the command line that starts it is killed; 0: never."""

    @property
    def parts(self) -> tuple[int, ...]:
        """The numbers of its children, 0 alone where it has none."""
        count = self.items or (len(self.hosts) if len(self.hosts) > 1 else 0)
        return tuple(range(1, count + 1)) or (0,)

    def words(self, program: Sequence[str], logs: str) -> list[str]:
        """Return the words of its command."""
        numbers = (self.bursts, self.lines, f"{self.pause:g}", self.good, self.code, self.term)
        return [*program, logs, self.token, *map(str, numbers), "x" if self.leaves else ""]


@dataclass(frozen=True)
class Deed:
    """One thing that is done to jobs, or to what carries them."""

    at: float
    do: str
    token: str = ""
    child: int = 0
    host: str = ""
    how: str = ""
    seconds: float = 0.0
    pick: int = 0
    killed: float = 0.0
    """Seconds after which the command line that does it is killed; 0: never."""


@dataclass(frozen=True)
class Plan:
    """All that is done."""

    seed: int
    seconds: float
    jobs: tuple[Job, ...]
    deeds: tuple[Deed, ...]


class _Dice:
    def __init__(self, *seed: object) -> None:
        self._random = random.Random(" ".join(map(str, seed)))

    def number(self, below: int) -> int:
        """Return a number from 0 on."""
        return int(self._random.random() * below)

    def one(self, *values: _T) -> _T:
        """Return one of some values."""
        return values[self.number(len(values))]

    def between(self, first: float, last: float) -> float:
        """Return a time, in hundredths."""
        return round(first + self._random.random() * (last - first), 2)

    def chance(self, percent: int) -> bool:
        """Return whether something is so."""
        return self.number(100) < percent


def plan(seed: int, jobs: int = 40, seconds: float = 10.0, faults: float = 5.0) -> Plan:
    """Return the plan of a seed.

    :param seconds: for how long jobs are started and faults made.
    :param faults: how many a second.
    """
    # Each part has dice of its own, so that one more kind of fault changes no job.
    made = tuple(_jobs(_Dice(seed, "jobs"), jobs, seconds))
    lines = [*_lines(_Dice(seed, "lines"), made, seconds)]
    broken = [*_faults(_Dice(seed, "faults"), made, seconds, faults)]
    return Plan(seed, seconds, made, tuple(sorted([*lines, *broken], key=lambda deed: deed.at)))


def _jobs(dice: _Dice, count: int, seconds: float) -> Iterator[Job]:
    kinds = ("local", "local", "items", "far", "far", "far-items", "far-items", "hosts")
    plain = list[str]()
    for number in range(count):
        token = f"j{number:02}"
        kind = kinds[number % len(kinds)]
        large = dice.chance(8)
        good = dice.one(1, 1, 1, 2, 0)
        job = Job(
            token,
            dice.between(0, seconds * 0.7),
            bursts=2 + dice.number(5),
            lines=2000 if large else 1 + dice.number(30),
            pause=dice.between(0.1, 0.8),
            good=good,
            code=1 + dice.number(100),
            term=dice.one(*_TERMS),
            leaves=dice.chance(15),
            retries=dice.one(0, 0, 0, 1, 2),
            timeout=dice.one(0.0, 0.0, 0.0, 0.0, 1.5),
            secret=dice.chance(30),
            killed=dice.between(0.01, 0.5) if dice.chance(10) else 0.0,
        )
        if kind in ("items", "far-items"):
            job = dataclasses.replace(job, items=2 + dice.number(10), pause=min(job.pause, 0.3))
            job = dataclasses.replace(job, per_host=1 + dice.number(3), bursts=1 + job.bursts // 3)
            job = dataclasses.replace(job, lines=min(job.lines, 200))
        if kind in ("far", "far-items"):
            hosts = HOSTS if kind == "far-items" and dice.chance(60) else (dice.one(*HOSTS),)
            job = dataclasses.replace(job, hosts=hosts, session=dice.chance(30))
            if kind == "far" and not job.session:
                job = dataclasses.replace(job, stays=dice.chance(20))
        if kind == "hosts":
            job = dataclasses.replace(job, hosts=HOSTS)
        if plain and dice.chance(8):
            job = dataclasses.replace(job, after=dice.one(*plain))
        elif kind in ("local", "far") and not job.killed:
            plain.append(token)
        yield job


def _lines(dice: _Dice, jobs: tuple[Job, ...], seconds: float) -> Iterator[Deed]:
    """Yield the command lines that do something to jobs, at least some to each."""
    for job in jobs:
        until = seconds + 2.0
        child = dice.one(*job.parts) if job.items and dice.chance(30) else 0
        for _ in range(1 + dice.number(3)):
            how = dice.one("file", "file", "pipe", "head", "tag", "wait", "dir", "keep")
            killed = dice.between(0.02, 1.0) if dice.chance(20) else 0.0
            at = dice.between(job.at + 0.2, until)
            yield Deed(at, "receive", job.token, child, how=how, killed=killed)
        if dice.chance(50):
            how = dice.one("0", "0.3", "1")
            killed = dice.between(0.02, 0.6) if dice.chance(25) else 0.0
            yield Deed(
                dice.between(job.at, until), "stop", job.token, child, "", how, killed=killed
            )
        if dice.chance(10):
            at = dice.between(job.at + 0.3, until)
            yield Deed(at, "signal", job.token, how="STOP")
            yield Deed(at + 0.7, "signal", job.token, how="CONT")
        if dice.chance(15):
            how = dice.one("", "force", "force")
            killed = dice.between(0.02, 0.5) if dice.chance(30) else 0.0
            at = dice.between(job.at + 0.5, until + 1.0)
            yield Deed(at, "remove", job.token, how=how, killed=killed)
        if dice.chance(20):
            killed = dice.between(0.1, 2.0) if dice.chance(50) else 0.0
            yield Deed(dice.between(job.at, until), "wait", job.token, killed=killed)
    for _ in range(int(seconds)):
        yield Deed(dice.between(0, seconds), "get", how=dice.one("-q", "--children", "wide"))
    for host in HOSTS:
        at = dice.between(seconds * 0.3, seconds * 0.6)
        yield Deed(at, "session", host=host, how="disconnect")
        yield Deed(at + dice.between(0.3, 1.5), "session", host=host, how="connect")
        for how in ("get-on", "receive"):
            killed = dice.between(0.1, 1.0) if dice.chance(50) else 0.0
            yield Deed(dice.between(1.0, seconds), "session", host=host, how=how, killed=killed)


def _faults(dice: _Dice, jobs: tuple[Job, ...], seconds: float, rate: float) -> Iterator[Deed]:
    for _ in range(int(seconds * rate)):
        at = dice.between(0.3, seconds + 1.5)
        host, pick = dice.one(*HOSTS), dice.number(1000)
        if dice.chance(60):
            yield Deed(at, "kill", how=dice.one(*ROLES), host=host, pick=pick)
            continue
        kind = dice.one(
            *("reset", "reset", "silence", "slow", "freeze-sshd", "stop-sshd", "refuse"),
            *("fill", "fill-there", "forget-index"),
        )
        length = dice.between(0.2, 2.5)
        yield Deed(at, kind, host=host, seconds=length, pick=pick)


def dump(made: Plan) -> str:
    """Return a plan as text, a line for each thing."""
    head = {"seed": made.seed, "seconds": made.seconds}
    jobs, deeds = map(dataclasses.asdict, made.jobs), map(dataclasses.asdict, made.deeds)
    return "".join(json.dumps(part) + "\n" for part in (head, *jobs, *deeds))
