"""Each network in a process of its own: it returns all its memory, and one that dies costs only itself."""

from __future__ import annotations

import logging
import multiprocessing
import threading
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import torch

from training.data.cache.decode import end_with_parent
from training.recipe_schema.schema import MemberRecipe, Recipe

from .one_network import Setting, rehearse
from .results import Rehearsed, training_steps

Chosen = tuple[Recipe, MemberRecipe]


def in_own_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in a process of its own.  Raises what it raises, and RuntimeError for a process that dies.

    It is forked from a server that has imported all, and has not touched a GPU.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    try:
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            return pool.submit(function, *arguments).result()
    except BrokenProcessPool as error:
        raise RuntimeError("its process died: out of memory, or a crash of a library") from error


def rehearsed(pair: Chosen, setting: Setting, device: torch.device, digest: str, work: float) -> Rehearsed:
    """One network's result."""
    recipe, member = pair
    started = time.monotonic()
    try:
        found = in_own_process(quietly, member, setting, device)
    except RuntimeError as error:
        found = {"failure": str(error)}
    gib, parts = found.get("memory_gib") or 0.0, found.get("accumulate")
    if not found.get("failure") and found.get("memory_is") == "estimated" and gib > setting.memory_gb:
        found["failure"] = f"a step takes {gib:.3g} GiB even in {parts} parts, and there are {setting.memory_gb:g}"
    if step_s := found.get("seconds_a_step"):
        found["hours"] = step_s * training_steps(recipe, member) / 3600
    about = {"name": member.member.name, "digest": digest, "device": device.type, "work": work}
    return Rehearsed.model_validate({**about, **found, "seconds": time.monotonic() - started})


def quietly(member: MemberRecipe, setting: Setting, device: torch.device) -> dict[str, Any]:
    """`rehearse` without the warnings of libraries; what it raises is a result too."""
    threading.Thread(target=end_with_parent, daemon=True).start()
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return rehearse(member, setting, device)
    except Exception as error:  # noqa: BLE001 - one network that cannot be rehearsed is a result
        return {"failure": f"{type(error).__name__}: {str(error).strip()[:500]}"}
    finally:
        logging.disable(before)
