"""`start --foreach`: one command for many items, on this machine."""

from __future__ import annotations

import fcntl
import json
import os
import random
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from conftest import ENDS, Jobctl, at_rest, living_slots, sleeper, wait_until

from jobctl.jobs import Jobs
from jobctl.ops.wait import Ends

LONGEST = 131_059


def each(jobctl: Jobctl, items: bytes | str, *words: str, status: int | None = 0) -> str:
    """Start a job with items from a pipe; return its id."""
    data = items.encode() if isinstance(items, str) else items
    start = ("start", "-q", "--foreach", "-", *words)
    return jobctl.out(*start, input=data, status=status).strip()


def children(jobctl: Jobctl, job: str) -> list[dict[str, Any]]:
    """Return the records of a job's children."""
    return jobctl.jobs("--children", job)[1:]


def slots(jobctl: Jobctl, job: str) -> list[int]:
    """Return the processes of a job's slots that live."""
    return living_slots(jobctl.folder(job))


def bearing(cookie: str) -> list[int]:
    """Return the processes with this in their JOBCTL_INSTANCE_ID."""
    found = []
    for environ in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"JOBCTL_INSTANCE_ID={cookie}".encode() in environ.read_bytes():
                found.append(int(environ.parent.name))
        except OSError:
            continue
    return found


# --- what the command gets ---


@pytest.mark.parametrize(
    ("words", "output"),
    [
        (("echo", "{}"), "a b\nc\n"),
        (("echo",), "a b\nc\n"),
        (("echo", "<{}{}>", "{#}"), "<a ba b> 1\n<cc> 2\n"),
        (("echo", "{#}"), "1 a b\n2 c\n"),
        (("-c", "echo {} $#"), "a b 0\nc 0\n"),
        (("-c", 'echo "[{}]" $1', "--", "x{}"), "[a b] xa b\n[c] xc\n"),
        (("-c", "echo '[{}]'"), "[a b]\n[c]\n"),
        (("-c", "echo $#: $1"), "1: a b\n1: c\n"),
        (("-c", "echo $JOBCTL_ID $JOBCTL_ITEM"), "1.1 a b\n1.2 c\n"),
        (("echo", "{} {}}", "{ }"), "a b a b} { }\nc c} { }\n"),
    ],
)
def test_the_item_stands_in_the_command(
    jobctl: Jobctl, words: tuple[str, ...], output: str
) -> None:
    job = each(jobctl, "a b\nc\n", "-t", "1", *words)
    jobctl.run("wait", job)
    assert jobctl.out("receive", job) == output


@pytest.mark.parametrize(
    "text",
    [
        "# don't\nprintf '[%s]' {}",
        "cat <<E >/dev/null\nit's\nE\nprintf '[%s]' {}",
        'x="$(printf "[%s]" "{}")"; printf %s "$x"',
        'x="$(printf "[%s]" {})"; printf %s "$x"',
        """x="$(printf %s '{}')"; printf '[%s]' "$x\"""",
        "printf '[%s]' '{}'",
        'printf %s "[{}]"',
        'printf %s "[`printf %s {}`]"',
        "printf %s $(cat <<E\n[{}]\nE\n) | tr -d '\\n'; : {}",
        "case {} in *) printf '[%s]' \"{}\";; esac",
        "f() { printf '[%s]' \"$1\"; }; f {}",
    ],
)
def test_the_item_is_one_word_in_any_shell_text(jobctl: Jobctl, text: str) -> None:
    job = each(jobctl, b"a'b\"$(touch X)\0", "-0", "-c", text)
    jobctl.run("wait", job)
    output = jobctl.out("receive", job)
    assert output in ("[a'b\"$(touch X)]", "[a'b\"$(touchX)]")  # the latter: split by tr
    shown = jobctl.job(f"{job}.1")
    again = subprocess.run(["sh", "-c", shown["command"]], capture_output=True, env=jobctl.env)
    assert again.stdout.decode() == output


def test_the_shells_own(jobctl: Jobctl) -> None:
    job = each(jobctl, "a\n", "-c", "echo ${#} $#; cat <<'E'\n{}\nE\necho {#}")
    jobctl.run("wait", job)
    assert jobctl.out("receive", job) == "0 0\n{}\n1\n"


def test_every_slot_begins_its_commands_alike(jobctl: Jobctl) -> None:
    text = "echo $PATH ${LC_ALL-none} $(umask) $(grep Sig[BIC] /proc/self/status | tr -d '\n')"
    job = each(jobctl, "1\n2\n3\n4\n", "-t", "4", "-c", f"sleep 0.3; {text}")
    jobctl.run("wait", job)
    lines = set(jobctl.out("receive", job).splitlines())
    plain = jobctl.done("-c", text)
    assert lines == set(jobctl.out("receive", plain).splitlines())


