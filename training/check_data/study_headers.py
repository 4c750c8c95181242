"""One study by the headers of its files: what the kernel would make of them, and what its label points say."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from kernels.lumbar.dicom.file_header import FileHeader, UnreadableHeader, read_file_header
from kernels.lumbar.dicom.geometry import CANONICAL_AXES, Plane, body_plane, canonical, group_parallel
from kernels.lumbar.dicom.images import Image, grids_of
from kernels.lumbar.dicom.placing import with_geometry
from kernels.lumbar.dicom.read_study import add_planes, image_of, series_files
from kernels.lumbar.dicom.stacks import without_scouts
from kernels.lumbar.dicom.study import Stack, Study, gaps
from kernels.lumbar.labels import ROWS, SERIES_KINDS, SERIES_TEXTS
from kernels.lumbar.problems import Problem, Report
from training.check_data.splits import folders
from training.data.annotations import annotations_of, lift_all
from training.data.label_points import contradictions, points_outside
from training.data.series_kinds import NOT_SAID, kind_by_headers, plane_by_headers

# Along the body, and against it, in the order of instance numbers.
DIRECTIONS = {"sagittal": ("to patient left", "to patient right"), "axial": ("to the feet", "to the head")}
MIXED = "mixed"
BLANK = np.zeros((), np.uint16)


@dataclass(frozen=True)
class StudyTask:
    """A study to look at."""

    split: str
    study: str
    folder: Path
    series: list[tuple[str, str]]
    """(series id, kind)"""
    is_listed: bool
    """Whether `series` is what a table says; else the headers decide."""
    coordinates: pd.DataFrame | None
    """The study's lines of Tables.coordinates."""


@dataclass(frozen=True)
class SeriesFacts:
    """A series by its headers, a line of series.csv; empty where no header says it."""

    split: str
    study: str
    series: str
    kind: str
    """As the table describes it."""
    by_headers: str
    """The kind by the headers, or why it is none."""
    files: int
    images: int
    """Files whose header shows a readable grey image."""
    slices: int
    """Slices with a place, those of scouts left out."""
    stacks: int
    size: str
    """Columns × rows, the most frequent one."""
    sizes: int
    spacing_mm: float | None
    """Between columns."""
    step_mm: float | None
    """The median distance of neighbouring slices."""
    order: str
    """Where the slices run with growing instance numbers."""
    syntax: str
    encoding: str
    rescaled: bool


@dataclass(frozen=True)
class Examined:
    """What the headers of a study say."""

    study: str
    series: list[SeriesFacts] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    points: dict[str, np.ndarray] = field(default_factory=dict)
    """Row → (3,) patient mm, of the label points."""


def examine(task: StudyTask) -> Examined:
    """Read the headers of a study.  Bad data never raise: every fault becomes a Problem."""
    try:
        return _examine(task)
    except Exception as error:  # noqa: BLE001 - a check of all studies must not end at the first odd one
        detail = f"{type(error).__name__}: {error}"
        return Examined(task.study, problems=[Problem(task.study, "", "study-unreadable", detail)])


def _examine(task: StudyTask) -> Examined:
    facts: list[SeriesFacts] = []
    problems: list[Problem] = []
    stacks: list[Stack] = []
    planes: dict[tuple[str, int], Plane] = {}
    sizes: dict[tuple[str, int], tuple[int, int]] = {}
    unlisted = [name for name in folders(task.folder) if name not in {series for series, _ in task.series}]
    listed: list[tuple[str, str | None]] = [*task.series]
    if task.is_listed:
        problems += [
            Problem(task.study, name, "series-without-row", "the folder has files, and the table does not list it")
            for name in unlisted
        ]
    else:
        listed += [(name, None) for name in unlisted]
    for series, kind in listed:
        report = Report(task.study, series)
        files = _files(task.folder / series, report)
        headers = [header for _, _, header in files]
        by_headers, reason = kind_by_headers(headers)
        kind = kind or SERIES_KINDS.get(by_headers or "")
        images = _images(files, report)
        own: list[Stack] = []
        if kind is not None:
            if contrary := _contrary(headers, kind, by_headers, reason):
                report.add("kind-contradicted", f"the table says {SERIES_TEXTS[kind]}, the headers {contrary}")
            placed, assumed = with_geometry(images, kind, report)
            own = _stacks(series, kind, placed, assumed, planes, report)
        stacks += own
        for image in images:
            rows, columns = image.words.shape
            sizes.setdefault((series, image.instance), (rows, columns))
        facts.append(_facts(task, series, kind, by_headers or reason, headers, images, own, len(files), report))
        problems += report.problems
    study = Study(task.study, tuple(stacks), problems, planes)
    if listed:
        study.problems += gaps(study)
    points: dict[str, np.ndarray] = {}
    if task.coordinates is not None and len(task.coordinates):
        annotations = annotations_of(task.coordinates)
        # Series whose geometry was assumed share no space with the others: nothing contradicts their points.
        assumed_series = {stack.series_id for stack in stacks if stack.assumed}
        series_of = {one.row: one.series_id for one in annotations}
        lifted = lift_all(study, annotations)
        points = {row: point for row, point in lifted.items() if series_of[row] not in assumed_series}
        study.problems += points_outside(task.coordinates, lambda _, series, number: sizes.get((series, number)))
        study.problems += contradictions(task.study, {row: point for row, point in points.items() if row in ROWS})
    return Examined(task.study, facts, study.problems, points)


