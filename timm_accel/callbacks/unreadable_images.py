"""Report unreadable images, and end the run if they are too many."""

from typing import Any

from accelerate.utils import gather_object

from timm_accel.callbacks.base import Callback
from timm_accel.callbacks.optional_files import OptionalFile
from timm_accel.messages import counted
from timm_accel.text_files import write_csv

FILE = "bad_images.csv"


def images_read(dataset: Any) -> str:
    """Return how many images of a dataset were read, such as "655 of 656 images"; "" where all were."""
    bad = len(getattr(dataset, "unreadable", ()))
    return f"{_num_images(dataset) - bad} of {_num_images(dataset)} images" if bad else ""


def _num_images(dataset: Any) -> int:
    return getattr(dataset, "num_samples", None) or len(dataset)  # a stream's length is that of a rank


class UnreadableImagesCallback(Callback):
    """Write ``bad_images.csv`` (path, error) into the run folder at the end of each epoch that met unreadable images.

    Works with datasets that count unreadable images, as ours do with ``on_error="skip"``: those that any loader worker
    of any rank met. The line of metrics tells how many images an evaluation counts. Above ``max_bad_fraction`` of the
    images, but at least 10, all ranks stop together with an error. An evaluation dataset with ``on_error="raise"`` is
    decoded once before the first epoch, and an unreadable image is an error then. A file that cannot be written is
    reported, and the run continues.

    Raises:
        OSError: At the start, if an image of such a dataset cannot be read.
    """

    def __init__(self) -> None:
        self._errors: dict[str, str] = {}
        self._file = OptionalFile()

    def on_training_run_start(self, trainer: Any, **kwargs: Any) -> None:
        self._errors = {}
        dataset = trainer.eval_dataset
        if getattr(dataset, "on_error", None) == "raise" and hasattr(dataset, "find_unreadable"):
            self._refuse_unreadable(trainer, dataset)

    def _refuse_unreadable(self, trainer: Any, dataset: Any) -> None:
        """Raise on all ranks if an image of the evaluation cannot be read: at its end an epoch would be lost."""
        run = trainer.current_run()
        workers = getattr(run.eval_dataloader, "num_workers", 0)
        found = dataset.find_unreadable(workers, run.accelerator.process_index, run.accelerator.num_processes)
        errors = [(dataset.filename(each, absolute=True), dataset.why_unreadable(each)) for each in found]
        if described := gather_object(errors):
            path, error = min(described)
            others = f", one of {len(described)}" if len(described) > 1 else ""
            raise OSError(
                f"Expected every file to be a readable image, but got {path!r} ({error}){others}. Repair or remove it, "
                "or pass on_error='skip'."
            )

    def on_evaluation_run_start(self, trainer: Any, **kwargs: Any) -> None:
        self._errors = {}

    def on_update_end(self, trainer: Any, **kwargs: Any) -> None:
        if trainer.current_run().num_updates % trainer.sync_every_n_updates == 0:
            numbers = getattr(trainer.train_dataset, "unreadable", [])
            if numbers:
                self._stop_if_too_many(trainer, trainer.train_dataset, numbers)

    def on_train_epoch_end(self, trainer: Any, **kwargs: Any) -> None:
        self._report(trainer, trainer.train_dataset)

    def on_eval_epoch_end(self, trainer: Any, is_intermediate: bool = False, **kwargs: Any) -> None:
        if not is_intermediate:
            self._report(trainer, trainer.eval_dataset)

    def _report(self, trainer: Any, dataset: Any) -> None:
        if (local := getattr(dataset, "unreadable", None)) is None:
            return
        numbers = sorted(set(gather_object(local)))  # of all ranks
        dataset.note_unreadable(numbers)
        if trainer.current_run().accelerator.is_main_process:
            self._list(trainer, dataset, numbers)
        self._stop_if_too_many(trainer, dataset, numbers)

    def _list(self, trainer: Any, dataset: Any, numbers: list[int]) -> None:
        paths = {dataset.filename(number, absolute=True): number for number in numbers}
        if not (new := [path for path in paths if path not in self._errors]):
            return
        self._errors |= {path: dataset.why_unreadable(paths[path]) for path in new}
        where = ""
        if trainer.run_dir is not None:
            with self._file.writing(trainer.print):
                write_csv(trainer.run_dir / FILE, [("path", "error"), *sorted(self._errors.items())])
                where = f"; all are listed in {str(trainer.run_dir / FILE)!r}"
        trainer.print(
            f"{counted(len(new), 'image')} could not be read and {'was' if len(new) == 1 else 'were'} skipped, such as "
            f"{new[0]!r}{where}."
        )

    def _stop_if_too_many(self, trainer: Any, dataset: Any, numbers: list[int]) -> None:
        if len(numbers) > dataset.max_unreadable:
            trainer.request_stop(
                f"Expected at most {dataset.max_unreadable} unreadable images among {_num_images(dataset)} "
                f"(max_bad_fraction={dataset.max_bad_fraction}), but got {len(numbers)}, such as "
                f"{dataset.filename(numbers[0], absolute=True)!r}. Repair or remove them.",
                failed=True,
            )
