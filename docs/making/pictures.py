"""The pictures of docs/concepts.md, from the report of a real answer: timeline, visibility, positions.

pasta-ray generate "Give me five tips for sleeping well." --max-tokens 200 --json > docs/pictures/report.json
python docs/making/pictures.py docs/pictures/report.json docs/pictures
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot as plt
from matplotlib.colors import ListedColormap

from pasta_ray.engine.config import EngineConfig
from pasta_ray.engine.tokenizer import Tokenizer
from pasta_ray.engine.weights import find_tags, resolve_model
from pasta_ray.lang import Layout, TagMap, TokenDocument, TokenPromise, encode_document, layout, parse

WITH_SYNC = (
    'Two ways to keep warm:\n\n1.<promise topic="Layers" tokens="20"/><async> Wear several thin layers.</async>\n'
    '2.<promise topic="Movement" tokens="20"/><async> Walk about every half hour.</async><sync/>\n\nEither one works.'
)
MAIN, SEQUENTIAL = "#37474f", "#b0bec5"
BODIES = mpl.color_sequences["tab10"]


def main(args: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("report", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", default="smollm2-135m-instruct", help="whose tokenizer counts")
    parser.add_argument("--adapter", default="pasta")
    options = parser.parse_args(args)
    report = json.loads(options.report.read_text(encoding="utf-8"))
    config = EngineConfig(options.model, None if options.adapter == "none" else options.adapter)
    tags = find_tags(config)
    assert isinstance(tags, TagMap), "these pictures are of PASTA's documents"
    tokenizer = Tokenizer.load(resolve_model(config), tags)
    document = encode_document(parse(report["document"]), tokenizer, tags)
    joined = encode_document(parse(WITH_SYNC), tokenizer, tags)
    style: Any = {"svg.fonttype": "none", "svg.hashsalt": "pasta-ray", "font.size": 9}
    style |= {"axes.spines.top": False, "axes.spines.right": False}
    with mpl.rc_context(style):
        for name, figure in {
            "timeline": _timeline(report),
            "visibility": _visibility(layout(document), _owners(document)),
            "sync": _visibility(layout(joined), _owners(joined)),
            "positions": _positions(layout(document), _owners(document)),
        }.items():
            figure.savefig(options.out / f"{name}.svg", metadata={"Date": None}, bbox_inches="tight")
            plt.close(figure)


def _owners(document: TokenDocument) -> list[int]:
    """For every token of the layout the number of its body, from 1, or 0 for the main branch."""
    owners: list[int] = []
    num_bodies = 0
    for node in document.nodes:
        if isinstance(node, TokenPromise):
            num_bodies += 1
            owners += [0] * len(node.head) + [num_bodies] * len(node.body)
        else:
            owners += [0] * (len(node.ids) if hasattr(node, "ids") else 1)
    return owners


def _color(owner: int) -> Any:
    return BODIES[(owner - 1) % len(BODIES)] if owner else MAIN


def _timeline(report: dict[str, Any]) -> Any:
    branches, parallel = report["branches"], report["parallel"]
    figure, axes = plt.subplots(figsize=(7.5, 0.6 + 0.32 * (len(branches) + 1)))
    for row, branch in enumerate(branches):
        start, end = branch["first_step"] - 1, branch["last_step"]
        axes.barh(row, end - start, left=start, height=0.7, color=_color(row))
        topic = f"“{branch['topic']}”" if branch["topic"] else "main branch"
        axes.text(end + 1, row, f"{topic}, {branch['tokens']} tokens", va="center")
    row = len(branches)
    axes.barh(row, parallel["sequential_tokens"], height=0.7, color=SEQUENTIAL)
    axes.set_yticks(range(row + 1), [*(branch["id"] for branch in branches), "one by one"])
    axes.invert_yaxis()
    axes.set_xlabel(
        f"model step: {parallel['critical_path']} with branches, {parallel['sequential_tokens']} for the same text one"
        f" token after the other ({parallel['theoretical_speedup']:.2f} times as many)"
    )
    return figure


def _visibility(form: Layout, owners: Sequence[int]) -> Any:
    size = len(form.ids)
    rows = [[(owners[token] + 1) * form.sees(token, other) for other in range(size)] for token in range(size)]
    colors = ListedColormap(["white", *(_color(owner) for owner in range(max(owners) + 1))])
    figure, axes = plt.subplots(figsize=(5.5, 5.5))
    axes.imshow(rows, cmap=colors, interpolation="nearest", vmin=0, vmax=max(owners) + 1)
    axes.set_xlabel("is seen (place in the linear document)")
    axes.set_ylabel("a token sees")
    return figure


def _positions(form: Layout, owners: Sequence[int]) -> Any:
    figure, axes = plt.subplots(figsize=(7.5, 3.2))
    places = range(len(form.ids))
    axes.scatter(places, form.positions, s=6, c=[_color(owner) for owner in owners])
    axes.plot(places, places, color=SEQUENTIAL, linewidth=1, zorder=0)
    axes.set_xlabel("place in the linear document")
    axes.set_ylabel("position")
    return figure


if __name__ == "__main__":
    main()
