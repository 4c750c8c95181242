"""Numbers on their way into JSON, which knows neither NaN nor infinity."""

from __future__ import annotations

import math
from typing import Any


def finite(content: Any) -> Any:
    """The same with null for what JSON cannot hold: nothing to measure, or infinitely far."""
    if isinstance(content, dict):
        return {key: finite(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
