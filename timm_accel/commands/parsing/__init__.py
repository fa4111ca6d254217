"""How words become arguments: the recorded options for help, completion and spelling, the signatures for the types."""

from timm_accel.commands.parsing.help import help_of, overview, plain_parser
from timm_accel.commands.parsing.options import CommandOptions, Option, options_of_command
from timm_accel.commands.parsing.words import split_words

__all__ = ["CommandOptions", "Option", "help_of", "options_of_command", "overview", "plain_parser", "split_words"]
