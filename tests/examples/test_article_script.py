"""The article's last script, with its own trainer replaced by ours.

``main`` and ``create_datasets`` are the article's text, but for the data path, model, image size, batch size and
epochs.
"""

import contextlib
import io
import os
import warnings
from pathlib import Path

import pytest
import timm
import timm.data
import timm.loss
import timm.optim
import torch
from conftest import write_images
from pytorch_accelerated.callbacks import SaveBestModelCallback
from pytorch_accelerated.trainer import DEFAULT_CALLBACKS

from timm_accel import TimmMixupTrainer


def create_datasets(image_size, data_mean, data_std, train_path, val_path):
    train_transforms = timm.data.create_transform(
        input_size=image_size,
        is_training=True,
        mean=data_mean,
        std=data_std,
        auto_augment="rand-m7-mstd0.5-inc1",
    )

    eval_transforms = timm.data.create_transform(input_size=image_size, mean=data_mean, std=data_std)

    train_dataset = timm.data.dataset.ImageDataset(train_path, transform=train_transforms)

    eval_dataset = timm.data.dataset.ImageDataset(val_path, transform=eval_transforms)

    return train_dataset, eval_dataset


def main(data_path):
    # Set training argument
    image_size = (32, 32)
    lr = 5e-3
    smoothing = 0.1
    mixup = 0.2
    cutmix = 1.0
    batch_size = 8
    bce_target_thresh = 0.2
    num_epochs = 6

    data_path = Path(data_path)
    train_path = data_path / "train"
    val_path = data_path / "val"
    num_classes = len(list(train_path.iterdir()))

    mixup_args = dict(mixup_alpha=mixup, cutmix_alpha=cutmix, label_smoothing=smoothing, num_classes=num_classes)

    model = timm.create_model("test_resnet", pretrained=False, num_classes=num_classes, drop_path_rate=0.05)

    data_config = timm.data.resolve_data_config({}, model=model, verbose=True)
    data_mean = data_config["mean"]
    data_std = data_config["std"]

    train_dataset, eval_dataset = create_datasets(
        train_path=train_path, val_path=val_path, image_size=image_size, data_mean=data_mean, data_std=data_std
    )

    optimizer = timm.optim.create_optimizer_v2(model, opt="lookahead_AdamW", lr=lr, weight_decay=0.01)

    train_loss_fn = timm.loss.BinaryCrossEntropy(target_threshold=bce_target_thresh, smoothing=smoothing)
    validate_loss_fn = torch.nn.CrossEntropyLoss()

    trainer = TimmMixupTrainer(
        model=model,
        optimizer=optimizer,
        loss_func=train_loss_fn,
        eval_loss_fn=validate_loss_fn,
        mixup_args=mixup_args,
        num_class=num_classes,
        callbacks=[*DEFAULT_CALLBACKS, SaveBestModelCallback(watch_metric="accuracy", greater_is_better=True)],
    )

    trainer.train(
        per_device_batch_size=batch_size,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        num_epochs=num_epochs,
        create_scheduler_fn=trainer.create_scheduler,
    )
    return trainer


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("article")
    write_images(folder / "data" / "train", {"dark": 22, "gray": 22, "light": 21})  # the last batch has 1 image
    write_images(folder / "data" / "val", {"dark": 5, "gray": 5, "light": 5})
    before = os.getcwd()
    os.chdir(folder)  # upstream's callback writes best_model.pt where it stands
    try:
        torch.manual_seed(0)
        with contextlib.redirect_stdout(io.StringIO()) as printed, warnings.catch_warnings():
            trainer = main(folder / "data")
        trainer.printed, trainer.folder = printed.getvalue(), folder
        yield trainer
    finally:
        os.chdir(before)


def test_the_articles_main_learns(trainer) -> None:
    assert trainer.run_history.get_latest_metric("accuracy") > 0.9
    losses = trainer.run_history.get_metric_values("train_loss_epoch")
    assert losses[-1] < 0.8 * losses[0]


def test_the_articles_history_keys_are_there(trainer) -> None:
    expected = {"accuracy", "ema_model_accuracy", "train_loss_epoch", "eval_loss_epoch"}
    assert expected <= set(trainer.run_history.get_metric_names())
    assert all(len(trainer.run_history.get_metric_values(name)) == 6 for name in expected)


def test_the_articles_callbacks_work(trainer) -> None:
    assert (trainer.folder / "best_model.pt").is_file()
    assert "Loading checkpoint with accuracy" in trainer.printed
    names = [type(callback).__name__ for callback in trainer.callback_handler]
    assert names[:2] == ["MoveModulesToDeviceCallback", "StopOnNonFiniteLossCallback"]


def test_the_articles_schedule_is_the_default(trainer) -> None:
    scheduler = trainer.scheduler
    assert (scheduler.t_initial, scheduler.lr_min, scheduler.warmup_t, scheduler.warmup_lr_init) == (6, 1e-6, 3, 1e-4)
    assert (scheduler.cycle_limit, scheduler.cycle_decay, scheduler.t_in_epochs) == (1, 0.5, True)
