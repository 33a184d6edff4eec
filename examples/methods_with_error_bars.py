"""Methods compared on scenes with exact masks: figures with intervals, and which differences are decided."""

import tokentm
from tokentm.evaluate.statistics import paired

METHODS = ["tokentm", "tokentm/libra", "gae", "center", "random"]
SCENES = 24

results = tokentm.evaluate(
    "shapes", f"shapes:{SCENES}", METHODS, ["segmentation"], limit=SCENES, out="out/methods_with_error_bars"
)
metric = next(metric for metric in results.metrics["segmentation"] if metric.name == "mAP")
for figure in results.table():
    if figure.metric.name == metric.name:
        value = figure.estimate
        print(f"{figure.method:14} {value.value:5.1f} %   95 % interval {value.low:5.1f} to {value.high:5.1f}")

rows = {name: results.rows(name, results.explained[0], "segmentation") for name in METHODS}
for name in METHODS[1:]:
    difference = paired(
        metric, rows["tokentm"], rows[name], results.photos()
    )  # objects of one scene are drawn together
    verdict = "decided" if difference.decided else "not decided by so few scenes"
    print(f"tokentm − {name:14} {difference.value:+5.1f} %   {verdict}")
