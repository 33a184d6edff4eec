"""A scene that the model gets wrong: what spoke for the class it chose, what for the true one."""

from pathlib import Path

import tokentm
from tokentm.datasets.shapes import CLASS_NAMES, scene

model = tokentm.load_model("shapes")
for index in range(1000):
    drawn = scene(seed=1003, index=index, objects=1)
    photo, (true, *_) = drawn.pil(), drawn.labels
    chosen = tokentm.explain(model, photo)
    if int(chosen.target[0]) != true:
        break

asked = tokentm.explain(model, photo, target=CLASS_NAMES[true])
print(f"Scene {index} shows a {CLASS_NAMES[true]}; the model says {chosen.class_name[0]}.")
for said in (chosen, asked):
    pixels = said.pixels()[0]
    share = float(pixels[drawn.masks[true]].sum() / pixels.sum())
    print(f"  {said.class_name[0]:10} {said.probability[0]:6.1%}, {share:.0%} of its relevance on the object")

folder = Path("out/wrong_prediction")
for name, said in (("chosen", chosen), ("true", asked)):
    said.save(folder / name)
print(f"Pictures: {folder}")
