"""Published recipes by name, each with its source and its published result."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import yaml

from timm_accel.messages import nearest
from timm_accel.recipes.faults import raise_faults
from timm_accel.recipes.recipe import Recipe

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
        return Recipe(**{**self.options, **changes})


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
        raise ValueError(f"Expected recipe to be one by name, but got {name!r}. {nearest(name, recipe_names())}")
    content = yaml.safe_load((_FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))
    return NamedRecipe(name=name, **content)
