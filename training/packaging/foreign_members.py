"""Other people's TorchScript networks, packaged as ours are.

Beside the predictions <member>.csv (training/data/foreign_answers.py) lie

    <member>.yaml                           the description: a ForeignMember
    <member>.pt, or <member>_fold<N>.pt     one TorchScript file, or one a fold

Each network is called with one (B, slices, size_px, size_px) tensor a view, cut and normalised by the kernel as the
description says, and with `present` (B, views).
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import yaml
from pydantic import Field, ValidationError
from torch import Tensor, nn

from kernels.lumbar.manifest import Artefact, GraderWeight, Provenance, PublishedWeights, Route, Weights
from kernels.lumbar.networks.loading import quiet_torchscript
from kernels.lumbar.networks.weights import golden_inputs
from kernels.lumbar.specs import Member, Spec, Tta, UnitKind, ViewRequest
from training.data.foreign_answers import ELSEWHERE
from training.fitting.export import baked_devices, parity_inputs
from training.recipe_schema.fitting import Fitting, Network, Optimisation
from training.recipe_schema.problems import schema_problems
from training.recipe_schema.schema import MemberRecipe
from training.runs import TrainedMember, UnusableRun

GOLDEN_SEED = 0
# Of an answer alone and in a batch.
TOLERANCE = 1e-3
# Packaging reads neither; how they were fitted is not known.
NO_FITTING = Fitting(
    network=Network(name=ELSEWHERE), loss=ELSEWHERE, optimisation=Optimisation(epochs=1, learning_rate=1.0)
)


class ForeignMember(Spec):
    """What the kernel must know of a grader to feed it and to read its answers."""

    unit: UnitKind
    inputs: tuple[ViewRequest, ...] = Field(min_length=1)
    targets: tuple[str, ...] = Field(min_length=1)
    """Relative to the unit, in the order of the answers."""
    tta: tuple[Tta, ...] = ()
    outputs: Literal["logits", "probabilities"] = "logits"
    """Of (B, targets, 3) or (B, 3 · targets) answers, in the order normal_mild, moderate, severe."""
    takes_present: bool = False
    """Whether the last argument is `present` (B, views) of 0 and 1; a missing view is all zero either way."""
    landmarks: str = ""
    """The recipe at whose localisers' landmarks its crops are cut; empty = those of all packaged recipes, merged."""
    seconds: float | None = Field(default=None, ge=0)
    """A study, with test-time augmentation, where the other members' were measured: for SECONDS_A_STUDY."""
    licence: str = "not known"

    def member(self, name: str) -> Member:
        """The specification in a manifest.  Raises ValidationError."""
        fields = {key: getattr(self, key) for key in ("unit", "inputs", "targets", "tta")}
        return Member(name=name, role="grader", **fields)


@dataclass(frozen=True)
class ForeignNetworks:
    """A described member and its networks, one a fold."""

    description: ForeignMember
    runs: tuple[TrainedMember, ...]


def read_description(folder: Path, name: str) -> ForeignMember:
    """The description of a member.  Raises UnusableRun with what is wrong."""
    path = folder / f"{name}.yaml"
    try:
        described = ForeignMember.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
        described.member(_plain(name))
    except FileNotFoundError as error:
        raise UnusableRun(
            f"{path} is not there: describe unit, inputs and targets in it, and put {name}.pt beside it"
        ) from error
    except ValidationError as error:
        raise UnusableRun(f"{path}: {schema_problems(error)[0]}") from error
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UnusableRun(f"{path} cannot be read: {str(error).splitlines()[0]}") from error
    return described


def network_files(folder: Path, name: str) -> dict[int, Path]:
    """Fold → TorchScript file; a single one for all folds is that of fold 0.  Raises UnusableRun without any."""
    if (alone := folder / f"{name}.pt").is_file():
        return {0: alone}
    named = ((re.fullmatch(re.escape(name) + r"_fold(\d+)\.pt", path.name), path) for path in folder.glob("*.pt"))
    found = {int(match[1]): path for match, path in named if match}
    if not found:
        raise UnusableRun(f"{alone} is not there, nor {name}_fold0.pt and so on: put its TorchScript files there")
    return dict(sorted(found.items()))


def unshippable(folder: Path, name: str) -> str:
    """Why a member cannot be packaged, or nothing."""
    try:
        read_description(folder, name)
        network_files(folder, name)
    except UnusableRun as error:
        return str(error)
    return ""


def read_networks(folder: Path, name: str, scratch: Path, profile: str) -> ForeignNetworks:
    """A member's networks, each tried by a forward.  Adapted files are written to `scratch`.  Raises UnusableRun."""
    described = read_description(folder, name)
    runs = []
    for fold, path in network_files(folder, name).items():
        member = described.member(f"{ELSEWHERE}_{_plain(name)}_fold{fold}")
        file = scratch / f"{member.name}.ts"
        data = _adapted(path, described, member)
        file.write_bytes(data)
        sha256 = hashlib.sha256(data).hexdigest()
        source = PublishedWeights(
            model=name,
            source=path.name,
            sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
            licence=described.licence,
        )
        provenance = Provenance(
            recipe=ELSEWHERE,
            network=name,
            backbone="",
            fold=fold,
            seed=0,
            profile=profile,
            torch_version=torch.__version__,
            git_commit="unknown",
            data_fingerprint="unknown",
            seconds_per_study=described.seconds,
            published=(source,),
        )
        weights = Weights(
            file=file.name,
            bytes=len(data),
            sha256=sha256,
            golden_seed=GOLDEN_SEED,
            golden_output=_golden(path, data, member),
        )
        recipe = MemberRecipe(member=member, model=name, fitting=NO_FITTING)
        runs.append(TrainedMember(recipe, Artefact(member=member, weights=weights, provenance=provenance), file))
    return ForeignNetworks(described, tuple(runs))


