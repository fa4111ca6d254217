"""The shorter examples."""

from argparse import Namespace
from pathlib import Path
from types import ModuleType

import pytest
import timm
import torch
from timm.optim import Lookahead
from tiny_runs import load_example

from timm_accel.mixins import ClassificationMetricsMixin, MixupMixin

EXAMPLES = Path(__file__).parents[2] / "examples"


def load(name: str) -> ModuleType:
    return load_example(EXAMPLES / f"{name}.py")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.mark.filterwarnings("ignore:ema_decay=0.99 averages")  # so short a run
def test_fine_tuning_starts_from_the_weights_and_trains_the_head_first(image_folder: Path, tmp_path: Path) -> None:
    torch.save(timm.create_model("test_resnet", num_classes=5).state_dict(), tmp_path / "weights.pth")
    example = load_example(EXAMPLES / "fine_tune.py")
    arguments = Namespace(
        data_dir=str(image_folder), model="test_resnet", weights=str(tmp_path / "weights.pth"), image_size=32,
        num_epochs=2, batch_size=4, lr=1e-2, seed=0, run_dir=str(tmp_path / "run"))  # fmt: skip
    trainer = example.main(arguments)
    assert trainer.freeze_schedule == {0: -1, 1: 0}
    assert trainer.unwrapped_model.weights_report.matched > 10
    assert trainer.num_updates == 2 * 4
    assert (tmp_path / "run" / "best" / "model.safetensors").is_file()
    steps = {int(state["step"]) for state in trainer.unwrapped_optimizer.state.values()}
    assert steps == {4, 8}  # the body of the model was trained in the second epoch alone


def test_the_custom_trainer_learns_and_is_less_confident() -> None:
    example = load("custom_trainer")
    confident, less = (example.main(penalty=penalty, num_epochs=4) for penalty in (0.0, 1.0))
    assert confident.run_history.get_latest_metric("accuracy") > 0.8
    assert less.run_history.get_latest_metric("entropy") > confident.run_history.get_latest_metric("entropy") + 0.2
    assert len(less.run_history.get_metric_values("entropy")) == 4


def test_the_composed_trainer_learns_with_its_three_mixins_alone() -> None:
    trainer = load("compose_mixins").main(num_epochs=4)
    losses = trainer.run_history.get_metric_values("eval_loss_epoch")
    assert losses[-1] < 0.5 * losses[0]
    assert trainer.run_history.get_latest_metric("ema_model_eval_loss_epoch") < losses[0]
    assert isinstance(trainer.unwrapped_optimizer, Lookahead)
    assert not isinstance(trainer, MixupMixin | ClassificationMetricsMixin)
