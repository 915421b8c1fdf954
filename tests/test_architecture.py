"""The house: who may know whom, and who alone may do what."""

from __future__ import annotations

import ast
import functools
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import SHELLS, shell_words

import jobctl

PACKAGE = Path(jobctl.__file__).parent
MODULES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
CODE = {name: path for name, path in MODULES.items() if path.name != "__init__.py"}
RUNNER = PACKAGE / "runner.sh"
ROWS = (
    (
        *("errors", "descriptors", "configfile", "quoting", "target", "model", "timing"),
        *("nodes", "items", "emptying"),
    ),
    (
        *("paths", "process", "records", "whole", "links", "folder", "incoming", "journal"),
        "received",
        *("task", "share", "jobs"),
        *("draft", "carried", "runner", "store"),
    ),
)
INSIDE = {
    "transport": (
        *(
            "base",
            "sshfiles",
            "names",
            "sendenv",
            "hostkeys",
            "plainconfig",
            "alike",
            "config",
            "algorithms",
            "keyagent",
            "keys",
            "line",
        ),
        *("sshwire", "sshlogin", "ssh"),
    ),
    "agent": (
        "client",
        "caller",
        "channels",
        "frames",
        "hands",
        "content",
        "commands",
        "far",
        "room",
        "shares",
        "mirror",
        "link",
        "openers",
        "passing",
        "post",
        "slots",
        "endings",
        "queue",
        "server",
    ),
}
"""The order within a package, where there is one."""
ALONE = {"click": "jobctl.cli", "tabulate": "jobctl.cli", "sqlite3": "jobctl.store"}
ALONE |= {
    "paramiko": "jobctl.transport.ssh",
    "platformdirs": "jobctl.paths",
    "cryptography": "jobctl.transport",
    "ClusterShell": "jobctl.nodes",
}
PACKAGES = ("transport", "agent", "ops", "cli")
JOB_FILES = (
    "spec",
    "spec.new",
    "run",
    "exit",
    "exit.new",
    "received",
    "received.new",
    "received.lock",
    "progress",
    "lock",
    "env",
    "env.odd",
    "stop",
    "log",
    "failure",
    "signals",
    "timedout",
)


OWNERS = ["jobctl.draft"] + [
    f"jobctl.{name}" for name in ("folder", "incoming", "journal", "received", "task", "share")
]
"""Who names the files of a job folder."""


@functools.cache
def tree(name: str) -> ast.Module:
    return ast.parse(MODULES[name].read_text())


@functools.cache
def nodes(name: str) -> tuple[ast.AST, ...]:
    return tuple(ast.walk(tree(name)))


@functools.cache
def imports(name: str) -> tuple[str, ...]:
    """Return every module that a module imports, wherever in it, by its full name."""
    return tuple(_imports(name))


def _imports(name: str) -> Iterator[str]:
    for node in nodes(name):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: relative import"
            module = node.module or ""
            for alias in node.names:
                full = f"{module}.{alias.name}"
                yield full if full in MODULES else module
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in (
            "__import__",
            "importlib.import_module",
        ):
            assert name == "jobctl.cli.main", f"{name}: imports by name"


def for_each_module(test: Callable[[str], None]) -> Callable[[], None]:
    """Make one test of it: one for each module would cost more than what it looks at."""

    def test_all() -> None:
        for name in CODE:
            test(name)

    return test_all


def ours(name: str) -> set[str]:
    return {module for module in imports(name) if module.partition(".")[0] == "jobctl"}


def place(module: str) -> tuple[int, int]:
    """Return the row of a module, from above, and its place in it where that is ordered."""
    parts = module.split(".")
    if parts[-1] == "__main__":
        return len(PACKAGES) + 2, 0
    if len(parts) == 3:
        row = 2 + PACKAGES.index(parts[1])
        inside = INSIDE.get(parts[1])
        return row, inside.index(parts[2]) if inside else 0
    for row, names in enumerate(ROWS):
        if parts[1] in names:
            return row, names.index(parts[1])
    raise AssertionError(f"{module} has no place in the house")


@for_each_module
def test_imports_come_from_above_or_the_left(name: str) -> None:
    row, column = place(name)
    for module in ours(name) - {"jobctl"}:
        other_row, other_column = place(module)
        if other_row == row and name.split(".")[1] not in INSIDE and row >= 2:
            continue  # not ordered, but without cycles, see below
        assert (other_row, other_column) < (row, column), f"{name} imports {module}"


