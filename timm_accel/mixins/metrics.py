"""Metrics for every set of weights that is evaluated: our counts, or torchmetrics."""

from __future__ import annotations

import warnings
from copy import deepcopy
from numbers import Integral
from typing import TYPE_CHECKING, Any

import torch

from timm_accel.data.classes import class_names, is_multi_label
from timm_accel.losses import (
    LabelCheck,
    ignored_label,
    refuse_other_weights,
    refuse_softmax_loss,
    takes_classes,
)
from timm_accel.predict.counts import NO_LABEL, CountedMetrics
from timm_accel.states.weights import metric_prefix
from timm_accel.training import LoopTrainer

if TYPE_CHECKING:
    from torchmetrics import MetricCollection  # its import takes longer than that of timm

_AVERAGE_PRECISION = "map"
_TRAIN_ACCURACY = "train_accuracy"


class ClassificationMetricsMixin(LoopTrainer):
    """Record metrics at the end of each evaluation, for every entry of `evaluated_models`.

    By default ``accuracy``, with more than five classes ``accuracy_top5``, and ``f1_macro``; for the EMA model
    the same with the prefix ``ema_model_``. They are exact on any number of processes: no batch is padded or gathered.
    Metrics get logits ``(B, num_classes)`` and hard labels ``(B,)``, without the images whose label the loss ignores.
    They depend on no hook that a subclass may override without ``super()``.

    Multi-label metrics are ``map``, mean average precision, which needs no threshold, ``f1_macro``, also a mean over
    the classes, and ``exact_match``, the share of images with all labels right at a probability of 0.5. None is called
    accuracy, since that word has three meanings for multi-label targets. Metrics then get probabilities, the sigmoid of
    the logits, and labels of 0 and 1, both ``(B, num_classes)``: torchmetrics mistakes logits for probabilities where
    all of a batch happen to be between 0 and 1.

    Args:
        num_classes: The number of classes; None without `metrics` records nothing.
        metrics: A torchmetrics ``MetricCollection`` to use instead; its names become the history's.
        multi_label: Whether targets are multi-label, if the dataset does not tell (that of `create_datasets` does).
        train_accuracy: Whether a training epoch records ``train_accuracy``, from the outputs of its forward passes and
            the hard labels; None where images are not mixed. Multi-label data has none.

    Raises:
        TypeError: `metrics` is no ``MetricCollection``.
        ValueError: `num_classes` differs from the model's head or, in `train`, from the data; the data is multi-label
            and the loss is over a softmax, the loss has weights for another number of classes, targets are of the other
            kind, or a label is out of range (on a GPU the run then fails within two sync points).

    Source: ``torchmetrics.classification``.
    """

    def __init__(
        self,
        *args: Any,
        num_classes: int | None = None,
        metrics: MetricCollection | None = None,
        multi_label: bool = False,
        train_accuracy: bool | None = None,
        **kwargs: Any,
    ) -> None:
        if metrics is not None and not _is_collection(metrics):
            raise TypeError(
                f"Expected metrics to be a torchmetrics MetricCollection, but got {type(metrics).__name__}. "
                "Wrap it: MetricCollection({'name': metric})."
            )
        if num_classes is not None and not (isinstance(num_classes, int | Integral) and num_classes >= 2):
            raise ValueError(
                f"Expected num_classes to be at least 2, but got {num_classes!r}. Count the classes, or pass None to "
                "record no metrics."
            )
        self._has_default_metrics = metrics is None and num_classes is not None
        self.num_classes, self.multi_label = num_classes, multi_label
        self.metrics: MetricCollection | CountedMetrics | None = metrics
        if metrics is None and num_classes is not None:
            self.metrics = _default_metrics(num_classes, multi_label)
        self.train_accuracy = train_accuracy
        self._is_multi_label = multi_label
        self._collections: dict[str, MetricCollection | CountedMetrics] = {}
        self._counted: dict[str, torch.Tensor] = {}
        self._label_check: LabelCheck | None = None
        super().__init__(*args, **kwargs)
        self._check_num_classes("the model's head", getattr(self.model, "num_classes", None))

    def _check_num_classes(self, where: str, found: int | None) -> None:
        if None not in (self.num_classes, found) and self.num_classes != found:
            raise ValueError(
                f"Expected num_classes to be that of {where}, {found}, but got {self.num_classes}. "
                f"Pass {found}, or create the model with num_classes={self.num_classes}."
            )

    def before_prepare(self) -> None:
        for dataset in (self.train_dataset, self.eval_dataset):
            names = class_names(dataset)
            self._check_num_classes("the data", None if names is None else len(names))
        self._detect_multi_label(self.train_dataset, self.eval_dataset)
        self._label_check = None
        super().before_prepare()

    def _detect_multi_label(self, *datasets: Any) -> None:
        num_classes = self.num_classes or getattr(self.current_run().unwrapped_model, "num_classes", None)
        for argument in ("loss_func", "eval_loss_fn"):
            loss = getattr(self, argument, None)
            refuse_softmax_loss(argument, loss, *datasets)
            refuse_other_weights(argument, loss, num_classes)
        self._is_multi_label = self.multi_label or any(map(is_multi_label, datasets))
        if self._has_default_metrics and self.num_classes is not None:
            self.metrics = _default_metrics(self.num_classes, self._is_multi_label)

    def training_metrics(self) -> list[str]:
        names = super().training_metrics()
        if self.train_accuracy is False or self.num_classes is None or self._is_multi_label:
            return names
        return [*names, _TRAIN_ACCURACY]

    def update_training_metrics(self, batch: Any, batch_output: dict[str, Any]) -> None:
        super().update_training_metrics(batch, batch_output)
        mean = self.current_run().training_means.get(_TRAIN_ACCURACY)
        if mean is None or "model_outputs" not in batch_output or (self.mixes_images and not self.train_accuracy):
            return
        try:
            logits, targets = self.logits_of(batch_output["model_outputs"]), self.unpack_batch(batch)[1]
        except TypeError:  # of a form that only the hooks of a subclass read
            if self.train_accuracy:
                raise
            return
        hard = isinstance(targets, torch.Tensor) and targets.ndim == 1 and _are_integers(targets)
        if not hard or logits.ndim != 2:
            return
        ignored = ignored_label(self.loss_func)
        kept = (targets >= 0) if ignored is None else (targets != ignored)
        right = kept & (logits.argmax(1) == targets)
        count = kept.sum().to(mean.total)
        mean.update(right.sum() / count.clamp(min=1), len(targets), count)

    def evaluation_metrics(self) -> list[str]:
        names = super().evaluation_metrics()
        return names if self.metrics is None else [*names, *map(str, self.metrics.keys())]

    def _loss_of(self, training: bool) -> Any:
        return (None if training else getattr(self, "eval_loss_fn", None)) or self.loss_func

    def checked_batch(self, batch: Any, number: int, training: bool) -> Any:
        batch = super().checked_batch(batch, number, training)
        loss = self._loss_of(training)
        if self._is_multi_label or not (takes_classes(loss) or (self._has_default_metrics and not training)):
            return batch
        try:
            inputs, labels = self.unpack_batch(batch)
        except TypeError:  # raised again where the targets are needed
            return batch
        num_classes = self.num_classes or getattr(self.current_run().unwrapped_model, "num_classes", None) or 0
        if num_classes < 2 or not (isinstance(labels, torch.Tensor) and labels.ndim == 1 and _are_integers(labels)):
            return batch
        if self._label_check is None:
            self._label_check = LabelCheck(num_classes, labels.device)
        checked = self._label_check(labels, ignored_label(loss), number)
        return batch if checked is labels else self.repack_batch(batch, inputs, checked)

    def _stop_at_wrong_label(self, noted: torch.Tensor | None = None) -> None:
        fault = None if self._label_check is None else self._label_check.fault(noted)
        if fault is not None:
            self.request_stop(fault, failed=True)

    def after_update(self) -> None:
        super().after_update()
        noted = None if self._label_check is None else self._label_check.noted
        if noted is not None and self.current_run().num_updates % self.sync_every_n_updates == 0:
            self.current_run().late_reads.begin(noted, self._stop_at_wrong_label)

    def train_epoch_end(self) -> None:
        super().train_epoch_end()
        self._stop_at_wrong_label()

    def start_evaluation_metrics(self) -> None:
        super().start_evaluation_metrics()
        if self.metrics is not None:
            self._collections = {name: _separate(self.metrics).to(self.device) for name in self.evaluated_models()}
            self._counted = {name: torch.zeros((), dtype=torch.int64, device=self.device) for name in self._collections}
            if self._is_multi_label and self._has_default_metrics:
                for collection in self._collections.values():
                    _update_with_empty_batch(collection[_AVERAGE_PRECISION], self.num_classes)

    def update_metrics(self, batch: Any, batch_output: dict[str, Any]) -> None:
        super().update_metrics(batch, batch_output)
        if not self._collections:
            return
        targets = batch_output["targets"] if "targets" in batch_output else self.unpack_batch(batch)[1]
        for name, collection in self._collections.items():
            outputs = batch_output.get(f"{name}_outputs")
            if outputs is not None:
                logits = self.logits_of(outputs)
                self._check_num_classes("the logits", logits.shape[1])
                scores, labels, counted = self._to_metric_inputs(logits, targets)
                if len(labels):
                    collection.update(scores, labels)
                self._counted[name] += counted

    def _to_metric_inputs(
        self, logits: torch.Tensor, targets: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | int]:
        """Return scores and labels without what the loss ignores, and how many of them count."""
        multi_label = targets.ndim == 2
        if self._has_default_metrics and multi_label != self._is_multi_label:
            wanted = "(B, num_classes)" if self._is_multi_label else "(B,)"
            raise ValueError(
                f"Expected targets {wanted} with multi_label={self.multi_label}, but got {tuple(targets.shape)}. "
                f"Pass multi_label={multi_label}."
            )
        if self._is_multi_label:
            return logits.sigmoid(), targets.round().long(), len(targets)
        ignored = ignored_label(self._loss_of(training=False))
        if ignored is None or targets.ndim != 1 or not _are_integers(targets):
            return logits, targets, len(targets)
        kept = targets != ignored
        if self._has_default_metrics:  # a selection would wait for the device
            return logits, targets.where(kept, NO_LABEL), kept.sum()
        return logits[kept], targets[kept], kept.sum()

    def record_evaluation_metrics(self) -> None:
        super().record_evaluation_metrics()
        self._stop_at_wrong_label()
        if not self._collections:
            return
        counted = torch.stack(list(self._counted.values()))
        evaluated = self.current_run().accelerator.reduce(counted, reduction="sum").tolist()
        for (name, collection), count in zip(self._collections.items(), evaluated, strict=True):
            if count:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", UserWarning)  # of an empty rank
                    values = collection.compute()
                for key, value in values.items():
                    self.run_history.update_metric(f"{metric_prefix(name)}{key}", value.item())
        self._collections = {}


