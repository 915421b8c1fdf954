"""Sets of hosts as ClusterShell writes them: web[01-20], groups such as @web, differences."""

from __future__ import annotations

import configparser
import glob
import os
import re
import shlex
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from string import Template
from typing import TYPE_CHECKING

from jobctl import configfile
from jobctl.errors import BadUsage
from jobctl.model import printable
from jobctl.target import parse_target

if TYPE_CHECKING:
    from ClusterShell.NodeSet import NodeSet

MOST = 10_000
"""Hosts that one set may mean."""
_OF_SETS = re.compile(r"[\[\]!&^]|(^|,)@")
_ADDRESS = re.compile(r"\[[0-9A-Fa-f.]*:[^\[\],]*\]")
_LOCAL = "~/.local/etc"
"""Where pip puts such files for one user."""
_RANGE = re.compile(r"(\d+)-(\d+)", re.ASCII)


def is_set(text: str) -> bool:
    """Whether text is more than a list of hosts."""
    # ClusterShell passes over what does not print; nothing of a host's name is to be.
    return text.isprintable() and " " not in text and bool(_OF_SETS.search(_ADDRESS.sub("", text)))


def expand(text: str) -> list[str]:
    """Return the hosts that a list with commas means, each once.

    A plain list stays in its order. With anything of node sets in it, all of it is one node set
    for ClusterShell, which orders the hosts: clush(1), nodeset(1). Addresses such as [::1]:22
    are left as they are, and cannot stand beside node sets.

    :raises BadUsage: it makes no sense, or means nothing or too much.
    """
    if not is_set(text):
        return list(dict.fromkeys(text.split(",")))
    shown = printable(text[:60] + "…" if len(text) > 60 else text)
    for first, last in _RANGE.findall(text):
        # It would be written out before it can be counted.
        if len(last) > 9 or int(last) - int(first[-10:]) >= MOST:
            raise BadUsage(f"'{shown}' means more than {MOST:,} hosts; start several jobs")
    try:
        with _input_kept():
            nodes = _nodes(text)
    except _Senseless as error:
        raise BadUsage(f"'{shown}' is no node set: {error}") from None
    if not nodes:
        raise BadUsage(f"'{shown}' means no hosts; is there such a group?")
    if len(nodes) > MOST:
        raise BadUsage(f"'{shown}' means more than {MOST:,} hosts; start several jobs")
    for host in nodes:
        try:
            parse_target(host)
        except BadUsage as error:
            raise BadUsage(f"'{shown}' is not a set of hosts: {error}") from None
    return list(nodes)


def fold(hosts: Iterable[str]) -> str:
    """Return the shortest way to write some hosts down.

    :raises BadUsage: ClusterShell's configuration makes no sense.
    """
    try:
        _check("defaults.conf")
        from ClusterShell.NodeSet import RESOLVER_NOGROUP, NodeSet
    except _AT_LOADING as error:
        raise BadUsage(printable(_fault("defaults.conf", error))) from None
    return str(NodeSet.fromlist(list(hosts), resolver=RESOLVER_NOGROUP))


class _Senseless(Exception):
    """The text, or the configuration of the groups in it, makes no sense; says why."""


_AT_LOADING = (configparser.Error, ValueError, configfile.NotPlain)
_AT_WORK = (*_AT_LOADING, OSError, AttributeError, TypeError, RuntimeError)
"""What ClusterShell passes on of files that are not as it takes for granted."""