HOSTILE = [
    b"$(touch X)",
    b"`touch X`",
    b"; touch X",
    b"'; touch X; '",
    b'"; touch X; "',
    b"\\",
    b"a\\nb",
    b"-n",
    b"--help",
    b"*",
    b"~",
    b" ",
    b"",
    b"\t",
    b"a  b",
    b"{}",
    b"{#}",
    b"\xff\xfe",
    b"!x",
    b"$HOME",
    b"'",
    b'"',
    b"x\ny",
    b"\n",
    b"\r",
    b"#",
    b"&",
    b"|",
    b"=",
    b"a=b",
    b"\x01\x1b[31m",
]


@pytest.mark.parametrize(
    "words",
    [
        ("printf", "%s\\0", "{}"),
        ("-c", "printf '%s\\0' {}"),
        ("-c", "printf '%s\\0' \"{}\""),
        ("-c", "printf '%s\\0' '{}'"),
        ("-c", 'printf "%s\\0" "$1"'),
        ("-c", 'printf "%s\\0" "$JOBCTL_ITEM"'),
        ("--init", "x=1", "printf", "%s\\0", "{}"),
    ],
)
def test_items_are_passed_byte_for_byte(
    jobctl: Jobctl, tmp_path: Path, words: tuple[str, ...]
) -> None:
    items = b"".join(item + b"\0" for item in HOSTILE)
    job = each(jobctl, items, "-0", "-C", str(tmp_path), *words)
    jobctl.run("wait", job)
    assert jobctl.run("receive", job).stdout == items
    assert not (tmp_path / "X").exists()
    records = children(jobctl, job)
    assert [os.fsencode(record["item"]) for record in records] == HOSTILE
    assert jobctl.run("get", "--children", job).stdout.count(b"\n") == 2 + len(HOSTILE)


def test_large_items(jobctl: Jobctl) -> None:
    big = b"x" * LONGEST
    job = each(jobctl, b"\n".join([big, b"'" * 100_000, b"y"]), "-c", "printf %s {} | wc -c")
    jobctl.run("wait", job)
    assert jobctl.out("receive", job).split() == [str(LONGEST), "100000", "1"]


@pytest.mark.parametrize(
    ("items", "words", "why"),
    [
        (b"", (), "it is empty"),
        (b"a\n" + b"x" * (LONGEST + 1), (), "item 2 is longer than 131059 bytes"),
        (b"a\nb\0c\n", (), "item 2 has a NUL in it"),
        (b"a\n", ("--stdin", "-"), "contradict each other"),
        (b"a\n", ("-t", "0"), "'0' is not a number from 1"),
        (b"a\n", ("-t", "-1"), "'-1' is not a number from 1"),
        (b"a\n", ("--results", "remote"), "needs --host"),
    ],
)
def test_what_makes_no_sense(
    jobctl: Jobctl, items: bytes, words: tuple[str, ...], why: str
) -> None:
    assert why in jobctl.refused(2, "start", "--foreach", "-", *words, "echo", input=items)
    assert jobctl.out("get") == ""
    assert list(jobctl.state_dir.glob("jobs/*")) == []


def test_more_that_makes_no_sense(jobctl: Jobctl) -> None:
    assert "cannot read 'nowhere'" in jobctl.refused(2, "start", "--foreach", "nowhere", "echo")
    assert "Is a directory" in jobctl.refused(2, "start", "--foreach", "/", "echo")
    assert "no command" in jobctl.refused(2, "start", "--foreach", "-", input=b"a\n")
    assert "-0 needs --foreach" in jobctl.refused(2, "start", "-0", "echo")
    assert "--throttle needs" in jobctl.refused(2, "start", "-t", "2", "echo")


def test_the_environment(jobctl: Jobctl) -> None:
    text = "env -0 | grep -z ^JOBCTL_ | sort -z"
    job = each(jobctl, "x\n", "-n", "many", "-c", text)
    jobctl.run("wait", job)
    found = dict(line.split("=", 1) for line in jobctl.out("receive", job).rstrip("\0").split("\0"))
    (child,) = children(jobctl, job)
    progress = found.pop("JOBCTL_PROGRESS")
    assert progress.endswith(".progress")
    assert found.pop("JOBCTL_STATE_DIR") == str(jobctl.state_dir)
    assert found == {
        "JOBCTL_ID": "1.1",
        "JOBCTL_NAME": "many",
        "JOBCTL_INSTANCE_ID": child["instance_id"],
        "JOBCTL_ITEM": "x",
        "JOBCTL_HOST": "localhost",
    }


def test_descriptors_and_signals(jobctl: Jobctl) -> None:
    job = each(jobctl, "x\n", "-c", "ls -l /proc/self/fd | grep -c /; cat /proc/self/status")
    jobctl.run("wait", job)
    count, *lines = jobctl.out("receive", job).splitlines()
    assert count == "3"  # input and errors, as output is a pipe, and that of ls itself
    masks = dict(line.split(":\t", 1) for line in lines)
    assert {masks[name] for name in ("SigBlk", "SigIgn", "SigCgt")} == {"0" * 16}


