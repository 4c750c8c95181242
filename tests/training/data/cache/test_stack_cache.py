"""The stack cache: the kernel's stacks, decoded once, each study whole or not at all."""

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

import numpy as np
import pandas as pd
import pytest

from kernels.lumbar.dicom.read_study import read_study
from kernels.lumbar.inputs.views import cut
from kernels.lumbar.labels import UNITS
from tests.support import ROOT
from tests.support.dicom.dicom_factory import write_foreign_dataset
from training.data.cache import stack_cache
from training.data.cache.stack_cache import CacheError, build_cache, bytes_of, stack_file
from training.data.tables import read_tables
from training.recipe_schema.load import load_named

MEMBERS = load_named("split_and_global", "smoke").members()
VIEWS = list(dict.fromkeys((one.member.unit, view) for one in MEMBERS for view in one.member.inputs))


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
    build_cache(data, tables, out, 1)
    return out


@pytest.fixture(scope="module")
def cache(data, tables, folder):
    return build_cache(data, tables, folder, 1)


def fails(*_):
    raise AssertionError("decoded again")


def contents(folder):
    """All files of a cache; nothing else may lie there."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


@pytest.mark.parametrize("number", range(4))
def test_studies_are_those_that_the_kernel_reads(data, tables, cache, number):
    name = cache.studies[number]
    expected = read_study(data / "train_images" / name, name, tables.series[name])
    found = cache.decoded[number]
    assert found.study_id == name and len(found.stacks) == len(expected.stacks)
    for one, other in zip(found.stacks, expected.stacks, strict=True):
        assert np.array_equal(one.pixels, other.pixels) and one.instances == other.instances
        assert (one.series_id, one.kind, one.assumed) == (other.series_id, other.kind, other.assumed)
        for own, its in zip(one.planes, other.planes, strict=True):
            for vector in ("origin_mm", "column_mm", "row_mm"):
                assert np.array_equal(getattr(own, vector), getattr(its, vector))
        assert not one.pixels.flags.writeable


@pytest.mark.parametrize(("unit", "request_"), VIEWS)
def test_crops_are_the_kernels_to_the_byte(data, tables, cache, unit, request_):
    for name, study in zip(cache.studies[:2], cache.decoded, strict=False):
        read = read_study(data / "train_images" / name, name, tables.series[name])
        for one in UNITS[unit]:
            found, expected = (cut(its, request_, one, cache.landmarks[name]) for its in (study, read))
            assert (found is None) == (expected is None)
            assert found is None or np.array_equal(found.pixels, expected.pixels)


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


def test_problems_are_counted_kept_and_told_of_once(data, tables, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        build_cache(data, tables, tmp_path, 1)
        build_cache(data, tables, tmp_path, 1)
    problems = pd.read_csv(tmp_path / "problems.csv", dtype=str)
    kinds = problems.groupby("kind")["study"].agg(set)
    studies = list(tables.labels.index)
    assert kinds["empty-file"] == {studies[3]}
    assert kinds["no-folder"] == {studies[2]}
    assert kinds["annotation-without-image"] == set(studies[2:])
    told = f"while decoding, {len(problems)} problems by kind (each one in {tmp_path / 'problems.csv'})"
    assert caplog.text.count(told) == 1
    assert f"empty-file: {sum(problems['kind'] == 'empty-file')} in 1 study; " in caplog.text


def test_several_processes_give_the_same_bytes(data, tables, folder, tmp_path):
    build_cache(data, tables, tmp_path, 2)
    assert contents(tmp_path).keys() == contents(folder).keys()
    for name, content in contents(tmp_path).items():
        assert content == (folder / name).read_bytes()


def test_a_second_build_decodes_nothing_and_other_labels_neither(data, tables, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(stack_cache, "decode_all", fails)
    build_cache(data, tables, folder, 1)
    fewer = tables.coordinates.iloc[1:]
    changed = type(tables)(tables.labels, tables.series, fewer, "other")
    found = build_cache(data, changed, shutil.copytree(folder, tmp_path / "cache"), 1)
    assert sum(map(len, found.landmarks.values())) == 69, "an annotation less"


def replaced(series):
    file = next(series.iterdir())
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("change", [shutil.rmtree, replaced, lambda series: (series / "more.dcm").write_bytes(b"")])
def test_of_data_that_changed_only_the_changed_study_is_decoded_again(data, folder, tmp_path, change, monkeypatch):
    root, out = shutil.copytree(data, tmp_path / "data"), shutil.copytree(folder, tmp_path / "cache")
    tables, whole, decoded = read_tables(root), stack_cache.decode_all, []
    study = tables.labels.index[1]
    change(root / "train_images" / study / tables.series[study][0][0])

    def noting(tasks, jobs):
        decoded.extend(task.study for task in tasks)
        return whole(tasks, jobs)

    monkeypatch.setattr(stack_cache, "decode_all", noting)
    build_cache(root, tables, out, 1)
    assert decoded == [study]


def test_a_change_of_the_decoding_code_is_another_cache(data, tables, folder, tmp_path, monkeypatch):
    out, sources = shutil.copytree(folder, tmp_path / "cache"), stack_cache.sources_of(data, tables)
    other = type(sources)({study: one[::-1] for study, one in sources.digests.items()}, 1, ())
    monkeypatch.setattr(stack_cache, "sources_of", lambda *_: other)
    build_cache(data, tables, out, 1)
    name = stack_file(out, tables.labels.index[0]).name
    assert contents(out)[name] != contents(folder)[name]


# Builds a cache with half a second between two studies.
SLOW_BUILD = """
import sys, time
from pathlib import Path
from training.data.cache import stack_cache
from training.data.tables import read_tables

