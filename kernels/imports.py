"""Imports of a module, read from its syntax tree: for the notebooks, digests of code and tests."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Import:
    """One imported module; relative ones are resolved against the importing package."""

    module: str
    """Absolute dotted name; empty where a relative import leaves all packages."""
    names: tuple[str, ...] = ()
    """What `from module import ...` takes of it: modules, or names within it."""
    is_relative: bool = False

    @property
    def top(self) -> str:
        """The top-level package."""
        return self.module.partition(".")[0]

    @property
    def candidates(self) -> tuple[str, ...]:
        """All dotted names that may be modules: the module itself, and each name taken of it."""
        return (self.module, *(f"{self.module}.{name}" for name in self.names))


def imports_of(tree: ast.AST, package: str) -> Iterator[Import]:
    """Every import of a module, at any depth; `package`: dotted name of the package that the module lies in."""
    above = package.split(".") if package else []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (Import(alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = above[: len(above) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield Import(module, tuple(alias.name for alias in node.names), node.level > 0)


def package_of(module: str, is_package: bool = False) -> str:
    """The package against which a module's relative imports are resolved."""
    return module if is_package else module.rpartition(".")[0]
