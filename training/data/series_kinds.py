"""Kind of a DICOM series from its headers, for studies without a series table.

The kind follows from the plane of most slices and from the weighting: by what the series is called, else by the times
of its sequence.  "None of the three" is an answer: localisers, diffusion, maps and proton density are not graded.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from kernels.lumbar.dicom.file_header import (
    INVERSION_TIME,
    MODALITY,
    PROTOCOL_NAME,
    REPETITION_TIME,
    SCANNING_SEQUENCE,
    SERIES_DESCRIPTION,
    SLICE_THICKNESS,
    FileHeader,
    UnreadableHeader,
    read_file_header,
)
from kernels.lumbar.dicom.header import Header

COLUMNS = ("study_id", "series_id", "series_description")
NONE = "neither sagittal T1, sagittal T2 nor axial T2"
NOT_SAID = "neither its name nor an echo time says the weighting"
# Spin echoes of T1-weighted spine protocols are 8–30 ms, of T2-weighted ones 80–130 ms; gradient echoes of localisers
# are shorter.  Beyond this repetition time a short echo shows proton density.
SHORTEST_ECHO_MS, LONGEST_T1_ECHO_MS, LONGEST_T1_REPETITION_MS = 5.0, 50.0, 1500.0
# Inversion times that null fat at 0.2 to 3 T, and those of T1-weighted inversion recovery; longer ones null water.
FAT_INVERSION_MS, T1_INVERSION_MS = (60.0, 350.0), (350.0, 1500.0)
# Diagnostic slices of the spine are 3–5 mm thick.
THICKEST_SLICE_MM = 7.5
# Slices that are more oblique than this are of no kind.
SMALLEST_COSINE = np.cos(np.radians(50))
# A property of a series is one of so many of the files that say it.
LEAST_SHARE = 0.2
# What an image type, or a word of a name, says that no network grades.
TYPES = {
    "a localiser": {"LOCALIZER", "LOCALISER", "SCOUT", "SURVEY", "SCANOGRAM"},
    "diffusion": {"DIFFUSION", "ADC", "TRACEW", "TRACE", "FA", "TENSOR", "EADC", "DWI"},
    "a calculated map or projection": {
        "PERFUSION", "T2 MAP", "T1 MAP", "T2_MAP", "T1_MAP", "T2_STAR_MAP", "MIP", "MINIP", "PROJECTION IMAGE", "SUB",
        "SUBTRACTION", "PHASE", "VELOCITY", "FIELDMAP", "B0", "B1", "FAT_FRACTION", "SCREEN SAVE", "SCREENSHOT",
    },
}  # fmt: skip
WORDS = {
    "a localiser": r"LOC|LOCALI[SZ]ERS?|LOCALI[SZ]ATION|SCOUTS?|AAH?SCOUT|SURVEY|PLANLOC|PILOT|TOPOGRAM|SCANOGRAM"
    r"|(?:3|TRI)[ -]?PLANE|CALIBRATION|ASSET CAL|SMARTBRUSH",
    "diffusion": r"DWI?|DTI|DIFF\w*|ADC|EADC|TRACEW?|EP2D|REVEAL|B[- ]?(?:50|[1-9]\d{2,3})",
    "a calculated map or projection": r"T[12]\*? ?MAPS?|MAPIT|MIP|MINIP|SUB|SUBTRACTION|MYELO\w*|PERF\w*|FIELD ?MAP",
    "proton density": r"PDW?|PDFS|PROTON|DP",
    "FLAIR": r"FLAIR|DARK[ -]?FLUID|TIRM[ -]?DARK",
}
# Vertebrae and ranges of them: T12-S1, T10-S2, T1-T12.  T2-L5 would be a weighting and a level.
VERTEBRAE = re.compile(r"(?<![A-Z0-9])[CT]?(?:C[1-7]|T(?:[3-9]|1[0-2])|T[12](?= ?(?:-|–|TO) ?T\d))(?![0-9])"
                       r"(?: ?(?:-|–|TO) ?[CTLS]\d{1,2}(?!\d))?")  # fmt: skip
# T1, T2W, SAG_T1, AXT2FS, but not REPEAT2.
WEIGHTING = re.compile(
    r"(?<![A-Z0-9])(?:SAGITTAL|SAG|AXIAL|AX|TRANSVERSE|TRANS|TRA|COR|OBL|TSE|FSE|FRFSE|SE|STIR|DIXON|CUBE|SPACE)?"
    r"(?:T([12])(?!\d)|(STIR|TIRM|TIR(?![A-Z])))"
)


def series_table(images: Path) -> tuple[pd.DataFrame, list[str]]:
    """The competition's series table for folders STUDY/SERIES/*.dcm, and a sentence for each skipped series."""
    rows: list[tuple[str, str, str]] = []
    left_out: list[str] = []
    for study in tqdm(_folders(images), unit="study", desc="kinds of series"):
        for series in _folders(study):
            kind, reason = kind_and_reason(series)
            if kind is None:
                left_out.append(f"{study.name}/{series.name}: {NONE}{f' ({reason})' if reason else ''}")
            else:
                rows.append((study.name, series.name, kind))
    return pd.DataFrame(rows, columns=list(COLUMNS)), left_out


