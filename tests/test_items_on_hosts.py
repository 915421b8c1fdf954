"""`start --foreach` with `--host`: items shared out among hosts, and what happens to them then."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from conftest import first_of, living_slots, processes_with, sleeper, wait_until
from far import Far
from sshd import Wire, free_port

from jobctl import quoting


def each(far: Far, items: bytes | str, hosts: str, *words: str, status: int = 0) -> str:
    """Start a job with items on hosts; return its id."""
    data = items.encode() if isinstance(items, str) else items
    start = ("start", "-q", "--foreach", "-", "-H", hosts)
    return far.out(*start, *words, input=data, status=status).strip()


def numbers(count: int) -> str:
    return "".join(f"{number}\n" for number in range(1, count + 1))


def children(far: Far, job: str) -> list[dict[str, Any]]:
    """Return the records of a job's children."""
    return far.jobs("--children", job)[1:]


def states(far: Far, job: str) -> dict[str, int]:
    return Counter(record["state"] for record in children(far, job))


def guests(far: Far) -> list[Path]:
    """Return the folders of the shares on the host."""
    return [path.parent for path in (far.there / "guest").glob("*/items")]


def slots(far: Far) -> list[int]:
    """Return the processes of the slots on the host that live."""
    return living_slots(far.there / "guest")


def test_shared_out(far: Far) -> None:
    job = each(far, numbers(30), "web[1-3]", "--per-host", "2", "-c", "echo {}; sleep 0.1")
    whole = far.job(job)
    assert (whole["type"], whole["location"], len(whole["children"])) == (
        "RemoteJob",
        "web[1-3]",
        30,
    )
    far.run("wait", job)
    records = children(far, job)
    assert {record["state"] for record in records} == {"Completed"}
    where = Counter(record["location"] for record in records)
    assert set(where) == {"web1", "web2", "web3"}
    assert min(where.values()) >= 3
    assert far.out("receive", job) == numbers(30)
    assert not far.job(job)["has_more_data"]
    assert [record["item"] for record in records] == numbers(30).split()


HOSTILE = b"\0".join([b"$(touch X)", b"'; touch X; '", b"a\nb", b"", b"-n", b"\xff", b"{}", b"*"])


def test_the_session_of_all_items_is_that_of_the_job(far: Far) -> None:
    far.run("session", "new", "web1", "--name", "s")
    far.run("start", "-q", "-s", "s", "--foreach", "-", "echo", input=b"a\nb\n")
    far.run("wait", "1")
    assert far.out("get", "-q", "--session", "s") == "1\n"
    far.run("remove", "--session", "s")
    assert far.jobs() == []


def test_items_are_passed_byte_for_byte(far: Far) -> None:
    job = each(far, HOSTILE + b"\0", "web1", "-0", "--per-host", "1", "printf", "%s\\0", "{}")
    far.run("wait", job)
    assert far.run("receive", job).stdout == HOSTILE + b"\0"


def test_the_environment(far: Far) -> None:
    text = "echo $JOBCTL_ID $JOBCTL_HOST $JOBCTL_ITEM $JOBCTL_NAME $X $JOBCTL_INSTANCE_ID"
    job = each(far, "a\n", "web2", "-n", "many", "-e", "X=y", "-c", text)
    far.run("wait", job)
    (child,) = children(far, job)
    assert far.out("receive", job) == f"1.1 web2 a many y {child['instance_id']}\n"


def test_standard_input_and_a_script(far: Far, tmp_path: Path) -> None:
    (tmp_path / "in").write_text("input\n")
    (tmp_path / "script").write_text("echo $1; cat; exit $1\n")
    words = ("--stdin", str(tmp_path / "in"), "-f", str(tmp_path / "script"))
    job = each(far, "0\n3\n", "web1", "--per-host", "1", *words)
    far.run("wait", job, status=1)
    assert far.run("receive", job).stdout == b"0\ninput\n3\ninput\n"
    assert [record["exit_code"] for record in children(far, job)] == [0, 3]


