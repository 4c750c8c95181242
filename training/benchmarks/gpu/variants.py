"""One forward in every form that torch offers: which is fastest, and what it costs to get there."""

from __future__ import annotations

import copy
import importlib.util
import time
import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from training import networks

from .full_networks import inputs_of
from .machine import seconds_of
from .setting import Record, Setting
from .steps import CHOSEN, find

ROWS, SMALL_ROWS = 80, 2
Forward = Callable[..., Tensor]


def measure(setting: Setting, record: Record) -> None:
    """A grader and a localiser of the full profile."""
    warnings.simplefilter("ignore")
    for recipe, name, _ in CHOSEN:
        entry = find(recipe, name, "smoke" if setting.small else "full")
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
                said = forward(*inputs).float()
                warm = time.perf_counter() - started
                seconds = seconds_of(lambda: forward(*inputs), setting.device)  # noqa: B023 - called at once
        except Exception as error:  # noqa: BLE001 - a form that is not to be had is a row that says so
            table.rows.append([f"{name}: {type(error).__name__} {str(error).strip()[:80]}", None, None, None, None])
        else:
            first = first or seconds
            table.rows.append([name, 1e3 * seconds, first / seconds, float((said - expected).abs().max()), warm])
        record.save()


def forms(device: str) -> list[tuple[str, Callable[[nn.Module, list[Tensor]], Forward], bool]]:
    """Name, what makes it, and whether it is in half precision; those that take longest to make are last."""
    found: list[tuple[str, Callable[[nn.Module, list[Tensor]], Forward], bool]] = [
        ("eager, single", lambda network, _: network, False),
        ("TorchScript, single, as the kernel", scripted, False),
    ]
    if device == "cuda":
        found += [
            ("eager, half", lambda network, _: network, True),
            ("eager, half, channels last", channels_last, True),
            ("TorchScript, half, as the kernel", scripted, True),
            ("TorchScript, half, frozen", frozen, True),
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


def traced(network: nn.Module, inputs: list[Tensor]) -> torch.jit.ScriptModule:
    """A trace at these inputs."""
    found: torch.jit.ScriptModule = torch.jit.trace(network, tuple(inputs), check_trace=False)
    return found


def scripted(network: nn.Module, inputs: list[Tensor]) -> Forward:
    """As the kernel runs it: without optimisation."""
    return _unoptimised(traced(network, inputs))


def frozen(network: nn.Module, inputs: list[Tensor]) -> Forward:
    """Weights as constants, normalisation folded into convolutions."""
    return _unoptimised(torch.jit.freeze(traced(network, inputs)))


def _unoptimised(module: torch.jit.ScriptModule) -> Forward:
    def forward(*given: Tensor) -> Tensor:
        with torch.jit.optimized_execution(False):
            answer: Tensor = module(*given)
        return answer

    return forward


def optimised(network: nn.Module, inputs: list[Tensor]) -> Forward:
    """With the profiling executor and its fuser."""
    module = torch.jit.freeze(traced(network, inputs))
    for _ in range(2):
        module(*inputs)
    return module


def graphed(network: nn.Module, inputs: list[Tensor]) -> Forward:
    """One launch for all kernels; inputs are copied to where it reads them."""
    places = [one.clone() for one in inputs]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            network(*places)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        answer = network(*places)

    def forward(*given: Tensor) -> Tensor:
        for place, one in zip(places, given, strict=True):
            place.copy_(one)
        graph.replay()
        said: Tensor = answer
        return said

    return forward
