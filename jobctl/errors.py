"""What can go wrong, each with the exit status that the command line ends with.

JobctlError 125
├── BadUsage 2          words that make no sense
├── NotFound 3          no such job
├── Refused 4           the state does not allow it
├── Unreachable 5       it runs where we cannot reach it
└── CannotWrite 125     our own output has nowhere to go
    └── ReaderLeft      because whoever read it has gone
"""

from __future__ import annotations


class JobctlError(Exception):
    """jobctl itself failed. The message is one line that names the value and the way out."""

    status = 125


class BadUsage(JobctlError):
    """The words given make no sense."""

    status = 2


class NotFound(JobctlError):
    """There is no such job."""

    status = 3


class Refused(JobctlError):
    """The state of a job, or of the state directory, does not allow it."""

    status = 4


class Unreachable(JobctlError):
    """The job runs on a machine that cannot be reached from here."""

    status = 5


class CannotWrite(JobctlError):
    """Standard output or a file named by the user does not take our output."""


class ReaderLeft(CannotWrite):
    """Whoever read our output has gone. Nothing is amiss, nobody is to be told."""