def _folders(folder: Path) -> list[Path]:
    """Its subfolders; none where it cannot be listed."""
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError:
        return []


def kind_of(series: Path) -> str | None:
    """ "Sagittal T1", "Sagittal T2/STIR" or "Axial T2", by the headers of all files; None for none of the three."""
    return kind_and_reason(series)[0]


def kind_and_reason(series: Path) -> tuple[str | None, str]:
    """The kind of a series; or None, and why where there is more to say than that it is none of the three."""
    return kind_by_headers(_headers(series))


def plane_by_headers(files: Sequence[FileHeader]) -> tuple[str | None, str]:
    """ "sagittal", "axial" or "coronal", that of most slices; None where they name none, or with the reason."""
    planes = Counter(_plane(header) for file in files for header in file.frames if header.orientation is not None)
    plane, count = planes.most_common(1)[0] if planes else (None, 0)
    if plane is not None and 2 * count <= planes.total():
        return None, "slices of several planes"
    return plane, ""


def kind_by_headers(files: Sequence[FileHeader]) -> tuple[str | None, str]:
    """As `kind_and_reason`, of headers that are read already."""
    plane, reason = plane_by_headers(files)
    if plane not in ("sagittal", "axial"):
        return None, reason
    files = [file for file in files if any(_plane(header) == plane for header in file.frames)]
    if reason := _not_graded(files):
        return None, reason
    weighting, reason = _weighting(files)
    if plane == "axial":
        return ("Axial T2", "") if weighting == "T2" else (None, reason or "not T2-weighted")
    return {"T1": ("Sagittal T1", ""), "T2": ("Sagittal T2/STIR", "")}.get(weighting or "", (None, reason))


def _headers(series: Path) -> list[FileHeader]:
    """The headers of a series' files; other files are passed over."""
    found = []
    try:
        paths = sorted(path for path in series.iterdir() if not path.name.startswith(".") and path.is_file())
    except OSError:
        return []
    for path in paths:
        try:
            found.append(read_file_header(path))
        except UnreadableHeader:
            continue
    return found


def _plane(header: Header) -> str | None:
    """The plane of the body whose normal is nearest."""
    if header.orientation is None:
        return None
    cosines = np.array(header.orientation)
    normal = np.abs(np.cross(cosines[:3], cosines[3:]))
    nearest = int(normal.argmax())
    if not normal[nearest] > SMALLEST_COSINE:
        return None
    return ("sagittal", "coronal", "axial")[nearest]


def _said(files: Sequence[FileHeader], tag: int) -> set[str]:
    """The texts of an element that at least a fifth of the files have, of those that have any."""
    said = [texts for file in files if (texts := set(file.text(tag)) - {""})]
    counts = Counter(text for texts in said for text in texts)
    return {text for text, count in counts.items() if count >= LEAST_SHARE * len(said)}


