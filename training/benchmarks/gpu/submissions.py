"""The kernel's submission on the device against the CPU's, and with two lanes on one device against one."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd

from kernels.lumbar.networks.weights import read_manifest

from .kernel_runs import KernelRun, cpus, run, worst
from .setting import Record, Setting

# A probability may differ so much: half precision is taken where it changes no logit by more than a hundredth.
MOST_APART = 0.02


def on_both_devices(setting: Setting, record: Record) -> None:
    """Every row of the two submissions, and every landmark."""
    with ThreadPoolExecutor(2) as pool:
        here = pool.submit(run, setting, "on-cpu", cpus())
        there = pool.submit(run, setting, "on-device", setting.device)
        compare(here.result(), there.result(), setting, record)


def compare(here: KernelRun, there: KernelRun, setting: Setting, record: Record) -> None:
    """What both runs say of themselves, how far probabilities and landmarks lie apart."""
    members = len(read_manifest(setting.package / "manifest.json").artefacts)
    table = record.table("submission on CPU and device", ["run", "seconds", "what"])
    for name, one in (("cpu", here), (setting.device, there)):
        table.rows.append([name, one.seconds, one.summary()])
        for fault in one.faults(members):
            record.check(False, f"{name}: {fault}")
    apart = np.abs(here.answers - there.answers).max(1)
    differ = record.table("largest difference of a probability, row by row", ["share of rows", "at most"])
    differ.rows += [[f"{share} %", float(np.percentile(apart, share))] for share in (50, 90, 99, 100)]
    differ.rows.append(["rows", len(apart)])
    differ.rows.append(["spread of the answers", float(here.answers.std(0).mean())])
    record.check(apart.max() <= MOST_APART, f"a probability differs by {apart.max():.3g}, not {MOST_APART}")
    keys = ["study_id", "route", "row"]
    both = pd.read_csv(here.out / "landmarks.csv").merge(pd.read_csv(there.out / "landmarks.csv"), on=keys)
    axes = [f"{axis}_mm" for axis in "xyz"]
    away = np.linalg.norm(both[[f"{one}_x" for one in axes]].to_numpy() - both[[f"{one}_y" for one in axes]], axis=1)
    marks = record.table("landmarks on CPU and device, mm apart", ["share of landmarks", "at most"])
    marks.rows += [[f"{share} %", float(np.percentile(away, share))] for share in (50, 90, 99, 100)]


def in_lanes(setting: Setting, record: Record) -> None:
    """One lane twice, two lanes on the same device: all the same bytes."""
    table = record.table("lanes on one device", ["lanes", "seconds", "bytes as the first", "largest difference"])
    runs = {"one": setting.device, "one again": setting.device, "two": f"{setting.device},{setting.device}"}
    first: KernelRun | None = None
    for name, devices in runs.items():
        done = run(setting, f"lanes-{name.replace(' ', '-')}", devices, times=2)
        first = first or done
        table.rows.append([name, done.seconds, str(done.bytes == first.bytes), worst(done, first)])
        record.save()
    record.check(all(row[2] == "True" for row in table.rows), "the lanes' submissions are not the same bytes")
