"""The far end of a connection: our scripts on a host, and the channels they answer on.

serve.sh describes what these say.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import os
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from queue import Empty, SimpleQueue

from jobctl import process, quoting, records
from jobctl.agent.channels import Another
from jobctl.agent.commands import BEGIN, ENDED, Channel, Commands, NoPlace, Untrusted
from jobctl.agent.content import Content
from jobctl.agent.frames import MOST_ANSWERED, MOST_SURVEYED, Frame, parse, too_much
from jobctl.agent.hands import hand
from jobctl.errors import JobctlError, Unreachable
from jobctl.timing import Clocks, Moment
from jobctl.transport.base import Ask, Connection, Denied, Lost, NoConnection, Stream, Terminal

SCRIPTS = (
    "runner.sh",
    "command.sh",
    "after.sh",
    "place.sh",
    "slots.sh",
    "items.sh",
    "serve.sh",
    "bare.sh",
    "enter.sh",
)
_KILLS = (
    "jobs end at logout there, by KillUserProcesses=yes in logind.conf(5); run"
    " 'loginctl enable-linger' on it"
)
_PATIENCE = 60.0
"""Seconds that the far end may take for an answer to what it has only to look up."""
_PIECE = 1 << 20
_MARK = re.compile(rb"[\w-]{1,64}")
_ASKED_AFTER = 7.0
"""Seconds of silence after which the host is to show that it lives."""
_SHORTEST = 28.0
"""Seconds that it gets at least, as its processes may be busy."""
_LITTLE = 1 << 16
"""Bytes of a job's output, or less, for which no other channel is made."""


class NotDone(JobctlError):
    """The host does not do what was asked of it, and says why."""


class Elsewhere(NotDone):
    """It can only be done on another machine, which shares the state directory of the host."""

    status = Unreachable.status


