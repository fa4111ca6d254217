"""The metadata of an exported file: classes, preprocessing, and which steps the file includes."""

import json
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import timm_accel
from timm_accel.export.formats import check_installed, format_of
from timm_accel.messages import one_line
from timm_accel.models.integrity import check_saved_config
from timm_accel.models.loading import DATA_KEYS
from timm_accel.models.saving import PIXEL_RANGE

ONNX_KEY = "timm_accel"  # in metadata_props
EXTRA_FILE = "timm_accel.json"  # in the archive of the other two
_INSIDE = "the metadata of the exported file"


@dataclass(frozen=True)
class Metadata:
    """The description of an exported model, which is stored inside the file as JSON.

    Args:
        architecture: The timm name of the model, or its class.
        num_classes: The width of the output.
        class_names: The names of the classes in the order of the output; None if they have no names.
        input_size: ``(C, H, W)`` in pixels.
        mean: The mean of each channel, on a scale from 0 to 1.
        std: The standard deviation of each channel, on the same scale.
        interpolation: How an image is resized.
        crop_pct: The share of a side that the crop keeps.
        crop_mode: timm's ``center``, ``squash`` or ``border``.
        pixel_range: The values that become black and white in images of more than 8 bits; None for those of the type.
        includes_normalization: Whether the file takes ``uint8`` pixels and applies mean and std itself.
        includes_softmax: Whether the file returns probabilities.
        temperature: The divisor that the file has not applied to its logits.
        multi_label: Whether the model is multi-label.
        version: The version of timm_accel.
    """

    architecture: str
    num_classes: int
    class_names: tuple[str, ...] | None
    input_size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    crop_pct: float
    crop_mode: str
    includes_normalization: bool
    includes_softmax: bool
    temperature: float = 1.0
    multi_label: bool = False
    pixel_range: tuple[float, float] | None = None
    version: str = timm_accel.__version__

    def to_json(self) -> str:
        """Return the JSON that is stored."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Metadata":
        """Read the JSON of `to_json`; lists become tuples.

        Raises:
            ValueError: It is broken, or an entry is out of range.
        """
        try:
            stored: dict[str, Any] = json.loads(text)
            values: dict[str, Any] = {
                name: tuple(value) if isinstance(value, list) else value for name, value in stored.items()
            }
            found = cls(**values)
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(
                f"Expected an exported file to describe its model, but got {text[:100]!r} ({one_line(error)}). Export "
                "the model again."
            ) from error
        check_saved_config({**values, "label_names": values["class_names"], "pretrained_cfg": values}, _INSIDE)
        wrong = [name for name in ("includes_normalization", "includes_softmax") if not isinstance(values[name], bool)]
        if wrong := [name for name in ("num_classes", *DATA_KEYS) if values[name] is None] or wrong:
            raise ValueError(
                f"Expected {_INSIDE} to describe its model, but got {wrong[0]} of {values[wrong[0]]!r}. Export the "
                "model again."
            )
        return found

    @property
    def data_config(self) -> dict[str, Any]:
        """The arguments for ``timm.data.create_transform``, and ``pixel_range``."""
        return {name: getattr(self, name) for name in (*DATA_KEYS, PIXEL_RANGE)}


def read_metadata(path: str | Path) -> Metadata:
    """Read the metadata of an exported file, without running anything in it.

    Args:
        path: A file of `export_onnx`, `export_torchscript` or `export_program`.

    Raises:
        FileNotFoundError: There is no such file.
        ModuleNotFoundError: The file is ONNX, and the extra ``export`` is not installed.
        ValueError: The suffix is unknown, or the file was exported by something else.
    """
    path, file_format = Path(path), format_of(path)
    if not path.is_file():
        raise FileNotFoundError(f"Expected path to be an exported file, but got {str(path)!r}. Check the spelling.")
    text = _of_onnx(path) if file_format == "onnx" else _of_archive(path)
    if text is None:
        raise ValueError(
            f"Expected path to be a file that timm_accel exported, but got {str(path)!r}, which has no classes and "
            "data config inside. Export the model again."
        )
    return Metadata.from_json(text)


def _of_onnx(path: Path) -> str | None:
    check_installed("onnx")
    import onnx
    from google.protobuf.message import DecodeError

    try:
        stored = onnx.load(path, load_external_data=False).metadata_props
    except DecodeError:
        return None
    return next((entry.value for entry in stored if entry.key == ONNX_KEY), None)


def _of_archive(path: Path) -> str | None:
    """Return the extra file of a TorchScript or ``.pt2`` archive; torch chooses the folder in the archive."""
    if not zipfile.is_zipfile(path):
        return None
    with zipfile.ZipFile(path) as archive:
        found = [name for name in archive.namelist() if name.rpartition("/")[2] == EXTRA_FILE]
        return archive.read(found[0]).decode() if found else None
