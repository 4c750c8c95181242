"""What run_report.json says of each study and of its problems: a line each, of however many landmarks or files."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..labels import ROWS
from ..problems import Problem, count_of

GRADED, PARTLY_GRADED, NOT_GRADED = "graded", "partly graded", "not graded"
WIDTH, LONGEST_LINE = 110, 2000


def merged(problems: Iterable[Problem]) -> list[dict[str, Any]]:
    """The fields of Problem and their `count`: a line for all of one kind, study and series (or network).

    Details are all kept: names that share one stand before it.
    """
    together: dict[tuple[str, str, str], list[Problem]] = {}
    for one in problems:
        together.setdefault((one.study, one.where.partition("/")[0], one.kind), []).append(one)
    lines = []
    for (study, place, kind), its in together.items():
        where, detail = (its[0].where, its[0].detail) if len(its) == 1 else (place, _details(place, its))
        lines.append({"study": study, "where": where, "kind": kind, "count": len(its), "detail": detail})
    return lines


def _details(place: str, problems: Sequence[Problem]) -> str:
    """Each detail once, behind the files or landmarks that it is about."""
    names: dict[str, list[str]] = {}
    for one in problems:
        file, detail = one.where.removeprefix(place).removeprefix("/"), one.detail
        if not file and " " not in (first := detail.partition(": "))[0]:
            file, detail = first[0], first[2]
        names.setdefault(detail, []).append(file)
    texts = [f"{', '.join(filter(None, its))}: {detail}".removeprefix(": ") for detail, its in names.items()]
    return "; ".join(texts)


def counts(lines: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Kind → number of problems, of merged lines or plain ones."""
    found: Counter[str] = Counter()
    for one in lines:
        found[one["kind"]] += count_of(one)
    return dict(found)


def study_lines(
    studies: Iterable[str],
    prior_rows: Mapping[str, int],
    imputed: Mapping[str, int],
    seconds: Mapping[str, float],
    problems: Iterable[Mapping[str, Any]],
) -> dict[str, dict[str, Any]]:
    """Study → what came of it.

    `prior_rows`: number of rows with a prior of each study that was graded, all where it is missing; `imputed`: number
    of landmarks.
    """
    kinds: dict[str, Counter[str]] = {}
    for one in problems:
        kinds.setdefault(one["study"], Counter())[one["kind"]] += count_of(one)
    lines = {}
    for study in studies:
        rows = prior_rows.get(study, len(ROWS))
        lines[study] = {
            "state": NOT_GRADED if rows == len(ROWS) else PARTLY_GRADED if rows else GRADED,
            "prior_rows": rows,
            "imputed_landmarks": imputed.get(study, 0),
            "seconds": round(seconds.get(study, 0.0), 3),
            "problems": dict(kinds.get(study, ())),
        }
    return lines


def report_text(content: Any, depth: int = 0) -> str:
    """JSON with a line for each study, problem and round, in place of one for each of their fields."""
    whole = json.dumps(content, ensure_ascii=False)
    fits = len(whole) <= (WIDTH if depth == 1 else LONGEST_LINE) and depth > 0
    if fits or not content or not isinstance(content, dict | list):
        return whole
    margin = " " * (depth + 1)
    if isinstance(content, dict):
        parts = [
            f"{json.dumps(key, ensure_ascii=False)}: {report_text(its, depth + 1)}" for key, its in content.items()
        ]
    else:
        parts = [report_text(its, depth + 1) for its in content]
    first, last = "{}" if isinstance(content, dict) else "[]"
    lines = f",\n{margin}".join(parts)
    return f"{first}\n{margin}{lines}\n{margin[1:]}{last}"


def replace_report(path: Path, report: Mapping[str, Any]) -> None:
    """Write run_report.json in place of an older one.  Raises OSError."""
    from .submission import replace_text  # NumPy, which the supervisor needs only at the end

    replace_text(path, report_text(report) + "\n")
