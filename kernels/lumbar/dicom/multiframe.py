"""Geometry of the frames of enhanced multi-frame files, from their functional groups (PS3.3 C.7.6.16)."""

from __future__ import annotations

from dataclasses import replace

from pydicom import Dataset

from .header import Header, checked_orientation, checked_position, checked_spacing


def frame_headers(dataset: Dataset, header: Header) -> list[Header] | None:
    """One header per frame, completed from the functional groups; the plain header where there are none.

    None where several frames have no geometry each.  Raises what pydicom raises on damaged groups.
    """
    frames = list(dataset.get("PerFrameFunctionalGroupsSequence") or [])
    if len(frames) != header.frames:
        return [header] if header.frames == 1 else None
    shared = list(dataset.get("SharedFunctionalGroupsSequence") or [])
    headers = [_frame_header(header, [frame, *shared]) for frame in frames]
    if header.frames > 1 and any(one.position_mm is None for one in headers):
        return None
    return headers


def _frame_header(header: Header, groups: list[Dataset]) -> Header:
    def numbers(sequence: str, keyword: str) -> tuple[float, ...] | None:
        """The first value found, the frame's own group before the shared one."""
        for group in groups:
            items = group.get(sequence)
            value = items[0].get(keyword) if items else None
            if value is not None:
                return tuple(map(float, value)) if hasattr(value, "__iter__") else (float(value),)
        return None

    position = checked_position(numbers("PlanePositionSequence", "ImagePositionPatient"))
    orientation = checked_orientation(numbers("PlaneOrientationSequence", "ImageOrientationPatient"))
    spacing = checked_spacing(numbers("PixelMeasuresSequence", "PixelSpacing"), max(header.rows, header.columns))
    slope = numbers("PixelValueTransformationSequence", "RescaleSlope")
    intercept = numbers("PixelValueTransformationSequence", "RescaleIntercept")
    return replace(
        header,
        position_mm=position or header.position_mm,
        orientation=orientation or header.orientation,
        spacing_mm=spacing or header.spacing_mm,
        slope=slope[0] if slope and slope[0] else header.slope,
        intercept=intercept[0] if intercept else header.intercept,
    )
