"""Jobs with children on several hosts: which of them are meant, and how they are shown."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
from collections import Counter
from pathlib import Path

import pexpect
import pytest
from conftest import PROGRAM, first_of, wait_until
from far import Far
from sshd import MakeSshd, free_port


def test_filters_reach_children(far: Far) -> None:
    far.run("session", "new", "web1")
    job = far.on("web1,web2", "sleep", "600")
    alone = far.on("web3", "sleep", "600")
    far.until(job, "Running")
    assert far.out("get", "-q", "--location", "web2") == f"{job}.2\n"
    assert far.out("get", "-q", "--session", "web1") == f"{job}.1\n"
    assert far.out("get", "-q", "--location", "web2", "--newest", "1") == f"{job}.2\n"
    assert far.out("get", "-q", "--location", "web3", "--newest", "1") == f"{alone}\n"
    assert far.out("get", "-q", job, "--location", "web3") == ""
    far.run("stop", "--location", "web2")
    assert far.job(f"{job}.2")["state"] == "Stopped"
    assert far.job(f"{job}.1")["state"] == "Running"
    assert far.out("get", "-q", "--location", "web2", "--state", "Stopped") == f"{job}.2\n"
    assert "part of job" in far.refused(4, "remove", "--location", "web2")
    far.run("session", "remove", "--force", "web1")


def test_a_child_beside_its_parent(far: Far) -> None:
    job = far.on("web1,web2", "-c", "echo x")
    words = (f"{job}.2", job)
    assert far.out("wait", "-q", *words) == f"{job}\n{job}.2\n"
    assert far.out("get", "-q", *words) == f"{job}\n{job}.2\n"
    assert far.out("receive", *words) == "x\nx\n"
    far.run("remove", *words)
    assert far.jobs() == []


def test_tags_are_right_from_the_first_line_on(far: Far) -> None:
    text = "echo a; while [ ! -e go ]; do sleep 0.1; done; echo b"
    job = far.on("web1,web2", "-c", text)
    environ = {**far.env, "TERM": "xterm"}
    child = pexpect.spawn(PROGRAM, ["receive", "-w", job], env=environ, encoding="utf-8")
    for name in ("1 web1", "2 web2"):
        wait_until(lambda: far.output(f"{job}.{name[0]}"))  # noqa: B023
    (far.sshd.home / "go").touch()
    lines = sorted((child.read() or "").split("\r\n"))
    tags = [f"{job}.1 web1: ", f"{job}.2 web2: "]
    assert lines == ["", *sorted(tag + word for tag in tags for word in "ab")]
    again = pexpect.spawn(
        PROGRAM,
        ["start", "-qw", "-H", "web1,web2", "echo", "c"],
        env=environ,
        encoding="utf-8",
    )
    assert sorted((again.read() or "").split()) == sorted(
        ["c", "c", "2.1", "2.2", "web1:", "web2:"]
    )
    (far.sshd.home / "go").unlink()


def test_a_parent_has_no_exit_status_of_its_own(far: Far) -> None:
    job = far.on("web1,web2", "true")
    far.run("wait", job)
    assert far.job(job)["exit_code"] is None


def test_what_is_done_at_the_end_of_a_job_that_never_began(far: Far, tmp_path: Path) -> None:
    hook = f"echo $JOBCTL_ID $JOBCTL_STATE >>{tmp_path}/ends"
    failed = far.on("127.0.0.1:1", "--on-finish", hook, "true")
    far.run("wait", failed, status=1)
    never = far.start("--after-ok", failed, "--on-finish", hook, "true")
    far.run("wait", never, status=1)
    text = f"{failed} Failed\n{never} Stopped\n"
    wait_until(lambda: (tmp_path / "ends").exists() and (tmp_path / "ends").read_text() == text)
    result = far.run("start", "-qw", *far.where, "--after-ok", failed, "true", status=125)
    assert result.stderr.endswith(f"stopped: not begun: job {failed} did not complete\n".encode())


@pytest.mark.long
def test_each_configuration_has_its_own_hosts(
    far: Far, make_sshd: MakeSshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = make_sshd()
    mine, theirs = str(far.sshd.config), str(other.config)

    def where(*words: str) -> str:
        return far.out(*words, "-c", "echo $HOME").strip()

    started = far.start("-c", "while [ ! -e go ]; do sleep 0.1; done; echo $HOME")
    assert where("session", "run", "web1") == str(far.sshd.home)
    far.env["JOBCTL_SSH_CONFIG"] = theirs
    assert where("session", "run", "web1") == str(other.home)
    assert where("start", "-qw", "-H", "web1") == str(other.home)
    far.run("session", "new", "web1")
    # A job, and a session, go on where they began, whoever wakes the agent.
    far.kill_agent()
    (far.sshd.home / "go").touch()
    assert far.out("receive", "-w", started) == f"{far.sshd.home}\n"
    (far.sshd.home / "go").unlink()
    far.env["JOBCTL_SSH_CONFIG"] = mine
    far.kill_agent()
    far.sshd.stop()
    assert where("session", "run", "web1") == str(other.home)
    far.run("session", "remove", "1")
    far.sshd.start()
    monkeypatch.chdir(tmp_path)
    shutil.copy(mine, tmp_path / "relative")
    far.env["JOBCTL_SSH_CONFIG"] = "relative"
    assert where("session", "run", "web1") == str(far.sshd.home)


def test_receiving_what_a_disconnected_session_left(far: Far) -> None:
    far.run("session", "new", "web1", "--name", "one")
    far.run("wait", far.start("-s", "one", "seq", "3"))
    far.run("session", "disconnect", "one")
    assert far.out("session", "receive", "one") == "1\n2\n3\n"
    (record,) = json.loads(far.out("session", "get", "-o", "json", "1"))
    assert (record["name"], record["state"]) == ("one", "Opened")
    far.run("session", "remove", "1")


@pytest.mark.long
def test_adopted_jobs_that_are_finished_are_so_at_once(far: Far, second: Far) -> None:
    jobs = [far.start("seq", "1000") for _ in range(20)]
    far.run("wait", *jobs)
    listing = second.out("session", "receive", "web1", "--out-target", "job", "-o", "jsonl")
    records = [json.loads(line) for line in listing.splitlines()]
    assert [record["state"] for record in records] == ["Completed"] * 20
    assert second.run("receive", "--all").stdout.count(b"1000\n") == 20


def test_no_session_is_called_so(far: Far) -> None:
    far.run("session", "new", "web1")
    for name in ("", "z" * 5000, "77"):
        for verb in ("get", "connect", "disconnect", "remove"):
            assert "there is no session" in far.refused(3, "session", verb, name)
        assert "there is no session" in far.refused(3, "start", "-s", name, "true")
    far.run("session", "remove", "--all")


def test_node_sets(far: Far, tmp_path: Path) -> None:
    job = far.on("web[1-4]!web3", "-c", "echo $JOBCTL_HOST")
    whole, *parts = far.jobs("--children", job)
    assert whole["location"] == "web[1-2,4]"
    assert [part["location"] for part in parts] == ["web1", "web2", "web4"]
    far.run("wait", job)
    assert far.out("receive", job) == "web1\nweb2\nweb4\n"
    groups = tmp_path / ".config/clustershell"
    groups.mkdir(parents=True)
    text = "[Main]\ndefault: ours\n[ours]\nmap: [ $GROUP = odd ] && echo web[1,3]\nlist: echo odd\n"
    (groups / "groups.conf").write_text(text)
    job = far.on("@odd", "true")
    assert far.job(job)["location"] == "web[1,3]"
    assert far.out("session", "new", "-q", "web[2-3]") == "1\n2\n"
    assert [part["session"] for part in far.jobs("--children", job)[1:]] == [None, None]
    again = far.on("web[1-2],web3", "true")
    assert [part["session"] for part in far.jobs("--children", again)[1:]] == [None, "web2", "web3"]
    far.run("wait", job, again)
    far.run("session", "remove", "--all")


def test_node_sets_that_make_no_sense(far: Far) -> None:
    for hosts in (
        *("web[", "web[1-", "web[2-1]", "web[a-b]", "web[1-2]]", "@", "@nosuchgroup", "@no:such"),
        *("web[1-100000000]", "a[1-999]b[1-999]", "web[1-2],", "web[1-2];x", "[1-2]$(x)", "*"),
        *(
            "-o[1-2]",
            "web[1-2] x",
            "web[1-2]\n",
            "web[1-2],[::1]:22",
            "web1!web1",
            "web[1-2]\udcff",
        ),
    ):
        far.refused(2, "start", "-H", hosts, "true")
        far.refused(2, "session", "new", hosts)
    assert far.jobs() == []


def test_no_more_hosts_at_once_than_asked_for(far: Far, tmp_path: Path) -> None:
    go = f"until [ -e {tmp_path}/go ]; do sleep 0.05; done"
    text = f"echo + >>{tmp_path}/log; {go}; echo - >>{tmp_path}/log"
    job = far.on("web[1-4]", "-t", "2", "-c", text)

    def waits() -> bool:
        last = far.job(f"{job}.4")
        return (last["state"], last["reason"]) == ("NotStarted", "waiting for a slot")

    wait_until(waits)
    far.kill_agent()
    waiter = far.popen("wait", "-q", job, stdout=subprocess.PIPE)
    far.until(job, "Running")  # the next agent is connected
    far.until(f"{job}.2", "Running")
    (tmp_path / "go").touch()
    assert waiter.communicate()[0].decode() == f"{job}\n"
    running = most = 0
    for sign in (tmp_path / "log").read_text().split():
        running += 1 if sign == "+" else -1
        most = max(most, running)
    assert (running, most) == (0, 2)
    assert (tmp_path / "log").read_text().count("+") == 4
    job = far.on("web[1-4]", "-t", "1", "sleep", "600")
    far.until(f"{job}.1", "Running")
    far.run("stop", f"{job}.3")
    far.run("stop", f"{job}.1")
    far.until(f"{job}.2", "Running")
    far.run("stop", job)
    reasons = {child["reason"] for child in far.jobs("--children", job)[1:]}
    assert reasons == {"stopped by user"}
    far.refused(2, "start", "-t", "2", "true")
    far.refused(2, "start", "-H", "web[1-2]", "-t", "0", "true")


@pytest.mark.long
def test_hosts_that_fail_hold_up_nobody_for_ever(far: Far) -> None:
    job = far.on("127.0.0.1:1,web1,127.0.0.1:2,web2,127.0.0.1:3,web3", "-t", "1", "true")
    far.run("wait", job, "--timeout", "100", status=1)
    states = [child["state"] for child in far.jobs("--children", job)[1:]]
    assert states == ["Failed", "Completed"] * 3
    assert "connection refused" in far.job(job)["reason"]
    counts = "3 completed, 3 failed of 6: cannot connect to 127.0.0.1:1: connection refused"
    assert far.out("get", "-o", "wide", job).splitlines()[1].endswith(counts)
    job = far.on("web1,web2", "sleep", "600")
    far.until(job, "Running")
    far.run("stop", f"{job}.1")
    assert far.out("get", "-o", "wide", job).rstrip().endswith("1 running, 1 stopped of 2")


def test_outputs_are_put_together(far: Far) -> None:
    text = (
        "case $JOBCTL_HOST in web2) echo other >&2; exit 3;; web4) kill -9 $$;; esac;"
        " echo same; printf end"
    )
    job = far.on("web[1-4]", "-c", text)
    result = far.run("receive", "--gather", job, status=1)
    rule = "---------------\n"
    assert result.stdout.decode() == (
        f"{rule}web[1,3] (2)\n{rule}same\nend\n"
        f"{rule}web2: exit status 3\n{rule}"
        f"{rule}web4: killed by signal 9 (KILL)\n{rule}"
    )
    assert result.stderr == b"other\n"
    assert far.job(job)["has_more_data"] is False
    assert far.run("receive", "--gather", job, status=1).stdout == b""
    assert far.run("receive", job).stderr == b""
    again = far.run("receive", "--gather", "--again", "--stream", "stdout", job, status=1)
    assert again.stdout == result.stdout
    assert again.stderr == b""
    for words in (("--tag",), ("--output-dir", "."), ("-w", "--write-events")):
        far.refused(2, "receive", "--gather", *words, job)


def test_gathering_waits_and_loses_nothing(far: Far) -> None:
    text = "while [ ! -e go ]; do sleep 0.1; done; seq 100000"
    job = far.on("web[1-3]", "-c", text)
    assert far.out("receive", "--gather", "--timeout", "0.5", job, status=124) == ""
    words = f"{PROGRAM} receive --gather {job} | head -c 20000"
    process = subprocess.Popen(["sh", "-c", words], env=far.env, stdout=subprocess.PIPE)
    (far.sshd.home / "go").touch()
    assert process.stdout
    first = process.stdout.read().decode()
    process.wait()
    header = "---------------\nweb[1-3] (3)\n---------------\n"
    assert first.startswith(header)
    whole = "".join(f"{n}\n" for n in range(1, 100_001))
    assert far.out("receive", f"{job}.2", f"{job}.3") == whole * 2
    assert first.removeprefix(header) + far.out("receive", f"{job}.1") == whole
    assert far.out("receive", "--gather", "--auto-remove", job) == ""
    assert far.jobs() == []
    (far.sshd.home / "go").unlink()


def test_what_failed_is_run_again(far: Far, tmp_path: Path) -> None:
    script, data = tmp_path / "my script", tmp_path / "data"
    script.write_text('#!/bin/sh\ncat; echo "$JOBCTL_HOST $1 $kind"; [ $JOBCTL_HOST = web2 ]\n')
    data.write_text("some data\n")
    words = ("-n", "both", "-e", "kind=a b", "--stdin", str(data), "-f", str(script), "it's")
    job = far.on("web[1-4]", "-t", "3", *words)
    far.run("wait", job, status=1)
    script.unlink()
    data.unlink()
    said = far.refused(2, "start", "--retry-failed", job)
    assert said.endswith("the values of -e are not kept with a job; give again: kind")
    again = far.out("start", "-q", "--retry-failed", "both", "-e", "kind=c").strip()
    far.run("wait", again, status=1)
    record = far.job(again)
    assert (record["name"], record["location"]) == ("both", "web[1,3-4]")
    assert record["command"] == far.job(job)["command"]
    expected = "".join(f"some data\nweb{n} it's c\n" for n in (1, 3, 4))
    assert far.out("receive", "--stream", "stdout", again) == expected
    assert far.job(again)["children"] == [f"{again}.{n}" for n in (1, 2, 3)]
    done = far.on("web[1-2]", "true")
    far.run("wait", done)
    assert "nothing of job" in far.refused(4, "start", "--retry-failed", done)
    for options in (("-H", "web1"), ("-c", "x"), ("true",), ("-C", "/")):
        far.refused(2, "start", "--retry-failed", job, *options)
    far.refused(3, "start", "--retry-failed", "99")
    far.refused(3, "start", "--retry-failed", "nobody")


def test_one_that_failed_is_run_again_here(far: Far, tmp_path: Path) -> None:
    options = ("--init", "x=1", "--timeout", "9", "--retries", "1", "--merge", "-C", str(tmp_path))
    job = far.out("start", "-q", *options, "-c", 'echo "$x $1"; pwd >&2; exit 3', "one").strip()
    far.run("wait", job, status=1)
    again = far.out("start", "-q", "--retry-failed", job, "-n", "anew").strip()
    far.run("wait", again, status=1)
    assert far.out("receive", "--stream", "stdout", again) == f"1 one\n{tmp_path}\n" * 2
    assert far.job(again)["name"] == "anew"
    assert far.job(again)["type"] == "BackgroundJob"


@pytest.mark.long
@pytest.mark.parametrize("tens", first_of(1, 10))
def test_many_hosts_of_which_a_third_is_bad(far: Far, tens: int) -> None:
    """Each has its own reason, nobody is delayed, and the whole ends by itself."""
    silent = socket.create_server(("127.0.0.1", 0))  # takes connections and says nothing
    lines = f"Host refuse*\n HostName 127.0.0.1\n Port {free_port()}"
    lines += f"\nHost hang*\n HostName 127.0.0.1\n Port {silent.getsockname()[1]}"
    lines += "\n ConnectTimeout 3"
    config = far.sshd.hosts(*lines.split("\n"))
    config.write_text(config.read_text().replace("Host web1 web2 web3 web4", "Host web* die*"))
    text = "case $JOBCTL_HOST in die*) kill -9 $PPID $$;; esac; echo $JOBCTL_HOST"
    job = far.on(
        f"web[1-{14 * tens}],refuse[1-{2 * tens}],hang[1-{2 * tens}],die[1-{2 * tens}]", "-c", text
    )
    with silent:
        far.run("wait", "--timeout", "110", job, status=1)
    kinds = Counter[tuple[str, str]]()
    reasons = {
        "web": "",
        "refuse": "refused",
        "hang": "no answer within 3 seconds",
        "die": "lost: runner was killed",
    }
    for record in far.jobs("--children", job)[1:]:
        kind = record["location"].rstrip("0123456789")
        kinds[kind, record["state"]] += 1
        assert reasons[kind] in record["reason"], record
        assert kind != "web" or not record["reason"], record["reason"]
    assert kinds == {
        ("web", "Completed"): 14 * tens,
        ("refuse", "Failed"): 2 * tens,
        ("hang", "Failed"): 2 * tens,
        ("die", "Failed"): 2 * tens,
    }
    output = far.out("receive", job).split()
    assert sorted(output) == sorted(f"web{number}" for number in range(1, 14 * tens + 1))
    assert far.job(job)["state"] == "Failed"
