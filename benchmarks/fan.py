"""Figures of many hosts at once, which are one sshd under many names, and of items on a host."""

from __future__ import annotations

import importlib.util
import itertools
import os
import shutil
import subprocess
import time
from collections.abc import Callable

import probe
from figures import Effort
from host import Host, available, host
from probe import PYTHON
from report import Row

_HOSTS = 64
_ITEMS, _SLOTS = 500, 8
_SESSIONS, _QUEUED = 128, 10_000
_MB = 2**20
_MOST_ROUNDS = 3

# Logs in everywhere at once and runs one command.
_BARE = """
import socket, sys, threading
import paramiko
host, port, user, key, count, command = sys.argv[1:]
pkey = paramiko.Ed25519Key.from_private_key_file(key)
said = []
def one():
    plug = socket.create_connection((host, int(port)))
    plug.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    transport = paramiko.Transport(plug)
    transport.connect(username=user, pkey=pkey)
    channel = transport.open_session()
    channel.exec_command(command)
    said.append(channel.makefile("rb").read())
    channel.recv_exit_status()
    transport.close()
threads = [threading.Thread(target=one) for _ in range(int(count))]
for thread in threads: thread.start()
for thread in threads: thread.join()
assert said == [b"hi\\n"] * int(count)
"""


# The least that a job needs there to outlive its connection, with its output and exit status.
_BY_HAND = """exec /bin/sh -c '
d=~/by-hand/$$; mkdir -p $d && cd $d && {
setsid sh -c "echo hi >stdout 2>stderr; echo \\$? >exit.new; mv exit.new exit" </dev/null \\
>/dev/null 2>&1 & wait; cat stdout; }'"""

_PARALLEL_SSH = """
import sys
from pssh.clients import ParallelSSHClient
host, port, user, key, count = sys.argv[1:]
hosts = [host] * int(count)
client = ParallelSSHClient(
    hosts, user=user, port=int(port), pkey=key, pool_size=len(hosts), allow_agent=False
)
output = client.run_command("echo hi")
client.join(output)
assert [list(host.stdout) for host in output] == [["hi"]] * len(hosts)
"""


def fan(effort: Effort) -> list[Row]:
    """One command on 64 hosts, cold and over open connections, and 500 items on one host."""
    if not available():
        return []
    rounds = min(effort.long_rounds, _MOST_ROUNDS)
    return [*_hosts(rounds), *_items(rounds), *_memory()]


def _names(count: int) -> str:
    return f"web[1-{count}]"


def _hosts(rounds: int) -> list[Row]:
    with host() as far:
        far.start_and_end("true")  # our scripts are there
        cold: dict[str, Callable[[], float]] = {"jobctl": lambda: _on_all(far, cold=True)}
        login = (*_login(far), str(_HOSTS))
        cold["bare paramiko"] = lambda: _run((PYTHON, "-c", _BARE, *login, "echo hi"), far)
        cold["the same, durable"] = lambda: _run((PYTHON, "-c", _BARE, *login, _BY_HAND), far)
        for name, words in _peers(far).items():
            cold[name] = lambda words=words: _run(words, far)  # type: ignore[misc]
        time_of = probe.medians(cold, rounds)
        far.open(*(f"web{number}" for number in range(1, _HOSTS + 1)))
        warm = {"jobctl": lambda: _on_all(far, cold=False)}
        if "clush" in time_of:
            shared = _shared(far)
            warm["clush"] = lambda: _run(_clush(far, *shared), far)
        warm_time_of = probe.medians(warm, rounds)
    what = f"echo on {_HOSTS} hosts, all output home"
    ours = time_of.pop("jobctl")
    rows = [Row(f"{what}, cold", ours, "s", "bare paramiko", time_of.pop("bare paramiko"), 1.3)]
    durable = "the same, durable"
    rows.append(Row(f"{what}, cold", ours, "s", durable, time_of.pop(durable)))
    fastest = min(time_of, key=lambda name: time_of[name], default="")
    for name, seconds in time_of.items():
        limit = 0.4 if name == fastest else None
        rows.append(Row(f"{what}, cold", ours, "s", name, seconds, limit))
    if fastest:
        ours = warm_time_of["jobctl"]
        rows.append(Row(f"{what}, open sessions", ours, "s", fastest, time_of[fastest], 0.1))
        if "clush" in warm_time_of:
            beside = "clush, shared connections"
            rows.append(Row(f"{what}, open sessions", ours, "s", beside, warm_time_of["clush"], 1))
    return rows


def _on_all(far: Host, cold: bool) -> float:
    """Return the seconds until a job on all hosts is finished, and its output written."""
    if cold:
        far.end_agent()
    return far.place.start("-w", "-t", str(_HOSTS), "-H", _names(_HOSTS), "echo", "hi")


def _run(words: tuple[str, ...], far: Host) -> float:
    return probe.seconds(words, far.environment)


