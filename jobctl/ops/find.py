"""Finds the jobs that selectors and filters mean."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from jobctl.errors import BadUsage, NotFound
from jobctl.model import Job, State, printable
from jobctl.store import NEWEST_FIRST, Store

_NUMBER = re.compile(r"\d+", re.ASCII)
_CHILD = re.compile(r"(\d+)\.(\d+)", re.ASCII)
_RANGE = re.compile(r"(\d+)-(\d+)", re.ASCII)
_INSTANCE = re.compile(r"[0-9a-fA-F-]{8,36}")
_LARGEST = 2**63 - 1


@dataclass(frozen=True)
class Filter:
    """What narrows a selection: a job must pass all of it. Times: seconds since 1970."""

    states: tuple[State, ...] = ()
    name: str | None = None
    command: str | None = None
    location: str | None = None
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


def find(store: Store, selectors: Iterable[str] | None, narrow: Filter) -> Found:
    """Return the jobs that any of the selectors means and that pass the filter.

    :param selectors: None means all jobs.

    :raises BadUsage: a selector makes no sense.
    """
    selected = list(dict.fromkeys(selectors or ()))
    ranges = [_range(selector) for selector in selected]
    store.refresh()
    ids: set[int] = set()
    missing: list[NotFound] = []
    for selector, span in zip(selected, ranges, strict=True):
        try:
            ids.update(store.ids("id BETWEEN ? AND ?", span) if span else resolve(store, selector))
        except NotFound as error:
            missing.append(error)
    if selectors is not None and not ids:
        return Found([], missing)
    where = ["1"] if selectors is None else [_among(ids)]
    values: list[object] = []
    _narrow(narrow, where, values)
    condition = " AND ".join(where)
    if narrow.newest is not None:
        newest = store.ids(condition, values, f"{NEWEST_FIRST} LIMIT {narrow.newest}")
        condition, values = _among(newest), []
    return Found(store.select(condition, values), missing)


def resolve(store: Store, selector: str) -> list[int]:
    """Return the ids of the jobs that one selector means, as of the last refresh().

    :raises NotFound: no job is called so; a wildcard may match none.
    """
    shown = printable(selector)
    if _NUMBER.fullmatch(selector):
        if ids := store.ids("id = ?", [_capped(selector)]):
            return ids
        raise NotFound(f"no job {shown}; 'jobctl get' lists those there are")
    if match := _CHILD.fullmatch(selector):
        raise NotFound(f"no job {shown}: job {match[1]} has no children, or there is no such job")
    text = _text(selector)
    if ids := store.ids("name = ?", [text]):
        return ids
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
    if narrow.before is not None:
        add("ended < ?", narrow.before)
    if narrow.after is not None:
        add("ended >= ?", narrow.after)
    if narrow.has_more_data is not None:
        add("has_more = ?", narrow.has_more_data)
    if narrow.child_states:
        add("0")  # no job has children
