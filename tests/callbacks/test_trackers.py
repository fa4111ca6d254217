"""Trackers get every point of a run once, whatever interrupts it."""

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from forked import run
from ranks import on_ranks
from refusal import refused
from small_disks import fill, small_disk
from tiny_runs import fit, make_trainer, tiny_data, tiny_model
from torch import nn

from timm_accel import Recipe
from timm_accel.callbacks import SaveStateCallback, TrackerCallback, check_trackers
from timm_accel.callbacks.tracking import services
from timm_accel.callbacks.tracking.journal import Journal, Point
from timm_accel.recipes import build_run
from timm_accel.states.speed import COLUMNS

accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
WORKER = Path(__file__).parent / "tracker_worker.py"
KILLS = ["add:1:before", "log:3:before", "log:4:after", "add:3:within", "state:3:after", "log:4:before", "add:1:after"]


def scalars(run_dir: Path, folder: str = "tensorboard") -> dict[str, list[tuple[int, float]]]:
    events = accumulator.EventAccumulator(str(run_dir / folder), size_guidance={"scalars": 0}).Reload()
    tags = events.Tags()["scalars"]  # files of one second are read in the order of their names, 10 before 9
    return {tag: sorted((each.step, each.value) for each in events.Scalars(tag)) for tag in tags}


def environment(folder: Path) -> dict[str, str]:
    path = os.pathsep.join([str(WORKER.parents[2]), str(WORKER.parents[1])])
    offline = {"HF_HUB_OFFLINE": "1", "TRACKIO_DIR": str(folder / "trackio"), "OMP_NUM_THREADS": "1"}
    return os.environ | offline | {"PYTHONPATH": path}


def track(run_dir: Path, *callbacks: Any, data: Any = None, **options: Any) -> Any:
    resume, num_epochs = options.pop("resume_from", None), options.pop("num_epochs", 2)
    chosen = {"sync_every_n_updates": 2} | options
    trainer = make_trainer(callbacks=[*callbacks, TrackerCallback("tensorboard")], run_dir=run_dir, **chosen)
    return fit(trainer, tiny_data(20) if data is None else data, num_epochs=num_epochs, resume_from=resume)


@pytest.fixture
def runs(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "trackio").mkdir()
    done = run([WORKER, tmp_path, *KILLS], env=environment(tmp_path))
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def without_speed(points: Any) -> Any:
    """Points without the values of times, which differ between runs; their names and steps stay."""
    if not isinstance(points, list):
        return points
    return [[name, step, None if name in COLUMNS else value] for name, step, value in points]


def test_a_run_killed_seven_times_has_every_point_once(runs: dict[str, Any]) -> None:
    whole, killed = runs["whole"], runs["killed"]
    for tracker in {"tensorboard", "trackio"} & whole.keys():
        assert [step for name, step, _ in whole[tracker] if name == "train_loss"] == [*range(2, 21, 2)]
        assert [step for name, step, _ in whole[tracker] if name == "ema_model_accuracy"] == [5, 10, 15, 20]
        assert [step for name, step, _ in whole[tracker] if name == "best_accuracy"] == [20]
    # no point twice, none missing, the same values and options
    assert {name: without_speed(value) for name, value in killed.items()} == {
        name: without_speed(value) for name, value in whole.items()
    }
    if "trackio" in whole:  # each resume continued the same run
        assert [name.rpartition("-")[0] for name in runs["trackio_runs"]] == ["whole", "killed"]


