"""What became of an attempt, alike for jobs and items, here and on a host; and who is reached."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from conftest import (
    PROGRAM,
    Jobctl,
    first_of,
    living_slots,
    processes_with,
    sleeper,
    sleeping,
    wait_until,
)
from far import Far
from sshd import MakeSshd, Wire
from test_items import children, each

TIME_OUT = "timed out after 5s"
ENDINGS = {
    "exit 0": ("Completed", "", 0),
    "exit 3": ("Failed", "exit status 3", 3),
    "kill -9 $$": ("Failed", "killed by signal 9 (KILL)", None),
    "trap 'exit 0' TERM; while :; do sleep 0.1; done": ("Failed", TIME_OUT, 0),
    "trap 'exit 4' TERM; while :; do sleep 0.1; done": ("Failed", TIME_OUT, 4),
    "exec sleep 7423": ("Failed", TIME_OUT, None),
}
"""Shell text that is given five seconds, and how it ends."""
BOUND = ("setpriv", "--bounding-set", "-kill,-sys_ptrace,-sys_admin,-cap_38")
"""Has root signal no other user, and, without the latter three, read nobody's environment."""


def test_the_same_verdict_everywhere(either: Far) -> None:
    options = ("--timeout", "5", "--retries", "1")
    plain = [either.sh(f"echo x; {text}", *options) for text in ENDINGS]
    data = "\n".join(ENDINGS)
    text = 'echo x; eval "$1"'
    job = each(either, data, *either.where, *options, "-t", "6", "-c", text)
    either.run("wait", *plain, job, "--timeout", "60", status=1)
    records = [*map(either.job, plain), *children(either, job)]
    found = [(r["state"], r["reason"], r["exit_code"]) for r in records]
    assert found == [*ENDINGS.values()] * 2
    tried = ["x\n" if end[0] == "Completed" else "x\nx\n" for end in ENDINGS.values()]
    shown = [either.out("receive", r["id"], status=None) for r in records]
    assert shown == tried * 2


def test_a_session_whose_leader_has_gone(either: Far) -> None:
    nap = sleeper()
    job = either.sh(f"env -i {nap} & exit 0")
    either.run("wait", job)
    (pid,) = wait_until(lambda: sleeping(nap))
    either.run("remove", job)
    assert processes_with(nap) == [], pid
    assert either.jobs() == []


@pytest.mark.long
def test_a_program_of_ones_own(either: Far, tmp_path: Path) -> None:
    program = tmp_path / "sleeper"
    shutil.copy(shutil.which("sleep") or "", program)
    job = either.start(str(program), "7426")
    either.until(job, "Running")
    assert processes_with(f"{program} 7426") == [either.job(job)["pid"]]
    either.run("stop", job)
    assert either.job(job)["state"] == "Stopped"


def foreign() -> tuple[Jobctl, list[str]]:
    """Return the program of one user, and words by which that one runs a command as root."""
    if os.getuid() != 0:
        pytest.skip("only root can run commands as two users")
    home = Path(tempfile.mkdtemp(prefix="jobctl-", dir="/tmp"))  # where any user comes
    become = shutil.which("setpriv")
    assert become, "setpriv is not installed; tests/run.sh installs it"
    setuid = home / "become"
    shutil.copy(become, setuid)
    os.chown(home, 65534, 65534)
    setuid.chmod(0o4755)
    return Jobctl(home / "state", home), [str(setuid), "--reuid", "0", "--clear-groups"]


@pytest.mark.long
def test_a_command_of_another_user() -> None:
    program, as_root = foreign()
    home = program.state_dir.parent
    package = home / "lib"
    shutil.copytree(Path(__file__).parent.parent / "jobctl", package / "jobctl")
    bare = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "/bin/sh"]
    words = [*bare, str(package / "jobctl" / "bare.sh")]

    def run(*more: str, status: int = 0) -> str:
        result = subprocess.run(
            [*words, *more], env=program.env, cwd=home, stdin=-3, stdout=-1, stderr=-2, timeout=60
        )
        assert result.returncode == status, (more, result)
        return result.stdout.decode()

    go = home / "go"
    text = f"while [ ! -e {go} ]; do sleep 0.1; done"
    try:
        job = run("start", "-q", *as_root, "sh", "-c", text).strip()
        assert "reached none" in run("stop", "--signal", "KILL", job, status=1)
        assert "cannot be ended" in run("stop", "--grace", "0", job, status=125)
        own = run("start", "-q", "sleep", "7427").strip()
        run("stop", "--grace", "0", own)
        assert "Stopped" in run("get", own)
        assert "Running" in run("get", job)
        assert "cannot be ended" in run("remove", "--force", job, status=125)
        assert (program.folder(job) / "spec").exists()
        mark = program.folder(job) / "stop"
        mark.write_text("enough\n")
        with subprocess.Popen(
            [*words, "stop", "--grace", "600", job], env=program.env, cwd=home, stdin=-3
        ) as stopping:
            # It may not, and takes the request back; then the command ends by itself.
            wait_until(lambda: not mark.exists())
            go.touch()
            assert stopping.wait() == 0
        assert "Completed" in run("wait", job)
        run("remove", job)
        assert not program.folder(job).exists()
    finally:
        go.touch()
        wait_until(lambda: not processes_with(text))
        shutil.rmtree(home)