def _are_integers(labels: torch.Tensor) -> bool:
    return not (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool)


def _is_collection(metrics: Any) -> bool:
    from torchmetrics import MetricCollection

    return isinstance(metrics, MetricCollection | CountedMetrics)


def _separate(metrics: MetricCollection | CountedMetrics) -> MetricCollection | CountedMetrics:
    """Copy the metrics without compute groups.

    torchmetrics 1.9 lets metrics share their state if it is equal after one batch: after a first batch without an
    error, macro F1 became top-5 accuracy for the rest of the evaluation.
    """
    if isinstance(metrics, CountedMetrics):
        return deepcopy(metrics)
    from torchmetrics import MetricCollection

    return MetricCollection({str(name): metric.clone() for name, metric in metrics.items()}, compute_groups=False)


def _update_with_empty_batch(average_precision: Any, num_classes: int | None) -> None:
    """Update average precision with an empty batch.

    An empty rank would otherwise send a list of another shape than the other ranks when torchmetrics (1.9) gathers the
    predictions that this metric keeps.
    """
    empty = torch.zeros(0, num_classes or 0, device=average_precision.device)
    average_precision.update(empty, empty.long())


def _default_metrics(num_classes: int, multi_label: bool) -> MetricCollection | CountedMetrics:
    if not multi_label:
        return CountedMetrics(num_classes)
    from torchmetrics import MetricCollection
    from torchmetrics.classification import MultilabelAveragePrecision, MultilabelExactMatch, MultilabelF1Score

    options: dict[str, Any] = {"average": "macro", "validate_args": False}  # validation reads every batch back
    return MetricCollection(
        {
            _AVERAGE_PRECISION: MultilabelAveragePrecision(num_classes, **options),
            "f1_macro": MultilabelF1Score(num_classes, **options),
            "exact_match": MultilabelExactMatch(num_classes, validate_args=False),
        }
    )
