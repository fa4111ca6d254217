"""Parquet files, by an optional package."""

from typing import Any


def open_parquet() -> Any:
    """Return pyarrow with its module ``parquet``.

    Raises:
        ModuleNotFoundError: The extra ``parquet`` is not installed.
    """
    try:
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"Expected the extra 'parquet' to be installed for .parquet files, but {error.name!r} is missing. "
            'Run pip install "timm_accel[parquet]".',
            name=error.name,
        ) from error
    return pyarrow
