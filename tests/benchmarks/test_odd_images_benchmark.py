"""The benchmark of odd images sorts files by what becomes of them, and fails for what we alone refuse."""

import json
from pathlib import Path

import numpy as np
from forked import run
from PIL import Image

ROOT = Path(__file__).parents[2]


def outcomes(folder: Path, *options: str) -> tuple[int, dict[str, int], str]:
    out = folder.with_name("outcomes.json")
    result = run(["-m", "benchmarks", "odd_images", folder, "--out", out, *options], cwd=ROOT)
    rows = json.loads(out.read_text())["tables"][0]["rows"][:-1] if out.exists() else []
    return result.returncode, {words: count for words, count in rows if count}, result.stderr


def test_each_file_has_one_outcome(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(folder / "plain.png")
    Image.fromarray(pixels).save(folder / "turned.png", exif=exif)
    Image.fromarray(pixels[..., 0].astype(np.uint16) * 257).save(folder / "wide.png")
    Image.fromarray(pixels[..., 0].astype(np.float32)).save(folder / "float.tiff")
    Image.new("L", (1, 60000)).save(folder / "long.png")
    Image.fromarray(np.full((4, 4), np.nan, np.float32)).save(folder / "nan.tiff")
    (folder / "text.png").write_text("none")
    code, counts, _ = outcomes(folder)
    assert counts == {
        "pixels equal to timm's": 1,
        "turned by EXIF, otherwise equal": 1,
        "more than 8 bits: scaled by us, clipped by timm": 2,
        "refused by both": 1,
        "refused by us alone, for the bound on its size": 1,
        "refused by us alone, for pixels that are NaN or infinite": 1,
    }
    assert code == 0


def test_a_file_that_takes_too_long_is_named_and_no_table_is_written(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    Image.new("L", (8, 8)).save(folder / "slow.png")
    code, counts, errors = outcomes(folder, "--seconds", "0")
    assert (code, counts) == (1, {})
    assert errors.startswith("hung: slow.png")
