"""Scale a base learning rate to the global batch size."""

from typing import Literal


def scale_lr(
    base_lr: float,
    global_batch_size: int,
    *,
    opt: str,
    base_batch_size: int = 256,
    lr_scaling: Literal["linear", "sqrt"] | None = None,
) -> float:
    """Return the learning rate for a global batch from that for a base batch.

    >>> scale_lr(0.1, 1024, opt="sgd"), scale_lr(0.1, 1024, opt="lamb")
    (0.4, 0.2)

    Args:
        base_lr: The learning rate for a batch of `base_batch_size` images.
        global_batch_size: Images of one update: per process, times processes, times accumulation.
        opt: The optimizer's name, which chooses the rule.
        base_batch_size: Images of the base batch.
        lr_scaling: ``linear`` or ``sqrt`` in the batch size; None for ``sqrt`` for optimizers with "ada" or "lamb" in
            their name, and ``linear`` for others.

    Raises:
        ValueError: A number is not positive, or the rule is unknown.

    Source: ``--lr-base``, ``--lr-base-size`` and ``--lr-base-scale`` of timm's ``train.py``.
    """
    numbers = {"base_lr": base_lr, "global_batch_size": global_batch_size, "base_batch_size": base_batch_size}
    for name, number in numbers.items():
        if not (isinstance(number, int | float) and number > 0):
            raise ValueError(f"Expected {name} to be a positive number, but got {number!r}. Pass one.")
    if lr_scaling not in ("linear", "sqrt", None):
        raise ValueError(f"Expected lr_scaling to be 'linear', 'sqrt' or None, but got {lr_scaling!r}. None chooses.")
    if lr_scaling is None:
        lr_scaling = "sqrt" if any(part in opt.lower() for part in ("ada", "lamb")) else "linear"
    ratio = global_batch_size / base_batch_size
    return base_lr * (ratio**0.5 if lr_scaling == "sqrt" else ratio)
