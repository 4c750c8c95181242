"""`make relabel`: planted label errors are found, other labels left, and no answer depends on its study's own label."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from kernels.lumbar.labels import ROWS
from tests.training.ensemble.test_ensemble_search import answers_with
from tests.training.ensemble.test_ensemble_sources import FIRST, write_recipe
from tests.training.ensemble.test_foreign_ensemble import write_foreign, write_labels
from training.data.label_correction import read_labels
from training.data.label_table import COLUMNS, LabelTable
from training.data.out_of_fold import Answers
from training.ensemble.nested import nested_answers
from training.ensemble.relabel import Relabelling, changes_of, copying, free, main, report_of

RATE = 0.1


def planted(answers: Answers, rate: float = RATE, seed: int = 1) -> tuple[Answers, np.ndarray]:
    """Answers whose labels have errors at this rate, and where these are."""
    random = np.random.default_rng(seed)
    errors = (random.random(answers.labels.shape) < rate) & (answers.labels >= 0)
    moved = (answers.labels + random.integers(1, 3, answers.labels.shape)) % 3
    return replace(answers, labels=np.where(errors, moved, answers.labels)), errors


def places(answers: Answers, changes: list) -> np.ndarray:
    found = np.zeros(answers.labels.shape, bool)
    for one in changes:
        found[answers.studies.index(one.study), ROWS.index(one.row)] = True
    return found


def test_most_planted_errors_are_found_and_few_others_touched() -> None:
    answers, errors = planted(answers_with([(4, 4, 4), (4, 4, 4), (4, 4, 4)], 120))
    nested = nested_answers(answers)
    changes = changes_of(answers, nested, Relabelling())
    found, labelled = places(answers, changes), answers.labels >= 0
    assert found[errors].mean() > 0.8 and found[labelled & ~errors].mean() < 0.02
    doubts = [one.doubt for one in changes]
    assert doubts == sorted(doubts, reverse=True) and min(doubts) >= 0.8
    assert errors[found].mean() > 0.85, "most of what is changed was wrong"
    stricter = places(answers, changes_of(answers, nested, Relabelling(threshold=0.95)))
    assert stricter.sum() < found.sum() and not (stricter & ~found).any()
    text = report_of(answers, nested, changes, Relabelling())
    assert f"{len(changes)} of {labelled.sum()} labels" in text and changes[0].row in text


def test_nothing_is_found_in_answers_that_know_nothing() -> None:
    answers, errors = planted(answers_with([(0, 0, 0), (0, 0, 0)], 60))
    found = places(answers, changes_of(answers, nested_answers(answers), Relabelling()))
    assert found[errors].mean() < 0.25


def test_the_answers_of_a_study_do_not_depend_on_its_own_label() -> None:
    answers = answers_with([(3, 0, 1), (0, 3, 1), (1, 1, 3)], 20, silence=0.2)
    before = nested_answers(answers)
    labels = answers.labels.copy()
    labels[7] = np.where(labels[7] >= 0, (labels[7] + 1) % 3, 2)
    after = nested_answers(replace(answers, labels=labels))
    np.testing.assert_array_equal(after[7], before[7])
    its_fold = answers.folds == answers.folds[7]
    np.testing.assert_array_equal(after[its_fold], before[its_fold])
    assert not np.array_equal(np.nan_to_num(after[~its_fold]), np.nan_to_num(before[~its_fold])), "nothing was fitted"


def test_in_a_lone_fold_it_does_not_either() -> None:
    answers = answers_with([(3, 0, 1), (0, 3, 1)], 15)
    answers = replace(answers, folds=np.zeros(15, int))
    before = nested_answers(answers)
    labels = answers.labels.copy()
    labels[4] = 2
    np.testing.assert_array_equal(nested_answers(replace(answers, labels=labels))[4], before[4])


def test_what_no_member_answers_stays_and_missing_labels_are_answered_where_asked() -> None:
    answers = answers_with([(6, 6, 6), (6, 6, 6)], 30)
    answers.logits[:, 3] = np.nan
    nested = nested_answers(answers)
    assert np.isnan(nested[3]).all() and not np.isnan(nested[:3]).any()
    changes = changes_of(answers, nested, Relabelling(mix=True, guess=0.7))
    assert "3" not in {one.study for one in changes}
    guessed = [one for one in changes if one.label < 0]
    missing = (answers.labels < 0) & ~np.isnan(nested[..., 0])
    assert 0 < len(guessed) <= missing.sum() and {one.use for one in guessed} == {"answer"}
    assert min(one.answer.max() for one in guessed) > 0.7
    assert {one.use for one in changes if one.label >= 0} <= {"both"}
    assert not [one for one in changes_of(answers, nested, Relabelling()) if one.label < 0]


def test_the_table_is_what_train_all_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_recipe(tmp_path / "runs", FIRST)
    given = ["--runs", str(tmp_path / "runs"), "--profile", "smoke", "--threshold", "0.6", "--mix"]
    assert main([*given, "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    table = read_labels(tmp_path / "out" / "relabelled.csv")
    assert isinstance(table, LabelTable) and len(table.changes) > 0 and set(table.changes["use"]) == {"both"}
    assert pd.read_csv(tmp_path / "out" / "relabelled.csv").columns.tolist() == COLUMNS
    assert f"{len(table.changes)} changed labels" in printed and "spinal_canal_stenosis" in printed
    again = f"{tmp_path}/runs-relabelled"
    assert f"next: mkdir {again} && cp -a {tmp_path}/runs/. {again} && make train-all DATA=… RUNS={again} " in printed
    assert f"RECIPES={FIRST} LABELS={tmp_path}/out/relabelled.csv" in printed
    kept = (tmp_path / "out" / "relabelled.md").read_text()
    assert "most doubtful" in kept and "→" in kept


def test_the_printed_copy_is_one_of_its_own_however_often_it_is_made(tmp_path: Path) -> None:
    runs = tmp_path / "my runs"
    (runs / "alpha").mkdir(parents=True)
    for _ in range(2):
        assert subprocess.run(copying(runs, free(runs)), shell=True, check=False).returncode == 0
    assert subprocess.run(copying(runs, tmp_path / "my runs-relabelled"), shell=True, check=False).returncode
    copies = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")}
    assert copies == {
        f"my runs{copy}{name}" for copy in ("", "-relabelled", "-relabelled-2") for name in ("", "/alpha")
    }


def test_other_peoples_answers_alone_will_do(tmp_path: Path) -> None:
    theirs, data = write_foreign(tmp_path / "theirs", {"a": 6.0, "b": 6.0}), write_labels(tmp_path / "data")
    given = ["--runs", str(tmp_path / "no"), "--oof", str(theirs), "--data", str(data), "--guess", "0.5"]
    assert main([*given, "--out", str(tmp_path / "out")]) == 0
    table = read_labels(tmp_path / "out" / "relabelled.csv")
    assert isinstance(table, LabelTable) and set(table.changes["use"]) == {"answer"}


@pytest.mark.parametrize(("option", "name"), [("--threshold", "THRESHOLD"), ("--guess", "GUESS")])
@pytest.mark.parametrize("value", ["0", "1", "80%", "nan"])
def test_a_probability_is_one(tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, name: str, value: str):
    assert main(["--runs", str(tmp_path), "--out", str(tmp_path / "out"), option, value]) == 1
    said = capsys.readouterr().err
    assert f"{name} is a probability between 0 and 1" in said and said.count("\n") == 1
    assert not (tmp_path / "out").exists()
