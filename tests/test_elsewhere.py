"""Several machines with one state directory: each judges only what runs on itself.

The other machine is this one under another name, with the same boot id, as containers are.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import PROGRAM, Jobctl, nothing_left, wait_until
from far import Far
from sshd import MakeSshd
from test_bare import SCRIPT
from test_items import children, each

from jobctl.process import Place, hostname, place_of

OTHER = "other-machine.example"
RUNNER = Path(SCRIPT).with_name("runner.sh")


def other_machine(name: str = OTHER) -> list[str]:
    """Return the words that run a command on another machine."""
    code = f"import os, socket, sys; socket.sethostname({os.fsencode(name)!r});" + (
        " os.execvp(sys.argv[1], sys.argv[1:])"
    )
    words = [*unshare("--uts"), sys.executable, "-I", "-c", code]
    tried = subprocess.run([*words, "uname", "-n"], capture_output=True)
    if tried.stdout.strip() != os.fsencode(name):
        pytest.fail(f"no second name for this machine, see unshare(1): {tried.stderr!r}")
    return words


def unshare(*options: str) -> list[str]:
    """Return the words that run a command in namespaces of its own."""
    if sys.platform != "linux":
        pytest.skip("only Linux has namespaces; the records are judged alike everywhere")
    maps = [] if os.getuid() == 0 else ["--user", "--map-current-user", "--keep-caps"]
    return ["unshare", *maps, *options]


def there(jobctl: Jobctl, status: int, *words: str) -> str:
    """Run the program on the other machine; return all it writes."""
    result = subprocess.run(
        [*other_machine(), *words],
        env=jobctl.env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=60,
    )
    assert result.returncode == status, (words, result)
    return result.stdout.decode()


def mend(folder: Path) -> None:
    """Have the other machine write down what is lost of a job with items."""
    words = [*other_machine(), "sh", str(RUNNER.with_name("items.sh")), "mend", str(folder)]
    subprocess.run(words, check=True)


@pytest.mark.long
@pytest.mark.parametrize("shell", ["dash", "bash --posix", "busybox sh"])
def test_where_a_record_was_written(shell: str) -> None:
    here, boot = hostname(), "b1-b2"
    table = {
        (here, boot): Place.HERE,
        ("", boot): Place.HERE,
        (here, "another"): Place.BEFORE,
        (OTHER, boot): Place.ELSEWHERE,
        (OTHER, "another"): Place.ELSEWHERE,
        (OTHER, ""): Place.ELSEWHERE,
        (here, ""): Place.NOWHERE,
        ("", ""): Place.NOWHERE,
        ("", "another"): Place.NOWHERE,
    }
    assert {pair: place_of(*pair, boot) for pair in table} == table
    name, *rest = shell.split()
    path = shutil.which(name)
    assert path, f"{name} is not installed; tests/run.sh installs it"
    script = f"""jobctl_sourced=1; . "{RUNNER}"; boot; boot_now={boot}
        while [ $# -gt 0 ]; do place_of "$1" "$2"; printf '%s\\n' "$place"; shift 2; done"""
    words = [word for pair in table for word in pair]
    said = subprocess.check_output([path, *rest, "-c", script, "sh", *words], text=True)
    assert said.split() == [place.value for place in table.values()]


@pytest.mark.long
def test_the_name_of_a_machine(tmp_path: Path) -> None:
    odd = "a' b\\n$(touch c)é"
    words = other_machine(odd)
    script = f'jobctl_sourced=1; . "{RUNNER}"; boot; printf "%s\\n" "$host_now"'
    code = "from jobctl.process import hostname; print(hostname())"
    names = [
        subprocess.check_output([*words, *command], text=True, cwd=tmp_path)
        for command in (["sh", "-c", script], [sys.executable, "-c", code])
    ]
    assert names == ["a--b-n--touch-c---\n"] * 2


@pytest.mark.parametrize("program", [[PROGRAM], ["/bin/sh", SCRIPT]], ids=["jobctl", "sh"])
def test_a_job_of_another_machine(jobctl: Jobctl, tmp_path: Path, program: list[str]) -> None:
    go = tmp_path / "go"
    text = f"while [ ! -e {go} ]; do sleep 0.1; done; echo done"
    job = jobctl.sh(text)
    record = jobctl.job(job)
    shown = there(jobctl, 0, *program, "get", "-o", "wide", job)
    assert "Disconnected" in shown
    assert f"runs on {hostname()}, which shares this state directory" in shown
    for words in (("stop",), ("stop", "--signal", "KILL"), ("remove", "--force")):
        said = there(jobctl, 5, *program, *words, job)
        assert f"job {job} runs on {hostname()}" in said
    assert "is Disconnected" in there(jobctl, 4, *program, "remove", job)
    waits = there(jobctl, 0, *program, "start", "-q", "--after-ok", job, "echo", "then").strip()
    there(jobctl, 124, *program, "wait", "--timeout", "0.5", waits)
    why = f"jobctl: waiting: job {job} runs on {hostname()}, which shares this state directory\n"
    for verb in (("wait",), ("receive", "--wait")):
        said = there(jobctl, 124, *program, *verb, "--timeout", "1.5", job)
        assert said.count("waiting: ") == said.count(why) == 1
    assert jobctl.job(job) == record
    assert not list(jobctl.folder(job).glob("stop*"))
    go.touch()
    assert "Completed" in there(jobctl, 0, *program, "wait", job)
    assert there(jobctl, 0, *program, "receive", "--wait", waits) == "then\n"
    assert jobctl.out("receive", job) == "done\n"


@pytest.mark.long
def test_items_of_another_machine(jobctl: Jobctl, tmp_path: Path) -> None:
    go = tmp_path / "go"
    command = f"echo {{}} >>{tmp_path}/ran; while [ ! -e {go} ]; do sleep 0.1; done"
    job = each(jobctl, "1\n2\n3\n", "-t", "1", "-c", command)
    shown = there(jobctl, 0, PROGRAM, "get", "--children", "-o", "wide", job)
    assert shown.count("Disconnected") == 4
    assert shown.count(f"runs on {hostname()}") == 4
    records = json.loads(there(jobctl, 0, PROGRAM, "get", "--children", "-o", "json", job))
    assert {record["location"] for record in records} == {hostname()}
    assert len(records) == 4
    there_too = there(jobctl, 0, PROGRAM, "get", "-q", "--location", hostname(), job)
    assert there_too.split() == [job]
    for words in (("stop", job), ("stop", f"{job}.1"), ("stop", "--signal", "KILL", job)):
        assert f"runs on {hostname()}" in there(jobctl, 5, PROGRAM, *words)
    there(jobctl, 5, PROGRAM, "remove", "--force", job)
    for whole in (job, f"{job}.1"):
        said = there(jobctl, 124, PROGRAM, "wait", "--timeout", "1", whole)
        assert said.count(f"jobctl: waiting: job {job} runs on {hostname()}") == 1
    mend(jobctl.folder(job))
    states = [child["state"] for child in children(jobctl, job)]
    assert states == ["Running", "NotStarted", "NotStarted"]
    go.touch()
    there(jobctl, 0, PROGRAM, "wait", job)
    assert (tmp_path / "ran").read_text() == "1\n2\n3\n"
    assert [child["state"] for child in children(jobctl, job)] == ["Completed"] * 3


@pytest.mark.long
def test_a_container_without_our_processes(jobctl: Jobctl) -> None:
    words = [*unshare("--pid", "--fork", "--mount-proc"), PROGRAM]
    job = jobctl.start("sleep", "7415")
    said = subprocess.check_output([*words, "get", "-o", "wide", job], env=jobctl.env, text=True)
    assert "Disconnected" in said
    assert "runs in another container of this machine" in said
    assert jobctl.state(job) == "Running"
    for pid in (jobctl.runner_pid(job), jobctl.job(job)["pid"]):
        os.kill(pid, 9)
    said = subprocess.check_output([*words, "get", "-o", "wide", job], env=jobctl.env, text=True)
    assert "lost: runner was killed" in said


@pytest.fixture
def login_nodes(tmp_path: Path, make_sshd: MakeSshd) -> Iterator[tuple[Far, Callable[[int], None]]]:
    """Give a host that is two machines with one home, and what moves its name to one of them."""
    first = make_sshd()
    second = make_sshd(
        environ={"HOME": str(first.home), "XDG_STATE_HOME": f"{first.home}/.local/state"}
    )
    second.stop()
    second.machine = other_machine()
    second.start()
    nodes = [first, second]
    first.known_hosts.write_text(first.known_hosts.read_text() + second.known_hosts.read_text())
    second.authorized_keys.write_bytes(first.authorized_keys.read_bytes())

    def move(number: int) -> None:
        first.hosts(port=nodes[number].port)
        nodes[1 - number].kill_connections()

    far = Far(tmp_path / "state", tmp_path, first, "-H", "web1")
    yield far, move
    move(0)
    far.close()
    nothing_left(tmp_path, first.home)


@pytest.mark.long
def test_a_host_that_is_two_machines(
    login_nodes: tuple[Far, Callable[[int], None]], tmp_path: Path
) -> None:
    far, move = login_nodes
    go, ran = tmp_path / "go", tmp_path / "ran"
    text = f"echo {{}} >>{ran}; until [ -e {go} ]; do sleep 0.1; done; echo end {{}}"
    items = each(far, "1\n2\n3\n", "-H", "web1", "--per-host", "1", "-c", text)
    job = far.sh(f"echo began; until [ -e {go} ]; do sleep 0.1; done; echo ended")
    wait_until(lambda: far.state(job) == "Running" and ran.exists())
    wait_until(lambda: far.output(job) == "began\n")
    move(1)
    why = f"runs on {hostname()}, which shares the state directory of web1"
    wait_until(lambda: far.job(job)["reason"] == why)
    assert far.state(job) == "Disconnected"
    wait_until(lambda: far.job(f"{items}.1")["reason"] == why)
    assert far.state(f"{items}.1") == "Disconnected"
    for words in (("stop", job), ("stop", "--signal", "KILL", job), ("stop", items)):
        said = far.refused(5, *words)
        assert f"runs on {hostname()}" in said
    assert "Disconnected" in far.out("session", "get", "--on", "web1", "-o", "json")
    guest = far.guest(job)
    assert not (guest / "exit").exists()
    assert not (guest / "stop").exists()
    mend(next(far.there.glob("guest/*/items")).parent)
    assert ran.read_text() == "1\n"
    go.touch()
    assert far.outcome(job) == ("Completed", "", 0)
    assert far.output(job) == "began\nended\n"
    far.run("wait", items, "--timeout", "60")
    assert ran.read_text() == "1\n2\n3\n"
    assert far.out("receive", items) == "end 1\nend 2\nend 3\n"
    assert [child["state"] for child in children(far, items)] == ["Completed"] * 3
