"""The benchmark of odd images sorts files by what becomes of them, and fails for what we alone refuse."""

from pathlib import Path

import numpy as np
from forked import run
from PIL import Image

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "odd_images.py"


def outcomes(folder: Path) -> tuple[int, dict[str, int]]:
    result = run([SCRIPT, folder])
    rows = [line.strip("| ").split(" | ") for line in result.stdout.splitlines() if line.startswith("| ")]
    return result.returncode, {words: int(count) for words, count in rows[1:] if count != "0"}


def test_each_file_has_one_outcome(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "plain.png")
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    Image.fromarray(pixels[..., 0].astype(np.uint16) * 257).save(tmp_path / "wide.png")
    Image.fromarray(pixels[..., 0].astype(np.float32)).save(tmp_path / "float.tiff")
    Image.new("L", (1, 60000)).save(tmp_path / "long.png")
    Image.fromarray(np.full((4, 4), np.nan, np.float32)).save(tmp_path / "nan.tiff")
    (tmp_path / "text.png").write_text("none")
    code, counts = outcomes(tmp_path)
    assert counts == {
        "pixels equal to timm's": 1,
        "turned by EXIF, otherwise equal": 1,
        "more than 8 bits: scaled by us, clipped by timm": 2,
        "refused by both": 1,
        "refused by us alone, for the bound on its size": 1,
        "refused by us alone, for pixels that are NaN or infinite": 1,
    }
    assert code == 0
