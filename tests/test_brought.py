"""What is brought to a host at the first contact, where it is full, and what it says then."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from conftest import first_of, processes_with, sleeper, wait_until
from disk import mounted
from far import Far
from sshd import MakeSshd, program
from test_enter import entered, says
from test_session import Make, make_far, status_of

from jobctl.agent import far as far_end

__all__ = ["make_far"]
ADVICE = "set JOBCTL_STATE_DIR by SetEnv in ssh_config"


@pytest.fixture(name="full")
def _full(far: Far) -> Iterator[Path]:
    """Give the file that fills the disk with the host's state directory."""
    far.there.mkdir(parents=True, exist_ok=True)
    for path in far.there.iterdir():
        path.rename(far.there.with_name(f"aside.{path.name}"))
    with mounted(far.there, "size=1m"):
        yield far.there / "fill"
    for path in far.there.parent.glob("aside.*"):
        path.rename(far.there / path.name.removeprefix("aside."))


@pytest.mark.parametrize("room", first_of(80, 0, 40, 100, 120, 160))
def test_a_full_host_is_used_once_there_is_room(far: Far, full: Path, room: int) -> None:
    full.write_bytes(b"x" * 1024 * (1024 - room))
    said = far.refused(5, "session", "new", "web1")
    assert f"cannot write in {far.there}: No space left on device; {ADVICE}" in said
    full.unlink()
    result = far.run("session", "run", "web1", "--", "jobctl", "get", "-q")
    assert result.stdout == b""
    assert far.out("start", "-w", "-H", "web1", "echo", "hi") == "hi\n"
    assert [path.name for path in (far.there / "lib").iterdir() if "." in path.name] == []


def test_where_nothing_can_be_written_commands_run(far: Far, full: Path) -> None:
    assert full.parent == far.there
    subprocess.run(["mount", "-o", "remount,ro", str(far.there)], check=True)
    reason = f"web1: cannot write in {far.there}: Read-only file system; {ADVICE}"
    text = 'cat; echo "$1" >&2; exit 3'
    result = far.run("session", "run", "web1", "-c", text, "b", input=b"a", status=3)
    assert (result.stdout, result.stderr) == (b"a", b"b\n")
    # None of our own is there, and that is all.
    assert b"jobctl" in far.run("session", "run", "web1", "jobctl", "get", status=127).stderr
    nap = sleeper()
    running = far.popen("session", "run", "web1", "--", *nap.split())
    wait_until(lambda: processes_with(nap))
    for words in (("session", "get", "--on", "web1"), ("session", "receive", "web1")):
        assert reason in far.refused(5, *words)
    assert reason in far.refused(5, "session", "new", "web1")
    assert far.outcome(far.on("web1", "true"))[:2] == ("Failed", reason)
    assert far.out("session", "run", "web1", "--", "echo", "beside") == "beside\n"
    running.send_signal(signal.SIGINT)
    assert running.wait(60) == 130
    wait_until(lambda: not processes_with(nap))
    subprocess.run(["mount", "-o", "remount,rw", str(far.there)], check=True)
    assert far.out("start", "-w", "-H", "web1", "echo", "hi") == "hi\n"


def test_a_script_that_is_short_or_gone_is_brought_again(far: Far) -> None:
    for name, damage in (("serve.sh", b"#"), ("bin/jobctl", b""), ("items.sh", None)):
        far.run("session", "run", "web1", "true")
        for lib in (far.there / "lib").iterdir():
            script = lib / name
            if damage is None:
                script.unlink()
            else:
                script.write_bytes(damage)
        far.kill_agent()
        assert far.out("start", "-w", "-H", "web1", "echo", "hi") == "hi\n"
        shown = far.run("session", "run", "web1", "--", "jobctl", "--version")
        assert shown.stdout


@pytest.mark.long
def test_scripts_that_are_deleted_while_a_session_lives(far: Far, tmp_path: Path) -> None:
    (tmp_path / "script").write_text("echo script")

    def deleted() -> None:
        for lib in (far.there / "lib").iterdir():
            shutil.rmtree(lib)

    far.run("session", "new", "web1")
    deleted()
    items = far.on("web1", "--foreach", "-", "-c", "echo {}", input=b"a\nb\n")
    assert sorted(far.out("receive", "-w", items).split()) == ["a", "b"]
    deleted()
    assert far.out("start", "-qw", "-H", "web1", "-f", str(tmp_path / "script")) == "script\n"
    job = far.on("web1", *sleeper().split())
    far.until(job, "Running")
    deleted()
    far.run("stop", job, status=5)  # as soon as the scripts are there again
    assert far.outcome(job)[0] == "Stopped"
    assert far.out("session", "run", "web1", "--", "jobctl", "start", "-qw", "echo", "hi") == "hi\n"
    far.run("session", "remove", "--all")


