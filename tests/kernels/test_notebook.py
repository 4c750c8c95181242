"""The built notebook: the package's very bytes, twice the same, complete metadata, and a run in an empty folder."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from slugify import slugify

from kernels import build_notebook as builder
from kernels.lumbar import predict
from kernels.simulate import __main__ as simulate

COMMITTED = Path(builder.__file__).resolve().parent / "inference"
# Kaggle refuses larger sources.
LARGEST_NOTEBOOK_BYTES = 1_000_000


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("kernel")
    builder.write_kernel(out, "someone")
    return out


def cells_of(folder: Path) -> dict[str, str]:
    notebook = nbformat.read(folder / builder.NOTEBOOK_NAME, as_version=4)
    return {cell.id: cell.source for cell in notebook.cells}


def test_two_builds_in_two_processes_are_byte_identical(built, tmp_path):
    command = [sys.executable, "-m", "kernels.build_notebook", "--out", str(tmp_path), "--owner", "someone"]
    subprocess.run(command, check=True, cwd=builder.PACKAGE.parents[1], env={"PYTHONHASHSEED": "1"})
    for name in (builder.NOTEBOOK_NAME, builder.METADATA_NAME):
        assert (tmp_path / name).read_bytes() == (built / name).read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([builder.NOTEBOOK_NAME, builder.METADATA_NAME])


def test_module_cells_are_the_sources_byte_for_byte(built):
    cells = cells_of(built)
    carried = {}
    for source in cells.values():
        magic, _, body = source.partition("\n")
        if magic.startswith("%%writefile"):
            carried[magic.removeprefix("%%writefile {folder}/lumbar/")] = body.encode("utf-8")
    package = builder.PACKAGE
    assert carried == {path.relative_to(package).as_posix(): path.read_bytes() for path in package.rglob("*.py")}


def test_modules_come_in_import_order():
    order = list(builder.read_modules(builder.PACKAGE))
    assert order[0] == "__init__"
    assert order.index("labels") < order.index("specs") < order.index("predict")


def test_committed_notebook_is_what_the_package_builds(built):
    assert (COMMITTED / builder.NOTEBOOK_NAME).read_bytes() == (built / builder.NOTEBOOK_NAME).read_bytes(), (
        "kernels/inference is out of date: run `make kernel`"
    )
    committed = json.loads((COMMITTED / builder.METADATA_NAME).read_text())
    owner, dataset = committed["dataset_sources"][0].split("/")
    assert committed == builder.kernel_metadata(owner, dataset)


def test_metadata_leave_nothing_to_the_clients_defaults(built):
    metadata = json.loads((built / builder.METADATA_NAME).read_text())
    assert metadata["id"] == "someone/lumbar-inference"
    assert slugify(metadata["title"]) == "lumbar-inference"
    assert metadata["dataset_sources"] == ["someone/lumbar-weights"]
    assert metadata["competition_sources"] == ["rsna-2024-lumbar-spine-degenerative-classification"]
    assert (built / metadata["code_file"]).is_file()
    assert metadata["enable_internet"] is False and metadata["is_private"] is True
    assert metadata["enable_gpu"] is True and metadata["machine_shape"] == "NvidiaTeslaT4"
    read_by_client = {
        "id", "title", "code_file", "language", "kernel_type", "is_private", "enable_gpu", "enable_tpu",
        "enable_internet", "machine_shape", "keywords", "competition_sources", "dataset_sources", "kernel_sources",
        "model_sources", "docker_image_pinning_type",
    }  # fmt: skip
    assert set(metadata) == read_by_client


def test_notebook_is_valid_and_small(built):
    path = built / builder.NOTEBOOK_NAME
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert all(cell.outputs == [] and cell.execution_count is None for cell in notebook.cells if "outputs" in cell)
    assert path.stat().st_size < LARGEST_NOTEBOOK_BYTES


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"a": '"""A."""\nfrom . import b', "b": '"""B."""\nfrom .a import x'}, "circle"),
        ({"a": '"""A."""\nfrom kernels.lumbar import labels'}, "must be relative"),
        ({"a": '"""A."""\nimport training.recipe_schema.schema'}, "must be relative"),
        ({"a": "x = 1"}, "no docstring"),
    ],
)
def test_packages_that_cannot_be_carried_are_refused(tmp_path, files, reason):
    for name, source in ({"__init__": '"""P."""'} | files).items():
        (tmp_path / f"{name}.py").write_text(source)
    with pytest.raises(builder.BuildError, match=reason):
        builder.build_notebook(tmp_path)


def test_names_that_kaggle_refuses_are_refused(tmp_path, capsys):
    for options in (["--owner", "some one"], ["--dataset", "Weights"], ["--dataset", "a-b"], ["--dataset", "x" * 51]):
        assert builder.main(["--out", str(tmp_path), *options]) == 1
        assert capsys.readouterr().err.startswith("build_notebook: '")
    assert not list(tmp_path.iterdir())


def test_unknown_owner_is_a_placeholder(tmp_path, monkeypatch):
    monkeypatch.delenv("KAGGLE_USERNAME", raising=False)
    assert builder.main(["--out", str(tmp_path)]) == 0
    assert json.loads((tmp_path / builder.METADATA_NAME).read_text())["id"].startswith(builder.OWNER_PLACEHOLDER)
    monkeypatch.setenv("KAGGLE_USERNAME", "ada")
    assert builder.main(["--out", str(tmp_path)]) == 0
    assert json.loads((tmp_path / builder.METADATA_NAME).read_text())["id"] == "ada/lumbar-inference"


def test_a_notebook_may_be_for_one_package_alone(tmp_path, capsys):
    out, weights = tmp_path / "kernel", tmp_path / "weights"
    given = ["--out", str(out), "--owner", "someone", "--weights", str(weights)]
    assert builder.main(given) == 1
    assert "holds no package" in capsys.readouterr().err
    weights.mkdir()
    (weights / "manifest.json").write_text("{}")
    assert builder.main(given) == 0
    assert f'"LUMBAR_MANIFEST", "{hashlib.sha256(b"{}").hexdigest()}"' in cells_of(out)["run"]


@pytest.mark.parametrize(("layout", "more"), [("new", []), ("old", ["--no-public"])])
def test_notebook_alone_does_what_the_package_does(built, two_studies, package, tmp_path, layout, more):
    notebook, out = built / builder.NOTEBOOK_NAME, tmp_path / "notebook"
    given = ["--data", str(two_studies), "--weights", str(package)]
    assert simulate.main([*given, "--out", str(out), "--notebook", str(notebook), "--layout", layout, *more]) == 0
    report = json.loads((out / "run_report.json").read_text())
    assert report["studies"] == {"asked": 2, "graded": 2}
    assert len(report["members_used"]) == 7 and report["manifest"] == "split_and_global_smoke"
    assert report["fallbacks"]["rows"] < 50, "no row was graded"
    printed = (out / "log.txt").read_text()
    assert "graded 2 of 2 studies; " in printed and "{" not in printed

    of_package = tmp_path / "package"
    assert predict.main(["--competition", str(two_studies), "--weights", str(package), "--out", str(of_package)]) == 0
    for name in ("submission.csv", "landmarks.csv"):
        assert (out / name).read_bytes() == (of_package / name).read_bytes()
    priors = pd.read_csv(out / "submission.csv").iloc[:, 1:].round(12).drop_duplicates()
    assert len(priors) > 25, "both studies have the same answers"
