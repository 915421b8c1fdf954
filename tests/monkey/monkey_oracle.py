"""What must be true of jobs after all that the monkey did, by the logs that their commands wrote.

Nothing here comes from jobctl: it is given the records that jobctl prints, the bytes that it
delivered and what was done to it, and compares them. Each function yields what is wrong, a line
each.
"""

from __future__ import annotations

import collections
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

WIDTH = 32
"""Bytes of a line that count.sh writes."""
LETTERS = {"stdout": "o", "stderr": "e"}
"""What each line of a stream begins with."""
AT_ONCE = 64 * 1024
"""Bytes that a receiver which is killed may have delivered without a note: jobctl-receive(1)."""
_GRACE = 0.2
"""Seconds: two clocks are compared no more exactly than this."""
FINISHED = ("Completed", "Failed", "Stopped")
_UNREACHED = re.compile(r"connect|refuse|host key|the login|\b(h1|h2): |nnot write|No space left")
_WHOLE = re.compile(rb"[oe] \S+ \d+ \d+ *")
_TAG = re.compile(rb"(?m)^\d+(?:\.\d+)? \S+: ")
_PART_OF_A_TAG = re.compile(rb"(?:\d+(?:\.\d*)?(?: \S*:?)?)?\Z")


@dataclass
class Run:
    """One time that a command ran."""

    pid: int
    began: float
    attempt: int
    surely: int = 0
    """Lines that it has written to each stream."""
    perhaps: int = 0
    """Lines that it may have written."""
    code: int | None = None
    last: float = 0.0
    """When it last said something."""


def runs(text: str) -> list[Run]:
    """Return the runs that the log of a part tells of."""
    found: list[Run] = []
    by_pid: dict[int, Run] = {}
    for line in text.splitlines():
        letter, pid, at, *rest = line.split()
        if letter == "B":
            by_pid[int(pid)] = Run(int(pid), float(at), int(rest[0]), last=float(at))
            found.append(by_pid[int(pid)])
            continue
        run = by_pid[int(pid)]
        run.last = float(at)
        if letter == "W":
            run.perhaps = int(rest[0])
        elif letter == "D":
            run.surely = run.perhaps = int(rest[0])
        elif letter == "E":
            run.code = int(rest[0])
    return found


@dataclass(frozen=True)
class Done:
    """One thing that was done, as it went."""

    do: str
    token: str = ""
    """The job, or the one that a process which was killed belonged to."""
    child: int = 0
    """Which part of it; 0: all, or it is not known."""
    began: float = 0.0
    """Seconds since boot, as in the logs."""
    ended: float = 0.0
    status: int | None = None
    """How the command line ended; None: it was killed."""
    role: str = ""
    """Of a kill: whom."""
    pid: int = 0
    said: str = ""
    """What it wrote to standard error."""


@dataclass
class Known:
    """A part of a job, and all that is known of it."""

    token: str
    child: int
    retries: int
    timeout: float
    runs: list[Run]
    deeds: list[Done] = field(default_factory=list)
    """What was done to it, and to those who run it."""
    broken: bool = False
    """Whether one of its hosts could not be reached, or had no room, for some time."""
    after: bool = False

    @property
    def name(self) -> str:
        """What it is called in its lines, and in findings."""
        return f"{self.token}.{self.child}" if self.child else self.token

    def did(self, *kinds: str) -> list[Done]:
        """Return what was done of some kinds."""
        return [deed for deed in self.deeds if deed.do in kinds]

    def killed(self, *roles: str) -> list[Done]:
        """Return the kills of some roles."""
        return [deed for deed in self.deeds if deed.do == "kill" and deed.role in roles]

    def lines(self, letter: str) -> collections.Counter[bytes]:
        """Return the lines that it may have written to a stream."""
        return collections.Counter(
            line_of(self.name, letter, run.attempt, number)
            for run in self.runs
            for number in range(1, run.perhaps + 1)
        )


# --- states ---


