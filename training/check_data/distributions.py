"""Sizes, spacings, orders and encodings of all series: a table with a line a series, and what is usual by kind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import astuple, fields

import numpy as np
from pydicom.uid import UID

from kernels.lumbar.labels import SERIES_KINDS
from kernels.lumbar.run.tables import table_text
from kernels.text import aligned
from training.check_data.study_headers import SeriesFacts

MOST_FREQUENT = 5


def as_table(series: Sequence[SeriesFacts]) -> str:
    """The text of series.csv."""
    return table_text([field.name for field in fields(SeriesFacts)], map(astuple, series))


def distribution(series: Sequence[SeriesFacts]) -> list[str]:
    """Lines for people: what the series of each kind are like."""
    lines = []
    for kind in (*SERIES_KINDS, ""):
        its = [one for one in series if one.kind == kind]
        if not its:
            continue
        rows = [
            ("  size, px", _shares([one.size for one in its])),
            ("  pixel, mm", _range([one.spacing_mm for one in its], 2)),
            ("  slices", _range([one.slices for one in its], 0)),
            ("  step, mm", _range([one.step_mm for one in its], 1)),
            ("  order", _shares([one.order for one in its])),
            ("  stacks", _shares([str(one.stacks) for one in its])),
            ("  syntax", _shares([syntax_names(one.syntax) for one in its])),
            ("  encoding", _shares([one.encoding for one in its])),
            ("  rescaled", _shares(["yes" if one.rescaled else "no" for one in its])),
            ("  headers say", _shares([one.by_headers for one in its])),
        ]
        lines += [f"{kind or 'none of the three kinds'}, {len(its)} series", *aligned([row for row in rows if row[1]])]
    return lines


def syntax_names(uids: str) -> str:
    """The names of transfer syntaxes, of UIDs with commas between them."""
    return ", ".join(UID(uid).name if uid else "not said" for uid in uids.split(", "))


def _shares(values: Sequence[str]) -> str:
    """The most frequent values, with the share of each."""
    counts = Counter(values)
    if set(counts) == {""}:
        return ""
    words = [
        f"{value or 'not said'} {_percent(count / len(values))}" for value, count in counts.most_common(MOST_FREQUENT)
    ]
    more = len(counts) - len(words)
    return "; ".join(words) + (f"; {more} others" if more else "")


def _percent(share: float) -> str:
    return f"{share:.0%}" if share >= 0.01 else "< 1%"


def _range(values: Sequence[float | None], digits: int) -> str:
    """Median (lowest to highest)."""
    known = [value for value in values if value is not None]
    if not known:
        return ""
    middle, low, high = (f"{float(one):.{digits}f}" for one in (np.median(known), min(known), max(known)))
    return middle if low == high else f"{middle} ({low} to {high})"
