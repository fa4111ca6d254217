"""Refuse a model whose outputs are NaN or infinite, before anything is made of them."""

from torch import Tensor


def check_finite(outputs: Tensor, source: str) -> None:
    """Raise an error unless all outputs of a model are finite.

    Args:
        outputs: ``(B, …)``.
        source: The weights that the model was loaded from, or the name of the model.

    Raises:
        ValueError: An output is NaN or infinite.
    """
    finite = outputs.detach().flatten(1).isfinite().all(dim=1)
    if not finite.all():
        raise ValueError(
            f"Expected the outputs of {source} to be finite, but got NaN or infinity for "
            f"{len(finite) - int(finite.sum())} of {len(finite)} images of a batch. Its weights are damaged or its "
            "training diverged: use other weights."
        )
