"""Classify images with model.onnx: python predict.py IMAGE …

It needs onnxruntime, numpy and pillow, and prints one line of JSON for each image: the classes and their probabilities,
the highest first.
"""

import json
import sys
from contextlib import suppress
from math import floor
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

session = onnxruntime.InferenceSession(str(Path(__file__).with_name("model.onnx")), providers=["CPUExecutionProvider"])
about = json.loads(session.get_modelmeta().custom_metadata_map["timm_accel"])
channels, height, width = about["input_size"]
names = about["class_names"] or [str(number) for number in range(about["num_classes"])]


def to_8_bits(image):
    """Scale 16-bit and 32-bit pixels by the range of the data, or by that of the type."""
    bits = getattr(image, "tag_v2", {}).get(258)  # of a TIFF
    is_16_bits = image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM")
    of_type = (0, 4095 if bits == (12,) else 65535) if is_16_bits else None
    low, high = of_type if of_type and about["pixel_range"] in (None, [0, 1]) else about["pixel_range"] or (None, None)
    if low is None:
        raise OSError("32-bit pixels have no scale: the model was trained without pixel_range")
    pixels = np.round((np.asarray(image).astype(np.float64) - low) * (255 / (high - low)))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def load(path):
    """Return an image upright, in 8 bits, and in grayscale or RGB."""
    with Image.open(path) as image:
        image.load()
        with suppress(Exception):  # a broken EXIF is no reason to refuse the pixels
            ImageOps.exif_transpose(image, in_place=True)
        if image.mode[0] in "IF":
            image = to_8_bits(image)
        elif image.mode == "P" and "transparency" in image.info:
            image = image.convert("RGBA")
        return image.convert("L" if channels == 1 else "RGB")


def resized_and_cropped(image):
    """Resize and crop an image as the evaluation of the training run did."""
    (w, h), fill = image.size, 0
    size = target_w, target_h = floor(width / about["crop_pct"]), floor(height / about["crop_pct"])
    if about["crop_mode"] == "center" and target_w == target_h:
        size = (target_w, int(target_w * h / w)) if w <= h else (int(target_w * w / h), target_w)
    elif about["crop_mode"] != "squash":
        ratio = (max if about["crop_mode"] == "border" else min)(h / target_h, w / target_w)
        size = round(w / ratio), round(h / ratio)
    if about["crop_mode"] == "border":
        fill = tuple(round(255 * value) for value in about["mean"])
    image = image.resize(size, Image.Resampling[about["interpolation"].upper()])
    left, top = (round(d / 2) if d > 0 else int(d / 2) for d in (size[0] - width, size[1] - height))
    canvas = Image.new(image.mode, (width, height), fill)
    canvas.paste(image, (-left, -top))
    return canvas


def predict(path):
    """Return the classes and their probabilities, the highest first."""
    pixels = np.asarray(resized_and_cropped(load(path))).reshape(1, height, width, channels)
    (scores,) = session.run(None, {"images": np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))})[0]
    if not about["includes_softmax"]:  # multi-label
        scores = 1 / (1 + np.exp(-scores.astype(np.float64) / about["temperature"]))
    return [(names[number], float(scores[number])) for number in np.argsort(-scores, kind="stable")]


if __name__ == "__main__":
    failed = [] if sys.argv[1:] else ["Name one image or more: python predict.py IMAGE …"]
    for path in sys.argv[1:]:
        try:
            found = predict(path)
        except Exception as error:  # Pillow raises many kinds
            failed.append(f"{path!r} cannot be read as an image: {error or type(error).__name__}")
        else:
            print(json.dumps({"image": path, "predictions": found}))
    sys.exit("\n".join(failed) or 0)  # text is printed, with exit code 1
