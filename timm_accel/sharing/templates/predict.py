"""Classify images with model.onnx: python predict.py IMAGE …

It needs onnxruntime, numpy and pillow, and prints one line of JSON for each image: the classes and their probabilities,
the highest first.
"""

import json
import sys
from math import floor
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image

TURNS = {
    2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE", 6: "ROTATE_270", 7: "TRANSVERSE", 8: "ROTATE_90",
}  # fmt: skip

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
        try:
            turn = TURNS.get(image.getexif().get(274))
        except Exception:  # a broken EXIF is no reason to refuse the pixels
            turn = None
        if image.mode[0] in "IF":
            image = to_8_bits(image)
        elif image.mode == "P" and "transparency" in image.info:
            image = image.convert("RGBA")
        image = image.convert("L" if channels == 1 else "RGB")
        return image if turn is None else image.transpose(Image.Transpose[turn])


def resized_and_cropped(image):
    """Resize and crop an image as the evaluation of the training run did."""
    (w, h), fill = image.size, 0
    target_w, target_h = floor(width / about["crop_pct"]), floor(height / about["crop_pct"])
    if about["crop_mode"] == "squash":
        size = target_w, target_h
    elif about["crop_mode"] == "border":
        ratio = max(h / target_h, w / target_w)
        size, fill = (round(w / ratio), round(h / ratio)), tuple(round(255 * value) for value in about["mean"])
    elif target_w == target_h:
        size = (target_w, int(target_w * h / w)) if w <= h else (int(target_w * w / h), target_w)
    else:
        ratio = min(h / target_h, w / target_w)
        size = round(w / ratio), round(h / ratio)
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
    for argument in sys.argv[1:]:
        print(json.dumps({"image": argument, "predictions": predict(argument)}))
