"""Jobs on hosts, as a user calls for them; what jobs here do too is asked of both."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from conftest import ENDS, PROGRAM, WEIRD, at_home, at_rest, processes_with, sleeper, wait_until
from far import Far
from sshd import free_port

from jobctl import draft
from jobctl.jobs import Jobs
from jobctl.model import JobSpec, Place
from jobctl.target import Target

IGNORES_TERM = "trap '' TERM; echo ready; sleep 600 & wait; sleep 600; sleep 600"


# --- the same wherever a job runs ---


def test_ends(either: Far) -> None:
    jobs = [either.sh(text) for text in ENDS]
    either.run("wait", *jobs, status=1)
    for job, end in zip(map(either.job, jobs), ENDS.values(), strict=True):
        assert (job["state"], job["reason"], job["exit_code"], job["signal"]) == end
        assert isinstance(job["pid"], int)
        assert job["created_at"] <= job["began_at"] <= job["ended_at"]


def test_signals_have_their_default_action(either: Far) -> None:
    lines = either.out("receive", either.done("cat", "/proc/self/status")).splitlines()
    masks = dict(line.split(":\t") for line in lines)
    assert {masks[name] for name in ("SigBlk", "SigIgn", "SigCgt")} == {"0" * 16}


def test_what_cannot_be_started(either: Far, tmp_path: Path) -> None:
    job = either.start("foo", status=0 if either.remote else 1)
    assert either.outcome(job) == ("Failed", "command not found: foo", 127)
    job = either.start("/", status=0 if either.remote else 1)
    assert either.outcome(job) == ("Failed", "cannot execute /: it is a directory", 126)
    job = either.start("cd /tmp;ls", status=0 if either.remote else 1)
    reason = "command not found: cd /tmp;ls; use -c for shell text"
    assert either.outcome(job) == ("Failed", reason, 127)
    script = tmp_path / "script"
    for contents, status, reason in (
        (
            b"#!/no/sh\r\n",
            127,
            f"command not found: {script}: its interpreter /no/sh\\r is not there",
        ),
        (
            b"\0\1\2",
            126,
            f"cannot execute {script}: exec format error: it is not a program for this system",
        ),
    ):
        script.write_bytes(contents)
        job = either.start("-f", str(script), status=0 if either.remote else 1)
        assert either.outcome(job) == ("Failed", reason, status)
    assert either.output(either.done("-f", "/bin/echo", "hi")) == "hi\n"


def test_a_host_that_is_also_a_file(far: Far, tmp_path: Path) -> None:
    (tmp_path / "web1").touch()
    (tmp_path / "web").touch()
    told = "jobctl: host web1 is also a file here; if you wrote a node set, quote it: 'web[1-3]'\n"
    for words, said in {
        ("start", "-q", "-H", "web1", "true"): told,
        ("start", "-q", "-H", "web2", "-H", "web1", "true"): told,
        ("start", "-q", "-H", "web[1-2]", "true"): "",
        ("start", "-q", "-H", "web1,web2", "true"): "",
        ("start", "-q", "-H", "web2", "true"): "",
        ("session", "run", "web1", "echo"): told,
        ("session", "get", "-q", "--on", "web1"): told,
        ("session", "new", "-q", "web1"): told,
        ("session", "run", "web1", "--", "echo"): "",  # it is the session that is meant
    }.items():
        result = far.run(*words, cwd=tmp_path)
        assert result.stderr.decode() == said
    far.run("start", "-q", "-H", "web", "true", cwd=tmp_path)


def test_a_directory_that_is_not_there(far: Far) -> None:
    said = "; ~ is not replaced, and what does not begin with / is in the home directory"
    for directory, why in (("~/x", said), ("no/such", "")):
        outcome = ("Failed", f"cannot enter directory: {directory}{why}", 126)
        assert far.outcome(far.on("web1", "-C", directory, "true")) == outcome


def test_one_host_where_one_is_meant(far: Far) -> None:
    one = "is a set of hosts, and this takes one; for several, use 'jobctl start -H'"
    for to, said in {
        "@web": f"'@web' {one}",
        "web[1-2]": f"'web[1-2]' {one}",
        "web1,web2": f"'web1,web2' {one}",
        "web1@": "host name missing in 'web1@'",
        "web1;\udcff": r"not a host name: 'web1;\xff'",
    }.items():
        for words in (
            ("run", to, "true"),
            ("get", "--on", to),
            ("receive", to),
        ):
            assert far.refused(2, "session", *words) == f"jobctl: {said}"
    assert far.refused(2, "start", "-H", "x@:22", "true") == "jobctl: host name missing in 'x@:22'"
    assert far.refused(2, "start", "-H", "h\udcff", "true") == "jobctl: not a host name: 'h\\xff'"
    assert far.agent() is None


def test_records(either: Far) -> None:
    job = either.job(either.done("-n", "a name", "echo", "x y"))
    assert (
        list(job)
        == (
            "id name instance_id type state reason exit_code signal has_more_data location session"
            " command argv cwd pid item created_at began_at ended_at progress parent children"
        ).split()
    )
    assert (job["type"], job["location"]) == (
        ("RemoteJob", "web1") if either.remote else ("BackgroundJob", "localhost")
    )
    assert (job["name"], job["command"], job["argv"]) == ("a name", "echo 'x y'", ["echo", "x y"])
    assert job["session"] is job["item"] is job["parent"] is None
    assert job["children"] == []
    assert job["has_more_data"]
    assert either.run("receive", "a name").stdout == b"x y\n"
    assert not either.job(job["id"])["has_more_data"]
    assert either.out("get", "-q", "--location", job["location"]).strip() == job["id"]


def test_arguments_are_not_touched(either: Far) -> None:
    words = [WEIRD.encode(), b"", b"\xff\xfe", b"\n", b"\n\n'", b"-n", b"x" * 100_000]
    job = either.done("printf", r"%s\0", *words)
    assert either.run("receive", job).stdout.split(b"\0")[:-1] == words
    assert [os.fsencode(word) for word in either.job(job)["argv"][2:]] == words


def test_environment(either: Far, tmp_path: Path) -> None:
    env = either.env | {"GIVEN": WEIRD, "SECRET_HERE": "1"}
    options = ("-e", "A=1=2", "-e", "GIVEN", "-e", "E=", "-e", "odd.name=x", "-n", "na me")
    job = either.done(*options, "env", "-0", env=env)
    lines = either.out("receive", job).split("\0")
    record = either.job(job)
    for pair in (
        *("A=1=2", f"GIVEN={WEIRD}", "E=", "odd.name=x"),
        *(f"JOBCTL_ID={job}", "JOBCTL_NAME=na me", f"JOBCTL_INSTANCE_ID={record['instance_id']}"),
        f"JOBCTL_HOST={record['location']}",
    ):
        assert pair in lines
    assert ("SECRET_HERE=1" in lines) is not either.remote
    assert not any(line.startswith(("JOBCTL_RUNNER=", "OLDPWD=")) for line in lines)


def test_where_it_runs(either: Far, tmp_path: Path) -> None:
    home = either.sshd.home if either.remote else tmp_path
    (home / "some dir").mkdir(exist_ok=True)
    jobs = [
        either.start("pwd", cwd=tmp_path),
        either.start("-C", "some dir", "pwd", cwd=tmp_path),
        either.start("-C", "/usr", "pwd"),
    ]
    either.run("wait", *jobs)
    assert either.out("receive", *jobs) == f"{home}\n{home}/some dir\n/usr\n"
    if either.remote:
        job = either.start("-C", "/no/such", "pwd")
        assert either.outcome(job) == ("Failed", "cannot enter directory: /no/such", 126)
    else:
        either.refused(2, "start", "-C", "/no/such", "pwd")


def test_shell_text_and_scripts(either: Far, tmp_path: Path) -> None:
    script, bare = tmp_path / "script", tmp_path / "bare"
    script.write_text('#!/bin/bash\nset -u; a=(x y); echo ${a[1]} "$1"')
    bare.write_text("echo bare $1")
    jobs = [
        either.start("-c", 'echo "$1-$2"', "a b", "c"),
        either.start("--init", "X='1 2'; export X", "-c", 'echo "$X" "$1"', "arg"),
        either.start("--init", "X=3; export X", "printenv", "X"),
        either.start("-f", str(script), "a  b"),
        either.start("-f", str(bare), "arg"),
    ]
    script.unlink()
    bare.unlink()
    either.run("wait", *jobs)
    assert either.out("receive", *jobs) == "a b-c\n1 2 arg\n3\ny a  b\nbare arg\n"


def test_standard_input(either: Far, tmp_path: Path) -> None:
    data = os.urandom(3_000_000)
    (tmp_path / "in").write_bytes(data)
    job = either.done("--stdin", str(tmp_path / "in"), "cat")
    assert either.run("receive", job).stdout == data
    job = either.start("--stdin", "-", "-c", "cat; cat >&2", input=data)
    assert either.outcome(job) == ("Completed", "", 0)
    assert either.run("receive", job).stdout == data
    job = either.done("cat", input=b"not for the job")
    assert either.run("receive", job).stdout == b""


def test_both_streams_and_merged(either: Far) -> None:
    text = "for i in 1 2 3; do echo out$i; echo err$i >&2; done; printf 'no end'"
    jobs = [either.sh(text), either.sh(text, "--merge")]
    either.run("wait", *jobs)
    result = either.run("receive", jobs[0])
    assert result.stdout == b"out1\nout2\nout3\nno end"
    assert result.stderr == b"err1\nerr2\nerr3\n"
    result = either.run("receive", jobs[1])
    assert result.stdout == b"out1\nerr1\nout2\nerr2\nout3\nerr3\nno end"
    assert result.stderr == b""


def test_timeout_and_retries(either: Far) -> None:
    slow = either.start("--timeout", "0.3", "sleep", "600")
    again = either.sh("echo x; [ $(wc -l <tries) -ge 0 ]; exit 4", "--retries", "2")
    assert either.outcome(slow) == ("Failed", "timed out after 0.3s", None)
    assert either.outcome(again) == ("Failed", "exit status 4", 4)
    assert either.out("receive", again) == "x\nx\nx\n"


def test_progress(either: Far) -> None:
    job = either.sh("echo '42 down loading' >$JOBCTL_PROGRESS; sleep 600")
    shown = wait_until(lambda: either.job(job)["progress"])
    assert shown == {"percent": 42.0, "message": "down loading"}


def test_stop(either: Far) -> None:
    nap = sleeper()
    stubborn = either.sh(IGNORES_TERM)
    hidden = either.sh(f"setsid {nap} & (setsid {nap} &); echo ready; {nap}")
    ended = either.sh(f"setsid {nap} >/dev/null 2>&1 & echo ready")
    jobs = (stubborn, hidden, ended)
    wait_until(lambda: [either.output(job) for job in jobs] == ["ready\n"] * 3)
    either.run("wait", ended)
    either.run("stop", "--grace", "0.1", "--reason", "en\nough", stubborn, hidden, ended)
    for job in (stubborn, hidden):
        record = either.job(job)
        assert (record["state"], record["reason"]) == ("Stopped", "stopped by user: en ough")
        assert not Path(f"/proc/{record['pid']}").exists()
    assert either.state(ended) == "Completed"
    assert processes_with(nap) == []


def test_signals(either: Far) -> None:
    job = either.sh("trap 'echo got' USR1; echo ready; while :; do sleep 0.05; done")
    wait_until(lambda: either.output(job) == "ready\n")
    either.run("stop", "--signal", "STOP", job)
    either.until(job, "Suspended")
    either.run("stop", "--signal", "CONT", job)
    either.until(job, "Running")
    either.run("stop", "--signal", "SIGUSR1", job)
    wait_until(lambda: either.output(job) == "ready\ngot\n")
    other = either.start("sleep", "600")
    either.until(other, "Running")
    either.run("stop", "--signal", "KILL", other)
    assert either.outcome(other) == ("Stopped", "stopped by user: signal KILL", None)


def test_singleton(either: Far) -> None:
    job = either.start("-n", "one", "--singleton", "sleep", "600")
    assert either.start("-n", "one", "--singleton", "sleep", "600") == job
    either.run("stop", job)
    assert either.start("-n", "one", "--singleton", "true") != job


def test_start_and_wait(either: Far) -> None:
    where = either.where
    result = either.run("start", *where, "-w", "-c", "echo out; echo err >&2; exit 3", status=3)
    assert result.stdout == b"out\n"
    assert result.stderr == b"jobctl: job 1\nerr\njobctl: job 1 failed: exit status 3\n"
    either.run("start", *where, "-qw", "-c", "kill -9 $$", status=137)
    either.run("start", *where, "-qw", "foo", status=127)
    either.run("start", *where, "-qw", "/", status=126)
    data = either.run("start", *where, "-qw", "-c", "head -c 5000000 /dev/zero").stdout
    assert data == bytes(5_000_000)


def test_wait_for_several(either: Far, tmp_path: Path) -> None:
    long = either.start("sleep", "600")
    first = either.sh(f"while [ ! -e {tmp_path}/go ]; do sleep 0.1; done")
    second = either.sh("sleep 0.2; exit 1")
    assert either.out("wait", "-q", "--any", long, first, second, status=1) == f"{second}\n"
    (tmp_path / "go").touch()
    assert either.out("wait", "-q", first, second, status=1) == f"{first}\n{second}\n"
    assert either.out("wait", "-q", "--timeout", "0.1", long, first, status=124) == f"{first}\n"


def test_follow(either: Far) -> None:
    job = either.sh("for i in 1 2 3 4 5; do echo $i; sleep 0.1; done; exit 7")
    process = either.popen("receive", "--wait", job, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, error = process.communicate(timeout=60)
    assert (process.returncode, out) == (7, b"1\n2\n3\n4\n5\n")
    assert error == f"jobctl: job {job} failed: exit status 7\n".encode()
    assert either.run("receive", "--wait", job, status=7).stdout == b""


def test_what_is_done_at_the_end(either: Far, tmp_path: Path) -> None:
    said = tmp_path / "said"
    text = f'echo "$JOBCTL_ID $JOBCTL_NAME $JOBCTL_STATE $JOBCTL_EXIT_CODE $PWD $MINE" >>{said}'
    env = either.env | {"MINE": "mine"}
    either.start("-n", "na me", "--on-finish", text, "-c", "exit 3", env=env, cwd=tmp_path)
    wait_until(said.exists)
    assert wait_until(said.read_text) == f"1 na me Failed 3 {tmp_path} mine\n"
    if either.remote:
        wait_until(lambda: not (either.folder("1") / "env").exists())


def test_with_parent(either: Far, tmp_path: Path) -> None:
    words = ["jobctl", "start", "-q", *either.where, "--with-parent", "sleep", "600"]
    parent = subprocess.Popen(
        ["sh", "-c", '"$@"; sleep 600', "sh", *words], env=either.env, stdout=subprocess.PIPE
    )
    assert parent.stdout
    job = parent.stdout.readline().decode().strip()
    either.until(job, "Running")
    for child in subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(parent.pid)], stdout=subprocess.PIPE
    ).stdout.split():
        os.kill(int(child), signal.SIGTERM)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert either.outcome(job) == ("Stopped", "stopped: the process that started it ended", None)


# --- what only jobs on hosts do ---


def test_starting_does_not_wait_for_the_host(far: Far) -> None:
    job = json.loads(far.out("start", "-H", "web1", "-o", "jsonl", "sleep", "600"))
    assert (job["type"], job["location"], job["state"]) == ("RemoteJob", "web1", "NotStarted")
    assert job["reason"]
    far.until("1", "Running")


def test_output_comes_by_itself(far: Far) -> None:
    job = far.done("-c", "seq 100000; echo end >&2")
    far.sshd.stop()
    result = far.run("receive", job)
    assert result.stdout == b"".join(b"%d\n" % i for i in range(1, 100_001))
    assert result.stderr == b"end\n"
    assert not far.job(job)["has_more_data"]


def test_removing(far: Far) -> None:
    done, long = far.done("-c", "setsid sleep 600 >/dev/null 2>&1 &"), far.start("sleep", "600")
    far.until(long, "Running")
    guests = [far.guest(done), far.guest(long)]
    assert all(guest.is_dir() for guest in guests)
    assert long in far.refused(4, "remove", long)
    assert far.out("get", "-q") == f"{done}\n{long}\n"
    far.run("remove", done)
    far.run("remove", "--force", long)
    assert far.out("get", "-q") == ""
    assert not any(guest.exists() for guest in guests)
    assert "sleep 600 " not in at_home(far.sshd.home).values()


def test_removing_while_the_host_is_away(far: Far) -> None:
    done, long, other = far.done("true"), far.start("sleep", "600"), far.start("sleep", "601")
    far.until(other, "Running")
    guest = far.guest(other)
    far.sshd.stop()
    wait_until(lambda: far.state(long) == "Disconnected")
    for job in (done, long):
        message = far.refused(5, "remove", "--force", job)
        assert message.startswith(f"jobctl: job {job}: cannot connect to web1: ")
    assert long in far.refused(5, "stop", long)
    assert long in far.refused(5, "stop", "--signal", "USR1", long)
    assert far.state(long) == "Disconnected"
    assert far.out("get", "-q") == f"{done}\n{long}\n{other}\n"
    far.run("remove", "--local-only", done, other)
    assert far.out("get", "-q") == f"{long}\n"
    far.sshd.start()
    far.run("stop", "--grace", "0", long)
    assert far.job(long)["reason"] == "stopped by user"
    assert guest.is_dir()  # it was forgotten, not ended
    os.kill(int(re.findall(r"^pid='(\d+)'", (guest / "run").read_text(), re.M)[0]), signal.SIGKILL)


def test_a_host_that_is_not_there(far: Far) -> None:
    far.sshd.hosts("Host gone", f"    HostName 127.0.0.1\n    Port {free_port()}")
    job = far.on("gone", "true")
    reason = "cannot connect to gone: connection refused"
    assert far.outcome(job) == ("Failed", reason, None)
    assert far.run("receive", job).stderr.decode() == f"jobctl: job {job} failed: {reason}\n"
    result = far.run("start", "-H", "gone", "-qw", "true", status=125)
    assert result.stdout == b""
    far.run("remove", "--all")


def test_a_host_that_is_not_known(far: Far) -> None:
    far.sshd.known_hosts.write_text("")
    state, reason, _ = far.outcome(far.start("true"))
    assert (state, reason.partition(":")[0]) == ("Failed", "host key of web1 is unknown")


def test_results_that_stay(far: Far) -> None:
    options = ("--results", "remote")
    job = far.start(*options, "-c", "seq 100000; echo err >&2; exit 3")
    assert far.outcome(job) == ("Failed", "exit status 3", 3)
    assert (far.output(job), far.job(job)["has_more_data"]) == ("", True)
    result = far.run("receive", job)
    assert result.stdout == b"".join(b"%d\n" % i for i in range(1, 100_001))
    assert result.stderr == f"err\njobctl: job {job} failed: exit status 3\n".encode()
    assert not far.job(job)["has_more_data"]
    assert far.run("receive", job).stdout == b""
    far.run("remove", job)
    go = far.sshd.home / "go"
    text = f"echo a; while [ ! -e {go} ]; do sleep 0.1; done; echo b; exit 4"
    job = far.start(*options, "-c", text)
    far.until(job, "Running")
    assert wait_until(lambda: far.out("receive", job)) == "a\n"
    go.touch()
    assert far.out("receive", "--wait", job, status=4) == "b\n"
    go.unlink()
    job = far.done(*options, "echo", "x")
    far.sshd.stop()
    far.kill_agent()
    assert far.refused(5, "receive", job).startswith(f"jobctl: job {job}: cannot connect to web1: ")
    far.sshd.start()
    assert far.out("receive", job) == "x\n"
    never = far.on("127.0.0.1:1", *options, "true")
    assert far.outcome(never)[0] == "Failed"
    assert not far.job(never)["has_more_data"]
    # Who waits before it has begun there hears all of it, too.
    gate = far.out("start", "-q", *sleeper().split()).strip()
    job = far.start("--after", gate, *options, "echo", "later")
    with far.popen("receive", "--wait", job, stdout=subprocess.PIPE) as waiter:
        at_rest(waiter)
        far.run("stop", "--grace", "0", gate)
        assert waiter.stdout
        assert waiter.stdout.read() == b"later\n"
    far.kill_agent()
    assert far.out("start", "-qw", *far.where, *options, "echo", "at once") == "at once\n"
    job = far.done(*options, "echo", "x")
    shutil.rmtree(far.guest(job))
    assert far.refused(5, "receive", job).endswith("its output on web1 was removed")
    assert not far.job(job)["has_more_data"]


def test_two_hosts(far: Far, tmp_path: Path) -> None:
    said = tmp_path / "said"
    hook = f"echo $JOBCTL_ID $JOBCTL_STATE >>{said}"
    text = 'echo "$JOBCTL_ID $JOBCTL_HOST"; [ $JOBCTL_HOST = web1 ] || exit 3'
    words = ("-H", "web1", "-H", "web2", "-n", "both", "--on-finish", hook, "-c", text)
    job = far.out("start", "-q", *words).strip()
    assert job == "1"
    assert far.out("wait", "-q", job, status=1) == "1\n"
    whole, *parts = far.jobs("--children", job)
    assert (whole["children"], whole["location"]) == (["1.1", "1.2"], "web1,web2")
    assert (whole["state"], whole["reason"]) == ("Failed", "exit status 3")
    assert [(part["id"], part["location"], part["parent"]) for part in parts] == [
        ("1.1", "web1", "1"),
        ("1.2", "web2", "1"),
    ]
    assert [part["state"] for part in parts] == ["Completed", "Failed"]
    assert far.out("receive", "both") == "1.1 web1\n1.2 web2\n"
    assert far.out("receive", "--again", "--tag", "1.2") == "1.2 web2: 1.2 web2\n"
    wait_until(said.exists)
    assert wait_until(said.read_text) == "1 Failed\n"
    assert "part of job 1" in far.refused(4, "remove", "1.1")
    guests = [far.guest("1.1"), far.guest("1.2")]
    far.run("remove", job)
    assert not any(guest.exists() for guest in guests)


def test_one_child_is_stopped(far: Far) -> None:
    job = far.on("web1,web2", "sleep", "600")
    far.until(job, "Running")
    wait_until(lambda: [part["state"] for part in far.jobs("1.1", "1.2")] == ["Running"] * 2)
    far.run("stop", "1.2")
    assert [part["state"] for part in far.jobs("--children", job)] == ["Running"] * 2 + ["Stopped"]
    far.run("stop", job)
    assert [part["state"] for part in far.jobs("--children", job)] == ["Stopped"] * 3


def test_a_host_that_is_away_delays_no_other(far: Far) -> None:
    far.sshd.hosts("Host gone", f"    HostName 127.0.0.1\n    Port {free_port()}")
    job = far.on("gone,web1", "echo", "x")
    assert far.outcome(job)[:2] == ("Failed", "cannot connect to gone: connection refused")
    assert far.state("1.2") == "Completed"
    assert far.out("receive", job) == "x\n"


def test_one_after_the_other(far: Far, tmp_path: Path) -> None:
    order = tmp_path / "order"
    order.touch()

    def step(number: int, *words: str) -> str:
        go = f"while [ ! -e {tmp_path}/go{number} ]; do sleep 0.05; done"
        text = f"echo begin >>{order}; {go}; echo {number} >>{order}"
        return far.out("start", "-q", *words, "-c", text).strip()

    first = step(1, "-H", "web1")
    second = step(2, "--after", first)
    third = step(3, "-H", "web1,web2", "--after-ok", second)
    fourth = step(4, "--after-ok", third)
    fifth = step(5, "-H", "web1", "--after", fourth)
    # The agent, which knows that, may have yet to look at it.
    wait_until(lambda: far.job(fifth)["reason"] == f"waiting for job {fourth}")
    said = ""
    for number in range(1, 6):
        both = 2 if number == 3 else 1
        said += "begin\n" * both
        wait_until(lambda: len(order.read_text()) >= len(said))  # noqa: B023
        assert order.read_text() == said
        (tmp_path / f"go{number}").touch()
        said += f"{number}\n" * both
    far.run("wait", fifth)
    assert order.read_text() == said
    failed = far.start("false")
    for where in ((), ("-H", "web1")):
        job = far.out("start", "-q", *where, "--after-ok", failed, "true").strip()
        reason = f"not begun: job {failed} did not complete"
        assert far.outcome(job) == ("Stopped", reason, None)
    waits = far.start("--after", far.start("sleep", "600"), "true")
    assert far.state(waits) == "NotStarted"
    far.run("stop", "--reason", "why", waits)
    assert far.outcome(waits) == ("Stopped", "stopped by user: why", None)


def test_sessions_are_used(far: Far) -> None:
    far.run("session", "new", "web1", "--name", "s1")
    by_name = far.out("start", "-q", "-s", "s1", "-c", "echo $JOBCTL_HOST").strip()
    by_host = far.start("-c", "echo $JOBCTL_HOST")
    far.run("wait", by_name, by_host)
    for job in (by_name, by_host):
        assert (far.job(job)["session"], far.job(job)["location"]) == ("s1", "web1")
        assert far.out("receive", job) == "web1\n"
    assert far.out("get", "-q", "--session", "s1") == f"{by_name}\n{by_host}\n"
    far.refused(3, "start", "-s", "nobody", "true")


@pytest.mark.long
def test_another_computer_takes_over(far: Far, second: Far) -> None:
    done = far.done("-n", "the done", "-c", "seq 10; echo err >&2; exit 3")
    text = "for i in $(seq 30); do echo $i; sleep 0.01; done; while [ ! -e go ]; do sleep 0.1; done"
    long = far.start("-n", "the long", "-c", text)
    far.until(long, "Running")
    far.kill_agent()
    found = json.loads(second.out("session", "get", "--on", "web1", "-o", "json"))
    assert {job["name"]: job["state"] for job in found} == {
        "the done": "Failed",
        "the long": "Running",
    }
    adopted = second.out("session", "receive", "web1", "--out-target", "job", "-q").split()
    assert len(adopted) == 2
    assert second.out("session", "receive", "web1", "--out-target", "job", "-q") == ""
    (far.sshd.home / "go").touch()
    second.run("wait", *adopted, status=1)
    (far.sshd.home / "go").unlink()
    names = {second.job(job)["name"]: job for job in adopted}
    result = second.run("receive", names["the done"])
    assert result.stdout == "".join(f"{i}\n" for i in range(1, 11)).encode()
    assert result.stderr.startswith(b"err\n")
    assert second.out("receive", names["the long"]) == "".join(f"{i}\n" for i in range(1, 31))
    assert far.outcome(long) == ("Completed", "", 0)
    assert far.out("receive", long) == "".join(f"{i}\n" for i in range(1, 31))
    assert second.job(names["the done"])["instance_id"] == far.job(done)["instance_id"]


def test_what_is_on_a_host_is_listed_in_order(far: Far) -> None:
    far.run("session", "run", "web1", "--", "jobctl", "start", "-w", "-n", "there", "echo", "x")
    far.run("wait", far.start("-n", "here", "echo", "y"))
    far.run("wait", far.start("-n", "silent", "true"))

    def listed() -> list[tuple[str, bool]]:
        records = json.loads(far.out("session", "get", "--on", "web1", "-o", "json"))
        return [(record["name"], record["has_more_data"]) for record in records]

    assert listed() == [("there", False), ("here", True), ("silent", False)]
    assert far.out("receive", "here") == "y\n"
    assert listed() == [("there", False), ("here", False), ("silent", False)]


def test_an_adopted_job_is_controlled(far: Far, second: Far) -> None:
    far.run("start", "-H", "web1,web2", "sleep", "600")
    far.until("1.1", "Running")
    far.until("1.2", "Running")
    assert far.out("session", "receive", "web1", "--out-target", "job", "-q") == ""
    adopted = second.out("session", "receive", "web1", "--out-target", "job", "-q").split()
    (first,) = (job for job in adopted if second.guest(job) == far.guest("1.1"))
    second.until(first, "Running")
    second.run("stop", "--signal", "STOP", first)
    second.until(first, "Suspended")
    second.run("stop", "--reason", "enough", first)
    assert second.outcome(first) == ("Stopped", "stopped by user: enough", None)
    far.run("wait", "1.1", status=1)
    assert far.job("1.1")["reason"] == "stopped by user: enough"
    far.run("stop", "1")


def test_a_job_of_which_the_agent_was_not_told(far: Far) -> None:
    far.done("true")
    agent = far.agent()
    # As start leaves it behind that is killed before its last act.
    folder = Jobs(str(far.state_dir)).allocate()
    place = Place(Target("web1", config=far.env["JOBCTL_SSH_CONFIG"]))
    draft.write(folder, JobSpec(("echo", "hi"), "", {}, 0o022, places=(place,)))
    draft.commit(folder)
    assert far.out("receive", "--wait", folder.id) == "hi\n"
    assert far.agent() == agent


@pytest.mark.long
def test_a_job_here_that_waits_for_one_on_a_host_when_the_agent_is_killed(far: Far) -> None:
    gates = [far.state_dir.parent / name for name in ("go1", "go2")]
    texts = [f"while [ ! -e {gate} ]; do sleep 0.05; done" for gate in gates]
    first = far.on("web[1-2]", "-c", texts[0])
    second = far.out("start", "-q", "--after", first, "true").strip()
    third = far.out("start", "-q", "--after-ok", second, "echo", "hi").strip()
    with far.popen("receive", "--wait", third, stdout=subprocess.PIPE) as waiting:
        wait_until(lambda: far.state(first) == "Running")
        far.kill_agent()
        gates[0].touch()
        assert waiting.communicate()[0] == b"hi\n"
    first = far.on("web1", "-c", texts[1])
    second = far.out("start", "-q", "--after", first, "true").strip()
    far.kill_agent()
    gates[1].touch()
    far.run("wait", second, "--timeout", "60")


def test_an_agent_has_not_the_limits_of_who_starts_it(far: Far) -> None:
    """Each connection takes a descriptor, each job two; and output of others is to come here."""
    words = [PROGRAM, "start", "-q", *far.where, *sleeper().split()]
    text = 'ulimit -Sn 256; ulimit -Sf 2048; ulimit -St 1000; exec "$@"'
    job = subprocess.check_output(["sh", "-c", text, "sh", *words], env=far.env, text=True).strip()
    far.until(job, "Running")
    agent = far.agent() or 0
    soft, hard = resource.prlimit(agent, resource.RLIMIT_NOFILE)
    assert soft == min(hard if hard != resource.RLIM_INFINITY else 10_240, 10_240)
    for kind in (resource.RLIMIT_FSIZE, resource.RLIMIT_CPU):
        soft, hard = resource.prlimit(agent, kind)
        assert soft == hard
    far.run("stop", job)


def test_an_agent_that_does_not_answer_holds_up_no_start(far: Far) -> None:
    far.run("session", "new", "web1")
    agent = far.agent() or 0
    os.kill(agent, signal.SIGSTOP)
    try:
        job = far.start("echo", "hi")
    finally:
        os.kill(agent, signal.SIGCONT)
    assert far.out("receive", "--wait", job) == "hi\n"
    far.run("session", "remove", "--all")
