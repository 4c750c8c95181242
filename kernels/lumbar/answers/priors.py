"""Public priors: probabilities of a row before any image is read, for the first file and without a manifest.

Weighted class frequencies (weights 1, 2, 4; sides pooled) of the 1,975 public training studies, by condition and level.
They score 0.790 on these studies where uniform thirds score 0.999.  A manifest has the priors of its own training data.
"""

from __future__ import annotations

from ..labels import LEVELS, ROW_PLACES, group_of

_SPINAL = (
    (0.896, 0.064, 0.040),
    (0.775, 0.132, 0.093),
    (0.631, 0.179, 0.190),
    (0.498, 0.159, 0.343),
    (0.915, 0.049, 0.036),
)
_FORAMINAL = (
    (0.924, 0.061, 0.015),
    (0.828, 0.157, 0.015),
    (0.606, 0.329, 0.065),
    (0.402, 0.418, 0.180),
    (0.411, 0.331, 0.258),
)
_SUBARTICULAR = (
    (0.846, 0.102, 0.052),
    (0.659, 0.209, 0.132),
    (0.439, 0.301, 0.260),
    (0.223, 0.314, 0.463),
    (0.493, 0.283, 0.224),
)
_BY_GROUP = {"spinal": _SPINAL, "foraminal": _FORAMINAL, "subarticular": _SUBARTICULAR}


def public_priors() -> dict[str, tuple[float, float, float]]:
    """Row name → (normal_mild, moderate, severe)."""
    return {row: _BY_GROUP[group_of(row)][LEVELS.index(level)] for row, (_, level) in ROW_PLACES.items()}
