"""Sets of hosts as ClusterShell writes them: web[01-20], groups such as @web, differences."""

from __future__ import annotations

import re
from collections.abc import Iterable

from jobctl.errors import BadUsage
from jobctl.model import printable

MOST = 10_000
"""Hosts that one set may mean."""
_OF_SETS = re.compile(r"[\[\]!&^]|(^|,)@")
_ADDRESS = re.compile(r"\[[0-9A-Fa-f.]*:[^\[\],]*\]")
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
    # Not before it is needed: it takes as long to load as all else of a command.
    from ClusterShell.NodeSet import NodeSet, NodeSetException
    from ClusterShell.NodeUtils import GroupResolverError

    shown = printable(text[:60] + "…" if len(text) > 60 else text)
    for first, last in _RANGE.findall(text):
        # It would be written out before it can be counted.
        if len(last) > 9 or int(last) - int(first[-10:]) >= MOST:
            raise BadUsage(f"'{shown}' means more than {MOST:,} hosts; start several jobs")
    try:
        nodes = NodeSet(text)
    except NodeSetException as error:
        raise BadUsage(f"'{shown}' is no node set: {printable(str(error))}") from None
    except GroupResolverError as error:
        reason = f"no group source {printable(str(error))}"
        raise BadUsage(f"'{shown}' is no node set: {reason}") from None
    if not nodes:
        raise BadUsage(f"'{shown}' means no hosts; is there such a group?")
    if len(nodes) > MOST:
        raise BadUsage(f"'{shown}' means more than {MOST:,} hosts; start several jobs")
    return list(nodes)


def fold(hosts: Iterable[str]) -> str:
    """Return the shortest way to write some hosts down."""
    from ClusterShell.NodeSet import NodeSet

    return str(NodeSet.fromlist(list(hosts)))
