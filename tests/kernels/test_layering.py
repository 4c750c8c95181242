"""Rules of the source tree: what may import what, how large modules and folders may be, what has only one home."""

from __future__ import annotations

import ast
import re
import sys
from collections import Counter
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from kernels.imports import Import, imports_of, package_of
from tests.support import ROOT

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
    ".j2",
    ".lock",
}
IN_KAGGLE_IMAGE = {"numpy", "cv2", "pydicom", "torch", "pydantic", "tqdm"}
LONGEST_MODULE = 400
MOST_MODULES = 16
# Folders whose files are many of one kind; tests have as many as there is to test.
MANY_OF_A_KIND = {"training/phantom", "training/networks"}
# Lowest first: a module imports from its own floor and those below it.
FLOORS = (
    "kernels.imports kernels.text kernels.profiles kernels.commands kernels.disk kernels.locks kernels.whole_folder",
    "kernels.lumbar.labels kernels.lumbar.specs kernels.lumbar.problems kernels.lumbar.manifest",
    "kernels.lumbar.dicom",
    "kernels.lumbar.inputs",
    "kernels.lumbar.networks",
    "kernels.lumbar.answers",
    "kernels.lumbar.run",
    "kernels.lumbar.options kernels.lumbar.predict kernels.lumbar.supervise",
    "kernels.build_notebook kernels.training_sources kernels.build_training",
    "kernels.simulate",
    "kernels.kaggle",
    "training.recipe_schema",
    "training.digests training.runs training.stages training.start",
    "training.data",
    "training.data.cache",
    "training.data.samples",
    "training.data.spider",
    "training.phantom",
    "training.networks.parts",
    "training.networks",
    "training.fitting.losses",
    "training.fitting",
    "training.evaluation",
    "training.check_data",
    "training.steps training.train_network training.train_all training.session",
    "training.packaging",
    "training.ensemble",
    "training.report",
    "training.benchmarks",
    "training.benchmarks.gpu",
    "build_dataset",
    "training.benchmarks.label_noise",
    "training.workflow",
    "training.rehearsal",
)


def python_files(*folders: str) -> list[Path]:
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def text_files() -> list[Path]:
    inside = [path for folder in SOURCE_FOLDERS for path in (ROOT / folder).rglob("*")]
    return [
        path
        for path in (*sorted(inside), *sorted(ROOT.iterdir()))
        if path.is_file() and path.suffix in TEXT_SUFFIXES and "__pycache__" not in path.parts and path.name != ".git"
    ]


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> list[Import]:
    """Every import of a file."""
    package = package_of(module_of(path), path.name == "__init__.py")
    return list(imports_of(ast.parse(path.read_text(encoding="utf-8"), str(path)), package))


@pytest.mark.parametrize("path", python_files("kernels"), ids=name_of)
def test_kernels_never_import_training(path):
    assert not [found.module for found in imports(path) if found.top in ("training", "tests")]


@pytest.mark.parametrize("path", python_files("kernels/lumbar"), ids=name_of)
def test_runtime_imports_only_what_kaggle_has(path):
    relative = {found.module for found in imports(path) if found.is_relative}
    absolute = {found.top for found in imports(path) if not found.is_relative}
    assert absolute <= IN_KAGGLE_IMAGE | sys.stdlib_module_names
    # Other relative imports would leave the package, which the notebook carries alone.
    assert all(f"{name}.".startswith("kernels.lumbar.") for name in relative)


def test_labels_stand_alone():
    assert all(found.top in sys.stdlib_module_names for found in imports(ROOT / "kernels/lumbar/labels.py"))


def edges() -> dict[str, set[str]]:
    """Module → the modules of this repository that it imports."""
    paths = {module_of(path): path for path in [*python_files("kernels", "training"), ROOT / "build_dataset.py"]}
    found: dict[str, set[str]] = {}
    for name, path in paths.items():
        found[name] = set()
        for one in imports(path):
            modules = {candidate for candidate in one.candidates[1:] if candidate in paths}
            if one.module in paths and (not one.names or len(modules) < len(one.names)):
                modules.add(one.module)
            found[name] |= modules - {name}
    return found


def floor_of(module: str) -> int:
    """The floor whose name begins the module's, the longest such name; -1 for none."""
    floors = {name: number for number, names in enumerate(FLOORS) for name in names.split()}
    matching = [name for name in floors if module == name or module.startswith(f"{name}.")]
    return floors[max(matching, key=len)] if matching else -1


def test_every_module_has_a_floor_and_none_imports_from_above():
    graph = edges()
    homeless = [name for name in graph if floor_of(name) < 0 and name not in ("kernels", "training", "kernels.lumbar")]
    assert not homeless, f"say in FLOORS where these belong: {homeless}"
    wrong = [
        f"{name} imports {one}, which lies above it"
        for name, wanted in graph.items()
        for one in sorted(wanted)
        if floor_of(one) > floor_of(name)
    ]
    assert not wrong, "\n".join(wrong)


def test_floors_are_the_folders():
    """So that no folder needs one that needs it: a floor holds one folder, or some files of one."""
    for names in FLOORS:
        folders = {ROOT / name.replace(".", "/") for name in names.split()}
        assert len(folders) == 1 or all(path.with_suffix(".py").is_file() for path in folders), names


def test_no_file_needs_one_that_needs_it():
    try:
        TopologicalSorter(edges()).prepare()
    except CycleError as error:
        pytest.fail(f"modules import each other in a circle: {' → '.join(error.args[1])}")


def test_the_phantom_stands_apart():
    """The kit never knows that data are made up; benchmarks and the rehearsal make some."""
    for name, wanted in edges().items():
        if any(one.startswith("training.phantom") for one in wanted):
            assert name.startswith(("training.phantom", "training.benchmarks", "training.rehearsal"))


@pytest.mark.parametrize("path", python_files("kernels", "training"), ids=name_of)
def test_modules_fit_a_reader(path):
    lines = path.read_text(encoding="utf-8").count("\n")
    assert lines <= LONGEST_MODULE, f"{name_of(path)} has {lines} lines: split it"


def test_folders_fit_a_reader():
    counts = Counter(name_of(path.parent) for path in python_files("kernels", "training") if path.stem != "__init__")
    larger = {name: count for name, count in counts.items() if count > MOST_MODULES and name not in MANY_OF_A_KIND}
    assert not larger


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
