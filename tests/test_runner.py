"""The runner, under each shell that a host may have as its sh."""

from __future__ import annotations

import os
import re
import shutil
import signal
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import (
    ONE_SHELL,
    SHELLS,
    WEIRD,
    processes_with,
    shell_words,
    sleeper,
    sleeping,
    wait_until,
)

from jobctl import process, runner
from jobctl.folder import Folder
from jobctl.jobs import Jobs
from jobctl.model import Job, JobSpec, State
from jobctl.ops.start import start

Run = Callable[..., "Ran"]


class Ran:
    """A job started for a test."""

    def __init__(self, folder: Folder) -> None:
        self.folder = folder

    def job(self) -> Job:
        job = self.folder.read(process.boot_id())
        assert job is not None
        return job

    def end(self) -> Job:
        wait_until(self.folder.finished)
        return self.job()

    def output(self, stream: str = "stdout") -> bytes:
        return Path(self.folder.file(stream)).read_bytes()

    def send(self, name: str) -> None:
        runner.send([(self.folder, self.job().instance_id)], name)

    def stop(self, grace: float = 0.3) -> None:
        target = (self.folder, self.job().instance_id)
        assert runner.stop([target], grace, "stopped by user") == set()


@pytest.fixture(params=ONE_SHELL, name="run")
def _run(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Run]:
    """Give what starts a job under a shell that calls itself sh."""
    words = shell_words(request.param)
    if words[1:] == ["--posix"]:  # which it is by itself when it is called by another name
        (tmp_path / "sh").symlink_to(words[0])
        words = [str(tmp_path / "sh")]
    monkeypatch.setattr(runner, "SHELL", tuple(words))
    state_dir = tmp_path / "state"
    state_dir.mkdir()
    jobs = Jobs(str(state_dir))
    begun: list[Ran] = []

    def run(*argv: str, **spec: Any) -> Ran:
        environment = {"PATH": "/usr/bin:/bin"}
        defaults: dict[str, Any] = {"cwd": str(tmp_path), "env": environment, "umask": 0o022}
        job = start(str(state_dir), JobSpec(argv=argv, **(defaults | spec)))
        begun.append(Ran(jobs.folder(job.id)))
        return begun[-1]

    yield run
    for ran in begun:
        if not ran.folder.finished():
            ran.stop(0)


under_every_shell = pytest.mark.parametrize("run", SHELLS, indirect=True)


@under_every_shell
def test_arguments_arrive_byte_for_byte(run: Run) -> None:
    words = [WEIRD, "", " ", "\n", "-n", "~", "$HOME", "\udcff\udc81\udc88\x01\x7f", "é"]
    ran = run("printf", r"%s\0", *words)
    assert ran.end().state is State.COMPLETED
    assert ran.output().split(b"\0")[:-1] == [os.fsencode(word) for word in words]
    assert ran.output("stderr") == b""


def test_every_byte_arrives(run: Run) -> None:
    word = bytes(range(1, 256))
    ran = run("printf", "%s", os.fsdecode(word))
    ran.end()
    assert ran.output() == word


def test_a_megabyte_of_arguments(run: Run) -> None:
    words = [*["x" * 100_000] * 9, "x'" * 50_000]
    ran = run("sh", "-c", 'echo $# ${#1} "${10}"', "sh", *words)
    assert ran.end().state is State.COMPLETED
    assert ran.output() == f"10 100000 {words[9]}\n".encode()


