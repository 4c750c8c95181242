"""The simulated Kaggle run: what a notebook sees in its two sessions, what it may not do, and what is left of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest

from kernels.build_notebook import COMPETITION, DATASET_SLUG
from kernels.simulate import __main__ as simulate
from kernels.simulate import mounting, session

ROWS = ["7_a", "7_b", "77_a", "77_b"]
SAMPLE = pd.DataFrame({"row_id": ROWS, "normal_mild": 1 / 3, "moderate": 1 / 3, "severe": 1 / 3})
# Not the smallest, so that the first of the table is another study than the first of the folder.
FIRST_STUDY, FIRST_ROWS = "77", ["77_a", "77_b"]

SUBMIT = """
import os, pandas
from pathlib import Path
inputs = Path(os.environ["LUMBAR_INPUT_ROOT"])
sample = next(inputs.rglob("sample_submission.csv"))
pandas.read_csv(sample).to_csv("submission.csv", index=False)
"""

OUTCOME = """
def outcome(action):
    try:
        action()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "done"
"""

PROBE = (
    SUBMIT
    + OUTCOME
    + """
import json, socket, subprocess, sys

child = "import socket; socket.create_connection(('192.0.2.1', 80), timeout=1)"
Path("run_report.json").write_text(json.dumps({
    "files": sorted(str(path.relative_to(inputs)) for path in inputs.rglob("*")),
    "studies": sorted(path.name for path in (sample.parent / "test_images").iterdir()),
    "series": pandas.read_csv(sample.parent / "test_series_descriptions.csv", dtype=str).to_dict("list"),
    "rows": list(pandas.read_csv(sample)["row_id"]),
    "images": sorted(path.name for path in sample.parent.glob("test_images/77/8/*")),
    "modes": sorted({oct(path.stat().st_mode & 0o777) for path in sample.parent.glob("*.csv")}),
    "working": sorted(path.name for path in Path.cwd().iterdir()),
    "home": sorted(path.name for path in Path.home().iterdir() if not path.name.startswith(".")),
    "kaggle": {key: value for key, value in os.environ.items() if key.startswith("KAGGLE_")},
    "out": os.environ["LUMBAR_OUT"] == str(Path.cwd()),
    "limit": os.environ.get("LUMBAR_TIME_LIMIT"),
    "kernels": outcome(lambda: __import__("kernels")),
    "connect": outcome(lambda: socket.create_connection(("192.0.2.1", 80), timeout=1)),
    "resolve": outcome(lambda: socket.getaddrinfo("example.org", 80)),
    "child": subprocess.run([sys.executable, "-c", child], capture_output=True, text=True).stderr,
}))
(Path.home() / "left.txt").write_text("of another session")
print("as it comes")
"""
)

NEEDS_PROC = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is watched through /proc")


def write_notebook(path: Path, *cells: str) -> Path:
    document = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    nbformat.write(document, path)
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data folder of two studies, with a truth beside it that no notebook may see."""
    folder = tmp_path / "data"
    for study in ("7", "77"):
        (folder / "test_images" / study / "8").mkdir(parents=True)
        (folder / "test_images" / study / "8" / "1.dcm").write_bytes(b"pixels")
    (folder / "test_series_descriptions.csv").write_text(
        "study_id,series_id,series_description\n77,08,Sagittal T1\n7,9,Axial T2\n"
    )
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


def run_all(data: Path, weights: Path, out: Path, notebook: Path, *options: str) -> int:
    """The rerun alone."""
    return run(data, weights, out, notebook, "--no-public", *options)


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("layout", ["new", "old"])
def test_notebook_sees_what_kaggle_would_show(tmp_path, data, weights, layout, capsys):
    notebook = write_notebook(tmp_path / "probe.ipynb", PROBE)
    out = tmp_path / "out"
    assert run_all(data, weights, out, notebook, "--layout", layout, "--time-limit", "77") == 0
    assert names_in(out) == ["executed.ipynb", "log.txt", "run_report.json", "submission.csv"]
    assert "as it comes" in capsys.readouterr().out
    assert "as it comes" in (out / "log.txt").read_text()

    seen = json.loads((out / "run_report.json").read_text())
    competition = {"new": f"competitions/{COMPETITION}", "old": COMPETITION}[layout]
    dataset = {"new": f"datasets/{mounting.OWNER}/{DATASET_SLUG}", "old": DATASET_SLUG}[layout]
    assert f"{competition}/sample_submission.csv" in seen["files"]
    assert [name for name in seen["files"] if name.startswith(dataset + "/")] == [
        f"{dataset}/manifest.json",
        f"{dataset}/weights-0.bin",
    ]
    assert not [name for name in seen["files"] if "truth" in name]
    assert seen["images"] == ["1.dcm"]
    assert seen["modes"] == ["0o444"]
    assert seen["working"] == ["submission.csv"]
    assert seen["out"] is True
    assert seen["limit"] == "77.0"
    assert "must not import" in seen["kernels"]
    for way in ("connect", "resolve", "child"):
        assert "no network" in seen[way]


