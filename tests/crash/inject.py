"""Breaks one system call of a program, or of anything that it starts, and lists those it could.

    python inject.py LOG NAME=FOLDER... [FAULT KEY] -- COMMAND...

What counts is what changes the disk below one of the folders: to make, write, cut, link, rename,
delete or sync a file. Each such call has a key, the same in every run: who makes it, the call, the
path with the folder's NAME, and the how many-eth of these it is. For each, a line of JSON goes to
LOG. The one whose key is KEY is given a FAULT:

    KILL      the process is killed, and the call not made
    EIO, ENOSPC, EINTR, EINVAL...   the call is not made, and fails so
    SHORT     half of the bytes are written (where one is, none: ENOSPC)
    FULL      SHORT, and from then on nothing that takes room has any until there is a file LOG.room

Who calls this becomes COMMAND: its pid, its standard files and its exit status are those that the
caller sees. The tracer is a process beside it. LOG begins with its pid, has the end of COMMAND, and
ends with {"over": true} when all that it has started has ended. If the tracer is killed, so is all.

strace can do less: it counts the calls of each process by itself, cuts no write short, and names no
call by its path. A library that is preloaded sees neither what a static program does nor what libc
calls inside itself (bash's printf), and its variable is dropped by an agent and by a runner. So
this is a tracer of its own: the kernel stops a process only at a call that counts (seccomp(2),
ptrace(2)); in between it runs at full speed. Linux on x86-64 only.
"""

from __future__ import annotations

import collections
import ctypes
import errno
import json
import os
import re
import signal
import struct
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.ptrace.restype = ctypes.c_long
_LIBC.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]

_CONT, _GETREGS, _SETREGS, _SEIZE, _LISTEN, _GETEVENTMSG = 7, 12, 13, 0x4206, 0x4208, 0x4201
_FORK, _VFORK, _CLONE, _EXEC, _SECCOMP, _STOP = 1, 2, 3, 4, 7, 128
_OPTIONS = 0x02 | 0x04 | 0x08 | 0x10 | 0x80 | 0x100000
"""TRACEFORK, TRACEVFORK, TRACECLONE, TRACEEXEC, TRACESECCOMP, EXITKILL."""
_WALL = 0x40000000
_STOPS = (signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)
_AUDIT_ARCH_X86_64 = 0xC000003E
_AT_FDCWD = -100

_REGISTERS = (
    "r15 r14 r13 r12 rbp rbx r11 r10 r9 r8 rax rcx rdx rsi rdi orig_rax rip cs eflags rsp ss"
    " fs_base gs_base ds es fs gs"
).split()
"""struct user_regs_struct in sys/user.h."""


class _Regs(ctypes.Structure):
    _fields_ = [(name, ctypes.c_ulong) for name in _REGISTERS]


# Where the path is, as (descriptor or None, register of the path), or the descriptor alone.
_BY_PATH: dict[int, tuple[str, tuple[tuple[str | None, str], ...]]] = {
    2: ("open", ((None, "rdi"),)),
    85: ("creat", ((None, "rdi"),)),
    257: ("open", (("rdi", "rsi"),)),
    76: ("truncate", ((None, "rdi"),)),
    82: ("rename", ((None, "rdi"), (None, "rsi"))),
    264: ("rename", (("rdi", "rsi"), ("rdx", "r10"))),
    316: ("rename", (("rdi", "rsi"), ("rdx", "r10"))),
    83: ("mkdir", ((None, "rdi"),)),
    258: ("mkdir", (("rdi", "rsi"),)),
    84: ("rmdir", ((None, "rdi"),)),
    86: ("link", ((None, "rdi"), (None, "rsi"))),
    265: ("link", (("rdi", "rsi"), ("rdx", "r10"))),
    87: ("unlink", ((None, "rdi"),)),
    263: ("unlink", (("rdi", "rsi"),)),
    88: ("symlink", ((None, "rsi"),)),
    266: ("symlink", (("rsi", "rdx"),)),
    90: ("chmod", ((None, "rdi"),)),
    268: ("chmod", (("rdi", "rsi"),)),
    133: ("mknod", ((None, "rdi"),)),
    259: ("mknod", (("rdi", "rsi"),)),
}
_BY_FD = {
    1: "write",
    18: "pwrite",
    20: "writev",
    40: "sendfile",
    74: "fsync",
    75: "fsync",
    77: "truncate",
    91: "chmod",
    285: "fallocate",
    326: "copy_file_range",
}
_FD_OF = {326: "rdx"}
"""Where the descriptor is that is written to, if not in the first register."""
_OPENS = {2: 1, 257: 2}
"""Which argument of open and openat has the flags; they count if they make or empty a file."""
_CHANGING = os.O_CREAT | os.O_TRUNC
_TAKE_ROOM = (
    *("creat", "open", "write", "pwrite", "writev", "mkdir", "link", "symlink", "mknod"),
    *("sendfile", "fallocate", "copy_file_range"),
)
_WRITES = ("write", "pwrite")


