"""Completion: the files are what Click makes, and the shells themselves offer what they should."""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import click
import pexpect
import pytest
from click.shell_completion import BashComplete, FishComplete, ShellComplete, ZshComplete
from conftest import Jobctl, first_of

from jobctl.cli.main import COMMANDS, cli
from jobctl.cli.options import beginning
from jobctl.links import Links
from jobctl.target import parse_target

COMPLETIONS = Path(__file__).parent.parent / "completions"
FILES: dict[str, tuple[str, type[ShellComplete]]] = {
    "bash": ("jobctl", BashComplete),
    "zsh": ("_jobctl", ZshComplete),
    "fish": ("jobctl.fish", FishComplete),
}
ZSH_END = """\
# Not as Click has it: the second call in a session would offer nothing.
_jobctl_completion "$@"\
"""
FISH_SPLIT = 'string split "," $completion', 'string split -m 1 "," $completion'
"""Not as Click has it: what is offered may have commas in it."""
SECONDS = 60
ENOUGH_ROOM = (200, 250)
BASHRC = f"""
PS1='READY> '
source {COMPLETIONS}/jobctl
bind 'set enable-bracketed-paste off' 'set completion-query-items 0' 'set page-completions off'
bind '"\\C-xl": possible-completions'
bind -x '"\\C-xd": echo THE_"END"'
"""
ZSHRC = f"""
PS1='READY> '
fpath=({COMPLETIONS} $fpath)
autoload -Uz compinit && compinit -u -D
LISTMAX=100000
finish() {{ zle -I; print THE_"END" }}
zle -N finish
bindkey '^Xl' list-choices
bindkey '^Xd' finish
exec 2>$ZDOTDIR/stderr
"""


@pytest.fixture
def env(jobctl: Jobctl, tmp_path: Path) -> dict[str, str]:
    """What a shell is started with: none of the user's own settings."""
    return {
        **jobctl.env,
        "PATH": f"{jobctl.env['PATH']}{os.pathsep}{os.environ['PATH']}",
        "ZDOTDIR": str(tmp_path),
        "XDG_CONFIG_HOME": str(tmp_path / "config"),
        "XDG_DATA_HOME": str(tmp_path / "data"),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "LC_ALL": "C.UTF-8",
        "TERM": "dumb",
    }


@pytest.fixture
def touched(tmp_path: Path, env: dict[str, str]) -> Path:
    """Have ssh's configuration name HOSTS, in files of its own too.

    Whoever has ssh read it, or goes there, leaves this file behind.
    """
    touched = tmp_path / "touched"
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "conf.d" / "work").write_text("Host web1 web2\n  HostName 192.0.2.1\n")
    (tmp_path / "conf.d" / "old").write_text("Include=deeper\nhost = db-old\n")
    (tmp_path / "deeper").write_text('Host "build" # Host comment\n')
    config = tmp_path / "ssh_config"
    config.write_text(
        f"Include {tmp_path}/conf.d/* {tmp_path}/deeper {tmp_path}/none\n"
        f'Match exec "touch {touched}"\n'
        "Host db1 *.example.org !no web?\n"
        f"  ProxyCommand touch {touched}\n"
        "# Host commented\n"
    )
    env["JOBCTL_SSH_CONFIG"] = str(config)
    return touched


@pytest.fixture
def much(jobctl: Jobctl, touched: Path) -> Iterator[None]:
    """Have JOBS, SESSIONS and HOSTS; to complete does not go to the network."""
    jobctl.start("-n", "alpha", "sleep", "300")
    jobctl.start("-n", "two words", "sleep", "300")
    book = Links(str(jobctl.state_dir))
    for name, host in (SESSIONS | {"with space": "db1"}).items():
        book.create(name, parse_target(host))
    yield
    assert not touched.exists()
    assert not list(jobctl.state_dir.glob("agent.*"))


@pytest.fixture(params=FILES)
def shell(request: pytest.FixtureRequest) -> str:
    name = str(request.param)
    if shutil.which(name) is None:
        pytest.fail(f"{name} is not installed; its completion cannot be tested")
    return name


