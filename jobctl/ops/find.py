"""Finds the jobs that selectors and filters mean."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from jobctl.errors import BadUsage, NotFound
from jobctl.jobs import Jobs
from jobctl.model import Job, State, glob, printable
from jobctl.store import NEWEST_FIRST, Store
from jobctl.task import Task

_NUMBER = re.compile(r"\d+", re.ASCII)
_CHILD = re.compile(r"(\d+)\.(\d+)", re.ASCII)
_RANGE = re.compile(r"(\d+)-(\d+)", re.ASCII)
_INSTANCE = re.compile(r"[0-9a-fA-F-]{8,36}")
_IN_TURN = {"%%": 0, "%+": 0, "%-": 1}
"""The newest job, and the one before it, as shells name theirs: how many are newer."""
_LARGEST = 2**63 - 1
_HAS_CHILDREN = "instr(record, '\"child_count\": 0,') = 0"


@dataclass(frozen=True)
class Filter:
    """What narrows a selection: a job must pass all of it. Times: seconds since 1970."""

    states: tuple[State, ...] = ()
    name: str | None = None
    command: str | None = None
    location: str | None = None
    session: str | None = None
    before: float | None = None
    after: float | None = None
    newest: int | None = None
    has_more_data: bool | None = None
    child_states: tuple[State, ...] = ()

    @property
    def empty(self) -> bool:
        """Whether everything passes."""
        return self == Filter()


@dataclass(frozen=True)
class Found:
    """The jobs found, in id order, and a message for each selector that matched nothing."""

    jobs: list[Job]
    missing: list[NotFound] = field(default_factory=list)


def find(
    store: Store, selectors: Iterable[str] | None, narrow: Filter, one_each: bool = False
) -> Found:
    """Return the jobs that any of the selectors means and that pass the filter.

    :param selectors: None means all jobs.
    :param one_each: a name means the newest job that is called so.

    :raises BadUsage: a selector makes no sense.
    """
    selected = list(dict.fromkeys(selectors or ()))
    ranges = [_range(selector) for selector in selected]
    store.refresh()
    ids: set[int] = set()
    children: list[Job] = []
    missing: list[NotFound] = []
    for selector, span in zip(selected, ranges, strict=True):
        try:
            if match := _CHILD.fullmatch(selector):
                children.append(_child(store, selector, match[1], match[2]))
                continue
            if span:
                ids.update(store.ids("id BETWEEN ? AND ?", span))
            else:
                ids.update(resolve(store, selector, one_each))
        except NotFound as error:
            missing.append(error)
    children = [job for job in children if passes(job, narrow)]
    if selectors is not None and not ids:
        return Found(children, missing)
    jobs = _whole(store, None if selectors is None else ids, narrow)
    if narrow.child_states:
        jobs = [job for job in jobs if _has_child(store, job, narrow.child_states)]
    named = {job.id: job for job in [*jobs, *children]}
    return Found(sorted(named.values(), key=lambda job: job.key), missing)


def _whole(store: Store, among: set[int] | None, narrow: Filter) -> list[Job]:
    """Return the jobs that pass the filter, and children that do where their parent does not."""
    where = ["1"] if among is None else [_among(among)]
    values: list[object] = []
    _narrow(narrow, where, values)
    condition = " AND ".join(where)
    order = "id" if narrow.newest is None else NEWEST_FIRST
    if narrow.location is None and narrow.session is None:
        limit = "" if narrow.newest is None else f" LIMIT {narrow.newest}"
        return store.select(condition, values, order + limit)
    jobs = list[Job]()
    for job in store.select(f"{condition} OR ({where[0]} AND {_HAS_CHILDREN})", values, order):
        if passes(job, narrow):
            jobs.append(job)
        else:
            jobs += [part for part in children_of(store, job) if passes(part, narrow)]
    return jobs[: narrow.newest]


def parts(store: Store, jobs: Iterable[Job], items: bool = True) -> list[Job]:
    """Return jobs with the children in the place of those that have some, each once.

    :param items: also in that of a job with items, which can be many.
    """
    found = dict[str, Job]()
    for job in jobs:
        divided = job.child_count and (items or not has_items(store.jobs, job))
        for part in children_of(store, job) if divided else [job]:
            found[part.id] = part
    return sorted(found.values(), key=lambda job: job.key)


def has_items(jobs: Jobs, job: Job) -> bool:
    """Whether the children of a job are items, which can be many."""
    return isinstance(jobs.folder(job.id), Task)


def children_of(store: Store, job: Job) -> list[Job]:
    """Return the children of a job as they are now."""
    return store.jobs.folder(job.id).children(store.boot)


def passes(job: Job, narrow: Filter) -> bool:
    """Whether a job passes all of a filter but how new it is."""
    ended = job.ended_at
    return (
        (not narrow.states or job.state in narrow.states)
        and (narrow.name is None or bool(glob(narrow.name).match(job.name)))
        and (narrow.command is None or bool(glob(narrow.command).match(job.command)))
        and narrow.location in (None, job.location)
        and narrow.session in (None, job.session)
        and (narrow.before is None or (ended is not None and ended < narrow.before))
        and (narrow.after is None or (ended is not None and ended >= narrow.after))
        and narrow.has_more_data in (None, job.has_more_data)
    )


def _has_child(store: Store, job: Job, states: tuple[State, ...]) -> bool:
    return any(child.state in states for child in children_of(store, job))


def _child(store: Store, selector: str, parent: str, number: str) -> Job:
    job = None
    if len(parent) < 19 and len(number) < 19:
        job = store.jobs.folder(f"{int(parent)}.{int(number)}").read(store.boot)
    if job is None:
        raise NotFound(f"no job {selector}; 'jobctl get --children {parent}' lists those there are")
    return job


def resolve(store: Store, selector: str, one_each: bool = False) -> list[int]:
    """Return the ids of the jobs that one selector means, as of the last refresh().

    :param one_each: see find().
    :raises NotFound: no job is called so; a wildcard may match none.
    """
    shown = printable(selector)
    if selector in _IN_TURN:
        if ids := store.ids("1", order=f"id DESC LIMIT 1 OFFSET {_IN_TURN[selector]}"):
            return ids
        raise NotFound(f"no job {shown}; 'jobctl get' lists those there are")
    if selector.startswith("%"):
        if ids := store.ids("name = ?", [_text(selector[1:])]):
            return ids[-1:]
        raise NotFound(f"no job is called '{shown[1:]}'; 'jobctl get' lists those there are")
    if _NUMBER.fullmatch(selector):
        if ids := store.ids("id = ?", [_capped(selector)]):
            return ids
        raise NotFound(f"no job {shown}; 'jobctl get' lists those there are")
    text = _text(selector)
    if ids := store.ids("name = ?", [text]):
        return ids[-1:] if one_each else ids
    if any(character in selector for character in "*?["):
        return store.ids("glob(?, name)", [text])
    if _INSTANCE.fullmatch(selector):
        ids = store.ids("instance_id GLOB ?", [selector.lower() + "*"])
        if len(ids) == 1:
            return ids
        if ids:
            raise NotFound(f"{shown} begins {len(ids)} instance ids; give more of it")
    raise NotFound(f"no job is called '{shown}'; 'jobctl get' lists those there are")


def _range(selector: str) -> tuple[int, int] | None:
    match = _RANGE.fullmatch(selector)
    if match is None:
        if not selector:
            raise BadUsage("a job must not be named ''; give an id, a name or a range")
        return None
    first, last = _capped(match[1]), _capped(match[2])
    if first > last:
        raise BadUsage(f"range {selector} runs backwards; write {last}-{first}")
    return first, last


def _capped(digits: str) -> int:
    """Return a number that SQLite takes, of any number of digits."""
    digits = digits.lstrip("0")
    return min(int(digits or "0"), _LARGEST) if len(digits) < 20 else _LARGEST


def _among(ids: Iterable[int]) -> str:
    return f"id IN ({','.join(map(str, ids))})"


def _text(text: str) -> str:
    """Return text as SQLite holds it: with a replacement for bytes that are not UTF-8."""
    return text.encode("utf-8", "replace").decode()


def _narrow(narrow: Filter, where: list[str], values: list[object]) -> None:
    def add(condition: str, *arguments: object) -> None:
        where.append(condition)
        values.extend(arguments)

    if narrow.states:
        names = [state.value for state in narrow.states]
        add(f"state IN ({','.join('?' * len(names))})", *names)
    if narrow.name is not None:
        add("glob(?, name)", _text(narrow.name))
    if narrow.command is not None:
        add("glob(?, command)", _text(narrow.command))
    if narrow.location is not None:
        add("location = ?", _text(narrow.location))
    if narrow.session is not None:
        add("session = ?", _text(narrow.session))
    if narrow.before is not None:
        add("ended < ?", narrow.before)
    if narrow.after is not None:
        add("ended >= ?", narrow.after)
    if narrow.has_more_data is not None:
        add("has_more = ?", narrow.has_more_data)
