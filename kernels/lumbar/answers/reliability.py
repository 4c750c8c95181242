"""How likely a located landmark is right, from its confidence and what became of the study's other landmarks.

A localiser that is lost in a study is as sure of some wrong points as of right ones.  Its mean confidence there, and
the share of landmarks that the shape model had to impute, tell such studies.  The last step of the localisation: no
answer depends on it.
"""

from __future__ import annotations

import math

from ..labels import group_of
from ..manifest import Reliability
from .locate import Located

# Confidences are clipped to this and 1 - this before their logit is taken.
LEAST = 0.02


def logit(confidence: float) -> float:
    """Logit of a clipped confidence."""
    inner = min(max(confidence, LEAST), 1 - LEAST)
    return math.log(inner / (1 - inner))


def evidence(located: Located) -> dict[str, tuple[float, float, float]]:
    """Row → logit of its confidence, logit of the mean confidence of its condition, share of imputed landmarks.

    Only of rows that a localiser found.  A condition of which none was found, as its series is missing, does not count.
    """
    found = {row: confidence for row, confidence in located.confidence.items() if row not in located.guessed}
    by_group: dict[str, list[float]] = {group_of(row): [] for row in found}
    for row, confidence in located.confidence.items():
        if (group := group_of(row)) in by_group:
            by_group[group].append(confidence)
    means = {group: logit(sum(its) / len(its)) for group, its in by_group.items()}
    asked = sum(map(len, by_group.values()))
    imputed = (asked - len(found)) / max(asked, 1)
    return {row: (logit(confidence), means[group_of(row)], imputed) for row, confidence in found.items()}


def rated(located: Located, reliability: Reliability) -> dict[str, float]:
    """Row → probability that the landmark is right; imputed ones keep 0."""
    found = dict(located.confidence)
    for row, (own, together, imputed) in evidence(located).items():
        odds = reliability.own * own + reliability.together * together + reliability.imputed * imputed
        found[row] = 1 / (1 + math.exp(-(odds + reliability.offset)))
    return found
