"""The kernel on a device against the CPU: each network, the whole run, several workers; its seconds by stage."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from kernels.lumbar.networks.devices import STUDIES_ON_GPU
from kernels.lumbar.networks.weights import read_manifest
from training.benchmarks import parity
from training.benchmarks.kernel import HIDDEN_STUDIES
from training.benchmarks.kernel_run import KernelRun, kernel_options, run_kernel
from training.benchmarks.packages import SEED
from training.benchmarks.studies import choose_studies, link_test_studies
from training.benchmarks.tables import Record, Table
from training.phantom.dataset import Options, make_dataset

from .parts import Setting

ALL = 10_000
# Largest difference of 99 % of the rows: half precision is taken where it moves no logit by more than a hundredth.
MOST_APART = 0.02
STAGE_STUDIES, STAGE_TIMES = 6, 4
KEYS = ["study_id", "route", "row"]
AXES = ["x_mm", "y_mm", "z_mm"]
SHARES = (50, 90, 99, 100)


def options_of(
    setting: Setting, out: Path, devices: str, times: int = 1, package: Path | None = None, **more: object
) -> list[str]:
    """The kernel's options, for each test study so many times; links the studies."""
    competition = setting.work / f"studies-{out.name}"
    if not competition.is_dir():
        studies = choose_studies(setting.data, ALL)
        assert studies is not None
        link_test_studies(competition, studies, times)
    package = package or setting.package
    return kernel_options(package, competition, out, devices, time_limit=setting.seconds, **more)


def run(
    setting: Setting, name: str, devices: str, times: int = 1, package: Path | None = None, **more: object
) -> KernelRun:
    """Run the kernel in a process of its own, two torch threads a worker.  Raises BenchError."""
    out = setting.work / name
    return run_kernel(options_of(setting, out, devices, times, package, **more), out, threads=2)


def cpus(most: int = 6) -> str:
    """Workers on the CPU, two threads each."""
    return ",".join(["cpu"] * max(1, min(most, (os.cpu_count() or 1) // 2)))


def parity_of_packages(setting: Setting, record: Record) -> None:
    """Network by network, of all packages that there are."""
    for folder in filter(None, (setting.foreign, setting.package)):
        parity.compare(folder, torch.device(setting.device), record, lambda: setting.is_late)


def on_both_devices(setting: Setting, record: Record) -> None:
    """Every row of the two submissions, and every landmark."""
    with ThreadPoolExecutor(2) as pool:
        on_cpu = pool.submit(run, setting, "on-cpu", cpus())
        on_device = pool.submit(run, setting, "on-device", setting.device)
        cpu, device = on_cpu.result(), on_device.result()
    members = len(read_manifest(setting.package / "manifest.json").artefacts)
    table = record.table("submission on CPU and device", ["run", "seconds", "what"])
    add_runs({"CPU": cpu, setting.device: device}, members, table, record)
    apart = np.abs(cpu.answers - device.answers).max(1)
    differ = record.table("largest difference of a probability, row by row", ["share of rows", "at most"])
    differ.rows += [[f"{share} %", float(np.percentile(apart, share))] for share in SHARES]
    differ.rows += [["rows", len(apart)], ["spread of the answers", float(cpu.answers.std(0).mean())]]
    most = device.usual_difference(cpu)
    record.check(most <= MOST_APART, f"1 % of the rows differ by more than {most:.3g}, not {MOST_APART}")
    points, others = (pd.read_csv(one.out / "landmarks.csv").set_index(KEYS)[AXES] for one in (cpu, device))
    away_mm = np.linalg.norm((points - others).dropna(), axis=1)
    marks = record.table("landmarks on CPU and device, mm apart", ["share of landmarks", "at most"])
    marks.rows += [[f"{share} %", float(np.percentile(away_mm, share))] for share in SHARES]


def add_runs(runs: dict[str, KernelRun], members: int, table: Table, record: Record) -> None:
    """A row a run, and its faults."""
    for name, one in runs.items():
        table.rows.append([name, one.wall_s, one.summary()])
        for fault in one.faults(members):
            record.check(False, f"{name}: {fault}")


def with_workers(setting: Setting, record: Record) -> None:
    """One worker twice, two workers on the same device: all the same bytes."""
    table = record.table("workers on one device", ["workers", "seconds", "bytes as the first", "largest difference"])
    workers = {"one": setting.device, "one again": setting.device, "two": f"{setting.device},{setting.device}"}
    first: KernelRun | None = None
    for name, devices in workers.items():
        done = run(setting, f"workers-{name.replace(' ', '-')}", devices, times=2)
        first = first or done
        same = done.submission == first.submission
        table.rows.append([name, done.wall_s, str(same), done.largest_difference(first)])
        record.check(same, f"workers, {name}: the submission is not the same bytes as of one worker")
        record.save()


def stages(setting: Setting, record: Record) -> None:
    """Seconds a study by stage, with full-size images and the smoke profile's networks, in one worker."""
    studies, scale, times = (1, 0.25, 1) if setting.small else (STAGE_STUDIES, 1.0, STAGE_TIMES)
    full = setting.model_copy(update={"work": setting.work / "full-size"})
    make_dataset(full.data, Options(0, studies, SEED, scale), jobs=os.cpu_count() or 1, keep=True)
    done = run(full, "out", setting.device, times, setting.package, batch=STUDIES_ON_GPU)
    columns = ["stage", "ms a study", "CPU ms a study"]
    table = record.table(f"stages, {done.studies} studies, one worker: {done.summary()}", columns)
    for name, seconds in sorted(done.clocks.items()):
        table.rows.append([name, 1e3 * seconds / done.studies, 1e3 * done.clocks_cpu[name] / done.studies])
    loading = done.clocks.get("loading", 0.0)
    each_s = (done.total_s - loading) / done.studies
    table.rows.append(["all but loading", 1e3 * each_s, 1e3 * done.study_cpu_s])
    table.remarks = [
        "threads beside the forwards do the reading and cutting",
        f"{HIDDEN_STUDIES} studies: {each_s * HIDDEN_STUDIES / 60:.1f} minutes with these; loading {loading:.0f} s",
        f"peak memory of the process: {done.peak_mib:.0f} MiB",
    ]
