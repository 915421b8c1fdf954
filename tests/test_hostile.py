"""Places and files that mean harm, or were harmed: one clear line, and nothing lost."""

from __future__ import annotations

import itertools
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import (
    PROGRAM,
    WEIRD,
    Jobctl,
    at_rest,
    first_of,
    living_slots,
    sleeper,
    sleeping,
    wait_until,
)
from disk import Disk, mounted

from jobctl import records
from jobctl.folder import STREAMS, Folder

ROOT = os.geteuid() == 0
SOMEBODY = 54321
"""A user who is not in passwd."""
COMMANDS = (
    ("start", "true"),
    ("get",),
    *((verb, "1") for verb in "receive wait stop remove".split()),
)
# Root may write everywhere but without these capabilities.
WITHOUT_PRIVILEGE = (
    ("setpriv", "--bounding-set=-dac_override,-dac_read_search,-fowner") if ROOT else ()
)
AS_SOMEBODY = (
    "setpriv",
    f"--reuid={SOMEBODY}",
    f"--regid={SOMEBODY}",
    "--clear-groups",
    "--inh-caps=+dac_read_search",  # the program may be where only we can read
    "--ambient-caps=+dac_read_search",
)
Result = subprocess.CompletedProcess[bytes]


@pytest.fixture(autouse=True)
def _faults_stay_here(jobctl: Jobctl, tmp_path: Path) -> None:
    """Have the files that tell of a fault written where they go away with the test."""
    jobctl.env["TMPDIR"] = str(tmp_path)


def call(jobctl: Jobctl, *words: str, prefix: tuple[str, ...] = (), **options: Any) -> Result:
    """Run it in some other way, fail if it hangs or has a fault to tell of."""
    options = {"timeout": 120, **options}
    if not prefix:
        return sane(jobctl.run(*words, status=None, **options))
    options = {"env": jobctl.env, "stdin": subprocess.DEVNULL, **options}
    command = [*prefix, PROGRAM, *words]
    return sane(subprocess.run(command, capture_output=True, check=False, **options))


def sane(result: Result) -> Result:
    for word in (b"Traceback", b"a fault in jobctl"):
        assert word not in result.stderr, result.stderr.decode()
    return result


def one_line(result: Result, status: int) -> str:
    assert result.returncode == status, result
    lines = result.stderr.decode().splitlines()
    assert len(lines) == 1, result
    assert lines[0].startswith("jobctl: ")
    return lines[0]


def move(jobctl: Jobctl, path: Path) -> Path:
    """Have it use another state directory."""
    jobctl.state_dir = path
    jobctl.env["JOBCTL_STATE_DIR"] = str(path)
    return path


def all_at_once(jobctl: Jobctl, *commands: tuple[str, ...]) -> list[Result]:
    """Run commands in parallel; a hang or a fault in one of them is a failure."""
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    results = []
    for words, process in [(words, jobctl.popen(*words, **pipes)) for words in commands]:
        out, err = process.communicate(timeout=60)
        results.append(sane(subprocess.CompletedProcess(words, process.returncode, out, err)))
    return results


