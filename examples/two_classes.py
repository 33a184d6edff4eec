"""Two objects in one image: each asked about in turn, and the difference, which is what tells them apart."""

import numpy as np

import tokentm
from tokentm.datasets.shapes import CLASS_NAMES, scene

model = tokentm.load_model("shapes")
drawn = scene(seed=2001, index=4, objects=2)
names = [CLASS_NAMES[label] for label in drawn.labels]

for method in ("tokentm", "tokentm/libra", "attnlrp", "rollout"):
    maps = [tokentm.explain(model, drawn.pil(), target=name, method=method).pixels()[0].numpy() for name in names]
    print(method)
    for name, relevance in zip(names, maps, strict=True):
        positive = np.clip(relevance, 0, None) / np.clip(relevance, 0, None).sum()
        on = [positive[drawn.masks[label]].sum() for label in drawn.labels]
        print(f"  asked about {name:9} → {on[0]:.0%} on the {names[0]}, {on[1]:.0%} on the {names[1]}")
    if np.allclose(*maps):
        print("  the same map twice: this method is blind to the class")
