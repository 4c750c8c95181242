"""Runs the networks of a row on studies, keeps what they answer, and draws the best, the middle and the worst study."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from kernels.lumbar.answers.locate import Located
from kernels.lumbar.dicom.read_study import read_study
from kernels.lumbar.networks.devices import default_device
from kernels.lumbar.run.clock import Clock
from kernels.lumbar.run.competition import read_series_table
from kernels.lumbar.run.read_ahead import read_ahead
from kernels.lumbar.run.submission import replace_json
from training.benchmarks.real.candidates import TITLES, Candidate
from training.benchmarks.real.figures import StudyResult
from training.benchmarks.tables import BenchError
from training.digests import digest
from training.evaluation.localiser_findings import Points, findings_of, shown
from training.evaluation.overlays import draw_located
from training.evaluation.predictor import Predictor
from training.runs import read_object

SPLITS = ("train", "test")


def results_of(
    candidate: Candidate, data: Path, split: str, truth: Mapping[str, Points], out: Path
) -> dict[str, StudyResult]:
    """Study → what the row answers, kept in `out`/<row>_<split>.json; with three pictures of those held out.

    Raises BenchError where a network cannot be loaded.
    """
    if candidate.studies is not None:
        truth = {study: its for study, its in truth.items() if study in candidate.studies}
    path = out / f"{candidate.name}_{split}.json"
    made_of = digest(candidate.networks, candidate.manifest.model_dump(mode="json")["routes"], _as_lists(truth))
    kept = read_object(path)
    if kept.get("made_of") == made_of:
        return {study: _result(one) for study, one in kept["studies"].items()}
    predictor = Predictor(candidate.manifest, candidate.folder, default_device())
    if predictor.problems:
        raise BenchError(f"{TITLES[candidate.key]}: {predictor.problems[0].detail}")
    series = read_series_table(data / f"{split}_series_descriptions.csv").series
    clock, found, located = Clock(float("inf")), dict[str, StudyResult](), dict[str, Located]()
    read = read_ahead(data / f"{split}_images", series, sorted(truth), clock)
    for study in tqdm(read, total=len(truth), unit="study", desc=candidate.key):
        prediction = predictor.predict(study, clock)
        its = located[study.study_id] = next(iter(prediction.located.values()))
        true = truth[study.study_id]
        judged = findings_of(study.study_id, true, shown(study, true), its.points, list(true), its.guessed)
        found[study.study_id] = StudyResult(
            tuple(float(one["error_mm"]) for one in judged),
            tuple(bool(one["right_level"]) for one in judged),
            tuple((float(a), float(b), float(c)) for a, b, c in prediction.rows),
        )
    if found and (split == "test" or candidate.studies is not None):
        _draw(candidate, data / f"{split}_images", found, located, series, truth, out)
    replace_json(path, {"made_of": made_of, "studies": {study: asdict(one) for study, one in found.items()}})
    return found


def check_whole(data: Path, split: str, studies: Collection[str], labels: Collection[str]) -> None:
    """Raises BenchError where a patient of the truth has no images, or none of the table's series, or no labels."""
    series = read_series_table(data / f"{split}_series_descriptions.csv").series
    images = data / f"{split}_images"
    lost = [one for one in studies if not ((images / one).is_dir() and one in series and one in labels)]
    if lost:
        raise BenchError(
            f"{data} is no longer whole: of {len(lost)} {split} patients images, series or labels are gone, such as of "
            f"{lost[0]}; import it again"
        )


def _as_lists(truth: Mapping[str, Points]) -> dict[str, Any]:
    return {study: {row: list(map(float, point)) for row, point in its.items()} for study, its in truth.items()}


def _result(kept: Mapping[str, Any]) -> StudyResult:
    rows = tuple((float(a), float(b), float(c)) for a, b, c in kept["rows"])
    return StudyResult(tuple(map(float, kept["errors_mm"])), tuple(map(bool, kept["right_level"])), rows)


def _draw(
    candidate: Candidate,
    images: Path,
    found: Mapping[str, StudyResult],
    located: Mapping[str, Located],
    series: Mapping[str, Sequence[tuple[str, str]]],
    truth: Mapping[str, Points],
    out: Path,
) -> None:
    """One picture each of the study with the smallest, the middle and the largest mean error."""
    ranked = sorted(found, key=lambda study: (found[study].mean_mm, study))
    for name, study_id in (("best", ranked[0]), ("median", ranked[len(ranked) // 2]), ("worst", ranked[-1])):
        study = read_study(images / study_id, study_id, series.get(study_id, []))
        caption = f"{TITLES[candidate.key]}: the {name}, {found[study_id].mean_mm:.1f} mm in the mean"
        canal = Located({row: point for row, point in located[study_id].points.items() if row in truth[study_id]})
        canal.confidence = {row: located[study_id].confidence[row] for row in canal.points}
        canal.guessed = {row for row in located[study_id].guessed if row in canal.points}
        draw_located(study, {"located": canal}, out / f"{candidate.name}_{name}.png", truth[study_id], caption)
