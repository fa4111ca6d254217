"""List the named recipes, or print one of them."""

import yaml

from timm_accel.recipes import named_recipe, recipe_names
from timm_accel.terminal import screen_width, wrapped


def recipes(name: str | None = None) -> None:
    """List the named recipes, or print the options of one as YAML for train --config.

    Args:
        name: The recipe to print; null lists all of them.
    """
    if name is not None:
        print(yaml.safe_dump(dict(named_recipe(name).options), sort_keys=False), end="")
        return
    for each in map(named_recipe, recipe_names()):
        print(*wrapped(f"{each.name}: {each.about}", screen_width(), "  "), sep="\n")
        for text in (f"source: {each.source}", f"result: {each.published}"):
            print(*(f"  {line}" for line in wrapped(text, screen_width() - 2, "  ")), sep="\n")
