"""Completion: the files are what Click makes, and the shells themselves offer what they should."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import click
import pexpect
import pytest
from click.shell_completion import BashComplete, FishComplete, ShellComplete, ZshComplete
from conftest import Jobctl

from jobctl.cli.main import COMMANDS, cli
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
SECONDS = 30
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
def job(jobctl: Jobctl) -> str:
    """A running job called alpha, and after it one whose name would have to be quoted."""
    jobctl.start("-n", "alpha", "sleep", "300")
    jobctl.start("-n", "two words", "sleep", "300")
    return "alpha"


@pytest.fixture
def hosts(tmp_path: Path, env: dict[str, str]) -> set[str]:
    """Hosts that ssh's configuration names, in files of its own too.

    Whoever has ssh read it, or goes there, leaves the file `touched` behind.
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
    return {"web1", "web2", "db1", "db-old", "build"}


@pytest.fixture
def sessions(jobctl: Jobctl) -> dict[str, str]:
    """Sessions that nobody has connected, and their hosts."""
    jobctl.state_dir.mkdir(mode=0o700)
    book = Links(str(jobctl.state_dir))
    found = {"web1": "web1", "stage": "admin@db1", "with space": "db1"}
    for name, host in found.items():
        book.create(name, parse_target(host))
    return {name: host for name, host in found.items() if " " not in name}


@pytest.fixture(params=FILES)
def shell(request: pytest.FixtureRequest) -> str:
    name = str(request.param)
    if shutil.which(name) is None:
        pytest.fail(f"{name} is not installed; its completion cannot be tested")
    return name


def offered(shell: str, line: str, env: dict[str, str], times: int = 1) -> dict[str, str]:
    """Return what a shell offers after a line, each with its help, if the shell shows any.

    Asked several times, this is what it offers the last time.
    """
    if shell == "fish":
        return _offered_by_fish(line, env, times)
    if shell == "bash":
        (Path(env["HOME"]) / "bashrc").write_text(BASHRC)
        # Readline writes where messages go too: any message would be among the words.
        text = _listed(
            ["bash", "--noprofile", "--rcfile", f"{env['HOME']}/bashrc"], line, env, times
        )
        return dict.fromkeys(text.split(), "")
    (Path(env["ZDOTDIR"]) / ".zshrc").write_text(ZSHRC)
    text = _listed(["zsh", "-d"], line, env, times)
    assert (Path(env["ZDOTDIR"]) / "stderr").read_text() == ""
    found: dict[str, str] = {}
    for row in text.splitlines():
        values, _, help_text = row.partition(" -- ")
        found |= dict.fromkeys(values.split(), help_text.strip())
    return found


