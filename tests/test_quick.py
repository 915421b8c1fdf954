"""What the tests stand on: a call of the program that is forked is as one that is executed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
import quick
from conftest import PROGRAM, Jobctl, sleeper


def both(jobctl: Jobctl, *words: str, **options: object) -> subprocess.CompletedProcess[bytes]:
    """Make a call both ways; return what came of the forked one, once all is the same."""
    files = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": jobctl.env}
    if "input" not in options:
        files["stdin"] = subprocess.DEVNULL
    assert quick.can(words, {**files, **options})
    forked = quick.run(PROGRAM, words, 60, **{**files, **options})
    executed = subprocess.run([PROGRAM, *words], **{**files, **options})  # type: ignore[call-overload]
    assert (forked.returncode, forked.stdout, forked.stderr) == (
        executed.returncode,
        executed.stdout,
        executed.stderr,
    )
    return forked


def test_words_files_and_status(jobctl: Jobctl, tmp_path: Path) -> None:
    job = jobctl.done("-c", "head -c 300000 /dev/zero; echo err >&2; exit 3")
    assert both(jobctl, "receive", "--keep", job).stdout == b"\0" * 300_000
    assert both(jobctl, "receive", "--keep", job, stderr=subprocess.STDOUT).stderr is None
    assert both(jobctl, "get", "-o", "json").stdout
    assert both(jobctl, "wait", "no-such").returncode == 3
    assert both(jobctl, "get", "--nonsense", cwd=tmp_path).returncode == 2
    assert both(jobctl, "stop", "--help", cwd=tmp_path, start_new_session=True).stdout
    with (tmp_path / "file").open("wb") as file:
        assert both(jobctl, "get", "-q", stdout=file).stdout is None
    assert (tmp_path / "file").read_text() == f"{job}\n" * 2


def test_the_folder_the_environment_and_the_input(jobctl: Jobctl, tmp_path: Path) -> None:
    text = "pwd; umask; env | sort | grep -v '^JOBCTL_[INPR]'; cat"
    outputs = []
    options: dict[str, Any] = {
        "env": {**jobctl.env, "X": "a\nb"},
        "cwd": tmp_path,
        "input": b"in",
        "umask": 0o27,
    }
    words = ("start", "-w", "--stdin", "-", "-c", text)
    for _ in range(2):
        outputs.append(jobctl.run(*words, **options).stdout)
        options["preexec_fn"] = None  # only an executed one can have this
    assert outputs[0] == outputs[1]
    assert str(tmp_path).encode() in outputs[0]
    assert outputs[0].endswith(b"in")


def test_a_call_that_takes_too_long_is_ended(jobctl: Jobctl) -> None:
    job = jobctl.start("sleep", "7391")
    files = {"stdin": None, "stdout": None, "stderr": None, "env": jobctl.env}
    with pytest.raises(subprocess.TimeoutExpired):
        quick.run(PROGRAM, ("wait", job), 0.3, **files)
    assert json.loads(jobctl.out("get", "-o", "jsonl"))["state"] == "Running"


def test_one_that_goes_on(jobctl: Jobctl) -> None:
    """As subprocess.Popen() has it."""
    job = jobctl.start(*sleeper().split())
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with jobctl.popen("wait", job, **pipes) as waiting:
        assert isinstance(waiting, quick.Process)
        with pytest.raises(subprocess.TimeoutExpired):
            waiting.wait(0.01)
        assert waiting.poll() is None
        os.kill(waiting.pid, 0)
        waiting.terminate()
        assert waiting.communicate() == (b"", b"")
        assert waiting.returncode == -signal.SIGTERM
    reading = jobctl.popen("start", "-q", "--stdin", "-", "cat", stdin=subprocess.PIPE, **pipes)
    assert reading.communicate(b"x", timeout=60) == (b"2\n", b"")
    assert (reading.wait(), reading.poll(), jobctl.out("receive", "-w", "2")) == (0, 0, "x")
    with jobctl.popen("get", "-o", "jsonl", stdout=subprocess.PIPE) as getting:
        assert getting.stdout
        assert json.loads(getting.stdout.readline())["id"] == job
    assert getting.returncode == 0


def test_what_shows_how_it_was_started_is_executed(jobctl: Jobctl) -> None:
    env = {"env": jobctl.env}
    assert quick.can(("get",), env)
    assert not quick.can((), env)
    assert not quick.can(("--version",), env)
    assert not quick.can(("start", "--with-parent", "true"), env)
    assert not quick.can(("get",), {"env": {**jobctl.env, "LC_ALL": "C"}})
    assert not quick.can(("get",), {**env, "preexec_fn": None})
