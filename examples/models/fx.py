"""Look inside a block: any node of a model's graph can be read by its name.

    python examples/models/fx.py

The figure shows one residual block on a photo: its input, the output of the branch, their sum, and the activation. The
weights are random, so only edges and colors show; `pretrained=True` loads timm's. Needs the extra plots.
"""

from pathlib import Path

import torch
from sklearn.datasets import load_sample_image
from timm.data import create_transform
from torchvision.transforms.functional import to_pil_image

from timm_accel import create_classifier
from timm_accel.features import node_features, node_names
from timm_accel.plots import plot_feature_maps, save_figure

NODES = {"act1": "into the block", "layer1.0.bn2": "branch", "layer1.0.add": "sum", "layer1.0.act2": "activation"}


def main(out: str | Path = "fx.png", model_name: str = "test_resnet", pretrained: bool = False) -> Path:
    """Write the figure, and return its path."""
    torch.manual_seed(0)
    # timm initializes the last norm of a branch with zero, so that a new branch would show nothing
    model, config = create_classifier(model_name, num_classes=10, pretrained=pretrained, zero_init_last=False)
    print("\n".join(name for name in node_names(model) if name.startswith("layer1")))
    transform = create_transform(**config)
    image = transform(to_pil_image(load_sample_image("flower.jpg")))[None]

    with torch.no_grad():
        values = node_features(model, list(NODES))(image)
    maps = {title: values[node] for node, title in NODES.items()}
    save_figure(plot_feature_maps(maps, image, channels=4, mean=config["mean"], std=config["std"]), out)
    return Path(out)


if __name__ == "__main__":
    print(main())
