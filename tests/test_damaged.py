"""A job that loses a part of its folder: it ends, says why, and runs nothing twice."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from conftest import Jobctl, first_of, living_slots, processes_with, sleeper, sleeping, wait_until
from far import Far

from jobctl.quoting import load

WORDS = "damaged: the folder {} is missing"
DAMAGE = {
    "mv children x": "children",
    "mv taken x; : >taken": "taken",
    "mkdir x; mv children items taken slots x": "",
}
"""What an item does, at once, and what is missing then."""
MORE = {
    "mv children x; : >children": "children",
    "mv items x": "items",
    "mv items x; : >items": "items",
    "mv taken x": "taken",
    "mv slots x": "slots/",
    "mv slots x; : >slots": "slots/",
}
EMPTIED = {"rm -f items/*": "items"}
COUNT = 300
"""More than one block of items."""
ITEMS = "".join(f"{number}\n" for number in range(1, COUNT + 1)).encode()


def damaging(ran: Path, what: str) -> str:
    """Return shell text whose third item damages the folder of its job."""
    folder = '"${JOBCTL_PROGRESS%/children/*}"'
    return f"echo {{}} >>{ran}; [ {{#}} != 3 ] || {{ cd {folder} && {what}; }}"


def check(jobctl: Jobctl, job: str, ran: Path, gone: str) -> None:
    """Check how a job has ended, and that nothing of it ran twice."""
    jobctl.run("wait", job, "--timeout", "60", status=1)
    whole: dict[str, Any] = jobctl.job(job)
    assert whole["state"] == "Failed"
    assert f"damaged: the folder {gone}" in whole["reason"], whole["reason"]
    for child in jobctl.jobs("--children", job)[1:]:
        told = "damaged: the folder " in child["reason"]
        assert child["state"] == "Completed" or told, str(child)
    begun = ran.read_text().split()
    assert len(begun) == len(set(begun))
    jobctl.run("remove", job)
    assert not jobctl.folder(job).exists()


@pytest.mark.parametrize("damage", first_of(DAMAGE, MORE | EMPTIED), ids=len)
def test_here(jobctl: Jobctl, tmp_path: Path, damage: dict[str, str]) -> None:
    jobs = {}
    for at, (what, gone) in enumerate(damage.items()):
        ran = tmp_path / str(at)
        words = ("--foreach", "-", "-t", "3", "-c", damaging(ran, what))
        # If it is damaged at once, that is told.
        result = jobctl.run("start", "-q", *words, input=ITEMS, status=None)
        jobs[result.stdout.decode().strip()] = ran, gone
    for job, (ran, gone) in jobs.items():
        check(jobctl, job, ran, gone)


@pytest.mark.long
@pytest.mark.parametrize("name", ["children", "items", "taken", "slots"])
def test_before_it_begins(jobctl: Jobctl, tmp_path: Path, name: str) -> None:
    """What is there is made anew, or the job fails; what waits for it goes on."""
    gate = jobctl.sh(f"until [ -e {tmp_path}/go ]; do sleep 0.02; done")
    job = jobctl.start("--after", gate, "--foreach", "-", "echo", input=b"a\nb\n")
    following = jobctl.start("--after", job, "echo", "following")
    (jobctl.folder(job) / name).rename(tmp_path / name)
    with suppress(FileExistsError):  # a slot was about to make it
        (jobctl.folder(job) / name).touch(exist_ok=False)
    (tmp_path / "go").touch()
    jobctl.run("wait", job, following, "--timeout", "30", status=None)
    whole = jobctl.job(job)
    assert whole["reason"].startswith(f"damaged: the folder {name}") or (
        # A slot that begins, or finds itself without a folder, may be first.
        name == "slots" and whole["state"] == "Completed"
    ), whole
    assert jobctl.job(following)["state"] == "Completed"


@pytest.mark.long
@pytest.mark.parametrize("name", ["children", "items", "taken", "slots"])
def test_with_its_slots_killed(jobctl: Jobctl, tmp_path: Path, name: str) -> None:
    """No others are begun."""
    words = ("--foreach", "-", "-t", "1", "-c", f"echo {{}} >>{tmp_path}/ran; exec sleep 7402")
    job = jobctl.start(*words, input=b"a\nb\n")
    wait_until((tmp_path / "ran").exists)
    for pid in living_slots(jobctl.folder(job)):
        os.kill(pid, signal.SIGKILL)
    (jobctl.folder(job) / name).rename(tmp_path / name)
    jobctl.run("wait", job, "--timeout", "30", status=1)
    assert jobctl.job(job)["reason"] == WORDS.format(name)
    assert (tmp_path / "ran").read_text() == "a\n"
    jobctl.run("stop", job, status=None)


@pytest.mark.long
def test_streams_of_items(either: Far) -> None:
    """What is in their place holds nobody up; an item that seems to be taken by nobody is run."""
    text = (
        'cd "${JOBCTL_PROGRESS%/*}"; [ {#} = 1 ] || exec echo {}; mkdir 2.stdout 3.stderr;'
        " mkfifo 4.stdout 5.stderr; ln -s none 6.stdout; : >7.stdout; ln -s none 8.stderr;"
        " cd ../taken; mkdir 2; mkfifo 3; ln -s none 4; : >5"
    )
    own = (
        'cd "${JOBCTL_PROGRESS%/*}"; echo err >&2; for name in {#}.*; do rm -f "$name"; {} "$name";'
        " done; echo lost; [ -e second{#} ] || { : >second{#}; exit 3; }"
    )
    slot = ("-t", "1") if not either.remote else ("--per-host", "1")
    others = either.start("--foreach", "-", *slot, "-c", text, input=b"a\n" * 8)
    words = ("--foreach", "-", "--retries", "1", "-c", own)
    mine = either.start(*words, input=b"mkdir\nmkfifo\nln -s none\n:\n")
    for job in (mine, others):
        assert either.outcome(job)[:2] == ("Completed", "")
    assert either.run("receive", others).stdout == b"a\n" * 7
    either.run("receive", mine)


@pytest.mark.long
def test_pipes_in_the_place_of_files_on_a_host(far: Far, tmp_path: Path) -> None:
    """Nothing waits for somebody to write to them, or to read; the other jobs there go on."""
    swap = (
        'cd "${JOBCTL_PROGRESS%/*}"; : >begun; until [ -e over ]; do mkfifo p; mv -f p {};'
        " echo x >p; mv -f p {}; done"
    )
    own = 'cd "${JOBCTL_PROGRESS%/children/*}"; mkdir slots/7; mkfifo slots/7/missed highest stop'
    plain = [far.start("-c", swap.replace("{}", name)) for name in ("stdout", "progress", "run")]
    items = far.start("--foreach", "-", "-c", f"{own}; exec {sleeper()}", input=b"a\n")
    guests = [far.guest(job) for job in plain]
    wait_until(lambda: all((guest / "begun").exists() for guest in guests))
    beside = far.start("-c", "for n in 1 2 3 4 5 6 7 8 9; do echo $n; sleep 0.1; done")
    assert far.outcome(beside) == ("Completed", "", 0)
    assert far.output(beside) == "".join(f"{n}\n" for n in range(1, 10))
    far.run("stop", items)
    assert far.outcome(items)[0] == "Stopped"
    for guest in guests:
        (guest / "over").touch()
    far.run("wait", *plain, status=None)
    beside = far.start("echo", "beside")
    assert far.outcome(beside)[0] == "Completed"


@pytest.mark.long
def test_pipes_in_the_place_of_files_here(jobctl: Jobctl) -> None:
    nap = sleeper()
    own = f'cd "${{JOBCTL_PROGRESS%/progress}}"; mkfifo {{}}; exec {nap}'
    jobs = [jobctl.start("-c", own.replace("{}", name)) for name in ("stop", "timedout")]
    timed = jobctl.start("--timeout", "0.5", "-c", own.replace("{}", "timedout"))
    folder = f'cd "${{JOBCTL_PROGRESS%/children/*}}"; mkfifo stop children/1.stop; exec {nap}'
    items = jobctl.start("--foreach", "-", "-c", folder, input=b"a\n")
    jobctl.run("wait", timed, status=1)
    assert jobctl.job(timed)["reason"] == "timed out after 0.5s"
    wait_until(lambda: len(sleeping(nap)) == 3)
    jobctl.run("stop", *jobs, items)
    assert {jobctl.state(job) for job in (*jobs, items)} == {"Stopped"}
    assert not sleeping(nap)


RECORDS = (["spec"], ["run"], ["spec", "run"])
"""Files of a job on a host without which it is not known who runs it, or that it is one."""


def delete(folder: Path, names: list[str]) -> None:
    for name in names:
        (folder / name).unlink()


@pytest.mark.long
def test_records_of_a_command_on_a_host(far: Far, tmp_path: Path) -> None:
    """It goes on, and its own end and output come; it can be stopped."""
    text = f"echo one; until [ -e {tmp_path}/go ]; do sleep 0.05; done; echo two; exit 3"
    jobs = [far.start("-c", text) for _ in (*RECORDS, ["stdout", "stderr", "progress"])]
    nap = sleeper()
    stopped = [far.start(*nap.split()) for _ in RECORDS]
    for job in (*jobs, *stopped):
        far.until(job, "Running")
    wait_until(lambda: all(far.output(job) == "one\n" for job in jobs))
    for several in (jobs, stopped):
        for job, names in zip(several, (*RECORDS, ["stdout", "stderr", "progress"]), strict=False):
            delete(far.guest(job), names)
    far.run("stop", *stopped)
    assert not processes_with(nap)
    for job in stopped:
        assert far.outcome(job)[:2] == ("Stopped", "stopped by user")
    for job in jobs:
        record = far.job(job)
        assert (record["state"], bool(record["pid"])) == ("Running", True), record
    (tmp_path / "go").touch()
    for job in jobs:
        assert far.outcome(job) == ("Failed", "exit status 3", 3)
    for job in jobs[:-1]:
        assert far.output(job) == "one\ntwo\n"


@pytest.mark.long
def test_records_of_a_killed_command_on_a_host(far: Far) -> None:
    """Nobody will write down its end: it has one all the same, also after a new connection."""
    nap = sleeper()
    jobs = [far.start("-c", f"echo one; exec {nap}") for _ in RECORDS]
    for job in jobs:
        far.until(job, "Running")
    for job, names in zip(jobs, RECORDS, strict=True):
        runner = load((far.guest(job) / "run").read_bytes())["runner"]
        delete(far.guest(job), names)
        os.kill(int(runner), signal.SIGKILL)
    far.kill_agent()
    assert {far.state(job) for job in jobs} <= {"Running", "Disconnected"}
    for pid in processes_with(nap):
        os.kill(pid, signal.SIGKILL)
    for job, names in zip(jobs, RECORDS, strict=True):
        reason = f"damaged: the file {names[0]} cannot be read"
        assert far.outcome(job)[:2] == ("Failed", reason)
        assert far.output(job) == "one\n"


@pytest.mark.long
@pytest.mark.parametrize("damage", first_of(DAMAGE, MORE), ids=len)
def test_on_a_host(far: Far, tmp_path: Path, damage: dict[str, str]) -> None:
    jobs = {}
    for at, (what, gone) in enumerate(damage.items()):
        ran = tmp_path / str(at)
        words = ("--foreach", "-", "--per-host", "2", "-c", damaging(ran, what))
        jobs[far.start(*words, input=ITEMS)] = ran, gone
    beside = far.on("web1", "echo", "beside")
    for job, (ran, gone) in jobs.items():
        check(far, job, ran, gone)
    assert far.outcome(beside)[0] == "Completed"


def lose_end(spec: Path, lines: int = 1) -> None:
    """Take its last lines from a record, of which the very last is the instance id."""
    spec.write_text("".join(spec.read_text().splitlines(keepends=True)[:-lines]))


@pytest.mark.long
def test_a_record_that_has_lost_its_end(far: Far, second: Far) -> None:
    """What is removed is the job's own folder on the host, and no other one."""
    nap = sleeper()
    kept = second.sh("echo kept")
    plain, running = far.sh("echo out"), far.start(*nap.split())
    several = far.start("-H", "web1,web2", "echo", "several")
    items = far.start("--foreach", "-", "echo", input=b"a\nb\n")
    far.until(running, "Running")
    far.run("wait", plain, several, items)
    parts = (plain, running, f"{several}.1", f"{several}.2")
    guests = [far.guest(job) for job in parts]
    far.kill_agent()
    specs = [far.folder(plain) / "spec", far.folder(running) / "spec"]
    specs += far.folder(several).glob("children/*/spec")
    share = far.folder(items) / "hosts/1/spec"
    guests.append(far.there / "guest" / load(share.read_bytes())["instance_id"].decode())
    assert all(guest.is_dir() for guest in guests)
    for lines, spec in enumerate((*specs, share), 1):
        lose_end(spec, lines)
    far.run("remove", "--force", "--all")
    assert not any(guest.exists() for guest in guests)
    assert not processes_with(nap)
    assert second.guest(kept).is_dir()
    second.run("remove", kept)


