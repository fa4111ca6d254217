"""Train an image classifier with timm's models, losses, optimizers and schedules on pytorch-accelerated.

    accelerate launch --config_file accelerate_config.yaml examples/train.py --data_dir imagenette2-320

Without --data_dir it trains on a small dataset of handwritten digits. --recipe NAME starts from a named recipe (a3,
fine_tune, …), --help lists all options, --print_config writes them as YAML, and --config FILE.yaml reads them. If it
stops, run the same command with --resume auto.

timm_accel/recipes/building.py shows how a recipe becomes a run.
"""

import sys
from argparse import ArgumentError

from jsonargparse import ArgumentParser, set_parsing_settings

from timm_accel import Recipe, TimmMixupTrainer
from timm_accel.messages import own_sentence
from timm_accel.recipes import build_run, named_recipe, recipe_names, refuse_arguments


def parse_recipe(arguments: list[str] | None = None) -> Recipe:
    """Read the options of --recipe, then those of --config, then single options.

    Without --data_dir, --config and --recipe they start from the recipe `demo`.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    set_parsing_settings(docstring_parse_attribute_docstrings=True)  # the sentence beneath each field of Recipe
    parser = ArgumentParser(description="Train an image classifier.", allow_abbrev=False, exit_on_error=False)
    parser.add_class_arguments(Recipe)
    parser.add_argument("--recipe", type=str | None, help=f"The recipe to start from: {', '.join(recipe_names())}.")
    parser.add_argument("--config", action="config", help="A YAML file with any of these options.")
    if (begin := _recipe_name(arguments)) is not None:
        parser.set_defaults(dict(named_recipe(begin).options))
    try:
        options = parser.parse_args(arguments).as_dict()
        if options["recipe"] not in (None, begin):  # the file of --config names it
            parser.set_defaults(dict(named_recipe(options["recipe"]).options))
            options = parser.parse_args(arguments).as_dict()
    except (ArgumentError, UnicodeDecodeError) as error:
        refuse_arguments(error)
    named = options["recipe"] or begin
    for name in ("config", "recipe"):
        options.pop(name)
    if named is None:
        return Recipe(**options)
    if "warmup_epochs" not in parser.parse_args(arguments, defaults=False):
        options.pop("warmup_epochs")  # not typed: it follows the run
    return named_recipe(named).recipe(**options)


def _recipe_name(arguments: list[str]) -> str | None:
    words = [word for argument in arguments for word in argument.split("=", 1)]
    if "--recipe" in words[:-1]:
        return words[words.index("--recipe") + 1]
    return None if {"--data_dir", "--config", "--help", "-h"} & set(words) else "demo"


def main(recipe: Recipe) -> TimmMixupTrainer:
    """Train with the recipe, and return the trainer."""
    return build_run(recipe).train()


if __name__ == "__main__":
    try:
        main(parse_recipe()).accelerator.end_training()
    except Exception as error:
        if (sentence := own_sentence(error)) is None:
            raise  # not a user error
        sys.exit(f"train.py: {sentence}")
