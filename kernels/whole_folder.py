"""Folders that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kernels.locks import BusyError, alone


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """An empty folder that replaces `out` at the end of the block; if the block fails, `out` stays as it was.

    It is made in `.<name>.part` beside `out`, or beside what a link `out` points to.  What a killed process left there
    is removed; an `out` that it was just replacing is put back.  Raises BusyError where another process makes the same
    folder, and OSError.
    """
    out = out.resolve()
    if out in (here := Path.cwd(), *here.parents):
        raise OSError(f"{out} is the current folder or holds it, and cannot be replaced: name another one")
    if out.exists() and not out.is_dir():
        raise NotADirectoryError(f"{out} is a file: name a folder")
    workshop = out.with_name(f".{out.name}.part")
    made, replaced = workshop / "made", workshop / "replaced"
    with alone(workshop) as lock:
        if os.fstat(lock).st_nlink == 0:  # its last holder has removed it, and others may hold a new one
            raise BusyError(f"another process has just made {out}: look at it, or try again")
        try:
            _put_back(replaced, out)
            for leftover in (made, replaced):
                shutil.rmtree(leftover, ignore_errors=True)
            made.mkdir()
            yield made
            if out.exists():
                out.rename(replaced)
            made.rename(out)
        finally:
            _put_back(replaced, out)
            shutil.rmtree(workshop, ignore_errors=True)


def _put_back(replaced: Path, out: Path) -> None:
    if replaced.exists() and not out.exists():
        replaced.rename(out)
