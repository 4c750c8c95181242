"""What the write-ups state in numbers and words, as the recipes hold it in the profile `full`: PAPERS.md as a test."""

from __future__ import annotations

from operator import attrgetter
from typing import Any

import pytest

from training.recipe_schema.load import load_named
from training.recipe_schema.schema import MemberRecipe

SYSTEMS = ("level_sequence", "slice_experts", "slice_transformer", "split_and_global", "view_fusion")
FULL = {one.member.name: one for system in SYSTEMS for one in load_named(system, "full").members()}


def slices_of(one: MemberRecipe) -> list[tuple[str, int]]:
    """How slices are chosen and how many, of each view."""
    return [(view.slices.by, view.slices.count) for view in one.member.inputs]


def network_options(one: MemberRecipe, *names: str) -> tuple[Any, ...]:
    return tuple(one.fitting.network.options.get(name) for name in names)


POOLS_AND_SLICES = {
    # Of few slices the median and the mean, of all slices with their validity; attention pools of all and of three.
    "spinal_coatnet": ("median", [("landmark", 3)]),
    "spinal_mean_coatnet": ("mean", [("landmark", 3)]),
    "spinal_all_slices_coatnet": ("valid", [("middle", 13)]),
    "spinal_pool_coatnet_pool": ("attention", [("middle", 13)]),
    "foraminal_coatnet": ("gated", [("landmark", 5)]),
    "foraminal_plain_coatnet": ("median", [("landmark", 3)]),
    "foraminal_pool_coatnet_pool": ("attention", [("landmark", 3)]),
    "subarticular_coatnet": ("median", [("landmark", 3)]),
    "subarticular_pool_coatnet_pool": ("attention", [("landmark", 3)]),
    "subarticular_pool_more_resnest_pool": ("attention", [("landmark", 3)]),
    "all_coatnet": ("mean", [("landmark", 3)] * 5),
    "all_pool_coatnet_pool": ("attention", [("landmark", 3)] * 5),
}


@pytest.mark.parametrize("name", POOLS_AND_SLICES)
def test_pools_and_slices_of_the_second_place(name: str):
    one = FULL[f"slice_experts_{name}"]
    assert (one.fitting.network.options["pooling"], slices_of(one)) == POOLS_AND_SLICES[name]
    assert bool(one.fitting.network.options.get("agnostic")) == name.startswith("all_")
    if name.startswith("all_pool"):
        weight = load_named("slice_experts", "full").graders["all_pool"].weight
        assert weight == {"spinal": 1.0, "foraminal": 0.0, "subarticular": 0.0}


def test_what_is_published_of_all_slices_learns_which_are_valid():
    assert FULL["slice_experts_spinal_all_slices_coatnet"].fitting.loss == "valid_slices_bce"


# csn's published weights are on no hub: effnet, of the same tables, stands in.
MAXVIT, EFFNET, COATNET, TINY_VIT = "maxvit_tiny_tf_512", "tf_efficientnetv2_m", "coatnet_1_rw_224", "tiny_vit_21m_224"
FOUR = {MAXVIT, EFFNET, COATNET, TINY_VIT}
POOLED = {MAXVIT, EFFNET, COATNET}
ENCODERS = {
    "slice_experts": {
        "spinal": FOUR | {"dm_nfnet_f0"},
        "spinal_mean": FOUR | {"dm_nfnet_f0"},
        "spinal_axial": FOUR | {"dm_nfnet_f0"},
        "spinal_all_slices": FOUR,
        "spinal_pool": POOLED,
        "foraminal": FOUR,
        "foraminal_plain": FOUR,
        "foraminal_pool": POOLED,
        "subarticular": FOUR | {"dm_nfnet_f0"},
        "subarticular_pool": POOLED,
        "subarticular_pool_more": {"dm_nfnet_f0", "resnest50d", "convnext_tiny"},
        "all": FOUR | {"dm_nfnet_f0"},
        "all_pool": POOLED,
    },
    "level_sequence": dict.fromkeys(
        ("conditions", "conditions_skip", "slices"),
        {"convnext_small", "convnext_tiny.in12k", "caformer_s18", "pvt_v2_b3"},
    ),
    "view_fusion": dict.fromkeys(
        ("fusion", "spinal_rois", "foraminal_rois", "subarticular_rois"),
        {"pvt_v2_b1", "pvt_v2_b2", "convnext_tiny", "convnext_small", "densenet161"},
    ),
    "split_and_global": dict.fromkeys(
        ("spinal", "foraminal", "subarticular", "global"),
        {"resnet18", "swin_tiny_patch4_window7_224", "convnext_nano"},
    ),
    "slice_transformer": dict.fromkeys(("spinal", "spinal_axial", "foraminal", "subarticular"), {"resnet18"}),
}


