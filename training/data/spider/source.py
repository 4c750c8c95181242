"""A folder of SPIDER as it is downloaded: which patients it holds, and its two tables."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from training.data.spider.mha import SpiderError

IMAGES, MASKS, OVERVIEW, GRADINGS = "images", "masks", "overview.csv", "radiological_gradings.csv"
FILE = re.compile(r"(\d+)_(t1|t2|t2_SPACE)\.mha")
# The first of these that a patient has becomes its T2 series.
T2_KINDS = ("t2", "t2_SPACE")
PATIENT, DISC = "Patient", "IVD label"
LUMBAR_DISCS = 5
# SPIDER's own test patients are taken where there are so many of them; else a share of all is drawn.
LEAST_TEST, TEST_SHARE = 10, 0.3


@dataclass(frozen=True)
class Patient:
    """The files of one patient."""

    number: str
    t2: str
    """Name of its T2 series without .mha: 11_t2 or 11_t2_SPACE."""
    t1: str | None


@dataclass(frozen=True)
class SpiderFolder:
    """What a folder of SPIDER holds."""

    folder: Path
    patients: tuple[Patient, ...]
    without_t2: tuple[str, ...]
    """Numbers of patients with a T1 series alone."""
    overview: Mapping[str, Mapping[str, str]]
    """Name of a series → its line of overview.csv."""
    gradings: pd.DataFrame

    def image(self, name: str) -> Path:
        """File of a series."""
        return self.folder / IMAGES / f"{name}.mha"

    def mask(self, name: str) -> Path:
        """File of its mask."""
        return self.folder / MASKS / f"{name}.mha"

    def discs(self, number: str) -> int:
        """How many of the five lumbar discs radiological_gradings.csv grades."""
        its = self.gradings.loc[self.gradings[PATIENT] == number, DISC]
        return len(set(its) & {str(label) for label in range(1, LUMBAR_DISCS + 1)})

    def test_patients(self) -> frozenset[str]:
        """Patients kept for the test: SPIDER's own, or a share that is drawn by their numbers where these are few."""
        numbers = [one.number for one in self.patients]
        own = {one.number for one in self.patients if self.overview.get(one.t2, {}).get("subset") == "validation"}
        if LEAST_TEST <= len(own) < len(numbers):
            return frozenset(own)
        drawn = sorted(numbers, key=lambda number: hashlib.sha256(number.encode()).hexdigest())
        return frozenset(drawn[: round(TEST_SHARE * len(numbers))])


def read_folder(folder: Path) -> SpiderFolder:
    """List a folder of SPIDER.  Raises SpiderError for what is missing or of another kind, in one sentence."""
    remedy = "SPIDER= names the unpacked download, with images/, masks/ and both CSV files"
    for name in (IMAGES, MASKS):
        if not (folder / name).is_dir():
            raise SpiderError(f"{folder} has no folder {name}: {remedy}")
    overview = _table(folder / OVERVIEW, ("new_file_name", "subset"), remedy)
    gradings = _table(folder / GRADINGS, (PATIENT, DISC), remedy)
    kinds: dict[str, set[str]] = {}
    for path in sorted((folder / IMAGES).iterdir()):
        if path.name.startswith("."):  # what operating systems add
            continue
        if (found := FILE.fullmatch(path.name)) is None:
            raise SpiderError(f"{path} is none of SPIDER's files, such as 11_t2.mha: move it away")
        kinds.setdefault(found[1], set()).add(found[2])
    if not kinds:
        raise SpiderError(f"{folder / IMAGES} is empty: {remedy}")
    patients, without_t2 = [], []
    for number in sorted(kinds, key=int):
        t2 = next((f"{number}_{kind}" for kind in T2_KINDS if kind in kinds[number]), None)
        if t2 is None:
            without_t2.append(number)
            continue
        if not (folder / MASKS / f"{t2}.mha").is_file():
            raise SpiderError(f"{folder / MASKS / f'{t2}.mha'} does not exist: download the masks of all images")
        patients.append(Patient(number, t2, f"{number}_t1" if "t1" in kinds[number] else None))
    lines = overview.set_index("new_file_name")
    lines = lines[~lines.index.duplicated()]
    by_name = {str(name): dict(zip(map(str, lines), line, strict=True)) for name, line in lines.iterrows()}
    return SpiderFolder(folder, tuple(patients), tuple(without_t2), by_name, gradings)


def _table(path: Path, columns: tuple[str, ...], remedy: str) -> pd.DataFrame:
    """A CSV as text with at least these columns."""
    if not path.is_file():
        raise SpiderError(f"{path} does not exist: {remedy}")
    try:
        frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise SpiderError(f"{path} cannot be read as a CSV ({error}): download it again") from error
    frame.columns = [str(column).strip() for column in frame.columns]
    if missing := [column for column in columns if column not in frame.columns]:
        raise SpiderError(f"{path} lacks the column {missing[0]}: take SPIDER's own file")
    return frame.apply(lambda column: column.str.strip())
