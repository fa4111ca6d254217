"""A model with its classes and preprocessing, whatever form it was stored in."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from timm.data import create_transform
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from timm_accel.data.transforms.prepare_image import PrepareImage
from timm_accel.predict.augmentation import check_tta, config_of_views, views_of
from timm_accel.predict.images import ImageInputs, find_images
from timm_accel.predict.predictions import Prediction


@dataclass
class Classifier:
    """A trained model that is ready for use; `load_classifier` opens one.

    Args:
        run: Takes images ``(B, C, H, W)`` of ``uint8`` on the CPU, and gives logits or probabilities
            ``(B, num_classes)``.
        class_names: In the order of the output.
        data_config: timm's ``input_size`` ``(C, H, W)``, ``mean``, ``std``, ``interpolation``, ``crop_pct`` and
            ``crop_mode``.
        device: Where the model computes.
        gives_probabilities: Whether a softmax is inside.
        multi_label: Whether each class is there or not by itself.
        temperature: What logits are divided by before they become probabilities.
        is_named: Whether somebody named the classes; else the names are numbers.
        folder: That of its ``config.json``, where it came from one.
    """

    run: Callable[[Tensor], Tensor]
    class_names: list[str]
    data_config: dict[str, Any]
    device: torch.device
    gives_probabilities: bool = False
    multi_label: bool = False
    temperature: float = 1.0
    is_named: bool = True
    folder: Path | None = None

    @property
    def input_size(self) -> tuple[int, int, int]:
        """The ``(C, H, W)`` of an image in pixels."""
        channels, height, width = self.data_config["input_size"]
        return channels, height, width

    @property
    def prepare(self) -> PrepareImage:
        """What decodes an image: upright, 8 bits, gray or RGB."""
        return PrepareImage(self.input_size[0])

    @cached_property
    def transform(self) -> Callable[[Any], Tensor]:
        """What makes an image ``(C, H, W)`` of ``uint8`` of a decoded image, as in evaluation."""
        return self.transform_of_views(())

    def transform_of_views(self, tta: Sequence[str]) -> Callable[[Any], Tensor]:
        """Return the transform for the images that the views of `tta` are taken of."""
        return create_transform(**config_of_views(self.data_config, tta), normalize=False)

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """Return logits ``(B, num_classes)`` in float64 on the CPU, before the temperature.

        Those of a file with a softmax inside are the logarithms of its probabilities, which differ by a constant.

        Args:
            images: ``(B, C, H, W)``, ``uint8``, as `transform` makes them.
        """
        outputs = self.run(images).detach().float().cpu()
        if self.gives_probabilities:
            outputs = outputs.clamp(min=torch.finfo(outputs.dtype).tiny).log()
        return outputs.double()

    def probabilities(self, images: Tensor, tta: Sequence[str] = ()) -> Tensor:
        """Return probabilities ``(B, num_classes)`` in float64 on the CPU, the mean over the views.

        Args:
            images: ``(B, C, H, W)``, ``uint8``, as `transform_of_views` makes them.
            tta: Test-time augmentation: some of ``hflip``, ``vflip`` and ``five_crop``.
        """
        logits = [self.logits(view) / self.temperature for view in views_of(images, tta, self.input_size[1:])]
        return torch.stack([each.sigmoid() if self.multi_label else each.softmax(dim=1) for each in logits]).mean(dim=0)

    def predict(
        self,
        images: Any,
        top_k: int = 5,
        *,
        batch_size: int = 64,
        num_workers: int = 0,
        progress: bool = True,
        tta: Sequence[str] = (),
        threshold: float = 0.5,
    ) -> list[Prediction]:
        """Return the likeliest classes of each image, in order.

        An image that cannot be read has an error in its `Prediction`, and the rest goes on.

        Args:
            images: An image of Pillow's, a ``uint8`` array ``(H, W, C)`` or tensor ``(C, H, W)``, a file, a folder
                (with all folders below it, in natural order), or several of these.
            top_k: The number of classes, at most.
            batch_size: Images at a time.
            num_workers: Loader processes.
            progress: Whether a bar is shown where there are several batches.
            tta: Test-time augmentation: some of ``hflip``, ``vflip`` and ``five_crop``.
            threshold: The least probability of a class with several labels an image; else not looked at.

        Raises:
            FileNotFoundError: The one path does not exist, or a folder holds no images.
            TypeError: An image is of no kind that is known.
            ValueError: An option is out of range.
        """
        tta = check_tta(tta)
        _check_at_least_1(top_k=top_k, batch_size=batch_size)
        images = ImageInputs(find_images(images), self.transform_of_views(tta), self.prepare)
        loader = DataLoader(images, batch_size, num_workers=num_workers, collate_fn=ImageInputs.collate_fn)
        least = threshold if self.multi_label else 0.0
        paths, predictions = iter(images.paths), []
        for readable, errors in tqdm(loader, unit="batch", disable=not progress or len(loader) < 2):
            likeliest = iter([] if readable is None else self._likeliest(readable, tta, top_k, least))
            for error in errors:
                found = next(likeliest) if error is None else {"error": error}
                predictions.append(Prediction(next(paths), **found))
        return predictions

    def _likeliest(self, images: Tensor, tta: Sequence[str], top_k: int, least: float) -> list[dict[str, Any]]:
        scores, classes = self.probabilities(images, tta).topk(min(top_k, len(self.class_names)))
        rows = []
        for row_scores, row_classes in zip(scores.tolist(), classes.tolist(), strict=True):
            kept = [score for score in row_scores if score >= least]
            names = tuple(self.class_names[each] for each in row_classes[: len(kept)])
            rows.append({"labels": names, "scores": tuple(kept)})
        return rows


def _check_at_least_1(**options: int) -> None:
    for name, value in options.items():
        if not (isinstance(value, int) and value >= 1):
            raise ValueError(f"Expected {name} to be at least 1, but got {value!r}. Pass a positive whole number.")
