"""Checkpoints, written atomically: a killed run leaves the old file or the new one."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch

from kernels.lumbar.run.submission import whole_file

from . import FitError

FORMAT = 2


class CheckpointError(FitError):
    """A checkpoint that cannot be resumed, with the reason and the remedy."""


def save(path: Path, state: dict[str, Any], identity: dict[str, Any]) -> None:
    """Write a checkpoint.  Only a run with the same `identity` may resume it."""
    with whole_file(path) as temporary:
        torch.save({"format": FORMAT, "identity": identity, **state}, temporary)


def load(path: Path, identity: dict[str, Any]) -> dict[str, Any] | None:
    """The state of a checkpoint, on the CPU; None where there is none.

    Raises CheckpointError where it is unreadable or belongs to a run with another recipe or seed.
    """
    if not path.is_file():
        return None
    remedy = "remove the folder to start anew"
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, LookupError, TypeError, ValueError, pickle.UnpicklingError) as error:
        reason = str(error) if isinstance(error, OSError) else "it is damaged"
        raise CheckpointError(f"{path} cannot be read ({reason}): {remedy}") from error
    if state.get("format") != FORMAT:
        raise CheckpointError(f"{path} has format {state.get('format')}, this code writes {FORMAT}: {remedy}")
    changed = sorted(key for key, value in identity.items() if state["identity"].get(key) != value)
    if changed:
        raise CheckpointError(f"{path} is of a run with another {', '.join(changed)}: {remedy}")
    return state
