"""`jobctl receive`: every byte once, whatever happens to whoever receives."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pexpect
import pytest
from conftest import PROGRAM, Jobctl, at_rest, wait_until

from jobctl import process, quoting
from jobctl.ops.gather import _Visible, shown

NUMBERED = 'i=0; while [ $i -lt {n} ]; do i=$((i+1)); echo "line $i of the output"; done'


def numbered(count: int) -> bytes:
    return b"".join(b"line %d of the output\n" % i for i in range(1, count + 1))


def shell(jobctl: Jobctl, text: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        ["sh", "-c", text],
        env=jobctl.env,
        capture_output=True,
        timeout=60,
    )


def test_once_and_only_once(jobctl: Jobctl) -> None:
    job = jobctl.done("-c", "printf 'a\\0\\377b'; echo err >&2")
    assert jobctl.job(job)["has_more_data"] is True
    result = jobctl.run("receive", job)
    assert (result.stdout, result.stderr) == (b"a\0\xffb", b"err\n")
    assert jobctl.job(job)["has_more_data"] is False
    result = jobctl.run("receive", job)
    assert (result.stdout, result.stderr) == (b"", b"")


def test_the_reason_once(jobctl: Jobctl) -> None:
    job = jobctl.done("-c", "echo x; exit 3")
    assert jobctl.run("receive", "--keep", job).stderr == b"jobctl: job 1 failed: exit status 3\n"
    assert jobctl.run("receive", job).stderr == b"jobctl: job 1 failed: exit status 3\n"
    assert jobctl.run("receive", job).stderr == b""
    assert jobctl.run("receive", "--again", job).stderr.endswith(b"exit status 3\n")
    assert jobctl.run("receive", jobctl.done("true")).stderr == b""


def test_keep_and_again(jobctl: Jobctl) -> None:
    job = jobctl.done("echo", "x")
    for _ in range(2):
        assert jobctl.out("receive", "--keep", job) == "x\n"
    assert jobctl.out("receive", job) == "x\n"
    assert jobctl.out("receive", "--keep", job) == ""
    for _ in range(2):
        assert jobctl.out("receive", "--again", job) == "x\n"
    assert jobctl.job(job)["has_more_data"] is False


def test_one_stream(jobctl: Jobctl) -> None:
    job = jobctl.done("-c", "echo o; echo e >&2")
    assert jobctl.run("receive", "--stream", "stderr", job).stderr == b"e\n"
    assert jobctl.job(job)["has_more_data"] is True
    result = jobctl.run("receive", job)
    assert (result.stdout, result.stderr) == (b"o\n", b"")


def test_a_reader_that_leaves_loses_nothing(jobctl: Jobctl) -> None:
    job = jobctl.done("-c", NUMBERED.format(n=20_000))
    whole = numbered(20_000)
    taken = b""
    for size in (1, 10, 4_096, 70_000, 150_000):
        taken += shell(jobctl, f"jobctl receive {job} | head -c {size}").stdout
        assert whole.startswith(taken)
    assert len(taken) == 1 + 10 + 4_096 + 70_000 + 150_000
    assert jobctl.job(job)["has_more_data"] is True
    taken += jobctl.run("receive", job).stdout
    assert taken == whole
    assert shell(jobctl, f"jobctl receive --again {job} | true").stderr == b""


def test_both_streams_into_one_pipe(jobctl: Jobctl) -> None:
    job = jobctl.done("-c", "seq 1 5000; seq 1 5000 >&2")
    first = shell(jobctl, f"jobctl receive {job} 2>&1 | head -c 30000").stdout
    rest = jobctl.run("receive", job)
    numbers = b"".join(b"%d\n" % i for i in range(1, 5001))
    assert first + rest.stdout + rest.stderr == numbers * 2


def test_a_slow_reader_gets_all(jobctl: Jobctl) -> None:
    job = jobctl.done("-c", NUMBERED.format(n=20_000))
    output = shell(jobctl, f"jobctl receive {job} | (sleep 0.5; cat)").stdout
    assert output == numbered(20_000)


def test_interrupted_anywhere(jobctl: Jobctl) -> None:
    job = jobctl.done("-c", NUMBERED.format(n=200_000))
    taken = b""
    for round_ in range(25):
        number = (signal.SIGINT, signal.SIGTERM)[round_ % 2]
        process = jobctl.popen("receive", job, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert process.stdout
        timer = threading.Timer(0.05 + round_ * 0.002, process.send_signal, [number])
        timer.start()
        while piece := os.read(process.stdout.fileno(), 3_000):
            taken += piece
            time.sleep(0.0005)
        timer.join()
        process.wait()
    taken += jobctl.run("receive", job).stdout
    assert hashlib.md5(taken).digest() == hashlib.md5(numbered(200_000)).digest()


def test_a_full_disk_loses_nothing(jobctl: Jobctl) -> None:
    job = jobctl.done("echo", "precious")
    with open("/dev/full", "wb") as full:
        result = jobctl.run("receive", job, stdout=full, status=125)
    assert result.stderr == b"jobctl: cannot write to standard output: No space left on device\n"
    assert jobctl.out("receive", job) == "precious\n"


def test_a_limited_file_gets_exactly_what_fits(jobctl: Jobctl, tmp_path: Path) -> None:
    job = jobctl.done("-c", NUMBERED.format(n=100_000))
    shell(jobctl, f"ulimit -f 100; jobctl receive {job} >{tmp_path}/part")
    part = (tmp_path / "part").read_bytes()
    assert len(part) in (51_200, 102_400)
    assert part + jobctl.run("receive", job).stdout == numbered(100_000)


def test_closed_output(jobctl: Jobctl) -> None:
    job = jobctl.done("echo", "x")
    result = shell(jobctl, f"jobctl receive {job} >&-")
    assert result.returncode == 125
    assert jobctl.out("receive", job) == "x\n"


def test_two_at_once_share(jobctl: Jobctl) -> None:
    job = jobctl.done("-c", NUMBERED.format(n=300_000))
    receivers = [jobctl.popen("receive", job, stdout=subprocess.PIPE) for _ in range(4)]
    outputs = [process.communicate(timeout=60)[0] for process in receivers]
    assert sum(map(len, outputs)) == len(numbered(300_000))
    lines = sorted(line for output in outputs for line in output.splitlines())
    assert lines == sorted(numbered(300_000).splitlines())


def test_a_reader_that_stalls_holds_up_nobody(jobctl: Jobctl) -> None:
    job = jobctl.done("-c", NUMBERED.format(n=20_000))
    stalled = jobctl.popen("receive", job, stdout=subprocess.PIPE)
    assert stalled.stdout
    wait_until(lambda: "stdout='0'" not in (jobctl.folder(job) / "received").read_text())
    at_rest(stalled)  # the pipe is full
    rest = jobctl.run("receive", job).stdout
    assert len(rest) > 100_000
    stalled.stdout.close()  # what is in the pipe comes back, although others were here since
    stalled.wait(60)
    assert jobctl.job(job)["has_more_data"] is True
    first = jobctl.run("receive", job).stdout
    assert first + rest == numbered(20_000)


def test_two_followers_share(jobctl: Jobctl, tmp_path: Path) -> None:
    job = jobctl.sh("i=0; while [ $i -lt 300 ]; do i=$((i+1)); echo $i; sleep 0.003; done")
    followers = [jobctl.popen("receive", "-w", job, stdout=subprocess.PIPE) for _ in range(2)]
    outputs = [process.communicate(timeout=60)[0] for process in followers]
    lines = sorted(int(line) for output in outputs for line in output.split())
    assert lines == list(range(1, 301))


def test_follows_live(jobctl: Jobctl, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    os.mkfifo(first)
    os.mkfifo(second)
    job = jobctl.sh(f"echo one; read x <{first}; echo two; read x <{second}; exit 5")
    process = jobctl.popen("receive", "--follow", job, stdout=subprocess.PIPE)
    assert process.stdout
    assert process.stdout.readline() == b"one\n"
    first.write_text("\n")
    assert process.stdout.readline() == b"two\n"
    assert process.poll() is None
    second.write_text("\n")
    assert process.wait(60) == 5


def test_follows_a_lost_job_to_its_end(jobctl: Jobctl) -> None:
    job = jobctl.sh("echo x; exec sleep 600")
    process = jobctl.popen("receive", "-w", job, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout
    assert process.stdout.readline() == b"x\n"
    os.kill(jobctl.runner_pid(job), signal.SIGKILL)
    at_rest(process)
    assert process.poll() is None
    os.kill(jobctl.job(job)["pid"], signal.SIGKILL)
    assert process.wait(60) == 125
    assert process.stderr
    assert process.stderr.read() == b"jobctl: job 1 failed: lost: runner was killed\n"


def test_follow_statuses(jobctl: Jobctl) -> None:
    good, bad = jobctl.sh("exit 0"), jobctl.sh("exit 7")
    jobctl.run("receive", "-w", bad, status=7)
    jobctl.run("receive", "-w", good, status=0)
    jobctl.run("receive", "-w", good, bad, status=1)
    jobctl.run("receive", bad, status=0)
    slow = jobctl.sh("echo x; sleep 600")
    wait_until((jobctl.folder(slow) / "stdout").read_text)
    assert jobctl.out("receive", "-w", "--timeout", "0.5", slow, status=124) == "x\n"
    jobctl.run("stop", slow)
    jobctl.run("receive", "-w", slow, status=143)
    jobctl.run("receive", "-w", "77", status=3)


def test_who_waited_is_not_told_that_all_is_well(jobctl: Jobctl) -> None:
    text = "trap 'exit 0' TERM; while :; do sleep 0.1; done"
    job = jobctl.sh(text, "--timeout", "5")
    jobctl.run("receive", "-w", job, status=1)
    record = jobctl.job(job)
    assert (record["state"], record["exit_code"]) == ("Failed", 0)


def test_events(jobctl: Jobctl, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    job = jobctl.sh(f"read x <{gate}; exit 2")
    with jobctl.popen("receive", "-w", "--write-events", job, stderr=subprocess.PIPE) as receiver:
        assert receiver.stderr
        lines = [receiver.stderr.readline().decode()]
        gate.write_text("\n")
        lines += receiver.stderr.read().decode().splitlines()
    assert receiver.returncode == 2
    events = [json.loads(line) for line in lines if line.startswith("{")]
    assert [(event["id"], event["state"]) for event in events] == [
        (job, "Running"),
        (job, "Failed"),
    ]


def test_auto_remove(jobctl: Jobctl) -> None:
    job = jobctl.sh("echo x")
    assert jobctl.out("receive", "-w", "--auto-remove", job) == "x\n"
    jobctl.refused(3, "receive", job)
    assert not jobctl.folder(job).exists()
    job = jobctl.done("-c", "echo out; echo err >&2")
    result = jobctl.run("receive", "-w", "--auto-remove", "--stream", "stdout", job)
    kept = f"jobctl: job {job} is kept: not all of its output was received\n".encode()
    assert (result.stdout, result.stderr) == (b"out\n", kept)
    assert jobctl.run("receive", "-w", "--auto-remove", job).stderr == b"err\n"
    jobctl.refused(3, "receive", job)


def test_tags(jobctl: Jobctl, tmp_path: Path) -> None:
    first = jobctl.done("-c", "printf 'a\\rb\\n\\nlast'")
    second = jobctl.done("-c", "echo e >&2")
    result = jobctl.run("receive", "--tag", first, second)
    assert result.stdout == b"1 localhost: a\r1 localhost: b\n1 localhost: \n1 localhost: last\n"
    assert result.stderr == b"2 localhost: e\n"
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    third = jobctl.start("-c", f"printf half; read x <{gate}; echo whole")
    wait_until((jobctl.folder(third) / "stdout").read_text)
    assert jobctl.out("receive", "--tag", third) == ""
    gate.write_text("\n")
    assert jobctl.out("receive", "-w", "--tag", third) == "3 localhost: halfwhole\n"


LINES = "i=0; while [ $i -lt 300 ]; do i=$((i+1)); printf '%05000d\\n' $i; done"
"""Lines that do not fit into a pipe by whole numbers of them."""


@pytest.mark.parametrize(
    "reader",
    [
        "| dd bs=4096 2>/dev/null",
        "2>&1 | dd bs=5000 2>/dev/null",
        ">{out}; cat {out}",
        ">{out} 2>&1; cat {out}",
        ">>{out} 2>>{out}; cat {out}",
    ],
)
def test_tagged_lines_are_whole_wherever_they_go(
    jobctl: Jobctl, tmp_path: Path, reader: str
) -> None:
    job = jobctl.done("-c", f"{LINES}; {LINES} >&2" if ">&1" in reader else LINES)
    reader = reader.format(out=tmp_path / "out")
    lines = shell(jobctl, f"jobctl receive --tag {job} {reader}").stdout.splitlines()
    wanted = [b"1 localhost: %05000d" % i for i in range(1, 301)]
    assert sorted(lines) == sorted(wanted * (2 if ">&1" in reader else 1))
    assert jobctl.job(job)["has_more_data"] is False


def test_tagged_lines_on_a_terminal(jobctl: Jobctl) -> None:
    job = jobctl.done("-c", f"{LINES}; {LINES} >&2")
    child = pexpect.spawn(
        PROGRAM, ["receive", "--tag", job], env=jobctl.env, timeout=60, encoding="utf-8"
    )
    lines = child.read().split("\r\n")
    assert child.wait() == 0
    assert sorted(lines) == sorted(["", *[f"1 localhost: {i:05000d}" for i in range(1, 301)] * 2])


def test_a_long_line_has_one_tag(jobctl: Jobctl, tmp_path: Path) -> None:
    """Longer than a pipe and than what is read at once, with a newline at its end and without."""
    job = jobctl.done("-c", "printf '%0421083d\\nx\\n%0200000d' 1 2; printf '%0100000d' 3 >&2")
    long = b"1 localhost: %0421083d\n1 localhost: x\n1 localhost: %0200000d\n" % (1, 2)
    assert shell(jobctl, f"jobctl receive --again --tag --stream stdout {job} | cat").stdout == long
    jobctl.run("receive", "--again", "--tag", "--output-dir", str(tmp_path), job)
    assert (tmp_path / "1.stdout").read_bytes() == long
    result = jobctl.run("receive", "-w", "--tag", job)
    assert (result.stdout, result.stderr) == (long, b"1 localhost: %0100000d\n" % 3)


def test_a_long_line_that_comes_by_and_by(jobctl: Jobctl, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    job = jobctl.sh(
        f"printf '%090000d' 1; read x <{gate}; printf '%090000d\\n' 2; echo >{gate}; sleep 601.7"
    )
    receiver = jobctl.popen("receive", "-w", "--tag", job, stdout=subprocess.PIPE)
    assert receiver.stdout
    gate.write_text("\n")
    gate.read_text()
    line = receiver.stdout.readline()
    assert line == b"1 localhost: %090000d%090000d\n" % (1, 2)
    jobctl.run("stop", job)
    assert receiver.communicate()[0] == b""


def test_a_long_tagged_line_whose_reader_leaves(jobctl: Jobctl) -> None:
    """The mark moves by what was taken, of a short line as well; a tag alone is nothing of it."""
    job = jobctl.done("-c", "echo first; printf '%0300000d\\n' 7; echo last")
    whole = b"first\n%0300000d\nlast\n" % 7
    for size, got in ((10, 0), (15, 2), (5, 0), (100, 74), (70_000, 69_987), (200_000, 199_987)):
        taken = shell(jobctl, f"jobctl receive --tag {job} | head -c {size}").stdout
        assert len(taken) == size
        assert (b"1 localhost: " + whole.replace(b"\n", b"\n1 localhost: ")).startswith(taken)
        whole = whole[got:]
    assert jobctl.run("receive", "--keep", job).stdout == whole
    rest = b"1 localhost: " + whole.replace(b"\n", b"\n1 localhost: ", 1)
    assert jobctl.run("receive", "--tag", job).stdout == rest


def test_a_receiver_of_a_long_line_that_is_killed(jobctl: Jobctl) -> None:
    """Others leave its line to it, and get the rest of it once it is gone."""
    job = jobctl.done("-c", "printf '%0300000d\\n' 7; echo last")
    receiver = jobctl.popen("receive", "--tag", job, stdout=subprocess.PIPE)
    assert receiver.stdout
    taken = receiver.stdout.read(100_000)
    assert jobctl.out("receive", "--tag", job) == f"{job} localhost: last\n"
    assert jobctl.job(job)["has_more_data"] is True
    receiver.kill()
    taken += receiver.stdout.read()
    rest = jobctl.run("receive", job).stdout
    assert taken + rest == b"%s localhost: %0300000d\n" % (job.encode(), 7)
    assert jobctl.job(job)["has_more_data"] is False


def test_a_carriage_return_ends_what_is_tagged(jobctl: Jobctl, tmp_path: Path) -> None:
    """A progress bar is seen as it goes, and never without its tag; bytes stay as they are."""
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    job = jobctl.sh(f"printf '10%%\\r20%%\\r'; read x <{gate}; printf '\\nb\\r\\n\\r90%%\\r'")
    receiver = jobctl.popen("receive", "-w", "--tag", job, stdout=subprocess.PIPE)
    assert receiver.stdout
    begin = b"1 localhost: 10%\r1 localhost: 20%\r"
    assert receiver.stdout.read(len(begin)) == begin
    gate.write_text("\n")
    rest = receiver.communicate()[0]
    assert rest == b"\n1 localhost: b\r\n1 localhost: \r1 localhost: 90%\r"
    directory = tmp_path / "out"
    jobctl.run("receive", "--again", "--tag", "--output-dir", str(directory), job)
    whole = b"1 localhost: 10%\r1 localhost: 20%\r\n" + rest.removeprefix(b"\n")
    assert (directory / "1.stdout").read_bytes() == whole


def test_bars_on_a_terminal_show_nothing_of_what_they_write_over(jobctl: Jobctl) -> None:
    job = jobctl.done("-c", "printf 'long 10%%\\r20%%\\r\\nok\\n99%%\\r'; exit 3")
    child = pexpect.spawn(
        PROGRAM, ["receive", "--tag", job], env=jobctl.env, timeout=60, encoding="utf-8"
    )
    assert child.read().replace("\r\n", "\n") == (
        "\x1b[?7l1 localhost: long 10%\x1b[?7h\r1 localhost: 20%\x1b[K\r\n1 localhost: ok\n"
        "1 localhost: 99%\r\njobctl: job 1 failed: exit status 3\n"
    )


def test_children_on_a_terminal_have_tags(jobctl: Jobctl) -> None:
    """Whole lines, also of bars that go on at the same time; an only child has none."""
    text = "for i in 1 2 3 4 5 6; do printf '\\r{} %d0%%' $i; sleep 0.01; done; echo; echo end {}"
    job = jobctl.out("start", "-q", "--foreach", "-", "-c", text, input=b"a\nb\n").strip()
    wanted = sorted(
        [
            f"{job}.{n} localhost: {name} {i}0%"
            for n, name in ((1, "a"), (2, "b"))
            for i in range(1, 7)
        ]
        + [
            f"{job}.{n} localhost: {text}"
            for n in (1, 2)
            for text in ("", "end a" if n == 1 else "end b")
        ]
    )
    for words in (["-w", job], ["--again", f"{job}.1", f"{job}.2"]):
        child = pexpect.spawn(
            PROGRAM, ["receive", *words], env=jobctl.env, timeout=60, encoding="utf-8"
        )
        rows = re.sub(r"\x1b\[(K|\?7[hl])", "", child.read()).replace("\r\n", "\r").split("\r")
        assert sorted(rows) == sorted([*wanted, ""]), words
    words = ["receive", "--again", f"{job}.2"]
    child = pexpect.spawn(PROGRAM, words, env=jobctl.env, encoding="utf-8")
    assert child.read().endswith("\nend b\r\n")


def test_receivers_at_once_get_whole_tagged_lines(jobctl: Jobctl) -> None:
    """Also those that are longer than what a pipe holds, or than what is handed over at once."""
    long = "printf '%0150000d\\n' 1 2 3 4; printf '%01500000d\\n' 5"
    job = jobctl.done("-c", f"{long}; {LINES}; {LINES} >&2; {long} >&2")
    taken: list[bytes] = []

    def read(fd: int) -> None:
        whole = b""
        while piece := os.read(fd, 30_000):
            whole += piece
        os.close(fd)
        taken.extend(whole.splitlines())

    readers, receivers = [], []
    for _ in range(3):
        end, begin = os.pipe()
        os.set_blocking(begin, False)
        receivers.append(jobctl.popen("receive", "--tag", job, stdout=begin, stderr=begin))
        os.close(begin)
        readers.append(threading.Thread(target=read, args=(end,)))
        readers[-1].start()
    for reader, receiver in zip(readers, receivers, strict=True):
        reader.join()
        assert receiver.wait(60) == 0
    wanted = [b"1 localhost: %05000d" % i for i in range(1, 301)]
    wanted += [b"1 localhost: %0150000d" % i for i in range(1, 5)]
    wanted += [b"1 localhost: %01500000d" % 5]
    assert sorted(taken) == sorted(wanted * 2)


def test_what_is_told_does_not_count_as_output(jobctl: Jobctl) -> None:
    """Where it goes into the same pipe, whose reader leaves before it has taken all."""
    numbers = b"".join(b"%d\n" % i for i in range(1, 5001))
    failed, job = jobctl.done("false"), jobctl.done("seq", "5000")
    words = f"jobctl receive {{}} {failed} {job} 2>&1 | head -c 3000"
    first = shell(jobctl, words.format("-w --write-events")).stdout
    told = b"".join(line for line in first.splitlines(True) if b"job" in line or b"{" in line)
    assert told.startswith(b'{"time"')
    taken = first.replace(told, b"")
    assert numbers.startswith(taken)
    assert taken + jobctl.run("receive", job).stdout == numbers


def test_tags_and_a_reader_that_leaves(jobctl: Jobctl) -> None:
    job = jobctl.done("seq", "20000")
    taken = shell(jobctl, f"jobctl receive --tag {job} | head -c 1005").stdout
    first = taken.decode().splitlines()[-2].split()[-1]
    rest = jobctl.out("receive", job).splitlines()
    assert int(rest[0]) == int(first) + 1


def test_output_dir(jobctl: Jobctl, tmp_path: Path) -> None:
    directory = tmp_path / "out"
    directory.mkdir()
    job = jobctl.done("-c", "echo o; echo e >&2")
    other = jobctl.done("true")
    for _ in range(2):
        assert jobctl.out("receive", "--output-dir", str(directory), job, other) == ""
        assert {path.name: path.read_text() for path in directory.iterdir()} == {
            "1.stdout": "o\n",
            "1.stderr": "e\n",
            "2.stdout": "",
            "2.stderr": "",
        }
    jobctl.run("receive", "--again", "--output-dir", str(directory), job)
    assert (directory / "1.stdout").read_text() == "o\n"
    assert (directory / "1.stdout").stat().st_mode & 0o777 == 0o644


def test_output_dir_is_made(jobctl: Jobctl, tmp_path: Path) -> None:
    job = jobctl.done("echo", "o")
    jobctl.refused(3, "receive", "--output-dir", f"{tmp_path}/none", "nobody")
    assert not (tmp_path / "none").exists()
    jobctl.run("receive", "--output-dir", f"{tmp_path}/out/new", job)
    assert (tmp_path / "out/new/1.stdout").read_text() == "o\n"
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o755


def test_output_dir_that_cannot_be(jobctl: Jobctl, tmp_path: Path) -> None:
    job = jobctl.done("echo", "o")
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("nowhere/x")
    (tmp_path / "a loop").symlink_to("a loop")
    for path, why in (
        ("file", "file is not a directory"),
        ("file/x/y/", "file is not a directory"),
        ("link/x", "link is a link that leads nowhere"),
        ("link", "link is a link that leads nowhere"),
        ("a loop/x", "a loop is a link that leads nowhere"),
        (f"{tmp_path}/./file/x", f"{tmp_path}/./file is not a directory"),
        ("x" * 300, "File name too long"),
        ("", "No such file or directory"),
    ):
        said = jobctl.refused(2, "receive", "--output-dir", path, job, cwd=tmp_path)
        assert said == f"jobctl: cannot make --output-dir '{path}': {why}"
    assert sorted(os.listdir(tmp_path)) == ["a loop", "file", "link", "state"]
    if os.geteuid() == 0 and os.path.isdir("/sys/kernel"):  # which not even root can write to
        said = jobctl.refused(2, "receive", "--output-dir", "/sys/kernel/x/y", job)
        assert said.endswith(": Operation not permitted")
    (tmp_path / "out").mkdir()
    (tmp_path / f"out/{job}.stdout").symlink_to("nowhere/x")
    said = jobctl.refused(125, "receive", "--output-dir", "out", job, cwd=tmp_path)
    assert said == f"jobctl: cannot write out/{job}.stdout: it is a link that leads nowhere"
    assert jobctl.out("receive", job) == "o\n"


def test_output_that_is_not_blocking(jobctl: Jobctl) -> None:
    """Whoever called us may have left a descriptor so: then what writes waits for room."""
    jobctl.done("-n", "x" * 200, "-c", "exit 3")
    whole = {form: jobctl.run("get", "-o", form).stdout for form in ("json", "table")}
    help_ = jobctl.run("start", "--help").stdout
    job = jobctl.done("-c", "exit 4")
    event = b'"state": "Failed"'
    cases: list[tuple[int, list[str], int, Callable[[bytes], bool]]] = [
        (1, ["get", "-o", "json", "1"], 0, lambda text: text == whole["json"]),
        (1, ["get", "1"], 0, lambda text: text == whole["table"]),
        (1, ["start", "--help"], 0, lambda text: text == help_),
        (1, ["start", "-q", "true"], 0, lambda text: text == b"3\n"),
        (2, ["receive", job], 0, lambda text: text == b"jobctl: job 2 failed: exit status 4\n"),
        (2, ["receive", "-w", "--write-events", job], 4, lambda text: event in text),
        (2, ["get", "nobody"], 3, lambda text: b"nobody" in text),
        (2, ["get", "--nonsense"], 2, lambda text: b"--nonsense" in text),
        (2, ["get", "--newest"], 2, lambda text: b"--newest" in text),
    ]
    for fd, words, status, as_it_should in cases:
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        filled = 0
        with suppress(BlockingIOError):
            while True:
                filled += os.write(writer, b"." * 1000)
        process = jobctl.popen(
            *words,
            stdout=writer if fd == 1 else subprocess.DEVNULL,
            stderr=writer if fd == 2 else subprocess.DEVNULL,
        )
        at_rest(process)
        os.close(writer)
        with open(reader, "rb") as file:
            text = file.read()[filled:]
        assert process.wait() == status, words
        assert as_it_should(text), (words, text)


def test_names_are_the_same_in_every_locale(jobctl: Jobctl) -> None:
    other = {**jobctl.env, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    jobctl.done("-n", "café", "echo", "é")
    records = jobctl.out("get", "-o", "json", "café", env=other)  # indexes the job
    assert records == jobctl.out("get", "-o", "json", "café")
    assert json.loads(records)[0]["command"] == "echo 'é'"
    jobctl.done("-n", "naïve", "echo", "ü", env=other)
    job = jobctl.job("naïve")
    assert (job["name"], job["argv"]) == ("naïve", ["echo", "ü"])


def test_words_are_the_same_in_every_locale(jobctl: Jobctl, tmp_path: Path) -> None:
    made = ["localedef", "-i", "ja_JP", "-f", "EUC-JP", str(tmp_path / "ja_JP.EUC-JP")]
    if not shutil.which("localedef") or subprocess.run(made, check=False).returncode > 1:
        pytest.skip("no such locale can be made here")
    other = {**jobctl.env, "LOCPATH": str(tmp_path), "LC_ALL": "ja_JP.EUC-JP"}
    words = ["名", "~\\", "", "a\nb", os.fsdecode(b"\xff\x90\xa4")]
    result = jobctl.run("start", "-w", "-q", "-n", "名", "printf", "%s|", *words, env=other)
    assert result.stdout == os.fsencode("".join(f"{word}|" for word in words))
    assert jobctl.job("名")["argv"][2:] == words


def test_words_as_they_were_given() -> None:
    kept = b"sh\0\xe5\x90\0\0"
    assert process.as_given(kept, ["sh", "?", ""]) == [b"sh", b"\xe5\x90", b""]
    for of_no_use in (b"", b"sh\0\xe5\x90", b"sh\0\xe5\0"):
        assert process.as_given(of_no_use, ["sh", "é", ""]) == [b"sh", "é".encode(), b""]
    with pytest.raises(UnicodeEncodeError):
        process.as_given(b"", ["\ud800"])


def test_order_and_unknown_jobs(jobctl: Jobctl) -> None:
    for word in ("a", "b", "c"):
        jobctl.done("echo", word)
    result = jobctl.run("receive", "3", "99", "1-2", "nobody", status=3)
    assert result.stdout == b"a\nb\nc\n"
    assert len(result.stderr.splitlines()) == 2


def test_on_a_terminal(jobctl: Jobctl) -> None:
    job = jobctl.start("-c", "echo out; sleep 0.2; echo err >&2; sleep 600")
    child = pexpect.spawn("jobctl", ["receive", "-w", job], env=jobctl.env, timeout=60)
    child.expect("out\r\nerr\r\n")
    child.sendintr()
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 130
    assert jobctl.state(job) == "Running"


def test_a_paused_terminal_loses_nothing(jobctl: Jobctl) -> None:
    job = jobctl.done("seq", "100000")
    child = pexpect.spawn("jobctl", ["receive", job], env=jobctl.env, timeout=60)
    child.expect("5000\r\n")
    time.sleep(0.2)
    child.expect("99999\r\n100000\r\n")
    child.expect(pexpect.EOF)


def test_output_that_never_ends_costs_no_memory(jobctl: Jobctl) -> None:
    job = jobctl.start("yes")
    wait_until(lambda: os.path.getsize(jobctl.folder(job) / "stdout") > 100_000_000)
    jobctl.run("stop", job)
    # Started by something small, as a process begins with the peak of whoever forked it.
    measure = (
        "import os, sys; pid = os.posix_spawnp('jobctl', ['jobctl', *sys.argv[1:]], os.environ);"
        "_, status, usage = os.wait4(pid, 0); print(status, usage.ru_maxrss, file=sys.stderr)"
    )
    words = [sys.executable, "-c", measure, "receive", job]
    result = subprocess.run(
        words, env=jobctl.env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    status, kilobytes = map(int, result.stderr.split())
    assert status == 0
    assert kilobytes < 40_000
    assert jobctl.job(job)["has_more_data"] is False


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ([], "--all"),
        (["--all", "1"], "--all"),
        (["--auto-remove", "1"], "--auto-remove"),
        (["--write-events", "1"], "--write-events"),
        (["--force", "1"], "--force"),
        (["--keep", "--again", "1"], "--again"),
        (["--stream", "stdin", "1"], "stdin"),
        (["--timeout", "x", "-w", "1"], "'x'"),
        (["--output-dir", "/etc/passwd/x", "1"], "/etc/passwd/x"),
        (["--output-dir", "/etc/passwd", "1"], "/etc/passwd"),
        (["8-3"], "8-3"),
        ([""], "''"),
    ],
)
def test_bad_input(jobctl: Jobctl, words: list[str], named: str) -> None:
    jobctl.done("echo", "x")
    assert named in jobctl.refused(2, "receive", *words)
    assert jobctl.out("receive", "1") == "x\n"


def test_what_another_reader_gives_back_while_nothing_new_comes(jobctl: Jobctl) -> None:
    job = jobctl.start("-c", f"{NUMBERED.format(n=2000)}; sleep 600")
    wait_until(lambda: (jobctl.folder(job) / "stdout").stat().st_size == len(numbered(2000)))
    with jobctl.popen("receive", "--wait", job, stdout=subprocess.PIPE) as leaves:
        assert leaves.stdout
        wait_until(lambda: marks(jobctl, job) == len(numbered(2000)))  # the pipe holds it all
        with jobctl.popen("receive", "--wait", job, stdout=subprocess.PIPE) as stays:
            assert stays.stdout
            at_rest(stays)  # it has looked, and found nothing
            taken = os.read(leaves.stdout.fileno(), 1000)
            leaves.stdout.close()
            got = b""
            while len(taken + got) < len(numbered(2000)):
                piece = os.read(stays.stdout.fileno(), 1 << 16)
                assert piece, "it has ended"
                got += piece
            assert taken + got == numbered(2000)
            assert jobctl.state(job) == "Running"
            jobctl.run("stop", job)


def marks(jobctl: Jobctl, job: str) -> int:
    """Return how many bytes of a job's standard output count as received."""
    record = quoting.load((jobctl.folder(job) / "received").read_bytes())
    return int(record.get("stdout", b"0"))


