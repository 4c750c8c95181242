"""CSV tables as text, so that an id stays what it is: 007, NA and 123.0 are names."""

from __future__ import annotations

from pathlib import Path

import pandas as pd


def read_text_table(path: Path) -> pd.DataFrame:
    """A CSV with every cell as text; a missing cell is empty.  Raises OSError, ValueError."""
    frame = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig", index_col=False)
    return frame.fillna("")
