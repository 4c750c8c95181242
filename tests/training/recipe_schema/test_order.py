"""Which localisers are trained before which: a second wave after its sources and their errors; `start`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.dicom.dicom_factory import write_foreign_dataset
from tests.support.networks.tiny_grid import DOCUMENT, weights
from training import train_all
from training.fitting.preflight import check_recipes
from training.recipe_schema.load import load_named
from training.recipe_schema.order import localisers_in_order, sources_of
from training.recipe_schema.schema import RecipeError
from training.runs import RunFolder, read_artefact
from training.workflow.grid import Grid, GridOrder, make_grid
from training.workflow.plan_and_status import todo_of
from training.workflow.run_step import do_step
from training.workflow.staleness import Staleness

CANAL = DOCUMENT["localisers"]["canal"]
AXIAL = {
    "unit": "level",
    "targets": ["left_subarticular_stenosis", "right_subarticular_stenosis"],
    "inputs": [
        {
            "series": "axial_t2",
            "slices": {"by": "landmark", "near": ["spinal_canal_stenosis"], "count": 1, "max_distance_mm": 10},
            "size_px": 32,
        }
    ],
    "fitting": CANAL["fitting"] | {"augmentation": {"slice_jitter": "localiser"}},
}
LOCALISERS = {
    "axial": AXIAL,
    "later": CANAL | {"fitting": CANAL["fitting"] | {"start": "canal"}},
    "canal": CANAL | {"inputs": [CANAL["inputs"][0] | {"slices": {"by": "middle", "count": 3}}]},
}


def written(folder: Path, name: str = "waves", **changes: Any) -> Path:
    document = DOCUMENT | {"name": name, "localisers": LOCALISERS | changes, "graders": {}, "backbones": {}}
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(json.loads(json.dumps(document)), sort_keys=False))
    return path


def fitted(stage: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return stage | {"fitting": stage["fitting"] | changes}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, and all steps of the recipe done one by one as jobs, and by train_all."""
    folder = tmp_path_factory.mktemp("waves")
    write_foreign_dataset(folder / "data", studies=6, seed=21, test_studies=1)
    grid = grid_of(folder, written(folder))
    for step in grid.steps.values():
        do_step(grid, step, 1)
    given = ["--data", str(folder / "data"), "--runs", str(folder / "serial"), "--profile", "smoke", "--jobs", "1"]
    assert train_all.main([*given, "--recipes", str(folder / "waves.yaml")]) == 0
    return folder


def grid_of(place: Path, recipe: Path) -> Grid:
    return make_grid(GridOrder(data=place / "data", runs=place / "runs", recipes=(str(recipe),), profile="smoke"))


def test_a_localiser_follows_those_that_find_what_it_starts_from(tmp_path: Path) -> None:
    recipe = load_named(str(written(tmp_path)), "smoke")
    names = [one.member.name for one in localisers_in_order(recipe)]
    assert names[0] == "waves_canal" and set(names) == {"waves_canal", "waves_axial", "waves_later"}
    sources = sources_of(recipe, recipe.localiser("axial"))
    assert [one.member.name for one in sources] == ["waves_later", "waves_canal"], "both find the canal"
    assert sources_of(recipe, recipe.localiser("canal")) == []
    plain = load_named(str(written(tmp_path, axial=fitted(AXIAL, augmentation={}))), "smoke")
    assert sources_of(plain, plain.localiser("axial")) == [], "it draws no errors"


def test_those_of_another_route_are_no_sources() -> None:
    recipe = load_named("view_fusion", "full")
    (source,) = sources_of(recipe, recipe.localiser("axial_points"))
    assert source.member.name == "view_fusion_axial_levels", "axial_volume answers in the other route"
    second = load_named("slice_experts", "smoke")
    found = [one.member.name for one in sources_of(second, second.localiser("axial_t2"))]
    assert found == ["slice_experts_sagittal_t2", "slice_experts_axial_levels"]


def test_jobs_wait_for_the_errors_of_their_sources(tmp_path: Path) -> None:
    grid = grid_of(tmp_path, written(tmp_path))
    needs = {name.removeprefix("waves/smoke/"): step.needs for name, step in grid.steps.items()}
    top = "waves/smoke/"
    assert needs["errors_waves_axial_fold0"] == (f"{top}waves_later/fold0", f"{top}waves_canal/fold0")
    assert needs["waves_axial/fold0"] == (f"{top}prepare", f"{top}errors_waves_axial_fold0")
    assert needs["waves_later/fold0"] == (f"{top}prepare", f"{top}waves_canal/fold0")
    seen: set[str] = set()
    for step in grid.steps.values():
        assert set(step.needs) <= seen
        seen.add(step.name)


