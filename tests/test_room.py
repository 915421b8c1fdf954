"""A disk with the state directory here that is full: what waits says so, and loses nothing."""

from __future__ import annotations

import select
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from conftest import (
    PATIENCE,
    Jobctl,
    at_home,
    nothing_left,
    parent_of,
    processes_with,
    sleeping,
    wait_until,
)
from disk import Disk, mounted
from far import Far
from sshd import Sshd
from test_items import children, each

from jobctl.whole import lack


class Small(Far):
    """A computer with a small disk for its state directory."""

    def fill(self) -> None:
        """Leave no room on the disk."""
        Disk(self.state_dir.parent).fill()

    def clear(self) -> None:
        """Have room again."""
        Disk(self.state_dir.parent).free()

    @property
    def reason(self) -> bytes:
        """What is said while there is none."""
        return b"jobctl: waiting: cannot write in %s: No space left on device\n" % bytes(
            self.state_dir
        )


@pytest.fixture
def small(tmp_path: Path, sshd: Sshd) -> Iterator[Small]:
    """Give such a computer, with its jobs on web1."""
    before, disk = at_home(sshd.home), tmp_path / "disk"
    program = Small(disk / "state", tmp_path, sshd, "-H", "web1")
    with mounted(disk, "size=2m"):
        try:
            yield program
        finally:
            program.clear()
            program.close()
    nothing_left(tmp_path, sshd.home, but=before)


def test_it_gets_full_while_jobs_run(small: Small, tmp_path: Path) -> None:
    go = tmp_path / "go"
    text = f"echo a; until [ -e {go} ]; do sleep 0.1; done; head -c 100000 /dev/zero; echo b"
    plain = small.popen("start", "-wqH", "web1", "-c", text, stdout=-1, stderr=-1)
    wait_until(lambda: small.output("1") == "a\n")
    words = ("-H", "web[1-2]", "--per-host", "1", "-c", f"{text} {{}}")
    items = each(small, "1\n2\n3\n", *words)
    wait_until(lambda: [c["state"] for c in children(small, items)].count("Running") == 2)
    small.fill()
    go.touch()
    # Whoever waits already is told, and whoever comes to wait.
    for verb, job in (("wait", items), ("receive --wait", "1")):
        waiting = small.popen(*verb.split(), job, stdout=-1, stderr=-1)
        assert waiting.stderr
        assert waiting.stderr.readline() == small.reason
        waiting.terminate()
        waiting.communicate()
    assert plain.stderr
    assert plain.stderr.readline() == small.reason
    # Nothing is delivered that could not be noted.
    for job in (f"{items}.1", f"{items}.2"):
        assert "cannot note what is received" in small.refused(125, "receive", job)
    # What needs no room goes on.
    assert small.out("session", "run", "web1", "echo", "hi") == "hi\n"
    assert {job["state"] for job in small.jobs()} == {"Running"}
    small.clear()
    output, said = plain.communicate()
    assert (output, said) == (b"a\n" + b"\0" * 100_000 + b"b\n", b"")
    small.run("wait", items)
    ended = sorted(small.out("receive", items).replace("\0", "").split())
    assert ended == sorted("a a a b b b 1 2 3".split())
    assert not list(small.state_dir.glob(".room*"))


def test_it_is_full_already(small: Small) -> None:
    small.fill()
    folder = small.state_dir
    small.state_dir.mkdir(exist_ok=True, mode=0o700)
    for words in (("session", "new", "web1"), ("start", "-w", "-H", "web1", "true")):
        for _ in range(2):  # the first one may make what takes no room
            said = small.refused(125, *words)
            assert str(folder) in said
            assert "No space left on device" in said
    assert small.out("session", "get", "-q") + small.out("get", "-q") == ""
    small.clear()
    small.run("session", "new", "web1")
    assert small.out("session", "get", "-o", "ids") == "1\n"
    assert small.out("start", "-w", "-H", "web1", "echo", "hi") == "hi\n"