def test_public_run_on_the_first_study_comes_before_the_rerun_on_all(tmp_path, data, weights, capsys):
    notebook, out = write_notebook(tmp_path / "probe.ipynb", PROBE), tmp_path / "out"
    before = mounting.fingerprint(data, weights)
    assert run(data, weights, out, notebook) == 0
    lines = capsys.readouterr().out.splitlines()
    runs = [[name, "as it comes", name] for name in ("public run", "rerun")]
    assert [line.split(":")[0] for line in lines] == [word for one in runs for word in one]
    assert (lines[0], lines[3]) == (
        "public run: the notebook on the first test study",
        "rerun: the notebook on all test studies",
    )
    assert names_in(out) == ["executed.ipynb", "log.txt", "public", "run_report.json", "submission.csv"]
    assert names_in(out / "public") == ["executed.ipynb", "log.txt", "run_report.json", "submission.csv"]
    assert mounting.fingerprint(data, weights) == before

    public, rerun = (json.loads((folder / "run_report.json").read_text()) for folder in (out / "public", out))
    assert public["kaggle"] == {"KAGGLE_KERNEL_RUN_TYPE": "Batch"}
    assert rerun["kaggle"] == public["kaggle"] | {"KAGGLE_IS_COMPETITION_RERUN": "1"}
    assert (public["studies"], rerun["studies"]) == ([FIRST_STUDY], ["7", "77"])
    assert (public["rows"], rerun["rows"]) == (FIRST_ROWS, ROWS)
    assert public["series"] == {"study_id": ["77"], "series_id": ["08"], "series_description": ["Sagittal T1"]}
    assert rerun["series"]["study_id"] == ["77", "7"]
    assert public["images"] == rerun["images"] == ["1.dcm"]
    assert public["modes"] == rerun["modes"] == ["0o444"]
    assert public["home"] == rerun["home"] == [], "the rerun sees what the public run left"
    assert list(pd.read_csv(out / "public" / "submission.csv")["row_id"]) == FIRST_ROWS
    assert list(pd.read_csv(out / "submission.csv")["row_id"]) == ROWS


def test_no_public_leaves_nothing_of_an_earlier_public_run(tmp_path, data, weights):
    notebook, out = write_notebook(tmp_path / "good.ipynb", SUBMIT), tmp_path / "out"
    assert run(data, weights, out, notebook) == 0
    assert (out / "public" / "submission.csv").is_file()
    assert run_all(data, weights, out, notebook) == 0
    assert not (out / "public").exists()


def test_failure_in_the_public_run_ends_the_simulation(tmp_path, data, weights, capsys):
    out = tmp_path / "out"
    (out / "public").mkdir(parents=True)
    for folder in (out, out / "public"):
        (folder / "submission.csv").write_text("of an earlier run")
    notebook = write_notebook(tmp_path / "broken.ipynb", "print('before')", "1 / 0")
    assert run(data, weights, out, notebook) == 1
    message = capsys.readouterr().err
    assert message.startswith("simulate: in the public run: a cell of the notebook failed: ZeroDivisionError")
    assert message.count("\n") == 1
    assert names_in(out) == ["public"]
    assert names_in(out / "public") == ["executed.ipynb", "log.txt"]
    executed = nbformat.read(out / "public" / "executed.ipynb", as_version=4)
    assert executed.cells[1].outputs[0].ename == "ZeroDivisionError"