def _offered_by_fish(line: str, env: dict[str, str], times: int) -> dict[str, str]:
    script = (
        "set -p fish_complete_path $argv[1]; "
        + "complete -C $argv[2] >/dev/null; " * (times - 1)
        + "complete -C $argv[2]"
    )
    result = subprocess.run(
        ["fish", "--no-config", "-c", script, str(COMPLETIONS), line],
        env=env,
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert (result.stderr, result.returncode) == ("", 0)
    rows = (row.partition("\t") for row in result.stdout.splitlines())
    return {value: help_text for value, _, help_text in rows}


def _listed(command: list[str], line: str, env: dict[str, str], times: int) -> str:
    """Return what an interactive shell shows when asked for the choices after a line."""
    terminal = pexpect.spawn(
        command[0],
        [*command[1:], "-i"],
        env=env,
        dimensions=ENOUGH_ROOM,
        encoding="utf-8",
        timeout=SECONDS,
    )
    try:
        for _ in range(times):
            terminal.expect_exact("READY> ")
            terminal.send(f"{line}\x18l\x18d")
            terminal.expect_exact("THE_END")
            shown = terminal.before or ""
            terminal.send('\x15echo A"GAIN"\r')
            terminal.expect_exact("AGAIN")
    finally:
        terminal.close(force=True)
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|[\r\a]", "", shown)
    # What was typed comes first, and after the choices the line once more.
    return shown.partition("\n")[2].replace(f"READY> {line}", "")


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


def test_completing_again_in_a_session_offers_the_same(shell: str, env: dict[str, str]) -> None:
    once = offered(shell, "jobctl re", env)
    assert set(once) == {"receive", "remove"}
    assert offered(shell, "jobctl re", env, times=2) == once


def test_commands_are_offered(shell: str, env: dict[str, str]) -> None:
    assert set(offered(shell, "jobctl ", env)) == set(COMMANDS)


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


def test_commands_of_a_group_are_offered(shell: str, env: dict[str, str]) -> None:
    inner = {words.split()[1] for words in ALL if words.startswith("session ")}
    assert {"new", "enter", "remove"} <= inner
    assert set(offered(shell, "jobctl session ", env)) == inner


@pytest.mark.parametrize("words", ALL)
def test_options_are_offered(shell: str, words: str, env: dict[str, str]) -> None:
    params = ALL[words].command.get_params(ALL[words])
    options = {
        option
        for param in params
        if isinstance(param, click.Option)
        for option in (*param.opts, *param.secondary_opts)
    }
    assert set(offered(shell, f"jobctl {words} -", env)) == options


@pytest.mark.parametrize("verb", ["get", "receive", "wait", "stop", "remove"])
def test_jobs_are_offered(shell: str, verb: str, job: str, env: dict[str, str]) -> None:
    found = offered(shell, f"jobctl {verb} ", env)
    assert set(found) == {"1", job, "2"}
    if shell != "bash":
        assert set(found.values()) == {"Running sleep 300"}


@pytest.mark.usefixtures("job")
def test_jobs_are_offered_by_the_start_of_their_names(shell: str, env: dict[str, str]) -> None:
    assert set(offered(shell, "jobctl stop al", env)) == {"alpha"}


def test_values_of_options_are_offered(shell: str, env: dict[str, str]) -> None:
    found = set(offered(shell, "jobctl get --output j", env))
    assert found == {"json", "jsonl"}


def test_no_jobs_are_no_error(shell: str, env: dict[str, str]) -> None:
    assert offered(shell, "jobctl stop ", env) == {}


@pytest.mark.parametrize("words", ["disconnect", "connect stage", "remove --force", "get"])
def test_sessions_are_offered(
    shell: str, words: str, sessions: dict[str, str], env: dict[str, str]
) -> None:
    found = offered(shell, f"jobctl session {words} ", env)
    assert set(found) == set(sessions)
    if shell != "bash":
        assert found == sessions
    assert set(offered(shell, f"jobctl session {words} st", env)) == {"stage"}


@pytest.mark.parametrize("words", ["start -H", "start -n x --host", "session new"])
def test_hosts_are_offered(shell: str, words: str, hosts: set[str], env: dict[str, str]) -> None:
    assert set(offered(shell, f"jobctl {words} ", env)) == hosts
    assert set(offered(shell, f"jobctl {words} web1,db", env)) == {"web1,db1", "web1,db-old"}


@pytest.mark.parametrize(
    "words", ["session run", "session enter", "session receive", "session get --on"]
)
def test_sessions_and_hosts_are_offered(
    shell: str, words: str, sessions: dict[str, str], hosts: set[str], env: dict[str, str]
) -> None:
    assert set(offered(shell, f"jobctl {words} ", env)) == hosts | set(sessions)


def test_sessions_are_offered_to_start(
    shell: str, sessions: dict[str, str], env: dict[str, str]
) -> None:
    assert set(offered(shell, "jobctl start --session ", env)) == set(sessions)


@pytest.mark.usefixtures("sessions", "hosts")
def test_nobody_goes_to_the_network(shell: str, jobctl: Jobctl, env: dict[str, str]) -> None:
    for words in ("start -H ", "session connect ", "session enter ", "session get --on web"):
        assert offered(shell, f"jobctl {words}", env)
    assert not (Path(env["HOME"]) / "touched").exists()
    assert not list(jobctl.state_dir.glob("agent.*"))


def test_no_hosts_are_no_error(shell: str, env: dict[str, str]) -> None:
    env["JOBCTL_SSH_CONFIG"] = str(Path(env["HOME"]) / "none")
    assert offered(shell, "jobctl session new ", env) == {}
    assert offered(shell, "jobctl session connect ", env) == {}
