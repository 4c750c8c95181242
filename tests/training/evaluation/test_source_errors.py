"""Errors of the landmarks that a localiser starts from; where the slice alone was asked for, those across slices."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from kernels.lumbar.answers.localiser_answers import LocaliserAnswer
from kernels.lumbar.answers.locate import Located
from training.evaluation import validate
from training.evaluation.landmark_errors import landmark_errors, offsets_by_group
from training.evaluation.validate import in_plane

ROW = "left_subarticular_stenosis_l4_l5"
TRUTH = {ROW: np.array([12.0, 30.0, 5.0])}
NORMAL = np.array([0.0, 0.6, 0.8])


def located(*names: str) -> Located:
    """The middle of a slice that lies 4 mm from the annotated point, far from it within the slice."""
    point = TRUTH[ROW] + 4 * NORMAL + 50 * np.array([1.0, 0, 0])
    answer = LocaliserAnswer(point, 0.9, NORMAL)
    return Located({ROW: point}, {ROW: 0.9}, set(), {name: {ROW: answer} for name in names})


def test_only_the_slice_counts_where_no_point_was_asked_for() -> None:
    found = in_plane(located("levels"), TRUTH, ["levels"])
    np.testing.assert_allclose(found[ROW], TRUTH[ROW] + 4 * NORMAL)
    errors = landmark_errors({"1": found}, {"1": TRUTH})
    assert offsets_by_group(errors)["subarticular"][0] == pytest.approx(4 * NORMAL)


@pytest.mark.parametrize("names", [("points",), ("levels", "points")])
def test_a_point_is_taken_as_it_is(names: tuple[str, ...]) -> None:
    one = located(*names)
    assert in_plane(one, TRUTH, ["levels"])[ROW] is one.points[ROW]
    assert in_plane(one, {}, ["levels", "points"])[ROW] is one.points[ROW], "without an annotated point"


def test_errors_are_measured_again_where_landmarks_are_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = list[int]()

    def located_once(*_: Any) -> dict[str, Located]:
        measured.append(1)
        return {"1": located("points")}

    monkeypatch.setattr(validate, "fold_manifest", lambda *_: SimpleNamespace(artefacts=()))
    monkeypatch.setattr(validate, "located_plainly", located_once)
    folder: Any = SimpleNamespace(source_errors=lambda name, fold: tmp_path / f"{name}{fold}.json")
    other = ROW.replace("l4_l5", "l5_s1")
    data: Any = (Path(), None, ["1"])

    def times(truth: dict[str, np.ndarray], *needed: str) -> int:
        localiser: Any = SimpleNamespace(name="axial", needed=set(needed))
        errors = validate.source_errors(folder, localiser, [], *data, {"1": truth}, 0)
        assert errors == validate.source_errors(folder, localiser, [], *data, {"1": truth}, 0), "kept"
        return len(measured)

    assert times(TRUTH, ROW) == 1
    assert times(TRUTH | {other: TRUTH[ROW]}, ROW) == 1, "it does not need the other one"
    assert times(TRUTH | {other: TRUTH[ROW]}, ROW, other) == 2
    assert times({ROW: TRUTH[ROW] + 1e-9}, ROW) == 3 == times({ROW: TRUTH[ROW]}, ROW)
    assert times({ROW: TRUTH[ROW] + 0.1}, ROW) == 4
