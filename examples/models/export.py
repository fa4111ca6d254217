"""Export a classifier to three formats, and compare their predictions.

    python examples/models/export.py

A small model learns scikit-learn's digits and is exported to ONNX, ``.pt2`` and TorchScript, including normalization
and softmax. The figure shows the four held-out digits with the lowest confidence, and the top-3 predictions of the
model and of each file. Needs the extras export and plots.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torchvision.transforms.functional import resize

from timm_accel import create_classifier
from timm_accel.export import Exported, export_onnx, export_program, export_torchscript, open_exported
from timm_accel.plots import save_figure

COLOURS = ("#4d4d4d", "#0072b2", "#e69f00", "#009e73")  # colors for color-blind readers too


def digits() -> tuple[Tensor, Tensor]:
    """Return the images as ``uint8`` ``(N, 3, 32, 32)``, and their labels."""
    data = load_digits()
    pictures = torch.from_numpy(data.images * 255 / 16).to(torch.uint8)
    return resize(pictures[:, None].expand(-1, 3, -1, -1), [32, 32]), torch.from_numpy(data.target)


def train(model: nn.Module, pictures: Tensor, labels: Tensor, num_epochs: int) -> None:
    """Train on pixels in -1 to 1 with AdamW."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(num_epochs):
        for batch in torch.randperm(len(labels)).split(64):
            loss = nn.functional.cross_entropy(model(pictures[batch] / 127.5 - 1), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def export_all(model: nn.Module, folder: Path) -> list[Exported]:
    """Write the three files; each is compared with the model before it is moved into place."""
    options = {"class_names": [str(digit) for digit in range(10)], "normalize": True, "softmax": True}
    return [
        export_onnx(model, folder / "digits.onnx", **options),
        export_program(model, folder / "digits.pt2", **options),
        export_torchscript(model, folder / "digits.pt", **options),
    ]


def main(out: str | Path = "export.png", num_epochs: int = 4) -> list[Exported]:
    """Write the figure, and return what was exported."""
    torch.manual_seed(0)
    model, _ = create_classifier("test_resnet", num_classes=10, image_size=32)
    model.pretrained_cfg.update(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))  # the images that train() uses
    pictures, labels = digits()
    train(model, pictures[:1400], labels[:1400], num_epochs)
    with TemporaryDirectory() as folder, torch.no_grad():
        exported = export_all(model, Path(folder))
        sure = model.eval()(pictures[1400:] / 127.5 - 1).softmax(dim=1).amax(dim=1)
        shown = pictures[1400:][sure.argsort()[:4]]
        answers = {"model": model(shown / 127.5 - 1).softmax(dim=1)}
        answers |= {each.path.name: open_exported(each.path)(shown) for each in exported}
    figure = Figure(figsize=(11, 5.2), dpi=120, layout="constrained")
    for number, (top, bottom) in enumerate(zip(*figure.subplots(2, 4), strict=True)):
        top.imshow(shown[number].permute(1, 2, 0).numpy())
        top.axis("off")
        plot_top_classes(bottom, {name: answer[number] for name, answer in answers.items()})
    figure.axes[4].set_ylabel("probability")
    figure.legend(*figure.axes[4].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    largest = max(each.max_difference for each in exported)
    figure.suptitle(f"Top-3 predictions of the model and its exported files (maximum difference {largest:.0e})")
    save_figure(figure, out)
    return exported


def plot_top_classes(axes: Axes, answers: dict[str, Tensor]) -> None:
    """Draw the top-3 classes of the model as groups of bars, one bar for the model and one for each file."""
    classes = answers["model"].topk(3).indices.tolist()
    for number, (name, answer) in enumerate(answers.items()):
        places = [place + 0.2 * (number - 1.5) for place in range(3)]
        axes.bar(places, answer[classes].tolist(), width=0.18, label=name, color=COLOURS[number])
    axes.set_xticks(range(3), [f"digit {each}" for each in classes])
    axes.set_ylim(0, 1)
    axes.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    for each in main():
        print(
            f"{each.path.name}: {each.size / 1e6:.1f} MB by {each.method}, maximum difference {each.max_difference:.0e}"
        )
