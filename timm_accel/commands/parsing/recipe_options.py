"""The options of a recipe on the command line: a named recipe, then a file of options, then single options."""

from argparse import ArgumentError

from jsonargparse import ArgumentParser

from timm_accel.commands.parsing.options import Option
from timm_accel.commands.parsing.signatures import option_words
from timm_accel.commands.parsing.words import Values
from timm_accel.recipes import Recipe, named_recipe, recipe_names, refuse_arguments

CONFIG_OPTIONS = (
    Option("recipe", "str | null", "null", "The named recipe to start from.", choices=tuple(recipe_names())),
    Option("config", "str | null", "null", "A YAML file with any of the options of a recipe."),
    Option("print_config", "bool", "false", "Print the options of the recipe as YAML and exit.", flag=True),
)


def read_recipe(values: Values) -> Recipe:
    """Read the options of --recipe, then those of --config, then single options.

    Without --data_dir, --config and --recipe they start from the recipe `demo`.

    Args:
        values: The options and their words, as `split_words` returns them.

    Raises:
        SystemExit: With --print_config, when the options are printed.
        UsageError: A word is not of the option's type, or the file of --config holds no options.
        ValueError: The recipe has faults.
    """
    parser = ArgumentParser(allow_abbrev=False, exit_on_error=False, add_help=False)
    parser.add_class_arguments(Recipe)
    parser.add_argument("--recipe", type=str | None)
    parser.add_argument("--config", action="config")
    words = option_words(Recipe.__annotations__, [each for each in values if each[0] != "print_config"])
    if (begin := _recipe_name(values)) is not None:
        parser.set_defaults(dict(named_recipe(begin).options))
    try:
        options = parser.parse_args(words).as_dict()
        if options["recipe"] not in (None, begin):  # the file of --config names it
            parser.set_defaults(dict(named_recipe(options["recipe"]).options))
            options = parser.parse_args(words).as_dict()
        if any(name == "print_config" for name, _ in values):
            parser.parse_args([*words, "--print_config"])
    except (ArgumentError, UnicodeDecodeError) as error:
        refuse_arguments(error)
    named = options["recipe"] or begin
    for name in ("config", "recipe"):
        options.pop(name)
    if named is None:
        return Recipe(**options)
    if "warmup_epochs" not in parser.parse_args(words, defaults=False):
        options.pop("warmup_epochs")  # not typed: it follows the run
    return named_recipe(named).recipe(**options)


def _recipe_name(values: Values) -> str | None:
    given = dict(values)
    if "recipe" in given:
        return given["recipe"][0]
    return None if {"data_dir", "config"} & given.keys() else "demo"
