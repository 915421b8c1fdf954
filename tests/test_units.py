"""The parts without a job: words, records, durations, times, names and read marks."""

from __future__ import annotations

import datetime
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import WEIRD, Jobctl

from jobctl import quoting, records, timing
from jobctl.errors import BadUsage
from jobctl.model import Marks, check_name, printable

AWKWARD = [
    b"",
    b"'",
    b"''",
    b"\\",
    b"\\'",
    b"'\\''",
    b"\n",
    b"a'\n'b='c'\n",
    b"x='y'\n",
    b"$HOME `id` $(id) ${x}",
    b"\xff\xfe\x80",
    b"!#~*?[a]{b,c}",
    b"-n",
    b" \t\r\v\f ",
    WEIRD.encode(),
    b"'" * 1000,
]


def pieces(chance: random.Random, longest: int = 40) -> bytes:
    """Return random bytes, more often than not those that matter to a shell. No NUL."""
    if chance.random() < 0.3:
        return bytes(chance.choices(range(1, 256), k=chance.randrange(longest)))
    return bytes(chance.choices(b"'\\\n=$`\"ab_ ", k=chance.randrange(longest)))


# --- quoting ---------------------------------------------------------------------


def test_words_come_back() -> None:
    chance = random.Random(4)
    assert quoting.split(quoting.join([])) == []
    for _ in range(3000):
        words = [pieces(chance) for _ in range(chance.randrange(6))]
        assert quoting.split(quoting.join(words)) == words
        for word in words:
            assert quoting.unquote(quoting.quote(word)[1:-1]) == word
    assert quoting.split(quoting.join(AWKWARD)) == AWKWARD


def test_records_come_back() -> None:
    chance = random.Random(5)
    keys = ["a", "b_c", "_", "instance_id", "x"]
    for _ in range(3000):
        record = {key: pieces(chance) for key in chance.sample(keys, chance.randrange(5))}
        assert quoting.load(quoting.dump(record)) == record
        more = {key: pieces(chance) for key in chance.sample(keys, 2)}
        assert quoting.load(quoting.dump(record) + quoting.dump(more)) == record | more


def test_cut_short_a_record_lacks_only_its_end() -> None:
    record = {
        f"k_{letter}": value for letter, value in zip("abcdefghijklmnop", AWKWARD, strict=True)
    }
    whole = quoting.dump(record)
    for length in range(0, len(whole), 3):
        for key, value in quoting.load(whole[:length]).items():
            assert record[key] == value, (key, length)


@pytest.mark.parametrize(
    "garbage", [b"a" * 1_000_000, b"'" * 1_000_000, b"a='" * 300_000, b"a='\\''" * 200_000]
)
def test_garbage_takes_no_time(garbage: bytes) -> None:
    began = time.process_time()
    assert quoting.load(garbage) == {}
    quoting.split(garbage)
    assert time.process_time() - began < 2


@pytest.mark.parametrize("shell", [["dash"], ["bash"], ["bash", "--posix"], ["busybox", "sh"]])
def test_a_shell_reads_the_same(tmp_path: Path, shell: list[str]) -> None:
    assert shutil.which(shell[0]), f"{shell[0]} is not installed; tests/run.sh installs it"
    chance = random.Random(6)
    values = AWKWARD + [pieces(chance, 200) for _ in range(300)]
    keys = [f"k_{number // 26}_{number % 26}" for number in range(len(values))]
    letters = [key.translate(str.maketrans("0123456789", "abcdefghij")) for key in keys]
    record = dict(zip(letters, values, strict=True))
    assert len(record) == len(values)
    (tmp_path / "record").write_bytes(quoting.dump(record))
    (tmp_path / "words").write_bytes(quoting.join(values))
    shown = " ".join(f'"${name}"' for name in record)
    script = (
        f'. "$1"\nprintf "%s\\0" {shown}\neval "set -- $(cat "$2"; echo)"\nprintf "%s\\0" "$@"\n'
    )
    (tmp_path / "script").write_text(script)
    command = [*shell, str(tmp_path / "script"), str(tmp_path / "record"), str(tmp_path / "words")]
    result = subprocess.run(command, env={"LC_ALL": "C", "PATH": os.environ["PATH"]}, stdout=-1)
    assert result.stdout.split(b"\0")[:-1] == values * 2


def test_readable_is_what_one_would_type() -> None:
    assert quoting.readable(["make", "-j4", "CFLAGS=-O2", "a/b.c"]) == "make -j4 CFLAGS=-O2 a/b.c"
    assert quoting.readable(["", "a b", "it's", "*", "é"]) == "'' 'a b' 'it'\\''s' '*' 'é'"
    chance = random.Random(7)
    words = [os.fsdecode(pieces(chance)) for _ in range(200)]
    text = os.fsencode(f"printf '%s\\0' {quoting.readable(words)}")
    out = subprocess.run(["sh", "-c", text], env={"LC_ALL": "C"}, stdout=-1).stdout
    assert [os.fsdecode(word) for word in out.split(b"\0")[:-1]] == words