@pytest.mark.long
def test_what_cannot_come_home_as_it_is_full(small: Small) -> None:
    """Is no host that is out of reach, nor a process that cannot be ended."""
    job = small.on(
        "web1", "-c", "echo a; trap 'head -c 100000 /dev/zero; exit' TERM; sleep 300 & wait"
    )
    wait_until(lambda: small.output(job) == "a\n")
    small.fill()
    for words in (("stop",), ("remove", "--force")):
        said = small.refused(125, *words, job)
        assert said.startswith(f"jobctl: job {job}: it has ended there; cannot write in ")
        assert said.endswith(": No space left on device")
    small.clear()
    small.run("wait", job, status=1)
    assert small.state(job) == "Stopped"
    assert len(small.output(job)) == 100_002
    small.run("remove", job)


def test_what_cannot_be_written() -> None:
    """As on a disk that is full or mounted read-only; other errors are none of its affair."""
    for number, cause in ((28, "No space left on device"), (30, "Read-only file system")):
        assert lack("/s", OSError(number, cause)) == f"cannot write in /s: {cause}"
    assert lack("/s", OSError(13, "Permission denied")) == lack("/s", ValueError()) == ""


@pytest.mark.long
def test_what_ends_while_it_is_full(small: Small, tmp_path: Path) -> None:
    """Who waits for it hears of its end as soon as there is room."""
    go = tmp_path / "go"
    until = f"until [ -e {go} ]; do sleep 0.05; done"
    silent = small.on("web1", "--foreach", "-", "-c", until, input=b"a\nb\n")
    gate = small.on("web1", "-c", f"{until}; exit 3")
    after = ("--after-ok", gate)
    plain = small.on("web1", *after, "true")
    items = small.on("web1", *after, "--foreach", "-", "echo", input=b"a\nb\n")
    small.until(gate, "Running")
    wait_until(lambda: [c["state"] for c in children(small, silent)] == ["Running"] * 2)
    waiting = small.popen("wait", silent, gate, plain, items, stdout=-1, stderr=-1)
    said = waiting.stderr
    assert said
    small.fill()
    go.touch()
    wait_until((small.guest(gate) / "exit").exists)

    # What was freed meanwhile is taken, too, until it is told.
    def told() -> bool:
        small.fill()
        return bool(select.select([said], [], [], 0)[0])

    wait_until(told)
    small.clear()
    assert waiting.wait(PATIENCE) == 1
    states = [small.state(job) for job in (silent, gate, plain, items)]
    assert states == ["Completed", "Failed", "Stopped", "Stopped"]


def test_there_is_no_place_for_another_file(jobctl: Jobctl, tmp_path: Path) -> None:
    """Items wait for it, and each runs once: a slot takes none for one that another has taken."""
    disk = tmp_path / "disk"
    jobctl.state_dir = disk / "state"
    jobctl.env["JOBCTL_STATE_DIR"] = str(disk / "state")
    ran, go = tmp_path / "ran", tmp_path / "go"
    text = f"echo {{}} >>{ran}; until [ -e {go} ]; do sleep 0.05; done; echo {{}}"
    with mounted(disk, "nr_inodes=150"):
        try:
            items = "".join(f"{number}\n" for number in range(1, 9)).encode()
            job = jobctl.start("-t", "2", "--foreach", "-", "-c", text, input=items)
            wait_until(lambda: ran.exists() and len(ran.read_text().split()) == 2)
            with suppress(OSError):
                for number in range(150):
                    (disk / f"fill{number}").touch()
            go.touch()
            wait_until(lambda: _asleep(disk / "state"))
            for path in disk.glob("fill*"):
                path.unlink()
            jobctl.run("wait", job, "--timeout", "60")
            assert sorted(ran.read_text()) == sorted("12345678" + "\n" * 8)
            assert sorted(jobctl.run("receive", job).stdout.split()) == sorted(items.split())
        finally:
            jobctl.stop_all()


def _asleep(state: Path) -> bool:
    """Whether a slot sleeps until there is room."""
    slots = processes_with(f"items.sh slots {state}")
    return any(parent_of(pid) in slots for pid in sleeping("sleep 1"))
