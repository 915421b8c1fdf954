"""Where nothing is executed: state directories, here and on a host, on a file system of theirs."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from conftest import Jobctl, first_of
from disk import mounted
from far import Far
from sshd import MakeSshd
from test_enter import entered, says, with_shell
from test_session import Make, at_terminal, far, make_far, status_of

pytest_plugins = ("sshd",)
__all__ = ["far", "make_far"]


COPIED = "cannot execute {}: the state directory, where its copy lies, is mounted noexec"


@pytest.fixture(name="noexec")
def _noexec() -> Iterator[Callable[[Path], Path]]:
    """Give what mounts a file system without programs in a folder."""
    with ExitStack() as stack:
        yield lambda path: stack.enter_context(mounted(path, "noexec"))


def _scripts(folder: Path) -> dict[Path, tuple[int, str]]:
    """Make scripts; return with which status each ends, and what it says."""
    contents = {
        "bang": (b"#!/bin/sh\necho $1", 0, "x\n"),
        "text": (b"echo $1", 0, "x\n"),
        "program": (Path("/bin/echo").read_bytes(), 126, ""),
    }
    for name, (content, _, _) in contents.items():
        (folder / name).write_bytes(content)
    return {folder / name: (status, said) for name, (_, status, said) in contents.items()}


def test_scripts_here(jobctl: Jobctl, tmp_path: Path, noexec: Callable[[Path], Path]) -> None:
    noexec(jobctl.state_dir)
    for path, (status, said) in _scripts(tmp_path).items():
        result = jobctl.run("start", "-qw", "-f", str(path), "x", status=status)
        assert result.stdout.decode() == said
        words = ("--foreach", "-", "-f", str(path))
        job = jobctl.start(*words, input=b"x", status=min(status, 1))
        jobctl.run("wait", job, status=min(status, 1))
        assert jobctl.out("receive", job) == said
        assert jobctl.job(job)["reason"] == (COPIED.format(path) if status else "")
    command = noexec(tmp_path / "mounted") / "w"
    command.write_text("#!/bin/sh\n")
    command.chmod(0o755)
    result = jobctl.run("start", "-qw", "mounted/w", cwd=tmp_path, status=126)
    assert b"cannot execute mounted/w: its file system is mounted noexec" in result.stderr


def test_scripts_on_a_host(far: Far, tmp_path: Path, noexec: Callable[[Path], Path]) -> None:
    noexec(far.there)
    for path, (status, said) in _scripts(tmp_path).items():
        job = far.on("web1", "-f", str(path), "x")
        far.run("wait", job, status=min(status, 1))
        assert far.out("receive", job) == said
        assert far.job(job)["reason"] == (COPIED.format(path) if status else "")
    far.run("session", "new", "web1")
    assert far.out("session", "run", "web1", "--", "jobctl", "start", "-wq", "echo", "a  b") == (
        "a  b\n"
    )
    text = 'jobctl start -q false && jobctl wait "$1"; echo $?'
    assert far.out("session", "run", "web1", "-c", text, "2").splitlines()[-1] == "1"
    assert far.run("session", "run", "web1", "jobctl", "nosuch", status=2).stdout == b""
    assert far.out("session", "receive", "web1") == ""


@pytest.mark.long
def test_entered_by_csh(
    make_far: Make, make_sshd: MakeSshd, noexec: Callable[[Path], Path]
) -> None:
    far = with_shell(make_far, make_sshd, "tcsh")
    noexec(far.there)
    (far.sshd.home / ".tcshrc").write_text("set prompt = 'csh> '\n")
    child = at_terminal(far, "session", "enter", "web1")
    child.expect_exact("is mounted noexec: only shells find jobctl there")
    child.expect_exact("csh> ")
    says(child, "jobctl start -w echo 'a  'b", r"a  b\r\n")
    says(child, 'echo "=$HOME=$home=$?jobctl_sh="; env | grep -c JOBCTL_', r"=/.*=/.*=1=\r\n0\r\n")
    assert f"={far.sshd.home}={far.sshd.home}=" in str(child.after)
    child.sendline("exit")
    assert status_of(child) == 0


def test_entered_by_a_shell_that_we_do_not_know(
    make_far: Make, make_sshd: MakeSshd, noexec: Callable[[Path], Path], tmp_path: Path
) -> None:
    shell = tmp_path / "odd"
    shell.write_text("#!/bin/sh\necho odd shell\n")
    shell.chmod(0o755)
    far = make_far(make_sshd(environ={"SHELL": str(shell)}))
    noexec(far.there)
    child = at_terminal(far, "session", "enter", "web1")
    child.expect_exact("is mounted noexec: this shell does not find jobctl there; to have it")
    assert status_of(child) == 0


@pytest.mark.parametrize("shell", first_of("bash", "zsh", "dash", "fish"))
def test_entered(
    make_far: Make, make_sshd: MakeSshd, noexec: Callable[[Path], Path], shell: str
) -> None:
    far = with_shell(make_far, make_sshd, shell)
    noexec(far.there)
    child = entered(far)
    assert "is mounted noexec: only shells find jobctl there" in str(child.before)
    says(child, "jobctl start -w echo 'a  'b", r"a  b\r\n")
    child.sendline("exit")
    assert status_of(child) == 0
    assert not os.access(next(far.there.glob("lib/*/bin/jobctl")), os.X_OK)