@under_every_shell
def test_the_environment_is_exactly_the_callers(run: Run) -> None:
    # Names that shells drop, will not have set, or that the runner itself uses.
    odd = {"BASH_FUNC_f%%": "() { :; }", "UID": "7", "IFS": ":", "SHELLOPTS": "xtrace", "a-b": "c"}
    odd |= {"PERL5OPT": "-Mno_such", "PERL_UNICODE": "SAD", "PERL_BADLANG": "x", "b-c": WEIRD}
    own = dict.fromkeys("name text dir cwd pid code reason state argv".split(), WEIRD)
    environment = {
        "PATH": "/usr/bin:/bin",
        "LC_ALL": "nonsense",
        "E": "",
        "X": "\udcff",
        **odd,
        **own,
    }
    ran = run("env", "-0", env=environment)
    ran.end()
    pairs = [pair.split(b"=", 1) for pair in ran.output().split(b"\0") if pair]
    seen = {os.fsdecode(name): os.fsdecode(value) for name, value in pairs}
    job = ran.job()
    assert seen.pop("JOBCTL_PROGRESS") == ran.folder.file("progress")
    assert seen.pop("PWD") == job.cwd
    if "SHLVL" not in environment:
        seen.pop("SHLVL", None)
        seen.pop("_", None)
    assert seen == environment | {
        "JOBCTL_ID": job.id,
        "JOBCTL_NAME": job.name,
        "JOBCTL_INSTANCE_ID": job.instance_id,
        "JOBCTL_HOST": "localhost",
    }
    assert ran.output("stderr") == b""


@pytest.mark.parametrize("shell", SHELLS)
def test_a_file_system_without_locks(tmp_path: Path, shell: str) -> None:
    """That flock(1) can lock nothing there does not say that somebody holds the lock."""
    source = Path(runner.SCRIPT).read_text()
    held = source[source.index("\nheld() {") :].partition("\n}\n")[0] + "\n}\n"
    (tmp_path / "lock").touch()
    fails = "flock() { echo 'flock: 9: Function not implemented' >&2; return 71; }\n"
    for text, status in ((held, 1), (fails + held, 1), (f"flock() {{ return 1; }}\n{held}", 0)):
        words = [*shell_words(shell), "-c", f"{text}held ."]
        assert subprocess.run(words, cwd=tmp_path).returncode == status


def test_a_process_id_that_came_round(run: Run) -> None:
    """What somebody else has started is not ended, as its parent has the id of a runner."""
    nap, other = sleeper(), sleeper()
    ran = run(*nap.split())
    wait_until(lambda: ran.job().pid)
    stranger = subprocess.Popen(["sh", "-c", f"{other} & wait"])
    wait_until(lambda: sleeping(other))
    record = Path(ran.folder.file("run"))
    lines = record.read_text().splitlines()
    pid = re.search(r"runner='(\d+)'", lines[0])
    assert pid
    os.kill(int(pid[1]), signal.SIGKILL)
    os.kill(ran.job().pid or 0, signal.SIGKILL)
    wait_until(lambda: not sleeping(nap))
    kept = [line for line in lines if not line.startswith(("pid=", "ticks="))]
    record.write_text("\n".join([f"runner='{stranger.pid}'", *kept[1:], ""]))
    ran.stop()
    assert sleeping(other)
    stranger.kill()
    for pid_of in sleeping(other):
        os.kill(pid_of, signal.SIGKILL)
    stranger.wait()


def test_without_any_environment(run: Run) -> None:
    ran = run("echo", "found", env={})
    assert ran.end().state is State.COMPLETED
    assert ran.output() == b"found\n"


@under_every_shell
def test_a_session_of_its_own_and_nothing_inherited(run: Run) -> None:
    fd = os.open("/", os.O_RDONLY)
    os.set_inheritable(fd, True)
    try:
        ran = run("sh", "-c", "cat /proc/$$/stat; ls -l /proc/$$/fd; umask; pwd", umask=0o027)
    finally:
        os.close(fd)
    job = ran.end()
    fields = ran.output().split(b") ")[1].split()
    assert fields[2] == fields[3] == str(job.pid).encode()  # its group and session
    lines = ran.output().decode().splitlines()
    assert [line.rpartition(" -> ")[2] for line in lines if " -> " in line] == [
        "/dev/null",
        ran.folder.file("stdout"),
        ran.folder.file("stderr"),
    ]
    assert lines[-2:] == ["0027", job.cwd]


