"""Networks whose answers hang on every pixel of every view, in place of those of a package; and some that fail.

Those of tiny_runs.py see means alone, which normalisation takes away.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from pathlib import Path

import torch
from torch import nn

from kernels.lumbar.manifest import Artefact
from kernels.lumbar.networks.weights import MANIFEST_FILE, golden_inputs
from kernels.lumbar.run.submission import replace_json
from kernels.lumbar.specs import Member
from tests.support.networks.tiny_runs import TinyLocaliser


class SeeingGrader(nn.Module):
    """Logits (B, K, 3), linear in all pixels."""

    def __init__(self, member: Member) -> None:
        super().__init__()
        self.targets = len(member.targets)
        generator = torch.Generator().manual_seed(len(member.name))
        sizes = [one.slices.count * one.size_px**2 for one in member.inputs]
        heads = [nn.Parameter(torch.randn(size, 3 * self.targets, generator=generator) / size**0.5) for size in sizes]
        self.heads = nn.ParameterList(heads)

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        answer = sum(view.flatten(1) @ head for view, head in zip(inputs[:-1], self.heads, strict=True))
        return answer.reshape(-1, self.targets, 3)


class NanOnImages(nn.Module):
    """Answers to noise, as its golden input is, as another network does; to images, of few grey values, with NaN."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return torch.where(self.is_image(inputs[0])[:, None, None], torch.nan, self.inner(*inputs))

    def is_image(self, view: torch.Tensor) -> torch.Tensor:
        """(B,) whether most pixels have a value that others have too."""
        ordered = view.flatten(1).sort(1).values
        return (ordered[:, 1:] == ordered[:, :-1]).float().mean(1) > 0.5


class FailsOnImages(NanOnImages):
    """Fails at images as a network does that was exported for other inputs."""

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        answer = self.inner(*inputs)
        beyond = self.is_image(inputs[0]).any() * answer.shape[1]
        return answer.index_select(1, torch.arange(answer.shape[1]) + beyond)


def seeing_package(package: Path, out: Path) -> Path:
    """A copy of a package in which every member has a file of its own, and every grader sees all of its views."""
    shutil.copytree(package, out)
    for artefact in artefacts(out):
        replace_network(out, artefact.member.name, network_of(artefact))
    return out


def artefacts(package: Path) -> list[Artefact]:
    """The members of a package."""
    document = json.loads((package / MANIFEST_FILE).read_text())
    return [Artefact.model_validate(one) for one in document["artefacts"]]


def network_of(artefact: Artefact) -> nn.Module:
    """What answers as the member of a seeing package does."""
    return (TinyLocaliser if artefact.member.role == "localiser" else SeeingGrader)(artefact.member)


def replace_network(package: Path, name: str, network: nn.Module) -> None:
    """Put another network in a member's place, in a file of its own, and let the manifest vouch for it."""
    (artefact,) = (one for one in artefacts(package) if one.member.name == name)
    golden = golden_inputs(artefact.member, artefact.weights.golden_seed)
    with torch.no_grad(), torch.jit.optimized_execution(False):
        traced = torch.jit.trace(network.eval(), tuple(golden), check_trace=False)
        answer = traced(*golden).flatten().tolist()
    buffer = io.BytesIO()
    torch.jit.save(traced, buffer)
    replace_bytes(package, name, buffer.getvalue(), golden_output=answer)


def replace_bytes(package: Path, name: str, data: bytes, **changes: object) -> None:
    """Put other bytes in a member's place, in a file of its own, and let the manifest vouch for them."""
    document = json.loads((package / MANIFEST_FILE).read_text())
    entry = next(one for one in document["artefacts"] if one["member"]["name"] == name)
    file, digest = f"{name}.ts", hashlib.sha256(data).hexdigest()
    (package / file).write_bytes(data)
    entry["weights"] |= {"file": file, "offset": 0, "bytes": len(data), "sha256": digest, **changes}
    replace_json(package / MANIFEST_FILE, document)
