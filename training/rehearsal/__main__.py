"""`python -m training.rehearsal [--data DIR]`: can each network of a profile learn, in which memory, and be exported?

Each takes one fixed batch of samples, as training takes it, and must lower its loss by half within some steps, and
below that of the best constant answer.  Results are one JSON line each in OUT/rehearsal.jsonl; a
second run does what is missing or failed.  Without DIR a phantom is made, once.  Exit code 1: a network failed.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from kernels.commands import ends_with_a_sentence
from kernels.locks import BusyError, alone
from kernels.lumbar.networks.devices import default_device
from kernels.lumbar.run.submission import replace_text
from kernels.profiles import PROFILES
from training.data.tables import TablesError
from training.fitting.preflight import check_losses
from training.phantom.dataset import Options, make_dataset
from training.recipe_schema.load import load_named, names_of
from training.recipe_schema.schema import RecipeError

from .fixed_batch import STUDIES, read_some
from .one_network import STEPS, Setting
from .own_process import Chosen, rehearsed
from .results import FILE, TABLE, Rehearsed, add_result, read_results, result_digest, table_of
from .work import Progress, gflops

PHANTOM = Options(train=STUDIES, test=0, seed=7, scale=0.6)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(prog="python -m training.rehearsal", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("rehearsal"), help="folder for results and decoded studies")
    parser.add_argument("--data", type=Path, help="a folder in the competition's layout; default: OUT/phantom")
    parser.add_argument("--recipes", nargs="*", default=[], help="names of training/recipes, or YAML files")
    parser.add_argument("--networks", nargs="*", default=[], help="those whose names contain one of these words")
    parser.add_argument("--profile", choices=PROFILES, default="full")
    parser.add_argument("--memory-gb", type=float, default=16.0, help="of the GPU to train on (16)")
    parser.add_argument("--samples", type=int, help="in the batch; default: as published, on a CPU 2 to 4")
    parser.add_argument("--jobs", type=int, default=0, help="processes that make the phantom; 0 = one a core")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"at the recipe's learning rate ({STEPS})")
    return parser.parse_args(argv)


def chosen_networks(options: argparse.Namespace) -> list[Chosen]:
    """The networks of the recipes, of which some may be named.  Raises RecipeError."""
    recipes = [load_named(name, options.profile) for name in names_of(options.recipes)]
    whole = [(recipe, member) for recipe in recipes for member in recipe.members()]
    for _, member in whole:
        check_losses(member)
    for word in options.networks:
        if not any(word in member.member.name for _, member in whole):
            raise RecipeError(f"no network of {', '.join(recipe.name for recipe in recipes)} is named like '{word}'")
    words = options.networks or [""]
    return [pair for pair in whole if any(word in pair[1].member.name for word in words)]


def run(options: argparse.Namespace, chosen: Sequence[Chosen], source: str | None) -> int:
    """Rehearse what is not done.  `source`: fingerprint of the data, None for a phantom.  Raises TablesError."""
    device, out = default_device(), options.out
    file = out / FILE
    data = options.data or _phantom(out / "phantom", options.jobs)
    source = source or read_some(data).fingerprint
    setting = Setting(data, out / "cache", options.memory_gb, options.samples, options.steps)
    about = (source, device.type, options.memory_gb, options.samples, options.steps)
    digests = {pair[1].member.name: result_digest(pair[1], about) for pair in chosen}
    known = {one.name: one for one in read_results(file).values() if digests.get(one.name) == one.digest}
    todo = [pair for pair in chosen if pair[1].member.name not in known or known[pair[1].member.name].failure]
    if todo:
        print(f"rehearsal: {len(todo)} of {len(chosen)} networks, the smallest first", flush=True)
    counted = tqdm(todo, desc="counting operations", unit="network", disable=not todo)
    works = {pair[1].member.name: gflops(pair[1]) for pair in counted}
    todo.sort(key=lambda pair: works[pair[1].member.name])
    progress = Progress(sorted(works.values()))
    for pair in todo:
        name = pair[1].member.name
        one = rehearsed(pair, setting, device, digests[name], works[name])
        add_result(file, one)
        known[name] = one
        learned = f"{one.before:.3g} → {one.after:.3g} in {one.steps} steps" if one.before is not None else ""
        print(progress.line(name, f"FAILED {one.failure}" if one.failure else learned), flush=True)
        _write_table(out, [known[pair[1].member.name] for pair in chosen if pair[1].member.name in known], options)
    results = [known[pair[1].member.name] for pair in chosen]
    print(_write_table(out, results, options))
    return 1 if any(one.failure for one in results) else 0


def _phantom(folder: Path, jobs: int) -> Path:
    """The folder, with a phantom.  Raises FileExistsError where it holds something else."""
    make_dataset(folder, PHANTOM, jobs, keep=True)
    return folder


def _write_table(out: Path, results: Sequence[Rehearsed], options: argparse.Namespace) -> str:
    """Replace OUT/rehearsal.md by the table of what is done; returns it for the screen."""
    table = table_of(results, options.memory_gb)
    replace_text(out / TABLE, table.text(markdown=True))
    return table.text()


@ends_with_a_sentence("rehearsal stopped", RecipeError, TablesError, BusyError, OSError)
def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    options = parse(argv)
    if not 0 < options.memory_gb < math.inf:
        raise RecipeError(f"MEMORY_GB is the memory of the GPU in GB, above 0, not {options.memory_gb}")
    if options.jobs < 0:
        raise RecipeError(f"JOBS is a number of processes, 0 for one a core, not {options.jobs}")
    chosen = chosen_networks(options)
    source = read_some(options.data).fingerprint if options.data else None
    if options.out.exists() and not options.out.is_dir():
        raise RecipeError(f"OUT={options.out} is a file, and a folder is asked for")
    options.out.mkdir(parents=True, exist_ok=True)
    with alone(options.out):
        return run(options, chosen, source)


if __name__ == "__main__":
    sys.exit(main())
