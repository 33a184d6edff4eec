"""One protocol on one batch, and its figures."""

import numpy as np

from tokentm.evaluate.registry import PROTOCOLS, Batch, Maps, Rows


def measure(name: str, batch: Batch, maps: Maps, config: object = None) -> Rows:
    kind = PROTOCOLS[name]
    return kind.measure(batch, [maps], config or kind.config())[0]


def figures(name: str, rows: Rows, config: object = None) -> dict[str, float]:
    kind = PROTOCOLS[name]
    whole = np.ones((1, len(next(iter(rows.values())))))
    return {metric.name: float(metric.of(rows, whole)[0]) for metric in kind.metrics(config or kind.config())}
