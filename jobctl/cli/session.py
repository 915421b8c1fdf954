"""`jobctl session`: persistent connections to other machines, and what runs over them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import click
from click.shell_completion import CompletionItem

from jobctl import links, nodes, quoting, target, timing
from jobctl.cli import options, render, terminal
from jobctl.errors import BadUsage, JobctlError
from jobctl.model import Job, check_name, printable
from jobctl.ops import sessions
from jobctl.paths import ssh_config, state_dir
from jobctl.target import Target


class _Group(options.Command, click.Group):
    """The subcommands in the order in which people use them."""

    command_class = options.Command

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


@click.group("session", cls=_Group, epilog="Example: jobctl session new web1")
def command() -> None:
    """Keep connections to other machines, and run things there."""


def _complete_either(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    known = options.complete_sessions(ctx, param, incomplete)
    names = {item.value for item in known}
    hosts = options.complete_hosts(ctx, param, incomplete)
    return known + [item for item in hosts if item.value not in names]


_names = click.argument(
    "names", metavar="[NAME]...", nargs=-1, shell_complete=options.complete_sessions
)
_some_names = click.argument(
    "names", metavar="NAME...", nargs=-1, required=True, shell_complete=options.complete_sessions
)
_either = click.argument("to", metavar="NAME|HOST", shell_complete=_complete_either)


@command.command("new", epilog="Example: jobctl session new --name db --user admin db1.example.org")
@click.argument("hosts", shell_complete=options.complete_hosts)
@click.option("--name", help="What to call it. The default is the host.")
@click.option("--user", help="The login name there.")
@click.option("--port", help="The port of its ssh server.")
@click.option(
    "--identity",
    "identities",
    multiple=True,
    metavar="FILE",
    shell_complete=options.complete_file,
    help="A private key to log in with. May be repeated.",
)
@click.option(
    "--option",
    "ssh_options",
    multiple=True,
    metavar="KEY=VALUE",
    help="As ssh -o, see ssh_config(5). May be repeated.",
)
@click.option("--connect-timeout", type=options.Parsed("duration", options.positive))
@click.option("--accept-new", is_flag=True, help="Accept the key of a host that is not known yet.")
@options.output
def new(hosts: str, name: str | None, form: str, quiet: bool, **values: Any) -> int:
    """Open a session to each of HOSTS, a list with commas or a node set, and print them."""
    targets = [_with(target.parse_target(host), values) for host in nodes.expand(hosts)]
    options.tell_of_files((hosts,))
    if name is not None and len(targets) > 1:
        raise BadUsage("--name names one session; leave it out to open several")
    render.ready()
    opened, errors = [], list[JobctlError]()
    for to in targets:
        chosen = check_name(to.label if name is None else name)
        try:
            opened.append(sessions.create(state_dir(), chosen, to, terminal.ask).name)
        except JobctlError as error:
            errors.append(error)
    if opened:
        _print(sessions.shown(state_dir(), opened)[0], "ids" if quiet else form)
    return render.tell_all(errors)


def _with(to: Target, values: dict[str, Any]) -> Target:
    """Return a target with what the options say; the host's own words count more."""
    port, user = values["port"], values["user"]
    return to._replace(
        user=to.user or (target.check_user(user) if user is not None else ""),
        port=to.port or (target.check_port(port) if port is not None else None),
        identities=tuple(
            os.path.abspath(target.check_identity(path)) for path in values["identities"]
        ),
        options=tuple(target.check_option(option) for option in values["ssh_options"]),
        connect_timeout=values["connect_timeout"],
        config=ssh_config(),
        accept_new=values["accept_new"],
    )


