"""The papers that methods cite, by key."""

from dataclasses import dataclass
from typing import final

__all__ = ["PAPERS", "Paper"]


@final
@dataclass(frozen=True)
class Paper:
    """One entry: enough to find the paper and to cite it."""

    authors: str
    title: str
    venue: str
    year: int
    arxiv: str | None = None

    def __str__(self) -> str:
        where = f", arXiv:{self.arxiv}" if self.arxiv else ""
        return f"{self.authors}, “{self.title}”, {self.venue} {self.year}{where}"


PAPERS: dict[str, Paper] = {
    "wu2024": Paper(
        "Wu, Duan, Kang, Tang, Yan",
        "Token Transformation Matters: Towards Faithful Post-hoc Explanation for Vision Transformer",
        "CVPR",
        2024,
        "2403.14552",
    ),
    "abnar2020": Paper("Abnar, Zuidema", "Quantifying Attention Flow in Transformers", "ACL", 2020, "2005.00928"),
    "chefer2021a": Paper(
        "Chefer, Gur, Wolf", "Transformer Interpretability Beyond Attention Visualization", "CVPR", 2021, "2012.09838"
    ),
    "chefer2021b": Paper(
        "Chefer, Gur, Wolf",
        "Generic Attention-model Explainability for Interpreting Bi-Modal and Encoder-Decoder Transformers",
        "ICCV",
        2021,
        "2103.15679",
    ),
}
