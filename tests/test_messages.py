"""What error messages are made of."""

import pytest

from timm_accel.messages import missing_extra, nearest, one_line, root_cause


def test_another_librarys_error_is_one_line_of_at_most_200_characters() -> None:
    assert one_line(ValueError("sizes differ:\n\t3 and  4")) == "sizes differ: 3 and 4"
    assert one_line(KeyError()) == "KeyError"
    assert one_line(ValueError("a" * 300)) == "a" * 200
    assert one_line(ValueError("a" * 300), limit=None) == "a" * 300


def test_a_root_cause_is_the_first_cause_by_class_and_first_line() -> None:
    error = RuntimeError("export failed")
    error.__cause__ = KeyError("weight")
    assert root_cause(error) == "KeyError: 'weight'"
    assert root_cause(ValueError("\nfirst.\nsecond")) == "ValueError: first"
    assert root_cause(ValueError()) == "ValueError: nothing said"


def test_a_missing_extra_is_named_with_what_it_is_for_and_what_else_helps() -> None:
    error = missing_extra("demo", "the digits", "sklearn", ", or name a folder")
    assert error.name == "sklearn"
    assert str(error) == (
        "Expected the extra 'demo' to be installed for the digits, but 'sklearn' is missing. "
        'Run pip install "timm_accel[demo]", or name a folder.'
    )


@pytest.mark.parametrize(
    ("name", "text"), [("acuracy", "Did you mean 'accuracy'?"), ("xyz", "Known names: 'accuracy', 'loss'.")]
)
def test_near_names_are_suggested_and_else_the_known_ones(name: str, text: str) -> None:
    assert nearest(name, ["loss", "accuracy"]) == text