def test_standard_input_goes_to_every_item(jobctl: Jobctl, tmp_path: Path) -> None:
    (tmp_path / "in").write_text("input\n")
    job = each(jobctl, "1\n2\n3\n", "--stdin", str(tmp_path / "in"), "cat", "-", "/dev/null{}")
    jobctl.run("wait", job, status=1)
    assert jobctl.out("receive", job) == "input\n" * 3


def test_a_script(jobctl: Jobctl, tmp_path: Path) -> None:
    (tmp_path / "script").write_text("echo $1 $2\n")
    job = each(jobctl, "1\n2\n", "-t", "1", "-f", str(tmp_path / "script"), "a")
    (tmp_path / "script").unlink()
    jobctl.run("wait", job)
    assert jobctl.out("receive", job) == "a 1\na 2\n"


def test_merge_and_streams(jobctl: Jobctl) -> None:
    text = "echo out {}; echo err {} >&2; echo out {}"
    job = each(jobctl, "1\n2\n", "-t", "1", "--merge", "-c", text)
    jobctl.run("wait", job)
    assert jobctl.out("receive", job) == "out 1\nerr 1\nout 1\nout 2\nerr 2\nout 2\n"
    job = each(jobctl, "1\n2\n", "-t", "1", "-c", text)
    jobctl.run("wait", job)
    result = jobctl.run("receive", job)
    assert result.stdout == b"out 1\nout 1\nout 2\nout 2\n"
    assert result.stderr == b"err 1\nerr 2\n"


# --- how it goes on ---


def test_ends(jobctl: Jobctl) -> None:
    ends = ENDS | {"exit 255": ("Failed", "exit status 255", 255, None)}
    job = each(jobctl, "\n".join(ends), "sh", "-c")
    jobctl.run("wait", job, status=1)
    for record, end in zip(children(jobctl, job), ends.values(), strict=True):
        shown = tuple(record[key] for key in ("state", "reason", "exit_code", "signal"))
        assert shown == end
        assert isinstance(record["pid"], int)
        assert record["created_at"] <= record["began_at"] <= record["ended_at"]
        assert (record["parent"], record["type"]) == (job, "TaskJob")
    whole = jobctl.job(job)
    assert (whole["state"], whole["reason"]) == ("Failed", "exit status 3")
    assert whole["children"] == [f"{job}.{n}" for n in range(1, 7)]
    assert whole["exit_code"] is whole["pid"] is whole["item"] is None


def test_what_cannot_be_started(jobctl: Jobctl) -> None:
    job = each(jobctl, "foo\n/\ntrue\n", "{}")
    jobctl.run("wait", job, status=1)
    ends = [(record["reason"], record["exit_code"]) for record in children(jobctl, job)]
    assert ends == [
        ("command not found: foo", 127),
        ("cannot execute /: it is a directory", 126),
        ("", 0),
    ]


def test_what_an_item_cannot_begin(jobctl: Jobctl, tmp_path: Path) -> None:
    script = tmp_path / "w"
    script.write_bytes(b"#!/no/such\n")
    script.chmod(0o700)
    told = f"command not found: {script}: its interpreter /no/such is not there"
    for words, reason in (
        ((str(script), "{}"), told),
        (("-f", str(script), "{}"), told),
        (("echo hi",), "command not found: echo hi; use -c for shell text"),
        (("echo", "x" * 100 + "{}"), "cannot execute echo: argument list too long"),
    ):
        job = each(jobctl, "a" * 131_000 + "\nb\n", "-t", "1", *words, status=None)
        jobctl.run("wait", job, status=1)
        assert children(jobctl, job)[0]["reason"] == reason
    (tmp_path / "echo").write_bytes(Path("/bin/echo").read_bytes())
    (tmp_path / "echo").chmod(0o700)
    job = each(jobctl, f"{script}\n{tmp_path}/echo\n", "-t", "1", "{}")
    jobctl.run("wait", job, status=1)
    assert [record["reason"] for record in children(jobctl, job)] == [told, ""]


def test_so_many_at_once(jobctl: Jobctl, tmp_path: Path) -> None:
    text = ": >on.{}; ls on.* | wc -l >>counts; until [ -e go ]; do sleep 0.1; done; rm on.{}"
    job = each(jobctl, "1\n2\n3\n4\n5\n", "-t", "2", "-C", str(tmp_path), "-c", text)
    counted = {"Running": 2, "NotStarted": 3}
    wait_until(lambda: Counter(r["state"] for r in children(jobctl, job)) == counted)
    reasons = {r["reason"] for r in children(jobctl, job) if r["state"] == "NotStarted"}
    assert reasons == {"waiting for a slot"}
    assert jobctl.job(job)["state"] == "Running"
    assert "of 5" in jobctl.out("get", "-o", "wide", job)
    (tmp_path / "go").touch()
    jobctl.run("wait", job)
    counts = (tmp_path / "counts").read_text().split()
    assert len(counts) == 5
    assert max(counts) == "2"


