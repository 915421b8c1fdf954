"""The SSH protocol as paramiko speaks it, with the faults mended that cost us connections."""

# The stubs leave out what is private, and that is where the faults are.
# mypy: disable-error-code="attr-defined, misc, union-attr, arg-type, no-any-return"

from __future__ import annotations

import collections
import logging
import signal
import threading
from typing import Any

import paramiko
from paramiko import common
from paramiko.buffered_pipe import BufferedPipe, PipeTimeout
from paramiko.channel import Channel
from paramiko.message import Message
from paramiko.packet import Packetizer

from jobctl.model import printable
from jobctl.transport import algorithms
from jobctl.transport.base import Denied, NoConnection
from jobctl.transport.config import Settings
from jobctl.transport.hostkeys import HostKeys
from jobctl.transport.line import Line

# How much may be on its way on a channel. More than 4 MiB only cost time on a fast line, as
# the server keeps that much in memory and moves it about (16 MiB: 160 MB/s instead of 700). On
# a slow way they are needed: at 100 ms 4 MiB give 36 MB/s, 16 MiB 117.
_SMALLEST_WINDOW = 4 * 1024 * 1024
_LARGEST_WINDOW = 16 * 1024 * 1024
_BYTES_PER_SECOND = 200_000_000
_PACKET = 64 * 1024
_CIPHERS = (
    # The fastest first: a gcm needs no second pass for a MAC.
    "aes128-gcm@openssh.com",
    "aes256-gcm@openssh.com",
    "aes128-ctr",
    "aes192-ctr",
    "aes256-ctr",
)
_MACS = (
    "hmac-sha2-256-etm@openssh.com",
    "hmac-sha2-512-etm@openssh.com",
    "hmac-sha2-256",
    "hmac-sha2-512",
    "hmac-sha1",
)
_CURVE = "curve25519-sha256"
_MOST_LINES_BEFORE_BANNER = 100
_MOST_WORDS = 200

# Not even an error: what it logs may be what a server, or a person, has said.
logging.getLogger("paramiko").setLevel(logging.CRITICAL + 1)


class _Packets(Packetizer):
    """Packets, with new keys as seldom as OpenSSH itself has them.

    RFC 4344, 3.2, allows 2^32 blocks of a cipher with blocks of 16 bytes under one key, which
    are 64 GiB, and asks for new keys before the 32 bits of the packet number have come round.
    All ciphers that we offer have such blocks. paramiko's own limit is 512 MiB.
    """

    REKEY_BYTES = 2**36
    REKEY_PACKETS = 2**31


class Inlet(BufferedPipe):  # type: ignore[type-arg]
    """What has come in on a channel and was not read yet; knows a broken connection from an end.

    It keeps the pieces as they came. The one it stands in for moves all that is left with
    each read, which makes a large window slow.
    """

    def __init__(self) -> None:
        """Make an empty one."""
        super().__init__()
        self.complete = False
        """Whether the server has said that nothing more comes."""
        self.over = False
        """Whether it has closed the channel, so that no exit status comes either."""
        self._pieces: collections.deque[bytes] = collections.deque()
        self._size = 0

    def feed(self, data: bytes) -> None:
        """Take what has come in.

        :raises SSHException: it is more than the server was allowed to send; paramiko itself never
            looks, and then keeps whatever comes.
        """
        if self._size > _LARGEST_WINDOW:
            raise paramiko.SSHException("the server sends more than it is allowed to")
        with self._cv:
            self._pieces.append(data)
            self._size += len(data)
            self._cv.notify()

    def read(self, nbytes: int, timeout: float | None = None) -> bytes:
        """Return 1 to nbytes bytes, b"" at the end.

        Raises EOFError when the connection broke, PipeTimeout after so many seconds.
        """
        with self._cv:
            if not self._cv.wait_for(lambda: self._pieces or self._closed, timeout):
                raise PipeTimeout
            if not self._pieces:
                if self.complete:
                    return b""
                raise EOFError
            taken = [self._pieces.popleft()]
            room = nbytes - len(taken[0])
            while room > 0 and self._pieces and len(self._pieces[0]) <= room:
                taken.append(self._pieces.popleft())
                room -= len(taken[-1])
            if room < 0:
                self._pieces.appendleft(taken[0][nbytes:])
                taken[0] = taken[0][:nbytes]
            data = taken[0] if len(taken) == 1 else b"".join(taken)
            self._size -= len(data)
            return data

    def read_ready(self) -> bool:
        """Whether a read would return at once."""
        return self._size > 0

    def __len__(self) -> int:
        """Return how many bytes wait."""
        return self._size


