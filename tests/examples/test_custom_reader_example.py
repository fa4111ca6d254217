"""The example of a custom reader."""

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image
from timm.data import ImageDataset
from tiny_runs import load_example

from timm_accel.data import class_names

pytest.importorskip("sklearn")
EXAMPLE = Path(__file__).parent.parent.parent / "examples" / "data" / "custom_reader.py"


@pytest.fixture(scope="module")
def example() -> ModuleType:
    return load_example(EXAMPLE)


def test_it_learns_in_one_epoch(example: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    trainer = example.main()
    assert trainer.run_history.get_latest_metric("accuracy") > 0.6  # 0.9 here, 0.1 by chance
    assert "epoch 1/1" in capsys.readouterr().out
    assert class_names(trainer.train_dataset) == list("0123456789")
    assert (len(trainer.train_dataset), len(trainer.eval_dataset)) == (1347, 450)


def test_its_reader_returns_what_was_written(example: ModuleType, tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    example.write_idx(tmp_path, "train", images, np.array([2, 0, 1, 2]))
    reader = example.IdxReader(tmp_path, "train")
    assert reader.class_to_idx == {"0": 0, "1": 1, "2": 2}
    assert reader.filenames() == ["train/0", "train/1", "train/2", "train/3"]
    for index, label in enumerate([2, 0, 1, 2]):
        file, target = reader[index]
        assert np.array_equal(np.asarray(Image.open(file)), images[index])
        assert target == label
    image, label = ImageDataset("", reader=reader)[3]
    assert np.array_equal(np.asarray(image)[..., 0], images[3])
    assert label == 2


def test_its_reader_reads_the_format_of_mnist(example: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(bytes([0, 0, 8, 3, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 1, 7, 9]))
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 1, 4]))
    file, label = example.IdxReader(tmp_path, "t10k")[0]
    assert np.asarray(Image.open(file)).tolist() == [[7], [9]]
    assert label == 4
    example.write_idx(tmp_path, "ours", np.array([[[7], [9]]]), np.array([4]))
    for what in ("images-idx3", "labels-idx1"):
        assert (tmp_path / f"ours-{what}-ubyte").read_bytes() == (tmp_path / f"t10k-{what}-ubyte").read_bytes()
