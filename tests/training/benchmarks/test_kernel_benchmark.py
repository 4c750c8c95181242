"""The kernel's bench, on the least of everything: all tables are there, and what they say can be right at all."""

from __future__ import annotations

import json
import math
import os
import threading
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from kernels.lumbar.dicom.read_study import read_study
from kernels.lumbar.run.competition import read_series_table
from training.benchmarks import half_precision, kernel
from training.benchmarks.kernel_child import Clocks
from training.benchmarks.kernel_overhead import OverheadPlan, growth, lanes
from training.benchmarks.kernel_runs import BenchError, FinishedRun
from training.benchmarks.reading import bare_decoding, files_of, framed
from training.benchmarks.table_text import Table, markdown, shown
from training.benchmarks.untrained_packages import Studies, choose_studies, link_studies

TABLES = ("reading", "loader", "overlap cpu", "growth cpu", "lanes cpu", "batches cpu", "memory cpu")


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    """What the command prints without a GPU, and its JSON."""
    out = tmp_path_factory.mktemp("bench") / "bench.json"
    patch, capture = pytest.MonkeyPatch(), []
    patch.setattr(torch.cuda, "is_available", lambda: False)
    patch.setattr("builtins.print", lambda *said, **_: capture.append(" ".join(map(str, said))))
    try:
        assert kernel.main(["--quick", "--markdown", "--out", str(out)]) == 0
    finally:
        patch.undo()
    return "\n".join(capture), json.loads(out.read_text())


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
        "remarks": [half_precision.NOT_MEASURED],
    }
    assert "| GPU | no GPU: not measured |" in text


def test_markdown_fits_the_readme(printed):
    lines = printed[0][printed[0].index("| what |") :].splitlines()
    assert 2 < len(lines) <= 22
    assert all(line.startswith("| ") and line.count(" | ") == 1 for line in (lines[0], *lines[2:]))


def test_shares_of_the_kernels_time_make_a_whole(printed):
    (row,) = printed[1]["tables"]["overlap cpu"]["rows"]
    columns = printed[1]["tables"]["overlap cpu"]["columns"]
    shares = [cell for name, cell in zip(columns, row, strict=True) if name.startswith("%")]
    assert sum(shares) == pytest.approx(100)
    assert min(shares) >= 0  # nothing is counted twice


def test_runs_cover_the_studies_that_they_say(printed):
    tables = printed[1]["tables"]
    assert column(tables["growth cpu"], "studies") == [1, 2]
    assert column(tables["lanes cpu"], "devices") == ["cpu", "cpu,cpu"]
    assert column(tables["batches cpu"], "studies at once") == [1, 2]


