"""Finding manifests, and loading only what is proven to be what was exported."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
import torch
from tiny_members import PROVENANCE, grader, localiser

from kernels.lumbar.manifest import MANIFEST_FORMAT, Artefact, Manifest
from kernels.lumbar.priors import public_priors
from kernels.lumbar.weights import WeightsError, find_manifest, golden_inputs, load_member, read_manifest
from training import networks
from training.fitting.export import export

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    export(networks.for_member(grader()), grader(), folder, PROVENANCE, seed=5)
    return folder


@pytest.fixture
def artefact(folder) -> Artefact:
    return Artefact.model_validate_json((folder / "artefact.json").read_text())


def changed(artefact: Artefact, **weights: object) -> Artefact:
    return artefact.model_copy(update={"weights": artefact.weights.model_copy(update=weights)})


def marked(folder, text=f'{{"format": "{MANIFEST_FORMAT}"}}'):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "manifest.json").write_text(text)
    return folder / "manifest.json"


def test_golden_inputs_never_change():
    member = grader().member
    tensors = golden_inputs(member, 5)
    assert [tuple(tensor.shape) for tensor in tensors] == [(2, 3, 32, 32), (2, 3, 32, 32), (2, 2)]
    assert (tensors[-1] == 1).all() and all(tensor.dtype == torch.float32 for tensor in tensors)
    assert tensors[0].mean().abs() < 0.05 and tensors[0].std().item() == pytest.approx(1, abs=0.05)
    digest = hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in tensors)).hexdigest()
    assert digest.startswith("145505df62a65a7d")
    unit = member.model_copy(update={"inputs": (member.inputs[0].model_copy(update={"normalisation": "unit"}),)})
    first = golden_inputs(unit, 5, 7)[0]
    assert first.shape[0] == 7 and 0 <= first.min() < 0.01 and 0.99 < first.max() <= 1


@pytest.mark.parametrize("below", ["", "lumbar-weights", "datasets/owner/lumbar-weights", "a/b/c/d/e"])
def test_manifest_is_found_under_any_layout(tmp_path, below):
    path = marked(tmp_path / below)
    marked(tmp_path / "another-dataset", '{"format": "something else"}')
    marked(tmp_path / "broken-dataset", "{")
    assert find_manifest([tmp_path, tmp_path / "not-there", tmp_path]) == path


def test_none_or_several_manifests_are_listed(tmp_path):
    marked(tmp_path / "other", "[]")
    (tmp_path / "competition" / "test_images").mkdir(parents=True)
    marked(tmp_path / "competition" / "test_images" / "1")
    with pytest.raises(WeightsError, match="no manifest.json of this kit.*other/manifest.json.*mounted: .*competition"):
        find_manifest([tmp_path])
    marked(tmp_path / "1" / "2" / "3", f'{{"format": "{MANIFEST_FORMAT}", "x": 1}}')
    with pytest.raises(WeightsError, match="no manifest.json"):
        find_manifest([tmp_path], depth=2)
    marked(tmp_path / "second")
    with pytest.raises(WeightsError, match="several manifests.*second"):
        find_manifest([tmp_path])
    with pytest.raises(WeightsError, match="nothing below .*nowhere"):
        find_manifest([tmp_path / "nowhere"])


def test_manifest_is_checked(tmp_path, artefact):
    good = Manifest(name="m", priors=public_priors(), artefacts=(artefact,), routes=())
    path = tmp_path / "manifest.json"
    path.write_text(good.model_dump_json())
    assert read_manifest(path) == good
    document = json.loads(path.read_text())
    path.write_text(json.dumps({**document, "format_version": 2, "unheard_of": 1}))
    with pytest.raises(WeightsError, match="version 2, this notebook reads up to 1"):
        read_manifest(path)
    document["artefacts"][0]["weights"]["bytes"] = 0
    path.write_text(json.dumps(document))
    with pytest.raises(WeightsError, match=r"artefacts\.0\.weights\.bytes: .*greater than 0"):
        read_manifest(path)
    for text in ("{", "[]"):
        path.write_text(text)
        with pytest.raises(WeightsError, match=str(path)):
            read_manifest(path)
    with pytest.raises(WeightsError, match="cannot be read"):
        read_manifest(tmp_path / "none.json")


def test_a_loaded_member_answers_ordinary_tensors(folder, artefact):
    loaded = load_member(folder, artefact, CPU)
    *views, present = golden_inputs(artefact.member, 5)
    answer = loaded(views, present)
    np.testing.assert_allclose(answer.numpy().ravel(), artefact.weights.golden_output, rtol=1e-5, atol=1e-6)
    answer += 1  # refused by tensors of inference mode
    assert loaded.member == artefact.member and not answer.requires_grad
    assert loaded([view.double() for view in views], present.double()).dtype == torch.float32


def test_members_share_a_file(folder, artefact, tmp_path):
    data = (folder / "weights.ts").read_bytes()
    (tmp_path / "pack.bin").write_bytes(b"x" * 1000 + data + b"y" * 10)
    packed = changed(artefact, file="pack.bin", offset=1000)
    *views, present = golden_inputs(artefact.member, 6)
    assert torch.equal(
        load_member(tmp_path, packed, CPU)(views, present), load_member(folder, artefact, CPU)(views, present)
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"file": "none.ts"}, "No such file"),
        ({"file": "../weights.ts"}, "outside"),
        ({"sha256": "0" * 64}, "another sha256"),
        ({"offset": 7}, "upload is incomplete"),
        ({"golden_output": (0.0,) * 6}, "differs from its golden output by .* on cpu; 0.001 is allowed"),
        ({"golden_output": (0.0,) * 5}, "answers 6 numbers .* instead of 5"),
        ({"golden_seed": 6}, "differs from its golden output"),
    ],
)
def test_what_is_not_as_exported_is_refused_by_name(folder, artefact, change, message):
    with pytest.raises(WeightsError, match=f"^tiny_split_gru: .*{message}"):
        load_member(folder, changed(artefact, **change), CPU)


def test_a_damaged_archive_is_refused_by_name(tmp_path, artefact):
    data = b"no archive"
    (tmp_path / "weights.ts").write_bytes(data)
    broken = changed(artefact, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    with pytest.raises(WeightsError, match="^tiny_split_gru: cannot be loaded on cpu"):
        load_member(tmp_path, broken, CPU)


def test_an_archive_stored_in_half_is_loaded_with_its_tolerance(tmp_path, folder, artefact):
    module = torch.jit.load(folder / "weights.ts").half()
    torch.jit.save(module, str(tmp_path / "weights.ts"))
    data = (tmp_path / "weights.ts").read_bytes()
    assert len(data) < 0.7 * artefact.weights.bytes
    smaller = changed(artefact, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    *views, present = golden_inputs(artefact.member, 6)
    for half in (False, True):
        answer = load_member(tmp_path, smaller, CPU, half=half)(views, present)
        torch.testing.assert_close(answer, load_member(folder, artefact, CPU)(views, present), atol=1e-2, rtol=1e-2)


def test_localisers_are_judged_by_confidence_and_most_places(tmp_path):
    recipe = localiser()
    artefact = export(networks.for_member(recipe), recipe, tmp_path, PROVENANCE, seed=5)
    golden = np.array(artefact.weights.golden_output, np.float32).reshape(2, 2, 4)
    one_jumped = golden.copy()
    one_jumped[0, 0, 1] += 9
    load_member(tmp_path, changed(artefact, golden_output=tuple(one_jumped.ravel().tolist())), CPU)
    three_jumped = golden + np.array([0, 9, 9, 0]) * np.array([1, 1, 1, 0]).reshape(2, 2, 1)
    other_confidence = golden + np.array([0, 0, 0, 0.1]) * np.array([1, 0, 0, 0]).reshape(2, 2, 1)
    for wrong in (three_jumped, other_confidence):
        with pytest.raises(WeightsError, match="tiny_localiser: differs"):
            load_member(tmp_path, changed(artefact, golden_output=tuple(wrong.ravel().tolist())), CPU)
