"""The state directory: Python and every sh find the same one, and refuse the same."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from platformdirs.macos import MacOS

from jobctl import paths
from jobctl.agent import far
from jobctl.errors import JobctlError

PLACE = Path(paths.__file__).with_name("place.sh")
NAMES = ("JOBCTL_STATE_DIR", "XDG_STATE_HOME", "HOME")
USUAL = ".local/state/jobctl"
SOMEBODY = 4321
OPEN = "others can write to the state directory"
# What is named, in a folder that is the home and the current directory, and there before; and
# which directory is meant, or the status and part of the message of a refusal.
TABLE: dict[str, tuple[dict[str, str], object]] = {
    "nothing": ({}, USUAL),
    "absolute": ({"JOBCTL_STATE_DIR": "{here}/a b/c"}, "a b/c"),
    "relative": ({"JOBCTL_STATE_DIR": "a/b"}, "a/b"),
    "above": ({"JOBCTL_STATE_DIR": "in/../a"}, "a"),
    "dash": ({"JOBCTL_STATE_DIR": "-a"}, "-a"),
    "empty": ({"JOBCTL_STATE_DIR": "", "XDG_STATE_HOME": ""}, USUAL),
    "xdg": ({"XDG_STATE_HOME": "{here}/x"}, "x/jobctl"),
    "relative xdg": ({"XDG_STATE_HOME": "x"}, USUAL),
    "blank xdg": ({"XDG_STATE_HOME": " "}, USUAL),
    "first": ({"JOBCTL_STATE_DIR": "a", "XDG_STATE_HOME": "{here}/x", "HOME": ""}, "a"),
    "no home needed": ({"XDG_STATE_HOME": "{here}/x", "HOME": ""}, "x/jobctl"),
    "empty home": ({"HOME": ""}, (125, "no home directory")),
    "relative home": ({"HOME": "h"}, (125, "no home directory")),
    "home of a name": ({"HOME": "~root"}, (125, "no home directory")),
    "private": ({"JOBCTL_STATE_DIR": "private"}, "private"),
    "readable": ({"JOBCTL_STATE_DIR": "readable"}, "readable"),
    "full": ({"JOBCTL_STATE_DIR": "full"}, "full"),
    "link": ({"JOBCTL_STATE_DIR": "link"}, "private"),
    "group": ({"JOBCTL_STATE_DIR": "group"}, (4, f"{OPEN} {{here}}/group, and may have done so: ")),
    "others": ({"JOBCTL_STATE_DIR": "others"}, (4, "move it away, or set JOBCTL_STATE_DIR")),
    "theirs": ({"JOBCTL_STATE_DIR": "theirs"}, (4, f"belongs to user {SOMEBODY}, not to you")),
    "their link": (
        {"JOBCTL_STATE_DIR": "their"},
        (4, f"{{here}}/their belongs to user {SOMEBODY};"),
    ),
    "our link": ({"JOBCTL_STATE_DIR": "to"}, (4, f"belongs to user {SOMEBODY}, not to you")),
    "file": ({"JOBCTL_STATE_DIR": "file"}, (125, "{here}/file is not a directory; move it away")),
    "below": ({"JOBCTL_STATE_DIR": "file/a"}, (125, "{here}/file/a: Not a directory; set JOBCTL")),
    "loop": ({"JOBCTL_STATE_DIR": "loop"}, (125, "loop")),
    # The way there.
    "below others": (
        {"JOBCTL_STATE_DIR": "others/a"},
        (4, "others can replace the state directory {here}/others/a: they can write to"),
    ),
    "far below others": ({"JOBCTL_STATE_DIR": "others/a/b"}, (4, "{here}/others; chmod go-w it")),
    "below a group": ({"JOBCTL_STATE_DIR": "team/a"}, (4, "they can write to {here}/team; chmod")),
    "below a group of one": ({"JOBCTL_STATE_DIR": "group/a"}, "group/a"),
    "below a sticky folder": ({"JOBCTL_STATE_DIR": "sticky/a"}, "sticky/a"),
    "below theirs": ({"JOBCTL_STATE_DIR": "theirs/a"}, (4, f"theirs belongs to user {SOMEBODY};")),
    "past others": ({"JOBCTL_STATE_DIR": "others/../a"}, "a"),
    "a link past others": ({"JOBCTL_STATE_DIR": "past"}, "private"),
    "a link among others": (
        {"JOBCTL_STATE_DIR": "others/link"},
        (4, "they can write to {here}/others; chmod"),
    ),
    "a link to such a link": ({"JOBCTL_STATE_DIR": "out"}, (4, "they can write to {here}/others;")),
    "a link above": ({"JOBCTL_STATE_DIR": "up/a"}, "in/a"),
    "their link above": (
        {"JOBCTL_STATE_DIR": "their/a"},
        (4, f"{{here}}/their belongs to user {SOMEBODY};"),
    ),
    "their link in a sticky folder": (
        {"JOBCTL_STATE_DIR": "sticky/their/a"},
        (4, f"sticky/their belongs to user {SOMEBODY};"),
    ),
    "odd names": ({"JOBCTL_STATE_DIR": "o d -> d/*/a"}, "in/*/a"),
}
MODES = {
    "private": 0o700,
    "readable": 0o755,
    "group": 0o770,
    "team": 0o775,
    "others": 0o702,
    "sticky": 0o1777,
    "theirs": 0o700,
}
LINKS = {
    "link": "private",
    "their": "private",
    "to": "theirs",
    "loop": "loop",
    "past": "others/../private",
    "others/link": "../private",
    "out": "others/link",
    "up": "{here}/in",
    "sticky/their": "../in",
    "o d -> d": "in",
}


@pytest.fixture(name="here")
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Give a folder with directories that are good or bad places."""
    home = tmp_path / "home"
    for name in ("in", "full", *MODES):
        (home / name).mkdir(parents=True)
    (home / "full/of").mkdir()
    for name, mode in MODES.items():
        (home / name).chmod(mode)
    (home / "full").chmod(0o755)
    (home / "file").touch()
    for name, target in LINKS.items():
        (home / name).symlink_to(target.format(here=home))
    for name in ("their", "theirs", "sticky/their"):
        os.chown(home / name, SOMEBODY, -1, follow_symlinks=False)
    os.chown(home / "team", -1, SOMEBODY)
    monkeypatch.chdir(home)
    before = os.umask(0o022)
    yield home
    os.umask(before)


