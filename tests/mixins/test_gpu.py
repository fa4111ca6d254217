"""A GPU under the trainer: the same bits after a cut, no step that waits for it, and every mixin works there."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from conftest import write_images
from resumed_runs import Noting, cut, every_update, make_run, same_outcome, states, train
from terminals import open_terminal
from test_contract import MIXINS, OPTIONS
from timm.loss import SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from tiny_runs import Seen, fit, make_trainer, needs_gpu, same_weights, tiny_data, tiny_model
from torch import nn
from torch.utils.data import TensorDataset

from timm_accel import TimmMixupTrainer, create_classifier, create_datasets
from timm_accel.callbacks import DEFAULT_CALLBACKS
from timm_accel.callbacks.output import progress_bar
from timm_accel.data.seeding import seed_prefetch
from timm_accel.data.transforms.device_transform import DeviceTransform
from timm_accel.mixins import ModelEmaMixin
from timm_accel.training.prefetch import prefetch

pytestmark = [pytest.mark.gpu, needs_gpu]
GPU = torch.device("cuda", 0)
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


@pytest.fixture
def precision(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Train in this precision, as ``accelerate launch --mixed_precision`` would."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", request.param)
    return request.param


# The same bits


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"], indirect=True)
def test_a_run_cut_anywhere_and_resumed_ends_in_the_same_bits(precision: str, tmp_path: Path) -> None:
    whole = train(make_run(tmp_path / "whole"))
    assert whole.device.type == "cuda"
    assert whole.accelerator.mixed_precision == precision
    count = len(states(tmp_path / "whole"))
    for after in (0, count // 2, count - 3):
        folder = cut(tmp_path / "whole", after, tmp_path / f"cut_{after}")
        resumed = train(make_run(folder), resume_from="auto")
        assert 0 < len(resumed.images) < len(whole.images)
        assert same_outcome(tmp_path / "whole", folder) is None, after


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("num_workers", [0, 2])
def test_erased_images_of_a_real_model_continue_with_the_same_bits(num_workers: int, tmp_path: Path) -> None:
    write_images(tmp_path / "data" / "train", {"cat": 8, "dog": 8, "owl": 8}, size=40)
    write_images(tmp_path / "data" / "val", {"cat": 2, "dog": 2, "owl": 2}, size=40)

    def run(run_dir: Path, **options: Any) -> Any:
        torch.manual_seed(0)
        model, config = create_classifier("test_efficientnet", 3, image_size=32, drop_path_rate=0.1)
        data = {"data": tmp_path / "data", "re_prob": 0.5, "re_mode": "pixel"}
        train_set, val_set = create_datasets(32, config["mean"], config["std"], **data)
        trainer = make_run(run_dir, model=model.to(memory_format=torch.channels_last))
        loading = {"num_workers": num_workers}
        return train(
            trainer,
            train_dataset=train_set,
            eval_dataset=val_set,
            num_epochs=2,
            train_dataloader_kwargs=loading,
            eval_dataloader_kwargs=loading,
            **options,
        )

    whole = run(tmp_path / "whole")
    folder = cut(tmp_path / "whole", 3, tmp_path / "cut")
    resumed = run(folder, resume_from="auto")
    missed = len(whole.images) - len(resumed.images)
    assert missed == 4
    assert all(torch.equal(a, b) for a, b in zip(resumed.images, whole.images[missed:], strict=True))
    assert same_outcome(tmp_path / "whole", folder) is None


@pytest.mark.usefixtures("deterministic")
def test_a_fused_optimizer_trains_as_the_other_and_resumes(tmp_path: Path) -> None:
    def run(run_dir: Path, fused: bool, **options: Any) -> Any:
        model = tiny_model()
        optimizer = create_optimizer_v2(model, "adamw", lr=5e-3, weight_decay=0.01, fused=fused)
        return train(make_run(run_dir, model=model, optimizer=optimizer), **options)

    plain, fused = run(tmp_path / "plain", False), run(tmp_path / "fused", True)
    assert fused.num_updates == plain.num_updates > 0
    for name in ("train_loss_epoch", "eval_loss_epoch", "ema_model_eval_loss_epoch"):
        values = [list(trainer.run_history.get_metric_values(name)) for trainer in (plain, fused)]
        assert values[1] == pytest.approx(values[0], rel=0.02)
    folder = cut(tmp_path / "fused", 5, tmp_path / "cut")
    run(folder, True, resume_from="auto")
    assert same_outcome(tmp_path / "fused", folder) is None


@pytest.mark.usefixtures("deterministic")
@pytest.mark.filterwarnings("default")  # the compiler's own, of precision and of its imports
def test_a_compiled_model_trains_evaluates_and_resumes(tmp_path: Path) -> None:
    def run(run_dir: Path, compiled: bool, **options: Any) -> Any:
        model = tiny_model()
        return train(make_run(run_dir, model=torch.compile(model) if compiled else model), **options)

    plain, compiled = run(tmp_path / "plain", False), run(tmp_path / "compiled", True)
    assert isinstance(compiled.model, torch._dynamo.OptimizedModule)
    assert compiled.unwrapped_model.state_dict().keys() == plain.unwrapped_model.state_dict().keys()
    for name in ("train_loss_epoch", "eval_loss_epoch", "ema_model_eval_loss_epoch"):
        values = [list(trainer.run_history.get_metric_values(name)) for trainer in (plain, compiled)]
        assert values[1] == pytest.approx(values[0], rel=0.5)  # the compiler draws other dropout masks
    folder = cut(tmp_path / "compiled", 5, tmp_path / "cut")
    run(folder, True, resume_from="auto")
    assert same_outcome(tmp_path / "compiled", folder) is None


# Precision


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("precision", ["bf16"], indirect=True)
def test_bf16_trains_and_the_ema_weights_stay_in_float32(precision: str) -> None:
    class Keeping(ModelEmaMixin):
        def calculate_eval_batch_loss(self, batch: Any) -> dict[str, Any]:
            self.images, self.output = batch[0], super().calculate_eval_batch_loss(batch)
            return self.output

    trainer = fit(make_trainer(Keeping, ema_decay=0.5), tiny_data(64), tiny_data(4, seed=9), num_epochs=6)
    losses = list(trainer.run_history.get_metric_values("train_loss_epoch"))
    assert losses[-1] < losses[0] / 2
    for name, module in trainer.evaluated_models().items():
        assert all(parameter.dtype == torch.float32 for parameter in module.parameters())
        by_hand = tiny_model().to(GPU)
        by_hand.load_state_dict(module.state_dict())
        with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
            logits = by_hand.eval()(trainer.images)
        assert logits.dtype == torch.bfloat16
        assert torch.equal(trainer.output[f"{name}_outputs"], logits.float())


# No step waits for the device


class Watched(TimmMixupTrainer):
    """Raises where anything waits for the device between the third step of an epoch and its last."""

    def calculate_train_batch_loss(self, batch: Any) -> dict[str, Any]:
        if self.batch_index == 2:
            torch.cuda.set_sync_debug_mode("error")
        return super().calculate_train_batch_loss(batch)

    def train_epoch_end(self) -> None:
        torch.cuda.set_sync_debug_mode("default")
        super().train_epoch_end()


class Waiting(Watched):
    """Waits in each step, as upstream does."""

    def calculate_train_batch_loss(self, batch: Any) -> dict[str, Any]:
        output = super().calculate_train_batch_loss(batch)
        output["loss"].item()
        return output


@pytest.fixture
def _sync_debug_mode() -> Iterator[None]:
    yield
    torch.cuda.set_sync_debug_mode("default")


def watch(
    kind: type, folder: Path, fused: bool = False, num_workers: int = 0, count: int = 14, sync_every: int = 1000
) -> Any:
    write_images(folder / "train", {"cat": count, "dog": count, "owl": count}, size=16)
    write_images(folder / "val", {"cat": 2, "dog": 2, "owl": 2}, size=16)
    train_set, val_set = create_datasets(16, MEAN, STD, data=folder, re_prob=1.0, re_mode="pixel")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 14 * 14, 3))
    trainer = make_trainer(
        kind,
        model,
        optimizer=torch.optim.AdamW(model.parameters(), fused=fused),
        loss_func=SoftTargetCrossEntropy(),
        eval_loss_fn=nn.CrossEntropyLoss(),
        mixup_args={"mixup_alpha": 0.4, "cutmix_alpha": 1.0},
        num_class=3,
        ema_decay=0.5,
        clip_grad=1.0,
        scheduler_args={"sched": "cosine", "step_on_epochs": False},
        callbacks=DEFAULT_CALLBACKS,
        sync_every_n_updates=sync_every,
    )
    loading = {"num_workers": num_workers}
    return fit(trainer, train_set, val_set, train_dataloader_kwargs=loading, eval_dataloader_kwargs=loading)


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@pytest.mark.usefixtures("_sync_debug_mode", "capsys")
@pytest.mark.parametrize("precision", ["no", "bf16"], indirect=True)
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("shows_bar", [False, True])
def test_no_training_step_waits_for_the_device(
    shows_bar: bool, num_workers: int, fused: bool, precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if shows_bar:
        open_terminal(monkeypatch)
        monkeypatch.setattr(progress_bar._Terminal, "interval", 0.0)  # drawn after each batch
    trainer = watch(Watched, tmp_path, fused, num_workers)
    assert trainer.num_updates == 20
    assert torch.cuda.get_sync_debug_mode() == 0


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@pytest.mark.usefixtures("_sync_debug_mode", "capsys")
def test_no_sync_point_waits_for_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_terminal(monkeypatch)
    monkeypatch.setattr(progress_bar._Terminal, "interval", 0.0)
    trainer = watch(Watched, tmp_path, count=40, sync_every=3)
    assert trainer.num_updates == 60  # in two epochs of 30, each with 9 sync points that raise if they wait
    assert trainer.running_loss.last_average > 0


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@pytest.mark.usefixtures("_sync_debug_mode", "capsys")
def test_one_that_waits_is_found(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="synchroniz"):
        watch(Waiting, tmp_path)


# Prefetch


def test_batches_made_ready_ahead_are_those_made_ready_in_turn() -> None:
    transform = DeviceTransform(MEAN, STD, re_prob=1.0, re_mode="pixel")
    hosts = [torch.randint(256, (64, 3, 64, 64), dtype=torch.uint8).pin_memory() for _ in range(12)]

    def batches() -> Iterator[Any]:
        for number, host in enumerate(hosts):
            yield [host.to(GPU, non_blocking=True), torch.full((64,), number).pin_memory().to(GPU, non_blocking=True)]

    def ready() -> Any:
        numbers = iter(range(len(hosts)))

        def make_ready(batch: Any) -> Any:
            seed_prefetch(0, 0, next(numbers), 0, GPU)
            return [transform(batch[0]), batch[1]]

        return make_ready

    in_turn = [[tensor.cpu() for tensor in batch] for batch in map(ready(), batches())]
    seen = []
    for images, labels in prefetch(batches(), ready(), GPU):
        torch.cuda._sleep(5_000_000)  # the step is still at work when the batch after it is made ready
        seen.append([images * 1, labels * 1])
        del images, labels  # and what it used is freed
    assert len(seen) == len(hosts)
    for batch, expected in zip(seen, in_turn, strict=True):
        assert all(torch.equal(tensor.cpu(), before) for tensor, before in zip(batch, expected, strict=True))


def test_a_loader_of_the_users_own_need_not_know_the_device() -> None:
    class ListLoader(Seen):
        def create_train_dataloader(self, batch_size: int, train_dl_kwargs: Any = None) -> Any:
            data = tiny_data(20)
            return [data[index : index + 4] for index in range(0, 20, 4)]

    trainer = fit(make_trainer(ListLoader), tiny_data(20), num_epochs=1)
    assert trainer.num_updates == 5
    assert all(images.is_cuda for images in trainer.images)
    assert torch.equal(torch.cat(trainer.images).cpu(), tiny_data(20).tensors[0])


# Every mixin


@pytest.mark.parametrize("mixin", MIXINS)
def test_a_mixin_works_alone_on_a_gpu(mixin: type) -> None:
    mixes = mixin.__name__ == "MixupMixin"
    loss = SoftTargetCrossEntropy() if mixes else nn.CrossEntropyLoss()
    model, before = tiny_model(), tiny_model()
    trainer = make_trainer(mixin, model, loss_func=loss, **OPTIONS.get(mixin.__name__, {}))
    fit(trainer, eval_dataset=None if mixes else tiny_data(5))
    assert all(
        tensor.is_cuda for module in trainer.evaluated_models().values() for tensor in module.state_dict().values()
    )
    assert all(tensor.isfinite().all() for tensor in trainer.unwrapped_model.state_dict().values())
    assert not same_weights(trainer.unwrapped_model.cpu(), before)


@pytest.mark.usefixtures("capsys")
def test_a_state_of_a_gpu_continues_on_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, Any] = {"callbacks": [every_update()]}
    whole = train(make_run(tmp_path / "whole", Noting, **options))
    folder = cut(tmp_path / "whole", 5, tmp_path / "cut")
    AcceleratorState._reset_state(reset_partial_state=True)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    resumed = train(make_run(folder, Noting, **options), resume_from="auto")
    assert resumed.device.type == "cpu"
    assert resumed.num_updates == whole.num_updates
    losses = [run.run_history.get_latest_metric("eval_loss_epoch") for run in (whole, resumed)]
    assert losses[1] == pytest.approx(losses[0], rel=0.5)  # the two devices draw other dropout masks


# Labels


@pytest.mark.parametrize("wrong", [-1, 3])
def test_a_label_out_of_range_is_one_sentence_on_a_gpu(wrong: int) -> None:
    images, labels = tiny_data(16).tensors
    labels[5] = wrong
    trainer = make_trainer(TimmMixupTrainer, num_classes=3, ema_decay=0.1)
    with pytest.raises(RuntimeError, match=f"Expected labels to be from 0 to 2.*got {wrong} for image"):
        fit(trainer, TensorDataset(images, labels), num_epochs=1)


class WatchedEvaluation(TimmMixupTrainer):
    """Raises where anything waits for the device after the first batch of an evaluation."""

    def update_metrics(self, batch: Any, batch_output: dict[str, Any]) -> None:
        super().update_metrics(batch, batch_output)
        torch.cuda.set_sync_debug_mode("error")

    def record_evaluation_metrics(self) -> None:
        torch.cuda.set_sync_debug_mode("default")
        super().record_evaluation_metrics()


def test_no_batch_of_an_evaluation_waits_for_the_device() -> None:
    weights = torch.tensor([10.0, 1.0, 1.0], device=GPU)
    images, labels = tiny_data(16).tensors
    labels[3:6] = -100
    trainer = make_trainer(WatchedEvaluation, loss_func=nn.CrossEntropyLoss(weights), num_classes=3, ema_decay=0.1)
    fit(trainer, tiny_data(), TensorDataset(images, labels), num_epochs=1)
    assert trainer.run_history.get_latest_metric("eval_loss_epoch") > 0
