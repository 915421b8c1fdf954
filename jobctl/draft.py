"""A job that is about to be: written down whole, and made real with one rename."""

from __future__ import annotations

import errno
import os
import re
import time
import uuid
from collections.abc import Iterable
from contextlib import suppress

from jobctl import items, process, quoting, records, timing
from jobctl.descriptors import read
from jobctl.folder import STREAMS, Folder
from jobctl.model import LOCALHOST, TYPE_BACKGROUND, TYPE_REMOTE, TYPE_TASK, JobSpec, Marks, Place

_SHELL_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
_SHELLS_OWN = re.compile(
    "BASH(OPTS|PID|_.*)|DIRSTACK|E?[GU]ID|EPOCH(REALTIME|SECONDS)|EXECIGNORE"
    "|FUNC(NAME|NEST)|GLOB(IGNORE|SORT)|GROUPS|HISTCMD|IFS|KSH.*|LINENO|OPTIND"
    "|PERL(5OPT|_BADLANG|_UNICODE)|PGRP|PIPESTATUS|PPID|PS4|S?RANDOM|SECONDS|SHELLOPTS|TMOUT"
    "|USER(NAME|_ID)|jobctl_.*",
    re.ASCII | re.DOTALL,
)
"""Names that some sh keeps for itself, will not have set, or behaves differently by: bash, mksh or
zsh, each of which is the sh of some system; or perl, by which the runner sets the others. bare.sh
has the same ones."""
_HEAD = 512
"""Bytes of a script that are looked at."""
_BINARY = re.compile(rb"[\0-\x08\x0e-\x1a\x1c-\x1f\x7f]")
"""What the first line of a text has not: control characters other than white space and escape."""
_ADOPTED = ("instance_id", "name", "command", "words", "argv", "text", "cwd", "created")
"""What is believed of the spec of a job on a host."""


def write(folder: Folder, spec: JobSpec) -> None:
    """Write down a job that commit() will make real; with several places, one with children.

    :raises OSError: the disk is full, say.
    """
    script = ""
    if spec.script is not None:
        script = _kind(_copy(folder, spec.script, "script"))
        os.chmod(folder.file("script"), 0o700)
    if spec.stdin is not None:
        _copy(folder, spec.stdin, "stdin")
    name = spec.name or f"Job{folder.id}"
    common = _common(spec, name, script)
    if spec.items is not None:
        _write_task(folder, spec, name, common, spec.items)
    elif len(spec.places) > 1:
        for number, place in enumerate(spec.places, 1):
            child = folder.child(number)
            os.makedirs(child.path, 0o700)
            for shared in ("script", "stdin"):
                with suppress(FileNotFoundError):
                    os.link(folder.file(shared), child.file(shared))
            _write_one(child, spec, name, common, place)
            commit(child, durably=False)
        _write(folder, "received", records.dump_marks(Marks()))
        whole = {"instance_id": str(uuid.uuid4()), "children": str(len(spec.places))}
        whole["throttle"] = str(spec.throttle)
        if spec.on_finish:
            told = {"JOBCTL_ID": folder.id, "JOBCTL_NAME": name}
            told["JOBCTL_INSTANCE_ID"] = whole["instance_id"]
            _write_environment(folder, "env", {**spec.env, **told})
        _write_spec(folder, spec, common, None, whole)
    else:
        _write_one(folder, spec, name, common, spec.places[0] if spec.places else None)