def test_start_returns_before_the_items_are_run(jobctl: Jobctl) -> None:
    job = each(jobctl, "\n".join(map(str, range(3000))), "-t", "2", "-c", "sleep 600")
    counted = {"Running": 2, "NotStarted": 2998}
    wait_until(lambda: Counter(r["state"] for r in children(jobctl, job)) == counted)
    jobctl.run("stop", job)
    states = Counter(r["state"] for r in children(jobctl, job))
    assert states == {"Stopped": 3000}
    assert jobctl.job(job)["reason"] == "stopped by user"
    assert slots(jobctl, job) == []


def test_timeout_and_retries(jobctl: Jobctl, tmp_path: Path) -> None:
    job = each(jobctl, "0\n600\n", "--timeout", "5", "sleep", "{}")
    jobctl.run("wait", job, status=1)
    assert [r["reason"] for r in children(jobctl, job)] == ["", "timed out after 5s"]
    text = "echo x >>{}; [ $(wc -l <{}) -ge 3 ]"
    job = each(jobctl, "a\nb\n", "--retries", "2", "-C", str(tmp_path), "-c", text)
    jobctl.run("wait", job)
    assert (tmp_path / "a").read_text() == "x\n" * 3
    job = each(jobctl, "c\n", "--retries", "1", "-C", str(tmp_path), "-c", text)
    jobctl.run("wait", job, status=1)
    assert (tmp_path / "c").read_text() == "x\n" * 2


def test_after_and_after_ok(jobctl: Jobctl, tmp_path: Path) -> None:
    first = jobctl.start("-c", f"until [ -e {tmp_path}/go ]; do sleep 0.05; done; exit 3")
    job = each(jobctl, "1\n2\n", "--after", first, "echo")
    assert {r["state"] for r in children(jobctl, job)} == {"NotStarted"}
    assert jobctl.job(job)["reason"] == f"waiting for job {first}"
    never = each(jobctl, "1\n2\n", "--after-ok", first, "echo")
    last = jobctl.start("--after-ok", job, "echo", "last")
    (tmp_path / "go").touch()
    jobctl.run("wait", job, last)
    jobctl.run("wait", never, status=1)
    assert jobctl.out("receive", job, last) == "1\n2\nlast\n"
    reason = f"not begun: job {first} did not complete"
    assert [r["reason"] for r in children(jobctl, never)] == [reason] * 2
    assert jobctl.job(never)["state"] == "Stopped"


def test_stopping_one_that_waits(jobctl: Jobctl) -> None:
    first = jobctl.start("sleep", "600")
    job = each(jobctl, "1\n2\n", "--after", first, "echo")
    jobctl.run("stop", job)
    assert jobctl.job(job)["state"] == "Stopped"
    assert slots(jobctl, job) == []
    jobctl.run("stop", first)


def test_on_finish(jobctl: Jobctl, tmp_path: Path) -> None:
    text = f"echo $JOBCTL_ID $JOBCTL_STATE >>{tmp_path}/said"
    job = each(jobctl, "0\n1\n2\n", "-t", "3", "--on-finish", text, "sh", "-c", "exit {}")
    jobctl.run("wait", job, status=1)
    wait_until((tmp_path / "said").exists)
    wait_until(lambda: not slots(jobctl, job))  # no other can say it
    assert (tmp_path / "said").read_text() == f"{job} Failed\n"


def test_with_parent(jobctl: Jobctl) -> None:
    text = "jobctl start -q --with-parent --foreach - -t 2 -c 'sleep 600'; sleep 0.5"
    words, items = ["sh", "-c", text], b"a\nb\nc\n"
    result = subprocess.run(words, env=jobctl.env, input=items, capture_output=True)
    job = result.stdout.decode().strip()
    jobctl.run("wait", job, status=1)
    reasons = {record["reason"] for record in children(jobctl, job)}
    assert reasons == {"stopped: the process that started it ended"}


def test_suspend_and_go_on(jobctl: Jobctl) -> None:
    job = each(jobctl, "0.5\n60\n", "-t", "2", "sleep")
    wait_until(lambda: jobctl.job(f"{job}.2")["state"] == "Running")
    jobctl.run("stop", "--signal", "STOP", f"{job}.2")
    wait_until(lambda: jobctl.job(f"{job}.2")["state"] == "Suspended")
    wait_until(lambda: jobctl.job(f"{job}.1")["state"] == "Completed")
    assert jobctl.job(job)["state"] == "Suspended"
    jobctl.run("stop", "--signal", "CONT", job)
    wait_until(lambda: jobctl.job(job)["state"] == "Running")
    jobctl.run("stop", "--signal", "USR1", job)
    jobctl.run("wait", job, status=1)
    assert jobctl.job(f"{job}.2")["reason"] == "stopped by user: signal USR1"


