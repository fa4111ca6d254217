"""The result of an evaluation, as a table and as JSON."""

from dataclasses import asdict, dataclass, field
from pathlib import Path

from timm_accel.messages import counted, html_block, html_lines, html_table
from timm_accel.text_files import escaped, write_json


@dataclass(frozen=True)
class ClassMeasures:
    """The measures of one class; a measure is 0 where its denominator is 0.

    Args:
        name: The class.
        precision: The share of the images predicted as this class that belong to it.
        recall: The share of its images that are predicted as this class.
        f1: The harmonic mean of precision and recall.
        support: The number of its images.
    """

    name: str
    precision: float
    recall: float
    f1: float
    support: int


@dataclass(frozen=True)
class Confusion:
    """A pair of classes that are confused.

    Args:
        label: The true class.
        prediction: The predicted class.
        count: The number of images.
    """

    label: str
    prediction: str
    count: int


@dataclass(frozen=True)
class Evaluation:
    """The measures of a classifier on labeled images; ``print`` shows them as a short table.

    Args:
        metrics: ``accuracy``, with more than five classes ``accuracy_top5``, ``f1_macro``, ``calibration_error`` (the
            expected one, of 15 bins) and ``negative_log_likelihood``; for multi-label models ``map``,
            ``f1_macro``, ``exact_match`` and ``negative_log_likelihood`` (the mean over images and classes).
        classes: The measures of each class, in the order of the model.
        confusion_matrix: Counts, with a row for each true class and a column for each prediction; None for multi-label
            models and for more than 1,000 classes, where it would be too large.
        most_confused: Pairs of classes, the most frequent first.
        num_images: The number of evaluated images.
        unreadable: The files that could not be read, and were left out.
        temperature: The divisor of the logits.
        tta: The test-time augmentation.
        missing_classes: The model's classes that the data do not have.
    """

    metrics: dict[str, float]
    classes: list[ClassMeasures]
    confusion_matrix: list[list[int]] | None
    most_confused: list[Confusion]
    num_images: int
    unreadable: list[str]
    temperature: float
    tta: tuple[str, ...]
    missing_classes: list[str] = field(default_factory=list)

    @property
    def class_names(self) -> list[str]:
        """The names of the classes in the order of the model."""
        return [each.name for each in self.classes]

    def to_json(self, path: str | Path) -> None:
        """Write the evaluation to a file, atomically.

        Raises:
            OSError: Nothing can be written there.
        """
        write_json(path, asdict(self))

    def __str__(self) -> str:
        lines = [*self._summary(), *(f"{name:<24}{value}" for name, value in self._metric_rows())]
        width = max(5, *(len(name) for name in self.class_names)) + 2
        lines.append("")
        for name, precision, recall, f1, support in self._class_rows():
            lines.append(f"{name:<{width}}{precision:>9}{recall:>8}{f1:>8}{support:>9}")
        return escaped("\n".join([*lines, *([""] if self.most_confused else []), *self._confused()]))

    def _repr_html_(self) -> str:
        """Return the same for a notebook."""
        above, below = (html_lines("p", lines) for lines in (self._summary(), self._confused()))
        return html_block(above, html_table(self._metric_rows(), heads=0), html_table(self._class_rows()), below)

    def _summary(self) -> list[str]:
        found = self.num_images + len(self.unreadable)
        read = f"{self.num_images} of " if self.unreadable else ""
        lines = [f"{read}{counted(found, 'image')} of {counted(len(self.classes), 'class')}"]
        if self.missing_classes:
            lines.append(
                f"{len(self.missing_classes)} of these classes are not in the data: "
                f"{', '.join(self.missing_classes[:5])}{', …' if len(self.missing_classes) > 5 else ''}"
            )
        if self.unreadable:
            lines.append(f"{len(self.unreadable)} cannot be read: {', '.join(self.unreadable[:5])}")
        return lines

    def _metric_rows(self) -> list[tuple[str, str]]:
        return [(name, f"{value:.4f}") for name, value in self.metrics.items()]

    def _class_rows(self) -> list[tuple[str, ...]]:
        rows = [
            (each.name, f"{each.precision:.3f}", f"{each.recall:.3f}", f"{each.f1:.3f}", f"{each.support}")
            for each in self.classes
        ]
        return [("class", "precision", "recall", "f1", "support"), *rows]

    def _confused(self) -> list[str]:
        pairs = [f"{each.label} as {each.prediction} ({each.count})" for each in self.most_confused[:5]]
        return [f"most confused: {', '.join(pairs)}"] if pairs else []