def test_items_that_were_never_begun_are_given_back_at_once(jobctl: Jobctl, tmp_path: Path) -> None:
    nap = sleeper()
    job = each(jobctl, f"{nap.split()[1]}\n" * 3, "-t", "1", "--", "sleep")
    folder = jobctl.folder(job)
    slot = int((folder / "slots/1/self").read_text().split()[0])
    os.kill(slot, signal.SIGKILL)
    for number in range(2, 300):
        (folder / f"taken/{number}").touch()
    for pid in processes_with(nap):
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not processes_with(nap))
    trace = tmp_path / "trace"
    items_sh = Path(sys.modules["jobctl"].__file__ or "").with_name("items.sh")
    with trace.open("wb") as log:
        subprocess.run(["sh", "-x", str(items_sh), "mend", str(folder)], stderr=log, check=True)
    assert [path.name for path in folder.glob("taken/*")] == ["1"]
    assert trace.read_bytes().count(b"\n+") < 200


@pytest.mark.long
def test_what_items_leave_in_the_session_of_their_slot(either: Far) -> None:
    """Which item left it cannot be told, but the job as a whole has it."""
    nap = sleeper()
    for verb in ("stop", "remove"):
        job = each(either, "a\nb\n", *either.where, "-c", f"env -i {nap} & {nap} & exit 0")
        either.run("wait", job)
        wait_until(lambda: len(sleeping(nap)) == 4)
        either.run("stop", f"{job}.1")
        assert len(processes_with(nap)) == 3
        either.run(verb, job)
        assert processes_with(nap) == []
    assert [record["id"] for record in either.jobs()] == ["1"]
    job = each(either, "a\nb\n", *either.where, "-c", f"env -i {nap} & [ {{#}} = 1 ] || exec {nap}")
    either.until(f"{job}.1", "Completed")
    wait_until(lambda: len(sleeping(nap)) == 3)
    either.run("stop", job)
    assert processes_with(nap) == []


@pytest.mark.long
def test_items_without_a_cookie(either: Far) -> None:
    """Each is found by its slot, whichever that is of several."""
    nap = sleeper()
    slots = ("--per-host" if either.remote else "-t", "3")
    words = ("env", "-i", "sh", "-c", f"[ $1 = 1 ] || exec {nap}", "sh", "{#}")
    job = each(either, "a\nb\nc\nd\n", *either.where, *slots, *words)
    wait_until(lambda: len(sleeping(nap)) == 3)
    for number, left, how in [(2, 2, ["--signal", "KILL"]), (3, 1, []), (4, 0, ["--grace", "0"])]:
        either.run("stop", *how, f"{job}.{number}")
        either.until(f"{job}.{number}", "Stopped")
        assert len(processes_with(nap)) == left
    either.run("wait", job, status=1)
    found = [child["state"] for child in children(either, job)]
    assert found == ["Completed", "Stopped", "Stopped", "Stopped"]


def test_what_is_run_at_the_end_of_items_is_no_part_of_them(jobctl: Jobctl, tmp_path: Path) -> None:
    nap = sleeper()
    job = each(jobctl, "a\nb\n", "--on-finish", f"{nap} & exit 0", "true")
    (pid,) = wait_until(lambda: sleeping(nap))
    jobctl.run("remove", job)
    assert processes_with(nap) == [pid]
    os.kill(pid, signal.SIGKILL)


