"""Schema of `fitting` in recipes: architecture, loss, optimiser, augmentation, label correction of one network."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from kernels.lumbar.specs import GrownSpec, SeriesKind, Spec

Precision = Literal["float16", "bfloat16", "float32"]


class Network(Spec):
    """An architecture of training/networks by its file name, and its options."""

    name: str
    options: dict[str, Any] = {}


class Optimisation(GrownSpec):
    """Optimiser and schedule.  AdamW throughout, as in all systems."""

    LATER = ("activation_checkpointing",)

    epochs: int = Field(ge=1)
    batch_size: int = Field(default=16, ge=1)
    learning_rate: float = Field(gt=0)
    weight_decay: float = Field(default=0.01, ge=0)
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    """cosine: to zero over all steps; step: multiplied by step_factor every step_epochs."""
    step_epochs: int = Field(default=2, ge=1)
    step_factor: float = Field(default=0.1, gt=0, le=1)
    warmup: float = Field(default=0.0, ge=0, lt=1)
    """Share of all steps in which the rate rises linearly from zero."""
    whole_studies: bool = False
    """Batches of batch_size studies with all their units, for losses over all levels of a study."""
    accumulate: int = Field(default=1, ge=1)
    """Gradient accumulation: a batch is split into so many parts, which need that much less memory, and into more where
    these do not fit it."""
    activation_checkpointing: bool = False
    """timm encoders compute their activations again in the backward pass, for less memory and a third more time."""
    gradient_norm: float | None = Field(default=1.0, gt=0)
    """Longer gradients are shortened to this norm; None = they are not."""
    precision: Precision = "float16"
    """Autocast dtype on a GPU; a CPU computes in float32."""
    deterministic: bool = False
    """On a GPU: deterministic algorithms only, which is slower."""
    ema_decay: float | None = Field(default=None, gt=0, lt=1)
    keep: Literal["best", "last"] = "last"
    """Epoch whose weights are exported: the last; or that of the best validation loss, which is chosen on the studies
    of the out-of-fold score and so makes it look better than it is."""


class Augmentation(Spec):
    """Augmentation of training inputs before normalisation.

    Rotation, shear, scale and jitter are part of the one sampling that cuts a crop; the rest happens on the device.
    """

    rotate_deg: float = Field(default=0.0, ge=0, le=180)
    shear_deg: float = Field(default=0.0, ge=0, lt=60)
    scale: float = Field(default=0.0, ge=0, lt=1)
    """Largest relative change of size."""
    sharpen_or_blur: float = Field(default=0.0, ge=0, le=1)
    """Probability that an image is sharpened or motion-blurred (one of the two, evenly)."""
    slice_shuffle: float = Field(default=0.0, ge=0, le=1)
    """Probability that the slices of a view are put in random order."""
    slice_shuffle_series: tuple[SeriesKind, ...] = ("sagittal_t1", "sagittal_t2", "axial_t2")
    brightness: float = Field(default=0.0, ge=0, lt=1)
    contrast: float = Field(default=0.0, ge=0, lt=1)
    noise: float = Field(default=0.0, ge=0, lt=1)
    """Standard deviation of added noise, as a share of the full grey scale."""
    gamma: float = Field(default=0.0, ge=0, le=3)
    """Largest |log2| of the exponent of the grey scale."""
    bias_field: float = Field(default=0.0, ge=0, le=2)
    """Standard deviation of the logarithm of a smooth factor over the image, as of a receive coil."""
    mirror: float = Field(default=0.0, ge=0, le=1)
    """Probability that a sample is mirrored, with left and right targets exchanged."""
    front_to_back: float = Field(default=0.0, ge=0, le=1)
    """Graders: probability that front and back are exchanged in all views."""
    dihedral: float = Field(default=0.0, ge=0, le=1)
    """Graders of one target: probability of a random turn by quarters and a flip, the same for all slices."""
    mixup: float = Field(default=0.0, ge=0, le=1)
    """Graders: probability that a batch is blended, images and loss, with itself in another order; with
    `whole_studies` in another order of its studies, each level with the same level."""
    mixup_epochs: int | None = Field(default=None, ge=1)
    """Only in the first so many epochs; None = in all."""
    cutmix: float = Field(default=0.0, ge=0, le=1)
    """Graders: probability that one box of all images of a batch is taken from the batch in another order, as in
    `mixup`."""
    blend_alpha: float = Field(default=4.0, gt=0)
    """Both parameters of the Beta distribution of a blend's share."""
    jitter_mm: float | Literal["localiser"] = 0.0
    """Standard deviation (each axis) of the crop centre; `localiser`: the fold's localisation error."""
    slice_jitter: Annotated[int, Field(ge=0, le=4)] | Literal["localiser"] = 0
    """Largest shift of a crop's slice window, in slices; whole images keep theirs.  `localiser`: the landmark that
    chooses the slices is off by one of the fold's measured localisation errors, along the normal of the slices; crops
    and whole images whose slices no landmark chooses keep theirs.  Of localisers: the error of those that find this
    landmark, which are trained before."""


