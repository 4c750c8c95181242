"""The training notebook: the sources' very bytes and no others, complete metadata, two sessions that finish a run."""

from __future__ import annotations

import base64
import io
import json
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import yaml
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from slugify import slugify

from kernels import build_training as builder
from kernels import training_sources
from kernels.build_notebook import METADATA_NAME, BuildError
from kernels.training_sources import ROOT
from tests.kernels.test_notebook import LARGEST_NOTEBOOK_BYTES
from tests.support.dicom.dicom_factory import write_foreign_dataset

RECIPES = sorted(path.stem for path in (ROOT / "training" / "recipes").glob("*.yaml"))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("kernel")
    builder.write_training(out, "someone", RECIPES)
    return out


def cells_of(folder: Path) -> list[str]:
    return [cell.source for cell in nbformat.read(folder / builder.TRAINING_NAME, as_version=4).cells]


def carried(folder: Path) -> dict[str, bytes]:
    """Path → bytes of the files that the notebook writes: recipes as text, modules from its archive."""
    found = {}
    for source in cells_of(folder):
        magic, _, body = source.partition("\n")
        if magic.startswith("%%writefile {folder}/"):
            found[magic.removeprefix("%%writefile {folder}/")] = body.encode()
        elif "zipfile" in source:
            archive = zipfile.ZipFile(io.BytesIO(base64.b64decode(source.split('"""')[1])))
            found |= {name: archive.read(name) for name in archive.namelist()}
    return found


def test_two_builds_in_two_processes_are_byte_identical(built, tmp_path):
    command = [sys.executable, "-m", "kernels.build_training", "--out", str(tmp_path), "--owner", "someone"]
    subprocess.run([*command, "--recipes", *RECIPES], check=True, cwd=ROOT, env={"PYTHONHASHSEED": "1"})
    for name in (builder.TRAINING_NAME, METADATA_NAME):
        assert (tmp_path / name).read_bytes() == (built / name).read_bytes()


def test_files_are_the_sources_byte_for_byte_and_only_what_training_needs(built):
    files = carried(built)
    assert all(content == (ROOT / path).read_bytes() for path, content in files.items())
    for pattern in ("kernels/lumbar/inputs/*.py", "training/networks/*.py", "training/recipes/*.yaml"):
        assert {path.relative_to(ROOT).as_posix() for path in ROOT.glob(pattern)} <= files.keys()
    needless = (
        "training/phantom",
        "training/report",
        "training/benchmarks",
        "training/workflow",
        "kernels/build",
        "kernels/lumbar/supervise.py",
        "tests",
    )
    assert not [path for path in files if path.startswith(needless)]


def test_recipes_are_cells_to_read_and_edit(built):
    text = [source for source in cells_of(built) if source.startswith("%%writefile")]
    assert [source.split("\n")[0].rpartition("/")[2].removesuffix(".yaml") for source in text] == RECIPES


def test_one_recipe_is_carried_where_one_is_trained(tmp_path):
    builder.write_training(tmp_path, "someone", ["split_and_global"])
    assert [path for path in carried(tmp_path) if path.endswith(".yaml")] == ["training/recipes/split_and_global.yaml"]


