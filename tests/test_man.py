"""The man pages say what the program does: every command, option, variable and status."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import click
import pytest
from conftest import Jobctl

from jobctl.cli.main import COMMANDS, cli
from jobctl.errors import JobctlError

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "man").glob("*.1"))
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SECTIONS = {
    "NAME",
    "SYNOPSIS",
    "DESCRIPTION",
    "OPTIONS",
    "EXIT STATUS",
    "ENVIRONMENT",
    "FILES",
    "EXAMPLES",
    "SEE ALSO",
}
STATUSES_OF_NO_ERROR = {0, 1, 124, 130}
OF_OUR_OWN = {"JOBCTL_RUNNER", "JOBCTL_MARK", "JOBCTL_BIN", "JOBCTL_SH", "JOBCTL_HOME"} | {
    "JOBCTL_ASKED"
}
"""Variables by which one process of ours tells another something."""


def commands() -> dict[str, click.Context]:
    """Return the context of each command, the program itself included, by its page's name."""
    root = click.Context(cli, info_name="jobctl", **cli.context_settings)
    found = {"jobctl": root}
    for name in cli.list_commands(root):
        command = cli.get_command(root, name)
        assert command is not None
        found[f"jobctl-{name}"] = click.Context(command, parent=root, info_name=name)
    return found


def subcommands(context: click.Context) -> dict[str, click.Context]:
    """Return the context of each command of a group, by its name; a command has none."""
    group = context.command
    if not isinstance(group, click.Group):
        return {}
    found = {}
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        found[name] = click.Context(command, parent=context, info_name=name)
    return found


CONTEXTS = commands()
GROUPS = {name: subcommands(context) for name, context in CONTEXTS.items() if name != "jobctl"}
"""The commands of each page that has some."""
SUBCOMMANDS = [(page, name) for page, found in GROUPS.items() for name in found]
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
each_command = pytest.mark.parametrize("name", CONTEXTS)
each_subcommand = pytest.mark.parametrize(("page", "name"), SUBCOMMANDS)


def text(name: str) -> str:
    return (ROOT / "man" / f"{name}.1").read_text()


def sections(page: str) -> dict[str, str]:
    """Return the text of each section by its title."""
    return split(page, ".Sh")


def subsections(section: str) -> dict[str, str]:
    """Return the text of each subsection by its title, and by "" what is before the first."""
    return split(f".Ss \n{section}", ".Ss")


def split(text: str, macro: str) -> dict[str, str]:
    parts = re.split(rf"^\{macro} (.*)\n", text, flags=re.M)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def listed_options(page: str, subcommand: str = "") -> set[str]:
    """Return the options that the section OPTIONS has an item for, or its part for a subcommand."""
    part = subsections(sections(page)["OPTIONS"])[subcommand]
    items = re.findall(r"^\.It (Fl .*)", part, flags=re.M)
    return {f"-{option}" for item in items for option in re.findall(r"\bFl (\S+)", item)}


def options(context: click.Context) -> set[str]:
    """Return the options that a command takes."""
    return {
        option
        for param in context.command.get_params(context)
        if isinstance(param, click.Option)
        for option in (*param.opts, *param.secondary_opts)
    }


def variables() -> set[str]:
    """Return the environment variables of ours, and two of others, that the code names."""
    sources = [*(ROOT / "jobctl").rglob("*.py"), *(ROOT / "jobctl").rglob("*.sh")]
    names = re.compile(r"(?<![A-Za-z_])(?:JOBCTL_[A-Z_]*[A-Z]|NO_COLOR|SSH_AUTH_SOCK)\b")
    return {name for source in sources for name in names.findall(source.read_text())}


def statuses(error: type[JobctlError]) -> set[int]:
    """Return the exit statuses of an error and of all that are more special."""
    return {error.status}.union(*map(statuses, error.__subclasses__()))


def test_every_command_has_a_page_and_every_page_a_command() -> None:
    assert {page.stem for page in PAGES} == set(CONTEXTS)


@each_command
def test_the_page_lists_the_options_the_command_takes(name: str) -> None:
    assert listed_options(text(name)) == options(CONTEXTS[name])


@each_subcommand
def test_the_page_lists_the_options_a_subcommand_takes(page: str, name: str) -> None:
    assert listed_options(text(page), name) == options(GROUPS[page][name])


@pytest.mark.parametrize("page", [page for page, found in GROUPS.items() if found])
def test_the_page_has_all_subcommands_in_every_place(page: str) -> None:
    found = sections(text(page))
    described = re.findall(r"^\.It Cm (\S+)$", subsections(found["DESCRIPTION"])["Commands"], re.M)
    assert described == list(GROUPS[page])
    words = re.findall(r"^\.Cm (.+)$", found["SYNOPSIS"], re.M)
    assert list(dict.fromkeys(" | ".join(words).split(" | "))) == list(GROUPS[page])
    parts = [part for part in subsections(found["OPTIONS"]) if part in GROUPS[page]]
    assert parts == list(GROUPS[page])


