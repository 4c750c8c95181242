"""Checks a data folder before any training: its tables, the headers of all files, and the label points.

    python -m training.check_data --data DIR [--out DIR] [--jobs N] [--anyway]

No pixel is decoded.  OUT gets check_data.csv (a line a finding), series.csv (a line a series) and pictures of label
points that contradict each other.  Exit code 0: at most warnings; 1: training would stop or learn what is wrong;
2: wrong usage.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from tqdm import tqdm

from kernels.commands import ends_with_a_sentence
from kernels.lumbar.problems import Problem
from kernels.lumbar.run.submission import replace_text
from kernels.text import duration_text
from training.check_data.distributions import as_table, distribution
from training.check_data.findings import ABOUT_LABELS, errors, in_order, summary
from training.check_data.splits import NoData, Split, read_splits
from training.check_data.study_headers import Examined, SeriesFacts, StudyTask, examine
from training.data.cache.decode import in_processes
from training.data.problem_table import as_csv

FINDINGS, SERIES = "check_data.csv", "series.csv"
WRONG_USAGE = 2
# Of all files, and of all label points.
MOST = 0.5


def check(data: Path, out: Path, jobs: int) -> tuple[list[Problem], list[SeriesFacts], list[Path]]:
    """Check a folder, write tables and pictures; returns findings, series, and the pictures' files.

    Raises NoData, OSError.
    """
    splits = read_splits(data)
    out.mkdir(parents=True, exist_ok=True)
    findings: list[Problem] = []
    series: list[SeriesFacts] = []
    pictures: list[Path] = []
    for split in splits:
        examined = _examined(split, jobs)
        its = [*split.problems, *(problem for one in examined for problem in one.problems)]
        facts = [fact for one in examined for fact in one.series]
        its = in_order([*its, *_on_the_whole(split, its, facts)])
        points = {one.study: one.points for one in examined}
        if any(one.kind in ABOUT_LABELS for one in its):
            from training.check_data.pictures import draw_contradictions  # torch, which takes seconds

            pictures += draw_contradictions(split, its, points, out)
        findings, series = findings + its, series + facts
    findings = in_order(findings)
    replace_text(out / FINDINGS, as_csv(findings))
    replace_text(out / SERIES, as_table(series))
    return findings, series, pictures


def _examined(split: Split, jobs: int) -> list[Examined]:
    """The headers of all studies with files, by several processes."""
    lines = {} if split.coordinates is None else dict(list(split.coordinates.groupby("study_id", sort=False)))
    tasks = [
        StudyTask(split.name, study, split.images / study, series, split.is_listed, lines.get(study))
        for study, series in split.series.items()
        if (split.images / study).is_dir()
    ]
    with tqdm(total=len(tasks), unit="study", desc=f"headers, {split.words}") as bar:
        examined = []
        for one in in_processes(examine, tasks, min(jobs, len(tasks))):
            examined.append(one)
            bar.update()
    return examined


def _on_the_whole(split: Split, findings: Sequence[Problem], series: Sequence[SeriesFacts]) -> list[Problem]:
    """Findings about all files, and about all label points."""
    found = []
    files, images = sum(one.files for one in series), sum(min(one.images, one.files) for one in series)
    if files and files - images > MOST * files:
        detail = f"{files - images} of {files} files of the {split.words} hold no readable image"
        found.append(Problem("", split.images.name, "most-files-unreadable", detail))
    if split.coordinates is not None:
        count = len(split.coordinates)
        unused = sum(one.kind == "annotation-without-image" for one in findings)
        if not count or unused > MOST * count:
            detail = (
                f"{unused} of {count} label points are in no readable file" if count else "no label point is usable"
            )
            found.append(Problem("", "train_label_coordinates.csv", "most-points-unused", detail))
    return found


def _report(
    findings: Sequence[Problem], series: Sequence[SeriesFacts], pictures: Sequence[Path], out: Path, seconds: float
) -> None:
    studies = len({(one.split, one.study) for one in series})
    counts = f"{studies} studies, {len(series)} series, {sum(one.files for one in series)} files"
    lines = [*distribution(series), "", f"checked in {duration_text(seconds)}: {counts}"]
    lines += summary(findings) or ["nothing is wrong, as far as tables and headers show"]
    lines += ["", f"{out / FINDINGS}  every finding", f"{out / SERIES}  every series"]
    lines += [f"{path}  a contradiction" for path in pictures]
    print("\n".join(lines))


@ends_with_a_sentence("nothing was checked")
def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="training.check_data", description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="a folder in the competition's layout")
    parser.add_argument("--out", type=Path, default=Path("checked"), help="folder of the tables and pictures")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes that read headers")
    parser.add_argument("--anyway", action="store_true", help="label points that contradict each other are warnings")
    given = parser.parse_args(argv)
    started = time.monotonic()
    try:
        findings, series, pictures = check(given.data, given.out, given.jobs)
    except (NoData, OSError, BrokenProcessPool) as error:
        sys.stderr.write(f"nothing was checked: {error}\n")
        return WRONG_USAGE
    _report(findings, series, pictures, given.out, time.monotonic() - started)
    accepted = ABOUT_LABELS if given.anyway else frozenset()
    if count := errors(findings, accepted):
        sys.stderr.write(f"training would stop or learn what is wrong: {count} errors, see {given.out / FINDINGS}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
