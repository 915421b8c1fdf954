"""Hosts whose clock is wrong: no time that is shown or compared is theirs."""

from __future__ import annotations

import json
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from conftest import false_clock, first_of, wait_until
from far import Far
from sshd import MakeSshd
from test_session import Make, make_far

from jobctl import process, quoting
from jobctl.carried import Carried
from jobctl.folder import Folder
from jobctl.share import FarTask
from jobctl.timing import Clocks, Moment

pytest_plugins = ("sshd", "far")
__all__ = ["make_far"]


def at_other_time(make_far: Make, make_sshd: MakeSshd, offset: str) -> Far:
    """Return a computer, and a host where it is another time."""
    program = make_far(make_sshd(environ=false_clock(offset)))
    there = float(program.out("session", "run", "web1", "--", "date", "+%s"))
    assert abs(there - time.time()) > 10_000
    return program


def seconds(text: str) -> float:
    """Return what RFC 3339 means, since 1970."""
    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()


LATE = 600.0
"""How late (seconds) a busy machine may read what time it is there; the clocks are hours apart."""


def timely(record: dict[str, Any], since: float) -> None:
    """Fail unless all times of a record are between one and now, as far as can be known."""
    times = [record[key] for key in ("created_at", "began_at", "ended_at") if record[key]]
    assert times
    for text in times:
        assert since - 1 < seconds(text) < time.time() + LATE, record
    assert times == sorted(times) or seconds(times[-1]) > seconds(times[-2]) - 0.1


def elapsed(far: Far, *words: str) -> list[float]:
    """Return what `get -o wide` says of how long jobs have been running, in seconds."""
    lines = far.out("get", "-o", "wide", *words).splitlines()
    at = lines[0].index("Elapsed")
    return [
        float(line[at:].split()[0].removesuffix("s")) for line in lines[1:] if line[at:].strip()
    ]


@pytest.mark.long
@pytest.mark.parametrize("offset", first_of("-3h", "+3h"))
def test_jobs_on_a_host(make_sshd: MakeSshd, make_far: Make, tmp_path: Path, offset: str) -> None:
    far, since = at_other_time(make_far, make_sshd, offset), time.time()
    plain = far.on("web1", "true")
    stays = far.on("web1", "--results", "remote", "echo", "x")
    several = far.on("web2,web3", "true")
    (tmp_path / "items").write_text("a\nb\n")
    task = far.on("web1,web4", "--foreach", str(tmp_path / "items"), "true")
    far.run("wait", "--all", "--timeout", "60")
    last = far.out("start", "-q", "true").strip()
    far.run("wait", last)
    running = far.on("web1", "sleep", "7341")
    both = far.on("web2,web3", "sleep", "7342")
    items = far.on("web1", "--foreach", str(tmp_path / "items"), "-c", "sleep 7343")
    for job in (running, f"{both}.1", f"{both}.2", f"{items}.1"):
        far.until(job, "Running")
    records = json.loads(far.out("get", "--children", "-o", "json"))
    assert len(records) == 8 + 2 * 4
    for record in records:
        timely(record, since)
    # What has just ended is neither old nor of the future; the last to end is the newest.
    far.out("remove", "--all", "--older-than", "1h")
    finished = [plain, stays, several, task, last]
    assert far.out("get", "-q", "--after", "1h").split() == finished
    assert far.out("get", "-q", "--before", "1h").split() == []
    unfinished = [running, both, items]
    assert far.out("get", "-q", "--newest", "4").split() == [last, *unfinished]
    assert max(elapsed(far, "--children")) < time.time() - since + LATE


@pytest.mark.long
def test_what_is_there(make_sshd: MakeSshd, make_far: Make) -> None:
    far, since = at_other_time(make_far, make_sshd, "-3h"), time.time()
    for name in ("first", "second"):
        far.run("session", "run", "web1", "--", "jobctl", "start", "-w", "-q", "-n", name, "true")
    far.run("session", "run", "web1", "--", "jobctl", "start", "-q", "-n", "third", "sleep", "7344")
    found = json.loads(far.out("session", "get", "--on", "web1", "-o", "json"))
    assert [record["name"] for record in found] == ["first", "second", "third"]
    for record in found:
        timely(record, since)
    adopted = far.out("session", "receive", "web1", "--out-target", "job", "-q").split()
    far.until(adopted[2], "Running")
    for record in json.loads(far.out("get", "-o", "json")):
        timely(record, since)
    far.out("remove", "--all", "--older-than", "1h")
    assert far.out("get", "-q").split() == adopted
    assert max(elapsed(far)) < time.time() - since + LATE


def test_what_ended_while_the_host_was_away(far: Far) -> None:
    job = far.on("web1", "-c", "while [ ! -e go7345 ]; do sleep 0.05; done")
    far.until(job, "Running")
    guest = far.guest(job)
    far.kill_agent()
    (far.sshd.home / "go7345").touch()
    wait_until(lambda: (guest / "exit").exists() and (guest / "exit").stat().st_size)
    (far.sshd.home / "go7345").unlink()
    # How late we read the clock there is how late the job there ended for us.
    gate = far.state_dir.parent / "gate"
    here = far.out("start", "-q", "-c", f"until [ -e {gate} ]; do sleep 0.05; done").strip()
    far.run("wait", job)
    gate.touch()
    far.run("wait", here)
    assert far.out("get", "-q", "--newest", "1").split() == [here]


