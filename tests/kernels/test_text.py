"""What commands print of durations and columns."""

from __future__ import annotations

import pytest

from kernels.text import aligned, duration_text, first_of


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "unknown"),
        (0.4, "0 s"),
        (42.0, "42 s"),
        (59.4, "59 s"),
        (59.7, "1 min 00 s"),
        (185.0, "3 min 05 s"),
        (599.7, "10 min"),
        (600.0, "10 min"),
        (3599.0, "1 h 00"),
        (3725.0, "1 h 02"),
        (7260.0, "2 h 01"),
    ],
)
def test_a_duration_is_as_precise_as_it_is_long(seconds, text):
    assert duration_text(seconds) == text


def test_columns_are_as_wide_as_their_widest_cell_and_rows_may_end_early():
    assert aligned([["a", "bb", "c"], ["ddd"], ["e", "f", ""]]) == ["a    bb  c", "ddd", "e    f"]


@pytest.mark.parametrize(("count", "text"), [(1, "a"), (2, "a, b"), (3, "a, b and 1 more"), (5, "a, b and 3 more")])
def test_of_a_long_list_the_first_are_named(count, text):
    assert first_of(list("abcde")[:count], 2) == text
    assert first_of(list("abc"), 2, "; ") == "a; b and 1 more"
