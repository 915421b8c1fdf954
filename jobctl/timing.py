"""Durations and points in time, as people write and read them."""

from __future__ import annotations

import datetime
import math
import re
import time
from typing import NamedTuple

from jobctl.errors import BadUsage

_UNITS = {"d": 86400, "h": 3600, "m": 60, "s": 1}
_DURATION = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?|\.\d+)s)?", re.ASCII)
_SECONDS = re.compile(r"\d+(\.\d*)?|\.\d+", re.ASCII)
_LONGEST = 100 * 365 * 86400
_FRACTION = re.compile(r"\.\d+", re.ASCII)
_CLOCK = re.compile(r"(\d{1,2}):(\d\d)", re.ASCII)


class Moment(NamedTuple):
    """A point in time by the clocks of one machine, in seconds."""

    time: float | None
    """Since 1970: somebody may set that clock."""
    uptime: float | None
    """Since the machine was started, None where it does not tell."""
    boot: str
    """What differs after each start of the machine."""

    def at_boot(self, boot: str) -> float | None:
        """Return the uptime if it is one of that boot."""
        return self.uptime if self.boot == boot else None

    def since(self, earlier: Moment) -> float | None:
        """Return the seconds from another moment on the same machine to this one.

        By the clock that nobody sets, if both are known by it.
        """
        if self.boot == earlier.boot and self.uptime is not None and earlier.uptime is not None:
            return self.uptime - earlier.uptime
        if self.time is None or earlier.time is None:
            return None
        return self.time - earlier.time

    def later(self, seconds: float) -> Moment:
        """Return the moment so many seconds later."""
        return Moment(
            None if self.time is None else self.time + seconds,
            None if self.uptime is None else self.uptime + seconds,
            self.boot,
        )

    def took(self, began: Moment) -> float | None:
        """Return the seconds that something took which ended now; not less than none."""
        seconds = self.since(began)
        return None if seconds is None else max(0.0, seconds)


class Clocks(NamedTuple):
    """What the clocks of a host and those of this machine show at one moment."""

    there: Moment
    here: Moment

    def renewed(self, now: Moment) -> Clocks:
        """Return the same by our clock as it is now, should somebody have set it meanwhile."""
        passed = now.since(self.here)
        if passed is None or now.time is None or self.here.time is None:
            return self
        set_by = now.time - self.here.time - passed
        if abs(set_by) < 1:  # it is only kept right
            return self
        return self._replace(here=self.here._replace(time=self.here.time + set_by))

    def ours(self, moment: Moment) -> Moment:
        """Return what our clocks showed at a moment that is known by those of the host."""
        passed = self.there.since(moment)
        if passed is None:
            return Moment(None, None, "")
        return self.here.later(-passed)


def parse_duration(text: str) -> float:
    """Return the seconds that text means: `90`, `1.5`, `90s`, `5m`, `1h30m`, `2d`.

    :raises BadUsage: it is none, or longer than a hundred years.
    """
    if _SECONDS.fullmatch(text):
        seconds = float(text)
    elif text and (match := _DURATION.fullmatch(text)):
        seconds = sum(
            float(amount) * unit
            for amount, unit in zip(match.groups(), _UNITS.values(), strict=True)
            if amount
        )
    else:
        raise BadUsage(f"'{text}' is not a duration; write 90, 90s, 5m, 1h30m or 2d")
    if not math.isfinite(seconds) or seconds > _LONGEST:
        raise BadUsage(f"'{text}' is more than a hundred years")
    return seconds


def parse_when(text: str, now: float | None = None) -> float:
    """Return the seconds since 1970 that text means: RFC 3339, HH:MM today, or an age.

    :raises BadUsage: it is none of these.
    """
    now = time.time() if now is None else now
    if match := _CLOCK.fullmatch(text):
        hour, minute = map(int, match.groups())
        if hour < 24 and minute < 60:
            today = datetime.datetime.fromtimestamp(now)
            return today.replace(hour=hour, minute=minute, second=0, microsecond=0).timestamp()
    try:
        return now - parse_duration(text)
    except BadUsage:
        pass
    try:
        # Python 3.10 knows neither Z nor any fraction; without an offset it is local time.
        text_310 = re.sub("[zZ]$", "+00:00", text)
        text_310 = _FRACTION.sub(lambda match: f"{match.group():0<7.7}", text_310)
        return datetime.datetime.fromisoformat(text_310).timestamp()
    except (ValueError, OverflowError, OSError):
        raise BadUsage(
            f"'{text}' is not a time; write 2026-01-31T08:00:00Z, 08:00 or an age such as 2h"
        ) from None


def rfc3339(seconds: float | None) -> str | None:
    """Return seconds since 1970 as UTC to the millisecond."""
    if seconds is None:
        return None
    whole, thousandths = divmod(int(seconds * 1000), 1000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole)) + f".{thousandths:03d}Z"


def local(seconds: float | None) -> str:
    """Return seconds since 1970 as local time to the second."""
    return "" if seconds is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def spell(seconds: float | None) -> str:
    """Return a duration as parse_duration reads it, in its two largest units."""
    if seconds is None:
        return ""
    if round(seconds, 1) < 60:
        return f"{seconds:.1f}s"
    left, parts = max(60, int(seconds)), list[str]()
    for unit, size in _UNITS.items():
        amount, left = divmod(left, size)
        if amount or parts:
            parts.append(f"{amount}{unit}")
    return "".join(parts[:2])


def plain(seconds: float) -> str:
    """Return seconds as every sleep(1) takes them, those that know no fractions included."""
    return f"{seconds:.3f}".rstrip("0").rstrip(".")
