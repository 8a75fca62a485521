"""Table 1 of Chen et al. 2022 (arXiv 2202.13083): the figures that ours stand beside, in per cent."""

# mBERT, XLM and MMTE come from Hu et al. 2020 (arXiv 2003.11080). All are means over all of XTREME's languages.
COLUMNS = ("xnli", "pawsx", "pos", "ner", "bucc", "tatoeba")
ROWS: dict[str, tuple[float, ...]] = {
    "mBERT": (65.4, 81.9, 70.3, 62.2, 56.7, 38.7),
    "XLM": (69.1, 80.9, 70.1, 61.2, 56.8, 32.6),
    "MMTE": (67.4, 81.3, 72.3, 58.3, 59.8, 37.9),
    "info-snt": (66.255, 84.092, 71.544, 62.157, 76.426, 41.148),
    "CZ-snt": (66.862, 84.485, 71.733, 62.337, 77.403, 41.751),
    "ML-CTL-CZ": (67.750, 85.321, 72.289, 62.865, 78.440, 43.389),
}
