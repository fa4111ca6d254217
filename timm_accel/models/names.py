"""Names of timm's models, and the nearest ones to a name that is none."""

from typing import Any

import timm

from timm_accel.suggestions import nearest


def check_model_name(name: Any) -> None:
    """Raise a `ValueError` that suggests near names when timm has no such model, or the model no such tag."""
    architecture = str(name).split(".")[0]
    known, unknown = timm.list_models(), architecture
    if timm.is_model(architecture):
        try:
            timm.get_pretrained_cfg(name)  # raises for an unknown tag
            return
        except RuntimeError:
            known, unknown = timm.list_pretrained(f"{architecture}.*"), name
    raise ValueError(
        f"Expected model to be a name of timm, but got {name!r}. {nearest(unknown, known)} "
        "timm.list_models() lists all."
    )
