"""Published weights: in a folder, in the hub's cache, or to be downloaded; and a note of those that were used.

The folder is named by the environment variable PRETRAINED_DIR and holds `<name>.safetensors` (or .pth, .pt, .bin), with
the name that the recipe uses, with or without timm's tag: resnet18.safetensors or resnet18.a1_in1k.safetensors.  It may
be a cache of the hub as well, with folders such as models--timm--resnet18.a1_in1k.  fetch_pretrained.py fills it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

from training.networks.parts.errors import NetworkError

PRETRAINED_VARIABLE = "PRETRAINED_DIR"
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
HUB_FILES = ("model.safetensors", "pytorch_model.bin")
# A network that lets nothing through must not be waited for by every model in turn.
TIMEOUT_S = 10.0
SHOWN = 8
# What the hub's client raises without a network; of its own errors the first parent is its HTTP library's.
UNREACHABLE: tuple[type[Exception], ...] = (OSError, *HfHubHTTPError.__bases__)


@dataclass(frozen=True)
class Offer:
    """Weights that somebody offers for a model."""

    name: str
    """As the recipe has it."""
    also: str = ""
    """Another name that its file may have in the folder."""
    repository: str = ""
    """Of the hub; empty where it is in none."""
    revision: str | None = None
    files: tuple[str, ...] = HUB_FILES
    """Names that it may have in the repository."""
    url: str = ""
    """Where it is to be downloaded if no repository holds it."""
    licence: str = "not stated"


class PretrainedError(NetworkError):
    """Published weights that are neither here nor to be downloaded."""

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


_listing: list[Offer] | None = None
_notes: list[dict[str, str]] | None = None


@contextmanager
def listed() -> Iterator[list[Offer]]:
    """Networks made meanwhile only say which weights they would start from."""
    global _listing
    before, _listing = _listing, []
    try:
        yield _listing
    finally:
        _listing = before


@contextmanager
def noted() -> Iterator[list[dict[str, str]]]:
    """A note of all weights that are loaded meanwhile: fields of kernels.lumbar.manifest.PublishedWeights."""
    global _notes
    before, _notes = _notes, []
    try:
        yield _notes
    finally:
        _notes = before


def weights_of(offer: Offer) -> Path | None:
    """The file of published weights, downloaded if need be; None while networks are only listed.

    Raises PretrainedError where it is neither here nor to be had.
    """
    if _listing is not None:
        if offer not in _listing:
            _listing.append(offer)
        return None
    path = here(offer)
    if path is None:
        reachable([offer])
        path = downloaded(offer)
    if _notes is not None and (note := _note(offer, path)) not in _notes:
        _notes.append(note)
    return path


def here(offer: Offer) -> Path | None:
    """The file in the folder or in the hub's cache, if it is there."""
    if folder := os.environ.get(PRETRAINED_VARIABLE):
        names = [name for name in (offer.also, offer.name) if name]
        flat = [Path(folder) / f"{name}{suffix}" for name in names for suffix in SUFFIXES]
        if found := next((path for path in flat if path.is_file()), None):
            return found
    for cache in [folder, None] if folder else [None]:
        for file in offer.files if offer.repository else ():
            path = try_to_load_from_cache(offer.repository, file, cache_dir=cache, revision=offer.revision)
            if isinstance(path, str):
                return Path(path)
    kept = _kept(offer)
    return kept if kept is not None and kept.is_file() else None


def reachable(offers: Sequence[Offer]) -> None:
    """Ask for each, without downloading it.  Raises PretrainedError, at once where nobody answers."""
    for number, offer in enumerate(offers):
        try:
            if not offer.repository and not offer.url:
                raise PretrainedError([offer], "nobody offers it for download")
            if _file_at_hub(offer) is None:
                request = urllib.request.Request(offer.url, method="HEAD")
                urllib.request.urlopen(request, timeout=TIMEOUT_S).close()
        except HfHubHTTPError as error:
            raise PretrainedError([offer], _first_line(error)) from error
        except UNREACHABLE as error:
            raise PretrainedError(offers[number:], f"the network cannot be reached: {_first_line(error)}") from error


def downloaded(offer: Offer, folder: Path | None = None) -> Path:
    """Download into the hub's cache or a folder; what is there in part is continued.  Raises PretrainedError."""
    try:
        file = _file_at_hub(offer)
        if file is not None:
            where: Any = {"local_dir": folder} if folder else {}
            return Path(hf_hub_download(offer.repository, file, revision=offer.revision, **where))
        kept = _kept(offer)
        if kept is None:
            raise PretrainedError([offer], "nobody offers it for download")
        kept = kept if folder is None else folder / kept.name
        kept.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(offer.url, str(kept), progress=False)
        return kept
    except UNREACHABLE as error:
        raise PretrainedError([offer], _first_line(error)) from error


def sha256_of(path: Path) -> str:
    """Of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def copy_whole(source: Path, target: Path) -> None:
    """Copy a file so that it is whole or absent."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        shutil.copyfile(source, temporary)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def _file_at_hub(offer: Offer) -> str | None:
    """The name of the file in the repository; None where there is no repository, or another place to load it from."""
    if not offer.repository:
        return None
    for place, file in enumerate(offer.files, 1):
        try:
            url = hf_hub_url(offer.repository, file, revision=offer.revision)
            get_hf_file_metadata(url, timeout=TIMEOUT_S)
        except EntryNotFoundError:
            if place == len(offer.files):
                raise
        else:
            return file
    return None


def _kept(offer: Offer) -> Path | None:
    """Where a download that is in no repository is kept."""
    return Path(torch.hub.get_dir(), "checkpoints", offer.url.rpartition("/")[2]) if offer.url else None


def _note(offer: Offer, path: Path) -> dict[str, str]:
    folder = os.environ.get(PRETRAINED_VARIABLE)
    in_folder = folder is not None and path.is_relative_to(folder)
    source = (
        f"{PRETRAINED_VARIABLE}/{path.relative_to(folder)}" if in_folder and folder else offer.repository or offer.url
    )
    return {"model": offer.name, "source": source, "sha256": sha256_of(path), "licence": offer.licence}


def _first_line(error: Exception) -> str:
    line = (str(error).strip().splitlines() or [""])[0].rstrip(".:")
    return f"{type(error).__name__}{': ' if line else ''}{line}"