@pytest.mark.long
@pytest.mark.parametrize("rounds", first_of(2, 10))
def test_many_bring_the_scripts_at_once(tmp_path: Path, rounds: int) -> None:
    """They do so at the first contact with machines that share a home."""
    text = f'd=$1; v=release; IFS= read -r l && eval "$l"; {far_end._whole()} && echo whole'
    for number in range(rounds):
        state = tmp_path / str(number)
        (state / "lib").mkdir(parents=True)
        words = ["sh", "-c", text, "sh", str(state)]
        pipe = subprocess.PIPE
        shells = []
        for shell in range(8):
            path = tmp_path / f"line{shell}"
            path.write_bytes(far_end._scripts() + b"\n")
            with path.open() as line:
                shells.append(
                    subprocess.Popen(words, stdin=line, stdout=pipe, stderr=subprocess.STDOUT)
                )
        said = [shell.communicate()[0] for shell in shells]
        assert said == [b"whole\n"] * 8
        assert [path.name for path in (state / "lib").iterdir()] == ["release"]


@pytest.mark.long
@pytest.mark.parametrize("name", ["serve.sh", "bin", ""])
@pytest.mark.parametrize("kind", first_of("file", "directory", "link"))
def test_something_else_where_the_scripts_belong(far: Far, name: str, kind: str) -> None:
    far.run("session", "run", "web1", "true")
    for lib in (far.there / "lib").iterdir():
        path = lib / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
        if kind == "file":
            path.write_text("x")
        elif kind == "directory":
            path.mkdir()
            (path / "x").touch()
        else:
            path.symlink_to("/nowhere")
    far.kill_agent()
    assert far.out("start", "-w", "-H", "web1", "echo", "hi") == "hi\n"
    assert far.run("session", "run", "web1", "--", "jobctl", "--version").stdout


@pytest.mark.parametrize("shell", first_of("bash", "fish", "tcsh"))
def test_the_directory_of_a_host_can_be_named_here(
    make_far: Make, make_sshd: MakeSshd, tmp_path: Path, shell: str
) -> None:
    server = make_sshd(
        f'ForceCommand exec {program(shell)} -c "$SSH_ORIGINAL_COMMAND"',
        environ={"HOME": "/proc/none", "XDG_STATE_HOME": ""},
    )
    far = make_far(server)
    usual = "/proc/none/.local/state/jobctl"
    reason = f"web1: cannot use the state directory {usual}: No such file or directory; {ADVICE}"
    assert reason in far.refused(5, "session", "new", "web1")
    assert far.out("session", "run", "web1", "--", "echo", "hi") == "hi\n"
    far.there = tmp_path / "a 'b' $c !d {e} é"
    server.hosts(f'SetEnv "JOBCTL_STATE_DIR={far.there}" OTHER=x')
    far.kill_agent()
    job = far.on("web1", "sh", "-c", 'echo "$JOBCTL_STATE_DIR"')
    assert far.out("receive", "--wait", job) == f"{far.there}\n"
    assert far.guest(job).is_dir()
    there = far.out("session", "run", "web1", "--", "jobctl", "start", "-q", "echo", "x").strip()
    assert (far.there / "jobs" / there).is_dir()
    assert len(far.out("session", "get", "--on", "web1", "-q").split()) == 2
    assert far.out("session", "receive", "web1") == "x\n"
    named = tmp_path / "named"
    option = f"SetEnv=JOBCTL_STATE_DIR={named}"
    far.run("session", "new", "--name", "s", "--option", option, "web1")
    child = entered(far, "s")
    says(child, "echo [$JOBCTL_STATE_DIR]; jobctl start -w echo in''side", "inside")
    child.sendline("exit")
    assert status_of(child) == 0
    assert len(list((named / "jobs").glob("[0-9]*"))) == 1


