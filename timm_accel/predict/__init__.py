"""Open, use and evaluate trained models with their classes and preprocessing.

This package imports no trainer.
"""

from timm_accel.predict.calibration import fit_temperature
from timm_accel.predict.classifier import Classifier
from timm_accel.predict.evaluating import evaluate_classifier, evaluation_of, score_images
from timm_accel.predict.evaluation import ClassMeasures, Confusion, Evaluation
from timm_accel.predict.opening import load_classifier
from timm_accel.predict.predictions import Prediction, exit_code, write_predictions
from timm_accel.predict.scores import Scores

__all__ = [
    "ClassMeasures",
    "Classifier",
    "Confusion",
    "Evaluation",
    "Prediction",
    "Scores",
    "evaluate_classifier",
    "evaluation_of",
    "exit_code",
    "fit_temperature",
    "load_classifier",
    "score_images",
    "write_predictions",
]
