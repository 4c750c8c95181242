"""A folder is replaced whole, or stays as it was."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from kernels.locks import BusyError
from kernels.whole_folder import whole_folder
from tests.support import ROOT


def filled(folder: Path, text: str) -> Path:
    """A folder with one file."""
    folder.mkdir(parents=True)
    (folder / "file").write_text(text)
    return folder


def test_the_folder_appears_at_the_end_alone(tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    with whole_folder(out) as made:
        (made / "file").write_text("text")
        assert not out.exists()
    assert [path.relative_to(tmp_path).as_posix() for path in sorted(tmp_path.rglob("*"))] == [
        "new",
        "new/out",
        "new/out/file",
    ]


def test_an_earlier_folder_is_replaced_with_all_its_files(tmp_path: Path) -> None:
    out = filled(tmp_path / "out", "earlier")
    with whole_folder(out) as made:
        (made / "other").write_text("later")
        assert (out / "file").read_text() == "earlier"
    assert os.listdir(out) == ["other"] and os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("has_earlier", [True, False])
def test_a_block_that_fails_leaves_what_was_there(tmp_path: Path, has_earlier: bool) -> None:
    out = filled(tmp_path / "out", "earlier") if has_earlier else tmp_path / "out"
    with pytest.raises(ValueError, match="broken"), whole_folder(out) as made:
        (made / "file").write_text("half")
        raise ValueError("broken")
    assert os.listdir(tmp_path) == (["out"] if has_earlier else [])
    assert not has_earlier or (out / "file").read_text() == "earlier"


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    out = filled(tmp_path / "out", "earlier")
    program = "\n".join(
        [
            "import os, signal, sys",
            "from pathlib import Path",
            "from kernels.whole_folder import whole_folder",
            "with whole_folder(Path(sys.argv[1])) as made:",
            "    (made / 'half').touch()",
            "    os.kill(os.getpid(), signal.SIGKILL)",
        ]
    )
    killed = subprocess.run([sys.executable, "-c", program, str(out)], cwd=ROOT, check=False)
    assert killed.returncode == -signal.SIGKILL and len(os.listdir(tmp_path)) == 2
    with whole_folder(out) as made:
        assert not os.listdir(made) and (out / "file").read_text() == "earlier"
    assert os.listdir(tmp_path) == ["out"] and not os.listdir(out)


def test_a_folder_that_a_kill_took_away_is_put_back(tmp_path: Path) -> None:
    filled(tmp_path / ".out.part" / "replaced", "earlier")
    with pytest.raises(ValueError, match="broken"), whole_folder(tmp_path / "out"):
        raise ValueError("broken")
    assert (tmp_path / "out" / "file").read_text() == "earlier" and os.listdir(tmp_path) == ["out"]


def test_two_at_once_are_refused(tmp_path: Path) -> None:
    with whole_folder(tmp_path / "out") as made:
        (made / "file").touch()
        with pytest.raises(BusyError, match="is in use by process"), whole_folder(tmp_path / "out"):
            pass
    assert os.listdir(tmp_path / "out") == ["file"]
