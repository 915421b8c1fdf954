"""The command `jobctl`: loads the subcommand asked for, and ends with its status."""

from __future__ import annotations

import importlib
import os
import signal
import sys
from typing import NoReturn

import click

from jobctl import __version__, descriptors, paths
from jobctl.cli import options, render
from jobctl.errors import JobctlError, ReaderLeft

PROGRAM = "jobctl"
COMMANDS = {
    "start": "Start a job in the background.",
    "get": "Show jobs.",
    "receive": "Write the output of jobs that was not received yet.",
    "wait": "Wait until jobs are finished.",
    "stop": "Stop jobs, or send them a signal.",
    "remove": "Delete jobs and their output.",
    "session": "Keep connections to other machines, and run things there.",
}


class _Lazy(options.Command, click.Group):
    """A group that imports a command's module when the command is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        command = importlib.import_module(f"jobctl.cli.{name}").command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as interrupt:
            # Not left to Click, which would write an empty line to standard error.
            number = getattr(interrupt, "number", signal.SIGINT)
            return 128 + int(number)


@click.group(
    cls=_Lazy,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Example: jobctl start -n nightly -- make -j4 && jobctl wait %nightly",
)
@click.version_option(__version__, prog_name=PROGRAM)
def cli() -> None:
    """Background jobs for the shell: they outlive the terminal that started them."""


def main() -> NoReturn:
    """Run the command line and end with its exit status."""
    render.open_standard_files()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    descriptors.heed_signals()
    options.caller_umask = paths.keep_private()
    status = _run()
    # Nothing is left that would justify the time of taking the interpreter down in order.
    os._exit(status if 0 <= status < 256 else 125)


def _run() -> int:
    try:
        result = cli.main(prog_name=PROGRAM, standalone_mode=False)
        return result if isinstance(result, int) else 0
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return 2
    except click.UsageError as error:
        place = error.ctx.command_path if error.ctx else PROGRAM
        render.say(f"{_named(error)}; see '{place} --help'")
        return 2
    except click.exceptions.Exit as error:
        return error.exit_code
    except SystemExit as error:  # completion ends so
        return error.code if isinstance(error.code, int) else 0
    except (KeyboardInterrupt, click.Abort):
        return 128 + signal.SIGINT
    except ReaderLeft as error:
        return error.status
    except JobctlError as error:
        render.say(str(error))
        return error.status
    except BrokenPipeError:
        return JobctlError.status
    except OSError as error:
        render.say(f"{error.filename or 'standard output'}: {error.strerror}")
        return JobctlError.status
    except Exception as error:
        return _bug(error)


def _named(error: click.UsageError) -> str:
    """Return what is wrong with a command line, or with a variable that stands for an option."""
    said = error.format_message().rstrip(".")
    param = error.param if isinstance(error, click.BadParameter) else None
    if param is None or error.ctx is None or not param.name or not param.envvar:
        return said
    if error.ctx.get_parameter_source(param.name) is not click.core.ParameterSource.ENVIRONMENT:
        return said
    return said.replace(param.get_error_hint(error.ctx), str(param.envvar))


def _bug(error: Exception) -> int:
    """Tell of a fault of our own, with what mends it kept in a log; return the status."""
    import traceback

    from jobctl import records, whole

    trace = "".join(traceback.format_exception(error))
    try:
        path = f"{paths.state_dir()}/faults.log"
        with open(path, "ab", opener=records.opened) as file:
            whole.log(file.fileno(), f"jobctl {__version__}, Python {sys.version}\n{trace}\n")
        where = f"please report it with {path}"
    except (JobctlError, OSError):
        where = trace
    render.say(f"a fault in jobctl: {type(error).__name__}: {error}; {where}")
    return JobctlError.status