# --- durations and times ------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0),
        ("90", 90),
        ("1.5", 1.5),
        (".5", 0.5),
        ("5.", 5),
        ("90s", 90),
        ("0.01s", 0.01),
        (".5s", 0.5),
        ("5m", 300),
        ("1h30m", 5400),
        ("2d", 172800),
        ("1d2h3m4s", 93784),
        ("1d4s", 86404),
        ("1h0.5s", 3600.5),
        ("90m", 5400),
        ("007", 7),
        ("36500d", 3153600000),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    assert timing.parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        " 5",
        "5 ",
        "5\n",
        "5s\n",
        "-1",
        "+1",
        "1e3",
        "inf",
        "nan",
        "0x10",
        "1_000",
        "5x",
        "s",
        "d",
        ".",
        ".s",
        "5ms",
        "1.5h",
        "30m1h",
        "1h1h",
        "1h 30m",
        "5S",
        "٣",
        "٣s",
        "36501d",
        "9" * 400,
        "9" * 400 + "s",
        "9" * 5000 + "d",
    ],
)
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(BadUsage):
        timing.parse_duration(text)


@pytest.fixture(params=["UTC", "America/St_Johns", "Asia/Kathmandu"])
def _zone(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.setenv("TZ", request.param)
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.usefixtures("_zone")
def test_when() -> None:
    now = datetime.datetime(2026, 1, 31, 12, 0, 30).timestamp()
    utc = datetime.timezone.utc
    eight = datetime.datetime(2026, 1, 31, 8, tzinfo=utc).timestamp()
    assert timing.parse_when("2026-01-31T08:00:00Z", now) == eight
    assert timing.parse_when("2026-01-31T08:00:00z", now) == eight
    assert timing.parse_when("2026-01-31T09:30:00+01:30", now) == eight
    assert timing.parse_when("2026-01-31T08:00:00.250Z", now) == eight + 0.25
    local = datetime.datetime(2026, 1, 31, 8).timestamp()
    assert timing.parse_when("2026-01-31T08:00:00", now) == local
    assert timing.parse_when("08:00", now) == timing.parse_when("8:00", now) == local
    assert timing.parse_when("2h", now) == now - 7200
    assert timing.parse_when("90", now) == now - 90
    assert timing.parse_when("0", now) == now
    assert abs(timing.parse_when("0s") - time.time()) < 5


@pytest.mark.parametrize(
    "text",
    [
        "",
        "24:00",
        "12:60",
        "8",
        "noon",
        "2026-13-01",
        "2026-02-30T00:00:00Z",
        "12:5",
        "-1h",
        "tomorrow",
        "2026-01-31T08:00:00ZZ",
        "٠٨:٠٠",
        "9" * 5000,
        "0000-01-01T00:00:00Z",
    ],
)
def test_what_is_no_time(text: str) -> None:
    if text == "8":
        assert timing.parse_when(text, 100.0) == 92
    else:
        with pytest.raises(BadUsage):
            timing.parse_when(text, 1e9)


def test_rfc3339() -> None:
    assert timing.rfc3339(None) is None
    assert timing.rfc3339(0.0) == "1970-01-01T00:00:00.000Z"
    assert timing.rfc3339(1769846400.9996) == "2026-01-31T08:00:00.999Z"
    assert timing.rfc3339(-0.5) == "1969-12-31T23:59:59.500Z"
    chance = random.Random(8)
    for _ in range(500):
        thousandths = chance.randrange(4_000_000_000_000)
        text = timing.rfc3339(thousandths / 1000)
        assert text is not None
        assert abs(timing.parse_when(text) - thousandths / 1000) < 0.0011
        assert text == text.strip()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, ""),
        (0, "0.0s"),
        (0.04, "0.0s"),
        (59.94, "59.9s"),
        (59.96, "1m0s"),
        (60, "1m0s"),
        (61.9, "1m1s"),
        (3599.9, "59m59s"),
        (3600, "1h0m"),
        (5400, "1h30m"),
        (86399, "23h59m"),
        (86400, "1d0h"),
        (90061, "1d1h"),
        (8640000, "100d0h"),
    ],
)
def test_spelled(seconds: float | None, text: str) -> None:
    assert timing.spell(seconds) == text
    if text:
        timing.parse_duration(text)


# --- names ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "a",
        "nightly build",
        "1a",
        "12.3.4",
        "3-8-1",
        "1.",
        ".1",
        "12,3",
        "é",
        "名前",
        "*",
        "?[a]",
        "a-",
        "a'\"\\b",
        "$(x)",
        "1 2",
        "٣",
        "x" * 255,
        "é" * 127,
        "WEIRD; rm",
        "🙂",
    ],
)
def test_names(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        " ",
        "\t",
        "1",
        "007",
        "12.3",
        "3-8",
        "-",
        "-n",
        "--all",
        "a\n",
        "a\x00b",
        "\x1b[2J",
        "a\x7f",
        "a\x85b",
        "a\u2028b",
        "a\u202eb",
        "a\udcffb",
        "a\ud800",
        "x" * 256,
        "é" * 128,
        "0",
        "0-0",
        "0.0",
        "9" * 5000,
    ],
)
def test_what_is_no_name(name: str) -> None:
    with pytest.raises(BadUsage) as caught:
        check_name(name)
    assert str(caught.value).isprintable()


