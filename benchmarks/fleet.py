"""What images cost on GPUs, and which limit many GPUs meet first; computed from measured steps and stated assumptions.

    python benchmarks/fleet.py --price 2.5                              # the H100 of benchmarks/gpu.json
    hawk bench --suite steps --json-out steps.json                      # another card
    python benchmarks/fleet.py steps.json --price 1.1 --accept 24:3.5

The price is dollars for an hour of a GPU. Only the steps are measured: accept lengths that the steps do not come with,
and everything about the fleet, are assumptions, which the options set and the last line (JSON) repeats.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hawk.errors import HawkError
from hawk.measure.fleet import Drawing, FittedSteps, Shape, cost_of, fit_steps, shapes_of
from hawk.measure.fleet_queue import Fleet, Load, gpus_at_limit, simulate

GPU = Path(__file__).with_name("gpu.json")
REQUESTS = ((1, 0.7), (4, 0.3))
"""Images of a request, and the share of such requests."""


def number(text: str) -> float:
    """A finite number above 0."""
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a finite number above 0, not {text}")
    return value


def window(text: str) -> tuple[int, float]:
    """NODES:TOKENS, the nodes of a step and the tokens that it commits."""
    nodes, tokens = text.split(":")
    return int(nodes), number(tokens)


def options() -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("steps", nargs="?", type=Path, default=GPU, help="measured steps")
    add("--price", type=number, required=True, help="dollars for an hour of a GPU")
    add("--accept", type=window, nargs="+", default=[(32, 4.2)], help="NODES:TOKENS of steps with drafts")
    add("--images", type=int, nargs="+", default=[1, 4], help="images that a GPU draws together")
    add("--beside", type=float, default=0.0, help="seconds of an image outside its steps")
    add("--shape", help="the shape that the fleet draws (default: the last one)")
    add("--gpus", type=int, nargs="+", default=[10, 100, 1000], help="GPUs of the fleets")
    add("--load", type=number, default=0.8, help="requests, as a share of what the GPUs alone can draw")
    add("--requests", type=int, default=100_000, help="requests of each simulation")
    add("--dispatches", type=number, default=500.0, help="requests that the head hands out in a second")
    add("--store-gb", type=number, default=2.0, help="gigabytes per second of the shared store")
    add("--image-kb", type=number, default=250.0, help="kilobytes of an image file")
    add("--model-gb", type=number, default=14.0, help="gigabytes that a GPU reads at its start")
    add("--mtbf-hours", type=number, default=1000.0, help="mean hours between two failures of a GPU")
    add("--restart", type=number, default=120.0, help="seconds until a GPU that failed begins to read the model")
    add("--seed", type=int, default=0)
    return parser.parse_args()


def table(*heads: str) -> None:
    """Print the head of a table as Markdown."""
    print("\n| " + " | ".join(heads) + " |\n|" + "---|" * len(heads))


def costs(shape: Shape, fitted: FittedSteps, asked: argparse.Namespace) -> list[dict[str, Any]]:
    """Print and return the costs of a shape, for plain decoding and for each window."""
    found = []
    for nodes, accept in [(1, 1.0), *asked.accept]:
        for images in asked.images:
            drawing = Drawing(nodes, accept, images)
            cost = cost_of(fitted.model, shape.tokens, drawing, asked.price, asked.beside)
            cells = (shape.name, nodes, accept, images, f"{1e3 * cost.step:.2f}", f"{cost.seconds:.3f}")
            figures = (f"{cost.images_per_second:.2f}", f"{cost.dollars_per_million:,.0f}")
            print("| " + " | ".join(map(str, (*cells, *figures))) + " |")
            found.append({"shape": shape.name, "drawing": asdict(drawing), **cost.to_json()})
    return found


def fleets(cost: dict[str, Any], asked: argparse.Namespace) -> list[dict[str, Any]]:
    """Print and return a simulation for each number of GPUs that draw at the given cost."""
    found = []
    for gpus in asked.gpus:
        fleet = Fleet(
            gpus,
            cost["drawing"]["images"],
            cost["seconds"],
            asked.dispatches,
            1e9 * asked.store_gb,
            1e3 * asked.image_kb,
            1e9 * asked.model_gb,
            3600 * asked.mtbf_hours,
            asked.restart,
        )
        rate = asked.load * fleet.images_per_second / Load(1, 1.0, REQUESTS).mean_images
        load = Load(asked.requests, rate, REQUESTS)
        outcome = simulate(fleet, load, asked.seed)
        busy = [f"{share:.0%}" for share in outcome.busy.values()]
        times = [f"{outcome.images_per_second:.0f}", f"{outcome.median:.1f}", f"{outcome.slowest:.1f}"]
        cold = f"{gpus * fleet.model_bytes / fleet.store:.0f}"
        print("| " + " | ".join(map(str, (gpus, *times, *busy, outcome.failures, cold, outcome.limit))) + " |")
        limits = {name: round(count, 1) for name, count in gpus_at_limit(fleet, load).items()}
        found.append({"gpus": gpus, "rate": rate, **outcome.to_json(), "gpus_at_limit": limits})
    return found


def main() -> None:
    """Print the tables as Markdown, and the JSON document."""
    asked = options()
    try:
        shapes = shapes_of(json.loads(asked.steps.read_text(encoding="utf-8")))
    except (OSError, ValueError, HawkError) as error:
        raise SystemExit(f"{asked.steps}: {error}") from error
    named = [shape for shape in shapes if asked.shape in (None, shape.name)]
    if not named:
        raise SystemExit(f"no such shape: choose from {'; '.join(shape.name for shape in shapes)}")
    fits = {shape.name: fit_steps(shape.steps, shape.read) for shape in shapes}
    table("shape", "steps", "read ms", "overhead", "window", "image", "row", "error (rms)", "largest", "left out")
    for shape in shapes:
        model = fits[shape.name].model
        parts = [f"{1e3 * part:.4g}" for part in (model.read, model.overhead, model.window, model.image, model.row)]
        fit = fits[shape.name]
        errors = [f"{error:.1%}" for error in (fit.residual, fit.worst, fit.left_out)]
        print("| " + " | ".join((shape.name, str(len(shape.steps)), *parts, *errors)) + " |")
    table("shape", "nodes", "tokens a step", "images", "step ms", "s an image", "images/s", "$ a million images")
    prices = [row for shape in shapes for row in costs(shape, fits[shape.name], asked)]
    drawn = [row for row in prices if row["shape"] == named[-1].name][-1]
    print(
        f"\nFleets that draw {drawn['shape']}, {drawn['drawing']['nodes']} nodes, {drawn['drawing']['images']} images:"
    )
    table(
        "GPUs",
        "images/s",
        "median s",
        "99 % s",
        "GPUs busy",
        "head",
        "reads",
        "writes",
        "failures",
        "cold start s",
        "limit",
    )
    document = {
        "steps": asked.steps.name,
        "price": asked.price,
        "assumptions": {name: value for name, value in vars(asked).items() if name not in ("steps", "price")},
        "requests": REQUESTS,
        "fits": {name: asdict(fit) for name, fit in fits.items()},
        "costs": prices,
        "fleets": fleets(drawn, asked),
    }
    print("\n" + json.dumps(document))


if __name__ == "__main__":
    main()
