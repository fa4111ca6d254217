"""The shorter examples."""

from pathlib import Path
from types import ModuleType

import pytest
from timm.optim import Lookahead
from tools import load_example

from timm_accel.mixins import ClassificationMetricsMixin, MixupMixin

EXAMPLES = Path(__file__).parent.parent / "examples"


def load(name: str) -> ModuleType:
    return load_example(EXAMPLES / f"{name}.py")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.mark.usefixtures("capsys")
def test_the_custom_trainer_learns_and_is_less_confident() -> None:
    example = load("custom_trainer")
    confident, less = (example.main(penalty=penalty, num_epochs=4) for penalty in (0.0, 1.0))
    assert confident.run_history.get_latest_metric("accuracy") > 0.8
    assert less.run_history.get_latest_metric("entropy") > confident.run_history.get_latest_metric("entropy") + 0.2
    assert len(less.run_history.get_metric_values("entropy")) == 4


@pytest.mark.usefixtures("capsys")
def test_the_composed_trainer_learns_with_its_three_mixins_alone() -> None:
    trainer = load("compose_mixins").main(num_epochs=4)
    losses = trainer.run_history.get_metric_values("eval_loss_epoch")
    assert losses[-1] < 0.5 * losses[0]
    assert trainer.run_history.get_latest_metric("ema_model_eval_loss_epoch") < losses[0]
    assert isinstance(trainer.unwrapped_optimizer, Lookahead)
    assert not isinstance(trainer, MixupMixin | ClassificationMetricsMixin)
