"""tokentm: which parts of an image made a Vision Transformer decide as it did, and how far to trust the answer."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokentm._explain import compare as compare
    from tokentm._explain import explain as explain
    from tokentm.backward import BACKWARD as BACKWARD
    from tokentm.comparison import Comparison as Comparison
    from tokentm.errors import TokentmError as TokentmError
    from tokentm.evaluate import evaluate as evaluate
    from tokentm.explanation import Explanation as Explanation
    from tokentm.interop import as_captum as as_captum
    from tokentm.interop import as_quantus as as_quantus
    from tokentm.methods import METHODS as METHODS
    from tokentm.methods.tokentm import TokenTMConfig as TokenTMConfig
    from tokentm.models import ImageTransform as ImageTransform
    from tokentm.models import VisionModel as VisionModel
    from tokentm.models import load_model as load_model

__version__ = "0.1.0"

# Where each public name lives. They are fetched on first use, so that `import tokentm` and the command line start
# without torch; nothing is patched and no global state is set.
_HOME = {
    "BACKWARD": "tokentm.backward",
    "Comparison": "tokentm.comparison",
    "Explanation": "tokentm.explanation",
    "ImageTransform": "tokentm.models",
    "METHODS": "tokentm.methods",
    "TokenTMConfig": "tokentm.methods.tokentm",
    "TokentmError": "tokentm.errors",
    "VisionModel": "tokentm.models",
    "as_captum": "tokentm.interop",
    "as_quantus": "tokentm.interop",
    "compare": "tokentm._explain",
    "evaluate": "tokentm.evaluate",
    "explain": "tokentm._explain",
    "load_model": "tokentm.models",
}

__all__ = [*_HOME, "__version__"]  # noqa: PLE0604  (the names are strings; see _HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'tokentm' has no attribute {name!r}")
    home = importlib.import_module(_HOME[name])
    if name not in globals():  # importing tokentm.evaluate has bound that package, which can be called
        globals()[name] = getattr(home, name)
    return globals()[name]


def __dir__() -> list[str]:
    return sorted(__all__)
