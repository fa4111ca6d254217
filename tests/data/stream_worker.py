"""What each of two processes does in `test_streams.py`: read, train on, evaluate and resume streams."""

import sys
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import stream_sources
import torch
from accelerate import Accelerator, PartialState
from resumed_runs import Noting, cut, every_update, make_run, same_outcome, states, train
from tiny_runs import make_trainer, tiny_model
from torch import distributed

from timm_accel import create_datasets
from timm_accel.data import Source

ROOT, KINDS, RESULTS = Path(sys.argv[1]), sys.argv[2].split(","), {}
HALF = (0.5,) * 3


def datasets(kind: str, **options: Any) -> Any:
    """Images of (3, 8, 8); without options each comes out the same each time."""
    data = Source("tfds/tiny", root=ROOT / "tfds")
    if kind != "tfds":
        data = f"{'wds' if kind in ('gaps', 'one') else kind.split('_')[0]}/{ROOT / FOLDERS[kind]}"
    still = {"auto_augment": None, "color_jitter": None, "hflip": 0.0, "scale": (1, 1), "ratio": (1, 1)}
    return create_datasets(8, HALF, HALF, data=data, interpolation="bilinear", **(still | options))


WORKERS = {"wds": (0, 2), "hfids_images": (2,), "hfids_parquet": (0, 2), "tfds": (1,)}
FOLDERS = {"wds": "wds", "gaps": "gaps", "one": "one/wds", "hfids_images": "images", "hfids_parquet": "parquet"}


def check_sharing(kind: str, workers: int) -> None:
    """Each image goes to one process once."""
    train_set, val_set = datasets(kind)
    trainer, loader = make_trainer(Noting, tiny_model(), num_class=3, ema_decay=0.1), {"num_workers": workers}
    train(trainer, train_dataset=train_set, eval_dataset=None, num_epochs=2, train_dataloader_kwargs=loader)
    RESULTS[f"{kind}/{workers}"] = {
        "images": torch.cat(trainer.images),
        "updates": (trainer.num_updates, trainer.updates_per_epoch, len(trainer._train_dataloader)),
    }
    judge = make_trainer(Noting, tiny_model(), num_class=3, ema_decay=0.1)
    judge.evaluate(val_set, per_device_batch_size=2, dataloader_kwargs=loader)
    history = judge.run_history
    RESULTS[f"{kind}/{workers}"]["evaluated"] = judge.evaluated
    RESULTS[f"{kind}/{workers}"]["metrics"] = {
        name: history.get_latest_metric(name) for name in ("evaluation_loss", "accuracy")
    }


def check_resume(kind: str, after: int) -> None:
    """A run cut inside an epoch."""
    train_set, val_set = datasets(kind, auto_augment="rand-m7-mstd0.5-inc1", hflip=0.5)
    settings = {"train_dataset": train_set, "eval_dataset": val_set, "num_epochs": 2}
    settings["train_dataloader_kwargs"] = {"num_workers": 2, "persistent_workers": True}
    whole, target = ROOT / f"whole_{kind}", ROOT / f"cut_{kind}"
    train(make_run(whole, callbacks=[every_update()]), **settings)
    unreadable = len(train_set.unreadable)
    if PartialState().is_main_process:
        cut(whole, after, target)
    distributed.barrier()
    train(make_run(target, callbacks=[every_update()]), resume_from="auto", **settings)
    RESULTS[f"resumed/{kind}"] = (states(whole)[after].name, same_outcome(whole, target), unreadable)


def check_refusals() -> None:
    """What would starve a worker, or give each process the same."""
    for kind, workers in (("one", 2), ("tfds", 0)):
        if kind != "tfds" or kind in KINDS:
            try:
                check_sharing(kind, workers)
            except ValueError as error:
                RESULTS[f"refused/{kind}"] = str(error)


def main() -> None:
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", message="The training images are a stream")
    warnings.filterwarnings("ignore", message="unclosed file", category=ResourceWarning)
    torch.set_num_threads(1)
    Accelerator()
    if PartialState().is_main_process:
        for name in KINDS:
            getattr(stream_sources, name)(ROOT)
        stream_sources.wds_with_gaps(ROOT)
        stream_sources.wds(ROOT / "one", shards=1)
    distributed.barrier()
    for name in KINDS:
        for count in WORKERS[name]:
            check_sharing(name, count)
    check_resume("wds", 0)
    check_resume("gaps", 4)
    check_refusals()
    torch.save(RESULTS, ROOT / f"results_{PartialState().process_index}.pt")
    Accelerator().end_training()
