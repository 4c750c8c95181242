"""Ways in which the files of a series are not what they should be."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.uid import UID

from tests.support.anatomy.clean_study import GRIDS, SERIES, T1, VOLUMES, rewrite
from tests.support.dicom.dicom_writer import make_dataset, place_tags

Spoil = Callable[[Path], None]


def clear(folder: Path) -> None:
    """Leave a folder empty."""
    shutil.rmtree(folder)
    folder.mkdir()


def paths(study: Path) -> list[Path]:
    """The files of Sagittal T1."""
    return sorted((study / SERIES[T1]).iterdir())


def each(change: Callable[[Path], object]) -> Spoil:
    """Change every file of Sagittal T1."""

    def spoil(study: Path) -> None:
        for path in paths(study):
            change(path)

    return spoil


def add(name: str, content: bytes) -> Spoil:
    """One more file in Sagittal T1."""

    def spoil(study: Path) -> None:
        (study / SERIES[T1] / name).write_bytes(content)

    return spoil


def foreign(study: Path) -> None:
    """What other programs leave behind."""
    add("Thumbs.db", b"\xd0\xcf\x11\xe0" * 500)(study)
    add("preview.png", b"\x89PNG\r\n\x1a\n" + bytes(500))(study)
    add("notes.txt", b"")(study)


def shorten(by: int) -> Callable[[Path], None]:
    """Cut bytes off the end of a file."""

    def change(path: Path) -> None:
        path.write_bytes(path.read_bytes()[:-by])

    return change


def truncate(name: str, by: int) -> Spoil:
    """Cut bytes off the end of one file."""
    return lambda study: shorten(by)(study / SERIES[T1] / name)


def truncated_rle(study: Path) -> None:
    """Run lengths that end in the middle of the second plane."""
    rewrite(study, T1, syntax="rle")
    each(shorten(1500))(study)


def header_only(path: Path) -> None:
    """A file without its pixels."""
    dataset = pydicom.dcmread(path)
    del dataset.PixelData
    dataset.save_as(path)


def link_files(study: Path) -> None:
    """Files that lie elsewhere, under other names."""
    store = study.parent / ".store"
    store.mkdir(exist_ok=True)
    for number, path in enumerate(paths(study)):
        path.rename(store / f"{study.name} {number}")
        path.symlink_to(Path("..", "..", ".store", f"{study.name} {number}"))


def link_folder(study: Path) -> None:
    """A series that lies elsewhere."""
    folder, store = study / SERIES[T1], study.parent / ".store"
    store.mkdir(exist_ok=True)
    folder.rename(store / study.name)
    folder.symlink_to(store / study.name)


def add_pipe(study: Path) -> None:
    """What nobody writes to: reading it would wait for ever."""
    os.mkfifo(study / SERIES[T1] / "0.dcm")


def encoded(syntax: str, encode: Callable[[np.ndarray], bytes], stored: int) -> Spoil:
    """Sagittal T1 in a compressed syntax that pydicom itself does not write."""

    def spoil(study: Path) -> None:
        clear(study / SERIES[T1])
        for index, image in enumerate(VOLUMES[T1]):
            pixels = image if stored > 8 else image.astype(np.uint8)
            dataset = make_dataset(pixels, InstanceNumber=index + 1, **place_tags(GRIDS[T1], index))
            dataset.file_meta.TransferSyntaxUID = UID(syntax)
            dataset.PixelData = encapsulate([encode(pixels)])
            dataset["PixelData"].VR = "OB"
            dataset["PixelData"].is_undefined_length = True
            dataset.save_as(study / SERIES[T1] / f"{index + 1}.dcm", implicit_vr=False, little_endian=True)

    return spoil


def by_pillow(kind: str, **options: object) -> Callable[[np.ndarray], bytes]:
    """An encoder of Pillow's."""

    def encode(pixels: np.ndarray) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, kind, **options)
        return buffer.getvalue()

    return encode


def change_dataset(change: Callable[[pydicom.Dataset], object]) -> Spoil:
    """Change every file of Sagittal T1 as pydicom reads it."""

    def one(path: Path) -> None:
        dataset = pydicom.dcmread(path)
        change(dataset)
        dataset.save_as(path)

    return each(one)


def without_preamble(path: Path) -> None:
    """The file from its meta group on."""
    path.write_bytes(path.read_bytes()[132:])


def without_meta(path: Path) -> None:
    """A bare data set, as old programs write it."""
    dataset = pydicom.dcmread(path)
    del dataset.file_meta
    pydicom.dcmwrite(path, dataset, implicit_vr=True, little_endian=True)


def add_unusual_elements(dataset: pydicom.Dataset) -> None:
    """Nested sequences and private elements before the pixels."""
    inner = pydicom.Dataset()
    inner.ReferencedSOPInstanceUID = "1.2.3"
    outer = pydicom.Dataset()
    outer.ReferencedImageSequence = [inner]
    dataset.ReferencedStudySequence = [outer, pydicom.Dataset()]
    block = dataset.private_block(0x0029, "NOBODY", create=True)
    block.add_new(0x10, "OB", bytes(range(256)))


def to_floats(dataset: pydicom.Dataset) -> None:
    """Floating pixels, some of them not finite."""
    values = dataset.pixel_array.astype("<f4")
    values.flat[:3] = np.nan, np.inf, -np.inf
    for keyword in ("PixelData", "BitsStored", "HighBit", "PixelRepresentation"):
        delattr(dataset, keyword)
    dataset.BitsAllocated = 32
    dataset.FloatPixelData = values.tobytes()


def to_colour(dataset: pydicom.Dataset) -> None:
    """Three samples a pixel."""
    grey = dataset.pixel_array.astype(np.uint8)
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PlanarConfiguration = 3, "RGB", 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8, 8, 7
    dataset.PixelData = np.repeat(grey[..., None], 3, axis=2).tobytes()
