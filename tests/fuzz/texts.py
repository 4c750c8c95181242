"""Changes of tables and of manifests."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from typing import Any

from tests.fuzz.bytes_of import Random, pick

CELLS = (
    "", " ", '"', '""', "a,b", "4", "999", "-1", "1e3", "nan", "NA", "None", "\0", "a\0b", "..", "../..", "/", "é",
    "\u2028", "x" * 5000, "x" * 200_000, "4_", "_", "4_left", "4_spinal_canal_stenosis_l1_l2", "=1+1", "\t", "\\", "'",
    "1\n2", "Axial T2",
)  # fmt: skip
ENCODINGS = ("utf-16", "utf-8-sig", "latin-1", "utf-32", "cp500")


def _cells(text: str) -> list[list[str]]:
    return [line.split(",") for line in text.splitlines()]


def _text(cells: list[list[str]], end: str = "\n") -> str:
    return end.join(",".join(row) for row in cells) + end


def set_cell(text: str, random: Random) -> str:
    """One value is another."""
    cells = _cells(text)
    row = pick(cells, random) if cells else [""]
    row[int(random.integers(len(row)))] = pick(CELLS, random)
    return _text(cells)


def set_header(text: str, random: Random) -> str:
    """The header has a name twice, none, one too many, or other ones."""
    first, _, rest = text.partition("\n")
    names = first.split(",")
    name = pick(names, random)
    heads = ([*names, name], [name] * len(names), names[1:], [*names, ""], [""], names[::-1], [f" {n} " for n in names])
    return ",".join(pick(heads, random)) + "\n" + rest


def mix_line_ends(text: str, random: Random) -> str:
    """Every line ends in its own way."""
    return "".join(line + pick(("\n", "\r\n", "\r", "\n\n", "\n\r"), random) for line in text.splitlines())


def change_lines(text: str, random: Random) -> str:
    """Lines shuffled, repeated, lost, or with too many and too few values."""
    lines = text.splitlines() or [""]
    at = int(random.integers(len(lines)))
    how = int(random.integers(5))
    if how == 0:
        lines = [lines[0], *(lines[i] for i in random.permutation(range(1, len(lines))))]
    elif how == 1:
        lines[at:at] = [lines[at]] * int(random.integers(1, 4))
    elif how == 2:
        del lines[at:]
    elif how == 3:
        lines[at] += pick((",", ",,,,,", ',"', " #", ";"), random)
    else:
        lines[at] = lines[at].rpartition(",")[0]
    return "\n".join(lines) + pick(("\n", ""), random)


def quote(text: str, random: Random) -> str:
    """Quotes where none belong, or one that is never closed."""
    at = int(random.integers(len(text) + 1))
    return text[:at] + pick(('"', "'", '""', '"\n', '","'), random) + text[at:]


def separate(text: str, random: Random) -> str:
    """Another separator."""
    return text.replace(",", pick((";", "\t", ", ", "|", " "), random))


def encode(text: str, random: Random) -> bytes:
    """In UTF-8, or now and then in something else."""
    if random.random() < 0.85:
        return text.encode("utf-8", "surrogatepass")
    return text.encode(pick(ENCODINGS, random), "replace")


TABLE_CHANGES: tuple[Callable[[str, Random], str], ...] = (
    set_cell, set_cell, set_header, mix_line_ends, change_lines, change_lines, quote, separate,
)  # fmt: skip


# --- manifests

VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 0.5, 1e9, 1e308, -1e-320, 10**30, float("nan"), float("inf"), "", "x", "finder",
    "reader", "../../etc/passwd", "/dev/zero", "\ud800", "a\0b", "l1_l2", "left_", "1", "é" * 99, [], {}, [[]], [None],
    {"": {}}, [0.0] * 84, ["spinal_canal_stenosis"], {"spinal": 1},
)  # fmt: skip


MORE_KEYS = (
    "",
    "weight",
    "of_level",
    "of_side",
    "tta",
    "marks",
    "calibration",
    "order",
    "published",
    "seconds_per_study",
    "x",
)


def _way(document: Any, random: Random) -> list[Any]:
    """The way to some value, every branch as likely as its neighbours, however much hangs on it."""
    way: list[Any] = []
    while isinstance(document, dict | list) and document and (not way or random.random() < 0.85):
        key = pick(list(document) if isinstance(document, dict) else range(len(document)), random)
        way.append(key)
        document = document[key]
    return way


def _at(document: Any, way: Sequence[Any]) -> Any:
    for key in way:
        document = document[key]
    return document


def set_value(document: Any, random: Random) -> None:
    """One value is another."""
    if way := _way(document, random):
        _at(document, way[:-1])[way[-1]] = copy.deepcopy(pick(VALUES, random))


def scale_number(document: Any, random: Random) -> None:
    """One number is larger, smaller or of the other sign."""
    for _ in range(20):
        way = _way(document, random)
        value = _at(document, way)
        if type(value) in (int, float):
            _at(document, way[:-1])[way[-1]] = value * pick((-1, 0, 1 + 1e-9, 2, 50, 1000, 10**9), random)
            return


def drop_value(document: Any, random: Random) -> None:
    """One value is missing."""
    if way := _way(document, random):
        del _at(document, way[:-1])[way[-1]]


def add_value(document: Any, random: Random) -> None:
    """One value is more than there should be."""
    parent, value = _at(document, _way(document, random)[:-1]), copy.deepcopy(pick(VALUES, random))
    if isinstance(parent, list):
        parent.append(value)
    elif isinstance(parent, dict):
        parent[pick(MORE_KEYS, random)] = value


def move_value(document: Any, random: Random) -> None:
    """One value stands in another's place."""
    value = copy.deepcopy(_at(document, _way(document, random)))
    if way := _way(document, random):
        _at(document, way[:-1])[way[-1]] = value


