"""Published recipes by name, each with its source and its published result."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import yaml

from timm_accel.messages import nearest
from timm_accel.recipes.faults import raise_faults
from timm_accel.recipes.recipe import Recipe
from timm_accel.schedules.fitting import bent_warmup
from timm_accel.terminal import print_fitted

_FOLDER = files("timm_accel.recipes") / "yaml"


@dataclass(frozen=True)
class NamedRecipe:
    """A published recipe.

    Args:
        name: Its name.
        about: Its purpose, in a sentence.
        source: Where its options were published.
        published: Its published result, with dataset and model.
        options: The options of a `Recipe` that it sets.
    """

    name: str
    about: str
    source: str
    published: str
    options: Mapping[str, Any]

    def recipe(self, **changes: Any) -> Recipe:
        """Return the recipe, with changes.

        Its warm-up is shortened for a run that the changes make too short, to at most half of it, unless they set it. A
        shortened one follows the length of the run again if it resumes longer.

        Raises:
            ValueError: Changes are unknown, or the recipe with them has faults.
        """
        known = Recipe.__annotations__
        raise_faults(
            [
                f"Expected changes to be options of Recipe, but got {name!r}. {nearest(name, known)}"
                for name in changes
                if name not in known
            ]
        )
        warmup = self._warmup_epochs(changes)
        recipe = Recipe(**{**self.options, **changes, "warmup_epochs": warmup})
        if "warmup_epochs" not in changes:
            object.__setattr__(recipe, "default_warmup", True)
            own = self.options.get("warmup_epochs")
            if warmup != own and os.environ.get("RANK", "0") == "0":
                print_fitted(
                    f"The warm-up of the recipe {self.name} is {warmup} instead of {own} epochs, since the run has "
                    f"{recipe.num_epochs}. Set warmup_epochs for another."
                )
        return recipe

    def _warmup_epochs(self, changes: Mapping[str, Any]) -> Any:
        """Return the warm-up of the recipe with changes."""
        options, own = {**self.options, **changes}, self.options.get("warmup_epochs")
        num_epochs, further = options.get("num_epochs", Recipe.num_epochs), options.get("sched_args") or {}
        if "warmup_epochs" in changes:
            return changes["warmup_epochs"]
        if own is None or type(num_epochs) is not int or not isinstance(further, Mapping):
            return own  # a wrong value is refused by the recipe
        arguments = {"sched": options.get("sched", Recipe.sched), **further, "warmup_epochs": own}
        return bent_warmup(arguments, num_epochs)


def recipe_names() -> list[str]:
    """Return the names of all recipes that come with the package."""
    return sorted(file.name.removesuffix(".yaml") for file in _FOLDER.iterdir() if file.name.endswith(".yaml"))


def named_recipe(name: str) -> NamedRecipe:
    """Return a recipe by its name.

    Args:
        name: One of `recipe_names`, such as ``a3``.

    Raises:
        ValueError: There is none of that name.
    """
    if name not in recipe_names():
        raise ValueError(f"Expected the name of a recipe, but got {name!r}. {nearest(name, recipe_names())}")
    content = yaml.safe_load((_FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))
    return NamedRecipe(name=name, **content)
