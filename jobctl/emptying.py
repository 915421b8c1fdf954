"""Finds where a command opens its own output by name, which empties the file that keeps it.

On Linux /dev/stdout leads to that file. Nobody can tell afterwards what it held that no receiver
had seen: so whoever starts such a command is warned. Only look-alikes of shell text are looked
for; what is in quotes, or in a comment, counts as well.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

from jobctl.quoting import SHELLS

_NAME = r"/dev/std(?:out|err)|/dev/fd/[12]|/proc/(?:self|thread-self|\$\$)/fd/[12]"
_OUT = ("out", "/1")
"""How the names of standard output end."""
_REDIRECT = re.compile(rf"(?<![<>\\])(?:\b[0-9]|&)?>[|&]?[ \t]*({_NAME})(?![\w./-])")
_PIPED = re.compile(r"(?:[^;&|\n]|[<>]&)*\|(?!\|)")
"""What follows a command whose standard output is a pipe."""
_ENDING = rf"({_NAME})(?= |$)"
_OPENED = {
    "tee": f" {_ENDING}",
    "dd": f" of={_ENDING}",
    "cp": rf" ({_NAME})$",
    "sort": rf" (?:-\w*o|--output[= ]) ?{_ENDING}",
    "curl": rf" (?:-\w*o|--output[= ]) ?{_ENDING}",
    "wget": rf" (?:-\w*O|--output-document[= ]) ?{_ENDING}",
}
"""How programs are told a file to write anew, by their names."""
_KEPT = {"tee": r" (?:--a|-\w*a)", "dd": r" conv=\S*notrunc| oflag=\S*append"}
"""How they are told to leave in it what there is."""
_PROGRAM = re.compile(rf"(?:^|(?<=[\s;&|(`/]))({'|'.join(_OPENED)})((?:[ \t]+[^\s;&|()<>`]+)+)")


def in_text(text: str) -> str:
    """Return the first piece of shell text that empties the output of the job, "" if none does."""
    text = text.replace("\\\n", " ")
    for match in _REDIRECT.finditer(text):
        if not _goes_into_a_pipe(match[1], text, match.end()):
            return match[0]
    for match in _PROGRAM.finditer(text):
        name = _opened(match[1], re.sub("[\"']", "", match[2]).split())
        if name and not _goes_into_a_pipe(name, text, match.end()):
            return match[0]
    return ""


def in_words(words: Sequence[str]) -> str:
    """Return the same of a command and its arguments, which no shell has split."""
    program = words[0].rpartition("/")[2] if words else ""
    if _opened(program, words[1:]):
        return shlex.join(words)
    texts = words[1:] if program in SHELLS else ()
    return next((found for text in texts if (found := in_text(text))), "")


def advice(found: str) -> str:
    """Return what to tell whoever starts a command with such a piece in it."""
    out = any(name.endswith(_OUT) for name in re.findall(_NAME, found)[:1])
    number, name = ("1", "/dev/stdout") if out else ("2", "/dev/stderr")
    return (
        f"'{found}' empties what the job has written so far;"
        f" write >&{number} or >>{name} instead (tee -a)"
    )


def _goes_into_a_pipe(name: str, text: str, end: int) -> bool:
    return name.endswith(_OUT) and _PIPED.match(text, end) is not None


def _opened(program: str, arguments: Sequence[str]) -> str:
    """Return which output of the job a program empties with these arguments, "" if none."""
    line = "".join(f" {argument}" for argument in arguments)
    if program not in _OPENED or re.search(_KEPT.get(program, r"\n\b"), line):
        return ""
    match = re.search(_OPENED[program], line)
    return match[1] if match else ""
