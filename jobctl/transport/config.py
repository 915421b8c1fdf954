"""What OpenSSH's configuration says about a machine, as `ssh -G` answers it."""

from __future__ import annotations

import getpass
import os
import pwd
import re
import shutil
import socket
import subprocess
from collections.abc import Mapping
from typing import NamedTuple

from jobctl import configfile
from jobctl.errors import JobctlError
from jobctl.model import printable
from jobctl.target import Target, check_identity, check_option
from jobctl.transport import alike, plainconfig, sshfiles
from jobctl.transport.alike import Lines
from jobctl.transport.base import Denied
from jobctl.transport.hostkeys import fits

DEFAULT_CONNECT_TIMEOUT = 15.0
# A peer that says nothing for (count + 1) intervals is taken for dead: 28 s.
DEFAULT_ALIVE = (7.0, 3)
# What Debian's ssh sets when BatchMode is on and nobody has said anything.
_DEBIAN_BATCH_ALIVE = 300.0
# A Match exec, or a lookup to canonicalize a name, may take its time.
_TIME_LIMIT = 30.0
_REFUSED = 255
"""The exit status of ssh when it does not like what it was told."""
_TOKEN = re.compile(r"%(.)")
_ENVIRONMENT = re.compile(r"\$\{(\w+)\}")
_METHODS = (
    ("publickey", "pubkeyauthentication"),
    ("keyboard-interactive", "kbdinteractiveauthentication"),
    ("password", "passwordauthentication"),
)


class Settings(NamedTuple):
    """The words of ssh_config(5) that matter here, in its spelling but for the case."""

    name: str
    """The name that was asked for; hostname is what it stands for."""
    hostname: str
    user: str
    port: int
    values: Mapping[str, str]
    """The last line for each keyword, in lower case; see flag() and lists below."""
    identity_files: tuple[str, ...] = ()
    certificate_files: tuple[str, ...] = ()
    user_known_hosts: tuple[str, ...] = ()
    global_known_hosts: tuple[str, ...] = ()
    connect_timeout: float = DEFAULT_CONNECT_TIMEOUT
    strict: str = "ask"
    """yes, ask, accept-new or no."""
    send_env: tuple[str, ...] = ()
    """Patterns of the variables that go with each command, from who wants it run."""
    set_env: tuple[tuple[str, str], ...] = ()
    """Variables that go with each command."""
    environ: Mapping[str, str] = os.environ
    """The environment of whoever wants the connection."""

    def flag(self, keyword: str) -> bool:
        """Whether a keyword that is on or off is on."""
        return self.values.get(keyword, "no") in ("yes", "true")

    def word(self, keyword: str) -> str:
        """The value of a keyword; empty if it is not set, or none."""
        value = self.values.get(keyword, "")
        return "" if value.lower() == "none" else value

    def number(self, keyword: str, default: int) -> int:
        """The value of a keyword that is a number."""
        value = self.values.get(keyword, "")
        return int(value) if value.isdigit() else default

    @property
    def key_name(self) -> str:
        """The name by which known_hosts files know the machine."""
        alias = self.word("hostkeyalias")
        if alias:
            return alias.lower()
        host = self.hostname.lower()
        return host if self.port == 22 else f"[{host}]:{self.port}"

    @property
    def bare_name(self) -> str:
        """The name without the port, which counts as well; empty if that is the same."""
        if self.word("hostkeyalias") or self.port == 22:
            return ""
        return self.hostname.lower()

    @property
    def methods(self) -> tuple[str, ...]:
        """The ways of logging in to try, in this order."""
        allowed = [
            method for method, word in _METHODS if self.values.get(word) not in ("no", "false")
        ]
        if self.flag("batchmode"):
            allowed = [method for method in allowed if method == "publickey"]
        preferred = self.word("preferredauthentications")
        if preferred:
            return tuple(method for method in preferred.split(",") if method in allowed)
        return tuple(allowed)

    @property
    def alive(self) -> tuple[float, int]:
        """After how many seconds of silence to ask for a sign of life, and how often."""
        interval = float(self.number("serveraliveinterval", 0))
        if not interval or (interval == _DEBIAN_BATCH_ALIVE and self.flag("batchmode")):
            return DEFAULT_ALIVE
        return interval, self.number("serveralivecountmax", 3)

    def variables(self, environ: Mapping[str, str] | None = None) -> list[tuple[str, str]]:
        """Return the variables to send with a command; the server takes those that it likes.

        :param environ: of whoever wants it run, else of whoever wanted the connection.
        """
        given = self.environ if environ is None else environ
        sent = [item for item in given.items() if any(fits(p, item[0]) for p in self.send_env)]
        return [*sorted(sent), *self.set_env]

    def expand(self, text: str) -> str:
        """Return text with the tokens of ssh_config(5), ${VARIABLES} and ~ replaced."""
        return _at_home(_TOKEN.sub(self._token, _ENVIRONMENT.sub(self._variable, text)))

    def _token(self, match: re.Match[str]) -> str:
        local = socket.gethostname()
        values = {
            "%": "%",
            "h": self.hostname,
            "n": self.name,
            "p": str(self.port),
            "r": self.user,
            "u": _user(),
            "d": _home(),
            "i": str(os.getuid()),
            "l": local,
            "L": local.partition(".")[0],
            "k": self.word("hostkeyalias") or self.name,
        }
        if match[1] not in values:
            raise Denied(f"cannot connect to {self.name}: unknown token {match[0]} in its settings")
        return values[match[1]]

    def _variable(self, match: re.Match[str]) -> str:
        value = self.environ.get(match[1])
        if value is None:
            raise Denied(f"cannot connect to {self.name}: {match[0]} in its settings is not set")
        return value


