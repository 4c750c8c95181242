"""Conditions, levels, sides, severities and the 25 rows of a study: the only definition of order and of left/right."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

LEVELS = ("l1_l2", "l2_l3", "l3_l4", "l4_l5", "l5_s1")
SIDES = ("left", "right")
SEVERITIES = ("normal_mild", "moderate", "severe")
SEVERITY_WEIGHTS = (1.0, 2.0, 4.0)
# The order of sample_submission.csv: by condition alphabetically, then by level.
CONDITIONS = (
    "left_neural_foraminal_narrowing",
    "left_subarticular_stenosis",
    "right_neural_foraminal_narrowing",
    "right_subarticular_stenosis",
    "spinal_canal_stenosis",
)
ROW_PLACES = {f"{condition}_{level}": (condition, level) for condition in CONDITIONS for level in LEVELS}
"""Row → its condition and its level."""
ROWS = tuple(ROW_PLACES)
ROW_INDEX = {row: index for index, row in enumerate(ROWS)}
ROW_WORDS = sorted({row.count("_") + 1 for row in ROWS})
GROUPS = ("spinal", "foraminal", "subarticular")
SERIES_KINDS = {
    "Sagittal T1": "sagittal_t1",
    "Sagittal T2/STIR": "sagittal_t2",
    "Axial T2": "axial_t2",
}
SERIES_TEXTS = {kind: text for text, kind in SERIES_KINDS.items()}
# The series on which a condition group is graded, and its landmarks set.
KIND_OF_GROUP = {"spinal": "sagittal_t2", "foraminal": "sagittal_t1", "subarticular": "axial_t2"}


def group_of(row: str) -> str:
    """The metric's condition group of a row or condition name: the first of GROUPS that it contains."""
    for group in GROUPS:
        if group in row:
            return group
    raise ValueError(f"'{row}' names none of {GROUPS}")


def split_row_ids(row_ids: Iterable[str]) -> list[tuple[str, str]]:
    """Study and row of ids such as "1001_spinal_canal_stenosis_l1_l2"; the study's name may hold underscores, too.

    Split from the right, by one of the 25 rows.  What ends in none of them is split behind a study of another id, else
    at the first underscore; its row is none of ROWS.
    """
    ids = list(row_ids)
    parts = [_split_at_row(row_id) for row_id in ids]
    studies = {part[0] for part in parts if part is not None}
    return [part or _split_unknown(row_id, studies) for part, row_id in zip(parts, ids, strict=True)]


def _split_at_row(row_id: str) -> tuple[str, str] | None:
    for words in ROW_WORDS:
        study, *its = row_id.rsplit("_", words)
        if len(its) == words and (row := "_".join(its)) in ROW_INDEX:
            return study, row
    return None


def _split_unknown(row_id: str, studies: set[str]) -> tuple[str, str]:
    places = [place for place, letter in enumerate(row_id) if letter == "_"]
    known = [place for place in places if row_id[:place] in studies]
    end = (known or [*places[:1], len(row_id)])[-1 if known else 0]
    return row_id[:end], row_id[end + 1 :]


def mirrored(name: str) -> str:
    """The same name with left and right exchanged; names without a side are returned unchanged."""
    if name.startswith("left_"):
        return "right_" + name.removeprefix("left_")
    if name.startswith("right_"):
        return "left_" + name.removeprefix("right_")
    return name


# The left/right permutation: row i of a mirrored study is row MIRROR[i] of the study.
MIRROR = tuple(ROW_INDEX[mirrored(row)] for row in ROWS)


class Unit(NamedTuple):
    """What one row of a batch covers: a study, one side, one level, or one level on one side."""

    level: str | None = None
    side: str | None = None

    def mirrored(self) -> Unit:
        """The same unit on the other side."""
        other = {"left": "right", "right": "left", None: None}[self.side]
        return Unit(self.level, other)


UNITS: dict[str, tuple[Unit, ...]] = {
    "study": (Unit(),),
    "side": tuple(Unit(side=side) for side in SIDES),
    "level": tuple(Unit(level=level) for level in LEVELS),
    "level_side": tuple(Unit(level, side) for level in LEVELS for side in SIDES),
}


def row_of(target: str, unit: Unit) -> str:
    """Full row name of a target that is named relative to a unit.

    A unit with a level completes names that end without one, a unit with a side names that start without one:
    "subarticular_stenosis" at Unit("l4_l5", "left") is "left_subarticular_stenosis_l4_l5".
    Raises ValueError where the result is not one of ROWS.
    """
    row = target
    if unit.side is not None and not row.startswith(("left_", "right_", "spinal_")):
        row = f"{unit.side}_{row}"
    if unit.level is not None and not row.endswith(LEVELS):
        row = f"{row}_{unit.level}"
    if row not in ROW_INDEX:
        raise ValueError(f"target '{target}' at {unit} is '{row}', which is none of the 25 rows")
    return row
