"""The monkey: one small seed in each run, more in a long one. See monkey.py for all others."""

from __future__ import annotations

import collections
import subprocess
import sys
from pathlib import Path

import monkey_oracle as oracle
import pytest
from conftest import first_of
from monkey_oracle import Piece

MONKEY = Path(__file__).with_name("monkey.py")
NAME = "j01.2"


@pytest.mark.long
@pytest.mark.parametrize("seed", first_of(1, 3))
def test_what_became_of_jobs(seed: int, tmp_path: Path) -> None:
    size = ("--jobs", "10", "--seconds", "4") if seed == 1 else ("--jobs", "16", "--seconds", "6")
    words = [sys.executable, str(MONKEY), "--seed", str(seed), *size]
    result = subprocess.run(
        [*words, "--base", str(tmp_path / "base")], capture_output=True, text=True, timeout=600
    )
    # If there is anything, `base` has the plan, the state directories and what was delivered.
    assert result.returncode == 0, f"{' '.join(words)}\n{result.stdout}{result.stderr}"


def test_a_seed_has_one_plan() -> None:
    words = [sys.executable, str(MONKEY), "--plan", "--seed", "7"]
    first, again = (subprocess.run(words, stdout=subprocess.PIPE).stdout for _ in range(2))
    assert first == again
    assert len(first.splitlines()) > 100


def lines(*numbers: int) -> bytes:
    return b"".join(oracle.line_of(NAME, "o", 1, number) for number in numbers)


def whole(count: int) -> collections.Counter[bytes]:
    return collections.Counter(lines(number) for number in range(1, count + 1))


@pytest.mark.parametrize(
    ("pieces", "wrong"),
    [
        ([Piece(lines(1, 2, 3))], ""),
        ([Piece(lines(3)), Piece(lines(1, 2))], ""),
        (
            [Piece(lines(1, 2)[:40]), Piece(lines(1, 2)[40:50]), Piece((lines(2) + lines(3))[18:])],
            "",
        ),
        ([Piece(b"7.2 h1: " + lines(1), True), Piece(lines(2, 3))], ""),
        ([Piece(lines(1, 2) + b"7.2 h", True, True), Piece(lines(3))], ""),
        ([Piece(lines(1, 2, 3) + b"jobctl: job 7 failed: exit status 3\n")], ""),
        ([Piece(lines(1, 2, 3), killed=True), Piece(lines(2, 3))], ""),
        ([Piece(lines(1, 3))], "never received"),
        ([Piece(lines(1, 2, 3)), Piece(lines(2))], "came twice"),
        ([Piece(lines(1, 2, 3, 4))], "nobody wrote"),
        ([Piece(lines(1, 2, 3)), Piece(lines(2)[:9])], "fit nowhere"),
    ],
)
def test_what_was_received_is_compared(pieces: list[Piece], wrong: str) -> None:
    found = list(oracle.received(whole(3), collections.Counter(), pieces))
    assert [wrong in line for line in found] == ([True] if wrong else []), found


RAN = "B 9 100.00 1\nW 9 100.10 5\nD 9 100.20 5\nE 9 100.30 0\n"
TWICE = RAN + "B 11 100.10 2\n"
DONE = oracle.Done("stop", "j01", ended=100.0, status=0)


@pytest.mark.parametrize(
    ("log", "state", "reason", "code", "deeds", "wrong"),
    [
        (RAN, "Completed", "", 0, [], ""),
        (RAN, "Failed", "exit status 3", 3, [], "its log says 0"),
        (RAN, "Running", "", None, [], "at the end"),
        (RAN, "Stopped", "stopped by user", 0, [], "nobody stopped it"),
        (RAN, "Stopped", "monkey", 0, [DONE], "went on 0.3 s after stop said 0"),
        (RAN, "Failed", "lost: runner was killed", None, [], "nobody killed its runner"),
        ("", "Completed", "", 0, [], "never began"),
        (TWICE, "Completed", "", 0, [], "ran 2 times"),
    ],
)
def test_states_are_compared(
    log: str, state: str, reason: str, code: int | None, deeds: list[oracle.Done], wrong: str
) -> None:
    known = oracle.Known("j01", 2, 0, 0.0, oracle.runs(log), deeds)
    record = {"state": state, "reason": reason, "exit_code": code}
    found = list(oracle.state_of(known, record))
    assert any(wrong in line for line in found) if wrong else found == []