def _at_home(path: str) -> str:
    """Return path with the ~ at its beginning replaced."""
    if path == "~" or path.startswith("~/"):
        # As ssh does: the home directory that the system knows, not $HOME.
        return _home() + path[1:]
    return os.path.expanduser(path) if path.startswith("~") else path


def _home() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_dir
    except KeyError:
        return os.path.expanduser("~")


def _user() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return getpass.getuser()


def read(
    target: Target, config: str | None, environ: Mapping[str, str], jump: str = ""
) -> Settings:
    """Return what OpenSSH would do to reach target.

    config is a file to read instead of the usual ones, environ the environment of whoever
    asks, jump the machines to go through, a ProxyJump that beats the configuration. Raises
    Denied where ssh refuses, BadUsage for options that are none.
    """
    for path in target.identities:
        if not os.path.exists(check_identity(path)):
            # ssh only warns, and goes on with other keys.
            raise Denied(f"cannot connect to {target.label}: key file {path} does not exist")
    options = [check_option(option) for option in target.options]
    if jump:
        options.insert(0, f"ProxyJump={jump}")
    program = shutil.which("ssh", path=environ.get("PATH"))
    if program:
        command = [program, "-G", *_words(target, config, options)]
        files = [config] if config else [f"{_home()}/.ssh/config", "/etc/ssh/ssh_config"]
        try:
            lines = alike.lines_for(
                target,
                [path for path in files if config or os.path.exists(path)],
                (*command[:-1], environ.get("HOME")),
                lambda: _ask_ssh(command, config, target, environ),
            )
            return _settings(target, lines, environ)
        except _Unusable:
            pass
    return _settings(target, plainconfig.read(target, config, options), environ)


def _words(target: Target, config: str | None, options: list[str]) -> list[str]:
    """Return the arguments of ssh. Each value is a word of its own, the name follows "--"."""
    words = ["-F", config] if config else []
    if target.port is not None:
        words += ["-p", str(target.port)]
    if target.user:
        words += ["-l", target.user]
    for path in target.identities:
        words += ["-i", path]
    for option in options:
        words += ["-o", option]
    return [*words, "--", target.host]


class _Unusable(JobctlError):
    """An ssh that does not work, whatever it is asked."""


