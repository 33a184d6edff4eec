"""Draw the figures of docs/concepts.md from the bundled model: what tokens go through on their way to the decision.

python scripts/concept_figures.py [--scenes 64] [--out docs/images]
"""

import argparse
import io
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import Tensor

import tokentm
from tokentm.datasets.shapes import Shapes
from tokentm.files import write_atomically
from tokentm.methods.tokentm import TokenTMConfig
from tokentm.recorder import record
from tokentm.trace import BlockTrace, Signal, Trace

SEED = 3001  # no series of scenes that the bundled model was trained or chosen on
SIGNALS = Signal.ATTENTION | Signal.ATTENTION_GRAD | Signal.TOKENS
STYLE = {"font.size": 8, "axes.spines.top": False, "axes.spines.right": False, "figure.dpi": 110}
ABLATIONS = {
    "GAE: attention and gradient alone": TokenTMConfig(length=False, direction="none", init=False, ffn=False),
    "with lengths": TokenTMConfig(direction="none"),
    "with directions": TokenTMConfig(length=False),
    "TokenTM": TokenTMConfig(),
}


def main() -> None:
    """Record once, draw both figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", type=int, default=64)
    parser.add_argument("--out", type=Path, default=Path("docs/images"))
    options = parser.parse_args()
    model = tokentm.load_model("shapes")
    scenes = list(Shapes(SEED, options.scenes, 1))
    assert model.transform is not None
    images = torch.stack([model.transform(scene.pil()) for scene in scenes])
    recording = record(model, images, SIGNALS)
    trace = recording.trace(torch.tensor([scene.labels[0] for scene in scenes]))
    on = torch.stack([_patches(scene.masks[scene.labels[0]], trace.grid) for scene in scenes])
    with plt.rc_context(STYLE):
        _save(_through_depth(trace, on), options.out / "depth.png")
        _save(_one_scene(model, scenes[3]), options.out / "ablations.png")


def _patches(mask: np.ndarray, grid: tuple[int, int]) -> Tensor:
    """Which patches (n,) lie on the object by more than half."""
    cells = mask.reshape(grid[0], mask.shape[0] // grid[0], grid[1], mask.shape[1] // grid[1])
    return torch.from_numpy(cells.mean((1, 3)) > 0.5).flatten()


def _transformed(block: BlockTrace) -> tuple[Tensor, Tensor]:
    """``L(Ẽ)/L(E)`` and ``cos(E, Ẽ)``, mean over heads, (b, n), in explicit matrices."""
    heads, width = block.v.shape[1], block.v.shape[3]
    projection = block.proj_weight.float()
    if block.layer_scale is not None:
        projection = projection * block.layer_scale.float()[:, None]
    per_head = projection.unflatten(1, (heads, width)).permute(1, 2, 0)  # (h, d, w)
    after = block.v.float() @ per_head  # (b, h, n, w)
    before = block.tokens_in.float()[:, None]
    ratio = after.norm(dim=-1) / before.norm(dim=-1)
    return ratio.mean(1), torch.cosine_similarity(before, after, dim=-1).mean(1)


def _through_depth(trace: Trace, on: Tensor) -> plt.Figure:
    """Length, change of length and direction per block, for tokens on the object and beside it."""
    rows: dict[str, dict[str, list[float]]] = {}
    for block in trace.blocks:
        ratio, cosine = _transformed(block)
        length = block.tokens_in.float().norm(dim=-1)
        for title, values in (("length of the token", length), ("length after ÷ before", ratio), ("cosine", cosine)):
            patches = values[:, trace.num_prefix :]
            kinds = rows.setdefault(title, {"class token": [], "on the object": [], "background": []})
            if trace.num_prefix:
                kinds["class token"].append(float(values[:, 0].mean()))
            kinds["on the object"].append(float(patches[on].mean()))
            kinds["background"].append(float(patches[~on].mean()))
    figure, axes = plt.subplots(1, 3, figsize=(7.2, 2.2), layout="constrained")
    colours = {"class token": "#222222", "on the object": "#d1495b", "background": "#3d6b99"}
    for axis, (title, kinds) in zip(axes, rows.items(), strict=True):
        for kind, values in kinds.items():
            axis.plot(range(1, len(values) + 1), values, "o-", ms=3, lw=1.3, label=kind, color=colours[kind])
        axis.set(title=title, xlabel="block", xticks=range(1, len(trace.blocks) + 1))
        axis.margins(y=0.15)
    axes[2].axhline(0, color="#999999", lw=0.7)
    axes[0].legend(frameon=False, fontsize=7)
    return figure


def _one_scene(model: tokentm.VisionModel, scene: object) -> plt.Figure:
    """The same decision explained with each part of TokenTM switched on."""
    photo = scene.pil()  # type: ignore[attr-defined]
    figure, axes = plt.subplots(1, 1 + len(ABLATIONS), figsize=(7.2, 1.75), layout="constrained")
    axes[0].imshow(photo)
    axes[0].set_title("scene", fontsize=7)
    for axis, (title, options) in zip(axes[1:], ABLATIONS.items(), strict=True):
        found = tokentm.explain(model, photo, scene.labels[0], options=options)  # type: ignore[attr-defined]
        pixels = found.pixels()[0]
        share = float(pixels[torch.from_numpy(scene.masks[scene.labels[0]])].sum() / pixels.sum())  # type: ignore[attr-defined]
        axis.imshow(found.overlay(legend=False)[0])
        axis.set_title(f"{title}\n{share:.0%} on the object", fontsize=6.5)
    for axis in axes:
        axis.axis("off")
    return figure


def _save(figure: plt.Figure, path: Path) -> None:
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=110)
    plt.close(figure)
    with write_atomically(path) as temporary:
        temporary.write_bytes(content.getvalue())


if __name__ == "__main__":
    main()
