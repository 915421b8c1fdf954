"""What words mean, the same in `jobctl` and in bare.sh: one table for each kind, run over both."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from click import Argument, Command, Context
from conftest import PROGRAM, SHELLS, Jobctl, first_of, shell_words, strace
from test_bare import Bare, altered, bare

from jobctl import draft, quoting, timing
from jobctl.cli.options import complete_jobs, tell_of_shell_words
from jobctl.errors import BadUsage, NotFound
from jobctl.jobs import Jobs
from jobctl.model import check_name
from jobctl.ops.find import Filter, find
from jobctl.store import Store

__all__ = ["bare"]

JOBS = {
    1: ("alpha", "11111111-aaaa-4000-8000-000000000001"),
    2: ("bcd", "deadbeef-0000-4000-8000-000000000002"),
    3: ("alpha", "deadbeef-0000-4000-8000-000000000003"),
    4: ("a b", "44444444-aaaa-4000-8000-000000000004"),
    5: ("1/2", "55555555-aaaa-4000-8000-000000000005"),
    7: ("caf\u00e9", "77777777-aaaa-4000-8000-000000000007"),
    8: ("back\\slash", "88888888-aaaa-4000-8000-000000000008"),
    9: ("x[y]*", "99999999-aaaa-4000-8000-000000000009"),
    10: ("1e3", "10101010-aaaa-4000-8000-000000000010"),
    12: ("alpha", "deadbee0-0000-4000-8000-000000000012"),
    13: ("\U0001f680 go", "13131313-aaaa-4000-8000-000000000013"),
    14: ("-x]^!", "14141414-aaaa-4000-8000-000000000014"),
}
MISSING, BAD = 3, 2
SELECTORS: dict[str, str | int] = {
    "1": "1",
    "007": "7",
    "6": MISSING,
    "0": MISSING,
    "9" * 30: MISSING,
    "2-4": "2 3 4",
    "5-6": "5",
    "6-6": "",
    "0-1": "1",
    "13-" + "9" * 25: "13 14",
    "4-2": BAD,
    "": BAD,
    "1/2": "5",
    "1-2-3": MISSING,
    "-": MISSING,
    "1.": MISSING,
    "1e3": "10",
    "1000": MISSING,
    "alpha": "1 3 12",
    "ALPHA": MISSING,
    "a b": "4",
    "nobody": MISSING,
    # Job control.
    "%%": "14",
    "%+": "14",
    "%-": "13",
    "%alpha": "12",
    "%a b": "4",
    "%nobody": MISSING,
    "%al*": MISSING,
    "%1": MISSING,
    "%": MISSING,
    # Wildcards.
    "al*": "1 3 12",
    "*": "1 2 3 4 5 7 8 9 10 12 13 14",
    "?": "",
    "zz*": "",
    "*p*a": "1 3 12",
    "*a*a*a*": "",
    "[ab]*": "1 2 3 4 8 12",
    "[!a]cd": "2",
    "[^a]cd": "2",
    "[!b]cd": "",
    "[^b]cd": "",
    "[a-c]cd": "2",
    "[c-a]cd": "",
    "[-x]*": "9 14",
    "[]-]*": "14",
    "*[^]x]": "1 2 3 4 5 7 8 9 10 12 13 14",
    "*[]!]": "14",
    "*[!!]": "1 2 3 4 5 7 8 9 10 12 13",
    "x[y]*": "9",
    "x[[]y?*": "9",
    "x[*": "9",
    "[": "",
    "[b*": "",
    "caf?": "7",
    "caf[\u00e0-\u00ff]": "7",
    "caf[!e]": "7",
    "? go": "13",
    "?? go": "",
    "back\\slash": "8",
    "back\\*": "8",
    "\\*": "",
    "a\\?b": "",
    "*\\\\*": "",
    "[[:alpha:]]cd": "",
    # Instance ids.
    "11111111": MISSING,
    "11111111-": "1",
    "44444444-AAAA": "4",
    "deadbeef-0000-4000-8000-000000000003": "3",
    "deadbee0": "12",
    "deadbee": MISSING,
    "deadbeef": MISSING,
    "deadbeef-0000-4000-8000-0000000000033": MISSING,
}
ONE_EACH = {"alpha": "12", "%alpha": "12", "al*": "1 3 12", "1-3": "1 2 3", "bcd": "2", "%-": "13"}
NAMES = {
    "a": True,
    "a%": True,
    "1a": True,
    "1.2.3": True,
    "1-2-3": True,
    "1..2": True,
    ".5": True,
    "1/2": True,
    "x" * 255: True,
    "caf\u00e9": True,
    "": False,
    " ": False,
    "12": False,
    "1.2": False,
    "3-8": False,
    "-a": False,
    "%a": False,
    "%": False,
    "a\tb": False,
    "a\nb": False,
    "\u202ea": False,
    "x" * 256: False,
    "\u00e9" * 128: False,
}
DURATIONS = {
    "90": 90.0,
    "1.5": 1.5,
    "5.": 5.0,
    ".5": 0.5,
    ".5s": 0.5,
    "1.25s": 1.25,
    "1h30m": 5400.0,
    "2d": 172800.0,
    "1d1h1m1s": 90061.0,
    "36500d": 3153600000.0,
    **dict.fromkeys(
        ("", " ", "5.s", ".", ".s", "s", "1x", "-1", "+1", "1e3", "0x10", "1.5m"), None
    ),
    **dict.fromkeys((" 5", "5 ", "30m1h", "1h1h", "36501d", "9" * 400, "inf", "nan", "5\n"), None),
}
RETRIES = {
    "0": True,
    "3": True,
    "0005": True,
    "1000000": True,
    "1000001": False,
    "9999999": False,
    "9" * 40: False,
    **dict.fromkeys(("", "-1", "+3", " 3", "3 ", "1_0", "1.0", "x", "1/2", "\u0663"), False),
}


def write(state_dir: Path) -> None:
    """Make the folders of finished jobs."""
    for number, (name, instance_id) in JOBS.items():
        folder = state_dir / "jobs" / str(number)
        folder.mkdir(parents=True)
        known = {"format": "1", "name": name, "instance_id": instance_id, "type": "BackgroundJob"}
        ended = {"state": "Completed", "code": "0", "ended": "1795804318.25"}
        for file, record in {"spec": known, "exit": ended}.items():
            encoded = {key: value.encode() for key, value in record.items()}
            (folder / file).write_bytes(quoting.dump(encoded))
    state_dir.chmod(0o700)


def in_bare(bare: Bare, text: str, words: Iterable[str]) -> list[str]:
    """Return what text prints for each of some words, in one shell that has read bare.sh."""
    *shell, script = bare.words
    driver = 'set -- --version "$@"; . ./bare.sh >/dev/null; verb=start; opt_help=\n' + text
    result = subprocess.run(
        [*shell, "-c", driver, "sh", *words],
        cwd=os.path.dirname(script),
        env=bare.env,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        check=True,
    )
    return result.stdout.decode().split("\n")[:-1]


EACH = """for case in "$@"; do ( {}; ); printf '\\n'; done"""
"""A loop over the words; what is in it prints one line, less its end."""


def selected(full: Jobctl, selector: str, one_each: bool = False) -> str | int:
    try:
        found = find(Store(str(full.state_dir)), [selector], Filter(), one_each)
    except BadUsage:
        return BAD
    return MISSING if found.missing else " ".join(job.id for job in found.jobs)


@pytest.mark.long
def test_selectors(bare: Bare, jobctl: Jobctl) -> None:
    write(jobctl.state_dir)
    # Here, "-" is a name, not standard input.
    assert {word: selected(jobctl, word) for word in SELECTORS} == SELECTORS
    assert {word: selected(jobctl, word, True) for word in ONE_EACH} == ONE_EACH
    loop = EACH.format(
        "enter; status=0 chosen='' names='' alone=$ALONE; trap 'printf \"=%s\" $?' EXIT;"
        " choose_by \"$case\"; [ $status -eq 0 ] || exit $status; printf '%s ' $chosen"
    )
    for table, alone in ((SELECTORS, "''"), (ONE_EACH, "1")):
        lines = in_bare(bare, loop.replace("$ALONE", alone), table)
        wanted = [f"={end}" if isinstance(end, int) else end for end in table.values()]
        got = [" ".join(line.removesuffix("=0").split()) for line in lines]
        assert dict(zip(table, got, strict=True)) == dict(zip(table, wanted, strict=True))


def test_words_of_job_control_are_completed(
    jobctl: Jobctl, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(jobctl.state_dir)
    monkeypatch.setenv("JOBCTL_STATE_DIR", str(jobctl.state_dir))
    command = Command("get")
    context, argument = Context(command), Argument(["jobs"])

    def offered(word: str) -> list[str]:
        return [item.value for item in complete_jobs(context, argument, word)]

    assert offered("%al") == ["%alpha"]
    assert offered("al") == ["alpha"]
    assert offered("1") == ["1", "1/2", "10", "1e3", "12", "13", "14"]
    assert "12" not in offered("%")


def taken(parse: Callable[[str], object], word: str) -> bool:
    try:
        parse(word)
    except (BadUsage, NotFound):
        return False
    return True


def test_names_and_durations(bare: Bare) -> None:
    assert {name: taken(check_name, name) for name in NAMES} == NAMES
    lines = in_bare(bare, EACH.format('check_name "$case"; printf yes'), NAMES)
    assert dict(zip(NAMES, map(bool, lines), strict=True)) == NAMES
    for word, seconds in DURATIONS.items():
        if seconds is None:
            assert not taken(timing.parse_duration, word), word
        else:
            assert timing.parse_duration(word) == seconds
    lines = in_bare(bare, EACH.format('duration "$case"; printf %s "$seconds"'), DURATIONS)
    got = [float(line) if line else None for line in lines]
    assert dict(zip(DURATIONS, got, strict=True)) == DURATIONS


def both(full: Jobctl) -> tuple[Jobctl, Jobctl]:
    """Return the two programs, for what does not depend on the shell."""
    return full, Bare([shutil.which("dash") or "dash"], full)


def test_retries(jobctl: Jobctl) -> None:
    # The directory is looked at after the number: so nothing is ever started.
    for program in both(jobctl):
        for word, good in RETRIES.items():
            result = program.run("start", "--retries", word, "-C", "/nowhere7", "true", status=2)
            assert (b"/nowhere7" in result.stderr) == good, (word, result)


def test_the_newest_of_a_name(jobctl: Jobctl) -> None:
    for program in both(jobctl):
        program.run("remove", "--all")
        first = program.done("-n", "nightly", "false")
        second = program.done("-n", "nightly", "true")
        assert program.out("wait", "-q", "%nightly") == f"{second}\n"
        program.run("wait", "-q", "nightly", status=1)
        assert program.run("receive", "--wait", "%nightly").stderr == b""
        third = program.done("--after-ok", "nightly", "true")
        assert program.job(third)["state"] == "Completed"
        program.run("remove", "%-")
        assert program.out("get", "-q").split() == [first, third]
    jobctl.refused(2, "start", "-n", "%x", "true")
    again = jobctl.done("-n", "nightly", "-c", "exit 3")
    assert "exit 3" in jobctl.out("start", "--retry-failed", "nightly")
    assert jobctl.job("%%")["command"] == "exit 3"
    assert int(again) + 1 == int(jobctl.job("%+")["id"])


ODD = {
    "EUID": b"7",
    "UID": b"7",
    "GID": b"7",
    "PPID": b"7",
    "GROUPS": b"7",
    "SHELLOPTS": b"x",
    "BASHOPTS": b"x",
    "BASH_VERSINFO": b"7",
    "BASH_ALIASES": b"7",
    "BASHPID": b"7",
    "BASH_FUNC_x%%": b"() { echo 7\n}",
    "IFS": b":",
    "OPTIND": b"7",
    "RANDOM": b"7",
    "SECONDS": b"7",
    "LINENO": b"7",
    "PS4": b"$(date)",
    "TMOUT": b"1",
    "7x": b"7",
    "a.b": b"C:\\new\\tdir\n\t'\"$x`y` \\",
    "a-b": b"\xff\x81 ",
    "\u00e9": b"",
    "jobctl_dir": b"/x",
}
PLAIN = {
    "A": b"C:\\new\\tdir\n\t'\"$x`y` \\\n\n",
    "name": b"x",
    "_a1": b"\\c",
    "BASHRC": b"7",
    "UIDX": b"7",
    "EMPTY": b"",
}


def test_variables_with_odd_names(bare: Bare, jobctl: Jobctl) -> None:
    given = [b"%s=%s" % (name.encode(), value) for name, value in {**ODD, **PLAIN}.items()]
    options = [word for pair in given for word in (b"-e", pair)]
    for program in (jobctl, bare):
        other = program.start("sleep", "7361")
        job = program.start(*options, "--after", other, "env", "-0")
        folder = program.folder(job)
        odd = quoting.split((folder / "env.odd").read_bytes().partition(b"env ")[2])
        names = {os.fsdecode(pair.partition(b"=")[0]) for pair in odd if b"=" in pair}
        assert names == ODD.keys(), program
        program.run("stop", "--grace", "0", other)
        pairs = program.run("receive", "--wait", job).stdout.split(b"\0")
        assert [pair for pair in given if pair not in pairs] == [], program


def test_no_value_is_on_a_command_line(jobctl: Jobctl, tmp_path: Path) -> None:
    """Everybody can read those, also where only a shell text before the command runs."""
    log = tmp_path / "log"
    values = ("-e", "a.b=SECRET it's", "-e", "C=SECRET", "-e", "UID=SECRET")
    shown = ("printenv", "a.b", "C", "UID")
    for form in (shown, ("--init", "sleep 0", *shown)):
        words = [PROGRAM, "start", "-w", *values, *form]
        done = subprocess.run(
            strace("execve", "-s", "9999", *words, log=log), env=jobctl.env, capture_output=True
        )
        assert done.stdout == b"SECRET it's\nSECRET\nSECRET\n", done
        ran = log.read_text()
        assert "perl" in ran
        lines = [line for line in ran.splitlines() if "SECRET" in line]
        assert all('"start"' in line for line in lines), lines


@pytest.mark.parametrize("shell", first_of(*SHELLS))
def test_variables_with_odd_names_without_perl(jobctl: Jobctl, tmp_path: Path, shell: str) -> None:
    """They are set all the same, by env."""
    program = altered(tmp_path / "copy", **{"/usr/bin/perl": "/no/such/perl"})
    words = [*shell_words(shell), program, "start", "-w", "-e", "a.b=it's", "-e", "UID=7"]
    for form in (["printenv", "a.b", "UID"], ["--init", "true", "printenv", "a.b", "UID"]):
        done = subprocess.run([*words, *form], env=jobctl.env, capture_output=True)
        assert done.stdout == b"it's\n7\n", done


def test_names_that_bash_keeps_for_itself() -> None:
    """Whatever this bash does not pass on as it was set is called odd."""
    names = subprocess.check_output([shutil.which("bash") or "bash", "-c", "compgen -v"], text=True)
    text = """for name; do
        (export "$name=7" && exec env) 2>/dev/null | grep -qx "$name=7" || echo "$name"
    done"""
    words = [name for name in names.split() if name not in ("_", "SHLVL", "PATH")]
    kept = subprocess.check_output(["bash", "--posix", "-c", text, "sh", *words], text=True).split()
    assert "EUID" in kept
    assert [name for name in kept if not draft.is_odd(name)] == []


def test_ids_never_come_back(bare: Bare, jobctl: Jobctl) -> None:
    damages: list[tuple[str, bytes | None]] = [
        ("last", None),
        ("last", b""),
        ("last", b"garbage\n"),
        ("last", b"00000000000000000001\n"),
        ("last", b"9" * 20 + b"\n"),
        ("last.copy", None),
        ("last.copy", b"\0\0\0"),
    ]
    jobctl.run("get")

    def here() -> int:
        return int(Jobs(str(jobctl.state_dir)).allocate().id)

    def there() -> int:
        return int(in_bare(bare, "enter; allocate && echo $number", [])[0])

    highest = 0
    for name, content in damages:
        for give in (there, here):
            for take in (there, here):
                number = give()
                assert number == highest + 1, (name, content, give)
                path = jobctl.state_dir / name
                path.unlink() if content is None else path.write_bytes(content)
                (jobctl.state_dir / "jobs" / str(number)).rmdir()
                highest = take()
                assert highest == number + 1, (name, content, take)
                (jobctl.state_dir / "jobs" / str(highest)).rmdir()


def test_the_status_of_what_never_began(jobctl: Jobctl) -> None:
    failed = jobctl.done("false")
    for program in both(jobctl):
        stopped = program.start("--after-ok", failed, "true")
        program.run("wait", stopped, status=1)
        program.run("receive", "--wait", stopped, status=125)
        program.run("start", "--wait", "--after-ok", failed, "true", status=125)
        program.run("receive", "--wait", stopped, failed, status=1)


def test_an_item_is_tried_again_with_what_its_job_was_given(jobctl: Jobctl, tmp_path: Path) -> None:
    script, data = tmp_path / "script", tmp_path / "data"
    script.write_text("cat; echo $1; exit 3\n")
    data.write_text("input\n")
    words = ["--foreach", "-", "--stdin", str(data)]
    for again in (["-f", str(script)], ["-c", "cat; echo $1; exit 3"]):
        job = jobctl.start(*words, *again, input=b"a\nb\n")
        jobctl.run("wait", job, status=1)
        script.unlink(missing_ok=True)
        once_more = jobctl.start("--retry-failed", f"{job}.2")
        jobctl.run("wait", once_more, status=1)
        assert jobctl.run("receive", once_more).stdout == b"input\nb\n"
        assert len(jobctl.jobs("--children", once_more)) == 2


def _close(descriptors: tuple[int, ...]) -> None:
    for fd in descriptors:
        os.close(fd)


@pytest.mark.long
def test_nothing_is_started_that_nobody_could_be_told_of(
    bare: Bare, jobctl: Jobctl, tmp_path: Path
) -> None:
    said = b"jobctl: cannot write to standard output: it is closed; nothing was done\n"
    mark = tmp_path / "mark"
    words = ("start", "-c", f"echo >>{mark}")
    for program in (bare, jobctl):
        for options in ((), ("-q",), ("-o", "json"), ("-w",), ("-w", "-q"), ("-n", "x")):
            line = (words[0], *options, *words[1:])
            result = program.run(*line, status=125, preexec_fn=lambda: _close((1,)))
            assert (result.stdout, result.stderr) == (b"", said)
        program.run("start", "true", status=0, stdin=None, preexec_fn=lambda: _close((0,)))
        program.run("remove", "--all", "--force")
        program.run(*words, status=125, stdin=None, preexec_fn=lambda: _close((0, 1, 2)))
        assert program.run("wait", "x", status=125, preexec_fn=lambda: _close((1,))).stderr == said
        assert program.out("get", "-q") == ""
    for line in (("session", "new", "web1"), ("session", "connect", "web1")):
        assert jobctl.run(*line, status=125, preexec_fn=lambda: _close((1,))).stderr == said
    with open("/dev/full", "wb") as full:
        result = jobctl.run(*words, status=125, stdout=full)
    full_disk = b"jobctl: cannot write to standard output: No space left on device; "
    assert result.stderr == full_disk + b"nothing was done\n"
    assert not mark.exists()


def test_a_job_whose_record_nobody_takes_is_told_of(bare: Bare, jobctl: Jobctl) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    for program in (bare, jobctl):
        for options in (("-q",), ("-o", "json")):
            result = program.run("start", *options, "true", status=125, stdout=writer)
            (job,) = re.findall(rb"; job (\d+) was started\n$", result.stderr)
            assert program.out("wait", "-q", job) == f"{job.decode()}\n"
    os.close(writer)


SHELL_WORDS = {
    ("ls", "|", "wc"): "|",
    ("ls", "-a", "&&", "sort"): "&&",
    ("./w", "||", "true", "||", "false"): "||",
    ("ls", ">", "file"): ">",
    ("ls", "2>&1"): "2>&1",
    ("true", "&"): "&",
    ("ls", "/", "2>", "/dev/null"): "2>",
    ("cut", "-d", "|", "-f1"): "",
    ("find", ".", "-exec", "ls", "{}", ";"): "",
    ("find", ".", "-exec", "ls", "{}", ";", "-print"): "",
    ("/usr/bin/expr", "3", ">", "2"): "",
    ("expr", "1", "|", "2"): "",
    ("grep", "|", "no such file"): "",
    ("echo", "a", ">"): "",
    ("echo", "&", "a"): "",
    ("true",): "",
}
"""Commands, and the word in them that is taken to be meant for a shell."""


@pytest.mark.long
def test_words_of_a_shell_that_reach_none(bare: Bare, capfd: pytest.CaptureFixture[str]) -> None:
    for words, word in SHELL_WORDS.items():
        said = f"'{word}' is given to {words[0]} as it is; use -c for shell text" if word else ""
        tell_of_shell_words(words)
        assert capfd.readouterr().err == (f"jobctl: {said}\n" if word else "")
        if words[0] != "./w":
            result = bare.run("start", "-q", *words)
            assert result.stderr.decode() == (f"jobctl: {said}\n" if word else "")
    text = bare.run("start", "-q", "-c", "true", "sh", "|", "wc")
    assert text.stderr == b""