def environment(here: Path, case: str) -> dict[str, str]:
    """Return the variables of a case."""
    given = {name: value.format(here=here) for name, value in TABLE[case][0].items()}
    return {"HOME": str(here)} | given


def expected(here: Path, case: str) -> tuple[int, str]:
    """Return a status, and the directory with its mode or a part of the message."""
    wanted = TABLE[case][1]
    if isinstance(wanted, str):
        mode = "755" if case == "full" else "700"
        return 0, f"{here}/{wanted} {mode}"
    assert isinstance(wanted, tuple)
    return wanted[0], wanted[1].format(here=here)


def shown(path: str) -> str:
    """Return a directory, wherever links lead, and its mode."""
    return f"{os.path.realpath(path)} {os.stat(path).st_mode & 0o777:o}"


@pytest.mark.parametrize("case", TABLE)
def test_in_python(here: Path, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment(here, case).items():
        monkeypatch.setenv(name, value)
    status, text = expected(here, case)
    if status:
        with pytest.raises(JobctlError, match=re.escape(text)) as raised:
            paths.state_dir()
        assert raised.value.status == status
    else:
        assert shown(paths.state_dir()) == text
    assert os.environ.get("XDG_STATE_HOME") == environment(here, case).get("XDG_STATE_HOME")


@pytest.mark.parametrize("shell", ["dash", "bash --posix", "busybox sh", "one line"])
@pytest.mark.parametrize("case", TABLE)
def test_in_sh(here: Path, case: str, shell: str) -> None:
    line = far._place() if shell == "one line" else f". {PLACE}"
    words = ["sh"] if shell == "one line" else shell.split()
    words[0] = shutil.which(words[0]) or words[0]
    env = {"PATH": "/usr/bin:/bin", **environment(here, case)}
    text = line + '; printf "%s\\n" "$s" "$d" "$w"'
    result = subprocess.run([*words, "-uc", text], env=env, capture_output=True, text=True)
    assert result.stderr == ""
    status, found, wrong = result.stdout.splitlines()
    wanted, part = expected(here, case)
    if not wrong:
        assert (0, shown(found)) == (wanted, part)
    else:
        assert (int(status), part in wrong) == (wanted, True), wrong


def test_the_line_is_one_for_every_login_shell() -> None:
    assert not set(far._place()) & set("'\\!\n")


def test_on_macos(here: Path, tmp_path: Path) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "uname").write_text("#!/bin/sh\necho Darwin\n")
    (tools / "uname").chmod(0o755)
    env = {"PATH": f"{tools}:/usr/bin:/bin", "HOME": str(here)}
    text = f'. {PLACE}; echo "$d"'
    found = subprocess.check_output(["sh", "-c", text], env=env, text=True).strip()
    assert found == f"{here}/Library/Application Support/jobctl"
    assert Path(found).is_dir()
    assert MacOS("jobctl", False).user_state_dir == os.path.expanduser(
        "~/Library/Application Support/jobctl"
    )
