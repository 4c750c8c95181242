"""Exports a fitted network: one TorchScript file and its manifest entry.  Only this and weights.py know the format.

TorchScript is deprecated upstream, yet files written by torch 2.13 load in every torch since 2.6 and need no source of
timm or of this project, which torch.export's format does not offer.
"""

from __future__ import annotations

import copy
import hashlib
import io
import math
import re
import warnings
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from kernels.lumbar.labels import UNITS
from kernels.lumbar.manifest import Artefact, Provenance, Weights
from kernels.lumbar.networks.loading import quiet_torchscript
from kernels.lumbar.networks.weights import golden_inputs
from kernels.lumbar.run.submission import replace_text, whole_file
from kernels.lumbar.specs import Member
from training.networks.parts.auxiliary import without_heads
from training.recipe_schema.schema import MemberRecipe
from training.runs import ARTEFACT, WEIGHTS

NEWEST_TESTED_TORCH = (2, 13)
# What a trace keeps of its batch shows at another one.  Large ones, which took four fifths of the export of a large
# network, are tried up to so many GFLOP of a pass.
SMALL_BATCHES, LARGE_BATCHES, MOST_GFLOPS = (1, 3), (7, 17), 100.0
# By role: how far answers may be apart, and of which share of them.  Of a localiser less is asked: on noise, rounding
# alone may move a peak.
PARITY = {"grader": (1e-5, 1.0), "localiser": (1e-3, 0.9)}
# Golden answers of a localiser must bear such a relative error of their inputs, twice that of TensorFloat-32, within
# these bounds in px and of confidences: two peaks as high as each other may be told apart otherwise on another device.
ROUNDING, STEADY_PX, STEADY_CONFIDENCE = 1e-3, 0.1, 0.02
# So many golden inputs are tried, fewer where a pass has more than MOST_GFLOPS.
GOLDEN_TRIES, FEW_TRIES = 6, 2


class ExportError(Exception):
    """A network whose exported file would differ from it, or would fail on other devices."""


def export(net: nn.Module, recipe: MemberRecipe, out: Path, provenance: Provenance, seed: int) -> Artefact:
    """Write weights.ts and artefact.json into `out`.

    `seed` makes the golden input, or one of the next few, where its answer would not bear rounding.  The provenance
    is completed with the torch version and the GFLOPs of a study.
    Raises ExportError where the file differs from the network, in batches of 1 and 3 and where a pass is cheap of 7 and
    17, or is tied to a device.
    """
    _warn_of_untested_torch()
    member = recipe.member
    net = without_heads(copy.deepcopy(net)).cpu().float().eval()
    # Without optimisation, as in the kernel: TorchScript would compile anew for each batch size, for minutes.
    # The tracer warns of shape checks, which the parity check covers.
    with torch.no_grad(), quiet_torchscript(torch.jit.TracerWarning), torch.jit.optimized_execution(False):
        # Only the first trace of a class in a process has names without numbers: a first trace is thrown away, so that
        # the file does not depend on earlier exports.
        flat = Flat(net).eval()
        _traced(member, flat, golden_inputs(member, seed, 1))
        traced = _traced(member, flat, golden_inputs(member, seed))
        buffer = io.BytesIO()
        torch.jit.save(traced, buffer)
        data = canonical(buffer.getvalue())
        baked = baked_devices(data)
        if baked:
            raise ExportError(
                f"{member.name}: the trace is tied to a device, so it fails on others: {'; '.join(baked)}"
            )
        loaded = torch.jit.load(io.BytesIO(data), map_location="cpu").eval()
        for batch in SMALL_BATCHES:
            _check_parity(member, net, loaded, parity_inputs(member, seed, batch))
        gflops = gflops_of(net, golden_inputs(member, seed, 1))
        for batch in LARGE_BATCHES:
            if batch * gflops <= MOST_GFLOPS:
                _check_parity(member, net, loaded, parity_inputs(member, seed, batch))
        tries = GOLDEN_TRIES if gflops <= MOST_GFLOPS else FEW_TRIES
        golden_seed, golden = _steady_golden(loaded, member, range(seed, seed + tries))
    weights = Weights(
        file=WEIGHTS,
        bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        golden_seed=golden_seed,
        golden_output=tuple(golden.flatten().tolist()),
    )
    complete = provenance.model_copy(
        update={"torch_version": torch.__version__, "gflops_per_study": gflops_per_study(gflops, member)}
    )
    artefact = Artefact(member=member, weights=weights, provenance=complete)
    out.mkdir(parents=True, exist_ok=True)
    with whole_file(out / WEIGHTS) as temporary:
        temporary.write_bytes(data)
    replace_text(out / ARTEFACT, artefact.model_dump_json(indent=2) + "\n")
    return artefact


