"""The crop cache: the kernel's bytes with a margin, made once, whole or not at all."""

from __future__ import annotations

import fcntl
import itertools
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import namedtuple
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from kernels.lumbar.dicom.geometry import Plane, lift_points
from kernels.lumbar.dicom.read_study import read_study
from kernels.lumbar.dicom.study import Study
from kernels.lumbar.inputs.views import cut
from kernels.lumbar.labels import UNITS, Unit
from kernels.lumbar.specs import SliceChoice, ViewRequest
from tests.support import ROOT
from tests.support.dicom.dicom_factory import write_foreign_dataset
from training.data.cache import cache_making, cache_sources
from training.data.cache.cache_journal import shape_of
from training.data.cache.crop_cache import DAMAGE, CacheError, build_cache, open_view, requests_of, stored, widened
from training.data.cache.crop_groups import bytes_of
from training.data.cache.decode import Annotation, geometry_file, lift_all
from training.data.tables import read_tables
from training.recipe_schema.load import load_named

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


def test_a_second_build_decodes_nothing_and_a_new_request_only_itself(
    data, tables, cache, folder, tmp_path, monkeypatch
):
    out = tmp_path / "cache"
    shutil.copytree(folder, out)
    before = {path: path.stat().st_mtime_ns for path in out.glob("*.np?")}
    build_cache(data, tables, [*requests_of(MEMBERS), *small()], out, 1)
    made = {path for path in out.glob("*.np?") if path not in before}
    assert len(made) == 3 and all(path.stat().st_mtime_ns == time_ns for path, time_ns in before.items())
    monkeypatch.setattr(cache_making, "decode_all", fails)
    again = build_cache(data, tables, requests_of(MEMBERS), out, 1)
    assert again.views.keys() == cache.views.keys()
    assert again.landmarks.keys() == cache.landmarks.keys()


def test_members_with_the_same_views_share_them(folder):
    names = [path.stem for path in folder.glob("*px-*.npz")]
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
    assert f"while decoding, {len(problems)} problems by kind (each one in {tmp_path / 'problems.csv'})" in caplog.text
    assert f"empty-file: {sum(problems['kind'] == 'empty-file')} in 1 study; " in caplog.text


def test_several_processes_give_the_same_bytes(data, tables, folder, tmp_path):
    build_cache(data, tables, requests_of(MEMBERS), tmp_path, 2)
    for path in tmp_path.glob("*.np?"):
        if path.suffix == ".npy":
            assert path.read_bytes() == (folder / path.name).read_bytes()
        else:
            one, other = np.load(path), np.load(folder / path.name)
            assert all(np.array_equal(one[name], other[name]) for name in ("present", "studies", "made_of"))


def test_other_labels_other_files_and_other_pixels_are_other_caches(data, tables, tmp_path, caplog):
    root = tmp_path / "data"
    shutil.copytree(data, root)
    out = tmp_path / "cache"

    def files():
        build_cache(root, read_tables(root), small(), out, 1)
        return {path.name for path in out.glob("*px-*.npz")}

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
    whole = cache_making.decode_all

    def dies(tasks, jobs):
        yield next(iter(whole(tasks, jobs)))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(cache_making, "decode_all", dies)
        with pytest.raises(KeyboardInterrupt):
            build_cache(data, tables, small(), tmp_path, 1)
    assert not list(tmp_path.glob("*.npz")) and not list(tmp_path.glob("*.json"))
    built = build_cache(data, tables, small(), tmp_path, 1).of("study", WHOLE)
    assert built.present.tolist() == [True, True, False, False]
    assert not list(tmp_path.glob("*.part*"))


# Builds a cache with half a second between two studies.
SLOW_BUILD = """
import sys, time
from pathlib import Path
from training.data.cache import cache_making
from training.data.cache.crop_cache import build_cache, requests_of
from training.data.tables import read_tables
from training.recipe_schema.load import load_named

def slowly(tasks, jobs, whole=cache_making.decode_all):
    for one in whole(tasks, jobs):
        yield one
        time.sleep(0.5)

cache_making.decode_all, cache_making.SAVE_EVERY_S = slowly, 0.0
root, out = map(Path, sys.argv[1:])
build_cache(root, read_tables(root), requests_of(load_named("split_and_global", "smoke").members()), out, 1)
"""


