"""The recipe: all options of a training run.

Each option is one field and its sentence: name, type, default and, as `metadata`, the condition for its values. If a
mixin, a callback or a builder has a default for the option, the field reads that default.
"""

from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal

from timm.data import Mixup
from timm.optim import list_optimizers

from timm_accel.callbacks import EarlyStoppingCallback, SaveStateCallback, check_trackers
from timm_accel.data import Source, create_datasets
from timm_accel.data.sources import check_group
from timm_accel.data.transforms.create import check_policy
from timm_accel.data.transforms.device_transform import ERASING_MODES
from timm_accel.mixins import (
    ClassificationMetricsMixin,
    DistillationMixin,
    DistributedBatchNormMixin,
    GradientClippingMixin,
    ModelEmaMixin,
    TimmSchedulerMixin,
)
from timm_accel.mixins.gradient_clipping import CLIP_MODES
from timm_accel.mixins.mixup import MODES as MIXUP_MODES
from timm_accel.models import check_model_name, create_classifier
from timm_accel.models.lora import check_lora
from timm_accel.optim.names import LOOKAHEAD
from timm_accel.recipes.faults import check_recipe
from timm_accel.recipes.options import (
    ABOVE_0_UP_TO_1,
    AT_LEAST_0,
    AUTO_OR_INTEGER_FROM_1,
    BETWEEN_0_AND_1,
    CLASS_WEIGHTS,
    FROM_0_BELOW_1,
    INTEGER_FROM_0,
    INTEGER_FROM_1,
    KEYWORDS,
    POSITIVE,
    default_of,
    must_be,
    must_be_one_of,
    must_pass,
    tuple_for_list,
)
from timm_accel.schedules.arguments import SCHEDULERS
from timm_accel.schedules.fitting import bent_warmup
from timm_accel.trainers import TimmMixupTrainer
from timm_accel.training import LoopTrainer
from timm_accel.training.identity import FOLLOWS_RUN

_ARTICLE = TimmMixupTrainer.default_scheduler_args or {}
_RESUME_IGNORED = {  # a run may resume with other values: elsewhere, longer or, with a warning, with other batches
    *("data_dir", "run_dir", "num_epochs", "batch_size", "gradient_accumulation_steps", "num_workers", "resume"),
    "cache",
    *("save_every_n_epochs", "save_every_n_updates", "save_every_minutes", "keep_states"),
    *("keep_states_when_done", "max_minutes", "data_identity"),
    *("data_root", "download", "on_error", "patience", "min_delta", "evaluate_every_n_epochs", "train_accuracy"),
    *("mixed_precision", "torch_compile", "fast"),  # what fast chose is not ignored
    "trackers",
}


def _optimizer_names() -> list[str]:
    return [prefix + name for prefix in ("", LOOKAHEAD) for name in list_optimizers()]