def test_the_loss_of_a_point_is_the_mean_since_the_one_before(tmp_path: Path) -> None:
    losses: list[float] = []

    class Remembering(nn.CrossEntropyLoss):
        def forward(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            loss = super().forward(outputs, targets)
            losses.append(loss.item())
            return loss

    track(tmp_path, loss_func=Remembering(reduction="mean"), data=tiny_data(18))  # batches of 4, 4, 4, 4, 2 images
    found = dict(scalars(tmp_path)["train_loss"])
    assert found == {
        step: pytest.approx(value, rel=1e-6)
        for step, value in {
            2: (losses[0] + losses[1]) / 2,
            4: (losses[2] + losses[3]) / 2,
            6: losses[5],  # the epoch ended after update 5
            8: (losses[6] + losses[7]) / 2,
            10: (4 * losses[8] + 2 * losses[9]) / 6,
        }.items()
    }


def test_groups_with_other_learning_rates_have_their_own_curve(tmp_path: Path) -> None:
    model = tiny_model()
    first, second, third = [[*model[number].parameters()] for number in (0, 1, 5)]
    groups = [{"params": first}, {"params": second}, {"params": third, "lr": 0.5}]
    track(tmp_path, model=model, optimizer=torch.optim.SGD(groups, lr=0.1))
    found = scalars(tmp_path)
    assert {name: {round(value, 6) for _, value in found[name]} for name in found if name.startswith("lr")} == {
        "lr": {0.1},
        "lr_group_2": {0.5},
    }


def test_weights_are_bit_equal_without_trackers(tmp_path: Path) -> None:
    tracked = track(tmp_path)
    plain = fit(make_trainer(sync_every_n_updates=2), tiny_data(20))
    assert all(map(torch.equal, tracked.model.state_dict().values(), plain.model.state_dict().values()))


def test_a_run_that_begins_again_with_other_options_is_another_run_there(tmp_path: Path) -> None:
    class FailsLate(SaveStateCallback):
        def on_update_end(self, trainer: Any, **kwargs: Any) -> None:
            if trainer.num_updates == 3 and trainer.seed == 1:
                raise OSError("a cable")

    with pytest.raises(OSError, match="a cable"):
        track(tmp_path, FailsLate(), seed=1, resume_from="auto")
    track(tmp_path, FailsLate(), seed=2, resume_from="auto")
    assert [step for step, _ in scalars(tmp_path)["train_loss"]] == [2]
    assert [step for step, _ in scalars(tmp_path, "tensorboard_2")["train_loss"]] == [2, 4, 6, 8, 10]


def test_an_error_closes_the_trackers(tmp_path: Path) -> None:
    closed: list[str] = []

    class Failing(SaveStateCallback):
        def on_update_end(self, trainer: Any, **kwargs: Any) -> None:
            for service in tracking._services:
                writer = service._tracker.writer
                writer.close = lambda close=writer.close: (closed.append("tensorboard"), close())
            raise OSError("a cable")

    tracking = TrackerCallback("tensorboard")
    trainer = make_trainer(callbacks=[Failing(), tracking], run_dir=tmp_path)
    with pytest.raises(OSError, match="a cable"):
        fit(trainer)
    assert closed == ["tensorboard"]


def test_a_finished_run_that_resumes_longer_continues_the_curve(tmp_path: Path) -> None:
    track(tmp_path, SaveStateCallback())
    track(tmp_path, SaveStateCallback(), num_epochs=3, resume_from="auto")
    found = scalars(tmp_path)
    assert [step for step, _ in found["train_loss"]] == [*range(2, 15, 2)]
    assert found["epoch"] == [(5, 1), (10, 2), (15, 3)]


def test_a_tracker_that_fails_is_reported_once_and_gets_the_rest_when_the_run_resumes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = services.LOGGER_TYPE_TO_CLASS["tensorboard"].log, [0]

    def failing(self: Any, values: dict[str, Any], step: int | None = None, **kwargs: Any) -> None:
        calls[0] += 1
        if calls[0] == 4:  # after the options and two points
            raise ConnectionError("the network is down")
        real(self, values, step=step, **kwargs)

    monkeypatch.setattr(services.LOGGER_TYPE_TO_CLASS["tensorboard"], "log", failing)
    track(tmp_path, SaveStateCallback())
    said = capsys.readouterr().out
    assert said.count("The tracker 'tensorboard' failed (the network is down). The run continues without it;") == 1
    assert calls[0] == 4
    assert [step for step, _ in scalars(tmp_path)["train_loss"]] == [2, 4]
    track(tmp_path, SaveStateCallback(), resume_from="auto")  # is finished already
    found = scalars(tmp_path)
    assert [step for step, _ in found["train_loss"]] == [2, 4, 6, 8, 10]
    assert found["epoch"] == [(5, 1), (10, 2)]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # of tensorboard's writer
def test_a_run_on_a_full_disk_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Fill(SaveStateCallback):
        def on_init_end(self, trainer: Any, **kwargs: Any) -> None:
            """Keep no states."""

        def on_update_end(self, trainer: Any, **kwargs: Any) -> None:
            if trainer.num_updates == 3:
                fill(trainer.run_dir)

        on_training_run_epoch_end = on_training_run_end = on_init_end

    with small_disk(tmp_path / "disk", size="1m") as disk:
        trainer = track(disk, Fill(), sync_every_n_updates=1, num_epochs=30)
        assert trainer.num_updates == 150
    said = capsys.readouterr().out
    assert said.count("The tracker 'tensorboard' failed") == 1
    assert 1 <= said.count("The run continues without this file.") < 10  # again only after a write that worked


def test_a_journal_has_what_was_written_completely_and_nothing_else(tmp_path: Path) -> None:
    path, said = tmp_path / "trackers.jsonl", list[str]()
    journal = Journal(path, said.append)
    journal.begin({"name": "one"})
    points = [Point(0, step, 0, {"loss": float(step)}) for step in (2, 4, 6)]
    journal.add(points[0])
    with open(path, "ab") as file:
        file.write(b'{"epoch": 9, "step": 9, "order": 0, "values": {"loss": 9.0, "a part of a line": 9.0, "and more"')
    journal.add(points[1])
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()[1:]] == [2, 4]
    assert journal.has(points[1].moment)
    assert not journal.has(points[2].moment)
    journal.note_failure("wandb", 4)
    with open(path, "ab") as file:
        file.write(json.dumps(asdict(points[2])).encode())  # a killed process: the end of the line is missing
    again = Journal(path, said.append)
    assert again.points == points[:2]
    assert again.failed == {"wandb": 4}
    again.rewrite(again.about | {"ids": {}})
    third = Journal(path, said.append)
    assert (third.about, third.points, third.failed) == ({"name": "one", "ids": {}}, points[:2], {"wandb": 4})
    third.begin({"name": "two"})
    fourth = Journal(path, said.append)
    assert (fourth.about, fourth.points, fourth.failed) == ({"name": "two"}, [], {})
    assert said == []