def _typical(files: Sequence[FileHeader], tag: int) -> float | None:
    """The median of a number; None where no file has it."""
    values = [value for file in files if (value := file.number(tag)) is not None]
    return float(np.median(values)) if values else None


def _names(files: Sequence[FileHeader], tag: int) -> str:
    """What a series is called, with blanks for underscores and the like, and without vertebrae."""
    text = " | ".join(sorted(_said(files, tag)))
    return VERTEBRAE.sub(" ", re.sub(r"[_.,;:/\\()\[\]+]+", " ", text))


def _not_graded(files: Sequence[FileHeader]) -> str:
    """Why a series is none of the three whatever its weighting; empty where it may be one."""
    types = Counter(
        one for file in files for one in {word for header in file.frames for word in header.contrast.image_type}
    )
    usual_types = {one for one, count in types.items() if 2 * count > len(files)}
    name = _names(files, SERIES_DESCRIPTION)
    for reason in TYPES:
        if TYPES[reason] & usual_types or _is_said(reason, name):
            return reason
    modality = _said(files, MODALITY)
    if modality and "MR" not in modality:
        return f"modality {', '.join(sorted(modality))}"
    if "EP" in _said(files, SCANNING_SEQUENCE):
        return "echo-planar images"
    if (_typical(files, SLICE_THICKNESS) or 0.0) > THICKEST_SLICE_MM:
        return "slices too thick for any but a localiser"
    return ""


def _weighting(files: Sequence[FileHeader]) -> tuple[str | None, str]:
    """T1 or T2 (including STIR), by name, else by times; or None and the reason."""
    for tag in (SERIES_DESCRIPTION, PROTOCOL_NAME):
        name = _names(files, tag)
        named = {"T2" if found[1] == "2" or found[2] else "T1" for found in WEIGHTING.finditer(name)}
        is_density, is_attenuated = _is_said("proton density", name), _is_said("FLAIR", name)
        if named == {"T1"}:  # FLAIR or not
            return "T1", ""
        if is_attenuated:
            return None, "FLAIR"
        if named == {"T2"} and not is_density:
            return "T2", ""
        if is_density and not named:
            return None, "proton density"
        if named:  # several: a dual echo, or a protocol's name
            break
    return _weighting_by_times(files)


def _is_said(what: str, name: str) -> bool:
    return re.search(rf"(?<![A-Z0-9])(?:{WORDS[what]})(?![A-Z0-9])", name) is not None


def _weighting_by_times(files: Sequence[FileHeader]) -> tuple[str | None, str]:
    """By echo, repetition and inversion time.  Of several echoes the longest counts: the reader takes it for T2."""
    echoes = Counter(header.contrast.echo_ms for file in files for header in file.frames)
    usual = [echo for echo, count in echoes.items() if echo is not None and count >= LEAST_SHARE * echoes.total()]
    inversion_ms, repetition_ms = _typical(files, INVERSION_TIME), _typical(files, REPETITION_TIME)
    if inversion_ms and FAT_INVERSION_MS[0] <= inversion_ms < FAT_INVERSION_MS[1]:
        return "T2", ""  # STIR
    if not usual:
        return None, NOT_SAID
    echo_ms = max(usual)
    if inversion_ms and inversion_ms >= T1_INVERSION_MS[1]:
        return None, "FLAIR"
    if echo_ms >= LONGEST_T1_ECHO_MS:
        return "T2", ""
    is_inverted = bool(inversion_ms and inversion_ms >= T1_INVERSION_MS[0])
    if repetition_ms and repetition_ms > LONGEST_T1_REPETITION_MS and not is_inverted:
        return None, "proton density"
    sequences = _said(files, SCANNING_SEQUENCE)
    if echo_ms < SHORTEST_ECHO_MS or ("GR" in sequences and "SE" not in sequences):
        return None, "gradient echoes"
    return "T1", ""