def offered(shell: str, lines: Sequence[str], env: dict[str, str]) -> list[dict[str, str]]:
    """Return what a shell offers after each line, with its help, if the shell shows any."""
    if shell == "fish":
        return _offered_by_fish(lines, env)
    if shell == "bash":
        (Path(env["HOME"]) / "bashrc").write_text(BASHRC)
        # Readline writes where messages go too: any message would be among the words.
        words = ["bash", "--noprofile", "--rcfile", f"{env['HOME']}/bashrc"]
        return [dict.fromkeys(text.split(), "") for text in _listed(words, lines, env)]
    (Path(env["ZDOTDIR"]) / ".zshrc").write_text(ZSHRC)
    listed = _listed(["zsh", "-d"], lines, env)
    assert (Path(env["ZDOTDIR"]) / "stderr").read_text() == ""
    return [_with_help(text) for text in listed]


def _with_help(text: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for row in text.splitlines():
        values, _, help_text = row.partition(" -- ")
        found |= dict.fromkeys(values.split(), help_text.strip())
    return found


def _offered_by_fish(lines: Sequence[str], env: dict[str, str]) -> list[dict[str, str]]:
    script = (
        "set -p fish_complete_path $argv[1]; "
        "for line in $argv[2..]; complete -C $line; printf '\\0'; end"
    )
    result = subprocess.run(
        ["fish", "--no-config", "-c", script, str(COMPLETIONS), *lines],
        env=env,
        capture_output=True,
        text=True,
        timeout=SECONDS * len(lines),
    )
    assert (result.stderr, result.returncode) == ("", 0)
    found = []
    for text in result.stdout.split("\0")[:-1]:
        rows = (row.partition("\t") for row in text.splitlines())
        found.append({value: help_text for value, _, help_text in rows})
    return found


def _listed(command: list[str], lines: Sequence[str], env: dict[str, str]) -> list[str]:
    """Return what an interactive shell shows when asked for the choices after each line."""
    terminal = pexpect.spawn(
        command[0],
        [*command[1:], "-i"],
        env=env,
        dimensions=ENOUGH_ROOM,
        encoding="utf-8",
        timeout=SECONDS,
    )
    found = []
    try:
        for line in lines:
            terminal.expect_exact("READY> ")
            terminal.send(f"{line}\x18l\x18d")
            terminal.expect_exact("THE_END")
            shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|[\r\a]", "", terminal.before or "")
            # What was typed comes first, and after the choices the line once more.
            found.append(shown.partition("\n")[2].replace(f"READY> {line}", ""))
            terminal.send('\x15echo A"GAIN"\r')
            terminal.expect_exact("AGAIN")
        # A shell whose terminal is taken away at its prompt may complain of that.
        terminal.send("exit\r")
        terminal.expect(pexpect.EOF)
    finally:
        terminal.close(force=True)
    return found


def offered_by_us(line: str) -> dict[str, str]:
    """Return what the program answers to any shell that asks it."""
    *words, last = line.split(" ")[1:]
    complete = ShellComplete(cli, {}, "jobctl", "_JOBCTL_COMPLETE")
    return {item.value: item.help or "" for item in complete.get_completions(words, last)}


def test_the_file_is_what_click_makes(shell: str) -> None:
    name, complete = FILES[shell]
    made = complete(cli, {}, "jobctl", "_JOBCTL_COMPLETE").source().strip()
    if shell == "zsh":
        made, found, _ = made.partition("if [[ $zsh_eval_context")
        assert found
        made += ZSH_END
    if shell == "fish":
        assert FISH_SPLIT[0] in made
        made = made.replace(*FISH_SPLIT)
    assert (COMPLETIONS / name).read_text().strip() == made


def test_zsh_finds_its_file_by_the_first_line() -> None:
    assert (COMPLETIONS / "_jobctl").read_text().startswith("#compdef jobctl\n")


def commands(context: click.Context) -> dict[str, click.Context]:
    """Return the contexts of all commands, those of groups included, by their words."""
    group = context.command
    if not isinstance(group, click.Group):
        return {}
    found = {}
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        inner = click.Context(command, parent=context, info_name=name)
        found[name] = inner
        found |= {f"{name} {more}": below for more, below in commands(inner).items()}
    return found


ALL = commands(click.Context(cli, **cli.context_settings))


def options(words: str) -> set[str]:
    """Return the options of a command."""
    return {
        option
        for param in ALL[words].command.get_params(ALL[words])
        if isinstance(param, click.Option)
        for option in (*param.opts, *param.secondary_opts)
    }


INNER = {words.split()[1] for words in ALL if words.startswith("session ")}
JOBS = dict.fromkeys(("1", "alpha", "2"), "Running sleep 300")
"""What is offered where jobs are asked for: names that need no quotes, and ids."""
SESSIONS = {"web1": "web1", "stage": "admin@db1"}
HOSTS = {"web1", "web2", "db1", "db-old", "build"}
LISTS = {"web1,db1", "web1,db-old"}
"""What is offered after `web1,db`."""
Lines = dict[str, set[str] | dict[str, str]]
"""Lines, and what is offered after each of them. As a dict, what is told with it too."""
SAMPLE: Lines = {
    "jobctl re": {"receive", "remove"},
    "jobctl session ": INNER,
    "jobctl start -": options("start"),
    "jobctl stop ": JOBS,
    "jobctl stop al": {"alpha": JOBS["alpha"]},
    "jobctl get --output j": {"json", "jsonl"},
    "jobctl get --output z": set(),
    "jobctl start -H web1,db": LISTS,
    "jobctl session connect stage ": SESSIONS,
}
"""One of each kind, which every shell is asked."""
REST: Lines = (
    {"jobctl ": set(COMMANDS)}
    | {f"jobctl {words} -": options(words) for words in ALL if words != "start"}
    | {f"jobctl {verb} ": JOBS for verb in ("get", "receive", "wait", "remove")}
    | {f"jobctl session {w} ": SESSIONS for w in ("disconnect", "remove --force", "get")}
    | {f"jobctl session {w} st": {"stage"} for w in ("disconnect", "connect stage", "get")}
    | {"jobctl session remove --force st": {"stage"}}
    | {f"jobctl {w} ": HOSTS for w in ("start -H", "start -n x --host", "session new")}
    | {f"jobctl {w} web1,db": LISTS for w in ("start -n x --host", "session new")}
    | {f"jobctl session {w} ": HOSTS | {*SESSIONS} for w in ("run", "enter", "receive")}
    | {"jobctl session get --on ": HOSTS | {*SESSIONS}}
    | {"jobctl session get --on web": {"web1", "web2"}}
    | {"jobctl start --session ": set(SESSIONS)}
)


def check(lines: Lines, found: list[dict[str, str]], *, told: bool) -> None:
    for (line, wanted), offers in zip(lines.items(), found, strict=True):
        if told and isinstance(wanted, dict):
            assert offers == wanted, line
        else:
            assert set(offers) == set(wanted), line


@pytest.mark.usefixtures("much")
def test_what_is_offered(env: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert {"new", "enter", "remove"} <= INNER
    for name in ("HOME", "JOBCTL_STATE_DIR", "JOBCTL_SSH_CONFIG"):
        monkeypatch.setenv(name, env[name])
    lines = SAMPLE | REST
    check(lines, [offered_by_us(line) for line in lines], told=True)


@pytest.mark.usefixtures("much")
@pytest.mark.parametrize("lines", first_of(SAMPLE, REST), ids=len)
def test_what_shells_offer(shell: str, lines: Lines, env: dict[str, str]) -> None:
    """The first line is completed twice: in a session, the second time offers the same."""
    again, *found = offered(shell, [next(iter(lines)), *lines], env)
    assert again == found[0]
    check(lines, found, told=shell != "bash")


def test_all_that_begin_as_what_is_typed_are_offered(
    jobctl: Jobctl, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many there are; and no other job is looked at, which an index spares."""
    jobs = jobctl.folder(jobctl.done("--name", "43 things", "true")).parent
    numbers = [43, *range(430, 440), *range(4300, 4400), 3, 42, 44, 429, 440, 4299, 4400]
    for number in numbers:
        shutil.copytree(jobs / "1", jobs / str(number))
    monkeypatch.setenv("JOBCTL_STATE_DIR", str(jobctl.state_dir))
    assert [*offered_by_us("jobctl get 43")] == [str(number) for number in sorted(numbers[:111])]
    assert [*offered_by_us("jobctl get 439")] == ["439", *map(str, range(4390, 4400))]
    assert len(offered_by_us("jobctl get ")) == 100
    where, values = beginning("43")
    with closing(sqlite3.connect(jobctl.state_dir / "index.db")) as db:
        plan = db.execute(f"EXPLAIN QUERY PLAN SELECT id FROM jobs WHERE {where}", values)
        assert not [row for row in plan if "SCAN" in row[-1]]


def test_nothing_to_offer_is_no_error(shell: str, env: dict[str, str]) -> None:
    env["JOBCTL_SSH_CONFIG"] = str(Path(env["HOME"]) / "none")
    lines = ["jobctl stop ", "jobctl session new ", "jobctl session connect "]
    assert offered(shell, lines, env) == [{}, {}, {}]
