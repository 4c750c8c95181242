"""The picture of the kernel's stages: drawn with weights and without, and one sentence where nothing can be."""

from __future__ import annotations

from pathlib import Path

import cv2
import pytest

from kernels.lumbar.labels import ROWS
from training.evaluation import pipeline_picture
from training.evaluation.pipeline_picture import main, run_stages


def studies_of(data: Path, split: str) -> list[str]:
    return sorted(folder.name for folder in (data / f"{split}_images").iterdir())


def test_a_study_is_drawn_from_slices_to_rows(two_studies: Path, seeing: Path, tmp_path: Path) -> None:
    study, out = studies_of(two_studies, "test")[0], tmp_path / "new" / "picture.png"
    stages = run_stages(two_studies, study, seeing, "l4_l5")
    assert set(stages.located) == set(ROWS) and stages.rows.shape == (25, 3) and len(stages.crops) == 5
    pipeline_picture.draw_stages(stages, "l4_l5", out)
    height, width, _ = cv2.imread(str(out)).shape
    assert (width, height) == (1210, 550)


def test_without_weights_the_truth_and_the_priors_are_drawn(two_studies: Path, tmp_path: Path) -> None:
    given = ["--data", str(two_studies), "--out", str(tmp_path / "one.png"), "--study"]
    assert main([*given, studies_of(two_studies, "train")[0]]) == 0
    assert (tmp_path / "one.png").is_file()


def test_what_is_missing_ends_it_with_one_sentence(
    two_studies: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--data", str(two_studies), "--out", str(tmp_path / "none.png"), "--study"]
    assert main([*given, studies_of(two_studies, "test")[0]]) == 1
    assert "give --weights to locate its landmarks" in capsys.readouterr().err
    assert not (tmp_path / "none.png").exists()
