"""Predictions of other people's models: read as answers of ours, or refused with a sentence that says what to do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from kernels.lumbar.answers.ensemble import softmax
from kernels.lumbar.labels import ROWS, SEVERITIES
from training.data.folds import FoldsError
from training.data.foreign_answers import read_foreign
from training.data.out_of_fold import OutOfFoldError, answers_of

STUDIES = ["10", "11", "12", "13"]
LABELS = pd.DataFrame(1, index=STUDIES, columns=list(ROWS))


def predictions(studies: list[str], seed: int = 0, rows: tuple[str, ...] = ROWS) -> pd.DataFrame:
    values = np.random.default_rng(seed).dirichlet(np.ones(3), len(studies) * len(rows))
    table = pd.DataFrame(values, columns=list(SEVERITIES))
    table.insert(0, "row_id", [f"{study}_{row}" for study in studies for row in rows])
    return table


def write_folds(folder: Path, folds: list[int], studies: list[str] | None = None) -> None:
    pd.DataFrame({"study_id": studies or STUDIES, "fold": folds}).to_csv(folder / "folds.csv", index=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Member one of everything; two of the canal in the first fold."""
    write_folds(tmp_path, [5, 5, 7, 7])
    predictions(STUDIES).to_csv(tmp_path / "one.csv", index=False)
    predictions(STUDIES[:2], 1, ROWS[-5:]).to_csv(tmp_path / "Net-two.csv", index=False)
    return tmp_path


def test_members_are_read_in_any_order_with_what_they_leave_out(folder: Path) -> None:
    shuffled = pd.read_csv(folder / "one.csv", dtype=str).sample(frac=1, random_state=1)
    shuffled[["severe", "row_id", "normal_mild", "moderate"]].to_csv(folder / "one.csv", index=False)
    answers = answers_of(read_foreign(folder, LABELS, {}))
    assert answers.members == ("elsewhere/Net-two", "elsewhere/one") and answers.studies == tuple(STUDIES)
    assert answers.folds.tolist() == [5, 5, 7, 7] and (answers.labels == 1).all()
    expected = predictions(STUDIES)[list(SEVERITIES)].to_numpy().reshape(4, 25, 3)
    np.testing.assert_allclose(softmax(answers.logits[1]), expected, atol=1e-5)
    canal = answers.logits[0]
    assert np.isfinite(canal[:2, -5:]).all() and np.isnan(canal[:, :-5]).all() and np.isnan(canal[2:]).all()
    assert answers.evaluated is not None and answers.evaluated.tolist() == [[True, True, False, False], [True] * 4]


@pytest.mark.parametrize("way", ["quoted", "mark", "spaces", "spreadsheet"])
def test_a_csv_is_read_as_spreadsheets_write_it(folder: Path, way: str) -> None:
    expected = answers_of(read_foreign(folder, LABELS, {}))
    for path in folder.glob("*.csv"):
        text = path.read_text()
        if way in ("quoted", "spreadsheet"):
            text = "".join(",".join(f'"{cell}"' for cell in line.split(",")) + "\n" for line in text.splitlines())
        if way in ("spaces", "spreadsheet"):
            text = text.replace(",", " , ")
        path.write_text(text, encoding="utf-8-sig" if way in ("mark", "spreadsheet") else "utf-8")
    found = answers_of(read_foreign(folder, LABELS, {}))
    np.testing.assert_array_equal(found.logits, expected.logits)
    assert found.folds.tolist() == expected.folds.tolist() and found.members == expected.members


def test_folds_are_renumbered_to_ours_and_others_are_refused(folder: Path) -> None:
    ours = dict(zip(STUDIES, [1, 1, 0, 0], strict=True))
    assert answers_of(read_foreign(folder, LABELS, ours)).folds.tolist() == [1, 1, 0, 0]
    assert answers_of(read_foreign(folder, LABELS, {"10": 0})).folds.tolist() == [0, 0, 1, 1]
    for folds in ([0, 1, 1, 1], [0, 0, 0, 0]):
        with pytest.raises(OutOfFoldError, match="these are other folds than ours .*copied to RUNS/<recipe>/folds.csv"):
            read_foreign(folder, LABELS, dict(zip(STUDIES, folds, strict=True)))