def _write_task(
    folder: Folder, spec: JobSpec, name: str, common: bytes, every: Iterable[bytes]
) -> None:
    """Write down a command for each of many items."""
    more_of_them = ("hosts",) if spec.places else ("taken", "begun")
    for directory in ("items", "children", "slots", *more_of_them):
        os.mkdir(folder.file(directory), 0o700)
    count = 0
    for first, size, block in items.blocks(every):
        _write(folder, f"items/{first}", block)
        count += size
    instance_id = str(uuid.uuid4())
    told = {
        "JOBCTL_ID": folder.id,
        "JOBCTL_NAME": name,
        "JOBCTL_INSTANCE_ID": instance_id,
        "JOBCTL_HOST": LOCALHOST,
    }
    if not spec.places or spec.on_finish:
        _write_environment(folder, "env", {**spec.env, **told})
    for name_of_it in ("received", "lock"):
        _write(folder, name_of_it, b"")
    _write(folder, "exit.new", b"\n" * 512)  # room for the end, should the disk be full then
    placed = items.stands_in((*spec.argv, spec.text))
    words = spec.argv if placed else (*spec.argv, items.ITEM)
    fixed = spec.text or spec.script is not None or not items.stands_in(words[:1])
    more = {
        "instance_id": instance_id,
        "children": str(count),
        "throttle": str(min(spec.throttle, count)),
        "hosts": str(len(spec.places)),
        "per_host": str(spec.per_host),
        "item_argv": os.fsdecode(b" ".join(items.expression(os.fsencode(w)) for w in words)),
        "item_text": items.in_text(spec.text),
        "same_command": "1" if fixed else "",
    }
    for number, place in enumerate(spec.places, 1):
        share = Folder(folder.file(f"hosts/{number}"))
        os.mkdir(share.path, 0o700)
        for shared in ("script", "stdin"):
            with suppress(FileNotFoundError):
                os.link(folder.file(shared), share.file(shared))
        here = {"JOBCTL_HOST": place.host}
        _write_environment(share, "far.env", {**spec.variables, **told, **here})
        _write_sendable(share, spec)
        own = {"share": "1", "children": "0", "instance_id": str(uuid.uuid4())}
        _write_spec(share, spec, common, place, more | own | {"whole": instance_id})
        commit(share, durably=False)
    _write_spec(folder, spec, common, None, more)


def _write_one(
    folder: Folder, spec: JobSpec, name: str, common: bytes, place: Place | None
) -> None:
    """Write down one command in one place: here if that is None."""
    instance_id = str(uuid.uuid4())
    told = {
        "JOBCTL_ID": folder.id,
        "JOBCTL_NAME": name,
        "JOBCTL_INSTANCE_ID": instance_id,
        "JOBCTL_HOST": place.host if place else LOCALHOST,
    }
    if place:
        _write_environment(folder, "far.env", {**spec.variables, **told})
        _write_sendable(folder, spec)
    if not place or (spec.on_finish and not folder.is_child):
        _write_environment(folder, "env", {**spec.env, **told})
    for stream in (*STREAMS, "lock"):
        _write(folder, stream, b"")
    _write(folder, "received", records.dump_marks(Marks()))
    _write_spec(folder, spec, common, place, {"instance_id": instance_id})


def _write_spec(
    folder: Folder, spec: JobSpec, common: bytes, place: Place | None, more: dict[str, str]
) -> None:
    """Write down what is to be run here, or there; common is what _common() returned."""
    if place:
        from jobctl.links import dump_way

        record = {
            "location": place.host,
            "host": place.host,
            "session": place.session,
            "results": "remote" if spec.results_stay else "local",
            **dump_way(place.target, "ssh_"),
        }
    else:
        hosts = spec.location or ",".join(place.host for place in spec.places)
        record = {"location": hosts or LOCALHOST}
    if not folder.is_child:
        record["on_finish"] = spec.on_finish
    fields = {key: os.fsencode(value) for key, value in (record | more).items()}
    _write(folder, "spec.new", common + quoting.dump(fields))
    if not folder.is_child:
        _sync(folder.file("spec.new"))


def _common(spec: JobSpec, name: str, script: str) -> bytes:
    """Return what the specs of a job and of all its children have in common."""
    record = {
        "format": "1",
        "name": name,
        "type": _type(spec),
        "command": spec.command,
        "text": spec.text,
        "script": script,
        "init": spec.init,
        "cwd": spec.cwd,
        "umask": f"{spec.umask:04o}",
        "stdin": "/dev/null" if spec.stdin is None else "stdin",
        "merge": "1" if spec.merge else "",
        "timeout": "" if spec.timeout is None else timing.plain(spec.timeout),
        "timeout_text": spec.timeout_text,
        "retries": str(spec.retries),
        "after": " ".join(spec.after),
        "after_ok": " ".join(spec.after_ok),
        "caller": "" if spec.caller is None else _caller(spec.caller),
        "created": f"{time.time():.6f}",
        "variables": os.fsdecode(quoting.join(map(os.fsencode, spec.variables))),
    }
    if spec.places:
        record["caller_cwd"] = spec.caller_cwd
    fields = {key: os.fsencode(value) for key, value in record.items()}
    fields["argv"] = quoting.join(map(os.fsencode, spec.argv))
    fields["words"] = quoting.join(map(os.fsencode, spec.words))
    return quoting.dump(fields)


