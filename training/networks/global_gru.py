"""All five conditions of a level at once from five views, as in the 9th place's "global" models.

Source: adamnarai's RSNA 2024 write-up and code: T2, T1 left, T1 right, axial left, axial right; the same feature
extractor for both sides, so three in all; 5 × 512 → 15 logits.
"""

from __future__ import annotations

from training.networks.parts.blocks import ViewGrader


class Net(ViewGrader):
    """Logits (B, targets, 3) in the order of the member's targets."""

    # T2; T1 left and right; axial left and right.
    default_share = (0, 1, 1, 2, 2)
