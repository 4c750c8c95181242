"""A folder is replaced whole, or stays as it was."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kernels.locks import LOCK, BusyError, alone
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


def test_what_a_link_points_to_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(filled(tmp_path / "disk" / "big", "earlier"))
    with whole_folder(tmp_path / "link") as made:
        (made / "other").touch()
    assert (tmp_path / "link").is_symlink() and os.listdir(tmp_path / "disk" / "big") == ["other"]


@pytest.mark.parametrize("name", [".", "..", "/"])
def test_the_current_folder_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(filled(tmp_path / "here", "earlier"))
    with pytest.raises(OSError, match="is the current folder or holds it"), whole_folder(Path(name)):
        pass
    assert os.listdir() == ["file"] and os.listdir(tmp_path) == ["here"]


def test_a_file_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    with pytest.raises(NotADirectoryError, match="is a file: name a folder"), whole_folder(tmp_path / "out"):
        pass
    assert os.listdir(tmp_path) == ["out"]


def test_a_lock_that_its_holder_removed_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def removed(folder: Path) -> Iterator[int]:
        with alone(folder) as lock:
            (folder / LOCK).unlink()
            yield lock

    monkeypatch.setattr("kernels.whole_folder.alone", removed)
    with pytest.raises(BusyError, match="has just made"), whole_folder(tmp_path / "out"):
        pass


def test_two_at_once_are_refused(tmp_path: Path) -> None:
    with whole_folder(tmp_path / "out") as made:
        (made / "file").touch()
        with pytest.raises(BusyError, match="is in use by process"), whole_folder(tmp_path / "out"):
            pass
    assert os.listdir(tmp_path / "out") == ["file"]
