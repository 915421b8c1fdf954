"""A job whose removal is cut short is whole, or gone; the next command ends what was begun."""

from __future__ import annotations

import subprocess

import pytest
from conftest import ONE_SHELL, PROGRAM, Jobctl, shell_words, strace
from test_bare import SCRIPT
from test_items import each


@pytest.mark.long
@pytest.mark.parametrize("program", ["jobctl", *ONE_SHELL])
def test_a_removal_that_is_cut_short(jobctl: Jobctl, program: str) -> None:
    """At each call by which something of it goes."""
    words = [PROGRAM] if program == "jobctl" else [*shell_words(program), SCRIPT]
    folder = jobctl.state_dir / "jobs"
    removed = []
    for when in (1, 2, 3, 5, 40):
        if program == "jobctl" and when % 2:
            job = each(jobctl, "a\nb\n", "echo", "x")
            jobctl.run("wait", job)
        else:
            job = jobctl.done("echo", "x")
        jobctl.run("get", "-q")
        before = {path.relative_to(folder / job) for path in (folder / job).rglob("*")}
        calls = "/^(rename|unlink|rmdir).*"
        killed = strace(calls, "-e", f"inject={calls}:signal=KILL:when={when}")
        result = subprocess.run([*killed, *words, "remove", job], env=jobctl.env, check=False)
        if listed := jobctl.out("get", "-q").split():
            assert listed == [job]
            assert {path.relative_to(folder / job) for path in (folder / job).rglob("*")} == before
            assert jobctl.out("receive", "--again", job).count("x") in (1, 2)
            jobctl.run("remove", job)
        else:
            removed.append(when)
        jobctl.run("get")
        assert [*folder.iterdir()] == []
        assert bool(listed) <= (result.returncode != 0)
    assert removed[0] > 1
    assert len(removed) > 2