@pytest.mark.long
def test_a_record_that_has_lost_its_host(far: Far) -> None:
    """Nobody can begin it."""
    gate = far.out("start", "-q", *sleeper().split()).strip()
    job = far.start("--after", gate, "true")
    far.kill_agent()
    spec = far.folder(job) / "spec"
    lines = spec.read_text().splitlines(keepends=True)
    spec.write_text("".join(line for line in lines if not line.startswith("host=")))
    far.run("stop", "--grace", "0", gate)
    with spec.open("r+") as file:
        file.truncate(spec.stat().st_size - 1)
    assert far.outcome(job)[:2] == ("Failed", "damaged: the file spec cannot be read")
    far.run("remove", job, "--local-only")


@pytest.mark.long
def test_a_path_that_no_job_has_there(far: Far, second: Far) -> None:
    """A host could have named it, or it was damaged: nobody is asked about it."""
    kept = second.sh("echo kept")
    wrong = [far.sh("true") for _ in range(3)]
    far.run("wait", *wrong)
    second.run("wait", kept)
    for job, path in zip(wrong, ("guest/", "../jobctl/guest", "guest/x;touch pwned"), strict=True):
        with (far.folder(job) / "spec").open("a") as spec:
            spec.write(f"path='{path}'\n")
    far.kill_agent()
    for job in wrong:
        assert "--local-only" in far.refused(5, "remove", job)
    far.run("remove", "--local-only", *wrong)
    assert second.guest(kept).is_dir()
    assert not [*far.there.rglob("pwned")]
    second.run("remove", kept)


