"""Labels corrected by out-of-fold answers: only those of the studies that are trained on."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from kernels.lumbar.labels import ROWS
from training.data.opinions import read_opinions, with_corrected_labels
from training.data.tables import Tables
from training.evaluation import out_of_fold
from training.fit_spec import Labels

STUDIES = ["1", "2", "3"]


def tables() -> Tables:
    labels = pd.DataFrame(0, index=STUDIES, columns=list(ROWS))
    labels.loc["1", ROWS[1]] = -100
    labels.loc["2", ROWS[2]] = 2
    return Tables(labels, {}, pd.DataFrame(), "made up")


@pytest.fixture
def opinions(tmp_path):
    """All sure of severity 0, but for row 1, where they are sure of 2; study 3 was never answered."""
    answers = {study: {row: np.array([5.0, 0.0, 0.0]) for row in ROWS} for study in STUDIES[:2]}
    for own in answers.values():
        own[ROWS[1]] = np.array([0.0, 0.0, 5.0])
    out_of_fold.write(tmp_path / "oof.parquet", out_of_fold.rows_of("a", "m", "a", 0, answers, tables().labels))
    return read_opinions(tmp_path / "oof.parquet")


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
