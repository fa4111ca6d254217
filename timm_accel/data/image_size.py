"""The size of a model's input, as everybody may give it."""


def height_and_width(image_size: int | tuple[int, int]) -> tuple[int, int]:
    """Return (height, width) in pixels from one number or both.

    Raises:
        ValueError: It is neither, or a side is below 1.
    """
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    if (
        not isinstance(size, tuple | list)
        or len(size) != 2
        or not all(isinstance(side, int) and side >= 1 for side in size)
    ):
        raise ValueError(
            f"Expected image_size to be a number of pixels of at least 1, or (height, width), but got {image_size!r}. "
            "Usual sizes are 128 to 384."
        )
    return size[0], size[1]
