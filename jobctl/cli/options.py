"""The words that several commands understand alike: JOBs, filters, durations, formats."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.shell_completion import CompletionItem

from jobctl import quoting, timing
from jobctl.cli import render
from jobctl.descriptors import read
from jobctl.errors import BadUsage, JobctlError
from jobctl.jobs import Jobs
from jobctl.model import TYPE_REMOTE, TYPE_TASK, Job, State, printable
from jobctl.paths import state_dir

_OFFERED = 100
"""Jobs that completion offers at most, the newest."""
_DIGITS = 18
"""Of the longest id that is looked for."""
_LAST = chr(0x10FFFF)
"""What stands after all other characters."""

if TYPE_CHECKING:
    from jobctl.agent.client import Asked
    from jobctl.ops.find import Found

caller_umask = 0o022
"""The umask of whoever called us."""

F = TypeVar("F", bound=Callable[..., Any])


class Command(click.Command):
    """A command whose usage errors all name it, so that the right help is pointed to."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Take in the words of the command line."""
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            error.ctx = error.ctx or ctx  # Click leaves it out of an option without its value
            raise


class Parsed(click.ParamType):  # type: ignore[type-arg]  # generic from Click 8.5 on
    """A value that one of our functions makes of the text, or says why it cannot."""

    def __init__(self, name: str, parse: Callable[[str], object]) -> None:
        self.name = name
        self._parse = parse

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> object:
        """Return the value made of the text."""
        if not isinstance(value, str):
            return value
        try:
            return self._parse(value)
        except BadUsage as error:
            self.fail(str(error), param, ctx)


class Whole(click.IntRange):
    """A number in digits, as bare.sh reads it, too."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the number."""
        said = f"'{printable(str(value))}' is not a number from {self.min} to {self.max}"
        if isinstance(value, str) and not (value.isascii() and value.isdigit()):
            self.fail(said, param, ctx)
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter:  # it is out of range
            self.fail(said, param, ctx)


