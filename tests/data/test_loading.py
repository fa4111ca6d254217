"""Loading: bytes to the device, finished there; a cache in memory; reduced decoding; scheduled sizes."""

import io
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from conftest import write_images
from PIL import Image
from refusal import refused
from resumed_runs import cut, every_update
from timm.data import create_transform
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import RandomResizedCropAndInterpolation
from tiny_runs import Seen, fit, make_trainer, needs_gpu, same_weights
from torch import nn

from timm_accel import create_datasets
from timm_accel.data import Source
from timm_accel.data.readers.memory_cache import MemoryCache
from timm_accel.data.seeding import SampleKey, SeededDataset, seed_prefetch
from timm_accel.data.transforms.device_transform import DeviceTransform
from timm_accel.data.transforms.drafted_crop import DraftedCrop
from timm_accel.data.transforms.prepare_image import PrepareImage
from timm_accel.mixins import ScheduledResolutionMixin
from timm_accel.training.prefetch import prefetch

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
CPU = torch.device("cpu")


def sets(folder: Path, **options: Any) -> Any:
    return create_datasets(8, MEAN, STD, data=folder, **options)


class Pooled(nn.Module):
    """A model for images of any size."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.convolution, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.convolution(images).relu().mean((2, 3)))


def trained(folder: Path, run_dir: Path | None = None, kind: type = Seen, num_workers: int = 0, **options: Any) -> Any:
    """Train on the folder; loader and trainer options may be mixed."""
    loading = {name: options.pop(name) for name in ("cache", "draft", "re_prob", "re_mode") if name in options}
    run = {name: options.pop(name) for name in ("resume_from", "num_epochs") if name in options}
    callbacks = [every_update()] if run_dir else ()
    trainer = make_trainer(kind, Pooled(), run_dir=run_dir, callbacks=callbacks, **options)
    return fit(trainer, sets(folder, **loading)[0], train_dataloader_kwargs={"num_workers": num_workers}, **run)


# Normalization and random erasing on the device


def test_who_reads_the_set_gets_the_floats_of_timms_transform(image_folder: Path) -> None:
    _, val = create_datasets(8, MEAN, STD, data=image_folder, crop_pct=1.0)
    reference = create_transform(8, mean=MEAN, std=STD, crop_pct=1.0)
    for number in range(len(val)):
        image, label = val[number]
        file, wanted = val.reader[number]
        assert torch.allclose(image, reference(Image.open(file).convert("RGB")), atol=1e-6)
        assert label == wanted


def test_a_loader_carries_bytes_and_the_trainer_sees_the_same_floats(image_folder: Path) -> None:
    train_set, _ = sets(image_folder)
    raw, _ = SeededDataset(train_set, 0)[SampleKey(0, 0, 0)]
    assert raw.dtype == torch.uint8
    assert raw.shape == (3, 8, 8)
    images = trained(image_folder).images
    assert {image.dtype for image in images} == {torch.float32}

    class Floats(Seen):
        def create_train_dataloader(self, *args: Any, **kwargs: Any) -> Any:
            self.train_dataset = _FloatsOnly(self.train_dataset)
            return super().create_train_dataloader(*args, **kwargs)

    floats = trained(image_folder, kind=Floats).images
    assert all(torch.equal(a, b) for a, b in zip(images, floats, strict=True))


class _FloatsOnly(torch.utils.data.Dataset):
    """The dataset without a `device_transform` that the trainer knows."""

    def __init__(self, dataset: Any) -> None:
        self.data = dataset

    def __getitem__(self, index: int) -> Any:
        return self.data[index]

    def __len__(self) -> int:
        return len(self.data)


def test_a_set_can_be_walked_through_and_ends(image_folder: Path) -> None:
    train_set, _ = sets(image_folder)
    assert [label for _, label in train_set] == [0] * 7 + [1] * 6 + [2] * 6
    with pytest.raises(IndexError, match="index to be from 0 to 18, but got -1"):
        train_set[-1]


def test_only_integers_are_normalized() -> None:
    transform, floats = DeviceTransform(MEAN, STD), torch.rand(2, 3, 4, 4)
    assert transform(floats) is floats
    picture = Image.new("RGB", (4, 4))
    assert transform(picture) is picture
    pixels = torch.randint(256, (2, 3, 4, 4), dtype=torch.uint8)
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (MEAN, STD))
    assert torch.allclose(transform(pixels), (pixels / 255 - mean) / std, atol=1e-5)
    assert torch.equal(transform(pixels)[0], transform(pixels[0]))
    grey = DeviceTransform((0.5,), (0.5,))(torch.full((2, 1, 4, 4), 255, dtype=torch.uint8))
    assert torch.allclose(grey, torch.ones(2, 1, 4, 4))


@pytest.mark.parametrize("mode", ["const", "rand", "pixel"])
def test_erasing_draws_from_seed_epoch_batch_and_rank(mode: str, image_folder: Path) -> None:
    whole = trained(image_folder).images
    erased = trained(image_folder, re_prob=1.0, re_mode=mode).images
    for number, (image, before) in enumerate(zip(erased, whole, strict=True)):
        epoch, batch = divmod(number, 5)
        seed_prefetch(42, epoch, batch, 0, CPU)
        expected = RandomErasing(1.0, mode=mode, device="cpu")(before.clone())
        assert torch.equal(image, expected)
        assert not torch.equal(image, before)


def test_several_parts_are_erased_if_asked() -> None:
    torch.manual_seed(0)
    white = torch.full((50, 3, 32, 32), 255, dtype=torch.uint8)

    def edges(count: int) -> float:
        seed_prefetch(0, 0, 0, 0, CPU)
        erased = DeviceTransform((0.0,) * 3, (1.0,) * 3, re_prob=1.0, re_count=count)(white)
        return float((erased.diff(dim=3) != 0).sum())

    assert edges(4) > 1.3 * edges(1)


def test_erasing_changes_no_draw_of_the_step(image_folder: Path) -> None:
    class Drawing(Seen):
        def calculate_train_batch_loss(self, batch: Any) -> dict[str, Any]:
            self.draws = [*getattr(self, "draws", ()), torch.rand(()).item()]
            return super().calculate_train_batch_loss(batch)

    assert trained(image_folder, kind=Drawing).draws == trained(image_folder, kind=Drawing, re_prob=1.0).draws


def test_evaluation_may_have_another_size(image_folder: Path) -> None:
    train_set, val_set = sets(image_folder, eval_image_size=12)
    assert train_set[0][0].shape == (3, 8, 8)
    assert val_set[0][0].shape == (3, 12, 12)


def test_erasing_is_off_in_evaluation(image_folder: Path) -> None:
    _, val = sets(image_folder, re_prob=1.0, re_mode="pixel")
    assert not val.device_transform.is_random
    assert torch.equal(val[0][0], sets(image_folder)[1][0][0])


def test_prefetch_keeps_order_and_transforms_every_batch_once() -> None:
    made: list[int] = []
    assert list(prefetch(range(5), lambda number: made.append(number) or number * 10, CPU)) == [0, 10, 20, 30, 40]
    assert made == [0, 1, 2, 3, 4]
    assert list(prefetch([], lambda batch: batch, CPU)) == []


@pytest.mark.gpu
@needs_gpu
def test_on_a_gpu_the_next_batch_is_made_ready_before_the_present_one_is_given() -> None:
    device, made = torch.device("cuda", 0), []

    def make_ready(batch: torch.Tensor) -> torch.Tensor:
        made.append(int(batch[0]))
        return batch * 2

    batches = [torch.full((4,), float(number)).to(device) for number in range(4)]
    for number, batch in enumerate(prefetch(batches, make_ready, device)):
        assert made[-1] == min(number + 1, 3)
        assert batch.tolist() == [2.0 * number] * 4


def test_the_sets_go_to_spawned_workers(image_folder: Path) -> None:
    train_set, _ = sets(image_folder, re_prob=0.5)
    again = pickle.loads(pickle.dumps(train_set))
    assert again.load(0)[0].shape == (3, 8, 8)


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("re_prob", 1.5, ("between 0 and 1", "got 1.5")),
        ("re_mode", "noise", ("const, rand, pixel", "got 'noise'")),
        ("re_count", 0, ("at least 1", "got 0")),
        ("cache", "disk", ("'memory' or None", "got 'disk'")),
        ("hlfip", 0.1, ("create_transform", "got 'hlfip'", "'hflip'")),
    ],
)
def test_a_wrong_option_is_named(option: str, value: Any, words: tuple[str, ...], image_folder: Path) -> None:
    with refused(ValueError, *words):
        sets(image_folder, **{option: value})


# Decoded once


def test_a_cache_gives_the_same_images_and_opens_no_file_again(image_folder: Path) -> None:
    plain = [trained(image_folder, num_workers=0), trained(image_folder, cache="memory", num_workers=2)]
    assert all(torch.equal(a, b) for a, b in zip(plain[0].images, plain[1].images, strict=True))
    assert same_weights(plain[0].model, plain[1].model)
    train_set, _ = sets(image_folder, cache="memory")
    for file in (image_folder / "train").rglob("*.png"):
        file.unlink()
    assert all(train_set[number][0].shape == (3, 8, 8) for number in range(len(train_set)))
    assert train_set.class_sizes == {"cat": 7, "dog": 6, "owl": 6}
    assert train_set.reader.num_bytes == 19 * 16 * 16 * 3
    assert train_set.filename(0, absolute=True).endswith("cat/000.png")


def test_a_cached_image_is_upright_and_gray_if_asked(tmp_path: Path) -> None:
    pixels = np.arange(6 * 4 * 3, dtype=np.uint8).reshape(6, 4, 3)
    exif = Image.Exif()
    exif[0x0112] = 6
    for split in ("train", "val"):
        for name in ("a", "b"):
            (tmp_path / split / name).mkdir(parents=True)
            Image.fromarray(pixels).save(tmp_path / split / name / "0.png", exif=exif)
    reader = Source(tmp_path).open("train")
    for channels, size in ((3, (6, 4)), (1, (6, 4))):
        picture, label = MemoryCache(reader, PrepareImage(channels))[1]
        assert picture.size == size
        assert picture.mode == {3: "RGB", 1: "L"}[channels]
        assert np.array_equal(picture, PrepareImage(channels)(Image.open(reader[1][0])))
        assert label == 1


def test_a_cache_skips_or_raises_as_files_do(image_folder: Path) -> None:
    (image_folder / "train" / "cat" / "003.png").write_bytes(b"no image")
    whole = (image_folder / "train" / "dog" / "002.png").read_bytes()
    (image_folder / "train" / "dog" / "002.png").write_bytes(whole[: len(whole) // 2])
    train_set, _ = sets(image_folder, cache="memory")
    assert [train_set.load(number)[1] for number in (3, 9)] == [0, 1]
    assert train_set.unreadable == [3, 9]
    strict, _ = sets(image_folder, cache="memory", on_error="raise")
    with pytest.raises(OSError, match=r"003\.png"):
        strict.load(3)


def test_a_cached_file_that_cannot_be_opened_keeps_its_label(image_folder: Path) -> None:
    path = image_folder / "train" / "dog" / "001.png"
    train_set, _ = sets(image_folder)  # its list of files
    path.unlink()
    cached = MemoryCache(train_set.reader, PrepareImage())
    assert list(cached.labels) == [0] * 7 + [1] * 6 + [2] * 6
    with pytest.raises(OSError, match=r"001\.png"):
        cached[8]


def test_a_cache_that_does_not_fit_is_refused_before_decoding(
    image_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=30_000))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(MemoryError, match=r"19 images that take 0\.0 MB in each of 2 processes.*cache=None"):
        sets(image_folder, cache="memory")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    sets(image_folder, cache="memory")


# Decoded small


def jpeg(width: int, height: int, orientation: int = 1) -> bytes:
    random = np.random.default_rng(0)
    smooth = Image.fromarray(random.integers(0, 255, (6, 8, 3), dtype=np.uint8)).resize((width, height), 3)
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    smooth.save(file, "JPEG", quality=95, exif=exif)
    return file.getvalue()


def crop_of(size: int = 32, **options: Any) -> RandomResizedCropAndInterpolation:
    return RandomResizedCropAndInterpolation(size, interpolation="random", **options)


def pixels(image: Any) -> np.ndarray:
    return np.asarray(image).astype(int)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_drafted_crop_is_timms_crop_but_for_small_differences(orientation: int) -> None:
    data, crop, prepare = jpeg(640, 480, orientation), crop_of(), PrepareImage()
    differences = []
    for seed in range(10):
        images = [Image.open(io.BytesIO(data)) for _ in range(2)]
        seed_prefetch(seed, 0, 0, 0, CPU)
        expected = crop(prepare(images[0]))
        seed_prefetch(seed, 0, 0, 0, CPU)
        drafted = DraftedCrop(crop, prepare)(images[1])
        assert drafted.size == (32, 32)
        differences.append(np.abs(pixels(drafted) - pixels(expected)).mean())
    assert 0 < np.mean(differences) < 3


def test_other_formats_and_small_crops_are_cropped_exactly_as_timm_does() -> None:
    prepare, png = PrepareImage(), io.BytesIO()
    Image.open(io.BytesIO(jpeg(640, 480))).save(png, "PNG")
    small = jpeg(48, 40)
    for data in (png.getvalue(), small):
        for seed in range(5):
            crop = crop_of()
            seed_prefetch(seed, 0, 0, 0, CPU)
            expected = crop(prepare(Image.open(io.BytesIO(data))))
            seed_prefetch(seed, 0, 0, 0, CPU)
            assert np.array_equal(DraftedCrop(crop, prepare)(Image.open(io.BytesIO(data))), expected)


@pytest.mark.parametrize(("size", "scale"), [(60, 8), (61, 4), (120, 4), (121, 2), (240, 2), (241, 1)])
def test_decoding_keeps_as_many_pixels_as_the_crop_needs(size: int, scale: int) -> None:
    opened = Image.open(io.BytesIO(jpeg(640, 480)))
    crop = crop_of(size, scale=(1.0, 1.0), ratio=(4 / 3, 4 / 3))
    DraftedCrop(crop, PrepareImage())(opened)
    assert opened.size == (640 // scale, 480 // scale)


def test_both_sides_of_the_crop_keep_pixels_enough() -> None:
    opened = Image.open(io.BytesIO(jpeg(640, 480)))
    DraftedCrop(crop_of((50, 300), scale=(1.0, 1.0), ratio=(4 / 3, 4 / 3)), PrepareImage())(opened)
    assert opened.size == (320, 240)


def test_draft_is_for_training_alone_and_not_beside_a_cache(image_folder: Path) -> None:
    train_set, val_set = sets(image_folder, draft=True)
    assert isinstance(train_set.prepare, DraftedCrop)
    assert type(val_set.prepare) is PrepareImage
    assert train_set.load(0)[0].shape == (3, 8, 8)
    assert "RandomResizedCrop" not in str(train_set.transform)
    with refused(ValueError, "cache or draft", "got both", "Leave draft out"):
        sets(image_folder, draft=True, cache="memory")
    with refused(ValueError, "random resized crop", "ResizeKeepRatio", "train_crop_mode"):
        sets(image_folder, draft=True, train_crop_mode="rkrr")


# Multi-label


def test_multi_label_targets_are_zeros_and_ones(tmp_path: Path) -> None:
    write_images(tmp_path, {"x": 6})
    rows = ["path,label", *(f"x/{n:03d}.png,{'cat;dog' if n % 2 else 'owl'}" for n in range(6))]
    (tmp_path / "set.csv").write_text("\n".join(rows))
    split_file = tmp_path / "split.csv"
    train_set, val_set = sets(Source(tmp_path / "set.csv", val_fraction=0.34, split_file=split_file))
    assert (len(train_set), len(val_set)) == (4, 2)
    targets = torch.stack([train_set[number][1] for number in range(4)])
    for target, name in zip(targets, train_set.filenames(), strict=True):
        assert target.tolist() == ([1.0, 1.0, 0.0] if int(name[-5]) % 2 else [0.0, 0.0, 1.0])
    assert train_set.class_sizes == dict(zip(["cat", "dog", "owl"], targets.sum(0).int().tolist(), strict=True))
    assert [max(labels) for labels in train_set.labels] == [1 if target[0] else 2 for target in targets]
    assert "cat;dog" in split_file.read_text()
    again, _ = sets(Source(tmp_path / "set.csv", split_file=split_file))
    assert again.filenames() == train_set.filenames()


# Scheduled sizes


class Scheduled(Seen, ScheduledResolutionMixin):
    pass


def heights(trainer: Any) -> list[int]:
    return [images.shape[2] for images in trainer.images]


def test_sizes_rise_over_the_run_at_the_same_number_of_images(image_folder: Path) -> None:
    trainer = trained(image_folder, kind=Scheduled, resolutions=[8, (16, 16), 24], num_epochs=6)
    sizes = heights(trainer)
    assert len(sizes) == 6 * 4
    assert {len(images) for images in trainer.images} == {4}
    assert set(sizes) == {8, 16, 24}
    assert np.mean(sizes[:8]) < np.mean(sizes[8:16]) < np.mean(sizes[16:])
    assert trainer.num_updates == 24


def test_constant_sizes_come_equally_often(image_folder: Path) -> None:
    options = {"kind": Scheduled, "resolutions": [8, 16], "resolution_schedule": "constant", "num_epochs": 20}
    sizes = heights(trained(image_folder, **options))
    assert 20 <= sizes.count(8) <= 60
    assert len(sizes) == 80
    assert heights(trained(image_folder, seed=1, **options)) != sizes


@pytest.mark.parametrize("num_workers", [0, 2])
def test_scheduled_sizes_continue_bit_equal_within_an_epoch(
    num_workers: int, image_folder: Path, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"kind": Scheduled, "resolutions": [8, 16], "re_prob": 0.5, "re_mode": "pixel"}
    whole = trained(image_folder, tmp_path / "whole", **options)
    cut_off = cut(tmp_path / "whole", 5, tmp_path / "cut")
    resumed = trained(image_folder, cut_off, num_workers=num_workers, resume_from="auto", **options)
    assert len(resumed.images) == 3
    assert all(torch.equal(a, b) for a, b in zip(resumed.images, whole.images[5:], strict=True))
    assert same_weights(resumed.model, whole.model)


@pytest.mark.parametrize("cache", ["memory", None])
def test_cached_and_erased_images_continue_bit_equal_within_an_epoch(
    cache: str | None, image_folder: Path, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"cache": cache, "re_prob": 0.5, "re_mode": "pixel"}
    whole = trained(image_folder, tmp_path / "whole", **options)
    resumed = trained(image_folder, cut(tmp_path / "whole", 6, tmp_path / "cut"), resume_from="auto", **options)
    assert len(resumed.images) == 4
    assert all(torch.equal(a, b) for a, b in zip(resumed.images, whole.images[6:], strict=True))
    assert same_weights(resumed.model, whole.model)


def test_wrong_schedules_are_refused(image_folder: Path) -> None:
    with refused(ValueError, "resolution_schedule", "progressive, constant", "got 'rising'"):
        make_trainer(ScheduledResolutionMixin, resolutions=[8, 16], resolution_schedule="rising")
    with refused(ValueError, "at least two sizes", "got [8]"):
        make_trainer(ScheduledResolutionMixin, resolutions=[8])
    with refused(ValueError, "image_size", "got 0"):
        make_trainer(ScheduledResolutionMixin, resolutions=[0, 8])
    train_set, _ = sets(image_folder)
    with refused(ValueError, "gradient_accumulation_steps to be 1", "got 2"):
        fit(
            make_trainer(ScheduledResolutionMixin, Pooled(), resolutions=[8, 16]),
            train_set,
            gradient_accumulation_steps=2,
        )
    flat = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
    with refused(ValueError, "resolutions that the model can take", "(16, 16)"):
        fit(make_trainer(ScheduledResolutionMixin, flat, resolutions=[8, 16]), train_set)
    with refused(TypeError, "images of other sizes", "TensorDataset"):
        fit(make_trainer(ScheduledResolutionMixin, resolutions=[8, 16]))
    drafted, _ = sets(image_folder, draft=True)
    with refused(TypeError, "without draft", "LabeledImages"):
        fit(make_trainer(ScheduledResolutionMixin, Pooled(), resolutions=[8, 16]), drafted)


def test_floats_of_ones_own_pass_unchanged() -> None:
    floats = torch.utils.data.TensorDataset(torch.rand(8, 3, 8, 8), torch.arange(8) % 3)
    images = torch.cat(fit(make_trainer(Seen, Pooled()), floats).images)
    assert 0 <= images.min() <= images.max() <= 1
