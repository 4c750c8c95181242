"""The worst rows: each has its picture, with the landmarks of the fold's own localisers, or the reason."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from kernels.lumbar.answers.locate import Located
from kernels.lumbar.dicom.study import Study
from kernels.lumbar.labels import ROWS
from tests.support.dicom.dicom_factory import ForeignTruth
from tests.support.networks.reported_runs import made
from tests.support.networks.tiny_runs import write_runs
from training.data.out_of_fold import rows_of, write
from training.evaluation.show import open_study
from training.recipe_schema.load import RECIPES, load_named
from training.report.__main__ import row_text
from training.report.cases import FoldLocalisers, picture_of
from training.report.sources import read_sources
from training.runs import RunFolder


class LowLocalisers(FoldLocalisers):
    """Locate 20 mm below the true landmarks."""

    def __init__(self, points: Mapping[str, np.ndarray]) -> None:
        self.points = points

    def locate(self, study: Study, fold: int) -> dict[str, Located]:
        moved = {row: point - (0, 0, 20.0) for row, point in self.points.items()}
        return {"low": Located(moved), "none": Located()}


def test_a_row_has_its_picture_or_the_reason(data: tuple[Path, ForeignTruth], tmp_path: Path) -> None:
    root, truth = data
    study, row = truth.train[0], "left_neural_foraminal_narrowing_l4_l5"
    alone = picture_of(root, study, row, 0, FoldLocalisers(tmp_path, "smoke", ["split_and_global", "no_recipe"]))
    assert (
        alone.image is not None
        and alone.image.startswith("data:image/png;base64,iVBORw0KGgo")
        and "Sagittal T1" in alone.words
    )
    assert "Only this point is drawn" in alone.words and not alone.errors
    assert row_text(row) == "left neural foraminal narrowing L4/L5"
    low = picture_of(root, study, row, 0, LowLocalisers(truth.landmarks[study]))
    assert low.image is not None and low.image != alone.image and "Crosses: where" in low.words
    in_plane, _, across = low.errors["low"].partition(" / ")
    assert float(in_plane) ** 2 + float(across) ** 2 == pytest.approx(20**2, rel=0.2)
    assert low.errors["none"] == "not located"
    missing = picture_of(root, "study1", row, 0, LowLocalisers({}))
    assert missing.image is None and "has no study 'study1'" in missing.words


def test_landmarks_are_those_of_the_folds_own_localisers(data: tuple[Path, ForeignTruth], tmp_path: Path) -> None:
    write_runs(tmp_path, load_named("split_and_global", "smoke"))
    _, study = open_study(data[0], data[1].train[0])
    localisers = FoldLocalisers(tmp_path, "smoke", ["split_and_global", "view_fusion"])
    found = localisers.locate(study, 0)
    assert list(found) == ["split_and_global"] and set(found["split_and_global"].points) == set(ROWS)
    assert FoldLocalisers(tmp_path, "smoke", ["split_and_global"]).locate(study, 1) == {}


def test_a_recipe_that_is_named_by_its_file_locates_its_worst_rows(
    data: tuple[Path, ForeignTruth], tmp_path: Path
) -> None:
    path = tmp_path / "mine.yaml"
    text = (RECIPES / "split_and_global.yaml").read_text()
    path.write_text(text.replace("name: split_and_global", "name: mine"))
    recipe = load_named(str(path), "smoke")
    write_runs(tmp_path / "runs", recipe)
    random, study = np.random.default_rng(2), data[1].train[0]
    names = [study, *(f"study{number}" for number in range(3))]
    labels = pd.DataFrame(random.integers(0, 3, (4, 25)), index=names, columns=list(ROWS))
    tables = [
        rows_of(
            "mine",
            one.pooled_as,
            "mine",
            0,
            {name: {row: random.normal(size=3) for row in ROWS} for name in names},
            labels,
        )
        for one in recipe.members()
        if one.member.role == "grader"
    ]
    write(RunFolder(tmp_path / "runs", recipe).out_of_fold(0), pd.concat(tables, ignore_index=True))
    sources = read_sources(tmp_path / "runs", "smoke", [str(path)], None)
    assert [run.named for run in sources.runs] == [str(path)]
    text = made(
        tmp_path / "runs", tmp_path / "page.html", "--recipes", str(path), "--data", str(data[0]), "--worst", "100"
    )
    assert "Only this point is drawn" not in text and "Crosses: where" in text
