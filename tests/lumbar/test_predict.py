"""The kernel on bad input: a complete valid file, and every fallback named."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from kernels.lumbar import predict
from kernels.lumbar.labels import ROWS, SEVERITIES
from kernels.lumbar.networks.weights import manifest_digest
from kernels.lumbar.run.submission import check
from tests.support import ROOT
from tests.support.dicom.dicom_factory import write_foreign_dataset

STUDIES = 3


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_foreign_dataset(folder, studies=1, seed=8, test_studies=STUDIES)
    return folder


@pytest.fixture(scope="module")
def weights(package: Path) -> Path:
    return package


@pytest.fixture
def competition(data: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(data, tmp_path / "competition"))


def run(competition: Path, weights: Path, out: Path, *more: str) -> tuple[pd.DataFrame, dict]:
    """A run must end with code 0 and a valid file, whatever it met."""
    given = ["--competition", str(competition), "--weights", str(weights), "--out", str(out), *more]
    assert predict.main(given) == 0
    frame = pd.read_csv(out / "submission.csv", dtype={"row_id": str})
    sample = pd.read_csv(competition / "sample_submission.csv", dtype={"row_id": str}, encoding="utf-8-sig")
    check(frame, list(sample["row_id"]))
    return frame, json.loads((out / "run_report.json").read_text())


@pytest.fixture(scope="module")
def healthy(data: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    frame, report = run(data, weights, tmp_path_factory.mktemp("healthy"))
    assert report["studies"] == {"asked": STUDIES, "graded": STUDIES}
    assert report["threads"] == torch.get_num_threads()
    assert report["fallbacks"]["guessed"] == {"rows": 0, "studies": {}}
    return frame


def studies_of(competition: Path) -> list[str]:
    return sorted(path.name for path in (competition / "test_images").iterdir())


def first_series(competition: Path, kind: str) -> Path:
    table = pd.read_csv(competition / "test_series_descriptions.csv", dtype=str)
    one = table[(table["study_id"] == studies_of(competition)[0]) & (table["series_description"] == kind)].iloc[0]
    return competition / "test_images" / one["study_id"] / one["series_id"]


def spoil_files(change: Callable[[Path], object]) -> Callable[[Path], None]:
    def spoil(competition: Path) -> None:
        for path in sorted(first_series(competition, "Sagittal T1").iterdir()):
            change(path)

    return spoil


def keep_one(competition: Path) -> None:
    for path in sorted(first_series(competition, "Axial T2").iterdir())[1:]:
        path.unlink()


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "study folder missing": (lambda c: shutil.rmtree(c / "test_images" / studies_of(c)[0]), ""),
    "series folder missing": (lambda c: shutil.rmtree(first_series(c, "Sagittal T1")), ""),
    "all files empty": (spoil_files(lambda path: path.write_bytes(b"")), ""),
    "text named dcm": (spoil_files(lambda path: path.write_text("no image")), ""),
    "truncated pixels": (spoil_files(lambda path: path.write_bytes(path.read_bytes()[:-3000])), ""),
    "single slice": (keep_one, "*"),
    "foreign file": (lambda c: (first_series(c, "Sagittal T1") / "thumbs.db").write_bytes(b"\x00" * 99), ""),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_spoilt_study_costs_itself_alone(
    name: str, competition: Path, weights: Path, healthy: pd.DataFrame, tmp_path: Path
) -> None:
    spoil, allowed = FAULTS[name]
    victim = studies_of(competition)[0]
    spoil(competition)
    frame, report = run(competition, weights, tmp_path / "out")
    others = ~frame["row_id"].str.startswith(victim)
    pd.testing.assert_frame_equal(frame[others], healthy[others], check_exact=True)
    if allowed != "*":
        assert victim in {problem["study"] for problem in report["problems"]}, "the problem is not named"


def test_a_missing_sagittal_t1_leaves_foramina_to_the_prior(
    competition: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(first_series(competition, "Sagittal T1"))
    _, report = run(competition, weights, tmp_path / "out")
    fallen = report["fallbacks"]["studies"].get(studies_of(competition)[0], [])
    # The global grader still answers from the views that exist: a row is the prior only where nothing was seen.
    assert all("foraminal" in row or "subarticular" in row for row in fallen)
    # What it answers so is counted: at guessed landmarks, without the series that shows them.
    study, guessed = studies_of(competition)[0], report["fallbacks"]["guessed"]
    assert set(guessed["studies"]) == {study} and guessed["rows"] == len(guessed["studies"][study]) > 0
    assert all("foraminal" in row for row in guessed["studies"][study])
    assert not set(fallen) & set(guessed["studies"][study])
    assert f"; {guessed['rows']} were answered from other series at guessed landmarks" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (lambda text: text.replace("series_description", "description"), "wrong-table"),
        (lambda text: text.replace("Sagittal T1", "Coronal T1"), "unknown-series-description"),
        (lambda text: "", "unreadable-table"),
    ],
)
def test_a_wrong_series_table(
    competition: Path, weights: Path, tmp_path: Path, change: Callable[[str], str], kind: str
) -> None:
    path = competition / "test_series_descriptions.csv"
    path.write_text(change(path.read_text()))
    _, report = run(competition, weights, tmp_path / "out")
    assert report["problem_counts"][kind] >= 1


def test_a_study_that_only_the_sample_knows_keeps_its_prior(competition: Path, weights: Path, tmp_path: Path) -> None:
    path = competition / "sample_submission.csv"
    more = "".join(f"999_{row},0.3,0.3,0.4\n" for row in ROWS)
    path.write_text(path.read_text() + more)
    _, report = run(competition, weights, tmp_path / "out")
    assert report["fallbacks"]["studies"]["999"] == list(ROWS)
    line, other = report["by_study"]["999"], report["by_study"][studies_of(competition)[0]]
    assert (line["state"], line["prior_rows"], line["problems"]["no-series"]) == ("not graded", 25, 1)
    assert other["state"] == "graded" and other["seconds"] > line["seconds"] >= 0
    assert report["problem_counts"]["no-series"] == 1


def test_corrupt_weights_cost_that_member_not_the_submission(competition: Path, weights: Path, tmp_path: Path) -> None:
    spoilt = Path(shutil.copytree(weights, tmp_path / "weights"))
    manifest = json.loads((spoilt / "manifest.json").read_text())
    victim = manifest["artefacts"][-1]
    pack = spoilt / victim["weights"]["file"]
    content = bytearray(pack.read_bytes())
    content[victim["weights"]["offset"] + 100] ^= 0xFF
    pack.write_bytes(content)
    _, report = run(competition, spoilt, tmp_path / "out")
    assert victim["member"]["name"] not in report["members_used"]
    assert len(report["members_used"]) == len(manifest["artefacts"]) - 1
    assert report["problem_counts"]["member-unusable"] == 1


@pytest.mark.parametrize("content", [None, "{", '{"format": "lumbar-kit-manifest", "format_version": 99}'])
def test_without_a_usable_manifest_the_priors_stand(
    competition: Path, tmp_path: Path, healthy: pd.DataFrame, content: str | None
) -> None:
    weights = tmp_path / "weights"
    weights.mkdir()
    if content is not None:
        (weights / "manifest.json").write_text(content)
    frame, report = run(competition, weights, tmp_path / "out")
    assert report["problem_counts"] == {"no-manifest": 1}
    assert report["fallbacks"]["never_graded"] == STUDIES
    assert len(frame[list(SEVERITIES)].drop_duplicates()) == 15


def test_no_time_leaves_priors(competition: Path, weights: Path, tmp_path: Path) -> None:
    _, report = run(competition, weights, tmp_path / "out", "--time-limit", "0")
    assert report["studies"]["graded"] == 0
    assert report["problem_counts"]["out-of-time"] == 1


def test_without_competition_data_one_sentence_and_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert predict.main(["--input-root", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "no folder holds test_series_descriptions.csv" in capsys.readouterr().err


def test_rows_follow_the_sample_whatever_its_order(
    competition: Path, weights: Path, healthy: pd.DataFrame, tmp_path: Path
) -> None:
    path = competition / "sample_submission.csv"
    sample = pd.read_csv(path, dtype={"row_id": str}).sample(frac=1, random_state=4)
    sample.assign(remark="é").to_csv(path, index=False, lineterminator="\r\n")
    frame, _ = run(competition, weights, tmp_path / "out")
    expected = healthy.set_index("row_id").loc[frame["row_id"]].reset_index()
    assert np.array_equal(frame[list(SEVERITIES)], expected[list(SEVERITIES)])


def test_other_weights_than_the_notebook_was_pushed_for_are_refused_with_both_digests(data, weights, tmp_path, capsys):
    """Platform trap 6: an old or foreign version of the dataset ends the public run within seconds."""
    given = ["--competition", str(data), "--weights", str(weights), "--out", str(tmp_path)]
    attached = manifest_digest(weights / "manifest.json")
    assert predict.main([*given, "--manifest", "0" * 64]) == 3
    said = capsys.readouterr().err
    assert attached in said and "0" * 64 in said
    report = json.loads((tmp_path / "run_report.json").read_text())
    assert report["problem_counts"] == {"foreign-weights": 1} and report["members_used"] == []
    sample = pd.read_csv(data / "sample_submission.csv", dtype={"row_id": str}, encoding="utf-8-sig")
    check(pd.read_csv(tmp_path / "submission.csv", dtype={"row_id": str}), list(sample["row_id"]))


def test_the_scoring_rerun_takes_foreign_weights_that_prove_themselves(data, weights, healthy, tmp_path, monkeypatch):
    monkeypatch.setenv("KAGGLE_IS_COMPETITION_RERUN", "1")
    frame, report = run(data, weights, tmp_path, "--manifest", "0" * 64)
    pd.testing.assert_frame_equal(frame, healthy)
    assert report["problem_counts"]["foreign-weights"] == 1


def test_expected_weights_are_found_among_several(data, weights, healthy, tmp_path):
    root = tmp_path / "input"
    for name in ("other", "wanted"):
        shutil.copytree(weights, root / name)
    manifest = root / "other" / "manifest.json"
    manifest.write_text(manifest.read_text() + "\n")
    wanted = manifest_digest(root / "wanted" / "manifest.json")
    given = ["--competition", str(data), "--input-root", str(root), "--out", str(tmp_path), "--manifest", wanted]
    assert predict.main(given) == 0
    report = json.loads((tmp_path / "run_report.json").read_text())
    assert report["manifest_sha256"] == wanted and report["studies"]["graded"] == STUDIES


KERNEL_WITHOUT = """
import sys
sys.modules.update(dict.fromkeys(sys.argv.pop(1).split(","), None))  # importing these raises ImportError
from kernels.lumbar import predict
predict.run_process()
"""


def run_without(modules: str, competition: Path, weights: Path, out: Path) -> tuple[pd.DataFrame, dict]:
    """A kernel process that cannot import some modules."""
    given = ["--competition", str(competition), "--weights", str(weights), "--out", str(out)]
    done = subprocess.run([sys.executable, "-c", KERNEL_WITHOUT, modules, *given], cwd=ROOT, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    frame = pd.read_csv(out / "submission.csv", dtype={"row_id": str})
    return frame, json.loads((out / "run_report.json").read_text())


def test_the_first_file_needs_no_torch(data: Path, weights: Path, tmp_path: Path) -> None:
    frame, report = run_without("torch,cv2,pydicom,pandas,pydantic", data, weights, tmp_path)
    check(frame, list(pd.read_csv(data / "sample_submission.csv", dtype={"row_id": str})["row_id"]))
    assert len(frame[list(SEVERITIES)].drop_duplicates()) == 15, "public priors"
    assert report["problem_counts"] == {"run-cut-short": 1} and report["torch"] == "none"


def test_the_kernel_imports_no_pandas(data: Path, weights: Path, healthy: pd.DataFrame, tmp_path: Path) -> None:
    frame, report = run_without("pandas,matplotlib,torchvision", data, weights, tmp_path)
    np.testing.assert_allclose(frame[list(SEVERITIES)], healthy[list(SEVERITIES)], atol=1e-6)
    assert report["studies"]["graded"] == STUDIES and report["threads"] >= 1
