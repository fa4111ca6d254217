"""submitit: a job in python that saves a state before its time limit and queues again until the run is done.

    pip install submitit
    python examples/slurm/submitit_train.py --data_dir photos --run_dir runs/photos --ranks 4 --use_gpu true

Where there is no SLURM, submitit starts the job on this machine. No environment variable is set by hand: submitit tells
torch the rank of each task. Without --data_dir it trains on small images of handwritten digits.
"""

import os
import signal
from typing import Any

import submitit
from submitit.helpers import Checkpointable, TorchDistributedEnvironment

from timm_accel.commands.parsing.script import read_options
from timm_accel.messages import one_sentence
from timm_accel.recipes import Recipe, build_run, named_recipe


class Train(Checkpointable):
    """One task of the job, which is one rank of the run."""

    def __call__(self, options: dict[str, Any], use_gpu: bool) -> None:
        """Train; on submitit's signal the run saves a state first, and then submitit queues the job again."""
        TorchDistributedEnvironment().export(set_cuda_visible_devices=False)
        os.environ["ACCELERATE_USE_CPU"] = str(not use_gpu)
        warning = submitit.JobEnvironment()._usr_sig()
        queue_again = signal.signal(warning, signal.SIG_DFL)  # a handler that stays would end the run without a state
        recipe = Recipe(**options) if "data_dir" in options else named_recipe("demo").recipe(**options)
        try:
            build_run(recipe).train()
        except SystemExit as ended:
            if ended.code == 75:
                queue_again(warning, None)
            raise


def main(
    data_dir: str | None = None,
    run_dir: str = "runs/submitit",
    model: str = "resnet10t",
    num_epochs: int = 8,
    hosts: int = 1,
    ranks: int = 1,
    use_gpu: bool = False,
    minutes: int = 1440,
    cluster: str | None = None,
) -> submitit.Job:
    """Submit the job, and return it.

    Args:
        data_dir: A folder with train/CLASS/ and val/CLASS/; None for the digits.
        run_dir: A folder for weights, states, history and submitit's files, which every host sees.
        model: A name of timm.list_models().
        num_epochs: Passes over the training images.
        hosts: Hosts of the job.
        ranks: Tasks on each host, one for each GPU.
        use_gpu: Whether each task has a GPU.
        minutes: The time limit of the job; the run is warned 2 minutes before.
        cluster: slurm, or local for this machine; None for slurm where it is installed.
    """
    executor = submitit.AutoExecutor(f"{run_dir}/submitit", cluster=cluster, slurm_max_num_timeout=100)
    executor.update_parameters(
        nodes=hosts,
        tasks_per_node=ranks,
        gpus_per_node=ranks if use_gpu else 0,
        timeout_min=minutes,
        slurm_signal_delay_s=120,
    )
    options = {"run_dir": run_dir, "model": model, "num_epochs": num_epochs, "resume": "auto"}
    return executor.submit(Train(), options if data_dir is None else options | {"data_dir": data_dir}, use_gpu)


if __name__ == "__main__":
    with one_sentence("submitit_train.py"):
        job = main(**read_options(main))
        print(f"Submitted job {job.job_id}; its output is in {job.paths.stdout}")