def test_failure_in_the_rerun_is_named_and_leaves_no_submission(tmp_path, data, weights, capsys):
    submit_first_study_only = SUBMIT + "pandas.read_csv(sample).tail(2).to_csv('submission.csv', index=False)"
    notebook = write_notebook(tmp_path / "fixed.ipynb", submit_first_study_only)
    assert run(data, weights, tmp_path / "out", notebook) == 1
    assert "simulate: in the rerun: the rows of submission.csv are not those" in capsys.readouterr().err

    fail = "import os\nassert 'KAGGLE_IS_COMPETITION_RERUN' not in os.environ"
    notebook = write_notebook(tmp_path / "hidden.ipynb", fail, SUBMIT)
    assert run(data, weights, tmp_path / "out", notebook) == 1
    assert "simulate: in the rerun: a cell of the notebook failed: AssertionError" in capsys.readouterr().err
    assert names_in(tmp_path / "out") == ["executed.ipynb", "log.txt", "public"]


def test_notebook_past_its_limit_is_stopped(tmp_path, data, weights, capsys, monkeypatch):
    monkeypatch.setattr(session, "GRACE_S", 0.0)
    notebook = write_notebook(tmp_path / "slow.ipynb", "import time\ntime.sleep(60)")
    assert run(data, weights, tmp_path / "out", notebook, "--time-limit", "1") == 1
    assert "in the public run: the notebook ran 0 s past its limit" in capsys.readouterr().err


HOLD = "held = bytearray(b'x') * 400_000_000"
IN_CHILD = f"""
import subprocess, sys
subprocess.run([sys.executable, "-c", "import time; {HOLD}; time.sleep(60)"])
"""
SURVIVES = f"""
try:
    {HOLD}
    import time; time.sleep(60)
except BaseException:
    pass
"""


@NEEDS_PROC
@pytest.mark.parametrize("cell", [f"import time\n{HOLD}\ntime.sleep(60)", IN_CHILD, SURVIVES])
def test_notebook_that_holds_too_much_is_killed_by_the_memory_limit(tmp_path, data, weights, capsys, cell):
    notebook = write_notebook(tmp_path / "large.ipynb", SUBMIT, cell)
    assert run_all(data, weights, tmp_path / "out", notebook, "--memory-gb", "0.3") == 1
    message = capsys.readouterr().err
    assert "simulate: in the rerun: the notebook held more than 0.3 GB of memory and was killed" in message


@NEEDS_PROC
def test_memory_that_is_reserved_and_not_used_is_free(tmp_path, data, weights, capsys):
    reserve = "import mmap, time\nreserved = mmap.mmap(-1, 4_000_000_000)\ntime.sleep(0.5)"
    notebook = write_notebook(tmp_path / "reserving.ipynb", SUBMIT, reserve)
    assert run_all(data, weights, tmp_path / "out", notebook, "--memory-gb", "0.3") == 0


@NEEDS_PROC
def test_most_memory_held_is_reported(tmp_path, data, weights, capsys):
    notebook = write_notebook(tmp_path / "large.ipynb", SUBMIT, f"import time\n{HOLD}\ntime.sleep(1)\ndel held")
    assert run_all(data, weights, tmp_path / "out", notebook) == 0
    told = capsys.readouterr().out
    assert 0.4 <= float(told.split("at most ")[1].split(" GB")[0]) <= 0.7


def test_process_that_dies_is_said(tmp_path, data, weights, capsys):
    notebook = write_notebook(tmp_path / "dying.ipynb", "import os\nos._exit(1)")
    assert run_all(data, weights, tmp_path / "out", notebook) == 1
    assert "the notebook's process died" in capsys.readouterr().err


def test_inputs_refuse_to_be_written(tmp_path, data, weights):
    ways = {
        "open": "lambda: open(sample, 'a')",
        "create": "lambda: (sample.parent / 'new.txt').write_text('x')",
        "folder": "lambda: (inputs / 'new').mkdir()",
        "remove": "lambda: sample.unlink()",
        "rename": "lambda: sample.rename('mine.csv')",
        "link": "lambda: (inputs / 'new').symlink_to(sample)",
        "read": "lambda: open(sample).close()",
        "link to": "lambda: Path('mine.csv').symlink_to(sample)",
        "write": "lambda: Path('note.txt').write_text('x')",
    }
    actions = ", ".join(f"{name!r}: outcome({action})" for name, action in ways.items())
    report = f"import json\nPath('run_report.json').write_text(json.dumps({{{actions}}}))\nPath('mine.csv').unlink()"
    notebook = write_notebook(tmp_path / "writer.ipynb", SUBMIT, OUTCOME, report)
    assert run_all(data, weights, tmp_path / "out", notebook) == 0
    seen = json.loads((tmp_path / "out" / "run_report.json").read_text())
    assert {name for name, result in seen.items() if "Read-only file system" in result} == set(list(ways)[:6])
    assert {name for name, result in seen.items() if result == "done"} == {"read", "link to", "write"}