def test_output_of_any_size_and_kind(far: Far, tmp_path: Path) -> None:
    text = "head -c {} /dev/zero; head -c {} /dev/zero | tr '\\0' x >&2; echo end"
    sizes = [0, 1, 1999, 2000, 70_000, 3_000_000]
    job = each(far, "".join(f"{size}\n" for size in sizes), "web1", "-c", text)
    far.run("wait", job)
    far.run("receive", "--output-dir", str(tmp_path), job)
    for number, size in enumerate(sizes, 1):
        assert (tmp_path / f"{job}.{number}.stdout").read_bytes() == b"\0" * size + b"end\n"
        assert (tmp_path / f"{job}.{number}.stderr").read_bytes() == b"x" * size


def test_output_comes_while_it_runs(far: Far, tmp_path: Path) -> None:
    go = tmp_path / "go"
    text = f"echo begun {{}}; until [ -e {go} ]; do sleep 0.1; done; echo end {{}}"
    job = each(far, "1\n2\n", "web1", "--per-host", "2", "-c", text)
    wait_until(lambda: "begun 1" in far.out("receive", "-k", job))
    wait_until(lambda: states(far, job) == {"Running": 2})
    assert far.job(job)["state"] == "Running"
    go.touch()
    output = far.out("receive", "--wait", job)
    assert sorted(output.split("\n")) == ["", "begun 1", "begun 2", "end 1", "end 2"]


@pytest.mark.long
def test_timeout_and_retries(far: Far) -> None:
    job = each(far, "0\n600\n", "web1", "--timeout", "5", "sleep")
    far.run("wait", job, status=1)
    assert [record["reason"] for record in children(far, job)] == ["", "timed out after 5s"]
    text = "echo x; [ $(wc -l <${JOBCTL_PROGRESS%.progress}.stdout) -ge 3 ]"
    job = each(far, "a\n", "web1", "--retries", "2", "-c", text)
    far.run("wait", job)
    assert far.out("receive", job) == "x\n" * 3


def test_so_many_at_once(far: Far) -> None:
    folder = far.sshd.home / "at_once"
    folder.mkdir()
    text = ": >on.{}; ls on.* | wc -l >>counts; until [ -e go ]; do sleep 0.1; done; rm on.{}"
    job = each(far, numbers(8), "web[1-2]", "-t", "3", "-C", str(folder), "-c", text)
    wait_until(lambda: states(far, job) == {"Running": 3, "NotStarted": 5})
    (folder / "go").touch()
    far.run("wait", job)
    assert states(far, job) == {"Completed": 8}
    counts = (folder / "counts").read_text().split()
    assert len(counts) == 8
    assert max(counts) == "3"
    shutil.rmtree(folder)
    assert "--per-host needs" in far.refused(2, "start", "--per-host", "2", "-H", "web1", "true")
    both = ("--results", "remote", "--foreach", "/dev/null")
    assert "contradict" in far.refused(2, "start", *both, "-H", "web1", "true")


@pytest.mark.long
def test_an_agent_that_knows_nothing_of_the_job_yet(far: Far) -> None:
    nap = sleeper()
    job = each(far, numbers(3), "web1", "--per-host", "3", *nap.split())
    wait_until(lambda: states(far, job) == {"Running": 3})
    for words, running in (
        (("--signal", "CONT", job), 3),
        ((f"{job}.2",), 2),
        ((job,), 0),
    ):
        far.kill_agent()
        far.run("stop", *words)
        assert len(processes_with(nap)) == running
    assert states(far, job) == {"Stopped": 3}


def test_a_host_that_refuses_delays_nobody(far: Far) -> None:
    far.sshd.hosts(f"Host gone\n Port {free_port()}\n")
    job = each(far, numbers(20), "gone,web1", "--per-host", "2", "-c", "echo {}")
    far.run("wait", job)
    assert {record["location"] for record in children(far, job)} == {"web1"}
    assert sorted(far.out("receive", job).split(), key=int) == numbers(20).split()