# --- which calls stop ---


def _filter() -> bytes:
    """Return the program for the kernel, struct sock_filter[], that picks the calls that count."""
    allow, trace = 0x7FFF0000, 0x7FF00000
    program: list[tuple[int, int | str, int | str, int]] = []
    # (code, where to go if it is so, else, value); "n" is the next one.
    program += [(0x20, "n", "n", 4), (0x15, "n", "allow", _AUDIT_ARCH_X86_64), (0x20, "n", "n", 0)]
    for number in (*_BY_PATH, *_BY_FD):
        if number not in _OPENS:
            program.append((0x15, "trace", "n", number))
    for number, at in _OPENS.items():
        # The rest of the chain has the number no more once the flags are loaded.
        program += [(0x15, "n", 3, number), (0x20, "n", "n", 16 + 8 * at)]
        program += [(0x45, "trace", "allow", _CHANGING), (0x06, "n", "n", allow)]
    places = {"allow": len(program), "trace": len(program) + 1}
    program += [(0x06, "n", "n", allow), (0x06, "n", "n", trace)]

    def jump(at: int, where: int | str) -> int:
        if where == "n":
            return 0
        return where if isinstance(where, int) else places[where] - at - 1

    return b"".join(
        struct.pack("HBBI", code, jump(at, yes), jump(at, no), value)
        for at, (code, yes, no, value) in enumerate(program)
    )


def _become(words: list[str], gate: int) -> None:
    """Wait until we are traced, have the kernel stop us, and become the command."""
    if os.read(gate, 1) != b".":
        raise OSError(errno.EPERM, "cannot be traced")
    os.close(gate)
    text = ctypes.create_string_buffer(_filter())
    program = struct.pack("HxxxxxxP", (len(text) - 1) // 8, ctypes.addressof(text))
    held = ctypes.create_string_buffer(program)
    if os.geteuid() != 0:
        _LIBC.prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
    if _LIBC.prctl(22, 2, held, 0, 0):  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER
        raise OSError(ctypes.get_errno(), "seccomp")
    os.execvp(words[0], words)


# --- who, what and where ---

_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f-]{27}")
_MARKED = re.compile(r"(?<=lib/)[0-9a-f]{16}")
_NUMBERS = re.compile(r"\d{3,}")


def normal(path: str, folders: dict[str, str]) -> str:
    """Return a path as it is in every run, "" if it is below none of the folders."""
    for name, folder in folders.items():
        if path == folder or path.startswith(folder + "/"):
            path = name + path[len(folder) :]
            break
    else:
        return ""
    path = _MARKED.sub("HASH", _UUID.sub("UUID", path))
    return _NUMBERS.sub("#", path)


def role(words: list[str], before: str) -> str:
    """Return what a process is that has become a command; before is what it was."""
    names = [os.path.basename(word) for word in words]
    for script in ("runner.sh", "items.sh", "serve.sh", "bare.sh"):
        if script in names[:4]:
            return " ".join([script[:-3], *names[names.index(script) + 1 :][:1]])
    if "jobctl.agent" in words:
        return "agent"
    if "jobctl" in names[:3]:
        verb = [word for word in words[names.index("jobctl") + 1 :] if word[:1] != "-"]
        return " ".join(["jobctl", *verb[: 2 if verb[:1] == ["session"] else 1]])
    return f"{before.partition('>')[0]}>{names[0] if names else '?'}"


class _Process:
    """A thread that is traced."""

    def __init__(self, role: str) -> None:
        self.role = role


