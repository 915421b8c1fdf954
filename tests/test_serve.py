"""The far end of a connection by itself, under each shell that a host may have as its sh."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import parent_of, processes_with, wait_until

import jobctl
from jobctl import quoting

SCRIPT = Path(jobctl.__file__).with_name("serve.sh")
MOST = 65536


class Served:
    """`serve.sh control`, spoken to as the agent does."""

    def __init__(self, shell: list[str], state_dir: Path, script: Path = SCRIPT) -> None:
        self.state_dir = state_dir
        self.shell = shell
        self.process = subprocess.Popen(
            [*shell, str(script), "control", str(state_dir), str(MOST)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={"PATH": "/usr/bin:/bin", "HOME": str(state_dir), "JOBCTL_RUNNER": "1"},
        )
        self.limit = threading.Timer(60, self.process.kill)
        self.limit.start()
        words = self.line().split()
        assert words[0] == b"serving"
        self.mark = words[5]

    def line(self) -> bytes:
        assert self.process.stdout
        return self.process.stdout.readline()

    def send(self, verb: str, *words: str | bytes) -> None:
        given = (word if isinstance(word, bytes) else word.encode() for word in words)
        text = quoting.join(given).replace(b"\n", b"'\"$nl\"'")
        assert self.process.stdin
        self.process.stdin.write(verb.encode() + b" " + text + b"\n")
        self.process.stdin.flush()

    def accept(self, handle: str, text: str, job: str = "") -> str:
        """Have a shell text run and carried; return its folder."""
        job = job or str(uuid.uuid4())
        argv = quoting.join((b"sh", b"-c", text.encode()))
        spec = quoting.dump({"instance_id": job.encode(), "argv": argv, "cwd": b""})
        self.send("accept", handle, job, spec, b"export 'A=b'\n", b"", handle, b"0", b"0")
        return job

    def frames(self, last: bytes) -> dict[bytes, bytes]:
        """Return what comes with the frame that begins so, by their first words."""
        assert self.process.stdout
        found = dict[bytes, bytes]()
        while True:
            head = self.line()
            assert head, found
            words = head.split()
            content = b""
            if words[0] in (b"out", b"err", b"run", b"exit", b"progress", b"job"):
                content = self.process.stdout.read(int(words[-1]))
                assert self.process.stdout.read(1) == b"\n"
            found[words[0]] = found.get(words[0], b"") * (words[0] in (b"out", b"err")) + content
            if head.startswith(last):
                return found

    def close(self) -> None:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.close()
        assert self.process.stdout.read() == b""
        self.process.stdout.close()
        assert self.process.wait(60) in (0, -signal.SIGKILL)
        self.limit.cancel()


@pytest.fixture(params=["dash", "bash", "busybox"], name="served")
def _served(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Served]:
    path = shutil.which(request.param)
    assert path, f"{request.param} is not installed; tests/run.sh installs it"
    if request.param == "bash":  # is another shell by another name
        (tmp_path / "sh").symlink_to(path)
        path = str(tmp_path / "sh")
    (tmp_path / "state").mkdir()
    made = Served([path, "sh"] if request.param == "busybox" else [path], tmp_path / "state")
    yield made
    made.close()


def test_ends(served: Served) -> None:
    for number, (text, state, code, ended) in enumerate(
        [
            ("echo $A; echo err >&2", b"Completed", b"0", b""),
            ("exit 3", b"Failed", b"3", b"exit status 3"),
            ("kill -INT $$; sleep 600", b"Failed", b"", b"killed by signal 2 (INT)"),
        ],
        1,
    ):
        served.accept(str(number), text)
        frames = served.frames(b"exit %d " % number)
        end = quoting.load(frames[b"exit"])
        assert (end["state"], end["code"], end["reason"]) == (state, code, ended)
        assert frames[b"%d" % number] == b""
        assert frames.get(b"out", b"") == (b"b\n" if number == 1 else b"")
        assert frames.get(b"err", b"") == (b"err\n" if number == 1 else b"")


def test_only_what_is_the_folder_of_one_job_is_touched(served: Served) -> None:
    job = served.accept("1", "echo out")
    served.frames(b"exit 1 ")
    state = served.state_dir
    for number, path in enumerate(
        ("", "guest/", "guest", "jobs/", "/", "..", "guest/..", f"guest/{job}/..", "guest/*",
         f"guest/x;touch {state}/x", f"guest/$(touch {state}/x)", f"jobs/1\ntouch {state}/x"), 10
    ):  # fmt: skip
        folder, _, name = path.rpartition("/")
        tag = str(number)
        for words in (
            ("erase", tag, path),
            ("end_items", tag, path, "0", "why", f"0:{job}"),
            ("signal_items", tag, path, "TERM", f"0:{job}"),
            ("end", tag, folder, "0", "why", f"{name}:{job}"),
            ("signal", tag, folder, "TERM", f"{name}:{job}"),
            ("feed", tag, path.removeprefix("guest/"), "1", "1", "1", ""),
            ("share", tag, path.removeprefix("guest/"), "", "", ""),
        ):
            if words[0] in ("feed", "share") and not path.startswith("guest/"):
                continue  # these are below guest/, whatever they are called
            served.send(*words)
            answer = served.line()
            assert answer.startswith(b"%d no " % number), (words, answer)
        served.send("carry", tag, path, "0", "0")
        served.send("carry_items", tag, path, "1", "", "")
    assert (state / "guest" / job / "spec").exists()
    assert sorted(path.name for path in state.iterdir()) == ["guest"]
    served.send("erase", "9", f"guest/{job}")
    assert served.line() == b"9 ok\n"
    assert not (state / "guest" / job).exists()


def test_what_goes_on_is_sent_when_asked_for(served: Served) -> None:
    go = served.state_dir / "go"
    job = served.accept("1", f"echo first; until [ -e {go} ]; do sleep 0.05; done; echo second")
    stdout = served.state_dir / "guest" / job / "stdout"
    wait_until(lambda: stdout.exists() and stdout.read_text())
    served.send("look")
    assert served.frames(b"state 1 R")[b"out"] == b"first\n"
    go.touch()
    frames = served.frames(b"exit 1 ")
    assert frames[b"out"] == b"first\nsecond\n"  # it is still there


def test_much_is_left_to_another(served: Served) -> None:
    job = served.accept("1", f"head -c {MOST} /dev/zero")
    assert b"out" not in served.frames(b"much 1")
    served.send("carry", "2", f"guest/{job}", str(MOST - 10), "0")
    assert served.frames(b"exit 2 ")[b"out"] == b"\0" * (64 + 10)  # see the header of serve.sh


@pytest.mark.parametrize("learn", ["learn_parts", "skips=no"])
def test_a_file_that_has_become_shorter(served: Served, learn: str) -> None:
    """What follows is never taken for its bytes, wherever it ends, nor its bytes for anything."""
    file = served.state_dir / "file"
    for content, offset, length in (
        (b"0123456789", 0, 10),
        (b"0123456789", 4, 100),
        (b"0123456789", 9, 2),
        (b"0123456789", 10, 5),
        (b"", 3, 4),
        (b"x\n" * 600000, 1, 1200001),
    ):
        file.write_bytes(content)
        served.send("pass", f"{learn}; reading part {file} 'out 9' {offset} {length}; echo after")
        head = served.line().split()
        assert head[:3] == [b"out", b"9", b"%d" % offset]
        content = content[offset : offset + length]
        assert served.process.stdout
        assert served.process.stdout.read(len(content)) == content
        marked = served.mark if int(head[3]) != len(content) else b""
        assert served.line() == marked + b"\n"
        assert served.line() == b"after\n"


def test_a_job_begins_once(served: Served) -> None:
    job = served.accept("1", "echo once")
    for number in (2, 3):
        served.accept(str(number), "echo once", job)
    for _ in range(3):  # in any order
        frames = served.frames(b"exit ")
    served.send("survey", "4")
    listed = served.frames(b"4 ok")[b"job"]
    assert quoting.load(listed)["instance_id"] == job.encode()
    assert (served.state_dir / "guest" / job / "stdout").read_bytes() == b"once\n"
    assert frames[b"exit"]


@pytest.mark.parametrize("claimed", ["runner='1'\nrunner_ticks='1'\nboot='another'\n", ""])
def test_a_claim_of_the_dead_counts_for_nothing(served: Served, claimed: str) -> None:
    job = str(uuid.uuid4())
    (served.state_dir / "guest" / job).mkdir(parents=True)
    (served.state_dir / "guest" / job / "run").write_text(claimed)
    served.accept("1", "echo hi", job)
    assert served.frames(b"exit 1 ")[b"out"] == b"hi\n"


def test_no_descriptor_of_ours_gets_to_a_command(served: Served) -> None:
    served.accept("1", "ls -l /proc/self/fd")
    output = served.frames(b"exit 1 ")[b"out"].decode()
    open_ones = re.findall(r" (\d+) -> (\S+)", output)
    assert {fd: path for fd, path in open_ones if int(fd) > 3} == {}


def test_it_ends_with_its_input_and_jobs_go_on(served: Served) -> None:
    job = served.accept("1", "sleep 0.5; echo late")
    served.frames(b"1 ok")
    again = Served(["sh"], served.state_dir)
    again.send("carry", "1", f"guest/{job}", "0", "0")
    served.process.stdin.close()  # type: ignore[union-attr]
    wait_until(lambda: served.process.poll() is not None)
    assert again.frames(b"exit 1 ")[b"out"] == b"late\n"
    again.close()


def test_both_of_its_processes_end_when_the_first_is_killed(served: Served) -> None:
    served.send("survey", "1")
    served.frames(b"1 ok")
    served.process.kill()
    # Its output ends with the last process that could write it.
    assert served.process.stdout
    assert served.process.stdout.read() == b""


@pytest.mark.skipif(sys.platform != "linux", reason="no other tail ends with who started it")
def test_nothing_of_the_second_is_left_when_it_is_killed(served: Served, tmp_path: Path) -> None:
    """What waits with it for files to grow ends too, though none of them grows any more."""
    go = tmp_path / "go"
    job = served.accept("1", f"until [ -e {go} ]; do sleep 0.05; done")
    served.send("look")
    tail = wait_until(lambda: processes_with(f"guest/{job}/stdout"))[0]

    def below(above: int) -> set[int]:
        found = {pid for pid in processes_with("") if parent_of(pid) == above}
        return found.union(*map(below, found))

    second = parent_of(tail)
    assert second not in (1, served.process.pid)
    others = below(second)
    assert tail in others
    assert len(others) > 1
    os.kill(second, signal.SIGKILL)
    wait_until(lambda: others.isdisjoint(processes_with("")))
    go.touch()
    served.process.kill()
    assert served.process.stdout
    assert served.process.stdout.read()


def test_so_they_do_while_a_job_keeps_them_busy(served: Served, tmp_path: Path) -> None:
    go = tmp_path / "go"
    served.accept("1", f"until [ -e {go} ]; do echo more; sleep 0.02; done")
    served.send("look")
    while b"out " not in served.line():
        pass
    served.process.kill()
    served.process.wait()
    assert served.process.stdout
    assert served.process.stdout.read()
    go.touch()


def test_so_they_do_where_the_pipe_between_them_has_no_end(served: Served, tmp_path: Path) -> None:
    """As on systems without /proc, where whoever reads it could write to it as well."""
    for path in SCRIPT.parent.glob("*.sh"):
        text = path.read_text()
        (tmp_path / path.name).write_text(text.replace("/proc/self/fd/", "/nowhere/"))
    other = Served(served.shell, served.state_dir, tmp_path / "serve.sh")
    other.send("survey", "1")
    other.frames(b"1 ok")
    other.send("erase", "2", "guest/none")
    other.frames(b"2 ok")  # now the second one waits
    other.process.kill()
    other.process.wait()
    assert other.process.stdout
    assert other.process.stdout.read() == b""
    other.limit.cancel()


def test_scripts_that_were_not_brought_there(served: Served) -> None:
    """Beside them is nothing of ours: nothing is noted, nor taken away."""
    served.send("ping", "1")
    served.frames(b"1 ok")
    assert not SCRIPT.with_name("used").exists()
