"""The second writing of the methods that run the model again: float64, plain loops, one mask or one step at a time.

Imports nothing from tokentm. Where a method draws random numbers, the same numbers are drawn here by calls of numpy's
generator of our own.
"""

import copy
import math

import numpy as np
import torch
from torch import Tensor, nn

from tests.support.oracle import Oracle, _explicit_block, _gather, _transformed
from tests.support.oracle_families import embedded, normalise, take_apart

__all__ = ["BlockMean", "beyond_intuition", "integrated_gradients", "rise", "tis", "vit_cx"]


class Plain:
    """A model in float64, run on one image at a time."""

    def __init__(self, name: str, model: nn.Module) -> None:
        self.name = name
        self.module = copy.deepcopy(model).double().eval()
        parts = take_apart(name, self.module)
        self.blocks, self.weights, self.prefix = parts.blocks, parts.weights, parts.prefix
        self.pool, self._tail = parts.pool, parts.tail
        self.given: list[dict] = []  # what the blocks are called with beside the tokens

    def tail(self, tokens: Tensor) -> Tensor:
        return self._tail(tokens) if self.pool is None else _gather(tokens[0], self.pool)[0][None]

    def logits(self, image: Tensor) -> Tensor:
        output = self.module(image[None])
        return getattr(output, "logits", output)[0]

    def probability(self, image: Tensor, target: int) -> float:
        with torch.no_grad():
            return float(torch.softmax(self.logits(image), 0)[target])

    def entering(self, image: Tensor) -> Tensor:
        """Tokens (n, w) that enter the first block."""
        with torch.no_grad():
            tokens, self.given = embedded(self.blocks, self.module, image[None])
        return tokens[0]

    def streams(self, tokens: Tensor, places: list[int] | None = None) -> list[Tensor]:
        """Tokens before every block and after the last; ``places`` are the patches that they belong to."""
        found = [tokens]
        with torch.no_grad():
            for block, given in zip(self.weights, self.given, strict=True):
                # A copy without graph: the explicit block asks for the gradient of its attention.
                found.append(_explicit_block(found[-1], block, given, places)[0].detach())
        return found

    def grid(self, image: Tensor) -> tuple[int, int]:
        patches = self.entering(image).shape[0] - self.prefix
        ratio = image.shape[1] / image.shape[2]
        rows = round(math.sqrt(patches * ratio))
        return rows, patches // rows


def _onto_patches(per_pixel: np.ndarray, grid: tuple[int, int], prefix: int, *, mean: bool) -> Tensor:
    high, wide = per_pixel.shape[0] // grid[0], per_pixel.shape[1] // grid[1]
    values = [0.0] * prefix
    for row in range(grid[0]):
        for column in range(grid[1]):
            patch = per_pixel[row * high : (row + 1) * high, column * wide : (column + 1) * wide]
            values.append(float(patch.mean() if mean else patch.sum()))
    return torch.tensor(values, dtype=torch.float64)


# --- integrated gradients ---------------------------------------------------------------------------------------


