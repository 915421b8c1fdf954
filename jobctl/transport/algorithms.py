"""The ciphers, MACs, key exchanges and signatures to offer: ours that ssh_config(5) allows."""

from __future__ import annotations

import functools
import shutil
import subprocess
from collections.abc import Iterable, Sequence

from jobctl.model import printable
from jobctl.transport import config
from jobctl.transport.base import Denied
from jobctl.transport.config import Settings
from jobctl.transport.hostkeys import CERT_SUFFIX, fits

_MOST_SHOWN = 500


_SIGNATURES = (
    *("ssh-ed25519", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521"),
    *("sk-ssh-ed25519@openssh.com", "sk-ecdsa-sha2-nistp256@openssh.com"),
    *("rsa-sha2-512", "rsa-sha2-256"),
)


def signatures(settings: Settings) -> tuple[str, ...]:
    """Return the algorithms that the configuration lets us log in with, perhaps none."""
    certificates = [f"{name.partition('@')[0]}{CERT_SUFFIX}" for name in _SIGNATURES]
    ours = (*certificates, *_SIGNATURES)
    old, new = "PubkeyAcceptedKeyTypes", "PubkeyAcceptedAlgorithms"
    return _allowed(settings, new if settings.word(new.lower()) else old, ours)


def allowed(settings: Settings, keyword: str, ours: Sequence[str]) -> tuple[str, ...]:
    """Return those of ours that the configuration allows; raise Denied if there is none."""
    found = _allowed(settings, keyword, ours)
    if not found:
        value = printable(settings.word(keyword.lower())[:_MOST_SHOWN])
        raise Denied(
            f"cannot connect to {settings.name}: of {keyword} {value} in its settings, jobctl has"
            f" none; it has {', '.join(ours)}"
        )
    return found


def _allowed(settings: Settings, keyword: str, ours: Sequence[str]) -> tuple[str, ...]:
    """Return those of ours that the configuration allows, in its order if it has one of its own.

    What ssh takes where nobody has said anything does not count: it knows others than we do, and
    another order is faster here.
    """
    value = settings.word(keyword.lower())
    ssh = shutil.which("ssh", path=settings.environ.get("PATH")) or ""
    usual = _defaults(ssh).get(keyword.lower(), "")
    if value in ("", usual):
        return tuple(ours)
    default = [name for name in usual.split(",") if name in ours]
    found = [name for name in _resolved(value, ours) if name in ours]
    if default and found == default:  # all that was changed is not ours
        return tuple(ours)
    return tuple(found)


def _resolved(value: str, ours: Sequence[str]) -> list[str]:
    """Return the names that a list of ssh_config(5) means; `ssh -G` has only plain names in it."""
    names = value.lstrip("+-^").split(",")
    some = [our for name in names for our in ours if fits(name, our)]
    if value.startswith("-"):
        return [our for our in ours if our not in some]
    if value.startswith(("+", "^")):
        some = [*some, *ours] if value.startswith("^") else [*ours, *some]
    return list(dict.fromkeys(some))


@functools.cache
def _defaults(program: str) -> dict[str, str]:
    """Return what this ssh says of a machine when no file says anything."""
    if not program:
        return {}
    try:
        return dict(config.answer([program, "-G", "-F", "none", "--", "localhost"], {}))
    except (OSError, ValueError, subprocess.SubprocessError):
        return {}


def in_common(ours: Iterable[str], theirs: Iterable[str], what: str) -> str:
    """Return that two sides have nothing in common, and what each offers; empty if they have."""
    theirs = [name for name in theirs if not name.startswith(("ext-info-", "kex-strict-"))]
    if set(ours) & set(theirs):
        return ""
    offered = printable(", ".join(theirs)[:_MOST_SHOWN])
    return f"no {what} in common: it has {offered}; jobctl has {', '.join(ours)}"
