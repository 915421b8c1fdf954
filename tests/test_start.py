"""`jobctl start`, as a user calls it."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest
from conftest import WEIRD, Jobctl, first_of, processes_with, shown, sleeper, wait_until

RFC3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")


def test_prints_the_record(jobctl: Jobctl) -> None:
    assert jobctl.out("start", "sleep", "600").splitlines() == [
        "Id  Name  Type           State    HasMoreData  Location   Command",
        "1   Job1  BackgroundJob  Running  True         localhost  sleep 600",
    ]
    assert jobctl.out("start", "-q", "true") == "2\n"
    assert jobctl.out("start", "-o", "ids", "true") == "3\n"
    record = json.loads(jobctl.out("start", "-o", "jsonl", "-n", "n", "--", "sleep", "600"))
    assert record["id"] == "4"
    assert record["name"] == "n"
    assert record["argv"] == ["sleep", "600"]


def test_json_has_what_the_contract_lists(jobctl: Jobctl) -> None:
    job = jobctl.job(jobctl.done("sh", "-c", "exit 3"))
    assert (
        list(job)
        == (
            "id name instance_id type state reason exit_code signal has_more_data location session"
            " command argv cwd pid item created_at began_at ended_at progress parent children"
        ).split()
    )
    assert job["type"] == "BackgroundJob"
    assert (job["state"], job["reason"], job["exit_code"]) == ("Failed", "exit status 3", 3)
    assert job["signal"] is job["session"] is job["item"] is job["parent"] is None
    assert job["children"] == []
    assert isinstance(job["pid"], int)
    assert job["created_at"] <= job["began_at"] <= job["ended_at"]
    assert all(RFC3339.fullmatch(job[f"{name}_at"]) for name in ("created", "began", "ended"))


def test_options_end_where_the_command_begins(jobctl: Jobctl) -> None:
    job = jobctl.done("echo", "-n", "--wait", "--", "-q")
    assert jobctl.out("receive", job) == "--wait -- -q"
    job = jobctl.done("--", "echo", "--", "x")
    assert jobctl.out("receive", job) == "-- x\n"


def test_arguments_are_not_touched(jobctl: Jobctl) -> None:
    words = [WEIRD.encode(), b"", b"\xff\xfe", b"\n", b"x" * 100_000]
    job = jobctl.done("printf", r"%s\0", *words)
    assert jobctl.run("receive", job).stdout.split(b"\0")[:-1] == words
    record = jobctl.job(job)
    assert [os.fsencode(word) for word in record["argv"][2:]] == words


def test_where_it_runs(jobctl: Jobctl, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    env = jobctl.env | {"PWD": str(tmp_path / "link")}
    job = jobctl.done("sh", "-c", "pwd; echo $PWD", cwd=tmp_path / "link", env=env)
    assert jobctl.out("receive", job) == f"{tmp_path}/link\n" * 2
    job = jobctl.done("-C", "link", "pwd", cwd=tmp_path)
    assert jobctl.job(job)["cwd"] == f"{tmp_path}/link"


def test_environment(jobctl: Jobctl) -> None:
    env = jobctl.env | {"BASH_FUNC_f%%": "() { echo f; }", "GIVEN": WEIRD, "OLDPWD": "/var"}
    job = jobctl.done("-e", "A=1=2", "-e", "GIVEN", "-e", "E=", "env", "-0", env=env)
    lines = jobctl.out("receive", job).split("\0")
    for pair in ("A=1=2", f"GIVEN={WEIRD}", "E=", "BASH_FUNC_f%%=() { echo f; }", "OLDPWD=/var"):
        assert pair in lines
    job = jobctl.done("bash", "-c", "f", env=env)
    assert jobctl.out("receive", job) == "f\n"


def test_a_job_that_starts_a_job(jobctl: Jobctl) -> None:
    env = jobctl.env | {"JOBCTL_ITEM": "outer"}
    outer = jobctl.start(
        "-c",
        "jobctl start -q -c 'env; sleep 600' >inner; sleep 60",
        env=env,
        cwd=jobctl.env["HOME"],
    )
    inner_file = Path(jobctl.env["HOME"]) / "inner"
    inner = wait_until(lambda: inner_file.exists() and inner_file.read_text().strip())
    wait_until(lambda: "JOBCTL_ID=" in jobctl.out("receive", "--again", inner))
    output = jobctl.out("receive", inner)
    assert f"JOBCTL_ID={inner}\n" in output
    assert f"jobs/{inner}/progress" in output
    assert "JOBCTL_ITEM" not in output
    jobctl.run("stop", outer)
    assert jobctl.state(inner) == "Running"


def test_standard_input(jobctl: Jobctl, tmp_path: Path) -> None:
    data = os.urandom(300_000)
    (tmp_path / "in").write_bytes(data)
    job = jobctl.done("--stdin", str(tmp_path / "in"), "cat")
    assert jobctl.run("receive", job).stdout == data
    job = jobctl.start("--stdin", "-", "cat", input=data)
    jobctl.run("wait", job)
    assert jobctl.run("receive", job).stdout == data
    job = jobctl.done("cat", input=b"not for the job")
    assert jobctl.run("receive", job).stdout == b""


def test_scripts(jobctl: Jobctl, tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("#!/bin/bash\nset -u; a=(x y); echo ${a[1]} $1")
    job = jobctl.start("-f", str(script), "arg")
    script.unlink()
    jobctl.run("wait", job)
    assert jobctl.out("receive", job) == "y arg\n"
    assert jobctl.job(job)["argv"] == [str(script), "arg"]


def test_not_found_is_recorded(jobctl: Jobctl) -> None:
    result = jobctl.run("start", "no-such-program", status=1)
    assert b"command not found: no-such-program" in result.stderr
    assert b"Failed" in result.stdout
    assert jobctl.job("1")["reason"] == "command not found: no-such-program"
    assert jobctl.run("start", "--wait", "no-such-program", status=127).stdout == b""
    jobctl.run("start", "--wait", "/etc/passwd", status=126)


def test_a_reason_is_one_line(jobctl: Jobctl) -> None:
    said = jobctl.run("start", "-q", "no\n\nsuch\n", status=1).stderr
    reason = "command not found: no such; use -c for shell text"
    assert said.decode() == f"jobctl: job 1 failed: {reason}\n"
    assert jobctl.job("1")["reason"] == reason


def test_wait_passes_through(jobctl: Jobctl) -> None:
    result = jobctl.run("start", "--wait", "-c", "echo out; echo err >&2; exit 7", status=7)
    assert result.stdout == b"out\n"
    assert result.stderr == b"jobctl: job 1\nerr\njobctl: job 1 failed: exit status 7\n"
    result = jobctl.run("start", "-q", "-w", "-c", "kill -9 $$", status=137)
    assert result.stderr == b"jobctl: job 2 failed: killed by signal 9 (KILL)\n"
    jobctl.run("start", "-q", "-w", "-c", "exit 137", status=137)
    assert jobctl.job("3")["exit_code"] == 137


def test_interrupting_wait_leaves_the_job(jobctl: Jobctl) -> None:
    process = jobctl.popen("start", "--wait", "sleep", "600", stderr=subprocess.PIPE)
    assert process.stderr
    assert process.stderr.readline() == b"jobctl: job 1\n"
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert process.stderr.read() == b""
    assert jobctl.state("1") == "Running"


def test_outlives_its_terminal(jobctl: Jobctl) -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve("/bin/sh", ["sh", "-c", "jobctl start -q sleep 600; read x"], jobctl.env)
    assert shown(terminal) == b"1\r\n"
    os.close(terminal)  # the terminal hangs up
    os.waitpid(pid, 0)
    assert jobctl.state("1") == "Running"


def test_ids_are_never_used_again(jobctl: Jobctl) -> None:
    for expected in ("1", "2", "3"):
        assert jobctl.start("true") == expected
    jobctl.run("wait", "--all")
    jobctl.run("remove", "2-3")
    (jobctl.state_dir / "index.db").unlink()
    assert jobctl.start("true") == "4"
    jobctl.run("remove", "--all", "--force")
    assert jobctl.start("true") == "5"


@pytest.mark.parametrize("count", first_of(30, 200))
def test_so_many_started_at_once(jobctl: Jobctl, count: int) -> None:
    starters = [
        jobctl.popen(
            "start", "-q", "-c", f"echo {i}", stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        for i in range(count)
    ]
    others = [
        jobctl.popen(*words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        for words in (["get"], ["remove", "--state", "Completed", "--newest", "1"]) * (count // 20)
    ]
    results = [(process.communicate(timeout=120), process.returncode) for process in starters]
    for process in others:
        assert process.communicate(timeout=120)[1] == b""
        assert process.returncode == 0
    assert [(error, status) for (_, error), status in results] == [(b"", 0)] * count
    ids = {int(out) for (out, _), _ in results}
    assert len(ids) == count
    jobctl.run("wait", "--all")
    left = {int(job["id"]) for job in jobctl.jobs()}
    assert left <= ids
    assert len(left) >= count - count // 20
    assert {job["state"] for job in jobctl.jobs()} == {"Completed"}


def test_a_directory_that_the_environment_tells_wrong(jobctl: Jobctl, tmp_path: Path) -> None:
    env = {**jobctl.env, "PWD": "/no/such/directory"}
    assert jobctl.out("start", "-qw", "pwd", cwd=tmp_path, env=env) == f"{tmp_path}\n"


def test_first_of_all_no_variable_is_lost(jobctl: Jobctl) -> None:
    env = {**jobctl.env, "BASH_FUNC_module%%": "() { echo mod; }", "we-ird": "1"}
    words = ("start", "-qw", "--init", "x=1", "bash", "-c", "module; env")
    lines = jobctl.out(*words, env=env).splitlines()
    assert lines[0] == "mod"
    assert "we-ird=1" in lines


def test_singleton(jobctl: Jobctl) -> None:
    starters = [
        jobctl.popen(
            "start", "-q", "-n", "one", "--singleton", "sleep", "600", stdout=subprocess.PIPE
        )
        for _ in range(20)
    ]
    outputs = {process.communicate(timeout=60)[0] for process in starters}
    assert outputs == {b"1\n"}
    assert len(jobctl.jobs()) == 1
    jobctl.run("stop", "one")
    assert jobctl.start("-n", "one", "--singleton", "sleep", "600") == "2"
    jobctl.refused(2, "start", "--singleton", "true")


def test_after(jobctl: Jobctl, tmp_path: Path) -> None:
    text = f"while [ ! -e {tmp_path}/go ]; do sleep 0.1; done; exit 1"
    first = jobctl.start("-n", "first", "-c", text)
    second = jobctl.start("--after", "first", "true")
    never = jobctl.start("--after-ok", first, "true")
    assert jobctl.job(second)["state"] == "NotStarted"
    assert jobctl.job(second)["reason"] == "waiting for job 1"
    (tmp_path / "go").touch()
    jobctl.run("wait", second)
    jobctl.run("wait", never, status=1)
    assert jobctl.job(never)["reason"] == "not begun: job 1 did not complete"
    assert "99" in jobctl.refused(3, "start", "--after", "99", "true")
    assert len(jobctl.jobs()) == 3


def test_with_parent(jobctl: Jobctl) -> None:
    caller = subprocess.Popen(
        ["sh", "-c", "jobctl start -q --with-parent sleep 600; read x"],
        env=jobctl.env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert caller.stdout
    assert caller.stdout.readline() == b"1\n"
    assert jobctl.state("1") == "Running"
    caller.communicate()
    jobctl.until("1", "Stopped")
    assert jobctl.job("1")["reason"] == "stopped: the process that started it ended"


def test_on_finish(jobctl: Jobctl, tmp_path: Path) -> None:
    hook = f"jobctl get -o jsonl $JOBCTL_ID >{tmp_path}/new; mv {tmp_path}/new {tmp_path}/seen"
    job = jobctl.start("--on-finish", hook, "false")
    wait_until((tmp_path / "seen").exists)
    assert json.loads((tmp_path / "seen").read_text())["state"] == "Failed"
    assert job == "1"


def test_progress(jobctl: Jobctl) -> None:
    job = jobctl.sh(
        'echo "10 begun" >$JOBCTL_PROGRESS; echo "42% down loading" >>$JOBCTL_PROGRESS; sleep 600'
    )
    wait_until(lambda: (jobctl.job(job)["progress"] or {}).get("percent") == 42)
    assert jobctl.job(job)["progress"] == {"percent": 42, "message": "down loading"}
    job = jobctl.done("-c", "echo ten to go >$JOBCTL_PROGRESS")
    assert jobctl.job(job)["progress"] == {"percent": None, "message": "ten to go"}
    assert jobctl.job(jobctl.done("true"))["progress"] is None


def test_killed_at_any_instant_leaves_all_or_nothing(jobctl: Jobctl) -> None:
    nap = sleeper()
    began = time.monotonic()
    jobctl.popen("start", "true", stdout=subprocess.DEVNULL).wait()
    step = (time.monotonic() - began) / 20  # in the middle of the rounds, most have begun
    jobctl.run("wait", "--all")
    jobctl.run("remove", "--all")
    for round_ in range(40):
        process = jobctl.popen("start", "-q", *nap.split(), stdout=subprocess.DEVNULL)
        time.sleep(round_ * step)
        process.kill()
        process.wait()

    def at_work() -> bool:
        """Whether there is a job for each runner, and what it runs for each job."""
        runners = processes_with(f"runner.sh run {jobctl.state_dir}")
        pids = [job["pid"] or 0 for job in jobctl.jobs()]
        return len(runners) == len(pids) and sorted(pids) == sorted(processes_with(nap))

    jobctl.run("start", "-q", *nap.split())
    wait_until(at_work)
    assert len(jobctl.jobs()) > 0
    jobctl.run("stop", "--all")
    assert processes_with("runner.sh run " + str(jobctl.state_dir)) == []


def test_from_cron(jobctl: Jobctl) -> None:
    env = {"PATH": "/usr/bin:/bin", "HOME": jobctl.env["HOME"]}
    job = jobctl.out(
        "start",
        "-q",
        "-c",
        "echo $HOME",
        env=env,
        stdin=None,
        close_fds=True,
        preexec_fn=lambda: os.close(0),
    ).strip()
    jobctl.run("wait", job, env=env)
    assert jobctl.out("receive", job, env=env) == f"{env['HOME']}\n"
    assert (Path(env["HOME"]) / ".local/state/jobctl/jobs/1/spec").exists()


def _close(descriptors: tuple[int, ...]) -> None:
    for fd in descriptors:
        os.close(fd)


@pytest.mark.parametrize("closed", [(0,), (2,), (0, 2)])
def test_closed_standard_files(jobctl: Jobctl, closed: tuple[int, ...]) -> None:
    result = jobctl.run(
        "start",
        "-c",
        "ls -l /proc/self/fd; echo err >&2",
        stdin=None,
        preexec_fn=lambda: _close(closed),
    )
    assert b"Traceback" not in result.stderr
    jobctl.run("wait", "1")
    output = jobctl.run("receive", "1")
    assert output.stderr == b"err\n"
    assert output.stdout.count(b" -> ") == 4


BAD = [
    ([], "no command"),
    ([""], "no command"),
    (["--", ""], "no command"),
    (["-c", ""], "-c"),
    (["-c", "x", "-f", "y"], "contradict"),
    (["-n", "", "true"], "empty"),
    (["-n", "  ", "true"], "empty"),
    (["-n", "12", "true"], "'12'"),
    (["-n", "12.3", "true"], "'12.3'"),
    (["-n", "3-8", "true"], "'3-8'"),
    (["-n", "-x", "true"], "'-x'"),
    (["-n", "a\x1b[31mb", "true"], "\\x1b[31m"),
    (["-n", "a\nb", "true"], "a\\nb"),
    (["-n", "\udcff", "true"], "\\xff"),
    (["-n", "x" * 300, "true"], "255"),
    (["-C", "/no/such/dir", "true"], "/no/such/dir"),
    (["-C", "", "true"], "--cwd"),
    (["-C", "/etc/passwd", "true"], "/etc/passwd"),
    (["-C", "~/x", "true"], "'~/x' is not a directory; a shell replaces ~ only outside of quotes"),
    (["--stdin", "~", "true"], "a shell replaces ~ only outside of quotes"),
    (["-f", "~/x y"], "a shell replaces ~ only outside of quotes"),
    (["-f", "echo hi"], "'echo hi': No such file or directory; use -c for shell text"),
    (["-f", "/no/such/script"], "'/no/such/script': No such file or directory\0"),
    (["-f", "/etc"], "/etc"),
    (["--stdin", "/no/such/file", "cat"], "/no/such/file"),
    (["--stdin", "/etc", "cat"], "/etc"),
    (["--timeout", "soon", "true"], "'soon'"),
    (["--timeout", "", "true"], "''"),
    (["--timeout", "0", "true"], "'0'"),
    (["--timeout", "-1", "true"], "'-1'"),
    (["--timeout", "9" * 400, "true"], "years"),
    (["--timeout", "1e3", "true"], "'1e3'"),
    (["--timeout", "nan", "true"], "'nan'"),
    (["--retries", "-1", "true"], "-1"),
    (["--retries", "many", "true"], "many"),
    (["--retries", "9" * 30, "true"], "9999"),
    (["-e", "=x", "true"], "-e"),
    (["-e", "", "true"], "-e"),
    (["-e", "NOT_SET_ANYWHERE", "true"], "NOT_SET_ANYWHERE"),
    (["--no-such-option", "true"], "--no-such-option"),
    (["-o", "yaml", "true"], "yaml"),
]


@pytest.mark.parametrize(("words", "named"), BAD)
def test_bad_input_records_nothing(jobctl: Jobctl, words: list[str], named: str) -> None:
    assert named in jobctl.refused(2, "start", *words) + "\0"
    assert not (jobctl.state_dir / "jobs").exists()


def test_what_a_ci_server_marks_is_taken_away(jobctl: Jobctl, tmp_path: Path) -> None:
    nap = sleeper()
    env = jobctl.env | {"RUNNER_TRACKING_ID": f"github {nap}", "LATER": str(tmp_path)}
    mark = ("-e", "RUNNER_TRACKING_ID=")
    (tmp_path / "items").write_text(nap.split()[1])
    jobs = [
        jobctl.start(*mark, "--retries", "1", "--timeout", "1h", *nap.split(), env=env),
        jobctl.start(*mark, "--after", "1", *nap.split(), env=env),
        jobctl.start(*mark, "--foreach", str(tmp_path / "items"), "--", "sleep", "{}", env=env),
    ]

    def bearers(text: bytes) -> set[int]:
        found = set()
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if text in (folder / "environ").read_bytes().split(b"\0"):
                    found.add(int(folder.name))
        return found

    wait_until(lambda: len(processes_with(nap)) >= 2)
    assert bearers(b"LATER=" + os.fsencode(tmp_path)) >= set(processes_with(nap))
    assert jobctl.runner_pid(jobs[1]) not in bearers(b"LATER=" + os.fsencode(tmp_path))
    assert bearers(f"RUNNER_TRACKING_ID=github {nap}".encode()) == set()
    jobctl.run("stop", *jobs, "--grace", "0")
