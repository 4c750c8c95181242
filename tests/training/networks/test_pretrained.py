"""Published weights: from a folder, from the hub, or one sentence; noted with what they were."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import save_file

from kernels.lumbar.manifest import PublishedWeights
from kernels.profiles import Profile
from tests.support.networks.tiny_members import TinySamples, grader, localiser
from tests.training.fitting.test_preflight import smoke_of
from training import networks
from training.fitting.loop import fit
from training.fitting.preflight import check_recipes
from training.networks import NetworkError, fetch_pretrained
from training.networks.csn import ChannelSeparated
from training.networks.parts import encoders, published_weights
from training.networks.parts.published_weights import Offer
from training.networks.parts.segmentation import pretrained_encoder
from training.recipe_schema.load import RECIPES, load_named
from training.recipe_schema.schema import MemberRecipe

MODEL, TAGGED = "test_resnet", "test_resnet.r160_in1k"
OFFER = encoders.timm_offer(MODEL)
NOBODY = "http://127.0.0.1:9"


def set_hub(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", address)
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


@pytest.fixture(autouse=True)
def no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing in the hub's cache, and nobody where the hub should be."""
    set_hub(monkeypatch, NOBODY)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.delenv(published_weights.PRETRAINED_VARIABLE, raising=False)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty PRETRAINED_DIR."""
    path = tmp_path / "pretrained"
    path.mkdir()
    monkeypatch.setenv(published_weights.PRETRAINED_VARIABLE, str(path))
    return path


def write_weights(path: Path, model: str = MODEL) -> dict[str, torch.Tensor]:
    """A real file of weights that nobody trained."""
    path.parent.mkdir(parents=True, exist_ok=True)
    weights: dict[str, torch.Tensor] = timm.create_model(model).state_dict()
    save_file(weights, path) if path.suffix == ".safetensors" else torch.save(weights, path)
    return weights


def pretrained(backbone: str = MODEL) -> MemberRecipe:
    recipe = grader(backbone=backbone, epochs=1)
    assert recipe.backbone is not None
    return recipe.model_copy(update={"backbone": recipe.backbone.model_copy(update={"pretrained": True})})


SNAPSHOT = "models--timm--test_resnet.r160_in1k/snapshots/abc"


@pytest.mark.parametrize(
    "file",
    [f"{MODEL}.safetensors", f"{TAGGED}.safetensors", f"{MODEL}.pth", f"{TAGGED}.bin", f"{SNAPSHOT}/model.safetensors"],
)
def test_graders_start_from_the_folder(folder, file):
    source = write_weights(folder / file)
    if file.startswith(SNAPSHOT):
        reference = (folder / SNAPSHOT).parents[1] / "refs" / "main"
        reference.parent.mkdir()
        reference.write_text("abc")
    with published_weights.noted() as notes:
        net = encoders.slice_encoder(MODEL, size_px=32, pretrained=True)
    assert torch.equal(net.state_dict()["layer4.0.conv1.weight"], source["layer4.0.conv1.weight"])
    # The weights of the three colours are summed for the one grey channel.
    grey = source["conv1.0.weight"].sum(1, keepdim=True)
    torch.testing.assert_close(net.state_dict()["conv1.0.weight"], grey)
    sha256 = hashlib.sha256((folder / file).read_bytes()).hexdigest()
    licence = "apache-2.0"
    if "/" not in file:  # named by hand: its licence is not known from its name
        licence = f"not stated for this file; that of the weights published as {MODEL}: {licence}"
    expected = {"model": MODEL, "source": f"PRETRAINED_DIR/{file}", "sha256": sha256, "licence": licence}
    assert notes == [expected] and PublishedWeights.model_validate(expected)


@pytest.mark.parametrize("decoder", ["deeplab", "unet"])
@pytest.mark.parametrize("encoder", ["resnet18", f"tu-{MODEL}"])
def test_localisers_start_from_the_folder(folder, encoder, decoder):
    source = write_weights(folder / f"{encoder.removeprefix('tu-')}.safetensors", encoder.removeprefix("tu-"))
    options = {"encoder": encoder, "decoder": decoder, "pretrained": True}
    net = networks.build("deeplab_heatmap", inputs=(5,), size_px=32, targets=2, **options)
    state = net.network.encoder.state_dict()
    last = next(name for name in state if name.endswith("layer4.0.conv1.weight"))
    assert torch.equal(state[last], source["layer4.0.conv1.weight"])
    assert net.outputs(torch.zeros(2, 5, 32, 32), torch.ones(2, 1)).shape == (2, 2, 32, 32)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (cut, "the file is damaged"),
        (lambda path: path.write_text("<html>Not found</html>"), "the file is damaged"),
        (lambda path: path.write_bytes(b""), "the file is damaged"),
        (lambda path: write_weights(path, "test_convnext"), "they are another network's"),
    ],
    ids=["cut", "a web page", "empty", "another network"],
)
def test_a_spoilt_file_is_named_in_one_sentence(folder, suffix, spoil, why):
    path = folder / f"{MODEL}{suffix}"
    write_weights(path)
    spoil(path)
    for make in (
        lambda: encoders.slice_encoder(MODEL, size_px=32, pretrained=True),
        lambda: pretrained_encoder(f"tu-{MODEL}", 3, 3, 32),
        lambda: networks.for_member(pretrained()),
    ):
        with pytest.raises(NetworkError) as caught:
            make()
        said = str(caught.value)
        assert said.startswith(f"{path} does not hold the weights of '{MODEL}' ({why}): ") and "\n" not in said


def test_foreign_weights_of_other_libraries_networks_are_named(folder):
    for name in ("resnet18", "csn_tiny"):
        write_weights(folder / f"{name}.safetensors")
    with pytest.raises(NetworkError, match="'resnet18' .they are another network's"):
        pretrained_encoder("resnet18", 3, 5, 32)
    with pytest.raises(NetworkError, match="'csn_tiny' .they are another network's"):
        ChannelSeparated("csn_tiny", True)


def test_what_is_in_the_folder_is_read_before_training(folder):
    write_weights(folder / f"{MODEL}.safetensors", "test_convnext")
    recipe = smoke_of("split_and_global", "{graders: {spinal: {}}, backbones: {tiny: {timm: test_resnet}}}")
    tiny = recipe.backbones["tiny"].model_copy(update={"pretrained": True})
    recipe = recipe.model_copy(update={"backbones": {"tiny": tiny}})
    with pytest.raises(NetworkError, match="they are another network's"):
        check_recipes([recipe])
    write_weights(folder / f"{MODEL}.safetensors")
    check_recipes([recipe])


def test_what_two_networks_need_is_named_once():
    offer = encoders.timm_offer(MODEL)
    said = str(published_weights.PretrainedError([offer, offer], "any reason"))
    assert f"pretrained weights of '{MODEL}' are not in" in said


def test_without_folder_and_network_one_sentence_comes_at_once():
    recipe = smoke_of("split_and_global", "{graders: {spinal: {}}}")
    backbones = {
        name: recipe.backbones["tiny"].model_copy(update={"timm": name, "pretrained": True})
        for name in (MODEL, "test_convnext", "test_efficientnet")
    }
    spinal = recipe.graders["spinal"].model_copy(update={"backbones": tuple(backbones)})
    recipe = recipe.model_copy(update={"backbones": backbones, "graders": {"spinal": spinal}})
    started = time.monotonic()
    with pytest.raises(NetworkError) as caught:
        check_recipes([recipe])
    assert time.monotonic() - started < 10
    said = str(caught.value)
    assert "pretrained weights of 'test_resnet', 'test_convnext', 'test_efficientnet' are not in a folder" in said
    for part in (
        "PRETRAINED_DIR is not set",
        "the network cannot be reached",
        "run python -m training.networks.fetch_pretrained",
    ):
        assert part in said
    assert said.endswith("set pretrained: false") and "\n" not in said


def test_weights_that_nobody_offers_are_wanted_in_the_folder(folder):
    with pytest.raises(NetworkError, match=f"'csn_tiny' are not in PRETRAINED_DIR={folder} .*no download is published"):
        ChannelSeparated("csn_tiny", True)


@pytest.mark.parametrize("profile", ["smoke", "bench"])
def test_small_profiles_start_from_nothing(profile: Profile):
    for path in RECIPES.glob("*.yaml"):
        for entry in load_named(path.stem, profile).members():
            network = entry.fitting.network
            asked = network.options.get("pretrained", "pretrained" in networks.options_of(network.name))
            assert not (entry.backbone.pretrained if entry.backbone else asked), entry.member.name


def test_what_a_fit_started_from_is_known_after_it_was_continued(folder, tmp_path):
    write_weights(folder / f"{MODEL}.safetensors")
    recipe = pretrained()
    whole = fit(recipe, TinySamples(recipe), tmp_path / "run", torch.device("cpu"), seed=1)
    assert [note["model"] for note in whole.published] == [MODEL]
    (folder / f"{MODEL}.safetensors").unlink()
    assert fit(recipe, TinySamples(recipe), tmp_path / "run", torch.device("cpu"), seed=1).published == whole.published
    scratch = grader(epochs=1)
    assert fit(scratch, TinySamples(scratch), tmp_path / "scratch", torch.device("cpu"), seed=1).published == ()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A hub with one model, and a list of what it was asked for."""
    file = tmp_path / "at_hub" / "model.safetensors"
    write_weights(file)
    content, asked = file.read_bytes(), []

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer(with_content=False)

        def do_GET(self) -> None:
            self.answer(with_content=True)

        def answer(self, with_content: bool) -> None:
            asked.append(f"{self.command} {self.path}")
            there = self.path == f"/{OFFER.repository}/resolve/main/model.safetensors"
            self.send_response(200 if there else 404)
            if not there:
                self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", str(len(content) if there else 0))
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("X-Repo-Commit", "0" * 40)
            self.end_headers()
            if there and with_content:
                self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    Thread(target=server.serve_forever, daemon=True).start()
    set_hub(monkeypatch, f"http://127.0.0.1:{server.server_port}")
    yield asked
    server.shutdown()
    server.server_close()


