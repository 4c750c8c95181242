"""Global random generators: seeded for every epoch, saved when a run stops within one."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch


def seed_everything(seed: int, epoch: int, rank: int = 0) -> None:
    """Seed every global generator from a run's seed and an epoch, differently in each process."""
    entropy = (seed, epoch, rank) if rank else (seed, epoch)
    number = int(np.random.SeedSequence(entropy).generate_state(1)[0])
    random.seed(number)
    np.random.seed(number)
    torch.manual_seed(number)


def generators(device: torch.device) -> dict[str, Any]:
    """State of the global generators, in types that a checkpoint may contain."""
    kind, words, *rest = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (kind, np.asarray(words).tolist(), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def set_generators(state: dict[str, Any], device: torch.device) -> None:
    """Restore the state returned by `generators`."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)