def test_points_that_could_not_be_written_are_written_with_the_next(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    journal = Journal(tmp_path / "run" / "trackers.jsonl", (said := list[str]()).append)
    journal.begin({"name": "one"})
    (tmp_path / "run").rename(tmp_path / "away")
    points = [Point(0, step, 0, {"loss": 1.0}) for step in (2, 4, 6)]
    journal.add(points[0])
    journal.add(points[1])
    (tmp_path / "away").rename(tmp_path / "run")
    journal.add(points[2])
    assert Journal(journal.path, said.append).points == points
    assert len(said) == 1


def test_two_processes_log_once(tmp_path: Path) -> None:
    (tmp_path / "trackio").mkdir()
    done = run(on_ranks([2], WORKER, tmp_path), env=environment(tmp_path) | {"ACCELERATE_USE_CPU": "true"})
    assert done.returncode == 0, done.stderr[-3000:]
    runs = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))
    whole = runs["whole"]
    for tracker in {"tensorboard", "trackio"} & whole.keys():
        assert [step for name, step, _ in whole[tracker] if name == "train_loss"] == [2, 4, 6, 8]
        assert [step for name, step, _ in whole[tracker] if name == "epoch"] == [2, 4, 6, 8]
    assert len(runs["trackio_runs"]) == ("trackio" in whole)


def test_names_and_arguments_that_are_wrong_are_refused(tmp_path: Path) -> None:
    with refused(ValueError, "Expected trackers to be names that accelerate knows, but got 'tensorbord'"):
        TrackerCallback(["tensorboard", "tensorbord"])
    with refused(ValueError, "Did you mean 'wandb' or 'swanlab'?"):
        check_trackers("wandb2")
    with refused(ValueError, "Expected trackers to hold a name, but got none."):
        check_trackers([])
    with refused(
        ValueError, "Expected init_kwargs to be of the trackers, but got 'wandb'. Known names: 'tensorboard'."
    ):
        TrackerCallback("tensorboard", init_kwargs={"wandb": {}})
    with refused(ValueError, "Expected TrackerCallback to have a folder, but got no run_dir of the trainer."):
        make_trainer(callbacks=[TrackerCallback("tensorboard")])
    broken = TrackerCallback("tensorboard", init_kwargs={"tensorboard": {"length": 1}})
    with refused(RuntimeError, "Expected the tracker 'tensorboard' to start, but got TypeError"):
        fit(make_trainer(callbacks=[broken], run_dir=tmp_path))
    with refused(FileExistsError, "Expected run_dir to hold no run yet"):
        track(tmp_path)


@pytest.mark.parametrize("name", ["comet_ml", "clearml"])
def test_a_missing_package_is_named_before_the_data_are_read(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(services, "get_available_trackers", lambda: [])
    recipe = Recipe(trackers=(name,), run_dir=str(tmp_path / "run"), data_dir="nowhere")
    with refused(ModuleNotFoundError, f"Run pip install {name.replace('_', '-')}."):
        build_run(recipe)
    assert not (tmp_path / "run").exists()


def test_points_that_are_read_late_are_those_of_their_updates(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    track(tmp_path / "cpu", SaveStateCallback())
    request.getfixturevalue("late")
    track(tmp_path / "late", SaveStateCallback())
    points = [
        [asdict(each) for each in Journal(tmp_path / name / "trackers.jsonl", print).points if "lr" in each.values]
        for name in ("cpu", "late")
    ]
    assert [point["step"] for point in points[0]] == [2, 4, 6, 8, 10]
    assert points[0] == points[1]
