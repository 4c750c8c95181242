"""What a cached study depends on: its files, the kinds of its series, and the code that decodes them."""

from __future__ import annotations

import shutil

import pytest

from tests.support.dicom.dicom_factory import write_foreign_dataset
from training import digests
from training.data.cache import cache_sources
from training.data.tables import read_tables


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("foreign")
    write_foreign_dataset(root, studies=2, seed=3, test_studies=0)
    return root


def test_files_and_kinds_of_a_study_count_for_it_alone(data, tmp_path):
    root = shutil.copytree(data, tmp_path / "data")
    tables = read_tables(root)
    before = cache_sources.sources_of(root, tables)
    assert before == cache_sources.sources_of(root, tables) == cache_sources.sources_of(data, tables)
    first, second = before.digests
    series, kind = tables.series[first][0]
    shutil.rmtree(root / "train_images" / first / series)
    after = cache_sources.sources_of(root, tables)
    assert after.digests[first] != before.digests[first] and after.digests[second] == before.digests[second]
    assert after.missing == (f"{first}/{series}",) and not before.missing
    tables.series[second][0] = (tables.series[second][0][0], "axial_t2" if kind != "axial_t2" else "sagittal_t1")
    assert cache_sources.sources_of(root, tables).digests[second] != before.digests[second]


def test_the_code_that_decodes_counts():
    modules = digests.code_digest.__wrapped__
    assert modules(cache_sources.DECODER, cache_sources.FOLLOWED) != modules(cache_sources.DECODER, ("training.data.",))
