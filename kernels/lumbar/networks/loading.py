"""Load members from TorchScript, verify them on their golden input, and run them in batches that fit the memory."""

from __future__ import annotations

import io
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..manifest import Artefact
from ..specs import Member
from .devices import check_alive
from .precision import HALF_FOR_SINGLE, Bounds, bounds_of
from .weights import WeightsError, checked_bytes, golden_inputs

GOLDEN_ROWS = 2


@dataclass
class BatchLimit:
    """Most rows of one forward, once an out-of-memory error has shown a limit; None = no limit known."""

    rows: int | None = None


@dataclass(frozen=True)
class LoadedMember:
    """A member ready to run: points (B, K, 4) of a localiser, logits (B, K, 3) of a grader, float32 on the CPU."""

    artefact: Artefact
    module: torch.jit.ScriptModule
    device: torch.device
    half: bool
    limit: BatchLimit = field(default_factory=BatchLimit)
    golden_s: float = 0.0
    """Seconds per row of the golden input: an estimate of its speed before the first study."""
    refused: str = ""
    """Why it is not in half precision on a GPU."""
    unoptimised: str = ""
    """Why it runs as exported on a CPU, not in its optimised form."""
    turn: Callable[[], AbstractContextManager[None]] = nullcontext
    """Around each forward: waits until no other one runs on the device."""

    @property
    def precision(self) -> str:
        """Of its computations, for the report."""
        return "half" if self.half else "single"

    @property
    def member(self) -> Member:
        return self.artefact.member

    def __call__(self, views: Sequence[Tensor], present: Tensor) -> Tensor:
        """Forward of one (B, slices, size_px, size_px) float tensor per view and `present` (B, views) of 0 and 1.

        Out of memory: the rows per forward are halved until they fit, also for later calls.
        Raises RuntimeError, as torch does, and DeviceLost.
        """
        with self.turn():
            return self._in_turn(views, present)

    def _in_turn(self, views: Sequence[Tensor], present: Tensor) -> Tensor:
        dtype = torch.float16 if self.half else torch.float32
        inputs = [tensor.to(self.device, dtype, non_blocking=True) for tensor in (*views, present)]
        while True:
            rows = min(self.limit.rows or len(present), len(present))
            try:
                return torch.cat(
                    [self._forward(*parts) for parts in zip(*(i.split(rows) for i in inputs), strict=True)]
                )
            except RuntimeError as error:
                if rows == 1 or not is_out_of_memory(error):
                    check_alive(self.device)
                    raise
                self.limit.rows = rows // 2
            if self.device.type == "cuda":  # after the handler: the error keeps the forward's memory alive
                torch.cuda.empty_cache()

    def _forward(self, *inputs: Tensor) -> Tensor:
        # The graph runs as it stands: otherwise TorchScript profiles the first calls and recompiles for each new batch
        # size, for seconds, and an answer would depend on the calls before.
        with torch.inference_mode(), torch.jit.optimized_execution(False):
            answer = self.module(*inputs).float().cpu()
        return answer.clone()  # an ordinary tensor: inference tensors cannot be changed in place


# Messages of the CPU allocator, CUDA, cuDNN and cuBLAS; the last one: no cuDNN algorithm fits the workspace.
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
    message = str(error).lower()
    return any(words in message for words in OUT_OF_MEMORY)