def test_no_cycles() -> None:
    imported = {name: ours(name) & CODE.keys() for name in CODE}
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path, name))
        if name not in done:
            for module in sorted(imported[name]):
                visit(module, (*path, name))
            done.add(name)

    for name in CODE:
        visit(name, ())


@for_each_module
def test_libraries_stop_in_the_files_that_use_them(name: str) -> None:
    for module in imports(name):
        library = module.partition(".")[0]
        if library in ALONE:
            assert name.startswith(ALONE[library]), f"{name} imports {library}"


@for_each_module
def test_nobody_prints(name: str) -> None:
    for node in nodes(name):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in ("print", "exit", "quit"), f"{name}:{node.lineno}"
        if isinstance(node, ast.Attribute) and ast.unparse(node) in ("sys.exit", "os._exit"):
            # The end of the program, and of a child that could not become another one.
            allowed = ("__main__", "cli.main", "runner", "agent.client", "agent.server")
            assert name.removeprefix("jobctl.") in allowed, f"{name}:{node.lineno}"


def strings(name: str) -> Iterator[tuple[str, int]]:
    """Yield the strings in a module that are no docstrings, and their lines."""
    documentation = {
        id(node.value)
        for node in nodes(name)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in nodes(name):
        if isinstance(node, ast.Constant) and id(node) not in documentation:
            if isinstance(node.value, str):
                yield node.value, node.lineno
            elif isinstance(node.value, bytes):
                yield node.value.decode("latin-1"), node.lineno


@for_each_module
def test_the_kernel_is_asked_in_one_place(name: str) -> None:
    for text, line in strings(name):
        if text.startswith("/proc/"):
            allowed = name == "jobctl.process" or (
                name == "jobctl.ops.delivery" and text == "/proc/self/fd/"
            )
            assert allowed, f"{name}:{line} reads {text}"


@for_each_module
def test_a_folder_has_one_owner(name: str) -> None:
    """Nobody but who reads and who makes a job folder joins a path in it; others ask for one."""
    if name in OWNERS:
        return
    for node in nodes(name):
        if isinstance(node, ast.JoinedStr):
            last = node.values[-1]
            if isinstance(last, ast.Constant) and isinstance(last.value, str):
                tail = last.value.rpartition("/")
                assert not (tail[1] and tail[2] in JOB_FILES), f"{name}:{node.lineno}"
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("path.join", ".file")):
            for argument in node.args:
                if isinstance(argument, ast.Constant) and argument.value in JOB_FILES:
                    # The lock is handed on to the runner by who starts it.
                    assert (name, argument.value) == ("jobctl.runner", "lock"), (
                        f"{name}:{node.lineno} names {argument.value}"
                    )
    for text, line in strings(name):
        assert not re.search(rf"/({'|'.join(map(re.escape, JOB_FILES))})$", text), f"{name}:{line}"


def test_packages_are_empty() -> None:
    for name, path in MODULES.items():
        if path.name == "__init__.py":
            body = ast.parse(path.read_text()).body
            if name == "jobctl.__init__":
                text = [ast.unparse(node) for node in body if not isinstance(node, ast.Expr)]
                assert len(text) == 1
                assert text[0].startswith("__version__ = ")
            else:
                assert body == [], name


@for_each_module
def test_everything_is_documented(name: str) -> None:
    module = tree(name)
    first = (ast.get_docstring(module) or "").partition("\n")[0]
    assert first.endswith((".", ":", "?")), f"{name}: one sentence that says what it knows"
    public: list[ast.ClassDef | ast.FunctionDef] = []
    for node in module.body:
        if isinstance(node, ast.ClassDef):
            public.append(node)
            public += [n for n in node.body if isinstance(n, ast.FunctionDef)]
        elif isinstance(node, ast.FunctionDef):
            public.append(node)
    for node in public:
        if isinstance(node, ast.ClassDef) or not node.name.startswith("_"):
            overrides = isinstance(node, ast.FunctionDef) and _overrides_click(module, node)
            assert ast.get_docstring(node) or overrides, f"{name}: {node.name}"


def _overrides_click(module: ast.Module, method: ast.FunctionDef) -> bool:
    """Whether a method is one that Click documents."""
    return any(
        method in node.body and any("click" in ast.unparse(base) for base in node.bases)
        for node in module.body
        if isinstance(node, ast.ClassDef)
    )


