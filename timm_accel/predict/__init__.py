"""Open, use and evaluate trained models with their classes and preprocessing.

This package imports no trainer.
"""

from timm_accel.predict.calibration import fit_temperature
from timm_accel.predict.classifier import Classifier
from timm_accel.predict.evaluating import evaluate_classifier
from timm_accel.predict.evaluation import ClassMeasures, Confusion, Evaluation
from timm_accel.predict.opening import load_classifier
from timm_accel.predict.predictions import Prediction, exit_code, write_predictions

__all__ = [
    "ClassMeasures",
    "Classifier",
    "Confusion",
    "Evaluation",
    "Prediction",
    "evaluate_classifier",
    "exit_code",
    "fit_temperature",
    "load_classifier",
    "write_predictions",
]
