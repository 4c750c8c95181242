"""One condition group from its own views: 2.5D encoder + GRU, as in the 9th place's "split" models.

Source: adamnarai's RSNA 2024 write-up and code: a timm encoder on single slices, a two-layer unidirectional GRU of 512,
the mean over slices, one linear layer.  Spinal: T2 and axial views, an encoder for each, 2 × 512 → 3.
"""

from __future__ import annotations

from training.networks.parts.blocks import ViewGrader


class Net(ViewGrader):
    """Logits (B, targets, 3); each view has its own encoder, except those that `share` gives one in common."""
