"""An image–text model asked about texts. Its weights are random: the calls are real, the maps mean nothing.

With trained weights the model is one line: ``tokentm.load_model("open_clip:ViT-B-32/openai")``.
"""

import torch
from open_clip.model import CLIP

import tokentm
from tokentm.datasets.shapes import scene
from tokentm.models import ImageTransform, image_text


def letters(texts: list[str]) -> torch.Tensor:
    """A tokenizer: a start token, letters, an end token with the highest number, padding."""
    rows = [[1, *(2 + ord(letter) % 30 for letter in text[:30]), 40] for text in texts]
    return torch.tensor([row + [0] * (32 - len(row)) for row in rows])


torch.manual_seed(0)
clip = CLIP(
    embed_dim=32,
    vision_cfg={"image_size": 96, "patch_size": 12, "width": 48, "layers": 3, "head_width": 16},
    text_cfg={"context_length": 32, "vocab_size": 41, "width": 32, "heads": 2, "layers": 2},
).eval()
transform = ImageTransform(
    resize=96, crop=(96, 96), interpolation="bicubic", fit="cover", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)
)
model = image_text(clip, letters, transform=transform)

found = tokentm.explain(model, scene(seed=12, index=2).pil(), target="a photo of a ring; a photo of a star")
for row, text in enumerate(found.class_name):
    print(
        f"{text:22} score {float(found.logits[row, found.target[row]]):6.2f}, map {tuple(found.relevance[row].shape)}"
    )
