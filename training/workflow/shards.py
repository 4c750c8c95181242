"""Many studies in shards: one kernel a shard, on this machine or many, and one checked submission from all.

    python -m training.workflow.shards split --data DIR --out OUT --shards N
    python -m training.workflow.shards merge --out OUT

DIR is a folder in the competition's layout, or any folder of STUDY/SERIES/*.dcm.  Each shard is a small competition of
its own below OUT/shards; `make predict` runs the kernels in between by the workflow engine.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pandas as pd

from kernels.build_notebook import PACKAGE, read_modules, sources_digest
from kernels.lumbar.labels import ROWS, SEVERITIES
from kernels.lumbar.networks.devices import STUDIES_ON_GPU
from kernels.lumbar.problems import outcome
from kernels.lumbar.run.submission import SubmissionError, check, replace_json, replace_text
from training.data.cache.cache_sources import LISTING_THREADS, listing_of
from training.data.series_kinds import COLUMNS, series_table
from training.digests import digest
from training.runs import read_object

IMAGES, SERIES, SAMPLE = "test_images", "test_series_descriptions.csv", "sample_submission.csv"
SUBMISSION, REPORT, LANDMARKS = "submission.csv", "run_report.json", "landmarks.csv"
# Of what a shard's answers are made, beside its tables.
MADE_OF = "made_of.json"


class ShardError(Exception):
    """Why studies cannot be split or answers cannot be merged, in one sentence."""


def split(data: Path, out: Path, shards: int) -> list[Path]:
    """Write OUT/sample_submission.csv and a competition folder for each shard; returns these.

    Shards hold whole batches of the largest size, so that a study has the same companions as in one run, and the same
    answer to the last bit.  A shard that is there already with the very same studies is left as it is; its answers are
    forgotten where its tables, image files or the kernel changed since.
    Raises ShardError.
    """
    images, table, sample = _tables(data)
    studies = list(dict.fromkeys(row_id.partition("_")[0] for row_id in sample["row_id"]))
    batches = -(-len(studies) // STUDIES_ON_GPU)
    if not 1 <= shards <= batches:
        raise ShardError(f"{len(studies)} studies make 1 to {batches} shards, not {shards}: SHARDS= is how many")
    out.mkdir(parents=True, exist_ok=True)
    replace_text(out / SAMPLE, sample.to_csv(index=False))
    starts = [number * batches // shards * STUDIES_ON_GPU for number in range(shards + 1)]
    folders = []
    kernel = sources_digest(read_modules(PACKAGE))
    for number in range(shards):
        its = set(studies[starts[number] : starts[number + 1]])
        folder = shard_folder(out, number)
        if (folder / "competition").is_dir() and not _holds(folder / "competition", its, images):
            shutil.rmtree(folder)  # of another split
        _write_competition(folder / "competition", images, table[table["study_id"].isin(its)], sample, its)
        _forget_old_answers(folder, kernel)
        folders.append(folder)
    for other in sorted((out / "shards").iterdir()):
        if other not in folders:
            shutil.rmtree(other)
    return folders


def shard_folder(out: Path, number: int) -> Path:
    """Where a shard's competition and answers lie."""
    return out / "shards" / f"{number:04}"


def _tables(data: Path) -> tuple[Path, pd.DataFrame, pd.DataFrame]:
    """The folder of images, the series table, and the sample submission, made where there is none."""
    images = data / IMAGES if (data / IMAGES).is_dir() else data
    if not images.is_dir():
        raise ShardError(f"{data} is not a folder: DATA= is one of studies, or of the competition")
    if (data / SERIES).is_file():
        table = _read(data / SERIES)
    else:
        table, left_out = series_table(images)
        for sentence in left_out:
            print(f"left out: {sentence}", file=sys.stderr)
    if absent := [name for name in COLUMNS if name not in table]:
        raise ShardError(f"{data / SERIES} has no column {absent[0]}")
    if (data / SAMPLE).is_file():
        sample = _read(data / SAMPLE)
    else:
        # Those without a series that can be used keep their priors; where there is none at all, it is no such folder.
        studies = sorted(path.name for path in images.iterdir() if path.is_dir() and not path.name.startswith("."))
        ids = [f"{study}_{row}" for study in studies for row in ROWS] if len(table) else []
        sample = pd.DataFrame({"row_id": ids, **dict.fromkeys(SEVERITIES, 1 / 3)})
    if sample.empty or "row_id" not in sample:
        raise ShardError(f"{data} holds no study: expected STUDY/SERIES/*.dcm, or the competition's tables")
    return images.resolve(), table, sample


def _read(path: Path) -> pd.DataFrame:
    """A table as text.  Raises ShardError."""
    try:
        return pd.read_csv(path, dtype=str)
    except (OSError, ValueError) as error:
        raise ShardError(f"{path} cannot be read: {error}") from error


