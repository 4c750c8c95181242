"""Geometry, grey scale and contrast of the frames of enhanced files, from functional groups (PS3.3 C.7.6.16)."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import replace

from pydicom import Dataset
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag

from .header import (
    Contrast,
    Header,
    checked_orientation,
    checked_position,
    checked_rescale,
    checked_spacing,
    contrast_of,
    numbers,
)

# Struct codes of the binary numbers that groups hold.
BINARY = {"FD": "d", "FL": "f", "US": "H", "UL": "I", "SL": "i"}


def frame_headers(dataset: Dataset, header: Header) -> list[Header] | None:
    """One header per frame, completed from the functional groups; the plain header where there are none.

    What is wrong in the group of a frame is missing in its header.  None where no frame of several has a position, or
    half of them have no group.
    Raises what pydicom raises on groups that are no sequences.
    """
    own = list(dataset.get("PerFrameFunctionalGroupsSequence") or [])
    if 2 * len(own) < header.frames or not own:
        return [header] if header.frames == 1 else None
    shared = list(dataset.get("SharedFunctionalGroupsSequence") or [])
    headers = [_frame_header(header, [*own[index : index + 1], *shared]) for index in range(header.frames)]
    return headers if header.frames == 1 or any(one.position_mm is not None for one in headers) else None


def group_count(dataset: Dataset) -> int:
    """How many frames have a functional group of their own."""
    return len(dataset.get("PerFrameFunctionalGroupsSequence") or [])


def _frame_header(header: Header, groups: Sequence[Dataset]) -> Header:
    """What no group holds is the file's own; of several frames each needs a position in a group."""
    position = _first(groups, "PlanePositionSequence", "ImagePositionPatient")
    orientation = _first(groups, "PlaneOrientationSequence", "ImageOrientationPatient")
    spacing = _first(groups, "PixelMeasuresSequence", "PixelSpacing")
    longest_px = max(header.rows, header.columns)
    placed = replace(
        header,
        position_mm=checked_position(_decimals(position, 3)) if position or header.frames > 1 else header.position_mm,
        orientation=checked_orientation(_decimals(orientation, 6)) if orientation else header.orientation,
        spacing_mm=checked_spacing(_decimals(spacing, 2), longest_px) if spacing else header.spacing_mm,
        contrast=_contrast(header.contrast, groups),
    )
    scale = [_first(groups, "PixelValueTransformationSequence", name) for name in ("RescaleSlope", "RescaleIntercept")]
    if not any(scale):
        return placed
    slope, intercept, usable = checked_rescale(*(one.value if one else None for one in scale))
    return replace(placed, slope=slope, intercept=intercept, rescale_usable=usable)


def _contrast(common: Contrast, groups: Sequence[Dataset]) -> Contrast:
    kind = _first(groups, "MRImageFrameTypeSequence", "FrameType")
    own = contrast_of(
        _decimals(_first(groups, "MREchoSequence", "EffectiveEchoTime"), 1),
        kind.value if kind is not None else None,
        _decimals(_first(groups, "FrameContentSequence", "FrameAcquisitionNumber"), 1),
    )
    return Contrast(
        own.echo_ms or common.echo_ms,
        own.image_type or common.image_type,
        common.acquisition if own.acquisition is None else own.acquisition,
    )


def _first(groups: Sequence[Dataset], sequence: str, keyword: str) -> RawDataElement | None:
    """The first element found, as it is stored; the frame's own group comes before the shared one."""
    for group in groups:
        items = group.get(sequence)
        element = items[0].get_item(Tag(keyword)) if items else None
        if isinstance(element, RawDataElement) and element.value:
            return element
    return None


def _decimals(element: RawDataElement | None, count: int) -> tuple[float, ...] | None:
    """The numbers of an element; None unless exactly `count` finite ones."""
    if element is None:
        return None
    code = BINARY.get(element.VR or dictionary_VR(element.tag))
    if code is None:
        return numbers(element.value, count)
    layout = struct.Struct(f"{'<' if element.is_little_endian else '>'}{count}{code}")
    if element.value is None or len(element.value) != layout.size:
        return None
    found = tuple(map(float, layout.unpack(element.value)))
    return found if all(map(math.isfinite, found)) else None
