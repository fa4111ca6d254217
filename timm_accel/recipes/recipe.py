"""A training run in one description."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from timm_accel.recipes.faults import check_recipe

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
        layer_decay_min_scale: The smallest share of the rate that is left to a layer then.
        drop_path_rate: Stochastic depth.
        channels_last: Whether the model's tensors are laid out channels last, which is often faster.
        freeze_epochs: Epochs, from the start, in which only the last stage, the head, is trained.
        sched: timm's schedule.
        sched_args: Further arguments of timm's create_scheduler_v2: step_on_epochs, cooldown_epochs, cycle_limit, ….
        min_lr: The rate at the end of the schedule.
        warmup_epochs: Epochs of linear warm-up.
        warmup_lr: The rate at the start of the warm-up.
        scheduler_metric: The metric that the schedule plateau watches.
        mixup: The alpha of Mixup; 0 is off.
        cutmix: The alpha of CutMix; 0 is off.
        mixup_off_epoch: The epoch, from 0, from which images are no longer mixed; None for never.
        smoothing: Label smoothing.
        loss: bce, binary cross-entropy for each class; ce, cross-entropy; asl; poly; for several labels an image also
            twoway, zlpr or db.
        class_weights: The weight of each class in ce, bce and asl of several labels: numbers in the order of the
            labels, or by name; auto weighs classes inverse to their numbers of images; None for equal weights.
        pos_weights: The weight of each class where it is present, in bce and asl of several labels, given in the same
            ways; auto is the images without it over those with it.
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
        distill_kind: What the teacher gives: logit; token, for students with a distillation head; or feature.
        distill_alpha: The weight of the teacher, from 0 to 1.
        distill_temperature: What logits are divided by, for logit and token.
        distill_hard: Whether token learns the teacher's class instead of its probabilities.
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
    layer_decay_min_scale: float = 0.0
    drop_path_rate: float = 0.05
    channels_last: bool = False
    freeze_epochs: int = 0
    sched: str = "cosine"
    sched_args: dict[str, Any] | None = None
    min_lr: float = 1e-6
    warmup_epochs: int = 3
    warmup_lr: float = 1e-4
    scheduler_metric: str = "eval_loss_epoch"
    mixup: float = 0.2
    cutmix: float = 1.0
    mixup_off_epoch: int | None = None
    smoothing: float = 0.1
    loss: Literal["bce", "ce", "asl", "poly", "twoway", "zlpr", "db"] = "bce"
    class_weights: Literal["auto"] | list[float] | dict[str, float] | None = None
    pos_weights: Literal["auto"] | list[float] | dict[str, float] | None = None
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
    distill_kind: Literal["logit", "token", "feature"] = "logit"
    distill_alpha: float = 0.5
    distill_temperature: float = 1.0
    distill_hard: bool = False
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
        check_recipe(self)

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
