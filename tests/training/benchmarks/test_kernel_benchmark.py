"""The kernel's bench, on the least of everything: all tables are there, and their figures are plausible."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
import torch

from kernels.lumbar.dicom.read_study import read_study
from kernels.lumbar.labels import ROWS
from kernels.lumbar.run.competition import read_series_table
from training.benchmarks import kernel, kernel_run, parity
from training.benchmarks.kernel import growth, workers
from training.benchmarks.kernel_run import Clocks, KernelRun
from training.benchmarks.reading import cut_crops, files_of, landmarks_of, record_calls
from training.benchmarks.studies import Studies, choose_studies, link_test_studies
from training.benchmarks.tables import BenchError, Record, Table, formatted
from training.phantom.dataset import Options, make_dataset

TABLES = ("reading", "overlap cpu", "growth cpu", "workers cpu", "batches cpu")


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    """What the command prints without a GPU, and its JSON."""
    out = tmp_path_factory.mktemp("bench") / "bench.json"
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(said):
        patch.setattr(torch.cuda, "is_available", lambda: False)
        assert kernel.main(["--quick", "--markdown", "--out", str(out)]) == 0
    return said.getvalue(), json.loads(out.read_text())


def column(table: dict[str, Any], name: str) -> list[Any]:
    return [row[table["columns"].index(name)] for row in table["rows"]]


def test_every_table_is_there_with_numbers(printed):
    text, record = printed
    assert set(record["tables"]) == {*TABLES, "gpu"}
    for key in TABLES:
        table = record["tables"][key]
        assert table["title"] in text
        assert table["rows"]
        for row in table["rows"]:
            assert len(row) == len(table["columns"])
            assert all(cell is None or math.isfinite(cell) for cell in row[1:])


def test_without_a_gpu_it_says_so(printed):
    text, record = printed
    assert record["tables"]["gpu"] == {
        "title": "GPU",
        "columns": [],
        "rows": [],
        "remarks": [kernel.NO_GPU],
    }
    assert "**GPU**\n\nno GPU: not measured" in text


def test_tables_are_markdown(printed):
    text, record = printed
    header, rule, *rows = [line for line in text.splitlines() if line.startswith("|")][:3]
    assert [cell.strip() for cell in header.split("|")[1:-1]] == record["tables"]["reading"]["columns"]
    assert rule.startswith("|--") and rule.count(":|") == 3 and len({len(header), len(rule), len(rows[0])}) == 1


def test_shares_of_the_kernels_time_make_a_whole(printed):
    (row,) = printed[1]["tables"]["overlap cpu"]["rows"]
    columns = printed[1]["tables"]["overlap cpu"]["columns"]
    shares = [cell for name, cell in zip(columns, row, strict=True) if name.startswith("%")]
    assert sum(shares) == pytest.approx(100)
    assert min(shares) >= 0  # nothing is counted twice


def test_runs_cover_the_studies_that_they_say(printed):
    tables = printed[1]["tables"]
    assert column(tables["growth cpu"], "studies") == [1, 2]
    assert column(tables["workers cpu"], "workers") == ["1", "2"]
    assert column(tables["batches cpu"], "studies at once") == [1, 2]


def test_no_data_ends_with_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert kernel.main(["--quick", "--data", str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith(f"bench stopped: {tmp_path} holds no study")


def test_every_network_answers_on_the_device_as_on_the_cpu(seeing: Path):
    record = Record()
    table = parity.compare(seeing, torch.device("cpu"), record)
    assert len(table.rows) == len(json.loads((seeing / "manifest.json").read_text())["artefacts"])
    assert record.faults == []
    for row in table.rows:
        one = dict(zip(table.columns, row, strict=True))
        assert one["varies"] > 0 and one["single"] == one["TF32"] == 0 and one["kernel takes"] == "single"


def test_another_answer_is_a_fault(seeing: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(parity, "LOGIT_EXACT", -1.0)
    monkeypatch.setattr(parity, "PX_EXACT", -1.0)
    record = Record()
    table = parity.compare(seeing, torch.device("cpu"), record)
    assert len(record.faults) == 2 * len(table.rows) and "golden is off by" in record.faults[0]
    late = Record()
    assert parity.compare(seeing, torch.device("cpu"), late, lambda: True).rows == []
    assert late.faults == [f"only 0 of {len(table.rows)} networks were compared"]


def test_linked_studies_are_the_same_studies(two_studies: Path, tmp_path: Path):
    studies = choose_studies(two_studies, 2)
    link_test_studies(tmp_path / "linked", studies, 2)
    series = read_series_table(tmp_path / "linked" / "test_series_descriptions.csv").series
    sample = pd.read_csv(tmp_path / "linked" / "sample_submission.csv")
    assert len(series) == 4 and not set(series) & set(studies.series)
    assert list(sample["row_id"]) == [f"{number}_{row}" for number in series for row in ROWS]
    for number, source in zip(series, [*studies.series] * 2, strict=True):
        linked = read_study(tmp_path / "linked" / "test_images" / number, number, series[number])
        original = read_study(studies.images / source, source, studies.series[source])
        assert [stack.pixels.tobytes() for stack in linked.stacks] == [s.pixels.tobytes() for s in original.stacks]


def test_the_limit_repeats_every_opencv_call_of_the_kernel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    data = tmp_path / "data"
    make_dataset(data, Options(train=0, test=1, seed=3, scale=0.2), jobs=1)
    studies = choose_studies(data, 1)
    (study, series), *_ = studies.series.items()
    landmarks = landmarks_of(studies)[study]
    decode = cv2.imdecode
    calls = record_calls(lambda: cut_crops(read_study(studies.images / study, study, series), landmarks))
    assert cv2.imdecode is decode
    names = Counter(function.__name__ for function, _, _ in calls)
    files = len(files_of(studies))
    assert names["merge"] == names["subtract"] == names["convertScaleAbs"] == files
    assert names["imdecode"] == files + len(series)  # once more to confirm the fast path of a series
    assert names["remap"] > 50 and names["calcHist"] >= 3
    again = [function(*given, **options) for function, given, options in calls if function.__name__ == "imdecode"]
    decoded = [image for image in again if image is not None]
    assert len(decoded) == files and all(image.dtype == np.uint16 for image in decoded)


def finished(studies: int, **changes: Any) -> KernelRun:
    report = {
        "seconds": {"total": 2.0 * studies},
        "rounds": [{"seconds": 1.0 * studies}],
        "studies": {"asked": studies, "graded": studies},
        "members_used": ["one"],
    }
    given = {"submission": b"", "cpu_s": 1.0 * studies, "peak_mib": 100.0, **changes}
    return KernelRun(Path(), 9.0, report, **given)


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({"peak_mib": 101.0}, "CPU seconds a study × 1 (flat), peak memory × 1.01 (flat)"),
        ({"peak_mib": 150.0}, "CPU seconds a study × 1 (flat), peak memory × 1.5 (NOT flat)"),
        ({"cpu_s": 48.0}, "CPU seconds a study × 2 (NOT flat), peak memory × 1 (flat)"),
        ({"cpu_s": 48.0, "clocks_cpu": {"loading": 24.0}}, "CPU seconds a study × 1 (flat)"),
    ],
)
def test_what_grows_is_called_so(changes, verdict):
    assert verdict in growth("cpu", [finished(6), finished(24, **changes)]).remarks[0]


def test_lanes_that_answer_otherwise_are_an_error():
    assert workers("cpu", finished(24), finished(24)).remarks == ["the two submissions are the same bytes"]
    with pytest.raises(BenchError, match="the submissions differ"):
        workers("cpu", finished(24), finished(24, submission=b"row_id"))


def test_a_study_without_an_answer_is_a_fault():
    run = finished(24)
    run.report.update({"studies": {"asked": 24, "graded": 23}, "device": "cpu", "problem_counts": {}, "problems": []})
    assert run.faults() == ["studies were left out: 23/24 studies, 1 networks, cpu, no problems"]
    assert run.faults(members=2)[1] == "1 of 2 networks were used; no problems"


def test_problems_of_a_run_are_text():
    run, where = finished(24), {"study": "7", "where": "a", "kind": "member-unusable", "detail": "cut off"}
    run.report.update({"studies": {"asked": 24, "graded": 24}, "device": "cpu", "problems": [where]})
    run.report["problem_counts"] = {"member-unusable": 1, "no-series": 2}
    assert run.summary().endswith("cpu, 1 member-unusable, 2 no-series")
    assert "member-unusable: 1 in 1 study; this network is left out" in run.faults(members=2)[0]


def test_a_clocked_call_within_another_counts_once():
    class Loader:
        def forward(self) -> None:
            time.sleep(0.02)

        def load(self) -> None:
            self.forward()

    clocks = Clocks()
    clocks.attach(Loader, "forward", "forwards")
    clocks.attach(Loader, "load", "loading")
    Loader().load()
    assert set(clocks.seconds) == {"loading"}
    thread = threading.Thread(target=Loader().forward)
    thread.start()
    thread.join()
    assert clocks.seconds["forwards"] >= 0.02


def test_what_runs_behind_an_earlier_clock_is_not_exposed(monkeypatch: pytest.MonkeyPatch):
    class Device:
        def forward(self, during: Callable[[], None]) -> None:
            advance(2.0)
            during()
            advance(2.0)

        def cut(self) -> None:
            advance(1.0)

    now = [0.0]

    def advance(seconds: float) -> None:
        now[0] += seconds

    def in_another_thread() -> None:
        thread = threading.Thread(target=device.cut)
        thread.start()
        thread.join()

    monkeypatch.setattr(kernel_run.time, "monotonic", lambda: now[0])
    clocks, device = Clocks(), Device()
    clocks.attach(Device, "forward", "forwards")
    clocks.attach(Device, "cut", "cutting")
    device.forward(in_another_thread)
    advance(10.0)
    device.cut()
    assert clocks.seconds == {"forwards": 5.0, "cutting": 2.0}
    assert clocks.exposed_s == {"forwards": 5.0, "cutting": 1.0}


def test_figures_have_three_digits():
    assert [formatted(cell) for cell in (None, 12345, 0.98765, 1234.5, 99.97, 2e-7, "cpu")] == [
        "-",
        "12,345",
        "0.988",
        "1,234",
        "100",
        "2.0e-07",
        "cpu",
    ]
    table = Table("key", "Title", ["name", "s"], [["a", 1.0], ["longer", None]], ["Remark"])
    assert table.text() == "Title\nname    s\na       1\nlonger  -\nRemark"
    assert table.text(markdown=True) == (
        "**Title**\n\n| name   | s |\n|--------|--:|\n| a      | 1 |\n| longer | - |\n\nRemark"
    )


def test_studies_without_images_are_not_chosen(tmp_path: Path):
    assert choose_studies(tmp_path, 3) is None
    (tmp_path / "test_images" / "1").mkdir(parents=True)
    rows = "study_id,series_id,series_description\n1,2,Axial T2\n9,2,Axial T2\n"
    (tmp_path / "test_series_descriptions.csv").write_text(rows)
    assert choose_studies(tmp_path, 3) == Studies(tmp_path, "test", {"1": [("2", "axial_t2")]})
    assert os.listdir(tmp_path / "test_images") == ["1"]
