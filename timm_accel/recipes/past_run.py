"""The recipe and the data of a run that was trained, from its folder."""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from timm_accel.data import write_digits
from timm_accel.messages import one_line
from timm_accel.recipes.data import create_data, source_of
from timm_accel.recipes.recipe import Recipe


def read_options(run: Path) -> dict[str, Any]:
    """Return the options of a run from its recipe; empty for a run without one.

    Raises:
        ValueError: The file is no YAML.
    """
    path = run / "recipe.yaml"
    if not path.is_file():
        return {}
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(
            f"Expected the recipe of a run to be YAML, but got {str(path)!r} ({one_line(error)}). Restore it."
        ) from error
    return content if isinstance(content, dict) else {}


def recipe_of_run(run: Path) -> Recipe | None:
    """Return the recipe of a run; None for a run without one.

    Args:
        run: The folder of the run, which may have been moved.

    Raises:
        ValueError: The recipe holds contradictions.
    """
    known = {field.name for field in fields(Recipe)}
    stored = {name: value for name, value in read_options(run).items() if name in known}
    return Recipe(**stored | {"run_dir": str(run), "resume": None}) if stored else None


def data_of_run(recipe: Recipe, data_config: Mapping[str, Any]) -> tuple[Any, Any]:
    """Return the training and the evaluation dataset of a run.

    Args:
        recipe: The recipe of the run.
        data_config: The preprocessing of its model.

    Raises:
        OSError: The data are not at hand.
        ValueError: The data are others.
    """
    data = write_digits() if recipe.data_dir is None else recipe.data_dir
    return create_data(recipe, source_of(recipe, data), data_config)