@pytest.mark.parametrize("system", SYSTEMS)
def test_encoders_of_the_graders_are_the_published_ones(system: str):
    recipe = load_named(system, "full")
    encoders = {name: {recipe.backbones[one].timm for one in recipe.backbones_of(name)} for name in recipe.graders}
    assert encoders == ENCODERS[system]


def test_one_backbone_a_fold_leaves_no_fold_out():
    recipe = load_named("slice_experts", "full")
    for name in recipe.graders:
        folds = [fold for one in recipe.backbones_of(name) for fold in recipe.backbones[one].folds or ()]
        assert sorted(folds) == [0, 1, 2, 3, 4], name


FAMILIES = {
    # encoder, sequence model, row and column, slices: T2, T1, axial
    "": ("tu-regnety_002", "lstm", None, (32, 32, 64)),
    "_b5": ("tu-tf_efficientnet_b5", "lstm", None, (32, 32, 64)),
    "_fixed": ("tu-regnety_002", "transformer", "fixed", (29, 38, 192)),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_three_families_of_localisers_of_the_fifth_place(family: str):
    encoder, along, place, counts = FAMILIES[family]
    for series, count in zip(("sagittal_t2", "sagittal_t1", "axial_t2"), counts, strict=True):
        one = FULL[f"level_sequence_{series}{family}"]
        assert network_options(one, "encoder", "along", "place") == (encoder, along, place)
        assert slices_of(one) == [("all", count)]
        assert one.fitting.optimisation.batch_size == 2
        large = series == "axial_t2" and family == "_b5"
        assert one.fitting.optimisation.activation_checkpointing == large, "of its samples one needs 10 GB"
        assert bool(one.fitting.network.options.get("sides")) == (series == "axial_t2")


VALUES = {
    "slice_experts_spinal_coatnet": {
        "fitting.optimisation.epochs": 10,
        "fitting.optimisation.batch_size": 32,
        "fitting.optimisation.learning_rate": 0.0003,
        "fitting.loss": "weighted_bce",
        "fitting.augmentation.rotate_deg": 30,
        "fitting.augmentation.dihedral": 0.75,
        "fitting.augmentation.mirror": 0.5,
    },
    "slice_experts_foraminal_coatnet": {"fitting.optimisation.epochs": 7},
    "slice_experts_spinal_axial_coatnet": {"fitting.optimisation.epochs": 5},
    "slice_experts_sagittal_t2": {"fitting.optimisation.epochs": 25, "fitting.optimisation.batch_size": 16},
    "level_sequence_conditions_convnext_tiny": {
        "fitting.loss": "cross_entropy",
        "fitting.optimisation.epochs": 20,
        "fitting.optimisation.batch_size": 4,
        "fitting.optimisation.whole_studies": True,
        "fitting.augmentation.cutmix": 1.0,
        "fitting.augmentation.blend_alpha": 4,
        "fitting.second_step.parts": ("heads",),
        "fitting.second_step.loss": "competition",
        "fitting.second_step.optimisation.epochs": 10,
    },
    "level_sequence_sagittal_t2": {
        "fitting.loss": "heat_and_pointer_bce",
        "fitting.sigma_px": 4,
        "fitting.optimisation.epochs": 40,
        "fitting.optimisation.batch_size": 2,
    },
    "view_fusion_fusion_convnext_tiny": {
        "fitting.optimisation.batch_size": 32,
        "fitting.optimisation.ema_decay": 0.99,
        "fitting.augmentation.mixup": 0.2,
        "fitting.augmentation.mixup_epochs": 6,
        "member.tta": ("mirror", "front_to_back"),
    },
    # Two halves of 8 make one step.
    "view_fusion_sagittal_t2_volume": {
        "fitting.optimisation.batch_size": 16,
        "fitting.optimisation.epochs": 35,
        "fitting.optimisation.learning_rate": 0.0006,
    },
    "view_fusion_sagittal_t1_volume": {"fitting.optimisation.batch_size": 16, "fitting.optimisation.epochs": 35},
    "view_fusion_sagittal_t1_sampled": {"fitting.optimisation.learning_rate": 0.0008},
    "split_and_global_sagittal_t2": {
        "fitting.loss": "heatmap_mse",
        "fitting.optimisation.epochs": 30,
        "fitting.optimisation.batch_size": 16,
        "fitting.optimisation.learning_rate": 0.001,
        "fitting.optimisation.schedule": "cosine",
    },
    "split_and_global_sagittal_t1": {"fitting.optimisation.epochs": 20},
    "split_and_global_axial_t2": {"fitting.optimisation.epochs": 10},
    "split_and_global_spinal_resnet18": {
        "fitting.optimisation.epochs": 5,
        "fitting.augmentation.slice_shuffle_series": ("axial_t2",),
    },
    "split_and_global_foraminal_resnet18": {"fitting.optimisation.epochs": 3},
    "split_and_global_subarticular_resnet18": {"fitting.optimisation.epochs": 3},
    "split_and_global_global_resnet18": {"fitting.optimisation.epochs": 5},
    "slice_transformer_axial_t2": {"fitting.augmentation.slice_jitter": "localiser", "fitting.optimisation.epochs": 6},
}


@pytest.mark.parametrize("name", VALUES)
def test_what_is_published_as_a_number(name: str):
    one = FULL[name]
    assert {path: attrgetter(path)(one) for path in VALUES[name]} == VALUES[name]


@pytest.mark.parametrize("along", ["conditions", "conditions_skip", "slices"])
def test_sequences_of_the_fifth_place(along: str):
    assert network_options(FULL[f"level_sequence_{along}_convnext_tiny"], "along") == (along,)


SLICES = {
    "view_fusion_fusion_convnext_tiny": [("middle", 5), ("landmark", 5), ("landmark", 5), ("landmark", 5)],
    "view_fusion_spinal_rois_convnext_tiny": [("landmark", 3)] * 5,
    "view_fusion_foraminal_rois_convnext_tiny": [("landmark", 3)] * 5,
    "view_fusion_subarticular_rois_convnext_tiny": [("landmark", 4)] * 5 + [("landmark", 3)] * 5,
    "view_fusion_sagittal_t2_sampled": [("all", 10)],
    "view_fusion_sagittal_t1_sampled": [("all", 10)],
    "view_fusion_sagittal_t2_volume": [("all", 32)],
    "level_sequence_conditions_convnext_tiny": [("landmark", 5)] * 5,
    "split_and_global_sagittal_t2": [("middle", 5)],
    "split_and_global_sagittal_t1": [("offset", 3)],
    "split_and_global_axial_t2": [("landmark", 3)],
}


@pytest.mark.parametrize("name", SLICES)
def test_slices_that_are_published(name: str):
    assert slices_of(FULL[name]) == SLICES[name]


@pytest.mark.parametrize("system", SYSTEMS)
def test_five_folds(system: str):
    assert load_named(system, "full").folds == 5


def test_foramina_of_the_ninth_place_lie_where_published():
    """mm from the middle, by level."""
    (view,) = FULL["split_and_global_foraminal_resnet18"].member.inputs
    offsets = view.slices.offset_mm
    assert isinstance(offsets, dict) and list(offsets.values()) == [14.9, 15.7, 16.7, 17.8, 18.9]
