"""What the search reads, leaves out and refuses; and its command line."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from kernels.lumbar.answers.priors import public_priors
from kernels.lumbar.labels import GROUPS, ROWS
from tests.training.ensemble.test_ensemble_search import labels_of
from training.data.out_of_fold import answers_of, rows_of, together, write
from training.ensemble.find import main
from training.ensemble.search import SearchError
from training.ensemble.sources import read_costs, recipe_weights_of, usable
from training.evaluation.predictor import Prediction
from training.evaluation.validate import answer_table
from training.recipe_schema.load import RECIPES, load_named
from training.recipe_schema.schema import Recipe
from training.runs import RunFolder

FIRST, SECOND = "slice_transformer", "view_fusion"
STUDIES = 24


def recipe_of(name: str, profile: str = "smoke") -> Recipe:
    return load_named(name, profile)  # type: ignore[arg-type]


def all_labels(studies: int = STUDIES) -> pd.DataFrame:
    values = labels_of(studies, np.random.default_rng(0))
    return pd.DataFrame(values, index=[f"{study:03d}" for study in range(studies)], columns=list(ROWS))


def write_recipe(runs: Path, name: str, folds: tuple[int, ...] = (0, 1)) -> Path:
    """A finished recipe (name or path) of two folds of 12 studies each, whose networks are only spoken of."""
    recipe, labels, random = recipe_of(name), all_labels(), np.random.default_rng(len(name))
    name = recipe.name
    profile = runs / name / "smoke"
    for fold in folds:
        parts = []
        for one in recipe.members():
            job = RunFolder(runs, recipe).network_folder(one.member.name, fold)
            job.mkdir(parents=True, exist_ok=True)
            made = {"resolved_recipe": one.model_dump(mode="json"), "oof_score": {"spinal": 0.5}}
            (job / "artefact.json").write_text(json.dumps({"provenance": made}))
            (job / "done.json").write_text("{}")
            if one.member.role == "grader":
                said = {
                    study: {
                        row: 2 * np.eye(3)[max(int(labels.loc[study, row]), 0)] + random.normal(size=3) for row in ROWS
                    }
                    for study in labels.index[fold::2]
                }
                parts.append(rows_of(name, one.pooled_as, name, fold, said, labels))
        write(profile / f"out_of_fold{fold}.parquet", pd.concat(parts))
    graders = [one.pooled_as for one in recipe.members() if one.member.role == "grader"]
    write_seconds(profile, dict.fromkeys(graders, 0.25), {name: 0.5})
    (runs / name / "priors.json").write_text(json.dumps(public_priors()))
    return profile


def write_seconds(profile: Path, members: dict[str, float], located: dict[str, float]) -> None:
    (profile / "seconds.json").write_text(json.dumps({"members": members, "located": located}))


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    folder = tmp_path / "runs"
    for name in (FIRST, SECOND):
        write_recipe(folder, name)
    return folder


def run(runs: Path, *more: str) -> int:
    return main(["--runs", str(runs), "--out", str(runs / "ensemble.json"), "--profile", "smoke", *more])


def refused(runs: Path, capsys: pytest.CaptureFixture[str], *more: str) -> str:
    assert run(runs, *more) == 1
    said = capsys.readouterr()
    assert said.err.count("\n") == 1 and not said.out and not (runs / "ensemble.json").exists()
    return said.err


def found_in(runs: Path, *more: str) -> dict:
    assert run(runs, *more) == 0
    return json.loads((runs / "ensemble.json").read_text())


def test_every_finished_recipe_takes_part(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = found_in(runs)
    assert found["studies"] == STUDIES and found["budget"] is None and found["unit"] == "seconds"
    assert {name.partition("/")[0] for name in found["members"]} == {FIRST, SECOND}
    assert {f"recipe {FIRST}", f"recipe {SECOND}", "simple_mean", "best_recipe"} <= set(found["scores"])
    printed = capsys.readouterr().out
    assert found["reason"] in printed and str(runs / "ensemble.json") in printed
    used = sorted({name.partition("/")[0] for name in found["order"]})
    assert f"make package RUNS={runs} PROFILE=smoke RECIPES=" in printed and " ".join(used) in printed
    assert "FOLDS='0 1'" in printed and f"{found['seconds']:.2f} seconds a study, no budget" in printed


@pytest.mark.parametrize("named", [(f"{FIRST},{SECOND}",), (FIRST, SECOND), (f"{FIRST},", SECOND)])
def test_recipes_are_named_with_commas_or_spaces(runs: Path, named: tuple[str, ...]) -> None:
    assert len({name.partition("/")[0] for name in found_in(runs, "--recipes", *named)["members"]}) == 2


def test_a_name_that_is_no_recipe_is_told_those_that_are(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(runs, capsys, "--recipes", "nosuch")
    assert "there is no recipe 'nosuch'" in said and FIRST in said


def test_members_that_never_met_on_a_study_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_recipe(tmp_path, FIRST, folds=(0,))
    write_recipe(tmp_path, SECOND, folds=(1,))
    said = refused(tmp_path, capsys)
    assert "0 of 24 studies are answered by all members" in said
    assert f"{FIRST} answers only 12 of 24 studies, {SECOND} answers only 12 of 24 studies" in said


def test_the_studies_count_that_all_members_were_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_recipe(tmp_path, FIRST)
    write_recipe(tmp_path, SECOND, folds=(1,))
    assert found_in(tmp_path)["studies"] == 12
    printed = capsys.readouterr().out
    assert "only the 12 of 24 studies count that all members answer" in printed
    assert f"{SECOND} answers only 12 of 24 studies" in printed and f"{FIRST} answers" not in printed
    assert "FOLDS=1" in printed


def change_table(runs: Path, name: str, change) -> None:
    path = runs / name / "smoke" / "out_of_fold0.parquet"
    change(pd.read_parquet(path)).to_parquet(path)


def silenced(table: pd.DataFrame) -> pd.DataFrame:
    first = (table["member"] == f"{FIRST}_spinal_tiny") & (table["study"] != "000")
    return table.assign(**{name: table[name].where(~first) for name in ("normal_mild", "moderate", "severe")})


def test_a_member_that_is_often_silent_is_named(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change_table(runs, FIRST, silenced)
    assert found_in(runs)["studies"] == STUDIES
    assert f"{FIRST}/{FIRST}_spinal_tiny answers only 13 of 24 studies" in capsys.readouterr().out


def test_a_member_that_was_shown_one_study_is_not_fitted_on(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for fold in (0, 1):
        path = runs / FIRST / "smoke" / f"out_of_fold{fold}.parquet"
        table = pd.read_parquet(path)
        member = table["member"] == f"{FIRST}_spinal_tiny"
        table[~member | (table["study"].isin(["000", "001"]))].to_parquet(path)
    said = refused(runs, capsys)
    assert "2 of 24 studies" in said and f"{FIRST}/{FIRST}_spinal_tiny answers only 2 of 24 studies" in said


def test_a_model_of_one_backbone_a_fold_is_one_member() -> None:
    recipe, labels = recipe_of("slice_experts", "full"), all_labels(40)
    tables, trained = [], set()
    for fold in range(recipe.folds):
        logits = {f"{one.member.name}_fold{fold}": {row: np.ones(3) for row in ROWS} for one in recipe.members()}
        studies = list(labels.index[fold :: recipe.folds])
        told = {study: Prediction(study, np.ones((25, 3)), [], {}, logits, []) for study in studies}
        tables.append(answer_table(recipe.name, recipe.members(), fold, told, labels))
        trained |= {(f"{recipe.name}/{one.pooled_as}", fold) for one in recipe.members() if one.is_trained_in(fold)}
    answers = answers_of(together(tables))
    assert set(answers.members) == set(recipe_weights_of(recipe).weights)
    assert len({one.member.name for one in recipe.members() if one.pooled_as == f"{recipe.name}_spinal"}) == 5
    in_all = [name for name in answers.members if all((name, fold) in trained for fold in range(recipe.folds))]
    assert f"{recipe.name}/{recipe.name}_spinal" in in_all
    assert not np.isnan(answers.only(members=in_all).logits).any()
    whole, remark = usable(answers.only(members=in_all))
    assert len(whole.studies) == 40 and not remark
    for name in set(answers.members) - set(in_all):
        assert f"{name} answers only 32 of 40 studies" in usable(answers)[1]


def spoil(change):
    def apply(runs: Path) -> None:
        path = runs / FIRST / "smoke" / f"{FIRST}_spinal_tiny" / "fold0" / "artefact.json"
        content = json.loads(path.read_text())
        change(content["provenance"])
        path.write_text(json.dumps(content))

    return apply


CHANGES = [
    (spoil(lambda made: made["resolved_recipe"]["fitting"].update(sigma_px=7.5)), "another state of its recipe"),
    (spoil(lambda made: made["oof_score"].clear()), "trained again since it answered"),
    (lambda runs: (runs / FIRST / "smoke" / f"{FIRST}_spinal_tiny" / "fold1" / "done.json").unlink(), "unfinished"),
    (lambda runs: change_table(runs, FIRST, lambda table: table.replace(f"{FIRST}_spinal_tiny", "x")), "another state"),
    (lambda runs: [path.unlink() for path in (runs / FIRST / "smoke").glob("*.parquet")], "no out-of-fold answers"),
]


@pytest.mark.parametrize(("change", "reason"), CHANGES)
def test_a_recipe_whose_answers_are_stale_is_left_out_or_refused(
    runs: Path, capsys: pytest.CaptureFixture[str], change, reason: str
) -> None:
    change(runs)
    said = refused(runs, capsys, "--recipes", FIRST, SECOND)
    assert reason in said and FIRST in said and "make train-all" in said
    assert {name.partition("/")[0] for name in found_in(runs)["members"]} == {SECOND}
    printed = capsys.readouterr().out
    assert f"left out: {FIRST} " in printed and reason in printed


def test_the_budget_is_kept_and_told(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = found_in(runs, "--seconds", "1.5", "--average", "probabilities")
    assert found["seconds"] <= 1.5 and found["budget"] == 1.5 and found["costs"]["simple_mean"] > 1.5
    printed = capsys.readouterr().out
    assert "over the budget" in printed and f"{found['seconds']:.2f} seconds a study, budget 1.5" in printed
    (runs / "ensemble.json").unlink()
    assert "no member fits in 0.5 seconds a study: the cheapest needs 0.75" in refused(runs, capsys, "--seconds", "0.5")


@pytest.mark.parametrize("text", ["nan", "inf", "abc", "1,5", "0", "-1", "2s"])
def test_a_budget_is_a_number_of_seconds(runs: Path, capsys: pytest.CaptureFixture[str], text: str) -> None:
    assert f"SECONDS_A_STUDY is a number above 0, such as 2.5, not '{text}'" in refused(runs, capsys, "--seconds", text)


def test_without_measured_seconds_networks_are_counted_and_no_budget_is_kept(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (runs / SECOND / "smoke" / "seconds.json").unlink()
    said = refused(runs, capsys, "--seconds", "2")
    assert f"no measured seconds of {SECOND}/" in said and "make train-all measures them" in said
    found = found_in(runs)
    assert found["unit"] == "networks"
    printed = capsys.readouterr().out
    assert "every network counts as 1" in printed and "networks a study, no budget" in printed


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("kind", ["members", "located"])
def test_seconds_that_cannot_be_are_refused(tmp_path: Path, kind: str, value: float) -> None:
    members, located = {"m": 1.0}, {"a": 1.0}
    (members if kind == "members" else located).update(m=value)
    write_seconds(tmp_path, members, located)
    with pytest.raises(SearchError, match=rf"seconds.json: {kind}.m is {value}, and seconds are 0 or more"):
        read_costs([tmp_path / "seconds.json"], ["a/m"])


def test_the_result_goes_where_it_was_asked_for(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = runs / "new" / "folder" / "found.json"
    assert main(["--runs", str(runs), "--profile", "smoke", "--out", str(out)]) == 0
    assert json.loads(out.read_text())["order"] and f"ENSEMBLE={out}" in capsys.readouterr().out
    assert main(["--runs", str(runs), "--profile", "smoke", "--out", str(out.parent)]) == 1
    said = capsys.readouterr().err
    assert f"{out.parent} is a folder: name a file" in said and said.count("\n") == 1
    assert [path.name for path in out.parent.iterdir()] == ["found.json"] and not list(runs.glob("new/.*"))


def test_answers_at_true_landmarks_are_left_out(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def with_truth(table: pd.DataFrame) -> pd.DataFrame:
        return pd.concat([table, table.assign(located="truth")])

    for fold in (0, 1):
        path = runs / FIRST / "smoke" / f"out_of_fold{fold}.parquet"
        with_truth(pd.read_parquet(path)).to_parquet(path)
    assert not any(name.startswith("truth/") for name in found_in(runs)["members"])
    assert "members given true landmarks are left out (4): Kaggle has none" in capsys.readouterr().out


def test_what_is_missing_is_said_in_one_sentence(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "make train-all first" in refused(runs / "nowhere", capsys)
    (runs / SECOND / "smoke" / "seconds.json").write_text("[]")
    assert "seconds.json does not hold seconds" in refused(runs, capsys)
    (runs / SECOND / "priors.json").write_text(json.dumps(public_priors() | {ROWS[0]: [1, 0, 0]}))
    assert "their priors differ" in refused(runs, capsys)
    (runs / SECOND / "priors.json").unlink()
    assert "has no priors of the 25 rows" in refused(runs, capsys)
    (runs / SECOND / "smoke" / "out_of_fold0.parquet").write_text("")
    assert "out_of_fold0.parquet cannot be read" in refused(runs, capsys)


def test_a_recipe_stands_with_its_own_weights() -> None:
    recipe = recipe_of("split_and_global")
    own = recipe_weights_of(recipe)
    assert own.average == recipe.average
    graders = [one for one in recipe.members() if one.member.role == "grader"]
    assert own.weights == {f"split_and_global/{one.pooled_as}": one.weight for one in graders}
    assert all(set(its) <= set(GROUPS) for its in own.weights.values())


def test_runs_of_no_recipe_of_this_project_are_told(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (runs / FIRST).rename(runs / "own")
    found_in(runs)
    assert "own: no recipe of this project, so make package will not take it" in capsys.readouterr().out


def test_a_recipe_that_was_named_by_its_file_is_named_so_in_the_next_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "my own" / f"{FIRST}.yaml"
    mine.parent.mkdir()
    mine.write_text((RECIPES / f"{FIRST}.yaml").read_text())
    write_recipe(tmp_path / "runs", FIRST)
    found_in(tmp_path / "runs", "--recipes", str(mine))
    assert f"RECIPES={shlex.quote(str(mine))} " in capsys.readouterr().out


def test_an_ensemble_of_very_few_studies_is_doubted(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found_in(runs)
    assert "little more than chance" not in capsys.readouterr().out
    for name in (FIRST, SECOND):
        for path in (runs / name / "smoke").glob("*.parquet"):
            table = pd.read_parquet(path)
            table[table["study"].isin(["000", "001", "002", "003", "004", "005"])].to_parquet(path)
    assert found_in(runs)["studies"] == 6
    assert "fitted on 6 studies alone: weights and scores are little more than chance" in capsys.readouterr().out