def test_no_file_is_long() -> None:
    for path in (*MODULES.values(), RUNNER):
        limit = 1000 if path == RUNNER else 610
        assert len(path.read_text().splitlines()) <= limit, path


def test_broad_excepts() -> None:
    """At the top of the command line, of what the agent does for one job or in one thread, and
    where a connection is made for those who wait for it.
    """
    broad = [
        name
        for name in CODE
        for node in nodes(name)
        if isinstance(node, ast.ExceptHandler)
        and (node.type is None or ast.unparse(node.type) == "Exception")
    ]
    assert broad == ["jobctl.agent.hands", "jobctl.agent.link", "jobctl.cli.main"]


@pytest.mark.parametrize("path", sorted(PACKAGE.glob("*.sh")), ids=lambda path: path.name)
def test_echo_prints_no_variable(path: Path) -> None:
    """Some shells' echo reads backslashes in what it prints; put_line and printf do not."""
    word = r"""'[^']*'|"(?:\\.|[^"])*"|[^'"|;&<>()}]"""
    plain = re.compile(r"(\s+('[^'\\]*'|[\w.,:/=+-]+))*\s*(\d(?=[<>]))?")
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if line.lstrip().startswith("#"):
            continue
        for found in re.finditer(r"\becho\b", line):
            words = re.match(f"(?:{word})*", line[found.end() :])
            assert words
            assert plain.fullmatch(words[0]), f"{path.name}:{number}: {line.strip()}"


@pytest.mark.parametrize("path", sorted(PACKAGE.glob("*.sh")), ids=lambda path: path.name)
def test_no_colon_makes_a_file(path: Path) -> None:
    """A redirection of a special builtin that fails, on a full disk say, ends a POSIX shell."""
    for number, line in enumerate(path.read_text().splitlines(), 1):
        found = re.search(r"(?:^|[\s;&|({!]):\s*\d?>", line.partition(" #")[0])
        assert not found or line.lstrip().startswith("#"), f"{path.name}:{number}: {line.strip()}"


@pytest.mark.long  # and by itself the first thing that CI does
def test_the_scripts_are_clean() -> None:
    words = [*shell_words("shellcheck"), str(RUNNER), str(PACKAGE / "bare.sh")]
    result = subprocess.run(words, capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (0, "")


@pytest.mark.parametrize("shell", SHELLS)
def test_the_runner_parses(shell: str) -> None:
    command = [*shell_words(shell), "-n", str(RUNNER)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")


TESTS = sorted(Path(__file__).parent.rglob("*.py"))


def calls(path: Path, *names: str) -> Iterator[ast.Call]:
    """Yield the calls of functions and methods with these names."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in names:
            yield node


def test_no_two_tests_look_for_the_same_process() -> None:
    """Tests run beside each other, and so do whole runs: see sleeper(), and at_home()."""
    users: dict[str, set[str]] = {}
    for path in TESTS:
        text = path.read_text()
        lines = text.splitlines()
        for node in ast.parse(text).body:
            source = "\n".join(lines[node.lineno - 1 : node.end_lineno])
            name = node.name if isinstance(node, ast.FunctionDef) else "others"
            for number in re.findall(r"\bsleep[ \",]+(\d{4,})", source):
                users.setdefault(number, set()).add(f"{path.name}: {name}")
        for call in calls(path, "processes_with"):
            words = ast.unparse(call)
            assert not re.search(r"sleep \d", words), f"{path.name}:{call.lineno}: {words}"
    assert len(users) > 10
    assert {number: names for number, names in users.items() if len(names) > 1} == {}


def test_ports_come_from_the_kernel() -> None:
    found = 0
    for path in TESTS:
        for call in calls(path, "create_server", "bind"):
            address = ast.unparse(call.args[0])
            assert not re.search(r", [1-9]\d*\)$", address), f"{path.name}:{call.lineno}: {address}"
            found += address.endswith(", 0)")
    assert found > 3


def test_what_reads_another_script_replaces_none_of_its_functions() -> None:
    """Runners that serve.sh begins are made of it, and would have its own in their place."""

    def functions(name: str) -> set[str]:
        text = (PACKAGE / name).read_text()
        return set(re.findall(r"^(\w+)\(\) \{", text, re.MULTILINE))

    theirs = functions("runner.sh") | functions("command.sh") | functions("after.sh")
    theirs |= functions("slots.sh")
    assert not functions("serve.sh") & theirs
