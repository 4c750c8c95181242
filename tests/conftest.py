"""What holds for every test: one thread, the same random numbers in any order, and an importable timm."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from training import torchvision_shim

torchvision_shim.apply()
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