def test_printable() -> None:
    assert printable("plain é 名 🙂") == "plain é 名 🙂"
    assert printable("a\nb\tc\rd") == "a\\nb\\tc\\rd"
    assert printable("\x1b[31m\x00\x7f\x9b") == "\\x1b[31m\\x00\\x7f\\x9b"
    assert printable("\udcff\u202e\u2028") == "\\xff\\u202e\\u2028"
    everything = "".join(map(chr, range(0x3000))) + "\ud800\udc80\udfff"
    shown = printable(everything)
    assert "\n" not in shown
    assert not set(shown) & {chr(code) for code in (*range(0x20), *range(0x7F, 0xA0))}
    shown.encode()


# --- read marks ------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(30))
def test_marks_neither_lose_nor_double_a_byte(seed: int) -> None:
    """Claim and give back at random, as receivers do; in the end every byte arrived once."""
    chance = random.Random(seed)
    sizes = {"stdout": 0, "stderr": 0}
    arrived = {stream: list[int]() for stream in sizes}
    """How often each byte is with a reader."""
    held: list[tuple[str, int, int]] = []
    lines: dict[str, tuple[str, int, int]] = {}
    """What receivers hold of a line that they have begun, by their names."""
    marks = Marks()
    for _ in range(400):
        stream = chance.choice(["stdout", "stderr"])
        action = chance.random()
        if action < 0.2:
            more = chance.randrange(50)
            sizes[stream] += more
            arrived[stream] += [0] * more
        elif action < 0.65:
            name = chance.choice("abc")
            if chance.random() < 0.2:
                lines.pop(name, None)
                marks = marks.released(name)
            span = marks.next(stream, sizes[stream], set("abc") - {name})
            if name in lines:
                stream, *rest = lines[name]
                span = marks.held_by(name, stream)
                assert span == tuple(rest)
            if span is None:
                theirs = sum(end - start for s, start, end in lines.values() if s == stream)
                assert arrived[stream].count(0) == theirs
                continue
            start, end = span
            assert 0 <= start < end <= sizes[stream]
            count = chance.randint(1, end - start)
            marks = marks.moved(stream, start, count)
            lines.pop(name, None)
            if (begun := start + count) < end and chance.random() < 0.5:
                stop = chance.randint(begun + 1, end)
                if marks.held_by(name, stream):
                    stop = end
                marks = marks.claimed(stream, begun, stop, name)
                lines[name] = stream, begun, stop
            else:
                marks = marks.released(name)
            for offset in range(start, start + count):
                arrived[stream][offset] += 1
            held.append((stream, start, start + count))
        elif held:
            # A reader gives back the end of what it holds, the last piece first.
            index = chance.randrange(len(held))
            stream, start, end = held.pop(index)
            kept = chance.randint(start, end - 1)
            if kept > start:
                held.append((stream, start, kept))
            marks = marks.returned(stream, kept, end)
            for offset in range(kept, end):
                arrived[stream][offset] -= 1
        for counts in arrived.values():
            assert set(counts) <= {0, 1}
    assert records.marks_in(quoting.load(records.dump_marks(marks))) == marks
    for name in "abc":
        marks = marks.released(name)
    for stream, size in sizes.items():
        for _ in range(10_000):
            span = marks.next(stream, size)
            if span is None:
                break
            marks = marks.moved(stream, span[0], span[1] - span[0])
            for offset in range(*span):
                arrived[stream][offset] += 1
        assert marks.next(stream, size) is None
        assert set(arrived[stream]) <= {1}
    assert marks.returned_ranges == ()


def test_marks_of_what_was_not_received_stay() -> None:
    marks = Marks(stdout=10)
    assert marks.returned("stdout", 10, 20) == marks
    assert marks.next("stdout", 10) is None
    assert marks.next("stderr", 3) == (0, 3)
    assert marks._replace(told=True).moved("stderr", 0, 3) == Marks(10, 3, True)


def test_marks_beyond_the_end_ask_for_nothing() -> None:
    marks = Marks(10, 0, False, (("stdout", 3, 1), ("stdout", 50, 60), ("stdout", 4, 8)))
    assert marks.next("stdout", 10) == (4, 8)
    marks = Marks(10, 0, False, (("stdout", 3, 1), ("stdout", 50, 60)))
    assert marks.next("stdout", 10) is None


def test_faults_are_kept_in_one_log(jobctl: Jobctl) -> None:
    """It does not grow for ever."""
    text = "from jobctl.cli import main; main._bug(ValueError('odd ' + 'x' * 700_000))"
    jobctl.done("true")
    for _ in range(4):
        words = [sys.executable, "-c", text]
        done = subprocess.run(words, env=jobctl.env, capture_output=True, text=True)
        assert f"; please report it with {jobctl.state_dir}/faults.log\n" in done.stderr
    kept = (jobctl.state_dir / "faults.log").read_text()
    assert "ValueError: odd" in kept
    assert len(kept) < 2_000_000
