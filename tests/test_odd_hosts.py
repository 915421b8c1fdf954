"""Jobs on hosts that are not like others: their shells, homes, tools, servers and networks."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest
from conftest import at_home, first_of, wait_until
from far import Far
from sshd import MakeSshd, Sshd, Wire, program
from test_session import Make, make_far

import jobctl

__all__ = ["make_far"]
_TEXT = "cat; echo err >&2; echo 50 half >$JOBCTL_PROGRESS; pwd; exit 3"


def works(far: Far, tmp_path: Path) -> None:
    """Check that jobs begin, tell all, end and are ended on web1."""
    data = tmp_path / "data"
    data.write_bytes(os.urandom(300_000))
    home = far.out("session", "run", "web1", "pwd")
    job = far.on("web1", "--stdin", str(data), "-c", _TEXT)
    result = far.run("receive", "-w", job, status=3)
    assert result.stdout == data.read_bytes() + home.encode()
    assert result.stderr == f"err\njobctl: job {job} failed: exit status 3\n".encode()
    assert far.job(job)["progress"] == {"percent": 50.0, "message": "half"}
    late = far.on("web1", "--timeout", "0.5", "sleep", "600")
    assert far.outcome(late) == ("Failed", "timed out after 0.5s", None)
    long = far.on("web1", "-c", "sleep 71 & (sleep 72 &); env -i sleep 73 & sleep 74")
    far.until(long, "Running")
    wait_until(lambda: len(sleepers(far)) >= 3)
    far.run("stop", long)
    assert far.outcome(long)[:2] == ("Stopped", "stopped by user")
    assert sleepers(far) == []
    far.run("remove", "--all")
    assert list((far.there / "guest").iterdir()) == []


def sleepers(far: Far) -> list[str]:
    """Return what of a job's commands runs on the host."""
    words = at_home(far.sshd.home) | at_home(Path(far.out("session", "run", "web1", "pwd").strip()))
    return [line for line in words.values() if line.startswith("sleep 7")]


@pytest.mark.parametrize("shell", first_of("fish", "tcsh", "zsh", "noisy"))
def test_login_shells(make_far: Make, make_sshd: MakeSshd, tmp_path: Path, shell: str) -> None:
    path = program("bash" if shell == "noisy" else shell)
    # As sshd would for a user with this shell; it takes ours from the password file.
    sshd = make_sshd(f'ForceCommand exec {path} -c "$SSH_ORIGINAL_COMMAND"')
    if shell == "noisy":
        rc = "echo welcome; echo to >&2; printf 'no newline'; stty -echo\n"
        (sshd.home / "rc").write_text(rc)
        sshd = make_sshd(
            f'ForceCommand exec {path} -c "$SSH_ORIGINAL_COMMAND"',
            environ={"BASH_ENV": str(sshd.home / "rc")},
        )
    works(make_far(sshd), tmp_path)


def test_a_home_with_spaces_and_quotes(make_far: Make, make_sshd: MakeSshd, tmp_path: Path) -> None:
    home = tmp_path / "a 'home' \"of\" $x `y` *"
    home.mkdir()
    far = make_far(make_sshd(environ={"HOME": str(home), "XDG_STATE_HOME": ""}))
    far.there = home / ".local/state/jobctl"
    works(far, tmp_path)


@pytest.mark.long
def test_two_channels_at_a_time(make_far: Make, make_sshd: MakeSshd, tmp_path: Path) -> None:
    works(make_far(make_sshd("MaxSessions 2")), tmp_path)


def test_a_host_without_sftp(make_far: Make, sshd: Sshd, tmp_path: Path) -> None:
    assert "Subsystem" not in (sshd.folder / "sshd_config").read_text()
    works(make_far(sshd), tmp_path)


@pytest.mark.long
def test_a_slow_line(make_far: Make, sshd: Sshd, wire: Wire, tmp_path: Path) -> None:
    wire.delay(0.05)
    works(make_far(sshd), tmp_path)
    wire.delay(0.0)


@pytest.mark.long
@pytest.mark.parametrize("missing", first_of(("setsid",), ("setsid", "perl")))
def test_without_tools(
    make_far: Make, sshd: Sshd, tmp_path: Path, missing: tuple[str, ...]
) -> None:
    library = tmp_path / "library"
    shutil.copytree(os.path.dirname(jobctl.__file__), library / "jobctl")
    scripts = [
        library / "jobctl" / name for name in ("runner.sh", "serve.sh", "items.sh", "command.sh")
    ]
    for name in missing:
        assert f"bin/{name}" in scripts[0].read_text()
        for path in scripts:
            path.write_text(path.read_text().replace(f"bin/{name}", f"bin/no-such-{name}"))
    far = make_far(sshd)
    far.env["PYTHONPATH"] = str(library)
    works(far, tmp_path)
    # What steers perl is for the command alone.
    odd = ("-e", "PERL5OPT=-Mno_such", "-e", "a-b=c")
    result = far.run("start", "-qw", "-H", "web1", *odd, "env")
    assert {b"PERL5OPT=-Mno_such", b"a-b=c"} <= set(result.stdout.splitlines())
    assert result.stderr == b""


