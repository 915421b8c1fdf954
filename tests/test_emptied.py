"""A job that empties, deletes or replaces its own output: what there is now is received."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Jobctl, wait_until

from jobctl import records
from jobctl.model import Marks

WORD = "has emptied its own"


def received(jobctl: Jobctl, *words: str) -> tuple[str, str]:
    result = jobctl.run("receive", *words)
    return result.stdout.decode(), result.stderr.decode()


def gated(tmp_path: Path, *steps: str) -> str:
    """Return shell text that waits for the file N before step N."""
    waits = (f"until [ -e {tmp_path}/{n} ]; do sleep 0.02; done" for n in range(1, len(steps)))
    return "; ".join(part for pair in zip(steps, [*waits, ":"], strict=True) for part in pair)


@pytest.mark.parametrize("now", ["", "x\n", "two\n", "longer than that was\n"])
def test_whether_a_file_holds_what_was_received(tmp_path: Path, now: str) -> None:
    path = tmp_path / "stdout"
    path.write_text("one\n")
    marks = records.traced(Marks(4, 0, True, (("stdout", 1, 2), ("stderr", 3, 4))), path_of(path))
    assert records.checked(marks, path_of(path)) == marks
    path.write_text("one\nand more\n")
    assert records.checked(marks, path_of(path)) == marks
    path.write_text(now)
    found = records.checked(marks, path_of(path))
    assert found == Marks(0, 0, True, (("stderr", 3, 4),), emptied=("stdout",))
    path.unlink()
    assert records.checked(marks, path_of(path)) == marks
    path.mkdir()
    assert records.checked(marks, path_of(path)) == marks


def path_of(path: Path) -> Callable[[str], str]:
    return lambda stream: str(path if stream == "stdout" else path.with_name("none"))


@pytest.mark.parametrize(
    ("to", "then"),
    [("stdout", "two"), ("stderr", "two"), ("stdout", "a line that is longer"), ("stdout", "x")],
)
def test_what_it_holds_now_is_received(jobctl: Jobctl, tmp_path: Path, to: str, then: str) -> None:
    first = "echo one; echo one >&2"
    job = jobctl.sh(gated(tmp_path, first, f"echo '{then}' >/dev/{to}", "echo three"))
    other = "stderr" if to == "stdout" else "stdout"
    stream = {"stdout": 0, "stderr": 1}
    wait_until(lambda: all((jobctl.folder(job) / name).stat().st_size for name in stream))
    assert received(jobctl, job) == ("one\n", "one\n")
    (tmp_path / "1").touch()
    wait_until(lambda: then in (jobctl.folder(job) / to).read_text())
    found = received(jobctl, job)
    assert f"{then}\n" in found[stream[to]]
    assert found[1].count(f"jobctl: job {job} {WORD} {to}") == 1
    (tmp_path / "2").touch()
    jobctl.run("wait", job)
    assert jobctl.job(job)["has_more_data"] is True
    assert received(jobctl, job) == ("three\n", "")
    assert jobctl.job(job)["has_more_data"] is False
    assert other not in found[1]


def test_without_a_mark_that_moves(jobctl: Jobctl, tmp_path: Path) -> None:
    """The marks of one process notice it as well, once, and so does what looks at the end only."""
    job = jobctl.sh(gated(tmp_path, "echo one", "echo two >/dev/stdout"), "-q")
    with jobctl.popen("receive", "--keep", "--wait", job, stdout=-1, stderr=-1) as follower:
        assert follower.stdout
        assert follower.stderr
        assert follower.stdout.readline() == b"one\n"
        (tmp_path / "1").touch()
        assert follower.stdout.read() == b"two\n"
        assert follower.stderr.read().count(WORD.encode()) == 1
    assert received(jobctl, "--again", job) == ("two\n", "")
    assert received(jobctl, job) == ("two\n", "")
    assert jobctl.job(job)["has_more_data"] is False


@pytest.mark.parametrize("options", [(), ("--merge",), ("--foreach", "-")])
def test_while_it_is_followed(jobctl: Jobctl, tmp_path: Path, options: tuple[str, ...]) -> None:
    to = "stderr" if "--merge" in options else "stdout"
    text = gated(tmp_path, "echo one", f"echo two >/dev/{to}; echo three")
    with jobctl.popen(
        "start", "-w", *options, "-c", text, stdin=-1, stdout=-1, stderr=-1
    ) as starter:
        assert starter.stdin
        assert starter.stdout
        assert starter.stderr
        starter.stdin.write(b"item\n")
        starter.stdin.close()
        assert starter.stdout.readline() == b"one\n"
        (tmp_path / "1").touch()
        assert starter.stdout.read() == b"two\nthree\n"
        assert starter.stderr.read().count(WORD.encode()) == 1
    assert not any(job["has_more_data"] for job in jobctl.jobs("--children"))


@pytest.mark.parametrize(
    "instead", ["rm stdout", "rm stdout; mkdir stdout", "rm stdout; mkfifo stdout", "mv stdout x"]
)
def test_no_file_any_more(jobctl: Jobctl, tmp_path: Path, instead: str) -> None:
    """It is as if nothing more came; the other stream is whole."""
    gone = f'cd "${{JOBCTL_PROGRESS%/*}}"; {instead}; echo lost; echo err >&2'
    job = jobctl.sh(gated(tmp_path, "echo one", gone), "--retries", "1")
    wait_until(lambda: (jobctl.folder(job) / "stdout").stat().st_size)
    assert received(jobctl, job) == ("one\n", "")
    (tmp_path / "1").touch()
    jobctl.run("wait", job)
    assert received(jobctl, job) == ("", "err\n")
    record = json.loads(jobctl.out("get", "-o", "json", job))[0]
    assert (record["state"], record["has_more_data"]) == ("Completed", False)


def test_another_attempt_has_plain_files_again(jobctl: Jobctl) -> None:
    """What the first one put in their place is no obstacle, nor does anything hang."""
    text = (
        'cd "${JOBCTL_PROGRESS%/*}"; echo "again $(ls -d second)"; [ ! -e second ] || exit 0;'
        " mkdir second; for name in stdout stderr log;"
        " do rm -f $name; mkfifo $name; done; exit 3"
    )
    job = jobctl.sh(text, "--retries", "1")
    jobctl.run("wait", job, "--timeout", "20")
    assert jobctl.job(job)["state"] == "Completed"
    assert received(jobctl, job) == ("again second\n", "")


def test_unreadable(jobctl: Jobctl, tmp_path: Path) -> None:
    """The other stream is delivered, and which one is not is said."""
    if os.geteuid() == 0:
        pytest.skip("root reads everything")
    job = jobctl.done("-c", 'echo x; echo y >&2; chmod 0 "${JOBCTL_PROGRESS%/*}/stdout"')
    result = jobctl.run("receive", job, status=None)
    assert result.stderr.decode().splitlines()[0] == "y"
    assert f"job {job}: cannot read its stdout: Permission denied" in result.stderr.decode()
