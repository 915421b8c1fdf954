"""Breaks the calls of an operation that change the disk, one a run, and says what is wrong then.

    python sweep.py SCENE [--few N] [--only "FAULT KEY"] [--list]

--few takes those around the instant from which the operation counts. A finding is printed with its
fault and key: with --only, that one is run again.
"""

from __future__ import annotations

import argparse
import signal
import sys

import crash_points
from crash_points import Point
from scene import fresh
from scenes import SCENES

NOT_REACHED = ["not reached"]
TRIES = 3


def points_of(name: str) -> list[Point]:
    """Return all faults of a scene, by a run without one.

    :raises SystemExit: something is wrong already then.
    """
    with fresh(SCENES[name]) as scene:
        wrong, log = scene.run(None)
        if wrong:
            raise SystemExit(f"without a fault: {wrong}")
        return list(crash_points.of([line["key"] for line in log if "key" in line], scene.who))


def commit_of(name: str) -> str:
    """Return the key of the call from which on the operation counts."""
    with fresh(SCENES[name]) as scene:
        return scene.commit


def chosen(said: argparse.Namespace) -> list[Point]:
    """Return what the words ask for."""
    points = points_of(said.scene)
    if said.few:
        points = crash_points.few(points, commit_of(said.scene), said.few)
    return [point for point in points if said.only in f"{point.fault} {point.key}"]


def tried(name: str, point: Point) -> list[str]:
    """Return what is wrong after a fault.

    Which processes make a call first, and how often they look, differs between two runs: a call
    that this run did not make may well be made by the next one.
    """
    wrong = NOT_REACHED
    for _ in range(TRIES):
        if wrong == NOT_REACHED:
            with fresh(SCENES[name]) as scene:
                wrong, _ = scene.run(point)
    return wrong


def tell(point: Point, wrong: list[str]) -> None:
    """Print a finding."""
    lines = "".join(f"    {line}\n" for line in wrong)
    sys.stdout.write(f"{point.fault} {point.key}\n{lines}")
    sys.stdout.flush()


def sweep(name: str, points: list[Point]) -> bool:
    """Run them all; return whether all is well."""
    bad = missed = 0
    for point in points:
        wrong = tried(name, point)
        if wrong:
            tell(point, wrong)
        missed += wrong == NOT_REACHED
        bad += bool(wrong) and wrong != NOT_REACHED
    sys.stdout.write(f"{name}: {len(points)} faults, {missed} not reached, {bad} findings\n")
    # A point that is never reached shows nothing: the instrument is blunt then.
    return not bad and len(points) > 0 and missed * 10 <= len(points)


def main() -> int:
    """Do what the words say."""
    parser = argparse.ArgumentParser()
    parser.add_argument("scene", choices=SCENES)
    parser.add_argument("--few", type=int)
    parser.add_argument("--only", default="")
    parser.add_argument("--list", action="store_true")
    said = parser.parse_args()
    points = chosen(said)
    if said.list:
        sys.stdout.write("".join(f"{point.fault} {point.key}\n" for point in points))
        return 0
    return int(not sweep(said.scene, points))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    sys.exit(main())