def test_no_host_can_be_reached(far: Far) -> None:
    far.sshd.hosts(f"Host gone1 gone2\n HostName 127.0.0.1\n Port {free_port()}\n")
    job = each(far, numbers(5), "gone[1-2]", "true")
    far.run("wait", job, status=1)
    assert states(far, job) == {"Failed": 5}
    assert "onnection refused" in far.job(job)["reason"]


def test_stopping(far: Far) -> None:
    job = each(far, numbers(50), "web[1-2]", "--per-host", "2", "-c", "sleep 600 & wait")
    wait_until(lambda: states(far, job)["Running"] == 4)
    far.run("stop", f"{job}.1", f"{job}.50")
    records = children(far, job)
    assert [records[at]["state"] for at in (0, 49)] == ["Stopped"] * 2
    wait_until(lambda: states(far, job)["Running"] == 4)  # another one took its place
    far.run("stop", "--reason", "enough", job)
    assert states(far, job) == {"Stopped": 50}
    assert far.job(job)["state"] == "Stopped"
    assert records[0]["reason"] == "stopped by user"
    assert children(far, job)[10]["reason"] == "stopped by user: enough"


def test_signals(far: Far) -> None:
    job = each(far, numbers(2), "web1", "--per-host", "2", "-c", "exec sleep 600")
    wait_until(lambda: states(far, job) == {"Running": 2})
    far.run("stop", "--signal", "INT", f"{job}.1")
    wait_until(lambda: far.job(f"{job}.1")["state"] == "Stopped")
    assert far.job(f"{job}.1")["reason"] == "stopped by user: signal INT"
    far.run("stop", "--signal", "KILL", job)
    far.run("wait", job, status=1)
    assert far.job(f"{job}.2")["signal"] == 9


def test_removing(far: Far) -> None:
    job = each(far, numbers(10), "web[1-2]", "-c", "sleep 600")
    wait_until(lambda: states(far, job)["Running"] >= 2)
    assert "is Running" in far.refused(4, "remove", job)
    assert guests(far)
    far.run("remove", "--force", job)
    assert guests(far) == []
    assert not far.folder(job).exists()


def test_after_and_on_finish(far: Far, tmp_path: Path) -> None:
    go = tmp_path / "go"
    first = far.start("-c", f"until [ -e {go} ]; do sleep 0.1; done")
    said = f"echo $JOBCTL_STATE >>{tmp_path}/said"
    job = each(far, numbers(3), "web1", "--after", first, "--on-finish", said, "echo")
    wait_until(lambda: far.job(job)["reason"] == f"waiting for job {first}")
    last = far.out("start", "-q", "--after-ok", job, "true").strip()
    go.touch()
    far.run("wait", job, last)
    wait_until((tmp_path / "said").exists)
    assert (tmp_path / "said").read_text() == "Completed\n"
    never = each(far, numbers(3), "web1", "--after-ok", far.start("false"), "echo")
    far.run("wait", never, status=1)
    assert states(far, never) == {"Stopped": 3}


@pytest.mark.long
def test_a_job_that_is_being_written_is_left_alone(far: Far, tmp_path: Path) -> None:
    go = tmp_path / "go"
    first = far.out("start", "-q", "-c", f"until [ -e {go} ]; do sleep 0.1; done").strip()
    job = each(far, numbers(3), "web1", "--after", first, "echo")
    far.kill_agent()
    spec = far.folder(job) / "spec"
    spec.rename(tmp_path / "spec")  # the last that is written of a job
    far.run("wait", far.start("true"))
    assert far.agent()
    assert not (far.folder(job) / "exit").exists()
    (tmp_path / "spec").rename(spec)
    far.run("wait", far.start("true"))
    go.touch()
    far.run("wait", job)
    assert far.out("receive", job) == numbers(3)


