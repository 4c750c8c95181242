"""Tables of changed labels: written, read, refused, and what graders are trained on with them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from kernels.lumbar.labels import ROWS
from tests.support.networks.tiny_members import grader, localiser
from training.data.label_correction import check_coverage, corrected, is_changed, read_labels
from training.data.label_table import COLUMNS, LabelTable, write_label_table
from training.data.out_of_fold import OutOfFoldError
from training.data.soft_labels import target_masses
from training.data.tables import Tables
from training.fitting.losses.grade_losses import valid_slices_bce, weighted_bce, weighted_cross_entropy
from training.recipe_schema.fitting import Labels

STUDIES = ["1", "2", "3"]
ANSWER = np.array([0.1, 0.2, 0.7])
CHANGES = [
    {"study_id": "1", "row": ROWS[0], "label": 0, "use": "nothing", "answer": ANSWER},
    {"study_id": "1", "row": ROWS[3], "label": 0, "use": "both", "answer": ANSWER},
    {"study_id": "2", "row": ROWS[24], "label": -100, "use": "answer", "answer": ANSWER},
]


def tables() -> Tables:
    labels = pd.DataFrame(0, index=STUDIES, columns=list(ROWS))
    labels.loc["2", ROWS[24]] = -100
    return Tables(labels, {}, pd.DataFrame(), "made up")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_label_table(tmp_path / "table.csv", CHANGES)
    return tmp_path / "table.csv"


def test_labels_are_dropped_mixed_and_answered_in_training_studies_alone(path: Path) -> None:
    table = read_labels(path)
    assert isinstance(table, LabelTable) and table.studies == ("1", "2")
    changed, answers, member = corrected(tables(), table, grader(), STUDIES)
    expected = tables().labels
    expected.loc["1", ROWS[0]] = -100
    pd.testing.assert_frame_equal(changed.labels, expected)
    assert member.fitting.labels == Labels(soft=0.5) and set(answers) == {"1", "2"}
    np.testing.assert_allclose(answers["1"][3], ANSWER)
    np.testing.assert_allclose(answers["2"][24], ANSWER)
    assert np.isnan(answers["1"][[0, 1, 24]]).all() and np.isnan(answers["2"][:24]).all()
    held_out, none, _ = corrected(tables(), table, grader(), ["3"])
    pd.testing.assert_frame_equal(held_out.labels, tables().labels)
    assert none == {}


def test_an_answer_in_place_of_a_label_is_trained_on_alone(path: Path) -> None:
    """As by a line that was edited by hand."""
    path.write_text(path.read_text().replace("both", "answer"))
    changed, answers, member = corrected(tables(), read_labels(path), grader(), STUDIES)
    assert changed.labels.at["1", ROWS[3]] == -100
    (alone,) = target_masses(np.array([-100]), ANSWER[None], 0.5)
    shared = member.fitting.labels.soft
    assert shared is not None
    masses = target_masses(changed.labels.loc["1", list(ROWS)].to_numpy(int), answers["1"], shared)
    np.testing.assert_allclose(masses[3], alone)


def test_a_table_is_for_all_graders_whatever_their_recipes_ask(path: Path) -> None:
    table, doubting = read_labels(path), grader().with_fitting(labels=Labels(doubt=0.8))
    assert is_changed(table, grader()) and is_changed(table, doubting) and not is_changed(table, localiser())
    assert not is_changed(None, doubting)
    unchanged, none, _ = corrected(tables(), table, localiser(), STUDIES)
    pd.testing.assert_frame_equal(unchanged.labels, tables().labels)
    assert none == {}
    write_label_table(path, CHANGES[:1])
    assert corrected(tables(), read_labels(path), doubting, STUDIES)[2].fitting.labels == Labels(), "no label is soft"


def test_half_label_half_answer_is_half_of_each_loss() -> None:
    """Of an answer that is sure the target is a label; of labels the losses are those of severities."""
    random = torch.Generator().manual_seed(0)
    logits, severities = torch.randn(8, 2, 3, generator=random), torch.tensor([[0, 2], [1, -100]] * 4)
    other = torch.tensor([[2, 0], [2, 1]] * 4)
    sure = np.eye(3)[other.numpy()]
    unknown = np.full_like(sure, np.nan)
    hard, soft = (torch.from_numpy(target_masses(severities.numpy(), one, 0.5)) for one in (unknown, sure))
    labelled = severities >= 0
    for loss in (weighted_cross_entropy, weighted_bce):
        own, same = loss(logits, severities), loss(logits, hard)
        assert own.total.item() == pytest.approx(same.total.item()) and own.weight == same.weight
        alone, theirs = (
            loss(logits, other.masked_fill(labelled, -100)),
            loss(logits, other.masked_fill(~labelled, -100)),
        )
        expected = 0.5 * (own.total + theirs.total) + alone.total
        if loss is weighted_cross_entropy:
            assert loss(logits, soft).total.item() == pytest.approx(expected.item(), rel=1e-5)


def test_slices_take_the_masses_of_their_crop() -> None:
    said, distance_mm = torch.randn(2, 3, 1, 4), torch.tensor([1.0, 5.0, 30.0]).repeat(2, 1)[..., None]
    severities = torch.tensor([[2], [-100]])
    hard = torch.from_numpy(target_masses(severities.numpy(), np.full((2, 1, 3), np.nan), 0.5))
    own, same = valid_slices_bce(said, severities, distance_mm), valid_slices_bce(said, hard, distance_mm)
    assert own.mean.item() == pytest.approx(same.mean.item(), rel=1e-6) and own.mean > 0


def test_a_label_that_is_not_the_one_that_was_changed_is_refused(path: Path) -> None:
    other = tables()
    other.labels.loc["1", ROWS[3]] = 2
    with pytest.raises(OutOfFoldError, match=rf"changes 1 {ROWS[3]}, which train.csv does not label 'Normal/Mild'"):
        corrected(other, read_labels(path), grader(), STUDIES)
    with pytest.raises(OutOfFoldError, match="changes studies that DATA= does not have"):
        check_coverage(read_labels(path), tables().labels.loc[["1", "3"]])
    with pytest.raises(OutOfFoldError, match=rf"changes 1 {ROWS[3]}, which train.csv does not label"):
        check_coverage(read_labels(path), other.labels)
    check_coverage(read_labels(path), tables().labels)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("1,knee,l1_l2,Severe,nothing,1,0,0", "line 5: condition and level are none of the 25 rows"),
        ("3,spinal_canal_stenosis,l1_l2,Bad,nothing,1,0,0", "line 5: label is none of Normal/Mild"),
        ("3,spinal_canal_stenosis,l1_l2,Severe,maybe,1,0,0", "line 5: use is none of nothing, both, answer"),
        ("3,spinal_canal_stenosis,l1_l2,Severe,both,1,1,0", "line 5: the answer is used, and is no three prob"),
        ("3,spinal_canal_stenosis,l1_l2,,both,1,0,0", r"line 5: a missing label cannot be used \(both\)"),
        ("2,spinal_canal_stenosis,l5_s1,,answer,1,0,0", "line 5: this label is changed before"),
    ],
)
def test_a_line_that_cannot_be_right_is_named(path: Path, line: str, sentence: str) -> None:
    path.write_text(f"{path.read_text()}{line}\n")
    with pytest.raises(OutOfFoldError, match=sentence) as refused:
        read_labels(path)
    assert "\n" not in str(refused.value)


def test_a_table_may_be_edited_to_nothing(path: Path) -> None:
    path.write_text(",".join(COLUMNS) + "\n")
    table = read_labels(path)
    assert table.studies == ()
    check_coverage(table, tables().labels)
    changed, answers, _ = corrected(tables(), table, grader(), STUDIES)
    pd.testing.assert_frame_equal(changed.labels, tables().labels)
    assert answers == {}


def test_a_table_that_a_spreadsheet_saved_is_still_one_of_changed_labels(path: Path) -> None:
    lines = path.read_text().splitlines()
    quoted = [", ".join(f'"{cell}"' for cell in line.split(",")) for line in lines]
    path.write_text("\n".join(quoted), encoding="utf-8-sig")
    table = read_labels(path)
    assert isinstance(table, LabelTable) and len(table.changes) == len(CHANGES)
