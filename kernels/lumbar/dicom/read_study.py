"""A study folder of DICOM files → stacks.  Bad data never raise: every fault becomes a named Problem."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ..problems import Problem, Report
from .fast_path_check import agrees
from .geometry import Grids, Plane
from .header import REQUIRED, Header, parse, raw_values, scan
from .images import Image, grids_of
from .missing_elements import with_last_delimiter, with_usual_values
from .multiframe import frame_headers, group_count
from .pixels import (
    NotRead,
    decode_by_pydicom,
    decode_fast,
    has_pixels,
    read_dataset,
    read_file,
    scratch,
    to_offset_binary,
    to_words,
)
from .placing import with_geometry
from .stacks import build_stacks
from .study import Stack, Study


def read_study(folder: Path, study_id: str, series: Sequence[tuple[str, str]]) -> Study:
    """Read the (series id, kind) folders of a study.

    Unreadable files are left out and listed in `Study.problems`; a study without any usable image has no stacks.
    """
    stacks: list[Stack] = []
    problems: list[Problem] = []
    source_planes: dict[tuple[str, int], Plane] = {}
    for series_id, kind in series:
        report = Report(study_id, series_id)
        images, assumed = with_geometry(list(_read_images(Path(folder) / series_id, report)), kind, report)
        grids = grids_of(images)
        add_planes(source_planes, images, grids, report)
        stacks += build_stacks(series_id, kind, images, grids, assumed, report)
        problems += report.problems
    return Study(study_id, tuple(stacks), problems, source_planes)


def add_planes(planes: dict[tuple[str, int], Plane], images: Sequence[Image], grids: Grids, report: Report) -> None:
    """Add the plane of each file's pixel grid by series and number; of two files of one number the first counts."""
    for image, plane in zip(images, grids.planes(), strict=True):
        if planes.setdefault((report.series, image.instance), plane) is not plane:
            report.add("duplicate-number", f"another file has the number {image.instance} too", image.file)


def _read_images(folder: Path, report: Report) -> Iterator[Image]:
    """The readable images of a series folder, by file number and name."""
    reader = _SeriesReader(report)
    scratch.clear()
    for number, path in series_files(folder, report):
        try:
            yield from reader.read(path, number)
        except Exception as error:  # noqa: BLE001 - pydicom raises nearly anything on damaged files; recorded by name
            report.add("unreadable-file", f"{type(error).__name__}: {ADDRESS.sub('', str(error))[:200]}", path.name)


def series_files(folder: Path, report: Report) -> list[tuple[int | None, Path]]:
    """Number (from the name, if it is one) and path of a series' files; hidden entries and folders are skipped."""
    try:
        with os.scandir(folder) as entries:
            paths = [Path(entry.path) for entry in entries if not entry.name.startswith(".") and not _is_folder(entry)]
    except (OSError, ValueError) as error:  # ValueError: not a possible path
        report.add("no-folder", f"{type(error).__name__}: {getattr(error, 'strerror', error)}")
        return []
    if not paths:
        report.add("empty-folder", "the series folder holds no files")
    numbered = list(zip(_numbers([path.name for path in paths]), paths, strict=True))
    return sorted(numbered, key=lambda one: (one[0] is None, one[0] or 0, one[1].name))


# As archives name files: 3.12 or 3.12.dcm, where 3 is the series.
TWO_NUMBERS = re.compile(r"(\d+)\.(\d+)(?:\.[^.\d][^.]*)?")


def _numbers(names: Sequence[str]) -> list[int | None]:
    """The number that each file's name is, or the second one of two that tells files apart; None for other names."""
    stems = [os.path.splitext(name)[0] for name in names]
    pairs = {name: pair for name in names if "." in name and (pair := TWO_NUMBERS.fullmatch(name))}
    if pairs:
        series, numbers = ({pair[place] for pair in pairs.values()} for place in (1, 2))
        if len(numbers) == len(pairs) and (len(pairs) == len(names) or len(series) < len(pairs)):
            stems = [pairs[name][2] if name in pairs else stem for name, stem in zip(names, stems, strict=True)]
    return [int(stem) if stem.isdecimal() else None for stem in stems]


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, or a failing mount: a Problem when it is read
        return False


# A file with more pixels per byte is damaged: decoding it could take all memory.
LARGEST_RATIO = 64
LARGEST_UNQUESTIONED_PIXELS = 1 << 24
# Object addresses in pydicom's messages are removed: the same file gives the same Problem in every run.
ADDRESS = re.compile(r" at 0x[0-9a-f]+")


