"""Create, customize, save and open timm models for classification."""

from timm_accel.models.building import check_model_name
from timm_accel.models.create import create_classifier
from timm_accel.models.ema import EmaUpdate, choose_ema_decay, memory_of
from timm_accel.models.freezing import FrozenParts, freeze_stages, parts_to_freeze, stage_names, stage_parameters
from timm_accel.models.heads import MlpHead
from timm_accel.models.integrity import CONFIG_FILE, WEIGHTS_FILE, check_weights, read_config, signed_config
from timm_accel.models.lora import merge_lora
from timm_accel.models.opening import open_classifier, weights_of_run
from timm_accel.models.saving import remove_unfinished, save_classifier
from timm_accel.models.search import ModelInfo, search_models
from timm_accel.models.weights import LoadReport

__all__ = [
    "CONFIG_FILE",
    "WEIGHTS_FILE",
    "EmaUpdate",
    "FrozenParts",
    "LoadReport",
    "MlpHead",
    "ModelInfo",
    "check_model_name",
    "check_weights",
    "choose_ema_decay",
    "create_classifier",
    "freeze_stages",
    "memory_of",
    "merge_lora",
    "open_classifier",
    "parts_to_freeze",
    "read_config",
    "remove_unfinished",
    "save_classifier",
    "search_models",
    "signed_config",
    "stage_names",
    "stage_parameters",
    "weights_of_run",
]