@dataclass(frozen=True)
class Recipe:
    """The options of a run; the defaults are those of the article's last script.

    The sentence on each option follows its field; ``timm-accel train --help`` lists them all.

    Raises:
        ValueError: Values are unknown, of the wrong type, out of range or contradict each other; all of them are named.
    """

    data_dir: str | None = None
    """Any dataset of `create_datasets`: a folder with train/CLASS/ and val/CLASS/, one without splits, a tar, a
    manifest, torch/NAME, …. None: handwritten digits, with the settings of the recipe `demo`."""
    data_root: str | None = None
    """Where libraries keep their datasets (torch/NAME: data), or where the paths of a manifest and of wds/… start."""
    download: bool = False
    """Whether torch/NAME and tfds/NAME may download, and whether hfids/NAME downloads before it starts."""
    val_fraction: float = field(
        default=default_of(Source, "val_fraction"),
        metadata=must_be("above 0 and below 1", lambda share: 0 < share < 1),
    )
    """The share of a dataset without splits that is for evaluation."""
    group: str | None = field(default=None, metadata=must_pass(check_group, "a regular expression with one group"))
    """A regular expression that finds in an image's path what must not be on both sides of that split; None uses the
    column group of a manifest."""
    exclude: str | None = None
    """A CSV whose column path names images to leave out, except the kinds outlier and ambiguous; None for none."""
    folds: int | None = field(default=None, metadata=must_be("an integer of at least 2", lambda number: number >= 2))
    """The number of folds of a cross-validation over the training images; None for a single run."""
    fold: int | None = field(default=None, metadata=INTEGER_FROM_1)
    """The fold, from 1, that this run evaluates on; None for all folds, one after the other."""
    class_map: str | dict[str, int] | None = field(default=None, metadata=must_be("a file, or labels by name", bool))
    """The class names of a stream that has none: a file with one name a line, or labels by name."""
    eval_split: str = default_of(create_datasets, "eval_split")
    """The split to evaluate on."""
    run_dir: str = "runs/train"
    """A new folder for weights, history and the resolved recipe."""
    model: str = field(default="resnet50d", metadata=must_pass(check_model_name, "a name of timm"))
    """A name of timm.list_models()."""
    pretrained: bool = False
    """Whether to start from timm's weights."""
    weights: str | None = None
    """Other weights to start from: a file, a folder, a run."""
    head: Literal["linear", "mlp"] = default_of(create_classifier, "head")
    """linear or mlp."""
    model_args: dict[str, Any] | None = field(default=None, metadata=KEYWORDS)
    """Further arguments of the model: layers, channels, img_size, …."""
    image_size: int = field(default=224, metadata=INTEGER_FROM_1)
    """The height and width of the input in pixels."""
    eval_image_size: int | None = field(default=None, metadata=INTEGER_FROM_1)
    """The same in evaluation; None for the same size."""
    num_epochs: int = field(default=40, metadata=INTEGER_FROM_1)
    """Passes over the training images."""
    batch_size: int | Literal["auto"] = field(default=32, metadata=AUTO_OR_INTEGER_FROM_1)
    """Images per process and step; even while Mixup is on. auto finds the largest that fits into memory, up to 1024 and
    the training images of a process."""
    gradient_accumulation_steps: int = field(default=1, metadata=INTEGER_FROM_1)
    """Steps whose gradients make one optimizer update."""
    opt: str = field(
        default="lookahead_AdamW",
        metadata=must_be("a name that timm knows", lambda name: name.lower() in _optimizer_names(), _optimizer_names),
    )
    """A name of timm.optim.list_optimizers(), with lookahead_ before it if wanted."""
    opt_args: dict[str, Any] | None = field(default=None, metadata=KEYWORDS)
    """Further arguments of the optimizer: momentum, betas, …."""
    lr: float = field(default=5e-3, metadata=POSITIVE)
    """The highest learning rate."""
    base_batch_size: int | None = field(default=None, metadata=INTEGER_FROM_1)
    """The global batch size that lr is for: lr is scaled to that of the run; None leaves lr as it is."""
    lr_scaling: Literal["linear", "sqrt"] | None = None
    """How lr is scaled: linear or sqrt; None for timm's rule for the optimizer."""
    weight_decay: float = field(default=0.01, metadata=AT_LEAST_0)
    """Weight decay, not of biases and norms."""
    layer_decay: float | None = field(default=None, metadata=ABOVE_0_UP_TO_1)
    """The factor from one layer's learning rate to the next below; None for equal ones."""
    layer_decay_min_scale: float = field(default=0.0, metadata=BETWEEN_0_AND_1)
    """The smallest share of lr that layer_decay leaves to a layer."""
    drop_path_rate: float = field(default=0.05, metadata=FROM_0_BELOW_1)
    """Stochastic depth."""
    channels_last: bool | None = None
    """Whether the model's tensors are laid out channels last, which is often faster; None for no, or as fast
    chooses."""
    grad_checkpointing: bool = False
    """Whether to compute activations again in the backward pass, which saves memory and costs time."""
    lora: int | dict[str, Any] | None = field(
        default=default_of(create_classifier, "lora"),
        metadata=must_pass(check_lora, "a rank, or arguments of peft.LoraConfig"),
    )
    """The rank of adapters (LoRA) that are trained, with the classifier, beside frozen weights, or arguments of
    peft.LoraConfig; None trains the weights."""
    freeze_epochs: int = field(default=0, metadata=INTEGER_FROM_0)
    """Epochs, from the start, in which only the last stage, the head, is trained."""
    sched: str = field(default=_ARTICLE["sched"], metadata=must_be_one_of(SCHEDULERS, "a name that timm knows"))
    """timm's schedule."""
    sched_args: dict[str, Any] | None = field(default=None, metadata=KEYWORDS)
    """Further arguments of timm's create_scheduler_v2: step_on_epochs, cooldown_epochs, cycle_limit, …."""
    min_lr: float = field(default=_ARTICLE["min_lr"], metadata=AT_LEAST_0)
    """The learning rate at the end of the schedule."""
    warmup_epochs: int | None = field(default=None, metadata=INTEGER_FROM_0)
    """Epochs of linear warm-up; None for 3, or at most half of a shorter run."""
    warmup_lr: float = field(default=_ARTICLE["warmup_lr"], metadata=AT_LEAST_0)
    """The learning rate at the start of the warm-up."""
    scheduler_metric: str = field(
        default=default_of(TimmSchedulerMixin, "scheduler_metric"), metadata=must_be("the name of a metric", bool)
    )
    """The metric that the schedule plateau watches."""
    mixup: float = field(default=0.2, metadata=AT_LEAST_0)
    """The alpha of Mixup; 0 is off."""
    cutmix: float = field(default=1.0, metadata=AT_LEAST_0)
    """The alpha of CutMix; 0 is off."""
    mixup_mode: str = field(default=default_of(Mixup, "mode"), metadata=must_be_one_of(MIXUP_MODES))
    """What shares one mixing ratio: a whole batch, each pair of images, or each image (elem)."""
    mixup_prob: float = field(default=default_of(Mixup, "prob"), metadata=BETWEEN_0_AND_1)
    """The probability that a batch, pair or image is mixed."""
    mixup_switch_prob: float = field(default=default_of(Mixup, "switch_prob"), metadata=BETWEEN_0_AND_1)
    """The probability of CutMix where both are on."""
    mixup_off_epoch: int | None = field(default=None, metadata=INTEGER_FROM_0)
    """The epoch, from 0, from which images are no longer mixed; None for never."""
    smoothing: float = field(default=0.1, metadata=FROM_0_BELOW_1)
    """Label smoothing."""
    loss: Literal["bce", "ce", "asl", "poly", "twoway", "zlpr", "db"] = "bce"
    """bce, binary cross-entropy for each class; ce, cross-entropy; asl; poly; for multi-label datasets also twoway,
    zlpr or db."""
    class_weights: Literal["auto"] | list[float] | dict[str, float] | None = field(default=None, metadata=CLASS_WEIGHTS)
    """The weight of each class in ce, bce and multi-label asl: numbers in the order of the labels, or by name; auto
    weighs classes inversely to their numbers of images; None for equal weights."""
    pos_weights: Literal["auto"] | list[float] | dict[str, float] | None = field(default=None, metadata=CLASS_WEIGHTS)
    """The weight of the positive labels of each class, in multi-label bce and asl, given in the same ways; auto is the
    number of images without the class over that with it."""
    bce_target_thresh: float | None = field(default=0.2, metadata=FROM_0_BELOW_1)
    """Targets above it count as 1 in the binary cross-entropy; None keeps them soft."""
    auto_augment: str | None = field(
        default=default_of(create_datasets, "auto_augment"),
        metadata=must_pass(check_policy, "an augmentation policy of timm"),
    )
    """timm's name of an augmentation policy; None for none."""
    color_jitter: float = field(default=0.4, metadata=BETWEEN_0_AND_1)
    """How far brightness, contrast and saturation vary without a policy; 0 is off."""
    scale: tuple[float, float] = field(
        default=(0.08, 1.0),
        metadata=must_be("two rising shares of up to 1", lambda shares: 0 < shares[0] <= shares[1] <= 1),
    )
    """The smallest and largest share of the image that a random crop takes."""
    ratio: tuple[float, float] = field(
        default=(3 / 4, 4 / 3),
        metadata=must_be("two rising, positive numbers", lambda ratios: 0 < ratios[0] <= ratios[1]),
    )
    """The smallest and largest width over height of that crop."""
    hflip: float = field(default=0.5, metadata=BETWEEN_0_AND_1)
    """The probability of a horizontal flip."""
    vflip: float = field(default=0.0, metadata=BETWEEN_0_AND_1)
    """The probability of a vertical flip."""
    re_prob: float = field(default=0.0, metadata=BETWEEN_0_AND_1)
    """The probability of random erasing."""
    re_mode: str = field(default=default_of(create_datasets, "re_mode"), metadata=must_be_one_of(ERASING_MODES))
    """What fills an erased part: const, rand or pixel."""
    sampler: Literal["balanced"] | None = None
    """balanced draws every class equally often, with replacement; None draws every image once."""
    num_repeats: int = field(default=1, metadata=INTEGER_FROM_1)
    """How often an image comes in a batch, each time with another augmentation; the length of an epoch stays."""
    crop_pct: float | None = field(default=None, metadata=ABOVE_0_UP_TO_1)
    """The share of the resized image that evaluation keeps; None for that of the model."""
    crop_mode: Literal["center", "squash", "border"] | None = None
    """How evaluation crops: center, squash or border; None for that of the model."""
    resolutions: tuple[int, ...] | None = field(
        default=None, metadata=must_be("two sizes or more", lambda sizes: len(sizes) >= 2 and min(sizes) >= 1)
    )
    """Sizes of training images that rise over the run; None for image_size alone."""
    cache: Literal["memory"] | None = None
    """memory decodes all images once; None reads the files in each epoch."""
    draft: bool = False
    """Whether training decodes large JPEGs at a reduced scale if the crop allows it."""
    on_error: Literal["raise", "skip"] | None = default_of(create_datasets, "on_error")
    """What happens at an image that cannot be read: raise stops the run, skip continues without it; None is
    skip."""
    pixel_range: tuple[float, float] | None = field(
        default=default_of(create_datasets, "pixel_range"),
        metadata=must_be("two rising numbers", lambda bounds: bounds[0] < bounds[1]),
    )
    """The values that become black and white in images of more than 8 bits: [0, 4095] for 12 bits; None for the range
    of 16 bits, or the one that images of 32 bits agree on."""
    drop_last: bool | None = None
    """Whether each epoch leaves out its last, shorter batch, with other images each time; None leaves it out unless the
    dataset is smaller than a batch."""
    ema_decay: float | None = field(default=default_of(ModelEmaMixin, "ema_decay"), metadata=FROM_0_BELOW_1)
    """The decay of the EMA weights, the share of them that an update keeps; it rises to this. None follows the length
    of the run."""
    distill_teacher: str | None = None
    """A model to learn from: a run, a folder or a name of timm; None for none."""
    distill_kind: Literal["logit", "token", "feature"] = default_of(DistillationMixin, "distill_kind")
    """What the student learns from: logit; token, for students with a distillation head; or feature."""
    distill_alpha: float = field(default=default_of(DistillationMixin, "distill_alpha"), metadata=BETWEEN_0_AND_1)
    """The weight of the teacher, from 0 to 1."""
    distill_temperature: float = field(default=default_of(DistillationMixin, "distill_temperature"), metadata=POSITIVE)
    """The divisor of the logits, for logit and token."""
    distill_hard: bool = False
    """Whether token learns the teacher's class instead of its probabilities."""
    clip_grad: float | None = field(default=None, metadata=POSITIVE)
    """The limit of gradient clipping; None for none."""
    clip_mode: str = field(
        default=default_of(GradientClippingMixin, "clip_mode"),
        metadata=must_be_one_of(CLIP_MODES, "a name that timm knows"),
    )
    """norm, value or agc."""
    dist_bn: Literal["reduce", "broadcast"] | None = default_of(DistributedBatchNormMixin, "dist_bn")
    """How the statistics of BatchNorm become equal on all processes before an evaluation: reduce takes the mean,
    broadcast those of rank 0; None leaves it to DDP."""
    sync_bn: bool = False
    """Whether to synchronize BatchNorm across processes."""
    mixed_precision: Literal["no", "fp16", "bf16"] | None = default_of(LoopTrainer, "mixed_precision")
    """The precision of the forward pass: no, fp16 or bf16; None for that of the launcher, or as fast chooses."""
    torch_compile: bool | Literal["default", "reduce-overhead", "max-autotune"] | None = default_of(
        LoopTrainer, "torch_compile"
    )
    """Whether to compile the model, or the mode: default, reduce-overhead or max-autotune; None as the launcher
    says, or as fast chooses."""
    fast: bool = False
    """Whether the device decides on mixed_precision, channels_last, torch_compile and opt_args.fused where they are not
    set; the numbers of a run then depend on the device."""
    evaluate_every_n_epochs: int = field(
        default=default_of(LoopTrainer, "evaluate_every_n_epochs"), metadata=INTEGER_FROM_1
    )
    """Epochs between two evaluations; the last epoch always has one."""
    train_accuracy: bool | None = default_of(ClassificationMetricsMixin, "train_accuracy")
    """Whether to record the accuracy of training batches against their hard labels; None where images are not
    mixed."""
    seed: int = default_of(LoopTrainer, "seed")
    """The seed of all random numbers."""
    num_workers: int | None = field(default=None, metadata=INTEGER_FROM_0)
    """Loader workers per process; None for one per core that the process may use."""
    resume: str | None = None
    """auto resumes from the newest state in run_dir, or starts there; a path resumes from that state; None starts a new
    run."""
    save_every_n_epochs: int = field(default=default_of(SaveStateCallback, "every_n_epochs"), metadata=INTEGER_FROM_1)
    """Epochs between two states."""
    save_every_n_updates: int | None = field(default=None, metadata=INTEGER_FROM_1)
    """Optimizer updates between two states; None for none within an epoch."""
    save_every_minutes: float | None = field(default=None, metadata=POSITIVE)
    """Minutes between two states; None for none within an epoch."""
    keep_states: int = field(default=default_of(SaveStateCallback, "keep"), metadata=INTEGER_FROM_1)
    """The number of states to keep."""
    data_identity: Literal["stat", "contents"] | None = default_of(SaveStateCallback, "data_identity")
    """How a resumed run finds files that changed: by sizes and times, or by contents; None for sizes and times of up to
    100,000 files."""
    keep_states_when_done: int = field(default=default_of(SaveStateCallback, "keep_when_done"), metadata=INTEGER_FROM_1)
    """The number of states to keep when the run is finished."""
    max_minutes: float | None = field(default=None, metadata=POSITIVE)
    """Save a state and exit with code 75 after so many minutes; None for no limit."""
    patience: int | None = field(default=None, metadata=INTEGER_FROM_1)
    """Epochs without a better accuracy, or mAP of a multi-label dataset, after which the run stops early; None for
    never."""
    min_delta: float = field(default=default_of(EarlyStoppingCallback, "min_delta"), metadata=AT_LEAST_0)
    """The smallest change that counts as better, with patience."""
    trackers: tuple[str, ...] | None = field(
        default=None, metadata=must_pass(check_trackers, "a list of names that accelerate knows")
    )
    """Where to log the run: tensorboard, trackio, wandb, mlflow, …; None for nowhere."""

    default_warmup = False  # whether warmup_epochs was left to a named recipe; no option

    def __post_init__(self) -> None:
        for option in fields(self):
            object.__setattr__(self, option.name, tuple_for_list(getattr(self, option.name), option.type))
        check_recipe(self)

    @property
    def mixes(self) -> bool:
        """Whether Mixup or CutMix is on."""
        return self.mixup > 0 or self.cutmix > 0

    def resume_key(self) -> dict[str, Any]:
        """Return the options that a run must have in common with a state to resume from it.

        A warm-up that was left at its default follows the length of the run, which may resume longer.
        """
        key = {name: value for name, value in asdict(self).items() if name not in _RESUME_IGNORED}
        key["channels_last"] = bool(self.channels_last)
        if self.warmup_epochs is None or self.default_warmup:
            key["warmup_epochs"] = {FOLLOWS_RUN: self.scheduler_args().get("warmup_epochs")}
        return key

    def resolved(self) -> "Recipe":
        """Return the recipe with the warm-up of its run in place of the default."""
        given = self.warmup_epochs is not None or "warmup_epochs" in (self.sched_args or {})
        return self if given else replace(self, warmup_epochs=self.scheduler_args().get("warmup_epochs"))

    def scheduler_args(self) -> dict[str, Any]:
        """Return the arguments of timm's ``create_scheduler_v2``, without the length of the run."""
        given = self.sched_args or {}
        names = ["sched", "min_lr", "warmup_lr", "warmup_epochs"]
        if given.keys() & {"warmup_updates", "warmup_fraction"}:
            names.remove("warmup_epochs")
        arguments = {name: getattr(self, name) for name in names} | given
        if arguments.get("warmup_epochs", 0) is None:
            arguments["warmup_epochs"] = _ARTICLE["warmup_epochs"]
            arguments["warmup_epochs"] = bent_warmup(arguments, self.num_epochs)
        return arguments

    def diff(self, other: "Recipe") -> dict[str, tuple[Any, Any]]:
        """Return the options in which two recipes differ: ``{name: (ours, theirs)}``."""
        ours, theirs = asdict(self), asdict(other)
        return {name: (ours[name], theirs[name]) for name in ours if ours[name] != theirs[name]}
