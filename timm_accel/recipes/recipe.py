"""A training run in one description."""

import re
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, fields
from inspect import formatannotation
from typing import Any

from timm.optim import list_optimizers

from timm_accel.mixins.gradient_clipping import CLIP_MODES
from timm_accel.mixins.scheduler import SCHEDULERS
from timm_accel.models import check_model_name
from timm_accel.suggestions import nearest

_FREE = {  # a run may go on with others: elsewhere, longer, or, with a warning, in other batches
    *("data_dir", "run_dir", "num_epochs", "batch_size", "gradient_accumulation_steps", "num_workers", "resume"),
    *("save_every_n_epochs", "save_every_n_updates", "save_every_minutes", "keep_states", "max_minutes"),
}


@dataclass(frozen=True)
class Recipe:
    """The options of a run; the defaults are those of the article's last script.

    Args:
        data_dir: Any image set of `create_datasets`: a folder with train/CLASS/ and val/CLASS/, one without splits, a
            tar, a manifest, torch/NAME, …. None: handwritten digits, with the settings of `DEMO`.
        run_dir: A new folder for weights, history and the resolved recipe.
        model: A name of timm.list_models().
        pretrained: Whether to start from timm's weights.
        image_size: The height and width of the input in pixels.
        num_epochs: Passes over the training images.
        batch_size: Images per process and step; even while Mixup is on.
        gradient_accumulation_steps: Steps whose gradients make one update.
        lr: The highest learning rate.
        opt: A name of timm.optim.list_optimizers(), with lookahead_ before it if wanted.
        weight_decay: Weight decay, not of biases and norms.
        layer_decay: The factor from one layer's rate to the next below; None for equal rates.
        drop_path_rate: Stochastic depth.
        sched: timm's schedule.
        min_lr: The rate at the end of the schedule.
        warmup_epochs: Epochs of linear warm-up.
        warmup_lr: The rate at the start of the warm-up.
        mixup: The alpha of Mixup; 0 is off.
        cutmix: The alpha of CutMix; 0 is off.
        mixup_off_epoch: The epoch, from 0, from which images are no longer mixed; None for never.
        smoothing: Label smoothing.
        bce_target_thresh: Targets above it count as 1 in the binary cross-entropy; None keeps them soft.
        auto_augment: timm's name of an augmentation policy; None for none.
        scale: The smallest and largest share of the image that a random crop takes.
        hflip: The probability of a horizontal flip.
        ema_decay: The share of the average that an update keeps; it rises to this.
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
        ValueError: A value is unknown or out of range.
    """

    data_dir: str | None = None
    run_dir: str = "runs/train"
    model: str = "resnet50d"
    pretrained: bool = False
    image_size: int = 224
    num_epochs: int = 40
    batch_size: int = 32
    gradient_accumulation_steps: int = 1
    lr: float = 5e-3
    opt: str = "lookahead_AdamW"
    weight_decay: float = 0.01
    layer_decay: float | None = None
    drop_path_rate: float = 0.05
    sched: str = "cosine"
    min_lr: float = 1e-6
    warmup_epochs: int = 3
    warmup_lr: float = 1e-4
    mixup: float = 0.2
    cutmix: float = 1.0
    mixup_off_epoch: int | None = None
    smoothing: float = 0.1
    bce_target_thresh: float | None = 0.2
    auto_augment: str | None = "rand-m7-mstd0.5-inc1"
    scale: tuple[float, float] = (0.08, 1.0)
    hflip: float = 0.5
    ema_decay: float = 0.9998
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
        check_model_name(self.model)
        optimizers = list_optimizers()
        self._check_name("opt", str(self.opt).lower(), [*optimizers, *(f"lookahead_{name}" for name in optimizers)])
        self._check_name("sched", self.sched, SCHEDULERS)
        self._check_name("clip_mode", self.clip_mode, CLIP_MODES)
        counts = ("image_size", "num_epochs", "batch_size", "gradient_accumulation_steps")
        for name in (*counts, "save_every_n_epochs", "keep_states"):
            self._check(name, lambda value: isinstance(value, int) and value >= 1, "a whole number of at least 1")
        self._check("save_every_n_updates", lambda value: value is None or value >= 1, "at least 1")
        for name in ("lr", "layer_decay", "clip_grad", "save_every_minutes", "max_minutes"):
            self._check(name, lambda value: value is None or value > 0, "positive")
        for name in ("weight_decay", "min_lr", "warmup_lr", "warmup_epochs", "mixup", "cutmix"):
            self._check(name, lambda value: value >= 0, "at least 0")
        for name in ("mixup_off_epoch", "num_workers"):
            self._check(name, lambda value: value is None or value >= 0, "at least 0")
        for name in ("smoothing", "hflip"):
            self._check(name, lambda value: 0 <= value <= 1, "between 0 and 1")
        for name in ("drop_path_rate", "ema_decay"):
            self._check(name, lambda value: 0 <= value < 1, "from 0 to below 1")
        self._check("scale", lambda value: 0 < value[0] <= value[1] <= 1, "two rising shares of up to 1")
        if self.mixes:
            self._check("batch_size", lambda value: value % 2 == 0, "even, since Mixup pairs images up")

    @property
    def mixes(self) -> bool:
        """Whether Mixup or CutMix is on."""
        return self.mixup > 0 or self.cutmix > 0

    def decisive(self) -> dict[str, Any]:
        """Return the options that a run must have in common with a state to go on from it."""
        return {name: value for name, value in asdict(self).items() if name not in _FREE}

    def _check(self, name: str, condition: Callable[[Any], bool], words: str) -> None:
        value = getattr(self, name)
        try:
            right = condition(value)
        except (TypeError, IndexError):  # a value of another kind
            right = False
        if not right:
            default = next(field.default for field in fields(self) if field.name == name)
            raise ValueError(f"Expected {name} to be {words}, but got {value!r}. The default is {default!r}.")

    def _check_name(self, name: str, value: str, known: Iterable[str]) -> None:
        if value not in known:
            raise ValueError(
                f"Expected {name} to be a name that timm knows, but got {getattr(self, name)!r}. "
                f"{nearest(value, known)}"
            )


DEMO: dict[str, Any] = {
    "run_dir": "runs/digits",
    "model": "resnet10t",
    "image_size": 32,
    "num_epochs": 8,
    "batch_size": 64,
    "auto_augment": None,
    "scale": (0.6, 1.0),
    "hflip": 0.0,
    "cutmix": 0.0,
}
"""What a first run on the digits sets otherwise."""


def explain(message: str) -> str:
    """Put jsonargparse's message about an option into our words, with the nearest name to an unknown one."""
    if unknown := re.search(r"(?i)unrecognized arguments: -*(\w+)|Option '(\w+)' is not accepted", message):
        name = unknown[1] or unknown[2]
        return f"Expected an option, but got {name!r}. {nearest(name, [*Recipe.__annotations__, 'config'])}"
    wrong = re.search(r'Parser key "(\w+)".*(?:Got|Given) value: (.+)', message, re.DOTALL)
    if wrong and wrong[1] in Recipe.__annotations__:
        kind = formatannotation(Recipe.__annotations__[wrong[1]])
        return f"Expected {wrong[1]} to be {kind}, but got {wrong[2]!r}. --help lists all options."
    return f"{' '.join(message.split())}. --help lists all options."