class _OnChannel(Message):
    """A message that is not sent any more once its channel is closed.

    A server takes one for a channel that is no longer there as a breach of the protocol, and
    ends the whole connection. paramiko looks whether a channel is open, lets go of the lock,
    and then sends.
    """

    def __init__(self, channel: Channel, kind: bytes) -> None:
        """Begin a message of some kind to the other end of channel."""
        super().__init__()
        self.channel = channel
        self.add_byte(kind)
        self.add_int(channel.remote_chanid)


def _end_of_data(channel: Channel, message: Message) -> None:
    for inlet in (channel.in_buffer, channel.in_stderr_buffer):
        inlet.complete = True
    Channel._handle_eof(channel, message)


def _end_of_channel(channel: Channel, message: Message) -> None:
    for inlet in (channel.in_buffer, channel.in_stderr_buffer):
        inlet.complete = inlet.over = True
    Channel._handle_close(channel, message)


def _request(channel: Channel, message: Message) -> None:
    """Handle what paramiko passes over: death by a signal."""
    kind = message.get_text()
    message.get_boolean()
    if kind == "exit-signal":
        number = getattr(signal, f"SIG{message.get_text()}", None)
        if isinstance(number, signal.Signals):
            channel.exit_status = 128 + number
            channel.status_event.set()
    else:
        message.rewind()
        message.get_int()  # the channel
        Channel._handle_request(channel, message)


