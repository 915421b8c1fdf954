"""The frames of a host: their grammar and bounds, and that serve.sh keeps to them."""

from __future__ import annotations

import re
from pathlib import Path

import paramiko
import pytest

import jobctl
from jobctl.agent import frames
from jobctl.agent.mirror import Pace
from jobctl.transport import sshwire
from jobctl.transport.base import Denied, Lost

SERVE = (Path(jobctl.__file__).parent / "serve.sh").read_text()


@pytest.mark.parametrize(
    ("line", "length"),
    [
        (b"out 1 0 33554432\n", 33554432),
        (b"emptied 1 out\n", None),
        (b"emptied 1 7 err\n", None),
        (b"run 1 0\n", 0),
        (b"state 1 R\n", None),
        (b"gone 1\n", None),
        (b"gone 1 slots\n", None),
        (b"item 3 17 err 999 1048576\n", 1048576),
        (b"journal 3 1 0 1000000\n", 1000000),
        (b"job guest/a-b R 0 0 10 20 0 0 30\n", 30),
    ],
)
def test_frames(line: bytes, length: int | None) -> None:
    assert frames.parse(line) == (line.split(), length)


@pytest.mark.parametrize(
    "line",
    [
        b"\n",
        b"out 1 0\n",
        b"out 1 0 x\n",
        b"out  1 0 3\n",
        b"out 1 -1 3\n",
        b"out 1 0 9999999999999999999\n",
        b"emptied 1 in\n",
        b"item 1 out 0 3\n",
        b"state 1\n",
        b"state 1 \n",
        b"job guest/x R 0 0 3\n",
        b"gone 1 ../x\n",
        "run \u0661 3\n".encode(),
        b"\x1b]0;x\a 1 2\n",
    ],
)
def test_what_makes_no_sense(line: bytes) -> None:
    with pytest.raises(Lost, match="makes no sense") as raised:
        frames.parse(line)
    assert str(raised.value).isprintable()


@pytest.mark.parametrize("word", [w for w, kind in frames.KINDS.items() if kind.most is not None])
def test_what_is_too_long(word: bytes) -> None:
    text = {b"item": b"item 1 1 out 0", b"self": b"self 1 1", b"journal": b"journal 1 1 0"}
    begin = text.get(word, word + b" 1")
    begin += b" 0" if word in (b"out", b"err") else b" R 0 0 0 0 0 0" if word == b"job" else b""
    most = frames.KINDS[word].most
    assert most is not None
    assert frames.parse(b"%s %d\n" % (begin, most)).length == most
    with pytest.raises(Denied, match=f"it sends {most + 1} bytes as '{word.decode()}'"):
        frames.parse(b"%s %d\n" % (begin, most + 1))


def test_what_serve_sends_is_known() -> None:
    """Each frame that the head of serve.sh tells of is in the table, with as many words."""
    head = SERVE.partition("What is sent of these jobs:")[2].partition("# control is two")[0]
    forms = re.findall(r"^#   (\S.*?)   ", head, re.MULTILINE)
    told = {form.split()[0].encode() for line in forms for form in line.split(", ")}
    assert told == frames.KINDS.keys() - {b"job"}
    said = set(re.findall(r'put_line "([a-z]+) \$(?:1|handle)', SERVE))
    of_its_pipe = {"say", "do"}
    assert said - of_its_pipe <= {word.decode() for word in frames.KINDS}


def test_a_server_that_goes_beyond_the_window() -> None:
    inlet = sshwire.Inlet()
    inlet.feed(bytes(1 << 24))
    inlet.feed(bytes(1 << 16))  # what comes at the very edge
    with pytest.raises(paramiko.SSHException, match="more than it is allowed to"):
        inlet.feed(bytes(1 << 16))


def test_a_pace() -> None:
    pace = Pace(2)
    assert [pace.pause(b"1", 10.0), pace.pause(b"1", 10.1)] == [0.0, 0.0]
    assert pace.pause(b"1", 10.4) == pytest.approx(0.6)
    assert pace.pause(b"2", 10.4) == 0.0
    assert pace.pause(b"1", 11.0) == 0.0
