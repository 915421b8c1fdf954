"""The plain part of ssh_config(5), for machines without an ssh program: Host and Include."""

from __future__ import annotations

import glob
import os
import re
import shlex

from jobctl import configfile
from jobctl.model import printable
from jobctl.target import Target
from jobctl.transport.base import Denied
from jobctl.transport.hostkeys import fits

USUAL = ("~/.ssh/config", "/etc/ssh/ssh_config")
_DEFAULTS = (
    ("userknownhostsfile", "~/.ssh/known_hosts ~/.ssh/known_hosts2"),
    ("globalknownhostsfile", "/etc/ssh/ssh_known_hosts /etc/ssh/ssh_known_hosts2"),
)
_IDENTITIES = ("id_rsa", "id_ecdsa", "id_ecdsa_sk", "id_ed25519", "id_ed25519_sk")
_WORD_BY_WORD = ("sendenv", "setenv")
_SEVERAL = ("identityfile", "certificatefile")
_LINE = re.compile(r"\s*([A-Za-z0-9]+)(?:\s*=\s*|\s+)(.*?)\s*")
_WORD = re.compile(r'"([^"]*)"|([^\s"]+)')
_WHOLE_LINE = ("proxycommand", "localcommand", "remotecommand")
_MOST_INCLUDES = 16


class Reader:
    """Collects what holds for one machine: of each keyword the first value, as ssh does."""

    def __init__(self, host: str) -> None:
        self.host = host
        self.values: dict[str, str] = {}
        self.several: list[tuple[str, str]] = []

    def file(self, path: str, depth: int = 0) -> None:
        """Read a configuration file; a part that cannot be judged is refused."""
        if depth > _MOST_INCLUDES:
            raise Denied(f"{path}: too many Includes, one in the other")
        with open(
            path, encoding="utf-8", errors="surrogateescape", opener=configfile.opener
        ) as lines:
            holds = True
            for number, line in enumerate(lines, 1):
                match = _LINE.fullmatch(line.rstrip("\n"))
                if match is None or line.lstrip().startswith("#"):
                    continue
                keyword, value = match[1].lower(), match[2]
                if keyword == "host":
                    holds = self.matches(words(value))
                elif keyword == "match":
                    holds = self.match_line(words(value), f"{path}:{number}")
                elif holds and keyword == "include":
                    self.include(words(value), path, depth)
                elif holds:
                    self.set(keyword, value)

    def matches(self, patterns: list[str]) -> bool:
        """Whether a Host line means this machine; a negated pattern that fits decides."""
        found = False
        for pattern in patterns:
            if fits(pattern.lstrip("!"), self.host):
                if pattern.startswith("!"):
                    return False
                found = True
        return found

    def match_line(self, criteria: list[str], where: str) -> bool:
        """Whether a Match line holds, of those kinds that need nothing of ssh."""
        if [word.lower() for word in criteria] == ["all"]:
            return True
        if len(criteria) == 2 and criteria[0].lower() == "originalhost":
            return self.matches(criteria[1].split(","))
        # To guess would be to log in as the wrong user, or with the wrong key.
        raise Denied(
            f"{where}: only ssh can tell whether this Match holds, and it is not installed"
        )

    def include(self, patterns: list[str], path: str, depth: int) -> None:
        """Read the files that an Include line names."""
        for pattern in patterns:
            pattern = os.path.expanduser(pattern)
            if not os.path.isabs(pattern):
                of_system = path.startswith("/etc/")
                folder = "/etc/ssh" if of_system else os.path.expanduser("~/.ssh")
                pattern = os.path.join(folder, pattern)
            for name in sorted(glob.glob(pattern)):
                self.file(name, depth + 1)

    def set(self, keyword: str, value: str) -> None:
        """Note a value, unless the keyword has one."""
        if keyword in _WORD_BY_WORD:
            self.set_words(keyword, value)
            return
        if keyword not in _WHOLE_LINE:
            value = " ".join(words(value))
        if keyword in _SEVERAL:
            self.several.append((keyword, value))
        else:
            self.values.setdefault(keyword, value)

    def set_words(self, keyword: str, value: str) -> None:
        """Note each word of a line; of SetEnv only the first line counts, as for ssh."""
        try:
            found = shlex.split(value, comments=True)
        except ValueError:
            raise Denied(f"{keyword} {printable(value)}: no closing quotation") from None
        if keyword == "sendenv":
            taken = [word[1:] for word in found if word.startswith("-")]
            self.several = [
                (key, name)
                for key, name in self.several
                if key != keyword or not any(fits(pattern, name) for pattern in taken)
            ]
            found = [word for word in found if not word.startswith("-")]
        elif any(key == keyword for key, _ in self.several):
            return
        self.several += [(keyword, word) for word in found]


def words(text: str) -> list[str]:
    """Return the words of a line up to a comment; quotes hold one together."""
    found = []
    for match in _WORD.finditer(text):
        if match[2] is not None and match[2].startswith("#"):
            break
        found.append(match[1] if match[1] is not None else match[2])
    return found


def read(target: Target, config: str | None, options: list[str]) -> list[tuple[str, str]]:
    """Return keywords and values for target, in the form of `ssh -G`.

    Raises Denied for a file that cannot be read, or that needs ssh to be understood.
    """
    reader = Reader(target.host)
    for keyword, value in (("port", target.port), ("user", target.user)):
        if value:
            reader.set(keyword, str(value))
    reader.several += [("identityfile", path) for path in target.identities]
    for option in options:
        keyword, _, text = option.partition("=")
        reader.set(keyword.lower(), text)
    for path in [config] if config else map(os.path.expanduser, USUAL):
        if config or os.path.exists(path):
            try:
                reader.file(path)
            except OSError as error:
                raise Denied(f"cannot read {error.filename}: {error.strerror}") from None
    values = reader.values
    for keyword, text in _DEFAULTS:
        values.setdefault(keyword, text)
    values["hostname"] = values.get("hostname", target.host).replace("%h", target.host)
    if not any(keyword == "identityfile" for keyword, _ in reader.several):
        reader.several += [("identityfile", f"~/.ssh/{name}") for name in _IDENTITIES]
    return [*values.items(), *reader.several]
