"""Downloads the competition's data and unpacks them; the same command resumes after any interruption.

python -m kernels.kaggle.download --out DIR [--keep-zip]
"""

from __future__ import annotations

import argparse
import json
import sys
import zipfile
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from tqdm import tqdm

from kernels.build_notebook import COMPETITION
from kernels.lumbar.run.submission import replace_json

from .access import request_access
from .client import NEXT_PAGE, ClientAnswer, KaggleError, call, json_in, query
from .contents import ARCHIVE_BYTES, LABELLED, UNPACKED_BYTES, count_contents, data_command, differences, is_other_data
from .unpack import UnpackError, check_space, disk_message, unpack

# Counts of a completely unpacked archive, beside the data.
RECORD_FILE = ".unpacked.json"
# The client waits forever for a first byte, so it is restarted after this time; partial files are kept.
ATTEMPT_S = 900.0
POLL_S = 0.5
INTERRUPTED = 130


def is_complete(out: Path, found: dict[str, int]) -> bool:
    """Whether a folder holds the whole archive that was unpacked in it, or the whole competition."""
    return not differences(found) or found == _read(out / RECORD_FILE)


def marker_of(archive: Path) -> Path:
    """The client's marker of a partial download."""
    return archive.with_name(archive.name + ".kaggle-partial")


def is_whole(archive: Path) -> bool:
    """Whether an archive was downloaded completely."""
    return zipfile.is_zipfile(archive) and not marker_of(archive).exists()


def listed_bytes() -> int | None:
    """Size of all files of the competition, where Kaggle lists them on one page.  Raises KaggleError."""
    answer = query("competitions", "files", COMPETITION, "--format", "json", "--page-size", "200")
    try:
        rows = json_in(answer)
        return sum(int(row["size"]) for row in rows) if rows and NEXT_PAGE not in answer.out else None
    except (KaggleError, ValueError, KeyError, TypeError):  # the known sizes will do
        return None


def fetch(archive: Path) -> None:
    """Download the archive, or the rest of it.  Raises KaggleError, UnpackError."""
    request_access().check()
    size, present = listed_bytes(), _size(archive)
    needed = max(0, (size or ARCHIVE_BYTES) - present) + (size or UNPACKED_BYTES)
    check_space(archive.parent, needed, "download and unpack")
    arguments = ("competitions", "download", COMPETITION, "-p", str(archive.parent), "-q")
    with (
        tqdm(desc="download", initial=present, total=None, unit="B", unit_scale=True) as bar,
        ThreadPoolExecutor(1) as pool,
    ):
        while True:
            before = _size(archive)
            problem = watch(pool.submit(call, *arguments, timeout_s=ATTEMPT_S), archive, bar)
            if problem is None:
                return
            if _size(archive) <= before:
                raise problem


def watch(attempt: Future[ClientAnswer], archive: Path, bar: tqdm) -> KaggleError | None:
    """Show progress until the client ends; its failure, if any."""
    while not attempt.done():
        wait([attempt], POLL_S)
        bar.total = _read(marker_of(archive)).get("size") or bar.total
        bar.update(_size(archive) - bar.n)
    try:
        return failure(attempt.result(), archive)
    except KaggleError:
        return KaggleError(f"Kaggle sent nothing for {ATTEMPT_S:.0f} s")


def failure(answer: ClientAnswer, archive: Path) -> KaggleError | None:
    """Why the download failed; None where the client reports success."""
    if answer.code == 0:
        return None
    if "No space left on device" in answer.text:
        return KaggleError(f"the disk of {archive.parent} is full: free some space")
    if answer.connection_failed or "requests.exceptions." in answer.text or "urllib3.exceptions." in answer.text:
        return KaggleError(f"the line to Kaggle broke after {_size(archive) / 1e9:.2f} GB, which are kept")
    return answer.error()


def download(out: Path, keep_zip: bool) -> list[str]:
    """Download and unpack the competition's data; returns lines to print.  Raises KaggleError, UnpackError, OSError."""
    found = count_contents(out)
    if is_complete(out, found):
        return [f"{out} holds all data already: {found[LABELLED]:,} labelled studies", *unlike(found)]
    archive = out / f"{COMPETITION}.zip"
    if is_other_data(found) and not (archive.exists() or (out / RECORD_FILE).exists()):
        raise UnpackError(f"{out} holds another data set ({found[LABELLED]:,} labelled studies): move it elsewhere")
    out.mkdir(parents=True, exist_ok=True)
    if not is_whole(archive):
        fetch(archive)
        if marker_of(archive).exists() and not zipfile.is_zipfile(archive):
            raise KaggleError(f"the client ended after {_size(archive) / 1e9:.2f} GB, which are kept")
    written = unpack(archive, out)
    found = count_contents(out)
    replace_json(out / RECORD_FILE, found)
    marker_of(archive).unlink(missing_ok=True)
    if not keep_zip:
        archive.unlink()
    lines = [f"{out} holds all files of the archive, {written:,} of them new: {found[LABELLED]:,} labelled studies"]
    return lines + unlike(found)


def unlike(found: Mapping[str, int]) -> list[str]:
    """A line for each deviation from the competition's counts."""
    return [f"unlike the competition as it is known: {difference}" for difference in differences(found)]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m kernels.kaggle.download", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the data")
    parser.add_argument("--keep-zip", action="store_true", help="keep the archive after unpacking it")
    options = parser.parse_args(argv)
    again = f"`{data_command(options.out)}`"
    try:
        lines = download(options.out, options.keep_zip)
    except (KaggleError, UnpackError, OSError) as error:
        reason = disk_message(error, options.out) if isinstance(error, OSError) else error
        print(f"download: {reason}; then run {again} again", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"download: stopped; {again} resumes from here", file=sys.stderr)
        return INTERRUPTED
    print(*lines, sep="\n")
    return 0


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _read(path: Path) -> dict[str, Any]:
    """A small JSON object; empty where there is none."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}


if __name__ == "__main__":
    sys.exit(main())
