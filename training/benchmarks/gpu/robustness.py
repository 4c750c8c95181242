"""The kernel with too little memory, killed; and training by the usual command, stopped and resumed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from kernels.lumbar import predict
from kernels.lumbar.labels import UNITS
from kernels.lumbar.manifest import Shape
from kernels.lumbar.networks.loading import load_fastest
from kernels.lumbar.networks.weights import checked_bytes, golden_inputs, read_manifest
from kernels.lumbar.run import output_check
from training.benchmarks import parity
from training.benchmarks.kernel_run import KernelRun
from training.benchmarks.packages import write_package
from training.benchmarks.tables import BenchError, Record
from training.packaging.packs import collect
from training.recipe_schema.load import load_named
from training.runs import RunFolder

from .kernel_answers import MOST_APART, add_runs, cpus, options_of, run
from .parts import Setting

CAPPED_STUDIES, MOST_NETWORKS = 16, 5
# Of the memory that a network takes beyond its weights, and the kernel beyond its start, this share is left to it.
SHARE, KERNEL_SHARE = 0.45, 0.6
# Memory is reserved in blocks: a network that takes no more than a few fits under the cap all the same.
TOO_SMALL_BYTES = 64 * 2**20
MOST_APART_CAPPED = 0.05
KILLED_TIMES = 3
MOST_APART_KILLED = 5e-3
RECIPE = "split_and_global"
STOPPED = 3
# Trained networks react to real structures: half precision may move a probability further.
MOST_APART_TRAINED = 0.03
KILL_POLL_S, STOP_POLL_S = 0.05, 0.2
LOG_CHARACTERS = 1500


def memory_cap(setting: Setting, record: Record) -> None:
    """Under a cap networks take fewer rows at once, and answers stay: the largest ones, then the whole kernel."""
    if setting.device != "cuda":
        record.table("memory cap", ["what"]).rows.append(["only a GPU's memory can be capped: not measured"])
        return
    _capped_networks(setting, record)
    record.save()
    _capped_kernel(setting, record)


def _capped_networks(setting: Setting, record: Record) -> None:
    columns = ["network", "rows", "MiB uncapped", "rows under cap", "median difference"]
    table = record.table("memory cap, by network", columns)
    artefacts = read_manifest(setting.package / "manifest.json").artefacts
    by_work = sorted(artefacts, key=lambda one: -(one.provenance.gflops_per_study or 0.0))
    for artefact in by_work[:MOST_NETWORKS]:
        name = artefact.member.name
        loaded = load_fastest(artefact, checked_bytes(setting.package, artefact), torch.device("cuda"))
        rows = CAPPED_STUDIES * len(UNITS[artefact.member.unit])
        *views, present = golden_inputs(artefact.member, 3, rows)
        on_device = [view.cuda() for view in views], present.cuda()
        before = _free_memory()
        uncapped = loaded(*on_device)
        needed = torch.cuda.max_memory_reserved() - before
        _free_memory()
        _cap(before + SHARE * needed)
        try:
            capped = loaded(*on_device)
        finally:
            _cap(None)
        apart = float((capped - uncapped).abs().median())
        table.rows.append([name, rows, needed / 2**20, loaded.limit.rows, apart])
        halved = loaded.limit.rows is not None and loaded.limit.rows < rows
        record.check(halved or needed < TOO_SMALL_BYTES, f"{name}: rows were not halved")
        record.check(apart <= MOST_APART_CAPPED, f"{name}: under the cap it answers otherwise by {apart:.2g}")
        record.save()


def _capped_kernel(setting: Setting, record: Record) -> None:
    table = record.table("memory cap, the kernel", ["run", "peak MiB", "difference", "what"])
    uncapped, peak = _run_here(setting, "uncapped")
    table.rows.append(["uncapped", peak / 2**20, 0.0, uncapped.summary()])
    record.save()
    held = _free_memory()
    _cap(held + KERNEL_SHARE * (peak - held))
    capped, peak = _run_here(setting, "capped")
    _cap(None)
    table.rows.append(["capped", peak / 2**20, capped.largest_difference(uncapped), capped.summary()])
    most = capped.usual_difference(uncapped)
    record.check(most <= MOST_APART, f"under a cap 1 % of the rows differ by more than {most:.2g}")
    record.check(capped.report["studies"] == uncapped.report["studies"], f"under a cap: {capped.summary()}")


def _run_here(setting: Setting, name: str) -> tuple[KernelRun, int]:
    """Run the kernel in this process; its peak bytes."""
    _free_memory()
    out: Path = setting.work / name
    code = predict.main(options_of(setting, out, "cuda"))
    sys.stdout.flush()
    assert code == 0, f"the kernel ended with code {code}"
    return KernelRun.read(out, 0.0), torch.cuda.max_memory_reserved()


def _free_memory() -> int:
    """Give all cached memory back and restart the peak; the bytes still held."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_reserved()


def _cap(limit: float | None) -> None:
    """Let this process take so many bytes of the GPU's memory; None = all."""
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(1.0 if limit is None else min(1.0, limit / total))