class Transport(paramiko.Transport):
    """A connection to an SSH server."""

    _CLIENT_ID = "jobctl"
    _preferred_ciphers = tuple(n for n in _CIPHERS if n in paramiko.Transport._cipher_info)
    _preferred_macs = tuple(n for n in _MACS if n in paramiko.Transport._mac_info)
    # Of two names for one thing paramiko has the older only.
    _kex_info = {  # noqa: RUF012
        **paramiko.Transport._kex_info,
        _CURVE: paramiko.Transport._kex_info[f"{_CURVE}@libssh.org"],
    }
    _channel_handler_table = {  # noqa: RUF012
        **paramiko.Transport._channel_handler_table,
        common.MSG_CHANNEL_EOF: _end_of_data,
        common.MSG_CHANNEL_CLOSE: _end_of_channel,
        common.MSG_CHANNEL_REQUEST: _request,
    }

    def __init__(self, line: Line, settings: Settings, known: HostKeys) -> None:
        """Make one that talks over line, and asks for a host key that is known.

        Raises Denied where the configuration leaves nothing that could be offered.
        """
        line.prepare()
        super().__init__(
            line,
            default_window_size=_SMALLEST_WINDOW,
            default_max_packet_size=_PACKET,
            packetizer_class=_Packets,
        )
        self.line = line
        self.farewell = ""
        """What the server said when it hung up."""
        self._cause: Exception | None = None
        self._held: list[Message] = []
        self._order = threading.RLock()
        keys = super().preferred_keys
        keys = algorithms.allowed(settings, "HostKeyAlgorithms", keys)
        self._key_algorithms = known.order(keys)
        self._preferred_ciphers = algorithms.allowed(settings, "Ciphers", self._preferred_ciphers)
        self._preferred_macs = algorithms.allowed(settings, "MACs", self._preferred_macs)
        exchanges = (_CURVE, *super()._preferred_kex)
        self._preferred_kex = algorithms.allowed(settings, "KexAlgorithms", exchanges)
        self._theirs: dict[str, list[str]] = {}
        """What the server offers."""
        if settings.flag("compression"):
            self._preferred_compression = ("zlib@openssh.com", "none")
        # Line keeps the time. With a dead peer it ends the connection; a living one may take
        # long to exchange keys, when much data is on its way.
        self.banner_timeout = self.handshake_timeout = settings.connect_timeout + 5
        self.clear_to_send_timeout = 3600.0

    @property
    def preferred_keys(self) -> tuple[str, ...]:
        """The host key algorithms that we ask for."""
        return self._key_algorithms

    def _really_parse_kex_init(
        self, m: Message, ignore_first_byte: bool = False
    ) -> dict[str, list[str]]:
        """Return what a side offers; the MAC does not matter where the cipher is one itself."""
        parsed: dict[str, list[str]] = super()._really_parse_kex_init(m, ignore_first_byte)
        if not ignore_first_byte:
            self._theirs = {key: list(value) for key, value in parsed.items() if "algo" in key}
            for way in ("client", "server"):
                theirs = self._theirs[f"{way}_encrypt_algo_list"]
                cipher = next((name for name in self._preferred_ciphers if name in theirs), "")
                if "gcm" in cipher:
                    parsed[f"{way}_mac_algo_list"] = list(self._preferred_macs)
        return parsed

    def nothing_in_common(self) -> str:
        """Return what keeps the two sides from talking, and what each offers; empty if nothing."""
        for ours, theirs, what in (
            (self._preferred_kex, "kex_algo_list", "key exchange"),
            (self.preferred_keys, "server_key_algo_list", "type of host key"),
            (self._preferred_ciphers, "client_encrypt_algo_list", "cipher"),
            (self._preferred_ciphers, "server_encrypt_algo_list", "cipher"),
            (self._preferred_macs, "client_mac_algo_list", "MAC"),
            (self._preferred_macs, "server_mac_algo_list", "MAC"),
        ):
            if told := algorithms.in_common(ours, self._theirs.get(theirs, ours), what):
                return told
        return ""

    def shown(self) -> tuple[bytes, bytes]:
        """Return the host key that the server has proved to have, and its certificate if any."""
        key = self.host_key
        return key.asbytes(), key.public_blob.key_blob if key.public_blob else b""

    def signature_algorithms(self) -> set[str]:
        """Return the algorithms for keys that the server says it takes, if it does (RFC 8308)."""
        names: bytes = self.server_extensions.get("server-sig-algs", b"")
        return set(filter(None, names.decode("ascii", "replace").split(",")))

    def say(self, message: Message) -> None:
        """Send a message of the login."""
        self._send_message(message)

    def answered_in(self, seconds: float) -> None:
        """Choose a window for channels by the time that an answer has taken."""
        wanted = int(seconds * _BYTES_PER_SECOND)
        self.default_window_size = max(_SMALLEST_WINDOW, min(wanted, _LARGEST_WINDOW))

    def logged_in(self) -> None:
        """Note that the login has succeeded, in the thread that reads."""
        self._auth_trigger()

    def answer_with(self, replies: Any) -> None:
        """Let replies take what the server says to the login, as an AuthHandler does."""
        self.auth_handler = replies

    def trouble(self) -> str:
        """Return why the connection has ended, as part of a sentence."""
        self.line.close()
        if self.farewell:
            return f"the server says: {self.farewell}"
        if self.line.reason:
            return self.line.reason
        error = self.saved_exception or self._cause
        if isinstance(error, paramiko.ChannelException):  # that was only one channel
            error = None
        return in_short(str(error)) if str(error or "") else "it was closed"

    def get_exception(self) -> Exception | None:
        """Return what ended the connection, as an error that callers expect."""
        error = super().get_exception()
        self._cause = error or self._cause
        if error is None or isinstance(error, (paramiko.SSHException, EOFError, OSError)):
            return error
        return paramiko.SSHException(str(error))

    def ask_for_life(self) -> None:
        """Send what a server answers, if it is still there."""
        message = Message()
        message.add_byte(common.cMSG_GLOBAL_REQUEST)
        message.add_string("keepalive@openssh.com")
        message.add_boolean(True)
        if self.clear_to_send.is_set():
            self._send_user_message(message)

    # While keys are exchanged, nothing else may be sent, and whoever wants to has to wait. But
    # the thread that reads must not: paramiko lets it, when it has to answer the end of a
    # channel between the two KEXINITs. Then nobody reads the other KEXINIT, and after 30
    # seconds the connection is given up: with new keys every 512 MiB and a channel that ends
    # right after, that was one download in 20. What this thread has to say is held back.

    def _send_user_message(self, data: Message) -> None:
        if threading.current_thread() is self and not self.clear_to_send.is_set():
            self._held.append(data)
        else:
            super()._send_user_message(data)

    def _send_message(self, data: Message) -> None:
        with self._order:
            if not (isinstance(data, _OnChannel) and data.channel.closed):
                super()._send_message(data)

    def _parse_newkeys(self, m: Message) -> None:
        # Our own new keys are in use by now.
        held, self._held = self._held, []
        super()._parse_newkeys(m)
        for message in held:
            self._send_message(message)

    def _parse_channel_open_success(self, m: Message) -> None:
        channel = self._channels.get(m.get_int())
        if channel is not None:
            channel.in_buffer, channel.in_stderr_buffer = Inlet(), Inlet()
        m.rewind()
        super()._parse_channel_open_success(m)

    def _parse_global_request(self, m: Message) -> None:
        m.get_text()
        if m.get_boolean():
            answer = Message()
            answer.add_byte(common.cMSG_REQUEST_FAILURE)
            self._send_user_message(answer)

    def _parse_debug(self, m: Message) -> None:
        """Pass over what a server says for debugging; paramiko spends a millisecond on it."""

    def _parse_disconnect(self, m: Message) -> None:
        m.get_int()
        self.farewell = in_short(words(m))

    def _check_banner(self) -> None:
        """Read the server's first line, after some others perhaps (RFC 4253, 4.2)."""
        said = ""
        for _ in range(_MOST_LINES_BEFORE_BANNER):
            try:
                text = self.packetizer.readline(self.banner_timeout)
            except UnicodeDecodeError:
                break
            except (OSError, EOFError):
                if said:
                    self.line.reason += f", after it said '{said}'"
                raise
            if text.startswith(("SSH-2.0-", "SSH-1.99-")):
                self.remote_version = text
                return
            said = in_short(text) or said
        self.line.reason = "what answers is no SSH server"
        raise paramiko.SSHException(self.line.reason)