def _steady_golden(net: nn.Module, member: Member, seeds: Sequence[int]) -> tuple[int, Tensor]:
    """The first seed whose golden answer holds where inputs are rounded, or the first of all, and the answer.

    A grader's always holds.
    """
    random = torch.Generator().manual_seed(seeds[0])
    golden: list[Tensor] = []
    for seed in seeds:
        *views, present = golden_inputs(member, seed)
        golden.append(net(*views, present))
        if member.role != "localiser":
            break
        rounded = [view * (1 + ROUNDING * torch.randn(view.shape, generator=random)) for view in views]
        change = (golden[-1] - net(*rounded, present)).abs()
        if change[..., :3].amax(-1).median() < STEADY_PX and change[..., 3].max() < STEADY_CONFIDENCE:
            return seed, golden[-1]
    return seeds[0], golden[0]


class Flat(nn.Module):
    """A network whose trace is one module with one method, and holds all parameters and buffers itself.

    The operations are the same.  A class for each of hundreds of submodules would make loading three times slower.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self._hidden = (net,)  # in a tuple, so that it is no submodule
        for number, parameter in enumerate(net.parameters()):
            self.register_parameter(f"parameter{number}", parameter)
        for number, buffer in enumerate(net.buffers()):
            self.register_buffer(f"buffer{number}", buffer)

    def forward(self, *inputs: Tensor) -> Tensor:
        """What the network answers."""
        answer: Tensor = self._hidden[0](*inputs)
        return answer


# Debug information (source lines with paths of this machine), and a digest of the whole file that torch never checks.
NEEDLESS = (".debug_pkl", ".data/serialization_id")
NUMBERED = re.compile(rb"___torch_mangle_(\d+)")
# The files that contain class names; tensors lie in data/ and constants/.
NAMING = re.compile(r"^[^/]+/(code/.*\.py|data\.pkl|constants\.pkl)$")


def canonical(archive: bytes) -> bytes:
    """A TorchScript file whose bytes depend on the network alone.

    As torch writes it, class names are numbered by how many networks the process has traced before, and the debug
    files hold call stacks.  Names are numbered anew, in their order; what loading does not need is left out.
    """
    numbers: dict[bytes, bytes] = {}

    def renumbered(content: bytes) -> bytes:
        # Pickles store names as lines, without their length.
        return NUMBERED.sub(
            lambda found: b"___torch_mangle_" + numbers.setdefault(found[1], b"%d" % len(numbers)), content
        )

    written = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as old, zipfile.ZipFile(written, "w", zipfile.ZIP_STORED) as new:
        for entry in old.infolist():
            if entry.filename.endswith(NEEDLESS):
                continue
            name, content = renumbered(entry.filename.encode()).decode(), old.read(entry)
            # ZipInfo has a fixed date, 1980.
            new.writestr(zipfile.ZipInfo(name), renumbered(content) if NAMING.match(name) else content)
    return written.getvalue()


def baked_devices(archive: bytes) -> list[str]:
    """Lines of the archive's code with a fixed device: tensors that were not created on their inputs' device."""
    found = []
    with zipfile.ZipFile(io.BytesIO(archive)) as files:
        for name in files.namelist():
            if re.search(r"(^|/)code/.*\.py$", name):
                lines = files.read(name).decode().splitlines()
                found += [f"{name}: {line.strip()}" for line in lines if 'torch.device("' in line]
    return found


def parity_inputs(member: Member, seed: int, batch: int) -> list[Tensor]:
    """Different noise for each batch size; in batches, the last view of the last sample is missing."""
    *views, present = golden_inputs(member, seed + batch, batch)
    if batch > 1:
        views[-1][-1] = 0
        present[-1, -1] = 0
    return [*views, present]


REMEDY = (
    "write its forward without Python numbers or branches that depend on the batch, such as int(x.shape[0]), "
    "len(x) or `if x.shape[0] > 1`"
)


def _traced(member: Member, net: nn.Module, inputs: list[Tensor]) -> torch.jit.ScriptModule:
    try:
        traced: torch.jit.ScriptModule = torch.jit.trace(net, tuple(inputs), check_trace=False)
    except Exception as error:
        raise ExportError(f"{member.name}: the network cannot be traced ({_last_line(error)}): {REMEDY}") from error
    return traced


def _last_line(error: Exception) -> str:
    """The last line of an error of TorchScript, whose other lines are its stack."""
    line = (str(error).strip().splitlines() or [""])[-1]
    return f"{type(error).__name__}: {line.removeprefix(f'{type(error).__name__}: ')}"


def _check_parity(member: Member, net: nn.Module, saved: nn.Module, inputs: list[Tensor]) -> None:
    try:
        expected = net(*inputs)
    except Exception as error:
        raise ExportError(f"{member.name}: the network fails at batch {len(inputs[0])}: {_last_line(error)}") from error
    if not expected.isfinite().all():
        raise ExportError(f"{member.name}: the network's answer is not finite")
    try:
        answer = saved(*inputs)
    except RuntimeError as error:
        reason = f"the saved network fails at batch {len(expected)} ({_last_line(error)})"
        raise ExportError(f"{member.name}: {reason}: {REMEDY}") from error
    if answer.shape != expected.shape:
        shapes = f"{tuple(answer.shape)} for {tuple(expected.shape)}"
        raise ExportError(f"{member.name}: the saved network answers {shapes} at batch {len(expected)}: {REMEDY}")
    differences = (answer - expected).abs() / expected.abs().clamp_min(1)
    tolerance, share = PARITY[member.role]
    difference = differences.nan_to_num(math.inf).flatten(0, -2).amax(-1).quantile(share, interpolation="lower").item()
    if not difference <= tolerance:
        raise ExportError(
            f"{member.name}: the saved network differs from the fitted one by {difference:.2g} at batch "
            f"{len(expected)}, allowed are {tolerance:g}: {REMEDY}"
        )


def gflops_of(net: Callable[..., Any], inputs: Sequence[Tensor]) -> float:
    """Floating-point operations of one forward pass, in 1e9."""
    with FlopCounterMode(display=False) as counter:
        net(*inputs)
    return float(counter.get_total_flops() / 1e9)


def gflops_per_study(gflops: float, member: Member) -> float:
    """Of all units of one study, with test-time augmentation; `gflops`: of one sample's pass."""
    return round(gflops * len(UNITS[member.unit]) * member.passes, 4)


def _warn_of_untested_torch() -> None:
    version = tuple(int(part) for part in re.findall(r"\d+", torch.__version__)[:2])
    if version > NEWEST_TESTED_TORCH:
        newest = ".".join(str(part) for part in NEWEST_TESTED_TORCH)
        warnings.warn(
            f"exporting with torch {torch.__version__}; files of torch up to {newest} are known to load on Kaggle",
            stacklevel=3,
        )
