"""Label errors are planted at their rate and counted where they are found; scores are compared in pairs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from kernels.lumbar.labels import ROWS, SEVERITIES
from training.benchmarks.label_noise.__main__ import NOISY, compared, main
from training.benchmarks.label_noise.plant import found_by, planted, write_noisy
from training.data.label_correction import read_labels
from training.data.label_table import LabelTable, write_label_table
from training.data.tables import read_labels as read_truth


def labels_of(studies: int) -> pd.DataFrame:
    values = np.random.default_rng(0).choice([0, 1, 2, -100], (studies, 25), p=[0.6, 0.2, 0.15, 0.05])
    return pd.DataFrame(values, [str(100 + at) for at in range(studies)], list(ROWS))


def test_errors_are_planted_at_their_rate_in_labels_alone() -> None:
    clean = labels_of(200)
    noisy = planted(clean, 0.1)
    changed = (clean != noisy).to_numpy()
    known = (clean >= 0).to_numpy()
    assert not changed[~known].any() and changed[known].mean() == pytest.approx(0.1, abs=0.01)
    assert noisy.to_numpy()[known].min() >= 0 and noisy.to_numpy().max() == 2
    pd.testing.assert_frame_equal(noisy, planted(clean, 0.1))


def test_the_noisy_folder_is_the_data_but_for_the_labels(tmp_path: Path) -> None:
    data = tmp_path / "data"
    (data / "train_images" / "100").mkdir(parents=True)
    texts = {0: "Normal/Mild", 1: "Moderate", 2: "Severe", -100: ""}
    labels_of(20).replace(texts).rename_axis("study_id").to_csv(data / "train.csv")
    for _ in range(2):
        noisy = write_noisy(data, tmp_path / "noisy", 0.2)
    assert (noisy / "train_images" / "100").is_dir() and not (noisy / "train.csv").is_symlink()
    expected = planted(labels_of(20), 0.2)
    np.testing.assert_array_equal(read_truth(noisy / "train.csv").to_numpy(), expected.to_numpy())


def test_what_is_found_is_counted(tmp_path: Path) -> None:
    clean = labels_of(40)
    noisy = planted(clean, 0.1)
    wrong = [(clean.index[study], ROWS[row]) for study, row in np.argwhere((clean != noisy).to_numpy())]
    right = [(study, row) for study in clean.index for row in ROWS if clean.loc[study, row] >= 0]
    right = [one for one in right if one not in wrong]
    chosen = [*wrong[: len(wrong) // 2], *right[:5]]
    lines = [
        {"study_id": study, "row": row, "label": int(noisy.loc[study, row]), "use": "nothing", "answer": np.ones(3) / 3}
        for study, row in chosen
    ]
    write_label_table(tmp_path / "table.csv", lines)
    table = read_labels(tmp_path / "table.csv")
    assert isinstance(table, LabelTable)
    found = found_by(table, clean, noisy)
    assert found.planted == len(wrong) and found.recall == pytest.approx(len(wrong) // 2 / len(wrong))
    assert found.touched == pytest.approx(5 / len(right))
    assert found.precision == pytest.approx(len(wrong) // 2 / (len(wrong) // 2 + 5))


def test_scores_are_compared_with_the_first() -> None:
    solution = labels_of(60)
    random, names = np.random.default_rng(1), [f"{study}_{row}" for study in solution.index for row in ROWS]

    def answered(skill: float) -> pd.DataFrame:
        logits = skill * np.eye(3)[solution.to_numpy().clip(0)].reshape(-1, 3) + random.normal(size=(len(names), 3))
        rows = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        return pd.DataFrame(rows, names, list(SEVERITIES)).sample(frac=1, random_state=2)

    text, figures = compared(solution, {NOISY: answered(1.0), "better": answered(4.0)}, "10 % wrong")
    gain = figures["better"]["less_the_first"]
    assert gain["verdict"] == "better" and gain["value"] < -0.2  # type: ignore[index]
    assert "60 test studies" in text and "better" in text


@pytest.mark.parametrize("noise", ["0", "1.5"])
def test_a_share_of_labels_is_one(tmp_path: Path, capsys: pytest.CaptureFixture[str], noise: str) -> None:
    assert main(["--data", str(tmp_path), "--out", str(tmp_path / "out"), "--noise", noise]) == 1
    assert "NOISE is a share of all labels" in capsys.readouterr().err and not (tmp_path / "out").exists()