def test_a_moment_there_is_known_here() -> None:
    then = Moment(1000.0, 50.0, "b")
    clocks = Clocks(Moment(1000.0, 60.0, "b"), Moment(9000.0, 7.0, "ours"))
    # By the clock since boot, whatever was set; by the other one where that is not known.
    assert clocks.ours(then) == Moment(8990.0, -3.0, "ours")
    assert clocks.ours(Moment(900.0, 50.0, "other")) == Moment(8900.0, -93.0, "ours")
    assert clocks.ours(Moment(900.0, None, "b")) == Moment(8900.0, -93.0, "ours")
    assert clocks.ours(Moment(None, None, "")) == Moment(None, None, "")
    # Our own clock may be set while the connection stands.
    assert clocks.renewed(Moment(9002.0, 8.5, "ours")) == clocks
    renewed = clocks.renewed(Moment(19_001.0, 8.0, "ours"))
    assert renewed.ours(then) == Moment(18_990.0, -3.0, "ours")
    assert clocks.renewed(Moment(19_001.0, 8.0, "another")) == clocks
    assert Moment(5.0, 3.0, "b").took(Moment(900.0, 1.0, "b")) == 2.0
    assert Moment(5.0, 3.0, "c").took(Moment(900.0, 1.0, "b")) == 0.0


DAMAGES = {
    "Foo": b"state='Foo'\n",
    "garbage": b"\x00\xff' garbage",
    "open": b"state='Completed\n",
    "unfinished": b"state='Running'\nended='nan'\n",
    "empty": b"\n",
}


def test_what_is_damaged_there(far: Far) -> None:
    for name in ("whole", *DAMAGES):
        far.start("-n", name, "true")
    far.run("wait", "--all")
    for name, content in DAMAGES.items():
        (far.guest(name) / "exit").write_bytes(content)
    odd = far.done("true")
    path = far.guest(odd) / "spec"
    spec = quoting.load(path.read_bytes())
    amiss = {"name": b"odd", "created": b"inf", "instance_id": b"../..", "words": b"'"}
    path.write_bytes(quoting.dump(spec | amiss))
    found = json.loads(far.out("session", "get", "--on", "web1", "-o", "json"))
    ends = {record["name"]: (record["state"], record["reason"]) for record in found}
    damaged = ("Failed", "damaged: the file exit cannot be read")
    fine = ("Completed", "")
    assert ends == {"whole": fine, "odd": fine, **dict.fromkeys(DAMAGES, damaged)}
    far.out("session", "receive", "web1")
    assert {job["state"] for job in far.jobs()} == {"Completed"}


def test_what_is_damaged_there_can_be_taken_over(far: Far, second: Far) -> None:
    job = far.done("-n", "broken", "echo", "x")
    (far.guest(job) / "exit").write_bytes(DAMAGES["Foo"])
    (adopted,) = second.out("session", "receive", "web1", "--out-target", "job", "-q").split()
    assert second.outcome(adopted)[:2] == ("Failed", "damaged: the file exit cannot be read")
    assert second.out("receive", adopted) == "x\n"


def test_a_host_that_is_restarted_with_another_time(tmp_path: Path) -> None:
    """Its clock was three hours behind until then: what it wrote before is told as it was."""
    now = process.now()
    assert now.time is not None
    assert now.uptime is not None
    before = Clocks(Moment(now.time - 10_800, 5000.0, "a"), now)
    after = Clocks(Moment(now.time + 60, 20.0, "b"), now.later(60.0))
    began = {"began": b"%.2f" % (now.time - 10_802), "began_uptime": b"4998.0", "boot": b"a"}
    ended = {"ended": b"%.2f" % (now.time - 10_795), "ended_uptime": b"5005.0", "boot": b"a"}
    folder = Folder(str(tmp_path / "jobs/1"))
    Path(folder.path).mkdir(parents=True)
    job = Carried(folder)
    told = quoting.dump({"runner": b"7", "host": b"h", "pid": b"8", "ticks": b"9", **began})
    for clocks in (before, after):
        job.note_host("h", clocks)
        job.note_run(told)
        run = quoting.load((tmp_path / "jobs/1/run").read_bytes())
        assert float(run["began"]) == pytest.approx(now.time - 2, abs=0.1)
    job.finish(quoting.dump({"state": b"Completed", "code": b"0", **ended}))
    end = quoting.load((tmp_path / "jobs/1/exit").read_bytes())
    assert float(end["ended"]) == pytest.approx(now.time + 5, abs=0.1)
    share = FarTask(str(tmp_path / "jobs/2")).share(1)
    Path(share.path).mkdir(parents=True)
    for clocks in (before, after, after):
        share.note_host("h", clocks)
    for boot, passed in (("a", 5), ("b", 5)):
        share.forget()
        known = share.clocks(boot)
        assert known
        at = known.there.later(passed)
        ours = known.ours(at).time
        assert ours == pytest.approx(now.time + passed + (60 if boot == "b" else 0), abs=0.1)