def foreign_routes(
    found: Sequence[ForeignNetworks], localisers: Mapping[str, Sequence[TrainedMember]]
) -> tuple[Route, ...]:
    """A route for each recipe whose landmarks they take, or for the landmarks of all; weights are those of a search.

    `localisers`: recipe → its finished ones.  Raises UnusableRun for a recipe that is not among these.
    """
    by_recipe: dict[str, list[ForeignNetworks]] = {}
    for one in found:
        by_recipe.setdefault(one.description.landmarks, []).append(one)
    routes = []
    for recipe, its in by_recipe.items():
        needed = any(run.artefact.member.needed for one in its for run in one.runs)
        known = localisers.get(recipe, ()) if recipe else [run for runs in localisers.values() for run in runs]
        if needed and not known:
            whose = f"of {recipe}, which `landmarks` names" if recipe else "at all"
            raise UnusableRun(
                f"{its[0].runs[0].recipe.pooled_as} needs landmarks, and there are no localisers {whose}: train a "
                "recipe's (make train-all) and name it in RECIPES"
            )
        graders = [run.artefact.member for one in its for run in one.runs]
        routes.append(
            Route(
                name=f"{ELSEWHERE}_at_{recipe}" if recipe else ELSEWHERE,
                localisers=tuple(run.artefact.member.name for run in known) if needed else (),
                graders=tuple(GraderWeight(name=one.name, weight=dict.fromkeys(one.groups, 1.0)) for one in graders),
            )
        )
    return tuple(routes)


def _plain(name: str) -> str:
    """A member's name with the letters that a manifest allows."""
    return re.sub(r"[^a-z0-9_]+", "_", name.lower())


class _Adapted(nn.Module):
    """A network that answers logits (B, targets, 3), and takes `present`."""

    def __init__(self, net: nn.Module, described: ForeignMember) -> None:
        super().__init__()
        self.net = net
        self.takes_present, self.outputs = described.takes_present, described.outputs
        self.targets = len(described.targets)

    def forward(self, *inputs: Tensor) -> Tensor:
        answer = self.net(*(inputs if self.takes_present else inputs[:-1]))
        answer = answer.reshape(answer.shape[0], self.targets, 3)
        # Half floats end at 6e-8, and at 1 - 5e-4.
        return answer.clamp_min(1e-6).log() if self.outputs == "probabilities" else answer


def _adapted(path: Path, described: ForeignMember, member: Member) -> bytes:
    """Bytes of a network as the kernel calls it: the file as it is, or wrapped.  Raises UnusableRun."""
    data = path.read_bytes()
    net = _loaded(path, data)
    if baked := baked_devices(data):
        raise UnusableRun(f"{path} is tied to a device, so it fails on others ({baked[0]}): trace it on the CPU")
    if described.takes_present and described.outputs == "logits" and _answer(path, net, member, 2).dim() == 3:
        return data
    wrapped, written = _Adapted(net, described).eval(), io.BytesIO()
    inputs = golden_inputs(member, GOLDEN_SEED)
    with torch.no_grad(), quiet_torchscript(torch.jit.TracerWarning), torch.jit.optimized_execution(False):
        try:
            torch.jit.save(torch.jit.trace(wrapped, tuple(inputs), check_trace=False), written)
        except Exception as error:
            raise UnusableRun(f"{path} does not take what its description says: {_last_line(error)}") from error
    return written.getvalue()


def _golden(path: Path, data: bytes, member: Member) -> tuple[float, ...]:
    """The answer to the golden input, if the network keeps what is asked of all.  Raises UnusableRun."""
    net = _loaded(path, data)
    answer = _answer(path, net, member, 2)
    expected = (2, len(member.targets), 3)
    if tuple(answer.shape) != expected:
        raise UnusableRun(f"{path} answers {tuple(answer.shape)} where its description says {expected}: correct one")
    alone = _run(path, net, [one[:1] for one in golden_inputs(member, GOLDEN_SEED)])
    if not (answer[:1] - alone).abs().max() <= TOLERANCE * answer.abs().max().clamp_min(1):
        raise UnusableRun(
            f"{path} answers a sample otherwise alone than in a batch: call net.eval() before tracing, and leave the "
            "batch size out of its forward"
        )
    for batch in (answer, _run(path, net, parity_inputs(member, GOLDEN_SEED, 3))):
        if not batch.isfinite().all():
            raise UnusableRun(f"{path} answers numbers that are not finite, to noise or to a missing view of zeros")
    return tuple(answer.flatten().tolist())


def _answer(path: Path, net: nn.Module, member: Member, batch: int) -> Tensor:
    return _run(path, net, golden_inputs(member, GOLDEN_SEED, batch))


def _run(path: Path, net: nn.Module, inputs: Sequence[Tensor]) -> Tensor:
    with torch.inference_mode(), torch.jit.optimized_execution(False):
        try:
            answer = net(*inputs)
        except RuntimeError as error:
            shapes = ", ".join(str(tuple(one.shape)) for one in inputs)
            raise UnusableRun(f"{path} fails on inputs of {shapes}: {_last_line(error)}") from error
    if not isinstance(answer, Tensor):
        raise UnusableRun(f"{path} answers a {type(answer).__name__}: trace a network that answers one tensor")
    return answer.float().clone()


def _loaded(path: Path, data: bytes) -> nn.Module:
    try:
        with quiet_torchscript():
            net: nn.Module = torch.jit.load(io.BytesIO(data), map_location="cpu").eval()
    except (RuntimeError, ValueError) as error:
        raise UnusableRun(
            f"{path} is no TorchScript file: save the network by torch.jit.trace(net, inputs).save(path)"
        ) from error
    return net


def _last_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]