def slowly(tasks, jobs, whole=stack_cache.decode_all):
    for one in whole(tasks, jobs):
        yield one
        time.sleep(0.5)

stack_cache.decode_all = slowly
root, out = map(Path, sys.argv[1:])
stack_cache.build_cache(root, read_tables(root), out, 1)
"""


def test_a_build_killed_by_sigkill_resumes_and_ends_with_the_same_bytes(data, tables, folder, tmp_path, caplog):
    killed = subprocess.Popen([sys.executable, "-c", SLOW_BUILD, str(data), str(tmp_path)], stderr=subprocess.DEVNULL)
    end = time.monotonic() + 120
    while len(list(tmp_path.glob("*.safetensors"))) < 2 and time.monotonic() < end:
        assert killed.poll() is None
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    (tmp_path / ".unfinished.safetensors.part").write_bytes(b"of a killed process")
    with caplog.at_level(logging.INFO):
        build_cache(data, tables, tmp_path, 1)
    assert "decoding 2 studies" in caplog.text and "; 2 of 4 are there" in caplog.text
    assert contents(tmp_path) == contents(folder)


def test_a_build_that_stops_leaves_nothing_that_is_taken_for_a_study(data, tables, folder, tmp_path, monkeypatch):
    replace, left = os.replace, [2]

    def dies(source, target):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", dies)
        with pytest.raises(KeyboardInterrupt):
            build_cache(data, tables, tmp_path, 1)
    assert len(contents(tmp_path)) == 2
    build_cache(data, tables, tmp_path, 1)
    assert contents(tmp_path) == contents(folder)


@pytest.mark.slow
def test_processes_that_decode_end_with_the_one_that_was_killed(data, tables, tmp_path):
    script = """
import sys, time
from pathlib import Path
from training.data.cache.decode import Task, decode_all
if __name__ == "__main__":
    out = Path(sys.argv[3])
    tasks = [Task(sys.argv[2], Path(sys.argv[1]), [], out / f"{number}", "") for number in range(8)]
    print(next(iter(decode_all(tasks, 2))), flush=True)
    time.sleep(600)