def contents(folder):
    """All files of a cache; nothing else may lie there."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


def journal_lines(folder):
    return [line for path in folder.glob("making-*.jsonl") for line in path.read_bytes().splitlines(keepends=True)]


@pytest.mark.parametrize("torn", [0, 7])
def test_a_build_killed_by_sigkill_goes_on_and_ends_with_the_same_bytes(data, tables, folder, tmp_path, torn, caplog):
    killed = subprocess.Popen([sys.executable, "-c", SLOW_BUILD, str(data), str(tmp_path)], stderr=subprocess.DEVNULL)
    end = time.monotonic() + 120
    while len(journal_lines(tmp_path)) < 3 and time.monotonic() < end:
        assert killed.poll() is None
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL and not list(tmp_path.glob("*.npz"))
    (journal,) = tmp_path.glob("making-*.jsonl")
    os.truncate(journal, journal.stat().st_size - torn)
    done = sum(line.endswith(b"\n") for line in journal_lines(tmp_path)) - 1
    with caplog.at_level(logging.INFO):
        build_cache(data, tables, requests_of(MEMBERS), tmp_path, 1)
    assert done == (2 if not torn else 1) and f"; {done} studies are done already" in caplog.text
    assert contents(tmp_path) == contents(folder)


@pytest.mark.parametrize("renamed", [0, 1, 2, 3, 4, 8])
def test_a_build_killed_while_files_get_their_names_ends_with_the_same_bytes(
    data, tables, folder, tmp_path, renamed, monkeypatch
):
    replace, left = Path.replace, [renamed]

    def dies(self, target):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return replace(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", dies)
        with pytest.raises(KeyboardInterrupt):
            build_cache(data, tables, requests_of(MEMBERS), tmp_path, 1)
    build_cache(data, tables, requests_of(MEMBERS), tmp_path, 1)
    assert contents(tmp_path) == contents(folder)


def test_a_killed_build_is_gone_on_with_for_its_files_or_some_of_them_whatever_others_were_made_between(
    data, tables, folder, tmp_path, monkeypatch
):
    whole, numbers = cache_making.decode_all, []

    def dies(tasks, jobs):
        numbers.append([task.number for task in tasks])
        yield from (one for one, _ in zip(whole(tasks, jobs), range(2), strict=False))
        raise KeyboardInterrupt

    monkeypatch.setattr(cache_making, "decode_all", dies)
    all_of_them = requests_of(MEMBERS)
    for wanted in (all_of_them[:2], all_of_them[3:5], all_of_them[:1], all_of_them[3:5], all_of_them[1:3]):
        with pytest.raises(KeyboardInterrupt):
            build_cache(data, tables, wanted, tmp_path, 1)
    assert numbers == [[0, 1, 2, 3], [0, 1, 2, 3], [2, 3], [2, 3], [0, 1, 2, 3]]
    monkeypatch.setattr(cache_making, "decode_all", whole)
    build_cache(data, tables, [], tmp_path, 1)
    assert len(list(tmp_path.glob("making-*"))) == 3, "landmarks alone end what others go on with"
    build_cache(data, tables, all_of_them, tmp_path, 1)
    assert contents(tmp_path) == contents(folder)


@pytest.mark.slow
def test_processes_that_decode_end_with_the_one_that_was_killed(data, tables, tmp_path):
    script = """
import sys, time
from pathlib import Path
from training.data.cache.decode import Task, decode_all
if __name__ == "__main__":
    tasks = [Task(number, sys.argv[2], Path(sys.argv[1]), [], [], {}) for number in range(8)]
    print(next(iter(decode_all(tasks, 2))).number, flush=True)
    time.sleep(600)
