"""Create an optimizer by timm's factory, with correct parameter groups and early errors."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from inspect import signature
from typing import Any, Literal

from timm.models import group_parameters
from timm.optim import auto_group_layers, create_optimizer_v2, get_optimizer_class
from torch import nn
from torch.optim import Optimizer

from timm_accel.messages import nearest
from timm_accel.optim.lr_scaling import scale_lr
from timm_accel.optim.names import LOOKAHEAD, check_optimizer


def create_optimizer(
    model: nn.Module,
    opt: str,
    lr: float | None = None,
    *,
    base_lr: float | None = None,
    global_batch_size: int | None = None,
    base_batch_size: int = 256,
    lr_scaling: Literal["linear", "sqrt"] | None = None,
    weight_decay: float = 0.0,
    layer_decay: float | None = None,
    layer_decay_min_scale: float = 0.0,
    thawed: Iterable[str | nn.Parameter] = (),
    **options: Any,
) -> Optimizer:
    """Create an optimizer by timm's name, with the parameter groups that a model needs.

    Biases, norms and the parameters that the model names in ``no_weight_decay()`` have no weight decay. A frozen
    parameter (``requires_grad`` is False) is in no group, unless `thawed` names it. Then it is in its group from the
    start, without decay or state until it has a gradient; only Adagrad and Adahessian create zeros for all parameters
    at the start.

    The stages of a trainer's ``freeze_schedule`` (`FreezingMixin`) are not frozen in this sense: they have
    ``requires_grad``, so they are in their groups without `thawed`. Use `thawed` for a custom loop or hook that sets
    ``requires_grad`` later. In distributed training such a hook lets DDP's ranks diverge.

    Args:
        model: The model, not wrapped.
        opt: A name of ``timm.optim.list_optimizers()``, with ``lookahead_`` before it if wanted.
        lr: The highest learning rate; None for that from `base_lr`, or without `base_lr` for the optimizer's default.
        base_lr: The learning rate for `base_batch_size` images, which `scale_lr` scales; instead of `lr`.
        global_batch_size: Images of one update; needed with `base_lr`.
        base_batch_size: Images of the base batch.
        lr_scaling: ``linear``, ``sqrt``, or None for the rule of timm's script.
        weight_decay: Weight decay of all parameters except biases and norms.
        layer_decay: The factor between the learning rates of a layer and the one below, as ``lr_scale`` in the groups;
            None for equal learning rates.
        layer_decay_min_scale: The smallest ``lr_scale``.
        thawed: Names of parameters or of modules, or parameters, that are frozen now (``requires_grad`` is False) and
            will be trained later.
        **options: Other arguments of timm's ``create_optimizer_v2`` or of the optimizer.

    Raises:
        ValueError: A name is unknown or cannot run here, a number is out of range, `lr` and `base_lr` are both given,
            nothing is left to train, or layer decay finds only one layer.
        ModuleNotFoundError: The optimizer's package is not installed.

    Source: ``timm.optim.create_optimizer_v2``.
    """
    check_optimizer(opt)
    _check_numbers(lr, weight_decay, layer_decay, layer_decay_min_scale)
    check_options(opt, options)
    if base_lr is not None:
        lr = _scaled(opt, lr, base_lr, global_batch_size, base_batch_size, lr_scaling)
    if layer_decay is not None:
        _check_layers(model)
    with _trainable(_find(model, thawed)):
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise ValueError(
                "Expected a model with parameters to train, but got one of which all are frozen. Thaw some, or name "
                "those to be thawed later in thawed."
            )
        return create_optimizer_v2(
            model,
            opt,
            lr=lr,
            weight_decay=weight_decay,
            layer_decay=layer_decay,
            layer_decay_min_scale=layer_decay_min_scale,
            **options,
        )


def _check_numbers(
    lr: float | None, weight_decay: float, layer_decay: float | None, layer_decay_min_scale: float
) -> None:
    conditions = {
        "lr": (lr, lr is None or lr > 0, "positive"),
        "weight_decay": (weight_decay, weight_decay >= 0, "at least 0"),
        "layer_decay": (layer_decay, layer_decay is None or 0 < layer_decay <= 1, "above 0 and up to 1"),
        "layer_decay_min_scale": (layer_decay_min_scale, 0 <= layer_decay_min_scale <= 1, "from 0 to 1"),
    }
    for name, (value, right, words) in conditions.items():
        if not right:
            raise ValueError(f"Expected {name} to be {words}, but got {value!r}. Choose another.")


def check_options(opt: str, options: dict[str, Any]) -> None:
    """Raise when an optimizer does not take an option, or not two of them together.

    Args:
        opt: A timm name, with or without ``lookahead_`` before it.
        options: The options by name; other values are not checked.

    Raises:
        ValueError: One is unknown, or one contradicts `fused`.
    """
    optimizer_class = get_optimizer_class(opt.lower().removeprefix(LOOKAHEAD), bind_defaults=False)
    known = {*signature(create_optimizer_v2).parameters, *signature(optimizer_class).parameters}
    known -= {"model_or_params", "params", "args", "kwargs", "self"}
    for name in options:
        if name not in known:
            raise ValueError(
                f"Expected options of timm's factory or of {opt!r}, but got {name!r}. {nearest(name, known)}"
            )
    for other in ("foreach", "differentiable"):  # torch's own error is a RuntimeError
        if options.get("fused") and options.get(other):
            raise ValueError(
                f"Expected options with fused or {other}, but got both, since each updates in its own way. Leave one "
                "of them out."
            )


def _scaled(
    opt: str,
    lr: float | None,
    base_lr: float,
    global_batch_size: int | None,
    base_batch_size: int,
    lr_scaling: Literal["linear", "sqrt"] | None,
) -> float:
    if lr is not None:
        raise ValueError(f"Expected lr or base_lr, but got both, {lr!r} and {base_lr!r}. Leave one of them out.")
    if global_batch_size is None:
        raise ValueError(
            "Expected global_batch_size beside base_lr, since the learning rate is scaled by it, but got None. Pass "
            "images per process, times processes, times accumulation."
        )
    return scale_lr(base_lr, global_batch_size, opt=opt, base_batch_size=base_batch_size, lr_scaling=lr_scaling)


def _check_layers(model: nn.Module) -> None:
    matcher: Any = getattr(model, "group_matcher", None)
    try:
        layers = group_parameters(model, matcher(coarse=False), reverse=True) if matcher else auto_group_layers(model)
    except (AssertionError, KeyError) as error:  # such as Inception-v3 with another head (timm 1.0.31)
        raise ValueError(
            f"Expected layer_decay with a model whose layers timm can tell apart, but got {type(model).__name__}, "
            f"whose group_matcher() fails ({type(error).__name__}: {error}). Leave layer_decay out, or use timm's head."
        ) from error
    if len(set(layers.values())) == 1:
        raise ValueError(
            "Expected layer_decay with a model whose layers timm can tell apart, but got "
            f"{type(model).__name__}, which is one layer to it. Leave layer_decay out, or use a model of timm."
        )


def _find(model: nn.Module, thawed: Iterable[str | nn.Parameter]) -> list[nn.Parameter]:
    """Return the frozen parameters among those named."""
    named, found = dict(model.named_parameters()), []
    for each in thawed:
        if isinstance(each, nn.Parameter):
            matches = [parameter for parameter in named.values() if parameter is each]
            known = "Pass one of model.parameters()."
        else:
            matches = [parameter for name, parameter in named.items() if f"{name}.".startswith(f"{each}.")]
            modules = [name for name, _ in model.named_modules() if name]
            known = "" if matches else nearest(each, [*named, *modules])
        if not matches:
            shown = f"one of shape {tuple(each.shape)}" if isinstance(each, nn.Parameter) else repr(each)
            raise ValueError(f"Expected thawed to be parameters of the model, but got {shown}. {known}")
        found += [parameter for parameter in matches if not parameter.requires_grad]
    return found


@contextmanager
def _trainable(parameters: list[nn.Parameter]) -> Iterator[None]:
    """Set ``requires_grad`` of frozen parameters while timm's factory runs."""
    for parameter in parameters:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(False)
