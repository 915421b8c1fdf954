"""`jobctl start`."""

from __future__ import annotations

import os
import re
import stat
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from jobctl import items, paths, process, quoting, records
from jobctl.cli import options, render
from jobctl.errors import BadUsage, CannotWrite, JobctlError
from jobctl.jobs import Jobs
from jobctl.model import (
    TYPE_BACKGROUND,
    TYPE_TASK,
    Job,
    JobSpec,
    Place,
    State,
    check_name,
    printable,
)
from jobctl.ops.start import start
from jobctl.task import Task

if TYPE_CHECKING:
    from jobctl.folder import Folder
    from jobctl.ops.again import Again
    from jobctl.ops.wait import News

_MOST_RETRIES = 1_000_000
_LOOKED_THROUGH = 1 << 16
"""Bytes of a script."""
_SYSTEM = ("/bin", "/sbin", "/usr/bin", "/usr/sbin")
_NOT_INHERITED = {"PWD", "JOBCTL_ITEM", "JOBCTL_PROGRESS", "JOBCTL_RUNNER"}
"""What the runner sets, or what belongs to the job that called us."""


_OF_THE_JOB = {
    "words": "COMMAND",
    "text": "-c",
    "script": "-f",
    "foreach": "--foreach",
    "hosts": "--host",
    "sessions": "--session",
    "stdin": "--stdin",
    "cwd": "--cwd",
    "init": "--init",
}
"""Options that say what to do and where, by the names of their values."""
_READERS = {"foreach": "--foreach", "stdin": "--stdin", "script": "-f"}
"""Those that may read standard input."""


