"""Every optimizer of timm, and its Lookahead form, trains and resumes with the same bits; the others say why not."""

from pathlib import Path
from typing import Any

import pytest
import torch
from refusal import refused
from timm.optim import list_optimizers
from tiny_runs import differences, fit, make_trainer, tiny_data, tiny_model

from timm_accel import TimmTrainer
from timm_accel.callbacks import SaveStateCallback
from timm_accel.optim import EXCLUDED, check_optimizer, create_optimizer
from timm_accel.optim import names as optimizer_names

RUNNABLE = [name for name in list_optimizers() if name not in EXCLUDED]


def trainer_with(name: str, **options: Any) -> Any:
    model = tiny_model()
    return make_trainer(TimmTrainer, model, optimizer=create_optimizer(model, name, 1e-2, weight_decay=0.01), **options)


def snapshot(trainer: Any) -> dict[str, Any]:
    return {"model": trainer.model.state_dict(), "optimizer": trainer.unwrapped_optimizer.state_dict()}


@pytest.mark.filterwarnings("ignore:It is highly recommended to have 'opt_einsum':UserWarning")  # Kron
@pytest.mark.filterwarnings("ignore:Using backward.. with create_graph=True:UserWarning")  # Adahessian
@pytest.mark.parametrize("name", RUNNABLE)
def test_an_optimizer_and_its_lookahead_form_train_and_resume_with_the_same_bits(name: str, tmp_path: Path) -> None:
    with torch.compiler.set_stance("force_eager"):  # Kron compiles its steps, for 15 s
        for form in (name, f"lookahead_{name}"):
            states = SaveStateCallback(every_n_epochs=9, every_n_updates=2, keep=9, keep_when_done=9)
            whole = fit(trainer_with(form, run_dir=tmp_path / form, callbacks=[states]), tiny_data(12), num_epochs=1)
            state = next((tmp_path / form / "state").glob("*_batch_2"))
            resumed = fit(trainer_with(form), tiny_data(12), num_epochs=1, resume_from=state)
            assert (whole.num_updates, resumed.num_updates) == (3, 3)
            assert not differences(snapshot(whole), snapshot(resumed)), form
            start = tiny_model().state_dict()
            assert not torch.equal(whole.model.state_dict()["5.weight"], start["5.weight"]), form


def test_the_optimizers_that_run_on_no_cpu_are_these() -> None:
    apex = ["fusedadam", "fusedadamw", "fusedlamb", "fusednovograd", "fusedsgd"]
    bitsandbytes = ["adam", "adam8bit", "adamw", "adamw8bit", "ademamix", "ademamix8bit", "lion", "lion8bit"]
    bitsandbytes += ["sgd", "sgd8bit"]
    assert {
        **dict.fromkeys(apex, "it needs a CUDA GPU and the package apex"),
        **{f"bnb{name}": "it needs a CUDA GPU and the package bitsandbytes" for name in bitsandbytes},
    } == EXCLUDED
    assert len(RUNNABLE) + len(EXCLUDED) == len(list_optimizers())


@pytest.mark.parametrize("prefix", ["", "lookahead_"])
@pytest.mark.parametrize("name", EXCLUDED)
def test_those_say_why_before_training(name: str, prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with refused(ValueError, f"got '{prefix}{name}': {EXCLUDED[name]}. Choose another, such as '"):
        create_optimizer(tiny_model(), prefix + name)


@pytest.mark.parametrize(
    ("name", "counterpart"), [("fusedlamb", "lamb"), ("bnbadamw8bit", "adamw"), ("bnbademamix", "adamw")]
)
def test_an_optimizer_of_another_package_has_a_counterpart(name: str, counterpart: str) -> None:
    assert optimizer_names._counterpart(name) == counterpart


def test_a_missing_package_is_named_where_there_is_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(optimizer_names, "find_spec", lambda package: None)
    with refused(ModuleNotFoundError, "'bitsandbytes' to be installed", "pip install bitsandbytes"):
        check_optimizer("lookahead_bnbadam")
    with refused(ModuleNotFoundError, "'apex' to be installed for opt='FusedLAMB'", "github.com/NVIDIA/apex"):
        check_optimizer("FusedLAMB")
    monkeypatch.setattr(optimizer_names, "find_spec", lambda package: package)
    check_optimizer("bnbadam")


@pytest.mark.parametrize(("name", "near"), [("muonn", "'muon'"), ("lookahead_muonn", "'lookahead_muon'")])
def test_an_unknown_name_has_a_near_one(name: str, near: str) -> None:
    with refused(ValueError, f"got {name!r}", "Did you mean", near):
        check_optimizer(name)
