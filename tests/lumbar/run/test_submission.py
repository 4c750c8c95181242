"""The file that Kaggle reads."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from kernels.lumbar.answers.priors import public_priors
from kernels.lumbar.labels import ROWS, SEVERITIES
from kernels.lumbar.run.competition import read_series_table
from kernels.lumbar.run.output_check import add_to_report, submission_fault
from kernels.lumbar.run.submission import Submission, SubmissionError, check
from kernels.lumbar.run.tables import read_table


def sample(path: Path, row_ids: list[str], **extra: object) -> Path:
    pd.DataFrame({"row_id": row_ids, **dict.fromkeys(SEVERITIES, 1 / 3), **extra}).to_csv(path, index=False)
    return path


def ids(*studies: str) -> list[str]:
    return [f"{study}_{row}" for study in studies for row in ROWS]


def frame_of(submission: Submission, folder: Path) -> pd.DataFrame:
    """What it writes."""
    submission.write(folder / "written.csv")
    return pd.read_csv(folder / "written.csv", dtype={"row_id": str})


def test_priors_fill_every_row_in_the_samples_own_order(tmp_path: Path) -> None:
    order = ids("44036939", "7")[::-1]
    submission = Submission(sample(tmp_path / "sample.csv", order, remark="x"), public_priors())
    submission.write(tmp_path / "submission.csv")
    frame = pd.read_csv(tmp_path / "submission.csv")
    assert list(frame["row_id"]) == order
    assert list(frame.columns) == ["row_id", *SEVERITIES]
    assert np.abs(frame[list(SEVERITIES)].sum(axis=1) - 1).max() < 1e-12
    assert frame.iloc[0]["severe"] == pytest.approx(public_priors()[ROWS[-1]][2])


def test_setting_a_study_changes_that_study_alone(tmp_path: Path) -> None:
    submission = Submission(sample(tmp_path / "sample.csv", ids("1", "2")), public_priors())
    before = frame_of(submission, tmp_path)
    submission.set("2", np.tile([0.2, 0.3, 0.5], (25, 1)))
    after = frame_of(submission, tmp_path)
    assert after.iloc[:25].equals(before.iloc[:25])
    assert np.allclose(after.iloc[25:][list(SEVERITIES)], [0.2, 0.3, 0.5])


def test_line_ends_byte_order_mark_and_unknown_rows(tmp_path: Path) -> None:
    path = tmp_path / "sample.csv"
    rows = [
        "\ufeffrow_id,normal_mild,moderate,severe",
        "9_spinal_canal_stenosis_l1_l2,0,0,1",
        "9_elbow_pain_l1_l2,0,0,1",
        "",
    ]
    text = "\r\n".join(rows)
    path.write_bytes(text.encode())
    submission = Submission(path, public_priors())
    assert submission.unknown_rows == ["9_elbow_pain_l1_l2"]
    assert np.allclose(frame_of(submission, tmp_path).iloc[1][list(SEVERITIES)].astype(float), 1 / 3)


NAMES = ("PAT_001", "PAT_002", "NA", "007", "123.0", "null", "1_spinal_canal_stenosis_l1_l2", "a,b", "-1")


def test_a_study_keeps_its_name_whatever_it_is_called(tmp_path: Path) -> None:
    submission = Submission(sample(tmp_path / "sample.csv", ids(*NAMES)), public_priors())
    assert submission.studies == list(NAMES) and submission.unknown_rows == []
    for number, name in enumerate(NAMES, 1):
        submission.set(name, np.tile([number, 1.0, 1.0], (25, 1)))
    submission.write(tmp_path / "submission.csv")
    assert submission_fault(tmp_path, tmp_path / "sample.csv") == ""
    written = pd.DataFrame(read_table(tmp_path / "submission.csv"))
    assert list(written["row_id"]) == ids(*NAMES)
    found = written["normal_mild"].astype(float).to_numpy().reshape(len(NAMES), 25)
    assert np.allclose(found, [[number / (number + 2)] for number in range(1, len(NAMES) + 1)])
    add_to_report(tmp_path, [], [], 1.0)
    assert json.loads((tmp_path / "run_report.json").read_text())["studies"]["asked"] == len(NAMES)


def test_the_series_of_a_study_are_found_whatever_it_is_called(tmp_path: Path) -> None:
    rows = [f'"{name}",{series},Sagittal T1' for name in NAMES for series in ("NA", "01.0")]
    (tmp_path / "series.csv").write_text("\n".join(["study_id,series_id,series_description", *rows, "NA", ",1,"]))
    table = read_series_table(tmp_path / "series.csv")
    assert table.problems == []
    assert table.series == dict.fromkeys(NAMES, [("NA", "sagittal_t1"), ("01.0", "sagittal_t1")])


@pytest.mark.parametrize("content", ["", "row_id\n", "id,severe\n1,2\n"])
def test_a_sample_that_asks_for_nothing_is_an_error(tmp_path: Path, content: str) -> None:
    (tmp_path / "sample.csv").write_text(content)
    with pytest.raises(SubmissionError, match="sample.csv"):
        Submission(tmp_path / "sample.csv", public_priors())


def test_an_invalid_table_never_replaces_the_file(tmp_path: Path) -> None:
    submission = Submission(sample(tmp_path / "sample.csv", ids("1")), public_priors())
    submission.write(tmp_path / "submission.csv")
    good = (tmp_path / "submission.csv").read_bytes()
    submission.set("1", np.full((25, 3), np.nan))
    with pytest.raises(SubmissionError, match="not probabilities"):
        submission.write(tmp_path / "submission.csv")
    assert (tmp_path / "submission.csv").read_bytes() == good


def test_a_table_is_checked_by_columns_ids_and_values_of_pandas_or_not(tmp_path: Path) -> None:
    submission = Submission(sample(tmp_path / "sample.csv", ids("1")), public_priors())
    frame = frame_of(submission, tmp_path)
    texts = {name: [str(cell) for cell in frame[name]] for name in frame}
    check(frame, submission.row_ids)
    check(texts, submission.row_ids)
    with pytest.raises(SubmissionError, match="order"):
        check(frame.iloc[::-1], submission.row_ids)
    with pytest.raises(SubmissionError, match="the columns are row_id, normal_mild, severe, moderate"):
        check(frame[["row_id", "normal_mild", "severe", "moderate"]], submission.row_ids)
    with pytest.raises(ValueError, match="none"):
        check(texts | {"severe": ["none"] * 25}, submission.row_ids)
    with pytest.raises(SubmissionError, match="25 rows are not probabilities"):
        check(texts | {"severe": ["0.9"] * 25}, submission.row_ids)
