"""What a report shows: tables without empty columns, figures for light and dark pages, the t-SNE picture of words."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .files import writing_file

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.artist import Artist
    from matplotlib.figure import Figure
    from torch import Tensor

# With as many colours in each theme, 132 series differ in at least one of the two.
MARKERS = "os^DvP*X<>p"
# With fewer points t-SNE shows nothing.
FEWEST = 10
# What a table's cell without a value shows.
NOTHING = "–"


@dataclass(frozen=True)
class Theme:
    """Colours on one kind of page. ``suffix`` ends the names of the files; an empty paper lets the page shine through.

    ``halo`` parts letters from what is below them. The eight named colours are those of Okabe and Ito (2008); on dark
    pages the darker ones are lightened. ``series`` has twelve for what has no colour of its own, on light pages six of
    Okabe and Ito's first: they and ink differ by more than 11 in CIELAB, for the colour-blind too (Machado, Oliveira
    and Fernandes 2009).
    """

    suffix: str
    ink: str
    faint: str
    paper: str
    halo: str
    colours: Mapping[str, str]
    series: tuple[str, ...]


LIGHT = Theme(
    "",
    ink="#1f2328",
    faint="#c8ccd1",
    paper="#ffffff",
    halo="#ffffff",
    colours={
        "orange": "#e69f00",
        "sky": "#56b4e9",
        "green": "#009e73",
        "yellow": "#f0e442",
        "blue": "#0072b2",
        "red": "#d55e00",
        "purple": "#cc79a7",
        "grey": "#6e7781",
    },
    series=(
        *("#0072b2", "#d55e00", "#009e73", "#e69f00", "#cc79a7", "#56b4e9"),
        *("#332288", "#117733", "#999933", "#8c510a", "#882255", "#fc26c9"),
    ),
)
DARK = Theme(
    "-dark",
    ink="#e6e8eb",
    faint="#4a4f57",
    paper="",
    halo="#15181e",
    colours={**LIGHT.colours, "green": "#1fc39a", "blue": "#4ba3e3", "red": "#f0803c", "grey": "#9aa3ad"},
    series=(
        *("#808cf5", "#dd4907", "#45f59d", "#e3b317", "#fa79a7", "#bbb2f2"),
        *("#954cff", "#007e5f", "#a69258", "#ffff75", "#d5199f", "#80de6a"),
    ),
)
THEMES = (LIGHT, DARK)


def with_values(
    columns: Sequence[str], rows: Sequence[Sequence[str]], names: int = 1
) -> tuple[list[str], list[list[str]]]:
    """Returns the columns of a table, and the cells in them, without those in which no row has a value.

    Args:
        names: the first columns say what a row is, and stay.

    Example:
        >>> with_values(["model", "F1", "EM"], [["ours", "–", "3.0"], ["base", "–", "–"]])
        (['model', 'EM'], [['ours', '3.0'], ['base', '–']])
    """
    kept = [place for place in range(len(columns)) if place < names or any(row[place] != NOTHING for row in rows)]
    return [columns[place] for place in kept], [[row[place] for place in kept] for row in rows]


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]], names: int = 1) -> str:
    """Returns a Markdown table without empty columns, see :func:`with_values`.

    Example:
        >>> print(markdown(["model", "F1"], [["a|b", "3.0"]]))
        | model | F1 |
        |---|---|
        | a\\|b | 3.0 |
    """
    columns, rows = with_values(columns, rows, names)
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in (columns, *rows)]
    return "\n".join([lines[0], "|---" * len(columns) + "|", *lines[1:]])


class Point(NamedTuple):
    """A word in some text: its meaning, its language and its vector (H,)."""

    meaning: str
    language: str
    vector: np.ndarray | Tensor


def draw(path: Path, make: Callable[[Theme], Figure]) -> list[Path]:
    """Writes ``make``'s figure for light pages to ``path`` and for dark ones beside it; returns both paths.

    Make the figure as ``matplotlib.figure.Figure()``, not with pyplot, which would change the user's backend.

    Raises:
        ValueError: for another name than one that ends in ``.png``.
    """
    if path.suffix != ".png":
        raise ValueError(f"expected a picture's name that ends in .png, got {path.name!r}; pictures are written as PNG")
    written = [path.with_name(name) for name in both(path.name)]
    for theme, target in zip(THEMES, written, strict=True):
        with _colours(theme):
            write_figure(make(theme), target, theme.paper)
    return written


def both(name: str) -> list[str]:
    """Returns the names of a picture for light and for dark pages.

    Example:
        >>> both("words.png")
        ['words.png', 'words-dark.png']
    """
    stem, dot, ending = name.rpartition(".")
    return [f"{stem}{theme.suffix}{dot}{ending}" for theme in THEMES]


@contextmanager
def _colours(theme: Theme) -> Iterator[None]:
    import matplotlib

    inks = ("axes.edgecolor", "axes.labelcolor", "text.color", "xtick.color", "ytick.color")
    look: dict[Any, Any] = {
        **dict.fromkeys(inks, theme.ink),
        "axes.facecolor": "none",
        "axes.spines.right": False,
        "axes.spines.top": False,
        "font.size": 10,
        "grid.color": theme.faint,
        "legend.frameon": False,
    }
    with matplotlib.rc_context(look):
        yield


def write_figure(figure: Figure, path: Path, paper: str = "") -> None:
    """Writes a figure as PNG, whole or not at all; the folder is made if missing.

    Without paper its ground is transparent.
    """
    with writing_file(path) as partial:
        figure.savefig(partial, dpi=160, format="png", facecolor=paper or "none")


def shown(name: str, about: str) -> str:
    """Returns the HTML by which a Markdown page shows :func:`draw`'s pictures, the one for the reader's kind of page.

    Example:
        >>> print(shown("words.png", "Words by meaning"))
        <picture>
          <source media="(prefers-color-scheme: dark)" srcset="words-dark.png">
          <img alt="Words by meaning" src="words.png">
        </picture>
    """
    dark = f'<source media="(prefers-color-scheme: dark)" srcset="{both(name)[1]}">'
    return f'<picture>\n  {dark}\n  <img alt="{about}" src="{name}">\n</picture>'


def add_legend(figure: Figure, handles: Sequence[tuple[str, Artist]], **place: Any) -> None:
    """Adds a legend of names as they are.

    Matplotlib's own leaves out those that begin with an underscore, and reads what dollar signs enclose as a formula.
    """
    legend = figure.legend([handle for _, handle in handles], ["" for _ in handles], **place)
    for text, (name, _) in zip(legend.get_texts(), handles, strict=True):
        text.set(text=name, parse_math=False)


def draw_words(panels: Mapping[str, Sequence[Point]], path: Path, *, title: str, seed: int) -> bool:
    """Draws t-SNE pictures of word vectors side by side: colours are meanings, markers are languages.

    In the last panel each meaning stands written at its points. After Chen et al. 2022, poster, figure 3. ``panels``
    holds the points of each panel by its title; ``title`` is that of the whole picture, ``seed`` that of t-SNE. See
    :func:`draw` for the files. Returns whether every panel had enough points (10) for a picture.
    """
    if min(map(len, panels.values()), default=0) < FEWEST:
        return False
    import numpy as np
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patheffects import withStroke
    from sklearn.manifold import TSNE

    flat = [
        TSNE(
            perplexity=min(30.0, (len(panel) - 1) / 3), metric="cosine", init="random", random_state=seed
        ).fit_transform(np.stack([np.asarray(point.vector) for point in panel]))
        for panel in panels.values()
    ]
    points = [point for panel in panels.values() for point in panel]
    number = {meaning: i for i, meaning in enumerate(dict.fromkeys(point.meaning for point in points))}
    markers = {code: MARKERS[i % len(MARKERS)] for i, code in enumerate(sorted({p.language for p in points}))}

    def make(theme: Theme) -> Figure:
        colours = {meaning: theme.series[i % len(theme.series)] for meaning, i in number.items()}
        figure = Figure(figsize=(4.6 * len(panels) + 1.4, max(4.6, 0.165 * (len(colours) + len(markers) + 1) + 0.7)))
        axes = figure.subplots(1, len(panels), squeeze=False)[0]
        for axis, (name, panel), spots in zip(axes, panels.items(), flat, strict=True):
            for spot, (meaning, language, _) in zip(spots, panel, strict=True):
                axis.scatter(*spot, color=colours[meaning], marker=markers[language], s=14, linewidths=0)
            axis.set(xticks=[], yticks=[])
            axis.set_title(name, fontsize=11, parse_math=False)
            axis.spines[:].set(visible=True, color=theme.faint)
        for meaning in dict.fromkeys(point.meaning for point in panel):
            amid = np.median([spot for spot, p in zip(spots, panel, strict=True) if p.meaning == meaning], axis=0)
            halo = [withStroke(linewidth=3, foreground=theme.halo)]
            # Above the middle, where it hides fewer points.
            place: dict[str, Any] = {"xytext": (0, 5), "textcoords": "offset points", "ha": "center"}
            name = axis.annotate(meaning, amid, color=colours[meaning], fontsize=9, weight="bold", **place)
            name.set(path_effects=halo, parse_math=False)
        look: dict[str, Any] = {"loc": "upper left", "fontsize": 8, "handletextpad": 0.2, "labelspacing": 0.35}
        right = 1 - 1.3 / figure.get_figwidth()
        dot: dict[str, Any] = {"ls": "", "markersize": 5}
        handles = [(meaning, Line2D([], [], color=colour, marker="o", **dot)) for meaning, colour in colours.items()]
        handles.append(("", Line2D([], [], ls="")))
        handles += [(code, Line2D([], [], color=theme.ink, marker=marker, **dot)) for code, marker in markers.items()]
        add_legend(figure, handles, bbox_to_anchor=(right, 1 - 0.4 / figure.get_figheight()), **look)
        figure.suptitle(title, fontsize=11)
        figure.tight_layout(rect=(0, 0, right, 1))
        return figure

    draw(path, make)
    return True