@command.command("get", epilog="Example: jobctl session get --on web1")
@_names
@click.option(
    "--on", metavar="HOST", shell_complete=_complete_either, help="The jobs kept on that host."
)
@options.output
def get(names: tuple[str, ...], on: str | None, form: str, quiet: bool) -> int:
    """Show sessions; or, with --on, the jobs that any computer keeps on a host."""
    form = "ids" if quiet else form
    if on is not None:
        if names:
            raise BadUsage("--on HOST shows jobs, and takes no session beside it")
        _check(on)
        render.records(
            [found.job for found in sessions.survey(state_dir(), on, terminal.ask)], form
        )
        return 0
    found, errors = sessions.shown(state_dir(), list(names))
    _print(found, form)
    if not found and not errors and form != "json" and os.isatty(1):
        render.say("there are no sessions")
    return render.tell_all(errors)


@command.command(
    "run",
    context_settings={"allow_interspersed_args": False},
    epilog="Example: jobctl session run web1 -- tail -n 3 /var/log/syslog",
)
@click.option(
    "-c", "text", metavar="TEXT", help="Run TEXT with sh -c; the arguments are its $1 ..."
)
@_either
@click.argument("words", metavar="COMMAND [ARG]...", nargs=-1, type=click.UNPROCESSED)
def run(text: str | None, to: str, words: tuple[str, ...]) -> int:
    """Run COMMAND on a host in the foreground: streams and exit status are passed through."""
    if text is None and words[:1] == ("-c",) and len(words) > 1:
        text, words = words[1], words[2:]
    if words[:1] == ("--",):
        words = words[1:]
    if text is None and not (words and words[0]):
        raise BadUsage("there is no command to run; write session run HOST -- COMMAND [ARG]...")
    _check(to)
    command_line = quoting.join(map(os.fsencode, words))
    begin = b"exec "
    if text is not None:
        # Another shell does not know our function.
        given = b'"$jobctl_given"' if "jobctl" in text else b""
        begin += b"/bin/sh -c " + given + quoting.quote(os.fsencode(text)) + b" sh "
    elif words[0] == "jobctl":
        begin = b"$jobctl_exec "
    else:
        begin = b"jobctl_check " + quoting.quote(os.fsencode(words[0])) + b" || exit; exec "
    command_line = (begin + command_line).replace(b"\n", b"'\"$jobctl_nl\"'")
    # The shell stays, to tell by which signal the command ended, and is itself ended by none.
    # It would also say that, which nobody is to see.
    line = (
        b"jobctl_nl=$(printf '\\n.'); jobctl_nl=${jobctl_nl%.};"
        b" cd; trap : INT TERM HUP QUIT; exec 3>&2 2>/dev/null;"
        b" (exec 2>&3 3>&-; " + command_line + b"); exit $?"
    )
    if text is None:
        options.tell_of_shell_words(words)
    return terminal.run(state_dir(), to, line)


@command.command("enter", epilog="Example: jobctl session enter web1")
@_either
def enter(to: str) -> int:
    """Begin an interactive shell on a host. Jobs started in there go on after leaving."""
    _check(to)
    return terminal.enter(state_dir(), to)


@command.command("disconnect", epilog="Example: jobctl session disconnect web1")
@_some_names
@options.output
def disconnect(names: tuple[str, ...], form: str, quiet: bool) -> int:
    """Let go of connections. Jobs go on; their state is Disconnected meanwhile."""
    return _each(names, form, quiet, lambda name: sessions.disconnect(state_dir(), name))


@command.command("connect", epilog="Example: jobctl session connect web1")
@_some_names
@options.output
def connect(names: tuple[str, ...], form: str, quiet: bool) -> int:
    """Connect sessions again. Output goes on at the very byte where it stopped."""
    return _each(names, form, quiet, lambda name: sessions.connect(state_dir(), name, terminal.ask))


