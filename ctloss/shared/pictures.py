"""The t-SNE picture of words in several languages, and how any figure is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from .files import writing_file

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure
    from torch import Tensor

MARKERS = "os^DvP*X<>hp"
# Those of Okabe and Ito, then of Tol's muted scheme: all of them differ for the colour-blind too, as far as twelve can.
COLOURS = (
    *("#0072b2", "#d55e00", "#009e73", "#e69f00", "#cc79a7", "#56b4e9"),
    *("#332288", "#882255", "#999933", "#44aa99", "#aa4499", "#7f7f7f"),
)
# With fewer points t-SNE shows nothing.
FEWEST = 10


class Point(NamedTuple):
    """A word in some text: its meaning, its language and its vector (H,)."""

    meaning: str
    language: str
    vector: np.ndarray | Tensor


def write_figure(figure: Figure, path: Path) -> None:
    """Writes a figure as PNG, whole or not at all; the folder is made if missing.

    Make the figure as ``matplotlib.figure.Figure()``, not with pyplot, which would change the user's backend.
    """
    with writing_file(path) as partial:
        figure.savefig(partial, dpi=110, format="png")


def draw_words(panels: Mapping[str, Sequence[Point]], path: Path, *, title: str, seed: int) -> bool:
    """Draws t-SNE pictures of word vectors side by side: colours are meanings, markers are languages.

    In the last panel each meaning stands written amid its points. After Chen et al. 2022, poster, figure 3. ``panels``
    holds the points of each panel by its title; ``title`` is that of the whole picture, ``seed`` that of t-SNE. Returns
    whether every panel had enough points (10) for a picture.
    """
    if min(map(len, panels.values()), default=0) < FEWEST:
        return False
    import numpy as np
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patheffects import withStroke
    from sklearn.manifold import TSNE

    points = [point for panel in panels.values() for point in panel]
    meanings = {m: COLOURS[i % len(COLOURS)] for i, m in enumerate(dict.fromkeys(p.meaning for p in points))}
    languages = {code: MARKERS[i % len(MARKERS)] for i, code in enumerate(sorted({p.language for p in points}))}
    figure = Figure(figsize=(6.5 * len(panels) + 1.5, 6))
    for axis, (name, panel) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        perplexity = min(30.0, (len(panel) - 1) / 3)
        flat = TSNE(perplexity=perplexity, metric="cosine", init="random", random_state=seed).fit_transform(
            np.stack([np.asarray(point.vector) for point in panel])
        )
        for spot, (meaning, language, _) in zip(flat, panel, strict=True):
            axis.scatter(*spot, color=meanings[meaning], marker=languages[language], s=22, linewidths=0)
        axis.set(title=name, xticks=[], yticks=[])
    for meaning in dict.fromkeys(point.meaning for point in panel):
        amid = np.median([spot for spot, point in zip(flat, panel, strict=True) if point.meaning == meaning], axis=0)
        halo = [withStroke(linewidth=3, foreground="white")]
        axis.text(*amid, meaning, color=meanings[meaning], ha="center", weight="bold", path_effects=halo)
    handles = [Line2D([], [], color=colour, marker="o", ls="", label=name) for name, colour in meanings.items()]
    handles += [Line2D([], [], color="black", marker=marker, ls="", label=code) for code, marker in languages.items()]
    figure.legend(handles=handles, loc="center right", frameon=False, fontsize=8)
    figure.suptitle(title)
    figure.tight_layout(rect=(0, 0, 1 - 1.2 / figure.get_figwidth(), 1))
    write_figure(figure, path)
    return True
