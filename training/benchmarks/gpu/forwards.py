"""What the device is and can do at most, and one forward in every form that torch offers."""

from __future__ import annotations

import copy
import importlib.util
import os
import platform
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from kernels.lumbar.specs import Member
from training import networks
from training.benchmarks.loader import wait
from training.benchmarks.tables import Record

from .optimiser_steps import CHOSEN, find
from .parts import Setting

ROUNDS = 10
ROWS, SMALL_ROWS = 80, 2
Forward = Callable[..., Tensor]
Form = tuple[str, Callable[[nn.Module, list[Tensor]], Forward], bool]
"""Name, what makes it, and whether it is in half precision."""


def machine(setting: Setting, record: Record) -> None:
    """Names and versions, one copy, one product."""
    products = bool(torch.backends.cuda.matmul.allow_tf32)
    about = record.table("machine", ["what", "is"])
    about.rows += [
        ["python", platform.python_version()],
        ["torch", torch.__version__],
        ["cores", os.cpu_count() or 0],
        ["TF32 of convolutions, of products", f"{torch.backends.cudnn.allow_tf32}, {products}"],
        ["TorchScript may fuse on a GPU", str(torch._C._jit_can_fuse_on_gpu())],
    ]
    if setting.device == "cuda":
        about.rows += [
            ["GPU", torch.cuda.get_device_name(0)],
            ["GPU memory, GiB", torch.cuda.get_device_properties(0).total_memory / 2**30],
            ["capability, built for", f"{torch.cuda.get_device_capability(0)}, {' '.join(torch.cuda.get_arch_list())}"],
            ["cuDNN", str(torch.backends.cudnn.version())],
        ]
    record.save()
    size = 512 if setting.small else 8192
    dtype = torch.float32 if setting.device == "cpu" else torch.float16
    a = torch.randn(size, size, device=setting.device).to(dtype)
    b = torch.randn_like(a)
    about.rows.append([f"product, TFLOP/s {dtype}", 2 * size**3 / seconds_of(lambda: a @ b, setting.device) / 1e12])
    source, target = (torch.empty(size * size, device=setting.device) for _ in range(2))
    copied = 2 * source.numel() * source.element_size()
    about.rows.append(["copy, GB/s", copied / seconds_of(lambda: target.copy_(source), setting.device) / 1e9])


def seconds_of(call: Callable[[], object], device: str, rounds: int = ROUNDS) -> float:
    """Seconds of one call, the median of some, after two to warm up."""
    for _ in range(2):
        call()
    measured = []
    for _ in range(rounds):
        wait(torch.device(device))
        started = time.perf_counter()
        call()
        wait(torch.device(device))
        measured.append(time.perf_counter() - started)
    return sorted(measured)[len(measured) // 2]


def inputs_of(member: Member, rows: int, device: str, dtype: torch.dtype) -> list[Tensor]:
    """Noise of the shapes of a member's inputs: (B, S, H, W) a view, and `present` (B, views)."""
    shapes = [(rows, one.slices.count, one.size_px, one.size_px) for one in member.inputs]
    views = [torch.rand(shape, device=device).to(dtype) for shape in shapes]
    return [*views, torch.ones(rows, len(shapes), device=device, dtype=dtype)]


def variants(setting: Setting, record: Record) -> None:
    """All forms of a grader and of a localiser of the full profile: how fast, and how long until warm."""
    warnings.simplefilter("ignore")
    for recipe, name, _ in CHOSEN:
        entry = find(recipe, name, setting)
        rows = SMALL_ROWS if setting.small else ROWS if entry.member.role == "grader" else ROWS // 5
        network = networks.for_member(entry, pretrained=False).to(setting.device).eval()
        given = inputs_of(entry.member, rows, setting.device, torch.float32)
        _compare(f"{entry.member.name}, {rows} rows", network, given, setting, record)


def _compare(title: str, network: nn.Module, given: Sequence[Tensor], setting: Setting, record: Record) -> None:
    columns = ["form", "ms", "× as fast", "difference", "seconds until warm"]
    table = record.table(f"forms of a forward: {title}", columns)
    with torch.inference_mode():
        expected = network(*given)
    first: float | None = None
    for name, make, is_half in forms(setting.device):
        if setting.is_late:
            return
        inputs = [one.half() if is_half else one for one in given]
        try:
            started = time.perf_counter()
            with torch.inference_mode():
                # In the inference mode that it runs in: weights made elsewhere cannot be captured.
                forward = make(copy.deepcopy(network).half() if is_half else network, inputs)
                answer = forward(*inputs).float()
                warm = time.perf_counter() - started
                seconds = seconds_of(lambda: forward(*inputs), setting.device)  # noqa: B023 - called at once
        except Exception as error:  # noqa: BLE001 - a form that is not available is a row with its error
            table.rows.append([f"{name}: {type(error).__name__} {str(error).strip()[:80]}", None, None, None, None])
        else:
            first = first or seconds
            table.rows.append([name, 1e3 * seconds, first / seconds, float((answer - expected).abs().max()), warm])
        record.save()


def forms(device: str) -> list[Form]:
    """All that the device has; those that take longest to make are last."""
    found: list[Form] = [
        ("eager, single", lambda network, _: network, False),
        ("TorchScript, single, as the kernel", scripted, False),
    ]
    if device == "cuda":
        found += [
            ("eager, half", lambda network, _: network, True),
            ("eager, half, channels last", channels_last, True),
            ("TorchScript, half, as the kernel", scripted, True),
            ("TorchScript, half, frozen", partial(scripted, freeze=True), True),
            ("TorchScript, half, optimised", optimised, True),
            ("CUDA graph, half", graphed, True),
            ("torch.compile, half", lambda network, _: torch.compile(network), True),
        ]
        if importlib.util.find_spec("torch_tensorrt"):
            found.append(("TensorRT, half", lambda network, _: torch.compile(network, backend="tensorrt"), True))
    return found


def channels_last(network: nn.Module, _: list[Tensor]) -> Forward:
    """Weights in the order that half-precision convolutions are computed in."""
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def scripted(network: nn.Module, inputs: list[Tensor], freeze: bool = False) -> Forward:
    """As the kernel runs it: without optimisation.  `freeze`: weights as constants, norms folded into convolutions."""
    traced = torch.jit.trace(network, tuple(inputs), check_trace=False)
    module = torch.jit.freeze(traced) if freeze else traced

    def forward(*given: Tensor) -> Tensor:
        with torch.jit.optimized_execution(False):
            answer: Tensor = module(*given)
        return answer

    return forward


def optimised(network: nn.Module, inputs: list[Tensor]) -> Forward:
    """With the profiling executor and its fuser."""
    module: torch.jit.ScriptModule = torch.jit.freeze(torch.jit.trace(network, tuple(inputs), check_trace=False))
    for _ in range(2):
        module(*inputs)
    return module


def graphed(network: nn.Module, inputs: list[Tensor]) -> Forward:
    """One launch for all kernels; inputs are copied to the graph's own tensors."""
    places = [one.clone() for one in inputs]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            network(*places)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        answer: Tensor = network(*places)

    def forward(*given: Tensor) -> Tensor:
        for place, one in zip(places, given, strict=True):
            place.copy_(one)
        graph.replay()
        return answer

    return forward
