"""MetaImage files: the same volume whatever the file's axes, and one sentence for a file that cannot be read."""

from __future__ import annotations

from itertools import permutations, product
from pathlib import Path

import numpy as np
import pytest

from tests.support.dicom.spider_files import AXES, ORIGIN_MM, SPACING_MM, write_mha
from training.data.spider.mha import SpiderError, read_volume

VOXELS = np.arange(3 * 4 * 5, dtype=np.uint16).reshape(3, 4, 5)


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_axes_are_told_apart_by_their_directions_alone(tmp_path: Path, order: tuple[int, int, int]) -> None:
    for flips in product((False, True), repeat=3):
        write_mha(tmp_path / "a.mha", VOXELS, order, flips)
        volume = read_volume(tmp_path / "a.mha")
        assert np.array_equal(volume.voxels, VOXELS), (order, flips)
        np.testing.assert_allclose(volume.origin_mm, ORIGIN_MM, atol=1e-4)
        np.testing.assert_allclose(volume.steps_mm, AXES * SPACING_MM[:, None], atol=1e-5)


def test_an_oblique_volume_keeps_its_directions(tmp_path: Path) -> None:
    angle = np.deg2rad(12)
    turned = AXES @ np.array([[np.cos(angle), np.sin(angle), 0], [-np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    write_mha(tmp_path / "a.mha", VOXELS, (2, 0, 1), (True, False, True), axes=turned)
    volume = read_volume(tmp_path / "a.mha")
    np.testing.assert_allclose(volume.steps_mm, turned * SPACING_MM[:, None], atol=1e-5)
    points = volume.to_patient(np.array([[0, 0, 0], [2, 3, 4.5]]))
    np.testing.assert_allclose(volume.to_index(points), [[0, 0, 0], [2, 3, 4.5]], atol=1e-9)


@pytest.mark.parametrize("kind", ["u1", "u2", "i2", "f4"])
@pytest.mark.parametrize("compressed", [True, False])
def test_types_and_compression(tmp_path: Path, kind: str, compressed: bool) -> None:
    voxels = VOXELS.astype(kind) if kind != "i2" else VOXELS.astype(kind) - 20
    write_mha(tmp_path / "a.mha", voxels, compressed=compressed)
    assert np.array_equal(read_volume(tmp_path / "a.mha").voxels, voxels)


def test_big_endian_files_are_read(tmp_path: Path) -> None:
    write_mha(tmp_path / "a.mha", VOXELS.byteswap(), BinaryDataByteOrderMSB="True")
    assert np.array_equal(read_volume(tmp_path / "a.mha").voxels, VOXELS)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"NDims": "2"}, "in three dimensions"),
        ({"ElementType": "MET_STRING"}, "its ElementType is MET_STRING"),
        ({"DimSize": "5 4 4"}, "not those of 5 × 4 × 4"),
        ({"DimSize": "5 4"}, "not those of 5 × 4"),
        ({"TransformMatrix": "1 0 0 0 1 0"}, "its TransformMatrix is '1 0 0 0 1 0'"),
        ({"TransformMatrix": "1 0 0 0 1 0 1 0 1"}, "not at right angles"),
        ({"TransformMatrix": "1 0 0 0 0 1 0 -1 0", "DimSize": "5 4 3"}, None),
        ({"ElementSpacing": "0 1 1"}, "its spacing is not positive"),
        ({"Offset": "a b c"}, "could not convert"),
        ({"ElementDataFile": "a.raw"}, "its voxels are in another file"),
    ],
)
def test_odd_files_end_with_a_sentence(tmp_path: Path, changes: dict[str, str], sentence: str | None) -> None:
    path = tmp_path / "a.mha"
    further = {name: value for name, value in changes.items() if name != "ElementDataFile"}
    write_mha(path, VOXELS, **further)
    if "ElementDataFile" in changes:
        path.write_bytes(path.read_bytes().replace(b"= LOCAL", b"= a.raw"))
    if sentence is None:  # slices along any axis: these go from front to back of the file
        assert read_volume(path).voxels.shape == (5, 4, 3)
        return
    with pytest.raises(SpiderError, match=r"a\.mha is no sagittal volume") as refused:
        read_volume(path)
    assert sentence in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("content", [b"", b"\0" * 40_000, b"NDims = 3\n"])
def test_files_that_are_none_end_with_a_sentence(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.mha").write_bytes(content)
    with pytest.raises(SpiderError, match="no MetaImage header"):
        read_volume(tmp_path / "a.mha")
    with pytest.raises(SpiderError, match=r"b\.mha cannot be read \(No such file"):
        read_volume(tmp_path / "b.mha")


def test_a_cut_file_ends_with_a_sentence(tmp_path: Path) -> None:
    write_mha(tmp_path / "a.mha", VOXELS)
    (tmp_path / "a.mha").write_bytes((tmp_path / "a.mha").read_bytes()[:-10])
    with pytest.raises(SpiderError, match="incomplete or truncated"):
        read_volume(tmp_path / "a.mha")


def test_the_axis_nearest_to_left_and_right_is_that_of_the_slices(tmp_path: Path) -> None:
    coronal = np.array([[0.5, -0.866025, 0], [0, 0, -1], [0.866025, 0.5, 0]])
    write_mha(tmp_path / "a.mha", VOXELS, axes=coronal)
    assert read_volume(tmp_path / "a.mha").voxels.shape == (5, 4, 3), "its columns are the sagittal slices"


def test_slices_that_are_not_sagittal_are_refused(tmp_path: Path) -> None:
    oblique = (np.array([[1, 1, 1], [1, -1, 0], [1, 1, -2]]) / np.sqrt([[3], [2], [6]])).T
    write_mha(tmp_path / "a.mha", VOXELS, axes=oblique)
    with pytest.raises(SpiderError, match="its slices are not sagittal"):
        read_volume(tmp_path / "a.mha")
