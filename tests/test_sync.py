"""What fails before a job is recorded leaves none; what fails afterwards takes nothing back."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from conftest import PROGRAM, Jobctl, strace, wait_until
from far import Far


def started(jobctl: Jobctl, path: Path, error: str, *words: str) -> tuple[int, str, str]:
    """Start a job while no sync of a folder succeeds; return status, output and what is said."""
    fault = ("-P", str(path), "-e", f"inject=fsync:error={error}")
    command = [*strace("fsync", *fault), PROGRAM, "start", "-q", *words]
    result = subprocess.run(
        command, env=jobctl.env, stdin=subprocess.DEVNULL, capture_output=True, check=False
    )
    return result.returncode, result.stdout.decode().strip(), result.stderr.decode()


@pytest.mark.long
@pytest.mark.parametrize("folder", ["jobs", "jobs/2"])
@pytest.mark.parametrize("kind", ["plain", "items"])
def test_a_folder_that_cannot_be_synced(
    jobctl: Jobctl, tmp_path: Path, folder: str, kind: str
) -> None:
    path, ran = jobctl.state_dir / folder, tmp_path / "ran"
    jobctl.done("true")
    words: tuple[str, ...] = ("-c", f"echo >>{ran}")
    if kind == "items":
        (tmp_path / "items").write_text("a\n")
        words = ("--foreach", str(tmp_path / "items"), *words)
    status, job, said = started(jobctl, path, "EIO", *words)
    if folder == "jobs":
        assert (status, job) == (125, "")
        assert said.endswith(": Input/output error; nothing was recorded\n")
        assert jobctl.out("get", "-q") == "1\n"
        job = "2"
    else:
        assert (status, job) == (0, "2")
        why = f"cannot sync {path}: Input/output error"
        assert said == f"jobctl: job 2 is recorded, but a power failure may undo that: {why}\n"
        jobctl.run("wait", job)
    count = len(ran.read_text()) if ran.exists() else 0
    assert count == (folder != "jobs")
    for error in ("EINVAL", "EOPNOTSUPP"):
        number = str(int(jobctl.out("get", "-q").split()[-1]) + 1)
        place = path if folder == "jobs" else path.with_name(number)
        status, job, said = started(jobctl, place, error, *words)
        assert (status, said) == (0, "")
        jobctl.run("wait", job)
        count += 1
        wait_until(lambda: len(ran.read_text()) == count)  # noqa: B023


@pytest.mark.long
def test_a_folder_of_a_job_for_a_host_that_cannot_be_synced(far: Far) -> None:
    far.run("session", "new", "web1")  # so that the agent is no child of what is traced
    far.run("get")
    words = ("-H", "web1", "echo", "x")
    status, job, said = started(far, far.state_dir / "jobs/1", "EIO", *words)
    assert (status, job) == (0, "1")
    assert said.startswith("jobctl: job 1 is recorded, but a power failure may undo that: ")
    assert far.outcome(job)[0] == "Completed"
    assert started(far, far.state_dir / "jobs", "EIO", *words)[:2] == (125, "")
    assert far.out("get", "-q") == "1\n"