def directory(spec: Path) -> None:
    spec.unlink()
    (spec / "inside").mkdir(parents=True)


def dangling(spec: Path) -> None:
    spec.unlink()
    spec.symlink_to("nowhere")


SPECS: tuple[Callable[[Path], None], ...] = (
    lambda spec: os.truncate(spec, spec.stat().st_size // 2),
    lambda spec: os.truncate(spec, 0),
    directory,
    dangling,
)
"""What can become of a job's spec."""


def damage_specs(far: Far, *several: list[str]) -> None:
    """Damage a spec of each list of jobs in each way, long ago and unseen by the index."""
    for jobs in several:
        for job, damage in zip(jobs, SPECS, strict=True):
            damage(far.folder(job) / "spec")
            os.utime(far.folder(job), (0, 0))
    (far.state_dir / "index.db").unlink()


@pytest.mark.long
def test_a_spec_that_cannot_be_read(far: Far) -> None:
    """The job is listed as damaged or as what it is, and removed with all that is on the host."""
    nap = sleeper()
    finished = [far.start("echo", "out") for _ in SPECS]
    running = [far.start(*nap.split()) for _ in SPECS]
    for job in running:
        far.until(job, "Running")
    far.run("wait", *finished)
    guests = [far.guest(job) for job in (*finished, *running)]
    assert all(guest.is_dir() for guest in guests)
    far.kill_agent()
    damage_specs(far, finished, running)
    beside = far.start("echo", "beside")
    assert far.outcome(beside)[0] == "Completed"
    records = {record["id"]: record for record in far.jobs()}
    for job in finished:
        assert records[job]["state"] == "Failed"
        assert records[job]["reason"] == "damaged: the file spec cannot be read"
        assert far.output(job) == "out\n"
    assert {records[job]["state"] for job in running} <= {"Running", "Disconnected"}
    assert len(processes_with(nap)) == len(running)
    far.run("remove", "--force", *finished, *running, beside)
    assert far.jobs() == []
    assert not any(guest.exists() for guest in guests)
    assert not processes_with(nap)


@pytest.mark.long
@pytest.mark.parametrize("kind", ["items", "hosts"])
def test_a_spec_of_a_job_with_children_that_cannot_be_read(far: Far, kind: str) -> None:
    """It is never Completed; it is removed with all that is on the hosts."""
    nap = sleeper()
    several = {
        "items": ("--foreach", "-", "--per-host", "2", "-c"),
        "hosts": ("-H", "web1,web2", "-c"),
    }[kind]
    given: dict[str, Any] = {"input": b"a\nb\n"} if kind == "items" else {}
    finished = [far.start(*several, "echo out", **given) for _ in SPECS]
    running = [far.start(*several, nap, **given) for _ in SPECS]
    wait_until(lambda: len(sleeping(nap)) == 2 * len(running))
    far.run("wait", *finished)
    assert len([*far.there.glob("guest/*")]) == (2 if kind == "hosts" else 1) * 2 * len(SPECS)
    far.kill_agent()
    damage_specs(far, finished, running)
    records = {record["id"]: record for record in far.jobs()}
    for job in finished:
        assert records[job]["state"] == "Failed", records[job]
        assert records[job]["reason"].startswith("damaged: ")
    assert {records[job]["state"] for job in running} <= {"Running", "Disconnected"}
    far.run("remove", "--force", *finished, *running)
    assert far.jobs() == []
    assert not [*far.there.glob("guest/*")]
    assert not sleeping(nap)


@pytest.mark.long
def test_a_job_with_children_that_is_being_written(far: Far) -> None:
    """Nothing of it begins: it is no job yet, however much of it is there."""
    job = far.start("-H", "web1,web2", "-t", "1", "echo", "x")
    far.run("wait", job)
    far.kill_agent()
    # As another command leaves it, in the instant before it makes the job real.
    written = far.state_dir / "jobs/9"
    shutil.copytree(far.folder(job), written)
    (written / "spec").rename(written / "spec.new")
    for name in ("exit", "sent", "accepted", "run"):
        for path in written.glob(f"children/*/{name}"):
            path.unlink()
    guests = len([*far.there.glob("guest/*")])
    assert far.outcome(far.start("true"))[0] == "Completed"
    assert not [*written.glob("children/*/sent"), *written.glob("children/*/run")]
    assert len([*far.there.glob("guest/*")]) == guests + 1
    assert "9" not in far.out("get", "-q").split()


@pytest.mark.long
def test_a_child_whose_record_is_gone(far: Far) -> None:
    """It counts as one that failed, and its job can be removed with all that is on the hosts."""
    jobs = [far.start("-H", "web1,web2", "-c", "echo out") for _ in range(2)]
    far.run("wait", *jobs)
    far.kill_agent()
    (far.folder(jobs[0]) / "children/2/spec").unlink()
    shutil.rmtree(far.folder(jobs[1]) / "children/2")
    (far.state_dir / "index.db").unlink()
    reasons = ["damaged: the file spec cannot be read", "damaged: the folder children/2 is missing"]
    for job, reason in zip(jobs, reasons, strict=True):
        whole, first, second = far.jobs("--children", job)
        assert (whole["state"], whole["reason"]) == ("Failed", reason)
        assert (first["state"], second["state"], second["reason"]) == (
            "Completed",
            "Failed",
            reason,
        )
    assert far.out("receive", jobs[0]) == "out\n" * 2
    far.run("remove", "--all")
    assert far.jobs() == []
    assert len([*far.there.glob("guest/*")]) == 1  # nothing here tells of it


@pytest.mark.long
@pytest.mark.parametrize("count", first_of("1000000000000", "9" * 30, "-3", "two"))
def test_a_number_of_children_that_no_job_has(far: Far, count: str) -> None:
    """What its folder holds tells how many there are."""
    here = far.out("start", "-q", "--foreach", "-", "echo", input=b"a\nb\n").strip()
    there = far.start("--foreach", "-", "echo", input=b"a\nb\n")
    several = far.start("-H", "web1,web2", "echo", "x")
    far.run("wait", "--all")
    far.kill_agent()
    for job in (here, there, several):
        with (far.folder(job) / "spec").open("a") as spec:
            spec.write(f"children='{count}'\nhosts='{count}'\n")
    (far.state_dir / "index.db").unlink()
    beside = far.out("start", "-q", "true").strip()
    jobs = (here, there, several)
    parts = [f"{job}.{number}" for job in jobs for number in (1, 2)]
    states = dict.fromkeys(jobs, "Failed") | dict.fromkeys((*parts, beside), "Completed")
    assert {record["id"]: record["state"] for record in far.jobs("--children")} == states
    assert len(far.out("receive", *jobs).splitlines()) == 6
    far.run("remove", "--all")
    assert not [*far.there.glob("guest/*")]


@pytest.mark.long
def test_a_record_of_the_runner_that_is_cut_anywhere(jobctl: Jobctl) -> None:
    """Its command has begun, and is reached by stop, also one that bears no mark of the job."""
    nap = sleeper()
    job = jobctl.start("-c", f"env -i {nap}; exit")
    run = jobctl.folder(job) / "run"
    wait_until(lambda: processes_with(nap))
    jobctl.until(job, "Running")
    whole = run.read_bytes()
    for size in range(len(whole) - 1, -1, -7):
        os.truncate(run, size)
        assert jobctl.job(job)["state"] == "Running", whole[:size]
    run.write_bytes(b"".join(whole.splitlines(keepends=True)[:4]))
    jobctl.run("stop", job)
    assert not processes_with(nap)
    assert jobctl.state(job) == "Stopped"


@pytest.mark.long
def test_a_record_of_the_runner_that_is_cut_on_a_host(far: Far, second: Far) -> None:
    """Whoever has seen it whole, and whoever has not, is told that its command has begun."""
    nap = sleeper()
    jobs = [far.start(*nap.split()) for _ in range(3)]
    for job in jobs:
        far.until(job, "Running")
        run = far.guest(job) / "run"
        os.truncate(run, run.stat().st_size // 2)
    far.kill_agent()
    (far.folder(jobs[0]) / "run").unlink()
    wait_until(lambda: all(far.job(job)["state"] == "Running" for job in jobs))
    assert [bool(far.job(job)["pid"]) for job in jobs] == [False, True, True]
    there = json.loads(second.out("session", "get", "--on", "web1", "-o", "json"))
    assert [found["state"] for found in there] == ["Running"] * len(jobs)
    for job in jobs[:2]:
        far.run("stop", job)
    far.run("remove", "--force", jobs[2])
    assert not processes_with(nap)
    for job in jobs[:2]:
        assert far.outcome(job)[:2] == ("Stopped", "stopped by user")


@pytest.mark.long
@pytest.mark.parametrize("name", ["stdout", "run", "progress"])
def test_a_file_here_that_nothing_can_be_written_to(far: Far, tmp_path: Path, name: str) -> None:
    """That job is damaged, and can be removed; the others on the host go on."""
    text = f'until [ -e {tmp_path}/go ]; do sleep 0.05; done; echo 1 >"$JOBCTL_PROGRESS"; echo x'
    jobs = [far.start("-c", text) for _ in range(3)]
    for job in jobs:
        far.until(job, "Running")
    far.kill_agent()
    harmed = far.folder(jobs[1]) / name
    harmed.unlink(missing_ok=True)
    harmed.mkdir()
    (tmp_path / "go").touch()
    for job in (jobs[0], jobs[2]):
        assert far.outcome(job) == ("Completed", "", 0)
        assert far.output(job) == "x\n"
    state, reason, _ = far.outcome(jobs[1])
    assert (state == "Completed") or reason.startswith("damaged: "), (state, reason)
    assert "lost" not in (far.state_dir / "agent.log").read_text()
    far.run("remove", *jobs)
    assert far.jobs() == []


@pytest.mark.long
def test_a_child_that_cannot_be_begun_gives_its_place_to_another(far: Far, second: Far) -> None:
    far.sshd.hosts(*second.sshd.hosts().read_text().replace("Host web1", "Host web2").splitlines())
    gate = far.start(*sleeper().split())
    words = ("--after", gate, "-t", "1", "-H", "web1,web2", "echo", "x")
    job = far.out("start", "-q", *words).strip()
    far.kill_agent()
    (far.folder(job) / "children/1/spec").write_text("host=''\n")
    far.run("stop", gate)
    far.run("wait", job, "--timeout", "60", status=1)
    assert [record["state"] for record in far.jobs("--children", job)] == [
        "Failed",
        "Failed",
        "Completed",
    ]
