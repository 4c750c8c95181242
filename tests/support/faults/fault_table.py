"""The fault table: kinds of bad and of unusual studies, each made from the clean study, and what is expected of it."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from typing import Literal

import numpy as np
from pydicom.uid import JPEG2000Lossless, JPEGBaseline8Bit, JPEGLSLossless

from tests.support.anatomy.clean_study import AXIAL, SERIES, T1, T2
from tests.support.faults import faulty_files as files
from tests.support.faults import faulty_studies as studies
from tests.support.faults.faulty_studies import Spoil, anew, one_file, pixels, without

Answers = Literal["same", "near", "other", "prior"]
# What members say of a study that lacks something, beside the problem itself.
CONSEQUENCES = frozenset({"nothing-to-look-at", "guessed-landmarks", "implausible-landmark"})
MISSING = "missing-kind"


@dataclass(frozen=True)
class Fault:
    """One row of the table."""

    spoil: Spoil
    """Changes the folder of a clean study; rows that it returns are the study's in the series table."""
    problems: frozenset[str]
    """The kinds of Problem that the report names for the study."""
    answers: Answers
    """The clean study's to the last bit, or but for rounding; others; or the priors."""
    is_sound: bool = False
    """Nothing is wrong with it: then nothing is named, though the answers are others."""


def fault(spoil: Spoil, problem: str, *more: str, answers: Answers = "other") -> Fault:
    """A fault that costs the study something, and has a name."""
    return Fault(spoil, frozenset({problem, *more}), answers)


def harmless(spoil: Spoil, *problems: str) -> Fault:
    """A fault that costs nothing: the answers stay the clean study's."""
    return Fault(spoil, frozenset(problems), "same")


def near(spoil: Spoil) -> Fault:
    """Grey values that come through arithmetic: the answers are the clean study's but for rounding."""
    return Fault(spoil, frozenset(), "near")


def unusual(spoil: Spoil) -> Fault:
    """A sound study of other pixels or places, so of other answers."""
    return Fault(spoil, frozenset(), "other", is_sound=True)


JPEG, JPEG_LS, JPEG2000 = (str(uid) for uid in (JPEGBaseline8Bit, JPEGLSLossless, JPEG2000Lossless))
REVERSED = range(10, 0, -1)
SHUFFLED = [7, 2, 12, 13, 1, 9, 3, 8, 6]
NAN3, ZERO6 = ["NaN", "0", "0"], ["0"] * 6
NO_PLACE = {"ImagePositionPatient": None, "ImageOrientationPatient": None}
UNICODE = {"SpecificCharacterSet": "ISO_IR 192", "PatientName": "Ünïcode^Ωμέγα", "SeriesDescription": "矢状断 T1"}
WRONG_SET = {"SpecificCharacterSet": "ISO_IR 999", "SeriesDescription": "T1"}
WINDOWS = {"WindowCenter": "NaN", "WindowWidth": "0", "SliceThickness": "NaN", "SpacingBetweenSlices": "-1"}