def _complete_command(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Return the programs for the first word, unless it is a path, and files after that."""
    params = ctx.params
    first = not (params.get("words") or params.get("text") or params.get("script"))
    if not first or "/" in incomplete or not incomplete:
        return options.complete_file(ctx, param, incomplete)
    programs = set[str]()
    for directory in os.get_exec_path():
        with suppress(OSError):
            programs.update(name for name in os.listdir(directory) if name.startswith(incomplete))
    return [CompletionItem(program) for program in sorted(programs)]


@click.command(
    "start",
    cls=options.Command,
    context_settings={"allow_interspersed_args": False},
    epilog="Example: jobctl start -n nightly --timeout 2h -- make -j4",
)
@click.option(
    "-c", "text", metavar="TEXT", help="Run TEXT with sh -c; the arguments are its $1, $2 ..."
)
@click.option(
    "-f",
    "script",
    metavar="SCRIPT|-",
    shell_complete=options.complete_file,
    help="Run this script file, or standard input, with the arguments.",
)
@click.option("-n", "--name", help="A name to find the job by.")
@click.option(
    "-H",
    "--host",
    "hosts",
    metavar="HOSTS",
    multiple=True,
    shell_complete=options.complete_hosts,
    help="Run on these hosts over SSH: a list with commas, or 'web[1-9]'. May be repeated.",
)
@click.option(
    "-s",
    "--session",
    "sessions",
    metavar="NAME",
    multiple=True,
    shell_complete=options.complete_sessions,
    help="Run on the host of this session. May be repeated.",
)
@click.option(
    "--foreach",
    metavar="FILE|-",
    shell_complete=options.complete_file,
    help="Run it for each line of this file: {} in COMMAND is the line, {#} its number.",
)
@click.option("-0", "--null", is_flag=True, help="With --foreach: NULs end the items, not lines.")
@click.option(
    "-t",
    "--throttle",
    type=options.Whole(1, 2**31),
    metavar="N",
    help="How many run at once: hosts (32 if not given) or items (one per CPU).",
)
@click.option(
    "--per-host",
    type=options.Whole(1, 2**31),
    metavar="N",
    help="How many items run at once on each host; one per CPU there if not given.",
)
@click.option(
    "--results",
    type=click.Choice(["local", "remote"]),
    default="local",
    show_default=True,
    help="Whether output comes here by itself, or stays on the host until asked for.",
)
@click.option(
    "-C",
    "--cwd",
    metavar="DIR",
    shell_complete=options.complete_directory,
    help="Run in this directory instead of here, or of the home directory on a host.",
)
@click.option(
    "-e",
    "--env",
    "variables",
    metavar="NAME[=VALUE]",
    multiple=True,
    help="Set a variable. May be repeated.",
)
@click.option(
    "--init", default="", metavar="TEXT", help="Shell text to run first, in the same shell."
)
@click.option(
    "--stdin",
    metavar="FILE|-",
    shell_complete=options.complete_file,
    help="Standard input; a copy is kept. Else /dev/null.",
)
@click.option(
    "--timeout",
    metavar="DURATION",
    help="Stop it after this time; it is Failed then.",
)
@click.option(
    "--retries",
    type=options.Whole(0, _MOST_RETRIES),
    metavar="N",
    default=0,
    help="Run it again when it fails, at most N times.",
)
@click.option(
    "--retry-failed",
    metavar="JOB",
    shell_complete=options.complete_jobs,
    help="Start the command of JOB again, on the hosts where it failed.",
)
@click.option(
    "--after",
    metavar="JOB",
    multiple=True,
    shell_complete=options.complete_jobs,
    help="Begin when JOB is finished. May be repeated.",
)
@click.option(
    "--after-ok",
    metavar="JOB",
    multiple=True,
    shell_complete=options.complete_jobs,
    help="The same, if JOB is Completed, else never.",
)
@click.option(
    "--singleton", is_flag=True, help="Start nothing if an unfinished job has the same name."
)
@click.option("--merge", is_flag=True, help="Standard error into standard output, in order.")
@click.option("--with-parent", is_flag=True, help="Stop it when the process that calls this ends.")
@click.option(
    "--on-finish", default="", metavar="TEXT", help="Shell text to run when it is finished."
)
@click.option("-w", "--wait", is_flag=True, help="Write its output, and end with its status.")
@options.output
@click.argument(
    "words",
    metavar="COMMAND [ARG]...",
    nargs=-1,
    type=click.UNPROCESSED,
    shell_complete=_complete_command,
)
def command(wait: bool, form: str, quiet: bool, singleton: bool, **values: Any) -> int:
    """Start COMMAND as a job in the background, and print its record.

    Options end at the first word that is none; the rest is the command. It runs in a session
    of its own and goes on when the terminal is closed.
    """
    try:
        return _start(wait, "ids" if quiet else form, singleton, values)
    except JobctlError as error:
        if wait and not isinstance(error, BadUsage) and error.status != JobctlError.status:
            # Any other status would be taken for the command's.
            raise JobctlError(str(error)) from None
        raise


def _start(wait: bool, form: str, singleton: bool, values: dict[str, Any]) -> int:
    spec = _spec(values)
    render.ready()
    state_dir = paths.state_dir()
    brief = wait or form == "ids"
    attend = _Attending(state_dir) if wait and spec.places else None
    if singleton:
        if not spec.name:
            raise BadUsage("--singleton needs --name, to tell which jobs are the same")
        from jobctl.ops.others import unless_running

        job, begun = unless_running(
            state_dir, spec.name, lambda: start(state_dir, spec, brief, attend, render.say)
        )
    else:
        job, begun = start(state_dir, spec, brief, attend, render.say), True
    unable = _why_not(state_dir, job) if begun else ""
    if begun:
        _warn_of_emptying(spec, Jobs(state_dir).folder(job.id))
    if begun and os.isatty(2) and _input_is_left(values):
        render.say("standard input is not read by the job; to give it to it, use --stdin -")
    if begun and not (values["text"] or values["script"]):
        options.tell_of_shell_words(spec.argv)
    if not wait:
        try:
            render.records([job], form)
        except CannotWrite as error:
            # Who has no id of it cannot end it.
            render.say(f"{error}; job {job.id} {'was started' if begun else 'goes on'}")
            return error.status
        if unable:
            render.say(f"job {job.id} failed: {unable}")
        return int(bool(unable))
    if form != "ids":
        render.say(f"job {job.id}")
    from jobctl.cli.receive import follow, tags_by_default
    from jobctl.ops.receive import Manner

    manner = Manner(tag=tags_by_default([job]))
    return follow([job], manner, news=attend.news if attend else None)


class _Attending:
    """Whoever waits at a terminal for a job that is about to be, and may be asked from then on."""

    def __init__(self, state_dir: str) -> None:
        self._state_dir = state_dir
        self.news: News | None = None

    def __call__(self, job_id: str) -> None:
        """Begin to be told of a job, if there is somebody to be asked."""
        from jobctl.cli import terminal
        from jobctl.ops.wait import News

        if ask := terminal.person():
            self.news = News(self._state_dir, [job_id], ask, render.say)


def _warn_of_emptying(spec: JobSpec, folder: Folder) -> None:
    """Say so if the job, as far as its words show, empties its own output.

    On a system where names like /dev/stdout do not lead to the file that keeps it, no job does.
    """
    texts = [spec.init, spec.text]
    if spec.script is not None:
        texts.append(folder.head("script", _LOOKED_THROUGH).decode("utf-8", "replace"))
    words = spec.argv if not spec.text and spec.script is None else ()
    if words and not spec.places:
        texts.append(_script_in(words, spec.cwd, spec.env.get("PATH", os.defpath)))
    if not any(mark in text for mark in ("/dev/std", "/fd/") for text in (*texts, *words)):
        return
    if sys.platform != "linux" and not spec.places:
        return
    from jobctl import emptying

    found = [emptying.in_words(words), *map(emptying.in_text, texts)]
    if piece := next(filter(None, found), ""):
        render.say(emptying.advice(piece))


def _script_in(words: Sequence[str], cwd: str, path: str) -> str:
    """Return the beginning of the script that a command is, or has a shell read, else ""."""
    if os.path.basename(words[0]) in quoting.SHELLS:
        script = "".join(words[1:2])
        return "" if script[:1] in ("", "-", "+") else _beginning(os.path.join(cwd, script))
    folders = path.split(":") if "/" not in words[0] else [""]
    for program in (os.path.join(cwd, folder, words[0]) for folder in folders):
        if os.path.isfile(program) and os.access(program, os.X_OK):
            # Nobody can mend what the system brings.
            mine = os.path.dirname(program) not in _SYSTEM
            return _beginning(program, b"#!") if mine else ""
    return ""


def _beginning(path: str, sign: bytes = b"") -> str:
    """Return the beginning of a file, "" where there is none that starts with the sign."""
    try:
        with open(path, "rb", opener=records.opened) as file:
            more = _LOOKED_THROUGH if file.read(len(sign)) == sign else 0
            return file.read(more).decode("utf-8", "replace")
    except OSError:
        return ""


def _why_not(state_dir: str, job: Job) -> str:
    """Return why a job here, or its first item, could not begin, if that is so."""
    if job.type == TYPE_TASK and not items.stands_in(job.argv[:1]):
        folder = Jobs(state_dir).folder(job.id)
        return folder.never_began() if isinstance(folder, Task) else ""
    unable = job.state is State.FAILED and job.pid is None and job.type == TYPE_BACKGROUND
    return job.reason if unable else ""


def _spec(values: dict[str, Any]) -> JobSpec:
    """Return what the options say.

    :raises BadUsage: they make no sense, alone or together.
    :raises NotFound: there is no job to begin after.
    """
    again = _again(values) if values["retry_failed"] is not None else None
    words: tuple[str, ...] = values["words"]
    text, script = values["text"], values["script"]
    if text is not None and script is not None:
        raise BadUsage("-c and -f contradict each other; give one of them")
    if text is None and script is None and not (words and words[0]):
        raise BadUsage("there is no command to run; write jobctl start COMMAND [ARG]...")
    if text is not None and not text.strip():
        raise BadUsage("-c '' is no command; give it shell text")
    timeout = values["timeout"]
    name = "" if values["name"] is None else check_name(values["name"])
    spec: dict[str, Any] = {
        "argv": words,
        "text": text or "",
        "name": name,
        "env": _environment(values["variables"]),
        "umask": options.caller_umask,
        "init": values["init"],
        "merge": values["merge"],
        "timeout": None if timeout is None else options.positive(timeout),
        "timeout_text": f"{timeout}s"
        if timeout and timeout[-1] in "0123456789."
        else timeout or "",
        "retries": values["retries"],
        "caller": os.getppid() if values["with_parent"] else None,
        "on_finish": values["on_finish"],
        "variables": _variables(values["variables"]),
    }
    _only_one_reads_input(values)
    items_given = values["foreach"] is not None or bool(again and again.items)
    if (again and again.places) or values["hosts"] or values["sessions"]:
        if again:
            places, location = again.places, again.location
        else:
            places, location = _places(values["hosts"], values["sessions"])
        spec |= {
            "places": places,
            "location": location,
            "throttle": values["throttle"]
            or (0 if items_given else JobSpec._field_defaults["throttle"]),
            "results_stay": values["results"] == "remote",
            "cwd": values["cwd"] or "",
            "caller_cwd": _directory(None),
        }
    elif values["results"] == "remote":
        raise BadUsage("--results remote needs --host or --session")
    elif values["throttle"] and not items_given:
        raise BadUsage("--throttle needs --host, --session or --foreach")
    else:
        spec["cwd"] = _directory(values["cwd"])
    if values["null"] and values["foreach"] is None:
        raise BadUsage("-0 needs --foreach")
    if values["per_host"] and not (items_given and "places" in spec):
        raise BadUsage("--per-host needs --foreach and --host")
    if items_given:
        spec |= {
            "items": again.items if again and again.items else _items(values),
            "throttle": spec.get("throttle", values["throttle"] or process.processors()),
            "per_host": values["per_host"] or 0,
        }
    if script is not None:
        name_of_it = again.script_name if again else script
        spec |= {"script": _opened(script, text_helps=True), "script_name": name_of_it}
    if values["stdin"] is not None:
        spec["stdin"] = _opened(values["stdin"])
    if values["after"] or values["after_ok"]:
        from jobctl.ops.others import dependencies

        spec |= {key: dependencies(paths.state_dir(), values[key]) for key in ("after", "after_ok")}
    return JobSpec(**spec)


def _again(values: dict[str, Any]) -> Again:
    """Complete the options with what an earlier job was started with; return what else it was.

    :raises BadUsage: some of them are not for a job that is already told what to do.
    :raises NotFound: there is no such job.
    :raises Refused: nothing of it has failed.
    """
    from jobctl.ops.again import failed_parts

    for given, option in _OF_THE_JOB.items():
        if values[given]:
            raise BadUsage(f"--retry-failed takes the command and its place from JOB, not {option}")
    again = failed_parts(paths.state_dir(), values["retry_failed"])
    if lost := sorted(again.lost - {given.partition("=")[0] for given in values["variables"]}):
        raise BadUsage(
            f"the values of -e are not kept with a job; give again: {printable(' '.join(lost))}"
        )
    values.update({key: value for key, value in again.values.items() if not values[key]})
    values["results"] = again.values["results"]
    return again


def _places(hosts: tuple[str, ...], names: tuple[str, ...]) -> tuple[tuple[Place, ...], str]:
    """Return where to run; hosts that a session is open to are reached through that.

    :return: the places, and how to write them down if not as a list.
    :raises BadUsage: there is no such host.
    :raises NotFound: there is no session of such a name.
    """
    from jobctl import nodes
    from jobctl.links import Links
    from jobctl.target import parse_target

    options.tell_of_files(hosts)
    book, config = Links(paths.state_dir()), paths.ssh_config()
    places = []
    for name in names:
        known = book.known(name)
        places.append(Place(known.target, known.name))
    sessions = book.to(config) if hosts else {}
    for host in (part for text in hosts for part in nodes.expand(text)):
        to = parse_target(host)._replace(config=config)
        session = sessions.get(to.label)
        places.append(Place(session.target, session.name) if session else Place(to))
    folds = any(map(nodes.is_set, hosts)) and not any("[" in place.host for place in places)
    return tuple(dict.fromkeys(places)), nodes.fold(p.host for p in places) if folds else ""


def _items(values: dict[str, Any]) -> Iterator[bytes]:
    """Return the items that --foreach names."""
    if values["results"] == "remote":
        raise BadUsage("--results remote and --foreach contradict each other")
    return items.read(_opened(values["foreach"]), b"\0" if values["null"] else b"\n")


def _directory(cwd: str | None) -> str:
    """Return the directory to run in: absolute, symbolic links left as they were given."""
    try:
        here = os.getcwd()
        logical = os.environ.get("PWD", "")
        with suppress(OSError):
            if os.path.isabs(logical) and os.path.samefile(logical, here):
                here = logical
    except OSError:
        if cwd is None or not os.path.isabs(cwd):
            raise BadUsage("the current directory is gone; give one with --cwd") from None
        here = "/"
    if cwd is None:
        return here
    path = os.path.join(here, cwd)
    if not cwd or not os.path.isdir(path):
        raise BadUsage(f"--cwd '{printable(cwd)}' is not a directory{options.tilde(cwd)}")
    if not os.access(path, os.X_OK):
        raise BadUsage(f"--cwd '{printable(cwd)}' cannot be entered")
    return path


def _environment(variables: tuple[str, ...]) -> dict[str, str]:
    """Return our caller's environment with what -e sets."""
    environment = {k: v for k, v in os.environ.items() if k not in _NOT_INHERITED}
    if environment.get("LC_CTYPE") == "C.UTF-8" and not process.was_given("LC_CTYPE"):
        del environment["LC_CTYPE"]  # Python set it, see PEP 538
    return environment | _variables(variables)


def _variables(variables: tuple[str, ...]) -> dict[str, str]:
    """Return what -e sets."""
    environment = {}
    for variable in variables:
        name, given, value = variable.partition("=")
        if not name or re.search(r"\s", name, re.ASCII):
            raise BadUsage(f"-e '{printable(variable)}' names no variable; write NAME=VALUE")
        if not given and name not in os.environ:
            raise BadUsage(f"-e {printable(name)}: it is not set here; write {name}=VALUE")
        environment[name] = value if given else os.environ[name]
    return environment


def _only_one_reads_input(values: dict[str, Any]) -> None:
    """Refuse options of which several would read standard input."""
    reading = [option for name, option in _READERS.items() if values[name] == "-"]
    if len(reading) > 1:
        both = f"{reading[0]} - and {reading[1]} -"
        raise BadUsage(f"{both} contradict each other; one can read a file")


def _input_is_left(values: dict[str, Any]) -> bool:
    """Whether standard input has something that a person may take the job to read.

    A file of which somebody has read a part is that of a loop, say, which goes on with it.
    """
    if any(values[name] == "-" for name in _READERS) or values["stdin"] is not None:
        return False
    mode = os.fstat(0).st_mode
    if stat.S_ISREG(mode):
        return os.fstat(0).st_size > 0 and os.lseek(0, 0, os.SEEK_CUR) == 0
    if not stat.S_ISFIFO(mode):
        return False
    import select

    poll = select.poll()
    poll.register(0, select.POLLIN)
    return any(event & select.POLLIN for _, event in poll.poll(0))


def _opened(path: str, text_helps: bool = False) -> int:
    """Return a file opened for reading; - is standard input.

    :param text_helps: whether shell text can take its place.
    :raises BadUsage: it cannot be.
    """
    if path == "-":
        return options.standard_input()
    try:
        fd = os.open(path, os.O_RDONLY)
        if os.path.isdir(path):
            raise IsADirectoryError(21, "Is a directory")
        return fd
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        hint = options.tilde(path)
        if text_helps and not hint and isinstance(error, FileNotFoundError):
            from jobctl.runner import advice

            hint = f"; {text}" if (text := advice(path)) else ""
        raise BadUsage(f"cannot read '{printable(path)}': {why}{hint}") from None