def words(message: Message) -> str:
    """Return what a machine says to people, in whatever encoding it says it."""
    return message.get_string().decode("utf-8", "replace")


def in_short(text: str) -> str:
    """Return what a machine has said as the beginning of one line that is safe to show."""
    return printable(" ".join(text.split())[:_MOST_WORDS])


def handshake(line: Line, settings: Settings, known: HostKeys, label: str) -> Transport:
    """Return a connection with keys agreed; nobody is logged in yet, nor the host verified.

    Raises NoConnection, and Denied where the two sides have no algorithm in common.
    """
    transport = Transport(line, settings, known)
    line.limit(settings.connect_timeout, f"no answer within {settings.connect_timeout:g} seconds")
    done = threading.Event()
    transport.start_client(done)
    done.wait()
    if transport.is_active() and transport.initial_kex_done:
        return transport
    error = transport.get_exception()
    if isinstance(error, paramiko.IncompatiblePeer):
        which = transport.nothing_in_common() or in_short(str(error))
        raise Denied(f"cannot connect to {label}: {which}")
    raise NoConnection(f"cannot connect to {label}: {transport.trouble()}")


def request(channel: Channel, kind: str, reply: bool, *fields: str | bytes | int) -> None:
    """Send a request on a channel; with reply, the server is to say whether it grants it."""
    message = _OnChannel(channel, common.cMSG_CHANNEL_REQUEST)
    message.add_string(kind)
    message.add_boolean(reply)
    for field in fields:
        if isinstance(field, int):
            message.add_int(field)
        else:
            message.add_string(field)
    if reply:
        channel._event_pending()
    channel.transport._send_user_message(message)


def granted(channel: Channel, seconds: float) -> bool:
    """Wait for the answer to a request, for so many seconds, and return whether it is yes.

    paramiko's own ways of asking wait for ever.
    """
    return channel.event.wait(seconds) and bool(channel.event_ready)


def send(channel: Channel, data: bytes) -> int:
    """Send some of data to the input of a command; return how much, 0 if nobody reads it."""
    return channel._send(data, _OnChannel(channel, common.cMSG_CHANNEL_DATA))


def send_end(channel: Channel) -> None:
    """End the input of a command."""
    with channel.lock:
        if channel.eof_sent or channel.closed:
            return
        channel.eof_sent = True
    channel.transport._send_user_message(_OnChannel(channel, common.cMSG_CHANNEL_EOF))
