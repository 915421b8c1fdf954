"""Jobs on hosts when networks break, agents and servers are killed, and hosts lie."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import at_rest, first_of, rows_of, sleeper, wait_until
from far import Far
from sshd import MakeSshd, Wire

import jobctl
from jobctl.carried import Carried
from jobctl.folder import Folder

_LINES = 3000
COUNTED = "".join(f"{i}\n" for i in range(1, _LINES + 1))
"""What count() writes."""
REPORTS = "".join(f"{i}\n" for i in range(100, _LINES + 1, 100))


def gate(far: Far) -> Path:
    """Return the file that count() waits for before it writes the last hundred lines."""
    return far.state_dir.parent / "go"


def count(far: Far, seconds: float = 1.5, *options: str) -> str:
    """Start a job that writes numbered lines, some to its standard error too; return its id.

    It writes for so many seconds, or for longer, and does not end before somebody opens its gate.
    """
    nap = seconds * 100 / _LINES
    text = (
        f"i=0; while [ $i -lt {_LINES} ]; do i=$((i + 1)); echo $i;"
        f" [ $i -ne {_LINES - 100} ] || until [ -e {gate(far)} ]; do sleep 0.02; done;"
        f" [ $((i % 100)) -ne 0 ] || {{ echo $i >&2; sleep {nap:.3f}; }}; done; exit 7"
    )
    job = far.start(*options, "-c", text)
    wait_until(lambda: far.job(job)["pid"])
    return job


def all_came(far: Far, job: str) -> None:
    """Check that a job's end and all its output come, each byte once."""
    gate(far).touch()
    result = far.run("receive", "--wait", "--timeout", "100", job, status=7)
    assert result.stdout.decode() == COUNTED
    assert result.stderr.decode() == f"{REPORTS}jobctl: job {job} failed: exit status 7\n"
    record = far.job(job)
    assert (record["state"], record["exit_code"]) == ("Failed", 7)
    assert far.output(job) == COUNTED