def test_stopping_one_child(jobctl: Jobctl) -> None:
    job = each(jobctl, "1\n2\n3\n", "-t", "1", "-c", "sleep 600 & echo {}; [ {} = 2 ] || wait")
    wait_until(lambda: jobctl.job(f"{job}.1")["state"] == "Running")
    jobctl.run("stop", "--reason", "not this", f"{job}.3")
    record = jobctl.job(f"{job}.3")
    assert (record["state"], record["reason"]) == ("Stopped", "stopped by user: not this")
    jobctl.run("stop", f"{job}.1")
    assert jobctl.job(f"{job}.1")["state"] == "Stopped"
    jobctl.run("wait", job, status=1)
    assert [r["state"] for r in children(jobctl, job)] == ["Stopped", "Completed", "Stopped"]
    assert jobctl.out("receive", job) == "1\n2\n"
    cookie = jobctl.job(f"{job}.2")["instance_id"]
    assert bearing(cookie)
    jobctl.run("stop", job)  # what it left running
    assert not bearing(cookie)


def test_removing(jobctl: Jobctl) -> None:
    job = each(jobctl, "1\n2\n", "sleep", "600")
    assert "is a part of job" in jobctl.refused(4, "remove", f"{job}.1")
    assert "is Running" in jobctl.refused(4, "remove", job)
    cookies = [record["instance_id"] for record in children(jobctl, job)]
    jobctl.run("remove", "--force", job)
    assert not any(bearing(cookie) for cookie in cookies)
    assert not (jobctl.state_dir / "jobs" / job).exists()
    jobctl.refused(3, "get", f"{job}.1")


def test_selecting(jobctl: Jobctl) -> None:
    job = each(jobctl, "0\n3\n0\n", "sh", "-c", "exit {}")
    jobctl.run("wait", job, status=1)
    assert jobctl.out("get", "-q", "--child-state", "Failed") == f"{job}\n{job}.2\n"
    assert jobctl.out("get", "-q", f"{job}.2", f"{job}.3") == f"{job}.2\n{job}.3\n"
    assert "no job 1.4" in jobctl.refused(3, "get", f"{job}.4")
    assert "no job 1.0" in jobctl.refused(3, "get", f"{job}.0")
    assert jobctl.out("get", "-q", "--state", "Failed") == f"{job}\n"


# --- output ---


def test_receiving(jobctl: Jobctl) -> None:
    job = each(jobctl, "1\n2\n3\n", "-t", "1", "-c", "echo {}; echo {} >&2; exit $(({} - 1))")
    jobctl.run("wait", job, status=1)
    assert jobctl.job(f"{job}.2")["has_more_data"]
    result = jobctl.run("receive", f"{job}.2")
    told = "jobctl: job 1.2 failed: exit status 1"
    assert (result.stdout, result.stderr.decode().splitlines()) == (b"2\n", ["2", told])
    assert not jobctl.job(f"{job}.2")["has_more_data"]
    assert jobctl.job(job)["has_more_data"]
    assert jobctl.out("receive", "-k", job) == "1\n3\n"
    assert jobctl.out("receive", "--tag", job) == "1.1 localhost: 1\n1.3 localhost: 3\n"
    assert jobctl.out("receive", job) == ""
    assert not jobctl.job(job)["has_more_data"]
    assert jobctl.out("receive", "--again", job) == "1\n2\n3\n"
    assert jobctl.out("receive", "--no-recurse", "--again", job) == ""


