"""What must hold for whatever the kernel reads.  A Broken is a find, and so is any other exception that gets out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kernels.lumbar.answers.priors import public_priors
from kernels.lumbar.answers.spine_shape import Expectation, stack_centres
from kernels.lumbar.dicom.header import SPACING_MM
from kernels.lumbar.dicom.read_study import read_study
from kernels.lumbar.dicom.study import Stack, Study, gaps
from kernels.lumbar.inputs.views import cut
from kernels.lumbar.labels import ROWS, SERIES_KINDS, Unit
from kernels.lumbar.manifest import Manifest
from kernels.lumbar.networks.weights import WeightsError, checked_bytes, find_manifest, read_manifest
from kernels.lumbar.problems import Problem
from kernels.lumbar.run.competition import CompetitionNotFound, SeriesTable, find_competition, read_series_table
from kernels.lumbar.run.submission import Submission, SubmissionError, check, replace_json
from kernels.lumbar.specs import SliceChoice, ViewRequest
from tests.fuzz.cases import SOUND, Case
from tests.fuzz.material import NETWORK
from tests.fuzz.material import series as series_files

CLOSE_MM = 1e-6
MOST_PROBLEMS = 500
LONGEST_DETAIL = 100_000


class Broken(Exception):
    """Something that must hold does not."""


def holds(condition: object, what: str) -> None:
    """Raises Broken."""
    if not condition:
        raise Broken(what)


def run(case: Case, folder: Path) -> str:
    """Read a case and check what comes of it.  Returns a word on the outcome; raises what is a find."""
    out = folder / "out"
    out.mkdir(exist_ok=True)
    return TARGETS[case["target"]](case, folder, out)


def _check_problems(problems: list[Problem], out: Path) -> None:
    holds(len(problems) <= MOST_PROBLEMS, "a problem for every file at most")
    for one in problems:
        fields = (one.study, one.where, one.kind, one.detail)
        holds(all(isinstance(field, str) for field in fields) and one.kind, "a problem is four texts")
        holds("MemoryError" not in one.detail, "no file makes the reader ask for all memory")
        holds(len(one.detail) <= LONGEST_DETAIL, "a problem is told in short")
    replace_json(out / "run_report.json", [one.__dict__ for one in problems])


# --- studies


def _study(case: Case, folder: Path, out: Path) -> str:
    series = [(str(one), str(kind)) for one, kind in case["series"]]
    study = read_study(folder / "study", "7", series)
    _check_study(study, out)
    sound = _sound(*case["sound"], out)
    (found,) = (stack for stack in study.stacks if stack.series_id == SOUND)
    holds(np.array_equal(found.pixels, sound), "a sound series is read as if it were alone")
    holds(not any(one.where.startswith(SOUND) for one in study.problems), "a sound series has no problems")
    _same(study, read_study(folder / "study", "7", series))
    return ("whole" if not study.problems else "part") if len(study.stacks) > 1 else "nothing"


_SOUND: dict[tuple[str, str], np.ndarray] = {}


def _sound(kind: str, make: str, out: Path) -> np.ndarray:
    """The pixels of a sound series where nothing else is read; written and read once."""
    if (kind, make) not in _SOUND:
        folder = out / "sound" / SOUND
        folder.mkdir(parents=True)
        for number, data in enumerate(series_files(kind, make), 1):
            (folder / f"{number}.dcm").write_bytes(data)
        (stack,) = read_study(out / "sound", "7", [(SOUND, kind)]).stacks
        _SOUND[kind, make] = stack.pixels
    return _SOUND[kind, make]


def _check_study(study: Study, out: Path) -> None:
    _check_problems([*study.problems, *gaps(study)], out)
    is_doubled = {one.where.split("/")[0] for one in study.problems if one.kind == "duplicate-number"}
    for stack in study.stacks:
        _check_stack(stack, stack.series_id in is_doubled)
    for (series, instance), plane in study.source_planes.items():
        holds(isinstance(series, str) and isinstance(instance, int), "source planes are named by series and number")
        holds(np.isfinite(plane.to_patient(3.0, 4.0)).all(), "source planes are finite")
    for name, centre in stack_centres(study).items():
        holds(np.isfinite(centre).all(), f"{name} is finite")
    for kind in SERIES_KINDS.values():
        _check_views(study, kind)


def _check_stack(stack: Stack, is_doubled: bool) -> None:
    pixels = stack.pixels
    holds(
        isinstance(pixels, np.ndarray) and pixels.dtype == np.uint8 and pixels.ndim == 3,
        "pixels are (slice, H, W) uint8",
    )
    holds(
        min(pixels.shape) > 0 and len(pixels) == len(stack.planes) == len(stack.instances),
        "a plane and a number a slice",
    )
    holds(stack.kind in SERIES_KINDS.values(), "a known kind")
    holds(all(type(one) is int for one in stack.instances), "numbers are whole")
    holds(
        is_doubled or len(set(stack.instances)) == len(stack.instances),
        "numbers are not repeated, or a problem says so",
    )
    for plane in stack.planes:
        axes = np.stack([plane.column_mm, plane.row_mm, plane.normal])
        holds(np.isfinite(axes).all() and np.isfinite(plane.origin_mm).all(), "planes are finite")
        lengths = np.linalg.norm(axes, axis=1)
        holds(
            ((lengths[:2] >= SPACING_MM[0] - CLOSE_MM) & (lengths[:2] <= SPACING_MM[1] + CLOSE_MM)).all(),
            "spacing is usable",
        )
        holds(np.abs(axes @ axes.T - np.diag(lengths**2)).max() < 1e-4, "axes are at right angles")
        holds(
            np.abs(plane.to_pixel(plane.to_patient(3.0, 4.0))[:2] - np.array([3.0, 4.0])).max() < 1e-3, "there and back"
        )
    holds((np.diff(stack.positions_mm) >= -CLOSE_MM).all(), "slices are in order")
    holds(np.isfinite(stack.to_pixels(stack.centres_mm[0])).all(), "projections are finite")


def _check_views(study: Study, kind: str) -> None:
    stacks = study.of_kind(kind)
    middle = {row: stacks[0].centres_mm[0] if stacks else np.zeros(3) for row in ROWS}
    row = "spinal_canal_stenosis_l3_l4"
    around = SliceChoice(by="landmark", count=3)
    requests = [
        ViewRequest(series=kind, slices=around, centre=(row,), size_mm=60, size_px=16),  # type: ignore[arg-type]
        ViewRequest(series=kind, slices=SliceChoice(by="all", count=5), size_px=16),  # type: ignore[arg-type]
    ]
    for request in requests:
        view = cut(study, request, Unit(), middle)
        holds((view is None) == (not stacks), "a view for every kind that is there")
        if view is not None:
            holds(
                view.pixels.shape == (request.slices.count, 16, 16) and view.pixels.dtype == np.uint8, "a view's shape"
            )


def _same(study: Study, again: Study) -> None:
    """Reading is a function of the files."""
    holds(len(study.stacks) == len(again.stacks), "the second reading gives as many stacks")
    for one, other in zip(study.stacks, again.stacks, strict=True):
        is_same = one.instances == other.instances and np.array_equal(one.pixels, other.pixels)
        holds(is_same, "the second reading gives the same pixels")
    # What the first reading learns of a kind of file it does not say again.
    holds(study.problems == again.problems, "the second reading names the same problems")


# --- tables


def _series_table(case: Case, folder: Path, out: Path) -> str:
    table: SeriesTable = read_series_table(folder / "series.csv")
    _check_problems(table.problems, out)
    for study, rows in table.series.items():
        holds(isinstance(study, str) and study == study.strip(), "ids have no blanks around")
        holds(study, "a study has an id")
        holds(len(set(rows)) == len(rows), "a series is listed once")
        for series, kind in rows:
            holds(isinstance(series, str) and series and kind in SERIES_KINDS.values(), "a series has an id and a kind")
        read = read_study(folder / "nothing", study, rows)
        holds(not read.stacks and len(read.problems) == len(rows), "a series without a folder is a problem")
        _check_problems(read.problems, out)
    return "read" if table.series else "nothing"


def _sample(case: Case, folder: Path, out: Path) -> str:
    try:
        submission = Submission(folder / "sample_submission.csv", public_priors())
    except SubmissionError:
        return "refused"
    holds(submission.row_ids, "rows are asked for")
    submission.set(submission.studies[0], np.full((25, 3), 0.25))
    submission.write(out / "submission.csv")
    frame = pd.read_csv(out / "submission.csv", dtype={"row_id": str}, keep_default_na=False)
    check(frame, submission.row_ids)
    _check_problems([Problem("", row, "unknown-row", "") for row in submission.unknown_rows][:MOST_PROBLEMS], out)
    return "answered"


# --- manifests and mounts


def _manifest(case: Case, folder: Path, out: Path) -> str:
    try:
        manifest = read_manifest(folder / "manifest.json")
    except WeightsError as error:
        _check_problems([Problem("", "weights", "no-manifest", str(error))], out)
        return "refused"
    _check_manifest(manifest, out)
    proven = 0
    for artefact in manifest.artefacts:
        try:
            proven += checked_bytes(folder, artefact) == NETWORK
        except WeightsError as error:
            _check_problems([Problem("", artefact.member.name, "member-unusable", str(error))], out)
    return f"read, {proven} proven"


def _check_manifest(manifest: Manifest, out: Path) -> None:
    replace_json(out / "run_report.json", {"manifest": manifest.name})
    sample = out / "sample_submission.csv"
    sample.write_text("row_id\n" + "".join(f"4_{row}\n" for row in ROWS))
    submission = Submission(sample, manifest.priors)
    submission.write(out / "submission.csv")
    if manifest.shape is not None:
        expected, _ = Expectation(manifest.shape).of({"spinal_canal_stenosis_l1_l2": np.zeros(3)}, ROWS[0])
        holds(np.isfinite(expected).all(), "a shape expects finite points")
    for artefact in manifest.artefacts:
        holds(np.isfinite(np.asarray(artefact.weights.golden_output, np.float64)).all(), "golden outputs are finite")


def _mounts(case: Case, folder: Path, out: Path) -> str:
    found: list[Any] = []
    for find, documented in ((find_manifest, WeightsError), (find_competition, CompetitionNotFound)):
        try:
            found.append(find([folder / "input"]))
        except documented as error:
            _check_problems([Problem("", "weights", "no-manifest", str(error))], out)
    return f"{len(found)} found"


TARGETS: dict[str, Callable[[Case, Path, Path], str]] = {
    "study": _study,
    "series table": _series_table,
    "sample": _sample,
    "manifest": _manifest,
    "mounts": _mounts,
}
