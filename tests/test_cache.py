"""The crop cache: the kernel's bytes with a margin, made once, whole or not at all."""

from __future__ import annotations

import fcntl
import logging
import shutil
import threading
from collections import namedtuple
from concurrent.futures.process import BrokenProcessPool

import numpy as np
import pandas as pd
import pytest

from kernels.lumbar.dicom import read_study
from kernels.lumbar.geometry import Plane, lift_points
from kernels.lumbar.labels import UNITS, Unit
from kernels.lumbar.specs import SliceChoice, ViewRequest
from kernels.lumbar.study import Study
from kernels.lumbar.views import cut
from tests.dicom_factory import write_foreign_dataset
from training.data import cache as cache_module
from training.data.cache import CacheError, build_cache, requests_of, stored, widened
from training.data.decode import Annotation, lift_all
from training.data.tables import read_tables
from training.recipes import load_named

MEMBERS = load_named("split_and_global", "smoke").members()
VIEWS = list(dict.fromkeys((one.member.unit, view) for one in MEMBERS for view in one.member.inputs))
WHOLE = ViewRequest(series="sagittal_t2", slices=SliceChoice(by="middle", count=3), size_px=32)
ODD = ViewRequest(
    series="axial_t2",
    centre=("subarticular_stenosis",),
    of_side="left",
    slices=SliceChoice(by="landmark", count=4, near=("spinal_canal_stenosis",)),
    size_mm=37,
    size_px=51,
    mirror_right=True,
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Four studies: the third has lost its sagittal T2 series, all files of the fourth are empty."""
    root = tmp_path_factory.mktemp("foreign")
    write_foreign_dataset(root, studies=4, seed=3, test_studies=0)
    series = read_tables(root).series
    studies = list(series)
    lost = next(name for name, kind in series[studies[2]] if kind == "sagittal_t2")
    shutil.rmtree(root / "train_images" / studies[2] / lost)
    for file in (root / "train_images" / studies[3]).rglob("*.dcm"):
        file.write_bytes(b"")
    return root


@pytest.fixture(scope="module")
def tables(data):
    return read_tables(data)


@pytest.fixture(scope="module")
def folder(data, tables, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "cache"
    build_cache(data, tables, requests_of(MEMBERS), out, 1)
    return out


@pytest.fixture(scope="module")
def cache(data, tables, folder):
    return build_cache(data, tables, requests_of(MEMBERS), folder, 1)


def study_of(data, tables, study):
    return read_study(data / "train_images" / study, study, tables.series[study])


def small(unit="study", view=WHOLE):
    return [stored(unit, view)]


def fails(*_):
    raise AssertionError("decoded again")


@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize(("unit", "request_"), VIEWS)
def test_the_middle_is_the_kernels_crop_to_the_byte(data, tables, cache, number, unit, request_):
    study = study_of(data, tables, cache.studies[number])
    view = cache.of(unit, request_)
    places = np.arange(len(view.present)) if view.places is None else view.places
    units = UNITS[unit]
    assert len(view.present) == len(places) == len(cache.studies) * len(units)
    for place, one in enumerate(units):
        index = number * len(units) + place
        expected = cut(study, request_, one, cache.landmarks[study.study_id])
        assert view.present[index] == (expected is not None)
        if expected is None:
            assert not view.pixels[places[index]].any()
            continue
        found = view.pixels[places[index]]
        extra, edge = (len(found) - len(expected.pixels)) // 2, (found.shape[1] - request_.size_px) // 2
        inner = slice(edge, edge + request_.size_px)
        middle = found[extra : extra + len(expected.pixels), inner, inner]
        assert np.array_equal(middle, expected.pixels) and middle.any()
        here = lift_points(view.planes(index)[extra : len(found) - extra], np.array([[1, edge + 3.0, edge + 5.0]]))
        assert np.abs(here - lift_points(expected.planes, np.array([[1, 3.0, 5.0]]))).max() < 1e-6


def test_margins_keep_parity_and_the_size_of_a_pixel():
    wide = widened(ODD)
    assert wide.size_px == 51 + 2 * 13 and wide.slices.count == 6
    assert wide.size_mm / wide.size_px == pytest.approx(37 / 51, rel=1e-12)
    for size_px in range(16, 100):
        assert (widened(ODD.model_copy(update={"size_px": size_px})).size_px - size_px) % 2 == 0
    assert widened(WHOLE).size_px == 32 and widened(WHOLE).slices.count == 3


def test_odd_sizes_and_even_slice_counts_have_their_middle_too(data, tables, tmp_path):
    cache = build_cache(data, tables, [stored("level", ODD)], tmp_path, 1)
    view, wide = cache.of("level", ODD), widened(ODD)
    study = study_of(data, tables, cache.studies[0])
    for place, unit in enumerate(UNITS["level"]):
        expected = cut(study, ODD, unit, cache.landmarks[study.study_id])
        edge = (wide.size_px - 51) // 2
        assert np.array_equal(view.pixels[view.places[place]][1:5, edge : edge + 51, edge : edge + 51], expected.pixels)


def test_views_of_one_level_and_side_lie_in_the_file_of_all_whatever_the_unit():
    anywhere = ODD.anywhere
    assert stored("level", ODD) == stored("level", ODD.mirrored()) == stored("level_side", anywhere)
    assert stored("side", anywhere.model_copy(update={"of_level": "l4_l5"})) == stored("level_side", anywhere)
    one = anywhere.model_copy(update={"of_level": "l1_l2", "of_side": "right"})
    assert stored("study", one) == stored("level_side", anywhere)
    assert stored("study", WHOLE).unit == "study"


@pytest.mark.parametrize("unit", ["study", "side", "level"])
def test_a_view_of_one_level_and_side_is_that_of_the_unit_it_names(data, tables, tmp_path, unit):
    cache = build_cache(data, tables, [stored("level_side", ODD.anywhere)], tmp_path, 1)
    own = {} if unit == "level" else {"of_level": "l4_l5"}
    own |= {} if unit == "side" else {"of_side": "right"}
    request = ODD.anywhere.model_copy(update=own)
    found, whole = cache.of(unit, request), cache.of("level_side", ODD.anywhere)
    for number in range(2):
        for place, one in enumerate(UNITS[unit]):
            named = UNITS["level_side"].index(request.place(one))
            index, expected = number * len(UNITS[unit]) + place, number * 10 + named
            assert found.places[index] == expected and found.present[index] == whole.present[expected]


def test_landmarks_are_lifted_to_where_they_are(cache, tables):
    assert set(cache.landmarks) == set(tables.labels.index)
    first, second, third, fourth = (cache.landmarks[study] for study in cache.studies)
    assert len(first) == len(second) == 25 and len(third) == 20 and not fourth
    gaps = [
        np.diff([points[f"{name}_{level}"][2] for level in ("l1_l2", "l2_l3", "l3_l4", "l4_l5", "l5_s1")])
        for points in (first, second)
        for name in ("spinal_canal_stenosis", "left_subarticular_stenosis", "right_neural_foraminal_narrowing")
    ]
    assert np.max(gaps) < -15 and np.min(gaps) > -45  # from head to feet, a disc apart
    x = [first[f"{side}_neural_foraminal_narrowing_l3_l4"][0] for side in ("left", "right")]
    assert 20 < x[0] - x[1] < 50  # +x is left


def test_a_second_build_decodes_nothing_and_a_new_request_only_itself(data, tables, cache, folder, monkeypatch):
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*.np?")}
    build_cache(data, tables, [*requests_of(MEMBERS), *small()], folder, 1)
    made = {path for path in folder.glob("*.np?") if path not in before}
    assert len(made) == 2 and all(path.stat().st_mtime_ns == time for path, time in before.items())
    monkeypatch.setattr(cache_module, "decode_all", fails)
    again = build_cache(data, tables, requests_of(MEMBERS), folder, 1)
    assert again.views.keys() == cache.views.keys()
    assert again.landmarks.keys() == cache.landmarks.keys()


def test_members_with_the_same_views_share_them(folder):
    names = [path.stem for path in folder.glob("*px-*.npy")]
    assert len(names) == len(set(names)) < len(VIEWS)


def test_problems_are_counted_and_kept(data, tables, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        build_cache(data, tables, small(), tmp_path, 1)
    problems = pd.read_csv(tmp_path / "problems.csv", dtype=str)
    kinds = problems.groupby("kind")["study"].agg(set)
    studies = list(tables.labels.index)
    assert kinds["empty-file"] == {studies[3]}
    assert kinds["no-folder"] == {studies[2]}
    assert kinds["annotation-without-image"] == set(studies[2:])
    assert f"{len(problems)} problems while decoding, by kind" in caplog.text


def test_several_processes_give_the_same_bytes(data, tables, folder, tmp_path):
    build_cache(data, tables, requests_of(MEMBERS), tmp_path, 2)
    for path in tmp_path.glob("*.np?"):
        if path.suffix == ".npy":
            assert path.read_bytes() == (folder / path.name).read_bytes()
        else:
            one, other = np.load(path), np.load(folder / path.name)
            assert all(np.array_equal(one[name], other[name]) for name in ("present", "geometry"))


def test_other_labels_other_files_and_other_pixels_are_other_caches(data, tables, tmp_path, caplog):
    root = tmp_path / "data"
    shutil.copytree(data, root)
    out = tmp_path / "cache"

    def files():
        build_cache(root, read_tables(root), small(), out, 1)
        return {path.name for path in out.glob("*px-*.npy")}

    assert len(files()) == len(files()) == 1
    study = tables.labels.index[0]
    series = next(name for name, kind in tables.series[study] if kind == "sagittal_t2")
    next((root / "train_images" / study / series).iterdir()).unlink()
    with caplog.at_level(logging.INFO):
        assert len(files()) == 2
    assert "1 other cache files there were made of other data" in caplog.text
    coordinates = root / "train_label_coordinates.csv"
    coordinates.write_text(coordinates.read_text() + "\n")
    assert len(files()) == 3 and len(list(out.glob("landmarks-*.json"))) == 3


def test_a_killed_build_leaves_nothing_that_is_taken_for_a_cache(data, tables, tmp_path, monkeypatch):
    whole = cache_module.decode_all

    def dies(tasks, jobs):
        yield next(iter(whole(tasks, jobs)))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(cache_module, "decode_all", dies)
        with pytest.raises(KeyboardInterrupt):
            build_cache(data, tables, small(), tmp_path, 1)
    assert not list(tmp_path.glob("*.npz")) and not list(tmp_path.glob("*.json"))
    built = build_cache(data, tables, small(), tmp_path, 1).of("study", WHOLE)
    assert built.present.tolist() == [True, True, False, False]
    assert not list(tmp_path.glob("*.part*"))


def test_a_full_disk_and_a_dead_process_end_in_one_sentence(data, tables, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: namedtuple("Usage", "total used free")(10, 10, 99))
        with pytest.raises(
            CacheError, match=r"needs 0.0 GB and has 0.0 GB free: make room, or name another with RUNS="
        ):
            build_cache(data, tables, small(), tmp_path, 1)
    assert not list(tmp_path.glob("*.np?"))

    def broken(*_):
        raise BrokenProcessPool

    monkeypatch.setattr(cache_module, "decode_all", broken)
    with pytest.raises(CacheError, match="use fewer with JOBS="):
        build_cache(data, tables, small(), tmp_path, 1)


def test_of_two_builders_the_second_waits_and_decodes_nothing(data, tables, tmp_path, monkeypatch, caplog):
    build_cache(data, tables, small(), tmp_path, 1)
    monkeypatch.setattr(cache_module, "decode_all", fails)
    second = threading.Thread(target=build_cache, args=(data, tables, small(), tmp_path, 1))
    with caplog.at_level(logging.INFO), open(tmp_path / ".lock", "w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        second.start()
        second.join(0.5)
        assert second.is_alive() and "waiting for it" in caplog.text
    second.join(20)
    assert not second.is_alive()


def test_annotations_are_in_the_files_own_pixels_and_oddities_are_problems():
    plane = Plane(np.array([10.0, 20, 30]), np.array([0.0, 0.5, 0]), np.array([0.0, 0, -2]))
    study = Study("1", (), [], {("7", 5046): plane})
    row = "spinal_canal_stenosis_l4_l5"
    lifted = lift_all(study, [Annotation("7", 5046, row, x=4.0, y=3.0), Annotation("7", 1, row, 1, 1)])
    assert lifted.keys() == {row} and lifted[row].tolist() == [10, 22, 24]
    lifted = lift_all(study, [Annotation("7", 5046, row, 4.0, 3.0), Annotation("7", 5046, row, 0, 0)])
    assert lifted[row].tolist() == [10, 20, 30]
    assert [problem.kind for problem in study.problems] == ["annotation-without-image", "annotated-twice"]


def test_units_and_sides_are_where_the_cache_takes_them_from():
    # Sides follow each other within a level: every second view of a level_side file is of one side.
    assert UNITS["level_side"][2 * 3 + 1] == Unit("l4_l5", "right") and UNITS["side"][0] == Unit(side="left")
