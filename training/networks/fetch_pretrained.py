"""Fetch the published weights that recipes start from, for machines without network.

    python -m training.networks.fetch_pretrained --recipes a b.yaml --out DIR [--profile full]

Fills DIR, to be named by PRETRAINED_DIR, with <name>.<tag>.safetensors (or .bin, .pth) a model, and sources.json with
where each came from, its sha256 and its licence.  What is there already is left alone; run it again to go on.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from kernels.lumbar.run.submission import replace_json
from training import networks
from training.networks.parts.errors import NetworkError
from training.networks.parts.published_weights import (
    SUFFIXES,
    Offer,
    copy_whole,
    downloaded,
    here,
    reachable,
    sha256_of,
)
from training.recipe.load import load_named, names_of
from training.recipe.schema import RecipeError

SOURCES = "sources.json"


def offers_of(names: Sequence[str], profile: str) -> list[Offer]:
    """The published weights that all networks of some recipes start from.  Raises RecipeError, NetworkError."""
    found: dict[Offer, None] = {}
    for name in names_of(names):
        for entry in load_named(name, profile).members():  # type: ignore[arg-type]
            found |= dict.fromkeys(networks.check(entry))
    return list(found)


def fetch(offer: Offer, out: Path) -> Path:
    """One model's weights in `out`, noted in its sources.json.  Raises PretrainedError."""
    sources = json.loads((out / SOURCES).read_text()) if (out / SOURCES).is_file() else {}
    name = offer.also or offer.name
    for path in (out / f"{name}{suffix}" for suffix in SUFFIXES):
        if path.is_file() and sources.get(path.name, {}).get("sha256") == sha256_of(path):
            return path
    partial = out / ".partial" / name
    source = here(offer)
    if source is None or source.is_relative_to(out):  # what lies there unnoted may be damaged
        reachable([offer])
        source = downloaded(offer, partial)
    target = out / f"{name}{source.suffix}"
    copy_whole(source, target)
    shutil.rmtree(partial, ignore_errors=True)
    came_from = offer.repository or offer.url or source.name
    sources[target.name] = {"source": came_from, "sha256": sha256_of(target), "licence": offer.licence}
    replace_json(out / SOURCES, sources)
    return target


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; ends with one sentence where something cannot be fetched."""
    parser = argparse.ArgumentParser(prog="training.networks.fetch_pretrained", description=__doc__)
    parser.add_argument("--recipes", nargs="*", default=[], help="names of training/recipes, or YAML files")
    parser.add_argument("--profile", choices=["smoke", "bench", "full"], default="full")
    parser.add_argument("--out", type=Path, required=True, help="the folder for PRETRAINED_DIR")
    options = parser.parse_args(argv)
    options.out.mkdir(parents=True, exist_ok=True)
    try:
        for offer in offers_of(options.recipes, options.profile):
            path = fetch(offer, options.out)
            sys.stdout.write(f"{path} ({path.stat().st_size / 1e6:.0f} MB, licence {offer.licence})\n")
    except (NetworkError, RecipeError) as error:
        sys.stderr.write(f"fetch stopped: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