@pytest.mark.long
def test_a_signal_to_what_has_not_begun(either: Far, tmp_path: Path) -> None:
    """It is said, and nothing changes; of a job with children those that run are signalled."""
    nap, said, up = sleeper(), tmp_path / "said", tmp_path / "up"
    gate = either.start(*nap.split())
    text = f"trap 'echo >>{said}' USR1; echo >>{up}; while :; do {nap} & wait; done"
    one = ("--per-host" if either.remote else "-t", "1")
    items = each(either, "a\nb\n", *either.where, *one, "-c", text)
    waiting = [
        either.start("--after", gate, "true"),
        each(either, "a\n", *either.where, "--after", gate, "true"),
    ]
    if either.remote:
        both = either.out("start", "-q", "-H", "web[1-2]", "-t", "1", "-c", text).strip()
        waiting.append(f"{both}.2")
    waiting += [f"{waiting[1]}.1", f"{items}.2"]
    for job in waiting:
        for name in ("KILL", "USR1"):
            words = either.refused(1, "stop", "--signal", name, job)
            assert f"job {job} has not begun" in words
        assert either.state(job) == "NotStarted"
    running = [items, both] if either.remote else [items]
    wait_until(lambda: len(up.read_text()) == len(running))
    for job in running:
        either.until(f"{job}.1", "Running")  # a host's news comes a little later
    either.run("stop", "--signal", "USR1", *running)
    wait_until(lambda: said.exists() and len(said.read_text()) == len(running))
    either.run("stop", "--grace", "0", gate, *running)
    either.run("wait", *waiting[:2])
    assert {either.state(job) for job in waiting[:2]} == {"Completed"}


def test_a_signal_to_what_put_a_pipe_in_its_place(jobctl: Jobctl) -> None:
    """Where it is noted: nobody opens that, as it would wait for ever."""
    plain, items = jobctl.sh(sleeper()), each(jobctl, "a\n", "-c", sleeper())
    jobctl.until(f"{items}.1", "Running")
    folder = jobctl.folder(items) / "children"
    for path in (jobctl.folder(plain) / "signals", folder / "1.signals"):
        os.mkfifo(path)
    jobctl.run("stop", "--signal", "USR1", plain, items, f"{items}.1", timeout=30)
    for job in (plain, f"{items}.1"):
        jobctl.run("wait", job, status=1)
        assert jobctl.job(job)["reason"] == "stopped by user: signal USR1"


def test_a_signal_reaches_commands_before_what_they_wait_for(jobctl: Jobctl) -> None:
    """None of them tells of the end of its child, and exits with a status of its own."""
    nap, count = sleeper(), 24
    items = each(jobctl, "a\n" * count, "-t", str(count), "-c", f"{nap}; exit $?")
    wait_until(lambda: len(sleeping(nap)) == count)
    jobctl.run("stop", "--signal", "USR1", items)
    jobctl.run("wait", items, status=1)
    assert {child["reason"] for child in children(jobctl, items)} == {
        "stopped by user: signal USR1"
    }


@pytest.mark.long
def test_a_signal_to_what_has_just_begun(far: Far, wire: Wire, tmp_path: Path) -> None:
    """The host is asked, whether its news has come or not, or the connection stands."""
    up, said = tmp_path / "up", tmp_path / "said"
    trap = f"trap 'kill $!; echo >>{said}; exit 0' USR1"
    text = f"{trap}; echo >>{up}; while :; do {sleeper()} & wait; done"
    far.run("session", "new", "web1")
    wire.delay(0.5)
    plain = far.start("-c", text)
    items = each(far, "a\nb\nc\n", "-H", "web1", "--per-host", "1", "-c", text)

    def signalled(count: int, *jobs: str) -> None:
        for path, least in ((up, count), (said, count - len(jobs))):
            wait_until(lambda: not least or len(path.read_text()) >= least)  # noqa: B023
        words = ("stop", "--signal", "USR1", *jobs)
        # A question that was under way when the connection broke is asked again.
        while (result := far.run(*words, status=None)).returncode == 5:
            assert re.search(b"broke|lost|cannot be reached|ended the conversation", result.stderr)
        assert result.returncode == 0, result
        wait_until(lambda: len(said.read_text()) == count)

    signalled(2, plain, f"{items}.1")
    signalled(3, f"{items}.2")  # its slot comes from the item before
    last = far.start("-c", text)
    wait_until(lambda: len(up.read_text()) == 5)
    wire.delay(0.0)
    wire.cut()
    signalled(5, last, f"{items}.3")
    far.run("wait", plain, items, last)


