"""Breaks what carries jobs, by a plan from a seed, and compares what became of them.

    python monkey.py --seed 7 [--jobs 40] [--seconds 10] [--faults 5] [--base DIR]
    python monkey.py --seed 7 --plan                prints the plan
    python monkey.py --seeds 1-100 [--report FILE]  one after the other

It ends with status 1 on a finding, and keeps the plan, the state directories and all that was
delivered in DIR. The plan of a seed is always the same; who lives when a fault comes depends on
the machine's speed.

No host has another time: the programs of a host where faketime(1) gives one wait for each other
for ever once one of them was killed.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TESTS))

import cage  # noqa: E402
import monkey_oracle as oracle  # noqa: E402
import monkey_plan  # noqa: E402
import quick  # noqa: E402
from conftest import Jobctl  # noqa: E402
from disk import Disk  # noqa: E402
from monkey_oracle import Done, Known, Piece  # noqa: E402
from monkey_plan import HOSTS, Deed, Job, Plan  # noqa: E402
from sshd import Sshd, Wire  # noqa: E402

COUNT = Path(__file__).with_name("count.sh")
_SETTLE = 120.0
"""Seconds that everything may take to come to its end once nothing is broken any more."""
_LONGEST = 120.0
"""Seconds that any command line may take."""
_MEMORY = 200 << 20
"""Bytes that an agent may have had."""
_STATUSES = (0, 1, 3, 4, 5, 124, 125, 130)
_TOKEN = re.compile(rb"count\.sh'? '[^']*' '(j\d+)'")
_PATTERNS = {
    "agent": r"-m jobctl\.agent ",
    "helper": r"(runner|items)\.sh (stop|signal|mend) ",
    "serve": r"serve\.sh control ",
    "sshd": r"^sshd: (?!.*listener)",
    "tail": r"^tail -q ",
}
"""How a process of a role is called, of those that are known by that."""


def now() -> float:
    """Return the seconds since boot, as count.sh reads them."""
    return float(Path("/proc/uptime").read_text().split()[0])


class Host:
    """A server with a home and a small disk of its own, behind a wire."""

    def __init__(self, name: str, base: Path) -> None:
        """Start it.

        :param name: what it is called in the client's configuration.
        """
        self.name = name
        folder = base / name
        folder.mkdir(parents=True)
        self.server = Sshd(folder)
        self.state = self.server.home / ".local/state/jobctl"
        self.disk = cage.small_disk(self.state, "6m")
        self.server.start()
        self.wire = Wire(self.server.port)
        self.down = threading.Lock()

    def lines(self) -> str:
        """Return what the client's configuration has of it."""
        text = self.server.hosts(port=self.wire.port).read_text()
        return text.replace("web1 web2 web3 web4", self.name)

    def let_in(self, key: bool = True) -> None:
        """Accept logins, or refuse them."""
        text = self.server.key.with_suffix(".pub").read_text() if key else ""
        self.server.authorized_keys.write_text(text)

    def send(self, number: int) -> None:
        """Send a signal to what serves its connections."""
        for pid in self.server.connections():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def mend(self) -> None:
        """Have all well again."""
        self.disk.free()
        self.wire.thaw()
        self.wire.delay(0.0)
        self.let_in()
        self.send(signal.SIGCONT)


