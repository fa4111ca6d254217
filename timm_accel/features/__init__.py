"""Features of timm's models: vectors, maps of several depths, nodes of the graph, embeddings of a dataset."""

from timm_accel.features.describe import FeatureLevel, FeatureTable, describe_features
from timm_accel.features.embeddings import Embeddings, extract_embeddings
from timm_accel.features.modules import (
    feature_pyramid,
    intermediate_features,
    node_features,
    node_names,
    pooled_features,
    unpooled_features,
)

__all__ = [
    "Embeddings",
    "FeatureLevel",
    "FeatureTable",
    "describe_features",
    "extract_embeddings",
    "feature_pyramid",
    "intermediate_features",
    "node_features",
    "node_names",
    "pooled_features",
    "unpooled_features",
]
