"""Recipes describe a training run; published ones have a name, and `build_run` builds a trainer from one."""

from timm_accel.recipes.building import build_run
from timm_accel.recipes.command_line import refuse_arguments
from timm_accel.recipes.cross_validation import CrossValidation, cross_validate
from timm_accel.recipes.named import NamedRecipe, named_recipe, recipe_names
from timm_accel.recipes.recipe import Recipe
from timm_accel.recipes.run import Run

__all__ = [
    "CrossValidation",
    "NamedRecipe",
    "Recipe",
    "Run",
    "build_run",
    "cross_validate",
    "named_recipe",
    "recipe_names",
    "refuse_arguments",
]
