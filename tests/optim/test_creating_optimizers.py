"""An optimizer's groups and rates, and what is refused."""

from typing import Any

import pytest
import timm
import torch
from refusal import refused
from timm.optim import Lookahead, list_optimizers
from timm.scheduler import create_scheduler_v2
from tiny_runs import fit, make_trainer, tiny_data, tiny_model
from torch import nn

from timm_accel import TimmTrainer
from timm_accel.models.heads import attach_head
from timm_accel.optim import EXCLUDED, create_optimizer, scale_lr
from timm_accel.schedules import simulate_schedule


def named_groups(model: nn.Module, optimizer: Any) -> dict[str, dict[str, Any]]:
    """The group of each parameter that has one."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {names[parameter]: group for group in optimizer.param_groups for parameter in group["params"]}


@pytest.mark.parametrize("layer_decay", [None, 0.5])
@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_efficientnet"])
def test_biases_norms_and_what_the_model_names_have_no_weight_decay(name: str, layer_decay: float | None) -> None:
    model = timm.create_model(name, num_classes=3)
    groups = named_groups(model, create_optimizer(model, "adamw", 1e-3, weight_decay=0.05, layer_decay=layer_decay))
    assert groups.keys() == dict(model.named_parameters()).keys()
    exempt = getattr(model, "no_weight_decay", set)()
    for parameter_name, parameter in model.named_parameters():
        plain = parameter.ndim <= 1 or parameter_name.endswith(".bias") or parameter_name in exempt
        assert groups[parameter_name]["weight_decay"] == (0 if plain else 0.05), parameter_name


def test_custom_groups_keep_separate_learning_rates_under_a_schedule() -> None:
    model = timm.create_model("test_resnet", num_classes=3)

    def head_and_body(module: nn.Module) -> list[dict[str, Any]]:
        head = {*module.fc.parameters()}
        return [{"params": [*head]}, {"params": [each for each in module.parameters() if each not in head], "lr": 0.01}]

    optimizer = create_optimizer(model, "sgd", 0.1, param_group_fn=head_and_body)
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.01]
    simulated = simulate_schedule({"sched": "cosine"}, num_epochs=4, updates_per_epoch=2, optimizer=optimizer)
    assert simulated.learning_rates[:, 0] == pytest.approx(10 * simulated.learning_rates[:, 1])
    assert simulated.learning_rates[-1, 0] < 0.05 < simulated.learning_rates[0, 0] == 0.1


def test_layer_decay_falls_from_the_head_down_to_its_minimum() -> None:
    model = timm.create_model("test_vit", num_classes=3)
    depth = len(model.blocks)
    groups = named_groups(model, create_optimizer(model, "sgd", 0.1, layer_decay=0.5, layer_decay_min_scale=0.1))
    assert groups["head.weight"]["lr_scale"] == 1.0
    for index in range(depth):
        expected = max(0.5 ** (depth - index), 0.1)  # the last block lies one below norm and head
        assert groups[f"blocks.{index}.attn.qkv.weight"]["lr_scale"] == expected
    assert groups["patch_embed.proj.weight"]["lr_scale"] == 0.1


@pytest.mark.parametrize("scheduler_args", [None, {"sched": "cosine"}, {"sched": "constant"}, {"sched": "none"}])
def test_layer_decay_scales_the_first_update_with_any_schedule(scheduler_args: dict[str, Any] | None) -> None:
    model = timm.create_model("test_vit", num_classes=3, img_size=160)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = create_optimizer(model, "sgd", 0.1, layer_decay=0.5, momentum=0.0, nesterov=False)
    images = torch.utils.data.TensorDataset(torch.randn(4, 3, 160, 160), torch.arange(4) % 3)
    kept: dict[str, torch.Tensor] = {}

    class Noting(TimmTrainer):
        def clip_gradients(self) -> None:
            super().clip_gradients()
            kept.update({name: parameter.grad.clone() for name, parameter in model.named_parameters()})

    trainer = make_trainer(Noting, model, optimizer=optimizer, scheduler_args=scheduler_args)
    fit(trainer, images, num_epochs=1)
    groups = named_groups(model, optimizer)
    for name, parameter in model.named_parameters():
        expected = before[name] - 0.1 * groups[name]["lr_scale"] * kept[name]
        torch.testing.assert_close(parameter.detach(), expected, rtol=1e-5, atol=1e-8)


def test_a_frozen_parameter_is_in_no_group_but_one_to_be_thawed_is() -> None:
    model = tiny_model()
    convolution, norm, head = model[0], model[1], model[5]
    for module in (convolution, norm):
        module.requires_grad_(False)
    assert named_groups(model, create_optimizer(model, "sgd", 0.1)).keys() == {"5.weight", "5.bias"}

    optimizer = create_optimizer(model, "sgd", 0.1, weight_decay=0.01, thawed=["0", norm.weight])
    groups = named_groups(model, optimizer)
    assert groups.keys() == {"0.weight", "0.bias", "1.weight", "5.weight", "5.bias"}
    assert (groups["0.weight"]["weight_decay"], groups["1.weight"]["weight_decay"]) == (0.01, 0.0)
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == {"0.weight", "0.bias", "1.weight", "1.bias"}
    assert head.weight.requires_grad


@pytest.mark.filterwarnings("ignore:It is highly recommended to have 'opt_einsum':UserWarning")
@pytest.mark.parametrize("name", [name for name in list_optimizers() if name not in EXCLUDED | {"adahessian": ""}])
def test_one_to_be_thawed_has_neither_decay_nor_state_until_it_has_a_gradient(name: str) -> None:
    """Of Adahessian, which counts its steps from the start, see the next test."""
    parameters = nn.ParameterDict({"late": torch.ones(3, 2), "now": torch.ones(3, 2)})
    parameters["late"].requires_grad_(False)
    optimizer = create_optimizer(parameters, name, 0.1, weight_decay=0.5, thawed=["late"])
    with torch.compiler.set_stance("force_eager"):
        for _ in range(2):
            (parameters["now"] ** 3).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        assert torch.equal(parameters["late"], torch.ones(3, 2))
        state = optimizer.state.get(parameters["late"], {})
        assert not any(value.any() for value in state.values())
        assert bool(state) == (name == "adagrad")  # which makes its zeros at the start
        assert not torch.equal(parameters["now"], torch.ones(3, 2))
        parameters["late"].requires_grad_(True)
        for _ in range(2):  # of which Adopt's first moves nothing
            (parameters["late"] ** 3).sum().backward()
            optimizer.step()
    assert not torch.equal(parameters["late"], torch.ones(3, 2))


@pytest.mark.filterwarnings("ignore:Using backward.. with create_graph=True:UserWarning")
def test_adahessian_can_thaw_too() -> None:
    parameters = nn.ParameterDict({"late": torch.ones(3, 2), "now": torch.ones(3, 2)})
    parameters["late"].requires_grad_(False)
    optimizer = create_optimizer(parameters, "adahessian", 0.1, weight_decay=0.5, thawed=["late"])
    for moves in (False, True):
        (parameters["now"] ** 3 + parameters["late"] ** 3).sum().backward(create_graph=True)
        optimizer.step()
        optimizer.zero_grad()
        assert torch.equal(parameters["late"], torch.ones(3, 2)) is not moves
        parameters["late"].requires_grad_(True)


@pytest.mark.parametrize(
    ("opt", "scaling", "expected"),
    [
        ("sgd", None, 0.4),
        ("lookahead_AdamW", None, 0.2),
        ("lamb", None, 0.2),
        ("radam", None, 0.2),
        ("lion", None, 0.4),
        ("adamw", "linear", 0.4),
        ("sgd", "sqrt", 0.2),
    ],
)
def test_the_learning_rate_follows_the_global_batch_size_as_in_timms_script(
    opt: str, scaling: Any, expected: float
) -> None:
    optimizer = create_optimizer(tiny_model(), opt, base_lr=0.1, global_batch_size=1024, lr_scaling=scaling)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(expected)
    assert scale_lr(0.1, 512, opt="sgd", base_batch_size=1024) == pytest.approx(0.05)


def test_without_a_learning_rate_the_optimizer_has_its_default_and_options_reach_it() -> None:
    optimizer = create_optimizer(tiny_model(), "lookahead_adamw", betas=(0.5, 0.6))
    assert isinstance(optimizer, Lookahead)
    assert (optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["betas"]) == (1e-3, (0.5, 0.6))


def test_a_module_to_be_thawed_is_its_own_parameters_alone() -> None:
    model = nn.ModuleDict({"head": nn.Linear(2, 2), "head_dist": nn.Linear(2, 2)}).requires_grad_(False)
    groups = named_groups(model, create_optimizer(model, "sgd", 0.1, thawed=["head"]))
    assert groups.keys() == {"head.weight", "head.bias"}


def frozen_model() -> nn.Module:
    return tiny_model().requires_grad_(False)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"lr": 0.0}, ("lr to be positive", "got 0.0")),
        ({"weight_decay": -1}, ("weight_decay to be at least 0", "got -1")),
        ({"layer_decay": 1.5}, ("layer_decay to be above 0 and up to 1", "got 1.5")),
        ({"layer_decay_min_scale": -0.1}, ("layer_decay_min_scale to be from 0 to 1", "got -0.1")),
        ({"lr": 0.1, "base_lr": 0.1}, ("lr or base_lr", "both, 0.1 and 0.1")),
        ({"base_lr": 0.1}, ("global_batch_size beside base_lr", "None", "times accumulation")),
        ({"base_lr": 0.1, "global_batch_size": 0}, ("global_batch_size to be a positive number", "got 0")),
        ({"base_lr": 0.1, "global_batch_size": 8, "lr_scaling": "cubic"}, ("'linear', 'sqrt' or None", "'cubic'")),
        ({"momentun": 0.9}, ("got 'momentun'", "Did you mean 'momentum'")),
        ({"nesterof": True}, ("got 'nesterof'", "Did you mean 'nesterov'")),
        ({"params": []}, ("options of timm's factory or of 'sgd'", "got 'params'")),
        ({"layer_decay": 0.7}, ("layers timm can tell apart", "got Sequential")),
        ({"thawed": ["6"]}, ("thawed to be parameters of the model", "got '6'", "Known names")),
        ({"thawed": ["5.wieght"]}, ("got '5.wieght'", "Did you mean '5.weight'")),
        ({"thawed": [nn.Parameter(torch.ones(2, 3))]}, ("got one of shape (2, 3)", "model.parameters()")),
    ],
)
def test_options_that_cannot_be_right_are_refused(options: dict[str, Any], words: tuple[str, ...]) -> None:
    with refused(ValueError, *words):
        create_optimizer(tiny_model(), "sgd", **options)


def test_layer_decay_on_a_model_whose_matcher_fails_is_refused_in_one_sentence() -> None:
    """Inception-v3's matcher looks for a head of one layer."""
    model = timm.create_model("inception_v3", num_classes=3, aux_logits=False)
    attach_head(model, "mlp", 3)
    with refused(ValueError, "layers timm can tell apart", "got InceptionV3", "group_matcher() fails", "KeyError"):
        create_optimizer(model, "adamw", layer_decay=0.7)
    assert create_optimizer(model, "adamw").param_groups