def first_line(error: Exception) -> str:
    """First line of an error message; torch's can be pages long."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def load_member(folder: Path, artefact: Artefact, device: torch.device, half: bool = False) -> LoadedMember:
    """Load a member and verify it on its golden input.  Raises WeightsError, naming the member."""
    return _load(artefact, checked_bytes(folder, artefact), device, half)


def load_fastest(artefact: Artefact, data: bytes, device: torch.device) -> LoadedMember:
    """The member in half precision on a GPU where its golden output holds there, else in single precision.

    `data`: its verified archive.  Raises WeightsError, naming the member.
    """
    refused = ""
    if device.type == "cuda":
        try:
            return _warm(_load(artefact, data, device, half=True, bounds=HALF_FOR_SINGLE))
        except WeightsError as error:  # overflow or loss of precision, or a faulty network: single precision tells
            refused = str(error)
    return replace(_warm(_load(artefact, data, device, half=False)), refused=refused)


def _load(
    artefact: Artefact, data: bytes, device: torch.device, half: bool, bounds: Bounds | None = None
) -> LoadedMember:
    name = artefact.member.name
    try:
        module = _load_archive(io.BytesIO(data), device)
        stored_half = any(tensor.dtype == torch.float16 for tensor in module.parameters())
        loaded = LoadedMember(artefact, module.half() if half else module.float(), device, half)
        return _verified(loaded, bounds or bounds_of(device, half or stored_half))
    except (RuntimeError, ValueError) as error:  # what torch raises for a damaged archive or a device without memory
        raise WeightsError(f"{name}: cannot be loaded on {device}: {str(error).strip().splitlines()[-1]}") from error


def _verified(loaded: LoadedMember, bounds: Bounds) -> LoadedMember:
    """The member, on a CPU in its optimised form where the golden output holds there.  Raises WeightsError."""
    unoptimised = ""
    # GPUs gain nothing (training/benchmarks/README.md), and CPUs have no fast kernels for half precision.
    if loaded.device.type == "cpu" and not loaded.half:
        try:
            return _verify(replace(loaded, module=_optimised(loaded.module)), bounds)
        except (WeightsError, RuntimeError, AttributeError) as error:  # AttributeError: a torch without this function
            unoptimised = first_line(error)
    # Where this fails as well, the network is at fault.
    return _verify(replace(loaded, unoptimised=unoptimised), bounds)


def _optimised(module: torch.jit.ScriptModule) -> torch.jit.ScriptModule:
    """The module with weights as constants: batch norms folded into convolutions, these in oneDNN's own layouts.

    Only the graph changes, here and once: its operations do not depend on the calls or their batch sizes.
    """
    with quiet_torchscript(), torch.jit.optimized_execution(True):  # it fails where this is switched off
        fast: torch.jit.ScriptModule = torch.jit.optimize_for_inference(module)
    return fast


@contextmanager
def quiet_torchscript(*others: type[Warning]) -> Iterator[None]:
    """Without the warnings that TorchScript is deprecated, and `others`.

    It is the only format that all recent versions of torch read.
    """
    with warnings.catch_warnings():
        ignored: tuple[type[Warning], ...] = (DeprecationWarning, FutureWarning, *others)
        for category in ignored:
            warnings.simplefilter("ignore", category)
        yield


def _load_archive(archive: io.BytesIO, device: torch.device) -> torch.jit.ScriptModule:
    with quiet_torchscript():
        module: torch.jit.ScriptModule = torch.jit.load(archive, map_location=device)
    return module.eval()


def _verify(loaded: LoadedMember, bounds: Bounds) -> LoadedMember:
    """The member with its speed, if it answers the golden input as on the exporting machine.  Raises WeightsError.

    The maximum of a heatmap of noise can be a tie that other hardware or another number of threads breaks differently:
    of a localiser half of the positions and confidences must agree.  Other weights change most of them.
    """
    weights, member = loaded.artefact.weights, loaded.member
    answer, row_s = _golden_answer(loaded)
    golden = np.asarray(weights.golden_output, np.float32)
    if answer.size != golden.size:
        raise WeightsError(f"{member.name}: answers {answer.size} numbers to the golden input instead of {golden.size}")
    golden = golden.reshape(answer.shape)
    error = np.abs(answer - golden)
    error = np.where(np.isfinite(error), error, np.inf)
    if member.role == "localiser":
        _check(loaded, "", np.median(error[..., 3]), bounds.confidence)
        _check(loaded, " px", np.median(error[..., :3].max(-1)), bounds.place)
    else:
        _check(loaded, "", (error / np.maximum(1, np.abs(golden))).max(), bounds.answer)
    return replace(loaded, golden_s=row_s)


def _golden_answer(loaded: LoadedMember) -> tuple[np.ndarray, float]:
    """The answer to the golden input, and the seconds it took per row."""
    *views, present = golden_inputs(loaded.member, loaded.artefact.weights.golden_seed, GOLDEN_ROWS)
    started = time.monotonic()
    answer = loaded(views, present).numpy()
    return answer, (time.monotonic() - started) / GOLDEN_ROWS


def _check(loaded: LoadedMember, unit: str, worst: float, bound: float) -> None:
    if worst > bound:
        raise WeightsError(
            f"{loaded.member.name}: differs from its golden output by {worst:.2g}{unit} on {loaded.device} "
            f"in {loaded.precision} precision; {bound:g} is allowed"
        )


def _warm(loaded: LoadedMember) -> LoadedMember:
    """Timed again on a GPU, whose first forward loads its kernels."""
    if loaded.device.type != "cuda":
        return loaded
    return replace(loaded, golden_s=_golden_answer(loaded)[1])
