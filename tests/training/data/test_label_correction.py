"""Labels corrected by out-of-fold answers: only those of the studies that are trained on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from kernels.lumbar.labels import ROWS
from training.data import out_of_fold
from training.data.label_correction import check_coverage, read_predictions, soft_labels_of, with_corrected_labels
from training.data.out_of_fold import OutOfFoldError
from training.data.soft_labels import write_soft_labels
from training.data.tables import Tables
from training.recipe_schema.fitting import Labels

STUDIES = ["1", "2", "3"]


def tables() -> Tables:
    labels = pd.DataFrame(0, index=STUDIES, columns=list(ROWS))
    labels.loc["1", ROWS[1]] = -100
    labels.loc["2", ROWS[2]] = 2
    return Tables(labels, {}, pd.DataFrame(), "made up")


def write_answers(path: Path, studies: Sequence[str]) -> None:
    """All sure of severity 0, but for row 1, where they are sure of 2."""
    answers = {study: {row: np.array([5.0, 0.0, 0.0]) for row in ROWS} for study in studies}
    for own in answers.values():
        own[ROWS[1]] = np.array([0.0, 0.0, 5.0])
    path.parent.mkdir(parents=True, exist_ok=True)
    out_of_fold.write(path, out_of_fold.rows_of("a", "m", "a", 0, answers, tables().labels))


@pytest.fixture
def opinions(tmp_path):
    """Study 3 was never answered."""
    write_answers(tmp_path / "oof.parquet", STUDIES[:2])
    return read_predictions(tmp_path / "oof.parquet")


def test_contradicted_labels_are_left_out_and_missing_ones_filled_in(opinions):
    changed = with_corrected_labels(tables(), opinions, Labels(doubt=0.8, guess=0.9), STUDIES).labels
    assert changed.loc["1", ROWS[1]] == 2, "filled in"
    assert changed.loc["2", ROWS[2]] == -100 and changed.loc["2", ROWS[1]] == -100, "contradicted"
    assert (changed.loc["3"] == 0).all(), "nobody knows better"
    untouched = [row for row in ROWS if row not in (ROWS[1], ROWS[2])]
    assert (changed[untouched] == 0).all(axis=None)


def test_held_out_studies_are_judged_by_their_own_labels(opinions):
    changed = with_corrected_labels(tables(), opinions, Labels(doubt=0.8, guess=0.9), ["1"]).labels
    pd.testing.assert_frame_equal(changed.loc[["2", "3"]], tables().labels.loc[["2", "3"]])


@pytest.mark.parametrize("asked", [Labels(), Labels(doubt=0.999), Labels(guess=0.999)])
def test_nothing_is_changed_that_is_not_asked_for_or_not_sure_enough(opinions, asked):
    pd.testing.assert_frame_equal(with_corrected_labels(tables(), opinions, asked, STUDIES).labels, tables().labels)
    whole = tables()
    assert with_corrected_labels(whole, None, Labels(doubt=0.5), STUDIES) is whole


def test_the_folder_of_one_run_is_read_whole(tmp_path):
    for fold, study in enumerate(STUDIES[:2]):
        write_answers(tmp_path / "one" / "smoke" / f"out_of_fold{fold}.parquet", [study])
    assert read_predictions(tmp_path / "one" / "smoke").studies == ("1", "2")


def test_a_folder_of_several_runs_is_refused_and_they_are_named(tmp_path):
    for run in ("one/smoke", "two/bench"):
        write_answers(tmp_path / run / "out_of_fold0.parquet", STUDIES)
    with pytest.raises(OutOfFoldError) as refused:
        read_predictions(tmp_path)
    assert str(refused.value) == (
        f"LABELS={tmp_path} holds no answers itself, folders below it do: "
        f"name one of {tmp_path / 'one' / 'smoke'}, {tmp_path / 'two' / 'bench'}"
    )


@pytest.mark.parametrize(("name", "sentence"), [("none", "does not exist: name"), ("", "holds no out-of-fold answers")])
def test_what_holds_no_answers_is_refused(tmp_path, name, sentence):
    with pytest.raises(OutOfFoldError, match=rf"LABELS={tmp_path / name} {sentence}.*RUNS/<recipe>/<profile>"):
        read_predictions(tmp_path / name)


def test_answers_for_some_studies_are_counted_and_for_none_refused(opinions, caplog):
    check_coverage(opinions, pd.DataFrame(index=STUDIES[:2]))
    assert not caplog.records
    check_coverage(opinions, pd.DataFrame(index=STUDIES))
    assert "answers 2 of the 3 training studies: the labels of the other 1 stay as they are" in caplog.text
    with pytest.raises(OutOfFoldError, match="answers none of the studies of DATA="):
        check_coverage(opinions, pd.DataFrame(index=["3", "4"]))


def test_soft_labels_are_read_from_a_table_and_given_for_training_studies_alone(opinions, tmp_path):
    rows = np.random.default_rng(0).dirichlet([1, 1, 1], (2, 25))
    rows[1, 3] = np.nan
    path = tmp_path / "soft.csv"
    write_soft_labels(path, STUDIES[:2], rows)
    earlier = read_predictions(path)
    assert earlier.studies == ("1", "2") and earlier.fingerprint != opinions.fingerprint
    found = soft_labels_of(earlier, Labels(soft=0.5), ["2", "3"])
    assert list(found) == ["2"]
    np.testing.assert_allclose(found["2"], rows[1])
    assert soft_labels_of(earlier, Labels(doubt=0.8), STUDIES) == {} == soft_labels_of(None, Labels(soft=0.5), STUDIES)
    np.testing.assert_array_equal(soft_labels_of(opinions, Labels(soft=1.0), ["1"])["1"], opinions.probabilities[0])
    pd.testing.assert_frame_equal(
        with_corrected_labels(tables(), earlier, Labels(soft=0.5), STUDIES).labels, tables().labels
    )
