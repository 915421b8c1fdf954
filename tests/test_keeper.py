"""A run of tests that is interrupted: what it started ends, whatever became of the run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import keeper
import pytest
from conftest import wait_until

SECONDS = "7401"
INNER = """
import os
import sys
import threading

import disk

def test_never_ends(far, request, tmp_path):
    if os.getuid() == 0 and sys.platform == "linux":
        disk.mount(tmp_path / "disk")
    far.run("session", "new", "web1")
    far.until(far.start("-c", "sleep SECONDS; :"), "Running")
    far.until(far.out("start", "-q", "sleep", "SECONDS").strip(), "Running")
    words = ("env", "-i", "sleep", "SECONDS")
    far.until(far.start(*words), "Running")
    far.until(far.out("start", "-q", *words).strip(), "Running")
    (request.config.rootpath / "ready").touch()
    threading.Event().wait()
"""


@pytest.mark.parametrize(
    ("number", "workers"),
    [
        (signal.SIGKILL, 1),
        *(pytest.param(n, 0, marks=pytest.mark.long) for n in (signal.SIGTERM, signal.SIGINT)),
    ],
)
def test_nothing_is_left_of_a_run_that_is_ended(
    tmp_path: Path, number: signal.Signals, workers: int
) -> None:
    (tmp_path / "test_inner.py").write_text(INNER.replace("SECONDS", SECONDS))
    (tmp_path / "pytest.ini").touch()
    base = tmp_path / "inner"
    words = ["-p", "conftest", "-n", str(workers), f"--basetemp={base}", "test_inner.py"]
    environ = {**os.environ, "PYTHONPATH": os.path.dirname(__file__)}
    run = subprocess.Popen(
        [sys.executable, "-m", "pytest", "-q", *words],
        cwd=tmp_path,
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        wait_until(lambda: (tmp_path / "ready").exists() or run.poll() is not None)
        there = " ".join(keeper.left(base, {run.pid}).values())
        for words_of in ("sshd", "jobctl.agent", f"sleep {SECONDS}", "runner.sh", "serve.sh"):
            assert words_of in there
    finally:
        run.send_signal(number)
    run.communicate(timeout=60)
    wait_until(lambda: not keeper.left(base, set()))
    mounts = Path("/proc/mounts")
    wait_until(lambda: not mounts.exists() or f"{base}/" not in mounts.read_text())
