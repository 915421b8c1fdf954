"""Standard input of `jobctl start`: a script, the job's input, items, or nobody's."""

from __future__ import annotations

import os
import pty
import subprocess
from pathlib import Path

import pytest
from conftest import Jobctl, at_rest, shown, wait_until
from far import Far

from jobctl import runner

TOLD = b"jobctl: standard input is not read by the job; to give it to it, use --stdin -\r\n"


def test_a_script(either: Far) -> None:
    for contents, said in (
        (b"echo text $1 $#", "text x y 1\n"),
        (b"#!/bin/sh -u\necho script $1 $#", "script x y 1\n"),
        (b"", ""),
    ):
        job = either.done("-f", "-", "x y", input=contents)
        assert either.job(job)["state"] == "Completed"
        assert either.output(job) == said
    assert either.job(job)["command"] == "- 'x y'"
    again = either.start("-f", "-", input=b"exit 3")
    either.run("wait", again, status=1)
    job = either.out("start", "-q", "--retry-failed", again).strip()
    assert either.outcome(job) == ("Failed", "exit status 3", 3)


@pytest.mark.parametrize(
    ("words", "both"),
    [
        (("-f", "-", "--stdin", "-"), "--stdin - and -f -"),
        (("-f", "-", "--foreach", "-"), "--foreach - and -f -"),
        (("--stdin", "-", "--foreach", "-", "cat"), "--foreach - and --stdin -"),
    ],
)
def test_one_reads_it(jobctl: Jobctl, words: tuple[str, ...], both: str) -> None:
    said = jobctl.refused(2, "start", *words, input=b"true\n")
    assert said == f"jobctl: {both} contradict each other; one can read a file"
    assert not (jobctl.state_dir / "jobs").exists()


@pytest.mark.long
@pytest.mark.parametrize("redirection", ["<&-", "0>there"])
@pytest.mark.parametrize("python", [True, False])
def test_input_that_cannot_be_read(
    jobctl: Jobctl, tmp_path: Path, redirection: str, python: bool
) -> None:
    program = "jobctl" if python else f"sh {os.path.dirname(runner.SCRIPT)}/bare.sh"
    for words in (
        "start -w -f -",
        "start --stdin - cat",
        "start --foreach - echo" if python else "start -f - x",
        "get -",
        "stop -",
    ):
        text = f"{program} {words} {redirection}"
        result = subprocess.run(["sh", "-c", text], env=jobctl.env, cwd=tmp_path, stderr=-1)
        said = b"jobctl: cannot read '-': standard input is not open for reading"
        assert (result.returncode, result.stderr.strip().partition(b";")[0]) == (2, said), text
    assert jobctl.out("get", "-q") == ""
    text = f"{program} start -w -q echo x {redirection}"
    assert subprocess.check_output(["sh", "-c", text], env=jobctl.env, cwd=tmp_path) == b"x\n"


def test_input_that_nobody_reads(jobctl: Jobctl, tmp_path: Path) -> None:
    (tmp_path / "input").write_bytes(b"echo x\n")
    (tmp_path / "empty").touch()
    (tmp_path / "-").write_bytes(b"true")

    def told(*words: str, path: str = "input", at: int = 0) -> bytes:
        """Start a job with a terminal for errors; return what is said there."""
        leader, terminal = pty.openpty()
        with open(tmp_path / path, "rb", buffering=0) as source:
            source.seek(at)
            jobctl.run("start", "-q", *words, stdin=source, stderr=terminal, cwd=tmp_path)
        os.close(terminal)
        said = b""
        try:
            while piece := os.read(leader, 4096):
                said += piece
        except OSError:  # all have closed it
            pass
        os.close(leader)
        return said

    assert told("sh") == TOLD
    assert told("-w", "sh") == TOLD
    assert told("-f", "./-") == TOLD
    for words in (("--stdin", "-", "sh"), ("--stdin", "empty", "sh"), ("-f", "-")):
        assert told(*words) == b""
    assert told("--foreach", "-", "echo") == b""
    # That of a loop, none, and nothing.
    assert told("sh", at=3) == told("sh", path="empty") == told("sh", path="/dev/null") == b""
    assert jobctl.run("start", "-q", "sh", input=b"echo x\n").stderr == b""


def test_a_pipe_that_nobody_reads(jobctl: Jobctl) -> None:
    leader, terminal = pty.openpty()
    jobctl.run("start", "-q", "sh", input=b"echo x\n" * 20_000, stderr=terminal)
    assert shown(leader) == TOLD
    jobctl.run("start", "-q", "sh", input=b"", stderr=terminal)
    reading, writing = os.pipe()
    with open(reading, "rb"), open(writing, "wb"):  # nothing is in there yet
        jobctl.run("start", "-q", "sh", stdin=reading, stderr=terminal)
    jobctl.run("start", "-q", "no such", status=1, stderr=terminal)
    assert shown(leader).startswith(b"jobctl: job 4 failed")
    os.close(leader)
    os.close(terminal)


def test_input_that_is_not_blocking(jobctl: Jobctl) -> None:
    """Whoever called us may have left it so: what reads waits for it."""
    for words, wanted in (
        (["start", "-w", "-q", "-f", "-"], b"sh"),
        (["start", "-w", "-q", "--stdin", "-", "cat"], b"echo sh\n"),
        (["start", "-w", "-q", "-t", "1", "--foreach", "-", "echo"], b"echo sh\n"),
        (["get", "-q", "-", "1"], b"1\n"),
    ):
        reader, writer = os.pipe()
        os.set_blocking(reader, False)
        process = jobctl.popen(*words, stdin=reader, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        os.close(reader)
        at_rest(process)
        with open(writer, "wb") as file:
            file.write(b"1\n" if words[0] == "get" else b"echo sh\n")
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out.strip(), err) == (0, wanted.strip(), b""), words


@pytest.mark.parametrize("option", ["--foreach", "--stdin"])
def test_input_that_comes_late(either: Far, option: str) -> None:
    """No command takes the start for one that was killed, however long it reads."""
    words = [*either.where, option, "-", "cat"]
    start = either.popen("start", "-q", *words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    folder = either.folder("1")
    wait_until(folder.is_dir)
    at_rest(start)
    os.utime(folder, (0, 0))
    assert either.out("get", "-q") == ""
    out, _ = start.communicate(b"a\n")
    assert (start.returncode, out) == (0, b"1\n")
    either.run("wait", "1", status=None)
    assert folder.exists()
