"""The papers that methods cite, by key."""

from dataclasses import dataclass
from typing import final

__all__ = ["PAPERS", "SOFTWARE", "Paper"]


@final
@dataclass(frozen=True)
class Paper:
    """One entry: enough to find the paper and to cite it.

    Attributes:
        authors: Family names, separated by commas.
        title: As published.
        venue: Short name of the conference or journal; of a preprint ``"arXiv"``.
        year: Of publication.
        arxiv: Number of the preprint.
        given: Given names in the order of ``authors``, where they are known here.
        journal: Whether the venue is one.
    """

    authors: str
    title: str
    venue: str
    year: int
    arxiv: str | None = None
    given: str | None = None
    journal: bool = False

    def __str__(self) -> str:
        where = f", arXiv:{self.arxiv}" if self.arxiv else ""
        return f"{self.authors}, “{self.title}”, {self.venue} {self.year}{where}"

    def bibtex(self, key: str) -> str:
        """The entry for BibTeX, with what is known and nothing else."""
        names = [f"{{{name}}}" if " " in name else name for name in self.authors.split(", ")]
        if self.given is not None:
            names = [f"{family}, {given}" for family, given in zip(names, self.given.split(", "), strict=True)]
        kind, place = ("article", "journal") if self.journal else ("inproceedings", "booktitle")
        fields = {"title": f"{{{self.title}}}", "author": " and ".join(names)}
        if self.venue == "arXiv":
            kind = "misc"
        else:
            fields[place] = self.venue
        fields["year"] = str(self.year)
        if self.arxiv:
            fields |= {"eprint": self.arxiv, "archiveprefix": "arXiv"}
        return _entry(kind, key, fields)


def _entry(kind: str, key: str, fields: dict[str, str]) -> str:
    width = max(map(len, fields))
    lines = [f"  {name:{width}} = {{{value}}}" for name, value in fields.items()]
    return f"@{kind}{{{key},\n" + ",\n".join(lines) + "\n}"


# What CITATION.cff says of the software itself.
SOFTWARE = _entry(
    "software",
    "tokentm",
    {
        "title": "{tokentm: which parts of an image made a Vision Transformer decide as it did}",
        "author": "{The tokentm contributors}",
    },
)


PAPERS: dict[str, Paper] = {
    "wu2024": Paper(
        "Wu, Duan, Kang, Tang, Yan",
        "Token Transformation Matters: Towards Faithful Post-hoc Explanation for Vision Transformer",
        "CVPR",
        2024,
        "2403.14552",
        given="Junyi, Bin, Weitai, Hao, Yan",
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
    "ali2022": Paper(
        "Ali, Schnake, Eberle, Montavon, Müller, Wolf",
        "XAI for Transformers: Better Explanations through Conservative Propagation",
        "ICML",
        2022,
        "2202.07304",
    ),
    "achtibat2024": Paper(
        "Achtibat, Hatefi, Dreyer, Jain, Wiegand, Lapuschkin, Samek",
        "AttnLRP: Attention-Aware Layer-Wise Relevance Propagation for Transformers",
        "ICML",
        2024,
        "2402.05602",
    ),
    "bach2015": Paper(
        "Bach, Binder, Montavon, Klauschen, Müller, Samek",
        "On Pixel-Wise Explanations for Non-Linear Classifier Decisions by Layer-Wise Relevance Propagation",
        "PLOS ONE",
        2015,
        journal=True,
    ),
    "bousselham2024": Paper(
        "Bousselham, Boggust, Chaybouti, Strobelt, Kuehne",
        "LeGrad: An Explainability Method for Vision Transformers via Feature Formation Sensitivity",
        "ICCV",
        2025,
        "2404.03214",
    ),
    "chen2023": Paper(
        "Chen, Li, Yu, Dou, Xiong",
        "Beyond Intuition: Rethinking Token Attributions inside Transformers",
        "TMLR",
        2023,
        journal=True,
    ),
    "englebert2023": Paper(
        "Englebert, Stassin, Nanfack, Mahmoudi, Siebert, Cornu, De Vleeschouwer",
        "Explaining through Transformer Input Sampling",
        "ICCV Workshops",
        2023,
    ),
    "mehri2025": Paper(
        "Mehri, Baghshah, Pilehvar",
        "LibraGrad: Balancing Gradient Flow for Universally Better Vision Transformer Attributions",
        "CVPR",
        2025,
        "2411.16760",
    ),
    "petsiuk2018": Paper(
        "Petsiuk, Das, Saenko",
        "RISE: Randomized Input Sampling for Explanation of Black-box Models",
        "BMVC",
        2018,
        "1806.07421",
    ),
    "qiang2022": Paper(
        "Qiang, Pan, Li, Li, Jang, Zhu",
        "AttCAT: Explaining Transformers via Attentive Class Activation Tokens",
        "NeurIPS",
        2022,
    ),
    "selvaraju2017": Paper(
        "Selvaraju, Cogswell, Das, Vedantam, Parikh, Batra",
        "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization",
        "ICCV",
        2017,
        "1610.02391",
    ),
    "shrikumar2016": Paper(
        "Shrikumar, Greenside, Shcherbina, Kundaje",
        "Not Just a Black Box: Learning Important Features Through Propagating Activation Differences",
        "arXiv",
        2016,
        "1605.01713",
    ),
    "srinivas2019": Paper(
        "Srinivas, Fleuret",
        "Full-Gradient Representation for Neural Network Visualization",
        "NeurIPS",
        2019,
        "1905.00780",
    ),
    "sundararajan2017": Paper(
        "Sundararajan, Taly, Yan", "Axiomatic Attribution for Deep Networks", "ICML", 2017, "1703.01365"
    ),
    "voita2019": Paper(
        "Voita, Talbot, Moiseev, Sennrich, Titov",
        "Analyzing Multi-Head Self-Attention: Specialized Heads Do the Heavy Lifting, the Rest Can Be Pruned",
        "ACL",
        2019,
        "1905.09418",
    ),
    "xie2023": Paper(
        "Xie, Li, Cao, Zhang",
        "ViT-CX: Causal Explanation of Vision Transformers",
        "IJCAI",
        2023,
        "2211.03064",
    ),
}
