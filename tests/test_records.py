"""Records: what an item, a reason or a host says never becomes a line or a field of one."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
from pathlib import Path

import pytest
from conftest import SHELLS, Jobctl, shell_words
from far import Far
from test_bare import SCRIPT, Bare
from test_items import children, each

from jobctl import records, whole
from jobctl.journal import lines_in

LINE = " C 0 - 1795804318.25 5150.00 "
"""What follows the number of an item that is Completed in a journal."""
ITEMS = [
    f"a\\n2{LINE}".encode(),
    rb"c\c",
    rb"d\0101\x41",
    f"e\r6{LINE}".encode(),
    f"f\n1{LINE}\n7{LINE}\n".encode(),
    f"7{LINE}".encode(),
    b"g\x1b[2J\x0b\x0c\x85",
    b"\xff\xfe\\c",
    b"h" * 100_000,
    b"-n",
    b"x;touch${IFS}pwned\\n1",
]


def endings(jobctl: Jobctl, job: str) -> list[tuple[str, str, str]]:
    """Return state, exit status and the beginning of the reason of each child."""
    records = children(jobctl, job)
    return [(r["state"], str(r["exit_code"]), r["reason"].partition(": ")[0]) for r in records]


@pytest.mark.long
def test_items_that_look_like_records(either: Far) -> None:
    data = b"\0".join(ITEMS)
    job = each(either, data, *either.where, "-0", "-t", "2", "--", "./nosuch-{}")
    either.run("wait", job, "--timeout", "60", status=1)
    expected = [("Failed", "127", "command not found")] * len(ITEMS)
    expected[8] = endings(either, job)[8]  # too long for the name of a file
    assert expected[8][0] == "Failed"
    assert endings(either, job) == expected
    assert either.job(job)["state"] == "Failed"
    job = each(either, data, *either.where, "-0", "-t", "2", "--", "printf", "%s")
    either.run("wait", job, "--timeout", "60")
    assert endings(either, job) == [("Completed", "0", "")] * len(ITEMS)
    assert either.run("receive", job).stdout == b"".join(ITEMS)
    assert not list(either.state_dir.glob("**/pwned"))


def test_reasons(either: Far) -> None:
    reason = f"x\\c\\n1{LINE}'$(touch pwned)\\"
    plain = either.start("sleep", "7411")
    items = each(either, "7412\n7414\n", *either.where, "-t", "1", "--", "sleep")
    for job in (plain, f"{items}.1"):
        either.until(job, "Running")
    either.run("stop", "--reason", reason, f"{items}.2", plain)
    either.run("stop", "--reason", f"all {reason}", items)
    said = [either.job(job)["reason"] for job in (plain, f"{items}.2", f"{items}.1")]
    assert said == [f"stopped by user: {text}{reason}" for text in ("", "", "all ")]


@pytest.mark.long
@pytest.mark.parametrize("shell", SHELLS)
def test_reasons_without_python(jobctl: Jobctl, shell: str) -> None:
    bare, reason = Bare(shell_words(shell), jobctl), "x\\c \\n1"
    job = bare.run("start", "-q", "sleep", "7413").stdout.decode().strip()
    bare.run("stop", "--reason", reason, job)
    missing = bare.run("start", "-q", "no\\nsuch\r\nb", status=1).stdout.decode().strip()
    assert bare.job(job)["reason"] == f"stopped by user: {reason}" == jobctl.job(job)["reason"]
    said = bare.job(missing)["reason"]
    assert said == jobctl.job(missing)["reason"]
    assert said.startswith("command not found: no\\nsuch\\r b")


def test_what_is_no_line_of_a_journal_says_nothing(jobctl: Jobctl) -> None:
    job = each(jobctl, "1\n2\n3\n", "-t", "1", "--", "sh", "-c", "exit {}", status=0)
    jobctl.run("wait", job, status=1)
    journal = next(Path(jobctl.folder(job)).glob("slots/*/journal"))
    good = journal.read_bytes()
    damage = [
        b"1 C",
        b"2 C 0 - x 1 ",
        b"0" + LINE.encode(),
        b" 1" + LINE.encode(),
        b"\r3 C 0 - 1 1 ",
    ]
    journal.write_bytes(b"\n".join([*damage, good + b"3" + LINE.encode()]))
    (jobctl.state_dir / "index.db").unlink()
    assert [child["exit_code"] for child in children(jobctl, job)] == [1, 2, 3]


def test_records_that_are_pipes(jobctl: Jobctl) -> None:
    """Nobody waits for a pipe in the place of a record, or takes another job's for it."""
    first, job = jobctl.start("sleep", "7416"), jobctl.start("sleep", "7417")
    items = each(jobctl, "7418\n", "-t", "1", "--", "sleep")
    slot = jobctl.folder(items) / "slots/1"
    keeper = int((slot / "self").read_text().split()[0])
    pids = [jobctl.job(job)["pid"], jobctl.runner_pid(job), jobctl.job(f"{items}.1")["pid"], keeper]
    for path in (jobctl.folder(job) / "run", slot / "self", slot / "journal"):
        path.unlink()
        os.mkfifo(path)
    bare = Bare(shell_words("dash"), jobctl)
    assert [bare.job(number)["pid"] for number in (first, job)] == [jobctl.job(first)["pid"], None]
    mend = ["sh", str(Path(SCRIPT).with_name("items.sh")), "mend", str(slot.parent.parent)]
    subprocess.run(mend, check=True, timeout=60)
    assert len(jobctl.jobs()) == 3
    jobctl.run("stop", "--grace", "0.2", job, status=None)
    bare.run("stop", "--grace", "0.2", job, status=None)
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    assert bare.job(first)["state"] == jobctl.state(first) == "Running"
    jobctl.run("remove", "--force", "--all")


