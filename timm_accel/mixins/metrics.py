"""torchmetrics for every set of weights that is evaluated."""

import warnings
from numbers import Integral
from typing import Any

import torch
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassF1Score,
    MultilabelAveragePrecision,
    MultilabelExactMatch,
    MultilabelF1Score,
)

from timm_accel.data.classes import class_names, is_multi_label
from timm_accel.losses import refuse_other_weights, refuse_softmax_loss
from timm_accel.states.weights import metric_prefix
from timm_accel.training import LoopTrainer

_AVERAGE_PRECISION = "map"


class ClassificationMetricsMixin(LoopTrainer):
    """Record metrics at the end of each evaluation, for every entry of `weights`.

    By default ``accuracy``, with more than five classes ``accuracy_top5``, and ``f1_macro``; for the EMA model
    the same with the prefix ``ema_model_``. They are exact on any number of processes: no batch is padded or gathered.
    Metrics get logits ``(B, num_classes)`` and hard labels ``(B,)``.

    Multi-label metrics are ``map``, mean average precision, which needs no threshold, ``f1_macro``, also a mean over
    the classes, and ``exact_match``, the share of images with all labels right at a probability of 0.5. None is called
    accuracy, since that word has three meanings for multi-label targets. Metrics then get probabilities, the sigmoid of
    the logits, and labels of 0 and 1, both ``(B, num_classes)``: torchmetrics mistakes logits for probabilities where
    all of a batch happen to be between 0 and 1.

    Args:
        num_classes: The number of classes; None without `metrics` records nothing.
        metrics: A torchmetrics ``MetricCollection`` to use instead; its names become the history's.
        multi_label: Whether targets are multi-label, if the dataset does not tell (that of `create_datasets` does).

    Raises:
        TypeError: `metrics` is no ``MetricCollection``.
        ValueError: `num_classes` differs from the model's head or, in `train`, from the data; the data is multi-label
            and the loss is over a softmax, the loss has weights for another number of classes, or targets are of the
            other kind.

    Source: ``torchmetrics.classification``.
    """

    def __init__(
        self,
        *args: Any,
        num_classes: int | None = None,
        metrics: MetricCollection | None = None,
        multi_label: bool = False,
        **kwargs: Any,
    ) -> None:
        if metrics is not None and not isinstance(metrics, MetricCollection):
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
        if metrics is None and num_classes is not None:
            metrics = _default_metrics(num_classes, multi_label)
        self.num_classes, self.metrics, self.multi_label = num_classes, metrics, multi_label
        self._is_multi_label = multi_label
        self._collections: dict[str, MetricCollection] = {}
        self._batches: dict[str, int] = {}
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

    def evaluation_metrics(self) -> list[str]:
        names = super().evaluation_metrics()
        return names if self.metrics is None else [*names, *map(str, self.metrics.keys())]

    def eval_epoch_start(self) -> None:
        if self.metrics is not None:
            self._collections = {name: _separate(self.metrics).to(self.device) for name in self.evaluated_models()}
            self._batches = dict.fromkeys(self._collections, 0)
            if self._is_multi_label and self._has_default_metrics:
                for collection in self._collections.values():
                    _update_with_empty_batch(collection[_AVERAGE_PRECISION], self.num_classes)
        super().eval_epoch_start()

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
                collection.update(*self._to_metric_inputs(logits, targets))
                self._batches[name] += 1

    def _to_metric_inputs(self, logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        multi_label = targets.ndim == 2
        if self._has_default_metrics and multi_label != self._is_multi_label:
            wanted = "(B, num_classes)" if self._is_multi_label else "(B,)"
            raise ValueError(
                f"Expected targets {wanted} with multi_label={self.multi_label}, but got {tuple(targets.shape)}. "
                f"Pass multi_label={multi_label}."
            )
        return (logits.sigmoid(), targets.round().long()) if self._is_multi_label else (logits, targets)

    def eval_epoch_end(self) -> None:
        super().eval_epoch_end()
        if not self._collections:
            return
        batches = torch.tensor(list(self._batches.values()), device=self.device)
        evaluated = self.current_run().accelerator.reduce(batches, reduction="sum").tolist()
        for (name, collection), count in zip(self._collections.items(), evaluated, strict=True):
            if count:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", UserWarning)  # of an empty rank
                    values = collection.compute()
                for key, value in values.items():
                    self.run_history.update_metric(f"{metric_prefix(name)}{key}", value.item())
        self._collections = {}


def _separate(metrics: MetricCollection) -> MetricCollection:
    """Copy the metrics without compute groups.

    torchmetrics 1.9 lets metrics share their state if it is equal after one batch: after a first batch without an
    error, macro F1 became top-5 accuracy for the rest of the evaluation.
    """
    return MetricCollection({str(name): metric.clone() for name, metric in metrics.items()}, compute_groups=False)


def _update_with_empty_batch(average_precision: Any, num_classes: int | None) -> None:
    """Update average precision with an empty batch.

    An empty rank would otherwise send a list of another shape than the other ranks when torchmetrics (1.9) gathers the
    predictions that this metric keeps.
    """
    empty = torch.zeros(0, num_classes or 0, device=average_precision.device)
    average_precision.update(empty, empty.long())


def _default_metrics(num_classes: int, multi_label: bool) -> MetricCollection:
    # validate_args reads every batch back to the host
    options: dict[str, Any] = {"average": "macro", "validate_args": False}
    if multi_label:
        return MetricCollection(
            {
                _AVERAGE_PRECISION: MultilabelAveragePrecision(num_classes, **options),
                "f1_macro": MultilabelF1Score(num_classes, **options),
                "exact_match": MultilabelExactMatch(num_classes, validate_args=False),
            }
        )
    metrics: dict[str, Metric | MetricCollection] = {
        "accuracy": MulticlassAccuracy(num_classes, average="micro", validate_args=False),
        "f1_macro": MulticlassF1Score(num_classes, **options),
    }
    if num_classes > 5:
        metrics["accuracy_top5"] = MulticlassAccuracy(num_classes, top_k=5, average="micro", validate_args=False)
    return MetricCollection(metrics)
