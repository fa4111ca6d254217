"""Open classifiers from runs, folders of weights, states of a run, and exported files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from timm.data import resolve_input_data_config
from torch import Tensor, nn

from timm_accel.data.transforms.data_config import check_crop, check_mean_and_std
from timm_accel.data.transforms.device_transform import DeviceTransform
from timm_accel.export import open_exported
from timm_accel.export.preparation import evaluation_copy
from timm_accel.messages import nearest_path, one_line
from timm_accel.models import CONFIG_FILE, WEIGHTS_FILE, open_classifier, weights_of_run
from timm_accel.models.heads import Head
from timm_accel.models.opening import WEIGHTS, best_folders
from timm_accel.models.saving import PIXEL_RANGE
from timm_accel.models.sources import FILE_TYPES, read_source
from timm_accel.models.trial import output_shape
from timm_accel.predict.classifier import Classifier


def load_classifier(
    path: str | Path,
    *,
    device: str | torch.device | None = None,
    weights: str | None = None,
    multi_label: bool | None = None,
    head: Head | None = None,
) -> Classifier:
    """Open a trained model with its classes and preprocessing.

    Args:
        path: The folder of a run; ``best``, ``best_ema`` or another folder of weights; a state of a run, whose
            EMA weights are loaded if there are any; or an exported file, ``.onnx``, ``.pt2``, ``.pt`` or
            ``.torchscript``.
            Exported ``.pt`` and ``.pt2`` files can hold code, so open only what you trust.
        device: The device to compute on; None for the GPU if there is one. Exported files run on the CPU.
        weights: ``best`` or ``best_ema`` of a run. None loads ``best_ema`` if its metric is better than that of
            ``best``.
        multi_label: Whether the model is multi-label; None for the entry in ``config.json`` or in the file, and False
            without one.
        head: The function or module of a custom head.

    Raises:
        FileNotFoundError: The path does not exist, or it holds no weights.
        ModuleNotFoundError: The file is ONNX, and the extra ``export`` is not installed.
        ValueError: The device or the weights are unknown, or the file or folder is of another kind.
    """
    if not isinstance(path, str | Path):
        raise TypeError(f"Expected path to be text or a Path, but got {path!r}. Name the folder of a run.")
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(
            f"Expected path to be a run, a folder of weights, a state or an exported file, but got {str(path)!r}, "
            f"which does not exist. {nearest_path(path, 'Correct the path.')}"
        )
    is_run = path.is_dir() and not any((path / name).is_file() for name in (CONFIG_FILE, "manifest.json"))
    if weights is not None and not (is_run and weights in WEIGHTS):
        raise ValueError(
            f"Expected weights to be one of {WEIGHTS} beside the folder of a run, but got {weights!r} beside "
            f"{str(path)!r}. Leave it out."
        )
    if path.is_file() and path.name != "latest":
        if path.suffix in FILE_TYPES and path.suffix != ".pt":
            raise ValueError(
                f"Expected path to have class names and a data config, which a file of weights lacks, but got "
                f"{str(path)!r}. Name its folder if config.json is in it, or use create_classifier(…, weights=…)."
            )
        return _of_file(path, device, multi_label)
    if is_run:
        path = weights_of_run(path, weights)
    if (path / CONFIG_FILE).is_file():
        model, config = open_classifier(path, head)
        config["temperature"] = config.get("temperature", 1.0)
        return _of_model(model, config, device, multi_label, source=str(path / WEIGHTS_FILE), folder=path)
    return _of_model(*_open_state(path, head), device, multi_label, source=str(path))


def classifier_of(model: nn.Module, device: str | torch.device | None = None) -> Classifier:
    """Return a classifier of a copy of a model in memory; the model does not change.

    Args:
        model: A model with timm's ``pretrained_cfg``; its ``label_names``, if any, are the class names.
        device: The device to compute on; None for the GPU if there is one.

    Raises:
        ValueError: The model has no data config.
    """
    copy = evaluation_copy(model)
    about: dict[str, Any] = getattr(copy, "pretrained_cfg", None) or {}
    if not about:
        raise ValueError(
            "Expected model to have a data config in pretrained_cfg, since images are prepared by it, but got a "
            f"{type(copy).__name__} without. Create it with timm_accel.create_classifier or timm.create_model."
        )
    return _of_model(copy, about, device, None, source=f"the model in memory, a {type(copy).__name__}")


def _open_state(path: Path, head: Head | None) -> tuple[nn.Module, dict[str, Any]]:
    """Load a state's weights into the model that ``best`` of its run describes."""
    if not (described := best_folders(path.parent.parent)):
        raise FileNotFoundError(
            f"Expected path to be a state of a run with best or best_ema, since these describe the model, but got "
            f"{str(path)!r} without. Load the weights with create_classifier(…, weights=…)."
        )
    model, config = open_classifier(described[0], head)
    source = read_source(path)
    try:
        model.load_state_dict(source.tensors)
    except RuntimeError as error:
        raise ValueError(
            f"Expected path to be a state of the model in {str(described[0])!r}, but got {source.where} "
            f"({one_line(error)}). Load the weights with create_classifier(…, weights=…)."
        ) from error
    return model, {**config, "temperature": 1.0}  # that of `best` was fitted to other weights


