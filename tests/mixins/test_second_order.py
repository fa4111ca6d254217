"""Adahessian: its estimates are those of a loop written by hand, and what it keeps survives a resume."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.optim import Lookahead
from timm.optim.adahessian import Adahessian
from tiny_runs import differences, fit, make_trainer, tiny_data
from torch import nn
from torch.utils.data import SequentialSampler, TensorDataset

from timm_accel.callbacks import SaveStateCallback
from timm_accel.mixins import SecondOrderMixin
from timm_accel.mixins.second_order import _Hessian

pytestmark = pytest.mark.filterwarnings("ignore:Using backward.. with create_graph=True:UserWarning")
SEED = 2147483647  # Adahessian's own


def small_model() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 4), nn.Tanh(), nn.Linear(4, 3))


class Noting(SecondOrderMixin):
    """Notes the weights before each update, and the traces that it used."""

    def optimizer_step(self) -> None:
        parameters = list(self.unwrapped_model.parameters())
        self.noted = [*getattr(self, "noted", []), {"weights": [p.detach().clone() for p in parameters]}]
        super().optimizer_step()
        self.noted[-1]["traces"] = [p.hess.clone() for p in parameters]


def test_the_hessians_traces_are_those_of_a_loop_by_hand() -> None:
    model, data = small_model(), tiny_data(8)
    in_order = {"num_workers": 0, "sampler": SequentialSampler(data)}
    trainer = fit(
        make_trainer(Noting, model, optimizer=Adahessian(model.parameters(), lr=0.05)),
        data,
        train_dataloader_kwargs=in_order,
    )
    by_hand, generator = small_model(), torch.Generator().manual_seed(SEED)
    parameters = list(by_hand.parameters())
    assert len(trainer.noted) == 4
    for update, noted in enumerate(trainer.noted):
        with torch.no_grad():
            for parameter, weight in zip(parameters, noted["weights"], strict=True):
                parameter.copy_(weight)
        batch = slice(4 * (update % 2), 4 * (update % 2) + 4)
        loss = nn.functional.cross_entropy(by_hand(data.tensors[0][batch]), data.tensors[1][batch])
        gradients = torch.autograd.grad(loss, parameters, create_graph=True)
        signs = [torch.randint(0, 2, p.size(), generator=generator) * 2.0 - 1.0 for p in parameters]
        products = torch.autograd.grad(gradients, parameters, grad_outputs=signs)
        for trace, product, sign in zip(noted["traces"], products, signs, strict=True):
            assert torch.equal(trace, product * sign)


@pytest.mark.parametrize("update_each", [1, 2])
@pytest.mark.parametrize("cut_after", [1, 2])
def test_draws_and_kept_traces_survive_a_resume(update_each: int, cut_after: int, tmp_path: Path) -> None:
    def run(**options: Any) -> Any:
        model = small_model()
        optimizer = Lookahead(Adahessian(model.parameters(), lr=0.05, update_each=update_each), k=2)
        resume = {name: options.pop(name) for name in ("resume_from",) if name in options}
        return fit(make_trainer(Noting, model, optimizer=optimizer, **options), tiny_data(12), num_epochs=1, **resume)

    whole = run(run_dir=tmp_path, callbacks=[SaveStateCallback(every_n_updates=1, keep=9, keep_when_done=9)])
    resumed = run(resume_from=next((tmp_path / "state").glob(f"*_batch_{cut_after}")))
    kept = slice(cut_after, None)
    assert not differences(whole.noted[kept], resumed.noted)
    optimizers = (whole.unwrapped_optimizer, resumed.unwrapped_optimizer)
    assert not differences(*(optimizer.state_dict() for optimizer in optimizers))
    assert not differences(*(_Hessian(optimizer).state_dict() for optimizer in optimizers))


def test_traces_are_in_the_state_only_where_a_later_update_uses_them() -> None:
    for update_each, kept in ((1, False), (2, True)):
        parameter = nn.Parameter(torch.ones(2))
        optimizer = Adahessian([parameter], update_each=update_each)
        (parameter**3).sum().backward(create_graph=True)
        optimizer.step()
        (trace,) = _Hessian(optimizer).state_dict()["traces"]
        assert (trace is not None) is kept


def test_a_generator_of_another_kind_of_device_is_left_as_it_is() -> None:
    optimizer = Adahessian([nn.Parameter(torch.ones(2))])
    state = _Hessian(optimizer).state_dict()
    before = optimizer.generator
    _Hessian(optimizer).load_state_dict(state | {"generators": {"generator": ("cuda", torch.zeros(16).byte())}})
    assert optimizer.generator is before


def test_first_order_optimizers_add_nothing_to_the_state() -> None:
    assert make_trainer(SecondOrderMixin).components() == {}


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_model_with_attention_has_second_derivatives(checkpointing: bool) -> None:
    model = timm.create_model("test_vit", num_classes=3, img_size=32)
    model.set_grad_checkpointing(checkpointing)
    before = [parameter.clone() for parameter in model.parameters()]
    data = TensorDataset(torch.randn(4, 3, 32, 32), torch.arange(4) % 3)
    fit(make_trainer(SecondOrderMixin, model, optimizer=Adahessian(model.parameters(), lr=0.05)), data, num_epochs=1)
    moved = [not torch.equal(*pair) for pair in zip(before, model.parameters(), strict=True)]
    assert sum(moved) > len(moved) / 2
    assert torch.backends.cuda.flash_sdp_enabled()  # fused attention is there for others
