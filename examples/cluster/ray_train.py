"""Ray Train: its workers are the ranks of one run, and each epoch reports metrics and the newest state.

    pip install "ray[train]"
    python examples/cluster/ray_train.py --data_dir /shared/photos --run_dir /shared/runs/1 --ranks 8 --use_gpu true

It joins the Ray cluster of the machine; without one it starts Ray there. Every host must see both folders. Where a
worker fails, Ray starts all again, and they resume. Without --data_dir it trains on small images of digits.
"""

import os
from functools import partial
from pathlib import Path
from typing import Any

from ray.train import Checkpoint, FailureConfig, Result, RunConfig, ScalingConfig, report
from ray.train.torch import TorchTrainer

from timm_accel.callbacks import Callback
from timm_accel.commands.parsing.script import read_options
from timm_accel.messages import one_sentence
from timm_accel.recipes import Recipe, build_run, named_recipe
from timm_accel.states.folder import state_folders


class ReportToRay(Callback):
    """Report each epoch's metrics, and with rank 0 the newest state on the disk, which Ray copies to its storage.

    A state is written in the background. So the newest may be that of the epoch before.
    """

    def on_training_run_epoch_end(self, trainer: Any, **kwargs: Any) -> None:
        history = trainer.run_history
        metrics = {name: history.get_latest_metric(name) for name in history.get_metric_names()}
        states = state_folders(trainer.run_dir / "state") if trainer.accelerator.is_main_process else []
        report(metrics, checkpoint=Checkpoint.from_directory(states[0]) if states else None)


def train_rank(options: dict[str, Any], use_gpu: bool) -> None:
    """Train on one worker of Ray, which has told torch its rank."""
    os.environ["ACCELERATE_USE_CPU"] = str(not use_gpu)
    recipe = Recipe(**options) if "data_dir" in options else named_recipe("demo").recipe(**options)
    build_run(recipe, [ReportToRay]).train()


def main(
    data_dir: str | None = None,
    run_dir: str = "runs/ray",
    model: str = "resnet10t",
    num_epochs: int = 8,
    ranks: int = 2,
    use_gpu: bool = False,
) -> Result:
    """Train, and return Ray's result.

    Args:
        data_dir: A folder with train/CLASS/ and val/CLASS/; None for the digits.
        run_dir: A folder for weights, states and history; Ray's own files are in `ray` below it.
        model: A name of timm.list_models().
        num_epochs: Passes over the training images.
        ranks: Workers of Ray, one for each GPU.
        use_gpu: Whether each worker has a GPU.
    """
    folder = Path(run_dir).resolve()
    options = {"run_dir": str(folder), "model": model, "num_epochs": num_epochs, "resume": "auto"}
    if data_dir is not None:
        options["data_dir"] = str(Path(data_dir).resolve())
    trainer = TorchTrainer(
        partial(train_rank, options, use_gpu),
        scaling_config=ScalingConfig(num_workers=ranks, use_gpu=use_gpu),
        run_config=RunConfig(name="ray", storage_path=str(folder), failure_config=FailureConfig(max_failures=3)),
    )
    return trainer.fit()


if __name__ == "__main__":
    with one_sentence("ray_train.py"):
        result = main(**read_options(main))
        if "accuracy" not in (result.metrics or {}):
            print("Nothing was left to train.")
        else:
            state = "no state yet" if result.checkpoint is None else f"last state in {result.checkpoint.path}"
            print(f"accuracy {result.metrics['accuracy']:.4f}, {state}")