def test_every_module_can_be_imported_from_what_is_carried(built, tmp_path):
    for path, content in carried(built).items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(content)
    modules = [
        path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for path in carried(built)
        if path.endswith(".py")
    ]
    code = f"""
import importlib, sys
for name in {modules}:
    importlib.import_module(name)
print({{m.__file__ for n, m in sys.modules.items() if n.split(".")[0] in ("kernels", "training")}})
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert str(ROOT) not in done.stdout and str(tmp_path) in done.stdout


def test_notebook_is_valid_and_small(built, tmp_path, monkeypatch):
    path = built / builder.TRAINING_NAME
    nbformat.validate(nbformat.read(path, as_version=4))
    assert path.stat().st_size < builder.LARGEST_BYTES == LARGEST_NOTEBOOK_BYTES
    monkeypatch.setattr(builder, "LARGEST_BYTES", 100_000)
    with pytest.raises(BuildError, match="100000: train fewer recipes"):
        builder.write_training(tmp_path, "someone", RECIPES)
    assert not list(tmp_path.iterdir())


def test_metadata_leave_nothing_to_the_clients_defaults(built, tmp_path):
    metadata = json.loads((built / METADATA_NAME).read_text())
    assert metadata["id"] == f"someone/{slugify(metadata['title'])}" == "someone/lumbar-training"
    assert (built / metadata["code_file"]).is_file() and metadata["kernel_type"] == "notebook"
    assert metadata["is_private"] is metadata["enable_gpu"] is metadata["enable_internet"] is True
    assert metadata["machine_shape"] == "NvidiaTeslaT4" and metadata["enable_tpu"] is False
    assert metadata["competition_sources"] == ["rsna-2024-lumbar-spine-degenerative-classification"]
    assert metadata["kernel_sources"] == metadata["dataset_sources"] == metadata["model_sources"] == []
    assert {"language", "keywords", "docker_image_pinning_type"} < metadata.keys() and len(metadata) == 16
    builder.write_training(tmp_path, "someone", RECIPES, resume=True, datasets=["ada/points"])
    resumed = json.loads((tmp_path / METADATA_NAME).read_text())
    assert resumed["kernel_sources"] == ["someone/lumbar-training"] and resumed["dataset_sources"] == ["ada/points"]


def test_requirements_are_those_of_the_project():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(training_sources.INSTALLED.values()) <= set(project["dependencies"])


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--recipes", "ghost"], "there is no recipe 'ghost'; there are: first_place level_sequence "),
        (["--recipes", "split_and_global", "--folds", "0", "7"], "folds 0 to 4; [7] is none of them"),
        (["--recipes", "split_and_global", "--owner", "some one"], "no Kaggle user name"),
        (["--recipes", "split_and_global", "--datasets", "points"], "'points' is no data set"),
    ],
)
def test_what_could_not_run_is_refused(tmp_path, capsys, options, reason):
    assert builder.main(["--out", str(tmp_path), *options]) == 1
    message = capsys.readouterr().err
    assert reason in message and message.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("import polars", "Kaggle's image lacks"),
        ("from tests import studies", "Kaggle's image lacks"),
        ("from training import nothing\nimport training.ghost", "training.ghost, which is no module"),
        ("from .ghost import x", "training.ghost, which is no module"),
    ],
)
def test_imports_that_the_notebook_would_not_have_are_refused(tmp_path, line, reason):
    (tmp_path / "training").mkdir()
    (tmp_path / "training" / "__init__.py").write_text("nothing = 0")
    (tmp_path / "training" / "session.py").write_text(line)
    with pytest.raises(BuildError, match=reason):
        training_sources.read_sources([], tmp_path)


TINY = """
name: tiny
source: "a test"
folds: 2
train_folds: [0]
localisers:
  points:
    unit: study
    targets: [spinal_canal_stenosis_l1_l2, spinal_canal_stenosis_l2_l3, spinal_canal_stenosis_l3_l4,
              spinal_canal_stenosis_l4_l5, spinal_canal_stenosis_l5_s1]
    inputs: [{series: sagittal_t2, slices: {by: middle, count: 3}, size_px: 64}]
    fitting:
      network: {name: deeplab_heatmap, options: {encoder: tu-resnet10t, pretrained: false, decoder_channels: 32}}
      loss: heatmap_mse
      sigma_px: 4
      optimisation: {epochs: 3, batch_size: 2, learning_rate: 0.002, schedule: cosine}
backbones: {small: {timm: test_resnet, size_px: 32, learning_rate: 0.002, pretrained: false}}
graders:
  spinal:
    unit: level
    targets: [spinal_canal_stenosis]
    weight: {spinal: 1.0, foraminal: 0.0, subarticular: 0.0}
    inputs:
      - series: sagittal_t2
        centre: [spinal_canal_stenosis]
        slices: {by: middle, count: 3}
        size_mm: 50
        size_px: 32
    fitting:
      network: {name: split_gru, options: {hidden: 8}}
      loss: weighted_cross_entropy
      optimisation: {epochs: 1, batch_size: 16, learning_rate: 0.002, schedule: cosine}
      augmentation: {jitter_mm: localiser}
