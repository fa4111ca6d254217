"""Batches and outputs of every usual form train to the same bits; others are one sentence that names the hook."""

from collections import namedtuple
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from refusal import refused
from timm.loss import SoftTargetCrossEntropy
from tiny_runs import NO_WORKERS, fit, make_trainer, same_weights, tiny_data, tiny_model
from torch import nn
from torch.utils.data import Dataset, default_collate

from timm_accel import LoopTrainer, TimmMixupTrainer

Sample = namedtuple("Sample", ["pixels", "answer", "name"])
MIXING = {"num_classes": 3}
KEYS = [(image, label) for image in ("image", "images", "pixel_values", "inputs") for label in ("label", "targets")]
FORMATS: dict[str, Any] = {
    "list": lambda image, label: [image, label],
    "longer": lambda image, label: (image, label, 7, "path"),
    "named": lambda image, label: Sample(image, label, "name"),
    **{"/".join(keys): lambda image, label, keys=keys: dict(zip(keys, (image, label), strict=True)) for keys in KEYS},
    "labels": lambda image, label: {"labels": label, "id": 3, "pixel_values": image},
    "target": lambda image, label: {"image": image, "target": label},
}


class Formatted(Dataset):
    """Samples of one form."""

    def __init__(self, count: int, make: Any) -> None:
        self.data, self.make = tiny_data(count), make

    def __getitem__(self, index: int) -> Any:
        return self.make(*self.data[index])

    def __len__(self) -> int:
        return len(self.data)


def train(make: Any, model: nn.Module | None = None, kind: type = TimmMixupTrainer, **options: Any) -> Any:
    trainer = make_trainer(
        kind,
        model,
        loss_func=SoftTargetCrossEntropy(),
        eval_loss_fn=nn.CrossEntropyLoss(),
        mixup_args={},
        num_class=3,
        ema_decay=0.5,
        **options,
    )
    return fit(trainer, Formatted(16, make), Formatted(7, make))


@pytest.fixture(scope="module")
def plain() -> Any:
    return train(lambda image, label: (image, label))


@pytest.mark.parametrize("name", FORMATS)
def test_a_batch_of_any_usual_form_gives_the_bits_of_a_tuple(name: str, plain: Any) -> None:
    trainer = train(FORMATS[name])
    assert same_weights(trainer.model, plain.model)
    assert same_weights(trainer.ema_model.module, plain.ema_model.module)
    assert trainer.run_history._metrics == plain.run_history._metrics


@dataclass
class Output:
    """As of a transformers model."""

    logits: torch.Tensor


class Returns(nn.Sequential):
    """A model that returns its logits in another form."""

    def __init__(self, form: Any) -> None:
        super().__init__(*tiny_model())
        self.form = form

    def forward(self, images: torch.Tensor) -> Any:
        return self.form(super().forward(images))


@pytest.mark.parametrize(
    "form",
    [
        lambda logits: (logits, logits * 2),
        lambda logits: [logits],
        lambda logits: {"logits": logits, "hidden": logits * 3},
        Output,
    ],
    ids=["tuple", "list", "mapping", "attribute"],
)
def test_logits_are_found_in_outputs_of_any_usual_form(form: Any, plain: Any) -> None:
    trainer = train(lambda image, label: (image, label), Returns(form))
    assert same_weights(trainer.model, plain.model)
    assert trainer.run_history._metrics == plain.run_history._metrics


def test_a_custom_loss_gets_all_that_the_model_returned_in_training() -> None:
    seen = []

    def loss(outputs: Any, targets: torch.Tensor) -> torch.Tensor:
        seen.append(type(outputs))
        logits, auxiliary = outputs
        return nn.functional.cross_entropy(logits, targets) + 0.3 * nn.functional.cross_entropy(auxiliary, targets)

    model = Returns(lambda logits: (logits, logits * 2))
    fit(make_trainer(LoopTrainer, model, loss_func=loss), num_epochs=1)
    assert set(seen) == {tuple}


@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss(), nn.functional.cross_entropy,
                                  partial(nn.functional.cross_entropy, label_smoothing=0.1)])  # fmt: skip
def test_a_loss_of_torch_gets_the_logits(loss: Any) -> None:
    model = Returns(lambda logits: (logits, logits * 2))
    assert fit(make_trainer(LoopTrainer, model, loss_func=loss), eval_dataset=tiny_data(5)).num_updates == 8


def collated(make: Any) -> Any:
    return lambda samples: make(*default_collate(samples))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda images, labels: {"pixels": images, "label": labels}, ("the keys pixels, label", "unpack_batch()")),
        (lambda images, labels: {"image": images, "answer": labels}, ("the keys image, answer", "unpack_batch()")),
        (lambda images, labels: {"image": images, "inputs": images, "label": labels}, ("image, inputs, label",)),
        (lambda images, labels: images, ("got Tensor", "unpack_batch()")),
        (lambda images, labels: (images,), ("got tuple of 1", "unpack_batch()")),
    ],
)
@pytest.mark.parametrize(
    "options", [{}, {"kind": TimmMixupTrainer, "ema_decay": 0.5, "mixup_args": {"num_classes": 3}}]
)
def test_a_batch_of_another_form_is_one_sentence_that_names_the_hook(options: dict, make: Any, words: tuple) -> None:
    with refused(TypeError, "Expected a batch", *words):
        fit(make_trainer(**options), train_dataloader_kwargs={**NO_WORKERS, "collate_fn": collated(make)})


def test_outputs_of_another_form_are_one_sentence_that_names_the_hook() -> None:
    with refused(TypeError, "model's outputs", "got str", "logits_of()"):
        fit(make_trainer(LoopTrainer, Returns(lambda logits: "logits")))


def test_a_subclass_reads_a_batch_of_its_own_form(plain: Any) -> None:
    class Reads(TimmMixupTrainer):
        def unpack_batch(self, batch: Any) -> tuple[Any, Any]:
            return batch["x"], batch["y"]

        def repack_batch(self, batch: Any, inputs: Any, targets: Any) -> Any:
            return {"x": inputs, "y": targets}

    trainer = train(lambda image, label: {"x": image, "y": label}, kind=Reads)
    assert same_weights(trainer.model, plain.model)
    assert trainer.run_history._metrics == plain.run_history._metrics