def limited(kind: int, limit: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(kind, (limit, limit))


# --- the state directory --------------------------------------------------------


def test_what_is_made_is_private(jobctl: Jobctl, tmp_path: Path) -> None:
    state = move(jobctl, tmp_path / "new" / "state")
    job = jobctl.start("-e", "a-b=c", "--stdin", "/dev/null", "echo", "x", umask=0)
    jobctl.run("wait", job, umask=0)
    jobctl.run("receive", job, umask=0)
    jobctl.start("sleep", "600", umask=0)
    assert state.stat().st_mode & 0o777 == 0o700
    for path in state.rglob("*"):
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path


@pytest.mark.long
def test_one_that_cannot_be_written(jobctl: Jobctl) -> None:
    job = jobctl.done("-c", "echo out; exit 3")
    lost = jobctl.start("sleep", "600")
    record = jobctl.job(lost)
    os.kill(jobctl.runner_pid(lost), signal.SIGKILL)
    os.kill(record["pid"], signal.SIGKILL)
    entries = [jobctl.state_dir, *jobctl.state_dir.rglob("*")]
    modes = {path: path.stat().st_mode for path in entries}
    for path in entries:
        path.chmod(modes[path] & ~0o222)
    try:
        refusal = one_line(call(jobctl, "start", "true", prefix=WITHOUT_PRIVILEGE), 125)
        assert "Permission denied; nothing was recorded" in refusal
        shown = call(jobctl, "get", "-o", "wide", prefix=WITHOUT_PRIVILEGE)
        assert shown.returncode == 0, shown
        assert b"exit status 3" in shown.stdout
        assert b"lost: runner was killed" in shown.stdout
        assert b"Running" not in shown.stdout
        waited = call(jobctl, "wait", "--all", prefix=WITHOUT_PRIVILEGE)
        assert (waited.returncode, waited.stderr) == (1, b"")
        kept = call(jobctl, "receive", "--keep", job, prefix=WITHOUT_PRIVILEGE)
        assert (kept.returncode, kept.stdout) == (0, b"out\n")
        # What cannot be marked as received is not delivered.
        received = call(jobctl, "receive", job, prefix=WITHOUT_PRIVILEGE)
        assert one_line(received, 125)
        assert received.stdout == b""
        assert one_line(call(jobctl, "remove", job, prefix=WITHOUT_PRIVILEGE), 125)
    finally:
        for path, mode in modes.items():
            path.chmod(mode)
    assert jobctl.out("get", "-q") == f"{job}\n{lost}\n"
    assert jobctl.out("receive", job) == "out\n"


def test_writable_by_others(jobctl: Jobctl) -> None:
    jobctl.done("echo", "x")
    for mode in (0o720, 0o702, 0o1777):
        jobctl.state_dir.chmod(mode)
        for words in COMMANDS:
            assert "move it away, or set JOBCTL_STATE_DIR" in jobctl.refused(4, *words)
    jobctl.state_dir.chmod(0o755)
    assert jobctl.out("receive", "1") == "x\n"


def test_symbolic_links(jobctl: Jobctl, tmp_path: Path) -> None:
    link = jobctl.state_dir
    link.symlink_to(tmp_path / "real")
    for words in COMMANDS:
        jobctl.refused(125, *words)
    assert not (tmp_path / "real").exists()
    (tmp_path / "real").mkdir(mode=0o700)
    job = jobctl.sh("echo x; sleep 600")
    wait_until(lambda: jobctl.out("receive", job) == "x\n")
    jobctl.run("stop", job)
    assert jobctl.state(job) == "Stopped"
    os.chown(link, SOMEBODY, -1, follow_symlinks=False)
    for words in COMMANDS:
        assert f"belongs to user {SOMEBODY}" in jobctl.refused(4, *words)
    link.unlink()


@pytest.mark.parametrize(
    "name",
    [
        *(b"\xff\xfe\x80", b"-n"),
        *first_of(WEIRD.encode(), b"a b", b"a\nb\n", b"$(exit)`exit`", b"%s\\c", b"a=b"),
    ],
)
def test_paths_that_must_be_quoted(jobctl: Jobctl, tmp_path: Path, name: bytes) -> None:
    move(jobctl, tmp_path / os.fsdecode(name) / "state")
    hook = tmp_path / "hook"
    text = "echo '42 x' >$JOBCTL_PROGRESS; echo out; setsid sleep 600"
    job = jobctl.sh(text, "--on-finish", f"echo $JOBCTL_STATE >{hook}", "-e", "a-b=c")
    wait_until(lambda: jobctl.job(job)["progress"])
    assert jobctl.state(job) == "Running"
    script = tmp_path / "script"
    script.write_text("cat")
    later = jobctl.start("--after", job, "-f", str(script), "--stdin", str(script))
    jobctl.run("stop", job)
    assert jobctl.state(job) == "Stopped"
    assert jobctl.out("receive", job) == "out\n"
    jobctl.run("wait", later)
    assert jobctl.out("receive", later) == "cat"
    assert wait_until(lambda: hook.exists() and hook.read_text()) == "Stopped\n"
    jobctl.run("remove", "--all")
    assert list((jobctl.state_dir / "jobs").iterdir()) == []


# --- where it is when nobody says ------------------------------------------------


def without(jobctl: Jobctl, *names: str, **more: str) -> dict[str, str]:
    return {name: value for name, value in jobctl.env.items() if name not in names} | more


@pytest.mark.parametrize("home", [None, *first_of("", "relative", ".")])
def test_no_home_at_all(jobctl: Jobctl, tmp_path: Path, home: str | None) -> None:
    # As somebody who can write nowhere: a wrong answer must not end up in a real directory.
    env = without(jobctl, "HOME", "JOBCTL_STATE_DIR") | ({} if home is None else {"HOME": home})
    for words in COMMANDS:
        result = call(jobctl, *words, prefix=AS_SOMEBODY, env=env, cwd=tmp_path)
        assert "no home directory" in one_line(result, 125)
    assert not (tmp_path / "relative").exists()


def test_relative_and_empty_names(jobctl: Jobctl, tmp_path: Path) -> None:
    home = tmp_path / "home"
    for number, more in enumerate(({"XDG_STATE_HOME": "relative"}, {"JOBCTL_STATE_DIR": ""}), 1):
        env = without(jobctl, "JOBCTL_STATE_DIR", HOME=str(home), **more)
        assert jobctl.start("true", env=env, cwd=tmp_path) == str(number)
    env = without(jobctl, "JOBCTL_STATE_DIR", XDG_STATE_HOME=str(home / ".local/state"))
    assert jobctl.out("wait", "-q", "--all", env=env) == "1\n2\n"


# --- a full disk -----------------------------------------------------------------


@pytest.fixture(name="disk")
def _disk(jobctl: Jobctl, tmp_path: Path) -> Iterator[Disk]:
    path = tmp_path / "disk"
    with mounted(path, "size=512k"):
        move(jobctl, path / "state")
        disk = Disk(path)
        try:
            yield disk
        finally:
            disk.free()
            call(jobctl, "remove", "--all", "--force")
    move(jobctl, tmp_path / "state")


def test_items_on_a_full_disk(jobctl: Jobctl, disk: Disk) -> None:
    """Nothing is half recorded, however much was read; and afterwards all goes on."""
    disk.free()
    items = jobctl.state_dir.parent.parent / "items"
    items.write_text("".join(f"{number} {'x' * 1000}\n" for number in range(2000)))
    result = call(jobctl, "start", "--foreach", str(items), "true")
    assert "nothing was recorded" in one_line(result, 125)
    assert jobctl.out("get") == ""
    assert not list(jobctl.state_dir.glob("jobs/*"))
    job = jobctl.out("start", "-q", "--foreach", "-", "echo", input=b"1\n2\n").strip()
    jobctl.run("wait", job)
    assert jobctl.out("receive", job) == "1\n2\n"


def test_an_item_that_cannot_be_written_down(jobctl: Jobctl, disk: Disk, tmp_path: Path) -> None:
    """It begins when there is room again, or is run by another slot, and nothing runs twice."""
    for killed in (False, True):
        ran, gate = tmp_path / f"ran{killed}", tmp_path / f"gate{killed}"
        text = f"echo {{}} >>{ran}; [ {{}} != 9 ] || until [ -e {gate} ]; do sleep 0.02; done"
        items = "".join(f"{number}\n" for number in range(1, 121)).encode()
        job = jobctl.start("--foreach", "-", "-t", "1", "-c", text, input=items)
        wait_until(lambda ran=ran: ran.exists() and ran.read_text().endswith("9\n"))  # type: ignore[misc]
        disk.fill()
        gate.touch()
        journal = jobctl.folder(job) / "slots/1/journal"
        wait_until(lambda journal=journal: journal.stat().st_size == os.sysconf("SC_PAGESIZE"))  # type: ignore[misc]
        if killed:
            os.kill(int((jobctl.folder(job) / "slots/1/self").read_text().split()[0]), 9)
        disk.free()
        call(jobctl, "wait", job)
        begun = ran.read_text().split()
        assert len(begun) == len(set(begun))
        states = {child["state"] for child in jobctl.jobs("--children", job)[1:]}
        assert states <= ({"Completed", "Failed"} if killed else {"Completed"})
        assert len(begun) >= 120 - killed


def killed_on_a_full_disk(jobctl: Jobctl, disk: Disk, stop: bool) -> str:
    """Return a job with two items of which one was running as its slot was killed."""
    nap = sleeper()
    job = jobctl.start("--foreach", "-", "-t", "1", "-c", nap, input=b"a\nb\n")
    (command,) = wait_until(lambda: sleeping(nap))
    if stop:
        (jobctl.folder(job) / "stop").write_text("stopped by user: enough\n")
    for pid in (*living_slots(jobctl.folder(job)), command):
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not (sleeping(nap) or living_slots(jobctl.folder(job))))
    journal = jobctl.folder(job) / "slots/1/journal"
    with journal.open("ab") as file:  # so that the next line needs another page
        file.write(b"x" * (os.sysconf("SC_PAGESIZE") - journal.stat().st_size - 1) + b"\n")
    disk.fill()
    return job


