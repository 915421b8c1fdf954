"""Runs again what has failed: the command of a job, on the hosts of its failed children."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

from jobctl import nodes, quoting
from jobctl.errors import NotFound, Refused
from jobctl.folder import Folder
from jobctl.links import Links
from jobctl.model import Place, State
from jobctl.ops.find import Filter, children_of, find
from jobctl.share import FarTask
from jobctl.store import Store
from jobctl.task import Part


class Again(NamedTuple):
    """What to start."""

    values: dict[str, Any]
    """By the names of the options of `start`, and `words`."""
    places: tuple[Place, ...]
    """The hosts; none means here."""
    location: str
    script_name: str
    lost: frozenset[str]
    """Names of variables that the job was given and whose values are not kept."""
    items: list[bytes]


def failed_parts(state_dir: str, selector: str) -> Again:
    """Return what it takes to run the failed part of a job again.

    :raises NotFound: there is no such job, or there are several.
    :raises Refused: nothing of it has failed.
    """
    store = Store(state_dir)
    found = find(store, [selector], Filter(), one_each=True)
    for error in found.missing:
        raise error
    if len(found.jobs) != 1:
        ids = ", ".join(job.id for job in found.jobs[:5])
        raise NotFound(f"--retry-failed takes one job; give one of the ids {ids or '(none)'}")
    (job,) = found.jobs
    parts = children_of(store, job) if job.children else [job]
    failed = [store.jobs.folder(part.id) for part in parts if part.state is State.FAILED]
    if not failed:
        raise Refused(f"nothing of job {job.id} has failed; it is {job.state.value}")
    whole, spec = store.jobs.folder(job.id), failed[0].spec()
    if isinstance(whole, Part):
        whole = whole.task  # an item has neither script nor input of its own

    def text(key: str) -> str:
        return os.fsdecode(spec.get(key, b""))

    words = tuple(map(os.fsdecode, quoting.split(spec.get("words", b""))))
    script = text("script") != ""
    called = text("name")
    values: dict[str, Any] = {
        "words": tuple(map(os.fsdecode, quoting.split(spec.get("argv", b"")))),
        "text": text("text") or None,
        "script": whole.file("script") if script else None,
        "stdin": whole.file("stdin") if text("stdin") == "stdin" else None,
        "name": None if called == f"Job{job.id.partition('.')[0]}" else called,
        "cwd": text("cwd") or None,
        "init": text("init"),
        "merge": text("merge") == "1",
        "timeout": text("timeout") or None,
        "retries": int(text("retries") or "0"),
        "on_finish": os.fsdecode(whole.spec().get("on_finish", b"")),
        "results": text("results") or "local",
    }
    throttle = whole.spec().get("throttle", b"")
    values["throttle"] = int(throttle or b"0") or None
    values["per_host"] = int(whole.spec().get("per_host") or b"0") or None
    shares = (
        [whole.share(number) for number in range(1, whole.share_count + 1)]
        if isinstance(whole, FarTask)
        else failed
    )
    places = tuple(_place(state_dir, folder) for folder in shares if "host" in folder.spec())
    hosts = [place.host for place in places]
    folds = len(hosts) > 1 and not any("[" in host for host in hosts)
    return Again(
        values,
        places,
        nodes.fold(hosts) if folds else "",
        words[0] if script and words else "",
        frozenset(map(os.fsdecode, quoting.split(spec.get("variables", b"")))),
        [folder.task.item(folder.number) for folder in failed if isinstance(folder, Part)],
    )


def _place(state_dir: str, folder: Folder) -> Place:
    """Return where a child ran; through its session, if that is still there."""
    target = folder.target
    session = Links(state_dir).way(folder.session, target)
    return Place(session.target, session.name) if session else Place(target)