"""
    file = tmp_path / "decodes.py"
    file.write_text(script)
    study = tables.labels.index[0]
    given = [sys.executable, str(file), str(data / "train_images" / study), study]
    root = str(ROOT)
    killed = subprocess.Popen(given, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": root})
    assert killed.stdout.readline() == b"0\n"
    killed.kill()
    killed.communicate(timeout=30)  # ends when nobody has the pipe any more


def damage_pixels(folder):
    file = max(folder.glob("*px-*[0-9a-f].npy"), key=lambda path: path.stat().st_size)
    os.truncate(file, file.stat().st_size // 2)


def damage_header(folder):
    file = next(folder.glob("*px-*[0-9a-f].npy"))
    content = bytearray(file.read_bytes())
    content[0] ^= 255
    file.write_bytes(content)


def damage_index(folder):
    file = next(folder.glob("*.npz"))
    file.write_bytes(file.read_bytes()[:-30])


def lose_geometry(folder):
    next(folder.glob("*.geometry.npy")).unlink()


def damage_landmarks(folder):
    file = next(folder.glob("landmarks-*.json"))
    file.write_text(file.read_text()[:-30])


@pytest.mark.parametrize("harm", [damage_pixels, damage_header, damage_index, lose_geometry, damage_landmarks])
def test_a_damaged_cache_is_told_of_and_made_again(data, tables, folder, tmp_path, harm, caplog):
    out = tmp_path / "cache"
    shutil.copytree(folder, out)
    harm(out)
    with caplog.at_level(logging.WARNING):
        build_cache(data, tables, requests_of(MEMBERS), out, 1)
    assert caplog.text.count("is damaged and is made again: ") == 1
    assert contents(out) == contents(folder)


def test_no_flipped_byte_of_a_header_gives_other_pixels(data, tables, tmp_path):
    build_cache(data, tables, small(), tmp_path, 1)
    (file,) = tmp_path.glob("*px-*[0-9a-f].npy")
    pixels, geometry = np.load(file), np.load(geometry_file(file))
    with np.load(file.with_suffix(".npz")) as index:
        made_of = str(index["made_of"])
    for spoilt in (file, geometry_file(file)):
        whole = spoilt.read_bytes()
        for place, mask in itertools.product(range(128), (0x01, 0x15)):
            spoilt.write_bytes(whole[:place] + bytes([whole[place] ^ mask]) + whole[place + 1 :])
            try:
                found = open_view(file, shape_of(small()[0], len(tables.labels)), made_of)
            except DAMAGE:
                continue
            assert np.array_equal(found.pixels, pixels) and np.array_equal(found.geometry, geometry, equal_nan=True)
        spoilt.write_bytes(whole)


def replaced(series):
    file = next(series.iterdir())
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("change", [shutil.rmtree, replaced, lambda series: (series / "more.dcm").write_bytes(b"")])
def test_data_that_changed_on_the_disk_are_other_data(data, tables, tmp_path, change):
    root = tmp_path / "data"
    shutil.copytree(data, root)
    before = cache_sources.sources_of(root, tables)
    assert before == cache_sources.sources_of(root, tables) == cache_sources.sources_of(data, tables)
    study = tables.labels.index[0]
    series = tables.series[study][0][0]
    change(root / "train_images" / study / series)
    after = cache_sources.sources_of(root, tables)
    assert after.digest != before.digest
    assert (f"{study}/{series}" in after.missing) == (change is shutil.rmtree)


def test_code_counts_and_what_is_said_of_it_does_not():
    def meaning(text):
        return cache_sources.meaning(cache_sources.ast.parse(text))

    assert meaning('"""Said."""\ndef f():\n    """More."""\n    return 1  # why') == meaning("def f():\n\n    return 1")
    assert meaning("def f():\n    return 1") != meaning("def f():\n    return 2")


def test_a_change_of_any_module_that_cuts_makes_another_cache(monkeypatch):
    monkeypatch.setattr(cache_sources, "code_digest", cache_sources.code_digest.__wrapped__)
    before, whole = cache_sources.code_digest(), cache_sources.meaning
    digests = set()
    for changed in (1, 3, 99):
        number = itertools.count(1)

        def spoilt(tree, number=number, changed=changed):
            return whole(tree) + ("changed" if next(number) == changed else "")

        monkeypatch.setattr(cache_sources, "meaning", spoilt)
        digests.add(cache_sources.code_digest())
    assert len(digests) == 3 and before in digests and next(number) > 10


def test_room_is_asked_for_as_much_as_files_take(folder):
    found = [path.stat().st_size for path in folder.glob("*.npy")]
    assert bytes_of(MEMBERS, 4) == sum(found) - 128 * len(found)  # without the header of each


def test_all_series_are_looked_for(data, tables, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        build_cache(data, tables, small(), tmp_path, 1)
    study = tables.labels.index[2]
    assert f"1 of 14 series of the tables have no file, the first: {study}/" in caplog.text
    with np.load(next(tmp_path.glob("*.npz"))) as index:
        assert index["studies"].tolist() == list(tables.labels.index)


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

    monkeypatch.setattr(cache_making, "decode_all", broken)
    with pytest.raises(CacheError, match="use fewer with JOBS="):
        build_cache(data, tables, small(), tmp_path, 1)


def test_of_two_builders_the_second_waits_and_decodes_nothing(data, tables, tmp_path, monkeypatch, caplog):
    build_cache(data, tables, small(), tmp_path, 1)
    monkeypatch.setattr(cache_making, "decode_all", fails)
    second = threading.Thread(target=build_cache, args=(data, tables, small(), tmp_path, 1))
    with caplog.at_level(logging.INFO), open(tmp_path / ".lock", "w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        second.start()
        while "waiting for it" not in caplog.text:
            assert second.is_alive()
            time.sleep(0.02)
        second.join(0.1)
        assert second.is_alive()
    second.join(60)
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