def _gauss_legendre(steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Points and weights on [0, 1] from the eigenvectors of the Jacobi matrix (Golub and Welsch)."""
    jacobi = np.zeros((steps, steps))
    for k in range(1, steps):
        jacobi[k, k - 1] = jacobi[k - 1, k] = k / math.sqrt(4 * k * k - 1)
    points, vectors = np.linalg.eigh(jacobi)
    return (points + 1) / 2, vectors[0] ** 2


def integrated_gradients(
    name: str, model: nn.Module, images: Tensor, targets: list[int], steps: int, rule: str
) -> Tensor:
    plain, maps = Plain(name, model), []
    if rule == "gausslegendre":
        points, weights = _gauss_legendre(steps)
    else:
        points = [(k + 0.5) / steps if rule == "midpoint" else (k + 1) / steps for k in range(steps)]
        weights = [1 / steps] * steps
    for image, target in zip(images.double(), targets, strict=True):
        mean = torch.zeros_like(image)
        for point, weight in zip(points, weights, strict=True):
            at = (image * float(point)).requires_grad_(True)
            mean = mean + float(weight) * torch.autograd.grad(plain.logits(at)[target], at)[0]
        maps.append(_onto_patches((mean * image).sum(0).numpy(), plain.grid(image), plain.prefix, mean=False))
    return torch.stack(maps)


# --- RISE -------------------------------------------------------------------------------------------------------


def _bilinear(small: np.ndarray, height: int, width: int) -> np.ndarray:
    """Pixel by pixel: centres of large pixels fall between centres of small ones, and the border is flat."""

    def neighbours(index: int, large: int, count: int) -> tuple[int, int, float]:
        at = min(max((index + 0.5) * count / large - 0.5, 0.0), count - 1.0)
        low = int(at)
        return low, min(low + 1, count - 1), at - low

    out = np.zeros((height, width))
    for y in range(height):
        top, bottom, down = neighbours(y, height, small.shape[0])
        for x in range(width):
            left, right, across = neighbours(x, width, small.shape[1])
            upper = small[top, left] * (1 - across) + small[top, right] * across
            lower = small[bottom, left] * (1 - across) + small[bottom, right] * across
            out[y, x] = upper * (1 - down) + lower * down
    return out


def rise_masks(height: int, width: int, count: int, cells: int, keep: float, seed: int) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    uniform = generator.random(count * cells * cells)
    cell_high, cell_wide = math.ceil(height / cells), math.ceil(width / cells)
    shifts = generator.integers([0, 0], [cell_high, cell_wide], size=(count, 2))
    masks = []
    for i in range(count):
        grid = np.array([1.0 if u < keep else 0.0 for u in uniform[i * cells**2 : (i + 1) * cells**2]])
        large = _bilinear(grid.reshape(cells, cells), (cells + 1) * cell_high, (cells + 1) * cell_wide)
        y, x = shifts[i]
        masks.append(large[y : y + height, x : x + width])
    return masks


def rise(
    name: str, model: nn.Module, images: Tensor, targets: list[int], count: int, cells: int, keep: float, seed: int
) -> Tensor:
    plain, maps = Plain(name, model), []
    masks = rise_masks(images.shape[2], images.shape[3], count, cells, keep, seed)
    for image, target in zip(images.double(), targets, strict=True):
        total = np.zeros(image.shape[1:])
        for mask in masks:
            total += plain.probability(image * torch.from_numpy(mask), target) * mask
        maps.append(_onto_patches(total / count / keep, plain.grid(image), plain.prefix, mean=True))
    return torch.stack(maps)


class BlockMean:
    """A probe whose class 1 has the odds ``e`` to the mean of the upper left quarter; a person can compute it."""

    def __init__(self) -> None:
        self.largest = 0

    def logits(self, images: Tensor) -> Tensor:
        self.largest = max(self.largest, len(images))
        score = images[:, 0, :4, :4].mean((1, 2))
        return torch.stack([torch.zeros_like(score), score], dim=1)

    def logits_of_subset(self, images: Tensor, keep: Tensor) -> Tensor:
        raise NotImplementedError

    def trace(self, images: Tensor, target: Tensor, signals: object) -> object:
        raise NotImplementedError


# --- Beyond Intuition -------------------------------------------------------------------------------------------


def beyond_intuition(
    name: str, model: nn.Module, images: Tensor, targets: list[int], form: str, start: int, steps: int
) -> Tensor:
    """With full N×N matrices for R and F, as the formulas stand."""
    path = [Oracle.run(name, model, images * (s / (steps - 1)), targets) for s in range(steps)]
    whole, maps = path[-1], []
    for index, trail in enumerate(whole.steps):
        n, heads = trail[0].E.shape[0], len(trail[0].A)
        perception = torch.eye(n, dtype=torch.float64)
        for step, grads in list(zip(trail, whole.grads[index], strict=True))[start:]:
            attention = [a.detach() for a in step.A]
            values = [_transformed(step, head, True, False) for head in range(heads)]
            move = _move(form, attention, grads, values, step.E)
            for denominators in step.divided if form == "t" else ():
                move = move / denominators[:, None]
            perception = perception + move @ perception
        last = [run.grads[index][-1] for run in path]
        if whole.pools is not None:  # one more step, of a query that is no token
            pool, d = whole.pools[index], whole.pools[index].V[0].shape[1]
            attention, last = [a.detach()[None] for a in pool.A], [run.pool_grads[index] for run in path]
            values = [v @ pool.o[:, h * d : (h + 1) * d].T for h, v in enumerate(pool.V)]
            perception = _move(form, attention, [g[None] for g in last[-1]], values, pool.E) @ perception
            last = [[g[None] for g in grads] for grads in last]
        feedback = torch.zeros_like(perception)
        for head in range(len(last[0])):
            mean = sum(grads[head] for grads in last) / steps
            feedback = feedback + mean.clamp(min=0) / len(last[0])
        row = whole.row(index) if whole.pools is None else torch.ones(1, dtype=torch.float64)
        maps.append(row @ (feedback * perception))
    return torch.stack(maps).detach()


def _move(form: str, attention: list[Tensor], grads: list[Tensor], values: list[Tensor], before: Tensor) -> Tensor:
    if form == "h":
        importance = [float((a.T @ g).abs().sum()) for a, g in zip(attention, grads, strict=True)]
        return sum(i / sum(importance) * a for i, a in zip(importance, attention, strict=True))
    together = sum(values).detach()
    ratios = [float(after.norm() / token.norm()) for after, token in zip(together, before, strict=True)]
    return sum(attention) / len(attention) @ torch.diag(torch.tensor(ratios, dtype=torch.float64))


# --- TIS --------------------------------------------------------------------------------------------------------


def nearest_centres(points: np.ndarray, clusters: int, seed: int) -> np.ndarray:
    """Lloyd's algorithm, point by point."""
    first = np.random.default_rng(seed).permutation(len(points))[:clusters]
    centres = [points[i].copy() for i in first]
    for _ in range(100):
        members: list[list[np.ndarray]] = [[] for _ in centres]
        for point in points:
            members[int(np.argmin([((point - c) ** 2).sum() for c in centres]))].append(point)
        moved = [np.mean(own, axis=0) if own else old for own, old in zip(members, centres, strict=True)]
        shift = sum(((new - old) ** 2).sum() for new, old in zip(moved, centres, strict=True))
        centres = moved
        if shift <= 1e-4:
            break
    return np.stack(centres)


def tis(
    name: str, model: nn.Module, images: Tensor, targets: list[int], clusters: int, keep: float, seed: int
) -> Tensor:
    plain, maps = Plain(name, model), []
    for image, target in zip(images.double(), targets, strict=True):
        entering = plain.entering(image)
        outputs = [tokens[plain.prefix :] for tokens in plain.streams(entering)[1:]]
        channels = np.concatenate([tokens.numpy().T for tokens in outputs])
        patches = channels.shape[1]
        weighted, covered = np.zeros(patches), np.zeros(patches)
        for centre in nearest_centres(channels, clusters, seed):
            inside = sorted(sorted(range(patches), key=lambda j: -centre[j])[: int(keep * patches)])
            tokens = torch.stack(
                [entering[i] for i in range(plain.prefix)] + [entering[plain.prefix + j] for j in inside]
            )
            with torch.no_grad():
                score = float(torch.softmax(plain.tail(plain.streams(tokens, inside)[-1][None])[0], 0)[target])
            for j in inside:
                weighted[j] += score
                covered[j] += 1
        share = [w / c if c else 0.0 for w, c in zip(weighted, covered, strict=True)]
        maps.append(torch.tensor([0.0] * plain.prefix + share, dtype=torch.float64))
    return torch.stack(maps)


# --- ViT-CX -----------------------------------------------------------------------------------------------------


def complete_linkage(distances: np.ndarray, threshold: float) -> list[set[int]]:
    """Clusters by definition: every pair of clusters is measured anew before every merge."""
    clusters = [{i} for i in range(len(distances))]
    while len(clusters) > 1:
        best, pair = math.inf, (0, 0)
        for one in range(len(clusters)):
            for other in range(one + 1, len(clusters)):
                apart = distances[np.ix_(sorted(clusters[one]), sorted(clusters[other]))].max()
                if apart < best:
                    best, pair = apart, (one, other)
        if best >= threshold:
            break
        clusters[pair[0]] |= clusters.pop(pair[1])
    return sorted(clusters, key=min)


def _to_unit_range(maps: list[np.ndarray]) -> list[np.ndarray]:
    return [(m - m.min()) / (m.max() - m.min()) for m in maps]


def vit_cx(
    name: str, model: nn.Module, images: Tensor, targets: list[int], threshold: float, noise: float, seed: int
) -> Tensor:
    """On masks of full size, with the LayerNorm of the last block as the model has it, gain and offset included."""
    plain, maps = Plain(name, model), []
    for image, target in zip(images.double(), targets, strict=True):
        entering = plain.streams(plain.entering(image))[-2]
        with torch.no_grad():
            norm = plain.weights[-1].norm1 or nn.LayerNorm(entering.shape[1], eps=1e-6, dtype=entering.dtype)
            features = normalise(norm, entering)[plain.prefix :].numpy()
        grid, size = plain.grid(image), image.shape[1:]
        masks = _to_unit_range([_bilinear(features[:, w].reshape(grid), *size) for w in range(features.shape[1])])
        flat = np.stack([m.ravel() / np.linalg.norm(m) for m in masks])
        groups = complete_linkage(1 - flat @ flat.T, threshold)
        masks = _to_unit_range([sum(masks[i] for i in sorted(group)) for group in groups])
        generator = np.random.default_rng(seed)
        before = plain.probability(image, target)
        weighted, cover = np.zeros(size), np.zeros(size)
        for mask in masks:
            drawn = generator.standard_normal(tuple(image.shape), dtype=np.float32).astype(np.float64)
            added = torch.from_numpy(noise * drawn * (1 - mask))
            kept = plain.probability(image * torch.from_numpy(mask) + added, target)
            full = plain.probability(image + added, target)
            weighted += (before - (full - kept)) * mask
            cover += mask
        per_pixel = np.clip(weighted / cover, 0, None)
        maps.append(_onto_patches(per_pixel, grid, plain.prefix, mean=True))
    return torch.stack(maps)