class _State(click.Choice[str]):
    """A state by its name, in any case."""

    name = "state"

    def __init__(self) -> None:
        super().__init__([state.value for state in State], case_sensitive=False)

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        """Return what help calls the value."""
        return "STATE"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Return the states as they are printed."""
        names = (state.value for state in State)
        return [CompletionItem(n) for n in names if n.lower().startswith(incomplete.lower())]


DURATION = Parsed("duration", timing.parse_duration)
WHEN = Parsed("when", timing.parse_when)
STATE = _State()


def positive(text: str) -> float:
    """Return a duration that is longer than nothing."""
    seconds = timing.parse_duration(text)
    if seconds <= 0:
        raise BadUsage(f"'{text}' is no time at all; give at least 0.01s")
    return seconds


def output(function: F) -> F:
    """Add -o and -q."""
    function = click.option(
        "-o",
        "--output",
        "form",
        type=click.Choice(render.FORMATS),
        default="table",
        envvar="JOBCTL_OUTPUT",
        help="How to print records. The default is JOBCTL_OUTPUT, else table.",
    )(function)
    return click.option("-q", "--quiet", is_flag=True, help="Print ids only, like -o ids.")(
        function
    )


def selectors(function: F) -> F:
    """Add JOB arguments."""
    return click.argument("jobs", metavar="[JOB]...", nargs=-1, shell_complete=complete_jobs)(
        function
    )


def filters(function: F) -> F:
    """Add what narrows a selection."""
    for option in reversed(
        (
            click.option(
                "--state", "states", type=STATE, multiple=True, help="Only jobs in this state."
            ),
            click.option("--name", metavar="GLOB", help="Only jobs with such a name."),
            click.option("--command", metavar="GLOB", help="Only jobs with such a command."),
            click.option("--location", metavar="HOST", help="Only jobs that run there."),
            click.option("--session", metavar="NAME", help="Only jobs of that session."),
            click.option("--before", type=WHEN, help="Only jobs that ended before."),
            click.option("--after", type=WHEN, help="Only jobs that ended then or later."),
            click.option(
                "--newest",
                metavar="N",
                type=Whole(1, 2**31),
                help="Only the N latest to end, unfinished ones being the newest.",
            ),
            click.option(
                "--has-more-data", is_flag=True, help="Only jobs with output not received yet."
            ),
            click.option(
                "--no-more-data", is_flag=True, help="Only jobs with all output received."
            ),
        )
    ):
        function = option(function)
    return function


def all_jobs(function: F) -> F:
    """Add --all, for commands that must be told that they are to act on everything."""
    return click.option("--all", "everything", is_flag=True, help="All jobs.")(function)


class Chosen:
    """What the JOB arguments and filters of one command line say."""

    def __init__(self, values: dict[str, Any]) -> None:
        """Take the values that the decorators above produce out of values."""
        # Here, not above: the commands that choose no jobs do without SQLite.
        from jobctl.ops.find import Filter

        words = values.pop("jobs")
        more, no_more = values.pop("has_more_data"), values.pop("no_more_data")
        if more and no_more:
            raise BadUsage("--has-more-data and --no-more-data contradict each other")
        self.jobs = tuple(_with_standard_input(words)) if words else None
        """None where no JOB is named; empty where standard input names none."""
        self._everything = values.pop("everything", None)
        self.filter = Filter(
            states=tuple(State(name) for name in values.pop("states")),
            name=values.pop("name"),
            command=values.pop("command"),
            location=values.pop("location"),
            session=values.pop("session"),
            before=values.pop("before"),
            after=values.pop("after"),
            newest=values.pop("newest"),
            has_more_data=more if more or no_more else None,
            child_states=tuple(State(name) for name in values.pop("child_states", ())),
        )

    def check(self) -> None:
        """Refuse to guess what a command without JOB and filter is to act on.

        :raises BadUsage: there is neither, or --all beside a JOB.
        """
        if self._everything and self.jobs is not None:
            raise BadUsage("--all and JOB contradict each other; give one of them")
        if not self._everything and self.jobs is None and self.filter.empty:
            raise BadUsage("name a JOB, a filter, or --all")


def _with_standard_input(words: Iterable[str]) -> Iterable[str]:
    for word in words:
        if word == "-":
            piece = partial(read, standard_input())
            lines = os.fsdecode(b"".join(iter(piece, b""))).split("\n")
            yield from (line.strip() for line in lines if line.strip())
        else:
            yield word


def standard_input() -> int:
    """Return the descriptor that a word - of the command line means.

    :raises BadUsage: nothing can be read there: our caller has closed it, say.
    """
    try:
        os.read(0, 0)
    except BlockingIOError:
        pass
    except OSError as error:
        closed = error.errno == errno.EBADF
        why = "standard input is not open for reading" if closed else error.strerror
        raise BadUsage(f"cannot read '-': {why}") from None
    return 0


def complete_file(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Have the shell complete the name of a file."""
    return [CompletionItem(incomplete, type="file")]


def tilde(path: str) -> str:
    """Return what helps who wrote ~ where no shell has replaced it, "" for another path."""
    return "; a shell replaces ~ only outside of quotes" if path.startswith("~") else ""


