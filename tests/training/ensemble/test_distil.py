"""A student's soft labels, and its place beside its teacher."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from kernels.lumbar.labels import ROWS
from tests.training.ensemble.test_ensemble_sources import FIRST, SECOND, STUDIES, write_recipe, write_seconds
from tests.training.ensemble.test_foreign_ensemble import write_foreign, write_labels
from training.data.out_of_fold import read, write
from training.data.soft_labels import read_soft_labels
from training.ensemble import find
from training.ensemble.distil import main
from training.evaluation.metric import pooled
from training.recipe_schema.load import RECIPES

STUDENT = "student"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two recipes with their ensemble, in which no network answers one row, and a student of fold 0."""
    folder = tmp_path_factory.mktemp("distil") / "runs"
    for name in (FIRST, SECOND):
        profile = write_recipe(folder, name)
        for path in profile.glob("out_of_fold*.parquet"):
            table = read([path])
            here = (table["study"] == "004") & (table["row"] == ROWS[7])
            table.loc[here, ["normal_mild", "moderate", "severe"]] = np.nan
            write(path, table)
    given = ["--runs", str(folder), "--out", str(folder / "ensemble.json"), "--profile", "smoke"]
    assert find.main([*given, "--recipes", FIRST, SECOND]) == 0
    profile = write_recipe(folder, STUDENT, (0,))
    write_seconds(profile, {"student_all_tiny": 0.05}, {STUDENT: 0.1})
    return folder


def run(runs: Path, command: str, out: Path, *more: str) -> int:
    return main([command, "--runs", str(runs), "--profile", "smoke", "--out", str(out), *more])


def test_soft_labels_are_the_ensembles_cross_fitted_answers(runs: Path, tmp_path: Path, capsys) -> None:
    assert run(runs, "labels", tmp_path / "soft.csv") == 0
    studies = [f"{study:03d}" for study in range(STUDIES)]
    rows = read_soft_labels(tmp_path / "soft.csv", studies)[1]
    unknown = np.isnan(rows).any(2)
    assert unknown.sum() == 1 and unknown[4, 7], "what no network answers is not made up"
    labels = np.full((STUDIES, 25), -100)
    for path in (runs / FIRST / "smoke").glob("out_of_fold*.parquet"):
        for one in read([path]).itertuples():
            labels[int(one.study), ROWS.index(one.row)] = one.label
    labels[unknown] = -100
    score = pooled(labels, np.nan_to_num(rows, nan=1 / 3)).final
    found = json.loads((runs / "ensemble.json").read_text())
    assert score == pytest.approx(found["scores"]["cross_fitted"]["final"]["value"], abs=0.01)
    assert f"599 rows of {STUDIES} studies" in capsys.readouterr().out


def test_the_table_goes_from_the_student_to_the_whole_ensemble(runs: Path, tmp_path: Path, capsys) -> None:
    assert run(runs, "compare", tmp_path) == 0
    student, *parts = json.loads((tmp_path / "distil.json").read_text())
    order = json.loads((runs / "ensemble.json").read_text())["order"]
    assert student["name"] == STUDENT and student["seconds"] == pytest.approx(0.15) and student["members"] == 1
    assert [one["members"] for one in parts] == list(range(1, len(order) + 1))
    seconds = [one["seconds"] for one in parts]
    assert seconds == sorted(seconds) and parts[-1]["against"]["value"] == 0
    assert student["against"]["value"] == pytest.approx(
        student["scores"]["final"]["value"] - parts[-1]["scores"]["final"]["value"]
    )
    printed = capsys.readouterr().out
    assert "student" in printed and "the whole ensemble" in printed and "at 1/" in printed
    assert (tmp_path / "distil.png").read_bytes().startswith(b"\x89PNG")


def test_a_teacher_may_have_members_from_elsewhere_or_nothing_else(runs: Path, tmp_path: Path, capsys) -> None:
    theirs, data = write_foreign(tmp_path / "theirs", {"strong": 6.0}), write_labels(tmp_path / "data")
    elsewhere = ["--oof", str(theirs), "--data", str(data)]
    for where in (runs, tmp_path / "nowhere"):
        path = tmp_path / "ensemble.json"
        named = ["--recipes", FIRST, SECOND] if where == runs else []
        given = ["--runs", str(where), "--profile", "smoke", "--out", str(path), *elsewhere, *named]
        assert find.main(given) == 0
        assert run(where, "labels", tmp_path / "soft.csv", "--ensemble", str(path), *elsewhere) == 0
        rows = read_soft_labels(tmp_path / "soft.csv")[1]
        assert rows.shape == (STUDIES, 25, 3) and np.isfinite(rows).all()
        capsys.readouterr()
        assert run(runs, "compare", tmp_path, "--ensemble", str(path), *elsewhere) == 0
        assert "to the ensemble; their seconds are not all known" in capsys.readouterr().out
        assert json.loads((tmp_path / "distil.json").read_text())[-1]["seconds"] is None
        assert run(where, "labels", tmp_path / "none.csv", "--ensemble", str(path)) == 1
        assert "contains elsewhere/strong" in (said := capsys.readouterr().err) and "with OOF=" in said
        assert not (tmp_path / "none.csv").exists()


def test_a_teacher_that_is_a_file_is_named(runs: Path, tmp_path: Path, capsys) -> None:
    own = tmp_path / "mine.yaml"
    own.write_text((RECIPES / f"{FIRST}.yaml").read_text().replace(f"name: {FIRST}", "name: mine", 1))
    write_recipe(tmp_path / "runs", str(own))
    given = ["--runs", str(tmp_path / "runs"), "--profile", "smoke", "--recipes", str(own)]
    assert find.main([*given, "--out", str(tmp_path / "runs" / "ensemble.json")]) == 0
    assert run(tmp_path / "runs", "labels", tmp_path / "soft.csv", "--recipes", str(own)) == 0
    capsys.readouterr()
    assert run(tmp_path / "runs", "labels", tmp_path / "soft.csv") == 1
    assert "uses mine, which is no recipe of this project: name its file with TEACHERS=" in capsys.readouterr().err


def test_what_is_missing_is_said_in_one_sentence(runs: Path, tmp_path: Path, capsys) -> None:
    assert run(runs, "labels", tmp_path / "soft.csv", "--ensemble", str(tmp_path / "none.json")) == 1
    assert "none.json is not there: make ensemble writes it" in capsys.readouterr().err
    assert run(runs, "compare", tmp_path, "--student", "level_sequence") == 1
    assert "level_sequence has no out-of-fold answers" in capsys.readouterr().err
    one = tmp_path / "runs"
    write_recipe(one, FIRST, (0,))
    given = ["--runs", str(one), "--out", str(one / "ensemble.json"), "--profile", "smoke"]
    assert find.main(given) == 0 and run(one, "labels", tmp_path / "soft.csv") == 1
    assert "answers the studies of fold 0 alone" in capsys.readouterr().err and not (tmp_path / "soft.csv").exists()
