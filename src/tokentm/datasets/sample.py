"""Some of a data set's examples, drawn at random: most sets lie sorted by class, so the first few are of one."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

from tokentm.datasets._photos import digest
from tokentm.datasets.labels import Labelled
from tokentm.datasets.registry import Dataset, Example, photo_of

__all__ = ["Sample"]


@final
@dataclass(frozen=True, eq=False)
class Sample:
    """``Dataset`` of some examples of another, in the order in which they lie there.

    Attributes:
        whole: The data set they are drawn from.
        indices: Which ones.
    """

    whole: Dataset
    indices: tuple[int, ...]

    @classmethod
    def draw(cls, whole: Dataset, count: int, seed: int) -> "Sample":
        """Draw ``count`` examples (all, if there are fewer); the same for the same ``seed`` and number of examples."""
        drawn = np.random.default_rng(seed).permutation(len(whole))[:count]
        return cls(whole, tuple(sorted(drawn.tolist())))

    @property
    def name(self) -> str:
        """That of the whole, with how many were drawn."""
        return f"{self.whole.name} ({len(self)} at random)"

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """See ``Dataset``."""
        return self.whole.class_names

    @property
    def has_labels(self) -> bool:
        """See ``Dataset``."""
        return self.whole.has_labels

    @property
    def has_masks(self) -> bool:
        """See ``Dataset``."""
        return self.whole.has_masks

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Example:
        return self.whole[self.indices[index]]

    def key(self, index: int) -> str:
        """See ``Dataset``."""
        return self.whole.key(self.indices[index])

    def photo(self, index: int) -> str:
        """See ``SeveralPerPhoto``."""
        return photo_of(self.whole, self.indices[index])

    def labels(self) -> Sequence[int | None]:
        """Those of the examples drawn; none where the whole does not know them without reading."""
        known = self.whole.labels() if isinstance(self.whole, Labelled) else ()
        return tuple(known[index] for index in self.indices) if known else ()

    def fingerprint(self) -> str:
        """Digest of the whole and of what was drawn."""
        return digest(self.whole.fingerprint(), self.indices)
