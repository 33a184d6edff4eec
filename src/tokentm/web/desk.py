"""The answers behind the page: one method per question, plain values in, JSON out."""

import base64
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, final

import torch

from tokentm._explain import as_explanation
from tokentm._numerics import probabilities
from tokentm.deadline import Deadline
from tokentm.errors import ImageError, InputError
from tokentm.evaluate.one_image import REMOVING, removal
from tokentm.explanation import Explanation, Source
from tokentm.methods._depth import LAYERED, carried, depth, relevance_from_block
from tokentm.models import VisionModel
from tokentm.session import Recordings, Request, run
from tokentm.targets import resolve_target, with_texts
from tokentm.web import pack
from tokentm.web.held import Held, Photo
from tokentm.web.limits import Limits
from tokentm.web.models import Models
from tokentm.web.photos import HELD, as_data_url, fitting, read_photo
from tokentm.web.work import Works, current

__all__ = ["Desk"]

Target = int | str | None


@final
@dataclass(frozen=True)
class Asked:
    """A photo in front of its model, for the length of one request."""

    token: str
    photo: Photo
    vision: VisionModel
    fresh: bool

    @property
    def size(self) -> tuple[int, int]:
        """Of the model's input, (height, width)."""
        return self.photo.inputs.shape[2], self.photo.inputs.shape[3]