def killed(setting: Setting, record: Record) -> None:
    """Kill the kernel once its first file exists, again when it has kept answers; compare with an undisturbed run."""
    times = 1 if setting.small else KILLED_TIMES
    whole = run(setting, "undisturbed", setting.device, times)
    out = setting.work / "killed"
    started = time.monotonic()
    command = [sys.executable, "-m", "kernels.lumbar.supervise", *options_of(setting, out, setting.device, times)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as supervisor:
        store = out / output_check.PROGRESS / output_check.STORE
        first = _kill(supervisor, store.exists)
        second = _kill(supervisor, lambda: _has_answers(store), last=first)
        code = supervisor.wait()
    done = KernelRun.read(out, time.monotonic() - started)
    kills = sum(pid is not None for pid in (first, second))
    apart = done.largest_difference(whole)
    table = record.table("killed", ["run", "seconds", "difference", "what"])
    table.rows.append(["undisturbed", whole.wall_s, 0.0, whole.summary()])
    table.rows.append([f"killed {kills} times", done.wall_s, apart, done.summary()])
    record.check(code == 0, f"the supervisor ended with code {code}")
    record.check(kills > 0, "the kernel ended before it could be killed")
    reported = done.report["problem_counts"].get("kernel-ended", 0)
    record.check(reported == kills, f"{kills} kills, and the report names {reported}")
    record.check(apart <= MOST_APART_KILLED, f"a probability differs by {apart:.2g}")
    record.check(done.report["studies"] == whole.report["studies"], done.summary())


def _kill(supervisor: subprocess.Popen[bytes], is_time: Callable[[], bool], last: int | None = None) -> int | None:
    """Kill the kernel when it is time, another than the last; its process id, None where it ended before."""
    while supervisor.poll() is None:
        time.sleep(KILL_POLL_S)
        child = _child_of(supervisor.pid)
        if child is not None and child != last and is_time():
            os.kill(child, signal.SIGKILL)
            return child
    return None


def _has_answers(store: Path) -> bool:
    """Whether a kernel has kept answers of graders."""
    try:
        with np.load(store, allow_pickle=False) as kept:
            return bool(kept["passes"].any())
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return False


def _child_of(parent: int) -> int | None:
    """The child process of another one, by /proc."""
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            pid, rest = status.read_text().split(" ", 1)
        except OSError:  # it has ended
            continue
        if int(rest.rpartition(")")[2].split()[1]) == parent:
            return int(pid)
    return None


def stopped_training(setting: Setting, record: Record) -> None:
    """Train a recipe in the smoke profile, stopped once on the way; package it; run the kernel on device and CPU."""
    table = record.table(f"training {RECIPE}, smoke", ["step", "seconds", "what"])
    shutil.rmtree(setting.work / "runs", ignore_errors=True)  # of an earlier bench
    for name, stop in (("stopped after an epoch", True), ("to its end", False)):
        started = time.monotonic()
        code = _train(setting, stop)
        table.rows.append([name, time.monotonic() - started, f"code {code}"])
        record.check(not stop or code == STOPPED, f"stopped, it ends with code {code}, not {STOPPED}")
        record.save()
    folder = RunFolder(setting.work / "runs", load_named(RECIPE, "smoke"))
    table.rows.append(["score out of fold", None, folder.score.read_text().replace("\n", " ")])
    runs = collect(folder, [0], allow_partial=False)
    package = setting.work / "trained"
    write_package(package, {RECIPE: runs}, Shape.model_validate_json(folder.shape.read_bytes()))
    parity.compare(package, torch.device(setting.device), record, lambda: setting.is_late)
    cpu = run(setting, "trained-on-cpu", cpus(3), package=package)
    device = run(setting, "trained-on-device", setting.device, package=package)
    add_runs({"kernel, CPU": cpu, f"kernel, {setting.device}": device}, len(runs), table, record)
    table.rows.append(["largest difference of a probability", device.largest_difference(cpu), ""])
    most = device.usual_difference(cpu)
    record.check(most <= MOST_APART_TRAINED, f"with trained networks 1 % of the rows differ by more than {most:.3g}")


def _train(setting: Setting, stop: bool) -> int:
    """Run the command; its exit code.  Raises BenchError where it is neither 0 nor that of a stopped one."""
    runs, log = setting.work / "runs", setting.work / f"training-{'stopped' if stop else 'ended'}.log"
    given = ["--data", setting.data, "--runs", runs, "--profile", "smoke", "--recipes", RECIPE, "--folds", "0"]
    command = [sys.executable, "-m", "training.train_all", *given, "--jobs", max(1, (os.cpu_count() or 1) // 2)]
    with log.open("wb") as stream:
        child = subprocess.Popen([*map(str, command)], stdout=stream, stderr=stream)
        while stop and child.poll() is None and not any(runs.glob(f"{RECIPE}/smoke/*/fold0/history.csv")):
            time.sleep(STOP_POLL_S)
        if stop and child.poll() is None:
            child.send_signal(signal.SIGTERM)
        code = child.wait()
    if code not in (0, STOPPED):
        raise BenchError(f"train_all ended with code {code}: {log.read_text(errors='replace')[-LOG_CHARACTERS:]}")
    return code