def test_who_looks_at_what_cannot_be_written_down(jobctl: Jobctl, disk: Disk) -> None:
    """Sees it as it is, and all other jobs; what is known is written when there is room."""
    other = jobctl.done("true")
    job = killed_on_a_full_disk(jobctl, disk, stop=False)
    for _ in range(2):
        assert jobctl.out("get", "-q") == f"{other}\n{job}\n"
        assert jobctl.job(f"{job}.1")["reason"] == "lost: runner was killed"
    disk.free()
    jobctl.run("stop", job)
    states = [jobctl.state(one) for one in (other, job, f"{job}.1", f"{job}.2")]
    assert states == ["Completed", "Failed", "Failed", "Stopped"]


def test_an_end_that_cannot_be_written_down_is_not_forgotten(jobctl: Jobctl, disk: Disk) -> None:
    job = killed_on_a_full_disk(jobctl, disk, stop=True)
    for _ in range(2):
        jobctl.run("get", "-q")
    disk.free()
    record = jobctl.job(job)
    assert (record["state"], record["reason"]) in (
        ("Stopped", "stopped by user: enough"),
        ("Failed", "lost: runner was killed"),
    )


def test_what_is_not_settled_keeps_all_that_it_had(jobctl: Jobctl, disk: Disk) -> None:
    job = Folder(str(jobctl.folder(jobctl.done("true"))))
    os.unlink(job.file("exit"))
    for name in ("far.env", "env"):
        job.put(name, b"export SECRET='x'\n")
    disk.fill()
    with pytest.raises(OSError, match="No space left"):
        job.settle(b"state='Failed'\n")
    assert job.get("far.env") == job.get("env") == b"export SECRET='x'\n"
    disk.free()
    job.put("exit.new", b"\n" * 512)
    disk.fill()
    assert job.settle(b"state='Failed'\n")
    assert records.load(job.file("exit")) == {"state": b"Failed"}
    assert not any(map(job.has, ("far.env", "env", "exit.new")))
    assert not job.settle(b"state='Completed'\n")


