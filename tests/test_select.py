"""`jobctl get`: which jobs, and how they are shown."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import time
from typing import Any

import pexpect
import pytest
from conftest import Jobctl, false_clock, wait_until

from jobctl.cli import render


@pytest.fixture(name="some")
def _some(jobctl: Jobctl) -> Jobctl:
    """Give five jobs: two Completed, one Failed, one Stopped, one Running."""
    jobctl.done("-n", "alpha", "echo", "one")
    jobctl.done("-n", "beta", "-c", "exit 3")
    jobctl.done("-n", "alpha", "true")
    jobctl.start("-n", "my job", "sleep", "600")
    jobctl.start("-n", "de-ad-be-ef", "sleep", "601")
    jobctl.run("stop", "my job")
    return jobctl


def ids(jobctl: Jobctl, *words: str, **options: Any) -> list[int]:
    return [int(line) for line in jobctl.out("get", "-q", *words, **options).split()]


SELECTIONS = [
    ([], [1, 2, 3, 4, 5]),
    (["3", "1", "3"], [1, 3]),
    (["al*", "?eta"], [1, 2, 3]),
    (["--state", "Completed"], [1, 3]),
    (["--state", "failed", "--state", "STOPPED"], [2, 4]),
    (["1-2", "--state", "Failed"], [2]),
    (["--name", "a*"], [1, 3]),
    (["--command", "sleep*"], [4, 5]),
    (["--command", "*exit 3*"], [2]),
    (["--location", "localhost"], [1, 2, 3, 4, 5]),
    (["--location", "elsewhere"], []),
    (["--newest", "2"], [4, 5]),
    (["--newest", "1", "--state", "Completed"], [3]),
    (["--newest", "99"], [1, 2, 3, 4, 5]),
    (["--has-more-data"], [1, 5]),
    (["--no-more-data"], [2, 3, 4]),
    (["--before", "1h"], []),
    (["--after", "1h"], [1, 2, 3, 4]),
    (["--after", "2020-01-01T00:00:00Z", "--before", "2090-01-01T00:00:00+01:00"], [1, 2, 3, 4]),
    (["--child-state", "Failed"], []),
    (["--children"], [1, 2, 3, 4, 5]),
]


def test_selections(some: Jobctl) -> None:
    for words, expected in SELECTIONS:
        assert ids(some, *words) == expected, words
    identity = some.job("2")["instance_id"]
    assert ids(some, identity) == [2]
    assert ids(some, identity[:8].upper()) == [2] or identity[:8].isdigit()
    assert ids(some, "-", "5", input=b"1\nmy job\n\n2-3\n") == [1, 2, 3, 4, 5]
    assert ids(some, "-", input=b"") == []
    assert some.out("stop", "-", input=b"\n") == ""
    assert some.state("5") == "Running"


def test_what_matches_nothing(some: Jobctl) -> None:
    for word in ("99", "9" * 30, "1.2", "nobody", "deadbeef", "\udcff", "a\x1b31m"):
        result = some.run("get", "-q", word, "2", status=3)
        assert result.stdout == b"2\n"
        lines = result.stderr.decode().splitlines()
        assert len(lines) == 1
        assert lines[0].isprintable()
    result = some.run("get", "nobody", "nowhere", status=3)
    assert result.stdout == b""
    assert b"nobody" in result.stderr
    assert b"nowhere" in result.stderr


def test_nothing_prints_nothing(jobctl: Jobctl) -> None:
    assert jobctl.out("get") == ""
    assert jobctl.out("get", "no*") == ""
    assert jobctl.out("get", "-o", "json") == "[]\n"
    assert jobctl.out("get", "-o", "jsonl") == ""


def test_formats(some: Jobctl) -> None:
    table = some.out("get").splitlines()
    assert table[0].split() == "Id Name Type State HasMoreData Location Command".split()
    assert table[2].split(None, 6) == [
        *"2 beta BackgroundJob Failed False localhost".split(),
        "exit 3",
    ]
    wide = some.out("get", "-o", "wide").splitlines()
    assert wide[0].split()[7:] == "Exit Began Elapsed Reason".split()
    assert wide[2].endswith("exit status 3")
    lines = some.out("get", "-o", "jsonl").splitlines()
    assert [json.loads(line)["id"] for line in lines] == list("12345")
    env = some.env | {"JOBCTL_OUTPUT": "ids"}
    assert some.out("get", env=env) == "1\n2\n3\n4\n5\n"
    some.refused(2, "get", env=some.env | {"JOBCTL_OUTPUT": "yaml"})


def test_nothing_steers_the_terminal(jobctl: Jobctl) -> None:
    evil = b"\x1b]0;title\x07\x9b31m\xc2\x9b\r\n\xe2\x80\xae\xff"
    jobctl.done("echo", evil)
    jobctl.done("-c", b"true; : " + evil)
    for form in ("table", "wide", "json", "jsonl"):
        output = jobctl.run("get", "-o", form).stdout
        assert not [byte for byte in output if byte < 32 and byte != 10], form
        assert "\u202e" not in output.decode()
        assert "\x9b" not in output.decode()
    assert len(jobctl.out("get").splitlines()) == 3
    assert "\\x1b]0;title\\x07" in jobctl.out("get", "1")
    record = jobctl.job("1")
    assert os.fsencode(record["argv"][1]) == evil


def on_terminal(env: dict[str, str], *words: str, columns: int = 80) -> str:
    """Return what the program prints on a terminal."""
    child = pexpect.spawn("jobctl", list(words), env=env, timeout=60, dimensions=(24, columns))
    child.expect(pexpect.EOF)
    output = child.before
    assert isinstance(output, bytes)
    return output.decode()


def test_wide_and_narrow_terminals(jobctl: Jobctl) -> None:
    jobctl.done("echo", "x" * 500)
    assert "x" * 500 in jobctl.out("get")
    output = on_terminal(jobctl.env, "get", columns=90)
    assert "\x1b[32mCompleted\x1b[0m" in output
    lines = output.replace("\x1b[32m", "").replace("\x1b[0m", "").splitlines()
    assert max(map(len, lines)) <= 90
    assert lines[1].endswith("…")
    assert "\x1b" not in on_terminal(jobctl.env | {"NO_COLOR": "1"}, "get")


def test_watch(jobctl: Jobctl) -> None:
    job = jobctl.start("sleep", "600")
    child = pexpect.spawn("jobctl", ["get", "--watch"], env=jobctl.env, timeout=60)
    child.expect("Running")
    jobctl.run("stop", job)
    child.expect("Stopped")
    child.sendintr()
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 130


def test_output_that_cannot_be_written(some: Jobctl) -> None:
    with open("/dev/full", "wb") as full:
        result = some.run("get", stdout=full, status=125)
    assert result.stderr == b"jobctl: cannot write to standard output: No space left on device\n"
    shell = "jobctl get | true; jobctl --help | true; jobctl get --help >/dev/full || echo $?"
    result = subprocess.run(["sh", "-c", shell], env=some.env, capture_output=True)
    assert result.stdout == b"125\n"
    assert result.stderr.count(b"\n") == 1


def test_states_come_from_the_processes(jobctl: Jobctl) -> None:
    job = jobctl.start("sleep", "600")
    os.kill(jobctl.job(job)["pid"], signal.SIGSTOP)
    jobctl.until(job, "Suspended")
    os.kill(jobctl.job(job)["pid"], signal.SIGCONT)
    jobctl.until(job, "Running")
    stubborn = jobctl.sh("trap '' TERM; echo deaf; while :; do sleep 0.1; done")
    wait_until((jobctl.folder(stubborn) / "stdout").read_text)
    stopping = jobctl.popen("stop", "--grace", "600", stubborn)
    jobctl.until(stubborn, "Stopping")
    os.kill(jobctl.job(stubborn)["pid"], signal.SIGKILL)
    stopping.wait(60)
    assert jobctl.job(stubborn)["reason"] == "stopped by user"


def test_a_clock_that_jumps(jobctl: Jobctl) -> None:
    first = jobctl.done("true")
    second = jobctl.start("sleep", "0.3", env=jobctl.env | false_clock("-400d"))
    jobctl.run("wait", second)
    assert ids(jobctl, "--newest", "1") == [int(second)]
    assert ids(jobctl) == [int(first), int(second)]
    elapsed = jobctl.out("get", "-o", "wide", second).splitlines()[1].split()[11]
    assert re.fullmatch(r"\d{1,2}(\.\d)?s", elapsed)
    assert float(elapsed[:-1]) >= 0.3


def test_without_colour_in_a_pipe_even_from_a_terminal(jobctl: Jobctl) -> None:
    jobctl.done("true")
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve("/bin/sh", ["sh", "-c", "jobctl get | cat"], jobctl.env)
    output = b""
    try:
        while piece := os.read(terminal, 1000):
            output += piece
    except OSError:
        pass
    os.waitpid(pid, 0)
    assert b"Completed" in output
    assert b"\x1b" not in output


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--state", "Sleeping"], "Sleeping"),
        (["--newest", "0"], "0"),
        (["--newest", "-1"], "-1"),
        (["--newest", "x"], "x"),
        (["--newest", "9" * 40], "999"),
        (["--before", "yesterday"], "'yesterday'"),
        (["--after", ""], "''"),
        (["--after", "25:00"], "'25:00'"),
        (["5-2"], "5-2"),
        ([""], "''"),
        (["-o", "xml"], "xml"),
        (["--nonsense"], "--nonsense"),
        (["--name"], "--name"),
    ],
)
def test_bad_input(jobctl: Jobctl, words: list[str], named: str) -> None:
    assert named in jobctl.refused(2, "get", *words)


def test_unknown_commands(jobctl: Jobctl) -> None:
    assert "frobnicate" in jobctl.refused(2, "frobnicate")
    assert "--frobnicate" in jobctl.refused(2, "--frobnicate")
    result = jobctl.run(status=2)
    assert b"Usage" in result.stderr
    assert jobctl.out("--version").startswith("jobctl, version ")


def test_watching_for_nobody(jobctl: Jobctl) -> None:
    words = "jobctl get -q --watch 'zz*' 1 | head -n 1; echo end"
    jobctl.start("true")
    result = subprocess.run(["sh", "-c", words], env=jobctl.env, capture_output=True, timeout=60)
    assert (result.stdout, result.stderr) == (b"1\nend\n", b"")


def test_a_variable_that_stands_for_an_option(jobctl: Jobctl) -> None:
    jobctl.env["JOBCTL_OUTPUT"] = "yaml"
    assert "Invalid value for JOBCTL_OUTPUT: 'yaml'" in jobctl.refused(2, "get")
    assert "Invalid value for '-o'" in jobctl.refused(2, "get", "-o", "xml")


def test_watching_more_than_a_screen(jobctl: Jobctl) -> None:
    jobctl.run("start", "--foreach", "-", "echo", input=b"1\n" * 12)
    jobctl.run("wait", "1")
    words = ["get", "--children", "--watch"]
    child = pexpect.spawn(
        "jobctl", words, env=jobctl.env, timeout=60, encoding="utf-8", dimensions=(8, 80)
    )
    child.expect(r"Command *\r\n… 8 more\r\n1\.8 ")
    child.expect("\r\n1.12 ")
    child.setwinsize(40, 80)
    child.expect(r"Command *\r\n1 .*\r\n1\.1 ")
    child.sendintr()
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 130


def test_watching_nobody(jobctl: Jobctl) -> None:
    assert "nobody" in jobctl.refused(3, "get", "--watch", "nobody")


def test_an_empty_list_on_a_terminal(jobctl: Jobctl) -> None:
    for words, said in (
        (("get",), "there are no jobs"),
        (("get", "-o", "wide", "zz*"), "no job matches"),
        (("get", "--state", "Failed"), "no job matches"),
        (("session", "get"), "there are no sessions"),
    ):
        assert on_terminal(jobctl.env, *words) == f"jobctl: {said}\r\n"
        assert jobctl.run(*words).stderr == b""
    assert on_terminal(jobctl.env, "get", "-o", "json") == "[]\r\n"
    child = pexpect.spawn("jobctl", ["get", "--watch", "zz*"], env=jobctl.env, timeout=60)
    child.expect_exact("jobctl: no job matches; those that come are shown, until ^C\r\n")
    jobctl.run("start", "-n", "zz1", "true")
    child.expect_exact("zz1")
    child.sendintr()
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 130


def test_watching_what_is_removed(jobctl: Jobctl) -> None:
    job = jobctl.done("true")
    watch = jobctl.popen(
        "get", "-q", "--watch", job, "77", stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert watch.stdout
    assert watch.stdout.readline() == b"1\n"
    jobctl.run("remove", job)
    out, err = watch.communicate(timeout=60)
    assert (watch.returncode, out) == (3, b"")
    assert [line.split(b";")[0] for line in err.splitlines()] == [
        b"jobctl: no job 77",
        b"jobctl: no job 1",
        b"jobctl: no job 77",
    ]


def test_columns_are_as_wide_as_what_is_in_them(jobctl: Jobctl) -> None:
    for name in ("日本", "e\u0301e", "👍", "plain"):
        jobctl.start("-n", name, "true")
    lines = jobctl.out("get").splitlines()
    assert {render.cells(line[: line.index("Background")]) for line in lines[1:]} == {11}
    assert lines[0].index("Type") == 11


def test_children_of_what_a_filter_means_are_not_listed_twice(jobctl: Jobctl) -> None:
    jobctl.run("start", "-q", "--foreach", "-", "echo", input=b"a\nb\n")
    jobctl.run("wait", "1")
    assert jobctl.out("get", "-q", "--location", "localhost") == "1\n"
    for words in (["--location", "localhost"], ["1"], ["1.2", "1", "1.1"], []):
        assert jobctl.out("get", "-q", "--children", *words) == "1\n1.1\n1.2\n"


@pytest.mark.parametrize("columns", [200, 80, 60, 30])
def test_rows_never_wrap_on_a_terminal(columns: int) -> None:
    names = ["Id", "Name", "Type", "State", "HasMoreData", "Location", "Command"]
    long = [
        "12",
        "日本語の名前がここにある",
        "BackgroundJob",
        "Completed",
        "False",
        "localhost",
        "echo 👍 " * 50,
    ]
    rows = [long, ["1", "x", "BackgroundJob", "Running", "True", "web1", "true"]]
    render.fit(rows, names, columns)
    assert render.cells("  ".join(rows[0])) <= columns
    assert (rows[0][0], len(rows[0])) == ("12", len(names))
    assert ("Type" in names) == (columns > 60)
    assert "State" in names


def test_cells() -> None:
    assert render.cells("日本 e\u0301 👍") == 9
    assert render.cells("❤\ufe0f") == 2
    assert [render.cut("日本語", most) for most in (6, 5, 4, 1)] == ["日本語", "日本…", "日…", "…"]


def test_looking_changes_nothing(jobctl: Jobctl) -> None:
    job = jobctl.start("sleep", "600")
    jobctl.run("get")
    index = jobctl.state_dir / "index.db"
    wait_until(lambda: (jobctl.run("get"), index.stat().st_mtime < time.time() - 0.3)[1])
    before = index.stat().st_mtime_ns
    jobctl.run("get")
    assert index.stat().st_mtime_ns == before
    assert jobctl.state(job) == "Running"