def _ask_ssh(
    command: list[str], config: str | None, target: Target, environ: Mapping[str, str]
) -> Lines:
    """Return the keywords and values that `ssh -G` prints; raise _Unusable.

    It may not find its libraries, but others of the same names, which somebody's environment has
    put before them: then it is asked without that.
    """
    clean = without_loader(environ)
    try:
        sshfiles.check(config, _home())
        return answer(command, environ)
    except configfile.NotPlain as error:
        raise Denied(f"cannot read {error.filename}: {error.strerror}") from None
    except subprocess.TimeoutExpired:
        raise Denied(f"cannot connect to {target.label}: `ssh -G` takes too long") from None
    except (OSError, subprocess.SubprocessError) as error:
        if len(clean) < len(environ):
            return _ask_ssh(command, config, target, clean)
        if isinstance(error, subprocess.CalledProcessError) and error.returncode == _REFUSED:
            said = _said(error.stderr)
            if "version mismatch" not in said:
                raise Denied(f"ssh refuses its settings for {target.label}: {said}") from None
    raise _Unusable


def without_loader(environ: Mapping[str, str]) -> dict[str, str]:
    """Return an environment without what leads the loader of programs to other libraries."""
    return {key: value for key, value in environ.items() if not key.startswith(("LD_", "DYLD_"))}


def answer(command: list[str], environ: Mapping[str, str]) -> Lines:
    """Return the keywords and values that a command prints.

    :raises OSError: it cannot be run.
    :raises subprocess.SubprocessError: it takes too long, or fails.
    """
    result = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        env=environ,
        timeout=_TIME_LIMIT,
        check=True,
    )
    pairs = (line.partition(" ") for line in os.fsdecode(result.stdout).splitlines())
    return [(keyword.lower(), value) for keyword, _, value in pairs]


def _said(errors: bytes) -> str:
    """Return the first line that ssh wrote of what is wrong."""
    lines = os.fsdecode(errors).strip().splitlines()
    told = [line for line in lines if not line.startswith("Pseudo-terminal ")]
    return printable(told[0]) if told else "it does not say why"


def _settings(target: Target, lines: Lines, environ: Mapping[str, str]) -> Settings:
    values = dict(lines)
    port = values.get("port", "22")
    settings = Settings(
        name=target.host,
        hostname=values.get("hostname", target.host),
        user=values.get("user") or _user(),
        port=int(port),
        values=values,
        connect_timeout=_connect_timeout(target, values.get("connecttimeout", "none")),
        strict=_strictness(target, values.get("stricthostkeychecking", "ask")),
        environ=environ,
    )

    def files(keyword: str) -> tuple[str, ...]:
        found = [value for key, value in lines if key == keyword and value.lower() != "none"]
        return tuple(dict.fromkeys(settings.expand(value) for value in found))

    set_env = [value.partition("=") for key, value in lines if key == "setenv" and "=" in value]
    return settings._replace(
        send_env=tuple(value for key, value in lines if key == "sendenv"),
        set_env=tuple((name, value) for name, _, value in set_env),
        identity_files=files("identityfile"),
        certificate_files=files("certificatefile"),
        user_known_hosts=_paths(settings, "userknownhostsfile"),
        global_known_hosts=_paths(settings, "globalknownhostsfile"),
    )


def _paths(settings: Settings, keyword: str) -> tuple[str, ...]:
    """Return the files that a line names.

    ssh prints them without quotes, with all tokens replaced, and as absolute ones: a word that
    does not begin like a path belongs to the one before it, with the space between them.
    """
    paths: list[str] = []
    for word in settings.word(keyword).split(" "):
        if paths and not word.startswith(("/", "~")):
            paths[-1] += " " + word
        elif word:
            paths.append(word)
    return tuple(map(_at_home, paths))


def _connect_timeout(target: Target, value: str) -> float:
    if target.connect_timeout is not None:
        return target.connect_timeout
    return float(value) if value.isdigit() and int(value) else DEFAULT_CONNECT_TIMEOUT


def _strictness(target: Target, value: str) -> str:
    if target.accept_new:
        return "accept-new"
    return {"true": "yes", "false": "no", "off": "no"}.get(value, value)