def test_a_host_that_sleeps(make_far: Make, sshd: Sshd, tmp_path: Path) -> None:
    far = make_far(sshd)
    far.run("session", "new", "web1", "--option", "ServerAliveInterval=1")
    go = f"until [ -e {tmp_path}/go ]; do sleep 0.05; done"
    text = (
        f"i=0; while [ $i -lt 400 ]; do i=$((i + 1)); echo $i; [ $i -ne 60 ] || {go}; done; exit 5"
    )
    job = far.on("web1", "-c", text)
    wait_until(lambda: far.output(job).count("\n") == 60)
    # Whoever takes connections too: else it is there again at once.
    asleep = [sshd.pid, *sshd.connections(), *at_home(sshd.home)]

    def signal_all(number: signal.Signals) -> None:
        for pid in asleep:
            with suppress(ProcessLookupError):  # a sleep of the loop
                os.kill(pid, number)

    try:
        signal_all(signal.SIGSTOP)
        (tmp_path / "go").touch()
        far.until(job, "Disconnected")
        assert far.output(job).count("\n") == 60
    finally:
        signal_all(signal.SIGCONT)
    assert far.out("receive", "-w", job, status=5) == "".join(f"{n}\n" for n in range(1, 401))
    far.run("session", "remove", "web1")


@pytest.mark.long
def test_a_far_side_that_falls_silent(make_far: Make, sshd: Sshd, tmp_path: Path) -> None:
    """The server answers, but not what we have there: a disk hangs, say."""
    far = make_far(sshd)
    far.run("session", "new", "web1")
    text = f"echo a; until [ -e {tmp_path}/go ]; do sleep 0.1; done; echo b"
    job, other = far.on("web1", "-c", text), far.on("web1", "-c", text)
    for each in (job, other):
        wait_until(lambda: far.output(each) == "a\n")  # noqa: B023
    ours = [pid for pid, words in at_home(sshd.home).items() if "serve.sh control" in words]
    asleep = [sshd.pid, *ours]  # it takes no other connection either
    for pid in asleep:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
    try:
        stop = far.popen("stop", other, stderr=subprocess.PIPE)
        wait_until(lambda: "no answer for 28 seconds" in far.job(job)["reason"])
        said = stop.communicate(timeout=60)[1]
    finally:
        for pid in asleep:
            with suppress(ProcessLookupError):  # one that lived for an instant
                os.kill(pid, signal.SIGCONT)
    assert stop.returncode in (0, 5), said
    far.until(other, "Stopped")  # as soon as it can be
    (tmp_path / "go").touch()
    far.run("wait", job, other, status=1)
    assert [far.state(job), far.state(other)] == ["Completed", "Stopped"]
    assert far.output(job) == "a\nb\n"
    far.run("session", "remove", "web1")


@pytest.mark.long
def test_what_the_login_exports_and_its_umask(make_far: Make, make_sshd: MakeSshd) -> None:
    names = "line path host out err run size now code signal word rest nl own state".split()
    far = make_far(make_sshd(environ={name: f"of {name}" for name in names}))
    text = "umask; " + "; ".join(f'echo "${name}"' for name in names)
    expected = far.out("session", "run", "web1", "-c", text)
    assert expected.splitlines()[1:] == [f"of {name}" for name in names]
    assert far.out("receive", far.done("-H", "web1", "-c", text)) == expected
    items = far.out("start", "-q", "-H", "web1", "--foreach", "-", "-c", text, input=b"1\n2\n")
    far.run("wait", items.strip())
    assert far.out("receive", items.strip()) == expected * 2


@pytest.mark.parametrize("size", first_of(5_000_000, 50_000_000))
def test_much_output_and_little(make_far: Make, sshd: Sshd, size: int) -> None:
    far = make_far(sshd)
    far.run("session", "new", "web1")
    text = f"echo begin; head -c {size} /dev/zero; echo end; sleep 600"
    much = [far.on("web1", "sh", "-c", text) for _ in range(3)]
    small = far.on("web1", "echo", "hi")
    assert far.outcome(small) == ("Completed", "", 0)
    for job in much:
        home = far.folder(job) / "stdout"
        wait_until(lambda home=home: home.stat().st_size == size + 10)  # type: ignore[misc]
    far.run("stop", *much)
    for job in much:
        assert far.outcome(job)[:2] == ("Stopped", "stopped by user")
        assert far.run("receive", job).stdout == b"begin\n" + b"\0" * size + b"end\n"


def test_items_with_much_output(make_far: Make, sshd: Sshd) -> None:
    far = make_far(sshd)
    text = "head -c 300000 /dev/zero | tr '\\0' {}; exit {}"
    words = ("-H", "web1", "--per-host", "2", "--foreach", "-", "-c", text)
    job = far.out("start", "-q", *words, input=b"1\n2\n3\n").strip()
    far.run("wait", job, status=1)
    for number in "123":
        child = far.job(f"{job}.{number}")
        assert (child["state"], child["exit_code"]) == ("Failed", int(number))
        output = far.run("receive", f"{job}.{number}").stdout
        assert output == number.encode() * 300_000


def test_a_start_that_was_killed_on_the_host_is_made_again(make_far: Make, sshd: Sshd) -> None:
    far = make_far(sshd)
    far.run("session", "new", "web1")
    far.run("session", "disconnect", "web1")
    job = far.out("start", "-q", "--session", "web1", "sh", "-c", "echo hi; exit 3").strip()
    guest = far.guest(job)
    guest.mkdir()
    ended = subprocess.Popen(["true"])
    ended.wait()
    boot = Path("/proc/sys/kernel/random/boot_id")
    claim = f"runner='{ended.pid}'\nrunner_ticks='1'\nboot='{boot.read_text().strip()}'\n"
    (guest / "run").write_text(claim if boot.exists() else "")
    far.run("session", "connect", "web1")
    assert far.outcome(job) == ("Failed", "exit status 3", 3)
    assert far.out("receive", job) == "hi\n"