@pytest.mark.parametrize("refusal", ["login", "host key"])
def test_a_refusal_that_is_over(far: Far, refusal: str) -> None:
    """Who waits is told why, and every command that needs the host asks again."""
    gates = [far.sshd.home / f"gate{number}" for number in (1, 2)]
    for gate in gates:
        os.mkfifo(gate)
    job, other = (far.start("-c", f"read x <{gate}; echo end") for gate in gates)
    for each in (job, other):
        far.until(each, "Running")
    if refusal == "login":
        far.sshd.authorized_keys.write_text("")
    else:
        far.sshd.trust("somebody-else")
    far.sshd.kill_connections()
    wait_until(lambda: "web1" in far.job(job)["reason"])
    waiter = far.popen("wait", "-q", job, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert waiter.stderr
    said = waiter.stderr.readline().decode()
    assert re.fullmatch(r"jobctl: waiting: .*web1.*; it is tried again\n", said)
    assert far.run("wait", other, "--timeout", "1", status=124).stderr.decode() == said
    far.sshd.authorized_keys.write_bytes(far.sshd.key.with_suffix(".pub").read_bytes())
    far.sshd.trust()
    if refusal == "login":
        assert far.out("start", "-w", "-H", "web1", "echo", "new") == "new\n"
    else:
        receiver = far.popen("receive", "-w", other, stdout=subprocess.PIPE)
        far.until(other, "Running")
    for gate in gates:
        gate.write_text("\n")
        gate.unlink()
    if refusal == "host key":
        assert receiver.communicate()[0] == b"end\n"
    assert waiter.communicate()[0].decode() == f"{job}\n"


@pytest.mark.long
def test_the_far_side_ends_while_it_is_set_up(make_sshd: MakeSshd, tmp_path: Path) -> None:
    """As when a login shell is killed, or a host goes down: tried again without being asked."""
    down = tmp_path / "down"
    server = make_sshd(
        f'ForceCommand [ ! -e {down} ] || kill -KILL $$; exec sh -c "$SSH_ORIGINAL_COMMAND"'
    )
    far = Far(tmp_path / "state", tmp_path, server, "-H", "web1")
    os.mkfifo(tmp_path / "gate")
    job = far.start("-c", f"read x <{tmp_path}/gate; echo end")
    far.until(job, "Running")
    down.write_text("")
    server.kill_connections()
    wait_until(lambda: "the login shell" in far.job(job)["reason"])
    down.unlink()
    far.until(job, "Running")
    (tmp_path / "gate").write_text("\n")
    assert far.out("receive", "-w", job) == "end\n"
    far.close()


def came(far: Far, job: str, lines: int) -> None:
    """Wait until so many lines are here."""
    wait_until(lambda: far.output(job).count("\n") >= lines)


def at_its_gate(guest: Path) -> None:
    """Wait until the job in this folder there waits for its gate."""
    wait_until(lambda: (guest / "stdout").read_text().count("\n") == _LINES - 100)


@pytest.mark.long
def test_cut_again_and_again(far: Far, wire: Wire) -> None:
    job = count(far, 2.0)
    for number, lines in enumerate((300, 1000, 2000), 1):
        came(far, job, lines)
        wire.cut()
        wait_until(lambda: wire.accepted > number)  # noqa: B023
        far.until(job, "Running")
    all_came(far, job)


def test_cut_is_seen(far: Far, wire: Wire) -> None:
    job = far.start("sleep", "600")
    far.until(job, "Running")
    far.sshd.stop()
    wire.cut()
    wait_until(lambda: far.state(job) == "Disconnected")
    record = far.job(job)
    assert record["state"] == "Disconnected"
    assert record["reason"]
    far.sshd.start()
    far.until(job, "Running")
    far.run("stop", job)  # the wire is taken away before what uses it


@pytest.mark.long
def test_time_is_up_while_output_is_fetched(far: Far, wire: Wire) -> None:
    """Long before the host is given up, whose silence is no news yet."""
    far.sshd.hosts("Host *", "ServerAliveInterval 300", port=wire.port)
    running = far.start("--results", "remote", "-c", f"echo a; exec {sleeper()}")
    over = far.done("--results", "remote", "echo", "b")
    far.until(running, "Running")
    wire.freeze()
    for words in ((running,), (over,), (running, over), ("--gather", over)):
        result = far.run("receive", "--wait", "--timeout", "0.5", *words, status=124)
        assert (result.stdout, result.stderr) == (b"", b"")
    wire.thaw()
    assert far.out("receive", "--wait", over) == "b\n"
    far.run("stop", running)
    assert far.out("receive", running) == "a\n"


def test_an_end_that_another_agent_wrote(far: Far, wire: Wire) -> None:
    """Who waits is told of it, also by an agent that finds nothing to do any more."""
    wire.freeze()
    job = far.start("true")
    with far.popen("wait", "-q", job, stdout=subprocess.PIPE) as waiter:
        at_rest(waiter)
        assert Carried(Folder(str(far.folder(job)))).end("Failed", "as the other one saw it")
        wire.thaw()
        assert waiter.stdout
        assert waiter.stdout.read() == f"{job}\n".encode()
    assert waiter.returncode == 1


@pytest.mark.parametrize("then", ["thawed", "cut"])
def test_frozen(far: Far, wire: Wire, then: str) -> None:
    job = count(far)
    guest = far.guest(job)
    came(far, job, 500)
    wire.freeze()
    at_its_gate(guest)
    assert len(far.output(job)) < len(COUNTED)
    if then == "cut":
        wire.cut()
    wire.thaw()
    all_came(far, job)


def test_killed_servers(far: Far) -> None:
    job = count(far)
    came(far, job, 500)
    far.sshd.kill_connections()
    came(far, job, 1500)
    far.sshd.restart()
    all_came(far, job)


@pytest.mark.parametrize("command", ["get", "wait", "receive"])
def test_killed_agent(far: Far, command: str) -> None:
    job = count(far)
    guest = far.guest(job)
    came(far, job, 500)
    far.kill_agent()
    size = len(far.output(job))
    at_its_gate(guest)
    assert len(far.output(job)) == size
    if command == "get":
        far.until(job, "Disconnected")
    elif command == "wait":
        gate(far).touch()
        far.run("wait", job, status=1)
        assert far.output(job) == COUNTED
    all_came(far, job)


def test_agent_killed_while_somebody_waits(far: Far) -> None:
    job = count(far, 2.0)
    process = far.popen("wait", "-q", job, stdout=subprocess.PIPE)
    follower = far.popen("receive", "-w", job, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    for lines in (500, 1500):
        came(far, job, lines)
        far.kill_agent()
    gate(far).touch()
    assert process.communicate(timeout=60)[0].decode() == f"{job}\n"
    assert follower.communicate(timeout=60)[0].decode() == COUNTED
    assert (process.returncode, follower.returncode) == (1, 7)


def test_the_end_while_nobody_is_connected(far: Far) -> None:
    job = count(far, 1.0)
    came(far, job, 300)
    far.sshd.stop()
    far.kill_agent()
    guest = far.guest(job)
    gate(far).touch()
    wait_until(lambda: (guest / "exit").exists() and (guest / "exit").stat().st_size)
    far.until(job, "Disconnected")
    assert len(far.output(job)) < len(COUNTED)
    far.sshd.start()
    all_came(far, job)


@pytest.mark.long
def test_all_at_once(far: Far, wire: Wire) -> None:
    job = count(far, 3.0)
    came(far, job, 400)
    wire.cut()
    far.kill_agent()
    came_before = far.output(job).count("\n")
    far.jobs()
    came(far, job, came_before + 1)
    accepted = wire.accepted
    far.sshd.restart()
    wire.freeze()
    wait_until(lambda: wire.accepted > accepted)  # the next attempt is under way
    wire.cut()
    wire.thaw()
    far.kill_agent()
    all_came(far, job)


@pytest.mark.long
def test_much_output_over_a_bad_line(far: Far, wire: Wire) -> None:
    text = "head -c 60000000 /dev/zero | tr '\\0' 'x'; echo end"
    job = far.start("-c", text)
    path = far.folder(job) / "stdout"
    for size in (1, 20_000_000):
        wait_until(lambda: path.stat().st_size >= size)  # noqa: B023
        wire.cut()
    far.run("wait", job)
    assert path.stat().st_size == 60_000_004
    assert path.read_bytes() == b"x" * 60_000_000 + b"end\n"


@pytest.mark.long
def test_a_start_that_is_cut_off_happens_once(far: Far, wire: Wire, tmp_path: Path) -> None:
    marks, data = tmp_path / "marks", tmp_path / "data"
    data.write_bytes(os.urandom(200_000))
    far.run("session", "new", "web1")
    wire.delay(0.01)
    jobs = []
    for number in range(1, 13):
        text = f"echo $JOBCTL_ID >>{marks}; sleep 0.2; cat"
        jobs.append(far.start("--stdin", str(data), "-c", text))
        time.sleep(0.01 * number)
        wire.cut()
        # An attempt that was under way may have been cut off too.
        wait_until(lambda: not far.run("session", "connect", "web1", status=None).returncode)
    wire.delay(0.0)
    far.run("wait", *jobs)
    assert sorted(marks.read_text().split(), key=int) == jobs
    for job in jobs:
        assert far.run("receive", job).stdout == data.read_bytes()


@pytest.mark.long
def test_an_upgrade(far: Far, tmp_path: Path) -> None:
    library = tmp_path / "library"
    shutil.copytree(os.path.dirname(jobctl.__file__), library / "jobctl")
    far.env["PYTHONPATH"] = str(library)
    job, other = count(far), far.start("sleep", "600")
    came(far, job, 300)
    before = far.agent()
    (library / "jobctl").rename(tmp_path / "old")
    shutil.copytree(tmp_path / "old", library / "jobctl")
    for script in ("runner.sh", "serve.sh"):
        with open(library / "jobctl" / script, "a") as file:
            file.write("# of another release\n")
    versions = {path.name for path in (far.there / "lib").iterdir()}
    waiter = far.popen("wait", "-q", job, stdout=subprocess.PIPE)
    wait_until(lambda: far.agent() not in (None, before))
    all_came(far, job)
    assert waiter.communicate()[0].decode() == f"{job}\n"
    assert len({path.name for path in (far.there / "lib").iterdir()} - versions) == 1
    far.run("stop", other)
    assert far.outcome(other) == ("Stopped", "stopped by user", None)
    assert far.outcome(far.start("sh", "-c", "exit 3")) == ("Failed", "exit status 3", 3)


def test_lost_on_the_host(far: Far) -> None:
    text = "echo out; exec sleep 600"
    killed, beside, rebooted, removed = jobs = [far.sh(text) for _ in range(4)]
    for job in jobs:
        came(far, job, 1)
        far.until(job, "Running")
    guests = {job: far.guest(job) for job in jobs}
    pids = {}
    for job, guest in guests.items():
        run = (guest / "run").read_text()
        pids[job] = [int(re.findall(rf"^{key}='(\d+)'", run, re.M)[0]) for key in ("runner", "pid")]
    os.kill(pids[killed][0], signal.SIGKILL)
    for pid in pids[beside]:
        os.kill(pid, signal.SIGKILL)
    assert far.outcome(beside) == ("Failed", "lost: runner was killed", None)
    assert far.state(killed) == "Running"  # although the host has looked for runners since
    os.kill(pids[killed][1], signal.SIGKILL)
    assert far.outcome(killed) == ("Failed", "lost: runner was killed", None)
    far.kill_agent()
    for pid in pids[rebooted]:
        os.kill(pid, signal.SIGKILL)
    (guests[rebooted] / "stdout").open("a").write("more\n")
    began = guests[rebooted] / "run"
    began.write_text(re.sub(r"boot='.*'", "boot='another'", began.read_text()))
    assert far.outcome(rebooted) == ("Failed", "lost: host rebooted", None)
    assert far.out("receive", rebooted) == "out\nmore\n"
    shutil.rmtree(guests[removed])
    state, reason, _ = far.outcome(removed)
    assert (state, reason) == ("Failed", "lost: its folder on web1 was removed")
    assert far.out("receive", removed) == "out\n"
    for pid in pids[removed]:
        os.kill(pid, signal.SIGKILL)


def liar(far: Far, make_sshd: MakeSshd, script: str, seconds: int = 60) -> None:
    """Make `liar` a host on which everything that is run turns out to be this script.

    :param seconds: how long it has to answer.
    """
    server = make_sshd(f"ForceCommand /bin/sh {far.state_dir}.lie")
    Path(f"{far.state_dir}.lie").write_text(script)
    lines = server.hosts().read_text().replace("Host web1", "Host liar").splitlines()
    far.sshd.hosts(*lines, f"    ConnectTimeout {seconds}")


STAY = "exec cat >/dev/null"
SILENT = "cannot connect to liar: its login shell does not answer within 8 seconds"


@pytest.mark.long
@pytest.mark.parametrize(
    ("script", "reason"),
    rows_of(
        [
            ("head -c 3000000 /dev/urandom", "liar: the login shell of this host ended before"),
            ("yes", "liar: the login shell of this host ended before"),
            ("exit 0", "liar: the login shell of this host ended before"),
            (
                "echo jobctl-ready 1; echo jobctl-ready >&2; echo 'sh: Cannot fork' >&2; exit 2",
                "liar: the host ended the conversation: sh: Cannot fork",
            ),
            (
                "echo jobctl-ready 1; echo jobctl-ready >&2; echo need /x; echo Full >&2; exit 2",
                "liar: the host ended the conversation: Full",
            ),
            (STAY, SILENT),
            (f"echo jobctl-ready 1; {STAY}", SILENT),
            (f"echo jobctl-ready x; {STAY}", "liar: its login shell answers what makes no sense"),
            (
                f"echo jobctl-ready 1; echo have /x; echo no; {STAY}",
                "liar: what answers on this host",
            ),
        ],
        plain=5,
    ),
)
def test_a_host_that_lies_at_first(far: Far, make_sshd: MakeSshd, script: str, reason: str) -> None:
    liar(far, make_sshd, script, 8 if reason == SILENT else 60)
    far.on("liar,web1", "echo", "x")
    assert far.outcome("1.2") == ("Completed", "", 0)
    state, why, _ = far.outcome("1.1")
    assert state == "Failed"
    assert why.startswith(reason)


LIES = (
    'journal $handle 1 0 591\\n$(seq -f "%.0f C 0 - 1 1 x" 40)\\n\\n',
    "journal $handle 1 0 14\\n40 C 0 - 1 1 \\n\\n",
    "item $handle 40 out 0 4\\nlie\\n\\n",
    "emptied $handle 40 out\\n",
)
"""What a host says of items that it was not given."""


@pytest.mark.long
@pytest.mark.parametrize("lie", first_of(*LIES), ids=len)
def test_a_host_that_tells_of_the_items_of_others(far: Far, make_sshd: MakeSshd, lie: str) -> None:
    """Its own are lost, with the reason; the others are as they are."""
    liar(
        far,
        make_sshd,
        f"""echo jobctl-ready 1; echo have /x; echo serving boot spares 1795804318.25 - m host
        handle='' fed=''
        while read -r verb tag rest; do
            tag=${{tag#"'"}} tag=${{tag%%"'"*}}
            case $verb in
            carry_items) handle=$tag ;;
            carry | drop | look) continue ;;
            share) echo "$tag ok 2" ;;
            feed) echo "$tag ok" && fed=1 ;;
            *) echo "$tag ok" ;;
            esac
            [ -z "$handle" ] || [ -z "$fed" ] || {{ sleep 0.3; printf "{lie}"; }}
        done""",
    )
    text = b"".join(b"%d\n" % number for number in range(1, 41))
    job = far.on("liar,web1", "--per-host", "2", "--foreach", "-", "echo", input=text)
    state, reason, _ = far.outcome(job)
    assert state == "Failed"
    assert re.match(r"liar: it tells of item \d+, which it was not given", reason), reason
    children = far.jobs("--children", job)[1:]
    told = {(child["location"], child["state"]) for child in children}
    assert told == {("liar", "Failed"), ("web1", "Completed")}
    for child in children:
        if child["location"] == "web1":
            name = f"children/{child['id'].partition('.')[2]}.stdout"
            assert (far.folder(job) / name).read_text() == child["item"] + "\n"


@pytest.mark.long
@pytest.mark.parametrize(
    ("frames", "reason"),
    rows_of(
        [
            ("out 1 x 3\nabc\n", "makes no sense"),
            ("out 1 999 3\nabc\n", "another part of the output"),
            ("out 1 0 3\nabcd\n", "fewer bytes"),
            ("exit 1 99999999\nabc\n", "the protocol: it sends 99999999 bytes as 'exit'"),
            ("item 1 1 out 0 999999999\nabc\n", "the protocol: it sends 999999999 bytes as 'item'"),
            (
                "job guest/x R 0 0 0 0 0 0 0\n\n",
                "the protocol: it sends jobs that nobody asked for",
            ),
            ("exit 1 100\nstate", "ended the conversation"),
            ("state 1\n", "makes no sense"),
            ("nonsense\n", "makes no sense"),
            ("\n", "makes no sense"),
        ],
        plain=5,
    ),
)
def test_a_host_that_lies_later(far: Far, make_sshd: MakeSshd, frames: str, reason: str) -> None:
    end = "" if "ended" in reason else STAY
    liar(
        far,
        make_sshd,
        # Another connection hears nothing, and so takes nothing back.
        f"""mkdir {far.state_dir}.lied || {STAY}
        echo jobctl-ready 1; echo have /x; echo serving boot spares 1795804318.25 - m host
        read verb tag rest; echo "${{tag#"'"}}" | sed "s/'.*/ ok/"
        printf {shlex.quote(frames)}; {end}""",
    )
    job = far.on("liar", "echo", "x")
    wait_until(
        lambda: (record := far.job(job))["state"] == "Disconnected" and reason in record["reason"]
    )
    assert far.output(job) in ("", "abc")
    far.run("remove", "--local-only", job)


FLOODS = {
    "an answer without end": 'while :; do echo "$tag more $long"; done',
    "jobs that nobody asked for": 'while :; do echo "job guest/x R 0 0 0 0 0 0 0"; echo; done',
    "a line without end": "cat /dev/zero",
    "": 'while :; do printf "%s\\n" "item 99 1 out 0 1048576"; head -c 1048577 /dev/zero; done',
}
"""What a host sends without end, and a part of the reason for which it is refused, if it is."""


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells how much memory a process has")
@pytest.mark.parametrize("reason", FLOODS, ids=len)
def test_a_host_that_sends_without_end(far: Far, make_sshd: MakeSshd, reason: str) -> None:
    """It takes no memory here, and holds no other host up."""
    liar(
        far,
        make_sshd,
        f"""echo jobctl-ready 1; echo have /x; echo serving boot spares 1795804318.25 - m host
        long=$(head -c 60000 /dev/zero | tr '\\0' x)
        read -r verb tag rest; tag=${{tag#"'"}} tag=${{tag%%"'"*}}
        {FLOODS[reason]}""",
    )
    far.run("wait", far.on("web1", "true"))
    agent = far.agent()
    job = far.on("liar", "echo", "x")

    def memory() -> int:
        text = Path(f"/proc/{agent}/status").read_text()
        return int(re.findall(r"RssAnon:\s+(\d+)", text)[0]) * 1024

    before, most, end = memory(), 0, time.monotonic() + 8

    def refused() -> bool:
        nonlocal most
        most = max(most, memory())
        return time.monotonic() > end and reason in far.job(job)["reason"]

    wait_until(refused)
    assert most - before < 60_000_000
    assert far.outcome(far.on("web1", "echo", "y")) == ("Completed", "", 0)
    far.run("remove", "--local-only", job)