class Far(Commands):
    """One host, ready to be told what to do."""

    def __init__(self, connection: Connection, another: Another) -> None:
        """Bring our scripts to the host, and have them listen.

        :param another: makes further connections, for a server that allows few channels.
        :raises Lost: the connection broke.
        :raises NoPlace: the host has no place for these.
        :raises Denied: it is none that we can use.
        """
        super().__init__(connection, another)
        self._tags = itertools.count(1)
        self._answers: dict[bytes, _Answer] = {}
        self._surveys = set[bytes]()
        """Tags of requests for all jobs that the host has not answered yet."""
        self._surveyed = list[bytes]()
        """What it has sent of these jobs."""
        self._surveyed_size = 0
        self._control = self._serving()
        """Where requests are made and answered, and output comes while there is little."""
        self._bulk: Channel | None = None
        """Where it comes when there is much, which others are not to wait for."""
        self._pings: dict[Channel, tuple[bytes, float]] = {}
        """What was not answered yet on a channel, and since when."""
        self._silence = max(_SHORTEST, connection.longest_silence)
        words = _greeting(self._control)
        there = Moment(records.number(words[3]), records.number(words[4]), records.text(words[1]))
        self.clocks = Clocks(there, process.now())
        """What the host's clocks showed, and ours, when the connection was made."""
        self.host = words[6].strip().decode("utf-8", "replace")
        self.warning = _KILLS if words[2] == b"kills" else ""
        """What the user should know of this host."""

    def _serving(self) -> Channel:
        """Return a channel to `serve.sh control`, brought there first if need be."""
        channel = Channel(self._connection.open(BEGIN.format(self._place, _serve())), None)
        word, _, self._state = channel.line().rstrip(b"\n").partition(b" ")
        if not word:
            raise channel.ended()
        if word in (b"no", b"refused") and self._state:
            kind = NoPlace if word == b"no" else Untrusted
            raise kind(self._state.decode("utf-8", "replace"))
        if word not in (b"have", b"need"):
            raise Denied(f"the shell of this host does not answer as a POSIX sh: {word!r:.80}")
        if word == b"need":
            try:
                channel.stream.write(_scripts() + b"\n")
            except BrokenPipeError:
                raise channel.ended() from None
        return channel

    def _line(self, *words: str) -> bytes:
        """Return the line that makes a channel one to serve.sh."""
        verb, rest = os.fsencode(words[0]), quoting.join(map(os.fsencode, words[1:]))
        state = quoting.quote(self._state)
        script = b"%s/lib/%s/serve.sh" % (state, _version().encode())
        return b"%s; exec /bin/sh %s %s %s %s" % (_RUNNER.encode(), script, verb, state, rest)

    def _channel(self, line: bytes) -> Channel:
        return Channel(self._connection.open(self._obey()), line)

    # --- requests ---

    def request(self, verb: str, *words: bytes, seconds: float | None = _PATIENCE) -> bytes:
        """Have serve.sh do something, and return what it answers.

        :param seconds: how long that may take.
        :raises NotDone: it says that it could not, and why.
        :raises Lost: the connection broke before the answer came.
        """
        tag = b"%d" % next(self._tags)
        answer = self._answers[tag] = _Answer(seconds)
        if verb == "survey":
            self._surveys.add(tag)
        text = quoting.join((tag, *words)).replace(b"\n", b"'\"$nl\"'")
        try:
            self._tell(self._control, verb.encode() + b" " + text)
            if not self._connection.alive():
                raise Lost("the connection broke")
            parts = list[bytes]()
            word = b"more"
            while word == b"more":
                word, _, rest = answer.get().partition(b" ")
                parts.append(rest)
        finally:
            del self._answers[tag]
        if word != b"ok":
            raise (Elsewhere if word == b"away" else NotDone)(rest.decode("utf-8", "replace"))
        return b" ".join(parts)

    @property
    def owes(self) -> bool:
        """Whether somebody waits for an answer."""
        return bool(self._answers)

    def _tell(self, channel: Channel, line: bytes) -> None:
        try:
            with self._lock:
                channel.stream.write(line + b"\n")
        except BrokenPipeError:
            raise Lost(ENDED) from None

    def _answered(self, line: bytes) -> None:
        """Hand an answer to who waits for it."""
        tag, _, rest = line.rstrip(b"\n").partition(b" ")
        for channel, (asked, _) in list(self._pings.items()):
            if asked == tag:
                del self._pings[channel]
        waiting = self._answers.get(tag)
        if tag in self._surveys:
            self._surveys.discard(tag)
            jobs, self._surveyed, self._surveyed_size = self._surveyed, [], 0
            if waiting:
                waiting.end(rest + b" " + b"".join(jobs))
        elif waiting:
            waiting.put(rest)

    def put(self, instance_id: str, name: str, source: int) -> None:
        """Make a file of a job on the host from an open one, to its end.

        :raises NotDone: the host does not take all of it.
        :raises Lost: the connection broke, or is to be made anew.
        """
        channel = self._channel(self._line("put", instance_id, name))
        try:
            sent = 0
            while piece := os.pread(source, _PIECE, sent):
                channel.stream.write(piece)
                sent += len(piece)
            channel.stream.close_input()
            size = channel.line().strip()
        except BrokenPipeError:
            size, sent = b"", -1
        try:
            if size != b"%d" % sent:
                self.request("ping")  # is Lost where our scripts were taken away
                why = channel.complaint().rpartition(": ")[2] or "is the disk full?"
                folder = os.fsdecode(self._state)
                raise NotDone(f"cannot write the job's {name} in {folder}/guest: {why}")
        finally:
            channel.stream.close()

    # --- output ---

    def carry(self, line: str, bulk: bool = False) -> None:
        """Tell `serve.sh control` which job to carry, or which one no longer.

        :param bulk: the job is one of those of which there is much; see open_bulk().
        """
        channel = self._bulk if bulk else self._control
        if channel:
            self._tell(channel, line.encode())

    def look(self) -> None:
        """Have the host look soon whether there is something new."""
        for bulk in (False, True):
            self.carry("look", bulk)

    def check(self) -> None:
        """See that what serves us there still does so, without waiting for it.

        Whatever comes over a channel shows that, too: a slow line is not cut.

        :raises Lost: it has said nothing for too long, though it was to.
        """
        now = time.monotonic()
        for channel in filter(None, (self._control, self._bulk)):
            tag, since = self._pings.get(channel, (b"", now))
            if now - max(channel.heard, since) > self._silence:
                raise Lost(f"no answer for {self._silence:g} seconds")
            if not tag and now - channel.heard > _ASKED_AFTER:
                tag = b"%d" % next(self._tags)
                self._pings[channel] = tag, now
                hand(functools.partial(self._tell, channel, b"ping " + tag))

    def open_bulk(self) -> bool:
        """Make a way for jobs with much output; return False if there is one already.

        :raises Unreachable: the server takes no further channel or connection.
        """
        if self._bulk:
            return False
        channel = self._channel(self._line("control"))
        _greeting(channel)
        self._bulk = channel
        return True

    def frames(self, bulk: bool = False) -> Iterator[tuple[list[bytes], Callable[[], bytes]]]:
        """Yield what the host sends: words, and what gives the next bytes that follow.

        All of these are to be taken (until b"") before the next frame. Meanwhile, requests
        are answered.

        :param bulk: that of jobs with much output.
        :raises Lost: the connection broke, or what came makes no sense.
        """
        channel = self._bulk if bulk else self._control
        assert channel
        while line := channel.line():
            if line[:1].isdigit():
                self._answered(line)
                continue
            frame = parse(line)
            if frame.words[0] == b"job":
                self._note_job(line, channel, frame)
                continue
            content = Content(channel, frame.length or 0, frame.length is not None)
            yield frame.words, content.more
            if not content.over:
                raise Lost("the host sent fewer bytes than it said")
        raise Lost(ENDED)

    def _note_job(self, line: bytes, channel: Channel, frame: Frame) -> None:
        """Take the record of a job, which somebody is to have asked for."""
        if not self._surveys:
            raise too_much("jobs that nobody asked for")
        assert frame.length is not None
        record = line + channel.exactly(frame.length + 1)
        self._surveyed.append(record)
        self._surveyed_size += len(record)
        if self._surveyed_size > MOST_SURVEYED:
            raise too_much(f"more than {MOST_SURVEYED} bytes of what jobs there are")

    # --- commands ---

    def enter(self, terminal: Terminal, mark: str, ask: Ask, environ: Mapping[str, str]) -> Stream:
        """Begin an interactive shell in a terminal, its prompt marked."""
        safe = "".join(c if c.isascii() and (c.isalnum() or c in "._@:-") else "_" for c in mark)
        command = (
            f'{_place()}; [ -z "$w" ] || {{ printf "jobctl: %s\\n" "$w" >&2; exit $s; }};'
            f' exec /bin/sh "$d/lib/{_version()}/enter.sh" {safe}'
        )
        command = f"exec /bin/sh -c '{self._place}{command}'"
        return self._connection.open(command, terminal, ask, environ)

    def hit(self, name: str, pid: int) -> None:
        """Send a signal to all that a command began."""
        self.request("hit", name.encode(), b"%d" % pid)

    def _environment(self) -> bytes:
        """If there is no other `jobctl` on the host, PATH has ours, and it is a function.

        For it may lie where nothing is executed.
        """
        folder = self._state + b"/lib/" + _version().encode()
        script = quoting.quote(folder + b"/bare.sh")
        function = quoting.quote(b"jobctl() { /bin/sh " + script + b' "$@"; }; ')
        return (
            b"if command -v jobctl >/dev/null 2>&1; then jobctl_exec=exec jobctl_given=; else"
            b" jobctl_exec= jobctl_given=" + function + b'; eval "$jobctl_given"; fi;'
            b' jobctl_check() { case $(command -v "$1") in /bin/* | /usr/bin/*) ;; *) /bin/sh '
            + quoting.quote(folder + b"/runner.sh")
            + b' examine_alone "$1" ;; esac; };'
            b" PATH=${PATH-/usr/bin:/bin}:" + quoting.quote(folder + b"/bin") + b"; export PATH; "
        )

    def close(self) -> None:
        """End the connection, and all that goes over it."""
        super().close()
        for waiting in list(self._answers.values()):
            waiting.end()


