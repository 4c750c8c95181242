"""The ensemble that `make ensemble` left, read again for the report, where it is of the same answers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from kernels.lumbar.labels import GROUPS
from training.data.out_of_fold import Answers, Average, Rule
from training.ensemble.search import Ensemble
from training.ensemble.strategies import FREE
from training.evaluation.intervals import Interval
from training.evaluation.metric import pooled

AVERAGES: tuple[Average, ...] = ("logits", "probabilities")
# An ensemble file whose own score differs by more from that of these answers was made from others.
SAME_SCORE = 1e-6
HOW_TO = "make one that fits by make ensemble with the same RUNS, RECIPES and PROFILE"


class ReportError(Exception):
    """Nothing to report, or runs that do not fit together, and what to do."""


@dataclass(frozen=True)
class Found:
    """What `make ensemble` left (ensemble.SearchResult)."""

    ensemble: Ensemble
    strategy: str
    """How it was made (ensemble/strategies.py)."""
    reason: str
    average: Average
    studies: int
    budget: float | None
    """Seconds a study that it was searched for; None = no limit."""
    scores: dict[str, dict[str, Interval]]
    fitted_score: float
    order: tuple[str, ...]
    """Its members as they run."""


def find_ensemble(runs: Path, path: Path | None, answers: Answers, priors: Any) -> tuple[Found | None, str]:
    """The ensemble, or None with the reason.  One that was named and cannot be used raises ReportError."""
    file = path or runs / "ensemble.json"
    if path is None and not file.is_file():
        return None, f"There is no {file}, so the simple mean of all members stands in for the ensemble: {HOW_TO}."
    found = _read_found(file)
    if not (misfit := _misfit(found, answers, priors)):
        return found, ""
    if path is not None:
        raise ReportError(f"{file} was made from other answers: {misfit}; {HOW_TO}")
    return None, (
        f"{file} was made from other answers ({misfit}), so the simple mean of all members stands in for the "
        f"ensemble: {HOW_TO}."
    )


def _read_found(path: Path) -> Found:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        weights = [[float(its[group]) for group in GROUPS] for its in content["weights"].values()]
        multipliers = np.array([content["multipliers"][group] for group in GROUPS], np.float64)
        if content["average"] not in AVERAGES:
            raise ValueError(f"average is {content['average']!r}")
        return Found(
            Ensemble(tuple(content["weights"]), np.array(weights), multipliers.reshape(len(GROUPS), 3)),
            str(content.get("strategy", FREE)),
            str(content.get("reason", "")),
            content["average"],
            int(content["studies"]),
            None if content["budget"] is None else float(content["budget"]),
            {name: {part: _interval(one) for part, one in its.items()} for name, its in content["scores"].items()},
            float(content["fitted_score"]),
            tuple(str(name) for name in content["order"]),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ReportError(f"{path} holds no result of make ensemble: {error!r}") from error


def _interval(content: dict[str, float | None]) -> Interval:
    numbers = [
        np.nan if content[name] is None else float(cast(float, content[name])) for name in Interval.__annotations__
    ]
    return Interval(*numbers)


def _misfit(found: Found, answers: Answers, priors: Any) -> str:
    absent = [name for name in found.ensemble.members if name not in answers.members]
    if absent:
        return f"these have no member {absent[0]}"
    if found.studies != len(answers.studies):
        return f"those were of {found.studies} studies, these of {len(answers.studies)}"
    score = pooled(answers.labels, found.ensemble.predict(answers, Rule(found.average, priors))).final
    if abs(score - found.fitted_score) > SAME_SCORE:
        return f"with those it scored {found.fitted_score:.4f}, with these {score:.4f}"
    return ""
