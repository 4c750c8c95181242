"""NaN and infinity as null, for JSON."""

from __future__ import annotations

import math
from typing import Any


def finite(content: Any) -> Any:
    """A copy with None for numbers that JSON cannot hold."""
    if isinstance(content, dict):
        return {key: finite(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
