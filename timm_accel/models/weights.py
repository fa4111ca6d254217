"""Load weights into a new model by timm's loader, and report which tensors fit."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from timm.models import _builder
from timm.models._input import get_model_traits
from torch import nn

from timm_accel.data.classes import class_name
from timm_accel.messages import counted, printable
from timm_accel.models.heads import classifier_names

_LOGGER = logging.getLogger(__name__)
_ABOUT_CLASSES = {
    ("exact", "unknown"): ", which is kept by the number of classes alone",
    ("new", "others"): ", since the weights are of other classes",
    ("new", "reordered"): ", since the weights have the classes in another order",
}


@dataclass(frozen=True)
class LoadReport:
    """The tensors that a model took from some weights.

    Args:
        source: The file, folder or name of the weights.
        matched: How many tensors the model took, including those of its head.
        missing: Names of the model's tensors that the weights lack, without those of a new head.
        unexpected: Names of the weights' tensors that the model lacks, without those of a replaced head.
        resized: Names of tensors with a new shape: for another number of channels or image size, or merged by a filter
            of timm.
        head: ``exact`` when the head's weights were taken, ``new`` when the head starts from random weights, ``none``
            without a head.
        classes: How the class names of the weights compare with those of the model: ``same``, ``others``, ``reordered``
            (the same in another order), or ``unknown`` where one of the two has no names. With others or reordered
            ones the head is new.
    """

    source: str
    matched: int
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    resized: tuple[str, ...]
    head: str
    classes: str = "unknown"

    @property
    def exact(self) -> bool:
        """Whether the model equals the weights: no tensor is missing, unexpected, resized or new."""
        return self.head != "new" and not (self.missing or self.unexpected or self.resized)

    def __str__(self) -> str:
        how = {"exact": "with their head", "new": "with a new head", "none": "without a head"}[self.head]
        how += _ABOUT_CLASSES.get((self.head, self.classes), "")
        parts = [f"{self.source}: {counted(self.matched, 'tensor')} loaded {'exactly ' if self.exact else ''}{how}"]
        for what in ("resized", "missing", "unexpected"):
            if names := getattr(self, what):
                parts.append(f"{len(names)} {what} ({_first(names)})")
        return "; ".join(parts)


@dataclass
class LoadRecord:
    """What timm's loader did to one model, recorded by hooks on that model.

    Args:
        offered: The shapes of the tensors before they were adapted to the model, by their original names and by the
            names from timm's filter.
        head: Tensors of the classifier, which are loaded after the head is attached.
        taken: Names of the tensors that the model took.
        resized: Names of taken tensors with another shape than offered.
        misfits: Names, with the offered and the model's shapes, of tensors that do not fit.
        missing: Names of the model's tensors that have no counterpart.
        unexpected: Names of tensors that the model lacks.
        called: Whether timm's loader ran; some families read files of other formats themselves.
    """

    offered: dict[str, torch.Size] = field(default_factory=dict)
    head: dict[str, torch.Tensor] = field(default_factory=dict)
    taken: list[str] = field(default_factory=list)
    resized: list[str] = field(default_factory=list)
    misfits: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    called: bool = False

    def filtering(self, filter_fn: Callable[..., Any] | None) -> Callable[..., Any]:
        """Return the family's filter, extended to record the shapes of its input.

        A tensor with a new name counts as offered if an offered tensor had as many elements; otherwise the filter has
        created it.

        Args:
            filter_fn: The family's filter, which converts weights of other formats to timm's; None where it has none.
        """

        def recorded_filter(tensors: Any, *model: nn.Module) -> Any:
            self.offered = _shapes(tensors)
            sizes = {shape.numel() for shape in self.offered.values()}
            filtered = tensors if filter_fn is None else filter_fn(tensors, *model)
            renamed = {name: shape for name, shape in _shapes(filtered).items() if shape.numel() in sizes}
            self.offered = {**renamed, **self.offered}
            return filtered

        return recorded_filter

    def before(self, model: nn.Module, tensors: dict[str, torch.Tensor], *_: Any) -> None:
        """Remove the tensors that must not be loaded, after timm has adapted them to the model."""
        self.called = True
        heads = tuple(f"{name}." for name in classifier_names(model))
        own = model.state_dict()
        for name, tensor in list(tensors.items()):
            if heads and name.startswith(heads):
                self.head[name] = tensors.pop(name)
            elif name in own and tensor.shape != own[name].shape:
                self.misfits.append((name, tuple(tensor.shape), tuple(own[name].shape)))
                tensors.pop(name)
            elif name in own:
                self.taken.append(name)
                if self.offered.get(name) != tensor.shape:
                    self.resized.append(name)

    def after(self, model: nn.Module, keys: Any) -> None:
        """Record what `load_state_dict` missed, except for the classifier."""
        heads = tuple(f"{name}." for name in classifier_names(model))
        unfit = {name for name, *_ in self.misfits}
        self.missing = [name for name in keys.missing_keys if not (heads and name.startswith(heads))]
        self.missing = [name for name in self.missing if name not in unfit]
        self.unexpected = list(keys.unexpected_keys)
        keys.missing_keys.clear()  # timm would log both; the report has them
        keys.unexpected_keys.clear()


def _shapes(tensors: Mapping[str, Any]) -> dict[str, torch.Size]:
    """Return the shapes of tensors by name, including those inside ``model`` or ``state_dict``."""
    shapes: dict[str, torch.Size] = {}
    for name, value in tensors.items():
        if isinstance(value, torch.Tensor):
            shapes[name] = value.shape
        elif isinstance(value, Mapping):
            shapes |= _shapes(value)
    return shapes


@contextmanager
def recorded_load(tensors: Mapping[str, torch.Tensor]) -> Iterator[LoadRecord]:
    """Record timm's loader in the models that are created inside the context.

    timm (1.0.31) does not return what it downloaded, what its filters did and what `load_state_dict` returned.

    Args:
        tensors: The tensors that timm gets to load; none where it downloads weights.
    """
    record = LoadRecord()
    load_pretrained = _builder.load_pretrained

    def load(model: nn.Module, pretrained_cfg: dict[str, Any], filter_fn: Any = None, **options: Any) -> None:
        channels = _source_channels(model, pretrained_cfg, tensors)
        cfg = {**pretrained_cfg, "input_size": (channels, *pretrained_cfg["input_size"][1:])}
        hooks = (
            model.register_load_state_dict_pre_hook(record.before),
            model.register_load_state_dict_post_hook(record.after),
        )
        try:
            load_pretrained(model, pretrained_cfg=cfg, filter_fn=record.filtering(filter_fn), **options)
        finally:
            for hook in hooks:
                hook.remove()

    _builder.load_pretrained = load
    try:
        yield record
    finally:
        _builder.load_pretrained = load_pretrained


def _source_channels(model: nn.Module, cfg: dict[str, Any], tensors: Mapping[str, torch.Tensor]) -> int:
    """Return the channels that the first convolution among the weights was trained with."""
    first = get_model_traits(model).get("first_conv") or cfg.get("first_conv") or ()
    names = (first,) if isinstance(first, str) else first
    for name in names:
        module, weight = model.get_submodule(name), tensors.get(f"{name}.weight")
        if isinstance(module, nn.Conv2d) and weight is not None and weight.ndim == 4:
            return weight.shape[1] * module.groups * get_model_traits(model)["in_chans"] // module.in_channels
    return cfg["input_size"][0]


def compare_classes(theirs: Any, ours: Sequence[Any] | None) -> str:
    """Return how the class names of weights compare with those of a model, as `LoadReport` has it."""
    if not isinstance(theirs, list | tuple) or not theirs or ours is None:
        return "unknown"
    first, second = ([class_name(name) for name in names] for names in (theirs, ours))
    if first == second:
        return "same"
    return "reordered" if sorted(first) == sorted(second) else "others"


def load_head(model: nn.Module, record: LoadRecord) -> bool:
    """Load the recorded tensors of the classifier if all fit; return whether they did."""
    names = classifier_names(model) if model.num_classes else ()
    own = {f"{name}.{key}": tensor for name in names for key, tensor in model.get_submodule(name).state_dict().items()}
    if not own or {k: t.shape for k, t in own.items()} != {k: t.shape for k, t in record.head.items()}:
        return False
    for name in names:
        prefix = f"{name}."
        tensors = {key.removeprefix(prefix): t for key, t in record.head.items() if key.startswith(prefix)}
        model.get_submodule(name).load_state_dict(tensors)
    record.taken += own
    return True


def check_fit(record: LoadRecord, architecture: str, source: str) -> None:
    """Raise a `ValueError` when weights are of another model."""
    if record.misfits:
        name, theirs, ours = record.misfits[0]
        have = "has" if len(record.misfits) == 1 else "have"
        raise ValueError(
            f"Expected weights to fit {architecture}, but got {source!r}, of which "
            f"{counted(len(record.misfits), 'tensor')} {have} another shape, such as {name} with {theirs} instead of "
            f"{ours}. Create the model that they are of, without arguments that change its layers."
        )
    if not record.taken:
        raise ValueError(
            f"Expected weights to fit {architecture}, but got {source!r}, of which no tensor has a name of the "
            f"model's: {_first(record.unexpected)} instead of {_first(record.missing)}. Create the model that they are "
            "of."
        )


def report(model: nn.Module, record: LoadRecord, source: str, head_loaded: bool, classes: str) -> LoadReport:
    """Return the report, and log it; a warning tells when more than the head stays random."""
    head = "none" if not model.num_classes else "exact" if head_loaded else "new"
    made = LoadReport(
        source, len(record.taken), tuple(record.missing), tuple(record.unexpected), tuple(record.resized), head, classes
    )
    log: Callable[[str], None] = _LOGGER.warning if made.missing else _LOGGER.info
    log(printable(str(made)))
    return made


def _first(names: list[str] | tuple[str, ...], count: int = 3) -> str:
    shown = ", ".join(names[:count])
    return f"{shown}, …" if len(names) > count else shown or "nothing"
