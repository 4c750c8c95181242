"""Published weights: from PRETRAINED_DIR, from the hub's cache, or downloaded; and a record of those that were loaded.

PRETRAINED_DIR is a cache of the Hugging Face hub, with folders such as models--timm--resnet18.a1_in1k, as `make
pretrained OUT=DIR` fills it.  Files `<name>.safetensors` (or .pth, .pt, .bin) in it come first, with the name that the
recipe uses, with or without timm's tag: resnet18.safetensors or resnet18.a1_in1k.safetensors.
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

from training.digests import file_digest
from training.networks.parts.errors import NetworkError

PRETRAINED_VARIABLE = "PRETRAINED_DIR"
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
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


class PretrainedError(NetworkError):
    """Published weights that are neither on this machine nor can be downloaded."""

    def __init__(self, offers: Sequence[Offer], reason: str) -> None:
        folder = os.environ.get(PRETRAINED_VARIABLE)
        named = ", ".join(f"'{offer.name}'" for offer in offers[:SHOWN])
        more = f" and {len(offers) - SHOWN} more" if len(offers) > SHOWN else ""
        where = f"{PRETRAINED_VARIABLE}={folder}" if folder else f"a folder ({PRETRAINED_VARIABLE} is not set)"
        super().__init__(
            f"pretrained weights of {named}{more} are not in {where} as {offers[0].name}.safetensors, nor in the hub's "
            f"cache {constants.HF_HUB_CACHE}, nor can they be downloaded ({reason}): where there is network, run "
            f"python -m training.networks.fetch_pretrained --recipes <names> --out DIR, and set "
            f"{PRETRAINED_VARIABLE}=DIR here; "
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
    return next((path for path in candidates if path.is_file()), None)


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
    if folder is not None and path.is_relative_to(folder):
        source = f"{PRETRAINED_VARIABLE}/{path.relative_to(folder)}"
        if path.parent == Path(folder):  # a file of this name may come from anywhere
            licence = f"not stated for this file; that of the weights published as {offer.name}: {offer.licence}"
    return {"model": offer.name, "source": source, "sha256": file_digest(path), "licence": licence}


def _first_line(error: Exception) -> str:
    line = (str(error).strip().splitlines() or [""])[0].rstrip(".:")
    return f"{type(error).__name__}{': ' if line else ''}{line}"
