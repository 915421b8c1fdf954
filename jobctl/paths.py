"""Where jobctl keeps its state, and whether that place can be trusted."""

from __future__ import annotations

import errno
import os
import stat

from jobctl import configfile
from jobctl.errors import BadUsage, JobctlError, Refused
from jobctl.model import printable

_PRIVATE = 0o077
_MOST_LINKS = 40
"""As many as Linux follows, see path_resolution(7)."""


def keep_private() -> int:
    """Let nobody else have any file made from now on; return the umask there was before."""
    return os.umask(_PRIVATE)


def state_dir() -> str:
    """Return the state directory, made or checked: ours, a folder, writable by nobody else.

    It is $JOBCTL_STATE_DIR, else $XDG_STATE_HOME/jobctl, else what the system has for this.
    place.sh finds the same one where there is only sh, and refuses the same.

    :raises Refused: somebody else owns it, can write to it, or can put another one in its place.
    :raises JobctlError: it cannot be made or is no directory, or there is no home.
    """
    path = _named()
    try:
        os.makedirs(path, mode=0o700, exist_ok=True)
        folder = os.stat(path)
        wrong = _way(path)
    except FileExistsError:
        raise JobctlError(
            f"{path} is not a directory; move it away or set JOBCTL_STATE_DIR"
        ) from None
    except OSError as error:
        raise JobctlError(
            f"cannot use the state directory {path}: {error.strerror}; set JOBCTL_STATE_DIR"
        ) from None
    if wrong:
        raise Refused(f"others can replace the state directory {path}: {wrong}")
    if folder.st_uid != os.geteuid():
        raise Refused(
            f"the state directory {path} belongs to user {folder.st_uid}, not to you;"
            " set JOBCTL_STATE_DIR to one of your own"
        )
    if folder.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise Refused(
            f"others can write to the state directory {path}, and may have done so:"
            " move it away, or set JOBCTL_STATE_DIR"
        )
    # One that was made for us becomes private; one with other things in it is left as it is,
    # as what we put there is private in any case.
    if folder.st_mode & 0o077 and not os.listdir(path):
        os.chmod(path, 0o700)
    return path


def _way(path: str) -> str:
    """Return what lets others put something else in the place of a path, "" if nothing does.

    Each folder and link on the way to it must be of root or ours, and writable by nobody else
    unless it is sticky: what sshd's StrictModes wants of the way to authorized_keys. Whoever owns
    the root directory counts as root, whom a user namespace may show under another number.

    :raises OSError: it is not there.
    """
    owners = {0, os.geteuid(), os.stat("/").st_uid}
    rest, at, links = path.split("/")[::-1], "/", 0
    while rest:
        part = rest.pop()
        if part in ("", "."):
            continue
        if part == "..":  # nobody can change where that leads
            at = os.path.dirname(at)
            continue
        if wrong := _open_to_others(at, os.lstat(at), owners):
            return wrong
        inner = os.path.join(at, part)
        status = os.lstat(inner)
        if not stat.S_ISLNK(status.st_mode):
            at = inner
            continue
        if wrong := _open_to_others(inner, status, owners):
            return wrong
        links += 1
        if links > _MOST_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        target = os.readlink(inner)
        rest += target.split("/")[::-1]
        at = "/" if target.startswith("/") else at
    return ""


def _open_to_others(path: str, status: os.stat_result, owners: set[int]) -> str:
    """Return what others can do with a folder or link on the way, "" if nothing."""
    mode = status.st_mode
    if status.st_uid not in owners:
        return f"{path} belongs to user {status.st_uid}; set JOBCTL_STATE_DIR"
    if stat.S_ISLNK(mode) or mode & stat.S_ISVTX or not mode & (stat.S_IWGRP | stat.S_IWOTH):
        return ""
    if not mode & stat.S_IWOTH and _has_only_us(status.st_gid):
        return ""
    return f"they can write to {path}; chmod go-w it, or set JOBCTL_STATE_DIR"


def _has_only_us(number: int) -> bool:
    """Whether a group is the user's own: it has his name, and no other member.

    Systems that give each user such a group often let it write to what he makes.
    """
    import grp
    import pwd

    try:
        user, group = pwd.getpwuid(os.geteuid()), grp.getgrgid(number)
    except KeyError:
        return False
    ours = (user.pw_name, user.pw_gid) == (group.gr_name, number)
    return ours and set(group.gr_mem) <= {user.pw_name}


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