def test_changed_inputs_are_an_error(tmp_path, data, weights, capsys):
    write = "next(inputs.rglob('test_images')).resolve().joinpath('7', 'stray.txt').write_text('x')"
    notebook = write_notebook(tmp_path / "writer.ipynb", SUBMIT, write)
    assert run_all(data, weights, tmp_path / "out", notebook) == 1
    assert "in the rerun: the notebook changed its read-only inputs" in capsys.readouterr().err


def test_another_python_runs_the_notebook(tmp_path, data, weights, monkeypatch):
    other = tmp_path / "marked-python"
    other.write_text(f'#!/bin/sh\nMARKED_BY_OTHER=1 exec "{sys.executable}" "$@"\n')
    other.chmod(0o755)
    notebook = write_notebook(tmp_path / "probe.ipynb", SUBMIT, "assert os.environ['MARKED_BY_OTHER'] == '1'")
    assert run_all(data, weights, tmp_path / "out", notebook) == 1
    monkeypatch.chdir(tmp_path)
    assert run_all(data, weights, tmp_path / "out", notebook, "--python", "./marked-python") == 0
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert run_all(data, weights, tmp_path / "out", notebook, "--python", "marked-python") == 0


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda table: table.iloc[::-1], "not those of sample_submission"),
        (lambda table: table.iloc[:1], "not those of sample_submission"),
        (lambda table: table.rename(columns={"severe": "grave"}), "columns"),
        (lambda table: table.assign(severe=np.nan), "no probabilities"),
        (lambda table: table.assign(severe="much"), "no probabilities"),
        (lambda table: table[[]].iloc[:0], "no table"),
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
    assert simulate.check_submission(data / "sample_submission.csv", data / "sample_submission.csv") == len(ROWS)


def test_wrong_arguments_are_one_sentence(tmp_path, data, weights, capsys):
    notebook = write_notebook(tmp_path / "any.ipynb", SUBMIT)
    (tmp_path / "empty").mkdir()
    for folders, word in (
        ((tmp_path / "empty", weights, tmp_path / "out", notebook), "lacks test_series_descriptions.csv"),
        ((data, tmp_path / "empty", tmp_path / "out", notebook), "lacks manifest.json"),
        ((data, weights, tmp_path / "out", tmp_path / "no.ipynb"), "is missing"),
        ((data, weights, tmp_path / "out", notebook, "--python", str(tmp_path / "no")), "install ipykernel"),
    ):
        assert run(*folders) == 1
        message = capsys.readouterr().err
        assert word in message and message.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "text", "word"),
    [
        ("test_series_descriptions.csv", "study_id,series_id,series_description\n", "names no study"),
        ("test_series_descriptions.csv", "study,series\n1,2\n", "names no study"),
        ("sample_submission.csv", "row_id,normal_mild\n7_a,1\n", "has no row of study 77"),
        ("sample_submission.csv", "row,normal_mild\n7_a,1\n", "has no column row_id"),
    ],
)
def test_tables_that_hold_no_public_study_are_one_sentence(tmp_path, data, weights, capsys, name, text, word):
    (data / name).write_text(text)
    assert run(data, weights, tmp_path / "out", write_notebook(tmp_path / "any.ipynb", SUBMIT)) == 1
    message = capsys.readouterr().err
    assert message.startswith("simulate: in the public run: ") and word in message and message.count("\n") == 1


@NEEDS_PROC
def test_descendants_are_those_of_any_depth():
    grandchild = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'input()'])"
    script = textwrap.dedent(f"""
        import subprocess, sys
        child = subprocess.Popen([sys.executable, "-c", {grandchild!r}])
        print("started", flush=True)
        child.wait()
    """)
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout.readline() == b"started\n"
            until_s = time.monotonic() + 20
            family: list[int] = []
            while time.monotonic() < until_s:  # a process that just began holds next to nothing
                family = session.descendants(process.pid)
                if len(family) == 2 and all(session.held_bytes(pid) > 1_000_000 for pid in family):
                    break
                time.sleep(0.05)
            assert len(family) == 2 and all(session.held_bytes(pid) > 1_000_000 for pid in family)
        finally:
            process.stdin.close()
    assert session.descendants(process.pid) == [] and session.held_bytes(process.pid) == 0