def _nodes(text: str) -> NodeSet:
    """Return the hosts of a node set, of which there may be very many; raise _Senseless."""
    # Not before it is needed: it takes as long to load as all else of a command.
    try:
        _check("defaults.conf")
        from ClusterShell.NodeSet import ILLEGAL_GROUP_CHARS, NodeSet, NodeSetException
        from ClusterShell.NodeUtils import (
            GroupResolverConfig,
            GroupResolverError,
            GroupResolverSourceError,
        )
    except _AT_LOADING as error:
        raise _Senseless(printable(_fault("defaults.conf", error))) from None
    groups = GroupResolverConfig(_configured("groups.conf"), ILLEGAL_GROUP_CHARS)
    try:
        if "@" in text:
            _check_groups()
        return NodeSet(text, resolver=groups)
    except NodeSetException as error:
        reason = _failed_source(error) or _whose_fault(text, str(error))
    except GroupResolverSourceError as error:
        read = ", ".join(_configured("groups.conf"))
        reason = f"no group source {error}" + (f" in {read}" if read else "")
        reason += _closed() or ("" if read else "; no groups.conf is there")
    except (GroupResolverError, *_AT_WORK) as error:
        reason = _fault("groups.conf", error)
    raise _Senseless(printable(reason))


@contextmanager
def _input_kept() -> Iterator[None]:
    """Let nobody read our standard input, in which items may come.

    ClusterShell hands it to the programs that know groups before 1.10.
    """
    null, kept = os.open(os.devnull, os.O_RDONLY), os.dup(0)
    try:
        os.dup2(null, 0)
        yield
    finally:
        os.dup2(kept, 0)
        os.close(kept)
        os.close(null)


# --- the configuration of groups ---


def _configured(name: str) -> list[str]:
    """Return the files of this name that the system and the user have, what counts more last."""
    paths = filter(os.path.exists, _places(name))
    local = os.path.expanduser(_LOCAL)
    return [path for path in paths if not (path.startswith(f"{local}/") and _is_example(path))]


def _closed() -> str:
    """Return what to say of files of groups that are closed to us; "" if none is."""
    paths, said = _places("groups.conf"), ""
    configured = _configured("groups.conf")
    paths += _parts(configured) + [folder for folder, _ in _folders_of_parts(configured)]
    for path in paths:
        try:
            os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY))
        except PermissionError as error:
            said += f"; cannot read {path}: {error.strerror}"
        except OSError:
            pass
    return said


def _places(name: str) -> list[str]:
    """Return where a file of this name may be, what counts more last.

    These are ClusterShell's places, but for those where pip puts the examples that come with it:
    to it, they are a configuration like any other, and beat that of the system.
    """
    environ = os.environ
    folders = ["/etc/clustershell", f"{os.path.expanduser(_LOCAL)}/clustershell"]
    folders.append(
        f"{environ.get('XDG_CONFIG_HOME') or os.path.expanduser('~/.config')}/clustershell"
    )
    if environ.get("CLUSTERSHELL_CFGDIR"):
        folders.append(environ["CLUSTERSHELL_CFGDIR"])
    return [f"{folder}/{name}" for folder in folders]


def _is_example(path: str) -> bool:
    """Whether a file came with ClusterShell itself."""
    from importlib import metadata

    try:
        brought = metadata.files("ClusterShell") or []
    except metadata.PackageNotFoundError:
        return False
    mine = os.path.realpath(path)
    return any(f.name == "groups.conf" and os.path.realpath(f.locate()) == mine for f in brought)


def _check(name: str) -> None:
    """Refuse what would keep us waiting in the place of a file.

    :raises configfile.NotPlain: it is a pipe, say.
    """
    for path in _configured(name):
        configfile.check(path)


def _check_groups() -> None:
    """Refuse what ClusterShell would pass over, or wait for: then a group meant other hosts.

    What may not be read below its folders it passes over on purpose: that may be for others.

    :raises OSError: it cannot be read.
    """
    paths = _configured("groups.conf")
    for path in paths:
        os.close(configfile.opener(path, os.O_RDONLY))
    for path in _parts(paths):
        configfile.check(path)


def _parts(paths: list[str]) -> list[str]:
    """Return the files that those of a configuration name, as ClusterShell finds them."""
    return [path for place in _folders_of_parts(paths) for path in _files_in(*place)]