@pytest.mark.parametrize(
    ("line", "seen"),
    [
        ("plain ", "plain "),
        ("longer\rshort", "shortr"),
        ("10%\r20%\r100%", "100%"),
        ("text\r", "text"),
        ("\r\rtext\r", "text"),
        ("working 90%\r           \rdone", "done"),
        ("working 90%\r\x1b[Kdone", "done"),
        ("working 90%\x1b[2K\rdone", "done"),
        ("\x1b[1mbold\x1b[0m 5%\rcold", "cold\x1b[0m 5%"),
        ("日本語\rab", "ab本語"),
        ("éé\ra", "aé"),
        ("abcd\r日", "日cd"),
    ],
)
def test_what_is_seen_of_a_line(line: str, seen: str) -> None:
    assert shown(line.encode()).decode() == seen


def test_what_is_no_text_or_too_long_is_seen_as_it_is() -> None:
    assert shown(b"\xff\xfe\r\xfd") == b"\xfd\xfe"
    job = b"x" * 200_000 + b"\r" + b"y" * 10 + b"\n"
    whole, parts = _Visible(), _Visible()
    whole.update(job)
    for at in range(0, len(job), 65_536):
        parts.update(job[at : at + 65_536])
    assert parts.digest() == whole.digest()
    parts.update(b"z")
    assert parts.digest() != whole.digest()
