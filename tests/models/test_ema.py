"""One update of EMA weights: against timm's where timm is right, and worked out where it is not."""

from copy import deepcopy
from math import inf, nan
from typing import Any

import pytest
import timm
import torch
from timm.utils import ModelEmaV3
from tiny_runs import ON_EACH_DEVICE, differences, tiny_model
from torch import nn

from timm_accel.models import EmaUpdate

LATE = 10**9  # a step at which the decay has risen


class Tied(nn.Module):
    """Three layers with one weight, two norms with one statistic, a module under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(2, 2) for _ in range(3))
        self.layers[1].weight = self.layers[2].weight = self.layers[0].weight
        self.norms = nn.ModuleList(nn.BatchNorm1d(2) for _ in range(2))
        self.norms[1].running_mean = self.norms[0].running_mean
        self.norms[1].running_var = self.norms[0].running_var[:]  # another tensor of the same memory
        self.again = self.norms[1]


class Buffers(nn.Module):
    def __init__(self, **buffers: torch.Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        for name, value in buffers.items():
            self.register_buffer(name, value)


def paired(before: nn.Module, model: nn.Module, decay: float = 0.5, **options: Any) -> tuple[nn.Module, EmaUpdate]:
    """An EMA model with the tensors of `before`, and its update by `model`."""
    ema_model = ModelEmaV3(model, decay=decay, **options)
    update = EmaUpdate(ema_model, model)
    ema_model.module.load_state_dict(before.state_dict())
    return ema_model.module, update


def filled(model: nn.Module, value: float) -> nn.Module:
    for tensor in model.state_dict().values():
        tensor.fill_(value)
    return model


@pytest.mark.parametrize("device", ON_EACH_DEVICE)
@pytest.mark.parametrize("decay", [0.5, 0.75])
def test_a_tensor_moves_once_whatever_its_number_of_names(decay: float, device: str) -> None:
    model = filled(Tied(), 0.0).to(device)
    module, update = paired(filled(Tied(), 1.0), model, decay)
    update(LATE)
    assert len(module.state_dict()) == 21
    for name, tensor in module.state_dict().items():
        expected = 0.0 if "num_batches" in name else decay
        assert torch.equal(tensor, torch.full_like(tensor, expected)), name
    timms = ModelEmaV3(model, decay=decay)
    filled(timms.module, 1.0)
    timms.update(model, step=LATE)
    assert timms.module.layers[0].weight[0, 0] == decay**3


def test_the_ties_of_the_ema_model_outlast_a_loaded_state() -> None:
    model = filled(Tied(), 0.0)
    module, update = paired(filled(Tied(), 1.0), model)
    module.load_state_dict(filled(Tied(), 8.0).state_dict())
    assert module.layers[0].weight is module.layers[2].weight
    assert module.norms[0].running_mean is module.again.running_mean
    update(LATE)
    update(LATE)
    assert torch.equal(module.layers[2].weight, torch.full((2, 2), 2.0))


def test_a_model_of_timm_with_ties_moves_as_its_single_tensors_do() -> None:
    model = timm.create_model("coat_lite_tiny", num_classes=3, img_size=32)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    module, update = paired(model, model, 0.9)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    update(LATE)
    after, moved = module.state_dict(), model.state_dict()
    assert len({tensor.data_ptr() for tensor in after.values()}) < len(after)
    for name, tensor in before.items():
        assert torch.equal(after[name], tensor.lerp(moved[name], 1 - 0.9)), name


@pytest.mark.parametrize("device", ON_EACH_DEVICE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16, None])
@pytest.mark.parametrize("foreach", [True, False])
def test_without_ties_every_bit_is_that_of_timms_update(foreach: bool, dtype: Any, device: str) -> None:
    model = tiny_model().to(device)
    model[1].num_batches_tracked.fill_(3)
    if dtype is None:
        model[0].double()
    else:
        model.to(dtype)
    ours, timms = (ModelEmaV3(model, decay=0.9, use_warmup=True, foreach=foreach) for _ in range(2))
    update = EmaUpdate(ours, model)
    for step in range(1, 6):
        with torch.no_grad():
            for tensor in model.state_dict().values():
                tensor.add_(torch.randn(tensor.shape, device=device).to(tensor.dtype).abs())
        update(step)
        timms.update(model, step=step)
        assert not differences(dict(ours.module.state_dict()), dict(timms.module.state_dict()))
    assert ours.module[1].num_batches_tracked == model[1].num_batches_tracked
    assert not torch.equal(ours.module[0].weight, model[0].weight)


BEFORE = [1.0, inf, -inf, inf, 1.0, 1.0, nan, 1.0]
MODEL = [inf, inf, inf, 3.0, nan, -inf, 3.0, 3.0]
AFTER = [inf, inf, inf, 3.0, nan, -inf, nan, 2.0]


@pytest.mark.parametrize("device", ON_EACH_DEVICE)
@pytest.mark.parametrize("foreach", [True, False])
@pytest.mark.parametrize("shape", [(8,), (2, 4)])
def test_values_of_a_buffer_that_are_not_finite_are_copied(shape: Any, foreach: bool, device: str) -> None:
    before = Buffers(limit=torch.tensor(BEFORE).view(shape), high=torch.tensor(inf), small=torch.ones(2).half())
    model = Buffers(limit=torch.tensor(MODEL).view(shape), high=torch.tensor(inf), small=torch.zeros(2).half())
    module, update = paired(before, model.to(device), foreach=foreach)
    update(LATE)
    expected = Buffers(
        limit=torch.tensor(AFTER).view(shape), high=torch.tensor(inf), small=torch.full((2,), 0.5).half()
    )
    for name, tensor in expected.state_dict().items():
        assert tensor.dtype == module.state_dict()[name].dtype
        assert torch.equal(tensor.nan_to_num(99), module.state_dict()[name].cpu().nan_to_num(99)), name


def test_a_buffer_may_turn_infinite_and_finite_again_at_any_update() -> None:
    model = Buffers(limit=torch.tensor([4.0, 4.0]))
    module, update = paired(Buffers(limit=torch.zeros(2)), model)
    seen = []
    for value in (4.0, inf, inf, 8.0, 4.0):
        model.limit[0] = value
        update(LATE)
        seen.append(module.limit.tolist())
    assert seen == [[2.0, 2.0], [inf, 3.0], [inf, 3.5], [8.0, 3.75], [6.0, 3.875]]
    assert update.fault() is None


def test_what_is_not_floating_point_is_copied_and_what_no_state_dict_holds_stays() -> None:
    kinds = {"count": torch.int64, "mask": torch.bool, "pixels": torch.uint8, "wave": torch.complex64}
    before, model = (
        Buffers(**{name: torch.full((2,), value).to(dtype) for name, dtype in kinds.items()}, none=torch.empty(0))
        for value in (0.0, 1.0)
    )
    model.register_buffer("temporary", torch.ones(1), persistent=False)
    module, update = paired(before, model)
    model.temporary.fill_(5)
    update(LATE)
    for name in kinds:
        assert torch.equal(getattr(module, name), getattr(model, name)), name
    assert module.temporary == 1


def test_a_constant_in_bfloat16_stays_though_rounding_is_random() -> None:
    table = torch.rand(20_000).bfloat16()
    model = Buffers(table=table.clone()).bfloat16()
    module, update = paired(model, model, 0.9)
    timms = ModelEmaV3(model, decay=0.9)
    for _ in range(20):
        update(LATE)
        timms.update(model, step=LATE)
    assert torch.equal(module.table, table)
    assert not torch.equal(timms.module.table, table)


def test_a_first_batch_may_fill_a_buffer_that_was_nan() -> None:
    model = Buffers(low=torch.full((2,), nan))
    ema_model = ModelEmaV3(model, decay=0.5)
    model.low = torch.tensor([4.0, nan])
    update = EmaUpdate(ema_model, model)
    update(LATE)
    assert ema_model.module.low.nan_to_num(99).tolist() == [4.0, 99.0]
    assert update.fault() is None


def test_parameters_that_are_infinite_are_copied() -> None:
    model = nn.Linear(2, 1)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[-inf, 2.0]]))
    ema_model = ModelEmaV3(model, decay=0.5)
    update = EmaUpdate(ema_model, model)
    with torch.no_grad():
        model.weight[0, 1] = 4.0
    update(LATE)
    update(LATE)
    assert ema_model.module.weight.tolist() == [[-inf, 3.5]]


def test_parameters_that_turn_infinite_are_copied_from_the_next_check_on() -> None:
    model = nn.Linear(2, 1)
    module, update = paired(model, model)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[inf, 2.0]]))
    update(LATE)
    update(LATE)
    assert module.weight.isnan().tolist() == [[True, False]]  # inf - inf
    assert update.fault() is None
    assert module.weight[0, 0] == inf
    update(LATE)
    assert module.weight[0, 0] == inf


def test_a_fault_is_what_is_not_finite_where_the_model_is() -> None:
    model = tiny_model()
    module, update = paired(model, model)
    update(LATE)
    assert update.fault() is None
    with torch.no_grad():
        module[5].bias[1] = 1e30  # whose square is infinite
        assert update.fault() is None
        module[5].bias[1] = inf
        assert update.fault() == update.fault(model_moved=True) == "5.bias"
        module[5].bias[1] = nan
        assert update.fault(model_moved=True) == "5.bias"
        model[5].bias[1] = nan
        assert update.fault() is None
        module[1].running_var[0] = inf
        assert update.fault() == "1.running_var"
        assert update.fault(model_moved=True) is None  # the model may have had it
        module[1].running_var[0] = nan
        assert update.fault(model_moved=True) == "1.running_var"
    assert EmaUpdate(ModelEmaV3(Buffers().half()), Buffers().half()).fault() is None


def test_a_fault_is_suspected_on_the_device_and_an_infinite_constant_is_none() -> None:
    class Masking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(2))
            self.register_buffer("mask", torch.tensor([0.0, -inf, nan]))

    model = Masking()
    module, update = paired(model, model)
    update(LATE)
    assert update.suspicion().isfinite().all()
    for tensor, value in ((module.scale, nan), (module.scale, -inf), (module.mask, nan), (module.mask, inf)):
        kept = tensor[0].item()
        with torch.no_grad():
            tensor[0] = value
            assert not update.suspicion().isfinite().all()
            assert update.fault() is not None
            tensor[0] = kept
    assert update.suspicion().isfinite().all()
    with torch.no_grad():
        module.scale.fill_(1e30)  # its square is infinite, so that a look at all values tells
    assert update.fault() is None
    integers = nn.ParameterList([nn.Parameter(torch.ones(1).long(), requires_grad=False)])
    assert EmaUpdate(ModelEmaV3(integers), integers).suspicion().isfinite().all()


def exchange_buffer(model: nn.Module) -> None:
    model[1].running_mean = torch.full((4,), 3.0)


def exchange_parameter(model: nn.Module) -> None:
    model[5].weight = nn.Parameter(torch.full((3, 144), 3.0))


def exchange_child(model: nn.Module) -> None:
    model[0] = nn.Conv2d(3, 4, 3)
    with torch.no_grad():
        model[0].weight.fill_(3.0)


def exchange_values(model: nn.Module) -> None:
    model[0].weight.data = torch.full((4, 3, 3, 3), 3.0)


@pytest.mark.parametrize(
    ("exchange", "name"),
    [
        (exchange_buffer, "1.running_mean"),
        (exchange_parameter, "5.weight"),
        (exchange_child, "0.weight"),
        (exchange_values, "0.weight"),
    ],
)
def test_tensors_that_were_exchanged_are_followed(exchange: Any, name: str) -> None:
    model = filled(tiny_model(), 1.0)
    module, update = paired(model, model)
    update(LATE)
    found = update._pairs
    update(LATE)
    assert update._pairs is found  # nothing was exchanged, so nothing is looked for
    exchange(model)
    update(LATE)
    assert torch.equal(module.state_dict()[name], torch.full_like(module.state_dict()[name], 2.0))
    exchange(module)  # to 3
    filled(model, 1.0)
    update(LATE)
    assert torch.equal(module.state_dict()[name], torch.full_like(module.state_dict()[name], 2.0))


@pytest.mark.parametrize("change", ["gone", "new", "shape"])
def test_a_model_of_other_tensors_is_refused(change: str) -> None:
    model = tiny_model()
    _, update = paired(deepcopy(model), model)
    if change == "gone":
        model[5].bias, shapes = None, r"'5.bias' of shape None in the model and \(3,\) in the EMA model"
    elif change == "new":
        model[2] = nn.PReLU()
        shapes = r"'2.weight' of shape \(1,\) in the model and None in the EMA model"
    else:
        model[5] = nn.Linear(144, 4)
        shapes = r"'5.weight' of shape \(4, 144\) in the model and \(3, 144\) in the EMA model"
    with pytest.raises(ValueError, match=f"Expected the model to keep the tensors.*{shapes}.*before training"):
        update(LATE)
