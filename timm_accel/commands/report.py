"""The command ``report``: a page about a run, or about several side by side."""

from timm_accel.commands.output.files import check_out, say_in_progress
from timm_accel.report import report as write_report
from timm_accel.terminal import print_fitted


def report(
    runs: list[str], *, data: str | None = None, batch_size: int = 64, num_workers: int = 0, out: str | None = None
) -> None:
    """Write a page about a run, or about several side by side, as one HTML file that opens offline.

    Of one run it shows curves, metrics, mistakes, training images, options, and how to load the model. Of several runs
    it shows curves and metrics, and the options in which they differ; of a cross-validation also suspect images. A run
    that is not finished is shown as far as it is.

    Args:
        runs: The folder of a run, of several, or of a cross-validation.
        data: The labeled images to evaluate on; None for those of the run.
        batch_size: Images at a time.
        num_workers: Loader processes.
        out: The file, .html; None for report.html in the folder of the run, or of the first run.
    """
    check_out(out, (".html",))
    path = write_report(runs, out, data=data, batch_size=batch_size, num_workers=num_workers)
    for run in runs:
        say_in_progress(run)
    print_fitted(f"Report: {path}")
