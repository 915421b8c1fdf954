"""The index: it says what the folders say, whatever becomes of it."""

from __future__ import annotations

import gc
import os
import random
import shutil
import sqlite3
import subprocess
import threading
import time
import weakref
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from conftest import PROGRAM, Jobctl, first_of, strace, wait_until

from jobctl import process, quoting
from jobctl.errors import NotFound
from jobctl.jobs import Jobs
from jobctl.ops.find import resolve
from jobctl.store import Store


def index(jobctl: Jobctl) -> Path:
    return jobctl.state_dir / "index.db"


def copied(jobctl: Jobctl, job: str, *numbers: int) -> None:
    for number in numbers:
        shutil.copytree(jobctl.folder(job), jobctl.folder(str(number)))


def rewrite(jobctl: Jobctl, job: str, name: str, **fields: str) -> None:
    """Change entries of a record in a job's folder."""
    path = jobctl.folder(job) / name
    record = quoting.load(path.read_bytes()) | {k: v.encode() for k, v in fields.items()}
    path.write_bytes(quoting.dump(record))


@pytest.fixture(name="many")
def _many(jobctl: Jobctl) -> Jobctl:
    """Give 200 finished jobs, of every kind and in no order."""
    kinds = [
        jobctl.done("true"),
        jobctl.done("-n", "naïve", "sh", "-c", "echo out; exit 3", "\udcff"),
        jobctl.done("-c", "kill -9 $$"),
        jobctl.done("no-such-command", status=None),
        jobctl.start("sleep", "600"),
    ]
    jobctl.run("stop", kinds[-1])
    numbers = list(range(len(kinds) + 1, 201))
    random.Random(3).shuffle(numbers)
    for number in numbers:
        copied(jobctl, kinds[number % len(kinds)], number)
    return jobctl


@pytest.mark.long
def test_made_anew_it_says_the_same(many: Jobctl) -> None:
    before = many.out("get", "-o", "json")
    assert before.count('"instance_id"') == 200
    for _ in range(2):
        index(many).unlink()
        assert many.out("get", "-o", "json") == before
        assert many.out("get", "-o", "json") == before
    (many.state_dir / "index.lock").unlink(missing_ok=True)
    (many.state_dir / "index.db-journal").unlink(missing_ok=True)
    assert many.out("get", "-o", "json") == before


@pytest.mark.long
def test_made_anew_it_selects_the_same(many: Jobctl) -> None:
    questions = [
        ("--newest", "7"),
        ("--state", "Failed"),
        ("--name", "na*"),
        ("--has-more-data",),
        ("3-9", "17", "--state", "Stopped"),
        ("--after", "1h", "--command", "sleep*"),
    ]
    before = [many.out("get", "-q", *question) for question in questions]
    assert all(before)
    index(many).unlink()
    assert [many.out("get", "-q", *question) for question in questions] == before


def test_what_is_over_is_not_looked_at(jobctl: Jobctl, tmp_path: Path) -> None:
    """Nor is what a receiver has nothing to tell of; or all would take as long as all jobs."""
    for status in (0, 3):
        jobctl.done("-c", f"echo x; exit {status}")
    each = ("start", "-q", "--wait", "--foreach", "-", "true")
    jobctl.run(*each, input=b"a\nb\n")
    jobctl.run("receive", "--all")
    jobctl.run("get", "-q")
    trace = tmp_path / "trace"
    words = [*strace("open,openat", log=trace), PROGRAM]
    for command, status in [
        (("wait", "-q", "--all"), 1),
        (("wait", "-q", "--any", "1-3"), 0),
        (("receive", "--all"), 0),
        (("receive", "--wait", "--all"), 1),
        (("get", "-q"), 0),
    ]:
        result = subprocess.run([*words, *command], env=jobctl.env, stdout=subprocess.DEVNULL)
        assert result.returncode == status
        opened = trace.read_text()
        assert f"{jobctl.state_dir}/index." in opened
        assert f"{jobctl.state_dir}/jobs/" not in opened, command


