"""Array shapes in signatures, at no cost to users.

jaxtyping is a development dependency: static checkers and the test run read the shapes, an installed package does
not need it. Without it ``Float[Tensor, "b n"]`` is just ``Tensor``.

Axis letters, used everywhere: ``b`` rows (image × target), ``n`` tokens, ``h`` heads, ``d`` width of one head,
``w`` model width, ``c`` channels, ``y x`` pixels, ``gy gx`` patch grid, ``k`` classes.
"""

from typing import TYPE_CHECKING, Any

__all__ = ["Bool", "Float", "Int", "UInt8"]

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int, UInt8
else:
    try:
        from jaxtyping import Bool, Float, Int, UInt8
    except ImportError:

        class _Unchecked:
            """Stands in for a jaxtyping dtype: the array type alone is kept."""

            def __class_getitem__(cls, item: tuple[Any, str]) -> Any:
                return item[0]

        Bool = Float = Int = UInt8 = _Unchecked
