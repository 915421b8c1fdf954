"""What an installation puts where."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.long
def test_the_wheel_has_all_that_belongs_to_it(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(tmp_path)]
    source = tmp_path / "source"
    # What git knows or would add.
    listing = subprocess.run(
        ["git", "ls-files", "-zco", "--exclude-standard"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    ).stdout
    for name in filter(None, listing.split("\0")):
        if not (ROOT / name).is_file():  # deleted, and git has not been told
            continue
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes((ROOT / name).read_bytes())
    subprocess.run([*words, str(source)], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    shared = {name.partition("/share/")[2] for name in names if "/share/" in name}
    assert shared == {
        *(f"man/man1/{path.name}" for path in (ROOT / "man").glob("*.1")),
        "bash-completion/completions/jobctl",
        "zsh/site-functions/_jobctl",
        "fish/vendor_completions.d/jobctl.fish",
    }
    code = {
        str(path.relative_to(ROOT))
        for kind in ("*.py", "*.sh")
        for path in (ROOT / "jobctl").rglob(kind)
    }
    assert "jobctl/runner.sh" in code
    assert code == {name for name in names if name.startswith("jobctl/")}