DAMAGED_ENDS = [
    "state='Failed' code='256' signal=''",
    "state='Failed' code='99999999999999999999' signal=''",
    "state='Failed' code='-1' signal=''",
    "state='Failed' code='' signal='128'",
    "state='Failed' code='' signal='0'",
    "state='Completed' code='3' signal=''",
    "state='Completed' code='0' signal='9'",
    "state='Running' code='0' signal=''",
]
"""What no process can have ended with."""


def test_ends_that_cannot_be(jobctl: Jobctl) -> None:
    jobs = [jobctl.done("true") for _ in DAMAGED_ENDS]
    for job, end in zip(jobs, DAMAGED_ENDS, strict=True):
        (jobctl.folder(job) / "exit").write_text(end.replace(" ", "\n") + "\n")
    (jobctl.state_dir / "index.db").unlink()
    for job, end in zip(jobs, DAMAGED_ENDS, strict=True):
        record = jobctl.job(job)
        assert (record["state"], record["exit_code"], record["signal"]) == ("Failed", None, None), (
            end
        )
        assert record["reason"] == "damaged: the file exit cannot be read"
        assert jobctl.run("receive", "--wait", job, status=125).stderr.count(b"Traceback") == 0


def test_a_line_that_was_cut_says_nothing(tmp_path: Path) -> None:
    """What is appended after a part of a line is a line of its own."""
    path, form = tmp_path / "given", re.compile(rb"(\d+) (\d+) items")
    lines = [b"%d %d items\n" % block for block in ((1, 250), (251, 250))]
    text = b"".join(lines)
    for size in range(len(text) + 1):
        path.write_bytes(text[:size])
        whole.append(str(path), b"501 9 items\n")
        found = [match[0] + b"\n" for match in records.whole_lines(path.read_bytes(), form)]
        # One of which only the end of line is missing is none: its writer was told so.
        known = [line for line in lines if line in text[:size]]
        assert found == [*known, b"501 9 items\n"], size


CUT = whole.CUT.decode()[0]
JOURNAL = (
    "58 B 1234 5678 1 1795804014.85 4846.60",
    "58 B 1234 - 12 1795804014.85 -",
    "58 C 0 - 1795804014.85 4846.60 ",
    "58 F 3 - 1795804014.85 - exit status 3",
    "58 X - 15 1795804014.85 4846.60 stopped by user",
    "058 C 0 - 1795804014.85 4846.60 ",
    "58 Y 0 - 1795804014.85 4846.60 ",
    "58 F x - 1795804014.85 4846.60 why",
    f"58 X - 15 1795804014.85 4846.60 stopped b{CUT}",
)


@pytest.mark.parametrize("awk", ["awk", "busybox awk"])
def test_lines_of_a_journal_cut_anywhere(tmp_path: Path, awk: str) -> None:
    """sh and Python take the same ones, and never one for that of another item."""
    cut = [line[:size] for line in JOURNAL for size in range(len(line) + 1)]
    # In files of their own: one that lacks its end is not joined with the first line of the next.
    files = [tmp_path / str(number) for number in range(len(cut))]
    for line, file in zip(cut, files, strict=True):
        file.write_text(line)
    scripts = Path(SCRIPT).parent
    text = f'jobctl_sourced=1; . {scripts}/runner.sh; . {scripts}/slots.sh; lines_of "$@"'
    words = [
        "sh",
        "-c",
        f'awk() {{ command {awk} "$@"; }}; {text}',
        str(scripts / "x"),
        *map(str, files),
    ]
    taken = subprocess.check_output(words, text=True).splitlines()
    ours = [f"{n} {os.fsdecode(rest)}" for line in cut for n, rest in lines_in(line.encode())]
    assert taken == ours
    assert {line.split()[0] for line in taken} == {"58"}
