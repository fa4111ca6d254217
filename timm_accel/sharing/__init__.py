"""Share a trained model: a folder that stands alone, the Hugging Face hub, and a local page to try it on images."""

from timm_accel.sharing.demo import create_demo
from timm_accel.sharing.hub import push_to_hub
from timm_accel.sharing.package import export_package

__all__ = ["create_demo", "export_package", "push_to_hub"]