_RUNNER = "unset JOBCTL_INSTANCE_ID; export JOBCTL_RUNNER=1"
"""It is no part of the job that it may be called from."""


_ADVICE = "set JOBCTL_STATE_DIR"
_ADVICE_FAR = f"{_ADVICE} by SetEnv in ssh_config"


def _place() -> str:
    """Return a line of sh that sets d to the state directory, and w to what is wrong with it.

    A relative one lies in the home directory, where all begins that is run there.
    """
    lines = _contents()["place.sh"].decode().splitlines()
    line = " ".join(line.strip() for line in lines if line and line[0] != "#")
    return "cd 2>/dev/null; " + line.replace(_ADVICE, _ADVICE_FAR)


def _serve() -> str:
    """Return what makes a shell one of `serve.sh control`, if that is there, or else brought.

    A shell reads its input byte by byte, at a system call each, but not its arguments.
    """
    return (
        f"{_place()}; case $s in 4) s=refused ;; *) s=no ;; esac;"
        ' [ -z "$w" ] || { printf "%s %s\\n" "$s" "$w"; exit; };'
        ' [ -d "$d/guest" ] && [ -d "$d/lib" ] ||'
        ' w=$(umask 077; LC_ALL=C mkdir -p -- "$d/lib" "$d/guest" 2>&1) ||'
        f' {{ printf "no cannot write in %s: %s; {_ADVICE_FAR}\\n" "$d" "${{w##*: }}"; exit; }};'
        f' v={_version()}; if {_whole()}; then printf "have %s\\n" "$d";'
        ' else printf "need %s\\n" "$d"; IFS= read -r l && eval "$l"; fi;'
        f' {_RUNNER}; exec /bin/sh "$d/lib/$v/serve.sh" control "$d" {_LITTLE}'
    )