@final
class Desk:
    """Everything that the server computes. Requests share models and nothing else."""

    def __init__(self, models: Models, limits: Limits) -> None:
        self.models = models
        self.limits = limits
        self.held = Held(limits)
        self.works = Works()

    def classes(self, model: str) -> dict[str, Any]:
        """What can be asked of a model, and the examples that are like what it has learnt from."""
        with self.models.use(model, self.limits.seconds) as loaded:
            return {
                "model": model,
                "count": loaded.anatomy.num_classes,
                "names": None if loaded.takes_text or not loaded.class_names else list(loaded.class_names),
                "takes_text": loaded.takes_text,
                "examples": fitting(model, loaded),
            }

    def explain(self, photo: str, model: str, target: Target, method: str) -> dict[str, Any]:
        """Predictions, and the map of one method for one class."""
        request, start = Request.parse(method), time.perf_counter()
        current().expect([request.name])
        with self._asked(photo, model, target) as asked:
            reused = asked.photo.recordings.has(request.backward, request.method.signals)
            answer = run(asked.vision, asked.photo.inputs, target, [request], asked.photo.recordings)[0]
            index, logits = int(answer.target[0, 0]), answer.logits[0]
            relevance = answer.relevance[0, 0]
            return {
                **self._about(asked, logits, index),
                "method": request.name,
                "map": pack.map_of(relevance, asked.size, signed=request.method.signed),
                "blocks": self._blocks(asked, request, index),
                "class_specific": request.method.class_specific,
                "recording_reused": reused,
                "seconds": time.perf_counter() - start,
            }

    def compare(self, photo: str, model: str, targets: Sequence[Target], methods: Sequence[str]) -> dict[str, Any]:
        """Maps of several methods for one or two classes."""
        requests = self._requests(methods)
        wanted = list(dict.fromkeys(targets)) or [None]
        if len(wanted) > 2:
            raise InputError(f"Got {len(wanted)} classes to compare; give one or two.")
        start = time.perf_counter()
        current().expect([request.name for request in requests] * len(wanted))
        with self._asked(photo, model, *wanted) as asked:
            rows = []
            for target in wanted:
                answers = run(asked.vision, asked.photo.inputs, target, requests, asked.photo.recordings)
                index, logits = int(answers[0].target[0, 0]), answers[0].logits[0]
                maps = [
                    {
                        "method": request.name,
                        "class_specific": request.method.class_specific,
                        **pack.map_of(answer.relevance[0, 0], asked.size, signed=request.method.signed),
                    }
                    for request, answer in zip(requests, answers, strict=True)
                ]
                rows.append({**self._about(asked, logits, index), "maps": maps})
            return {**rows[0], "rows": rows, "seconds": time.perf_counter() - start}

    def tokens(self, photo: str, model: str, target: Target, rule: str) -> dict[str, Any]:
        """TokenTM taken apart: every token's length, direction and weights through depth, and which heads carry it."""
        request, start = Request.parse("tokentm", backward=rule), time.perf_counter()
        with self._asked(photo, model, target) as asked:
            logits = asked.photo.recordings.under(request.backward, request.method.signals).logits
            chosen = resolve_target(target, logits, asked.vision)[:, 0]
            trace = asked.photo.recordings.trace(chosen, request.backward, request.method.signals)
            with torch.no_grad():
                found, parts = depth(trace), carried(trace)
                relevance = request.method(trace, request.options)
            return {
                **self._about(asked, logits[0].cpu(), int(chosen)),
                "method": request.name,
                "prefix": trace.num_prefix,
                "map": pack.map_of(trace.to_grid(relevance)[0].float().cpu(), asked.size, signed=False),
                "relevance": pack.array(relevance[0].cpu()),
                "length": pack.array(found.length[0].cpu()),
                "attention_ratio": pack.array(found.attention_ratio[0].mean(1).cpu()),
                "attention_cosine": pack.array(found.attention_cosine[0].mean(1).cpu()),
                "attention_weight": pack.array(found.attention_weight[0].mean(1).cpu()),
                "ffn_ratio": pack.array(found.ffn_ratio[0].cpu()),
                "ffn_cosine": pack.array(found.ffn_cosine[0].cpu()),
                "ffn_weight": pack.array(found.ffn_weight[0].cpu()),
                "carried": pack.array(parts.heads[0].cpu()),
                "pool": None if parts.pool is None else pack.array(parts.pool[0].cpu()),
                "kept": pack.array(parts.kept[0].cpu()),
                "seconds": time.perf_counter() - start,
            }

    def faithfulness(self, photo: str, model: str, target: Target, methods: Sequence[str]) -> dict[str, Any]:
        """The perturbation test on this photo, for this class."""
        requests, start = self._requests(methods), time.perf_counter()
        current().expect([*(request.name for request in requests), REMOVING])
        with self._asked(photo, model, target) as asked:
            first = requests[0]
            logits = asked.photo.recordings.under(first.backward, first.method.signals).logits
            index = int(resolve_target(target, logits, asked.vision)[0, 0])
            found = removal(asked.photo.recordings, index, requests)
            return {
                **self._about(asked, logits[0].cpu(), index),
                "fractions": list(found.fractions),
                "curves": [
                    {
                        "method": curve.method,
                        "most_first": curve.most_first.tolist(),
                        "least_first": curve.least_first.tolist(),
                        "area_most": curve.area_most,
                        "area_least": curve.area_least,
                        "falls_faster": curve.falls_faster,
                        "holds_longer": curve.holds_longer,
                        "orders": curve.orders,
                        "level": curve.level,
                        "verdict": curve.verdict,
                    }
                    for curve in found.curves
                ],
                "random": found.random.tolist(),
                "seconds": time.perf_counter() - start,
            }

    def files(
        self, photo: str, model: str, target: Target, method: str, opacity: float, colour_map: str | None
    ) -> dict[str, Any]:
        """The overlay (PNG), the numbers (NPZ) and the manifest (JSON), as ``Explanation.save`` writes them."""
        request = Request.parse(method)
        current().expect([request.name])
        with self._asked(photo, model, target) as asked:
            answer = run(asked.vision, asked.photo.inputs, target, [request], asked.photo.recordings)[0]
            explanation = self._explanation(asked, request, answer)
            picture = explanation.overlay(opacity=opacity, cmap=colour_map)[0]
            contents = explanation.files(0, picture)
            stem = f"{asked.photo.name}-{request.name.replace('/', '-')}"
            return {
                "photo": HELD + asked.token,
                "files": {f"{stem}{suffix}": base64.b64encode(data).decode() for suffix, data in contents.items()},
            }

    @contextmanager
    def _asked(self, photo: str, model: str, *targets: Target) -> Iterator[Asked]:
        """The photo before its model, until it is cancelled or time is up; what is held is used again."""
        if not isinstance(photo, str) or not photo:
            raise ImageError("There is no photo yet; choose one.")
        seconds = self.limits.seconds
        with self.models.use(model, seconds) as loaded, Deadline(seconds, current().stop):
            vision = self._with_texts(photo, model, targets, loaded) if loaded.takes_text else loaded
            self.held.forget_others(self.models.loaded)
            token, found = self._find(photo, model, vision)
            yield Asked(token, found, vision, fresh=not photo.startswith(HELD))
            self.held.tidy()  # with what this request has recorded

    def _with_texts(self, photo: str, model: str, targets: Sequence[Target], loaded: VisionModel) -> VisionModel:
        """The model with every text that was asked for, beside those that this photo was asked about before."""
        found = self.held.get(photo.removeprefix(HELD)) if photo.startswith(HELD) else None
        base = found.recordings.model if found is not None and found.model == model else loaded
        return with_texts([target for target in targets if isinstance(target, str)], base)

    def _find(self, photo: str, model: str, vision: VisionModel) -> tuple[str, Photo]:
        if photo.startswith(HELD):
            token = photo.removeprefix(HELD)
            found = self.held.get(token)
            if found is None or found.model != model:
                raise ImageError("This photo is no longer held for this model; send it again.")
            if found.recordings.model is not vision:  # other prompts, or the model was loaded anew
                found.recordings = Recordings(vision, found.inputs, keep=True)
            return token, found
        image, name = read_photo(photo, self.limits)
        transform = vision.transform
        if transform is None:
            raise InputError(f"The model {model} does not say how photos become its input.")
        inputs = transform(image)[None]
        recordings = Recordings(vision, inputs, keep=True)
        new = Photo(model, name, transform.seen(image), inputs, image.size, recordings)
        return self.held.put(new), new

    def _requests(self, methods: Sequence[str]) -> list[Request]:
        names = list(dict.fromkeys(methods))
        if not names:
            raise InputError("No method is chosen; choose at least one.")
        if len(names) > self.limits.methods:
            raise InputError(f"Got {len(names)} methods; at most {self.limits.methods} are compared at once.")
        return [Request.parse(name) for name in names]

    def _about(self, asked: Asked, logits: torch.Tensor, index: int) -> dict[str, Any]:
        return {
            "photo": HELD + asked.token,
            "model": asked.photo.model,
            "target": index,
            "class": asked.vision.class_name(index),
            "probability": float(probabilities(logits)[index]),
            "classes": pack.classes(asked.vision, logits, index),
            "size": list(asked.size),
            "seen": as_data_url(asked.photo.seen) if asked.fresh else None,
        }

    def _blocks(self, asked: Asked, request: Request, index: int) -> dict[str, Any] | None:
        """Maps of every first block, where the method has them."""
        if request.method.name not in LAYERED:
            return None
        trace = asked.photo.recordings.trace(torch.tensor([index]), request.backward, request.method.signals)
        with torch.no_grad():
            maps = relevance_from_block(trace, request.method.name, request.options)
        grids = torch.stack([trace.to_grid(one)[0] for one in maps.unbind(1)]).float().cpu()
        return pack.stack_of(grids, asked.size)

    def _explanation(self, asked: Asked, request: Request, answer: Any) -> Explanation:
        source = Source(asked.photo.name, size=asked.photo.size)
        return as_explanation(asked.vision, asked.photo.inputs, (source,), request, answer)
