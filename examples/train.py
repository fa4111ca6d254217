"""Train an image classifier with timm's models, losses, optimizers and schedules on pytorch-accelerated.

    accelerate launch --config_file accelerate_config.yaml examples/train.py --data_dir imagenette2-320

Without --data_dir it trains on a small set of handwritten digits. --help lists all options, --print_config writes them
as YAML, and --config FILE.yaml reads them. If it stops, run the same command with --resume auto.
"""

import sys
from argparse import ArgumentError
from dataclasses import asdict

import yaml
from accelerate import Accelerator
from accelerate.utils import set_seed
from jsonargparse import ArgumentParser
from timm.loss import BinaryCrossEntropy
from timm.optim import create_optimizer_v2
from torch import nn

from timm_accel import Recipe, TimmMixupTrainer, create_classifier, create_datasets
from timm_accel.callbacks import (
    DEFAULT_CALLBACKS,
    CsvHistoryCallback,
    SaveBestCallback,
    SaveStateCallback,
    TimeLimitCallback,
)
from timm_accel.data import LabelledImages, Source, write_digits
from timm_accel.recipes import DEMO, explain
from timm_accel.training import RUN_CONTENTS, check_run_dir


def parse_recipe(arguments: list[str] | None = None) -> Recipe:
    """Read the options; without --data_dir and --config the defaults are those of the digits."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = ArgumentParser(description="Train an image classifier.", allow_abbrev=False, exit_on_error=False)
    parser.add_class_arguments(Recipe)
    parser.add_argument("--config", action="config", help="A YAML file with any of these options.")
    if not any(argument.split("=")[0] in ("--data_dir", "--config", "--help", "-h") for argument in arguments):
        parser.set_defaults(DEMO)
    try:
        options = parser.parse_args(arguments).as_dict()
    except ArgumentError as error:
        raise ValueError(explain(str(error))) from error
    options.pop("config")
    return Recipe(**options)


def create_model_and_data(recipe: Recipe, source: Source) -> tuple[nn.Module, LabelledImages, LabelledImages]:
    """Create the model, and the training and evaluation sets as it wants them."""
    model, data_config = create_classifier(
        recipe.model,
        max(2, len(source.open("train").class_to_idx)),
        pretrained=recipe.pretrained,
        image_size=recipe.image_size,
        drop_path_rate=recipe.drop_path_rate or None,  # None is left out: not every model takes it
    )
    train_dataset, eval_dataset = create_datasets(
        image_size=recipe.image_size,
        data_mean=data_config["mean"],
        data_std=data_config["std"],
        data=source,
        crop_pct=data_config["crop_pct"],
        crop_mode=data_config["crop_mode"],
        eval_interpolation=data_config["interpolation"],
        auto_augment=recipe.auto_augment,
        scale=recipe.scale,
        hflip=recipe.hflip,
    )
    return model, train_dataset, eval_dataset


def main(recipe: Recipe) -> TimmMixupTrainer:
    """Train as the recipe says, and return the trainer."""
    run_dir = check_run_dir(recipe.run_dir, () if recipe.resume else RUN_CONTENTS)
    accelerator = Accelerator()
    with accelerator.local_main_process_first():
        data = write_digits() if recipe.data_dir is None else recipe.data_dir
    source = Source(data, split_file=run_dir / "split.csv")

    set_seed(recipe.seed)
    model, train_dataset, eval_dataset = create_model_and_data(recipe, source)
    optimizer = create_optimizer_v2(
        model, opt=recipe.opt, lr=recipe.lr, weight_decay=recipe.weight_decay, layer_decay=recipe.layer_decay
    )
    mixup_args = dict(mixup_alpha=recipe.mixup, cutmix_alpha=recipe.cutmix, label_smoothing=recipe.smoothing)
    trainer = TimmMixupTrainer(
        model=model,
        optimizer=optimizer,
        loss_func=BinaryCrossEntropy(smoothing=recipe.smoothing, target_threshold=recipe.bce_target_thresh),
        eval_loss_fn=nn.CrossEntropyLoss(),
        mixup_args=mixup_args if recipe.mixes else None,
        mixup_off_epoch=recipe.mixup_off_epoch,
        num_class=len(train_dataset.class_names),
        scheduler_args={name: getattr(recipe, name) for name in ("sched", "min_lr", "warmup_epochs", "warmup_lr")},
        ema_decay=recipe.ema_decay,
        clip_grad=recipe.clip_grad,
        clip_mode=recipe.clip_mode,
        sync_bn=recipe.sync_bn,
        callbacks=[
            *(*DEFAULT_CALLBACKS, SaveBestCallback("accuracy"), CsvHistoryCallback),
            SaveStateCallback(
                recipe.save_every_n_epochs, recipe.save_every_n_updates, recipe.save_every_minutes, recipe.keep_states
            ),
            TimeLimitCallback(recipe.max_minutes),
        ],
        run_dir=run_dir,
        seed=recipe.seed,
        recipe=recipe.decisive(),
    )
    if accelerator.is_main_process and not (run_dir / "recipe.yaml").exists():
        (run_dir / "recipe.yaml").write_text(yaml.safe_dump(asdict(recipe), sort_keys=False))
    workers = {} if recipe.num_workers is None else {"num_workers": recipe.num_workers}
    trainer.train(
        per_device_batch_size=recipe.batch_size,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        num_epochs=recipe.num_epochs,
        gradient_accumulation_steps=recipe.gradient_accumulation_steps,
        train_dataloader_kwargs=workers,
        eval_dataloader_kwargs=workers,
        resume_from=recipe.resume,
    )
    return trainer


if __name__ == "__main__":
    try:
        main(parse_recipe()).accelerator.end_training()
    except (ValueError, TypeError, OSError, RuntimeError, ImportError) as error:
        sentence = str(error).rpartition("\nOSError: ")[2].strip()  # in a loader's process it ends a traceback
        sentence = " ".join([sentence, *getattr(error, "__notes__", [])])
        if not sentence.startswith("Expected") and "--help" not in sentence:
            raise  # not a user's mistake
        sys.exit(f"train.py: {sentence}")