def _greeting(channel: Channel) -> list[bytes]:
    """Return the words that serve.sh begins with; raise Denied or Lost."""
    words = channel.line().split(b" ", 6)
    if not words[0]:
        raise channel.ended()
    if words[0] == b"no":
        raise NoPlace(b" ".join(words[1:]).strip().decode("utf-8", "replace"))
    sound = len(words) == 7 and words[0] == b"serving" and _MARK.fullmatch(words[5])
    if not sound or records.number(words[3]) is None:
        raise Denied(f"what answers on this host is not jobctl: {words!r:.80}")
    channel.mark = words[5]
    return words


class _Answer:
    """What a host answers to a request, until somebody has it or it takes too long."""

    def __init__(self, seconds: float | None) -> None:
        """Begin to wait.

        :param seconds: how long all of it may take.
        """
        self._deadline = None if seconds is None else time.monotonic() + seconds
        self._lines = SimpleQueue[bytes | None]()
        self._size = 0

    def put(self, line: bytes) -> None:
        """Take a line of it."""
        self._size += len(line)
        if self._size > MOST_ANSWERED:
            raise too_much("an answer without end")
        self._lines.put(line)

    def end(self, line: bytes | None = None) -> None:
        """Take the last line of it, of whatever length; None: it does not come."""
        self._lines.put(line)

    def get(self) -> bytes:
        """Return the next line.

        :raises Lost: it does not come.
        """
        left = None if self._deadline is None else max(0.0, self._deadline - time.monotonic())
        try:
            line = self._lines.get(timeout=left)
        except Empty:
            raise Lost("the host did not answer in time") from None
        if line is None:
            raise Lost("the connection broke before the host answered")
        return line


@functools.cache
def _contents() -> dict[str, bytes]:
    folder = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    contents = {}
    for name in SCRIPTS:
        with open(os.path.join(folder, name), "rb") as file:
            contents[name] = file.read()
    return contents


@functools.cache
def _version() -> str:
    """Return what tells these scripts from those of another release."""
    return hashlib.sha256(b"\0".join(_contents().values())).hexdigest()[:16]


