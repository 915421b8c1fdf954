"""jobctl in sh alone, under each shell that a host may have, and beside the full program."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from conftest import (
    ONE_SHELL,
    SHELLS,
    Jobctl,
    processes_with,
    shell_words,
    shown,
    sleeper,
    wait_until,
)

from jobctl import runner

SCRIPT = os.path.join(os.path.dirname(runner.SCRIPT), "bare.sh")
HOSTILE = [
    b"a'; echo foo $(b) \"\n\\ *",
    b"",
    b" ",
    b"-n",
    b"~",
    b"\xff\x81\x01\x7f",
    "é→".encode(),
]


class Bare(Jobctl):
    """The command line of sh, on the state directory of the full program."""

    def __init__(self, shell: list[str], full: Jobctl) -> None:
        super().__init__(full.state_dir, Path(full.env["HOME"]))
        self.words = [*shell, SCRIPT]

    def run(
        self, *words: str | bytes, status: int | None = 0, **options: Any
    ) -> subprocess.CompletedProcess[bytes]:
        options.setdefault("env", self.env)
        if "input" not in options:
            options.setdefault("stdin", subprocess.DEVNULL)
        options.setdefault("stdout", subprocess.PIPE)
        options.setdefault("stderr", subprocess.PIPE)
        result = subprocess.run([*self.words, *words], timeout=60, **options)
        if status is not None:
            assert result.returncode == status, (words, result)
        return result

    def popen(self, *words: str, **options: Any) -> subprocess.Popen[bytes]:
        options.setdefault("env", self.env)
        options.setdefault("stdin", subprocess.DEVNULL)
        return subprocess.Popen([*self.words, *words], **options)


def altered(folder: Path, **words: str) -> str:
    """Return a copy of the script, and of those beside it, with words replaced."""
    folder.mkdir()
    for name in ("bare.sh", "runner.sh", "command.sh", "after.sh", "place.sh"):
        text = Path(SCRIPT).with_name(name).read_text()
        for word, other in words.items():
            text = text.replace(word.replace("_", " "), other)
        (folder / name).write_text(text)
    return str(folder / "bare.sh")


@pytest.fixture(params=ONE_SHELL)
def bare(request: pytest.FixtureRequest, jobctl: Jobctl, tmp_path: Path) -> Bare:
    """Give the program under one shell, that of busybox with no other tools than its own."""
    words = shell_words(request.param)
    program = Bare(words, jobctl)
    if request.param == "busybox sh":
        tools = tmp_path / "tools"
        tools.mkdir()
        for tool in subprocess.check_output([words[0], "--list"], text=True).split():
            (tools / tool).symlink_to(words[0])
        program.words[-1] = altered(tmp_path / "lib", **{"/usr/bin:/bin:/usr/sbin": str(tools)})
    return program


under_every_shell = pytest.mark.parametrize("bare", SHELLS, indirect=True)


def test_start_and_receive(bare: Bare) -> None:
    result = bare.run("start", "-n", "we ird", "sh", "-c", "echo hi; echo err >&2; exit 3")
    assert b"sh -c 'echo hi; echo err >&2; exit 3'\n" in result.stdout
    assert b"exit status 3" in bare.run("wait", "1", "-o", "wide", status=1).stdout
    first = bare.run("receive", "we ird")
    assert (first.stdout, first.stderr) == (b"hi\n", b"err\njobctl: job 1 failed: exit status 3\n")
    again = bare.run("receive", "1")
    assert (again.stdout, again.stderr) == (b"", b"")
    assert bare.run("receive", "1", "--again", "--stream", "stdout").stdout == b"hi\n"


@under_every_shell
def test_words_arrive_byte_for_byte(bare: Bare, jobctl: Jobctl) -> None:
    job = bare.done("printf", r"%s\0", *HOSTILE)
    assert bare.run("receive", job).stdout == b"".join(word + b"\0" for word in HOSTILE)
    words = ["printf", r"%s\0", *map(os.fsdecode, HOSTILE)]
    assert bare.job(job)["argv"] == jobctl.job(job)["argv"] == words
    table = bare.run("get", job).stdout
    assert table == jobctl.run("get", job).stdout
    assert table.count(b"\n") == 2


def test_many_and_long_words(bare: Bare, jobctl: Jobctl) -> None:
    words = ["x'" * 2_000, *["y\n" * 1_000] * 8, "y\n" * 10_000]
    out = bare.run("start", "-wq", "sh", "-c", 'echo $# "${10}" "$1"', "sh", *words).stdout
    assert out == f"10 {words[9]} {words[0]}\n".encode()
    assert bare.job("1") == jobctl.job("1")


@under_every_shell
def test_the_environment(bare: Bare) -> None:
    names = "name text dir cwd pid code reason state argv word verb home own opt_wait".split()
    environment = {
        **bare.env,
        **dict.fromkeys(names, HOSTILE[0].decode()),
        "LC_ALL": "nonsense",
        "JOBCTL_ITEM": "x",
        "JOBCTL_INSTANCE_ID": "y",
        "E": "",
        "PATH": "/nowhere:/usr/bin",
    }
    job = bare.done("-e", "NEW=a'\nb", "-e", "E", "-e", "a-b=c", "env", "-0", env=environment)
    pairs = dict(
        pair.partition("=")[::2]
        for pair in bare.run("receive", job).stdout.decode().split("\0")
        if pair
    )
    for name in ("PWD", "SHLVL", "_", "OLDPWD"):
        pairs.pop(name, None)
    del environment["JOBCTL_ITEM"]
    assert pairs == environment | {
        "NEW": "a'\nb",
        "a-b": "c",
        "JOBCTL_ID": job,
        "JOBCTL_NAME": f"Job{job}",
        "JOBCTL_INSTANCE_ID": bare.job(job)["instance_id"],
        "JOBCTL_HOST": "localhost",
        "JOBCTL_PROGRESS": str(bare.folder(job) / "progress"),
    }


@under_every_shell
def test_signals_umask_directory_and_descriptors(bare: Bare, tmp_path: Path) -> None:
    (tmp_path / "d ir").mkdir()
    text = "cat /proc/self/status; umask; pwd; ls -l /proc/$$/fd; cat /proc/$$/stat"
    words = [*bare.words, "start", "-q", "-C", "d ir", "-c", text]
    shell = 'umask 027; exec "$@" 5>&1'
    if "busybox" not in bare.words[0]:  # whose env cannot undo this
        shell = f'trap "" INT QUIT HUP; {shell}'
    result = subprocess.run(
        ["sh", "-c", shell, "sh", *words], cwd=tmp_path, env=bare.env, capture_output=True
    )
    job = result.stdout.decode().strip()
    bare.run("wait", job)
    lines = bare.out("receive", job).splitlines()
    masks = dict(line.split(":\t") for line in lines if line.startswith("Sig"))
    directory = lines.index(str(tmp_path / "d ir"))
    assert {masks[name] for name in ("SigBlk", "SigIgn", "SigCgt")} == {"0" * 16}
    assert lines[directory - 1] == "0027"
    assert [line.rpartition(" -> ")[2] for line in lines if " -> " in line] == [
        "/dev/null",
        str(bare.folder(job) / "stdout"),
        str(bare.folder(job) / "stderr"),
    ]
    fields = lines[-1].split(") ")[1].split()
    assert fields[2] == fields[3] == str(bare.job(job)["pid"])


def test_what_start_takes(bare: Bare, tmp_path: Path) -> None:
    script = tmp_path / "s'cript"
    script.write_text('echo "$@" $#; cat')
    job = bare.done(f"-f{script}", "--stdin=-", "--", "x y", "z", input=b"in\0put\n")
    assert bare.run("receive", job).stdout == b"x y z 2\nin\0put\n"
    assert bare.job(job)["argv"] == [str(script), "x y", "z"]
    job = bare.done("--merge", "--init", "f() { echo got $1; }", "-c", "f 1; f 2 >&2")
    assert bare.run("receive", job).stdout == b"got 1\ngot 2\n"
    job = bare.done("--retries", "2", "-c", "echo x; exit 4")
    assert bare.run("receive", job, status=0).stdout == b"x\n" * 3
    job = bare.done("--timeout", "0.2s", "sleep", "600")
    assert bare.job(job)["reason"] == "timed out after 0.2s"


def test_scripts_by_their_contents(bare: Bare, tmp_path: Path) -> None:
    script = tmp_path / "script"
    for contents, said in (
        (b"#!/bin/sh -u\necho $1", b"x\n"),
        (b"\techo text $1", b"text x\n"),
        (Path("/bin/echo").read_bytes(), b"x\n"),
    ):
        script.write_bytes(contents)
        assert bare.run("start", "-wq", "-f", str(script), "x").stdout == said
    script.write_bytes(b"\0\1\2\3")
    result = bare.run("start", "-wq", "-f", str(script), status=126)
    assert b"exec format error" in result.stderr


def test_standard_input(bare: Bare, tmp_path: Path) -> None:
    assert bare.run("start", "-wq", "-f", "-", "x", input=b"echo $1").stdout == b"x\n"
    assert "contradict" in bare.refused(2, "start", "-f", "-", "--stdin", "-", input=b"")
    (tmp_path / "lines").write_text("one\ntwo\n")
    leader, terminal = pty.openpty()
    bare.run("start", "-wq", "cat", input=b"lost", stderr=terminal)
    told = b"jobctl: standard input is not read by the job; to give it to it, use --stdin -\r\n"
    assert shown(leader) == told
    with open(tmp_path / "lines", "rb", buffering=0) as lines:
        bare.run("start", "-wq", "cat", stdin=lines, stderr=terminal)
        assert shown(leader) == told
        lines.readline()
        bare.run("start", "-wq", "cat", stdin=lines, stderr=terminal)
    bare.run("start", "-wq", "--stdin", "-", "cat", input=b"x", stderr=terminal)
    bare.run("start", "-wq", "cat", stderr=terminal)
    bare.run("start", "-wq", "nosuch", stderr=terminal, status=127)
    assert shown(leader).startswith(b"jobctl: job 7 failed")
    os.close(leader)
    os.close(terminal)


def test_after(bare: Bare, tmp_path: Path) -> None:
    text = f"while [ ! -e {tmp_path}/go ]; do sleep 0.1; done; exit 1"
    first = bare.start("-n", "first", "sh", "-c", text)
    second = bare.start("--after", "first", "true")
    third = bare.start("--after-ok", first, "--after-ok", second, "true")
    assert bare.job(second)["reason"] == f"waiting for job {first}"
    assert bare.state(second) == "NotStarted"
    (tmp_path / "go").touch()
    bare.run("wait", second, third, status=1)
    assert [bare.state(job) for job in (first, second, third)] == ["Failed", "Completed", "Stopped"]


def test_twenty_starts_at_once(bare: Bare) -> None:
    starts = [bare.popen("start", "-q", "true", stdout=subprocess.PIPE) for _ in range(20)]
    ids = sorted(int(start.communicate()[0]) for start in starts)
    assert ids == list(range(1, 21))
    bare.run("wait", "--all")
    bare.run("remove", "--all")
    assert bare.start("true") == "21"


def test_without_flock_and_setsid(bare: Bare, tmp_path: Path) -> None:
    hidden = dict.fromkeys(("command_-v_flock", "command_-v_setsid", "command_-v_perl"), "false")
    bare.words[-1] = altered(tmp_path / "hidden", **hidden)
    starts = [bare.popen("start", "-q", "echo", "x", stdout=subprocess.PIPE) for _ in range(8)]
    assert sorted(int(start.communicate()[0]) for start in starts) == list(range(1, 9))
    (bare.state_dir / "last.held").write_text("1 1 another-boot\n")  # whoever held it is gone
    job = bare.start("echo", "x")
    assert bare.out("receive", "--wait", "--all") == "x\n" * 9
    assert job == "9"
    left = sorted(path.name for path in bare.state_dir.iterdir())
    assert left == ["jobs", "last", "last.copy"]


def test_commands_that_cannot_begin(bare: Bare) -> None:
    result = bare.run("start", "no-such-program", status=1)
    assert result.stderr == b"jobctl: job 1 failed: command not found: no-such-program\n"
    assert b"Failed" in result.stdout
    assert bare.run("start", "--wait", "/", status=126).stdout == b""
    result = bare.run("start", "-q", "cd /tmp && pwd", status=1)
    assert b"not found: cd /tmp && pwd; use -c for shell text" in result.stderr
    script = Path(bare.env["HOME"]) / "script"
    script.write_bytes(b"#!/bin/sh\r\n")
    for words in (("-f", str(script)), (str(script),)):
        if words[0] != "-f":
            script.chmod(0o700)
        result = bare.run("start", "-q", *words, status=1)
        assert b": its interpreter /bin/sh\\r is not there\n" in result.stderr
    assert bare.run("start", "-wq", "-c", "echo o; kill -9 $$", status=137).stdout == b"o\n"


def test_every_byte_once(bare: Bare) -> None:
    data = os.urandom(1 << 20) + b"\0\0'\n"
    job = bare.start("--stdin", "-", "-c", "cat; head -c 5000 /dev/zero >&2", input=data)
    result = bare.run("receive", "--wait", job)
    assert result.stdout == data
    assert result.stderr == bytes(5000)
    assert not bare.job(job)["has_more_data"]
    assert bare.run("receive", "-k", "--again", job, status=2).stdout == b""
    assert bare.run("receive", "--again", job).stdout == data


def test_live_and_in_pieces(bare: Bare) -> None:
    job = bare.sh("for i in 1 2 3; do printf %s $i; sleep 0.3; done; exit 5")
    wait_until(lambda: (bare.folder(job) / "stdout").read_bytes())
    seen = [bare.out("receive", job, "--keep")]
    seen += [bare.out("receive", job)]
    assert seen[0] == seen[1][: len(seen[0])] != ""
    seen += [bare.out("receive", "-f", job, status=5)]
    assert "".join(seen[1:]) == "123"
    assert bare.run("receive", "--wait", "--timeout", "0.2", bare.sh("sleep 600"), status=124)


def test_what_is_not_written_is_not_received(bare: Bare) -> None:
    job = bare.done("seq", "100000")
    size = (bare.folder(job) / "stdout").stat().st_size
    with open("/dev/full", "wb") as full:
        result = bare.run("receive", job, status=125, stdout=full)
    assert result.stderr.startswith(b"jobctl: cannot write")
    reader, writer = os.pipe()
    os.close(reader)
    assert bare.run("receive", job, status=125, stdout=writer).stderr == b""
    os.close(writer)
    assert "stdout='0'" in (bare.folder(job) / "received").read_text()
    process = bare.popen("receive", job, stdout=subprocess.PIPE)
    assert process.stdout
    taken = process.stdout.read(100_000)
    process.stdout.close()
    assert process.wait() == 125
    rest = bare.run("receive", job).stdout
    assert len(taken) <= size - len(rest) <= len(taken) + (1 << 16) + 4096


def test_a_job_that_empties_its_output(bare: Bare, jobctl: Jobctl) -> None:
    """What it holds now is received, once it is told, as Python does."""
    job = bare.out("start", "-q", "-c", "echo first; echo err >&2").strip()
    bare.run("wait", job)
    stdout, word = bare.folder(job) / "stdout", b"has emptied its own stdout, and what it holds now"
    assert bare.out("receive", job) == "first\n"
    for now, told in (("two\n", 1), ("", 1), ("a\n", 0), ("longer\n", 1), ("another\n", 1)):
        stdout.write_text(now)
        record = bare.out("get", "-o", "json", job)
        assert f'"has_more_data": {"true" if now else "false"}' in record
        result = bare.run("receive", job)
        assert (result.stdout.decode(), result.stderr.count(word)) == (now, told)
        again = bare.run("receive", job)
        assert (again.stdout, again.stderr) == (b"", b"")
    stdout.write_text("for the other one\n")
    result = jobctl.run("receive", job)
    assert (result.stdout, result.stderr.count(word)) == (b"for the other one\n", 1)
    with stdout.open("a") as file:
        file.write("more\n")
    result = bare.run("receive", job)
    assert (result.stdout, result.stderr) == (b"more\n", b"")


def test_what_empties_its_own_output_is_warned_of(bare: Bare, tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("#!/bin/sh\necho two > /dev/fd/2\n")
    script.chmod(0o700)
    (tmp_path / "program").write_bytes(Path("/bin/echo").read_bytes())
    (tmp_path / "program").chmod(0o700)
    for words, told in (
        ([str(script), "x"], "> /dev/fd/2"),
        (["-C", str(tmp_path), "./script"], "> /dev/fd/2"),
        (["-C", str(tmp_path), "sh", "script"], "> /dev/fd/2"),
        (["sh", "-c", ":", str(script)], ""),
        (["sh"], ""),
        ([str(tmp_path / "program"), str(script)], ""),
        (["-c", "echo one; echo two >/dev/stdout"], ">/dev/stdout"),
        (["-c", "echo one | tee /dev/stderr"], "tee /dev/stderr"),
        (["--init", "echo >|/proc/self/fd/1", "true"], ">|/proc/self/fd/1"),
        (["-f", str(script)], "> /dev/fd/2"),
        (["tee", "/dev/stderr"], "tee /dev/stderr"),
        (["-c", "echo >>/dev/stdout 2>/dev/stdout2 | tee -a /dev/stderr"], ""),
    ):
        result = bare.run("start", "-q", *words).stderr.decode()
        assert result.startswith(
            f"jobctl: '{told}' empties what the job has written" if told else ""
        )
        assert len(result.splitlines()) == bool(told)


def test_several_receivers_share(bare: Bare, jobctl: Jobctl) -> None:
    data = b"".join(b"%06d\n" % i for i in range(300_000))
    job = bare.start("--stdin", "-", "cat", input=data)
    bare.run("wait", job)
    # The full program knows no other lock than flock, which busybox has not.
    programs = (bare, bare if "busybox" in bare.words[0] else jobctl, bare)
    files = [open(bare.state_dir / f"out{i}", "w+b") for i in range(3)]
    received = [
        program.popen("receive", job, stdout=file)
        for program, file in zip(programs, files, strict=True)
    ]
    assert [process.wait() for process in received] == [0, 0, 0]
    sizes = [file.tell() for file in files]
    for file in files:
        file.close()
    assert sum(sizes) == len(data)


def test_returned_ranges_come_first(bare: Bare, jobctl: Jobctl) -> None:
    job = bare.done("-c", "printf 0123456789; printf abc >&2")
    marks = "stdout='8'\nstderr='3'\ntold=''\nreturned='stderr:1-2 stdout:2-4 stdout:5-6'\n"
    (bare.folder(job) / "received").write_text(marks.ljust(512, "\n"))
    assert bare.job(job)["has_more_data"]
    result = bare.run("receive", job)
    assert (result.stdout, result.stderr) == (b"23589", b"b")
    text = (bare.folder(job) / "received").read_bytes()
    traces = "stdout:10-1114610004 stderr:3-6498345"  # see records.py
    marks = f"stdout='10'\nstderr='3'\ntold=''\nreturned=''\ntraces='{traces}'\n"
    assert text == marks.ljust(512, "\n").encode()
    assert not jobctl.job(job)["has_more_data"]


def test_filters(bare: Bare) -> None:
    for name in ("alpha", "beta"):
        bare.done("-n", name, "true")
    for words, ids in {
        ("--state", "completed", "2"): "2",
        ("--state=Failed",): "",
        ("--no-more-data", "1"): "1",
        ("--has-more-data",): "",
        ("2", "1-9", "alpha"): "1 2",
    }.items():
        assert bare.out("get", "-q", *words).split() == ids.split(), words
    assert bare.out("get", "-q", "-", input=b"2\nalpha\n 2\n") == "1\n2\n"
    result = bare.run("get", "-q", "9", "1", "gamma", "1.2", status=3)
    assert result.stdout == b"1\n"
    assert b"9" in result.stderr
    assert b"gamma" in result.stderr
    assert b"1.2" in result.stderr


def test_both_print_the_same(bare: Bare, jobctl: Jobctl) -> None:
    bare.done("-n", "ümläut \u202e", "-c", "true", status=2)
    bare.run("start", "--wait", "-n", "ümläut", "-c", 'echo "42% half\tway" >"$JOBCTL_PROGRESS"')
    bare.run("start", "--wait", "-c", "printf '\\033[1mé\\n'\n# \x1b[1m\x9b", "a", status=None)
    bare.run("start", "--wait", "-c", "kill -9 $$", status=137)
    jobctl.run("start", "--wait", "sh", "-c", "exit 7", status=7)
    bare.start("sleep", "600")
    for form in ("table", "jsonl", "ids"):
        ours, theirs = bare.out("get", "-o", form), jobctl.out("get", "-o", form)
        if form == "jsonl":
            assert [*map(json.loads, ours.splitlines())] == [*map(json.loads, theirs.splitlines())]
        else:
            assert ours == theirs
    assert bare.jobs() == jobctl.jobs()
    assert bare.jobs("z*") == []
    assert bare.out("get", "z*") == ""


def test_wait(bare: Bare) -> None:
    slow, fast = bare.start("sleep", "600"), bare.start("sleep", "0.2")
    assert bare.out("wait", "--any", slow, fast, "-q") == f"{fast}\n"
    assert bare.out("wait", "--timeout", "0.2", slow, fast, "-q", status=124) == f"{fast}\n"
    waiting = bare.popen("wait", slow, stdout=subprocess.DEVNULL)
    bare.run("stop", slow, "--grace", "1")
    assert waiting.wait() == 1


def test_stop_reaches_all(bare: Bare) -> None:
    nap = sleeper()
    job = bare.sh(f"trap '' TERM; setsid {nap} & env -i {nap} & while :; do {nap}; done")
    wait_until(lambda: len(processes_with(nap)) >= 3)
    bare.run("stop", job, "--grace=0.2", "--reason", " no\n more ")
    assert processes_with(nap) == []
    assert bare.job(job)["reason"] == "stopped by user: no more"
    job = bare.sh(f"setsid {nap} & exit 0")
    bare.run("wait", job)
    wait_until(lambda: processes_with(nap))
    bare.run("stop", "--all")
    assert processes_with(nap) == []
    assert bare.state(job) == "Completed"


def test_signals(bare: Bare) -> None:
    job = bare.start("sleep", "600")
    for name, state in (("SIGSTOP", "Suspended"), ("cont", "Running"), ("10", "Stopped")):
        bare.run("stop", "--signal", name, job)
        bare.until(job, state)
    assert bare.job(job)["reason"] == "stopped by user: signal USR1"
    assert "FROB" in bare.refused(2, "stop", "--signal", "FROB", job)


def test_a_job_that_calls_jobctl(bare: Bare) -> None:
    job = bare.start(*bare.words, "start", "-q", "sleep", "600")
    bare.run("wait", job)
    inner = bare.out("receive", job).strip()
    bare.run("remove", job)
    assert bare.state(inner) == "Running"
    job = bare.start(*bare.words, "stop", "--all")
    bare.until(job, "Stopped")
    bare.until(inner, "Stopped")


def test_remove(bare: Bare) -> None:
    done, running = bare.done("true"), bare.start("sleep", "600")
    result = bare.run("remove", done, running, "99", status=3)
    assert result.stderr.count(b"\n") == 2
    assert not bare.folder(done).exists()
    assert "Running" in bare.refused(4, "remove", running)
    bare.run("remove", "--force", running)
    assert bare.out("get") == ""


def test_a_lost_job(bare: Bare, jobctl: Jobctl) -> None:
    job = bare.start("sleep", "600")
    os.kill(bare.runner_pid(job), signal.SIGKILL)
    assert bare.state(job) == "Running"
    os.kill(bare.job(job)["pid"], signal.SIGKILL)
    bare.run("wait", job, status=1)
    assert bare.job(job)["reason"] == "lost: runner was killed"
    assert bare.job(job) == jobctl.job(job)
    job = bare.done("true")
    (bare.folder(job) / "exit").unlink()
    run = bare.folder(job) / "run"
    run.write_text(run.read_text().replace("boot='", "boot='x"))
    assert bare.job(job)["reason"] == "lost: host rebooted"
    (bare.folder(job) / "exit").unlink()
    run.write_text(run.read_text().replace("host='", "host='other-"))
    assert bare.job(job)["location"].startswith("other-")
    assert bare.state(job) == jobctl.state(job) == "Disconnected"
    assert bare.run("stop", job, status=5).stderr.startswith(b"jobctl: job 2 runs on other-")
    (bare.folder(job) / "children").mkdir()
    assert "full jobctl" in bare.refused(5, "stop", job)


def test_either_finds_the_jobs_of_the_other(bare: Bare, jobctl: Jobctl) -> None:
    for one, other in ((bare, jobctl), (jobctl, bare)):
        job = one.start("-n", "it's", "-c", "echo out; echo err >&2; exec sleep 600")
        stderr = one.folder(job) / "stderr"
        wait_until(stderr.read_bytes)
        assert other.job(job) == one.job(job)
        assert other.run("receive", job).stdout == b"out\n"
        assert one.run("receive", job).stdout == b""
        other.run("stop", "it's", "--grace", "1")
        assert one.job(job)["has_more_data"] is False
        assert other.job(job) == one.job(job)
        one.run("start", "--wait", "--after", job, "true")
        other.run("remove", "--all")
        assert one.jobs() == []
    job = bare.done("echo", "x")
    assert jobctl.job(job)["has_more_data"]  # is in its index now
    bare.run("receive", job)
    assert not jobctl.job(job)["has_more_data"]


WRONG: list[tuple[list[str], str]] = [
    (["start"], "no command"),
    (["start", "-c", " "], "-c ''"),
    (["start", "-c", "x", "-f", "y"], "contradict"),
    (["start", "-n", "12", "true"], "'12'"),
    (["start", "-n", "a\nb", "true"], "a\\nb"),
    (["start", "--timeout", "5x", "true"], "'5x'"),
    (["start", "--retries", "-1", "true"], "'-1'"),
    (["start", "-C", "/no where", "true"], "/no where"),
    (["start", "-f", "/nowhere"], "/nowhere"),
    (["start", "-e", "NOT_SET", "true"], "NOT_SET"),
    (["start", "--host", "a", "true"], "--host"),
    (["start", "--frob"], "--frob"),
    (["get", "--watch"], "--watch"),
    (["get", "--state", "frob"], "frob"),
    (["get", "4-2"], "backwards"),
    (["get", ""], "''"),
    (["receive"], "--all"),
    (["stop", "--all", "1"], "contradict"),
    (["remove", "--dry-run", "1"], "--dry-run"),
    (["session", "get"], "session"),
]


def test_wrong_words(jobctl: Jobctl) -> None:
    bare = Bare(["/bin/sh"], jobctl)
    for words, said in WRONG:
        assert said in bare.refused(2, *words)
    assert not list(jobctl.state_dir.glob("jobs/*"))
    assert bare.out("--version") == "jobctl (sh)\n"
    assert "Example:" in bare.out("-h")
    for verb in ("start", "get", "receive", "wait", "stop", "remove"):
        assert bare.out(verb, "--help").splitlines()[0].startswith(f"jobctl {verb} ")


def test_unknown_jobs(bare: Bare) -> None:
    assert "no job 7" in bare.refused(3, "start", "--after", "7", "true")
    bare.refused(125, "start", "--wait", "--after", "7", "true")
    for verb in ("receive", "wait", "stop", "remove", "get"):
        assert "no job is called 'x'" in bare.refused(3, verb, "x")


def test_a_state_directory_that_is_not_ours(bare: Bare) -> None:
    bare.run("get")
    assert bare.state_dir.stat().st_mode & 0o777 == 0o700
    bare.state_dir.chmod(0o770)
    assert "move it away, or set JOBCTL_STATE_DIR" in bare.refused(4, "get")
    bare.state_dir.chmod(0o700)
    bare.env["JOBCTL_STATE_DIR"] = ""
    bare.env["XDG_STATE_HOME"] = "relative"
    bare.run("get")
    assert (Path(bare.env["HOME"]) / ".local/state/jobctl/jobs").is_dir()


def test_nothing_secret_is_left(bare: Bare) -> None:
    job = bare.done("-e", "SECRET=secret", "true", env={**bare.env, "TOKEN": "secret"})
    wait_until(lambda: not (bare.folder(job) / "env").exists())
    for path in bare.folder(job).iterdir():
        assert b"secret" not in path.read_bytes()
        assert path.stat().st_mode & 0o777 == 0o600
