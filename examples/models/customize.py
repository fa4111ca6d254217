"""Customize a model: another head, another pooling, frozen stages.

    python examples/models/customize.py

Prints the stages of each model and draws their numbers of parameters, trainable stages in color and frozen ones in
gray. `pretrained=True` or `weights=…` in `create_classifier` would start from trained weights. Needs the extra plots.
"""

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from torch import nn

from timm_accel import create_classifier
from timm_accel.models import stage_parameters
from timm_accel.plots import save_figure


def normalized(in_features: int, num_classes: int) -> nn.Module:
    """Return a custom head: any function of these two numbers can create one."""
    return nn.Sequential(nn.LayerNorm(in_features), nn.Dropout(0.2), nn.Linear(in_features, num_classes))


MODELS: dict[str, dict[str, Any]] = {
    "timm's head": {},
    "head='mlp'": {"head": "mlp"},
    "head='mlp',\nglobal_pool='catavgmax'": {"head": "mlp", "global_pool": "catavgmax"},
    "head=normalized,\nfreeze=4": {"head": normalized, "freeze": 4},
    "freeze=['layer3', 'layer4']": {"freeze": ["layer3", "layer4"]},
}


def main(out: str | Path = "customize.png", name: str = "test_resnet") -> Path:
    """Write the figure, and return its path."""
    figure = Figure(figsize=(9, 4), dpi=120, layout="constrained")
    axes = figure.subplots()
    for row, (title, options) in enumerate(MODELS.items()):
        model, _ = create_classifier(name, num_classes=10, image_size=64, **options)
        parameters = dict(model.named_parameters())
        start = 0.0
        print(title.replace("\n", " "))
        for number, (stage, names) in enumerate(stage_parameters(model).items()):
            count = sum(parameters[each].numel() for each in names) / 1000
            learns = all(parameters[each].requires_grad for each in names)
            print(f"  {stage:8} {count:7.1f} thousand parameters, {'learning' if learns else 'frozen'}")
            colour, label = f"C{number}" if learns else "lightgrey", stage if row == 0 else None
            axes.barh(row, count, left=start, color=colour, edgecolor="white", label=label)
            start += count
    axes.set_yticks(range(len(MODELS)), list(MODELS))
    axes.invert_yaxis()
    axes.set_xlabel(f"thousands of parameters of {name}, stage by stage (gray: frozen)")
    axes.legend(loc="upper center", bbox_to_anchor=(0.4, 1.15), ncols=6, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    save_figure(figure, out)
    return Path(out)


if __name__ == "__main__":
    print(main())
