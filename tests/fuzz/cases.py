"""A case: mutated files in a folder, made from a seed and a number."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.fuzz import bytes_of, dicom_bytes, dicom_pixels, material, texts
from tests.fuzz.bytes_of import Random, pick

CASE = "case.json"
NAMES = (
    "0.dcm", "1", "01.dcm", "1.dcm", "-1.dcm", "1.5.dcm", "9" * 200, "١.dcm", "²", "a b.dcm", "é.dcm",
    "\udcff\udcfe.dcm", "a\nb.dcm", "manifest.json", "1.dcm.gz",
)  # fmt: skip
SOUND = "9"
"""The id of a series that no mutation reaches."""
SERIES_IDS = ("", ".", "..", "../..", "a\0b", "x" * 5000, "é", "a/b", "nowhere", "\udcff", "\n")
Case = dict[str, Any]
"""What is to be read: {"target": ..., "mutations": [...], and what else the target needs}."""


def make(folder: Path, seed: int, number: int) -> Case:
    """Write a case into an empty folder."""
    random = np.random.default_rng([seed, number])
    names = list(TARGETS)
    target = names[int(random.choice(len(names), p=SHARES))]
    case = {"target": target, "seed": seed, "number": number, "mutations": [], **TARGETS[target](folder, random)}
    (folder / CASE).write_text(json.dumps(case, indent=1) + "\n", encoding="utf-8")
    return case


def _mutate_bytes(data: bytes, other: bytes, random: Random, done: list[str]) -> bytes:
    """One change of a file's bytes."""
    if random.random() < 0.08:
        done.append("splice")
        return bytes_of.splice(data, other, random)
    kind = pick((bytes_of, dicom_bytes, dicom_bytes, dicom_pixels), random)
    change = pick(kind.CHANGES, random)
    done.append(change.__name__)
    return change(data, random)


def _study(folder: Path, random: Random) -> Case:
    """One to three series, of which some files are damaged, and a sound one among them."""
    done: list[str] = []
    series: dict[str, dict[str, bytes]] = {}
    kinds = []
    for number in range(int(random.integers(1, 4))):
        kind = pick(material.KINDS, random)
        make_ = pick(material.COMMON_MAKES if random.random() < 0.6 else material.MAKES, random)
        series[f"1{number}"] = {f"{n}.dcm": data for n, data in enumerate(material.series(kind, make_), 1)}
        kinds.append((f"1{number}", kind))
    places = [(one, name) for one in series for name in series[one]]
    for _ in range(int(random.integers(1, 5))):
        one, name = pick(places, random)
        other = pick(places, random)
        if name not in series[one] or other[1] not in series[other[0]]:
            continue
        if random.random() < 0.15:
            _mutate_folder(series, (one, name), other, random, done)
        else:
            series[one][name] = _mutate_bytes(series[one][name], series[other[0]][other[1]], random, done)
            if random.random() < 0.1:  # the same damage in the whole series
                done.append("to the whole series")
                series[one] = dict.fromkeys(series[one], series[one][name])
    if random.random() < 0.03:
        done.append("series id")
        kinds.append((pick(SERIES_IDS, random), pick(material.KINDS, random)))
    sound, make_ = pick(material.KINDS, random), pick(material.COMMON_MAKES, random)
    series[SOUND] = {f"{n}.dcm": data for n, data in enumerate(material.series(sound, make_), 1)}
    kinds.insert(int(random.integers(len(kinds) + 1)), (SOUND, sound))
    for one, files in series.items():
        (folder / "study" / one).mkdir(parents=True)
        for name, data in files.items():
            (folder / "study" / one / name).write_bytes(data)
    return {"mutations": done, "series": kinds, "sound": [sound, make_]}


def _mutate_folder(
    series: dict[str, dict[str, bytes]], one: tuple[str, str], other: tuple[str, str], random: Random, done: list[str]
) -> None:
    """Files exchanged between series, twice there, or under other names."""
    here, there = series[one[0]], series[other[0]]
    how = int(random.integers(3))
    if how == 0:
        done.append("exchange files")
        here[one[1]], there[other[1]] = there[other[1]], here[one[1]]
    elif how == 1:
        done.append("rename")
        here[pick(NAMES, random)] = here.pop(one[1])
    else:
        done.append("copy")
        there[pick(NAMES, random)] = here[one[1]]


def _table(text: str, random: Random, done: list[str]) -> bytes:
    for _ in range(int(random.integers(1, 4))):
        change = pick(texts.TABLE_CHANGES, random)
        done.append(change.__name__)
        text = change(text, random)
    data = texts.encode(text, random)
    if random.random() < 0.15:
        byte_change = pick(bytes_of.CHANGES, random)
        done.append(byte_change.__name__)
        data = byte_change(data, random)
    return data


def _series_table(folder: Path, random: Random) -> Case:
    """A damaged series table."""
    done: list[str] = []
    (folder / "series.csv").write_bytes(_table(material.series_table(), random, done))
    return {"mutations": done}


def _sample(folder: Path, random: Random) -> Case:
    """A damaged sample_submission.csv."""
    done: list[str] = []
    (folder / "sample_submission.csv").write_bytes(_table(material.sample_submission(), random, done))
    return {"mutations": done}


def _manifest(folder: Path, random: Random) -> Case:
    """A damaged manifest."""
    document, done = copy.deepcopy(material.manifest()), []
    for _ in range(pick((1, 1, 1, 2, 3), random)):
        change = pick(texts.MANIFEST_CHANGES, random)
        done.append(change.__name__)
        change(document, random)
    data = texts.to_json(document, random).encode("utf-8", "surrogatepass")
    if random.random() < 0.15:
        byte_change = pick(bytes_of.CHANGES, random)
        done.append(byte_change.__name__)
        data = byte_change(data, random)
    (folder / "manifest.json").write_bytes(data)
    (folder / "weights-0.bin").write_bytes(material.NETWORK[: pick((99, 99, 99, 3, 0), random)])
    return {"mutations": done}


def _mounts(folder: Path, random: Random) -> Case:
    """A tree of mounts: manifests, markers, folders, links and pipes of any name, anywhere."""
    done: list[str] = []
    folders = [folder / "input"]
    folders[0].mkdir()
    names = (
        "manifest.json",
        "test_series_descriptions.csv",
        "sample_submission.csv",
        "a",
        "x_images",
        "é",
        ".h",
        "\udcff",
    )
    for _ in range(int(random.integers(1, 25))):
        path = pick(folders, random) / pick(names, random)
        if os.path.lexists(path):
            continue
        how = pick(("file", "file", "ours", "folder", "folder", "folder", "link", "pipe"), random)
        done.append(how)
        if how == "folder":
            path.mkdir()
            folders.append(path)
        elif how == "link":
            path.symlink_to(pick(("..", ".", "nowhere", path.name, "../..", "/dev/zero"), random))
        elif how == "pipe":
            os.mkfifo(path)
        else:
            ours = texts.to_json(material.manifest(), random).encode()
            path.write_bytes(ours if how == "ours" else pick((b"", b"{}", b"\xff", b'{"format": 1}', b"[" * 9), random))
    return {"mutations": done}


TARGETS: dict[str, Callable[[Path, Random], Case]] = {
    "study": _study,
    "series table": _series_table,
    "sample": _sample,
    "manifest": _manifest,
    "mounts": _mounts,
}
SHARES = (0.6, 0.12, 0.1, 0.13, 0.05)