def complete_directory(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Have the shell complete the name of a directory."""
    return [CompletionItem(incomplete, type="dir")]


def complete_jobs(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Return ids and names of jobs, with their states and commands.

    Of all that begin as what is typed; of the newest ones if nothing is.
    """
    from jobctl.store import NEWEST_FIRST, Store

    try:
        store = Store(state_dir())
        store.refresh()
    except JobctlError:
        return []
    sign = "%" if incomplete.startswith("%") else ""
    if prefix := incomplete.removeprefix(sign):
        jobs = store.briefs(*beginning(prefix))
    else:
        jobs = store.briefs("1", (), f"{NEWEST_FIRST} LIMIT {_OFFERED}")
    helps = dict[str, str]()
    for job in sorted(jobs):
        help_text = f"{job.state} {printable(job.command)[:60]}"
        # Names that a shell would need quoted are left to be typed.
        named = quoting.readable([job.name]) == job.name
        if sign and named:
            helps[sign + job.name] = help_text  # of those of one name the newest
        elif not sign:
            helps[str(job.id)] = help_text
            if named:
                helps.setdefault(job.name, help_text)
    return [
        CompletionItem(value, help=text)
        for value, text in helps.items()
        if value.startswith(incomplete)
    ]


def beginning(prefix: str) -> tuple[str, list[object]]:
    """Return a condition, and its values, for jobs whose name or id begins so.

    As ranges, which an index answers without a look at the other jobs.
    """
    name = prefix.encode("utf-8", "replace").decode()
    where, values = "name BETWEEN ? AND ?", list[object]([name, name + _LAST])
    if prefix.isascii() and prefix.isdecimal() and prefix[0] != "0":
        for more in range(_DIGITS - len(prefix) + 1):
            first = int(prefix) * 10**more
            where += " OR id BETWEEN ? AND ?"
            values += (first, first + 10**more - 1)
    return where, values


def complete_hosts(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Return the hosts that ssh's configuration names, after what a list has before a comma."""
    from jobctl.transport.names import configured

    before, comma, last = incomplete.rpartition(",")
    return [
        CompletionItem(before + comma + host)
        for host in configured(os.environ.get("JOBCTL_SSH_CONFIG"))
        if host.startswith(last)
    ]


def tell_of_files(hosts: Iterable[str]) -> None:
    """Say which hosts a shell may have made of a node set that was not quoted: web1 of web[1-3].

    Node sets have numbers in brackets; a shell puts in a file's name where there is one.
    """
    for host in hosts:
        if re.fullmatch(r"[^/,[]*\d[^/,[]*", host) and os.path.lexists(host):
            way_out = "if you wrote a node set, quote it: 'web[1-3]'"
            render.say(f"host {printable(host)} is also a file here; {way_out}")


_JOINS = ("|", "||", "|&", "&&", ";")
_REDIRECTS = ("<", ">", ">>", "2>", "2>>", "&>", "&>>")
_COMPARE = ("expr", "test", "[")
"""Commands for which < and > are words like others."""


def tell_of_shell_words(words: Sequence[str]) -> None:
    """Say which word of a command is one of the shell's, as in `ls '|' wc`, and reaches no shell.

    Many commands take such words as they are: cut -d '|', find -exec ... ';', expr 1 '|' 2.
    """
    for word, following in zip(words[1:], [*words[2:], ""], strict=False):
        joins = word in _JOINS and _is_program(following)
        leads = word in _REDIRECTS and following and os.path.basename(words[0]) not in _COMPARE
        if joins or leads or word == "2>&1" or (word == "&" and not following):
            given = f"'{word}' is given to {printable(words[0])} as it is"
            render.say(f"{given}; use -c for shell text")
            return


def _is_program(word: str) -> bool:
    """Whether a word is the name of a program here."""
    from shutil import which

    return which(word) is not None


def complete_sessions(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Return the names of sessions, with their hosts."""
    from jobctl.links import Links

    try:
        found = Links(state_dir()).sessions()
    except JobctlError:
        return []
    return [
        CompletionItem(session.name, help=session.target.label)
        for session in found
        if session.name.startswith(incomplete) and quoting.readable([session.name]) == session.name
    ]


def person(jobs: Iterable[Job], deadline: float | None = None) -> Asked | None:
    """Return what asks the person at the terminal what the hosts of some jobs want to know.

    :param deadline: when there is no more time for an answer, by time.monotonic().
    """
    if not any(job.type in (TYPE_REMOTE, TYPE_TASK) for job in jobs):
        return None
    from jobctl.cli import terminal

    return terminal.person(deadline)


def found(chosen: Chosen, resume: bool = True) -> Found:
    """Return the jobs chosen, as they are now.

    :param resume: whether those whose slots were killed are to go on.
    """
    from jobctl.ops.find import find
    from jobctl.store import Store

    jobs = find(Store(state_dir()), chosen.jobs, chosen.filter)
    if resume:
        _resume(jobs.jobs)
    return jobs


def _resume(jobs: list[Job]) -> None:
    """Go on with jobs whose slots were killed, as nobody else does."""
    for job in jobs:
        if job.type == TYPE_TASK and not job.state.finished:
            from jobctl.runner import resume
            from jobctl.task import Task

            task = Jobs(state_dir()).folder(job.id.partition(".")[0])
            if isinstance(task, Task):
                resume(task)


def parts(chosen: list[Job]) -> list[Job]:
    """Return jobs with the children in the place of those that have some, but for items."""
    from jobctl.ops import find
    from jobctl.store import Store

    return find.parts(Store(state_dir()), chosen, items=False)


def jobs() -> Jobs:
    """Return the folder of all job folders."""
    return Jobs(state_dir())