def test_start_on_a_full_disk(jobctl: Jobctl, disk: Disk) -> None:
    jobctl.done("true")
    started = []
    for pages in range(0, 16, 2):
        disk.fill(free=pages * 4096)
        result = call(jobctl, "start", "-q", "true")
        if result.returncode == 0:
            started.append(job := result.stdout.decode().strip())
            call(jobctl, "wait", job)
            disk.free()
            assert jobctl.state(job) == "Completed"
            jobctl.run("remove", job)
        else:
            assert "nothing was recorded" in one_line(result, 125)
            assert jobctl.out("get", "-q") == "1\n"
            assert os.listdir(jobctl.state_dir / "jobs") == ["1"]
    assert 0 < len(started) < 8


def test_a_disk_that_gets_full_while_a_job_runs(jobctl: Jobctl, disk: Disk, tmp_path: Path) -> None:
    go = tmp_path / "go"
    text = f"echo out; until [ -e {go} ]; do sleep 0.02; done; echo more; exit 3"
    job = jobctl.sh(text)
    stopped = jobctl.sh("echo out; sleep 600")
    timed = jobctl.sh("sleep 600", "--timeout", "0.3")
    wait_until(lambda: jobctl.folder(stopped).joinpath("stdout").stat().st_size)
    disk.fill()
    go.touch()
    assert call(jobctl, "wait", job, timed).returncode == 1
    call(jobctl, "stop", "--grace", "1", stopped)
    for _ in range(2):
        assert (jobctl.state(job), jobctl.job(job)["exit_code"]) == ("Failed", 3)
        assert jobctl.job(timed)["reason"] == "timed out after 0.3s"
        assert jobctl.state(stopped) == "Stopped"
        disk.free()


