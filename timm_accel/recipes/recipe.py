"""A training run in one description."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from timm.optim import list_optimizers

from timm_accel.data.device_transform import ERASING_MODES
from timm_accel.mixins.gradient_clipping import CLIP_MODES
from timm_accel.mixins.scheduler import SCHEDULERS
from timm_accel.models import check_model_name
from timm_accel.suggestions import nearest

_FREE = {  # a run may go on with others: elsewhere, longer, or, with a warning, in other batches
    *("data_dir", "run_dir", "num_epochs", "batch_size", "gradient_accumulation_steps", "num_workers", "resume"),
    "cache",
    *("save_every_n_epochs", "save_every_n_updates", "save_every_minutes", "keep_states", "max_minutes"),
}


@dataclass(frozen=True)
class Recipe:
    """The options of a run; the defaults are those of the article's last script.

    Args:
        data_dir: Any image set of `create_datasets`: a folder with train/CLASS/ and val/CLASS/, one without splits, a
            tar, a manifest, torch/NAME, …. None: handwritten digits, with the settings of the recipe `demo`.
        run_dir: A new folder for weights, history and the resolved recipe.
        model: A name of timm.list_models().
        pretrained: Whether to start from timm's weights.
        weights: Others to start from: a file, a folder, a run.
        head: linear or mlp.
        model_args: Further arguments of the model: layers, channels, img_size, ….
        image_size: The height and width of the input in pixels.
        eval_image_size: The same in evaluation; None for the same size.
        num_epochs: Passes over the training images.
        batch_size: Images per process and step; even while Mixup is on.
        gradient_accumulation_steps: Steps whose gradients make one update.
        lr: The highest learning rate.
        base_batch_size: Images of one update that the rate is for, and from which it is scaled; None: it is as it is.
        lr_scaling: How it is scaled: linear or sqrt; None for timm's rule for the optimizer.
        opt: A name of timm.optim.list_optimizers(), with lookahead_ before it if wanted.
        opt_args: Further arguments of the optimizer: momentum, betas, ….
        weight_decay: Weight decay, not of biases and norms.
        layer_decay: The factor from one layer's rate to the next below; None for equal rates.
        drop_path_rate: Stochastic depth.
        channels_last: Whether the model's tensors are laid out channels last, which is often faster.
        freeze_epochs: Epochs, from the start, in which only the last stage, the head, is trained.
        sched: timm's schedule.
        sched_args: Further arguments of timm's create_scheduler_v2: step_on_epochs, cooldown_epochs, cycle_limit, ….
        min_lr: The rate at the end of the schedule.
        warmup_epochs: Epochs of linear warm-up.
        warmup_lr: The rate at the start of the warm-up.
        mixup: The alpha of Mixup; 0 is off.
        cutmix: The alpha of CutMix; 0 is off.
        mixup_off_epoch: The epoch, from 0, from which images are no longer mixed; None for never.
        smoothing: Label smoothing.
        loss: bce or ce: binary cross-entropy for each class, or cross-entropy.
        class_weights: auto weighs classes inverse to their numbers of images, with ce; None for equal weights.
        bce_target_thresh: Targets above it count as 1 in the binary cross-entropy; None keeps them soft.
        auto_augment: timm's name of an augmentation policy; None for none.
        color_jitter: How far brightness, contrast and saturation vary where there is no policy; 0 is off.
        scale: The smallest and largest share of the image that a random crop takes.
        ratio: The smallest and largest width over height of that crop.
        hflip: The probability of a horizontal flip.
        vflip: The probability of a vertical flip.
        re_prob: The probability of random erasing.
        re_mode: What fills an erased part: const, rand or pixel.
        num_repeats: How often an image comes in a batch, each time augmented anew; an epoch stays as long.
        crop_pct: The share of the resized image that evaluation keeps; None for the model's own.
        resolutions: Sizes of training images that rise over the run; None for image_size alone.
        cache: memory decodes all pictures once; None reads files in each epoch.
        draft: Whether training decodes large JPEGs at a reduced scale where the crop allows.
        ema_decay: The share of the average that an update keeps; it rises to this.
        distill_teacher: A model to learn from: a run, a folder or a name of timm; None for none.
        distill_alpha: The weight of the teacher, from 0 to 1.
        clip_grad: The limit of gradient clipping; None for none.
        clip_mode: norm, value or agc.
        sync_bn: Whether to synchronise BatchNorm across processes.
        seed: The seed of everything.
        num_workers: Loader processes; None for one for each core that the process may use.
        resume: auto goes on from the newest state in run_dir, or starts there; a path from that state. None: a new run.
        save_every_n_epochs: Epochs between two states.
        save_every_n_updates: Optimizer updates between two states; None for none within an epoch.
        save_every_minutes: Minutes between two states; None for none within an epoch.
        keep_states: The number of states to keep.
        max_minutes: Save a state and leave with exit code 75 after so many minutes; None for no limit.

    Raises:
        ValueError: Values are unknown, out of range or contradict each other; all of them are named.
    """

    data_dir: str | None = None
    run_dir: str = "runs/train"
    model: str = "resnet50d"
    pretrained: bool = False
    weights: str | None = None
    head: Literal["linear", "mlp"] = "linear"
    model_args: dict[str, Any] | None = None
    image_size: int = 224
    eval_image_size: int | None = None
    num_epochs: int = 40
    batch_size: int = 32
    gradient_accumulation_steps: int = 1
    lr: float = 5e-3
    base_batch_size: int | None = None
    lr_scaling: Literal["linear", "sqrt"] | None = None
    opt: str = "lookahead_AdamW"
    opt_args: dict[str, Any] | None = None
    weight_decay: float = 0.01
    layer_decay: float | None = None
    drop_path_rate: float = 0.05
    channels_last: bool = False
    freeze_epochs: int = 0
    sched: str = "cosine"
    sched_args: dict[str, Any] | None = None
    min_lr: float = 1e-6
    warmup_epochs: int = 3
    warmup_lr: float = 1e-4
    mixup: float = 0.2
    cutmix: float = 1.0
    mixup_off_epoch: int | None = None
    smoothing: float = 0.1
    loss: Literal["bce", "ce"] = "bce"
    class_weights: Literal["auto"] | None = None
    bce_target_thresh: float | None = 0.2
    auto_augment: str | None = "rand-m7-mstd0.5-inc1"
    color_jitter: float = 0.4
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (0.75, 1.3333333333333333)
    hflip: float = 0.5
    vflip: float = 0.0
    re_prob: float = 0.0
    re_mode: str = "const"
    num_repeats: int = 1
    crop_pct: float | None = None
    resolutions: tuple[int, ...] | None = None
    cache: str | None = None
    draft: bool = False
    ema_decay: float = 0.9998
    distill_teacher: str | None = None
    distill_alpha: float = 0.5
    clip_grad: float | None = None
    clip_mode: str = "norm"
    sync_bn: bool = False
    seed: int = 42
    num_workers: int | None = None
    resume: str | None = None
    save_every_n_epochs: int = 1
    save_every_n_updates: int | None = None
    save_every_minutes: float | None = None
    keep_states: int = 3
    max_minutes: float | None = None

    def __post_init__(self) -> None:
        values = list(self._wrong_values())
        faults = [*self._wrong_names(), *values, *(() if values else self._contradictions())]
        if len(faults) == 1:
            raise ValueError(faults[0])
        if faults:
            listed = " ".join(f"({number}) {fault}" for number, fault in enumerate(faults, 1))
            raise ValueError(f"Expected a recipe without faults, but got {len(faults)}: {listed}")

    def _wrong_names(self) -> Iterator[str]:
        try:
            check_model_name(self.model)
        except ValueError as error:
            yield str(error)
        optimizers = list_optimizers()
        known: dict[str, Iterable[Any]] = {
            "opt": [*optimizers, *(f"lookahead_{name}" for name in optimizers)],
            "sched": SCHEDULERS,
            "clip_mode": CLIP_MODES,
            "head": ("linear", "mlp"),
            "loss": ("bce", "ce"),
            "re_mode": ERASING_MODES,
            "lr_scaling": ("linear", "sqrt", None),
            "class_weights": ("auto", None),
            "cache": ("memory", None),
        }
        for name, words in known.items():
            value = getattr(self, name)
            if (value.lower() if name == "opt" and isinstance(value, str) else value) not in words:
                names = [word for word in words if word is not None]
                which = (
                    "a name that timm knows" if name in ("opt", "sched", "clip_mode") else f"one of {', '.join(names)}"
                )
                yield f"Expected {name} to be {which}, but got {value!r}. {nearest(str(value), names)}"

    def _wrong_values(self) -> Iterator[str]:
        counts = ("image_size", "num_epochs", "batch_size", "gradient_accumulation_steps", "num_repeats")
        for name in (*counts, "save_every_n_epochs", "keep_states"):
            yield from self._check(
                name, lambda value: isinstance(value, int) and value >= 1, "a whole number of at least 1"
            )
        for name in ("save_every_n_updates", "eval_image_size", "base_batch_size"):
            yield from self._check(name, lambda value: value is None or value >= 1, "at least 1")
        for name in ("lr", "layer_decay", "clip_grad", "save_every_minutes", "max_minutes"):
            yield from self._check(name, lambda value: value is None or value > 0, "positive")
        for name in ("weight_decay", "min_lr", "warmup_lr", "warmup_epochs", "mixup", "cutmix", "freeze_epochs"):
            yield from self._check(name, lambda value: value >= 0, "at least 0")
        for name in ("mixup_off_epoch", "num_workers"):
            yield from self._check(name, lambda value: value is None or value >= 0, "at least 0")
        for name in ("smoothing", "color_jitter", "hflip", "vflip", "re_prob", "distill_alpha"):
            yield from self._check(name, lambda value: 0 <= value <= 1, "between 0 and 1")
        yield from self._check("crop_pct", lambda value: value is None or 0 < value <= 1, "above 0 and up to 1")
        for name in ("drop_path_rate", "ema_decay"):
            yield from self._check(name, lambda value: 0 <= value < 1, "from 0 to below 1")
        yield from self._check("scale", lambda value: 0 < value[0] <= value[1] <= 1, "two rising shares of up to 1")
        yield from self._check("ratio", lambda value: 0 < value[0] <= value[1], "two rising, positive numbers")
        yield from self._check(
            "resolutions", lambda value: value is None or (len(value) >= 2 and min(value) >= 1), "two sizes or more"
        )

    def _contradictions(self) -> Iterator[str]:
        """Yield what does not go together."""
        if self.mixes:
            yield from self._check("batch_size", lambda value: value % 2 == 0, "even, since Mixup pairs images up")
        in_epochs = "warmup_epochs" in self.scheduler_args()
        if in_epochs and self.sched not in ("none", "constant") and self.warmup_epochs > self.num_epochs:
            yield (
                f"Expected warmup_epochs to be at most num_epochs, {self.num_epochs}, but got "
                f"{self.warmup_epochs}. Shorten the warm-up or lengthen the run."
            )
        if self.freeze_epochs > self.num_epochs:
            yield (
                f"Expected freeze_epochs to be at most num_epochs, {self.num_epochs}, but got "
                f"{self.freeze_epochs}. Freeze for fewer."
            )
        if self.pretrained and self.weights is not None:
            yield f"Expected pretrained or weights, but got both, {self.weights!r} too. Leave one of them out."
        for name in self.model_args or ():
            if name in {"num_classes", *asdict(self)}:
                remedy = "They follow from the data." if name == "num_classes" else f"Set the option {name}."
                yield f"Expected model_args without {name!r}, but got {self.model_args[name]!r} for it. {remedy}"
        if self.resolutions is not None and self.gradient_accumulation_steps > 1:
            yield (
                "Expected gradient_accumulation_steps to be 1 with resolutions, since an update has images of one "
                f"size, but got {self.gradient_accumulation_steps}. Leave one of them out."
            )
        for other in ("resolutions", "cache"):
            if self.draft and getattr(self, other) is not None:
                yield f"Expected draft or {other}, but got both, {getattr(self, other)!r} too. Leave out one."
        if self.class_weights is not None and self.loss != "ce":
            yield f"Expected loss to be 'ce' with class_weights, but got {self.loss!r}. Leave class_weights out."

    @property
    def mixes(self) -> bool:
        """Whether Mixup or CutMix is on."""
        return self.mixup > 0 or self.cutmix > 0

    def decisive(self) -> dict[str, Any]:
        """Return the options that a run must have in common with a state to go on from it."""
        return {name: value for name, value in asdict(self).items() if name not in _FREE}

    def scheduler_args(self) -> dict[str, Any]:
        """Return the arguments of timm's ``create_scheduler_v2``, but for the length of the run."""
        given = self.sched_args or {}
        names = ["sched", "min_lr", "warmup_lr", "warmup_epochs"]
        if given.keys() & {"warmup_updates", "warmup_fraction"}:
            names.remove("warmup_epochs")
        return {name: getattr(self, name) for name in names} | given

    def diff(self, other: "Recipe") -> dict[str, tuple[Any, Any]]:
        """Return the options in which two recipes differ: ``{name: (mine, the other's)}``."""
        mine, others = asdict(self), asdict(other)
        return {name: (mine[name], others[name]) for name in mine if mine[name] != others[name]}

    def _check(self, name: str, condition: Callable[[Any], bool], words: str) -> Iterator[str]:
        value = getattr(self, name)
        try:
            right = condition(value)
        except (TypeError, IndexError):  # a value of another kind
            right = False
        if not right:
            default = next(field.default for field in fields(self) if field.name == name)
            yield f"Expected {name} to be {words}, but got {value!r}. The default is {default!r}."