_PROGRAM = b'#!/bin/sh\nexec /bin/sh "${0%/*}/../bare.sh" "$@"\n'
"""The host's `jobctl`."""


def _files() -> dict[str, bytes]:
    return {**_contents(), "bin/jobctl": _PROGRAM}


def _whole() -> str:
    """Return a condition of sh: the scripts in $d/lib/$v are all there, and as long as ours."""
    names, size = " ".join(_files()), sum(map(len, _files().values()))
    count = f'cd "$d/lib/$v" 2>/dev/null && wc -c {names} 2>/dev/null'
    return f'case " $(printf "%s " $({count}))" in (*" {size} "*) : ;; (*) false ;; esac'


def _scripts() -> bytes:
    """Return a piece of a line of sh that makes the scripts in $d/lib/$v.

    They are written aside as a whole and renamed one by one, so that nobody finds half of one.
    Several may do this at once, on machines that share a home: all write the same, and none
    deletes what another has brought. If they cannot be made, it says "no" and why, and ends.
    """
    names = " ".join(_files()).encode()
    aside = b"%d" % secrets.randbits(48)  # a process id is not alone where machines share a home
    parts = [
        b"w=$( { LC_ALL=C; export LC_ALL; nl=$(printf '\\n.'); nl=${nl%.}; umask 077; ",
        b"own=$v v=$v." + aside + b'; t=$d/lib/$v; mkdir "$t" "$t/bin" && cd "$t"',
    ]
    for name, content in _files().items():
        text = quoting.quote(content).replace(b"\n", b"'\"$nl\"'")
        # cat says what is wrong; not each printf does.
        parts.append(b" && printf %s " + text + b" | cat >" + name.encode())
    parts.append(
        b" && chmod 700 bin/jobctl && " + _whole().encode() + b' && v=$own && cd "$d/lib" &&'
        b' { for f in "$v" "$v/bin"; do [ -d "$f" ] || rm -f "$f"; done; mkdir -p "$v/bin"; } &&'
        b" for f in " + names + b'; do [ ! -d "$v/$f" ] || rm -rf "$v/$f";'
        b' mv -f "$t/$f" "$v/$f" || break; done && ' + _whole().encode() + b"; s=$?;"
        b' rm -rf "$t"; exit $s; } 2>&1 ) ||'
        b' { printf "no cannot write in %s: %s; ' + _ADVICE_FAR.encode() + b'\\n" "$d"'
        b' "$(printf %s "${w##*: }" | head -n 1)"; exit; };'
    )
    return b"".join(parts)


def begun(connection: Connection, another: Another, host: str) -> Far:
    """Return the far end of a new connection to a host.

    :raises Unreachable: there is none; all messages name the host.
    """
    seconds = connection.connect_timeout
    late = threading.Event()

    def give_up() -> None:
        late.set()
        connection.close()

    (limit := threading.Timer(seconds, give_up)).start()
    try:
        return Far(connection, another)
    except Lost as error:
        if not late.is_set():
            raise Lost(_at_host(host, error)) from None
        raise NoConnection(
            f"cannot connect to {host}: its login shell does not answer"
            f" within {seconds:g} seconds" + (f": {error.said}" if error.said else "")
        ) from None
    except Denied as error:
        raise type(error)(_at_host(host, error)) from None
    except BrokenPipeError:
        raise Lost(_at_host(host, ENDED)) from None
    except (ValueError, IndexError):
        reason = "its login shell answers what makes no sense"
        raise Denied(f"{host}: {reason}") from None
    finally:
        limit.cancel()


def _at_host(host: str, error: object) -> str:
    text = str(error)
    return text if host in text else f"{host}: {text}"


def unreachable(error: Exception) -> Unreachable:
    """Return an error as one of a connection."""
    if isinstance(error, Unreachable):
        return error
    if isinstance(error, JobctlError):
        return Denied(str(error))
    return Denied(f"the attempt to connect failed: {error!r}")
