"""A subclass may set what upstream's trainer lets it set: what it sets it reads, and the run is not disturbed."""

import ast
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from timm.loss import SoftTargetCrossEntropy
from tiny_runs import fit, make_trainer, same_weights, tiny_data, tiny_model
from torch import nn
from torch.optim import AdamW

import timm_accel.training
from timm_accel import LoopTrainer, TimmMixupTrainer
from timm_accel.callbacks import CsvHistoryCallback, SaveBestCallback, SaveStateCallback
from timm_accel.training.options import FromRun

NAMES = [name for name, value in vars(LoopTrainer).items() if isinstance(value, FromRun)]
MARK = object()


def test_the_names_that_the_run_tells_are_these() -> None:
    assert {"num_updates", "epoch", "rank", "accelerator", "learning_rate", "train_dataloader", "eval_dataloader",
            "running_loss", "batch_index", "updates_per_epoch", "unwrapped_model"} <= set(NAMES)  # fmt: skip


def train(kind: type, run_dir: Path) -> Any:
    model = tiny_model()
    callbacks = [SaveStateCallback(every_n_updates=2), SaveBestCallback("accuracy"), CsvHistoryCallback]
    trainer = make_trainer(
        kind,
        model,
        optimizer=AdamW(model.parameters(), lr=1e-2),
        loss_func=SoftTargetCrossEntropy(),
        eval_loss_fn=nn.CrossEntropyLoss(),
        mixup_args={},
        num_class=3,
        ema_decay=0.5,
        clip_grad=1.0,
        scheduler_args={"sched": "cosine", "step_on_epochs": False},
        callbacks=[*callbacks, *timm_accel.callbacks.DEFAULT_CALLBACKS],
        run_dir=run_dir,
    )
    return fit(trainer, eval_dataset=tiny_data(7))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return train(TimmMixupTrainer, tmp_path_factory.mktemp("plain") / "run")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("when", ["before", "after"])
def test_what_a_subclass_sets_it_reads_and_every_bit_stays(name: str, when: str, plain: Any, tmp_path: Path) -> None:
    seen = []

    class Sets(TimmMixupTrainer):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            if when == "before":
                setattr(self, name, MARK)
            super().__init__(*args, **kwargs)
            if when == "after":
                setattr(self, name, None)
                setattr(self, name, MARK)

        def train_epoch_start(self) -> None:
            super().train_epoch_start()
            seen.append(getattr(self, name))

        def optimizer_step(self) -> None:
            super().optimizer_step()
            seen.append(getattr(self, name))

    trainer = train(Sets, tmp_path / "run")
    assert set(map(id, seen)) == {id(MARK)}
    assert getattr(trainer, name) is MARK
    assert same_weights(trainer.model, plain.model)
    assert same_weights(trainer.ema_model.module, plain.ema_model.module)
    assert trainer.run_history._metrics == plain.run_history._metrics
    delattr(trainer, name)
    assert getattr(trainer, name) is not MARK


def test_a_class_attribute_or_property_of_that_name_disturbs_nothing(plain: Any, tmp_path: Path) -> None:
    class Overrides(TimmMixupTrainer):
        num_updates = -1

        @property
        def epoch(self) -> str:
            return "mine"

    trainer = train(Overrides, tmp_path / "run")
    assert (trainer.num_updates, trainer.epoch) == (-1, "mine")
    assert same_weights(trainer.model, plain.model)


def test_a_trainer_of_upstreams_kind_may_count_updates_by_itself() -> None:
    class Counts(LoopTrainer):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.num_updates = None

        def train_epoch_start(self) -> None:
            super().train_epoch_start()
            self.num_updates = 100 * self.run_history.current_epoch

        def optimizer_step(self) -> None:
            super().optimizer_step()
            self.num_updates += 1

    trainer = fit(make_trainer(Counts))
    assert trainer.num_updates == 100 * 2 + 4
    assert trainer.current_run().num_updates == 8


def private_writes() -> dict[str, set[str]]:
    """Which classes of `training/`, `mixins/` and `callbacks/` assign each private attribute, of whatever object."""
    writers: dict[str, set[str]] = defaultdict(set)
    root = Path(timm_accel.__file__).parent
    for path in [each for room in ("training", "mixins", "callbacks") for each in (root / room).rglob("*.py")]:
        for kind in [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.ClassDef)]:
            for node in ast.walk(kind):
                if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and re.match("_[^_]", node.attr):
                    owner = ast.unparse(node.value)
                    writers[node.attr].add(kind.name if owner == "self" else f"{kind.name} on {owner}")
    return writers


def test_no_private_attribute_is_written_by_two_classes_of_one_object() -> None:
    writers = private_writes()
    trainers = {kind.__name__ for kind in TimmMixupTrainer.__mro__}
    for name, classes in writers.items():
        for family in (trainers, {"Run", "TrainingRun"}, {"Checkpointer"}):
            assert len(classes & family) <= 1, (name, classes)
    assert writers["_current_run"] == {"LoopTrainer"}
    of_others = {name for name, classes in writers.items() if any(" on " in each for each in classes)}
    # of upstream's callbacks, of accelerate, of a mixin's component, of torch's loader
    assert of_others <= {"_loss_tracker", "_is_accelerate_prepared", "_ema_updated", "_iterator"}
    assert "_loss_tracker" in of_others
