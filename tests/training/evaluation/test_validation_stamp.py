"""A validation is kept only while all that it was made of is as it was, and all that it left is there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kernels.lumbar.manifest import Manifest
from kernels.lumbar.run.submission import replace_json
from tests.support.networks.tiny_runs import write_runs
from training.data.label_correction import EarlierPredictions
from training.evaluation import validate, validation_stamp
from training.evaluation.metric import Score
from training.evaluation.validate import all_of, fold_manifest
from training.recipe_schema.load import load_named
from training.runs import RunFolder, RunsError

SCORE = Score(0.25, 0.5, 0.5, 0.25, 0.375)
STUDIES = {0: ["1", "2"]}
EARLIER = EarlierPredictions((), np.empty((0, 25, 3)), "earlier")


def known(folder: RunFolder, studies: dict[int, list[str]] | None = None, fingerprint: str = "tables") -> Score | None:
    manifests = {0: fold_manifest(folder, folder.recipe.members(), 0)}
    made = validation_stamp.made_of(manifests, studies or STUDIES, fingerprint)
    return validation_stamp.kept_score(folder, made, manifests)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("runs")
    write_runs(runs, load_named("split_and_global", "smoke"))
    return runs


@pytest.fixture
def folder(runs: Path, tmp_path: Path) -> RunFolder:
    """Finished networks, validated."""
    recipe = load_named("split_and_global", "smoke")
    folder = RunFolder(shutil.copytree(runs, tmp_path / "runs"), recipe)
    folder.out_of_fold(0).write_bytes(b"answers")
    replace_json(folder.score, {"folds": [0], "studies": 2, **asdict(SCORE)})
    replace_json(folder.seconds, {})
    replace_json(folder.domain, {})
    manifests = {0: fold_manifest(folder, recipe.members(), 0)}
    validation_stamp.keep(folder, validation_stamp.made_of(manifests, STUDIES, "tables"), [0])
    return folder


def change_artefact(folder: RunFolder, member: str, **changes: object) -> None:
    path = folder.network_folder(f"split_and_global_{member}", 0) / "artefact.json"
    content = json.loads(path.read_text())
    content["provenance"] |= changes.pop("provenance", {})
    path.write_text(json.dumps(content | changes))


def lose_seconds(folder: RunFolder) -> None:
    folder.seconds.unlink()


def lose_domain(folder: RunFolder) -> None:
    folder.domain.unlink()


def lose_answers(folder: RunFolder) -> None:
    folder.out_of_fold(0).unlink()


def change_answers(folder: RunFolder) -> None:
    folder.out_of_fold(0).write_bytes(b"others")


def break_score(folder: RunFolder) -> None:
    folder.score.write_text('{"final": 0')


def lose_own_score(folder: RunFolder) -> None:
    change_artefact(folder, "foraminal_tiny", provenance={"oof_score": {}})


def doubt_localiser(folder: RunFolder) -> None:
    change_artefact(folder, "sagittal_t1", calibration={"slope": 0.0, "offset": -3.0})


def change_weights(folder: RunFolder) -> None:
    path = folder.network_folder("split_and_global_spinal_tiny", 0) / "artefact.json"
    content = json.loads(path.read_text())
    content["weights"]["sha256"] = "0" * 64
    path.write_text(json.dumps(content))


def change_shape(folder: RunFolder) -> None:
    folder.shape.write_text("null")


def test_nothing_has_changed(folder: RunFolder) -> None:
    assert known(folder) == SCORE
    change_artefact(folder, "foraminal_tiny", provenance={"oof_score": {"foraminal": 0.4}})
    assert known(folder) == SCORE, "a score that validation writes itself is no change"


@pytest.mark.parametrize(
    "change",
    [
        lose_seconds,
        lose_domain,
        lose_answers,
        change_answers,
        break_score,
        lose_own_score,
        doubt_localiser,
        change_weights,
        change_shape,
    ],
)
def test_what_has_changed_on_disk_is_validated_again(folder: RunFolder, change: Callable[[RunFolder], None]) -> None:
    change(folder)
    assert known(folder) is None


def test_other_studies_tables_or_code_are_validated_again(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    assert known(folder, {0: ["1", "3"]}) is None
    assert known(folder, fingerprint="others") is None
    monkeypatch.setattr(validation_stamp.kernels.lumbar, "__path__", [str(folder.runs)])
    assert known(folder) is None


@pytest.mark.parametrize("name", ["weights.ts", "artefact.json"])
def test_a_damaged_network_is_named_and_not_left_out(folder: RunFolder, name: str) -> None:
    path = folder.network_folder("split_and_global_spinal_tiny", 0) / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)
    with pytest.raises(RunsError, match=f"spinal_tiny.*{name}"):
        all_of(fold_manifest(folder, folder.recipe.members(), 0), folder)


def test_localisers_are_measured_again_without_the_calibration_of_an_attempt_that_was_killed(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Measured(Exception):
        pass

    def measure(manifest: Manifest, folder: RunFolder) -> None:
        raise Measured([artefact.calibration for artefact in manifest.artefacts])

    monkeypatch.setattr(validate, "all_of", measure)
    localisers = [one for one in folder.recipe.members() if one.member.role == "localiser"]
    for one in localisers:
        path = folder.network_folder(one.member.name, 0) / "artefact.json"
        replace_json(path, json.loads(path.read_text()) | {"calibration": {"slope": 2.0, "offset": 1.0}})
    tables: Any = None
    with pytest.raises(Measured) as found:
        validate.localiser_errors(folder, localisers, folder.runs, tables, [], {}, 0)
    assert found.value.args == ([None] * len(localisers),)


def test_what_flatters_a_score_is_said() -> None:
    """The epoch chosen on the studies of the score, and labels corrected by networks that had seen theirs."""
    members = load_named("slice_experts", "smoke").members()
    assert validate.cautions(members, None) == []
    (corrected,) = validate.cautions(members, EARLIER)
    assert "slice_experts_spinal_tiny" in corrected and "LABELS= is not nested" in corrected
    assert validate.cautions(load_named("split_and_global", "smoke").members(), EARLIER) == []
    best = [members[0].with_optimisation(keep="best"), *members[1:]]
    (chosen,) = validate.cautions(best, None)
    assert chosen == "the epoch of slice_experts_sagittal_t2 was chosen on the studies of this score (keep: best)"
