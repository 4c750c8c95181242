"""Members that answer: loaded from their bytes, proven to answer as they did when exported, in the memory there is."""

from __future__ import annotations

import io
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..manifest import Artefact
from ..specs import Member
from .devices import check_alive
from .weights import WeightsError, checked_bytes, golden_inputs

GOLDEN_ROWS = 2


@dataclass(frozen=True)
class Bounds:
    """Largest differences from the exporting machine's answer that are allowed."""

    answer: float
    """Of logits, relative to max(1, |logit|), and of a localiser's confidences."""
    place: float
    """Of a localiser's slices, and of its rows and columns in px."""


# Other CPUs add in another order; GPUs convolve in TensorFloat-32; half floats have 11 bits.
ON_CPU, ON_GPU, IN_HALF = Bounds(1e-3, 0.05), Bounds(5e-2, 0.25), Bounds(1e-1, 1.0)
# Where single precision is to be had, half must be as good as this: a hundredth of a logit moves no probability by more
# than a quarter of a percent.
HALF_FOR_SINGLE = Bounds(1e-2, 0.25)


@dataclass
class BatchLimit:
    """How many rows a member takes at once: as many as come, until memory has shown that it is too small."""

    rows: int | None = None


@dataclass(frozen=True)
class LoadedMember:
    """A member that answers: points (B, K, 4) of a localiser, logits (B, K, 3) of a grader, float32 on the CPU."""

    artefact: Artefact
    module: torch.jit.ScriptModule
    device: torch.device
    half: bool
    room: BatchLimit = field(default_factory=BatchLimit)
    golden_s: float = 0.0
    """Seconds of one row of the golden input, warmed up."""
    refused: str = ""
    """Why it is not in half precision on a GPU."""

    @property
    def precision(self) -> str:
        """What it computes in, for the report."""
        return "half" if self.half else "single"

    @property
    def member(self) -> Member:
        return self.artefact.member

    def __call__(self, views: Sequence[Tensor], present: Tensor) -> Tensor:
        """Answer for one (B, slices, size_px, size_px) float tensor a view and `present` (B, views) of 0 and 1.

        Without enough memory for all rows at once it halves their number until they fit, and remembers that.
        Raises RuntimeError, as torch does, and DeviceLost.
        """
        dtype = torch.float16 if self.half else torch.float32
        inputs = [tensor.to(self.device, dtype, non_blocking=True) for tensor in (*views, present)]
        while True:
            rows = min(self.room.rows or len(present), len(present))
            try:
                return torch.cat(
                    [self._forward(*parts) for parts in zip(*(i.split(rows) for i in inputs), strict=True)]
                )
            except RuntimeError as error:
                if rows == 1 or not is_out_of_memory(error):
                    check_alive(self.device)
                    raise
                self.room.rows = rows // 2
            if self.device.type == "cuda":  # behind the handler: the error holds on to the forward's memory
                torch.cuda.empty_cache()

    def _forward(self, *inputs: Tensor) -> Tensor:
        # Without optimisation TorchScript does not recompile for each new batch size.
        with torch.inference_mode(), torch.jit.optimized_execution(False):
            answer = self.module(*inputs).float().cpu()
        return answer.clone()  # an ordinary tensor: those of inference mode refuse changes in place


# What libraries under torch say of it: the CPU's allocator, cuDNN, cuBLAS, and cuDNN where no algorithm finds the room.
OUT_OF_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "cudnn_status_alloc_failed",
    "cublas_status_alloc_failed",
    "unable to find an engine",
)


def is_out_of_memory(error: Exception) -> bool:
    """Whether a forward failed for want of memory, on a GPU or on the CPU."""
    if isinstance(error, torch.cuda.OutOfMemoryError):
        return True
    said = str(error).lower()
    return any(words in said for words in OUT_OF_MEMORY)