"""
    file = tmp_path / "decodes.py"
    file.write_text(script)
    study = tables.labels.index[0]
    given = [sys.executable, str(file), str(data / "train_images" / study), study, str(tmp_path)]
    killed = subprocess.Popen(given, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert killed.stdout.readline().decode() == f"{study}\n"
    killed.kill()
    killed.communicate(timeout=30)  # ends when no process has the pipe any more


def truncated(file):
    os.truncate(file, file.stat().st_size // 2)


def emptied(file):
    file.write_bytes(b"")


def spoilt(place):
    def harm(file):
        content = bytearray(file.read_bytes())
        content[place] ^= 255
        file.write_bytes(content)

    return harm


@pytest.mark.parametrize("harm", [truncated, emptied, spoilt(0), spoilt(7), spoilt(40), spoilt(200)])
def test_a_damaged_file_is_told_of_and_made_again(data, tables, folder, tmp_path, harm, caplog):
    out = shutil.copytree(folder, tmp_path / "cache")
    harm(stack_file(out, tables.labels.index[1]))
    with caplog.at_level(logging.WARNING):
        build_cache(data, tables, out, 1)
    assert caplog.text.count("is damaged and is made again: ") == 1
    assert contents(out) == contents(folder)


def test_room_is_estimated_from_headers(data, tables, folder):
    studies = list(tables.labels.index)
    found = sum(stack_file(folder, study).stat().st_size for study in studies[:2])
    beside = 2 * stack_cache.MOST_BESIDES_BYTES
    assert found - beside < bytes_of(data, tables, studies[:2]) - beside <= found
    assert bytes_of(data, tables, studies[3:]) == stack_cache.MOST_BESIDES_BYTES, "no file can be read"


def test_a_changed_pixel_is_found_where_pixels_are_checked(data, tables, folder, tmp_path, caplog):
    out = shutil.copytree(folder, tmp_path / "cache")
    spoilt(-1)(stack_file(out, tables.labels.index[0]))
    build_cache(data, tables, out, 1)
    assert "damaged" not in caplog.text, "not read for each network"
    with caplog.at_level(logging.WARNING):
        build_cache(data, tables, out, 1, check_pixels=True)
    assert caplog.text.count("is damaged and is made again: its pixels are not what was written") == 1
    assert contents(out) == contents(folder)


def test_stale_studies_need_only_the_room_that_they_add(data, tables, folder, tmp_path, monkeypatch):
    out = shutil.copytree(folder, tmp_path / "cache")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: namedtuple("Usage", "total used free")(10, 10, 10**6))
    studies = [str(study) for study in tables.labels.index[:2]]
    assert "decoding 2 studies" in stack_cache.room_sentence(data, tables, out, studies)
    stack_file(out, studies[0]).unlink()
    stack_file(out, studies[1]).unlink()
    with pytest.raises(CacheError, match="for 2 studies"):
        stack_cache.room_sentence(data, tables, out)


def test_nothing_is_said_of_room_where_every_study_is_there(data, tables, folder):
    assert stack_cache.room_sentence(data, tables, folder) == ""


def test_a_complete_cache_is_read_where_nothing_can_be_written(data, tables, folder, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)
    monkeypatch.setattr(stack_cache, "exclusive", fails)
    monkeypatch.setattr(stack_cache, "decode_all", fails)
    assert len(build_cache(data, tables, folder, 1).decoded) == 4


def test_what_is_in_the_way_is_named(data, tables, folder, tmp_path):
    out = shutil.copytree(folder, tmp_path / "cache")
    file = stack_file(out, tables.labels.index[0])
    file.unlink()
    file.mkdir()
    with pytest.raises(CacheError, match="is a folder where a file of the cache would be: remove it"):
        build_cache(data, tables, out, 1)
    (tmp_path / "file").write_text("")
    with pytest.raises(CacheError, match="cannot be used"):
        build_cache(data, tables, tmp_path / "file", 1)


def test_files_are_as_readable_as_others(folder, tables):
    assert stack_file(folder, tables.labels.index[0]).stat().st_mode == (folder / "problems.csv").stat().st_mode


def test_all_series_are_looked_for(data, tables, tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        build_cache(data, tables, tmp_path, 1)
    study = tables.labels.index[2]
    assert f"1 of 14 series of the tables have no file, the first: {study}/" in caplog.text
    assert "decoding 4 studies into" in caplog.text and "GB needed, " in caplog.text


def test_a_full_disk_and_a_dead_process_end_in_one_sentence(data, tables, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: namedtuple("Usage", "total used free")(10, 10, 99))
        with pytest.raises(CacheError, match=r"needs about .* GB free: make room, or name another with RUNS="):
            build_cache(data, tables, tmp_path, 1)
    assert not list(tmp_path.glob("*.safetensors"))

    def raising(error):
        def stops(*_):
            raise error

        return stops

    for error, said in ((BrokenProcessPool(), "use fewer with JOBS="), (OSError(28, "No space left"), "No space left")):
        monkeypatch.setattr(stack_cache, "decode_all", raising(error))
        with pytest.raises(CacheError, match=said):
            build_cache(data, tables, tmp_path, 1)


def test_of_two_builders_the_second_waits_and_decodes_nothing(data, tables, folder, tmp_path, monkeypatch, caplog):
    out = shutil.copytree(folder, tmp_path / "cache")
    monkeypatch.setattr(stack_cache, "decode_all", fails)
    second = threading.Thread(target=build_cache, args=(data, tables, out, 1))
    with caplog.at_level(logging.INFO), open(out / ".lock", "w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        second.start()
        while "waiting for it" not in caplog.text:
            assert second.is_alive()
            time.sleep(0.02)
        second.join(0.1)
        assert second.is_alive()
    second.join(60)
    assert not second.is_alive()


def test_no_flipped_byte_beside_the_pixels_gives_another_study(data, tables, folder, tmp_path):
    name = tables.labels.index[0]
    digest = stack_cache.sources_of(data, tables).digests[name]
    whole = stack_file(folder, name).read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    expected = stack_cache.read_stacks(stack_file(folder, name), digest)
    file, damaged = tmp_path / "study", 0
    for place in itertools.chain(range(8), range(8, header, 37)):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 0x15]) + whole[place + 1 :])
        try:
            found = stack_cache.read_stacks(file, digest)
        except stack_cache.DAMAGE:
            damaged += 1
            continue
        assert [stack.pixels.tobytes() for stack in found.stacks] == [one.pixels.tobytes() for one in expected.stacks]
    assert damaged > 40
