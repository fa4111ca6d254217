"""Search timm's models by name, size and pretrained weights.

    python examples/models/search.py --name resnet --tag in1k --max_parameters 12e6

Each line shows a model, its parameters in millions, its image size, and the tags of its weights. `NAME.TAG`, such as
resnet18.a1_in1k, is what create_classifier(..., pretrained=True) and timm-accel train --pretrained take.
"""

from jsonargparse import auto_cli

from timm_accel.models import search_models


def main(name: str = "*", tag: str | None = None, max_parameters: float | None = None) -> None:
    """Print the models that fit, the smallest first.

    Args:
        name: A name or a part of it, or a pattern with * and ?.
        tag: The same for the tag of pretrained weights.
        max_parameters: The largest number of parameters.
    """
    found = search_models(name, tag=tag, max_parameters=max_parameters)
    for model in found:
        size = "x".join(map(str, model.input_size[1:]))
        print(f"{model.name:40} {model.num_parameters / 1e6:8.1f} M  {size:>9}  {', '.join(model.tags)}".rstrip())
    print(f"Models: {len(found)}")


if __name__ == "__main__":
    auto_cli(main)
