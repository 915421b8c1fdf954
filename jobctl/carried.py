"""The folder of a job that runs on a host: what its folder there says, written down here.

So whoever looks at it need not know where the job runs. Only the agent writes through this.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress

from jobctl import process, quoting, records
from jobctl.folder import SENT, Folder, began, cookie
from jobctl.incoming import Incoming, sizes_there
from jobctl.target import Target
from jobctl.timing import Clocks, Moment

_NOT_SENT = (
    *("throttle", "per_host", "hosts"),
    *("after", "after_ok", "caller", "on_finish", "umask", "variables"),
    *("host", "session", "results", "caller_cwd"),
    *("ssh_identities", "ssh_options", "ssh_connect_timeout", "ssh_accept_new", "ssh_config"),
)
"""What of a spec is the business of this computer."""
STREAMS = {b"out": "stdout", b"err": "stderr"}
"""The streams, by what a host calls them."""
_ALSO_EMPTY = ("cwd",)
"""What means something else where it is empty than where it is not there."""
# What is taken from a host: a runner here reads the files with these in them as sh does.
_END = ("state", "code", "signal", "reason", "ended", "ended_uptime", "boot")
_RUN = (
    *("runner", "runner_ticks", "boot", "host", "attempt"),
    *("pid", "ticks", "began", "began_uptime"),
)

_PATH = re.compile(r"(guest|jobs)/[0-9A-Za-z-]{1,64}", re.ASCII)
"""The folder of one job on a host, as serve.sh's ours() has it: what else a spec or a host names
is none."""

Differing = Callable[[Mapping[str, str]], bytes]


class Carried:
    """One job on a host."""

    def __init__(self, folder: Folder) -> None:
        self.folder = folder
        spec = folder.spec()
        self.id = folder.id
        self.instance_id = cookie(spec.get("instance_id"))
        self.host = os.fsdecode(spec.get("host", b""))
        self.session = folder.session
        self.keeps_results_there = spec.get("results") == b"remote"
        self.on_finish = bool(spec.get("on_finish"))
        self.path = _path_in(spec)
        """Its folder on the host, below the state directory there; "" if its spec is damaged."""
        self.caught_up = threading.Event()
        """All that the host had for us at one time is here."""
        self.brings_output = False
        """Whether what it writes comes here now."""
        self.bulky = False
        """Whether there was so much of it at once that it has a way of its own."""
        self.gone = False
        """Whether the host has it no more."""
        self._clocks: Clocks | None = None
        self._streams: dict[str, Incoming] = {}

    @property
    def target(self) -> Target:
        """The machine that it runs on.

        :raises BadUsage: its spec is damaged.
        """
        return self.folder.target

    @property
    def whole(self) -> str:
        """The id of the job that it is a part of, or its own."""
        return self.id.partition(".")[0].partition("@")[0]

    @property
    def adopted(self) -> bool:
        """Whether it was begun by somebody else."""
        return self.path.startswith("jobs/") or self.folder.has("adopted")

    @property
    def wanted(self) -> bool:
        """Whether its output is to come here."""
        return not self.keeps_results_there or self.folder.has("wanted")

    @property
    def stop_asked(self) -> bool:
        """Whether somebody asked for its end, so that its host is to be told."""
        return self.folder.has("stop")

    def ask_for_stop(self, reason: str) -> None:
        """Write down that somebody asks for its end, if it has none yet.

        :raises OSError: that cannot be written, nor would its host write it down.
        """
        try:
            if not self.folder.finished():
                self.folder.put("stop", os.fsencode(reason) + b"\n")
        except OSError:
            if not (self.sent or self.adopted):
                raise
            # What fills a disk can be stopped.

    def want(self) -> None:
        """Have its output come here, though it was to stay there."""
        self.folder.put("wanted", b"")

    @property
    def incomplete(self) -> bool:
        """Whether somebody asked for output that was to stay there, and not all has come."""
        return self.wanted and self.folder.stays_there()

    @property
    def removed_there(self) -> str:
        """The reason for its end, or that of what it is to do, when the host has it no more."""
        return f"lost: its folder on {self.host} was removed"

    def exists(self) -> bool:
        """Whether it was not removed."""
        return self.folder.exists()

    def wish(self, handle: bytes) -> str:
        """Return how to ask the host for what is not here yet."""
        number, out, err = map(bytes.decode, self.wanted_from(handle))
        return f"carry {number} {self.path} {out} {err}"

    def wanted_from(self, handle: bytes) -> tuple[bytes, bytes, bytes]:
        """Return the number and from where each stream is to come, "-" if it is to stay there."""
        self.brings_output = self.wanted
        out, err = self.sizes()
        return (handle, b"%d" % out, b"%d" % err) if self.brings_output else (handle, b"-", b"-")

    # --- setting it going ---

    @property
    def begun(self) -> bool:
        """Whether the host has told that it has it: then it is not asked to begin it again."""
        if self.folder.has("accepted"):
            return True
        return self.folder.has("run") and b"runner=" in self.folder.get("run")

    @property
    def sent(self) -> bool:
        """Whether the host may have it."""
        return self.folder.has("sent")

    def note_sent(self) -> None:
        """Write down that the host may have it from now on."""
        known = {key: value for key, value in self.folder.spec().items() if key in SENT}
        self.folder.put("sent", quoting.dump(known))

    @property
    def nowhere(self) -> str:
        """Why its host cannot be asked about it, "" if it can."""
        if self.path:
            return ""
        return "damaged: its record does not tell which folder it has there; see --local-only"

    def note_accepted(self, answer: bytes = b"") -> None:
        """Write down that the host has it: if it loses its folder now, it may have begun."""
        self.folder.put("accepted", answer)

    def parts(self, differing: Differing) -> tuple[bytes, bytes, bytes]:
        """Return what makes up the job there: spec, environment, and odd environment.

        :param differing: makes of what of its starter's environment may be for hosts the lines
            of sh that give the job what is.
        """
        own = {key: value for key, value in self.folder.spec().items() if key not in _NOT_SENT}
        spec = {key: value for key, value in own.items() if value or key in _ALSO_EMPTY}
        spec |= {"type": b"BackgroundJob", "location": b"localhost"}
        pairs = (pair.partition("=") for pair in self._sendable())
        environment = differing({name: value for name, _, value in pairs})
        environment += self.folder.get("far.env")
        return quoting.dump(spec), environment, self.folder.get("far.env.odd")

    def _sendable(self) -> Iterable[str]:
        return map(os.fsdecode, quoting.split(self.folder.get("far.send")))

    def attached(self) -> list[str]:
        """Return the names of the files that go with it."""
        return [name for name in ("stdin", "script") if self.folder.has(name)]

    # --- what comes back ---

    def sizes(self) -> tuple[int, int]:
        """Return how many bytes are here of what both streams hold there."""
        return sizes_there(self.folder)

    def append(self, stream: str, offset: int, data: bytes) -> bool:
        """Write what a stream goes on with; False if something before it is missing here.

        :raises EmptiedThere: it is to be asked for anew.
        :raises OSError: the disk is full, say.
        """
        return self._incoming(stream).append(offset, data)

    def begin_anew(self, stream: str, number: int | None = None) -> None:
        """Take down that the job has emptied a stream there, or an item has."""
        self._incoming(stream).begin_anew()

    def _incoming(self, stream: str) -> Incoming:
        if stream not in self._streams:
            self._streams[stream] = Incoming(self.folder, stream)
        return self._streams[stream]

    def note_host(self, name: str, clocks: Clocks) -> None:
        """Take down how the clocks of the machine that answers stand to ours."""
        self._clocks = clocks

    def _ours(self, told: dict[str, bytes], name: str) -> dict[str, bytes]:
        """Return a record of the host with the time `name` as our clocks showed it.

        What its own clock since boot showed stays, and beside it is what ours did.
        """
        moment = records.moment(told, name, "boot")
        if not self._clocks or moment.time is None:
            return told
        ours = records.dump_moment(self._seen(moment), "seen", "seen_boot")
        return told | {name: ours.pop("seen")} | ours

    def _seen(self, moment: Moment) -> Moment:
        """Return what our clocks showed at a moment of the host.

        Of a boot of which we know when the job began it is counted from then on: since the host
        was restarted its clock may be another.
        """
        there, here = began(self.folder)
        uptimes_known = moment.uptime is not None and there.uptime is not None
        if moment.boot == there.boot and uptimes_known and here.boot:
            return here.later(moment.since(there) or 0.0)
        assert self._clocks
        return self._clocks.renewed(process.now()).ours(moment)

    def note_run(self, content: bytes) -> None:
        """Write down who runs it there."""
        told = {key: value for key, value in quoting.load(content).items() if key in _RUN}
        # Else it was deleted there, or damaged.
        if "runner" in told and ("pid" in told or not self.folder.names_command()):
            self.folder.replace("run", quoting.dump(self._ours(told, "began")))

    def note_progress(self, content: bytes) -> None:
        """Write down what it last told of its progress."""
        self.folder.replace("progress", content)

    def note_condition(self, letter: str) -> None:
        """Write down what its command does, as serve.sh tells.

        That it runs is known by what stands in `run`, unless that is damaged there.
        """
        if letter in ("T", "t", "E") or (letter == "R" and not self.folder.names_command()):
            self.folder.replace("condition", letter.encode())
        else:
            self.folder.unlink("condition")

    def finish(self, content: bytes) -> bool:
        """Write down how it ended there; return False if there was an end already."""
        told = {
            key: os.fsencode(records.one_line(os.fsdecode(value)))
            for key, value in quoting.load(content).items()
            if key in _END
        }
        return self._settle(self._ours(told, "ended"))

    def end(self, state: str, reason: str) -> bool:
        """Write down an end that the host knows nothing of."""
        record = {"state": state, "code": "", "signal": "", "reason": reason}
        ended = records.dump_moment(process.now(), "ended", "boot")
        return self._settle({key: os.fsencode(value) for key, value in record.items()} | ended)

    def _settle(self, record: dict[str, bytes]) -> bool:
        # Some file systems tell only now what they could not write. Then it is asked for again.
        while self._streams:
            self._streams.popitem()[1].close()
        if self.keeps_results_there and (self.brings_output or self.gone):
            self.folder.put("home", b"")  # all that there is came before the end
        return self.folder.settle(quoting.dump(record))

    def close(self) -> None:
        """Let go of its files."""
        for stream in self._streams.values():
            with suppress(OSError):
                stream.close()
        self._streams.clear()


def _path_in(spec: Mapping[str, bytes]) -> str:
    named, instance_id = records.text(spec.get("path")), cookie(spec.get("instance_id"))
    if _PATH.fullmatch(named):
        return named
    return f"guest/{instance_id}" if instance_id and not named else ""