@pytest.mark.long
def test_a_job_is_on_a_full_host_whole_or_not_at_all(far: Far, full: Path, tmp_path: Path) -> None:
    far.run("session", "new", "web1")
    (tmp_path / "script").write_text("cat; echo ran\n" + "#" * 70_000)
    (tmp_path / "input").write_text("given\n" * 12_000)
    words = {
        "script": ("-f", str(tmp_path / "script")),
        "stdin": ("--stdin", str(tmp_path / "input"), "cat"),
        "env": ("-e", "BIG=" + "x" * 70_000, "true"),
    }
    free = os.statvfs(far.there).f_bavail * os.statvfs(far.there).f_frsize
    for kind, given in words.items():
        for room in (0, 32_768):
            full.write_bytes(b"x" * (free - room))
            job = far.on("web1", *given)
            state, reason, _ = far.outcome(job)
            assert state == "Failed", kind
            assert f"in {far.there}/guest" in reason
            assert reason.endswith(("No space left on device", "is the disk full?"))
            folder = far.guest(job)
            assert not {"spec", "script", "stdin", "env"} & set(os.listdir(folder))
            full.unlink()
            shutil.rmtree(folder)
        job = far.on("web1", *given)
        assert far.outcome(job)[:2] == ("Completed", "")
        far.run("remove", job)


@pytest.mark.long
def test_a_host_that_has_room_for_no_further_file(far: Far, full: Path) -> None:
    """One job is refused, and the connection stands."""
    subprocess.run(["mount", "-o", "remount,nr_inodes=60", str(far.there)], check=True)
    far.run("session", "new", "web1")
    beside = far.on("web1", *sleeper().split())
    far.until(beside, "Running")
    taken = [full.with_name(f"taken.{number}") for number in range(60)]
    with suppress(OSError):
        for path in taken:
            path.touch()
    state, reason, _ = far.outcome(far.on("web1", "true"))
    assert state == "Failed"
    assert f"cannot write in {far.there}/guest" in reason
    assert reason.endswith("No space left on device")
    assert json.loads(far.out("session", "get", "-o", "json"))[0]["state"] == "Opened"
    for path in taken:
        path.unlink(missing_ok=True)
    assert far.out("start", "-w", "-H", "web1", "echo", "hi") == "hi\n"
    far.run("stop", beside)


@pytest.mark.long
@pytest.mark.parametrize("kind", ["one", "items"])
def test_nothing_of_a_job_stays_on_a_host_that_refused_it(
    far: Far, full: Path, tmp_path: Path, kind: str
) -> None:
    far.run("session", "new", "web1")
    (tmp_path / "script").write_text("cat\n")
    (tmp_path / "items").write_text("1\n2\n")
    given = ["-e", "BIG=" + "x" * 70_000, "-f", str(tmp_path / "script")]
    free = os.statvfs(far.there).f_bavail * os.statvfs(far.there).f_frsize
    full.write_bytes(b"x" * (free - 49_152))
    job = far.on(
        "web1", *given, *(["--foreach", str(tmp_path / "items")] if kind == "items" else [])
    )
    assert far.outcome(job)[0] == "Failed"
    guest = far.there / "guest"
    assert not {"spec", "script", "env"} & {path.name for path in guest.rglob("*")}
    far.run("remove", job)
    assert list(guest.iterdir()) == []


@pytest.mark.long
def test_scripts_that_nobody_needs_any_more(far: Far, tmp_path: Path) -> None:
    """Those of other releases go when they were not used for a month, and no job or process is."""
    lib = far.there / "lib"
    far.run("wait", far.start("true"))
    nap = sleeper()
    day = 24 * 3600
    for name, days in (("aaaa", 60), ("bbbb", 20), ("cccc", 60)):
        (lib / name).mkdir()
        (lib / name / "runner.sh").write_text(f"{nap} & wait\n")
        (lib / name / "used").touch()
        os.utime(lib / name / "used", (time.time() - days * day,) * 2)
    for name, days in (("dddd.999999", 3), ("eeee.999999", 0)):
        (lib / name).mkdir()
        os.utime(lib / name, (time.time() - days * day,) * 2)
    user = subprocess.Popen(["sh", str(lib / "cccc/runner.sh")], start_new_session=True)
    # An earlier test may have left a job that never ended.
    shutil.rmtree(far.there / "guest")
    unfinished = far.start(*sleeper().split())
    far.until(unfinished, "Running")
    os.utime(far.guest(unfinished) / "spec", (time.time() - 40 * day,) * 2)
    far.kill_agent()
    far.run("wait", far.start("true"))
    assert (lib / "aaaa").exists()
    far.run("stop", "--grace", "0", unfinished)
    far.kill_agent()
    far.run("wait", far.start("true"))
    wait_until(lambda: not (lib / "aaaa").exists() and not (lib / "dddd.999999").exists())
    for name in ("bbbb", "cccc", "eeee.999999"):
        shutil.rmtree(lib / name)  # it is still there
    os.killpg(user.pid, signal.SIGKILL)
    user.wait()