def state_of(known: Known, record: Mapping[str, Any] | None) -> Iterator[str]:
    """Yield what is wrong with the record of a part at the end of all; None: it is not listed."""
    yield from _ran(known)
    if record is None:
        if not known.did("remove"):
            yield f"{known.name}: is not listed, and nobody removed it"
        return
    state, reason, code = record["state"], record["reason"] or "", record["exit_code"]
    shown = f"{known.name}: is {state} ({reason!r}, {code})"
    last = known.runs[-1] if known.runs else None
    if state not in FINISHED:
        yield f"{shown} at the end"
    elif state == "Completed":
        if last is None:
            yield f"{shown}, and never began"
        elif last.code != 0:
            yield f"{shown}, its log says {last.code}"
    elif state == "Stopped":
        if not known.did("stop", "signal", "remove") and not (known.after and last is None):
            yield f"{shown}, and nobody stopped it"
    elif why := _wrongly_failed(known, last, reason, code):
        yield f"{shown}, {why}"


def _ran(known: Known) -> Iterator[str]:
    """Yield what is wrong with how often, and how long, it ran."""
    if len(known.runs) > known.retries + 1:
        yield f"{known.name}: ran {len(known.runs)} times, with {known.retries} retries"
    for first, second in zip(known.runs, known.runs[1:], strict=False):
        if second.began < first.last - _GRACE:
            yield f"{known.name}: ran twice at once, as {first.pid} and {second.pid}"
    for deed in known.did("stop", "remove"):
        late = [run for run in known.runs if run.last > deed.ended + _GRACE]
        if deed.status == 0 and late and deed.child in (0, known.child):
            yield f"{known.name}: went on {late[-1].last - deed.ended:.1f} s after {deed.do} said 0"


def _wrongly_failed(known: Known, last: Run | None, reason: str, code: int | None) -> str:
    """Return why a part may not be Failed so, "" if it may."""
    if reason.startswith("lost: runner was killed"):
        some = known.killed("runner", "slot", "there-runner", "there-slot")
        return "" if some else "and nobody killed its runner"
    if found := re.fullmatch(r"exit status (\d+)", reason):
        if last is None or not last.code or last.code != int(found[1]) or code != last.code:
            return f"its log says {last and last.code}"
        if len(known.runs) <= known.retries and not known.did("stop", "remove"):
            return f"after {len(known.runs)} of {known.retries + 1} runs"
        return ""
    if reason.startswith("killed by signal 9"):
        shot = bool(last and any(d.pid == last.pid for d in known.killed("command")))
        return "" if shot or known.did("stop", "remove") else "and nobody killed it"
    if reason.startswith("killed by signal 15"):
        return "" if known.did("stop", "signal", "remove") else "and nobody told it to end"
    if reason.startswith("timed out"):
        return "" if known.timeout else "and it has no time limit"
    if last is None and known.broken and _UNREACHED.search(reason):
        return ""
    return "of which no cause is known"