def test_what_is_written_as_0_is_not_sure(folder: Path) -> None:
    table = predictions(STUDIES)
    table.loc[0, list(SEVERITIES)] = [1.0, 0.0, 0.0]
    table.to_csv(folder / "one.csv", index=False)
    logits = answers_of(read_foreign(folder, LABELS, {})).logits[1, 0, ROWS.index(ROWS[0])]
    np.testing.assert_allclose(softmax(logits), [1, 1e-6, 1e-6], atol=1e-5, rtol=0.1)


def changed(change: Callable[[pd.DataFrame], pd.DataFrame]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        change(pd.read_csv(folder / "one.csv", dtype={"row_id": str})).to_csv(folder / "one.csv", index=False)

    return apply


def at(line: int, **values: object) -> Callable[[Path], None]:
    def change(table: pd.DataFrame) -> pd.DataFrame:
        new = {name: table[name].astype(object).where(table.index != line, value) for name, value in values.items()}
        return table.assign(**new)

    return changed(change)


WRONG = [
    (at(3, severe=0.9, moderate=0.9), r"one.csv, line 5: .* do not sum to 1: write probabilities.*\(1 lines\)"),
    (at(3, severe=-0.1), "line 5: a probability is missing, negative or no number"),
    (at(3, severe=""), "line 5: a probability is missing, negative or no number"),
    (at(0, row_id="10_knee_l1_l2"), "line 2: row_id does not end in one of the 25 rows"),
    (at(1, row_id=f"10_{ROWS[0]}"), "line 3: row_id occurs again"),
    (changed(lambda table: table.iloc[:-2]), rf"lacks 2 rows \(the first: 13_{ROWS[23]}\): predict the same rows"),
    (changed(lambda table: table[~table["row_id"].str.startswith("13")]), "lacks 25 rows .the first: 13_"),
    (changed(lambda table: table.iloc[:0]), "one.csv has no rows"),
    (
        changed(lambda table: table.drop(columns="severe")),
        "lacks the columns severe: write it as sample_sub",
    ),
    (lambda folder: write_folds(folder, [0, 0, 1], STUDIES[:3]), "has 1 studies that folds.csv does not name .*13"),
    (lambda folder: write_folds(folder, [0, 0, 1, 1, 1], [*STUDIES, "99"]), "1 studies that our data do not have .*99"),
    (lambda folder: (folder / "folds.csv").unlink(), "folds.csv is not there: write study_id and fold"),
]


@pytest.mark.parametrize(("spoil", "sentence"), WRONG)
def test_what_cannot_be_right_is_refused(folder: Path, spoil: Callable[[Path], None], sentence: str) -> None:
    (folder / "Net-two.csv").unlink()
    spoil(folder)
    with pytest.raises(OutOfFoldError, match=sentence) as refused:
        read_foreign(folder, LABELS, {})
    assert "\n" not in str(refused.value)


def test_a_folder_of_nothing_and_folds_that_are_no_numbers(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(OutOfFoldError, match="nowhere is no folder"):
        read_foreign(tmp_path / "nowhere", LABELS, {})
    (folder / "folds.csv").write_text("study_id,fold\n10,first\n")
    with pytest.raises(FoldsError, match="no table of study_id and fold .*: write these two columns"):
        read_foreign(folder, LABELS, {})
    (folder / "folds.csv").write_text("study_id,fold\n10,0\n11,0\n10,1\n")
    with pytest.raises(FoldsError, match="has study 10 in two folds: write these two columns"):
        read_foreign(folder, LABELS, {})
    for path in folder.glob("*.csv"):
        path.unlink()
    with pytest.raises(OutOfFoldError, match="holds no predictions: put a CSV there"):
        read_foreign(folder, LABELS, {})
