"""How likely a located landmark is right, by its confidence and by how much of the study contradicts the spine's shape.

A localiser that is lost in a study is as sure of some wrong points as of right ones: by one disc too low, say.  The
share of landmarks that the shape model had to impute tells such studies.  The last step of the localisation: no answer
depends on it.
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


def imputed_share(located: Located) -> float:
    """Share of landmarks imputed by the shape model, of all conditions of which any landmark was found.

    A condition of which none was found, as its series is missing, says nothing of the others.
    """
    there = {group_of(row) for row in located.points if row not in located.guessed}
    asked = [row for row in located.points if group_of(row) in there]
    return sum(row in located.guessed for row in asked) / max(len(asked), 1)


def rated(located: Located, reliability: Reliability) -> dict[str, float]:
    """Row → probability that the landmark is right; imputed ones keep 0."""
    more = reliability.imputed * imputed_share(located) + reliability.offset
    return {
        row: 0.0 if row in located.guessed else 1 / (1 + math.exp(-(logit(confidence) + more)))
        for row, confidence in located.confidence.items()
    }
