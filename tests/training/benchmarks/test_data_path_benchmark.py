"""The data path's bench, on the least of everything: all figures are there, and they are plausible."""

from __future__ import annotations

import contextlib
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kernels.lumbar.dicom.read_study import read_study
from training.benchmarks import data_path
from training.benchmarks.cache_growth import BuiltCache, growth
from training.benchmarks.loader import Crops, DicomStacks, PngStacks, places_of
from training.benchmarks.studies import link_training_studies
from training.data.tables import read_tables
from training.phantom.dataset import Options, make_dataset


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two phantom studies."""
    folder = tmp_path_factory.mktemp("phantom") / "data"
    make_dataset(folder, Options(train=2, test=0, seed=1, scale=0.25), jobs=1)
    return folder


@pytest.fixture(scope="module")
def printed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    """What the command prints without a GPU, and its JSON."""
    out = tmp_path_factory.mktemp("bench") / "bench.json"
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(said):
        patch.setattr(torch.cuda, "is_available", lambda: False)
        assert data_path.main(["--quick", "--markdown", "--data", str(data), "--out", str(out)]) == 0
    return said.getvalue(), json.loads(out.read_text())


def test_every_table_is_there_with_numbers(printed):
    text, record = printed
    assert set(record["tables"]) == {"crops", "usual", "views", "growth"}
    for table in record["tables"].values():
        assert table["title"] in text
        for row in table["rows"]:
            assert len(row) == len(table["columns"])
            assert all(cell is None or isinstance(cell, str) or math.isfinite(cell) for cell in row[1:])


def test_loader_and_model_are_measured_side_by_side(printed):
    table = printed[1]["tables"]["views"]
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["rows"]]
    assert len(rows) > 8
    for row in rows:
        assert row["cut by 2 threads ÷ model"] == pytest.approx(2 * row["cut /s/core"] / row["model /s"])
        assert row["ms a sample"] == pytest.approx(1e3 / row["cut /s/core"])


def test_both_usual_ways_are_measured_with_and_without_workers(printed):
    ways = [row[:2] for row in printed[1]["tables"]["usual"]["rows"]]
    decoding = [[way, workers] for way in ("a PNG a slice", "DICOM, pydicom") for workers in (0, 2)]
    assert ways == [["stack cache, cut anew", 0], *decoding]


def grown(studies: int, cpu_s: float, peak_mib: float = 300.0) -> BuiltCache:
    return BuiltCache(studies, cpu_s, cpu_s, peak_mib, decoder_mib=0.0, bytes=studies * 10**6)


@pytest.mark.parametrize(
    ("cpu_s", "peak_mib", "verdicts"),
    [
        ((3, 5, 9), 303, ("linear", "flat")),
        ((1, 4, 16), 303, ("NOT linear", "flat")),
        ((3, 5, 9), 400, ("linear", "NOT flat")),
    ],
)
def test_growth_is_judged(cpu_s, peak_mib, verdicts):
    found = [grown(10, cpu_s[0]), grown(20, cpu_s[1]), grown(40, cpu_s[2], peak_mib)]
    remarks = growth(found, 1).remarks
    assert [remark.rpartition(": ")[2] for remark in remarks[:2]] == list(verdicts)
    if verdicts == ("linear", "flat"):
        assert remarks[0].startswith("CPU seconds = 1 + 0.2 a study")
        assert remarks[2] == f"1,975 studies: {(9 + 0.2 * 1935) / 60:.1f} minutes, 2.0 GB for all recipes"


def test_linked_studies_are_the_same_studies_under_new_numbers(data: Path, tmp_path: Path):
    original = read_tables(data)
    studies = list(original.labels.index)
    link_training_studies(tmp_path / "linked", data, studies, 5)
    linked = read_tables(tmp_path / "linked")
    assert len(linked.labels) == 5 and not set(linked.labels.index) & set(studies)
    for place, study in enumerate(linked.labels.index):
        source = studies[place % 2]
        assert linked.series[study] == original.series[source]
        assert linked.labels.loc[study].tolist() == original.labels.loc[source].tolist()
        count = (linked.coordinates["study_id"] == study).sum()
        assert count == (original.coordinates["study_id"] == source).sum() > 0
    study = linked.labels.index[3]
    read = read_study(tmp_path / "linked" / "train_images" / study, study, linked.series[study])
    source = read_study(data / "train_images" / studies[1], studies[1], original.series[studies[1]])
    assert [stack.pixels.tobytes() for stack in read.stacks] == [stack.pixels.tobytes() for stack in source.stacks]


def test_the_usual_ways_give_stacks_of_the_caches_shape(data: Path, tmp_path: Path):
    stacks = np.random.default_rng(0).integers(0, 256, (3, 5, 16, 16)).astype(np.uint8)
    assert np.array_equal(
        np.stack([stack.numpy() for stack in map(PngStacks(stacks, tmp_path / "p").__getitem__, range(3))]), stacks
    )
    places = places_of(data, read_tables(data), "neural_foraminal_narrowing")
    cut = DicomStacks(places, 5, 16, 50.0)[0].numpy()
    assert len(places) == 20 and cut.shape == (5, 16, 16) and cut.std() > 10


def test_a_grader_of_other_crops_is_whole():
    entry = Crops(96, 7).grader()
    (request,) = entry.member.inputs
    assert request.size_px == 96 and request.slices.count == 7 and request.centre
    (request,) = Crops(512, 5, is_whole=True).grader().member.inputs
    assert request.slices.by == "middle" and not request.centre and request.size_mm is None


def test_no_data_ends_with_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert data_path.main(["--quick", "--data", str(tmp_path / "none")]) == 1
    assert capsys.readouterr().err.startswith(f"bench-train stopped: {tmp_path / 'none'} is no folder")
