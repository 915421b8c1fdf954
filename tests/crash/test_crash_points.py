"""What a fault leaves of an operation, wherever it strikes: some of them in each run."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import rows_of
from scenes import SCENES

SWEEP = Path(__file__).with_name("sweep.py")
SOME = {"start": 1, "items": 1, "end": 1, "remove": 1, "receive": 1, "stop": 1}
"""How many faults a plain run tries: those nearest to the instant from which it counts."""
MORE = 8
"""The same with --all. sweep.py tries all of them, which takes minutes a scene."""
TRACED = sys.platform == "linux" and platform.machine() == "x86_64"


@pytest.mark.long
@pytest.mark.skipif(not TRACED, reason="the tracer knows Linux on x86-64 only")
@pytest.mark.parametrize(
    ("scene", "few"),
    [
        *rows_of([*SOME.items()], plain=4),
        *(pytest.param(scene, MORE, marks=pytest.mark.long) for scene in SCENES if scene != "stop"),
    ],
)
def test_what_a_fault_leaves(
    scene: str, few: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    words = [sys.executable, str(SWEEP), scene, "--few", str(few)]
    result = subprocess.run(words, capture_output=True, text=True, timeout=3600)
    assert result.returncode == 0, f"{' '.join(words)}\n{result.stdout}{result.stderr}"
