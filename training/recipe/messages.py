"""Lines on what is wrong in a recipe that a reader can act on: a dotted path and a reason."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

# So many problems of a file are shown at once.
SHOWN = 5


PLAIN = {"extra_forbidden": "there is no such key", "missing": "is missing"}


def told(error: ValidationError) -> list[str]:
    """A line for each problem: the dotted path, if it has one, and what is wrong there."""
    lines = []
    for one in error.errors():
        where = ".".join(str(part) for part in one["loc"])
        text = PLAIN.get(one["type"], one["msg"].removeprefix("Value error, "))
        lines += [f"{where}: {line}" if where else line for line in text.splitlines()]
    return lines


def listed(path: Path, problems: list[str]) -> str:
    """One problem in a sentence, or the first of several, a line each."""
    if len(problems) == 1:
        return f"{path}: {problems[0]}"
    more = [f"and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
    return "\n  ".join([f"{path} has {len(problems)} problems:", *problems[:SHOWN], *more])
