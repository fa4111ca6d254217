"""bf16 on the CPU; fp16, SyncBatchNorm and fused optimizers where there is a GPU."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import is_compiled_module
from forked import run
from refusal import refused
from tiny_runs import differences, fit, make_trainer, needs_gpu, same_weights, tiny_data, tiny_model
from torch import nn

from timm_accel import LoopTrainer, TimmTrainer
from timm_accel.callbacks import Callback
from timm_accel.mixins import ModelEmaMixin
from timm_accel.training import precision

BF16 = """
import sys; sys.path[:0] = {tests!r}
import test_precision
test_precision.in_bf16()
"""


class Mixed(LoopTrainer):
    """Trains in bf16 or fp16, as ``accelerate launch --mixed_precision`` would have it."""

    def _create_accelerator(self) -> Accelerator:
        super()._create_accelerator()
        return Accelerator(mixed_precision="bf16")


class Averaging(ModelEmaMixin, Mixed):
    """Keeps the outputs of the model and the EMA model in the last evaluation."""

    def calculate_eval_batch_loss(self, batch: Any) -> dict[str, Any]:
        self.output = super().calculate_eval_batch_loss(batch)
        return self.output


def in_bf16() -> None:
    """Run in a separate process: accelerate fixes the precision once for a process."""
    Accelerator(mixed_precision="bf16")
    trainer = make_trainer(Averaging, tiny_model(), ema_decay=0.5)
    data = tiny_data(4, seed=9)
    fit(trainer, eval_dataset=data)
    images, labels = data.tensors
    assert trainer.accelerator.mixed_precision == "bf16"
    for name, module in (("model", trainer.unwrapped_model), ("ema_model", trainer.ema_model.module)):
        by_hand = tiny_model()
        by_hand.load_state_dict(module.state_dict())
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            logits = by_hand.eval()(images)
        assert logits.dtype == torch.bfloat16
        outputs = trainer.output[f"{name}_outputs"]
        assert outputs.dtype == torch.float32
        assert torch.equal(outputs, logits.float()), name
        assert all(parameter.dtype == torch.float32 for parameter in module.parameters())
    recorded = trainer.run_history.get_latest_metric("ema_model_eval_loss_epoch")
    expected = nn.functional.cross_entropy(trainer.output["ema_model_outputs"], labels).item()
    assert abs(recorded - expected) < 1e-5

    compiled = make_trainer(Averaging, torch.compile(tiny_model(), backend="eager"), ema_decay=0.5)
    for _ in range(3):  # each run wraps the forward pass again
        fit(compiled, eval_dataset=data)
        assert compiled.output["model_outputs"].dtype == torch.float32

    def in_full(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        assert not torch.is_autocast_enabled("cpu")  # as in training
        return nn.functional.cross_entropy(outputs, targets)

    fit(make_trainer(Averaging, ema_decay=0.5, loss_func=in_full), eval_dataset=data)

    first = deepcopy(trainer.unwrapped_model.state_dict())
    fit(trainer, num_epochs=1)  # a second run wraps the forward pass once, not twice
    assert getattr(trainer.unwrapped_model.forward, "__wrapped__", None) is not None
    assert trainer.unwrapped_model._original_forward.__func__ is nn.Sequential.forward
    assert any(not torch.equal(first[name], tensor) for name, tensor in trainer.unwrapped_model.state_dict().items())


def test_bf16_evaluates_model_and_ema_model_as_by_hand() -> None:
    script = BF16.format(tests=[str(folder) for folder in Path(__file__).parents[:2]])
    result = run(["-c", script])
    assert result.returncode == 0, result.stderr[-3000:]


class Seeing(nn.Module):
    """A tiny model that notes the dtype of its logits."""

    def __init__(self) -> None:
        super().__init__()
        self.layers, self.dtypes = nn.Sequential(nn.Flatten(), nn.Linear(192, 3)), set[torch.dtype]()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits = self.layers(images)
        self.dtypes.add(logits.dtype)
        return logits


@pytest.mark.parametrize(
    ("launched", "asked", "dtype"),
    [(None, None, torch.float32), (None, "bf16", torch.bfloat16), ("bf16", "no", torch.float32),
     ("bf16", None, torch.bfloat16), ("no", "bf16", torch.bfloat16)],
)  # fmt: skip
def test_the_precision_is_the_trainers_or_else_the_launchers(
    launched: str | None, asked: str | None, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    AcceleratorState._reset_state(reset_partial_state=True)  # a new process
    if launched is not None:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launched)
    model = Seeing()
    fit(make_trainer(LoopTrainer, model, mixed_precision=asked), eval_dataset=tiny_data(4), num_epochs=1)
    assert model.dtypes == {dtype}
    AcceleratorState._reset_state(reset_partial_state=True)


def test_each_trainer_of_a_process_has_its_own_precision_and_those_without_that_of_the_launcher() -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    models = {asked: Seeing() for asked in ("bf16", "no", None)}
    trainers = [make_trainer(LoopTrainer, model, mixed_precision=asked) for asked, model in models.items()]
    for trainer in [*trainers, *trainers]:
        fit(trainer, num_epochs=1)
    assert [models[asked].dtypes for asked in models] == [{torch.bfloat16}, {torch.float32}, {torch.float32}]
    AcceleratorState._reset_state(reset_partial_state=True)


def test_the_precision_of_an_accelerator_that_was_there_first_is_that_of_trainers_without_one() -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    Accelerator(mixed_precision="bf16", cpu=not torch.cuda.is_available())
    for asked, expected in (("no", "no"), (None, "bf16"), ("no", "no")):
        assert make_trainer(LoopTrainer, mixed_precision=asked).accelerator.mixed_precision == expected
    AcceleratorState._reset_state(reset_partial_state=True)


def test_a_compiled_model_trains_to_close_values_and_is_saved_plain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "aot_eager")  # needs no compiler
    torch._dynamo.reset()
    seen = []

    class Watching(LoopTrainer):
        def training_run_start(self) -> None:
            super().training_run_start()
            seen.append(is_compiled_module(self.model))

    plain, compiled, launched = (
        fit(make_trainer(Watching, deepcopy(tiny_model()), torch_compile=asked, seed=3), num_epochs=2)
        for asked in (False, True, None)
    )
    assert seen == [False, True, True]
    for trainer in (compiled, launched):
        weights = trainer.evaluated_models()["model"].state_dict()
        for name, tensor in plain.evaluated_models()["model"].state_dict().items():
            torch.testing.assert_close(weights[name], tensor, rtol=1e-4, atol=1e-5)
    compiled.save_checkpoint(tmp_path / "model.pt")
    saved = torch.load(tmp_path / "model.pt", weights_only=False)["model_state_dict"]
    assert saved.keys() == tiny_model().state_dict().keys()
    AcceleratorState._reset_state(reset_partial_state=True)


def test_a_mode_is_a_compilation_and_true_is_that_of_torch() -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    for asked, backend, mode in ((True, "INDUCTOR", "default"), ("max-autotune", "INDUCTOR", "max-autotune")):
        plugin = make_trainer(LoopTrainer, torch_compile=asked).accelerator.state.dynamo_plugin
        assert (plugin.backend.value, plugin.mode) == (backend, mode)
    assert make_trainer(LoopTrainer).accelerator.state.dynamo_plugin.backend.value == "NO"
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mixed_precision": "bf61"}, ("mixed_precision to be one of no, fp16, bf16", "got 'bf61'", "'bf16'")),
        ({"mixed_precision": True}, ("mixed_precision to be one of no, fp16, bf16", "got True")),
        ({"torch_compile": "max-autotun"}, ("torch_compile to be True, False or one of default", "'max-autotune'")),
        ({"torch_compile": 1}, ("torch_compile to be True, False or one of default", "got 1")),
    ],
)
def test_a_wrong_precision_or_mode_is_one_sentence(options: dict[str, Any], words: tuple[str, ...]) -> None:
    with refused(ValueError, *words):
        make_trainer(LoopTrainer, **options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="fp16 trains on a GPU")
@pytest.mark.parametrize("launched", [False, True])
def test_fp16_on_a_cpu_is_refused_and_the_remedy_is_one_that_the_processor_has(
    launched: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    if launched:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    for in_bf16, remedy in ((True, "Pass 'bf16'."), (False, "Pass 'no'."), (None, "Pass 'no'.")):
        monkeypatch.setattr(precision, "has_bf16", lambda device, found=in_bf16: found)
        with refused(ValueError, "mixed_precision to be no or bf16 on a CPU", "got 'fp16'", remedy):
            make_trainer(LoopTrainer, mixed_precision=None if launched else "fp16")


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [({"avx512_bf16": True, "avx2": True}, True), ({"amx_bf16": True}, True), ({"bf16": True, "neon": True}, True),
     ({"avx512_f": True, "avx512_bf16": False, "f16c": True}, False), ({"neon": True}, False), (None, None)],
)  # fmt: skip
def test_torch_tells_whether_the_processor_has_bf16_instructions(
    capabilities: dict[str, bool] | None, expected: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if capabilities is None:  # an older version
        monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    else:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert precision.has_bf16(torch.device("cpu")) is expected
    assert precision.has_bf16(torch.device("mps")) is None


def test_bf16_that_would_be_emulated_is_warned_of_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    monkeypatch.setattr(precision, "has_bf16", lambda device: False)
    with pytest.warns(UserWarning, match=r"this processor has no bf16 instructions.*Pass mixed_precision='no'\.$"):
        make_trainer(LoopTrainer, mixed_precision="bf16")
    with pytest.warns(UserWarning, match="this GPU has no bf16.*'fp16' or 'no'"):
        precision.warn_of_emulation("bf16", torch.device("cuda"))
    make_trainer(LoopTrainer, mixed_precision="no")
    monkeypatch.setattr(precision, "has_bf16", lambda device: None)  # no warning where nothing is known
    make_trainer(LoopTrainer, mixed_precision="bf16")
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("fused", [False, True])
def test_a_skipped_fp16_step_counts_for_nothing(fused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")

    class Half(ModelEmaMixin):
        """Notes which updates have changed the weights or the EMA weights, and which were announced."""

        def training_run_start(self) -> None:
            self.moved: list[bool] = []
            super().training_run_start()

        def calculate_train_batch_loss(self, batch: Any) -> dict[str, Any]:
            output = super().calculate_train_batch_loss(batch)
            overflow = self.batch_index == 1 and self.epoch == 0
            return output | {"loss": output["loss"] * (float("inf") if overflow else 1.0)}

        def clip_gradients(self) -> None:
            self.before = self.tensors()
            super().clip_gradients()

        def optimizer_zero_grad(self) -> None:
            self.moved.append(bool(differences(self.before, self.tensors())))
            super().optimizer_zero_grad()

        def tensors(self) -> dict[str, Any]:
            parts = {name: dict(module.named_parameters()) for name, module in self.evaluated_models().items()}
            ema = dict(self.ema_model.module.named_parameters())
            return deepcopy({"model": parts["model"], "ema": ema})

    class Announced(Callback):
        count = 0

        def on_update_end(self, trainer: LoopTrainer, **kwargs: Any) -> None:
            self.count += 1

    model, announced = tiny_model(), Announced()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=fused)
    linear = lambda optimizer: torch.optim.lr_scheduler.LinearLR(optimizer, total_iters=20)  # noqa: E731
    trainer = make_trainer(Half, model, optimizer=optimizer, ema_decay=0.5, callbacks=[announced])
    fit(trainer, create_scheduler_fn=linear)
    assert len(trainer.moved) == 8
    assert trainer.moved[1] is False
    assert 5 <= trainer.num_updates <= 7  # the scale that fp16 starts with may be too large for a step or two more
    assert trainer.num_updates == trainer.scheduler.last_epoch == announced.count == sum(trainer.moved)
    assert all(parameter.isfinite().all() for parameter in trainer.ema_model.module.parameters())


@pytest.mark.gpu
@needs_gpu
def test_an_ema_model_on_the_cpu_beside_a_gpu_model_is_kept_and_not_evaluated() -> None:
    trainer = make_trainer(ModelEmaMixin, ema_decay=0.5, ema_device="cpu")
    with pytest.warns(UserWarning, match="not evaluated"):
        fit(trainer, eval_dataset=tiny_data(5))
    assert next(trainer.ema_model.module.parameters()).device.type == "cpu"
    assert trainer.run_history.get_metric_names() == {"train_loss_epoch", "eval_loss_epoch"}
    beside = fit(make_trainer(ModelEmaMixin, ema_decay=0.5))
    beside.ema_model.module.cpu()
    assert same_weights(beside.ema_model.module, trainer.ema_model.module)


@pytest.mark.gpu
@needs_gpu
def test_timms_converter_keeps_the_activations_on_a_gpu() -> None:
    import timm
    from timm.layers import convert_sync_batchnorm

    model = timm.create_model("test_efficientnet", num_classes=3).cuda().eval()
    images = torch.randn(2, 3, 64, 64, device="cuda")
    before = model(images)
    assert torch.allclose(convert_sync_batchnorm(model)(images), before, atol=1e-5)
    assert issubclass(TimmTrainer, LoopTrainer)
