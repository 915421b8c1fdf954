"""What the agent does for one job, or in a thread, ends nothing else."""

from __future__ import annotations

import threading

import pytest

from jobctl.agent.hands import attempt, hand
from jobctl.errors import BadUsage


def fail(error: Exception) -> None:
    raise error


def test_what_goes_wrong_is_told(capfd: pytest.CaptureFixture[str]) -> None:
    assert attempt(lambda: 3) is None
    for error in (BadUsage("x"), FileNotFoundError("x")):
        assert attempt(lambda: fail(error)) is error  # noqa: B023
    assert capfd.readouterr().err == ""
    fault = KeyError("odd")
    assert attempt(lambda: fail(fault)) is fault
    said = capfd.readouterr().err
    assert said.count("\n") == 1
    assert "a fault in jobctl" in said
    assert "test_hands.py" in said
    assert "KeyError: 'odd'" in said


def test_a_thread_that_fails() -> None:
    told, done = list[Exception](), threading.Event()

    def failed(error: Exception) -> None:
        told.append(error)
        done.set()

    fault = ValueError("odd")
    hand(lambda: fail(fault), failed)
    assert done.wait(60)
    assert told == [fault]