def test_retry_failed(far: Far) -> None:
    text = "[ {} != 2 ] || [ -e $HOME/now ]"
    job = each(far, numbers(3), "web[1-2]", "--per-host", "1", "-c", text)
    far.run("wait", job, status=1)
    try:
        (far.sshd.home / "now").touch()
        again = far.out("start", "-q", "--retry-failed", job).strip()
        far.run("wait", again)
    finally:
        (far.sshd.home / "now").unlink()
    assert [record["item"] for record in children(far, again)] == ["2"]
    assert far.job(again)["location"] == "web[1-2]"


def gated(tmp_path: Path) -> str:
    """Return shell text that waits for the file `go`."""
    return f"until [ -e {tmp_path}/go ]; do sleep 0.05; done"


def test_a_session_that_is_disconnected(far: Far, tmp_path: Path) -> None:
    far.run("session", "new", "web1")
    text = f"echo {{}}; {gated(tmp_path)}; echo {{}}"
    job = each(far, numbers(6), "web1", "--per-host", "2", "-c", text)
    wait_until(lambda: states(far, job)["Running"] == 2)
    far.run("session", "disconnect", "web1")
    wait_until(lambda: far.job(job)["state"] in ("Disconnected", "Running"))
    assert "Disconnected" in states(far, job)
    (tmp_path / "go").touch()
    far.run("session", "connect", "web1")
    far.run("wait", job)
    output = far.out("receive", job)
    assert output == "".join(f"{n}\n{n}\n" for n in range(1, 7))
    far.run("session", "remove", "web1")


def test_stopping_what_cannot_be_reached(far: Far, tmp_path: Path) -> None:
    far.run("session", "new", "web1")
    job = each(far, numbers(3), "web1", "--per-host", "1", "-c", f"{gated(tmp_path)}; echo {{}}")
    wait_until(lambda: states(far, job).get("Running") == 1)
    far.run("session", "disconnect", "web1")
    assert "cannot be reached" in far.refused(5, "stop", job)
    (tmp_path / "go").touch()
    far.run("session", "connect", "web1")
    far.run("wait", job)  # it was left untouched
    assert far.out("receive", job) == "1\n2\n3\n"
    far.run("session", "remove", "web1")


# --- faults ---


@pytest.mark.long
def test_the_network_is_cut(far: Far, wire: Wire) -> None:
    text = "echo {}; sleep 0.05; seq {}000 {}400"
    job = each(far, numbers(100), "web1", "--per-host", "4", "-c", text)
    for done in (10, 40, 70):
        while states(far, job).get("Completed", 0) < done:
            time.sleep(0.1)
        wire.cut()
    far.run("wait", "--timeout", "60", job)
    expected = "".join(
        f"{n}\n" + "".join(f"{i}\n" for i in range(n * 1000, n * 1000 + 401)) for n in range(1, 101)
    )
    assert far.out("receive", job) == expected


@pytest.mark.long
@pytest.mark.parametrize("count", first_of(100, 2000))
def test_the_agent_is_killed_again_and_again(far: Far, count: int) -> None:
    """Every item runs exactly once, and every exit status is recorded."""
    ran = far.sshd.home / "ran"
    text = "echo {} >>$HOME/ran; sleep 0.1; exit $(({} % 5))"  # so that kills meet some
    job = each(far, numbers(count), "web[1-2]", "--per-host", "4", "-c", text)
    rng = random.Random(3)
    try:
        for _ in range(10):
            time.sleep(rng.uniform(0.2, 0.6))
            if far.job(job)["state"] == "Failed":
                break
            far.kill_agent()
            far.run("get", "-q", job)  # brings the next one
        far.run("wait", "--timeout", "100", job, status=1)
        assert sorted(map(int, ran.read_text().split())) == list(range(1, count + 1))
    finally:
        ran.unlink(missing_ok=True)
    assert [record["exit_code"] for record in children(far, job)] == [
        number % 5 for number in range(1, count + 1)
    ]


