"""Find the stages of a model, from stem to head, and freeze some of them.

Frozen parameters stay parameters, with ``requires_grad=False``, so EMA weights, checkpoints and optimizers do not
change (``timm.utils.freeze`` turns those of BatchNorm into buffers). Every call of the model's `train` leaves frozen
batch norms in evaluation mode. Copies and `convert_sync_batchnorm` keep this, and no state dict contains it.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

from timm.models import group_parameters
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from timm_accel.messages import nearest
from timm_accel.models.heads import classifier_names


def stage_parameters(model: nn.Module) -> dict[str, list[str]]:
    """Return the names of the parameters of each stage, from stem to head.

    The stages of a timm model are the coarse groups of its `group_matcher`. Tensors at its root that the matcher
    assigns to the head (``pos_embed`` of some families) belong to the first stage. The stages of any other model, or
    if the matcher fails, are its children.

    Args:
        model: Any module.

    Source: ``timm.models.group_parameters``.
    """
    groups = _groups(model)
    if not groups:
        children = {name: [name] for name, own in model.named_parameters(recurse=False)}
        for child, module in model.named_children():
            if names := [f"{child}.{name}" for name, _ in module.named_parameters()]:
                children[child] = names
        return children
    if len(groups) > 1:
        at_root = [name for name in groups[-1] if "." not in name]
        groups[0] += at_root
        groups[-1] = [name for name in groups[-1] if name not in at_root]
    everything = [name for group in groups for name in group]
    stages = {}
    for number, group in enumerate(groups):
        others = [name for name in everything if name not in group]
        stages[_stage_name(model, group, others, number == 0)] = group
    return {name: group for name, group in stages.items() if group}


def _groups(model: nn.Module) -> list[list[str]]:
    """Return timm's groups; none when the matcher fails, as for Inception-v3 with another head, or RDNet (coarse)."""
    matcher: Any = getattr(model, "group_matcher", None)
    for coarse in (True, False) if matcher else ():
        try:
            return list(group_parameters(model, matcher(coarse=coarse)).values())
        except (AssertionError, KeyError):
            continue
    return []


def _stage_name(model: nn.Module, group: list[str], others: list[str], first: bool) -> str:
    """Return ``stem``, ``head``, or the shortest path of the group's first parameter that no other group shares."""
    if first:
        return "stem"
    if not group or any(name.startswith(f"{head}.") for name in group for head in classifier_names(model)):
        return "head"
    parts = group[0].split(".")
    paths = [".".join(parts[:depth]) for depth in range(1, len(parts) + 1)]
    return next((path for path in paths if not any(f"{name}.".startswith(f"{path}.") for name in others)), paths[-1])


def stage_names(model: nn.Module) -> list[str]:
    """Return the names of a model's stages, from stem to head."""
    return list(stage_parameters(model))


def freeze_stages(model: nn.Module, stages: int | Sequence[str]) -> None:
    """Freeze stages of a model, and unfreeze all others.

    Args:
        model: Any module that DDP does not wrap yet.
        stages: How many from the stem on (-1 is all but the last), or some of `stage_names`.

    Raises:
        TypeError: `stages` is neither a number nor names.
        ValueError: A stage is unknown, or none is left to train.
    """
    frozen = parts_to_freeze(model, stages)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen.parameters)
    keep_frozen_norms(model)


def keep_frozen_norms(model: nn.Module) -> None:
    """Leave the batch norms whose parameters are frozen in evaluation mode, and no others.

    Args:
        model: Any module.
    """
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    _keep_in_evaluation(model, _norms_of(model, frozen))


class FrozenParts(NamedTuple):
    """The names of the parameters and batch norms that are frozen with some stages of a model.

    Args:
        parameters: The parameters of these stages.
        norms: The batch norms of these parameters.
    """

    parameters: set[str]
    norms: list[str]


def parts_to_freeze(model: nn.Module, stages: int | Sequence[str]) -> FrozenParts:
    """Return the parts that `freeze_stages` freezes; the arguments and errors are the same."""
    groups = stage_parameters(model)
    parameters = {name for stage in _chosen(stages, list(groups)) for name in groups[stage]}
    return FrozenParts(parameters, _norms_of(model, parameters))


def _chosen(stages: int | Sequence[str], names: list[str]) -> list[str]:
    if isinstance(stages, int) and not isinstance(stages, bool):
        if not -len(names) < stages < len(names):
            raise ValueError(
                f"Expected freeze to be from 0 to {len(names) - 1} of the stages {names}, since one must be left to "
                f"train, but got {stages}. Freeze fewer; -1 is all but the last."
            )
        return names[:stages]
    if isinstance(stages, str) or not isinstance(stages, Sequence):
        raise TypeError(
            f"Expected freeze to be a number of stages or a list of their names, but got {stages!r}. "
            f"The stages are {names}."
        )
    if unknown := [name for name in stages if name not in names]:
        raise ValueError(
            f"Expected freeze to name stages of the model, but got {unknown[0]!r}. {nearest(unknown[0], names)}"
        )
    if set(stages) == set(names):
        raise ValueError(f"Expected freeze to leave a stage to train, but got all of {names}. Freeze fewer.")
    return list(stages)


def _norms_of(model: nn.Module, frozen: set[str]) -> list[str]:
    """Return the names of frozen batch norms; one without weights is frozen with the module around it."""
    norms = []
    for name, module in model.named_modules():
        if isinstance(module, _NormBase):
            names = [f"{name}.{own}" for own, _ in module.named_parameters(recurse=False)]
            around = name
            while not names and around:
                around = around.rpartition(".")[0]
                names = [f"{around}.{own}" for own, _ in model.get_submodule(around).named_parameters()]
            if names and frozen.issuperset(names):
                norms.append(name)
    return norms


def _keep_in_evaluation(model: nn.Module, norms: list[str]) -> None:
    vars(model).pop("train", None)
    if norms:
        # a plain attribute: in no state dict, copied with the model, found by DDP and compile, which call it by name
        vars(model)["train"] = partial(_train_all_but, model, norms)
    model.train(model.training)


def _train_all_but(model: nn.Module, norms: list[str], mode: bool = True) -> Any:
    type(model).train(model, mode)
    for name in norms:
        model.get_submodule(name).eval()
    return model