class World:
    """What there is to break: hosts, disks, and the processes of each role."""

    def __init__(self, base: Path) -> None:
        """Make it, in an empty folder."""
        self.base = base
        self.logs, self.caught = base / "logs", base / "caught"
        for folder in (self.logs, self.caught, base / "tmp"):
            folder.mkdir(parents=True)
        self.disk = cage.small_disk(base / "disk", "12m")
        self.hosts = {name: Host(name, base) for name in HOSTS}
        config = base / "ssh_config"
        config.write_text("\n".join(host.lines() for host in self.hosts.values()))
        self.jobctl = Jobctl(base / "disk/state", base)
        self.jobctl.env |= {"JOBCTL_SSH_CONFIG": str(config), "TMPDIR": str(base / "tmp")}
        self.calls: dict[int, subprocess.Popen[bytes]] = {}
        """The command lines of jobctl that run."""

    def states(self) -> dict[str, Path]:
        """Return the state directories: the one here, and those of the hosts."""
        there = {host.name: host.state for host in self.hosts.values()}
        return {"here": self.jobctl.state_dir, **there}

    def candidates(self, role: str, host: str) -> Iterator[tuple[int, int, str, int]]:
        """Yield start, pid, token and child of the processes of a role that live."""
        there = role.startswith("there-")
        state = self.hosts[host].state if there else self.jobctl.state_dir
        if role in ("runner", "there-runner"):
            yield from self._runners(state)
        elif role in ("slot", "there-slot"):
            yield from self._slots(state)
        elif role == "command":
            yield from self._commands()
        elif role == "line":
            for pid in [*self.calls]:
                if born := _born(pid):
                    yield born, pid, "", 0
        else:
            # A runner on a host bears the words of serve.sh, which has begun it.
            runners = {pid for path in self.states().values() for _, pid, *_ in self._runners(path)}
            for pid, words in cage.processes().items():
                born = _born(pid) if re.search(_PATTERNS[role], words) else 0
                if born and pid not in runners:
                    yield born, pid, "", 0

    @staticmethod
    def _runners(state: Path) -> Iterator[tuple[int, int, str, int]]:
        for run in (*state.glob("jobs/*/run"), *state.glob("guest/*/run")):
            with contextlib.suppress(OSError):
                found = re.search(rb"runner='(\d+)'", run.read_bytes())
                if found and (born := _born(int(found[1]))):
                    yield born, int(found[1]), _owner(run.parent), 0

    @staticmethod
    def _slots(state: Path) -> Iterator[tuple[int, int, str, int]]:
        for itself in (*state.glob("jobs/*/slots/*/self"), *state.glob("guest/*/slots/*/self")):
            with contextlib.suppress(OSError):
                words = itself.read_bytes().split()
                if words and (born := _born(int(words[0]))):
                    yield born, int(words[0]), _owner(itself.parents[2]), 0

    def _commands(self) -> Iterator[tuple[int, int, str, int]]:
        living = cage.processes()
        for log in self.logs.iterdir():
            token, _, child = log.name.partition(".")
            for run in oracle.runs(log.read_text()):
                if str(COUNT) in living.get(run.pid, "") and (born := _born(run.pid)):
                    yield born, run.pid, token, int(child or 0)


