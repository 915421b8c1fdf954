"""Where jobctl keeps its state, and whether that place can be trusted."""

from __future__ import annotations

import os
import stat

from jobctl import configfile
from jobctl.errors import BadUsage, JobctlError, Refused
from jobctl.model import printable

_PRIVATE = 0o077


def keep_private() -> int:
    """Let nobody else have any file made from now on; return the umask there was before."""
    return os.umask(_PRIVATE)


def state_dir() -> str:
    """Return the state directory, made or checked: ours, a folder, writable by nobody else.

    It is $JOBCTL_STATE_DIR, else $XDG_STATE_HOME/jobctl, else what the system has for this.
    place.sh finds the same one where there is only sh.

    :raises Refused: somebody else owns it or can write to it.
    :raises JobctlError: it cannot be made or is no directory, or there is no home.
    """
    path = _named()
    try:
        os.makedirs(path, mode=0o700, exist_ok=True)
        link, folder = os.lstat(path), os.stat(path)
    except FileExistsError:
        raise JobctlError(
            f"{path} is not a directory; move it away or set JOBCTL_STATE_DIR"
        ) from None
    except OSError as error:
        raise JobctlError(
            f"cannot use the state directory {path}: {error.strerror}; set JOBCTL_STATE_DIR"
        ) from None
    for owner in (link.st_uid, folder.st_uid):
        if owner != os.geteuid():
            raise Refused(
                f"the state directory {path} belongs to user {owner}, not to you;"
                " set JOBCTL_STATE_DIR to one of your own"
            )
    if folder.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise Refused(f"others can write to {path}; chmod go-w it")
    # One that was made for us becomes private; one with other things in it is left as it is,
    # as what we put there is private in any case.
    if folder.st_mode & 0o077 and not os.listdir(path):
        os.chmod(path, 0o700)
    return path


def ssh_config() -> str:
    """Return the file that is to be used instead of ssh's configuration, "" if there is none.

    :raises BadUsage: nobody can read it more than once, such as what `<(...)` of a shell names.
    """
    named = os.environ.get("JOBCTL_SSH_CONFIG", "")
    try:
        configfile.check(named)
    except configfile.NotPlain as error:
        raise BadUsage(f"JOBCTL_SSH_CONFIG={printable(named)}: {error.strerror}") from None
    return os.path.abspath(named) if named else ""


def _named() -> str:
    named = os.environ.get("JOBCTL_STATE_DIR")
    if named:
        return os.path.abspath(named)
    base = os.environ.get("XDG_STATE_HOME", "")
    # "All paths must be absolute; if not, ignore them": XDG Base Directory Specification.
    if os.path.isabs(base):
        return os.path.join(base, "jobctl")
    if not os.path.isabs(os.environ.get("HOME", os.path.expanduser("~"))):
        raise JobctlError("there is no home directory to keep jobs in; set JOBCTL_STATE_DIR")
    return _by_convention()


def _by_convention() -> str:
    """Return the state directory that is usual on this system.

    It takes 7 ms to import what knows that, so only where no variable names the directory.
    """
    import platformdirs

    # Not absolute: not every release ignores that.
    given = os.environ.pop("XDG_STATE_HOME", None)
    try:
        return platformdirs.user_state_dir("jobctl", appauthor=False)
    finally:
        if given is not None:
            os.environ["XDG_STATE_HOME"] = given
