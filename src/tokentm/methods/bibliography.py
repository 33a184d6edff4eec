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
