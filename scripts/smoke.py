"""Every method and backward rule on the bundled model and on one model of each library that is installed.

python scripts/smoke.py        # run with the lowest versions that pyproject.toml allows
"""

from importlib.metadata import version

import timm
import torch
import torchvision

import tokentm
from tokentm.datasets.shapes import scene

TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 5}


def main() -> None:
    """Explain, and say with which versions."""
    print(", ".join(f"{name} {version(name)}" for name in ("torch", "torchvision", "timm", "numpy", "pillow", "typer")))
    rules = [rule for rule, kind in tokentm.BACKWARD.items() if not kind.relevance and rule != "plain"]
    names = [name for name, method in tokentm.METHODS.items() if name != "rise"]
    names += [f"tokentm/{rule}" for rule in rules]
    for name, found in tokentm.compare("shapes", scene(12, 2).pil(), names).items():
        assert found.relevance.isfinite().all(), name
    torch.manual_seed(0)
    models = [timm.create_model("vit_tiny_patch16_224", **TINY).eval(), torchvision.models.vit_b_16().eval(), *_hub()]
    torch.nn.init.normal_(models[1].heads.head.weight)  # torchvision starts it at zero: nothing would be relevant
    for model in models:
        side = 224 if "torchvision" in type(model).__module__ else 32
        found = tokentm.explain(model, torch.randn(1, 3, side, side), 1)
        assert float(found.relevance.max()) > 0
        print(f"{found.model.anatomy.family}: {tuple(found.relevance.shape)}")


def _hub() -> list[torch.nn.Module]:
    try:
        from transformers import ViTConfig, ViTForImageClassification
    except ImportError:
        return []
    shape = {"image_size": 32, "patch_size": 8, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3}
    return [ViTForImageClassification(ViTConfig(**shape, intermediate_size=48, num_labels=5)).eval()]


if __name__ == "__main__":
    main()