@each_page
def test_the_page_has_every_section(page: Path) -> None:
    found = sections(page.read_text())
    assert found.keys() >= SECTIONS
    assert all(found[title].strip() for title in SECTIONS)


@each_page
def test_the_page_is_called_as_its_file(page: Path) -> None:
    content = page.read_text()
    assert f"\n.Dt {page.stem.upper()} 1\n" in content
    assert sections(content)["NAME"].startswith(f".Nm {page.stem}\n.Nd ")


@each_page
def test_the_page_refers_to_pages_that_there_are(page: Path) -> None:
    content = page.read_text()
    named = set(re.findall(r"^\.Xr (jobctl\S*) 1", content, flags=re.M))
    assert named <= set(CONTEXTS)
    assert page.stem == "jobctl" or ".Xr jobctl 1" in sections(content)["SEE ALSO"]


def test_the_main_page_refers_to_all_others() -> None:
    named = re.findall(r"^\.Xr (jobctl-\S+) 1", sections(text("jobctl"))["SEE ALSO"], flags=re.M)
    assert set(named) == set(CONTEXTS) - {"jobctl"}


def test_every_variable_is_on_the_main_page() -> None:
    found = variables()
    assert {"JOBCTL_STATE_DIR", "JOBCTL_ID", "JOBCTL_SSH_CONFIG", "NO_COLOR"} <= found
    assert found >= OF_OUR_OWN
    environment = sections(text("jobctl"))["ENVIRONMENT"]
    assert found - OF_OUR_OWN <= set(re.findall(r"\bEv (\w+)", environment))


def test_every_exit_status_is_on_the_main_page() -> None:
    items = re.findall(r"^\.It (\d+)$", sections(text("jobctl"))["EXIT STATUS"], flags=re.M)
    assert set(map(int, items)) == statuses(JobctlError) | STATUSES_OF_NO_ERROR


@each_command
def test_help_has_an_example(name: str, jobctl: Jobctl) -> None:
    words = [] if name == "jobctl" else [name.removeprefix("jobctl-")]
    for option in ("-h", "--help"):
        assert_example(words, jobctl.out(*words, option))


@each_subcommand
def test_help_of_a_subcommand_has_an_example(page: str, name: str, jobctl: Jobctl) -> None:
    words = [page.removeprefix("jobctl-"), name]
    for option in ("-h", "--help"):
        assert_example(words, jobctl.out(*words, option))


def assert_example(words: list[str], shown: str) -> None:
    """Check that the help of a command shows how it is used."""
    assert f"Example: jobctl {' '.join(words)}" in " ".join(shown.split())


@each_page
def test_the_page_has_no_faults(page: Path) -> None:
    checks = {
        "mandoc": ["mandoc", "-Tlint", "-Wwarning", str(page)],
        "groff": ["groff", "-ww", "-mdoc", "-Tutf8", "-z", str(page)],
    }
    for program, check in checks.items():
        if shutil.which(program):
            result = subprocess.run(check, capture_output=True, text=True)
            assert (result.stdout, result.stderr, result.returncode) == ("", "", 0)
            return
    pytest.fail("neither mandoc nor groff is installed; the man pages cannot be checked")


def test_node_sets_are_quoted_from_the_shell() -> None:
    texts = {path.name: path.read_text() for path in [*PAGES, *DOCUMENTS]}
    for name, context in commands().items():
        for place, of in {name: context, **subcommands(context)}.items():
            texts[f"help of {place}"] = f"jobctl {of.get_help()}".replace("\n ", " ")
    found = 0
    for name, content in texts.items():
        plain = content.replace(r"\-", "-").replace(r"\(aq", "'")
        for line in plain.splitlines():
            for word in re.findall(r"\S*[a-z0-9@]\[\d+-\d[^\s`]*", line):
                found += 1
                if re.search(r"jobctl |start |-H|--host", line):
                    assert word.lstrip("(`")[0] == "'", (name, line)
    assert found > 5


def test_the_pages_are_installed() -> None:
    assert "share/man/man1 = man/*.1" in (ROOT / "setup.cfg").read_text()


def test_the_commands_are_described_on_the_main_page() -> None:
    described = re.findall(r"^\.It Cm (\S+)$", sections(text("jobctl"))["DESCRIPTION"], flags=re.M)
    assert described[: len(COMMANDS)] == list(COMMANDS)


def test_a_wrong_option_points_to_the_help_of_its_command() -> None:
    contexts = [CONTEXTS["jobctl"]]
    for page, context in CONTEXTS.items():
        contexts += [context, *GROUPS.get(page, {}).values()]
    for context in dict.fromkeys(contexts):
        path = context.command_path
        for param in context.command.get_params(context):
            if not isinstance(param, click.Option):
                continue
            for option in param.opts:
                long = option.startswith("--")
                wrong = [option] if not param.is_flag else [f"{option}=3"] if long else []
                if not wrong:
                    continue
                with pytest.raises(click.UsageError) as caught:
                    cli.main([*path.split()[1:], *wrong], "jobctl", standalone_mode=False)
                assert caught.value.ctx, wrong
                assert caught.value.ctx.command_path == path, wrong