class Pretraining(Spec):
    """A first fit on published images of single slices (training/data/external.py), if they are given."""

    epochs: int = Field(ge=1)
    learning_rate: float = Field(gt=0)
    sources: tuple[Literal["lsd", "osf", "spider", "tseg"], ...] = ("lsd", "osf", "spider", "tseg")
    """Sagittal T2 (lsd, spider), T1 (osf) and CT (tseg)."""


class SecondFit(Spec):
    """`second_step`: a second fit from the weights of the first; some parts are reinitialised, the others frozen."""

    parts: tuple[str, ...] = Field(min_length=1)
    """Names of the network's modules."""
    loss: str
    loss_options: dict[str, float] = {}
    optimisation: Optimisation


class Labels(GrownSpec):
    """Correction of graders' labels by the out-of-fold predictions of an earlier run, or soft labels (LABELS=)."""

    LATER = ("soft",)

    doubt: float | None = Field(default=None, gt=0, lt=1)
    """Labels with a predicted probability below 1 - doubt are dropped: 0.8 in the 2nd place's noise reduction."""
    guess: float | None = Field(default=None, gt=0, lt=1)
    """Missing labels are imputed where one severity has more than this probability."""
    soft: float | None = Field(default=None, gt=0, le=1)
    """Share of the predictions in the targets, as probabilities beside the label: 0.5 in the 2nd place's second step;
    alone where the label is missing."""

    @property
    def any(self) -> bool:
        """Whether labels are corrected."""
        return self.doubt is not None or self.guess is not None or self.soft is not None


class Auxiliary(Spec):
    """Heads of a grader that only the loss of training sees, each by its weight in that loss; 0 = there is none."""

    depth: float = Field(default=0.0, ge=0, le=10)
    """Which slice of the first view is nearest to the target (cross entropy over its slices)."""
    streams: float = Field(default=0.0, ge=0, le=10)
    """The severity from each view alone (the mean of the network's own loss over the views)."""

    @property
    def heads(self) -> tuple[str, ...]:
        """Names of the heads there are."""
        return tuple(name for name in ("depth", "streams") if getattr(self, name))


class Fitting(GrownSpec):
    """How one network is built and fitted."""

    LATER = ("start", "auxiliary")

    network: Network
    loss: str
    """A name registered in training/fitting/losses."""
    second_step: SecondFit | None = None
    labels: Labels = Labels()
    loss_options: dict[str, float] = {}
    """Keyword arguments of the loss."""
    optimisation: Optimisation
    start: str | None = None
    """Localisers: another localiser of the recipe from whose weights of the same fold this one starts, unless START=
    has one of its own name."""
    pretraining: Pretraining | None = None
    augmentation: Augmentation = Augmentation()
    sigma_px: float = Field(default=10.0, gt=0)
    """Localisers: standard deviation of the target heatmap, in input pixels."""
    foreground: float = Field(default=0.0, ge=0)
    """Localisers: a pixel of the squared error weighs 1 + foreground × its target; 0 is the published loss."""
    auxiliary: Auxiliary = Auxiliary()
    """Graders: further heads, of networks that have them; the exported network has none."""
