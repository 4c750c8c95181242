"""Label points that cannot be right have a name before training; right ones have none."""

from __future__ import annotations

import logging

import numpy as np
import pandas as pd
import pytest

from kernels.lumbar.labels import LEVELS, ROWS, mirrored
from tests.support.dicom.dicom_factory import write_foreign_dataset
from training.data.label_points import contradictions, outside_points, report_label_points
from training.data.tables import read_tables

ASIDE_MM = {"neural": 18.0, "subarticular": 9.0, "stenosis": 0.0}


def spine(bend_deg: float = 0.0, turn_deg: float = 0.0) -> dict[str, np.ndarray]:
    """A lordotic spine, tilted aside by `bend_deg` and turned about its axis by `turn_deg`."""
    bend, turn = np.radians(bend_deg), np.radians(turn_deg)
    points = {}
    for row in ROWS:
        level = LEVELS.index(row[-5:])
        side = {"left": 1, "right": -1}.get(row.split("_")[0], 0)
        aside = side * (18.0 if "neural" in row else 9.0)
        x, y, z = aside * np.cos(turn), aside * np.sin(turn) + 4.0 * level, -34.0 * level
        points[row] = np.array([x * np.cos(bend) - z * np.sin(bend), y, x * np.sin(bend) + z * np.cos(bend)])
    return points


def kinds(points: dict[str, np.ndarray]) -> set[str]:
    return {one.kind for one in contradictions("7", points)}


@pytest.mark.parametrize("bend_deg", [-25, 0, 25])
@pytest.mark.parametrize("turn_deg", [-30, 0, 30])
def test_a_bent_and_turned_spine_contradicts_nothing(bend_deg, turn_deg):
    points = spine(bend_deg, turn_deg)
    assert kinds(points) == set() and kinds({}) == set()
    assert kinds({row: point for row, point in points.items() if hash(row) % 3}) == set()


def of_levels(change: dict[str, str]):
    def moved(points):
        return {row[:-5] + change.get(row[-5:], row[-5:]): point for row, point in points.items()}

    return moved


def of_one_condition(condition: str, change):
    def moved(points):
        its = {row: point for row, point in points.items() if row.startswith(condition)}
        return {row: point for row, point in points.items() if row not in its} | change(its)

    return moved


def one_pair(points):
    row = "left_subarticular_stenosis_l3_l4"
    return points | {row: points[mirrored(row)], mirrored(row): points[row]}


def only_left_on_the_right(points):
    kept = {row: point for row, point in points.items() if not row.startswith("right")}
    return {row: point * [-1, 1, 1] if row.startswith("left_neural") else point for row, point in kept.items()}


def shifted(points):
    return {
        row[:-5] + LEVELS[LEVELS.index(row[-5:]) + 1]: point for row, point in points.items() if row[-5:] != LEVELS[-1]
    }


SWAPPED = of_levels({"l3_l4": "l4_l5", "l4_l5": "l3_l4"})


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (lambda points: {mirrored(row): point for row, point in points.items()}, "sides-exchanged"),
        (one_pair, "sides-exchanged"),
        (only_left_on_the_right, "sides-exchanged"),
        (SWAPPED, "levels-exchanged"),
        (of_one_condition("spinal", SWAPPED), "levels-exchanged"),
        (of_one_condition("left_neural", shifted), "levels-exchanged"),
        (lambda points: points | {ROWS[3]: points[ROWS[3]] + [5000, 0, 0]}, "point-far-off"),
    ],
)
def test_contradictions_are_named_by_the_shape_of_the_spine(change, kind):
    assert kinds(change(spine())) == {kind}


def test_points_outside_of_their_image_are_named_and_all_is_listed(tmp_path, caplog):
    write_foreign_dataset(tmp_path, studies=2, seed=3)
    tables = read_tables(tmp_path)
    assert list(outside_points(tmp_path, tables)) == []
    own = tables.coordinates
    wrong = own.index[[1, len(own) - 1]]
    own.loc[wrong, ["x", "y"]] = [[5000.0, 3.0], [3.0, -20.0]]
    found = list(outside_points(tmp_path, tables))
    assert {(one.study, one.where, one.kind) for one in found} == {
        (row.study_id, f"{row.series_id}/{row.instance}", "point-outside") for row in own.loc[wrong].itertuples()
    }
    study = tables.labels.index[0]
    exchanged = {mirrored(row): point for row, point in spine().items()}
    with caplog.at_level(logging.INFO):
        report_label_points(tmp_path, tables, {study: exchanged}, tmp_path / "problems.csv")
    assert "the tables hold 2 studies" in caplog.text
    assert "point-outside: 2" in caplog.text and "left lies to the right of right in 10 of 10 pairs" in caplog.text
    listed = pd.read_csv(tmp_path / "problems.csv", dtype=str)
    assert sorted(listed["kind"]) == ["point-outside", "point-outside", "sides-exchanged"]