def _files(folder: Path, report: Report) -> list[tuple[str, int | None, FileHeader]]:
    """Name, number and header of a series' files; those that have none are Problems."""
    found = []
    for number, path in series_files(folder, report):
        try:
            header = read_file_header(path)
        except UnreadableHeader as error:
            report.add("unreadable-file", str(error)[:200], path.name)
            continue
        if _is_empty(path, header):
            report.add("empty-file", "0 bytes", path.name)
        else:
            found.append((path.name, number, header))
    return found


def _is_empty(path: Path, header: FileHeader) -> bool:
    with contextlib.suppress(OSError):
        return not header.frames[0].rows and path.stat().st_size == 0
    return False


def _images(files: Sequence[tuple[str, int | None, FileHeader]], report: Report) -> list[Image]:
    """The images that the kernel would try to decode, without their pixels."""
    images = []
    for count, (name, number, header) in enumerate(files, 1):
        first, several = header.frames[0], len(header.frames) > 1
        if not (first.rows and first.columns and header.has_pixels):
            report.add("no-image", "the file holds no DICOM image", name)
        elif first.samples != 1 or not first.photometric.startswith("MONOCHROME"):
            report.add("not-grey", f"{first.samples} samples a pixel, {first.photometric}: not a grey image", name)
        elif header.missing_bytes:
            report.add("unreadable-file", f"{header.missing_bytes} bytes of its pixels are missing", name)
        elif first.frames > 1 and not several:
            report.add("multi-frame", f"{first.frames} frames without a geometry each", name)
        else:
            for index, frame in enumerate(header.frames, 1):
                file, its = (f"{name} frame {index}", index) if several else (name, number)
                blank = np.broadcast_to(BLANK, (frame.rows, frame.columns))
                images.append(image_of(file, its, count, frame, blank))
    return images


def _stacks(
    series: str, kind: str, images: Sequence[Image], assumed: bool, planes: dict[tuple[str, int], Plane], report: Report
) -> list[Stack]:
    """Parallel slices, without pixels; contrasts in one series are told apart by the kernel alone."""
    if not images:
        return []
    grids = grids_of(images)
    add_planes(planes, images, grids, report)
    grids, blanks = canonical(grids, [image.words for image in images], kind)
    kept = without_scouts(images, grids, kind, report)
    stacks = []
    for group in group_parallel(grids.take(kept), [blanks[index].shape for index in kept]):
        part = [kept[index] for index in group]
        pixels = np.broadcast_to(np.uint8(0), (len(part), *blanks[part[0]].shape))
        instances = tuple(images[index].instance for index in part)
        stacks.append(Stack(series, kind, pixels, tuple(grids.take(part).planes()), instances, assumed))
    return stacks


def _contrary(headers: Sequence[FileHeader], kind: str, by_headers: str | None, reason: str) -> str:
    """What the headers say against the table; empty where they say the same, or nothing."""
    plane, _ = plane_by_headers(headers)
    if plane is not None and plane != body_plane(kind):
        return f"{plane} slices"
    if by_headers is not None:
        return "" if by_headers == SERIES_TEXTS[kind] else by_headers
    return "" if reason == NOT_SAID else reason


def _facts(
    task: StudyTask,
    series: str,
    kind: str | None,
    by_headers: str,
    headers: Sequence[FileHeader],
    images: Sequence[Image],
    stacks: Sequence[Stack],
    files: int,
    report: Report,
) -> SeriesFacts:
    unread = sum(one.kind in ("unreadable-file", "empty-file") for one in report.problems)
    sizes = Counter(image.words.shape for image in images)
    rows, columns = sizes.most_common(1)[0][0] if sizes else (0, 0)
    spacings = [image.spacing_mm[1] for image in images if image.spacing_mm is not None]
    longest = max(stacks, key=lambda stack: len(stack.planes), default=None)
    steps = np.diff(np.sort(longest.positions_mm)) if longest is not None else np.empty(0)
    first = headers[0].frames[0] if headers else None
    encoding = "" if first is None else (
        f"{first.bits_stored} of {first.bits_allocated} bits{', signed' if first.signed else ''}, {first.photometric}"
    )  # fmt: skip
    return SeriesFacts(
        split=task.split,
        study=task.study,
        series=series,
        kind=SERIES_TEXTS.get(kind or "", ""),
        by_headers=by_headers,
        files=files + unread,
        images=len(images),
        slices=sum(len(stack.planes) for stack in stacks),
        stacks=len(stacks),
        size=f"{columns} × {rows}" if sizes else "",
        sizes=len(sizes),
        spacing_mm=round(float(np.median(spacings)), 4) if spacings else None,
        step_mm=round(float(np.median(steps)), 3) if len(steps) else None,
        order=_order(longest) if longest is not None and not longest.assumed else "",
        syntax=", ".join(sorted({header.syntax for header in headers})),
        encoding=encoding,
        rescaled=any(image.rescale not in ((1.0, 0.0), None) for image in images),
    )


def _order(stack: Stack) -> str:
    """Where the slices of a stack run with growing instance numbers."""
    plane = body_plane(stack.kind)
    along = stack.centres_mm @ CANONICAL_AXES[plane][2]
    steps = np.diff(along[np.argsort(stack.instances, kind="stable")])
    if not len(steps):
        return ""
    forwards, backwards = DIRECTIONS[plane]
    return forwards if (steps > 0).all() else backwards if (steps < 0).all() else MIXED
