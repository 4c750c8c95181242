"""The built notebook needs nothing that Kaggle's image lacks, and answers the same with the image's libraries.

`make test-image` makes .venv-image, the environment of the last test, and runs this file.
"""

from __future__ import annotations

import ast
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from nbformat import NotebookNode

from kernels import build_notebook as builder
from kernels.simulate import __main__ as simulate
from tests.support import ROOT

REQUIREMENTS = ROOT / "tests" / "image-requirements.txt"
IMAGE_PYTHON = ROOT / ".venv-image" / "bin" / "python"
# Import name → distribution.  Kaggle's image has these without internet; it lacks timm, monai and pylibjpeg.
IN_IMAGE = {
    "numpy": "numpy",
    "pandas": "pandas",
    "cv2": "opencv-python-headless",
    "pydicom": "pydicom",
    "torch": "torch",
    "pydantic": "pydantic",
    "tqdm": "tqdm",
}
# What the images of this year hold beside the version that these tests run in.
IMAGE_PYTHONS = ("3.12", "3.13")

VERSIONS_CODE = """
import json
from importlib.metadata import distributions

held = {one.metadata["Name"].lower(): one.version for one in distributions()}
Path("versions.json").write_text(json.dumps(held))
"""


@pytest.fixture(scope="module")
def notebook() -> NotebookNode:
    return builder.build_notebook()


def module_sources(notebook: NotebookNode) -> dict[str, str]:
    """File name → source, of the modules that the notebook writes."""
    cells = [cell.source for cell in notebook.cells if cell.source.startswith("%%writefile")]
    return {cell.partition("\n")[0].split("/")[-1]: cell.partition("\n")[2] for cell in cells}


def imported(source: str) -> Iterator[str]:
    """First names of what a source imports, anywhere in it; what is relative is the notebook's own."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.split(".")[0]


def required() -> dict[str, str]:
    """Distribution → the beginning of its version, as image-requirements.txt asks; empty where any will do."""
    lines = [line.split("#")[0].strip() for line in REQUIREMENTS.read_text().splitlines()]
    pairs = [line.partition("==") for line in lines if line]
    return {name: version.removesuffix("*") for name, _, version in pairs}


def test_notebook_imports_exactly_what_the_image_has_without_internet(notebook):
    written = module_sources(notebook)
    others = [cell.source for cell in notebook.cells if cell.cell_type == "code" and cell.source[:2] != "%%"]
    assert len(written) > 20 and len(others) == 3
    used = {name for source in (*written.values(), *others) for name in imported(source)}
    assert used - sys.stdlib_module_names - {"lumbar"} == set(IN_IMAGE)


def test_image_environment_holds_what_the_notebook_imports_and_what_runs_it():
    assert set(required()) == {*IN_IMAGE.values(), "ipykernel"}


def find_python(version: str) -> str | None:
    """A Python of that version which starts, on the path or among pyenv's."""
    name = f"python{version}"
    candidates = [shutil.which(name), *Path.home().glob(f".pyenv/versions/{version}.*/bin/{name}")]
    for candidate in filter(None, candidates):
        if subprocess.run([candidate, "-c", ""], capture_output=True).returncode == 0:
            return str(candidate)
    return None


@pytest.mark.parametrize("version", IMAGE_PYTHONS)
def test_modules_compile_for_the_pythons_of_the_image(notebook, tmp_path, version):
    python = find_python(version)
    if python is None:
        pytest.skip(f"there is no Python {version} here")
    for name, source in module_sources(notebook).items():
        (tmp_path / name).write_text(source, encoding="utf-8")
    # Errors for what the next version will refuse, such as unknown escapes in strings.
    command = [python, "-W", "error", "-m", "compileall", "-q", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.skipif(not IMAGE_PYTHON.exists(), reason="there is no .venv-image: `make test-image` makes it")
def test_submission_is_the_same_with_the_libraries_of_the_image(notebook, two_studies, package, tmp_path):
    path = tmp_path / "notebook.ipynb"
    more = nbformat.v4.new_code_cell(VERSIONS_CODE, id="versions")
    nbformat.write(nbformat.v4.new_notebook(cells=[*notebook.cells, more], metadata=notebook.metadata), path)
    given = ["--data", str(two_studies), "--weights", str(package), "--notebook", str(path)]
    of_image, of_project = tmp_path / "image", tmp_path / "project"
    assert simulate.main([*given, "--out", str(of_image), "--python", str(IMAGE_PYTHON)]) == 0
    assert simulate.main([*given, "--out", str(of_project), "--no-public"]) == 0

    held = json.loads((of_image / "versions.json").read_text())
    wrong = {name: held.get(name) for name, start in required().items() if not held.get(name, "").startswith(start)}
    assert not wrong, "remove .venv-image and run `make test-image` again"
    assert "lumbar-kit" not in held and "timm" not in held
    own = json.loads((of_project / "versions.json").read_text())
    assert "lumbar-kit" in own and own["pandas"] != held["pandas"], "both ran with the same libraries"

    for out in (of_image, of_project):
        report = json.loads((out / "run_report.json").read_text())
        assert report["studies"] == {"asked": 2, "graded": 2} and report["fallbacks"]["rows"] < 50
    assert (of_image / "submission.csv").read_bytes() == (of_project / "submission.csv").read_bytes()
    assert len(pd.read_csv(of_image / "public" / "submission.csv")) == 25