def _forget_old_answers(folder: Path, kernel: str) -> None:
    """Remove the answers of a shard that were made of other files, or by another kernel."""
    competition = folder / "competition"
    rows = pd.read_csv(competition / SERIES, dtype=str)[list(COLUMNS[:2])].drop_duplicates().itertuples(index=False)
    series = [competition / IMAGES / str(study) / str(name) for study, name in rows]
    with ThreadPoolExecutor(LISTING_THREADS) as pool:
        listed = list(pool.map(listing_of, series))
    tables = [hashlib.sha256((competition / name).read_bytes()).hexdigest() for name in (SERIES, SAMPLE)]
    made_of = {"kernel": kernel, "tables": tables, "images": digest(listed)}
    if read_object(competition / MADE_OF) != made_of:
        if (folder / "out").is_dir():
            shutil.rmtree(folder / "out")
        replace_json(competition / MADE_OF, made_of)


def _holds(competition: Path, studies: set[str], images: Path) -> bool:
    sample, link = competition / SAMPLE, competition / IMAGES
    if not sample.is_file() or link.resolve() != images:
        return False
    return {row_id.partition("_")[0] for row_id in _read(sample)["row_id"]} == studies


def _write_competition(
    folder: Path, images: Path, table: pd.DataFrame, sample: pd.DataFrame, studies: set[str]
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / IMAGES).is_symlink():
        (folder / IMAGES).symlink_to(images, target_is_directory=True)
    its = sample["row_id"].str.partition("_")[0].isin(studies)
    for name, content in ((SERIES, table), (SAMPLE, sample[its])):
        text = content.to_csv(index=False)
        if not (folder / name).is_file() or (folder / name).read_text(encoding="utf-8") != text:
            replace_text(folder / name, text)


def without_series(shards: Sequence[Path]) -> int:
    """How many studies are asked for of which no series stands in the table."""
    count = 0
    for shard in shards:
        asked = {row_id.partition("_")[0] for row_id in _read(shard / "competition" / SAMPLE)["row_id"]}
        count += len(asked - set(_read(shard / "competition" / SERIES)["study_id"]))
    return count


def merge(out: Path) -> dict[str, Any]:
    """One submission, report and table of landmarks from those of all shards, checked; returns the report.

    Raises ShardError where a shard is missing, or has not answered what it was asked.
    """
    shards = sorted((out / "shards").iterdir()) if (out / "shards").is_dir() else []
    ids = list(_read(out / SAMPLE)["row_id"])
    reports, frames, landmarks = [], [], []
    for shard in shards:
        answers = shard / "out"
        report = read_object(answers / REPORT)
        if not report:
            raise ShardError(f"{shard.name} of {len(shards)} shards has no {REPORT}: the same command goes on there")
        reports.append(report)
        frames.append(_read(answers / SUBMISSION))
        landmarks.append(_read(answers / LANDMARKS))
    whole = pd.concat(frames, ignore_index=True)
    if len(whole) != len(ids) or set(whole["row_id"]) != set(ids):
        raise ShardError("the shards' rows are not those of the sample submission, each once: remove OUT and run again")
    whole = whole.set_index("row_id").loc[ids].reset_index()
    try:
        check(whole.astype(dict.fromkeys(SEVERITIES, float)), ids)
    except SubmissionError as error:
        raise ShardError(f"the merged file is no submission: {error}") from error
    made_by = {report["manifest_sha256"] for report in reports}
    if len(made_by) > 1:
        raise ShardError("the shards were answered by different weights: remove OUT and run again")
    # As text, so that the digits are those that the kernels wrote.
    replace_text(out / SUBMISSION, whole.to_csv(index=False, lineterminator="\n"))
    replace_text(out / LANDMARKS, pd.concat(landmarks, ignore_index=True).to_csv(index=False))
    report = _merged(reports) | {"without_series": without_series(shards)}
    replace_json(out / REPORT, report)
    return report


def _merged(reports: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The sums of what the shards' reports say; `shards` keeps the seconds and devices of each."""
    counts: Counter[str] = Counter()
    for report in reports:
        counts.update(report["problem_counts"])
    used = {name: None for report in reports for name in report["members_used"]}
    return {
        "format": reports[0]["format"],
        "manifest": reports[0]["manifest"],
        "manifest_sha256": reports[0]["manifest_sha256"],
        "studies": {key: sum(report["studies"][key] for report in reports) for key in ("asked", "graded")},
        "members_used": list(used),
        "fallbacks": {
            "rows": sum(report["fallbacks"]["rows"] for report in reports),
            "studies": {study: rows for report in reports for study, rows in report["fallbacks"]["studies"].items()},
            "never_graded": sum(report["fallbacks"]["never_graded"] for report in reports),
        },
        "problem_counts": dict(counts),
        "problems": [problem for report in reports for problem in report["problems"]],
        "shards": [{"device": report["device"], "seconds": report["seconds"]["total"]} for report in reports],
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; errors end it with one sentence and code 1."""
    parser = argparse.ArgumentParser(prog="training.workflow.shards", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    begin, end = commands.add_parser("split"), commands.add_parser("merge")
    begin.add_argument("--data", type=Path, required=True)
    begin.add_argument("--shards", type=int, default=os.cpu_count() or 1)
    for command in (begin, end):
        command.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(argv)
    try:
        if options.command == "split":
            folders = split(options.data, options.out, options.shards)
            print(f"{len(folders)} shards in {options.out / 'shards'}")
        else:
            report = merge(options.out)
            print(f"{options.out / SUBMISSION}: {outcome(report)}")
    except (ShardError, OSError, ValueError) as error:
        print(f"shards: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