def test_with_network_the_hub_is_asked_once(hub):
    with published_weights.noted() as notes:
        first = encoders.slice_encoder(MODEL, size_px=32, pretrained=True).state_dict()
    (note,) = notes
    assert note["source"] == "timm/test_resnet.r160_in1k" and len([one for one in hub if one.startswith("GET")]) == 1
    hub.clear()
    again = encoders.slice_encoder(MODEL, size_px=32, pretrained=True).state_dict()
    assert hub == [] and all(torch.equal(value, again[name]) for name, value in first.items())


def test_a_model_that_the_hub_does_not_have_is_named(hub):
    with pytest.raises(NetworkError, match=r"'test_convnext' .*nor can they be downloaded \(.*NotFound"):
        encoders.slice_encoder("test_convnext", size_px=32, pretrained=True)


def test_fetching_fills_the_folder_and_resumes(hub, folder, monkeypatch, capsys):
    monkeypatch.setattr(fetch_pretrained, "offers_of", lambda names, profile: [OFFER])
    given = ["--recipes", "any", "--out", str(folder)]
    assert fetch_pretrained.main(given) == 0
    path = published_weights.local_file(OFFER)
    assert path is not None and path.is_relative_to(folder)
    assert capsys.readouterr().out == f"{path} ({path.stat().st_size / 1e6:.0f} MB, licence apache-2.0)\n"
    hub.clear()
    assert fetch_pretrained.main(given) == 0 and hub == []
    cut(path.resolve())
    with pytest.raises(NetworkError, match=f"the file is damaged.: remove {path.resolve()}, "):
        encoders.slice_encoder(MODEL, size_px=32, pretrained=True)
    assert fetch_pretrained.main(given) == 0 and len([one for one in hub if one.startswith("GET")]) == 1
    set_hub(monkeypatch, NOBODY)
    encoders.slice_encoder(MODEL, size_px=32, pretrained=True)
    assert fetch_pretrained.main(given) == 0
    monkeypatch.setattr(
        fetch_pretrained, "offers_of", lambda names, profile: [OFFER, Offer("absent", repository="some/absent")]
    )
    assert fetch_pretrained.main(given) == 1
    assert "fetch stopped: pretrained weights of 'absent'" in capsys.readouterr().err


def test_networks_say_what_they_would_start_from_without_loading_it():
    options = {"encoder": "resnet18", "pretrained": True}
    assert [offer.repository for offer in networks.check(localiser(options=options))] == ["smp-hub/resnet18.imagenet"]
    assert networks.check(pretrained()) == [OFFER]
    assert networks.check(grader()) == []
