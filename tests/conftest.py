"""Small real data and models for the whole suite."""

import gc
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from PIL import Image
from screens import Screen

_CACHE = tempfile.TemporaryDirectory()
os.environ["XDG_CACHE_HOME"] = _CACHE.name  # the user's own cache stays as it is

os.environ.setdefault("ACCELERATE_USE_CPU", "true")  # values are worked out on the CPU; see `_device` for the others
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # deterministic algorithms on a GPU ask for it
torch.backends.cudnn.allow_tf32 = False  # float32 on a GPU is compared with float32 on the CPU

torch.set_num_threads(1)  # two threads that wait for each other are slower than one on small tensors

# The files that take longest, which are begun first: at the end no worker waits long for the other.
LONG = [
    "test_pages",
    "test_training_command",
    "test_export_example",
    "test_kill",
    "test_processes",
    "test_resume",
    "test_exporting",
    "test_model_families",
    "test_more_examples",
    "test_tamper",
    "test_recipes",
    "test_forms_of_data",
    "test_dry_run",
    "test_two_processes",
    "test_exported_files",
]


def pytest_configure(config: pytest.Config) -> None:
    """Wait for no disk: what a test writes need not outlive the machine. Launched programs do wait."""
    os.fsync = lambda descriptor: None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))


def spare_what_is_left() -> None:
    """Spare what imports and caches hold from the `gc.collect()` of each `Accelerator.prepare`, which takes 0.2 s."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def _spared() -> None:
    """Spare what earlier files left: after an export to ONNX, four short runs took 0.7 s instead of 0.1 s."""
    spare_what_is_left()


@pytest.fixture(autouse=True)
def _seeded(request: pytest.FixtureRequest) -> None:
    if request.node.get_closest_marker("gpu") is None:
        torch.default_generator.manual_seed(0)  # `torch.manual_seed` notes tracebacks for a GPU that may come (3 ms)
    else:
        torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Train on the GPU in tests marked `gpu`, each with a new state of accelerate: a process has only one."""
    if request.node.get_closest_marker("gpu") is None:
        yield
        return
    monkeypatch.setenv("ACCELERATE_USE_CPU", "false")
    _forget_accelerate()
    yield
    _forget_accelerate()


def _forget_accelerate() -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.fixture
def deterministic(request: pytest.FixtureRequest) -> Iterator[None]:
    """Let two runs on a GPU have the same bits; on the CPU they have so."""
    torch.use_deterministic_algorithms(request.node.get_closest_marker("gpu") is not None)
    yield
    torch.use_deterministic_algorithms(False)


def write_images(root: Path, counts: dict[str, int], size: int = 16) -> Path:
    """Write PNG files whose strongest color tells their class: ``root/<class>/<number>.png``."""
    random = np.random.default_rng(0)
    for label, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            pixels = random.integers(0, 100, (size, size, 3))
            pixels[..., label % 3] += 150
            Image.fromarray(pixels.astype("uint8")).save(root / name / f"{number:03d}.png")
    return root


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """A folder with ``train`` (3 classes, 19 images) and ``val`` (3 classes, 9 images)."""
    write_images(tmp_path / "data" / "train", {"cat": 7, "dog": 6, "owl": 6})
    write_images(tmp_path / "data" / "val", {"cat": 3, "dog": 3, "owl": 3})
    return tmp_path / "data"


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Screen:
    """A terminal for the commands."""
    return Screen(monkeypatch, capsys)


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read values of the device one sync point late, as on a GPU."""
    from tiny_runs import as_on_a_gpu

    from timm_accel.states.late_reads import LateReads

    monkeypatch.setattr("timm_accel.training.run.LateReads", lambda: LateReads(as_on_a_gpu))
