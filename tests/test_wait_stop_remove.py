"""`jobctl wait`, `jobctl stop` and `jobctl remove`."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pexpect
import pytest
from conftest import PROGRAM, Jobctl, at_home, at_rest, processes_with, sleeper, wait_until

from jobctl.cli.render import cells
from jobctl.folder import Folder
from jobctl.jobs import Jobs
from jobctl.process import Identity, alive, boot_id, look

# --- wait ---


def test_wait_prints_the_records(jobctl: Jobctl) -> None:
    jobctl.sh("sleep 0.3")
    jobctl.sh("sleep 0.1")
    assert jobctl.out("wait", "-q", "--all") == "1\n2\n"
    jobctl.sh("exit 3")
    assert jobctl.out("wait", "-q", "3", "1", status=1) == "1\n3\n"


def test_wait_any(jobctl: Jobctl) -> None:
    jobctl.sh("sleep 600")
    jobctl.sh("sleep 0.2")
    jobctl.sh("sleep 601")
    assert jobctl.out("wait", "--any", "-q", "1-3") == "2\n"
    assert jobctl.out("wait", "--any", "-q", "1-3") == "2\n"
    jobctl.run("stop", "1")
    assert jobctl.out("wait", "--any", "-q", "1", status=1) == "1\n"


def test_wait_times_out(jobctl: Jobctl) -> None:
    jobctl.done("true")
    jobctl.start("sleep", "600")
    began = time.monotonic()
    assert jobctl.out("wait", "-q", "--timeout", "0.3", "--all", status=124) == "1\n"
    assert time.monotonic() - began >= 0.3
    assert jobctl.out("wait", "-q", "--timeout", "0", "--all", status=124) == "1\n"
    assert jobctl.out("wait", "-q", "--timeout", "0", "1") == "1\n"
    assert jobctl.out("wait", "-q", "--any", "--timeout", "0", "2", status=124) == ""


def test_wait_for_nothing(jobctl: Jobctl) -> None:
    assert jobctl.out("wait", "--all") == ""
    assert jobctl.out("wait", "no*") == ""
    jobctl.refused(3, "wait", "nobody")
    jobctl.done("true")
    assert jobctl.out("wait", "-q", "1", "99", status=3) == "1\n"


def test_wait_sees_a_job_that_is_lost(jobctl: Jobctl) -> None:
    job = jobctl.start("sleep", "600")
    process = jobctl.popen("wait", job, stdout=subprocess.PIPE)
    at_rest(process)
    command = jobctl.job(job)["pid"]
    os.kill(jobctl.runner_pid(job), signal.SIGKILL)
    at_rest(process)
    assert process.poll() is None
    os.kill(command, signal.SIGKILL)
    assert process.wait(60) == 1
    assert jobctl.job(job)["reason"] == "lost: runner was killed"


def test_wait_for_a_job_that_waits(jobctl: Jobctl) -> None:
    first = jobctl.start("sleep", "0.3")
    second = jobctl.start("--after", first, "sleep", "0.1")
    assert jobctl.out("wait", "-q", second) == f"{second}\n"


def test_wait_while_another_removes(jobctl: Jobctl) -> None:
    job = jobctl.start("sleep", "600")
    process = jobctl.popen("wait", job, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    at_rest(process)
    jobctl.run("remove", "--force", job)
    out, error = process.communicate(timeout=60)
    assert (out, error) == (b"", b"jobctl: job 1 was removed meanwhile\n") or b"Stopped" in out
    assert process.returncode == 1


def test_wait_is_interrupted(jobctl: Jobctl) -> None:
    job = jobctl.start("sleep", "600")
    process = jobctl.popen("wait", job, stderr=subprocess.PIPE)
    at_rest(process)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60)[1] == b""
    assert process.returncode == 130
    assert jobctl.state(job) == "Running"


def test_wait_shows_progress_on_a_terminal(jobctl: Jobctl, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    job = jobctl.sh(f"echo '42 down loading' >$JOBCTL_PROGRESS; read x <{gate}")
    child = pexpect.spawn("jobctl", ["wait", "-q", job], env=jobctl.env, timeout=60)
    child.expect("42%.*down loading")
    gate.write_text("\n")
    child.expect("100%")
    child.expect(f"{job}\r\n")
    child.expect(pexpect.EOF)


def test_a_bar_never_wraps_and_begins_where_the_job_is(jobctl: Jobctl, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    job = jobctl.sh(f"echo '40 {'進捗どうですか' * 20}' >$JOBCTL_PROGRESS; read x <{gate}")
    wait_until(lambda: jobctl.job(job)["progress"])
    for columns in (80, 40, 200):
        child = pexpect.spawn(
            PROGRAM, ["wait", job], env=jobctl.env, dimensions=(24, columns), encoding="utf-8"
        )
        child.expect("%")
        before = child.before or ""
        assert before.endswith(" 40")
        child.sendintr()
        lines = re.split("[\r\n]+", f"{before}%{child.read()}")
        assert max(cells(re.sub("\x1b\\[[?0-9]*[a-zA-Z]", "", line)) for line in lines) < columns
        child.wait()
    gate.write_text("\n")


def test_a_bar_shows_what_is_done_and_goes_back_with_the_job(
    jobctl: Jobctl, tmp_path: Path
) -> None:
    gates = [tmp_path / "gate1", tmp_path / "gate2"]
    for gate in gates:
        os.mkfifo(gate)
    done = jobctl.done("true")
    job = jobctl.sh(
        f"echo 70 >$JOBCTL_PROGRESS; read x <{gates[0]};"
        f" echo 20 back >$JOBCTL_PROGRESS; read x <{gates[1]}"
    )
    both = pexpect.spawn(PROGRAM, ["wait", done, job], env=jobctl.env, encoding="utf-8")
    both.expect("%")
    assert (both.before or "").endswith(" 50")
    wait_until(lambda: jobctl.job(job)["progress"])
    child = pexpect.spawn(PROGRAM, ["wait", job], env=jobctl.env, encoding="utf-8")
    child.expect("70%")
    gates[0].write_text("\n")
    child.expect("20%  back")
    gates[1].write_text("\n")
    child.expect("100%")
    for each in (both, child):
        each.expect(pexpect.EOF)
        assert each.wait() == 0


def test_wait_for_three_hundred(jobctl: Jobctl) -> None:
    for _ in range(30):
        jobctl.start("sleep", "0.5")
    assert len(jobctl.out("wait", "-q", "--all").splitlines()) == 30


def test_many_at_once_with_a_time_limit(jobctl: Jobctl, tmp_path: Path) -> None:
    words = ("start", "-q", "--timeout", "7555", "true")
    starting = [jobctl.popen(*words, stdout=subprocess.PIPE) for _ in range(30)]
    for process in starting:
        process.communicate(timeout=60)
        assert process.returncode == 0
    jobctl.run("wait", "--all")
    assert {job["state"] for job in jobctl.jobs()} == {"Completed"}
    wait_until(lambda: not at_home(tmp_path))


# --- stop ---


def test_stop(jobctl: Jobctl) -> None:
    nap = sleeper()
    job = jobctl.sh(f"setsid {nap} & (setsid {nap} &) ; exec {nap}")
    wait_until(lambda: len(processes_with(nap)) >= 3)
    assert jobctl.out("stop", "--reason", "wrong\n input", job) == ""
    assert processes_with(nap) == []
    record = jobctl.job(job)
    assert (record["state"], record["reason"]) == ("Stopped", "stopped by user: wrong input")
    assert record["signal"] == signal.SIGTERM


@pytest.mark.long
def test_stop_between_two_attempts(jobctl: Jobctl) -> None:
    for round_ in range(12):
        job = jobctl.start("--retries", "1000000", "false")
        time.sleep(0.01 * round_)
        jobctl.run("stop", job)
        record = jobctl.job(job)
        assert record["state"] == "Stopped"
        assert (record["exit_code"], record["signal"]) in ((1, None), (None, signal.SIGTERM))


def test_stop_kills_after_grace(jobctl: Jobctl) -> None:
    job = jobctl.sh("trap '' TERM; echo deaf; while :; do sleep 0.1; done")
    wait_until((jobctl.folder(job) / "stdout").read_text)
    began = time.monotonic()
    jobctl.run("stop", "--grace", "0.5", job)
    assert time.monotonic() - began >= 0.5
    assert jobctl.job(job)["signal"] == signal.SIGKILL


def test_stop_of_many_takes_one_grace(jobctl: Jobctl) -> None:
    """They are all asked to end before the first is killed."""
    text = "trap 'echo asked' TERM; echo deaf; while :; do sleep 0.1; done"
    jobs = [jobctl.sh(text) for _ in range(4)]
    for said in ("deaf\n", "deaf\nasked\n"):
        for job in jobs:
            wait_until(lambda: (jobctl.folder(job) / "stdout").read_text() == said)  # noqa: B023
        if said == "deaf\n":
            stop = jobctl.popen("stop", "--all", "--grace", "600")
    for record in jobctl.jobs():
        os.kill(record["pid"], signal.SIGKILL)
    assert stop.wait(60) == 0
    assert {job["state"] for job in jobctl.jobs()} == {"Stopped"}


def test_stop_skips_the_finished(jobctl: Jobctl) -> None:
    job = jobctl.done("true")
    result = jobctl.run("stop", job)
    assert (result.stdout, result.stderr) == (b"", b"")
    assert jobctl.state(job) == "Completed"
    assert jobctl.refused(3, "stop", "99")


def test_stop_reaches_left_overs(jobctl: Jobctl) -> None:
    nap = sleeper()
    job = jobctl.done("-c", f"setsid {nap} & exit 0")
    assert jobctl.state(job) == "Completed"
    wait_until(lambda: processes_with(nap))
    jobctl.run("stop", job)
    assert processes_with(nap) == []
    job = jobctl.done("-c", f"setsid {nap} & exit 0")
    wait_until(lambda: processes_with(nap))
    jobctl.run("remove", job)
    assert processes_with(nap) == []


def test_stop_what_waits(jobctl: Jobctl) -> None:
    first = jobctl.start("sleep", "600")
    second = jobctl.start("--after", first, "touch", "/nowhere")
    jobctl.run("stop", second)
    record = jobctl.job(second)
    assert (record["state"], record["began_at"]) == ("Stopped", None)
    assert jobctl.state(first) == "Running"


def test_signals(jobctl: Jobctl) -> None:
    job = jobctl.sh("trap 'echo got it' USR1; echo ready; while :; do sleep 0.05; done")
    wait_until(lambda: jobctl.out("receive", "--keep", job) == "ready\n")
    for name in ("USR1", "SIGUSR1", "usr1", str(int(signal.SIGUSR1))):
        jobctl.run("stop", "--signal", name, job)
    wait_until(lambda: "got it" in jobctl.out("receive", "--again", job))
    assert jobctl.state(job) == "Running"
    jobctl.run("stop", "--signal", "STOP", job)
    jobctl.until(job, "Suspended")
    jobctl.run("stop", "--signal", "CONT", job)
    jobctl.until(job, "Running")
    jobctl.run("stop", "--signal", "KILL", job)
    jobctl.run("wait", job, status=1)
    assert jobctl.job(job)["reason"] == "stopped by user: signal KILL"


def test_a_job_may_stop_itself(jobctl: Jobctl) -> None:
    nap = sleeper()
    job = jobctl.sh(f"{nap} & jobctl stop $JOBCTL_ID; wait")
    jobctl.run("wait", job, status=1)
    assert jobctl.state(job) == "Stopped"
    wait_until(lambda: not processes_with(nap))


def test_a_job_that_waits_for_one_it_started(jobctl: Jobctl) -> None:
    outer = jobctl.sh("jobctl start --wait sleep 600")
    wait_until(lambda: len(jobctl.jobs()) == 2)
    jobctl.until("2", "Running")
    jobctl.run("stop", outer)
    assert jobctl.state("2") == "Running"


def test_a_reused_pid_is_left_alone(jobctl: Jobctl) -> None:
    innocent = subprocess.Popen(["sleep", "600"])
    job = jobctl.start("sleep", "600")
    run = jobctl.folder(job) / "run"
    pids = [jobctl.runner_pid(job), jobctl.job(job)["pid"]]
    boot, sights = boot_id(), map(look, pids)
    killed = [Identity(p, s.start, boot) for p, s in zip(pids, sights, strict=True) if s]
    text = run.read_text()
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
        text = text.replace(f"'{pid}'", f"'{innocent.pid}'")
    wait_until(lambda: not any(alive(known, known.boot) for known in killed))
    # Somebody who looks through the open files of all processes may keep one for a moment.
    wait_until(
        lambda: subprocess.run(["flock", "-s", "-n", run.with_name("lock"), "true"]).returncode == 0
    )
    run.write_text(text)  # as if both numbers had come round
    try:
        assert jobctl.job(job)["reason"] == "lost: runner was killed"
        jobctl.run("stop", job)
        jobctl.run("stop", "--signal", "KILL", job)
        jobctl.run("remove", "--force", job)
        assert innocent.poll() is None
    finally:
        innocent.kill()
        innocent.wait()


def test_a_reboot(jobctl: Jobctl) -> None:
    job = jobctl.start("-c", "echo x; exec sleep 600")
    wait_until(lambda: jobctl.out("receive", "--keep", job) == "x\n")
    run = jobctl.folder(job) / "run"
    pids = [jobctl.runner_pid(job), jobctl.job(job)["pid"]]
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    run.write_text(run.read_text().replace(boot, "00000000-0000-0000-0000-000000000000"))
    record = jobctl.job(job)
    assert (record["state"], record["reason"]) == ("Failed", "lost: host rebooted")
    assert jobctl.out("receive", job) == "x\n"
    for pid in reversed(pids):
        os.kill(pid, signal.SIGKILL)


def test_a_home_shared_with_another_machine(jobctl: Jobctl) -> None:
    job = jobctl.start("sleep", "600")
    folder = jobctl.folder(job)
    pids = [jobctl.job(job)["pid"], jobctl.runner_pid(job)]
    text = (folder / "run").read_text()
    for line in text.splitlines():
        if line.startswith("host="):
            text = text.replace(line, "host='elsewhere'")
        if line.startswith("boot="):
            text = text.replace(line, "boot='another'")
    (folder / "run").write_text(text)
    record = jobctl.job(job)
    assert (record["state"], record["location"]) == ("Disconnected", "elsewhere")
    assert "elsewhere" in jobctl.refused(5, "stop", job)
    assert "elsewhere" in jobctl.refused(5, "remove", "--force", job)
    jobctl.run("wait", "--timeout", "0.3", job, status=124)
    jobctl.run("remove", "--local-only", job)
    assert jobctl.jobs() == []
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("command", ["wait", "stop", "remove"])
def test_nothing_named(jobctl: Jobctl, command: str) -> None:
    job = jobctl.start("sleep", "600")
    assert "--all" in jobctl.refused(2, command)
    assert "--all" in jobctl.refused(2, command, "--all", job)
    assert jobctl.state(job) == "Running"


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["stop", "--grace", "x", "1"], "'x'"),
        (["stop", "--grace", "-1", "1"], "-1"),
        (["stop", "--signal", "NONSENSE", "1"], "'NONSENSE'"),
        (["stop", "--signal", "0", "1"], "'0'"),
        (["stop", "--signal", "", "1"], "''"),
        (["stop", "--signal", "TERM; rm -rf /", "1"], "rm"),
        (["wait", "--timeout", "x", "1"], "'x'"),
        (["remove", "--older-than", "long", "1"], "'long'"),
        (["remove", "../..", "1"], ""),
    ],
)
def test_bad_input(jobctl: Jobctl, words: list[str], named: str) -> None:
    jobctl.start("sleep", "600")
    result = jobctl.run(*words, status=None)
    assert result.returncode in (2, 3, 4)
    assert named in result.stderr.decode()
    assert jobctl.state("1") == "Running"


# --- remove ---


def test_remove(jobctl: Jobctl) -> None:
    nap = sleeper()
    jobctl.done("true")
    running = jobctl.start(*nap.split())
    jobctl.done("false")
    result = jobctl.run("remove", "--all", status=4)
    assert result.stdout == b""
    assert result.stderr.decode().startswith(f"jobctl: job {running} is Running")
    assert [job["id"] for job in jobctl.jobs()] == [running]
    assert sorted(path.name for path in (jobctl.state_dir / "jobs").iterdir()) == [running]
    jobctl.run("remove", "--force", running)
    assert jobctl.jobs() == []
    assert processes_with(nap) == []
    jobctl.refused(3, "remove", running)


def test_remove_filters(jobctl: Jobctl) -> None:
    old, new = jobctl.done("true"), jobctl.done("true")
    exit_file = jobctl.folder(old) / "exit"
    lines = exit_file.read_text().splitlines()
    ended = next(line for line in lines if line.startswith("ended='"))
    exit_file.write_text(exit_file.read_text().replace(ended, "ended='1600000000.5'"))
    (jobctl.state_dir / "index.db").unlink()
    assert jobctl.out("remove", "--dry-run", "-q", "--older-than", "1d") == f"{old}\n"
    assert len(jobctl.jobs()) == 2
    jobctl.run("remove", "--older-than", "1d")
    assert [job["id"] for job in jobctl.jobs()] == [new]
    assert jobctl.out("remove", "--all", "--dry-run", "-o", "ids") == f"{new}\n"


def test_remove_while_others_look(jobctl: Jobctl) -> None:
    for _ in range(30):
        jobctl.start("true")
    jobctl.run("wait", "--all")
    removers = [jobctl.popen("remove", "--all", stderr=subprocess.PIPE) for _ in range(4)]
    lookers = [
        jobctl.popen("get", stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) for _ in range(4)
    ]
    for process in (*removers, *lookers):
        assert process.communicate(timeout=60)[1] == b""
        assert process.returncode == 0
    assert list((jobctl.state_dir / "jobs").iterdir()) == []


@pytest.mark.parametrize(("words", "step"), [((), "planned"), (("--foreach", "-"), "_runs")])
def test_what_is_deleted_while_it_is_read(
    jobctl: Jobctl, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], step: str
) -> None:
    """It is no job any more: nothing is shown as damaged."""
    for gone in (lambda folder: folder.read("") is None, lambda folder: folder.children("") == []):
        job = jobctl.done(*words, "true", input=b"a\nb\n")
        folder = Jobs(str(jobctl.state_dir)).folder(job)
        done = getattr(folder, step)

        def deletes(*arguments: str, folder: Folder = folder, done: Any = done) -> object:
            folder.delete()
            return done(*arguments)

        monkeypatch.setattr(folder, step, deletes)
        assert gone(folder)


def test_closed_standard_input(jobctl: Jobctl) -> None:
    job = jobctl.start("cat", stdin=None, preexec_fn=lambda: os.close(0))
    for verb in ("get", "wait", "receive", "stop", "remove"):
        result = jobctl.run(verb, job, stdin=None, preexec_fn=lambda: os.close(0))
        assert result.stderr == b""
    assert jobctl.jobs() == []