def test_no_data_ends_with_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert kernel.main(["--quick", "--data", str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith(f"bench stopped: {tmp_path} holds no study")


def test_half_precision_is_held_against_single(seeing: Path):
    table = half_precision.precision("seeing", seeing, torch.device("cpu"), studies=1)
    assert len(table.rows) == len(json.loads((seeing / "manifest.json").read_text())["artefacts"])
    compared = [row for row in table.rows if row[2] is not None]
    assert compared
    assert any(float(row[4]) > 0 for row in compared)


def test_linked_studies_are_the_same_studies(two_studies: Path, tmp_path: Path):
    studies = choose_studies(two_studies, 2)
    assert link_studies(tmp_path / "linked", studies, 2) == 4
    series = read_series_table(tmp_path / "linked" / "test_series_descriptions.csv").series
    assert sorted(series) == ["1", "2", "3", "4"]
    for number, source in zip(series, [*studies.series] * 2, strict=True):
        linked = read_study(tmp_path / "linked" / "test_images" / number, number, series[number])
        original = read_study(studies.images / source, source, studies.series[source])
        assert [stack.pixels.tobytes() for stack in linked.stacks] == [s.pixels.tobytes() for s in original.stacks]


def test_the_limit_decodes_every_pixel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    data = tmp_path / "data"
    kernel.make_dataset(data, kernel.Options(train=0, test=1, seed=3, scale=0.2), jobs=1)
    files = files_of(choose_studies(data, 1))
    decoded, decode = [], cv2.imdecode
    monkeypatch.setattr(cv2, "imdecode", lambda *given: decoded.append(decode(*given)))
    (tmp_path / "framed").mkdir()
    framed_files = framed(files, tmp_path / "framed")
    decoded.clear()
    bare_decoding(framed_files)
    assert len(decoded) == len(files)
    assert all(image is not None and image.dtype == np.uint16 for image in decoded)


def finished(studies: int, **changes: Any) -> FinishedRun:
    report = {"seconds": {"total": 2.0 * studies}, "rounds": [{"seconds": 1.0 * studies}]}
    given = {
        "members": 1,
        "weights_mb": 1.0,
        "wall_s": 9.0,
        "cpu_s": 1.0 * studies,
        "kernel_cpu_s": 1.0 * studies,
        "peak_mib": 100.0,
        "clocks": {},
        "clocks_cpu": {},
    }
    found = {**given, "report": report, "submission": b"", "answers": np.zeros((25, 3)), **changes}
    return FinishedRun(studies, **found)


PLAN = OverheadPlan("cpu", ["package"], "package", (1, 4), (1,))


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({"peak_mib": 101.0}, "CPU seconds a study × 1 (flat), peak memory × 1.01 (flat)"),
        ({"peak_mib": 150.0}, "CPU seconds a study × 1 (flat), peak memory × 1.5 (NOT flat)"),
        ({"kernel_cpu_s": 48.0}, "CPU seconds a study × 2 (NOT flat), peak memory × 1 (flat)"),
        ({"kernel_cpu_s": 48.0, "clocks_cpu": {"loading": 24.0}}, "CPU seconds a study × 1 (flat)"),
    ],
)
def test_what_grows_is_called_so(changes, verdict):
    results = {PLAN.order(times=1): finished(6), PLAN.order(times=4): finished(24, **changes)}
    assert verdict in growth(PLAN, results).remarks[0]


def test_lanes_that_answer_otherwise_are_an_error():
    other = finished(24, submission=b"row_id")
    results = {PLAN.order(): finished(24), PLAN.order(devices="cpu,cpu"): other}
    with pytest.raises(BenchError, match="the submissions differ"):
        lanes(PLAN, results)


def test_a_clocked_call_within_another_counts_once():
    class Loader:
        def forward(self) -> None:
            time.sleep(0.02)

        def load(self) -> None:
            self.forward()

    clocks = Clocks()
    clocks.put_on(Loader, "forward", "forwards")
    clocks.put_on(Loader, "load", "loading")
    Loader().load()
    assert set(clocks.seconds) == {"loading"}
    thread = threading.Thread(target=Loader().forward)
    thread.start()
    thread.join()
    assert clocks.seconds["forwards"] >= 0.02


def test_figures_are_told_in_three_digits():
    assert [shown(cell) for cell in (None, 12345, 0.98765, 1234.5, 99.97, 2e-7, "cpu")] == [
        "-",
        "12,345",
        "0.988",
        "1,234",
        "100",
        "2.0e-07",
        "cpu",
    ]
    table = Table("key", "Title", ["name", "s"], [["a", 1.0], ["longer", None]], ["Remark"], [("what", "1 s")])
    assert table.text() == "Title\nname    s\na       1\nlonger  -\nRemark"
    assert markdown([table]).splitlines()[-1] == "| what | 1 s |"


def test_studies_without_images_are_not_chosen(tmp_path: Path):
    assert choose_studies(tmp_path, 3) is None
    (tmp_path / "test_images" / "1").mkdir(parents=True)
    rows = "study_id,series_id,series_description\n1,2,Axial T2\n9,2,Axial T2\n"
    (tmp_path / "test_series_descriptions.csv").write_text(rows)
    assert choose_studies(tmp_path, 3) == Studies(tmp_path / "test_images", {"1": [("2", "axial_t2")]}, "test")
    assert os.listdir(tmp_path / "test_images") == ["1"]
