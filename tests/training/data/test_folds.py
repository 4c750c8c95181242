"""Folds: by study, even in what matters, written once."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from kernels.lumbar.labels import ROWS, group_of
from training.data.folds import FoldsError, make_folds, read_or_make_folds, read_shared_folds
from training.data.tables import MISSING, Tables

SPINAL = [row for row in ROWS if group_of(row) == "spinal"]


def labels_of(studies=200, seed=0, shares=(0.78, 0.16, 0.06)):
    random = np.random.default_rng(seed)
    values = random.choice(3, (studies, len(ROWS)), p=shares)
    values[: studies // 2] = np.minimum(values[: studies // 2], random.choice(3, (studies // 2, len(ROWS)), p=shares))
    values[random.random(values.shape) < 0.01] = MISSING
    return pd.DataFrame(values, index=[str(study) for study in random.permutation(10**6)[:studies]], columns=list(ROWS))


def tables_of(labels):
    return Tables(labels, {}, pd.DataFrame(), "fingerprint")


def test_every_study_is_in_one_fold_and_severe_ones_are_spread():
    labels = labels_of()
    folds = pd.Series(make_folds(labels, 5, seed=42))
    assert list(folds.index) == list(labels.index)
    assert folds.value_counts().to_dict() == pytest.approx(dict.fromkeys(range(5), 40), abs=1)
    severe = (labels[SPINAL] == 2).any(axis=1).groupby(folds).sum()
    abnormal = (labels > 0).sum(axis=1).groupby(folds).mean()
    assert severe.max() - severe.min() <= 2
    assert abnormal.max() - abnormal.min() < 0.15 * abnormal.mean()


def test_folds_depend_on_the_seed_and_not_on_the_order_of_the_table():
    labels = labels_of()
    folds = make_folds(labels, 5, seed=42)
    assert make_folds(labels.sample(frac=1, random_state=1), 5, seed=42) == folds
    assert make_folds(labels, 5, seed=43) != folds


@pytest.mark.parametrize("studies", [2, 3, 7, 12])
@pytest.mark.parametrize("shares", [(1, 0, 0), (0.4, 0.3, 0.3), (0, 0, 1)])
def test_small_sets_and_rare_classes_are_split_too(studies, shares):
    folds = make_folds(labels_of(studies, 3, shares), 2, seed=0)
    sizes = np.bincount(list(folds.values()), minlength=2)
    assert sizes.sum() == studies and sizes.min() >= 1


def test_fewer_studies_than_folds_are_refused():
    with pytest.raises(FoldsError, match="3 studies cannot be split into 5 folds"):
        make_folds(labels_of(3), 5, seed=0)


def test_folds_are_written_once_and_read_back(tmp_path):
    path = tmp_path / "runs" / "recipe" / "folds.csv"
    tables = tables_of(labels_of())
    folds = read_or_make_folds(path, tables, 5, seed=42)
    text = path.read_text()
    assert text.splitlines()[0] == "study_id,fold" and [file.name for file in path.parent.iterdir()] == ["folds.csv"]
    assert read_or_make_folds(path, tables, 5, seed=7) == folds
    changed = {study: (fold + 1) % 5 for study, fold in folds.items()}
    pd.DataFrame({"study_id": list(changed), "fold": list(changed.values())}).to_csv(path, index=False)
    assert read_or_make_folds(path, tables, 5, seed=42) == changed


def test_a_recipe_and_that_of_its_localisers_have_the_same_folds_or_are_refused(tmp_path):
    shared, own, tables = tmp_path / "owner" / "folds.csv", tmp_path / "pupil" / "folds.csv", tables_of(labels_of(50))
    other = make_folds(tables.labels, 5, seed=43)
    own.parent.mkdir()
    pd.DataFrame({"study_id": list(other), "fold": list(other.values())}).to_csv(own, index=False)
    with pytest.raises(FoldsError, match="pupil.* has other folds than .*owner.*copy one file over the other"):
        read_shared_folds(shared, own, tables, 5, seed=42)
    assert not shared.exists()
    read_or_make_folds(shared, tables, 5, seed=42)
    with pytest.raises(FoldsError, match="localisers were trained on studies that it holds out"):
        read_shared_folds(shared, own, tables, 5, seed=42)
    shared.write_bytes(own.read_bytes())
    assert read_shared_folds(shared, own, tables, 5, seed=42) == other
    own.unlink()
    assert read_shared_folds(shared, own, tables, 5, seed=42) == other


def test_folds_of_other_studies_or_numbers_are_refused(tmp_path):
    path = tmp_path / "folds.csv"
    labels = labels_of(50)
    read_or_make_folds(path, tables_of(labels), 5, seed=42)
    with pytest.raises(FoldsError, match=r"1 studies differ\): name another folder with RUNS=, or delete"):
        read_or_make_folds(path, tables_of(labels.iloc[1:]), 5, seed=42)
    with pytest.raises(FoldsError, match="another number of folds"):
        read_or_make_folds(path, tables_of(labels), 4, seed=42)
    for damaged in ("", "study,fold\n1,2\n", "study_id,fold\n1,one\n"):
        path.write_text(damaged)
        with pytest.raises(FoldsError, match="is no table of study_id and fold"):
            read_or_make_folds(path, tables_of(labels), 5, seed=42)
