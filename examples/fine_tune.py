"""Fine-tune pretrained weights: first the head, then all layers, with layer-wise learning rate decay.

    python examples/fine_tune.py --data_dir elpv --weights tf_efficientnet_lite0.pth --model tf_efficientnet_lite0

Without --weights timm downloads its pretrained weights.
"""

import argparse

import torch
from torch import nn

from timm_accel import TimmMixupTrainer, create_classifier, create_datasets
from timm_accel.callbacks import DEFAULT_CALLBACKS, PrintResultsCallback, SaveBestCallback, SaveStateCallback
from timm_accel.data import Source
from timm_accel.messages import one_sentence
from timm_accel.optim import create_optimizer


def main(arguments: argparse.Namespace) -> TimmMixupTrainer:
    """Train as the arguments say, and return the trainer."""
    torch.manual_seed(arguments.seed)  # for the new classifier; the trainer seeds the rest
    source = Source(arguments.data_dir)
    names = list(source.open("train").class_to_idx)
    model, config = create_classifier(
        arguments.model,
        len(names),
        weights=arguments.weights,
        pretrained=arguments.weights is None,
        image_size=arguments.image_size,
    )
    train_set, val_set = create_datasets(
        arguments.image_size,
        config["mean"],
        config["std"],
        data=source,
        crop_pct=config["crop_pct"],
        crop_mode=config["crop_mode"],
        eval_interpolation=config["interpolation"],
        auto_augment=None,
        scale=(0.7, 1.0),
    )
    epochs = arguments.num_epochs
    trainer = TimmMixupTrainer(
        model=model,
        optimizer=create_optimizer(model, "adamw", arguments.lr, weight_decay=0.05, layer_decay=0.9),
        loss_func=nn.CrossEntropyLoss(label_smoothing=0.1),
        eval_loss_fn=nn.CrossEntropyLoss(),
        num_class=len(names),
        freeze_schedule={0: -1, max(1, epochs // 5): 0},  # freezes all stages except the head for a fifth of the run
        scheduler_args={"sched": "cosine", "warmup_epochs": 0, "min_lr": 1e-6, "step_on_epochs": False},
        ema_decay=0.99,
        callbacks=[*DEFAULT_CALLBACKS, SaveBestCallback("accuracy"), SaveStateCallback(), PrintResultsCallback()],
        run_dir=arguments.run_dir,
        seed=arguments.seed,
    )
    trainer.train(
        train_set,
        num_epochs=epochs,
        eval_dataset=val_set,
        per_device_batch_size=arguments.batch_size,
        train_dataloader_kwargs={"drop_last": True},
        resume_from="auto",
    )
    return trainer


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", required=True, help="Any dataset of create_datasets().")
    parser.add_argument("--model", default="tf_efficientnet_lite0")
    parser.add_argument("--weights", help="A file, a folder or a run.")
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--num_epochs", type=int, default=10)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--run_dir", default="runs/fine_tune")
    with one_sentence("fine_tune.py"):
        main(parser.parse_args()).accelerator.end_training()
