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
    assert (COMPLETIONS / name).read_text().strip() == made


def test_zsh_finds_its_file_by_the_first_line() -> None:
    assert (COMPLETIONS / "_jobctl").read_text().startswith("#compdef jobctl\n")


def test_completing_again_in_a_session_offers_the_same(shell: str, env: dict[str, str]) -> None:
    once = offered(shell, "jobctl re", env)
    assert set(once) == {"receive", "remove"}
    assert offered(shell, "jobctl re", env, times=2) == once


def test_commands_are_offered(shell: str, env: dict[str, str]) -> None:
    assert set(offered(shell, "jobctl ", env)) == set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_options_are_offered(shell: str, name: str, env: dict[str, str]) -> None:
    context = click.Context(cli, **cli.context_settings)
    command = cli.get_command(context, name)
    assert command is not None
    params = command.get_params(click.Context(command, parent=context, info_name=name))
    options = {
        option
        for param in params
        if isinstance(param, click.Option)
        for option in (*param.opts, *param.secondary_opts)
    }
    assert set(offered(shell, f"jobctl {name} -", env)) == options


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