def test_a_hook_of_one_s_own_may_thaw_what_is_in_its_group() -> None:
    class Thawing(TimmTrainer):
        def train_epoch_start(self) -> None:
            super().train_epoch_start()
            copies.append(model[0].weight.detach().clone())
            model[0].requires_grad_(self.epoch == 1)

    copies: list[torch.Tensor] = []
    model = tiny_model()
    model[0].requires_grad_(False)
    optimizer = create_optimizer(model, "adamw", 0.01, weight_decay=0.5, thawed=["0"])
    trainer = make_trainer(Thawing, model, optimizer=optimizer)
    fit(trainer)
    assert torch.equal(copies[0], copies[1])
    assert not torch.equal(copies[1], model[0].weight)
    assert trainer.unwrapped_optimizer.state[model[0].weight]["step"] == 4


def test_a_model_with_nothing_to_train_is_refused() -> None:
    with refused(ValueError, "parameters to train", "all are frozen", "Thaw some"):
        create_optimizer(frozen_model(), "sgd", 0.1)
    model = frozen_model()
    assert create_optimizer(model, "sgd", 0.1, thawed=["5"]).param_groups
    assert not model[5].weight.requires_grad


def test_a_user_s_ready_lookahead_syncs_and_evaluation_sees_the_slow_weights() -> None:
    fast: list[torch.Tensor] = []

    class Noting(TimmTrainer):
        def after_update(self) -> None:
            super().after_update()
            fast.append(self.unwrapped_model[5].weight.detach().clone())

    model = tiny_model()
    start = model[5].weight.detach().clone()
    optimizer = Lookahead(torch.optim.SGD(model.parameters(), lr=0.1), alpha=0.25, k=2)
    trainer = make_trainer(Noting, model, optimizer=optimizer, scheduler_args={"sched": "cosine"})
    fit(trainer, tiny_data(12), tiny_data(4), num_epochs=1)
    after_two = fast[1]  # timm's first slow weights are those after k updates
    assert not torch.equal(after_two, start)
    torch.testing.assert_close(model[5].weight.detach(), after_two + 0.25 * (fast[2] - after_two))
    images, labels = tiny_data(4).tensors
    loss = nn.functional.cross_entropy(model.eval()(images), labels).item()
    assert trainer.run_history.get_latest_metric("eval_loss_epoch") == pytest.approx(loss)


def test_the_schedule_reaches_the_groups_of_a_wrapped_optimizer() -> None:
    model = timm.create_model("test_vit", num_classes=3)
    optimizer = create_optimizer(model, "lookahead_sgd", 0.1, layer_decay=0.5)
    scheduler, _ = create_scheduler_v2(optimizer, num_epochs=2)
    scheduler.step(1)
    base = optimizer._base_optimizer.param_groups
    assert [group["lr"] / group["lr_scale"] for group in base] == pytest.approx([0.05] * len(base))
    assert len({group["lr"] for group in base}) > 3
