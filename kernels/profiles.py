"""The profiles of every recipe: the published setting, and smaller ones that a CPU can train."""

from __future__ import annotations

from typing import Literal, get_args

Profile = Literal["smoke", "bench", "full"]
PROFILES: tuple[Profile, ...] = get_args(Profile)
