"""`stop` of jobs on hosts that are not there, or tell nothing back, when they are to be told."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import at_rest, first_of, sleeper, sleeping, wait_until
from far import Far
from sshd import MakeSshd, Wire

WAYS: dict[str, Callable[[Far, Wire], object]] = {
    "cut": lambda far, wire: wire.cut(),
    "killed": lambda far, wire: far.kill_agent(),
}
"""How it comes that nobody hears what the host answers."""


def share_of(far: Far) -> Path:
    """Return the folder of the only share on the host."""
    (found,) = (far.there / "guest").glob("*/items")
    return found.parent


def outputs(folder: Path) -> dict[str, bytes]:
    """Return what all items in the folder of a job, or of a share, have written."""
    children = folder / "children"
    files = (*children.glob("*.stdout"), *children.glob("*/stdout"))
    found = {
        path.relative_to(children).parts[0].partition(".")[0]: path.read_bytes() for path in files
    }
    return {number: text for number, text in found.items() if text}


def items(far: Far, text: str) -> str:
    """Start a job with 50 items, two of which run at once; return its id."""
    words = ("start", "-q", "--foreach", "-", "-H", "web1", "--per-host", "2", "-c", text)
    return far.out(*words, input="".join(f"{n}\n" for n in range(1, 51)).encode()).strip()


def test_the_answer_to_stop_comes_after_all_output(far: Far, wire: Wire, tmp_path: Path) -> None:
    nap = sleeper()
    job = items(far, f"until [ -e {tmp_path}/go ]; do sleep 0.05; done; echo {{}}; {nap}")
    wait_until(lambda: [r["state"] for r in far.jobs("--children", job)].count("Running") >= 2)
    wire.latency = 0.3
    (tmp_path / "go").touch()
    wait_until(lambda: sum(map(len, outputs(share_of(far)).values())) == 4)
    far.run("stop", job)
    wire.latency = 0.0
    assert far.out("receive", job, status=None) == "1\n2\n"
    assert {record["state"] for record in far.jobs("--children", job)} == {"Stopped"}
    assert sleeping(nap) == []


@pytest.mark.long
@pytest.mark.parametrize("way", first_of("killed", "cut"))
def test_what_was_asked_of_a_host_is_done(far: Far, wire: Wire, way: str) -> None:
    text = "trap '' TERM; while :; do echo {}; sleep 0.1; done"
    job, single = items(far, text), far.start("-c", text)
    wait_until(lambda: [r["state"] for r in far.jobs("--children", job)].count("Running") >= 2)
    stop = far.popen("stop", "--grace", "3", job, single, stderr=subprocess.PIPE)
    share, guest = share_of(far), far.guest(single)
    wait_until(lambda: (share / "stop").exists())
    WAYS[way](far, wire)
    _, told = stop.communicate()
    assert stop.returncode == (5 if way == "cut" else 125), told
    assert far.run("wait", "--timeout", "60", job, single, status=None).returncode == 1
    assert {record["state"] for record in far.jobs("--children", job)} == {"Stopped"}
    assert far.job(single)["state"] == "Stopped"
    assert outputs(far.folder(job)) == outputs(share)
    assert far.output(single) == (guest / "stdout").read_text()


def test_stopping_is_not_forgotten_with_the_agent(far: Far, wire: Wire) -> None:
    nap = sleeper()
    job = far.start(*nap.split())
    wait_until(lambda: sleeping(nap))
    far.kill_agent()
    wire.freeze()
    stop = far.popen("stop", job, stderr=subprocess.DEVNULL)
    wait_until((far.folder(job) / "stop").exists)
    far.kill_agent()
    wire.thaw()
    stop.wait()
    far.run("wait", "--timeout", "60", job, status=1)
    assert (far.job(job)["state"], sleeping(nap)) == ("Stopped", [])


@pytest.mark.long
def test_a_request_is_a_use_of_the_connection(far: Far) -> None:
    """A connection without jobs is kept for 30 seconds; this takes longer from its last job on."""
    nap = sleeper()
    left = f'trap "" TERM; (trap "" TERM; exec {nap}) >/dev/null 2>&1 & exit 0'
    job = far.start("-c", left)
    far.run("wait", job)
    far.run("stop", "--grace", "33", job)
    assert sleeping(nap) == []


@pytest.mark.long
def test_one_of_two_hosts_is_away(far: Far, make_sshd: MakeSshd) -> None:
    nap, server = sleeper(), make_sshd()
    far.sshd.hosts(*server.hosts().read_text().replace("Host web1", "Host other").splitlines())
    words = ("start", "-q", "--foreach", "-", "-H", "web1,other", "--per-host", "1")
    job = far.out(*words, "-c", nap, input=b"1\n2\n").strip()
    wait_until(lambda: len(sleeping(nap)) == 2)
    server.stop()
    assert "the rest is stopped as soon as it can be" in far.refused(5, "stop", job)
    server.start()
    far.run("wait", "--timeout", "60", job, status=1)
    assert sleeping(nap) == []
    server.stop()
    far.run("remove", job, status=5)
    server.start()
    far.run("remove", job)
    assert far.jobs() == []


@pytest.mark.long
def test_a_second_stop_takes_nothing_back(far: Far, wire: Wire) -> None:
    """The first one went out, and had no answer: the second one could not be told to the host."""
    plain = far.start(*sleeper().split())
    items = far.start("--foreach", "-", "sh", "-c", f"exec {sleeper()}", input=b"a\n")
    far.until(plain, "Running")
    far.until(f"{items}.1", "Running")
    for job in (plain, items):
        sent = wire.sent
        with far.popen("stop", "--grace", "0", job, stderr=subprocess.PIPE) as first:
            # Nothing comes back of what it asks.
            wire.freeze()
            wait_until(lambda: far.folder(job).joinpath("stop").exists())  # noqa: B023
            at_rest(first)
            wire.cut()
            far.sshd.stop()
            wire.thaw()
            assert first.stderr
            said = first.stderr.read()
        assert b"as soon as it can be" in said, (said, sent)
        assert "as soon as it can be" in far.refused(5, "stop", job)
        assert far.folder(job).joinpath("stop").exists()
        far.sshd.start()
        assert far.outcome(job)[:2] == ("Stopped", "stopped by user")
