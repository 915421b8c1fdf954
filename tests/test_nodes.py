"""Node sets and their groups: whose configuration counts, and what is said of one that is wrong."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import PROGRAM, Jobctl
from test_hostile import WITHOUT_PRIVILEGE

from jobctl import nodes
from jobctl.errors import BadUsage


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give the user's folder for the configuration of groups."""
    for name in ("XDG_CONFIG_HOME", "CLUSTERSHELL_CFGDIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    made = tmp_path / ".config/clustershell"
    (made / "groups.d").mkdir(parents=True)
    return made


def ours(folder: Path, host: str) -> None:
    """Write a configuration in which each group is one host."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "groups.conf").write_text(f"[Main]\ndefault: ours\n[ours]\nmap: echo {host}\n")


def test_only_groups_of_the_user_and_the_system(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    examples = Path(sys.prefix) / "etc/clustershell/groups.conf"
    assert examples.exists()
    assert nodes._is_example(str(examples))
    for group in ("@all", "@gpu", "@roles:gpu"):
        with pytest.raises(BadUsage, match="no group source"):
            nodes.expand(group)
    for number, place in enumerate((tmp_path / ".local/etc/clustershell", folder), 1):
        ours(place, f"web{number}")
        assert nodes.expand("@all") == [f"web{number}"]
    ours(tmp_path / "given", "web3")
    monkeypatch.setenv("CLUSTERSHELL_CFGDIR", str(tmp_path / "given"))
    assert nodes.expand("@all") == ["web3"]
    monkeypatch.delenv("CLUSTERSHELL_CFGDIR")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "none"))
    assert nodes.expand("@all") == ["web1"]
    # What pip put there for its user is an example as well.
    with monkeypatch.context() as here:
        here.setenv("HOME", str(tmp_path / "pip"))
        (tmp_path / "pip/.local/etc").mkdir(parents=True)
        (tmp_path / "pip/.local/etc/clustershell").symlink_to(examples.parent)
        with pytest.raises(BadUsage, match="no group source"):
            nodes.expand("@all")


def test_groups_that_cannot_be_read(folder: Path) -> None:
    head = b"[Main]\ndefault: y\n"
    for text, said in (
        (b"map: echo\n", ", line 1: there is no [section] above this"),
        (head + b"# caf\xe9\n[y]\nmap: echo\n", ", line 3: this is not UTF-8"),
        (head + b"[y]\nmap: echo\nrubbish\n", ", line 5: this is not NAME: VALUE"),
        (head + b"[y]\nmap: echo\nmap: echo\n", ", line 5: this is there already"),
        (head + b"[y]\nmap: echo\n[y]\n", ", line 5: this is there already"),
        (head, ": Default group source not found"),
        (head + b"[y]\nlist: echo\n", ": No option 'map'"),
        (b"[Main]\ndefault: %(x)s\n", ": Bad value substitution"),
        (b'[Main]\nconfdir: "a\n', ": No closing quotation"),
        (head + b"[y]\nmap: printf '\\377'\n", ": what a group source answers is not UTF-8"),
    ):
        (folder / "groups.conf").write_bytes(text)
        refused(f"{folder}/groups.conf{said}")
    (folder / "groups.conf").write_bytes(head + b"autodir: $CFGDIR/groups.d\n")
    for text, said in (
        (b"y:\n  g: b: c\n", ": mapping values are not allowed"),
        (b"y:\n  g: '\xe9'\n", ", line 2: this is not UTF-8"),
        (b"y:\n- g\n", ": invalid content"),
    ):
        (folder / "groups.d/a.yaml").write_bytes(text)
        refused(f"{folder}/groups.d/a.yaml{said}")
    (folder / "groups.d/a.yaml").write_bytes(b"y:\n  g: 5\n")
    refused("is not text")
    assert nodes.expand("web[1-2]") == ["web1", "web2"]


def test_groups_that_may_not_be_read(folder: Path, jobctl: Jobctl) -> None:
    """No other file stands in for one of them: a group would mean other hosts."""
    groups, local = folder / "groups.conf", folder.parent.parent / ".local/etc/clustershell"
    ours(local, "web1")
    groups.write_text("[Main]\ndefault: ours\nautodir: $CFGDIR/more\nconfdir: $CFGDIR/more\n")
    (folder / "more").mkdir()
    parts = [folder / "more" / name for name in ("y.conf", "y.yaml")]
    parts[0].write_text("")
    parts[1].write_text("z:\n  g: web2\n")
    jobctl.env["HOME"] = os.environ["HOME"]
    for closed, group, said in (
        (groups, "g", f"'@g' is no node set: cannot read {groups}: Permission denied"),
        (parts[0], "y:g", f"cannot read {parts[0]}: Permission denied"),
        (parts[1], "y:g", f"cannot read {parts[1]}: Permission denied"),
        (folder / "more", "y:g", f"cannot read {folder}/more: Permission denied"),
        (folder, "y:g", f"cannot read {groups}: Permission denied"),
    ):
        mode = closed.stat().st_mode
        closed.chmod(0)
        words = [*WITHOUT_PRIVILEGE, PROGRAM, "start", "-H", f"@{group}", "true"]
        result = subprocess.run(words, env=jobctl.env, capture_output=True, text=True)
        closed.chmod(mode)
        assert (result.returncode, result.stdout) == (2, "")
        assert said in result.stderr
        assert result.stderr.count("\n") == 1
    groups.unlink()
    groups.mkdir()
    refused(f"cannot read {groups}: it is a directory, not a plain file")


def test_commands_that_know_groups_and_fail(folder: Path) -> None:
    main = "[Main]\ndefault: y\nconfdir: $CFGDIR/more\n"
    (folder / "more").mkdir()
    (folder / "groups.conf").write_text(f"{main}[x,y]\nmap: exit 3 # $GROUP\n")
    (folder / "more/z.conf").write_text("[z]\nmap: echo\nall: exit 4\n")
    refused(f"{folder}/groups.conf: group source y: this fails: exit 3 # g")
    for text, said in (
        ("web1,@z:*", f"{folder}/more/z.conf: group source z: this fails: exit 4"),
        ("@x:*", f"{folder}/groups.conf: group source x: there is no 'list' command"),
    ):
        with pytest.raises(BadUsage, match=re.escape(said)):
            nodes.expand(text)


def test_groups_of_what_are_no_hosts(folder: Path) -> None:
    for answer, said in (
        ("echo @g", f"{folder}/groups.conf: a group is in itself"),
        ("echo 'a[1-'", f'{folder}/groups.conf: missing bracket: "a[1-"'),
        ("echo 'web1 b;c'", "'@g' is not a set of hosts: not a host name: 'b;c'"),
        ("echo -x", "'@g' is not a set of hosts: not a host name: '-x'"),
    ):
        (folder / "groups.conf").write_text(f"[Main]\ndefault: y\n[y]\nmap: {answer}\n")
        refused(said)
    with pytest.raises(BadUsage, match=r"^'@g\[1-' is no node set: missing bracket: \"@g\[1-\"$"):
        nodes.expand("@g[1-")


def refused(said: str) -> None:
    """Check that a group is refused, in one line that says this."""
    with pytest.raises(BadUsage) as caught:
        nodes.expand("@g")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_uses_the_library_names_a_wrong_file_too(folder: Path, tmp_path: Path) -> None:
    (folder / "defaults.conf").write_text("[task.info]\nfanout: many\n")
    environ = {**os.environ, "JOBCTL_STATE_DIR": str(tmp_path / "state"), "TMPDIR": str(tmp_path)}
    for hosts in ("web[1-2]", "@g"):
        words = [PROGRAM, "start", "-H", hosts, "true"]
        result = subprocess.run(words, env=environ, capture_output=True, text=True)
        assert result.returncode == 2
        assert f"{folder}/defaults.conf: invalid literal" in result.stderr
        assert result.stderr.count("\n") == 1


def test_a_fault_is_told_before_anything_is_written(folder: Path, jobctl: Jobctl) -> None:
    job = jobctl.out("start", "-q", "--foreach", "-", "echo", input=b"a\nb\n").strip()
    jobctl.run("wait", job)
    (folder / "defaults.conf").write_text("[task.info]\nfanout: many\n")
    jobctl.env["CLUSTERSHELL_CFGDIR"] = str(folder)
    said = jobctl.refused(2, "receive", "--gather", job)
    assert f"{folder}/defaults.conf: invalid literal" in said
    (folder / "defaults.conf").unlink()
    assert jobctl.out("receive", "--gather", job).count("\n") == 8


def test_who_knows_groups_reads_no_items(folder: Path, tmp_path: Path) -> None:
    text = "[Main]\ndefault: y\n[y]\nmap: cat >read; echo web1\n"
    (folder / "groups.conf").write_text(text)
    (tmp_path / "items").write_text("a\nb\n")
    before = os.dup(0)
    given = os.open(tmp_path / "items", os.O_RDONLY)
    try:
        os.dup2(given, 0)
        assert nodes.expand("@g") == ["web1"]
        assert os.read(0, 10) == b"a\nb\n"
    finally:
        os.dup2(before, 0)
        os.close(before)
        os.close(given)
    assert (folder / "read").read_text() == ""