def _type(spec: JobSpec) -> str:
    if spec.places:
        return TYPE_REMOTE
    return TYPE_BACKGROUND if spec.items is None else TYPE_TASK


def adopt(folder: Folder, record: dict[str, bytes], place: Place, path: str) -> None:
    """Make real a job that somebody else began on a host.

    :param record: what its spec there says.
    :param path: its folder there.
    """
    from jobctl.links import dump_way

    known = {key: record.get(key, b"") for key in _ADOPTED}
    known |= {
        "format": b"1",
        "type": TYPE_REMOTE.encode(),
        "location": os.fsencode(place.host),
        "host": os.fsencode(place.host),
        "session": os.fsencode(place.session),
        "results": b"local",
        "path": os.fsencode(path),
        **{key: os.fsencode(value) for key, value in dump_way(place.target, "ssh_").items()},
    }
    for stream in (*STREAMS, "lock", "adopted"):
        _write(folder, stream, b"")
    _write(folder, "received", records.dump_marks(Marks()))
    _write(folder, "spec.new", quoting.dump(known))
    _sync(folder.file("spec.new"))
    commit(folder)


def commit(folder: Folder, durably: bool = True) -> str:
    """Make the job real, and that durable.

    From the rename on there is a job: it may be running, whatever comes after.

    :return: why a power failure may undo it, "" if none can.
    :raises OSError: there is no job.
    """
    if durably:
        _sync(os.path.dirname(folder.path))
    os.rename(folder.file("spec.new"), folder.file("spec"))
    try:
        if durably:
            _sync(folder.path)
    except OSError as error:
        return f"cannot sync {folder.path}: {error.strerror}"
    return ""


def is_odd(name: str) -> bool:
    """Whether sh is not to be asked to set a variable of this name."""
    return not _SHELL_NAME.fullmatch(name) or _SHELLS_OWN.fullmatch(name) is not None


def _write_environment(folder: Folder, name: str, environment: dict[str, str]) -> None:
    lines, odd = [], []
    for key, value in environment.items():
        pair = os.fsencode(f"{key}={value}")
        if is_odd(key):
            odd.append(pair)
        elif key != "_":  # the shell's word for what it last ran
            lines.append(b"export " + quoting.quote(pair) + b"\n")
    _write(folder, name, b"".join(lines))
    if odd:
        text = b"set -- /usr/bin/env " + quoting.join(odd) + b' "$@"\n'
        _write(folder, f"{name}.odd", text)


def _write_sendable(folder: Folder, spec: JobSpec) -> None:
    """Write down what of the caller's environment SendEnv may mean, if there is any."""
    if spec.sendable:
        pairs = (os.fsencode(f"{name}={value}") for name, value in spec.sendable.items())
        _write(folder, "far.send", quoting.join(pairs))


def _write(folder: Folder, name: str, content: bytes) -> None:
    with open(folder.file(name), "wb", opener=_private) as file:
        file.write(content)


def _copy(folder: Folder, source: int, name: str) -> bytes:
    """Copy an open file to its end; return its first bytes."""
    start = b""
    with open(folder.file(name), "wb", opener=_private) as file:
        while piece := read(source):
            start += piece[: _HEAD - len(start)]
            file.write(piece)
    return start


def _kind(head: bytes) -> str:
    """Return what a script is that begins so: for #!, for the kernel, or for sh.

    Without #! it would be up to the system what runs text: sh then does.
    """
    if head[:2] == b"#!":
        return "executable"
    return "binary" if _BINARY.search(head.partition(b"\n")[0]) else "text"


def _caller(pid: int) -> str:
    sight = process.look(pid)
    return f"{pid} {sight.start if sight else ''}"


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _sync(path: str) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # the file system has none
            raise
    finally:
        os.close(fd)
