"""timm's policies run on color and gray images, and a wrong part of one is named."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_images
from PIL import Image, ImageOps
from PIL import __version__ as pillow_version
from refusal import refused
from timm.data.auto_augment import rand_augment_choices

from timm_accel import create_classifier, create_datasets
from timm_accel.data.transforms.create import (
    _OPERATION_SETS,
    _operations,
    check_policy,
    create_training_transform,
    posterize_any,
)

IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8))
POLICIES = ["rand-m9-mstd0.5-inc1", "rand-m10-n4-p1.0-mmax10", "rand-m5-tweights", "rand-m5-t3a", "augmix-m3-w3-d2-b1",
            "original", "originalr-mstd0.5", "v0", "v0r-mstd1", "3a"]  # fmt: skip


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("channels", [1, 3])
def test_every_policy_runs_on_color_and_gray(policy: str, channels: int) -> None:
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    options = {"input_size": (channels, 16, 16), "mean": (0.5,) * channels, "std": (0.5,) * channels}
    transform = create_training_transform(policy, **options)
    image = IMAGE.convert("L") if channels == 1 else IMAGE
    for _ in range(60):
        assert transform(image).shape == (channels, 16, 16)


def test_the_strongest_posterize_is_black_as_before_pillow_13() -> None:
    if int(pillow_version.split(".")[0]) >= 13:
        with pytest.raises(ValueError, match="bits must be"):
            ImageOps.posterize(IMAGE, 0)
    assert not np.asarray(posterize_any(IMAGE, 0)).any()
    assert np.array_equal(posterize_any(IMAGE, 3), ImageOps.posterize(IMAGE, 3))
    transform = create_training_transform("rand-m10-inc1-n1-p1.0", input_size=16, scale=(1.0, 1.0), hflip=0.0)
    (mended,) = (op for op in _operations(transform) if op.name == "PosterizeIncreasing")
    assert not np.asarray(mended(IMAGE)).any()


def test_the_named_sets_of_operations_are_timms() -> None:
    for name in _OPERATION_SETS:
        assert rand_augment_choices(name)


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        ("rnd-m7", ("begin with rand, augmix", "got 'rnd-m7'", "Did you mean 'rand'?")),
        ("rand-q7", ("got 'rand-q7'", "part 'q7'", "Parts of rand: m, n, p, mstd, mmax, inc, t")),
        ("rand-m7-inc", ("part 'inc'",)),
        ("rand-m7-mstd0.5x", ("part 'mstd0.5x'",)),
        ("rand-m7-tnothing", ("part 'tnothing'",)),
        ("augmix-inc1", ("part 'inc1'", "Parts of augmix: m, w, d, a, b, mstd")),
        ("rand-m9.5-inc1", ("integer after 'm'", "got 'rand-m9.5-inc1'", "part is 'm9.5'")),
        ("rand-m9-n2.0", ("integer after 'n'", "part is 'n2.0'")),
        ("augmix-m3-w2.5", ("integer after 'w'", "part is 'w2.5'")),
        ("original-m9", ("part 'm9'", "Parts of original: mstd")),
        ("", ("got ''",)),
    ],
)
def test_the_part_of_a_policy_that_is_wrong_is_named(policy: str, words: tuple[str, ...]) -> None:
    with refused(ValueError, "auto_augment", *words, "'rand-m7-mstd0.5-inc1', or None"):
        check_policy(policy)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_gray_models_get_one_channel(tmp_path: Path) -> None:
    write_images(tmp_path / "train", {"cat": 2, "dog": 2})
    write_images(tmp_path / "val", {"cat": 2, "dog": 2})
    model, config = create_classifier("test_resnet", 2, image_size=32, in_chans=1)
    assert (config["input_size"], len(config["mean"]), len(config["std"])) == ((1, 32, 32), 1, 1)
    for dataset in create_datasets(32, config["mean"], config["std"], data=tmp_path):
        batch = torch.stack([dataset[number][0] for number in range(4)])
        assert batch.shape == (4, 1, 32, 32)
        assert model(batch).shape == (4, 2)