# --- job folders -----------------------------------------------------------------

FILES = "spec run exit exit.new received progress lock env stop stdout stderr log".split()
ABSURD = (
    b"state='Running'\ncode='99999999999999999999'\nsignal='18446744073709551615'\n"
    b"reason='\x1b[2J'\nended='-9e11'\nended_uptime='nan'\nended='inf'\nboot='\xff'\n"
    b"runner='99999999999999999999'\nrunner_ticks=''\npid='0'\nticks='x'\nhost=''\n"
    b"began='9e11'\nbegan_uptime='-9e11'\nattempt='-1'\ninstance_id='\x00'\nname='\n'\n"
    b"stdout='99999999999999999999'\nstderr='7'\ntold='2'\n"
    b"returned='stdout:3-1 stdout:0-99999999 stderr:50-60'\n"
)


def written(content: bytes) -> Callable[[Path], None]:
    def corrupt(path: Path) -> None:
        # The runner has no HOME, so that the name has to be written out.
        path.write_bytes(content.replace(b"PWNED", os.fsencode(os.environ["HOME"]) + b"/pwned"))

    return corrupt


def replaced(make: Callable[[Path], object]) -> Callable[[Path], None]:
    def corrupt(path: Path) -> None:
        path.unlink(missing_ok=True)
        make(path)

    return corrupt


