"""sha256 digests of files, code, data and trainings, which change with whatever these depend on."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from kernels.imports import imports_of, package_of
from training.recipe_schema.schema import MemberRecipe


def digest(*parts: Any) -> str:
    """sha256 of JSON-able parts."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint_of(tables: str, images: str | None) -> str:
    """Digest of the training data: tables and image files."""
    return digest(tables, images)


def training_digest(
    member: MemberRecipe,
    fold: int,
    seed: int,
    fingerprint: str,
    errors: Mapping[str, Any],
    images: str | None = None,
    labels: str | None = None,
    start: str | None = None,
) -> str:
    """Digest of everything a network's weights depend on.

    `errors`: series kind → what is drawn from of the fold's localisation error, of a localiser of that of its sources.
    `images`, `labels`, `start`: digests of the images it is pretrained on, of the predictions that correct its labels,
    and of the weights that it begins from.
    """
    parts = [member.model_dump(mode="json"), fold, seed, fingerprint, errors, images, labels]
    return digest(*parts, *([start] if start else []))  # without START that of earlier trainings


@cache
def code_digest(start: tuple[str, ...], followed: tuple[str, ...]) -> str:
    """sha256 of modules and of all that they import from packages with these prefixes, without comments and
    docstrings."""
    waiting, read = list(start), dict[str, str]()
    while waiting:
        name = waiting.pop()
        file = _file_of(name) if name not in read else None
        if file is not None:
            tree = ast.parse(file.read_text(encoding="utf-8"))
            package = package_of(name, file.name == "__init__.py")
            named = (one for found in imports_of(tree, package) for one in found.candidates)
            waiting += [one for one in named if one.startswith(followed)]
            read[name] = meaning(tree)
    return digest(sorted(read.items()))


def _file_of(module: str) -> Path | None:
    """The source file of a module; None for a name inside a module."""
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        return None
    return Path(spec.origin) if spec is not None and spec.origin is not None else None


def meaning(tree: ast.Module) -> str:
    """The code of a module without its comments, docstrings and layout."""
    for node in ast.walk(tree):
        body: Sequence[ast.stmt] | None = getattr(node, "body", None)
        if isinstance(body, list):
            body[:] = [one for one in body if not _is_text(one)]
    return ast.dump(tree)


def _is_text(statement: ast.stmt) -> bool:
    value = statement.value if isinstance(statement, ast.Expr) else None
    return isinstance(value, ast.Constant) and isinstance(value.value, str)
