"""List the named recipes, or print one of them."""

import yaml

from timm_accel.recipes import named_recipe, recipe_names


def recipes(name: str | None = None) -> None:
    """List the named recipes, or print the options of one as YAML for train --config.

    Args:
        name: The recipe to print; null lists all of them.
    """
    if name is not None:
        print(yaml.safe_dump(dict(named_recipe(name).options), sort_keys=False), end="")
        return
    for each in map(named_recipe, recipe_names()):
        print(f"{each.name}: {each.about}\n  source: {each.source}\n  result: {each.published}")
