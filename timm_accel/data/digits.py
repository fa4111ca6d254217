"""A small dataset of real images for a first run: the handwritten digits of scikit-learn."""

from pathlib import Path

from platformdirs import user_cache_dir

from timm_accel.atomic import atomic_write


def write_digits(folder: str | Path | None = None) -> Path:
    """Write scikit-learn's 1,797 handwritten digits as an image folder, once, and return its path.

    ``train/<class>/`` and ``val/<class>/`` hold PNG files of 8 by 8 gray pixels, split 75 to 25 within each class,
    always in the same way. The folder is written atomically.

    Args:
        folder: Where to write; None for the user's cache directory.

    Source: ``sklearn.datasets.load_digits`` (UCI ML hand-written digits, E. Alpaydin and C. Kaynak, 1998).
    """
    target = Path(folder) if folder is not None else Path(user_cache_dir("timm_accel")) / "digits"
    if target.is_dir():
        return target
    from PIL import Image
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    numbers = list(range(len(digits.target)))
    train, _ = train_test_split(numbers, train_size=0.75, stratify=digits.target, random_state=0)
    split = dict.fromkeys(numbers, "val") | dict.fromkeys(train, "train")
    try:
        with atomic_write(target, shared=True, flush=False) as unfinished:
            for number, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
                path = unfinished / split[number] / str(label) / f"{number:04d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray((pixels * 255 / 16).round().astype("uint8")).save(path)
    except OSError:
        if not target.is_dir():  # otherwise another process was faster
            raise
    return target