class Monkey:
    """One plan being carried out."""

    def __init__(self, plan: Plan, base: Path) -> None:
        """Make a world for a plan in an empty folder."""
        self.plan = plan
        self.world = World(base)
        self.findings: list[str] = []
        self.done: list[Done] = []
        self._ids: set[tuple[str, str]] = set()
        """All ids that were ever printed, with the tokens of their jobs."""
        self._captures: list[tuple[Path, Deed, bool]] = []
        """What was delivered, whether it had tags, and whether the receiver was killed."""
        self._lock = threading.Lock()
        self._memory = 0

    def run(self) -> list[str]:
        """Carry out the plan; return what is wrong, a line each."""
        began = time.monotonic()
        for host in HOSTS:
            self._call(Deed(0.0, "session"), "session", "new", "-q", "--name", f"s{host}", host)
        todo: list[Job | Deed] = sorted([*self.plan.jobs, *self.plan.deeds], key=lambda d: d.at)
        with ThreadPoolExecutor(32) as pool:
            for each in todo:
                time.sleep(max(0.0, began + each.at - time.monotonic()))
                pool.submit(self._guarded, each)
        self._settle()
        self._judge()
        self._clean()
        return self.findings

    def _guarded(self, each: Job | Deed) -> None:
        try:
            if isinstance(each, Job):
                self._start(each)
            else:
                getattr(self, "_" + each.do.replace("-", "_"))(each)
        except BaseException as error:  # a fault of the monkey is a finding, too
            self.findings.append(f"the monkey: {each}: {error!r}")

    def _call(
        self, deed: Deed, *words: str, caught: str = "", reader: list[str] | None = None
    ) -> Done:
        """Run a command line, killed after some time if the deed says so; note how it went.

        :param caught: the name of the files that keep what it writes, of a receiver.
        :param reader: what reads its standard output, and may leave.
        """
        name = self.world.caught / (caught or f"{len(self.done)}.{deed.do}.{deed.at:.2f}")
        with open(f"{name}.out", "wb") as out, open(f"{name}.err", "wb") as err:
            began, process = now(), None
            if reader:
                process = subprocess.Popen(reader, stdin=subprocess.PIPE, stdout=out)
            call = self.world.jobctl.popen(
                *words, stdout=process.stdin if process else out, stderr=err
            )
            if process and process.stdin:
                process.stdin.close()
            self.world.calls[call.pid] = call
            try:
                call.wait(deed.killed or _LONGEST)
            except subprocess.TimeoutExpired:
                if not deed.killed:
                    self.findings.append(f"{' '.join(words)}: has not returned")
                call.kill()
                call.wait()
            del self.world.calls[call.pid]
            if process:
                process.wait()
        status = call.returncode if call.returncode >= 0 else None
        said = Path(f"{name}.err").read_text(errors="replace")
        if (
            not (status in (None, *_STATUSES) or deed.how == "wait")
            or "Traceback" in said
            or "a fault in jobctl" in said
        ):
            self.findings.append(f"{' '.join(words)}: {status}: {said[:400]}")
        done = Done(deed.do, deed.token, deed.child, began, now(), status, said=said)
        with self._lock:
            self.done.append(done)
            if caught:
                self._captures.append((name, deed, status is None))
        return done

    # --- command lines ---

    def _start(self, job: Job) -> None:
        words = ["start", "-q", "--name", job.token]
        if job.session and len(job.hosts) == 1:
            words += ["-s", f"s{job.hosts[0]}"]
        elif job.hosts:
            words += ["-H", ",".join(job.hosts)]
        if job.items:
            items = self.world.base / f"{job.token}.items"
            items.write_text("".join(f"{number}\n" for number in range(1, job.items + 1)))
            each = "--per-host" if job.hosts else "-t"
            words += ["--foreach", str(items), each, str(job.per_host)]
        if job.secret:
            words += ["-e", f"SECRET=x{job.token}", "--stdin", str(COUNT)]
        words += ["--results", "remote"] if job.stays else []
        words += ["--after", job.after] if job.after else []
        words += ["--retries", str(job.retries)] if job.retries else []
        words += ["--timeout", f"{job.timeout:g}"] if job.timeout else []
        words += job.words(("/bin/sh", str(COUNT)), str(self.world.logs))
        self._call(Deed(job.at, "start", job.token, killed=job.killed), *words)
        self._listed()

    def _receive(self, deed: Deed) -> None:
        job = deed.token
        if deed.child:  # names are not ids: that of a part needs the one of its job
            job = next((f"{i}.{deed.child}" for i, token in self._ids if token == job), job)
        words, reader = ["receive", job], None
        name = f"{deed.token}.{deed.at:.2f}.{deed.how}"
        if deed.how == "dir":
            words += ["--output-dir", str(self.world.caught / f"{name}.d")]
        elif deed.how == "head":
            reader = ["head", "-c", "5000"]
        elif deed.how == "wait":
            words += ["--wait", "--timeout", "5"]
        elif deed.how in ("tag", "keep"):
            words.append(f"--{deed.how}")
        self._call(deed, *words, caught="" if deed.how == "keep" else name, reader=reader)

    def _stop(self, deed: Deed) -> None:
        job = deed.token
        if deed.child:
            job = next((f"{i}.{deed.child}" for i, token in self._ids if token == job), job)
            deed = deed if "." in job else Deed(deed.at, "stop", job)
        self._call(deed, "stop", "--grace", deed.how or "1", "--reason", "monkey", job)

    def _signal(self, deed: Deed) -> None:
        self._call(deed, "stop", "--signal", deed.how, deed.token)

    def _remove(self, deed: Deed) -> None:
        self._call(deed, "remove", *(["--force"] if deed.how else []), deed.token)

    def _wait(self, deed: Deed) -> None:
        self._call(deed, "wait", "-q", "--timeout", "20", deed.token)

    def _get(self, deed: Deed) -> None:
        self._call(deed, "get", *(["-o", "wide"] if deed.how == "wide" else [deed.how]))
        self._listed()

    def _session(self, deed: Deed) -> None:
        session, name = f"s{deed.host}", ""
        words = [deed.how, session]
        if deed.how == "get-on":
            words = ["get", "--on", deed.host]
        elif deed.how == "receive":
            name = f"session.{deed.host}.{deed.at:.2f}"
        self._call(deed, "session", *words, caught=name)

    def _listed(self) -> list[dict[str, Any]]:
        """Return the records of all jobs and children, and note whose ids they are."""
        result = self.world.jobctl.run("get", "-o", "json", "--children", status=None)
        if result.returncode:
            return []  # no room for the index, say: that it is told well is tested elsewhere
        records: list[dict[str, Any]] = json.loads(result.stdout)
        with self._lock:
            self._ids |= {(r["id"].partition(".")[0], r["name"]) for r in records if r["name"]}
        return records

    # --- faults ---

    def _kill(self, deed: Deed) -> None:
        found = sorted(self.world.candidates(deed.how, deed.host))
        if not found:
            return
        born, pid, token, child = found[deed.pick % len(found)]
        with contextlib.suppress(ProcessLookupError):
            handle = os.pidfd_open(pid)
            if _born(pid) == born:
                done = Done("kill", token, child, now(), now(), role=deed.how, pid=pid)
                with self._lock:
                    self.done.append(done)
                signal.pidfd_send_signal(handle, signal.SIGKILL)
            os.close(handle)

    def _reset(self, deed: Deed) -> None:
        self.world.hosts[deed.host].wire.cut()

    def _silence(self, deed: Deed) -> None:
        wire = self.world.hosts[deed.host].wire
        wire.freeze()
        time.sleep(deed.seconds)
        if deed.pick % 2:
            wire.cut()
        wire.thaw()

    def _slow(self, deed: Deed) -> None:
        wire = self.world.hosts[deed.host].wire
        wire.delay(0.1 + deed.pick % 3 / 10)
        time.sleep(deed.seconds)
        wire.delay(0.0)

    def _freeze_sshd(self, deed: Deed) -> None:
        host = self.world.hosts[deed.host]
        with host.down:
            host.send(signal.SIGSTOP)
            time.sleep(deed.seconds)
            host.send(signal.SIGCONT)

    def _stop_sshd(self, deed: Deed) -> None:
        host = self.world.hosts[deed.host]
        with host.down:
            host.server.stop()
            time.sleep(deed.seconds)
            host.server.start()

    def _refuse(self, deed: Deed) -> None:
        host = self.world.hosts[deed.host]
        with host.down:
            host.let_in(False)
            if deed.pick % 2:
                host.send(signal.SIGKILL)
            time.sleep(deed.seconds)
            host.let_in()

    def _fill(self, deed: Deed) -> None:
        self._full(self.world.disk, deed)

    def _fill_there(self, deed: Deed) -> None:
        self._full(self.world.hosts[deed.host].disk, deed)

    @staticmethod
    def _full(disk: Disk, deed: Deed) -> None:
        until = time.monotonic() + deed.seconds
        while time.monotonic() < until:
            disk.fill(deed.pick % 3 * 4096)
            time.sleep(0.02)
        disk.free()

    def _forget_index(self, deed: Deed) -> None:
        (self.world.jobctl.state_dir / "index.db").unlink(missing_ok=True)

    # --- afterwards ---

    def _settle(self) -> None:
        """Have all well again, and wait until every job is finished."""
        self.world.disk.free()
        for host in self.world.hosts.values():
            host.mend()
            self._call(Deed(0.0, "session"), "session", "connect", f"s{host.name}")
        # What was frozen may not have been continued, as the signal found no way to it.
        self._call(Deed(0.0, "again"), "stop", "--signal", "CONT", "--all")
        words = ("wait", "-q", "--all", "--timeout", f"{_SETTLE:g}")
        began = time.monotonic()
        self._call(Deed(0.0, "again"), *words)
        if left := [r for r in self._listed() if r["state"] not in oracle.FINISHED]:
            some = [(r["id"], r["state"], r["reason"]) for r in left]
            self.findings.append(f"not finished after {time.monotonic() - began:.0f} s: {some}")
        for pid, words_of in cage.processes().items():
            if re.search(_PATTERNS["agent"], words_of):
                with contextlib.suppress(OSError):
                    status = Path(f"/proc/{pid}/status").read_text()
                    peak = re.search(r"VmHWM:\s+(\d+)", status)
                    self._memory = max(self._memory, int(peak[1]) << 10 if peak else 0)

    def _judge(self) -> None:
        """Compare what jobctl says and has delivered with what the logs say."""
        records = {r["id"]: r for r in self._listed()}
        by_part = {(r["name"], int(i.partition(".")[2] or 0)): r for i, r in records.items()}
        self.findings += oracle.ids(self._ids)
        if self._memory > _MEMORY:
            self.findings.append(f"an agent had {self._memory >> 20} MiB")
        whole, gone = collections.Counter[bytes](), collections.Counter[bytes]()
        for job in self.plan.jobs:
            parts = [self._known(job, child) for child in job.parts]
            mine = [deed for deed in self.done if deed.token == job.token]
            listed = any(token == job.token for _, token in self._ids)
            listed |= any(deed.do == "remove" and deed.status in (None, 0) for deed in mine)
            ran = any(part.runs for part in parts)
            for start in (deed for deed in mine if deed.do == "start"):
                self.findings += oracle.unrecorded(start, listed, ran)
            for part in parts:
                record = by_part.get((job.token, part.child))
                if listed:
                    self.findings += oracle.state_of(part, record)
                for stream, letter in oracle.LETTERS.items():
                    if record:
                        data = self._again(record["id"], stream)
                        self.findings += oracle.stream_of(part, letter, data)
                        size = oracle.WIDTH
                        whole.update(data[at : at + size] for at in range(0, len(data), size))
                    else:
                        gone += part.lines(letter)
        self._call(Deed(0.0, "rest"), "receive", *(records or ["--all"]), caught="rest")
        self.findings += oracle.received(whole, gone, [*self._pieces()])
        unread = [r["id"] for r in self._listed() if r["has_more_data"]]
        if unread:
            self.findings.append(f"all was received, and HasMoreData is true: {unread}")

    def _known(self, job: Job, child: int) -> Known:
        log = self.world.logs / (f"{job.token}.{child}" if child else job.token)
        broken = {"fill", *(["fill-there"] if job.hosts else [])}
        return Known(
            job.token,
            child,
            job.retries,
            job.timeout,
            oracle.runs(log.read_text() if log.exists() else ""),
            [d for d in self.done if d.token == job.token and (not child or d.child in (0, child))],
            any(d.host in job.hosts or d.do in broken for d in self.plan.deeds),
            bool(job.after),
        )

    def _again(self, job: str, stream: str) -> bytes:
        """Return a whole stream."""
        result = self.world.jobctl.run("receive", "--again", "--stream", stream, job, status=None)
        data = result.stdout if stream == "stdout" else result.stderr
        lines = data.splitlines(keepends=True)
        return b"".join(line for line in lines if not line.startswith(b"jobctl: "))

    def _pieces(self) -> Iterator[Piece]:
        for name, deed, killed in self._captures:
            for end in ("out", "err"):
                yield Piece(Path(f"{name}.{end}").read_bytes(), deed.how == "tag", killed)
            for path in Path(f"{name}.d").rglob("*"):
                if path.is_file():
                    yield Piece(path.read_bytes(), False, killed)

    def _clean(self) -> None:
        """Remove all, and see what is left."""
        for words in (("remove", "--all", "--force"), ("session", "remove", "--all", "--force")):
            done = self._call(Deed(0.0, "clean"), *words)
            if done.status != 0:
                self.findings.append(f"{' '.join(words)}: {done.status}: {done.said[:300]}")
        for folder in (self.world.jobctl.state_dir / "jobs").iterdir():
            if not (folder / "spec").exists():  # a start was killed: swept after a minute
                os.utime(folder, (time.time() - 120,) * 2)
        self._call(Deed(0.0, "clean"), "get", "-q")
        log = self.world.jobctl.state_dir / "agent.log"
        text = log.read_text() if log.exists() else ""
        full = "No space left on device"  # of which whoever asked was told
        wrong = [x for x in text.splitlines() if "failed" in x and full not in x]
        self.findings += [f"agent.log: {line}" for line in wrong]
        for pid, words_of in cage.processes().items():
            if re.search(_PATTERNS["agent"], words_of):
                os.kill(pid, signal.SIGKILL)
        for host in self.world.hosts.values():
            host.wire.close()
            host.server.stop()
        quick.end()
        deadline = time.monotonic() + 30
        while (left := cage.processes()) and time.monotonic() < deadline:
            time.sleep(0.05)
        self.findings += [f"left running: {pid} {words}" for pid, words in left.items()]
        for name, folder in self.world.states().items():
            paths = (str(path.relative_to(folder)) for path in folder.rglob("*"))
            self.findings += oracle.left_on_disk(paths, name != "here")
        self.findings += [f"left: {path}" for path in (self.world.base / "tmp").iterdir()]


