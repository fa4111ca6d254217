"""The page of a run, written by its trainer when the run ends."""

from typing import TYPE_CHECKING, Any

from timm_accel.callbacks import Callback
from timm_accel.distributed.consensus import Stop
from timm_accel.report.page import page_of
from timm_accel.report.writing import NAME, write_page, written_or_why_not

if TYPE_CHECKING:
    from timm_accel.training import LoopTrainer


class WriteReportCallback(Callback):
    """Write ``report.html`` into the run folder when a run is finished, and print where it is.

    The page is that of `report`. Rank 0 evaluates the best weights once, on the images that the trainer has open; the
    trainer itself keeps no probabilities of single images. The other ranks do not wait for the page. A page that
    cannot be written is one printed sentence. A run that failed or was interrupted gets none. Pass it after
    `SaveBestCallback` and `CsvHistoryCallback`, whose files it reads.

    Raises:
        ValueError: At the start, if the trainer has no ``run_dir``.
    """

    def on_init_end(self, trainer: "LoopTrainer", **kwargs: Any) -> None:
        if trainer.run_dir is None:
            raise ValueError(
                "Expected run_dir to be a folder, since WriteReportCallback writes a page there, but got None. Pass "
                "run_dir to the trainer."
            )

    def on_training_run_end(self, trainer: "LoopTrainer", **kwargs: Any) -> None:
        run = trainer.current_run()
        if not run.accelerator.is_main_process or run.agreed.stop in (Stop.FAILED, Stop.INTERRUPTED):
            return
        assert trainer.run_dir is not None
        folder, path = trainer.run_dir, trainer.run_dir / NAME

        def write() -> None:
            page = page_of(
                folder,
                trainer.eval_dataset,
                trainer.train_dataset,
                batch_size=trainer.run_config.train_per_device_batch_size,
                num_workers=getattr(run.eval_dataloader, "num_workers", 0),
            )
            write_page(path, page=page)

        trainer.print(written_or_why_not(path, write))
