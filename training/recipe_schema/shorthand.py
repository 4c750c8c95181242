"""Shorthand of recipes: one line for a view of each level or side, one name for a target of all of them."""

from __future__ import annotations

from typing import Any, Literal, get_args

from kernels.lumbar.labels import LEVELS, SIDES, UNITS

Each = Literal["level", "side", "level_side"]


def expand_views(inputs: Any) -> Any:
    """Views with `each: level`, `side` or `level_side` become one view of each: by side, then from L1/L2 down."""
    if not isinstance(inputs, (list, tuple)):
        return inputs
    views: list[Any] = []
    for view in inputs:
        if not isinstance(view, dict) or "each" not in view:
            views.append(view)
            continue
        each = view["each"]
        if each not in get_args(Each):
            raise ValueError(f"each is {', '.join(get_args(Each))}, not '{each}'")
        shared = {key: value for key, value in view.items() if key != "each"}
        sides = [{"of_side": side} for side in SIDES] if "side" in each else [{}]
        levels = [{"of_level": level} for level in LEVELS] if "level" in each else [{}]
        views += [shared | side | level for side in sides for level in levels]
    return tuple(views)


def expand_targets(unit: str, targets: Any) -> Any:
    """Targets without a level or side that the unit lacks too are expanded to all of them."""
    if unit not in UNITS or not isinstance(targets, (list, tuple)):
        return targets
    if not all(isinstance(target, str) for target in targets):
        return targets  # refused by the schema
    place = UNITS[unit][0]
    named: list[str] = []
    for target in targets:
        sided = place.side or target.startswith(("left_", "right_", "spinal_"))
        levelled = place.level or target.endswith(LEVELS)
        starts = [target] if sided else [f"{side}_{target}" for side in SIDES]
        named += starts if levelled else [f"{start}_{level}" for start in starts for level in LEVELS]
    return tuple(named)