def first_line(error: Exception) -> str:
    """Of what torch says, which can be pages."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def load_member(folder: Path, artefact: Artefact, device: torch.device, half: bool = False) -> LoadedMember:
    """Load a member from its bytes, and prove it on its golden input.  Raises WeightsError, naming the member."""
    return _load(artefact, checked_bytes(folder, artefact), device, half)


def load_fastest(folder: Path, artefact: Artefact, device: torch.device) -> LoadedMember:
    """The member in half precision on a GPU where its golden output holds there, else in single precision.

    Raises WeightsError, naming the member.
    """
    data = checked_bytes(folder, artefact)
    refused = ""
    if device.type == "cuda":
        try:
            return _timed(_load(artefact, data, device, half=True, bounds=HALF_FOR_SINGLE))
        except WeightsError as error:  # it overflows, or loses too much: single says whether it is sound at all
            refused = str(error)
    return replace(_timed(_load(artefact, data, device, half=False)), refused=refused)


def _load(
    artefact: Artefact, data: bytes, device: torch.device, half: bool, bounds: Bounds | None = None
) -> LoadedMember:
    name = artefact.member.name
    try:
        module = _load_archive(io.BytesIO(data), device)
        stored_half = any(tensor.dtype == torch.float16 for tensor in module.parameters())
        loaded = LoadedMember(artefact, module.half() if half else module.float(), device, half)
        _prove(loaded, bounds or _bounds(device, half or stored_half))
    except (RuntimeError, ValueError) as error:  # what torch raises for a damaged archive or a device without memory
        raise WeightsError(f"{name}: cannot be loaded on {device}: {str(error).strip().splitlines()[-1]}") from error
    return loaded


def _load_archive(archive: io.BytesIO, device: torch.device) -> torch.jit.ScriptModule:
    with warnings.catch_warnings():
        # TorchScript is deprecated, and yet the only format that every torch of the last years reads.
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        module: torch.jit.ScriptModule = torch.jit.load(archive, map_location=device)
    return module.eval()


def _bounds(device: torch.device, half: bool) -> Bounds:
    if half:
        return IN_HALF
    return ON_GPU if device.type == "cuda" else ON_CPU


def _prove(loaded: LoadedMember, bounds: Bounds) -> None:
    """Compare with the golden output, which also warms the member up.  Raises WeightsError.

    The highest pixel of a heatmap of noise can be a tie that other hardware breaks otherwise, so of a localiser the
    confidences must agree and half of the places.
    """
    weights, member = loaded.artefact.weights, loaded.member
    *views, present = golden_inputs(member, weights.golden_seed, GOLDEN_ROWS)
    answer = loaded(views, present).numpy()
    golden = np.asarray(weights.golden_output, np.float32)
    if answer.size != golden.size:
        raise WeightsError(f"{member.name}: answers {answer.size} numbers to the golden input instead of {golden.size}")
    golden = golden.reshape(answer.shape)
    error = np.abs(answer - golden)
    error = np.where(np.isfinite(error), error, np.inf)
    if member.role == "localiser":
        _check(loaded, "", error[..., 3].max(), bounds.answer)
        _check(loaded, " px", np.median(error[..., :3].max(-1)), bounds.place)
    else:
        _check(loaded, "", (error / np.maximum(1, np.abs(golden))).max(), bounds.answer)


def _check(loaded: LoadedMember, unit: str, worst: float, bound: float) -> None:
    if worst > bound:
        raise WeightsError(
            f"{loaded.member.name}: differs from its golden output by {worst:.2g}{unit} on {loaded.device} "
            f"in {loaded.precision} precision; {bound:g} is allowed"
        )


def _timed(loaded: LoadedMember) -> LoadedMember:
    """The member with the seconds of a golden row: what tells a slow one from a fast one before it sees a study."""
    *views, present = golden_inputs(loaded.member, loaded.artefact.weights.golden_seed, GOLDEN_ROWS)
    started = time.monotonic()
    loaded(views, present)
    return replace(loaded, golden_s=(time.monotonic() - started) / GOLDEN_ROWS)