@command.command("receive", epilog="Example: jobctl session receive --out-target job web1")
@_either
@click.option(
    "--out-target",
    type=click.Choice(["host", "job"]),
    default="host",
    show_default=True,
    help="Write the output here, or make local records of jobs that are not known here.",
)
@options.output
def receive(to: str, out_target: str, form: str, quiet: bool) -> int:
    """Get what ran on a host, whichever computer started it.

    `host` writes the output of its jobs that was not received yet; `job` makes local records
    of those that this computer does not know, with all their output.
    """
    _check(to)
    render.ready()
    sessions.reconnect(state_dir(), to, terminal.ask)
    found = sessions.survey(state_dir(), to, terminal.ask)
    if out_target == "job":
        ids = sessions.adopt(state_dir(), to, found)
        _print_jobs(ids, "ids" if quiet else form)
        return 0
    from jobctl.cli.receive import deliver
    from jobctl.ops.receive import Manner

    status = deliver(sessions.known_here(state_dir(), found), Manner(sure=False))
    if any(entry.path.startswith("jobs/") for entry in found):
        line = b"jobctl receive --all"
        status = terminal.run(state_dir(), to, line) or status
    return status


@command.command("remove", epilog="Example: jobctl session remove --force web1")
@_names
@click.option("--all", "everything", is_flag=True, help="All sessions.")
@click.option("--force", is_flag=True, help="Stop the jobs that run in them.")
@click.option("--leave-running", is_flag=True, help="Let the jobs that run in them go on.")
def remove(names: tuple[str, ...], everything: bool, force: bool, leave_running: bool) -> int:
    """Close sessions and forget them. Refused while jobs run in them."""
    if force and leave_running:
        raise BadUsage("--force and --leave-running contradict each other; give one of them")
    if bool(names) == everything:
        raise BadUsage(
            "name a session, or give --all"
            if everything is False
            else "--all and NAME contradict each other"
        )
    if everything:
        names = tuple(session.name for session in links.Links(state_dir()).sessions())
    errors = list[JobctlError]()
    for name in dict.fromkeys(names):
        try:
            if force:
                errors += sessions.stop_jobs(state_dir(), name)
            sessions.remove(state_dir(), name, leave_running)
        except JobctlError as error:
            errors.append(error)
    return render.tell_all(errors)


def _each(names: Sequence[str], form: str, quiet: bool, act: Any) -> int:
    render.ready()
    errors, done = list[JobctlError](), []
    for name in dict.fromkeys(names):
        try:
            act(name)
            done.append(name)
        except JobctlError as error:
            errors.append(error)
    if done:
        _print(sessions.shown(state_dir(), done)[0], "ids" if quiet else form)
    return render.tell_all(errors)


def _check(to: str) -> None:
    """Refuse what is neither the name of a session nor that of one host."""
    if links.Links(state_dir()).session(to) is not None:
        return
    if nodes.is_set(to) or "," in to:
        raise BadUsage(
            f"'{printable(to)}' is a set of hosts, and this takes one; for several, use"
            " 'jobctl start -H'"
        )
    target.parse_target(to)
    options.tell_of_files((to,))


def _print(found: list[sessions.Shown], form: str) -> None:
    headers: tuple[str, ...] = ("Id", "Name", "Transport", "Host", "State", "Availability", "Jobs")
    rows = [
        (
            shown.session.id,
            shown.session.name,
            "ssh",
            shown.session.target.label,
            shown.state.value,
            shown.availability,
            str(shown.jobs),
            shown.reason,
        )
        for shown in found
    ]
    if form == "wide":
        headers += ("Reason",)
    render.things(
        [row[: len(headers)] for row in rows], headers, [_json(shown) for shown in found], form
    )


def _json(shown: sessions.Shown) -> dict[str, object]:
    to = shown.session.target
    return {
        "id": shown.session.id,
        "name": shown.session.name,
        "transport": "ssh",
        "host": to.host,
        "user": to.user or None,
        "port": to.port,
        "state": shown.state.value,
        "availability": shown.availability,
        "jobs": shown.jobs,
        "reason": shown.reason,
        "created_at": timing.rfc3339(shown.session.created_at),
        "connected_at": timing.rfc3339(shown.connected_at),
    }


def _print_jobs(ids: list[str], form: str) -> None:
    from jobctl.store import Store

    store = Store(state_dir())
    store.refresh()
    jobs: list[Job] = store.select(f"id IN ({','.join(ids)})") if ids else []
    render.records(jobs, form)