def test_a_second_wave_is_trained_on_slices_that_are_off_as_its_sources_are(place: Path) -> None:
    folder = RunFolder(place / "runs", load_named(str(place / "waves.yaml"), "smoke"))
    kept = json.loads(folder.source_errors("waves_axial", 0).read_text())
    assert kept["errors"].keys() == {"sagittal_t2"} and kept["made_by"].keys() == {
        "waves_canal_fold0",
        "waves_later_fold0",
    }
    assert kept["errors"]["sagittal_t2"]["count"] == 15, "five levels of the three held-out studies"
    assert not folder.source_errors("waves_canal", 0).exists()


def test_a_localiser_starts_from_another_one_of_its_fold(place: Path) -> None:
    folder = RunFolder(place / "runs", load_named(str(place / "waves.yaml"), "smoke"))
    canal, later = (read_artefact(folder.network_folder(f"waves_{name}", 0)) for name in ("canal", "later"))
    (record,) = later.provenance.published
    assert (record.model, record.source) == ("waves_canal_fold0", "start=canal")
    assert record.sha256 == canal.weights.sha256 != later.weights.sha256
    assert canal.provenance.published == ()


def test_both_ways_of_training_come_to_the_same_networks(place: Path) -> None:
    made = weights(place / "runs")
    assert len(made) == 3 and weights(place / "serial") == made


def test_what_follows_a_changed_source_is_done_again(place: Path, tmp_path: Path) -> None:
    def todo(recipe: Path) -> set[str]:
        grid = grid_of(place, recipe)
        return {name.removeprefix("waves/smoke/") for name in todo_of(grid, Staleness(grid).verdicts())}

    assert todo(place / "waves.yaml") == set()
    everything = {"waves_canal/fold0", "waves_later/fold0", "errors_waves_axial_fold0", "waves_axial/fold0"}
    assert todo(written(tmp_path, canal=fitted(CANAL, sigma_px=4))) == {*everything, "errors_fold0"}
    changed = fitted(AXIAL, sigma_px=4)
    assert todo(written(tmp_path, axial=changed)) == {"waves_axial/fold0", "errors_fold0"}


def test_a_recipe_with_these_localisers_finds_them_done(place: Path) -> None:
    """Those that start from another one and those that draw errors, too."""
    document = DOCUMENT | {"name": "pupil", "localisers_of": "waves"}
    del document["localisers"]
    (place / "pupil.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(document)), sort_keys=False))
    verdicts = Staleness(grid_of(place, place / "pupil.yaml")).verdicts()
    assert {name for name, one in verdicts.items() if name.startswith("waves/") and not one.done} == set()
    assert not verdicts["pupil/smoke/pupil_spinal_tiny/fold0"].done


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"later": fitted(CANAL, start="ghost")},
            "later.fitting.start: there is no localiser 'ghost'; there are: ",
        ),
        ({"canal": fitted(CANAL, start="later")}, "is trained after the one before"),
        ({"canal": fitted(CANAL, start="axial"), "later": CANAL}, "axial → canal|canal → axial"),
        (
            {"canal": fitted(CANAL, network={"name": "roi_maps"}, loss="heatmap_correlation")},
            "later is a deeplab_heatmap, and canal is a roi_maps",
        ),
    ],
)
def test_a_start_that_cannot_be_is_refused(tmp_path: Path, changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RecipeError, match=sentence):
        load_named(str(written(tmp_path, **changes)), "smoke")


def test_a_start_of_other_shapes_is_refused_before_anything_begins(tmp_path: Path) -> None:
    recipe = load_named(str(written(tmp_path, later=fitted(AXIAL, start="canal"))), "smoke")
    with pytest.raises(RecipeError, match=r"localisers\.later\.fitting\.start: .* differs from that of waves_canal"):
        check_recipes([recipe])


def test_graders_start_from_no_other_network(tmp_path: Path) -> None:
    document = json.loads(json.dumps(DOCUMENT)) | {"name": "graded"}
    document["graders"]["spinal"]["fitting"]["start"] = "canal"
    (tmp_path / "graded.yaml").write_text(yaml.safe_dump(document))
    with pytest.raises(RecipeError, match=r"graders\.spinal\.fitting\.start: is for localisers"):
        load_named(str(tmp_path / "graded.yaml"), "smoke")
