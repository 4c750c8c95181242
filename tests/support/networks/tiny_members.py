"""Members with the smallest backbones and images, and synthetic samples that a network can learn in seconds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from kernels.lumbar.manifest import Provenance
from kernels.lumbar.specs import Member, SliceChoice, ViewRequest
from training.data.samples.batch import Batch
from training.recipe_schema.fitting import Fitting, Network, Optimisation
from training.recipe_schema.schema import Backbone, MemberRecipe

PROVENANCE = Provenance(
    recipe="tiny",
    network="tiny",
    backbone="tiny",
    fold=0,
    seed=0,
    profile="smoke",
    torch_version="",
    git_commit="none",
    data_fingerprint="none",
)
LOCALISER_TARGETS = ("left_subarticular_stenosis", "right_subarticular_stenosis")
GLOBAL_TARGETS = (
    "left_neural_foraminal_narrowing",
    "left_subarticular_stenosis",
    "right_neural_foraminal_narrowing",
    "right_subarticular_stenosis",
    "spinal_canal_stenosis",
)


def view(size_px: int, slices: int = 3, series: str = "axial_t2") -> ViewRequest:
    return ViewRequest(series=series, slices=SliceChoice(by="middle", count=slices), size_px=size_px)  # type: ignore[arg-type]


def optimisation(**changes: Any) -> Optimisation:
    return Optimisation.model_validate({"epochs": 2, "batch_size": 4, "learning_rate": 3e-3, **changes})


def localiser(size_px: int = 32, options: dict[str, Any] | None = None, **changes: Any) -> MemberRecipe:
    """deeplab_heatmap on one axial view, two targets."""
    small = {"encoder": "tu-test_resnet", "decoder": "unet", "decoder_channels": [16, 8, 8], "depth": 3}
    network = Network(name="deeplab_heatmap", options={"pretrained": False, **(small if options is None else options)})
    member = Member(
        name="tiny_localiser", role="localiser", unit="level", inputs=(view(size_px),), targets=LOCALISER_TARGETS
    )
    fitting = Fitting(network=network, loss="heatmap_mse", optimisation=optimisation(**changes), sigma_px=3)
    return MemberRecipe(member=member, fitting=fitting)


def grader(
    network: str = "split_gru",
    backbone: str = "test_resnet",
    size_px: int = 32,
    options: dict[str, Any] | None = None,
    **changes: Any,
) -> MemberRecipe:
    """split_gru on two views and one target, or global_gru on five and five."""
    views, targets = (5, GLOBAL_TARGETS) if network == "global_gru" else (2, ("spinal_canal_stenosis",))
    member = Member(
        name=f"tiny_{network}", role="grader", unit="level", inputs=(view(size_px),) * views, targets=targets
    )
    fitting = Fitting(
        network=Network(name=network, options={"hidden": 8, **(options or {})}),
        loss="weighted_cross_entropy",
        optimisation=optimisation(**changes),
    )
    tiny = Backbone(timm=backbone, size_px=size_px, learning_rate=3e-3, pretrained=False)
    return MemberRecipe(member=member, backbone=tiny, fitting=fitting)


def blobs(recipe: MemberRecipe, count: int, generator: torch.Generator) -> Batch:
    """Images with a bright blob at each landmark, the second one half as bright.

    Every seventh sample's first landmark is unlabelled.
    """
    request, targets = recipe.member.inputs[0], len(recipe.member.targets)
    size = request.size_px
    places = torch.rand(count, targets, 2, generator=generator) * size * 0.6 + size * 0.2
    axis = torch.arange(size, dtype=torch.float32)
    profiles = torch.exp(-0.5 * ((axis - places[..., None]) / 2) ** 2)
    bright = 4 / torch.arange(1, targets + 1)
    image = (profiles[:, :, 0, :, None] * profiles[:, :, 1, None, :] * bright[:, None, None]).sum(1)
    noise = torch.randn(count, request.slices.count, size, size, generator=generator)
    target = torch.cat([torch.ones(count, targets, 1), places], 2)
    target[::7, 0] = torch.nan
    return Batch((image[:, None] + 0.1 * noise,), torch.ones(count, 1), target)


def greys(recipe: MemberRecipe, count: int, generator: torch.Generator) -> Batch:
    """Noise around a grey that says the severity; every fifth sample lacks its last view, every seventh a label."""
    member = recipe.member
    severity = torch.randint(0, 3, (count,), generator=generator)
    views = []
    for request in member.inputs:
        noise = torch.randn(count, request.slices.count, request.size_px, request.size_px, generator=generator)
        views.append(noise + (severity - 1.0)[:, None, None, None])
    present = torch.ones(count, len(views))
    present[::5, -1] = 0
    views[-1] = views[-1] * present[:, -1, None, None, None]
    target = severity[:, None].repeat(1, len(member.targets))
    target[::7, 0] = -100
    return Batch(tuple(views), present, target)


class TinySamples:
    """Samples made on the spot; at `dies_at` = (epoch, batch) comes a KeyboardInterrupt, as a killed run would end."""

    def __init__(
        self, recipe: MemberRecipe, steps: int = 3, held_out: int = 9, dies_at: tuple[int, int] | None = None
    ) -> None:
        self.recipe, self.steps_per_epoch, self.held_out, self.dies_at = recipe, steps, held_out, dies_at

    def _batch(self, count: int, seed: int) -> Batch:
        make = blobs if self.recipe.member.role == "localiser" else greys
        return make(self.recipe, count, torch.Generator().manual_seed(seed))

    def training(self, epoch: int) -> Iterator[Batch]:
        for number in range(self.steps_per_epoch):
            if (epoch, number) == self.dies_at:
                raise KeyboardInterrupt
            yield self._batch(self.recipe.fitting.optimisation.batch_size, 1000 * epoch + number)

    def validation(self) -> Iterator[Batch]:
        for start in range(0, self.held_out, 4):
            yield self._batch(min(4, self.held_out - start), 10**6 + start)
