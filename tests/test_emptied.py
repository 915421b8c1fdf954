"""A job that empties, deletes or replaces its own output: what there is now is received."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Jobctl, first_of, rows_of, wait_until
from far import Far
from test_hostile import WITHOUT_PRIVILEGE, call

from jobctl import emptying, records
from jobctl.agent.commands import Channel
from jobctl.agent.content import Content
from jobctl.model import Marks
from jobctl.ops.lines import Stretch, TaggedLines

WORD = "has emptied its own"


def received(jobctl: Jobctl, *words: str) -> tuple[str, str]:
    result = jobctl.run("receive", *words)
    return result.stdout.decode(), result.stderr.decode()


def gated(tmp_path: Path, *steps: str) -> str:
    """Return shell text that waits for the file N before step N."""
    waits = (f"until [ -e {tmp_path}/{n} ]; do sleep 0.02; done" for n in range(1, len(steps)))
    return "; ".join(part for pair in zip(steps, [*waits, ":"], strict=True) for part in pair)


TELLTALE = {
    "echo one; echo two >/dev/stdout; echo three": ">/dev/stdout",
    "a > /dev/stderr": "> /dev/stderr",
    "a 1>/dev/fd/1": "1>/dev/fd/1",
    "(a >|/dev/stdout)": ">|/dev/stdout",
    "if a; then b &>/proc/self/fd/2; fi": "&>/proc/self/fd/2",
    "a | tee /dev/stderr | b": "tee /dev/stderr",
    "/usr/bin/tee -i x \\\n'/dev/stderr'": "tee -i x  '/dev/stderr'",
    "a >/dev/stdout || b": ">/dev/stdout",
    "dd if=x of=/dev/stdout": "dd if=x of=/dev/stdout",
    "cp x /dev/stdout; sort -o /dev/stdout y": "cp x /dev/stdout",
    "curl -so /dev/stdout y": "curl -so /dev/stdout y",
    "a >>/dev/stdout 2>> /dev/stderr": "",
    "a >/dev/stdout2 >/dev/stdouts >/dev/fd/12 >/x/dev/stdout": "",
    "a | tee -a /dev/stderr; a | tee -ia /dev/stderr; a | tee --append /dev/stderr": "",
    "a >/dev/stdout 2>&1 | b; tee /dev/stdout | b": "",
    "committee /dev/stderr; tee x; cat </dev/fd/1; a <>/dev/stdout": "",
    "awk '{ print > \"/dev/stderr\" }'": "",
    "dd of=/dev/stdout conv=notrunc; dd if=/dev/fd/1; cp /dev/fd/1 x; curl /dev/fd/1": "",
}


def test_what_empties_the_output_is_seen_before() -> None:
    assert {text: emptying.in_text(text) for text in TELLTALE} == TELLTALE
    assert emptying.in_words(["/bin/tee", "a b", "/dev/stderr"]) == "/bin/tee 'a b' /dev/stderr"
    assert emptying.in_words(["sh", "-c", "a >/dev/stdout"]) == ">/dev/stdout"
    for words in (
        [],
        ["echo", ">/dev/stdout"],
        ["tee", "-a", "/dev/stderr"],
        ["tee", "/dev/fd/1x"],
    ):
        assert not emptying.in_words(words), words
    assert emptying.advice("tee /dev/fd/2") == (
        "'tee /dev/fd/2' empties what the job has written so far;"
        " write >&2 or >>/dev/stderr instead (tee -a)"
    )


def test_who_starts_what_empties_its_output_is_warned(jobctl: Jobctl, tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("#!/bin/sh\necho one\necho two >/dev/stderr\n")
    text, told = (
        "echo >/dev/stderr",
        "jobctl: '>/dev/stderr' empties what the job has written so far;",
    )
    for words, given in (
        (["-c", text], None),
        (["--init", text, "true"], None),
        (["-f", str(script)], None),
        (["-f", "-"], script.read_bytes()),
        (["--foreach", "-", "-c", text], b"a\nb\n"),
        (["-H", "nohost.invalid", "-c", text], None),
    ):
        result = jobctl.run("start", *words, input=given)
        assert result.stderr.decode() == f"{told} write >&2 or >>/dev/stderr instead (tee -a)\n"
    assert jobctl.run("start", "-w", "-q", "tee", "/dev/stderr").stderr.startswith(
        b"jobctl: 'tee /d"
    )
    assert jobctl.run("start", "-c", "echo >/dev/null 2>>/dev/stderr").stderr == b""


def test_a_script_that_is_the_command_is_looked_at(jobctl: Jobctl, tmp_path: Path) -> None:
    folder = tmp_path / "bin"
    folder.mkdir()
    script, other = folder / "w8", folder / "w9"
    script.write_text("#!/bin/sh\necho one\necho two >/dev/stderr\n")
    script.chmod(0o700)
    other.write_text("echo two >/dev/stderr\n")
    found = ("-e", f"PATH={folder}:/usr/bin:/bin")
    for words in (
        [str(script)],
        ["-C", str(folder), "./w8", "x"],
        [*found, "w8"],
        ["--foreach", "/etc/hostname", str(script)],
        ["sh", str(other)],
        ["-C", str(folder), "/bin/sh", "w9", "x"],
    ):
        said = jobctl.run("start", "-q", *words).stderr
        assert said.startswith(b"jobctl: '>/dev/stderr' empties what"), words
    (folder / "ls").write_bytes(script.read_bytes())
    other.chmod(0o700)
    (folder / "push").write_bytes(Path("/bin/echo").read_bytes())
    (folder / "push").chmod(0o700)
    os.mkfifo(folder / "pipe", 0o700)
    for words in (
        [str(other)],
        ["-e", f"PATH=/usr/bin:/bin:{folder}", "ls"],
        ["echo", str(script)],
        [str(folder / "push"), str(script)],
        ["sh", "-c", ":", str(other)],
        ["sh", str(folder / "pipe")],
        ["sh"],
        ["-H", "nohost.invalid", str(script)],
    ):
        assert jobctl.run("start", "-q", *words).stderr == b"", words


@pytest.mark.parametrize("now", ["", "x\n", "two\n", "longer than that was\n"])
def test_whether_a_file_holds_what_was_received(tmp_path: Path, now: str) -> None:
    path = tmp_path / "stdout"
    path.write_text("one\n")
    marks = records.traced(Marks(4, 0, True, (("stdout", 1, 2), ("stderr", 3, 4))), path_of(path))
    assert records.checked(marks, path_of(path)) == marks
    path.write_text("one\nand more\n")
    assert records.checked(marks, path_of(path)) == marks
    path.write_text(now)
    found = records.checked(marks, path_of(path))
    assert found == Marks(0, 0, True, (("stderr", 3, 4),), emptied=("stdout",))
    path.unlink()
    assert records.checked(marks, path_of(path)) == marks
    path.mkdir()
    assert records.checked(marks, path_of(path)) == marks


def path_of(path: Path) -> Callable[[str], str]:
    return lambda stream: str(path if stream == "stdout" else path.with_name("none"))


@pytest.mark.parametrize(
    ("to", "then"),
    [("stdout", "two"), ("stderr", "two"), ("stdout", "a line that is longer"), ("stdout", "x")],
)
def test_what_it_holds_now_is_received(jobctl: Jobctl, tmp_path: Path, to: str, then: str) -> None:
    first = "echo one; echo one >&2"
    job = jobctl.sh(gated(tmp_path, first, f"echo '{then}' >/dev/{to}", "echo three"))
    other = "stderr" if to == "stdout" else "stdout"
    stream = {"stdout": 0, "stderr": 1}
    wait_until(lambda: all((jobctl.folder(job) / name).stat().st_size for name in stream))
    assert received(jobctl, job) == ("one\n", "one\n")
    (tmp_path / "1").touch()
    wait_until(lambda: then in (jobctl.folder(job) / to).read_text())
    found = received(jobctl, job)
    assert f"{then}\n" in found[stream[to]]
    assert found[1].count(f"jobctl: job {job} {WORD} {to}") == 1
    (tmp_path / "2").touch()
    jobctl.run("wait", job)
    assert jobctl.job(job)["has_more_data"] is True
    assert received(jobctl, job) == ("three\n", "")
    assert jobctl.job(job)["has_more_data"] is False
    assert other not in found[1]


def test_without_a_mark_that_moves(jobctl: Jobctl, tmp_path: Path) -> None:
    """The marks of one process notice it as well, once, and so does what looks at the end only."""
    job = jobctl.sh(gated(tmp_path, "echo one", "echo two >/dev/stdout"), "-q")
    with jobctl.popen("receive", "--keep", "--wait", job, stdout=-1, stderr=-1) as follower:
        assert follower.stdout
        assert follower.stderr
        assert follower.stdout.readline() == b"one\n"
        (tmp_path / "1").touch()
        assert follower.stdout.read() == b"two\n"
        assert follower.stderr.read().count(WORD.encode()) == 1
    assert received(jobctl, "--again", job) == ("two\n", "")
    assert received(jobctl, job) == ("two\n", "")
    assert jobctl.job(job)["has_more_data"] is False


@pytest.mark.parametrize("options", [(), ("--merge",), ("--foreach", "-")])
def test_while_it_is_followed(jobctl: Jobctl, tmp_path: Path, options: tuple[str, ...]) -> None:
    to = "stderr" if "--merge" in options else "stdout"
    text = gated(tmp_path, "echo one", f"echo two >/dev/{to}; echo three")
    with jobctl.popen(
        "start", "-w", *options, "-c", text, stdin=-1, stdout=-1, stderr=-1
    ) as starter:
        assert starter.stdin
        assert starter.stdout
        assert starter.stderr
        starter.stdin.write(b"item\n")
        starter.stdin.close()
        assert starter.stdout.readline() == b"one\n"
        (tmp_path / "1").touch()
        assert starter.stdout.read() == b"two\nthree\n"
        assert starter.stderr.read().count(WORD.encode()) == 1
    assert not any(job["has_more_data"] for job in jobctl.jobs("--children"))


@pytest.mark.parametrize(
    "instead", ["rm stdout", "rm stdout; mkdir stdout", "rm stdout; mkfifo stdout", "mv stdout x"]
)
def test_no_file_any_more(jobctl: Jobctl, tmp_path: Path, instead: str) -> None:
    """It is as if nothing more came; the other stream is whole."""
    gone = f'cd "${{JOBCTL_PROGRESS%/*}}"; {instead}; echo lost; echo err >&2'
    job = jobctl.sh(gated(tmp_path, "echo one", gone), "--retries", "1")
    wait_until(lambda: (jobctl.folder(job) / "stdout").stat().st_size)
    assert received(jobctl, job) == ("one\n", "")
    (tmp_path / "1").touch()
    jobctl.run("wait", job)
    assert received(jobctl, job) == ("", "err\n")
    record = json.loads(jobctl.out("get", "-o", "json", job))[0]
    assert (record["state"], record["has_more_data"]) == ("Completed", False)


@pytest.mark.long
def test_an_item_without_its_files_runs_once(either: Far, tmp_path: Path) -> None:
    """No other slot takes it, and its other stream is whole."""
    ran = tmp_path / "ran"
    texts = (
        f"until [ $(wc -l <{ran}) = 6 ]; do sleep 0.02; done",
        "rm $n.stdout",
        "rm $n.stdout; mkdir $n.stdout",
        "rm $n.stdout; mkfifo $n.stdout",
        "mv $n.stdout x",
        "rm -f $n.*",
    )
    slots = ("--per-host" if either.remote else "-t", "2")
    text = 'cd "${JOBCTL_PROGRESS%/*}"; n={#}; eval {}; echo lost; echo err $n >&2'
    data = "\n".join(texts).encode()
    job = either.start("--foreach", "-", *slots, "-c", f"echo {{#}} >>{ran}; {text}", input=data)
    assert either.outcome(job) == ("Completed", "", None)
    assert sorted(ran.read_text()) == sorted("123456\n\n\n\n\n\n")
    found, errors = received(either, job)
    assert found == "lost\n"
    assert sorted(errors.splitlines()) == [f"err {n}" for n in range(1, 6)]
    assert either.job(job)["has_more_data"] is False


def test_another_attempt_has_plain_files_again(jobctl: Jobctl) -> None:
    """What the first one put in their place is no obstacle, nor does anything hang."""
    text = (
        'cd "${JOBCTL_PROGRESS%/*}"; echo "again $(ls -d second)"; [ ! -e second ] || exit 0;'
        " mkdir second; for name in stdout stderr log;"
        " do rm -f $name; mkfifo $name; done; exit 3"
    )
    job = jobctl.sh(text, "--retries", "1")
    jobctl.run("wait", job, "--timeout", "100")
    assert jobctl.job(job)["state"] == "Completed"
    assert received(jobctl, job) == ("again second\n", "")


@pytest.mark.parametrize(
    ("now", "end"), [("a\nlonger\n", 2), ("a\n", 2), ("", None), ("half", None)]
)
def test_where_a_line_ends_that_was_begun_before(tmp_path: Path, now: str, end: int | None) -> None:
    """What was looked through of a line is forgotten with it: two lines never share a tag."""
    path, lines = tmp_path / "stdout", TaggedLines(lambda job: b"")
    path.write_text("half")
    with path.open("rb") as file:
        for text, found in (("half", None), (now, end), (f"{now}and\n", end or len(now) + 4)):
            path.write_text(text)
            here = Stretch("1", "stdout", 0, len(text), False)
            assert lines._end_of_line(file.fileno(), here) == found


def test_unreadable(jobctl: Jobctl, tmp_path: Path) -> None:
    """The other stream is delivered, and which one is not is said."""
    job = jobctl.done("-c", 'echo x; echo y >&2; chmod 0 "${JOBCTL_PROGRESS%/*}/stdout"')
    result = call(jobctl, "receive", job, prefix=WITHOUT_PRIVILEGE)
    assert result.stderr.decode().splitlines()[0] == "y"
    assert f"job {job}: cannot read its stdout: Permission denied" in result.stderr.decode()


# --- on hosts ---


class Wire:
    """What a host sends, in pieces of some size."""

    def __init__(self, content: bytes, size: int) -> None:
        self.pieces = [content[at : at + size] for at in range(0, len(content), size)]

    def read(self, size: int) -> bytes:
        return self.pieces.pop(0) if self.pieces else b""


@pytest.mark.parametrize("size", [1, 3, 7, 50, 1000])
def test_a_frame_ends_where_it_ends(size: int) -> None:
    """Whatever its bytes look like, and wherever the mark comes."""
    mark = b"jobctl-short-0123-4567"
    for text, length in (
        (b"", 0),
        (b"abc", 3),
        (b"ab" + mark[:9], 11),
        (mark[:9] + b"\n", 10),
        (mark[:-1], len(mark) - 1),
        (b"ab\n" * 40, 130),
        (b"abc", 4),
        (b"", 1),
        (b"abc" + mark[:5], 10),
        (b"abc", 3 + len(mark)),
        (b"abc", 3 + len(mark) + 1),
    ):
        end = (mark if len(text) < length else b"") + b"\nnext\n"
        channel = Channel(Wire(b"\njobctl-ready 1\n" + text + end, size), None)  # type: ignore[arg-type]
        channel.mark = mark
        content = Content(channel, length, True)
        assert b"".join(iter(content.more, b"")) == text
        assert content.over
        assert channel.line() == b"next\n"


def _holds(path: Path, text: str) -> bool:
    return path.exists() and path.read_text() == text


@pytest.mark.long
@pytest.mark.parametrize(
    ("options", "then"),
    rows_of(
        [
            ((), "two"),
            ((), "x"),
            ((), "z" * 3000),
            (("--merge",), "longer than that was"),
            (("--foreach", "-"), "two"),
            (("--foreach", "-"), "z" * 3000),
        ],
        plain=5,
    ),
)
def test_on_a_host(far: Far, tmp_path: Path, options: tuple[str, ...], then: str) -> None:
    """What had come stays here, and what it holds there now follows, also for the next agent."""
    to = "stderr" if "--merge" in options else "stdout"
    text = gated(tmp_path, f"echo one{then}", f"echo {then} >/dev/{to}", f"echo three{then}")
    job = far.start("-H", "web1", *options, "-c", text, input=b"item\n")
    one = f"{job}.1" if "--foreach" in options else job
    path = far.folder(job) / ("children/1.stdout" if one != job else "stdout")
    whole = f"one{then}\n"
    for step, word in enumerate([then, f"three{then}"], 1):
        wait_until(functools.partial(_holds, path, whole))
        if step == 2:
            far.kill_agent()
        (tmp_path / str(step)).touch()
        whole += f"{word}\n"
    result = far.run("receive", "--wait", one, "--timeout", "100")
    assert result.stdout.decode() == whole
    assert result.stderr.count(WORD.encode()) == 1
    assert far.outcome(job) == ("Completed", "", None if one != job else 0)
    assert far.job(one)["has_more_data"] is False


@pytest.mark.long
def test_it_cannot_be_read_on_a_host(far: Far) -> None:
    """It ends with what there is: here the host takes a file for longer than it can be read."""
    longer = Path("/sys/devices/system/cpu/online")
    if not longer.exists() or longer.stat().st_size <= len(longer.read_text()):
        pytest.skip("there is no such file")
    text = f'cd "${{JOBCTL_PROGRESS%/*}}"; for name in *stdout; do ln -sf {longer} $name; done'
    jobs = [far.on("web1", *words, "-c", text, input=b"a\n") for words in ((), ("--foreach", "-"))]
    beside = far.on("web1", "echo", "beside")
    assert far.outcome(jobs[0])[:2] == ("Completed", "cannot read its stdout on the host")
    assert [far.outcome(job)[:2] for job in (jobs[1], beside)] == [("Completed", "")] * 2
    assert far.output(jobs[0]) == longer.read_text()
    assert far.run("receive", jobs[1]).stdout.decode() == longer.read_text()


@pytest.mark.long
def test_again_and_again_on_a_host(far: Far) -> None:
    """Nobody else waits, and the connection stays."""
    text = (
        "i=0; while [ $i -lt 100 ]; do i=$((i+1));"
        " head -c $((40000 + i * 8600)) /dev/zero | tr '\\0' x; : >/dev/stdout; done; echo end"
    )
    others = [far.on("web1", "-c", "for i in 1 2 3; do echo $i; done") for _ in range(2)]
    job = far.on("web1", "-c", text)
    for each in (*others, job):
        assert far.outcome(each)[0] == "Completed"
    assert far.output(job).endswith("end\n")
    assert set(far.output(job)) <= set("xend\n")
    assert [far.output(other) for other in others] == ["1\n2\n3\n"] * 2
    assert (far.state_dir / "agent.log").read_text().count("broke") == 0


@pytest.mark.long
@pytest.mark.parametrize(
    "instead", first_of("rm {}; mkfifo {}", "rm {}; mkdir {}", "rm {}", "rm {}; ln -s none {}")
)
def test_no_file_any_more_on_a_host(far: Far, instead: str) -> None:
    names = ("stdout", "run", "progress", "exit.new", "stderr")
    jobs = []
    for name in names:
        text = f'echo one; cd "${{JOBCTL_PROGRESS%/*}}"; sleep 0.3; {instead}'.replace("{}", name)
        jobs.append(far.on("web1", "-c", text.replace("{}", name)))
    beside = far.on("web1", "echo", "beside")
    for job in (beside, *jobs):
        assert far.outcome(job)[0] == "Completed", job
    assert far.output(jobs[-1]) == "one\n"
