"""All faults of a recipe at once: invalid options, and options that contradict each other."""

from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING

from timm_accel.recipes.contradictions import CONTRADICTIONS
from timm_accel.recipes.options import fault_of

if TYPE_CHECKING:
    from timm_accel.recipes.recipe import Recipe


def check_recipe(recipe: "Recipe") -> None:
    """Raise if a recipe has faults, and name all of them.

    Contradictions are checked only between options that are valid by themselves.

    Args:
        recipe: The recipe.

    Raises:
        ValueError: It has faults.
    """
    faults = {option.name: fault_of(option, getattr(recipe, option.name)) for option in fields(recipe)}
    wrong = {name: fault for name, fault in faults.items() if fault is not None}
    asked = [rule for options, rule in CONTRADICTIONS.items() if not wrong.keys() & set(options)]
    raise_faults([*wrong.values(), *(fault for rule in asked for fault in rule(recipe))])


def raise_faults(faults: Sequence[str]) -> None:
    """Raise a `ValueError` that lists the faults of a recipe, if there are any.

    Args:
        faults: A sentence on each.
    """
    if len(faults) == 1:
        raise ValueError(faults[0])
    if faults:
        listed = " ".join(f"({number}) {fault}" for number, fault in enumerate(faults, 1))
        raise ValueError(f"Expected a recipe without faults, but got {len(faults)}: {listed}")
