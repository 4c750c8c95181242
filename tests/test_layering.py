"""Rules of the source tree: who may import whom, how long a module may be, what has only one home."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCE_FOLDERS = ("kernels", "training", "tests", "weights_manifest", ".ci")
TEXT_SUFFIXES = {
    "",
    ".py",
    ".yaml",
    ".yml",
    ".json",
    ".md",
    ".toml",
    ".ipynb",
    ".txt",
    ".smk",
    ".cfg",
    ".ini",
    ".html",
    ".lock",
}
IN_KAGGLE_IMAGE = {"numpy", "pandas", "cv2", "pydicom", "torch", "pydantic", "tqdm"}
LONGEST_MODULE = 280


def python_files(*folders: str) -> list[Path]:
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def text_files() -> list[Path]:
    inside = [path for folder in SOURCE_FOLDERS for path in (ROOT / folder).rglob("*")]
    return [
        path
        for path in (*sorted(inside), *sorted(ROOT.iterdir()))
        if path.is_file() and path.suffix in TEXT_SUFFIXES and "__pycache__" not in path.parts and path.name != ".git"
    ]


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Level (0 = absolute) and dotted name of every import of a file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            yield from ((0, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.level, node.module or ""


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", python_files("kernels"), ids=name_of)
def test_kernels_never_import_training(path):
    assert not [name for level, name in imports(path) if level == 0 and name.split(".")[0] in ("training", "tests")]


@pytest.mark.parametrize("path", python_files("kernels/lumbar"), ids=name_of)
def test_runtime_imports_only_what_kaggle_has(path):
    absolute = {name.split(".")[0] for level, name in imports(path) if level == 0}
    assert absolute <= IN_KAGGLE_IMAGE | sys.stdlib_module_names
    # Deeper relative imports would leave the package, which the notebook carries alone.
    assert all(level <= 1 for level, _ in imports(path))


def test_labels_stand_alone():
    assert all(name.split(".")[0] in sys.stdlib_module_names for _, name in imports(ROOT / "kernels/lumbar/labels.py"))


@pytest.mark.parametrize("path", python_files("kernels", "training"), ids=name_of)
def test_modules_fit_a_reader(path):
    lines = path.read_text(encoding="utf-8").count("\n")
    assert lines <= LONGEST_MODULE, f"{name_of(path)} has {lines} lines: split it"


def test_no_absolute_machine_paths():
    machine_path = re.compile(r"(?<![\w.}*-])/(?:" + "|".join(("work", "home", "root", "Users")) + r")/\w")
    found = [
        f"{name_of(path)}:{number}: {line.strip()[:80]}"
        for path in text_files()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if machine_path.search(line)
    ]
    assert not found, "\n".join(found)


# Ways of writing "the other side", each of which labels.mirrored, labels.MIRROR and Unit.mirrored make needless.
EXCHANGES = (
    r"""(?:replace|removeprefix|sub)\(\s*["'](?:left|right)""",
    r"""["'](left|right)_?["']\s*:\s*["'](?!\1)(?:left|right)""",
    r"""["'](left|right)_?["']\s+if\s+[^\n]*==\s*["'](?!\1)(?:left|right)""",
)


@pytest.mark.parametrize("pattern", EXCHANGES)
def test_left_and_right_are_exchanged_in_one_place(pattern):
    homes = {
        name_of(path) for path in python_files("kernels", "training") if re.search(pattern, path.read_text("utf-8"))
    }
    assert homes <= {"kernels/lumbar/labels.py"}


def test_ways_of_exchanging_are_recognised():
    lines = ('name.replace("left_", "right_")', "{'left': 'right'}", "other = 'left' if side == 'right' else 'right'")
    for pattern, line in zip(EXCHANGES, lines, strict=True):
        assert re.search(pattern, line)
        assert not re.search(pattern, '{"left": "left"}')
