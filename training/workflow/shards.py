"""Many studies in shards: a small competition folder for each kernel, and one checked submission from all."""

from __future__ import annotations

import shutil
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pandas as pd

from kernels.build_notebook import PACKAGE, read_modules, sources_digest
from kernels.lumbar.labels import ROWS, SEVERITIES, split_row_ids
from kernels.lumbar.networks.devices import STUDIES_ON_GPU
from kernels.lumbar.run.report import replace_report
from kernels.lumbar.run.submission import SubmissionError, check, replace_json, replace_text
from kernels.lumbar.run.tables import read_table
from training.data.cache.cache_sources import LISTING_THREADS, listing_of
from training.data.series_kinds import COLUMNS, series_table
from training.digests import digest, file_digest
from training.runs import read_object

IMAGES, SERIES, SAMPLE = "test_images", "test_series_descriptions.csv", "sample_submission.csv"
SUBMISSION, REPORT, LANDMARKS = "submission.csv", "run_report.json", "landmarks.csv"
# Of what a shard's answers are made, beside its tables.
MADE_OF = "made_of.json"


class ShardError(Exception):
    """Why studies cannot be split or answers cannot be merged, in one sentence."""


def split(data: Path, out: Path, shards: int, weights: str = "") -> list[Path]:
    """Write OUT/sample_submission.csv and a competition folder for each shard; returns these.

    Shards hold whole batches of the largest size, so that a study is batched with the same others as in one run, and
    has the same answer to the last bit.  The answers of a shard are kept if its tables, image files, the kernel and the
    digest of the weights are the same as before.  Raises ShardError.
    """
    images, table, sample = _tables(data)
    studies = list(_studies_of(sample).unique())
    batches = -(-len(studies) // STUDIES_ON_GPU)
    if not 1 <= shards <= batches:
        raise ShardError(f"{len(studies)} studies make 1 to {batches} shards, not {shards}: SHARDS= is how many")
    out.mkdir(parents=True, exist_ok=True)
    replace_text(out / SAMPLE, sample.to_csv(index=False))
    starts = [number * batches // shards * STUDIES_ON_GPU for number in range(shards + 1)]
    folders = []
    made_by = {"kernel": sources_digest(read_modules(PACKAGE)), "weights": weights}
    for number in range(shards):
        its = studies[starts[number] : starts[number + 1]]
        folder, series = shard_folder(out, number), table[table["study_id"].isin(its)]
        _write_competition(folder / "competition", images, series, sample[_studies_of(sample).isin(its)])
        _remove_stale_answers(folder, series, made_by)
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
            sys.stderr.write(f"left out: {sentence}\n")
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
        return pd.DataFrame(read_table(path))
    except (OSError, ValueError) as error:
        raise ShardError(f"{path} cannot be read: {error}") from error


def _studies_of(sample: pd.DataFrame) -> pd.Series[str]:
    """The study of each row."""
    return pd.Series([study for study, _ in split_row_ids(sample["row_id"])], sample.index, dtype=object)


def _remove_stale_answers(folder: Path, series: pd.DataFrame, made_by: Mapping[str, str]) -> None:
    """Remove the answers of a shard that were made of other files, or by another kernel or other weights."""
    competition = folder / "competition"
    rows = series[list(COLUMNS[:2])].drop_duplicates().itertuples(index=False)
    with ThreadPoolExecutor(LISTING_THREADS) as pool:
        listed = list(pool.map(listing_of, [competition / IMAGES / str(study) / str(name) for study, name in rows]))
    tables = [file_digest(competition / name) for name in (SERIES, SAMPLE)]
    made_of = {**made_by, "tables": tables, "images": digest(listed)}
    if read_object(competition / MADE_OF) != made_of:
        if (folder / "out").is_dir():
            shutil.rmtree(folder / "out")
        replace_json(competition / MADE_OF, made_of)


def _write_competition(folder: Path, images: Path, series: pd.DataFrame, sample: pd.DataFrame) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    link = folder / IMAGES
    if link.resolve() != images:
        link.unlink(missing_ok=True)
        link.symlink_to(images, target_is_directory=True)
    for name, content in ((SERIES, series), (SAMPLE, sample)):
        text = content.to_csv(index=False)
        if not (folder / name).is_file() or (folder / name).read_text(encoding="utf-8") != text:
            replace_text(folder / name, text)


def without_series(shards: Sequence[Path]) -> int:
    """Number of studies of the sample submission without a series in the table."""
    folders = [shard / "competition" for shard in shards]
    return sum(len(set(_studies_of(_read(one / SAMPLE))) - set(_read(one / SERIES)["study_id"])) for one in folders)


def merge(out: Path) -> dict[str, Any]:
    """One submission, report and table of landmarks from those of all shards, checked; returns the report.

    Raises ShardError where a shard is missing, or its rows are not those of its sample submission.
    """
    shards = sorted((out / "shards").iterdir()) if (out / "shards").is_dir() else []
    ids = list(_read(out / SAMPLE)["row_id"])
    reports, frames, landmarks = [], [], []
    for shard in shards:
        answers = shard / "out"
        report = read_object(answers / REPORT)
        if not report:
            raise ShardError(f"{shard.name} of {len(shards)} shards has no {REPORT}: the same command resumes there")
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
    replace_report(out / REPORT, report)
    return report


def _domain(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Kind → the studies of all shards, and what is said of the largest shard that has anything to say."""
    merged: dict[str, Any] = {}
    for kind in dict.fromkeys(kind for one in found for kind in one):
        its = [one[kind] for one in found if kind in one]
        said = max(its, key=lambda one: (bool(one["unlike"]), one["studies"]))
        merged[kind] = {**said, "studies": sum(one["studies"] for one in its)}
    return merged


def _merged(reports: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Sums over the shards' reports; `shards` keeps the seconds and devices of each."""
    counts: Counter[str] = Counter()
    for report in reports:
        counts.update(report["problem_counts"])
    used = {name: None for report in reports for name in report["members_used"]}
    guessed = [one["fallbacks"]["guessed"] for one in reports if "guessed" in one["fallbacks"]]
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
            "guessed": {
                "rows": sum(one["rows"] for one in guessed),
                "studies": {study: rows for one in guessed for study, rows in one["studies"].items()},
            },
        },
        "domain": _domain([report.get("domain", {}) for report in reports]),
        "by_study": {study: line for report in reports for study, line in report.get("by_study", {}).items()},
        "problem_counts": dict(counts),
        "problems": [problem for report in reports for problem in report["problems"]],
        "shards": [{"device": report["device"], "seconds": report["seconds"]["total"]} for report in reports],
    }
