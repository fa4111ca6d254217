"""Split the words of a command line into options and their values, in the spellings that people type."""

from collections.abc import Sequence
from re import split

from timm_accel.commands.parsing.options import Option
from timm_accel.messages import UsageError, counted, nearest

Values = list[tuple[str, list[str]]]
_BOOLEANS = ("true", "false", "yes", "no")
_HELP = "--help lists all options."


def split_words(words: Sequence[str], options: Sequence[Option]) -> Values:
    """Return the options with their words, in the order in which they were given.

    ``--data-dir x``, ``--data_dir x`` and ``--data-dir=x`` are the same; ``--pretrained`` alone is true;
    ``--scale 0.6 1`` are two words of one option, and ``--opt_args.momentum 0.9`` is one entry of ``opt_args``. After
    ``--`` no word is an option.

    Args:
        words: The words after the name of the command.
        options: The options of the command.

    Raises:
        UsageError: An option is unknown, lacks its value, or a word is missing or one too many.
    """
    known = {option.name: option for option in options if not option.positional}
    positional = [option for option in options if option.positional]
    found: Values = []
    loose: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word == "--":
            loose, rest = loose + rest, []
        elif word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            option = known.get(_base(name))
            if option is None:
                raise _unknown(name, known)
            given = [value] if equals else _take(rest, option, bool(positional))
            if not given:
                raise UsageError(
                    f"Expected arguments as --help lists them, but got --{option.name} without its one argument. "
                    "Add it."
                )
            found.append((_entry(name), given))
        else:
            loose.append(word)
    return _by_position(loose, positional, known) + _complete(found, known)


def _base(name: str) -> str:
    """Return the option's name of ``opt_args.momentum`` or ``trackers+``."""
    return split(r"[.+]", name)[0].replace("-", "_")


def _entry(name: str) -> str:
    return _base(name) + name[len(_base(name)) :]


def _take(rest: list[str], option: Option, has_positional: bool) -> list[str]:
    """Remove the words of an option's value from the front of the rest, and return them."""
    taken: list[str] = []
    while rest and not rest[0].startswith("--") and (option.many or not taken):
        if option.flag and has_positional and rest[0].lower() not in _BOOLEANS:
            break
        taken.append(rest.pop(0))
    return taken or (["true"] if option.flag else [])


def _by_position(loose: list[str], positional: list[Option], known: dict[str, Option]) -> Values:
    found: Values = []
    for option in positional:
        if not loose and option.default is not None:
            continue
        if not loose:
            raise UsageError(f"Expected the argument {option.name}, but got none. {_HELP}")
        count = len(loose) if option.many else 1
        found.append((option.name, loose[:count]))
        loose = loose[count:]
    if loose and positional:
        words = " ".join(map(repr, loose))
        raise UsageError(
            f"Expected {counted(len(positional), 'argument')} without a name, but got {words} too. {_HELP}"
        )
    if loose:
        raise _unknown(loose[0], known)
    return found


def _complete(found: Values, known: dict[str, Option]) -> Values:
    given = {name for name, _ in found}
    for option in known.values():
        if option.default is None and option.name not in given:
            raise UsageError(f"Expected the option --{option.name}, but got none. {_HELP}")
    return found


def _unknown(name: str, known: dict[str, Option]) -> UsageError:
    name = name.lstrip("-").partition("=")[0]
    return UsageError(f"Expected an option, but got {name!r}. {nearest(name.replace('-', '_'), known)}")