class Tracer:
    """Follows a command and all that it starts."""

    def __init__(self, log: str, folders: dict[str, str], fault: str, key: str) -> None:
        self._log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._room = f"{log}.room"
        self._folders = folders
        self._fault, self._key = fault, key
        self._full = False
        self._seen = collections.Counter[str]()
        self._known: dict[int, _Process] = {}

    def run(self, first: int, words: list[str], opened: int) -> None:
        """Follow a process that waits for us to become a command, and all that it starts.

        :param opened: the pipe that it waits for.
        """
        self._note(tracer=os.getpid())
        self._ptrace(_SEIZE, first, 0, _OPTIONS)
        self._known[first] = _Process(role(words, ""))
        os.write(opened, b".")
        os.close(opened)
        while True:
            try:
                pid, status = os.waitpid(-1, _WALL)
            except ChildProcessError:
                self._note(over=True)
                return
            if os.WIFSTOPPED(status):
                self._stopped(pid, os.WSTOPSIG(status), status >> 16)
                continue
            self._known.pop(pid, None)
            if pid == first:
                self._note(ended=os.waitstatus_to_exitcode(status))

    def _note(self, **what: Any) -> None:
        os.write(self._log, json.dumps(what).encode() + b"\n")

    def fail(self, error: BaseException) -> None:
        """Write down that the tracer has a fault of its own."""
        self._note(fault=repr(error))

    def _ptrace(self, request: int, pid: int, address: int, data: Any) -> None:
        if _LIBC.ptrace(request, pid, address, data) == -1:
            number = ctypes.get_errno()
            if number != errno.ESRCH:  # it was killed meanwhile
                raise OSError(number, f"ptrace {request:#x}: {os.strerror(number)}")

    def _stopped(self, pid: int, number: int, event: int) -> None:
        if (process := self._known.get(pid)) is None:
            process = self._known[pid] = self._born(pid)
        if event == _STOP and number in _STOPS:
            self._ptrace(_LISTEN, pid, 0, 0)
            return
        passed = 0 if event else number
        if event in (_FORK, _VFORK, _CLONE):
            message = ctypes.c_ulong()
            self._ptrace(_GETEVENTMSG, pid, 0, ctypes.addressof(message))
            self._known.setdefault(message.value, _Process(process.role))
        elif event == _EXEC:
            with suppress(OSError), open(f"/proc/{pid}/cmdline", "rb") as file:
                words = os.fsdecode(file.read()).split("\0")[:-1]
                self._known[pid] = _Process(role(words, process.role))
        elif event == _SECCOMP:
            with suppress(ProcessLookupError, FileNotFoundError):
                self._called(pid, process)
        self._ptrace(_CONT, pid, 0, passed)

    def _born(self, pid: int) -> _Process:
        """Return a process of which we hear before we hear that it was begun."""
        with suppress(OSError, ValueError), open(f"/proc/{pid}/status") as status:
            lines = dict(line.split(":", 1) for line in status)
            thread = int(lines["Tgid"]) != pid
            parent = int(lines["Tgid" if thread else "PPid"])
            return _Process(self._known[parent].role if parent in self._known else "?")
        return _Process("?")

    # --- one call ---

    def _called(self, pid: int, process: _Process) -> None:
        regs = _Regs()
        self._ptrace(_GETREGS, pid, 0, ctypes.addressof(regs))
        call, paths = self._what(pid, regs)
        where = [path for path in (normal(path, self._folders) for path in paths) if path]
        if not where:
            return
        key = f"{process.role}: {call} {' '.join(where)}"
        self._seen[key] += 1
        key += f" #{self._seen[key]}"
        did = ""
        if key == self._key:
            did = self._strike(pid, regs, call, self._fault)
        elif self._lacks_room(call) and not self._in_place(pid, regs, call):
            did = self._fail(pid, regs, errno.ENOSPC)
        self._note(key=key, pid=pid, **({"did": did} if did else {}))

    def _lacks_room(self, call: str) -> bool:
        return self._full and call in _TAKE_ROOM and not os.path.exists(self._room)

    def _strike(self, pid: int, regs: _Regs, call: str, fault: str) -> str:
        if fault == "KILL":
            # The kernel makes no call for a process that is to die.
            with suppress(OSError), open(f"/proc/{pid}/status") as status:
                leader = next(int(line.split()[1]) for line in status if line[:5] == "Tgid:")
                os.kill(leader, signal.SIGKILL)
            return fault
        if fault in ("SHORT", "FULL"):
            self._full = fault == "FULL"
            if call in _WRITES and regs.rdx > 1:
                regs.rdx //= 2
                self._ptrace(_SETREGS, pid, 0, ctypes.addressof(regs))
                return f"{fault} {regs.rdx}"
            fault = "ENOSPC"
        return self._fail(pid, regs, getattr(errno, fault))

    def _fail(self, pid: int, regs: _Regs, number: int) -> str:
        regs.orig_rax = ctypes.c_ulong(-1).value
        regs.rax = ctypes.c_ulong(-number).value
        self._ptrace(_SETREGS, pid, 0, ctypes.addressof(regs))
        return errno.errorcode[number]

    def _in_place(self, pid: int, regs: _Regs, call: str) -> bool:
        """Whether a call needs no room on a full disk: it writes over what there is."""
        if call == "open":
            (path,) = list(self._what(pid, regs)[1])[:1] or ("",)
            return os.path.lexists(path)
        if call == "pwrite":
            return bool(regs.r10 + regs.rdx <= os.stat(f"/proc/{pid}/fd/{regs.rdi}").st_size)
        return False

    def _what(self, pid: int, regs: _Regs) -> tuple[str, list[str]]:
        number = regs.orig_rax
        if number in _BY_FD:
            fd = getattr(regs, _FD_OF.get(number, "rdi"))
            return _BY_FD[number], [self._open_file(pid, fd & 0xFFFFFFFF)]
        call, places = _BY_PATH[number]
        return call, list(self._paths(pid, regs, places))

    @staticmethod
    def _open_file(pid: int, fd: int) -> str:
        path = os.readlink(f"/proc/{pid}/fd/{fd}")
        return path.removesuffix(" (deleted)") if path[:1] == "/" else ""

    def _paths(
        self, pid: int, regs: _Regs, places: tuple[tuple[str | None, str], ...]
    ) -> Iterator[str]:
        for folder, place in places:
            path = _text_at(pid, getattr(regs, place))
            if path[:1] != "/":
                fd = _AT_FDCWD if folder is None else _signed(getattr(regs, folder))
                link = "cwd" if fd == _AT_FDCWD else f"fd/{fd}"
                path = f"{os.readlink(f'/proc/{pid}/{link}')}/{path}"
            yield os.path.normpath(path)