def _owner(folder: Path) -> str:
    """Return the token of the job in a folder."""
    found = _TOKEN.search((folder / "spec").read_bytes().replace(b"'\\''", b"'"))
    return found[1].decode() if found else ""


def _born(pid: int) -> int:
    """Return the start of a process, 0 if there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    except OSError:
        return 0
    return 0 if stat[0] in "ZX" else int(stat[19])


def main() -> int:
    """Do what the words say."""
    parser = argparse.ArgumentParser(description="Break what carries jobs, by a plan from a seed.")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seeds", metavar="FIRST-LAST")
    parser.add_argument("--jobs", type=int, default=40)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--faults", type=float, default=5.0, help="how many a second")
    parser.add_argument("--base", type=Path)
    parser.add_argument("--plan", action="store_true")
    parser.add_argument("--report", type=Path)
    said = parser.parse_args()
    if said.seeds:
        return _many(said)
    made = monkey_plan.plan(said.seed, said.jobs, said.seconds, said.faults)
    if said.plan:
        sys.stdout.write(monkey_plan.dump(made))
        return 0
    if cage.caged():
        return _carry_out(made, said.base)
    base = said.base or Path(tempfile.mkdtemp(prefix="monkey."))
    os.environ["HOME"] = str(base)  # by which the keeper of a run of tests knows us
    status = cage.enter([*sys.argv, *([] if said.base else ["--base", str(base)])])
    if not status:
        shutil.rmtree(base)
    return status


def _carry_out(made: Plan, base: Path) -> int:
    monkey = Monkey(made, base)
    findings = monkey.run()
    kills = sum(deed.do == "kill" for deed in monkey.done)
    sys.stdout.write("".join(f"{line}\n" for line in findings))
    sys.stdout.write(
        f"seed {made.seed}: {len(made.jobs)} jobs, {len(made.deeds)} deeds, {kills} processes"
        f" killed, {len(findings)} findings\n"
    )
    if findings:
        (base / "plan").write_text(monkey_plan.dump(made))
        (base / "done").write_text("".join(f"{deed}\n" for deed in monkey.done))
        for name, folder in monkey.world.states().items():
            ignored = shutil.ignore_patterns("agent.sock")
            shutil.copytree(folder, base / "evidence" / name, symlinks=True, ignore=ignored)
    return bool(findings)


def _many(said: argparse.Namespace) -> int:
    first, _, last = said.seeds.partition("-")
    bad = 0
    size = ["--jobs", str(said.jobs), "--seconds", str(said.seconds), "--faults", str(said.faults)]
    for seed in range(int(first), int(last or first) + 1):
        words = [sys.executable, __file__, "--seed", str(seed), *size]
        result = subprocess.run(words, capture_output=True)
        bad += result.returncode != 0
        text = result.stdout + result.stderr * bool(result.returncode)
        if said.report:
            with open(said.report, "ab") as report:
                report.write(text)
        else:
            sys.stdout.buffer.write(text)
            sys.stdout.buffer.flush()
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main())
