"""Waiting for descriptors."""

from __future__ import annotations

import subprocess
import sys

from conftest import PATIENCE

LATE = """
import ctypes, functools, select, signal, types
from jobctl import descriptors

signal.signal(signal.SIGINT, signal.default_int_handler)
descriptors.heed_signals()
real = select.poll()
send = ctypes.PyDLL(None)["raise"]
send.restype = None
# One call in C: it sends the signal, then polls without a limit. Python has no step between.
late = functools.partial(next, map(real.poll, iter(functools.partial(send, signal.SIGINT), 0)))
try:
    descriptors.wait(types.SimpleNamespace(register=real.register, poll=late))
except KeyboardInterrupt:
    print("interrupted")
"""


def test_a_signal_just_before_the_wait() -> None:
    words = [sys.executable, "-c", LATE]
    done = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE)
    assert (done.stdout, done.stderr) == ("interrupted\n", "")
