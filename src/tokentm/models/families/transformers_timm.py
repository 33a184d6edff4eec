"""transformers ``TimmWrapper``: a timm model behind the interface of transformers."""

from dataclasses import replace
from typing import Any, final

from torch import nn

from tokentm.errors import UnsupportedModelError
from tokentm.models.anatomy import FAMILIES, Anatomy, Family
from tokentm.models.families._inspect import derives_from, qualified
from tokentm.models.families._transformers import logits_of
from tokentm.models.transforms import ImageTransform

__all__ = ["TimmWrapper"]

WRAPPER = "transformers.models.timm_wrapper.modeling_timm_wrapper.TimmWrapperForImageClassification"


@final
class TimmWrapper:
    """Whatever timm family is inside."""

    def claims(self, model: nn.Module) -> bool:
        """See ``Family``."""
        return derives_from(model, WRAPPER)

    def anatomy(self, model: Any) -> Anatomy:
        """See ``Family``."""
        inside = _family(model).anatomy(model.timm_model)
        return replace(inside, family=f"transformers wrapper of {inside.family}", logits=logits_of)

    def transform(self, model: Any) -> ImageTransform | None:
        """See ``Family``."""
        return _family(model).transform(model.timm_model)

    def class_names(self, model: Any) -> tuple[str, ...] | None:
        """See ``Family``."""
        return _family(model).class_names(model.timm_model)


def _family(model: Any) -> Family:
    for family in FAMILIES.values():
        if not isinstance(family, TimmWrapper) and family.claims(model.timm_model):
            return family
    raise UnsupportedModelError(
        f"The timm model inside the wrapper is a {qualified(type(model.timm_model))}, which no family knows; "
        f"families that work: {', '.join(FAMILIES)}."
    )


FAMILIES.put("transformers TimmWrapper", TimmWrapper())
