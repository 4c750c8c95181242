"""What a check of the data finds, by kind: what follows from it, whether training would be wrong, and the summary."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from kernels.lumbar.problems import MEANINGS, Problem, count_text, printable, shortened

# Kinds that only this check names; all others are the kernel's and those of the label points.
CONSEQUENCES = {
    "unusable-table": "training stops at this table",
    "table-remark": "read all the same, as the line says",
    "study-without-files": "training stops: unpack the whole archive, or remove the study's rows from the tables",
    "study-without-row": "not used: no table names the study",
    "series-without-row": "not used: add the series to the table of series, unless it is meant to be left out",
    "series-listed-twice": "read once for each of its rows: keep the right one",
    "kind-contradicted": "read as the table says: correct its series_description, or remove its row",
    "most-files-unreadable": "nothing can be learned from such files: unpack or copy them again",
    "most-points-unused": "the landmarks would be learned from the rest: take the files and tables of one data set",
}
# Training would stop, or learn what is wrong.
ABOUT_LABELS = frozenset({"sides-exchanged", "levels-exchanged", "point-outside", "point-far-off"})
ERRORS = ABOUT_LABELS | {
    "unusable-table", "unreadable-table", "wrong-table", "study-without-files", "most-files-unreadable",
    "most-points-unused",
}  # fmt: skip
NAMED = 10


def consequence(kind: str) -> str:
    """What follows from a kind of finding."""
    return CONSEQUENCES.get(kind) or MEANINGS[kind]


def in_order(findings: Iterable[Problem]) -> list[Problem]:
    """Errors first, then by kind, study and place."""
    return sorted(findings, key=lambda one: (one.kind not in ERRORS, one.kind, one.study, one.where))


def errors(findings: Iterable[Problem], but: frozenset[str] = frozenset()) -> int:
    """The number of findings with which training would be wrong, without those of some kinds."""
    return sum(one.kind in ERRORS - but for one in findings)


def summary(findings: Sequence[Problem]) -> list[str]:
    """Lines for people: each kind with its numbers, its consequence, the ten worst studies and an example."""
    by_kind: dict[str, list[Problem]] = {}
    for one in in_order(findings):
        by_kind.setdefault(one.kind, []).append(one)
    lines = []
    for kind, its in by_kind.items():
        studies = Counter(one.study for one in its if one.study)
        number = count_text(len(its), len(studies))
        lines.append(f"{'ERROR' if kind in ERRORS else 'warning'} {kind}: {number}; {consequence(kind)}")
        if studies:
            lines.append(f"    {_worst(studies)}")
        first = its[0]
        place = " ".join(filter(None, [first.study, first.where]))
        words = shortened(first.detail)
        lines.append(f"    such as {place}: {words}" if place else f"    such as: {words}")
    return list(map(printable, lines))


def _worst(studies: Counter[str]) -> str:
    """The studies with the most findings, with the number of each where it is more than one."""
    worst = sorted(studies, key=lambda study: (-studies[study], study))[:NAMED]
    words = ", ".join(f"{study} ({studies[study]})" if studies[study] > 1 else study for study in worst)
    more = len(studies) - len(worst)
    return f"study {words}" if len(studies) == 1 else f"studies {words}{f' and {more} more' if more else ''}"
