"""Train an image classifier: the last script of the article, with the parts of timm_accel.

    python examples/train.py --data_dir imagenette2-320
    accelerate launch --config_file examples/accelerate/one_process.yaml examples/train.py --data_dir photos

The options are the arguments of `main`, and --help lists them. Without --data_dir it trains on small images of
handwritten digits. If it stops, run the same command with --resume auto.

`timm-accel train` ends in the same weights with the same options, and has many more: docs/recipes.md.
"""

from accelerate.utils import set_seed

from timm_accel import TimmMixupTrainer, create_classifier, create_datasets
from timm_accel.callbacks import (
    DEFAULT_CALLBACKS,
    CsvHistoryCallback,
    PrintResultsCallback,
    PrintSetupCallback,
    SaveBestCallback,
    SaveStateCallback,
)
from timm_accel.commands.parsing.script import read_options
from timm_accel.data import Source, write_digits
from timm_accel.losses import create_loss
from timm_accel.messages import one_sentence
from timm_accel.optim import create_optimizer

DIGITS = {"run_dir": "runs/digits", "model": "resnet10t", "image_size": 32, "num_epochs": 8, "batch_size": 64,
          "cutmix": 0.0}  # fmt: skip
"""The defaults of the command line without --data_dir, as in the recipe `demo`."""


def main(
    data_dir: str | None = None,
    run_dir: str = "runs/train",
    model: str = "resnet50d",
    image_size: int = 224,
    num_epochs: int = 40,
    batch_size: int = 32,
    lr: float = 5e-3,
    warmup_epochs: int | None = None,
    mixup: float = 0.2,
    cutmix: float = 1.0,
    smoothing: float = 0.1,
    ema_decay: float | None = None,
    num_workers: int | None = None,
    seed: int = 42,
    save_every_n_updates: int | None = None,
    resume: str | None = None,
) -> TimmMixupTrainer:
    """Train, and return the trainer.

    Args:
        data_dir: A folder with train/CLASS/ and val/CLASS/, or any other `Source` but a stream; None for the digits.
        run_dir: A new folder for weights, states and history.
        model: A name of timm.list_models().
        image_size: The height and width of the input in pixels.
        num_epochs: Passes over the training images.
        batch_size: Images per process and step; even with Mixup.
        lr: The highest learning rate.
        warmup_epochs: Epochs of linear warm-up; None for 3, or at most half of a shorter run.
        mixup: The alpha of Mixup; 0 is off.
        cutmix: The alpha of CutMix; 0 is off.
        smoothing: Label smoothing.
        ema_decay: The decay of the EMA weights; None follows the length of the run.
        num_workers: Loader workers per process; None for one per core that the process may use.
        seed: The seed of all random numbers.
        save_every_n_updates: Optimizer updates between two states; None for one state per epoch.
        resume: auto resumes from the newest state in run_dir; a path from that state; None starts a new run.
    """
    set_seed(seed)
    if data_dir is None:  # a mirrored digit is none
        source, augmentation = Source(write_digits()), {"auto_augment": None, "scale": (0.6, 1.0), "hflip": 0.0}
    else:
        source, augmentation = Source(data_dir, split_file=f"{run_dir}/split.csv"), {}  # if it has no splits
    num_classes = len(source.open("train").class_to_idx)

    network, data_config = create_classifier(model, num_classes, image_size=image_size, drop_path_rate=0.05)
    train_set, eval_set = create_datasets(
        image_size,
        data_config["mean"],
        data_config["std"],
        data=source,
        crop_pct=data_config["crop_pct"],
        crop_mode=data_config["crop_mode"],
        eval_interpolation=data_config["interpolation"],
        **augmentation,
    )

    optimizer = create_optimizer(network, "lookahead_AdamW", lr, weight_decay=0.01)
    if warmup_epochs is None:
        warmup_epochs = min(3, num_epochs // 2)

    mixup_args = {"mixup_alpha": mixup, "cutmix_alpha": cutmix, "label_smoothing": smoothing}
    mixes = mixup > 0 or cutmix > 0
    train_loss_fn, eval_loss_fn = create_loss(
        "bce", dataset=train_set, smoothing=smoothing, soft_targets=mixes, bce_target_thresh=0.2
    )

    trainer = TimmMixupTrainer(
        model=network,
        optimizer=optimizer,
        loss_func=train_loss_fn,
        eval_loss_fn=eval_loss_fn,
        mixup_args=mixup_args if mixes else None,
        num_class=num_classes,
        scheduler_args={"sched": "cosine", "min_lr": 1e-6, "warmup_lr": 1e-4, "warmup_epochs": warmup_epochs},
        ema_decay=ema_decay,
        callbacks=[
            *DEFAULT_CALLBACKS,
            SaveBestCallback("accuracy"),
            CsvHistoryCallback,
            SaveStateCallback(every_n_updates=save_every_n_updates),
            PrintSetupCallback,
            PrintResultsCallback(source.data),
        ],
        run_dir=run_dir,
        seed=seed,
        recipe={  # what a state must have in common to resume from it
            **{"image_size": image_size, "mixup": mixup, "cutmix": cutmix, "smoothing": smoothing},
            "ema_decay": ema_decay,
        },
    )

    workers = {} if num_workers is None else {"num_workers": num_workers}
    trainer.train(
        train_set,
        num_epochs=num_epochs,
        eval_dataset=eval_set,
        per_device_batch_size=batch_size,
        train_dataloader_kwargs=workers,
        eval_dataloader_kwargs=workers,
        resume_from=resume,
    )
    return trainer


if __name__ == "__main__":
    with one_sentence("train.py"):
        options = read_options(main)
        main(**options if "data_dir" in options else DIGITS | options).accelerator.end_training()
