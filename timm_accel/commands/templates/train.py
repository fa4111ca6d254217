"""Train on a folder with train/CLASS/ and val/CLASS/, or on handwritten digits: python train.py [FOLDER]."""

import sys

from timm_accel import TimmMixupTrainer, create_classifier, create_datasets
from timm_accel.callbacks import DEFAULT_CALLBACKS, SaveBestCallback, SaveStateCallback
from timm_accel.data import write_digits
from timm_accel.losses import create_loss
from timm_accel.optim import create_optimizer


class MyTrainer(TimmMixupTrainer):
    """Override any hook of pytorch-accelerated's Trainer here."""


def main(data_dir=None, *, image_size=32, num_epochs=8, batch_size=64, lr=5e-3, run_dir="runs/script"):
    data, size = data_dir or write_digits(), image_size
    mean = std = (0.5, 0.5, 0.5)
    train_set, val_set = create_datasets(size, mean, std, data=data, auto_augment=None, scale=(0.6, 1.0), hflip=0.0)
    model, _ = create_classifier("resnet10t", len(train_set.class_names), image_size=size)
    loss, eval_loss = create_loss("bce", dataset=train_set, soft_targets=True)
    trainer = MyTrainer(
        model=model, optimizer=create_optimizer(model, "lookahead_adamw", lr=lr), loss_func=loss,
        eval_loss_fn=eval_loss, num_class=len(train_set.class_names), mixup_args={"mixup_alpha": 0.2},
        callbacks=[*DEFAULT_CALLBACKS, SaveBestCallback("accuracy"), SaveStateCallback()], run_dir=run_dir,
    )  # fmt: skip
    trainer.train(train_set, num_epochs, val_set, per_device_batch_size=batch_size, resume_from="auto")
    return trainer


if __name__ == "__main__":
    main(*sys.argv[1:])
