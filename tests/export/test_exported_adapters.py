"""Files of a model with adapters: they hold the merged weights, and the model keeps training its adapters.

Merging rounds each weight once more, so no equal bits are expected. Float32 rounds the adapted model too, and its
float64 copy tells how much. A file may be ten times as far from that copy; the adapters change the outputs over ten
thousand times as much.
"""

from copy import deepcopy
from pathlib import Path

import pytest
import torch
from small_exports import EXPORTERS, run_file, with_statistics
from tiny_runs import differences, exact_and_rounding
from torch import nn

from timm_accel import create_classifier

pytest.importorskip("peft")


def adapted(name: str) -> nn.Module:
    """A model of 3 classes whose adapters have an effect, in training mode."""
    torch.manual_seed(0)
    model, _ = create_classifier(name, 3, image_size=64, lora=4)
    for path, parameter in model.named_parameters():
        if "lora_B" in path:
            nn.init.normal_(parameter, std=0.1)
    return with_statistics(model).train()


def images() -> torch.Tensor:
    return torch.randn(5, 3, 64, 64, generator=torch.Generator().manual_seed(5))


def after_an_update(model: nn.Module) -> dict[str, torch.Tensor]:
    """The weights after a step of SGD on all parameters that are trained."""
    optimizer = torch.optim.SGD([each for each in model.parameters() if each.requires_grad], lr=0.1)
    model(images()).square().sum().backward()
    optimizer.step()
    return model.state_dict()


@pytest.mark.parametrize("kind", EXPORTERS)
@pytest.mark.parametrize("name", ["test_vit", "test_resnet"])
def test_the_file_gives_what_the_adapted_model_gives_and_leaves_it_as_it_is(
    name: str, kind: str, tmp_path: Path
) -> None:
    model, (export, file_name) = adapted(name), EXPORTERS[kind]
    untouched = deepcopy(model)
    exact, rounding = exact_and_rounding(model, images())
    exported = export(model, tmp_path / file_name)
    found = run_file(exported.path, images())
    assert float((found - exact).abs().max()) <= 10 * rounding
    assert b"lora" not in exported.path.read_bytes()

    without = deepcopy(model)
    for path, parameter in without.named_parameters():
        if "lora_B" in path:
            nn.init.zeros_(parameter)
    assert float((found - exact_and_rounding(without, images())[0]).abs().max()) > 1e4 * rounding

    assert not differences(model.state_dict(), untouched.state_dict())
    assert all(
        module.training == each.training for module, each in zip(model.modules(), untouched.modules(), strict=True)
    )
    before = deepcopy(untouched.state_dict())
    expected = after_an_update(untouched)
    assert not differences(after_an_update(model), expected)
    changed = {path for path, tensor in expected.items() if not torch.equal(tensor, before[path])}
    assert changed == {path for path, each in model.named_parameters() if each.requires_grad}
    assert all(".lora_" in path or path.startswith(("head.", "fc.")) for path in changed)
