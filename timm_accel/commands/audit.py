"""The command ``audit``: find the faults of a dataset before a run."""

import timm

from timm_accel.audit import audit as audit_of
from timm_accel.audit import write_suspects
from timm_accel.commands.output.columns import print_text
from timm_accel.commands.output.files import check_out
from timm_accel.messages import printable
from timm_accel.models import check_model_name
from timm_accel.terminal import screen_width


def audit(
    data: str,
    *,
    model: str | None = None,
    pixel_range: tuple[float, float] | None = None,
    num_workers: int | None = None,
    predictions: str | None = None,
    suspects: str | None = None,
    out: str | None = None,
) -> int:
    """Read every file of a dataset once, and report its faults.

    These are unreadable files, duplicates and leaks between splits, faults of classes, sizes and colors. In a launch
    rank 0 does all of it.

    Args:
        data: A folder, a tar or a manifest, with splits or without.
        model: A name of timm.list_models(); the pixels are compared with the mean and std that it expects.
        pixel_range: The values that become black and white in images of more than 8 bits; None for the range of
            16 bits.
        num_workers: The worker processes; None for one for each CPU, 0 to read in this process.
        predictions: A .parquet file of predictions by models that were not trained on the images, such as
            out_of_fold.parquet of a cross-validation: images with a label that is likely wrong, that fit no class or
            that lie between two classes are listed too.
        suspects: Write these images into this .csv file, for the option exclude of train.
        out: Also write this .json file, with every group of duplicates.

    Returns:
        1 if a file could not be read, otherwise 0.
    """
    check_out(out, (".json",))
    check_out(suspects, (".csv",))
    if suspects is not None and predictions is None:
        raise ValueError(
            f"Expected predictions beside suspects, since they tell which images are suspect, but got {suspects!r} "
            "alone. Pass out_of_fold.parquet of train --folds 5."
        )
    config = None
    if model is not None:
        check_model_name(model)
        config = timm.get_pretrained_cfg(model).to_dict()
    found = audit_of(
        data,
        num_workers=num_workers,
        model_config=config,
        pixel_range=pixel_range,
        predictions=predictions,
    )
    print_text(printable(found.table(screen_width())))
    if out is not None:
        found.to_json(out)
    if suspects is not None:
        write_suspects(found.suspects, suspects)
    return int(bool(found.unreadable))