def test_an_agent_that_was_killed_before_the_end_was_written(far: Far) -> None:
    """All items had ended: the next agent writes it, and begins what is new beside it."""
    job = far.on("web1,web2", "--foreach", "-", "-c", "echo {}; exit {}", input=b"0\n3\n0\n")
    assert far.outcome(job)[0] == "Failed"
    ended = far.jobs("--children", job)
    far.kill_agent()
    (far.folder(job) / "exit").unlink()
    far.start("-w", "-H", "web3", "true")
    far.run("wait", job, status=1)
    again = far.jobs("--children", job)
    assert [child["state"] for child in again] == [child["state"] for child in ended]
    assert [child["ended_at"] for child in again[1:]] == [child["ended_at"] for child in ended[1:]]
    assert b"".join(sorted(far.run("receive", job).stdout.splitlines(True))) == b"0\n0\n3\n"
    assert "Traceback" not in (far.state_dir / "agent.log").read_text()


@pytest.mark.long
def test_slots_there_are_killed(far: Far, tmp_path: Path) -> None:
    ran = far.sshd.home / "ran"
    text = f"echo {{}} >>$HOME/ran; sleep 0.1; [ {{}} -lt 57 ] || {gated(tmp_path)}"
    job = each(far, numbers(60), "web1", "--per-host", "3", "-c", text)
    try:
        for _ in range(3):
            wait_until(lambda: slots(far))
            time.sleep(0.3)
            for pid in slots(far):
                os.kill(pid, signal.SIGKILL)
        (tmp_path / "go").touch()
        far.run("wait", "--timeout", "100", job, status=1)
        done = sorted(map(int, ran.read_text().split()))
    finally:
        ran.unlink(missing_ok=True)
    assert done == sorted(set(done))
    records = children(far, job)
    assert {record["reason"] for record in records} == {"", "lost: runner was killed"}
    lost = [record for record in records if record["reason"]]
    assert 1 <= len(lost) <= 12
    assert set(done) >= {int(r["item"]) for r in records if r["state"] == "Completed"}


@pytest.mark.long
def test_slots_there_are_killed_while_another_job_writes(far: Far) -> None:
    """What is lost is told also on a connection that is never idle."""
    beside = far.on("web1", "-c", "while :; do echo noise; sleep 0.02; done")
    nap = sleeper()
    job = each(far, "a\nb\n", "web1", "--per-host", "1", "-c", f"[ {{}} = b ] || exec {nap}")
    wait_until(lambda: states(far, job)["Running"] == 1)
    for pid in (*slots(far), *processes_with(nap)):
        os.kill(pid, signal.SIGKILL)
    far.run("wait", "--timeout", "30", job, status=1)
    reasons = [record["reason"] for record in children(far, job)]
    assert reasons == ["lost: runner was killed", ""]
    far.run("stop", beside)


@pytest.mark.long
def test_it_cannot_be_written_here_what_a_host_is_given(far: Far, tmp_path: Path) -> None:
    """As on a full disk; it goes on when it can be."""
    job = each(far, numbers(4), "web1", "--per-host", "1", "-c", f"{gated(tmp_path)}; echo {{}}")
    wait_until(lambda: states(far, job)["Running"] == 1)
    given = far.folder(job) / "hosts/1/given"
    given.rename(tmp_path / "given")
    given.mkdir()
    (tmp_path / "go").touch()
    wait_until(lambda: states(far, job)["Completed"] == 1)
    wait_until(lambda: not slots(far))  # as it was given none for seconds
    given.rmdir()
    (tmp_path / "given").rename(given)
    far.run("wait", "--timeout", "60", job)
    assert far.out("receive", job) == numbers(4)