def test_versions(many: Jobctl) -> None:
    before = many.out("get", "-o", "json")
    index(many).write_bytes(b"")
    assert many.out("get", "-o", "json") == before
    for version in (1000, -1, 2**31 - 1):
        with closing(sqlite3.connect(index(many))) as db, db:
            db.execute(f"PRAGMA user_version = {version}")
            db.execute("CREATE TABLE of_another_time (x)")
        assert many.out("get", "-o", "json") == before
        with closing(sqlite3.connect(index(many))) as db, db:  # rebuilt, and kept
            assert db.execute("PRAGMA user_version").fetchone()[0] == 6
            assert db.execute("SELECT count(*) FROM jobs").fetchone()[0] == 200
            tables = db.execute("SELECT name FROM sqlite_master").fetchall()
            assert ("of_another_time",) not in tables


@pytest.mark.parametrize(
    "statement",
    [
        "DROP TABLE jobs",
        "DROP TABLE seen",
        "UPDATE jobs SET record = 'x'",
        "UPDATE jobs SET record = '{}'",
        "UPDATE jobs SET record = '[]'",
        "UPDATE jobs SET record = x'ff' || record",
        "UPDATE jobs SET record = replace(record, '\"Completed\"', '\"Odd\"')",
        "UPDATE jobs SET record = replace(record, '\"reason\"', '\"other\"')",
    ],
)
def test_what_is_no_index_of_ours(jobctl: Jobctl, statement: str) -> None:
    jobctl.done("true")
    copied(jobctl, "1", *range(2, 10))
    before = jobctl.out("get", "-o", "json")
    with closing(sqlite3.connect(index(jobctl))) as db, db:
        db.execute(statement)
    assert jobctl.out("get", "-o", "json") == before
    store = Store(str(jobctl.state_dir))
    store.refresh()
    with closing(sqlite3.connect(index(jobctl))) as db, db:  # mended, not only made up for
        assert db.execute("SELECT count(*) FROM jobs WHERE state = 'Completed'").fetchone()[0] == 9


def test_the_newest_by_boot_and_uptime(jobctl: Jobctl) -> None:
    boot = process.boot_id()
    old = "00000000-0000-4000-8000-000000000000"
    jobctl.done("true")
    copied(jobctl, "1", 2, 3, 4, 5, 6)
    # The clock went backwards, by years, in between; ids say nothing either.
    rewrite(jobctl, "6", "exit", boot=old, ended_uptime="1.5", ended="4000000000.0")
    rewrite(jobctl, "5", "exit", boot=old, ended_uptime="900.25", ended="1.0")
    rewrite(jobctl, "2", "exit", boot=boot, ended_uptime="30.0", ended="1000.0")
    rewrite(jobctl, "4", "exit", boot=boot, ended_uptime="200.0", ended="10.0")
    rewrite(jobctl, "1", "exit", boot=boot, ended_uptime="1000.0", ended="1.0")
    rewrite(jobctl, "3", "exit", boot=boot, ended_uptime="9.0", ended="3000000000.0")
    index(jobctl).unlink(missing_ok=True)
    # The older boot is known first, as it would be in life.
    for job in ("1", "2", "3", "4"):
        jobctl.folder(job).rename(jobctl.state_dir / job)
    assert jobctl.out("get", "-q") == "5\n6\n"
    for job in ("1", "2", "3", "4"):
        (jobctl.state_dir / job).rename(jobctl.folder(job))
    order = ["1", "4", "2", "3", "5", "6"]
    for count in range(1, 7):
        newest = jobctl.out("get", "-q", "--newest", str(count)).split()
        assert newest == sorted(order[:count])
    running = jobctl.start("sleep", "600")
    assert jobctl.out("get", "-q", "--newest", "1") == f"{running}\n"


def test_receiving_is_seen(jobctl: Jobctl) -> None:
    job = jobctl.done("-c", "echo x; echo y >&2")
    assert jobctl.out("get", "-q", "--has-more-data") == f"{job}\n"
    jobctl.run("receive", "--stream", "stdout", job)
    assert jobctl.out("get", "-q", "--has-more-data") == f"{job}\n"
    jobctl.run("receive", "--keep", job)
    assert jobctl.out("get", "-q", "--has-more-data") == f"{job}\n"
    jobctl.run("receive", job)
    assert jobctl.out("get", "-q", "--has-more-data") == ""
    assert jobctl.out("get", "-q", "--no-more-data") == f"{job}\n"


