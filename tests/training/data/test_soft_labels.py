"""Soft labels: the table, and the targets that they become."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kernels.lumbar.labels import ROW_INDEX, SEVERITY_WEIGHTS
from training.data.out_of_fold import OutOfFoldError
from training.data.soft_labels import read_soft_labels, target_masses, write_soft_labels

HEADER = "study_id,condition,level,normal_mild,moderate,severe\n"
LINE = "07,left_subarticular_stenosis,l4_l5,0.2,0.3,0.5\n"


def test_what_is_written_is_read_and_the_rest_is_unknown(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).dirichlet([1, 1, 1], (3, 25))
    rows[1, 4:9] = np.nan
    path = tmp_path / "soft.csv"
    write_soft_labels(path, ["07", "8", "NA"], rows)
    assert read_soft_labels(path)[0] == ("07", "8", "NA") and path.read_text().startswith(HEADER)
    np.testing.assert_allclose(read_soft_labels(path, ["07", "8", "NA"])[1], rows, atol=1e-12)
    found = read_soft_labels(path, ["NA", "other"])[1]
    np.testing.assert_allclose(found[0], rows[2], atol=1e-12)
    assert np.isnan(found[1]).all()


def test_a_row_is_found_by_condition_and_level(tmp_path: Path) -> None:
    path = tmp_path / "soft.csv"
    path.write_text(HEADER + LINE)
    found = read_soft_labels(path, ["07"])[1][0]
    place = ROW_INDEX["left_subarticular_stenosis_l4_l5"]
    assert found[place].tolist() == pytest.approx([0.2, 0.3, 0.5]) and np.isnan(found).any(1).sum() == 24


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (HEADER.replace(",level", ""), "lacks the columns level"),
        (HEADER + LINE + LINE.replace("0.2,0.3", "0.3,0.2"), "line 3: this row occurs twice: correct the line"),
        (HEADER + LINE.replace("l4_l5", "l6"), "line 2: condition and level are none of the 25 rows"),
        (HEADER + LINE.replace("0.5", "0.9"), "line 2: no three probabilities that sum to 1"),
        (HEADER + LINE.replace("0.5", "much"), "no three probabilities"),
        (HEADER + LINE.replace("0.5", ""), "no three probabilities"),
    ],
)
def test_a_wrong_table_is_refused_with_its_line(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "soft.csv"
    path.write_text(text)
    with pytest.raises(OutOfFoldError, match=reason):
        read_soft_labels(path, ["07"])


def test_a_table_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(OutOfFoldError, match=r"none\.csv does not exist"):
        read_soft_labels(tmp_path / "none.csv")


def test_masses_of_labels_are_their_weights_and_of_nothing_none() -> None:
    unknown = np.full((4, 3), np.nan)
    found = target_masses(np.array([0, 1, 2, -100]), unknown, 0.5)
    assert found.tolist() == [[1, 0, 0], [0, 2, 0], [0, 0, 4], [0, 0, 0]] and found.dtype == np.float32


def test_the_mass_of_an_answer_is_what_the_metric_expects_of_it() -> None:
    """An answer p · w / Σ p · w is best where a row is of severity k with probability p."""
    probable = np.array([0.6, 0.3, 0.1])
    expected = probable * SEVERITY_WEIGHTS
    answer = expected / expected.sum()
    np.testing.assert_allclose(target_masses(np.array([-1]), answer[None], 0.5)[0], expected, rtol=1e-6)
    mixed = target_masses(np.array([2]), answer[None], 0.25)[0]
    np.testing.assert_allclose(mixed, 0.25 * expected + 0.75 * np.array([0, 0, 4]), rtol=1e-6)
    np.testing.assert_allclose(target_masses(np.array([2]), answer[None], 1.0)[0], expected, rtol=1e-6)