def test_the_folder_there_is_removed(far: Far) -> None:
    job = each(far, numbers(4), "web1", "--per-host", "2", "-c", "exec sleep 600")
    wait_until(lambda: states(far, job)["Running"] == 2)
    (share,) = guests(far)
    running = slots(far)
    commands = [record["pid"] for record in children(far, job) if record["pid"]]
    for pid in (*running, *commands):
        os.kill(pid, signal.SIGKILL)
    (share / "spec").unlink()
    far.run("wait", "--timeout", "30", job, status=1)
    assert "was removed" in far.job(job)["reason"]


@pytest.mark.long
@pytest.mark.parametrize("what", ["connection", "agent"])
def test_the_folder_there_is_removed_while_nobody_looks(
    far: Far, tmp_path: Path, what: str
) -> None:
    """What the host was given may have begun: no host gets it. Others get the rest."""
    ran, go = tmp_path / "ran", tmp_path / "go"
    text = f"cat; echo {{}} >>{ran}; until [ -e {go} ]; do sleep 0.05; done"
    (tmp_path / "in").touch()
    words = ("--per-host", "1", "--stdin", str(tmp_path / "in"), "-c", text)
    job = each(far, numbers(5), "web1,web2", *words)
    wait_until(lambda: states(far, job)["Running"] == 2)
    if what == "connection":
        far.sshd.stop()
    else:
        far.kill_agent()
    lost = next(child for child in children(far, job) if child["location"] == "web1")
    given = (far.folder(job) / "hosts/1/given").read_text()
    share = quoting.load((far.folder(job) / "hosts/1/spec").read_bytes())["instance_id"]
    shutil.rmtree(far.there / "guest" / share.decode())
    if what == "connection":
        far.sshd.start()
    wait_until(lambda: far.job(lost["id"])["state"] == "Failed")
    go.touch()
    far.run("wait", "--timeout", "60", job, status=1)
    reason = "lost: its folder on web1 was removed"
    assert far.job(lost["id"])["reason"] == reason
    records = children(far, job)
    assert {record["reason"] for record in records} == {"", reason}
    assert states(far, job)["Failed"] == sum(int(line.split()[1]) for line in given.splitlines())
    begun = ran.read_text().split()
    assert len(begun) == len(set(begun))
    assert set(begun) >= {record["item"] for record in records if record["location"] == "web2"}
    assert not (far.there / "guest" / share.decode()).exists()


@pytest.mark.parametrize("count", first_of(60, 500))
def test_many_quick_items(far: Far, count: int) -> None:
    job = each(far, numbers(count), "web1", "--per-host", "8", "echo", "{}")
    far.run("wait", "--timeout", "60", job)
    assert far.out("receive", job) == numbers(count)


@pytest.mark.long
def test_the_connection_ends_after_the_last_item(far: Far) -> None:
    """Half a minute later; and the agent with it."""
    job = each(far, numbers(10), "web1", "true")
    far.run("wait", job)
    wait_until(lambda: far.agent() is None, 300)


def test_a_command_that_cannot_be_executed(either: Far, tmp_path: Path) -> None:
    """Each item says why in the same words, and nothing of ours is in its output."""
    script = tmp_path / "dos"
    script.write_bytes(b"#!/bin/sh\r\necho hi\n")
    script.chmod(0o755)
    words = ("--foreach", "-", "-t", "1", str(script))
    either.run("start", "-q", *either.where, *words, input=b"a\nb\nc\n", status=None)
    either.run("wait", "1", status=1)
    reason = f"command not found: {script}: its interpreter /bin/sh\\r is not there"
    children = either.jobs("--children", "1")[1:]
    assert [child["reason"] for child in children] == [reason] * 3
    told = either.run("receive", "1", status=None).stderr.decode().splitlines()
    assert told == [f"jobctl: job 1.{n} failed: {reason}" for n in (1, 2, 3)]
