"""What is delivered is noted at once, and what cannot be noted is not delivered."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from conftest import PROGRAM, Jobctl, first_of, strace
from disk import Disk
from test_hostile import _disk

from jobctl.model import Marks
from jobctl.received import PartMarks

disk = _disk
LINES = (
    "awk 'BEGIN { for (i = 0; i < 60000; i++) printf \"%08d abcdefghijklmnopqrstuvwxyz\\n\", i }'"
)
_PIECE = 64 * 1024


def broken(jobctl: Jobctl, folder: Path, fault: str, *words: str) -> tuple[list[str], bytes]:
    """Return what breaks a write of a job's mark during a command, and what that prints."""
    where = ("-P", str(folder / "received"), "-e", f"inject=pwrite64:{fault}")
    command = [*strace("pwrite64", *where), PROGRAM, "receive", *words]
    result = subprocess.run(command, env=jobctl.env, capture_output=True, check=False)
    return result.stderr.decode().splitlines(), result.stdout


@pytest.mark.long
@pytest.mark.parametrize("when", first_of(2, 1, 9))
def test_no_more_than_a_piece_comes_twice(jobctl: Jobctl, tmp_path: Path, when: int) -> None:
    job = jobctl.done("-c", LINES)
    folder, whole = jobctl.folder(job), (jobctl.folder(job) / "stdout").read_bytes()
    home = tmp_path / "out"
    for words in (("--tag",), (), ("--output-dir", str(home))):
        (folder / "received").unlink(missing_ok=True)
        _, first = broken(jobctl, folder, f"signal=KILL:when={when}", *words, job)
        rest = jobctl.run("receive", *words, job).stdout
        if home.exists():
            first, rest = b"", (home / f"{job}.stdout").read_bytes()
        got = (first + rest).replace(f"{job} localhost: ".encode(), b"")
        assert len(whole) <= len(got) <= len(whole) + _PIECE
        assert got.endswith(whole[-len(whole) // 2 :])
        assert {*got.splitlines()} >= {*whole.splitlines()}


@pytest.mark.long
@pytest.mark.parametrize("items", [False, True])
def test_a_mark_that_cannot_be_written(jobctl: Jobctl, items: bool) -> None:
    if items:
        whole = jobctl.start("--foreach", "-", "-c", LINES, input=b"a\nb\n")
        jobctl.run("wait", whole)
        job, folder = f"{whole}.1", jobctl.folder(whole)
    else:
        job = jobctl.done("-c", LINES)
        folder = jobctl.folder(job)
    jobctl.run("receive", "--stream", "stderr", job)
    said, got = broken(jobctl, folder, "error=EIO:when=1", job)
    assert got == b""
    assert said == [
        f"jobctl: job {job}: cannot note what is received: Input/output error;"
        " use --keep or --again"
    ]
    said, first = broken(jobctl, folder, "error=EIO:when=4+", job)
    assert 0 < len(first) <= 3 * _PIECE
    assert len(said) == 1
    assert f"job {job}: " in said[0]
    # Before the next piece, or after it.
    assert re.search("cannot note|bytes of its stdout were delivered, and that cannot", said[0])
    rest = jobctl.run("receive", job).stdout
    output = jobctl.run("receive", "--again", job).stdout
    assert len(output) <= len(first + rest) <= len(output) + _PIECE
    assert output.endswith(rest)
    assert output.startswith(first)


def test_all_marks_have_their_room_before_the_first_byte(jobctl: Jobctl, disk: Disk) -> None:
    each = "".join(f"{number}\n" for number in range(1, 71))
    job = jobctl.start("--foreach", "-", "-t", "4", "echo", "{}", input=each.encode())
    jobctl.run("wait", job)
    disk.fill(free=4096)
    full = jobctl.run("receive", job, status=None)
    disk.free()
    assert full.stdout.decode() in ("", each)
    assert (full.stdout + jobctl.run("receive", job).stdout).decode() == each


def test_what_is_received_on_a_full_disk_is_known(jobctl: Jobctl, disk: Disk) -> None:
    job = jobctl.done("echo", "x")
    jobctl.run("receive", "--keep", job)
    (jobctl.folder(job) / "received").write_bytes(b"\n" * 512)
    assert jobctl.job(job)["has_more_data"]
    disk.fill()
    assert jobctl.out("receive", job) == "x\n"
    disk.free()
    assert not jobctl.job(job)["has_more_data"]


def test_who_waits_goes_on_when_there_is_room(jobctl: Jobctl, disk: Disk) -> None:
    job = jobctl.start("--foreach", "-", "echo", "{}", input=b"a\nb\n")
    jobctl.run("wait", job)
    disk.fill()
    why = b"jobctl: waiting: cannot write in %s: No space left on device\n"
    told = why % bytes(jobctl.state_dir)
    assert jobctl.run("receive", "--wait", "--timeout", "1", job, status=124).stderr == told
    waiting = jobctl.popen("receive", "--wait", job, stdout=-1, stderr=-1)
    assert waiting.stderr
    assert waiting.stderr.readline() == told
    disk.free()
    out, said = waiting.communicate(timeout=60)
    assert ({*out.splitlines()}, len(out), said) == ({b"a", b"b"}, 4, b"")
    assert waiting.returncode == 0
    assert jobctl.out("receive", job) == ""


def test_one_mark_of_a_million(tmp_path: Path) -> None:
    """There is room for all from the first one on."""
    marks = PartMarks(str(tmp_path), lambda: 1_000_000)
    for number in (1_000_000, 500_000, 1):
        with marks.moving(number) as move:
            move(Marks(number, 7))
    assert [marks.of(number).stdout for number in (1, 2, 500_000, 1_000_000)] == [
        *(1, 0),
        *(500_000, 1_000_000),
    ]
    assert (tmp_path / "received").stat().st_size == 60_000_000
