"""Unpacks a large archive file by file: resumable, every file written atomically."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from kernels.disk import free_bytes

CHUNK_BYTES = 1 << 20
# Upper bound of a file's size on disk beyond its bytes.
BLOCK_BYTES = 4096


class UnpackError(Exception):
    """Why an archive cannot be unpacked, and what to do, in one sentence."""


def unpack(archive: Path, out: Path) -> int:
    """Unpack an archive into `out`; returns the number of new files.  Raises UnpackError.

    A file of the same size is kept, a table only where its checksum agrees, too.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            entries = [entry for entry in opened.infolist() if not entry.is_dir()]
            check_names(archive, entries)
            missing = [entry for entry in tqdm(entries, "compare", unit="file") if not is_there(out, entry)]
            check_space(out, sum(entry.file_size + BLOCK_BYTES for entry in missing), "unpack")
            _extract(opened, missing, out)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        reason = str(error) or type(error).__name__
        raise UnpackError(f"{archive} is damaged ({reason}): delete it") from error
    except OSError as error:
        raise UnpackError(disk_message(error, out)) from error
    return len(missing)


def check_names(archive: Path, entries: Sequence[zipfile.ZipInfo]) -> None:
    """Raises UnpackError where an archive would write elsewhere than below its folder, or make links."""
    for entry in entries:
        path = PurePosixPath(entry.filename)
        leads_out = path.is_absolute() or ".." in path.parts or "\\" in entry.filename or ":" in entry.filename
        if leads_out or stat.S_ISLNK(entry.external_attr >> 16):
            raise UnpackError(f"{archive} holds '{entry.filename}', which leads out of its folder: delete this file")


def check_space(folder: Path, needed_bytes: int, purpose: str) -> None:
    """Raises UnpackError where the disk of a folder, which may not exist yet, has less room than needed."""
    free = free_bytes(folder)
    if free < needed_bytes:
        raise UnpackError(
            f"{folder} has {free / 1e9:.1f} GB free and {needed_bytes / 1e9:.1f} GB are needed to {purpose}: "
            "free some, or choose a folder on another disk"
        )


def is_there(out: Path, entry: zipfile.ZipInfo) -> bool:
    """Whether a file was unpacked before."""
    path = out / entry.filename
    try:
        if path.stat().st_size != entry.file_size:
            return False
    except (FileNotFoundError, NotADirectoryError):
        return False
    # A table of another data set may well have the same size; an image is known by its study, series and size.
    return path.suffix != ".csv" or zlib.crc32(path.read_bytes()) == entry.CRC


def disk_message(error: OSError, folder: Path) -> str:
    """An error of the file system, as a sentence."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk of {folder} is full: free some space"
    return f"{folder} cannot be written ({error}): put that right"


def _extract(opened: zipfile.ZipFile, entries: Sequence[zipfile.ZipInfo], out: Path) -> None:
    total = sum(entry.file_size for entry in entries)
    with tqdm(total=total, desc="unpack", unit="B", unit_scale=True) as bar:
        for entry in entries:
            _write(opened, entry, out / entry.filename)
            bar.update(entry.file_size)


def _write(opened: zipfile.ZipFile, entry: zipfile.ZipInfo, path: Path) -> None:
    """One file, under a temporary name until it is complete and its checksum was verified."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        with opened.open(entry) as source, partial.open("wb") as target:
            shutil.copyfileobj(source, target, CHUNK_BYTES)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
