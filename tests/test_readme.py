"""The README does what it shows: every command in its code blocks is run as it is written.

In a `console` block, `$ ` begins a command and the lines up to the next are its output; after
`exit` the terminal is closed and another one opened. An `sh` block holds commands only. A comment
such as `<!-- the network goes -->` has that happen, between the blocks. The hosts named on the page
are a real sshd.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pexpect
import pytest
from conftest import Jobctl, wait_until
from far import Far
from sshd import MakeSshd, Sshd, Wire

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
INSTALL = (
    "python3 -m venv .venv && .venv/bin/pip install -q ."
    " && .venv/bin/jobctl start --wait echo hello"
)
TEST = "sh tests/run.sh"
ROWS, COLUMNS = 50, 100
SECONDS = 60
NOT_COPIED = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__")
NETWORK = re.compile(r"PIP_\w+|SSL_\w+|\w+_proxy", re.IGNORECASE)
"""Variables that say how to get at packages."""
MASKS = (
    (re.compile(r"\x1b\[[0-9;?]*[A-Za-z]"), ""),  # colours, and hiding the cursor
    (re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+Z)?"), "TIME"),
    (re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"), "UUID"),
    (re.compile(r'"pid": \d+'), '"pid": PID'),
)
"""What may differ between the page and the terminal, and what stands for it."""


class Block(NamedTuple):
    """A code block of the page, or something that happens, which has no language."""

    language: str
    text: str

    @property
    def steps(self) -> list[tuple[str, str | None]]:
        """Commands with the output shown for each, None where none is to be compared."""
        if self.language == "sh":
            return [(line, None) for line in self.text.splitlines()]
        first, *parts = re.split(r"^\$ ", self.text, flags=re.M)
        assert first == "", f"output before the first command: {self.text}"
        return [(command, output) for command, _, output in (p.partition("\n") for p in parts)]


PART = re.compile(r"^```(.+)\n((?:.*\n)*?)```$|^<!-- (.*) -->$", re.M)


def story() -> list[Block]:
    """Return the code blocks of the page, and what happens between them, in order."""
    return [Block(language, text or event) for language, text, event in PART.findall(README)]


def blocks() -> list[Block]:
    return [block for block in story() if block.language]


class Terminal:
    """A shell in a terminal, as a reader of the page has one."""

    def __init__(self, env: dict[str, str], cwd: Path) -> None:
        self._env = env
        self._cwd = cwd
        self._shell = self._opened()

    def _opened(self) -> pexpect.spawn[str]:
        return pexpect.spawn(
            "dash",  # without a line editor, which would echo what is sent
            env=self._env,
            cwd=str(self._cwd),
            dimensions=(ROWS, COLUMNS),
            echo=False,
            encoding="utf-8",
            timeout=SECONDS,
        )

    def run(self, command: str) -> tuple[str, int]:
        """Return what is on the screen after a command, and its exit status."""
        if command == "exit":
            self._shell.sendline(command)
            self._shell.expect_exact(pexpect.EOF)
            self.close()
            self._shell = self._opened()
            return "", 0
        # In one line: a next one would be standard input of what reads the terminal.
        end = 'status=$?; echo "THE_""END $status"; (exit $status)'
        self._shell.sendline(f"{command}; {end}")
        self._shell.expect(r"THE_END (\d+)\r\n")
        match = self._shell.match
        assert isinstance(match, re.Match)
        return self._shell.before or "", int(match[1])

    def close(self) -> None:
        self._shell.close(force=True)


def normal(screen: str) -> str:
    """Return what a person reads on a screen, without what differs each time."""
    # Of a line that is written over, as by a bar, what was written last.
    lines = [line.rpartition("\r")[2] for line in screen.replace("\r\n", "\n").split("\n")]
    text = "\n".join(lines)
    for pattern, name in MASKS:
        text = pattern.sub(name, text)
    return "\n".join(line.rstrip() for line in text.split("\n")).strip("\n")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """What a clone of this repository has: the files that git knows or would add."""
    copy = tmp_path / "jobctl"
    listing = subprocess.run(
        ["git", "ls-files", "-zco", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    if listing.returncode:  # an unpacked archive
        shutil.copytree(ROOT, copy, ignore=NOT_COPIED)
        return copy
    for name in filter(None, listing.stdout.split("\0")):
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copy / name)
    return copy


def new_user(jobctl: Jobctl) -> dict[str, str]:
    """Return the environment of somebody who has changed nothing but where packages come from."""
    network = {name: value for name, value in os.environ.items() if NETWORK.fullmatch(name)}
    own = {"LC_ALL": "C.UTF-8", "TERM": "xterm", "PS1": "", "PS2": ""}
    return {**network, **jobctl.env, **own}


@pytest.fixture
def env(jobctl: Jobctl) -> dict[str, str]:
    return new_user(jobctl)


@pytest.fixture
def sshd(make_sshd: MakeSshd) -> Sshd:
    """The hosts of the page: nobody has done anything there yet."""
    return make_sshd()


@pytest.fixture
def events(far: Far, wire: Wire) -> dict[str, Callable[[], None]]:
    """What can happen, by the words of the page."""

    def all_are(state: str) -> bool:
        return {job["state"] for job in far.jobs() if job["type"] == "RemoteJob"} == {state}

    def goes() -> None:
        wait_until(lambda: all_are("Running"))
        wire.freeze()
        wire.cut()
        wait_until(lambda: all_are("Disconnected"))

    return {"the network goes": goes, "the network is back": wire.thaw}


@contextmanager
def terminal(env: dict[str, str], cwd: Path) -> Iterator[Terminal]:
    opened = Terminal(env, cwd)
    try:
        yield opened
    finally:
        opened.close()


def test_every_code_block_is_of_a_kind_that_is_run() -> None:
    found = blocks()
    assert {block.language for block in found} == {"sh", "console"}
    outside = re.sub(r"^```.*\n(?:.*\n)*?```$", "", README, flags=re.M)
    assert not re.search(r"^\s*(```|~~~)|^(    |\t)", outside, re.M), "a block that is not run"
    assert all(block.steps for block in found)


@pytest.mark.long
def test_all_commands_in_order(far: Far, events: dict[str, Callable[[], None]], tree: Path) -> None:
    env = new_user(far)
    # As if it had been installed here by the first command, which has a test of its own.
    (tree / ".venv").symlink_to(sys.prefix)
    happened = set()
    with terminal(env, tree) as screen:
        for block in story():
            if not block.language:
                events[block.text]()
                happened.add(block.text)
                continue
            for command, shown in block.steps:
                if command in (INSTALL, TEST):
                    continue
                output, status = screen.run(command)
                if shown is None:
                    assert (output, status) == ("", 0), command
                else:
                    assert normal(output) == normal(shown), command
    assert happened == set(events)
    assert far.jobs() == []
    assert far.out("session", "get") == ""
    assert_completed_by_each_shell(env)


def assert_completed_by_each_shell(env: dict[str, str]) -> None:
    """Check that new shells of the user complete jobctl, as the page has told them to."""
    asked = {
        "bash": "complete -p jobctl",
        "zsh": "print $_comps[jobctl]",
        "fish": "complete -C 'jobctl re'",
    }
    answers = {}
    for shell, question in asked.items():
        if shutil.which(shell) is None:
            pytest.fail(f"{shell} is not installed; its completion cannot be tested")
        answers[shell] = subprocess.run(
            [shell, "-ic", question],
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=SECONDS,
        ).stdout
    assert "-F _jobctl_completion jobctl" in answers["bash"]
    assert answers["zsh"] == "_jobctl\n"
    assert [line.split()[0] for line in answers["fish"].splitlines()] == ["receive", "remove"]


@pytest.mark.long
def test_the_first_command_on_a_fresh_machine(env: dict[str, str], tree: Path) -> None:
    (block,) = (block for block in blocks() if INSTALL in block.text)
    assert block == Block("sh", f"{INSTALL}\n")
    result = subprocess.run(
        ["sh", "-c", block.text],
        cwd=tree,
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (result.stdout, result.returncode) == ("hello\n", 0), result.stderr
    assert result.stderr.splitlines()[-1] == "jobctl: job 1"


def test_the_command_that_runs_the_tests_is_there() -> None:
    assert Block("sh", f"{TEST}\n") in blocks()
    assert (ROOT / TEST.split()[1]).is_file()


def test_links_lead_somewhere() -> None:
    targets = re.findall(r"\]\(([^)]+)\)", README)
    assert targets
    assert all((ROOT / target).is_file() for target in targets)


def test_man_finds_the_pages_named(env: dict[str, str], tree: Path) -> None:
    for page in re.findall(r"`man (\./[^`]+)`", README):
        shown = subprocess.run(
            ["man", page], cwd=tree, env={**env, "MANPAGER": "cat"}, capture_output=True, text=True
        )
        assert shown.returncode == 0
        assert "background jobs for the shell" in shown.stdout