WEIGHTS: dict[str, tuple[Any, ...]] = {
    "file": ("", ".", "..", "/dev/zero", "a\0b", "x" * 5000, "\ud800", "weights-1.bin", "../manifest.json"),
    "offset": (1, 14, 15, -1, 2**31, 2**63, 10**30),
    "bytes": (0, 1, 13, 15, 2**31, 10**13, 10**30),
    "sha256": ("0" * 64, "", "x" * 64, "A" * 64),
    "golden_seed": (-1, 2**32, 10**30),
    "golden_output": ([], [1e308], [0.0] * 9999),
}


def spoil_weights(document: Any, random: Random) -> None:
    """A network is elsewhere, of another size, or another one."""
    artefacts = document.get("artefacts") if isinstance(document, dict) else None
    if artefacts and isinstance(artefacts, list) and isinstance(artefacts[0], dict):
        weights = artefacts[0].get("weights")
        if isinstance(weights, dict):
            key = pick(tuple(WEIGHTS), random)
            weights[key] = copy.deepcopy(pick(WEIGHTS[key], random))


MANIFEST_CHANGES: tuple[Callable[[Any, Random], None], ...] = (
    set_value,
    scale_number,
    scale_number,
    drop_value,
    add_value,
    move_value,
)


def nested(random: Random) -> str:
    """JSON that is deep, and little else."""
    depth = pick((100, 900, 5000, 100_000), random)
    opening, closing = pick((("[", "]"), ('{"a":', "}")), random)
    whole = opening * depth + "1" + closing * depth
    return pick((whole, opening * depth, '{"format": "lumbar-kit-manifest", "x": ' + whole + "}"), random)


def to_json(document: Any, random: Random) -> str:
    """The document, seldom deep or with a number that fits nowhere."""
    if random.random() < 0.03:
        return nested(random)
    text = json.dumps(document)
    if random.random() < 0.05:
        text = text.replace("0.5", pick(("1e999", "9" * 5000, "-", "0x1", "00.5", "NaN", "1" + "0" * 400), random), 1)
    return text
