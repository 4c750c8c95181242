"""Finding manifests, and reading only what is one."""

from __future__ import annotations

import hashlib
import json

import pytest
import torch

from kernels.lumbar.answers.priors import public_priors
from kernels.lumbar.manifest import MANIFEST_FORMAT, Manifest
from kernels.lumbar.networks.weights import WeightsError, find_manifest, golden_inputs, read_manifest
from tests.support.networks.tiny_members import grader

CPU = torch.device("cpu")


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