@under_every_shell
def test_signals_have_their_default_action(run: Run) -> None:
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    try:
        ran = run("cat", "/proc/self/status")
    finally:
        for number in (signal.SIGQUIT, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
    ran.end()
    masks = dict(line.split(":\t") for line in ran.output().decode().splitlines())
    assert {name: masks[name] for name in ("SigBlk", "SigIgn", "SigCgt")} == {
        "SigBlk": "0" * 16,
        "SigIgn": "0" * 16,
        "SigCgt": "0" * 16,
    }


@under_every_shell
def test_exit_statuses(run: Run) -> None:
    codes = [0, 1, 3, 126, 127, 128, 129, 134, 137, 139, 255]
    for code, ran in [(code, run("sh", "-c", f"exit {code}")) for code in codes]:
        job = ran.end()
        assert (job.exit_code, job.signal) == (code, None)
        assert job.reason == (f"exit status {code}" if code else "")


@under_every_shell
def test_deaths_by_signal(run: Run) -> None:
    names = ["HUP", "INT", "QUIT", "KILL", "USR1", "SEGV", "PIPE", "TERM"]
    for name, ran in [(n, run("sh", "-c", f"ulimit -c 0; kill -{n} $$")) for n in names]:
        number = signal.Signals[f"SIG{name}"].value
        job = ran.end()
        assert (job.state, job.exit_code, job.signal) == (State.FAILED, None, number)
        assert job.reason == f"killed by signal {number} ({name})"


@under_every_shell
def test_what_cannot_be_executed(run: Run) -> None:
    of_print = "there is a space, dash or quote of printed text in it; type a plain one"
    for command, code, reason in (
        ("no-such-program", 127, "command not found: no-such-program"),
        ("./no-such-program", 127, "command not found: ./no-such-program"),
        ("cd", 127, "command not found: cd; use -c for shell text"),
        ("sleep 3 && echo", 127, "command not found: sleep 3 && echo; use -c for shell text"),
        ("a=b", 127, "command not found: a=b; use -e to set a variable, or -c for shell text"),
        ("FOO+=1", 127, "command not found: FOO+=1; use -c for shell text"),
        ("~/bin/x", 127, "command not found: ~/bin/x; use -c for shell text"),
        ('"ls"', 127, 'command not found: "ls"; use -c for shell text'),
        *(
            (word, 127, f"command not found: {word}; {of_print}")
            for word in ("\u2013c", "\u201cls\u201d", "ls\u00a0/", "\u2212x")
        ),
        ("caf\u00e9", 127, "command not found: caf\u00e9"),
        ("then", 127, "command not found: then; use -c for shell text"),
        ("./no?", 127, "command not found: ./no?; use -c for shell text"),
        ("a-b=c", 127, "command not found: a-b=c"),
        ("/", 126, "cannot execute /: it is a directory"),
        ("/etc/passwd", 126, "cannot execute /etc/passwd: permission denied"),
    ):
        job = run(command).job()
        assert (job.state, job.exit_code, job.reason) == (State.FAILED, code, reason)
        assert job.pid is None


def elf(wide: bool, machine: int, order: str = "<", type_of_it: int = 2, size: int = 32) -> bytes:
    """Return the headers of a program, and room for what tells its one segment."""
    start = b"\x7fELF" + bytes((1 + wide, 1 + (order == ">"), 1)) + bytes(9)
    word, length, each = ("Q", 64, 56) if wide else ("I", 52, size)
    start += struct.pack(f"{order}HHI3{word}", type_of_it, machine, 1, 0x8048054, length, 0)
    return start + struct.pack(f"{order}I6H", 0, length, each, 1, 0, 0, 0) + bytes(each)


def no_programs(native: bytes) -> list[bytes]:
    """Return what a shell would read, as the kernel of this machine will have none of it."""
    order, wide = "<>"[native[5] - 1], native[4] == 2
    own = int.from_bytes(native[18:20], "little" if order == "<" else "big")
    foreign = [elf(wide, machine=0xCAFE, order=other) for wide in (False, True) for other in "<>"]
    if own in (3, 62):  # x86
        foreign += [elf(False, 40), elf(False, 8, ">"), elf(True, 183), elf(False, 3, size=8)]
    damaged = [elf(wide, own, order, type_of_it=1), elf(wide, own, order)[:-1], native[:100]]
    return foreign + damaged


def test_what_cannot_be_executed_for_what_is_in_it(run: Run, tmp_path: Path) -> None:
    echo = bytearray(Path("/bin/echo").read_bytes())
    other = bytes(echo[:18]) + b"\xfe\xca" + bytes(echo[20:])
    absent = "command not found: ./w: its interpreter {} is not there"
    named = re.search(rb"/[^\0]*/ld-[^\0]*", bytes(echo))
    linker = named[0].decode().replace("/ld-", "/no-") if named else ""
    foreign = "cannot execute ./w: exec format error: it is not a program for this system"
    (tmp_path / "bad").write_text("#!nosuch\n")
    (tmp_path / "bad").chmod(0o700)
    (tmp_path / "other").write_bytes(other)
    (tmp_path / "other").chmod(0o700)
    for contents, reason in {
        b"#!/bin/sh\r\necho\r\n": absent.format("/bin/sh\\r"),
        b"#! \t/no/such -x": absent.format("/no/such"),
        b"#!" + b"/x" * 150 + b" -x": absent.format("/x" * 150),
        b"#!nosuch": absent.format("nosuch"),
        b"#!/usr/bin/env nosuch\r\n": absent.format("nosuch\\r"),
        b"#!/usr/bin/env -S nosuch -u": absent.format("nosuch"),
        b"#!%s/bad\n" % os.fsencode(tmp_path): absent.format("nosuch"),
        b"#!/usr/bin/env %s/other\n" % os.fsencode(tmp_path): foreign.replace(
            "./w", f"./w: its interpreter {tmp_path}/other"
        ),
        b"#!/\n": "cannot execute ./w: its interpreter /: it is a directory",
        b"#!/etc/passwd": "cannot execute ./w: its interpreter /etc/passwd: permission denied",
        other: foreign,
        re.sub(rb"/ld-", b"/no-", bytes(echo), count=1): absent.format(linker),
        b"\x7fELF\0\0": foreign,
        b"\xcf\xfa\xed\xfe\7\0\0\1": foreign,
        b"\1\2\3": foreign,
        **dict.fromkeys(no_programs(bytes(echo)), foreign),
    }.items():
        (tmp_path / "w").write_bytes(contents)
        (tmp_path / "w").chmod(0o700)
        job = run("./w").job()
        assert (job.state, job.reason, job.pid) == (State.FAILED, reason, None)
        assert job.exit_code == (127 if "not found" in reason else 126)
    (tmp_path / "w").unlink()
    os.mkfifo(tmp_path / "w", 0o700)
    assert run("./w").job().reason == "cannot execute ./w: it is not a file"


QEMU = """enabled
interpreter /usr/bin/qemu-arm
flags: OCF
offset 0
magic 7f454c4601010100000000000000000002002800
mask ffffffffffffff00fffffffffffffffffeffffff
"""


@pytest.mark.parametrize("shell", ONE_SHELL)
def test_what_the_kernel_was_told_to_execute(tmp_path: Path, shell: str) -> None:
    formats = {
        "status": "enabled\n",
        "qemu-arm": QEMU,
        "x": "enabled\ninterpreter /x\nflags: \nextension .x y\n",
        "inner": "enabled\ninterpreter /x\nflags: \noffset 2\nmagic cafe\n",
        "zz": "disabled\ninterpreter /x\nflags: \nextension .z\n",
    }
    folder = tmp_path / "formats"
    folder.mkdir()
    for name, text in formats.items():
        (folder / name).write_text(text)
    scripts = Path(runner.SCRIPT).parent
    text = f"""jobctl_sourced=1
        . {scripts}/runner.sh; . {scripts}/command.sh; registered "$1" {folder}"""

    def registered(content: bytes, name: str = "w") -> bool:
        (tmp_path / name).write_bytes(content)
        words = [*shell_words(shell), "-c", text, f"{scripts}/sh", str(tmp_path / name)]
        return subprocess.run(words).returncode == 0

    assert registered(elf(False, 40))
    assert registered(elf(False, 40, type_of_it=3))
    assert registered(b"ab\xca\xfe")
    assert registered(b"", "w.x y")
    for other in (elf(False, 8, ">"), elf(True, 183), b"\xca\xfe", b"", elf(False, 40)[:19]):
        assert not registered(other)
    assert not registered(b"", "w.z")
    (folder / "status").write_text("disabled\n")
    assert not registered(elf(False, 40))


def test_what_can_be_executed_whatever_is_in_it(run: Run, tmp_path: Path) -> None:
    for contents, output in {
        b"#!/bin/sh -u\necho $1": b"x\n",
        b"#!\t /bin/sh\necho $1": b"x\n",
        b"#!/usr/bin/env sh\necho $1": b"x\n",
        b"#!/bin/echo  two words \n": b"two words ./w x\n",
        b"#!/bin/echo": b"./w x\n",
        b"#!\necho $1": b"x\n",
        b"\techo \x1b $1 \r\n": b"\x1b x \r\n",
        Path("/bin/echo").read_bytes(): b"x\n",
    }.items():
        (tmp_path / "w").write_bytes(contents)
        (tmp_path / "w").chmod(0o700)
        ran = run("./w", "x")
        assert ran.end().state is State.COMPLETED, ran.job()
        assert ran.output() == output


def test_a_program_of_the_forerunner_of_this_processor(run: Run, tmp_path: Path) -> None:
    program = tmp_path / "w"
    segment = struct.pack("<8I", 1, 0, 0x8048000, 0x8048000, 96, 96, 5, 4096)
    exit_7 = bytes.fromhex("b801000000 bb07000000 cd80")
    program.write_bytes(elf(False, machine=3)[:-32] + segment + exit_7)
    program.chmod(0o700)
    try:
        subprocess.run([program], check=False)
    except OSError:
        pytest.skip("this system executes no programs of i386")
    assert run("./w").end().reason == "exit status 7"


def test_what_turns_out_not_to_be_executable(run: Run, tmp_path: Path) -> None:
    busy = tmp_path / "busy"
    shutil.copy("/bin/echo", busy)
    with busy.open("ab"):
        job = run("./busy", "x", retries=3).end()
    assert (job.exit_code, job.reason) == (126, "cannot execute ./busy: text file busy")
    # Each is no longer than a word may be, but they become one word.
    job = run(text="exit 3;" + " " * 131_000, init=":" + " " * 100).end()
    assert (job.exit_code, job.reason) == (126, "cannot execute sh: argument list too long")
    job = run("sh", "-c", "echo setsid: failed to execute x: Busy; exit 126").end()
    assert job.reason == "exit status 126"
    job = run("sh", "-c", "echo sh: failed to execute x: Busy >&2; exit 127").end()
    assert job.reason == "exit status 127"


def test_a_directory_that_went_away(run: Run, tmp_path: Path) -> None:
    job = run("true", cwd=str(tmp_path / "gone")).end()
    assert (job.state, job.reason) == (
        State.FAILED,
        f"cannot enter directory: {tmp_path / 'gone'}",
    )


def test_shell_text_and_what_comes_before(run: Run) -> None:
    ran = run("a", "b c", text='f "$1$2" $0', init="f() { echo got $1 $2; }")
    ran.end()
    assert ran.output() == b"got ab c sh\n"
    ran = run("sh", "-c", "echo $X", init="export X=5; cd /")
    ran.end()
    assert ran.output() == b"5\n"


@pytest.mark.parametrize("first", ["", "#!/bin/sh -u\n"])
def test_scripts(run: Run, tmp_path: Path, first: str) -> None:
    path = tmp_path / WEIRD.replace("/", "")
    path.write_text(first + 'echo "$@" $#; cat')
    with path.open("rb") as script, open("/etc/passwd", "rb") as stdin:
        ran = run("x y", "z", script=script.fileno(), script_name=path.name, stdin=stdin.fileno())
    path.unlink()
    assert ran.end().state is State.COMPLETED
    assert ran.output() == b"x y z 2\n" + Path("/etc/passwd").read_bytes()


def test_scripts_by_their_contents(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "w.sh"
    for contents, code, said in (
        (Path("/bin/echo").read_bytes(), 0, "x"),
        (b"#!/bin/echo  two words \n", 0, "two words {} x"),
        (b"#!echo\n", 127, "command not found: w.sh: its interpreter echo is not there"),
        (b"#!/bin/sh\r\n", 127, "command not found: w.sh: its interpreter /bin/sh\\r is not there"),
        (b"#!/no\x1bx\n", 127, "command not found: w.sh: its interpreter /no\\x1bx is not there"),
        (
            b"#!/usr/bin/env sh\r",
            127,
            "command not found: w.sh: its interpreter sh\\r is not there",
        ),
        (b"\x7fELF\2", 126, "cannot execute w.sh: exec format error: "),
        (b"\0\0", 126, "cannot execute w.sh: exec format error: "),
        (b": a\ttab; echo text", 0, "text"),
    ):
        path.write_bytes(contents)
        with path.open("rb") as script:
            ran = run("x", script=script.fileno(), script_name=path.name)
        job = ran.end()
        assert job.exit_code == code, job
        shown = ran.output().decode().strip() if code == 0 else job.reason
        assert shown.startswith(said.format(ran.folder.file("script")))


def test_merged_streams_keep_their_order(run: Run) -> None:
    ran = run(text="for i in 1 2 3 4 5; do echo o$i; echo e$i >&2; done", merge=True)
    ran.end()
    assert ran.output() == b"".join(b"o%d\ne%d\n" % (i, i) for i in range(1, 6))
    assert ran.output("stderr") == b""


def test_time_runs_out(run: Run) -> None:
    nap = sleeper()
    ran = run(text=f"{nap} & {nap}", timeout=0.2, timeout_text="0.2s")
    job = ran.end()
    assert (job.state, job.reason) == (State.FAILED, "timed out after 0.2s")
    assert processes_with(nap) == []


@pytest.mark.long
@pytest.mark.parametrize("run", SHELLS[:1], indirect=True)
def test_time_runs_out_for_what_ignores_it(run: Run) -> None:
    nap = sleeper()
    ran = run(text=f"trap '' TERM; {nap} & wait", timeout=0.2, timeout_text="0.2s")
    job = ran.end()  # after ten seconds' grace
    assert (job.state, job.reason) == (State.FAILED, "timed out after 0.2s")
    assert processes_with(nap) == []


def test_time_that_does_not_run_out_leaves_nothing(run: Run) -> None:
    nap = sleeper()
    ran = run("true", timeout=float(nap.split()[1]), timeout_text="decades")
    assert ran.end().state is State.COMPLETED
    wait_until(lambda: not processes_with(nap))


@under_every_shell
def test_retries(run: Run, tmp_path: Path) -> None:
    ran = run(text="echo x; echo x >>n; [ $(wc -l <n) -gt 2 ]", retries=5)
    assert ran.end().state is State.COMPLETED
    assert ran.output() == b"x\n" * 3
    assert run("sh", "-c", "echo y; exit 4", retries=2).end().exit_code == 4
    times_out = run("sh", "-c", "echo z; exec sleep 999", retries=1, timeout=5.0, timeout_text="5s")
    assert times_out.end().reason == "timed out after 5s"
    assert times_out.output() == b"z\nz\n"
    assert run("no-such-program", retries=3).end().exit_code == 127


def test_one_after_another(run: Run, tmp_path: Path) -> None:
    first = run(text="while [ ! -e go ]; do sleep 0.1; done; echo 1 >>order; exit 1")
    second = run(text="echo 2 >>order", after=(first.folder.id,))
    third = run(text="echo 3 >>order", after_ok=(second.folder.id,))
    never = run(text="echo 4 >>order", after_ok=(first.folder.id,))
    assert second.job().state is State.NOT_STARTED
    assert second.job().reason == f"waiting for job {first.folder.id}"
    (tmp_path / "go").touch()
    assert third.end().state is State.COMPLETED
    job = never.end()
    assert job.state is State.STOPPED
    assert job.reason == f"not begun: job {first.folder.id} did not complete"
    assert (tmp_path / "order").read_text() == "1\n2\n3\n"


def test_after_a_job_whose_runner_was_killed(run: Run, tmp_path: Path) -> None:
    first = run(text="while [ ! -e go ]; do sleep 0.05; done")
    second = run("true", after=(first.folder.id,))
    third = run("true", after_ok=(first.folder.id,))
    pid = first.folder.watched(process.boot_id())
    assert pid
    os.kill(pid.pid, signal.SIGKILL)
    (tmp_path / "go").touch()
    assert second.end().state is State.COMPLETED
    assert third.end().state is State.STOPPED


def test_stopped_before_it_began(run: Run) -> None:
    first = run("sleep", "600")
    second = run("touch", "began", after=(first.folder.id,))
    wait_until(lambda: second.job().reason.startswith("waiting"))
    second.stop()
    job = second.job()
    assert (job.state, job.reason, job.pid) == (State.STOPPED, "stopped by user", None)
    assert first.job().state is State.RUNNING


@under_every_shell
def test_stop_reaches_all(run: Run) -> None:
    nap = sleeper()
    ran = run(
        text=f"""trap '' TERM
        setsid {nap} &
        (setsid sh -c 'trap "" TERM; {nap} & {nap}; {nap}' &)
        env -i {nap} &
        env -i setsid {nap} &
        while :; do {nap}; done"""
    )
    wait_until(lambda: len(processes_with(nap)) >= 6)
    ran.stop(0.3)
    assert processes_with(nap) == []
    assert ran.job().state is State.STOPPED


def test_stop_reaches_what_a_finished_job_left(run: Run) -> None:
    nap = sleeper()
    ran = run(text=f"setsid {nap} & {nap} & exit 0")
    assert ran.end().state is State.COMPLETED
    wait_until(lambda: len(processes_with(nap)) == 2)
    ran.stop()
    assert processes_with(nap) == []
    assert ran.job().state is State.COMPLETED


def test_a_job_that_stops_itself(run: Run, tmp_path: Path) -> None:
    nap = sleeper()
    stop = " ".join([*runner.SHELL, runner.SCRIPT])
    ran = run(
        text=f"""{nap} & cd "${{JOBCTL_PROGRESS%/*}}"; id=$JOBCTL_INSTANCE_ID
        unset JOBCTL_INSTANCE_ID; cd ..; echo me | setsid {stop} stop . 20 "$JOBCTL_ID:$id" & wait
        {nap}"""
    )
    assert ran.end().state is State.STOPPED
    assert ran.job().reason == "me"
    wait_until(lambda: not processes_with(nap))


@under_every_shell
def test_signals_and_states(run: Run) -> None:
    ran = run("sleep", "600")
    job = ran.job()
    ran.send("STOP")
    wait_until(lambda: ran.job().state is State.SUSPENDED)
    ran.send("CONT")
    wait_until(lambda: ran.job().state is State.RUNNING)
    ran.send("USR1")
    job = ran.end()
    assert (job.state, job.signal) == (State.STOPPED, signal.SIGUSR1)
    assert job.reason == "stopped by user: signal USR1"


def test_stop_wakes_what_is_suspended(run: Run) -> None:
    ran = run("sleep", "600")
    ran.send("STOP")
    ran.stop(grace=30)
    assert ran.job().signal == signal.SIGTERM


def test_what_runs_when_it_is_finished(run: Run, tmp_path: Path) -> None:
    hook = """echo "$JOBCTL_ID $JOBCTL_NAME $JOBCTL_STATE $JOBCTL_EXIT_CODE $PWD
${JOBCTL_INSTANCE_ID-no cookie} $PATH" >hook.new && mv hook.new hook"""
    ran = run("sh", "-c", "exit 3", name=WEIRD, on_finish=hook)
    ran.end()
    wait_until((tmp_path / "hook").exists)
    number = ran.folder.id
    assert (tmp_path / "hook").read_text() == (
        f"{number} {WEIRD} Failed 3 {tmp_path}\nno cookie /usr/bin:/bin\n"
    )


def test_nothing_of_the_environment_is_kept(run: Run) -> None:
    ran = run("true", env={"PATH": "/usr/bin:/bin", "a-b": "secret", "SECRET": "secret"})
    ran.end()
    wait_until(lambda: not Path(ran.folder.file("env")).exists())
    wait_until(lambda: not Path(ran.folder.file("exit.new")).exists())
    for path in Path(ran.folder.path).iterdir():
        assert b"secret" not in path.read_bytes()
        assert path.stat().st_mode & 0o777 == 0o600


def test_the_command_survives_its_runner(run: Run) -> None:
    ran = run("sleep", "600")
    identity = ran.folder.watched(process.boot_id())
    job = ran.job()
    assert identity
    assert job.pid
    os.kill(identity.pid, signal.SIGKILL)
    wait_until(lambda: not process.alive(identity, process.boot_id()))
    assert ran.job().state is State.RUNNING
    os.kill(job.pid, signal.SIGKILL)
    wait_until(lambda: ran.job().state.finished)
    assert (ran.job().state, ran.job().reason) == (State.FAILED, "lost: runner was killed")


def test_stop_without_a_runner(run: Run) -> None:
    nap = sleeper()
    ran = run(text=f"{nap} & {nap}")
    identity = ran.folder.watched(process.boot_id())
    assert identity
    os.kill(identity.pid, signal.SIGKILL)
    wait_until(lambda: not process.alive(identity, process.boot_id()))
    ran.stop()
    assert processes_with(nap) == []
    assert ran.job().state is State.STOPPED


def test_background_left_overs_do_not_hold_the_job(run: Run) -> None:
    ran = run(text=f"{sleeper()} & echo done")
    assert ran.end().state is State.COMPLETED
    ran.stop()


@under_every_shell
def test_the_runner_shrugs_off_signals(run: Run, tmp_path: Path) -> None:
    ran = run(text="while [ ! -e go ]; do sleep 0.05; done; echo done")
    identity = ran.folder.watched(process.boot_id())
    assert identity
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGQUIT):
        os.kill(identity.pid, number)
    (tmp_path / "go").touch()
    assert ran.end().state is State.COMPLETED
    assert ran.output() == b"done\n"


def test_caller_ends(run: Run, tmp_path: Path) -> None:
    caller = os.posix_spawn("/bin/sleep", ["sleep", "600"], {})
    ran = run("sleep", "7338", caller=caller)
    assert ran.job().state is State.RUNNING
    os.kill(caller, signal.SIGKILL)
    os.waitpid(caller, 0)
    job = ran.end()
    assert (job.state, job.reason) == (State.STOPPED, "stopped: the process that started it ended")
    ran = run("true", caller=os.getpid())
    assert ran.end().state is State.COMPLETED
