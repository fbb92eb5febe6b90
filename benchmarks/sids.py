"""Quality of semantic IDs on real catalogues: the default, and one thing at a time changed.

    python -m benchmarks.sids --dir DIR [--seeds 0,1,2] [--codes 64] [--report FILE]

DIR holds `kuairand/` (files as their publisher names them) or `amazon_beauty/` (`Beauty.txt` and attributes), or both. KuaiRand's catalogue
is embedded as `sidstream sids build` does it, from attributes and what was watched before the log begins. Beauty says nothing of how an
item is shown: content is the SVD of its attributes, and what is bought together (training part of the sequences) stands in for creative,
which content does foretell; with what content foretells taken out (default), as it is, or from two heads trained on both.

Every row is one build; a run that was killed goes on where it was. Beside the probe stands its floor: the same probe after the creative
codes were shuffled.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from benchmarks import provenance
from benchmarks.sequences import data as sequences
from jobs.sids import kuairand_input
from model.sid import bundle, contrastive, cooccurrence, disentangle, encoder, probe
from model.sid.bundle import Bundle, Recipe
from model.sid.quantizer import Variant

DEFAULT = "default"
RECIPES = {
    DEFAULT: Recipe(),
    "collisions shared": Recipe(collisions="share"),
    "not balanced": Recipe(Variant("none"), collisions="share"),
    "exactly balanced": Recipe(Variant("exact"), collisions="share"),
    "uniformity 0.8": Recipe(Variant(uniformity=0.8), collisions="share"),
    "grid of 2 values last": Recipe(Variant(fsq_values=2), collisions="share"),
    "smoothing 0.3": Recipe(smoothing=0.3, collisions="share"),
    "hash of item_id last": Recipe(hash_columns=("item_id",)),
}
COLUMNS = ("collision", "identical", "distortion", "neighbours@10", "itself@10", "probe", "shuffled", "reverse", "seconds")
WINDOW = 5
HEADS = contrastive.HeadConfig(dimensions=64, steps=500)

Case = tuple[str, str, int, Callable[[], Bundle]]


def row(built: Bundle, seed: int) -> dict[str, Any]:
    """What a build is judged by.

    `probe` and `reverse` are the largest of any level, in points over the commonest code, of creative told from content and back.
    """
    joint, split = built.quality["joint"], built.content_levels
    shuffled = np.random.default_rng(seed).permutation(built.sids[:, split:])

    def largest(found: dict[str, float], start: str) -> float:
        return max(points for name, points in found.items() if name.startswith(start))

    probes = {name: facts["points"] for name, facts in built.quality["code_probe"].items()}
    floor = {name: found.points for name, found in probe.probes(built.sids[:, :split], shuffled, seed).items()}
    return {
        "collision": joint["collision"],
        "identical": built.quality["identical"],
        "distortion": joint["distortion"],
        "neighbours@10": joint["neighbours"]["10"],
        "itself@10": joint["retrieval"]["10"],
        "probe": largest(probes, "content"),
        "shuffled": largest(floor, "content"),
        "reverse": largest(probes, "creative"),
    }


def table_of(item_ids: np.ndarray, content: np.ndarray, creative: np.ndarray) -> pa.Table:
    return pa.table({"item_id": item_ids, "content": list(content), "creative": list(creative)})


def kuairand(folder: Path, seeds: list[int], codes: int) -> Iterator[Case]:
    catalogue, together = kuairand_input(folder, None)
    for seed in seeds:
        content, creative = encoder.embed(catalogue, together, seed=seed)
        made = table_of(catalogue["item_id"].to_numpy(), content, creative)
        before = table_of(made["item_id"].to_numpy(), content, encoder.creative_vectors(catalogue, content.shape[1], seed))
        yield "KuaiRand", "not disentangled", seed, lambda table=before, seed=seed: bundle.build(table, codes=codes, seed=seed)
        for case, recipe in RECIPES.items():
            yield (
                "KuaiRand",
                case,
                seed,
                lambda recipe=recipe, table=made, seed=seed: bundle.build(table, together, codes=codes, seed=seed, recipe=recipe),
            )


def beauty(folder: Path, seeds: list[int], codes: int) -> Iterator[Case]:
    data = sequences.load(folder, "Beauty")
    train = data.train()
    met = cooccurrence.Sequences(
        np.concatenate([np.array(one, np.int64) for one in train]) - 1,
        np.repeat(np.arange(len(train)), [len(one) for one in train]),
        np.ones(sum(map(len, train)), np.float32),
    )
    attributes, ids = disentangle.unit(data.attributes), np.arange(1, data.items + 1)
    _, group = np.unique(attributes, axis=0, return_inverse=True)
    same, swing = cooccurrence.same(group.reshape(-1)), cooccurrence.swing(met, data.items)
    for seed in seeds:
        bought = disentangle.unit(cooccurrence.factors(cooccurrence.pmi(met, data.items, WINDOW), data.items, HEADS.dimensions, seed))
        apart = disentangle.disentangle(bought, attributes, seed)

        def plain(creative: np.ndarray, recipe: Recipe, seed: int = seed) -> Bundle:
            return bundle.build(table_of(ids, attributes, creative), codes=codes, seed=seed, recipe=recipe)

        states = np.concatenate([attributes, bought], axis=1)

        def heads(gamma2: float, states: np.ndarray = states, seed: int = seed) -> Bundle:
            config = replace(HEADS, seed=seed, gamma2=gamma2)
            trained = contrastive.fit(contrastive.Factor(states, same), contrastive.Factor(states, swing), config)
            return bundle.build(table_of(ids, *trained.embed(states, states)), codes=codes, seed=seed)

        yield "Beauty", "not disentangled", seed, lambda plain=plain, bought=bought: plain(bought, RECIPES[DEFAULT])
        for case, recipe in RECIPES.items():
            if not recipe.smoothing:
                yield "Beauty", case, seed, lambda plain=plain, apart=apart, recipe=recipe: plain(apart, recipe)
        yield "Beauty", "heads", seed, lambda heads=heads: heads(HEADS.gamma2)
        yield "Beauty", "heads, gamma2 0", seed, lambda heads=heads: heads(0.0)


def line(found: dict[str, Any]) -> str:
    cells = [f"{found['data']:9}", f"{found['case']:22}", f"{found['seed']:4d}", *(f"{found[name]:13.3f}" for name in COLUMNS)]
    return " ".join(cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=Path, required=True, help="folder with kuairand/ or amazon_beauty/ or both")
    parser.add_argument("--seeds", default="0,1,2", help="comma-separated")
    parser.add_argument("--codes", type=int, default=64, help="codes per level, 2 + 2 levels")
    parser.add_argument("--report", type=Path, help="JSON file; default: benchmarks/results/sids.json")
    options = parser.parse_args()
    readers = {"kuairand": kuairand, "amazon_beauty": beauty}
    folders = [options.dir / name for name in readers if (options.dir / name).is_dir()]
    if not folders:
        parser.error(f"{options.dir} has neither of the folders {', '.join(readers)}")
    target = options.report or provenance.RESULTS / "sids.json"
    kept = target.with_suffix(f".{options.codes}.unfinished")
    rows = [json.loads(text) for text in kept.read_text().splitlines()] if kept.exists() else []
    done = {(found["data"], found["case"], found["seed"]) for found in rows}
    print(" ".join([f"{'data':9}", f"{'case':22}", "seed", *(f"{name:>13}" for name in COLUMNS)]))
    for found in rows:
        print(line(found))
    for folder in folders:
        for name, case, seed, build in readers[folder.name](folder, [int(seed) for seed in options.seeds.split(",")], options.codes):
            if (name, case, seed) in done:
                continue
            started = time.monotonic()
            built = build()
            found = {"data": name, "case": case, "seed": seed, **row(built, seed), "seconds": time.monotonic() - started}
            found["quality"] = built.quality if case == DEFAULT else None
            rows.append(found)
            with kept.open("a") as file:
                file.write(json.dumps(found) + "\n")
            print(line(found), flush=True)
    facts = {
        "codes": options.codes,
        "threads": torch.get_num_threads(),
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "rows": rows,
    }
    print(provenance.write("sids", facts, ("numpy", "torch"), target))
    kept.unlink()


if __name__ == "__main__":
    main()
