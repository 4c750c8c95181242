"""Images unlike those of training are named, with what differs; those like them, or too few of them, are not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from kernels.lumbar import predict
from kernels.lumbar.inputs.image_statistics import FEATURES, image_statistics
from kernels.lumbar.labels import SERIES_KINDS
from kernels.lumbar.manifest import Domain, Manifest, Spread
from kernels.lumbar.networks.weights import MANIFEST_FILE, read_manifest
from kernels.lumbar.problems import outcome
from kernels.lumbar.run.clock import Clock
from kernels.lumbar.run.competition import read_series_table
from kernels.lumbar.run.foreign_domain import compared
from kernels.lumbar.run.read_ahead import read_ahead
from kernels.lumbar.run.submission import replace_json
from tests.support.dicom.dicom_factory import write_foreign_dataset

STUDIES = 5
KINDS = list(SERIES_KINDS.values())
NAMES = list(FEATURES)


def spread(mean: float, sd: float = 10.0, studies: int = 40) -> Spread:
    return Spread(studies=studies, mean=mean, sd=sd)


def images(median: float, count: int, sd: float = 10.0) -> np.ndarray:
    """(count, kind, feature): the median grey of Sagittal T2 alone is known."""
    found = np.full((count, len(KINDS), len(NAMES)), np.nan, np.float32)
    found[:, KINDS.index("sagittal_t2"), NAMES.index("median")] = np.random.default_rng(3).normal(median, sd, count)
    return found


@pytest.fixture(scope="module")
def manifest(package: Path) -> Manifest:
    domain = Domain(images={"sagittal_t2": {"median": spread(80.0)}}, confidence={})
    return read_manifest(package / MANIFEST_FILE).model_copy(update={"domain": domain})


@pytest.mark.parametrize(
    ("median", "count", "is_named"), [(80, 40, False), (90, 40, False), (30, 40, True), (130, 6, True), (0, 4, False)]
)
def test_a_shift_beyond_the_spread_between_studies_is_named(manifest, median, count, is_named):
    found = compared(manifest, images(median, count), {})
    assert list(found) == ["Sagittal T2/STIR"] and found["Sagittal T2/STIR"]["studies"] == count
    said = found["Sagittal T2/STIR"]["unlike"]
    mean = found["Sagittal T2/STIR"]["means"]["median"]
    assert said == ([f"median grey {mean:.0f}, in training 80 ± 10"] if is_named else [])


def test_studies_like_those_of_training_are_hardly_ever_named(manifest):
    """Of 500 runs of 5 to 40 studies from the training's own, long-tailed, distribution."""
    random = np.random.default_rng(0)
    named = 0
    for _ in range(500):
        train, count = 80 + 10 * random.standard_t(4, 32), int(random.integers(5, 40))
        its = spread(float(train.mean()), float(train.std(ddof=1)), 32)
        one = manifest.model_copy(update={"domain": Domain(images={"sagittal_t2": {"median": its}})})
        values = images(0, count)
        values[:, KINDS.index("sagittal_t2"), NAMES.index("median")] = 80 + 10 * random.standard_t(4, count)
        named += bool(compared(one, values, {})["Sagittal T2/STIR"]["unlike"])
    assert named == 0


def test_lower_confidence_is_named_and_higher_is_not(manifest):
    (name,) = [
        one.member.name
        for one in manifest.artefacts
        if one.member.role == "localiser" and one.member.inputs[0].series == "sagittal_t2"
    ]
    one = manifest.model_copy(update={"domain": Domain(images={}, confidence={name: spread(0.9, 0.06)})})
    low = compared(one, images(80, 8), {name: np.full(8, 0.6)})["Sagittal T2/STIR"]
    assert low["unlike"] == ["confidence of its landmarks 0.60, in training 0.90 ± 0.06"]
    sure = spread(0.5, 0.06)
    one = manifest.model_copy(update={"domain": Domain(confidence={name: sure})})
    assert not compared(one, images(80, 8), {name: np.full(8, 0.99)})["Sagittal T2/STIR"]["unlike"]
    unknown = compared(one, images(80, 8), {name: np.full(8, np.nan)})["Sagittal T2/STIR"]
    assert "confidence" not in unknown["means"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_foreign_dataset(folder, studies=1, seed=8, test_studies=STUDIES)
    return folder


def run(data: Path, weights: Path, out: Path) -> dict:
    assert predict.main(["--competition", str(data), "--weights", str(weights), "--out", str(out)]) == 0
    return json.loads((out / "run_report.json").read_text())


def test_a_run_says_so_in_report_and_log_and_answers_the_same(data, package, tmp_path, capsys):
    series = read_series_table(data / "test_series_descriptions.csv").series
    seen = list(read_ahead(data / "test_images", series, sorted(series), Clock(float("inf"))))
    own = {
        kind: {name: spread(float(np.mean([one[name] for one in its])), 1.0, 40) for name in its[0]}
        for kind in KINDS
        if (its := [image_statistics(study, kind) for study in seen])
    }
    plain = run(data, package, tmp_path / "plain")
    assert plain["domain"] == {}
    for name, moved in (("like", 0.0), ("unlike", 120.0)):
        weights = Path(shutil.copytree(package, tmp_path / name))
        its = own | {"axial_t2": own["axial_t2"] | {"median": spread(own["axial_t2"]["median"].mean + moved, 20.0)}}
        manifest = read_manifest(weights / MANIFEST_FILE).model_copy(update={"domain": Domain(images=its)})
        replace_json(weights / MANIFEST_FILE, manifest.model_dump(mode="json"))
        capsys.readouterr()
        report = run(data, weights, tmp_path / f"out_{name}")
        printed = capsys.readouterr().out
        assert list(report["domain"]) == list(SERIES_KINDS)
        assert [kind for kind, one in report["domain"].items() if one["unlike"]] == (["Axial T2"] if moved else [])
        line = f"these images are unlike those trained on: Axial T2 ({STUDIES} studies): median grey "
        assert (line in printed) == bool(moved) == (line in outcome(report))
        for file in ("submission.csv", "landmarks.csv"):
            assert (tmp_path / f"out_{name}" / file).read_bytes() == (tmp_path / "plain" / file).read_bytes()
