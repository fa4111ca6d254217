"""Losses for training and evaluation, with class weights, over timm's factory."""

from timm_accel.losses.class_weights import refuse_other_weights
from timm_accel.losses.create import KINDS, create_loss
from timm_accel.losses.divisors import Divisors
from timm_accel.losses.labels import LabelCheck, ignored_label, takes_classes
from timm_accel.losses.softmax import refuse_softmax_loss

__all__ = [
    "KINDS",
    "Divisors",
    "LabelCheck",
    "create_loss",
    "ignored_label",
    "refuse_other_weights",
    "refuse_softmax_loss",
    "takes_classes",
]
