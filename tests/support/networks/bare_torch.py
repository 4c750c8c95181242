"""Runs exported networks in a process that has torch and numpy, and refuses to import anything else."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

# What only a bare torch with numpy may need: everything else is refused.
BARE = """
import json, sys
import importlib.abc

class Refuse(importlib.abc.MetaPathFinder):
    names = {"timm", "segmentation_models_pytorch", "torchvision", "training", "kernels", "pydantic", "cv2", "pandas"}
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in self.names:
            raise ImportError("refused: " + name)

sys.meta_path.insert(0, Refuse())
import warnings
warnings.simplefilter("ignore")
import numpy as np
import torch
torch.set_num_threads(1)
for job in json.loads(sys.stdin.read()):
    inputs = [torch.from_numpy(value) for value in np.load(job["inputs"]).values()]
    with torch.no_grad():
        np.save(job["answer"], torch.jit.load(job["weights"]).eval()(*inputs).numpy())
"""


def bare_answers(networks: Sequence[tuple[Path, Sequence[torch.Tensor]]], scratch: Path) -> list[np.ndarray]:
    """What the weights.ts of each folder answers to its inputs, in that process."""
    jobs = []
    for number, (folder, inputs) in enumerate(networks):
        np.savez(scratch / f"inputs{number}.npz", *[tensor.numpy() for tensor in inputs])
        names = {"inputs": f"inputs{number}.npz", "answer": f"answer{number}.npy"}
        jobs.append(
            {**{key: str(scratch / name) for key, name in names.items()}, "weights": str(folder / "weights.ts")}
        )
    empty = scratch / "empty"
    empty.mkdir()
    command = [sys.executable, "-I", "-c", BARE]
    done = subprocess.run(command, input=json.dumps(jobs), cwd=empty, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [np.load(job["answer"]) for job in jobs]
