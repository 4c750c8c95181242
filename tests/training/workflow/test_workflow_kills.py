"""Runs of the grid that are killed at random moments, and jobs that live on without the run that began them."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import random
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from kernels.locks import is_busy
from tests.support.dicom.dicom_factory import write_foreign_dataset
from tests.support.networks.tiny_grid import call, command, environment, weights, write_recipe

pytestmark = pytest.mark.slow
KILLS = 4
log = logging.getLogger(__name__)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("killed")
    write_foreign_dataset(folder / "data", studies=6, seed=21, test_studies=1)
    for name in ("alpha", "beta"):
        write_recipe(folder / f"{name}.yaml", epochs=6)
    return folder


def order(place: Path, runs: str, *further: str) -> list[str]:
    recipes = [place / "alpha.yaml", place / "beta.yaml"]
    package = ["--package", str(place / f"{runs}-package"), "--owner", "ann"]
    return command("run", place / "data", place / runs, recipes, *package, "--jobs", "2", *further)


@pytest.fixture(scope="module")
def undisturbed(place: Path) -> tuple[dict[str, str], str]:
    """Weights and digest of the manifest of a run that nobody killed."""
    done = call(order(place, "undisturbed"))
    assert done.returncode == 0, done.stderr
    return weights(place / "undisturbed"), manifest_of(place / "undisturbed-package")


def manifest_of(package: Path) -> str:
    """sha256 of manifest.json without the commit, which others may make while this runs; all else is in it."""
    manifest: dict[str, Any] = json.loads((package / "manifest.json").read_text())
    for artefact in manifest["artefacts"]:
        artefact["provenance"].pop("git_commit")
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def progress(runs: Path) -> int:
    """Epochs that are saved and jobs that are done."""
    stamps = [path for path in (runs / ".workflow").glob("*/*/smoke/**/*.json") if "journal" not in path.parts]
    return len(stamps) + sum(len(path.read_text().splitlines()) - 1 for path in runs.rglob("history.csv"))


def kill(given: list[str], runs: Path, steps: int, then_s: float) -> None:
    """SIGKILL for the run and for everything that it began, all at once, so many steps of progress later."""
    while is_busy(runs):  # what was killed before is not gone yet
        time.sleep(0.02)
    until = progress(runs) + steps
    run = subprocess.Popen(
        given, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    while run.poll() is None and progress(runs) < until:
        time.sleep(0.02)
    time.sleep(then_s)
    if run.poll() is not None:
        assert run.returncode == 0, "it ended before it could be killed, and was not done"
        return
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()


def test_killed_grids_end_as_undisturbed_ones(place: Path, undisturbed: tuple[dict[str, str], str]) -> None:
    expected, manifest = undisturbed
    moments, runs = random.Random(), place / "killed"
    for _ in range(KILLS):
        steps, then_s = moments.randint(3, 9), moments.random()
        kill(order(place, "killed"), runs, steps, then_s)
        log.info(
            "killed %.2f s after %d steps: %d in all, %d networks", then_s, steps, progress(runs), len(weights(runs))
        )
    assert progress(runs) > KILLS, "no run got anywhere before it was killed"
    done = call(order(place, "killed"))
    assert done.returncode == 0, done.stderr
    assert weights(place / "killed") == expected and len(expected) == 4
    assert manifest_of(place / "killed-package") == manifest
    left = [*(place / "killed").rglob("checkpoint.pt"), *(place / "killed").glob("*/smoke/**/.*.part")]
    assert not left


def test_a_run_that_is_told_to_stop_saves_what_it_has(place: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "long.yaml", epochs=2000)
    runs = tmp_path / "runs"
    run = subprocess.Popen(
        command("run", place / "data", runs, [recipe]), env=environment(), stderr=subprocess.PIPE, text=True
    )
    job = runs / "long" / "smoke" / "long_spinal_tiny" / "fold0"
    while not (job / "history.csv").is_file():
        assert run.poll() is None
        time.sleep(0.1)
    run.send_signal(signal.SIGTERM)
    _, said = run.communicate(timeout=60)
    assert run.returncode == 3 and "train-all was stopped: 3 of 5 jobs are finished; the same command resumes" in said
    assert (job / "checkpoint.pt").is_file()
    planned = call(command("plan", place / "data", runs, [recipe])).stdout
    assert "2 of 5 jobs would run" in planned and "resumes after epoch " in planned


def test_a_changed_recipe_runs_only_its_own(place: Path, undisturbed: tuple[dict[str, str], str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in (place / "undisturbed").rglob("weights.ts")}
    text = (place / "alpha.yaml").read_text()
    (place / "alpha.yaml").write_text(text.replace("hidden: 8", "hidden: 16"))
    done = call(order(place, "undisturbed"))
    (place / "alpha.yaml").write_text(text)
    assert done.returncode == 0 and "all 11 jobs are finished, 3 of them now" in done.stdout, done.stdout + done.stderr
    touched = {path.parent.parent.name for path, time_ns in before.items() if path.stat().st_mtime_ns != time_ns}
    assert touched == {"alpha_spinal_tiny"}


def test_the_shell_executor_takes_up_what_it_left_running(place: Path, undisturbed: tuple[dict[str, str], str]) -> None:
    expected = undisturbed[0]
    given = command("run", place / "data", place / "shell", [place / "beta.yaml"], "--jobs", "2", "--executor", "shell")
    kill(given, place / "shell", 2, 0.2)  # its jobs are processes of their own, and go on
    done = call(given)
    assert done.returncode == 0, done.stderr
    assert weights(place / "shell") == {name: sha for name, sha in expected.items() if name.startswith("beta")}
    logs = [log.read_text() for log in (place / "shell" / "logs").rglob("fold0.log")]
    assert len(logs) == 2