@pytest.mark.long
def test_a_reader_that_leaves(jobctl: Jobctl) -> None:
    job = each(jobctl, "\n".join(map(str, range(20))), "-t", "4", "seq", "{}000", "{}999")
    jobctl.run("wait", job)
    whole = jobctl.out("receive", "-k", job)
    got = b""
    for _ in range(50):
        with jobctl.popen("receive", job, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as p:
            assert p.stdout
            piece = os.read(p.stdout.fileno(), 3000)
            p.stdout.close()
            got += piece
            p.wait()
        if not piece:
            break
    assert got.decode() == whole[: len(got)]
    assert got.decode() + jobctl.out("receive", job) == whole


def test_several_receivers_share_the_output(jobctl: Jobctl) -> None:
    job = each(
        jobctl, "\n".join(map(str, range(40))), "-t", "4", "-c", "seq {}000 {}499; sleep 0.05"
    )
    readers = [
        jobctl.popen("receive", "--wait", job, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        for _ in range(3)
    ]
    outputs = [reader.communicate()[0].decode() for reader in readers]
    lines = sorted("".join(outputs).split())
    expected = sorted(str(n) for item in range(40) for n in range(item * 1000, item * 1000 + 500))
    assert lines == expected


def test_following(jobctl: Jobctl) -> None:
    job = each(jobctl, "1\n2\n3\n", "-t", "2", "-c", "echo {}; sleep 0.3; echo {}; exit {}")
    result = jobctl.run("receive", "--wait", job, status=1)
    assert sorted(result.stdout.split()) == [b"1", b"1", b"2", b"2", b"3", b"3"]
    assert len(result.stderr.splitlines()) == 3
    events = each(jobctl, "1\n2\n", "-w", "-c", "echo {}")
    assert sorted(events.split()) == ["1", "2"]


def test_json_of_bytes_that_are_no_text(jobctl: Jobctl, tmp_path: Path) -> None:
    item, folder = b"it\xe9m\xff", os.fsencode(tmp_path) + b"/d\xfc"
    os.mkdir(folder)
    jobctl.run("start", "-C", folder, "--foreach", "-", b"no\xf6", input=item + b"\n", status=1)
    jobctl.run("wait", "1", status=1)
    for form in ("json", "jsonl"):
        text = jobctl.run("get", "--children", "-o", form).stdout.decode()  # strictly UTF-8
        records = json.loads(text) if form == "json" else list(map(json.loads, text.splitlines()))
        child = records[1]
        assert os.fsencode(child["item"]) == item
        assert os.fsencode(child["cwd"]) == folder
        assert list(map(os.fsencode, child["argv"])) == [b"no\xf6", item]
        assert os.fsencode(child["reason"]) == b"command not found: no\xf6"


def test_gather_and_output_dir(jobctl: Jobctl, tmp_path: Path) -> None:
    job = each(jobctl, "1\n2\n3\n", "-c", "echo same; [ {} != 3 ]")
    text = jobctl.out("receive", "--gather", "-k", job, status=1)
    assert text.count("same\n") == 2
    assert "(2)" in text
    assert f"{job}.[1-2]" in text
    jobctl.run("receive", "--output-dir", str(tmp_path), job)
    assert (tmp_path / f"{job}.2.stdout").read_text() == "same\n"
    assert len(list(tmp_path.glob("*.stdout"))) == 3


def test_progress(jobctl: Jobctl) -> None:
    job = each(jobctl, "1\n2\n", "-c", "echo 42 half >$JOBCTL_PROGRESS; sleep 600")
    record = wait_until(lambda: jobctl.job(f"{job}.1")["progress"])
    assert record == {"percent": 42.0, "message": "half"}
    jobctl.run("stop", job)


# --- again ---


def test_retry_failed(jobctl: Jobctl, tmp_path: Path) -> None:
    text = "echo {}; [ -e x{} ]"
    where = ("-C", str(tmp_path))
    (tmp_path / "x1").touch()
    job = each(jobctl, b"1\n2 '\"\n3\n", "-t", "1", "-n", "many", *where, "-c", text)
    jobctl.run("wait", job, status=1)
    (tmp_path / "x3").touch()
    again = jobctl.out("start", "-q", "--retry-failed", job).strip()
    jobctl.run("wait", again, status=1)
    assert jobctl.job(again)["name"] == "many"
    assert [(r["item"], r["state"]) for r in children(jobctl, again)] == [
        ("2 '\"", "Failed"),
        ("3", "Completed"),
    ]
    assert jobctl.out("receive", again) == "2 '\"\n3\n"
    more = jobctl.out("start", "-q", "--retry-failed", again).strip()
    jobctl.run("wait", more, status=1)
    assert [r["item"] for r in children(jobctl, more)] == ["2 '\""]
    done = each(jobctl, "1\n", "true")
    jobctl.run("wait", done)
    assert "nothing of job" in jobctl.refused(4, "start", "--retry-failed", done)
    assert "--foreach" in jobctl.refused(
        2, "start", "--retry-failed", job, "--foreach", "/dev/null"
    )


# --- what is killed ---


@pytest.mark.long
def test_slots_that_are_killed(jobctl: Jobctl, tmp_path: Path) -> None:
    """However often, each item runs once, and what became of it is known or lost."""
    count = 300
    text = "echo {} >>ran; sleep 0.02; exit $(({} % 7))"
    job = each(
        jobctl, "\n".join(map(str, range(1, count + 1))), "-t", "4", "-C", str(tmp_path), "-c", text
    )
    rng = random.Random(1)
    for _ in range(10):
        time.sleep(0.1)
        for pid in rng.sample(living := slots(jobctl, job), min(2, len(living))):
            os.kill(pid, signal.SIGKILL)
        if rng.random() < 0.5:
            jobctl.run("get", job)
    jobctl.run("wait", job, status=1)
    ran = sorted(map(int, (tmp_path / "ran").read_text().split()))
    records = children(jobctl, job)
    assert ran == sorted(set(ran))
    for record in records:
        code = int(record["item"]) % 7
        if record["reason"] == "lost: runner was killed":
            assert record["state"] == "Failed"
            continue
        assert record["exit_code"] == code
        assert int(record["item"]) in ran
    lost = sum(record["reason"].startswith("lost") for record in records)
    assert lost <= 20
    assert len(ran) >= count - lost
    assert slots(jobctl, job) == []


def test_all_slots_killed_go_on(jobctl: Jobctl, tmp_path: Path) -> None:
    text = f"echo {{}}; until [ -e {tmp_path}/go ]; do sleep 0.05; done; echo {{}}"
    job = each(jobctl, "1\n2\n3\n4\n", "-t", "2", "-c", text)
    wait_until(lambda: sum(r["state"] == "Running" for r in children(jobctl, job)) == 2)
    for pid in slots(jobctl, job):
        os.kill(pid, signal.SIGKILL)
    (tmp_path / "go").touch()
    waiting = jobctl.popen("wait", job, stdout=subprocess.DEVNULL)
    assert waiting.wait(60) == 1
    states = [(r["state"], r["reason"]) for r in children(jobctl, job)]
    assert states == [("Failed", "lost: runner was killed")] * 2 + [("Completed", "")] * 2
    assert jobctl.out("receive", job) == "".join(f"{n}\n{n}\n" for n in range(1, 5))


def test_killed_while_somebody_waits(jobctl: Jobctl, tmp_path: Path) -> None:
    text = f"until [ -e {tmp_path}/go ]; do sleep 0.05; done"
    job = each(jobctl, "1\n2\n3\n", "-t", "1", "-c", text)
    waiting = jobctl.popen("wait", job, stdout=subprocess.DEVNULL)
    at_rest(waiting)
    for pid in slots(jobctl, job):
        os.kill(pid, signal.SIGKILL)
    (tmp_path / "go").touch()
    assert waiting.wait(60) == 1
    assert [r["state"] for r in children(jobctl, job)][1:] == ["Completed"] * 2


def test_a_reboot(jobctl: Jobctl) -> None:
    job = each(jobctl, "1\n2\n3\n", "-t", "1", "-c", "[ {} = 1 ] || exec sleep 600")
    wait_until(lambda: jobctl.job(f"{job}.2")["state"] == "Running")
    command = jobctl.job(f"{job}.2")["pid"]
    for pid in slots(jobctl, job):
        os.kill(pid, signal.SIGKILL)
    os.kill(command, signal.SIGKILL)
    for file in (jobctl.state_dir / f"jobs/{job}/slots").glob("*/self"):
        words = file.read_text().split()
        file.write_text(f"{words[0]} {words[1]} another-boot {words[3]}\n")
    jobctl.run("wait", job, status=1)
    reasons = [(r["state"], r["reason"]) for r in children(jobctl, job)]
    lost = ("Failed", "lost: host rebooted")
    assert reasons == [("Completed", ""), lost, lost]
    assert jobctl.job(job)["reason"] == "lost: host rebooted"


@pytest.mark.long
def test_start_killed_at_any_time(jobctl: Jobctl, tmp_path: Path) -> None:
    """There is no job, or a whole one."""
    file = tmp_path / "items"
    file.write_text("\n".join(map(str, range(500))))
    first = jobctl.start(*sleeper().split())
    words = ("start", "--foreach", str(file), "--after", first, "-t", "2", "true")
    rng = random.Random(2)
    for _ in range(20):
        process = jobctl.popen(*words, stdout=subprocess.DEVNULL)
        time.sleep(rng.uniform(0, 0.05))
        process.kill()
        process.wait()
    jobctl.run(*words)
    *jobs, last = jobctl.out("get", "-q").split()[1:]
    for job in jobs:
        assert len(children(jobctl, job)) == 500
    jobctl.run("stop", *jobs, first)
    jobctl.run("wait", last)
    assert {record["state"] for record in children(jobctl, last)} == {"Completed"}


def kill_the_first_slot(jobctl: Jobctl, job: str) -> None:
    """Kill the slot that runs the first item, of two; its command goes on."""
    wait_until(lambda: len(slots(jobctl, job)) == 2)
    first = jobctl.job(f"{job}.1")["pid"]
    for slot in slots(jobctl, job):
        if str(first) in Path(f"/proc/{slot}/task/{slot}/children").read_text().split():
            os.kill(slot, signal.SIGKILL)
            return
    pytest.fail(f"no slot runs {first}")


def test_one_slot_killed_is_found_out_at_once(jobctl: Jobctl, tmp_path: Path) -> None:
    text = "until [ -e {} ]; do sleep 0.1; done"
    job = each(jobctl, f"{tmp_path}/go\n{tmp_path}/never\n", "-t", "2", "-c", text)
    kill_the_first_slot(jobctl, job)
    assert jobctl.job(f"{job}.1")["state"] == "Running"  # its command goes on
    (tmp_path / "go").touch()
    jobctl.run("wait", f"{job}.1", status=1)
    assert jobctl.job(f"{job}.1")["reason"] == "lost: runner was killed"
    assert jobctl.job(job)["state"] == "Running"


def test_stopping_one_whose_slot_was_killed(jobctl: Jobctl) -> None:
    job = each(jobctl, "1\n2\n", "-t", "2", "-c", "exec sleep 600")
    kill_the_first_slot(jobctl, job)
    jobctl.run("stop", f"{job}.1")
    assert jobctl.job(f"{job}.1")["reason"] == "stopped by user"
    jobctl.run("stop", job)
    assert jobctl.job(job)["state"] == "Stopped"


def test_to_stop_begins_nothing(jobctl: Jobctl, tmp_path: Path) -> None:
    job = each(
        jobctl, "1\n2\n3\n4\n", "-t", "2", "-c", f"echo {{}} >>{tmp_path}/ran; exec sleep 600"
    )
    wait_until(lambda: len(slots(jobctl, job)) == 2)
    wait_until(lambda: len((tmp_path / "ran").read_text().split()) == 2)
    for pid in slots(jobctl, job):
        os.kill(pid, signal.SIGKILL)
    jobctl.run("stop", job)
    assert sorted((tmp_path / "ran").read_text().split()) == ["1", "2"]
    records = children(jobctl, job)
    assert {record["state"] for record in records} == {"Stopped"}
    assert all(record["ended_at"] for record in records)


def test_stopping_with_a_slot_that_is_suspended(jobctl: Jobctl) -> None:
    job = each(jobctl, "1\n2\n", "-t", "1", "-c", "sleep 600")
    wait_until(lambda: len(slots(jobctl, job)) == 1)
    os.kill(slots(jobctl, job)[0], signal.SIGSTOP)
    jobctl.run("stop", job)
    assert jobctl.job(job)["state"] == "Stopped"


def test_records_of_wait_are_whole(jobctl: Jobctl) -> None:
    for _ in range(8):
        job = each(jobctl, "1\n2\n3\n", "-t", "2", "-c", "sleep 0.1; exit 3")
        (record,) = json.loads(jobctl.out("wait", "-o", "json", job, status=1))
        assert (record["state"], record["reason"]) == ("Failed", "exit status 3")
        assert record["ended_at"]
        assert not record["has_more_data"]


def test_a_child_that_is_stopped_begins_nothing(jobctl: Jobctl) -> None:
    first = jobctl.start("sleep", "600")
    job = each(jobctl, "1\n2\n3\n", "--after", first, "true")
    jobctl.run("stop", f"{job}.2")
    whole, *records = jobctl.jobs("--children", job)
    waiting = ("NotStarted", f"waiting for job {first}")
    assert (whole["state"], whole["reason"]) == waiting
    assert [(r["state"], r["reason"]) for r in (records[0], records[2])] == [waiting] * 2
    jobctl.run("stop", job, first)


def test_a_missing_command_is_told(jobctl: Jobctl) -> None:
    result = jobctl.run("start", "-q", "--foreach", "-", "nosuch", input=b"1\n2\n", status=1)
    assert result.stderr == b"jobctl: job 1 failed: command not found: nosuch\n"
    assert result.stdout == b"1\n"


def test_two_terminals(jobctl: Jobctl, tmp_path: Path) -> None:
    text = f"[ {{}} -lt 27 ] || until [ -e {tmp_path}/go ]; do sleep 0.05; done"
    job = each(jobctl, "\n".join(map(str, range(30))), "-t", "3", "-c", text)
    commands = [jobctl.popen("wait", job, stdout=subprocess.DEVNULL) for _ in range(3)]
    interrupted = jobctl.popen("wait", job, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    at_rest(interrupted)
    interrupted.send_signal(signal.SIGINT)
    assert interrupted.wait() == 130
    (tmp_path / "go").touch()
    assert [command.wait(60) for command in commands] == [0, 0, 0]


def test_nothing_is_left_behind(jobctl: Jobctl) -> None:
    job = each(jobctl, "\n".join(map(str, range(200))), "-t", "8", "true")
    jobctl.run("wait", job)
    wait_until(lambda: not slots(jobctl, job))
    folder = jobctl.state_dir / f"jobs/{job}"
    assert sorted(path.name for path in folder.iterdir()) == [
        "children",
        "concluded",
        "exit",
        "items",
        "lock",
        "received",
        "slots",
        "spec",
    ]
    assert not bearing(jobctl.job(job)["instance_id"][:-12])


def test_the_index_counts(jobctl: Jobctl) -> None:
    job = each(jobctl, "0\n1\n0\n", "sh", "-c", "exit {}")
    jobctl.run("wait", job, status=1)
    assert "2 completed, 1 failed of 3: exit status 1" in jobctl.out("get", "-o", "wide", job)
    (jobctl.state_dir / "index.db").unlink()
    assert "2 completed, 1 failed of 3" in jobctl.out("get", "-o", "wide", job)
    assert json.loads(jobctl.out("get", "-o", "jsonl", job))["children"] == ["1.1", "1.2", "1.3"]


def test_who_followed_the_last_item_finds_the_whole_finished(jobctl: Jobctl) -> None:
    """The slot lives and has yet to write that down: it is as if it were slow."""
    job = jobctl.done("--foreach", "-", "echo", input=b"a\n")
    folder = jobctl.folder(job)
    end = (folder / "exit").read_bytes()
    for file in ("exit", "concluded", "slots/1/done"):
        (folder / file).unlink()
    ends = Ends(Jobs(str(jobctl.state_dir)), [f"{job}.1"])
    with (folder / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert ends.wait(0.1) == []
        (folder / "exit").write_bytes(end)
    assert [job_id for job_id, _ in ends.wait(0.1)] == [f"{job}.1"]
    assert not ends.unfinished
