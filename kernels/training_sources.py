"""Which files of this repository the training notebook carries: what training imports, and the recipes it trains."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml

from kernels.build_notebook import PACKAGE, BuildError
from kernels.imports import imports_of

ROOT = PACKAGE.parents[1]
RECIPE_FOLDERS = ("training/recipes", "training/recipes/partial")
# What training begins with.  Architectures and losses are found by their names in recipes, so no import leads to them.
ENTRANCES = ("training/session.py", "training/networks/*.py", "training/fitting/losses/*.py")
# lightning_fabric comes with pytorch-lightning, huggingface_hub and safetensors with timm.
IN_IMAGE = {
    "cv2", "huggingface_hub", "lightning_fabric", "matplotlib", "numpy", "pandas", "pydantic", "pydicom", "safetensors",
    "scipy", "sklearn", "timm", "torch", "tqdm", "yaml",
}  # fmt: skip
# What Kaggle's image lacks: module → requirement, as in pyproject.toml.
INSTALLED = {"segmentation_models_pytorch": "segmentation-models-pytorch>=0.6,<0.7", "monai": "monai>=1.6,<2"}


def read_sources(recipes: Sequence[str], root: Path = ROOT) -> dict[str, str]:
    """Path → text of every file that training these recipes needs, by path.

    Raises BuildError for a recipe that is not there, and for an import that the notebook would not have.
    """
    paths = [recipe_path(name, root) for name in recipes]
    waiting = [path.relative_to(root) for pattern in ENTRANCES for path in root.glob(pattern)]
    sources = {path: _read(root, path) for path in paths}
    shared = [recipe_path(name, root) for path, text in sources.items() for name in localisers_of(path, text)]
    sources |= {path: _read(root, path) for path in shared}
    while waiting:
        path = waiting.pop()
        if path.as_posix() not in sources:
            sources[path.as_posix()] = _read(root, path.as_posix())
            waiting += imported_files(path, sources[path.as_posix()], root)
    return dict(sorted(sources.items()))


def recipe_path(name: str, root: Path = ROOT) -> str:
    """Path of a recipe's file below the root.  Raises BuildError for one that is not there."""
    files = {path.stem: path for folder in RECIPE_FOLDERS for path in sorted((root / folder).glob("*.yaml"))}
    if name not in files:
        raise BuildError(f"there is no recipe '{name}'; there are: {' '.join(files)}")
    return files[name].relative_to(root).as_posix()


def localisers_of(path: str, text: str) -> set[str]:
    """The recipes whose localisers a recipe takes, in any of its profiles.  Raises BuildError where it is no YAML."""
    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise BuildError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    parts = [document, *(document.get("profiles") or {}).values()]
    return {part["localisers_of"] for part in parts if part and part.get("localisers_of")}


def _read(root: Path, path: str) -> str:
    return (root / path).read_bytes().decode("utf-8")


def imported_files(path: Path, source: str, root: Path) -> Iterator[Path]:
    """Files a module imports, with the packages around them.  Raises BuildError for an import that names no file."""
    for found in imports_of(ast.parse(source, str(path)), ".".join(path.parent.parts)):
        yield from _files_of(path, found.module, root)
        for name in found.candidates[1:]:
            if _file(root, name):
                yield from _files_of(path, name, root)


def _files_of(importer: Path, name: str, root: Path) -> Iterator[Path]:
    parts = name.split(".")
    if parts[0] not in ("kernels", "training"):
        if parts[0] not in sys.stdlib_module_names | IN_IMAGE | INSTALLED.keys():
            raise BuildError(f"{importer} imports {name}, which Kaggle's image lacks: name it in INSTALLED")
        return
    for count in range(1, len(parts) + 1):
        file = _file(root, ".".join(parts[:count]))
        if file is None:
            raise BuildError(f"{importer} imports {name}, which is no module of this project")
        yield file


def _file(root: Path, name: str) -> Path | None:
    """The file of a module or package, below the root."""
    path = Path(*name.split("."))
    candidates = (path.with_suffix(".py"), path / "__init__.py")
    return next((one for one in candidates if (root / one).is_file()), None)