def _login(far: Host) -> tuple[str, str, str, str]:
    """Return address, port, user and key of the host."""
    said = subprocess.run([*far.ssh[:3], "-G", "web1"], stdout=subprocess.PIPE, text=True).stdout
    known = dict(line.partition(" ")[::2] for line in said.splitlines()[::-1])
    return known["hostname"], known["port"], known["user"], known["identityfile"]


def _peers(far: Host) -> dict[str, tuple[str, ...]]:
    """Return how others run the command, those that are installed."""
    found: dict[str, tuple[str, ...]] = {}
    if importlib.util.find_spec("pssh"):
        login = (*_login(far), str(_HOSTS))
        found["parallel-ssh"] = (PYTHON, "-c", _PARALLEL_SSH, *login)
    if shutil.which("clush", path=_PATHS):
        found["clush"] = _clush(far)
    if ansible := shutil.which("ansible", path=_PATHS):
        inventory = far.place.file("inventory")
        with open(inventory, "w") as file:
            file.writelines(f"web{number}\n" for number in range(1, _HOSTS + 1))
        common = f"--ssh-common-args=-F {far.environment['JOBCTL_SSH_CONFIG']}"
        words = ("-i", inventory, "-m", "raw", "-f", str(_HOSTS), common, "-a", "echo hi")
        found["ansible"] = (ansible, "all", *words)
    return found


_PATHS = f"{os.path.dirname(PYTHON)}:{os.environ.get('PATH', '')}"


def _clush(far: Host, *options: str) -> tuple[str, ...]:
    config = far.environment["JOBCTL_SSH_CONFIG"]
    clush = shutil.which("clush", path=_PATHS) or "clush"
    ssh = " ".join(("-F", config, *options))
    return (clush, "-q", "-f", str(_HOSTS), "-o", ssh, "-w", _names(_HOSTS), "echo", "hi")


def _shared(far: Host) -> tuple[str, ...]:
    """Open shared connections to all hosts; return the options to use them."""
    path = far.place.file("c")
    options = ("-M", "-N", "-f", "-o", f"ControlPath={path}-%n")
    opening = [(*far.ssh[:3], *options, f"web{number}") for number in range(1, _HOSTS + 1)]
    pids = [(probe.spawn(words, far.environment), words) for words in opening]
    for pid, words in pids:
        probe.reap(pid, words)
    return ("-o", f"ControlPath={path}-%%n")  # clush takes a single % for its own


def _items(rounds: int) -> list[Row]:
    with host() as far:
        path = far.place.file("numbers")
        with open(path, "w") as file:
            file.writelines(f"{number}\n" for number in range(1, _ITEMS + 1))

        def ours() -> float:
            began = time.perf_counter()
            words = ("-H", "web1", "--per-host", str(_SLOTS), "--foreach", path, "/bin/echo")
            far.place.start(*words)
            far.place.command("wait", str(far.place.last.id))
            return time.perf_counter() - began

        time_of = probe.medians({"jobctl": ours}, rounds)
        what = f"{_ITEMS} items on a host, {_SLOTS} slots"
        parallel = shutil.which("parallel")
        if not parallel:
            return [Row(what, time_of["jobctl"], "s")]
        ssh = " ".join(far.ssh[:3])
        words = ("--will-cite", f"-j{_SLOTS}", "--ssh", ssh, "-S", "web1", "-a", path, "/bin/echo")
        # Once: it takes that long. And its sharing of connections does not always do.
        beside = "parallel --sshlogin --controlmaster"
        theirs = _complete((parallel, "--controlmaster", *words), far)
        if theirs is None:
            beside = "parallel --sshlogin"
            theirs = _complete((parallel, *words), far)
    return [Row(what, time_of["jobctl"], "s", beside, theirs, 0.1)]


def _complete(words: tuple[str, ...], far: Host) -> float | None:
    """Return the seconds that a command for all items takes, None if it does not do them all."""
    with open(far.place.file("output"), "w+b") as output:
        taken = probe.seconds(words, far.environment, stdout=output.fileno())
        output.seek(0)
        return taken if output.read().count(b"\n") == _ITEMS else None


def _memory() -> list[Row]:
    with host() as far:
        names = [f"web{number}" for number in range(1, _SESSIONS + 1)]
        for some in itertools.batched(names, 32) if hasattr(itertools, "batched") else [names]:
            far.open(*some)
        path = far.place.file("numbers")
        with open(path, "w") as file:
            file.writelines(f"{number}\n" for number in range(_QUEUED))
        words = ("--per-host", "1", "--foreach", path, "-c", "sleep 600")
        far.place.start("-H", f"web[1-{_SESSIONS}]", *words)
        pid = far.agent_now()
        probe.settle(pid, 60)
        size = probe.resident(pid, "Rss")
    what = f"agent with {_SESSIONS} sessions and {_QUEUED:,} items, RSS"
    return [Row(what, size, "MB", limit=120 * _MB)]


FIGURES = {"fan": fan}
