"""The grid as a DAG: what would run and why, one run that does it, and the very networks of the serial way."""

from __future__ import annotations

import fcntl
import json
import shutil
import time
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from kernels.locks import BusyError, alone
from tests.support.dicom.dicom_factory import write_foreign_dataset
from tests.support.networks.tiny_grid import call, command, weights, write_recipe
from training import train_all
from training.data.cache.cache_sources import images_digest
from training.data.tables import read_tables
from training.runs import image_digests
from training.workflow import __main__ as workflow
from training.workflow import engine, shell_jobs
from training.workflow.costs import Costs
from training.workflow.engine import ExecutorError, profile_of
from training.workflow.grid import Grid, GridOrder, keep_grid, make_grid, read_grid
from training.workflow.plan_and_status import plan_of, state_of, status_of, todo_of
from training.workflow.staleness import Staleness
from training.workflow.step_journal import attempt, is_running

FAILING = 1e30


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data of six studies, and three recipes of which the last cannot be trained."""
    folder = tmp_path_factory.mktemp("grid")
    write_foreign_dataset(folder / "data", studies=6, seed=21, test_studies=1)
    for name in ("alpha", "beta"):
        write_recipe(folder / f"{name}.yaml")
    write_recipe(folder / "gamma.yaml", learning_rate=1.0)
    text = (
        (folder / "gamma.yaml")
        .read_text()
        .replace("learning_rate: 0.002\n    pretrained", f"learning_rate: {FAILING}\n    pretrained")
    )
    (folder / "gamma.yaml").write_text(text)
    return folder


def grid_of(place: Path, *names: str, runs: str = "runs") -> Grid:
    recipes = tuple(str(place / f"{name}.yaml") for name in names)
    return make_grid(
        GridOrder(data=place / "data", runs=place / runs, recipes=recipes, profile="smoke", jobs=2, search=False)
    )


@pytest.fixture(scope="module")
def first(place: Path) -> CompletedProcess[str]:
    """The one run of all three recipes, two jobs at a time."""
    recipes = [place / f"{name}.yaml" for name in ("alpha", "beta", "gamma")]
    return call(command("run", place / "data", place / "runs", recipes, "--jobs", "2"))


@pytest.fixture(scope="module")
def serial(place: Path) -> Path:
    """The folder of a run of one recipe without the grid, one network after the other."""
    folder = place / "serial"
    given = ["--data", str(place / "data"), "--runs", str(folder), "--profile", "smoke", "--jobs", "1"]
    assert train_all.main([*given, "--recipes", str(place / "alpha.yaml")]) == 0
    return folder


def test_a_plan_names_what_would_run_and_runs_nothing(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = command("plan", place / "data", place / "planned", [place / "alpha.yaml"])[3:]
    assert workflow.main(given) == 0
    said = capsys.readouterr().out
    jobs = ("prepare", "alpha_canal/fold0", "errors_fold0", "alpha_spinal_tiny/fold0", "validate")
    assert [line.split()[0] for line in said.splitlines()[1:6]] == [f"alpha/smoke/{job}" for job in jobs]
    assert "5 of 5 jobs would run; their time is unknown" in said
    assert not (place / "planned").exists()


def test_one_failing_job_leaves_the_others_finished_and_is_named(place: Path, first: CompletedProcess[str]) -> None:
    assert first.returncode == 1, first.stderr
    log = place / "runs" / "logs" / "gamma" / "smoke" / "gamma_spinal_tiny" / "fold0.log"
    assert "1 of 15 jobs failed: gamma/smoke/gamma_spinal_tiny/fold0: " in first.stderr
    assert (
        "the loss is" in first.stderr
        and f"({log})" in first.stderr
        and "1 that need them were not begun" in first.stderr
    )
    verdicts = Staleness(grid_of(place, "alpha", "beta", "gamma")).verdicts()
    open_jobs = {name for name, verdict in verdicts.items() if not verdict.done}
    assert open_jobs == {"gamma/smoke/gamma_spinal_tiny/fold0", "gamma/smoke/validate"}


def test_a_second_run_does_nothing(place: Path, first: CompletedProcess[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in (place / "runs").rglob("*") if path.is_file()}
    again = call(command("run", place / "data", place / "runs", [place / "alpha.yaml", place / "beta.yaml"]))
    assert again.returncode == 0 and "nothing is to be done: all 10 jobs are finished" in again.stdout
    assert {path for path, time_ns in before.items() if path.stat().st_mtime_ns != time_ns} <= {
        place / "runs" / ".lock"
    }


def test_status_has_a_line_a_job(place: Path, first: CompletedProcess[str], capsys: pytest.CaptureFixture[str]) -> None:
    began = time.process_time()
    assert workflow.main(["status", "--runs", str(place / "runs")]) == 0
    assert time.process_time() - began < 3
    lines = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines() if line}
    assert lines["alpha/smoke/alpha_canal/fold0"][:2] == ["finished", "2/2"]
    assert lines["alpha/smoke/alpha_canal/fold0"][-1] == "cpu"
    assert lines["gamma/smoke/gamma_spinal_tiny/fold0"][:2] == ["failed", "0/2"]
    assert lines["gamma/smoke/validate"][0] == "waiting" and lines["15"][:3] == ["jobs:", "13", "finished,"]


def test_a_job_is_running_as_long_as_its_process_lives(place: Path, first: CompletedProcess[str]) -> None:
    grid = grid_of(place, "alpha", "beta", "gamma")
    failed = grid.steps["gamma/smoke/gamma_spinal_tiny/fold0"]
    with pytest.raises(KeyboardInterrupt), attempt(grid, failed, "cpu"):
        assert is_running(grid, failed) and f"{failed.name}  running" in status_of(grid)
        raise KeyboardInterrupt
    assert not is_running(grid, failed) and f"{failed.name}  failed" in status_of(grid)


def test_networks_are_those_of_the_serial_way(place: Path, first: CompletedProcess[str], serial: Path) -> None:
    mine = {name: sha for name, sha in weights(place / "runs").items() if name.startswith("alpha")}
    assert weights(serial) == mine and len(mine) == 2
    for name in ("out_of_fold0.parquet", "score.json", "localiser_errors_fold0.json"):
        one, other = (folder / "alpha" / "smoke" / name for folder in (serial, place / "runs"))
        assert one.read_bytes() == other.read_bytes(), name


def test_each_way_finishes_what_the_other_began(place: Path, first: CompletedProcess[str], serial: Path) -> None:
    before = weights(place / "runs")
    times = [path.stat().st_mtime_ns for path in sorted((place / "runs" / "beta").rglob("weights.ts"))]
    given = ["--data", str(place / "data"), "--runs", str(place / "runs"), "--profile", "smoke", "--jobs", "1"]
    assert train_all.main([*given, "--recipes", str(place / "beta.yaml")]) == 0
    assert [path.stat().st_mtime_ns for path in sorted((place / "runs" / "beta").rglob("weights.ts"))] == times
    verdicts = Staleness(grid_of(place, "alpha", runs=serial.name)).verdicts()
    left = {name for name, verdict in verdicts.items() if not verdict.done}
    assert left == {"alpha/smoke/prepare", "alpha/smoke/validate"}, "what only looks whether all is there"
    assert weights(place / "runs") == before


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        ("grader", {"alpha_spinal_tiny/fold0", "validate"}),
        ("localiser", {"alpha_canal/fold0", "errors_fold0", "alpha_spinal_tiny/fold0", "validate"}),
        ("nothing", set()),
    ],
)
def test_a_changed_recipe_is_followed_by_what_depends_on_it(
    place: Path, tmp_path: Path, first: CompletedProcess[str], part: str, expected: set[str]
) -> None:
    changed = tmp_path / "alpha.yaml"
    text = (place / "alpha.yaml").read_text()
    old, new = {
        "grader": ("hidden: 8", "hidden: 16"),
        "localiser": ("sigma_px: 3", "sigma_px: 4"),
        "nothing": ("", ""),
    }[part]
    changed.write_text(text.replace(old, new))
    recipes = (str(changed), str(place / "beta.yaml"))
    order = GridOrder(data=place / "data", runs=place / "runs", recipes=recipes, profile="smoke", search=False)
    grid = make_grid(order)
    todo = todo_of(grid, Staleness(grid).verdicts())
    assert set(todo) == {f"alpha/smoke/{name}" for name in expected}
    if part == "grader":
        assert "its recipe, its data or the error of its localisers changed" in plan_of(grid, 2)


def test_a_digest_is_that_of_training_itself(place: Path, first: CompletedProcess[str]) -> None:
    grid = grid_of(place, "alpha")
    for name in ("alpha/smoke/alpha_canal/fold0", "alpha/smoke/alpha_spinal_tiny/fold0"):
        kept = json.loads((grid.network_folder(grid.steps[name]) / "done.json").read_text())["digest"]
        assert Staleness(grid).made_of(grid.steps[name]) == kept


def test_another_fold_table_is_another_training(place: Path, first: CompletedProcess[str]) -> None:
    grid = grid_of(place, "alpha")
    path, name = grid.folder("alpha").folds, "alpha/smoke/alpha_canal/fold0"
    kept = path.read_text()
    try:
        path.write_text(kept.replace(",0", ",x").replace(",1", ",0").replace(",x", ",1"))
        assert path.read_text() != kept and not Staleness(grid).verdicts()[name].done
    finally:
        path.write_text(kept)
    assert Staleness(grid).verdicts()[name].done


def test_costs_follow_what_was_measured(place: Path, first: CompletedProcess[str]) -> None:
    grid = grid_of(place, "alpha", "beta")
    costs = Costs(grid)
    seconds = {name: costs.of(step) for name, step in grid.steps.items()}
    assert None not in seconds.values() and min(seconds.values()) > 0
    everything = todo_of(grid, {name: type("V", (), {"done": False}) for name in grid.steps})
    alone, unknown = costs.time_left_s(everything, 1)
    assert unknown == 0 and alone == pytest.approx(sum(seconds.values()))
    assert alone / 2 <= costs.time_left_s(everything, 2)[0] < alone


def test_a_training_that_is_begun_again_costs_all_its_epochs(place: Path, first: CompletedProcess[str]) -> None:
    grid = grid_of(place, "alpha")
    step = grid.steps["alpha/smoke/alpha_canal/fold0"]
    done = grid.network_folder(step) / "done.json"
    kept = done.read_bytes()
    try:
        done.unlink()
        assert Costs(grid).of(step) == 0, "all epochs are done, it is to be exported"
        assert (Costs(grid, {step.name}).of(step) or 0) > 0
    finally:
        done.write_bytes(kept)


def test_a_grid_is_kept_whole(place: Path, tmp_path: Path) -> None:
    places = {"data": place / "data", "runs": tmp_path, "package": tmp_path / "w"}
    order = GridOrder(recipes=("split_and_global", "view_fusion"), profile="smoke", folds=(0, 2), jobs=3, **places)
    grid = make_grid(order)
    again = read_grid(keep_grid(grid))
    assert again == grid and again.steps == grid.steps
    kinds = [step.kind for step in grid.steps.values()]
    assert kinds.count("prepare") == kinds.count("validate") == 2 and kinds[-2:] == ["ensemble", "package"]
    seen: set[str] = set()
    for step in grid.steps.values():
        assert set(step.needs) <= seen, f"{step.name} stands before what it needs"
        seen.add(step.name)


def test_two_runs_of_one_folder_are_refused(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = [
        "--data",
        str(place / "data"),
        "--runs",
        str(tmp_path),
        "--recipes",
        str(place / "alpha.yaml"),
        "--profile",
        "smoke",
    ]
    with alone(tmp_path):
        with pytest.raises(BusyError, match="is in use by process"), alone(tmp_path):
            pass
        assert workflow.main(["run", *given]) == 1 and train_all.main(given) == 1
    said = capsys.readouterr().err
    assert said.count("is in use by process") == 2 and said.count("or name another folder") == 2


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (["status", "--runs", "nowhere"], "holds no grid"),
        (["plan", "--data", "nowhere", "--runs", "r", "--recipes", "split_and_global"], "is no folder"),
        (["plan", "--data", ".", "--runs", "r", "--recipes", "ghost"], "there is no recipe 'ghost'"),
        (["plan", "--data", ".", "--runs", "r", "--recipes", "split_and_global", "--folds", "9"], "folds 0 to 4"),
        (["plan", "--data", ".", "--runs", "r{0}"], "has braces in its name"),
        (["plan", "--data", ".", "--runs", "r", "--executor", "ghost"], "there is no executor 'ghost'"),
        (["check", "--data", "none", "--runs", "r", "--executor", "ghost"], "there is no executor 'ghost'"),
        (["check", "--data", "none", "--runs", "r", "--recipes", "ghost"], "there is no recipe 'ghost'"),
        (["check", "--data", "none", "--runs", "r", "--folds", "5"], "has folds 0 to 4; [5] is none of them"),
        (["plan", "--data", ".", "--runs", "r", "--jobs", "0"], "JOBS is the number of jobs at a time"),
        (
            ["plan", "--data", ".", "--runs", "r", "--recipes", "view_fusion", "view_fusion"],
            "two recipes have one name",
        ),
    ],
)
def test_mistakes_end_in_one_sentence(capsys: pytest.CaptureFixture[str], given: list[str], sentence: str) -> None:
    assert workflow.main(given) == 1
    assert sentence in capsys.readouterr().err


def test_options_are_checked_before_there_are_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--data", str(tmp_path / "data"), "--runs", str(tmp_path / "runs"), "--folds", "0", "--jobs", "2"]
    assert workflow.main(["check", *given]) == 0
    assert not list(tmp_path.iterdir()) and capsys.readouterr() == ("", "")


def test_executors_are_profiles() -> None:
    for name in ("slurm", "kubernetes", "shell"):
        assert (profile_of(name) / "config.yaml").is_file()
    with pytest.raises(ExecutorError, match="there are: kubernetes, shell, slurm"):
        profile_of("ghost")


def changed_copy(place: Path, tmp_path: Path) -> tuple[Path, Grid]:
    """A copy of data and runs, and its grid."""
    shutil.copytree(place / "data", tmp_path / "data")
    shutil.copytree(place / "runs", tmp_path / "runs")
    recipes = (str(place / "alpha.yaml"),)
    order = GridOrder(data=tmp_path / "data", runs=tmp_path / "runs", recipes=recipes, profile="smoke", search=False)
    return next(path for path in sorted((tmp_path / "data" / "train_images").rglob("*.dcm"))), make_grid(order)


def open_jobs(grid: Grid) -> set[str]:
    return {name.removeprefix("alpha/smoke/") for name in todo_of(grid, Staleness(grid).verdicts())}


def test_a_fold_that_is_named_twice_is_one(place: Path) -> None:
    order = GridOrder(data=place / "data", runs=place / "runs", recipes=(str(place / "alpha.yaml"),), folds=(1, 0, 1))
    assert make_grid(order.model_copy(update={"profile": "smoke"})).folds == {"alpha": (1, 0)}


def test_a_changed_image_file_is_followed_by_everything(
    place: Path, tmp_path: Path, first: CompletedProcess[str]
) -> None:
    file, grid = changed_copy(place, tmp_path)
    assert not open_jobs(grid), "a copy is the same"
    images = image_digests(tmp_path / "runs")
    digest = images_digest(grid.order.data, read_tables(grid.order.data), images)
    content = bytearray(file.read_bytes())
    file.touch()
    assert len(open_jobs(grid)) == 5 and "not known before prepare" in plan_of(grid, 1)
    assert images_digest(grid.order.data, read_tables(grid.order.data), images) == digest and not open_jobs(grid)
    content[-1] ^= 1
    file.write_bytes(content)
    assert images_digest(grid.order.data, read_tables(grid.order.data), images) != digest
    assert len(open_jobs(grid)) == 5 and "its recipe, its data or" in plan_of(grid, 1)


@pytest.mark.parametrize("name", ["weights.ts", "artefact.json", "done.json"])
def test_a_damaged_network_is_trained_again(
    place: Path, tmp_path: Path, first: CompletedProcess[str], name: str
) -> None:
    _, grid = changed_copy(place, tmp_path)
    file = tmp_path / "runs" / "alpha" / "smoke" / "alpha_spinal_tiny" / "fold0" / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 255
    file.write_bytes(content)
    assert open_jobs(grid) == {"alpha_spinal_tiny/fold0", "validate"}


def test_a_checkpoint_that_a_kill_left_beside_a_finished_network_is_removed(
    place: Path, tmp_path: Path, first: CompletedProcess[str]
) -> None:
    _, grid = changed_copy(place, tmp_path)
    checkpoint = tmp_path / "runs" / "alpha" / "smoke" / "alpha_spinal_tiny" / "fold0" / "second_step" / "checkpoint.pt"
    checkpoint.parent.mkdir()
    checkpoint.touch()
    assert engine.run(grid, engine.ExecutionOptions()) == 0 and not checkpoint.exists()


def test_a_probe_of_a_lock_is_not_taken_for_its_holder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".lock").touch()
    probe = open(tmp_path / ".lock")
    fcntl.flock(probe, fcntl.LOCK_SH)
    monkeypatch.setattr(time, "sleep", lambda seconds: probe.close() if seconds else None)
    with alone(tmp_path):
        assert probe.closed


def test_a_shell_job_is_running_until_its_script_ends_or_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    scripts = {"success": "exit 0", "failed": "exit 7", "killed": "kill -9 $PPID"}
    for name, command_line in scripts.items():
        Path(name).write_text(f"while [ ! -e go ]; do sleep 0.05; done\n{command_line}\n")
    jobs = {name: shell_jobs.submit(name) for name in scripts}
    assert {shell_jobs.status(job) for job in jobs.values()} == {"running"}
    Path("go").touch()
    until = time.monotonic() + 60
    while (states := [shell_jobs.status(job) for job in jobs.values()]).count("running") and time.monotonic() < until:
        time.sleep(0.05)
    assert states == ["success", "failed", "failed"]


def test_a_killed_job_is_shown_as_such(place: Path, tmp_path: Path, first: CompletedProcess[str]) -> None:
    _, grid = changed_copy(place, tmp_path)
    step = grid.steps["alpha/smoke/validate"]
    entry = grid.own / "journal" / f"{step.name}.json"
    entry.write_text(json.dumps(json.loads(entry.read_text()) | {"state": "running"}))
    grid.stamp(step).unlink()
    assert state_of(grid, step, Staleness(grid).verdicts()[step.name]) == "killed"


def test_a_lost_file_of_the_package_is_noticed(place: Path, tmp_path: Path) -> None:
    order = GridOrder(data=place / "data", runs=tmp_path, recipes=("split_and_global",), package=tmp_path / "package")
    books = Staleness(make_grid(order))
    (tmp_path / "package").mkdir()
    weights = {"file": "a.bin", "offset": 2, "bytes": 3}
    (tmp_path / "package" / "manifest.json").write_text(json.dumps({"artefacts": [{"weights": weights}]}))
    assert books.lost_from_package() == tmp_path / "package" / "a.bin"
    (tmp_path / "package" / "a.bin").write_bytes(b"abcd")
    assert books.lost_from_package() == tmp_path / "package" / "a.bin"
    (tmp_path / "package" / "a.bin").write_bytes(b"abcde")
    assert books.lost_from_package() is None


def test_localisers_that_recipes_share_are_one_step(tmp_path: Path) -> None:
    names = ("split_and_global", "student")
    order = GridOrder(data=tmp_path, runs=tmp_path, recipes=names, profile="smoke", search=False)
    steps = make_grid(order).steps
    localisers = [name for name, step in steps.items() if step.kind == "localiser"]
    assert len(localisers) == 3 and all(name.startswith("split_and_global/smoke/") for name in localisers)
    errors = [steps[f"{name}/smoke/errors_fold0"].needs for name in names]
    assert errors == [tuple(localisers), (*localisers, "student/smoke/prepare")]
    place = {name: number for number, name in enumerate(steps)}
    assert all(place[need] < place[name] for name, step in steps.items() for need in step.needs)