def _signed(value: int) -> int:
    return ctypes.c_int(value & 0xFFFFFFFF).value


def _text_at(pid: int, address: int) -> str:
    """Return the text at an address of a process, to its NUL."""
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        text = b""
        while b"\0" not in text and len(text) < 4096:
            # To the end of a page, as the next one may not be there.
            here = address + len(text)
            memory.seek(here)
            piece = memory.read(min(256, 4096 - here % 4096))
            if not piece:
                break
            text += piece
    return os.fsdecode(text.partition(b"\0")[0])


def main() -> int:
    """Do what the words say."""
    at = sys.argv.index("--")
    log, *rest = sys.argv[1:at]
    folders = dict(word.split("=", 1) for word in rest if re.match(r"[A-Z]+=/", word))
    fault, key = [word for word in rest if not re.match(r"[A-Z]+=/", word)] or ("", "")
    # The longest first: one may be in another one.
    folders = dict(sorted(folders.items(), key=lambda pair: -len(pair[1])))
    words, log, caller = sys.argv[at + 1 :], os.path.abspath(log), os.getpid()
    gate, opened = os.pipe()
    if helper := os.fork():
        os.close(opened)
        _LIBC.prctl(0x59616D61, ctypes.c_ulong(-1), 0, 0, 0)  # PR_SET_PTRACER, PR_SET_PTRACER_ANY
        os.waitpid(helper, 0)
        _become(words, gate)
    # Nobody's child, so that the command has none that it did not start; and without its files.
    os.setsid()
    if os.fork():
        os._exit(0)
    null = os.open(os.devnull, os.O_RDWR)
    for number in range(3):
        os.dup2(null, number)
    os.closerange(3, opened)
    os.closerange(opened + 1, 1024)
    tracer = Tracer(log, folders, fault, key)
    try:
        tracer.run(caller, words, opened)
    except BaseException as error:
        tracer.fail(error)
        raise
    return 0


if __name__ == "__main__":
    sys.exit(main())