def _files_in(folder: str, ending: str) -> list[str]:
    return sorted(glob.glob(f"{glob.escape(folder)}/*.{ending}"))


def _folders_of_parts(paths: list[str]) -> list[tuple[str, str]]:
    """Return the folders that the files of a configuration name, and how files there end."""
    parser = configparser.ConfigParser()
    found = list[tuple[str, str]]()
    with suppress(configparser.Error, ValueError, OSError):
        if parser.read(paths) and parser.has_section("Main"):
            main = parser["Main"]
            place = os.path.dirname(paths[-1])
            for folders, ending in (
                (main.get("groupsdir", main.get("confdir", "")), "conf"),
                (main.get("autodir", ""), "yaml"),
            ):
                for folder in shlex.split(folders):
                    path = Template(folder).safe_substitute(CFGDIR=place)
                    found.append((os.path.normpath(path), ending))
    return found


def _fault(name: str, error: Exception) -> str:
    """Return what is wrong with the configuration, and where; error is all that was said of it."""
    if isinstance(error, OSError) and error.filename:
        return f"cannot read {error.filename}: {error.strerror}"
    paths = _configured(name)[::-1]
    for part in (*paths, *_parts(paths[::-1])):
        if fault := _fault_in(part):
            return f"{part}, {fault}"
    said = " ".join(str(error).split())[:300]
    if isinstance(error, (AttributeError, TypeError)):
        said = "what is said there of a group is not text"
    elif isinstance(error, UnicodeDecodeError):
        said = "what a group source answers is not UTF-8"
    return said if not paths or said.startswith("/") else f"{paths[0]}: {said}"


def _whose_fault(text: str, said: str) -> str:
    """Return what is wrong with a node set, with the files of groups if it is not in the text."""
    where = ", ".join(_configured("groups.conf"))
    if "recursion" in said:
        return f"{where}: a group is in itself"
    _, quote, wrong = said.partition('"')
    return said if not quote or wrong.rstrip('"') in text else f"{where}: {said}"


def _failed_source(error: BaseException | None) -> str:
    """Return which command that knows groups has failed, and where it stands; "" if none has."""
    from ClusterShell.NodeUtils import GroupSourceError, GroupSourceQueryFailed

    while error and not isinstance(error, GroupSourceError):
        error = error.__context__
    if not isinstance(error, GroupSourceError):
        return ""
    name = error.group_source.name
    paths = _configured("groups.conf")
    where = [path for path in (*_parts(paths), *paths[::-1]) if _has_section(path, name)]
    said = " ".join(str(error).split())[:300]
    fails = isinstance(error, GroupSourceQueryFailed)
    why = f"this fails: {said}" if fails else f"there is no '{said}' command"
    return f"{', '.join(where[:1] or paths)}: group source {name}: {why}"


def _has_section(path: str, name: str) -> bool:
    """Whether a file says how a group source is asked."""
    parser = configparser.ConfigParser()
    with suppress(configparser.Error, ValueError, OSError):
        parser.read(path)
    return any(name in section.split(",") for section in parser.sections())


def _fault_in(path: str) -> str:
    """Return the line in which a file cannot be read, and why; empty if it can be."""
    try:
        with open(path, "rb", opener=configfile.opener) as file:
            data = file.read()
        text = data.decode()
        if not path.endswith(".yaml"):
            configparser.ConfigParser().read_string(text)
    except OSError:
        return ""
    except UnicodeDecodeError as error:
        line, why = data.count(b"\n", 0, error.start) + 1, "this is not UTF-8"
    except configparser.MissingSectionHeaderError as error:
        line, why = error.lineno, "there is no [section] above this"
    except configparser.ParsingError as error:
        line, why = error.errors[0][0], "this is not NAME: VALUE"
    except (configparser.DuplicateSectionError, configparser.DuplicateOptionError) as error:
        line, why = error.lineno or 0, "this is there already"
    else:
        return ""
    return f"line {line}: {why}"
