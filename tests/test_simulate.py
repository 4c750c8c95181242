"""The simulated Kaggle session: what a notebook sees there, what it may not do, and what is left of it."""

from __future__ import annotations

import json
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest

from kernels import simulate
from kernels.build_notebook import COMPETITION, DATASET_SLUG

COLUMNS = ["row_id", "normal_mild", "moderate", "severe"]
SAMPLE = pd.DataFrame({"row_id": ["7_a", "7_b"], "normal_mild": 1 / 3, "moderate": 1 / 3, "severe": 1 / 3})

SUBMIT = """
import os, pandas
from pathlib import Path
inputs = Path(os.environ["LUMBAR_INPUT_ROOT"])
sample = next(inputs.rglob("sample_submission.csv"))
pandas.read_csv(sample).to_csv("submission.csv", index=False)
"""

PROBE = (
    SUBMIT
    + """
import json, socket, subprocess, sys

def outcome(action):
    try:
        action()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "done"

child = "import socket; socket.create_connection(('192.0.2.1', 80), timeout=1)"
Path("run_report.json").write_text(json.dumps({
    "files": sorted(str(path.relative_to(inputs)) for path in inputs.rglob("*")),
    "images": sorted(path.name for path in (sample.parent / "test_images" / "7" / "8").iterdir()),
    "mode": oct(sample.stat().st_mode & 0o777),
    "working": sorted(path.name for path in Path.cwd().iterdir()),
    "out": os.environ["LUMBAR_OUT"] == str(Path.cwd()),
    "limit": os.environ.get("LUMBAR_TIME_LIMIT"),
    "kernels": outcome(lambda: __import__("kernels")),
    "connect": outcome(lambda: socket.create_connection(("192.0.2.1", 80), timeout=1)),
    "resolve": outcome(lambda: socket.getaddrinfo("example.org", 80)),
    "child": subprocess.run([sys.executable, "-c", child], capture_output=True, text=True).stderr,
}))
print("as it comes")
"""
)


