"""Problems of a data set as a table beside what was made of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import astuple, fields

from kernels.lumbar.problems import Problem
from kernels.lumbar.run.tables import table_text


def as_csv(problems: Iterable[Problem]) -> str:
    """A line a problem, with the fields of Problem as columns."""
    return table_text([field.name for field in fields(Problem)], map(astuple, problems))