class _SeriesReader:
    """Reads the files of one series, by the fast path where it is confirmed for this encoding."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._fast_allowed = True
        # Encodings for which the fast path is confirmed on a file of this series.  Per series, so that the result of a
        # series does not depend on those read before.
        self._confirmed: set[tuple[object, ...]] = set()
        self._count = 0

    def read(self, path: Path, number: int | None) -> list[Image]:
        """The images of one file: one, or the frames of a multi-frame file.  Raises what pydicom raises."""
        self._count += 1
        try:
            buffer, size = read_file(path)
        except NotRead as error:
            self._report.add("unreadable-file", str(error), path.name)
            return []
        if size == 0:
            self._report.add("empty-file", "0 bytes", path.name)
            return []
        return self._read_fast(path, buffer, size, number) or self._read_by_pydicom(path, buffer, size, number)

    def _read_fast(self, path: Path, buffer: np.ndarray, size: int, number: int | None) -> list[Image]:
        found = scan(buffer.data[:size]) if self._fast_allowed else None
        header = parse(found.values) if found is not None else None
        if found is None or header is None or not all(map(found.values.get, REQUIRED)):
            return []
        words = decode_fast(buffer, size, found, header)
        if words is None:
            return []
        if (kind := (found.syntax, *header.encoding)) not in self._confirmed:
            if not agrees(buffer, size, found, header, words):
                self._fast_allowed = False
                self._report.add("fast-path-differs", "the series is read by pydicom instead", path.name)
                return []
            self._confirmed.add(kind)
        return [self._image(path.name, number, header, words)]

    def _read_by_pydicom(self, path: Path, buffer: np.ndarray, size: int, number: int | None) -> list[Image]:
        dataset = read_dataset(buffer, size)
        if not has_pixels(dataset) and (longer := with_last_delimiter(buffer, size)):
            self._report.add("missing-delimiter", "the file ends behind its last fragment of pixels", path.name)
            dataset = read_dataset(buffer, longer)
        header, missing = with_usual_values(dataset, *raw_values(dataset))
        if not (header.rows and header.columns and has_pixels(dataset)):
            self._report.add("no-image", "the file holds no DICOM image", path.name)
            return []
        if header.samples != 1 or not header.photometric.startswith("MONOCHROME"):
            detail = f"{header.samples} samples a pixel, {header.photometric}: not a grey image"
            self._report.add("not-grey", detail, path.name)
            return []
        count = header.rows * header.columns * header.frames
        if count > max(LARGEST_RATIO * size, LARGEST_UNQUESTIONED_PIXELS):
            self._report.add("unreadable-file", f"{size} bytes cannot hold the {count} pixels claimed", path.name)
            return []
        if missing:
            self._report.add("missing-element", f"{', '.join(missing)}: the usual value instead", path.name)
        headers = frame_headers(dataset, header)
        if headers is None:
            self._report.add("multi-frame", f"{header.frames} frames without a geometry each", path.name)
            return []
        words = decode_by_pydicom(dataset).reshape(len(headers), header.rows, header.columns)
        if header.frames == 1:
            return [self._image(path.name, number, headers[0], words[0])]
        if (count := group_count(dataset)) != header.frames:
            detail = f"{count} groups for {header.frames} frames: those without a group are left out"
            self._report.add("multi-frame", detail, path.name)
        frames = enumerate(zip(headers, words, strict=True), 1)
        return [self._image(f"{path.name} frame {index}", index, one, frame) for index, (one, frame) in frames]

    def _image(self, file: str, number: int | None, header: Header, words: np.ndarray) -> Image:
        if not header.rescale_usable:
            detail = "slope or intercept is no usable number: those of the other files, or 1 and 0"
            self._report.add("bad-rescale", detail, file)
        step, low = 1.0, 0.0
        if words.dtype == np.uint16:
            words, offset, problem = to_offset_binary(words, header)
            low = float(-offset)
            if problem:
                kept = "kept, as the header's largest value includes them" if problem == "larger-values" else "dropped"
                self._report.add(problem, f"bits beside the {header.bits_stored} stored ones are {kept}", file)
        else:
            words, step, low = to_words(words)
        return image_of(file, number, self._count, header, words, step, low)


def image_of(
    file: str, number: int | None, count: int, header: Header, words: np.ndarray, step: float = 1.0, low: float = 0.0
) -> Image:
    """An image of (H, W) words.  `number`: that of its name; without one that of the header, else `count` stands in."""
    if number is None:
        number = header.instance_number if header.instance_number is not None else count
    in_header = number if header.instance_number is None else header.instance_number
    return Image(
        file=file,
        instance=number,
        order=(in_header, number),
        words=words,
        step=step,
        low=low,
        sign=-1 if header.photometric == "MONOCHROME1" else 1,  # there bright means low
        rescale=(header.slope, header.intercept) if header.rescale_usable else None,
        position_mm=header.position_mm,
        orientation=header.orientation,
        spacing_mm=header.spacing_mm,
        location=header.location,
        contrast=header.contrast,
    )