SERIES_FAULTS = {
    "no sagittal T1": fault(without(T1), MISSING),
    "no sagittal T2": fault(without(T2), MISSING),
    "no axial T2": fault(without(AXIAL), MISSING),
    "axial alone": fault(without(T1, T2), MISSING),
    "no folder of the study": fault(shutil.rmtree, "no-folder", MISSING, answers="prior"),
    "no row in the series table": fault(lambda _: [], "no-series", answers="prior"),
    "no folder of a series": fault(lambda s: shutil.rmtree(s / SERIES[T1]), "no-folder", MISSING),
    "an empty folder": fault(lambda s: files.clear(s / SERIES[T1]), "empty-folder", MISSING),
    "empty folders": fault(studies.empty_all, "empty-folder", MISSING, answers="prior"),
    "a file instead of a folder": fault(studies.file_for_folder, "no-folder", MISSING),
    "two sagittal T2 series": harmless(studies.second_t2),
    "five axial series": unusual(studies.axial_in_five),
    "axial of two levels": fault(studies.two_levels, "guessed-landmarks"),
    "unknown description": fault(studies.described("Coronal T1"), "unknown-series-description", MISSING),
    "unicode description": fault(studies.described("Sagittal T1 – é"), "unknown-series-description", MISSING),
    "axial called sagittal T1": fault(studies.described("Sagittal T1", AXIAL), "unexpected-orientation", MISSING),
}
FILE_FAULTS = {
    "an empty file": harmless(files.add("0.dcm", b""), "empty-file"),
    "all files empty": fault(files.each(lambda path: path.write_bytes(b"")), "empty-file", MISSING),
    "text named dcm": harmless(files.add("0.dcm", b"this is no image\n" * 99), "no-image"),
    "all files text": fault(files.each(lambda path: path.write_bytes(b"no image")), "no-image", MISSING),
    "foreign files": harmless(files.foreign, "no-image", "empty-file"),
    "one file truncated": fault(files.truncate("4.dcm", 3000), "unreadable-file"),
    "all files truncated": fault(files.each(files.shorten(3000)), "unreadable-file", MISSING),
    "truncated run lengths": fault(files.truncated_rle, "no-image", MISSING),
    "headers without pixels": fault(files.each(files.header_only), "no-image", MISSING),
    "a folder among the files": harmless(lambda s: (s / SERIES[T1] / "0.dcm").mkdir()),
    "a hidden file": harmless(files.add("._1.dcm", b"\0\5\x16\7" * 99)),
    "symbolic links to files": harmless(files.link_files),
    "symbolic links to folders": harmless(files.link_folder),
    "unicode and spaces in names": harmless(anew(names=[f"Schnitt é {number}" for number in range(10)])),
    "numbers up to 5046": harmless(anew(numbers=[5046, 1, 17, *range(400, 407)])),
    "two files of one number": harmless(
        anew(names=["05.dcm", *(f"{n}.dcm" for n in range(1, 10))]), "duplicate-number"
    ),
    "a claim of four billion pixels": fault(one_file(Rows=65535, Columns=65535), "unreadable-file"),
}
GEOMETRY_FAULTS = {
    "no position": fault(anew(ImagePositionPatient=None), "assumed-geometry"),
    "no orientation": harmless(anew(ImageOrientationPatient=None), "assumed-geometry"),
    "no spacing": fault(anew(PixelSpacing=None), "assumed-spacing"),
    "no geometry at all": fault(anew(AXIAL, **NO_PLACE, PixelSpacing=None), "assumed-geometry", "assumed-spacing"),
    "one file without geometry": fault(one_file(**NO_PLACE), "no-geometry"),
    "zero spacing": fault(anew(PixelSpacing=["0", "0"]), "assumed-spacing"),
    "negative spacing": fault(anew(PixelSpacing=["-1", "1"]), "assumed-spacing"),
    "absurd spacing": fault(anew(PixelSpacing=["1e6", "1e6"]), "assumed-spacing"),
    "NaN spacing": fault(anew(PixelSpacing=["NaN", "NaN"]), "assumed-spacing"),
    "NaN position": fault(anew(ImagePositionPatient=NAN3), "assumed-geometry"),
    "absurd position": fault(one_file(ImagePositionPatient=["1e12", "0", "0"]), "no-geometry"),
    "zero orientation": harmless(anew(ImageOrientationPatient=ZERO6), "assumed-geometry"),
    "NaN and nonsense in tags that are not needed": harmless(anew(**WINDOWS)),
    "no instance number": harmless(anew(InstanceNumber=None)),
    "reversed order": harmless(anew(numbers=REVERSED)),
    "shuffled order": harmless(anew(T2, numbers=SHUFFLED)),
    "rows and columns exchanged": harmless(studies.stored_otherwise),
    "duplicated slices": harmless(studies.duplicated_slices, "duplicate-slice"),
    "a localiser among the slices": harmless(studies.localiser_among_slices, "off-orientation"),
    "mixed orientations": fault(studies.mixed_orientations, "several-stacks"),
    "mixed shapes": fault(studies.mixed_shapes, "several-stacks"),
    "a single slice": fault(studies.single_slice, "single-slice"),
}
PIXEL_FAULTS = {
    "1024 pixels a side": unusual(studies.resized(1024, 6)),
    "64 pixels a side": unusual(studies.resized(64, 10)),
    "a constant series": fault(pixels(lambda v: (0 * v + 9).astype("u2")), "constant-pixels"),
    "a black slice": unusual(pixels(lambda v: np.where(np.arange(10)[:, None, None] == 4, 0, v).astype("u2"))),
    "MONOCHROME1": harmless(pixels(lambda v: (4000 - v).astype("u2"), PhotometricInterpretation="MONOCHROME1")),
    "signed, 16 bits": harmless(pixels(lambda v: (v - 100).astype("i2"), bits_stored=16)),
    "signed, 12 bits": harmless(pixels(lambda v: ((v - 100) & 0xFFF).astype("u2").view("i2"), PixelRepresentation=1)),
    "8 bits": harmless(pixels(lambda v: v.astype("u1"), bits_stored=8)),
    "16 bits": harmless(pixels(lambda v: (v + 60000).astype("u2"), bits_stored=16)),
    "16 bits, the whole range": near(pixels(lambda v: (v * 257).astype("u2"), bits_stored=16)),
    "32 bits": near(pixels(lambda v: (v * 70000).astype("u4"), bits_stored=32)),
    "values high in the word": harmless(pixels(lambda v: (v << 4).astype("u2"), HighBit=15)),
    "bits beside the stored ones": harmless(pixels(lambda v: (v | 0xA000).astype("u2")), "stray-bits"),
    "one slope and intercept": harmless(anew(RescaleSlope="2.5", RescaleIntercept="-100")),
    "slope and intercept by file": near(studies.slopes_by_file),
    "a slope of zero": harmless(anew(RescaleSlope="0", RescaleIntercept="0"), "bad-rescale"),
    "NaN as intercept": harmless(anew(RescaleIntercept="NaN"), "bad-rescale"),
    "floating pixels, not all finite": unusual(files.change_dataset(files.to_floats)),
    "colour": fault(files.change_dataset(files.to_colour), "not-grey", MISSING),
}
SYNTAX_FAULTS = {
    "implicit VR": harmless(anew(syntax="implicit")),
    "big-endian": harmless(anew(syntax="big")),
    "deflated": harmless(anew(syntax="deflated")),
    "RLE": harmless(anew(syntax="rle")),
    "JPEG 2000": harmless(files.encoded(JPEG2000, files.by_pillow("JPEG2000", irreversible=False), 16)),
    "JPEG": unusual(files.encoded(JPEG, files.by_pillow("JPEG", quality=95), 8)),
    "a syntax that nothing here decodes": fault(
        files.encoded(JPEG_LS, lambda _: bytes(999), 16), "unreadable-file", MISSING
    ),
    "an unknown syntax": fault(files.encoded("1.2.3.4.5", lambda _: bytes(999), 16), "unreadable-file", MISSING),
    "multi-frame": harmless(studies.multiframe(has_places=True)),
    "multi-frame without places": fault(studies.multiframe(has_places=False), "multi-frame", MISSING),
    "no preamble": harmless(files.each(files.without_preamble)),
    "no meta group": harmless(files.each(files.without_meta)),
    "nested and private elements": harmless(files.change_dataset(files.add_unusual_elements)),
    "unicode in tags": harmless(anew(**UNICODE)),
    "an unknown character set": harmless(anew(**WRONG_SET)),
}
if hasattr(os, "mkfifo"):
    FILE_FAULTS["a pipe named dcm"] = harmless(files.add_pipe, "unreadable-file")
FAULTS = SERIES_FAULTS | FILE_FAULTS | GEOMETRY_FAULTS | PIXEL_FAULTS | SYNTAX_FAULTS
