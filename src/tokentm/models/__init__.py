"""Model families, loading and input transforms; this room knows nothing of methods."""

from tokentm.models.loading import BUNDLED, load_model
from tokentm.models.transforms import ImageTransform
from tokentm.models.vision_model import VisionModel, describe, image_text

__all__ = ["BUNDLED", "ImageTransform", "VisionModel", "describe", "image_text", "load_model"]