def _of_model(
    model: nn.Module,
    config: dict[str, Any],
    device: str | torch.device | None,
    multi_label: bool | None,
    *,
    source: str,
    folder: Path | None = None,
) -> Classifier:
    place = resolve_device(device)
    data_config = resolve_input_data_config(model)
    about: Any = model.pretrained_cfg
    data_config[PIXEL_RANGE] = about.get(PIXEL_RANGE)
    names, num_classes = config.get("label_names"), output_shape(model, data_config["input_size"])[-1]
    _check_config(data_config, source)
    normalize = DeviceTransform(data_config["mean"], data_config["std"])
    model = model.to(place)
    return Classifier(
        run=lambda images: model(normalize(images.to(place))),
        class_names=_names(names, num_classes),
        data_config=data_config,
        device=place,
        multi_label=bool(config.get("multi_label") if multi_label is None else multi_label),
        temperature=config.get("temperature", 1.0),
        is_named=names is not None,
        folder=folder,
        source=source,
        model=model,
    )


def _of_file(path: Path, device: str | torch.device | None, multi_label: bool | None) -> Classifier:
    if device is not None and str(device).partition(":")[0] != "cpu":
        raise ValueError(
            f"Expected device to be 'cpu', since exported files run there, but got {device!r}. Leave it out, or load "
            "the run that the file was exported from."
        )
    exported = open_exported(path)
    about = exported.metadata
    if multi_label and about.includes_softmax:
        raise ValueError(
            f"Expected multi_label to be False, since {str(path)!r} includes a softmax, but got True. Export it "
            "with softmax=False."
        )
    _check_config(about.data_config, str(path))
    normalize = DeviceTransform(about.mean, about.std)

    def run(images: Tensor) -> Tensor:
        return exported(images if about.includes_normalization else normalize(images))

    return Classifier(
        run=run,
        class_names=_names(about.class_names, about.num_classes),
        data_config=about.data_config,
        device=torch.device("cpu"),
        gives_probabilities=about.includes_softmax,
        multi_label=about.multi_label if multi_label is None else multi_label,
        temperature=about.temperature,
        is_named=about.class_names is not None,
        source=str(path),
    )


def _check_config(config: dict[str, Any], source: str) -> None:
    check_mean_and_std(config["mean"], config["std"], f" of {source}")
    check_crop(config["crop_pct"], config["crop_mode"], config["interpolation"], f" of {source}")


def _names(names: Sequence[str] | None, num_classes: int) -> list[str]:
    if names is None:
        return [str(number) for number in range(num_classes)]
    if len(names) != num_classes:
        raise ValueError(
            f"Expected as many class names as the model's {num_classes} outputs, but got {len(names)}. Save the model "
            "again with the names of its data."
        )
    return list(names)


def resolve_device(device: str | torch.device | None) -> torch.device:
    """Return the device of a name, with its number: ``cuda:0`` for ``cuda``.

    Args:
        device: A name; None for the GPU if there is one.

    Raises:
        ValueError: This machine has no such device.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:  # torch built without CUDA asserts
        raise ValueError(
            f"Expected device to be one that this machine has, but got {device!r} ({one_line(error)}). "
            "Leave it out for the GPU if there is one."
        ) from error
