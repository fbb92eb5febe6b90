"""Pictures of a bundle's quality, PNG files: how codes are used, what is found again, what one factor tells of the other."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from model.sid.bundle import Bundle
from model.sid.report import RANKS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DPI = 120


def draw(bundle: Bundle, folder: Path) -> list[Path]:
    """Write usage.png, recall.png and probe.png into a folder, which is made, and return their paths.

    `matplotlib` is imported only here, and draws into memory: no display is needed.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, paint in (("usage", _usage), ("recall", _recall), ("probe", _probe)):
        figure = Figure(figsize=(7, 4), layout="constrained")
        paint(figure.add_subplot(), bundle)
        joint = bundle.quality["joint"]
        facts = f"{joint['compression']:.3f} videos per SID, {joint['collision']:.2%} share theirs"
        figure.suptitle(f"{bundle.version}: {len(bundle.item_ids):,} videos, {facts}", fontsize=9)
        path = folder / f"{name}.png"
        FigureCanvasAgg(figure).print_png(path)
        written.append(path)
    return written


def _usage(axes: Axes, bundle: Bundle) -> None:
    for level, codes in enumerate(bundle.code_counts):
        share = np.sort(np.bincount(bundle.sids[:, level], minlength=codes) / len(bundle.sids))[::-1]
        factor, number = ("content", level) if level < bundle.content_levels else ("creative", level - bundle.content_levels)
        found = bundle.quality[factor]["levels"][number]
        label = f"{factor} {number + 1}: {found['used']} of {codes} used, entropy {found['entropy']:.2f}"
        axes.plot((np.arange(codes) + 1) / codes, share * codes, label=label)
    axes.axhline(1.0, color="grey", linewidth=0.8, linestyle=":")
    axes.set(xlabel="codes, the commonest first (share of the level's)", ylabel="videos / even share", yscale="symlog")
    axes.legend(fontsize=7)


def _recall(axes: Axes, bundle: Bundle) -> None:
    names = ("joint", "content", "creative")
    for place, name in enumerate(names):
        for rank, title in enumerate(RANKS):
            for kind, offset in (("neighbours", 0), ("retrieval", 1)):
                value = bundle.quality[name][kind][str(title)]
                axes.bar(place * 8 + rank * 2 + offset, value, color=("tab:blue", "tab:orange")[offset], alpha=0.4 + 0.3 * rank)
    ticks = [place * 8 + rank * 2 + 0.5 for place in range(len(names)) for rank in range(len(RANKS))]
    axes.set_xticks(ticks, [f"{name}\n@{rank}" for name in names for rank in RANKS], fontsize=7)
    axes.set(ylabel="recall (blue: neighbours, orange: the video itself)", ylim=(0, 1))


def _probe(axes: Axes, bundle: Bundle) -> None:
    found = bundle.quality.get("code_probe", {})
    for place, probe in enumerate(found.values()):
        axes.bar(place, 100 * probe["accuracy"], color="tab:blue", width=0.6)
        axes.hlines(100 * probe["chance"], place - 0.4, place + 0.4, color="black")
        axes.annotate(
            f"{probe['points']:+.1f}", (place, 100 * max(probe["accuracy"], probe["chance"])), ha="center", va="bottom", fontsize=8
        )
    axes.set_xticks(range(len(found)), [name.replace(" to ", "\nto ") for name in found], fontsize=7)
    axes.set(ylabel="accuracy in %; line: the commonest code")
