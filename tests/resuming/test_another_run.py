"""A state of another run: what is refused, and what is warned of."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from refusal import contents, refused
from resumed_runs import Augmented, cut, make_run, states, train
from timm.optim import create_optimizer_v2
from tiny_runs import fit, make_trainer, tiny_data, tiny_model

from timm_accel import TimmMixupTrainer
from timm_accel.callbacks import SaveStateCallback
from timm_accel.states.manifest import signed


def test_a_state_of_another_run_is_refused_with_the_fields_that_differ(tmp_path: Path) -> None:
    train(make_run(tmp_path, recipe={"lr": 5e-3, "aug": {"name": "rand"}}), num_epochs=1)
    before = contents(tmp_path)

    def differs(words: tuple[str, ...], dataset: Any = None, **options: Any) -> None:
        settings = {"recipe": {"lr": 5e-3, "aug": {"name": "rand"}}} | options
        with refused(ValueError, "to be of this run, but got one of another run", *words, "new run in another folder"):
            train(make_run(tmp_path, **settings), train_dataset=dataset, num_epochs=2, resume_from="auto")
        assert contents(tmp_path) == before

    differs(("seed (42 in the state, 7 now)",), seed=7)
    differs(("recipe.aug.name ('rand' in the state, 'none' now)",), recipe={"lr": 5e-3, "aug": {"name": "none"}})
    model = tiny_model(batch_norm=False)
    differs(("tensors.1.weight ([4] in the state, None now)", "tensors.1.bias"), model=model)
    model = tiny_model(num_classes=4)
    differs(("tensors.5.weight[0] (3 in the state, 4 now)",), model=model, num_class=4)
    model = tiny_model()
    differs(("optimizer.kind", "'Lookahead'", "'SGD'"), model=model, optimizer=torch.optim.SGD(model.parameters(), 0.1))
    faster = create_optimizer_v2(model, "lookahead_adamw", lr=1.0, weight_decay=0.01)
    differs(("optimizer.lr (0.005 in the state, 1.0 now)",), model=model, optimizer=faster)


def test_a_state_with_other_classes_is_refused(tmp_path: Path) -> None:
    def named(names: list[str]) -> Any:
        data = tiny_data()
        data.classes = names
        return data

    fit(make_trainer(run_dir=tmp_path, callbacks=[SaveStateCallback]), named(["cat", "dog", "owl"]), num_epochs=1)
    with refused(ValueError, "classes[1] ('dog' in the state, 'owl' now)"):
        fit(make_trainer(run_dir=tmp_path), named(["cat", "owl", "dog"]), resume_from="auto")


def test_a_trainer_with_other_parts_is_refused(tmp_path: Path) -> None:
    fit(make_trainer(run_dir=tmp_path / "plain", callbacks=[SaveStateCallback]), num_epochs=1)
    with refused(ValueError, "state to hold ['ema_model', 'ema_progress']", "got []", "same trainer and options"):
        fit(make_trainer(TimmMixupTrainer, run_dir=tmp_path / "plain", ema_decay=0.1), resume_from="auto")
    trainer = make_trainer(TimmMixupTrainer, run_dir=tmp_path / "ema", ema_decay=0.1, callbacks=[SaveStateCallback])
    fit(trainer)
    with refused(ValueError, "trainer with ['ema_model', 'ema_progress']", "got []", "same trainer and options"):
        fit(make_trainer(run_dir=tmp_path / "ema"), resume_from="auto")


def test_another_batch_of_the_same_update_keeps_images_and_schedule(tmp_path: Path) -> None:
    data = {"train_dataset": Augmented(32), "num_epochs": 2}
    reference = train(make_run(tmp_path / "whole"), gradient_accumulation_steps=2, **data)
    resumed_dir = cut(tmp_path / "whole", 1, tmp_path / "cut")  # after 4 of 8 batches of 4 images
    with pytest.warns(UserWarning, match="batch_size 4 before, 8 now; accumulation 2 before, 1 now") as caught:
        resumed = train(make_run(resumed_dir), per_device_batch_size=8, resume_from="auto", **data)
    assert "Updates and schedule are still those of the global batch size 8" in str(caught[0].message)
    assert "images differs" not in str(caught[0].message)
    assert resumed.rates[0] == reference.rates[2]
    assert torch.equal(resumed.images[0], torch.cat(reference.images[4:6]))


def test_another_global_batch_size_continues_at_the_same_place_of_data_and_schedule(tmp_path: Path) -> None:
    data = {"train_dataset": Augmented(32), "num_epochs": 2}
    reference = train(make_run(tmp_path / "whole"), **data)  # 8 updates an epoch
    resumed_dir = cut(tmp_path / "whole", 4, tmp_path / "cut")  # after 20 of 32 images
    with pytest.warns(
        UserWarning, match="An update has 8 images instead of 4, at the same place in epoch and schedule"
    ):
        resumed = train(make_run(resumed_dir), per_device_batch_size=8, resume_from="auto", **data)
    assert torch.equal(resumed.images[0], torch.cat(reference.images[4:6]))  # down to whole updates: image 16
    assert resumed.rates[0] == train(make_run(tmp_path / "large"), per_device_batch_size=8, **data).rates[2]
    assert resumed.num_updates == 8


def test_other_data_are_warned_of(tmp_path: Path) -> None:
    train(make_run(tmp_path), num_epochs=1)
    with pytest.warns(UserWarning, match="images 30 before, 28 now.*so does the order of the images"):
        train(make_run(tmp_path), train_dataset=Augmented(28), num_epochs=2, resume_from="auto")


def test_other_versions_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(make_run(tmp_path), num_epochs=1)
    manifest = states(tmp_path)[-1] / "manifest.json"
    text = json.loads(manifest.read_text())
    text["versions"]["torch"] = "1.0"
    manifest.write_text(json.dumps(signed(text)))
    train(make_run(tmp_path), num_epochs=2, resume_from="auto")
    assert (
        f"Other versions may round differently: torch 1.0 before, {torch.__version__.split('+')[0]}"
        in capsys.readouterr().out
    )


def test_another_schedule_or_other_groups_are_refused(tmp_path: Path) -> None:
    def run(**options: Any) -> Any:
        model = tiny_model()
        optimizer = create_optimizer_v2(model, "adamw", lr=5e-3, weight_decay=options.pop("weight_decay", 0.01))
        return train(make_run(tmp_path, model=model, optimizer=optimizer, **options), num_epochs=2, resume_from="auto")

    run()
    with refused(ValueError, "the schedule of the state", "CosineLRScheduler, but got NoneType"):
        run(scheduler_args=None)
    with refused(ValueError, "optimizer.groups[1].weight_decay (0.01 in the state, 0.5 now)"):
        run(weight_decay=0.5)


def test_a_long_list_of_classes_is_cut_in_the_message(tmp_path: Path) -> None:
    def named(last: str) -> Any:
        data = tiny_data()
        data.classes = [*(f"class number {number}" for number in range(900)), last]
        return data

    fit(make_trainer(run_dir=tmp_path, callbacks=[SaveStateCallback]), named("a"), num_epochs=1)
    with refused(ValueError, "classes[900] ('a' in the state, 'b' now)"):
        fit(make_trainer(run_dir=tmp_path), named("b"), resume_from="auto")
    data = tiny_data()
    data.classes = ["one", "two"]
    with pytest.raises(ValueError, match="in the state") as caught:
        fit(make_trainer(run_dir=tmp_path), data, resume_from="auto")
    assert len(str(caught.value)) < 700
