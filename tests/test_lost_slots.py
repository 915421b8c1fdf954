"""Slots of a job with items that lose their records: no item runs twice, and each has its end."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from conftest import PROGRAM, first_of, living_slots, processes_with, wait_until
from far import Far
from sshd import MakeSshd
from test_items import children, each
from test_verdicts import BOUND

from jobctl import quoting


def emptied(slot: Path, name: str) -> None:
    (slot / name).write_bytes(b"")


def moved(slot: Path, name: str) -> None:
    slot.rename(slot.parent.parent / "aside")


DAMAGE = {
    "self": lambda slot, name: (slot / name).unlink(),
    "self ": emptied,
    "self  ": lambda slot, name: (slot / name.strip()).write_bytes(b"a b\0 c d e\n" * 9),
    "journal": lambda slot, name: (slot / name).unlink(),
    "journal ": emptied,
    "journal  ": lambda slot, name: (slot / name.strip()).write_bytes(b"\n1 x\n\xff\n"),
    "gone": lambda slot, _: shutil.rmtree(slot),
    "moved": moved,
}
"""What is done to the folder of a slot."""


def share(far: Far, job: str) -> Path:
    """Return the folder with the slots of a job."""
    if not far.remote:
        return far.folder(job)
    spec = quoting.load((far.folder(job) / "hosts/1/spec").read_bytes())
    return far.there / "guest" / spec["instance_id"].decode()


@pytest.mark.long
@pytest.mark.parametrize("killed", first_of(True, False), ids=["killed", "living"])
def test_what_a_slot_has_lost(either: Far, tmp_path: Path, killed: bool) -> None:
    """What it runs is judged when it has ended; the other items are run."""
    slots = ("--per-host" if either.remote else "-t", "1")
    text = 'echo {} >>"$1"; [ {} != 1 ] || until [ -e "$1.go" ]; do sleep 0.05; done'
    jobs = {}
    for at, damage in enumerate(DAMAGE):
        ran = tmp_path / f"ran{at}"
        words = (*either.where, *slots, "-c", text, str(ran))
        jobs[each(either, "1\n2\n3\n", *words)] = ran, damage
    for job, (ran, damage) in jobs.items():
        wait_until(ran.exists)
        (slot,) = (share(either, job) / "slots").glob("[1-9]*")
        keeper = int((slot / "self").read_text().split()[0])
        journal = slot / "journal"
        wait_until(lambda journal=journal: "\n1 B" in journal.read_text())  # type: ignore[misc]
        DAMAGE[damage](slot, damage.strip())
        if killed:
            os.kill(keeper, signal.SIGKILL)
    for job, (ran, damage) in jobs.items():
        if killed and not either.remote:  # others go on, beside what still runs
            either.run("wait", f"{job}.3", "--timeout", "30")
        assert either.job(f"{job}.1")["state"] not in ("Failed", "Completed"), damage
        Path(f"{ran}.go").touch()
    for job, (ran, damage) in jobs.items():
        either.run("wait", job, "--timeout", "60", status=None)
        assert sorted(ran.read_text().split()) == ["1", "2", "3"], damage
        first, *rest = children(either, job)
        assert [child["state"] for child in rest] == ["Completed"] * 2, damage
        expected = {"Failed"} if killed else {"Failed", "Completed"}
        assert first["state"] in expected, damage
        assert first["state"] == "Completed" or first["reason"].startswith(("lost: ", "damaged: "))
        assert either.job(job)["state"] == first["state"], damage


@pytest.mark.long
def test_a_command_whose_folder_goes_before_its_host_has_told_of_it(
    far: Far, tmp_path: Path
) -> None:
    """It is not begun again."""
    text = f"echo x >>{tmp_path}/ran; until [ -e {tmp_path}/go ]; do sleep 0.05; done"
    job = far.start("-c", text)
    wait_until((tmp_path / "ran").exists)
    wait_until((far.folder(job) / "accepted").exists)
    far.kill_agent()
    shutil.rmtree(far.guest(job))
    (far.folder(job) / "run").unlink(missing_ok=True)
    assert far.outcome(job)[:2] == ("Failed", "lost: its folder on web1 was removed")
    (tmp_path / "go").touch()
    assert (tmp_path / "ran").read_text() == "x\n"


@pytest.mark.long
@pytest.mark.parametrize("where", [(), ("-H", "web1")], ids=["here", "there"])
def test_an_item_of_another_user_whose_slot_was_killed(
    tmp_path: Path, make_sshd: MakeSshd, where: tuple[str, ...]
) -> None:
    """Who looks may neither signal it nor read its environment: it is judged when it has ended."""
    if os.getuid() != 0 or sys.platform != "linux":
        pytest.skip("only root can run commands as two users")
    server = make_sshd(f'ForceCommand exec {" ".join(BOUND)} sh -c "$SSH_ORIGINAL_COMMAND"')
    program = Far(tmp_path / "state", tmp_path, server, *where)
    gates = Path(tempfile.mkdtemp(dir="/tmp"))
    gates.chmod(0o755)

    def seen() -> str:
        words = [*BOUND, PROGRAM, "get", "-q", "--children", "--state", "Running", job]
        return subprocess.run(words, env=program.env, stdin=-3, stdout=-1).stdout.decode()

    text = f"until [ -e {gates}/go ]; do sleep 0.1; done"
    other = ("setpriv", "--reuid", "65534", "--clear-groups", "env", "-i", "sh", "-c", text, "sh")
    slots = ("--per-host" if where else "-t", "2")
    try:
        job = each(program, "a\nb\n", *where, *slots, *other)
        for number in (1, 2):
            program.until(f"{job}.{number}", "Running")
        wait_until(lambda: len(processes_with(text)) == 2)
        folder = program.there if where else program.folder(job)
        for pid in living_slots(folder)[:1] if where else living_slots(folder):
            os.kill(pid, signal.SIGKILL)
        beside = program.start("true")
        program.run("wait", beside)
        assert seen().split() == [job, f"{job}.1", f"{job}.2"]
        (gates / "go").touch()
        subprocess.run([*BOUND, PROGRAM, "wait", job], env=program.env, stdin=-3, stdout=-3)
        reasons = sorted(child["reason"] for child in children(program, job))
        assert reasons == ["" if where else "lost: runner was killed", "lost: runner was killed"]
    finally:
        (gates / "go").touch()
        program.close()
        wait_until(lambda: not processes_with(str(gates)))
        shutil.rmtree(gates)