CORRUPTIONS: dict[str, Callable[[Path], None]] = {
    "empty": written(b""),
    "random": written(random.Random(1).randbytes(5_000)),
    "quotes": written(b"'" * 1_000_000),
    "letters": written(b"a" * 1_000_000),
    "half": lambda path: os.truncate(path, path.stat().st_size // 2) if path.exists() else None,
    "shell": written(
        b"touch PWNED\n$(touch PWNED)\n`touch PWNED`\n';touch PWNED;'\n"
        b"runner='$(touch PWNED)'\npid='a[$(touch PWNED)]'\nboot=''\n"
    ),
    "absurd": written(ABSURD),
    "directory": replaced(lambda path: os.makedirs(path / "inside")),
    "deleted": replaced(lambda path: None),
    "dangling": replaced(lambda path: path.symlink_to("nowhere")),
    "fifo": replaced(os.mkfifo),
}
WHILE_RUNNING = ("half", "random", "shell", "absurd", "directory", "deleted", "fifo")
UNMARKABLE = (("received", "directory"), ("received", "fifo"))


def is_job(file: str, corruption: str) -> bool:
    """Whether a folder is still a job's after a file of it was harmed."""
    return file != "spec" or corruption != "deleted"


def looked_at(jobctl: Jobctl, harmed: dict[str, tuple[str, str]]) -> dict[str, dict[str, Any]]:
    """Use every command that only looks; return the records of all jobs."""
    known = [job for job, harm in harmed.items() if is_job(*harm)]
    received = call(jobctl, "receive", "--all")
    unmarkable = [job for job, (file, how) in harmed.items() if (file, how) in UNMARKABLE]
    why = rb"jobctl: job (\d+): cannot note what is received: 'received' is no plain file;"
    assert re.findall(why, received.stderr) == [job.encode() for job in unmarkable]
    assert received.returncode == 125
    delivered = [job for job in known if harmed[job][0] not in ("received", *STREAMS)]
    assert received.stdout.count(b"out\n") >= len(delivered)
    call(jobctl, "receive", "--again", "--all")
    assert call(jobctl, "get", "-o", "wide").returncode == 0
    call(jobctl, "wait", "--all", "--timeout", "0.1")
    records = {job["id"]: job for job in jobctl.jobs()}
    assert list(records) == sorted(known, key=int)
    return records


def cleared(jobctl: Jobctl, harmed: dict[str, tuple[str, str]]) -> None:
    """Remove all; afterwards nothing is left."""
    result = call(jobctl, "remove", "--all", "--force")
    assert (result.returncode, result.stderr) == (0, b"")
    for folder in jobctl.state_dir.glob("jobs/*"):  # no jobs any more, and soon not there
        assert not is_job(*harmed[folder.name])
        os.utime(folder, (0, 0))
    os.utime(jobctl.state_dir / "jobs")
    assert jobctl.jobs() == []
    assert not list(jobctl.state_dir.glob("jobs/*"))


@pytest.mark.long
def test_harmed_folders_of_finished_jobs(jobctl: Jobctl, tmp_path: Path) -> None:
    first = jobctl.done("-c", "echo '42 x' >$JOBCTL_PROGRESS; echo out; exit 3")
    harmed: dict[str, tuple[str, str]] = {}
    for file, corruption in itertools.product(FILES, CORRUPTIONS):
        job = str(len(harmed) + 2)
        shutil.copytree(jobctl.folder(first), jobctl.folder(job))
        CORRUPTIONS[corruption](jobctl.folder(job) / file)
        os.utime(jobctl.folder(job), (0, 0))  # long ago: no start is about to write a spec
        harmed[job] = (file, corruption)
    jobctl.run("remove", first)
    (jobctl.state_dir / "index.db").unlink()
    for job, record in looked_at(jobctl, harmed).items():
        file, corruption = harmed[job]
        assert record["state"] in ("Completed", "Failed", "Stopped"), record
        assert record["exit_code"] == 3 or file == "exit"
        if file == "spec":
            reason = "damaged: the file spec cannot be read"
            assert (record["state"], record["reason"]) == ("Failed", reason), corruption
            assert (jobctl.folder(job) / "stdout").read_bytes() == b"out\n"
    cleared(jobctl, harmed)
    assert not (tmp_path / "pwned").exists()


@pytest.mark.long
@pytest.mark.parametrize("verb", first_of("stop", "wait"))
def test_harmed_folders_of_running_jobs(jobctl: Jobctl, tmp_path: Path, verb: str) -> None:
    go = tmp_path / "go"
    os.mkfifo(go)  # opened to read, it holds up until somebody has it open to write
    text = (
        f"echo '42 x' >$JOBCTL_PROGRESS; echo out; echo $$ >{tmp_path}/$JOBCTL_ID.pid;"
        f" : <{go}; exit 3"
    )
    # What only the runner reads, and waits for, is left out.
    harms = [
        (file, corruption)
        for file, corruption in itertools.product(FILES, WHILE_RUNNING)
        if file != "exit.new"
        and (file not in ("run", "stop") or corruption != "fifo")
        and (file in ("spec", "run") or corruption != "half")
    ]
    all_at_once(jobctl, *[("start", "-q", "-c", text)] * len(harms))
    harmed = dict(zip(jobctl.out("get", "-q").split(), harms, strict=True))
    pids = {job: tmp_path / f"{job}.pid" for job in harmed}
    wait_until(lambda: all(path.exists() and path.read_text() for path in pids.values()))
    for job, (file, corruption) in harmed.items():
        CORRUPTIONS[corruption](jobctl.folder(job) / file)
    for job, record in looked_at(jobctl, harmed).items():
        if harmed[job][0] not in ("exit", "stop"):
            assert record["state"] == "Running", (harmed[job], record)
    if verb == "stop":
        call(jobctl, "stop", "--all", "--grace", "0.5")
        for job, harm in harmed.items():
            assert not alive(int(pids[job].read_text())) or not is_job(*harm), harm
    with open(go, "r+b", buffering=0):
        assert call(jobctl, "wait", "--all", "--timeout", "100").returncode == 1
    for record in jobctl.jobs():
        assert record["state"] in ("Completed", "Failed", "Stopped"), record
    wait_until(lambda: not any(alive(int(path.read_text())) for path in pids.values()))
    cleared(jobctl, harmed)
    assert not (tmp_path / "pwned").exists()


UNREADABLE = ("spec", "run", "exit", "received", "stdout", "slots", "slots/1/journal", "items/1")


@pytest.mark.long
def test_files_of_one_job_that_cannot_be_read(jobctl: Jobctl) -> None:
    """That job has failed, if it is not known how it ended; every other command and job goes on."""
    harmed = {}
    for name in UNREADABLE:
        items = ("--foreach", "-") if "/" in name or name == "slots" else ()
        job = jobctl.start(*items, "-c", "echo out", input=b"a\n")
        harmed[job] = name
    whole = jobctl.start("echo", "whole")
    jobctl.run("wait", "--all")
    for job, name in harmed.items():
        (jobctl.folder(job) / name).chmod(0)
    (jobctl.state_dir / "index.db").unlink()
    shown = call(jobctl, "get", "-o", "json", prefix=WITHOUT_PRIVILEGE)
    assert (shown.returncode, shown.stderr) == (0, b"")
    for record in json.loads(shown.stdout):
        name = harmed.get(record["id"], "")
        reason = f"damaged: the file {name} cannot be read" if name in ("spec", "exit") else ""
        assert (record["reason"], record["state"]) == (reason, "Failed" if reason else "Completed")
    received = call(jobctl, "receive", "--all", prefix=WITHOUT_PRIVILEGE)
    assert received.returncode == 125
    assert b"job 4: cannot note what is received: " in received.stderr
    assert b"job 5: cannot read its stdout: Permission denied" in received.stderr
    assert b"whole\n" in received.stdout
    assert b"Traceback" not in received.stderr
    assert call(jobctl, "receive", whole, prefix=WITHOUT_PRIVILEGE).stdout == b""
    jobctl.run("remove", "--all")


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_folders_removed_by_hand(jobctl: Jobctl) -> None:
    finished, running = jobctl.done("true"), jobctl.start("sleep", "600")
    pid = jobctl.job(running)["pid"]
    runner = jobctl.runner_pid(running)
    waiter = jobctl.popen("wait", running, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    at_rest(waiter)
    for job in (finished, running):
        shutil.rmtree(jobctl.folder(job))
        assert jobctl.jobs() == [] or job == finished
        for verb in ("receive", "wait", "stop", "remove"):
            assert f"no job {job}" in jobctl.refused(3, verb, job)
    os.kill(pid, signal.SIGTERM)
    out, err = waiter.communicate(timeout=60)
    assert (waiter.returncode, out) == (124, b"") or b"removed meanwhile" in err
    wait_until(lambda: not alive(runner))
    assert int(jobctl.start("true")) > int(running)


@pytest.mark.long
@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_a_harmed_count_of_ids(jobctl: Jobctl, corruption: str) -> None:
    jobctl.start("true")
    jobctl.start("true")
    CORRUPTIONS[corruption](jobctl.state_dir / "last")
    result = call(jobctl, "start", "-q", "true")
    if result.returncode:
        assert "nothing was recorded" in one_line(result, 125)
    else:
        assert result.stdout == b"3\n"
        assert call(jobctl, "start", "-q", "true").stdout == b"4\n"


# --- limits ----------------------------------------------------------------------


@pytest.mark.long
def test_more_jobs_than_descriptors(jobctl: Jobctl, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "go")
    text = f"echo $JOBCTL_ID; : <{tmp_path}/go"
    all_at_once(jobctl, *[("start", "-q", "-c", text)] * 20)
    options: dict[str, Any] = {
        "preexec_fn": limited(resource.RLIMIT_NOFILE, 24),
    }
    wait_until(lambda: all((jobctl.folder(str(n)) / "stdout").read_text() for n in range(1, 21)))
    result = call(jobctl, "wait", "--all", "-q", "--timeout", "1", **options)
    assert (result.returncode, result.stdout, result.stderr) == (124, b"", b"")
    result = call(jobctl, "receive", "--all", "--wait", "--timeout", "1", **options)
    assert (result.returncode, result.stderr) == (124, b"")
    assert sorted(map(int, result.stdout.split())) == list(range(1, 21))
    assert {job["state"] for job in jobctl.jobs()} == {"Running"}
    with (tmp_path / "go").open("r+b", buffering=0):
        result = call(jobctl, "wait", "--all", "-q", **options)
    assert (result.returncode, result.stderr) == (0, b"")
    assert len(result.stdout.split()) == 20


@pytest.mark.parametrize("kind", ["directory", "fifo"])
def test_what_the_runner_writes_is_in_the_way(jobctl: Jobctl, kind: str) -> None:
    make = {"directory": "mkdir", "fifo": "mkfifo"}[kind]
    text = f'cd "${{JOBCTL_PROGRESS%/*}}" && rm exit.new && {make} exit.new && exit 3'
    job = jobctl.sh(text)
    assert jobctl.jobs(job)[0]["exit_code"] in (None, 3)
    jobctl.run("wait", "--timeout", "100", job, status=1)
    assert jobctl.jobs(job)[0]["exit_code"] == 3