def ids(tokens: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Yield ids that stood for two jobs: pairs of id and token, from all that was ever printed."""
    owners = collections.defaultdict[str, set[str]](set)
    for job, token in tokens:
        owners[job].add(token)
    for job, several in owners.items():
        if len(several) > 1:
            yield f"id {job} was given to {' and '.join(sorted(several))}"


def unrecorded(start: Done, listed: bool, ran: bool) -> Iterator[str]:
    """Yield what is wrong with how a start was told to have ended."""
    if start.status == 0 and not listed:
        yield f"{start.token}: start said 0, and it was never listed"
    if "nothing was recorded" in start.said and (listed or ran):
        yield f"{start.token}: 'nothing was recorded', and it {'ran' if ran else 'is listed'}"
    if ran and not listed:
        yield f"{start.token}: ran, and was never listed"


# --- bytes ---


def line_of(name: str, letter: str, attempt: int, number: int) -> bytes:
    """Return a line that count.sh writes."""
    return f"{letter} {name} {attempt} {number}".ljust(WIDTH - 1).encode() + b"\n"


def stream_of(known: Known, letter: str, data: bytes) -> Iterator[str]:
    """Yield what is wrong with a whole stream: gaps, repeats, strange bytes."""
    what = f"{known.name}: {letter}"
    lines = [data[at : at + WIDTH] for at in range(0, len(data), WIDTH)]
    at = 0
    for run in known.runs:
        number = 0
        while at < len(lines) and lines[at] == line_of(known.name, letter, run.attempt, number + 1):
            at, number = at + 1, number + 1
        if not run.surely <= number <= run.perhaps:
            yield f"{what} has {number} lines of run {run.attempt}, not {run.surely}-{run.perhaps}"
    if at < len(lines):
        yield f"{what} has {lines[at]!r} as line {at + 1} of {len(lines)}"


@dataclass(frozen=True)
class Piece:
    """What one receiver delivered of one stream."""

    data: bytes
    tagged: bool = False
    killed: bool = False

    def parts(self) -> Iterator[bytes]:
        """Yield whole lines, and what is not a whole line, without tags and what jobctl says."""
        data = self.data
        if self.tagged:
            rest = data.rpartition(b"\n")[2]
            if _PART_OF_A_TAG.match(rest):
                data = data[: len(data) - len(rest)]  # none of the line that it belongs to
            data = _TAG.sub(b"", data)
        for line in data.splitlines(keepends=True):
            own, said, _ = line.partition(b"jobctl: ")
            if own and not (said and own.isspace()):
                yield own


def received(
    whole: collections.Counter[bytes],
    gone: collections.Counter[bytes],
    pieces: Sequence[Piece],
) -> Iterator[str]:
    """Yield what is wrong with what all receivers got together.

    :param whole: the lines of all streams that are still there.
    :param gone: the lines that removed jobs may have written.
    :param pieces: each begins and ends anywhere in a line.
    """
    got, bits = collections.Counter[bytes](), list[bytes]()
    killed = sum(piece.killed for piece in pieces)
    for part in (part for piece in pieces for part in piece.parts()):
        if len(part) == WIDTH and _WHOLE.fullmatch(part[:-1]) and part.endswith(b"\n"):
            got[part] += 1
        else:
            bits.append(part)
    for line in (whole - got).elements():
        if used := _joined(line, bits):
            got[line] += 1
            for bit in used:
                bits.remove(bit)
    known = whole + gone
    # A killed receiver has delivered a bit that the next one delivers again; one of a line of a
    # removed job may be all that anybody got.
    strange = [bit for bit in bits if not (killed or gone) or not any(bit in x for x in known)]
    if strange:
        yield f"{len(strange)} pieces fit nowhere, {strange[0]!r} is one"
    if foreign := got.keys() - known.keys():
        yield f"{len(foreign)} lines were received that nobody wrote, {min(foreign)!r} is one"
    if missing := whole - got:
        yield f"{missing.total()} lines were never received, {min(missing)!r} is one"
    twice = (got - known).total() * WIDTH
    if twice > killed * AT_ONCE and not foreign:
        example = min(got - known)
        yield f"{twice} bytes came twice, {killed} receivers were killed: {example!r} is one"


def _joined(line: bytes, bits: list[bytes]) -> list[bytes]:
    """Return bits that make a line together, none if they do not."""
    for bit in {bit for bit in bits if bit and line.startswith(bit)}:
        if bit == line:
            return [bit]
        others = bits.copy()
        others.remove(bit)
        if rest := _joined(line[len(bit) :], others):
            return [bit, *rest]
    return []


# --- what is left ---

_KNOWN_HERE = re.compile(
    r"last|last\.copy|index(\.\d+\.\d+)?\.db(-journal)?|index\.lock|singleton\.lock"
    r"|agent\.(lock|log|sock)|jobs|links(/.*)?|sessions(/\.last)?|faults\.log"
)
_KNOWN_THERE = re.compile(r"guest|jobs|lib|lib/[0-9a-f]{16}(/.*)?|last|last\.copy")


def left_on_disk(paths: Iterable[str], there: bool) -> Iterator[str]:
    """Yield what is left below a state directory once all jobs and sessions were removed."""
    known = _KNOWN_THERE if there else _KNOWN_HERE
    for path in sorted(paths):
        if not known.fullmatch(path):
            yield f"left {'on a host' if there else 'here'}: {path}"
