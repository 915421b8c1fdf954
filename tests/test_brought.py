"""What is brought to a host at the first contact, where it is full, and what it says then."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from far import Far


@pytest.fixture(name="full")
def _full(far: Far) -> Iterator[Path]:
    """Give the file that fills the disk with the host's state directory."""
    far.there.mkdir(parents=True, exist_ok=True)
    for path in far.there.iterdir():
        path.rename(far.there.with_name(f"aside.{path.name}"))
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m,mode=0700", "none", str(far.there)]
    subprocess.run(mount, check=True)
    yield far.there / "fill"
    subprocess.run(["umount", "--lazy", str(far.there)], check=True)
    for path in far.there.parent.glob("aside.*"):
        path.rename(far.there / path.name.removeprefix("aside."))


@pytest.mark.parametrize("room", [0, 40, 80, 100, 120, 160])
def test_a_full_host_is_used_once_there_is_room(far: Far, full: Path, room: int) -> None:
    full.write_bytes(b"x" * 1024 * (1024 - room))
    said = far.refused(125, "session", "run", "web1", "true")
    assert f"cannot write in {far.there}: No space left on device" in said
    full.unlink()
    result = far.run("session", "run", "web1", "--", "jobctl", "get", "-q")
    assert result.stdout == b""
    assert far.out("start", "-w", "-H", "web1", "echo", "hi") == "hi\n"
    assert [path.name for path in (far.there / "lib").iterdir() if "." in path.name] == []


def test_a_script_that_is_short_or_gone_is_brought_again(far: Far) -> None:
    for name, damage in (("serve.sh", b"#"), ("bin/jobctl", b""), ("items.sh", None)):
        far.run("session", "run", "web1", "true")
        for lib in (far.there / "lib").iterdir():
            script = lib / name
            if damage is None:
                script.unlink()
            else:
                script.write_bytes(damage)
        far.kill_agent()
        assert far.out("start", "-w", "-H", "web1", "echo", "hi") == "hi\n"
        shown = far.run("session", "run", "web1", "--", "jobctl", "--version")
        assert shown.stdout