@pytest.mark.long
@pytest.mark.parametrize("where", first_of(("-H", "web1"), ()), ids=["there", "here"])
def test_items_of_another_user(tmp_path: Path, make_sshd: MakeSshd, where: tuple[str, ...]) -> None:
    """Stopped by one who may not signal them: no further ones begin, and these end as they do."""
    if os.getuid() != 0 or sys.platform != "linux":
        pytest.skip("only root can run commands as two users")
    server = make_sshd(f'ForceCommand exec {" ".join(BOUND)} sh -c "$SSH_ORIGINAL_COMMAND"')
    program = Far(tmp_path / "state", tmp_path, server, *where)

    def told(*words: str, status: int) -> str:
        command = [*BOUND, PROGRAM, *words]
        result = subprocess.run(command, env=program.env, stdin=-3, stdout=-1, stderr=-2)
        assert result.returncode == status, result
        return result.stdout.decode()

    def below_slots() -> set[str]:
        pids = living_slots(program.there if where else program.folder(job))
        files = [Path(f"/proc/{pid}/task/{pid}/children") for pid in pids]
        return {pid for file in files for pid in file.read_text().split()}

    gates = Path(tempfile.mkdtemp(dir="/tmp"))
    gates.chmod(0o755)
    # The first one ends before the others, and the next one in its slot runs.
    text = f"[ $1 = 1 ] || until [ -e {gates}/go ]; do sleep 0.1; done; exit {{}}"
    other = ("setpriv", "--reuid", "65534", "--clear-groups", "sh", "-c", text, "sh", "{#}")
    slots = ("--per-host" if where else "-t", "3")
    try:
        options = ("--retries", "1", "--timeout", "10m")
        job = each(program, "0\n0\n3\n0\n0\n", *where, *slots, *options, *other)
        for number in (2, 3, 4):
            program.until(f"{job}.{number}", "Running")
        wait_until(lambda: len(processes_with(f"[ $1 = 1 ] || until [ -e {gates}")) == 3)
        before = below_slots()
        for number in (2, 3, 4):
            missed = told("stop", "--signal", "KILL", f"{job}.{number}", status=1)
            assert f"job {job}.{number}: signal KILL reached none" in missed
            assert missed.count("\n") == 1
        missed = told("stop", "--signal", "TERM", job, status=1)
        assert all(f"job {job}.{n}: signal TERM reached none" in missed for n in (2, 3, 4))
        assert missed.count("\n") == 3
        # Nor does it reach what slots have for themselves, whose time it is to tell.
        assert below_slots() == before
        assert "cannot be ended" in told("stop", "--grace", "0", job, status=125)
        (gates / "go").touch()
        program.run("wait", job, "--timeout", "60", status=1)
        found = [(child["state"], child["exit_code"]) for child in children(program, job)]
        done = ("Completed", 0)
        assert found == [done, done, ("Failed", 3), done, ("Stopped", None)]
        assert program.job(job)["reason"] == "exit status 3"
        told("remove", job, status=0)
    finally:
        (gates / "go").touch()
        program.close()
        wait_until(lambda: not processes_with(str(gates)))
        shutil.rmtree(gates)


def test_a_signal_to_items_of_which_one_left_another_users(jobctl: Jobctl, tmp_path: Path) -> None:
    """That it does not reach what was left is no reason to say that it reached nothing."""
    if os.getuid() != 0 or sys.platform != "linux":
        pytest.skip("only root can run commands as two users")
    nap, left, up = sleeper(), sleeper(), tmp_path / "up"
    leave = f"setpriv --reuid 65534 --clear-groups {left} & exit 0"
    stay = f"trap 'echo x; exit 0' USR1; echo >{up}; while :; do {nap} & wait; done"
    text = f"[ {{#}} = 2 ] || {{ {leave}; }}; {stay}"
    job = each(jobctl, "a\nb\n", "-c", text)
    jobctl.until(f"{job}.1", "Completed")
    wait_until(up.exists)

    def foreign_ones() -> list[int]:
        return [pid for pid in processes_with(left) if Path(f"/proc/{pid}").stat().st_uid == 65534]

    wait_until(foreign_ones)
    subprocess.run([*BOUND, PROGRAM, "stop", "--signal", "USR1", job], env=jobctl.env, check=True)
    jobctl.run("wait", job)
    assert jobctl.out("receive", f"{job}.2") == "x\n"
    assert foreign_ones()
    jobctl.run("stop", "--grace", "0", job)
    assert not foreign_ones()
