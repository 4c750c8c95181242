"""CSV tables without pandas: the same text, and what is odd in a line costs that line alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from kernels.lumbar.run.tables import read_table, table_text


def written(folder: Path, content: bytes) -> Path:
    path = folder / "table.csv"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_lines_of_all_lengths_and_ends(tmp_path, end, mark):
    lines = [f"{mark}id,kind,id", "", "1,a,x", "2", '"3, and ""more""",é,y,too much', f"4,{'b' * 200_000},z"]
    found = read_table(written(tmp_path, end.join(lines).encode()))
    assert found == {"id": ["1", "2", '3, and "more"', "4"], "kind": ["a", "", "é", "b" * 200_000]}


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "empty"), (b"\n\n", "empty"), (b'id\n"1', "unexpected end"), (b"id\n\xff", "can't decode")],
)
def test_what_is_no_table_is_an_error(tmp_path, content, message):
    with pytest.raises(ValueError, match=message):
        read_table(written(tmp_path, content))


def test_the_text_is_that_of_pandas(tmp_path):
    random = np.random.default_rng(3)
    numbers = np.concatenate(
        [random.random(500), random.random(500) * 10.0 ** random.integers(-9, 3, 500), [0, 1, 1 / 3]]
    )
    names = ["id", "value", "rounded", "is_so"]
    ids = [f'study, "{number}"' if number % 7 == 0 else str(number) for number in range(len(numbers))]
    rows = [(name, float(one), round(float(one), 3), one > 0.5) for name, one in zip(ids, numbers, strict=True)]
    text = table_text(names, rows)
    assert text == pd.DataFrame(rows, columns=names).to_csv(index=False, lineterminator="\n")
    found = read_table(written(tmp_path, text.encode()))
    assert found["id"] == ids and [float(cell) for cell in found["value"]] == numbers.tolist()
