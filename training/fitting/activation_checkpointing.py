"""Less memory for more time: encoders compute their activations again in the backward pass instead of keeping them.

Source: Chen et al., "Training Deep Nets with Sublinear Memory Cost" (2016), by timm's switch for it.
"""

from __future__ import annotations

from torch import nn

SWITCH = "set_grad_checkpointing"


def checkpoint_activations(net: nn.Module, enable: bool = True) -> bool:
    """Switch it for all timm encoders of a network that can; whether there is one.

    Statistics of batch normalisation are updated twice a step, with the same values.
    """
    found = False
    for part in net.modules():
        if hasattr(part, SWITCH):
            try:
                getattr(part, SWITCH)(enable)
            except AssertionError:  # timm's answer of an architecture without it
                continue
            found = True
    return found