def test_what_a_job_left_behind_may_write(jobctl: Jobctl, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    plain = jobctl.done("true")
    job = jobctl.done("-c", f"(read x <{gate}; echo late) & exit 0")
    later = jobctl.done("-c", "exit 0")
    assert jobctl.state(job) == "Completed"
    assert jobctl.out("get", "-q", "--has-more-data") == ""
    assert jobctl.out("get", "-q", "--newest", "1") == f"{later}\n"
    with closing(sqlite3.connect(index(jobctl))) as db:
        assert db.execute("SELECT id FROM jobs WHERE NOT final").fetchall() == [(int(job),)]
    jobctl.run("receive", job)
    gate.write_text("\n")
    wait_until(lambda: jobctl.out("get", "-q", "--has-more-data") == f"{job}\n")
    assert jobctl.out("get", "-q", "--no-more-data") == f"{plain}\n{later}\n"
    wait_until(lambda: not Store(str(jobctl.state_dir)).ids("NOT final") or jobctl.jobs() is None)
    assert jobctl.out("receive", job) == "late\n"
    assert jobctl.job(job)["has_more_data"] is False


def test_an_index_of_before(jobctl: Jobctl) -> None:
    jobctl.done("true")
    running = jobctl.start("sleep", "600")
    before = jobctl.out("get", "-o", "json")
    with closing(sqlite3.connect(index(jobctl))) as db, db:
        db.execute("DROP INDEX by_end")
        db.execute("ALTER TABLE jobs DROP COLUMN finished")
        db.execute("CREATE INDEX by_end ON jobs (final, boot DESC)")
        db.execute("PRAGMA user_version = 1")
    assert jobctl.out("get", "-o", "json") == before
    assert jobctl.out("get", "-q", "--newest", "1") == f"{running}\n"


def test_doubt(jobctl: Jobctl) -> None:
    jobctl.done("true")
    copied(jobctl, "1", 2)
    store = Store(str(jobctl.state_dir))
    store.refresh()
    for job in ("1", "2"):
        rewrite(jobctl, job, "exit", state="Failed", reason="changed")
    store.refresh()
    assert [job.reason for job in store.select("1")] == ["", ""]  # finished is final
    store.doubt(["2", "99"])
    store.refresh()
    assert [job.reason for job in store.select("1")] == ["", "changed"]
    store.doubt([])


def test_folders_that_come_and_go(jobctl: Jobctl) -> None:
    jobctl.done("-n", "first", "true")
    assert jobctl.out("get", "-q") == "1\n"
    time.sleep(0.15)  # until the index trusts the time of the last change
    assert jobctl.out("get", "-q") == "1\n"
    copied(jobctl, "1", 7)
    assert jobctl.out("get", "-q") == "1\n7\n"
    assert jobctl.out("get", "-q", "first") == "1\n7\n"
    time.sleep(0.15)
    assert jobctl.out("get", "-q") == "1\n7\n"
    shutil.rmtree(jobctl.folder("1"))
    assert jobctl.out("get", "-q") == "7\n"
    jobctl.refused(3, "get", "1")
    other = jobctl.done("-n", "other", "false")
    assert jobctl.out("get", "-q", "other") == f"{other}\n"


def test_a_job_that_takes_its_time_to_start(jobctl: Jobctl) -> None:
    jobctl.done("true")
    reader, writer = os.pipe()
    starting = jobctl.popen("start", "-q", "--stdin", "-", "cat", stdin=reader, stdout=-1)
    os.close(reader)
    wait_until(lambda: jobctl.folder("2").exists())
    time.sleep(0.15)
    assert jobctl.out("get", "-q") == "1\n"
    os.write(writer, b"x")
    os.close(writer)
    assert starting.communicate(timeout=60)[0] == b"2\n"
    assert jobctl.out("get", "-q") == "1\n2\n"
    assert jobctl.out("get", "-q", "2") == "2\n"


def test_two_at_once(jobctl: Jobctl) -> None:
    jobctl.done("true")
    stores = [Store(str(jobctl.state_dir)) for _ in range(2)]
    for number in range(2, 12):
        copied(jobctl, "1", number)
        for store in stores:
            store.refresh()
            assert store.ids("1") == list(range(1, number + 1))
    shutil.rmtree(jobctl.folder("5"))
    for store in reversed(stores):
        store.refresh()
        with pytest.raises(NotFound):
            resolve(store, "5")


def test_jobs_with_items_that_are_over_are_forgotten(tmp_path: Path) -> None:
    """An agent that lives for weeks does not keep all that it ever read."""
    jobs = Jobs(str(tmp_path))
    for number in range(1, 151):
        os.makedirs(tmp_path / f"jobs/{number}/items")
        (tmp_path / f"jobs/{number}/spec").write_text("type='TaskJob'\n")
        if number != 1:
            (tmp_path / f"jobs/{number}/exit").write_text("state='Completed'\n")
    seen = {number: weakref.ref(jobs.folder(number)) for number in range(1, 151)}
    gc.collect()
    assert seen[1]() is jobs.folder(1)  # goes on, and is read no more than once
    assert seen[2]() is None
    assert sum(ref() is not None for ref in seen.values()) < 100


def test_ids_are_never_used_again(jobctl: Jobctl) -> None:
    used = []
    for lost in ("nothing", "index.db", "last", "index.db", "last"):
        used += [jobctl.done("true"), jobctl.done("true")]
        jobctl.run("remove", used[-2])
        (jobctl.state_dir / lost).unlink(missing_ok=True)
        jobctl.run("get")
    used.append(jobctl.done("true"))
    jobctl.run("remove", "--all")
    for lost in ("nothing", "index.db"):
        (jobctl.state_dir / lost).unlink(missing_ok=True)
        jobctl.run("get")
        used.append(jobctl.done("true"))
        jobctl.run("remove", used[-1])
    # The highest job was removed, and what tells of it harmed.
    for lost in ("last", "last.copy"):
        (jobctl.state_dir / lost).unlink()
        used.append(jobctl.done("true"))
        jobctl.run("remove", used[-1])
        (jobctl.state_dir / lost).write_bytes(b"\0 damaged")
        used.append(jobctl.done("true"))
        jobctl.run("remove", used[-1])
    assert list(map(int, used)) == sorted(set(map(int, used)))


def harm(path: Path, kind: str) -> None:
    """Do something to the index, which may go away or come back at any time."""
    if kind == "deleted":
        path.unlink(missing_ok=True)
    elif kind == "truncated" and path.is_file():
        os.truncate(path, path.stat().st_size // 2)
    elif kind == "garbage":
        path.write_bytes(random.randbytes(20_000))
    elif kind == "directory" and not path.is_dir():
        path.unlink(missing_ok=True)
        path.mkdir()
    elif kind == "fifo" and not path.is_fifo():
        path.unlink(missing_ok=True)
        os.mkfifo(path)
    elif kind == "locked":
        with closing(sqlite3.connect(path, timeout=5, isolation_level=None)) as db:
            db.execute("BEGIN EXCLUSIVE")
            time.sleep(1)


@pytest.mark.parametrize(
    "kind", first_of("garbage", "deleted", "truncated", "directory", "fifo", "locked")
)
def test_a_harmed_index(jobctl: Jobctl, kind: str) -> None:
    ended = [jobctl.done("-c", f"echo {status}; exit {status}") for status in range(2)]
    before = jobctl.jobs()
    over = threading.Event()

    def again_and_again() -> None:
        while not over.is_set():
            with suppress(OSError, sqlite3.Error):
                harm(index(jobctl), kind)
            over.wait(0.02 if kind != "locked" else 60)

    harmer = threading.Thread(target=again_and_again)
    harmer.start()
    try:
        commands: list[tuple[str, ...]] = [
            *[("get", "-q", "1-2")] * 4,
            *[("receive", "--keep", "1")] * 4,
            *[("wait", "-q", "1")] * 4,
            *[("start", "-q", "--wait", "echo", "x")] * 4,
        ]
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        processes = [jobctl.popen(*words, **pipes) for words in commands]
        results = [(*process.communicate(timeout=60), process.returncode) for process in processes]
    finally:
        over.set()
        harmer.join()
    outputs = [b"1\n2\n"] * 4 + [b"0\n"] * 4 + [b"1\n"] * 4 + [b"x\n"] * 4
    assert results == [(out, b"", 0) for out in outputs]
    after = jobctl.jobs()
    assert after[:2] == before
    assert [job["id"] for job in after] == [*ended, "3", "4", "5", "6"]


def test_an_index_that_is_deleted_while_somebody_writes_to_it(jobctl: Jobctl) -> None:
    """What it was before that is not put into the one that takes its place."""
    jobctl.run("remove", jobctl.done("true"))
    assert jobctl.out("get", "-q") == ""
    with closing(sqlite3.connect(index(jobctl).resolve(), isolation_level=None)) as db:
        db.execute("PRAGMA synchronous = OFF")
        columns = [name for _, name, *_ in db.execute("PRAGMA table_info(jobs)")]
        index(jobctl).unlink()
        job = jobctl.done("true")
        assert jobctl.out("get", "-q") == f"{job}\n"
        db.execute("BEGIN IMMEDIATE")
        db.execute(f"INSERT INTO jobs VALUES ({', '.join('7' for _ in columns)})")
        for _ in range(2):
            assert jobctl.out("get", "-q") == f"{job}\n"


def test_what_is_left_of_former_indexes_is_deleted(jobctl: Jobctl) -> None:
    job = jobctl.done("true")
    jobctl.run("get")
    former = index(jobctl).resolve()
    os.utime(former, (0, 0))
    index(jobctl).unlink()
    assert jobctl.out("get", "-q") == f"{job}\n"
    assert not former.exists()
    assert index(jobctl).resolve().exists()


def test_get_killed_while_it_writes_the_index(jobctl: Jobctl) -> None:
    jobctl.done("true")
    jobs = jobctl.state_dir / "jobs"
    chance = random.Random(2)
    for number in range(2, 12):
        for copy in range(10):
            shutil.copytree(jobs / "1", jobs / str(number * 10 + copy))
        process = jobctl.popen("get", "-q", stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        time.sleep(0.04 + chance.random() * 0.03)
        process.kill()
        _, err = process.communicate()
        assert err == b""
    assert len(jobctl.out("get", "-q").split()) == 101
    assert {job["state"] for job in jobctl.jobs()} == {"Completed"}


def test_junk_between_the_folders(jobctl: Jobctl) -> None:
    jobctl.done("true")
    jobs = jobctl.state_dir / "jobs"
    names = ["-1", "007", "1.5", "abc", "١", "99999999999999999999", "²", "1\n", ".hidden", "08"]
    for number, name in enumerate(names):
        if number % 2:
            (jobs / name).write_text("junk")
        else:
            shutil.copytree(jobs / "1", jobs / name)
    shutil.copytree(jobs / "1", jobs / "9223372036854775808")
    (jobs / "0").write_text("junk")
    (jobs / "3").symlink_to("nowhere")
    for _ in range(2):
        assert jobctl.out("get", "-q") == "1\n"
        (jobctl.state_dir / "index.db").unlink()
    assert jobctl.start("true") == "2"
    (jobctl.state_dir / "last").unlink()
    assert jobctl.start("true") == "4"
    jobctl.run("wait", "--all")
    jobctl.run("remove", "--all")
    assert {*names, "0", "9223372036854775808"} <= set(os.listdir(jobs))


def test_what_is_unsettled(jobctl: Jobctl) -> None:
    jobctl.done("true")
    store = Store(str(jobctl.state_dir))
    running = int(jobctl.start("sleep", "63.5"))
    jobctl.run("get")
    assert store.unsettled("type = ?", ["BackgroundJob"]) == [running]
    assert store.unsettled("type = ?", ["RemoteJob"]) == []
    new = int(jobctl.start("true"))  # not indexed yet
    assert store.unsettled("type = ?", ["RemoteJob"]) == [new]
    jobctl.run("wait", str(new))
    jobctl.run("remove", "--force", str(running))
    assert store.unsettled("type = ?", ["BackgroundJob"]) == []
    with closing(sqlite3.connect(index(jobctl))) as db, db:
        db.execute("UPDATE seen SET boot = 'another'")
        db.execute("INSERT OR IGNORE INTO seen VALUES (1, 'another', 0)")
    jobctl.folder("1").joinpath("exit").unlink()  # the power was lost before it was on the disk
    rewrite(jobctl, "1", "run", host="elsewhere", boot="another")
    assert 1 in store.unsettled("1")
