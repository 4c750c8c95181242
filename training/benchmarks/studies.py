"""Studies for benchmarks: phantoms, linked under new study ids until there are enough."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from kernels.lumbar.labels import ROWS, SEVERITIES
from kernels.lumbar.run.competition import read_series_table
from training.data.tables import TABLES

FIRST_NUMBER = 10**6
SERIES_TABLE = "{}_series_descriptions.csv"


@dataclass(frozen=True)
class Studies:
    """Some studies of a data set, of its test images or, where these are too few, of its training images."""

    data: Path
    split: str
    series: Mapping[str, Sequence[tuple[str, str]]]

    @property
    def images(self) -> Path:
        """The folder of the studies."""
        return self.data / f"{self.split}_images"


def choose_studies(data: Path, count: int) -> Studies | None:
    """The first studies whose images exist; None without any."""
    found: list[Studies] = []
    for split in ("test", "train"):
        table = data / SERIES_TABLE.format(split)
        series = read_series_table(table).series if table.is_file() else {}
        present = sorted(study for study in series if (data / f"{split}_images" / study).is_dir())[:count]
        found.append(Studies(data, split, {study: series[study] for study in present}))
    best = max(found, key=lambda one: len(one.series))
    return best if best.series else None


def link_test_studies(folder: Path, studies: Studies, times: int) -> None:
    """A competition's folder in which every study occurs so many times as a test study."""
    count = len(studies.series) * times
    tables = {SERIES_TABLE.format(studies.split): SERIES_TABLE.format("test")}
    numbers = _link(folder / "test_images", studies.images, list(studies.series), count, tables)
    ids = [f"{number}_{row}" for number in numbers for row in ROWS]
    sample = pd.DataFrame({"row_id": ids, **dict.fromkeys(SEVERITIES, 1 / 3)})
    sample.to_csv(folder / "sample_submission.csv", index=False)


def link_training_studies(folder: Path, data: Path, studies: Sequence[str], count: int) -> None:
    """A competition's folder of `count` training studies: these ones, as often as it takes."""
    _link(folder / "train_images", data / "train_images", studies, count, {name: name for name in TABLES})


def _link(folder: Path, images: Path, studies: Sequence[str], count: int, tables: Mapping[str, str]) -> list[str]:
    """Link `count` studies under new numbers, and rewrite tables (name there → name here) for them; the numbers."""
    folder.mkdir(parents=True)
    numbers = [str(FIRST_NUMBER + number) for number in range(count)]
    new = pd.DataFrame({"study_id": [studies[number % len(studies)] for number in range(count)], "new": numbers})
    for study, number in new.itertuples(index=False, name=None):
        (folder / number).symlink_to((images / study).resolve())
    for name, target in tables.items():
        table = pd.read_csv(images.parent / name, dtype=str, keep_default_na=False)
        linked = new.merge(table, on="study_id", sort=False).drop(columns="study_id")
        linked.rename(columns={"new": "study_id"}).to_csv(folder.parent / target, index=False)
    return numbers
