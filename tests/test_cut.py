"""The process that acts on jobs is killed before it has done so: nobody takes that for done."""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import suppress

import pytest
from conftest import (
    ONE_SHELL,
    PROGRAM,
    Jobctl,
    processes_with,
    shell_words,
    sleeper,
    sleeping,
    strace,
    wait_until,
)
from far import Far
from test_bare import Bare
from test_items import each

_FINISHED = {"Completed", "Failed", "Stopped"}
REASON = "nobody else's  $(business)\\n'"
STOP = ("stop", "--grace", "50", "--reason", REASON)


def acting(job: str) -> list[int]:
    """Return the processes that end a job, or its items, by its instance id."""
    return [pid for pid in processes_with(".sh stop ") if pid in processes_with(f":{job[:-12]}")]


def cut_short(program: Jobctl | Bare, job: str, instance_id: str, *words: str) -> tuple[int, str]:
    """Kill what ends a job on behalf of a command; return the status and words of that.

    Not before the reason is written down, which another attempt would not know.
    """
    process = program.popen(*words, job, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    noted = program.folder(job) / "stop"
    wait_until(lambda: noted.read_bytes() and acting(instance_id))

    def cut() -> bool:
        for pid in acting(instance_id):
            assert pid not in processes_with(REASON)  # all can read what is on a command line
            with suppress(ProcessLookupError):  # a shell that it had made for a moment
                os.kill(pid, signal.SIGKILL)
        return process.poll() is not None

    wait_until(cut)  # setsid(1) may just have made the one that goes on
    return process.wait(60), process.communicate()[1].decode()


@pytest.mark.long
def test_what_ends_jobs_is_killed(either: Far) -> None:
    nap = sleeper()
    deaf = f"trap '' TERM; exec {nap}"
    jobs = [either.sh(deaf), each(either, "a\n", *either.where, "-c", deaf)]
    wait_until(lambda: len(sleeping(nap)) == 2)
    for job in jobs:
        instance_id = either.job(job)["instance_id"]
        # A host is told again by the agent, and the job ends.
        for words in (STOP,) if either.remote else (STOP, ("remove", "--force")):
            status, said = cut_short(either, job, instance_id, *words)
            assert status == 125, said
            assert "was killed; do it again" in said
            assert either.remote or either.state(job) not in _FINISHED
        either.run("stop", "--grace", "0", job)
        record = either.job(job)
        assert record["state"] == "Stopped"
        assert record["reason"] == f"stopped by user: {' '.join(REASON.split())}"
    assert sleeping(nap) == []


@pytest.mark.long
@pytest.mark.parametrize("shell", ONE_SHELL)
def test_what_ends_jobs_of_a_host_is_killed(jobctl: Jobctl, shell: str) -> None:
    """There the program of sh does it."""
    bare, nap = Bare(shell_words(shell), jobctl), sleeper()
    job = jobctl.sh(f"trap '' TERM; exec {nap}")
    wait_until(lambda: sleeping(nap))
    for words in (STOP, ("remove", "--force")):
        status, said = cut_short(bare, job, jobctl.job(job)["instance_id"], *words)
        assert (status, "was killed; do it again" in said) == (125, True)
        assert jobctl.state(job) not in _FINISHED


@pytest.mark.long
def test_what_sends_a_signal_is_killed(jobctl: Jobctl) -> None:
    nap = sleeper()
    jobs = [jobctl.sh(f"exec {nap}"), each(jobctl, "a\n", "-c", f"exec {nap}")]
    wait_until(lambda: len(sleeping(nap)) == 2)
    kills = strace("kill", "-e", "inject=kill:signal=KILL")
    for job in jobs:
        result = subprocess.run(
            [*kills, PROGRAM, "stop", "--signal", "CONT", job],
            env=jobctl.env,
            stderr=subprocess.PIPE,
            check=False,
        )
        assert (result.returncode, b"was killed; do it again" in result.stderr) == (125, True)
    assert len(sleeping(nap)) == 2


@pytest.mark.long
def test_a_reason_that_was_cut_short(jobctl: Jobctl) -> None:
    """Whoever was to write it was killed before: the next one's counts."""
    nap = sleeper()
    jobs = [jobctl.start(*nap.split()), each(jobctl, "a\n", "-c", f"exec {nap}")]
    wait_until(lambda: len(sleeping(nap)) == 2)
    for job in jobs:
        (jobctl.folder(job) / "stop").touch()
        jobctl.run("stop", "--reason", "enough", job)
        assert jobctl.job(job)["reason"] == "stopped by user: enough"
