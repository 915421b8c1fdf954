"""What the agent does for one job, or in one thread: no exception in it ends anything else."""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress

from jobctl import whole
from jobctl.errors import JobctlError


def log(text: str) -> None:
    """Write a line to the agent's log."""
    with suppress(OSError):
        whole.log(2, f"{time.strftime('%Y-%m-%dT%H:%M:%S')} {text}\n")


def attempt(work: Callable[[], object]) -> Exception | None:
    """Do something; return the exception that it ended with, if any.

    What nobody thought of is in the log, with its place.
    """
    try:
        work()
    except (JobctlError, OSError) as error:
        return error
    except Exception as error:
        log(f"a fault in jobctl: {'; '.join(traceback.format_exc().split(chr(10)))}")
        return error
    return None


def hand(work: Callable[[], object], failed: Callable[[Exception], object] | None = None) -> None:
    """Do something in a thread of its own.

    :param failed: is told the exception that it ended with, if any.
    """

    def run() -> None:
        error = attempt(work)
        if error and failed:
            failed(error)

    threading.Thread(target=run, daemon=True).start()