def write_notebook(path: Path, *cells: str) -> Path:
    document = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    nbformat.write(document, path)
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data folder of one study, with a truth beside it that no notebook may see."""
    folder = tmp_path / "data"
    (folder / "test_images" / "7" / "8").mkdir(parents=True)
    (folder / "test_images" / "7" / "8" / "1.dcm").write_bytes(b"pixels")
    (folder / "test_series_descriptions.csv").write_text("study_id,series_id,series_description\n7,8,Sagittal T1\n")
    SAMPLE.to_csv(folder / "sample_submission.csv", index=False)
    (folder / "truth").mkdir()
    (folder / "truth" / "answers.csv").write_text("secret")
    return folder


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    folder = tmp_path / "weights"
    folder.mkdir()
    for name in ("manifest.json", "weights-0.bin", "dataset-metadata.json"):
        (folder / name).write_text("{}")
    return folder


def run(data: Path, weights: Path, out: Path, notebook: Path, *options: str) -> int:
    given = ["--data", str(data), "--weights", str(weights), "--out", str(out), "--notebook", str(notebook)]
    return simulate.main([*given, *options])


@pytest.mark.parametrize("layout", ["new", "old"])
def test_notebook_sees_what_kaggle_would_show(tmp_path, data, weights, layout, capsys):
    notebook = write_notebook(tmp_path / "probe.ipynb", PROBE)
    out = tmp_path / "out"
    assert run(data, weights, out, notebook, "--layout", layout, "--time-limit", "77") == 0
    names = ["executed.ipynb", "log.txt", "run_report.json", "submission.csv"]
    assert sorted(path.name for path in out.iterdir()) == names
    assert "as it comes" in capsys.readouterr().out
    assert "as it comes" in (out / "log.txt").read_text()

    seen = json.loads((out / "run_report.json").read_text())
    competition = {"new": f"competitions/{COMPETITION}", "old": COMPETITION}[layout]
    dataset = {"new": f"datasets/{simulate.OWNER}/{DATASET_SLUG}", "old": DATASET_SLUG}[layout]
    assert f"{competition}/sample_submission.csv" in seen["files"]
    assert [name for name in seen["files"] if name.startswith(dataset + "/")] == [
        f"{dataset}/manifest.json",
        f"{dataset}/weights-0.bin",
    ]
    assert not [name for name in seen["files"] if "truth" in name]
    assert seen["images"] == ["1.dcm"]
    assert seen["mode"] == "0o444"
    assert seen["working"] == ["submission.csv"]
    assert seen["out"] is True
    assert seen["limit"] == "77.0"
    assert "must not import" in seen["kernels"]
    for way in ("connect", "resolve", "child"):
        assert "no network" in seen[way]


def test_failed_cell_leaves_the_executed_notebook_and_nothing_old(tmp_path, data, weights, capsys):
    out = tmp_path / "out"
    out.mkdir()
    (out / "submission.csv").write_text("of an earlier run")
    notebook = write_notebook(tmp_path / "broken.ipynb", "print('before')", "1 / 0")
    assert run(data, weights, out, notebook) == 1
    message = capsys.readouterr().err
    assert message.startswith("simulate: a cell of the notebook failed: ZeroDivisionError") and message.count("\n") == 1
    assert sorted(path.name for path in out.iterdir()) == ["executed.ipynb", "log.txt"]
    executed = nbformat.read(out / "executed.ipynb", as_version=4)
    assert executed.cells[1].outputs[0].ename == "ZeroDivisionError"


def test_notebook_past_its_limit_is_stopped(tmp_path, data, weights, capsys, monkeypatch):
    monkeypatch.setattr(simulate, "GRACE_S", 0.0)
    notebook = write_notebook(tmp_path / "slow.ipynb", "import time\ntime.sleep(60)")
    assert run(data, weights, tmp_path / "out", notebook, "--time-limit", "1") == 1
    assert "past its limit" in capsys.readouterr().err


def test_changed_inputs_are_an_error(tmp_path, data, weights, capsys):
    write = "next(inputs.rglob('test_images')).resolve().joinpath('7', 'stray.txt').write_text('x')"
    notebook = write_notebook(tmp_path / "writer.ipynb", SUBMIT, write)
    assert run(data, weights, tmp_path / "out", notebook) == 1
    assert "changed its read-only inputs" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda table: table.iloc[::-1], "not those of sample_submission"),
        (lambda table: table.iloc[:1], "not those of sample_submission"),
        (lambda table: table.rename(columns={"severe": "grave"}), "columns"),
        (lambda table: table.assign(severe=np.nan), "no probabilities"),
        (lambda table: table.assign(severe=0.5), "no probabilities"),
        (lambda table: table.assign(severe=-1 / 3, normal_mild=1.0), "no probabilities"),
    ],
)
def test_submissions_that_would_not_be_scored(tmp_path, data, change, reason):
    path = tmp_path / "submission.csv"
    change(SAMPLE).to_csv(path, index=False)
    with pytest.raises(simulate.SimulationError, match=reason):
        simulate.check_submission(path, data / "sample_submission.csv")


def test_good_submission_is_counted(data):
    assert simulate.check_submission(data / "sample_submission.csv", data / "sample_submission.csv") == 2


def test_wrong_arguments_are_one_sentence(tmp_path, data, weights, capsys):
    notebook = write_notebook(tmp_path / "any.ipynb", SUBMIT)
    (tmp_path / "empty").mkdir()
    for folders, word in (
        ((tmp_path / "empty", weights, tmp_path / "out", notebook), "lacks test_series_descriptions.csv"),
        ((data, tmp_path / "empty", tmp_path / "out", notebook), "lacks manifest.json"),
        ((data, weights, tmp_path / "out", tmp_path / "no.ipynb"), "is missing"),
    ):
        assert run(*folders) == 1
        message = capsys.readouterr().err
        assert word in message and message.count("\n") == 1
    assert not (tmp_path / "out").exists()
