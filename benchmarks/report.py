"""The table: a row for each figure, beside what it is held against."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tabulate import tabulate

_COLUMNS = ("what", "value", "beside", "", "ratio", "limit", "")
_SCALES = {
    "ms": 1e-3,
    "s": 1.0,
    "kB": 1024.0,
    "MB": 2.0**20,
    "MB/s": 2.0**20,
    "%": 0.01,
    "trips": 1.0,
}
_TWO_DECIMALS = ("s", "%", "trips")


@dataclass(frozen=True)
class Row:
    """One figure, in seconds, bytes, or bytes a second; the unit is what it is shown in."""

    what: str
    value: float
    unit: str = "ms"
    beside: str = ""
    peer: float | None = None
    ratio_limit: float | None = None
    limit: float | None = None
    """The most that the value may be. Without any limit it is for information."""

    @property
    def ratio(self) -> float | None:
        """How many times the peer the value is."""
        return self.value / self.peer if self.peer else None

    @property
    def over(self) -> bool:
        """Whether a limit is exceeded."""
        ratio, limit = self.ratio, self.limit
        return (limit is not None and self.value > limit) or (
            self.ratio_limit is not None and ratio is not None and ratio > self.ratio_limit
        )

    def cells(self) -> list[str]:
        """Return what the table shows."""
        limit = "" if self.limit is None else self._shown(self.limit)
        if self.ratio_limit is not None:
            limit = f"{self.ratio_limit:.2f} x"
        verdict = "OVER" if self.over else "ok"
        return [
            self.what,
            self._shown(self.value),
            self.beside,
            "" if self.peer is None else self._shown(self.peer),
            "" if self.ratio is None else f"{self.ratio:.2f}",
            limit,
            verdict if limit else "",
        ]

    def _shown(self, value: float) -> str:
        scaled = value / _SCALES[self.unit]
        decimals = 2 if self.unit in _TWO_DECIMALS else 1 if scaled < 100 else 0
        return f"{scaled:.{decimals}f} {self.unit}"


def table(rows: Iterable[Row]) -> str:
    """Return the rows as Markdown that also reads well as it is."""
    align = ("left", "right", "left", "right", "right", "right", "left")
    return tabulate(
        [row.cells() for row in rows],
        _COLUMNS,
        tablefmt="pipe",
        colalign=align,
        disable_numparse=True,
    )
