"""The stand-in for the published coordinates is read as they are, and its points are the true ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.support.networks.pretraining_images import CPU, localiser, view
from tests.training.data.test_improved_coordinates import HEADER
from training.data.external import IMPROVED, read_pretraining
from training.data.external import with_improved_coordinates as with_improved
from training.data.samples.external_samples import PretrainingSamples
from training.data.tables import read_tables
from training.phantom.dataset import Options, make_dataset
from training.phantom.external import write_external


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory) -> tuple[Path, Path]:
    """A phantom data set of two studies, and the stand-in made of it."""
    data, out = tmp_path_factory.mktemp("phantom") / "data", tmp_path_factory.mktemp("coordinates")
    make_dataset(data, Options(train=2, test=0, seed=4, scale=0.2), jobs=1)
    write_external(out, data, data)
    return data, out


def test_the_stand_in_is_read_as_the_published_data_set_is(stand_in):
    data, out = stand_in
    assert (out / IMPROVED).read_text().startswith(HEADER + "\n0,")
    images = read_pretraining(out).images
    assert {image.source for image in images} == {"spider", "osf"} and len(images) == 4
    assert all(max(image.pixels.shape) == 256 for image in images)
    samples = PretrainingSamples(read_pretraining(out), localiser((view(size_px=64),)), CPU, 0)
    assert next(samples.training(1)).target.isfinite().all()


def test_the_stand_ins_points_are_the_true_ones(stand_in):
    data, out = stand_in
    tables = read_tables(data)
    better = with_improved(out, data, tables)
    assert better.fingerprint != tables.fingerprint and len(better.coordinates) == len(tables.coordinates)
    both = tables.coordinates.merge(better.coordinates, on=["study_id", "row", "series_id"], suffixes=("", "_true"))
    moved = np.hypot(both["x"] - both["x_true"], both["y"] - both["y_true"])
    assert len(both) == len(tables.coordinates) and 0 < moved.median() < 2 and moved.max() < 6
