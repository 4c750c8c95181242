"""The tables of an imported data set: the competition's, the truth, the coordinates for pretraining; and its notes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from kernels.lumbar.labels import LEVELS, ROWS, SEVERITIES, SEVERITY_WEIGHTS
from training.data.external import PRETRAINING, image_folder
from training.data.spider.canal import MODERATE_MM, SEVERE_MM, CanalLevel
from training.data.spider.series import SeriesNames
from training.data.spider.source import DISC, GRADINGS, PATIENT
from training.data.tables import CONDITION_TEXTS, LEVEL_TEXTS, SEVERITY_TEXTS

CANAL = "spinal_canal_stenosis"
CONDITION_TEXT = next(text for text, condition in CONDITION_TEXTS.items() if condition == CANAL)
TEXT_OF_LEVEL = {level: text for text, level in LEVEL_TEXTS.items()}
SEVERITY_OF = {severity: text for text, severity in SEVERITY_TEXTS.items()}
# Written last: where it is, the data set is complete.
LAST_TABLE = "sample_submission.csv"
COORDINATES = "coordinates"
PICTURES = Path(COORDINATES) / image_folder("spider")
CITATION = """\
van der Graaf, J.W., van Hooff, M.L., Buckens, C.F.M. et al.: Lumbar spine segmentation in MR images: a dataset and a
public benchmark.  Scientific Data 11, 264 (2024), https://doi.org/10.1038/s41597-024-03090-w
"""
LICENCE = f"""\
The images, masks and tables that this folder was made from are SPIDER's, licensed under the Creative Commons
Attribution 4.0 International licence (CC BY 4.0, https://creativecommons.org/licenses/by/4.0/).  Whoever shows or
passes on pictures, figures or data of this folder names the source:

{CITATION}
Changes: thin slices were averaged, volumes rewritten as DICOM, landmarks and severities of the canal computed from the
masks.
"""
README = """\
# SPIDER in the competition's layout

{counts}.  {split}

- Canal landmarks are the centre of the canal in its cross-section through each disc's posterior edge, computed from the
  masks.  Levels are counted from the lowest disc of the mask (L5/S1).
- Canal severity is a proxy: severe below {severe:g} mm from front to back, moderate below {moderate:g} mm.  Nobody read
  these images for stenosis; do not compare scores with those of the competition's labels.
- Foramina and recesses have no labels, and there are no axial series.  `RECIPES=canal_only` trains on this.
- `truth/` holds solution, labels, landmarks (mm), widths of the canal (mm), SPIDER's gradings of the discs, and the
  patients left out, each with the reason.
- `coordinates/` is what `COORDINATES=` takes for pretraining.  Its pictures are of the training patients: use it for
  other data sets, not for this one, whose folds hold some of them out.

Licence: CC BY 4.0, see LICENSE.txt.

{citation}"""


@dataclass(frozen=True)
class Click:
    """A landmark in pixels of a file: x = column, y = row."""

    series: str
    instance: int
    level: str
    x: float
    y: float


@dataclass(frozen=True)
class ImportedStudy:
    """A patient whose files are written."""

    is_test: bool
    series: tuple[SeriesNames, ...]
    levels: dict[str, CanalLevel]
    clicks: tuple[Click, ...]
    height: int
    """Pixels of its T2 images, and of its picture."""
    width: int

    @property
    def study(self) -> str:
        """Its id: the patient's number."""
        return self.series[0].study


@dataclass(frozen=True)
class LeftOut:
    """A patient that was not imported, and why."""

    patient: str
    reason: str


def write_tables(place: Path, studies: Sequence[ImportedStudy], gradings: pd.DataFrame) -> None:
    """All tables of the data set, sample_submission.csv last."""
    train, test = ([one for one in studies if one.is_test == is_test] for is_test in (False, True))
    truth = place / "truth"
    truth.mkdir()
    _write(truth / "solution.csv", ["row_id", *SEVERITIES, "sample_weight"], _solution(test))
    _write(truth / "labels.csv", ["study_id", *ROWS], _labels(studies))
    columns = ["study_id", "split", "condition", "level", "x_mm", "y_mm", "z_mm"]
    _write(truth / "landmarks.csv", columns, _landmarks(studies))
    widths = [(one.study, level, round(its.width_mm, 2)) for one in studies for level, its in one.levels.items()]
    _write(truth / "canal_width_mm.csv", ["study_id", "level", "width_mm"], widths)
    _graded(studies, gradings).to_csv(truth / "gradings.csv", index=False)
    columns = ["filename", "source", "x", "y", "level", "relative_x", "relative_y"]
    _write(place / COORDINATES / PRETRAINING, columns, _pretraining(train))
    _write(place / "train.csv", ["study_id", *ROWS], _labels(train))
    for split, its in (("train", train), ("test", test)):
        series = [(one.study, names.series, names.kind) for one in its for names in one.series]
        columns = ["study_id", "series_id", "series_description"]
        _write(place / f"{split}_series_descriptions.csv", columns, series)
    columns = ["study_id", "series_id", "instance_number", "condition", "level", "x", "y"]
    _write(place / "train_label_coordinates.csv", columns, _coordinates(train))
    rows = [(f"{one.study}_{row}", *[1 / 3] * 3) for one in test for row in ROWS]
    _write(place / LAST_TABLE, ["row_id", *SEVERITIES], rows)


def _write(path: Path, columns: Sequence[str], rows: object) -> None:
    pd.DataFrame(list(rows), columns=list(columns)).to_csv(path, index=False)  # type: ignore[call-overload]


def _solution(studies: Sequence[ImportedStudy]) -> Iterator[tuple[object, ...]]:
    for one in studies:
        for level, its in one.levels.items():
            one_hot = np.eye(len(SEVERITIES), dtype=int)[its.severity]
            yield f"{one.study}_{CANAL}_{level}", *one_hot, int(SEVERITY_WEIGHTS[its.severity])


def _labels(studies: Sequence[ImportedStudy]) -> Iterator[tuple[object, ...]]:
    for one in studies:
        texts = {f"{CANAL}_{level}": SEVERITY_OF[its.severity] for level, its in one.levels.items()}
        yield one.study, *(texts.get(row) for row in ROWS)


def _landmarks(studies: Sequence[ImportedStudy]) -> Iterator[tuple[object, ...]]:
    for one in studies:
        for level, its in one.levels.items():
            yield one.study, "test" if one.is_test else "train", CANAL, level, *np.round(its.point_mm, 3)


def _coordinates(studies: Sequence[ImportedStudy]) -> Iterator[tuple[object, ...]]:
    for one in studies:
        for click in one.clicks:
            level = TEXT_OF_LEVEL[click.level]
            yield one.study, click.series, click.instance, CONDITION_TEXT, level, round(click.x, 3), round(click.y, 3)


def _pretraining(studies: Sequence[ImportedStudy]) -> Iterator[tuple[object, ...]]:
    """From feet to head, as in the published table."""
    for one in studies:
        name = f"{one.study}_t2.jpg"
        for click in reversed(one.clicks):
            x, y, level = round(click.x), round(click.y), TEXT_OF_LEVEL[click.level]
            yield name, "spider", x, y, level, round(click.x / one.width, 6), round(click.y / one.height, 6)


def _graded(studies: Sequence[ImportedStudy], gradings: pd.DataFrame) -> pd.DataFrame:
    """SPIDER's gradings of the five discs of the imported patients, with the level's name."""
    levels = {str(label): level for label, level in enumerate(reversed(LEVELS), 1)}
    chosen = gradings[gradings[PATIENT].isin([one.study for one in studies]) & gradings[DISC].isin(levels)]
    named = chosen.assign(study_id=chosen[PATIENT], level=chosen[DISC].map(levels))
    return named[["study_id", "level", *(name for name in chosen if name not in (PATIENT, DISC))]]


def write_notes(place: Path, studies: Sequence[ImportedStudy], left_out: Sequence[LeftOut]) -> str:
    """README.md, LICENSE.txt and truth/left_out.csv; returns what a user is told."""
    _write(place / "truth" / "left_out.csv", ["patient", "reason"], [(one.patient, one.reason) for one in left_out])
    test = sum(one.is_test for one in studies)
    severities = [its.severity for one in studies for its in one.levels.values()]
    grades = ", ".join(f"{severities.count(number)} {name.replace('_', '/')}" for number, name in enumerate(SEVERITIES))
    t1 = sum(len(one.series) > 1 for one in studies)
    counts = f"{len(studies)} patients ({t1} with a T1 series), {len(studies) - test} to train on and {test} to test"
    split = "No patient is in both parts."
    readme = README.format(counts=counts, split=split, severe=SEVERE_MM, moderate=MODERATE_MM, citation=CITATION)
    (place / "README.md").write_text(readme, encoding="utf-8")
    (place / "LICENSE.txt").write_text(LICENCE, encoding="utf-8")
    lines = [counts, f"canal by its width, a proxy and no reading ({GRADINGS} has no stenosis): {grades}"]
    lines += [f"left out: patient {one.patient}: {one.reason}" for one in left_out]
    return "\n".join([*lines, "SPIDER is licensed CC BY 4.0: name it with whatever is shown of it (LICENSE.txt)"])
