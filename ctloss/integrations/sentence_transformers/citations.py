"""BibTeX of the papers that the losses are from, for model cards."""

from __future__ import annotations


def _entry(key: str, title: str, author: str, year: int, eprint: str) -> str:
    fields = {"title": title, "author": author, "year": year, "eprint": eprint, "archivePrefix": "arXiv"}
    lines = ",\n".join(f"    {name}={{{value}}}" for name, value in fields.items())
    return f"\n@misc{{{key},\n{lines}\n}}\n"


INFO_NCE = _entry(
    "oord2018representation",
    "Representation Learning with Contrastive Predictive Coding",
    "van den Oord, Aaron and Li, Yazhe and Vinyals, Oriol",
    2018,
    "1807.03748",
)
CZ_NCE = _entry(
    "chen2022cross",
    "Multi-Level Contrastive Learning for Cross-Lingual Alignment",
    "Chen, Beiduo and Guo, Wu and Gu, Bin and Liu, Quan and Wang, Yongchao",
    2022,
    "2202.13083",
)
GTE = _entry(
    "li2023towards",
    "Towards General Text Embeddings with Multi-stage Contrastive Learning",
    "Li, Zehan and Zhang, Xin and Zhang, Yanzhao and Long, Dingkun and Xie, Pengjun and Zhang, Meishan",
    2023,
    "2308.03281",
)
GRADIENT_CACHE = _entry(
    "gao2021scaling",
    "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup",
    "Gao, Luyu and Zhang, Yunyi and Han, Jiawei and Callan, Jamie",
    2021,
    "2101.06983",
)
MATRYOSHKA = _entry(
    "kusupati2022matryoshka",
    "Matryoshka Representation Learning",
    "Kusupati, Aditya and Bhatt, Gantavya and Rege, Aniket and Wallingford, Matthew and Sinha, Aditya and Ramanujan, "
    "Vivek and Howard-Snyder, William and Chen, Kaifeng and Kakade, Sham and Jain, Prateek and Farhadi, Ali",
    2022,
    "2205.13147",
)
GIST = _entry(
    "solatorio2024gistembed",
    "GISTEmbed: Guided In-sample Selection of Training Negatives for Text Embedding Fine-tuning",
    "Solatorio, Aivin V.",
    2024,
    "2402.16829",
)
SUP_CON = _entry(
    "khosla2020supervised",
    "Supervised Contrastive Learning",
    "Khosla, Prannay and Teterwak, Piotr and Wang, Chen and Sarna, Aaron and Tian, Yonglong and Isola, Phillip and "
    "Maschinot, Aaron and Liu, Ce and Krishnan, Dilip",
    2020,
    "2004.11362",
)
