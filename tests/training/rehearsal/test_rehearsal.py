"""The rehearsal: which networks count as able to learn, what is recorded of them, and what a second run does."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

from tests.support.networks.tiny_grid import write_recipe
from tests.support.networks.tiny_members import grader, localiser
from training import digests
from training.data.samples.batch import Batch
from training.data.tables import read_tables
from training.fitting import FitError
from training.fitting.export import ExportError
from training.phantom.dataset import Options, make_dataset
from training.recipe_schema.load import load_named
from training.rehearsal import __main__ as command
from training.rehearsal import one_network, own_process, results
from training.rehearsal.fixed_batch import FixedBatch, fixed_batch
from training.rehearsal.one_network import Fit, Setting
from training.rehearsal.own_process import in_own_process, quietly
from training.rehearsal.results import FILE, Rehearsed, add_result, read_results, result_digest, training_steps
from training.rehearsal.work import Progress, gflops

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantom")
    make_dataset(folder, Options(train=4, test=0, seed=3, scale=0.25), jobs=1)
    return folder


def lines(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / FILE).read_text().splitlines()]


def test_a_second_run_does_only_what_failed(data, tmp_path, capsys, monkeypatch):
    recipe = write_recipe(tmp_path / "mine.yaml")
    document = yaml.safe_load(recipe.read_text())
    document["backbones"]["tiny"]["learning_rate"] = 1e-12
    recipe.write_text(yaml.safe_dump(document))
    given = ["--out", str(tmp_path / "out"), "--data", str(data), "--profile", "smoke", "--recipes", str(recipe)]
    given += ["--steps", "15"]
    assert command.main(given) == 1
    good, bad = sorted(lines(tmp_path / "out"), key=lambda line: line["failure"])
    assert (good["name"], good["failure"]) == ("mine_canal", "") and good["after"] < 0.5 * good["before"]
    assert good["steps"] < bad["steps"] == 46 and bad["rates"] == [1e-12, 1e-11]
    assert bad["name"] == "mine_spinal_tiny" and "after 46 steps: it was" in bad["failure"]
    printed = capsys.readouterr().out
    assert "1 of 2 networks learned" in printed and f"FAILED mine_spinal_tiny: {bad['failure']}" in printed
    assert "mine_spinal_tiny FAILED" in (tmp_path / "out" / "rehearsal.md").read_text()

    called = []

    def again(pair, setting, device, digest, work):
        called.append(pair[1].member.name)
        return Rehearsed(name=called[-1], digest=digest, device="cpu")

    monkeypatch.setattr(command, "rehearsed", again)
    assert command.main(given) == 0 and called == ["mine_spinal_tiny"]
    assert command.main(given) == 0 and len(called) == 1
    # Other memory, another result.
    assert command.main([*given, "--memory-gb", "2", "--networks", "canal"]) == 0
    assert called[1:] == ["mine_canal"]


def test_a_word_that_names_no_network_is_refused(tmp_path, capsys):
    recipe = write_recipe(tmp_path / "mine.yaml")
    given = ["--out", str(tmp_path), "--data", str(tmp_path), "--profile", "smoke", "--recipes", str(recipe)]
    assert command.main([*given, "--networks", "canal", "heart"]) == 1
    assert capsys.readouterr().err == "rehearsal stopped: no network of mine is named like 'heart'\n"


def test_without_data_a_phantom_is_made_once_after_the_words_were_checked(data, tmp_path, monkeypatch):
    recipe, out = write_recipe(tmp_path / "mine.yaml"), tmp_path / "out"
    given = ["--out", str(out), "--profile", "smoke", "--recipes", str(recipe), "--jobs", "1", "--networks"]
    assert command.main([*given, "heart"]) == 1
    assert not (out / "phantom").exists()

    monkeypatch.setattr(command, "PHANTOM", Options(train=4, test=0, seed=3, scale=0.25))
    monkeypatch.setattr(
        command, "rehearsed", lambda *given: Rehearsed(name="mine_canal", digest=given[3], device="cpu")
    )
    for _ in range(2):
        assert command.main([*given, "canal"]) == 0
    assert read_tables(out / "phantom").fingerprint == read_tables(data).fingerprint


@pytest.mark.parametrize("memory", ["0", "-1", "nan", "inf"])
def test_memory_that_no_gpu_has_is_refused(memory, tmp_path, capsys):
    assert command.main(["--out", str(tmp_path / "out"), "--data", str(tmp_path), "--memory-gb", memory]) == 1
    assert "MEMORY_GB is the memory of the GPU in GB, above 0, not" in capsys.readouterr().err


def test_a_step_that_fits_in_no_parts_is_a_failure(monkeypatch):
    recipe = load_named("split_and_global", "smoke")
    found = {"memory_gib": 3.0, "memory_is": "estimated", "accumulate": 16}
    monkeypatch.setattr(own_process, "in_own_process", lambda *_: dict(found))
    setting = Setting(Path(), Path(), memory_gb=2.0, samples=None, steps=1)
    one = own_process.rehearsed((recipe, recipe.members()[0]), setting, torch.device("cpu"), "digest", 1.0)
    assert one.failure == "a step takes 3 GiB even in 16 parts, and there are 2"


def test_a_process_that_dies_is_a_failure():
    with pytest.raises(RuntimeError, match="its process died"):
        in_own_process(os.abort)


def test_an_export_that_differs_and_an_exception_are_failures(data, tmp_path, monkeypatch):
    recipe = load_named(str(write_recipe(tmp_path / "mine.yaml")), "smoke")
    member = recipe.members()[1]
    setting = Setting(data, tmp_path / "crops", memory_gb=16, samples=3)
    found = quietly(member, setting, CPU)
    assert found["failure"] == "" and (found["samples"], found["published_samples"]) == (3, 4)
    assert found["floor"] < found["after"] < found["constant"] < found["before"]

    def differs(*_):
        raise ExportError("the saved network differs")

    monkeypatch.setattr(one_network, "export", differs)
    assert quietly(member, setting, CPU)["failure"] == "export: the saved network differs"
    monkeypatch.setattr(one_network, "samples_of", lambda *_: FixedBatch(batch_of([[1], [1]])))
    assert quietly(member, setting, CPU)["failure"].startswith("ValueError: all samples of the batch have the same")


LACKING = RuntimeError("\"avg_pool3d_out_frame\" not implemented for 'BFloat16'")


@pytest.mark.parametrize(
    ("has_it", "error", "device"),
    [
        (True, None, "cpu (mixed bfloat16)"),
        (True, LACKING, "cpu"),
        (True, FitError("the loss is nan"), "cpu"),
        (False, None, "cpu"),
    ],
)
def test_a_cpu_rehearses_in_bfloat16_where_it_has_it_and_all_operations_do(
    data, tmp_path, monkeypatch, has_it, error, device
):
    tried = []

    def attempt(recipe, published, batch, device, setting):
        tried.append(device.is_mixed)
        if error and device.is_mixed:
            raise error
        return whole(recipe, published, batch, device, setting)

    whole = one_network._fitted
    monkeypatch.setattr(one_network, "_fitted", attempt)
    monkeypatch.setattr(one_network, "has_bfloat16", lambda: has_it)
    member = load_named(str(write_recipe(tmp_path / "mine.yaml")), "smoke").members()[1]
    found = one_network.rehearse(member, Setting(data, tmp_path / "cache", 16, 3), CPU)
    assert (found["failure"], found["device"]) == ("", device)
    assert tried == ([True, False] if error else [has_it])


def batch_of(severities: list[list[int]]) -> Batch:
    target = torch.tensor(severities)
    return Batch((torch.zeros(len(target), 1, 2, 2),), torch.ones(len(target), 1), target)


def test_the_batch_is_the_one_with_most_different_labels():
    alike, mixed, unknown = batch_of([[0], [0], [0]]), batch_of([[0], [2], [1]]), batch_of([[0], [-100], [-100]])

    class Several(FixedBatch):
        def training(self, epoch):
            yield from (alike, mixed, unknown)

    assert fixed_batch(Several(alike)) is mixed
    with pytest.raises(ValueError, match="same labels"):
        fixed_batch(FixedBatch(unknown))


def test_half_of_the_loss_above_its_floor_must_go_and_more_than_a_constant_answer_takes():
    fit = Fit(before=3.0, floor=1.0, constant=10.0, losses=[3.0, 2.0, 2.0, 2.0])
    assert fit.has_learned
    assert not replace(fit, losses=[3.0, 2.01, 2.0, 2.0]).has_learned
    assert not replace(fit, constant=1.5).has_learned
    assert not replace(fit, constant=1.5, losses=[3.0, 1.46, 1.46, 1.46]).has_learned
    assert replace(fit, constant=1.5, losses=[3.0, 1.44, 1.44, 1.44]).has_learned
    # A constant answer that is as good as any: nothing can be told but half of the loss.
    assert replace(fit, constant=1.03, losses=[3.0, 1.9, 1.9, 1.9]).has_learned, "a constant is all there is to learn"
    assert not replace(fit, constant=1.03, losses=[3.0, 2.1, 2.1, 2.1]).has_learned
    assert not replace(fit, losses=[1.0, 1.0]).has_learned


def test_a_rate_is_too_low_where_less_than_half_of_the_way_is_gone():
    fit = Fit(before=3.0, floor=1.0, constant=10.0)
    assert replace(fit, losses=[3.0, 2.5, 2.5, 2.5]).is_learning
    assert not replace(fit, losses=[3.0, 2.6, 2.5, 2.5]).is_learning


@pytest.mark.parametrize(
    ("loss", "published", "faster"),
    [(2.0, 5, 10), (1.4, 10, 10), (0.9, 4, 0)],
    ids=["leads nowhere", "is on its way", "is reached"],
)
def test_steps_are_at_the_published_rate_first_and_more_where_they_lead_somewhere(monkeypatch, loss, published, faster):
    member, rates = grader(learning_rate=1e-4), []

    def step(run, fit, batch):
        rates.append(run.optimisation.learning_rate)
        fit.losses.append(loss)

    monkeypatch.setattr(one_network, "_step", step)
    fit = Fit(before=2.0, floor=0.0, constant=10.0)
    one_network._fit(SimpleNamespace(optimisation=member.fitting.optimisation), fit, batch_of([[0], [1]]), 5)
    assert rates == [1e-4] * published + [1e-3] * faster and fit.rates == list(dict.fromkeys(rates))


def test_a_line_that_a_kill_cut_off_is_missing_and_spoils_no_other(tmp_path):
    one, two = (Rehearsed(name=name, digest=name, device="cpu", work=1.0) for name in "ab")
    add_result(tmp_path / FILE, one)
    with (tmp_path / FILE).open("a") as stream:
        stream.write('{"name": "c", "dig')
    add_result(tmp_path / FILE, two)
    add_result(tmp_path / FILE, one.model_copy(update={"failure": "later"}))
    assert {name: found.failure for name, found in read_results(tmp_path / FILE).items()} == {"a": "later", "b": ""}


def test_a_result_hangs_on_the_recipe_and_on_the_networks_code(monkeypatch, tmp_path):
    member = grader()
    before = result_digest(member, ())
    assert result_digest(member, ()) == before != result_digest(member, ("cuda",))
    assert result_digest(grader(learning_rate=1e-4), ()) != before
    found = digests._file_of
    read = []
    for file, changes in (("sequences.py", True), ("heat_pointer.py", False), ("map_losses.py", False)):

        def changed(module, file=file):
            path = found(module)
            if path is None or path.name != file:
                return path
            read.append(file)
            copy = tmp_path / file
            copy.write_text(path.read_text() + "\nCHANGED = True\n")
            return copy

        digests.code_digest.cache_clear()
        monkeypatch.setattr(digests, "_file_of", changed)
        assert (result_digest(member, ()) != before) is changes
    digests.code_digest.cache_clear()
    assert read == ["sequences.py"]


def test_steps_of_the_full_training():
    recipe = load_named("slice_experts", "full")
    members = {one.member.name: one for one in recipe.members()}
    # 1,975 studies less a fifth, five levels of each, batches of 32, ten epochs, in the one fold of this backbone.
    assert training_steps(recipe, members["slice_experts_spinal_coatnet"]) == 1580 * 5 // 32 * 10
    assert training_steps(recipe, members["slice_experts_sagittal_t2"]) == 1580 // 16 * 25 * 5
    recipe = load_named("level_sequence", "full")
    # Batches of whole studies, and both fits.
    assert training_steps(recipe, recipe.members()[-1]) == 1580 // 4 * 30 * 5


def test_work_is_counted_with_and_without_values():
    assert gflops(grader(size_px=64)) > 3 * gflops(grader(size_px=32)) > 0
    # A network that leaves blank slices out.
    blank = load_named("slice_transformer", "smoke").members()[0]
    assert gflops(blank) > 0.001
    assert gflops(localiser()) > 0


def test_the_time_left_is_that_of_the_work_left(monkeypatch):
    progress = Progress([0.0, 3.0, 6.0], started=0.0)
    monkeypatch.setattr("time.monotonic", lambda: 60.0)
    assert progress.line("a", "good") == "1/3 a: good, about 5 min left"
    assert progress.line("b", "good") == "2/3 b: good, about 60 s left"
    assert progress.line("c", "good") == "3/3 c: good"


def test_the_table_names_what_differs_from_the_recipe():
    one = Rehearsed(
        name="a",
        digest="",
        device="cpu",
        samples=4,
        published_samples=32,
        accumulate=2,
        published_accumulate=1,
        rates=(1e-4, 1e-3),
        hours=12.0,
    )
    text = results.table_of([one], 16).text()
    assert "4 of 32" in text and "2, not 1" in text and "0.0001 then 0.001" in text and "12 in all" in text