"""


def test_a_profile_that_a_recipe_has_not_is_refused():
    document = yaml.safe_load(TINY)
    builder.check_choice("tiny", document, "full", [1])
    with pytest.raises(BuildError, match="no profile 'smoke'"):
        builder.check_choice("tiny", document, "smoke", [])


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of the project with one recipe more."""
    root = tmp_path / "project"
    for name in ("kernels", "training", "weights_manifest"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__", "phantom"))
    shutil.copy(ROOT / "build_dataset.py", root)
    (root / "training" / "recipes" / "tiny.yaml").write_text(TINY)
    return root


def run_session(project: Path, inputs: Path, working: Path, monkeypatch: pytest.MonkeyPatch, *options: str) -> str:
    """Build the notebook and run its cells, as one session with these inputs; what the cells printed."""
    given = ["--out", str(working.parent / "kernel"), "--owner", "ada", "--recipes", "tiny", *options]
    subprocess.run([sys.executable, "-m", "kernels.build_training", *given], cwd=project, check=True)
    working.mkdir()
    monkeypatch.setenv("LUMBAR_INPUT_ROOT", str(inputs))
    monkeypatch.setenv("LUMBAR_OUT", str(working))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = nbformat.read(working.parent / "kernel" / builder.TRAINING_NAME, as_version=4)
    own = KernelSpecManager(kernel_dirs=[])  # the kernel of this very environment
    manager = AsyncKernelManager(kernel_name="python3", kernel_spec_manager=own)
    NotebookClient(notebook, km=manager, timeout=600, resources={"metadata": {"path": str(working)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    return "".join(output.get("text", "") for output in outputs)


@pytest.mark.slow
def test_a_second_session_goes_on_where_the_first_was_stopped_and_packaging_takes_its_runs(
    project, tmp_path, monkeypatch
):
    inputs = tmp_path / "input"
    write_foreign_dataset(inputs / "competitions" / "rsna", studies=6, seed=21, test_studies=1)
    first = tmp_path / "first" / "working"
    first.parent.mkdir()
    assert "the time is up" in run_session(project, inputs, first, monkeypatch, "--time-limit", "0")
    assert json.loads((first / "runs" / "session.json").read_text())["left"] == [
        "tiny/full/tiny_points/fold0",
        "tiny/full/tiny_spinal_small/fold0",
    ]
    job = Path("tiny", "full", "tiny_points", "fold0")
    begun = pd.read_csv(first / "runs" / job / "history.csv")
    assert len(begun) == 1

    shutil.copytree(first, inputs / "notebooks" / "ada" / builder.TRAINING_SLUG)
    second = tmp_path / "second" / "working"
    second.parent.mkdir()
    said = run_session(project, inputs, second, monkeypatch, "--time-limit", "600", "--resume")
    assert "all is trained" in said and "2 networks are finished; 0 are left" in said
    finished = pd.read_csv(second / "runs" / job / "history.csv")
    assert len(finished) == 3
    pd.testing.assert_frame_equal(finished.iloc[: len(begun)], begun)  # its seconds, too: not trained again
    assert [path.name for path in second.iterdir()] == ["runs"], "the output holds more than the runs"
    kept = {path.suffix for path in second.rglob("*") if path.is_file()}
    assert not kept & {".safetensors", ".pt"}, "the output holds stacks or checkpoints"

    given = ["--runs", str(second / "runs"), "--out", str(tmp_path / "weights"), "--owner", "ada"]
    subprocess.run([sys.executable, "build_dataset.py", *given], cwd=project, check=True)
    manifest = json.loads((tmp_path / "weights" / "manifest.json").read_text())
    assert [one["member"]["name"] for one in manifest["artefacts"]] == ["tiny_points_fold0", "tiny_spinal_small_fold0"]


@pytest.mark.slow
def test_training_that_never_began_fails_the_notebook(project, tmp_path, monkeypatch):
    (tmp_path / "input").mkdir()
    with pytest.raises(Exception, match="before there was anything to keep"):
        run_session(project, tmp_path / "input", tmp_path / "working", monkeypatch)


@pytest.mark.parametrize(
    ("text", "owners"),
    [
        ('localisers_of: "beta"  # quoted', {"beta"}),
        ("profiles:\n  smoke: {localisers_of: beta}\n  bench:", {"beta"}),
        ("source: |\n  as if\nlocalisers: {}\nname: alpha", set()),
        ('source: "\nlocalisers_of: beta"', set()),
    ],
)
def test_whose_localisers_a_recipe_takes_is_read_as_yaml(text, owners):
    assert training_sources.localisers_of("alpha.yaml", text) == owners


def test_a_recipe_that_is_no_yaml_is_named():
    with pytest.raises(BuildError, match="alpha.yaml cannot be read: ") as refused:
        training_sources.localisers_of("alpha.yaml", "name: [alpha\nfolds: 2")
    assert "\n" not in str(refused.value)


def test_a_recipe_brings_the_one_whose_localisers_it_takes():
    carried = training_sources.read_sources(["student"])
    assert {"training/recipes/partial/student.yaml", "training/recipes/split_and_global.yaml"} <= carried.keys()


def test_a_recipe_of_a_part_is_carried_where_it_lies():
    path = training_sources.recipe_path("canal_only")
    assert path == "training/recipes/partial/canal_only.yaml" and path in training_sources.read_sources(["canal_only"])
    assert "training/recipes/partial" in "".join(
        cell["source"] for cell in builder.build_training(["canal_only"]).cells
    )
