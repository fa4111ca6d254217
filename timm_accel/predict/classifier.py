"""A trained model with its classes and preprocessing."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from timm.data import create_transform
from torch import Tensor, nn
from torch.utils.data import DataLoader

from timm_accel.data.loader_errors import loader_errors_explained
from timm_accel.data.resources import check_loader_options
from timm_accel.data.transforms.prepare_image import PrepareImage
from timm_accel.distributed.shares import interleaved, share_of_process
from timm_accel.models.finite import check_finite
from timm_accel.models.saving import PIXEL_RANGE
from timm_accel.predict.augmentation import check_tta, config_of_views, views_of
from timm_accel.predict.images import ImageInputs, find_images
from timm_accel.predict.predictions import Prediction
from timm_accel.terminal import progress_bar


@dataclass
class Classifier:
    """A trained model that is ready for use; `load_classifier` opens one.

    Args:
        run: A function from ``uint8`` images ``(B, C, H, W)`` on the CPU to logits or probabilities
            ``(B, num_classes)``.
        class_names: The names of the classes in the order of the output.
        data_config: timm's ``input_size`` ``(C, H, W)``, ``mean``, ``std``, ``interpolation``, ``crop_pct`` and
            ``crop_mode``, and the ``pixel_range`` of images of more than 8 bits.
        device: The device of the model.
        gives_probabilities: Whether `run` includes a softmax.
        multi_label: Whether the model is multi-label.
        temperature: The divisor of the logits before they become probabilities.
        is_named: Whether the classes have names; otherwise the names are numbers.
        folder: The folder of its ``config.json``; None where there is none.
        source: The weights that it was loaded from, for messages.
        model: The torch module that `run` calls; None for an exported file.
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
    source: str = "the model"
    model: nn.Module | None = None

    @property
    def input_size(self) -> tuple[int, int, int]:
        """The ``(C, H, W)`` of an image in pixels."""
        channels, height, width = self.data_config["input_size"]
        return channels, height, width

    @property
    def prepare(self) -> PrepareImage:
        """The decoder of images: upright, 8 bits, grayscale or RGB."""
        return PrepareImage(self.input_size[0], self.data_config.get(PIXEL_RANGE))

    @cached_property
    def transform(self) -> Callable[[Any], Tensor]:
        """The evaluation transform from a decoded image to a ``uint8`` tensor ``(C, H, W)``."""
        return self.transform_of_views(())

    def transform_of_views(self, tta: Sequence[str]) -> Callable[[Any], Tensor]:
        """Return the transform of the images before `views_of` with these augmentations."""
        config = {name: value for name, value in self.data_config.items() if name != PIXEL_RANGE}
        return create_transform(**config_of_views(config, tta), normalize=False)

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """Return logits ``(B, num_classes)`` in float64 on the CPU, before the temperature.

        For a file that includes a softmax, they are the logarithms of its probabilities, which differ by a constant.

        Args:
            images: ``(B, C, H, W)``, ``uint8``, from `transform`.

        Raises:
            ValueError: An output is NaN or infinite.
        """
        outputs = self.run(images).detach().float().cpu()
        check_finite(outputs, self.source)
        if self.gives_probabilities:
            outputs = outputs.clamp(min=torch.finfo(outputs.dtype).tiny).log()
        return outputs.double()

    def probabilities(self, images: Tensor, tta: Sequence[str] = ()) -> Tensor:
        """Return probabilities ``(B, num_classes)`` in float64 on the CPU, the mean over the views.

        Args:
            images: ``(B, C, H, W)``, ``uint8``, from `transform_of_views`.
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
        share: bool = False,
    ) -> list[Prediction]:
        """Return the top-k predictions of each image, in order.

        The `Prediction` of an image that cannot be read has an error; the other images are predicted.

        Args:
            images: A path of a file or of a folder (with all folders below it, in natural order), a PIL image, a
                ``uint8`` array ``(H, W, C)`` or tensor ``(C, H, W)``, an encoded image in ``bytes`` or in an open
                binary file, or an iterable of these, such as a list, an array of paths or a batch of arrays.
            top_k: The number of classes, at most.
            batch_size: Images at a time.
            num_workers: Loader processes.
            progress: Whether a bar is shown if there is more than one batch.
            tta: Test-time augmentation: some of ``hflip``, ``vflip`` and ``five_crop``.
            threshold: The minimum probability of a multi-label class; other models ignore it.
            share: Whether the processes of a launch share the images, which are those of rank 0. Collective then: each
                process must make this call, and gets the predictions of all images. False computes everything here, so
                that one process may call it alone.

        Raises:
            FileNotFoundError: The path does not exist, or a folder holds no images.
            TypeError: An image is of an unknown kind.
            ValueError: An option is out of range, the path is a URL, or an output of the model is NaN or infinite.
        """
        tta = check_tta(tta)
        _check_at_least_1(top_k=top_k, batch_size=batch_size)
        check_loader_options(batch_size, num_workers)
        part, transform = share_of_process(share), self.transform_of_views(tta)
        inputs = ImageInputs(part.of_first(lambda: _found(images)), transform, self.prepare)
        batches: Any = part.batches(len(inputs), batch_size)
        min_score = threshold if self.multi_label else 0.0

        @loader_errors_explained()
        def compute() -> list[list[Prediction]]:
            loader: Any = DataLoader(
                inputs, batch_sampler=batches, num_workers=num_workers, collate_fn=ImageInputs.collate_fn
            )
            shown = progress and part.is_first and len(batches) > 1
            paths, made = inputs.paths, []
            for batch, (readable, errors) in zip(batches, progress_bar(loader, unit="batch", shown=shown), strict=True):
                try:
                    rows = iter([] if readable is None else self._top_k(readable, tta, top_k, min_score))
                except ValueError as error:
                    error.add_note(f"The batch begins with {paths[batch.start] or f'image {batch.start}'}.")
                    raise
                found = [next(rows) if reason is None else {"error": reason} for reason in errors]
                made.append([Prediction(paths[number], **each) for number, each in zip(batch, found, strict=True)])
            return made

        return list(chain.from_iterable(interleaved(part.gather(compute))))

    def _top_k(self, images: Tensor, tta: Sequence[str], top_k: int, min_score: float) -> list[dict[str, Any]]:
        scores, classes = self.probabilities(images, tta).topk(min(top_k, len(self.class_names)))
        rows = []
        for row_scores, row_classes in zip(scores.tolist(), classes.tolist(), strict=True):
            kept = [score for score in row_scores if score >= min_score]
            names = tuple(self.class_names[each] for each in row_classes[: len(kept)])
            rows.append({"labels": names, "scores": tuple(kept)})
        return rows


@loader_errors_explained()
def _found(images: Any) -> list[Any]:
    return find_images(images)


def _check_at_least_1(**options: int) -> None:
    for name, value in options.items():
        if not (isinstance(value, int) and value >= 1):
            raise ValueError(f"Expected {name} to be at least 1, but got {value!r}. Pass a positive integer.")
