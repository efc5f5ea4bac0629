"""The page of `hawk report`: proofs, step costs, methods and evaluation of one model, in the form of `report_html`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from hawk.drafters.methods import method_named
from hawk.evaluation.report_html import (
    badge,
    conclusions,
    fidelity,
    heading,
    losslessness,
    making,
    side_by_side,
    table,
    warnings,
    whole_page,
)
from hawk.evaluation.report_pictures import short


def model_page(document: Mapping[str, Any], pictures: Sequence[tuple[str, Mapping[str, Sequence[Path]]]]) -> str:
    """The whole page, from the document of `hawk report` and the files of the pictures to show.

    Everything that comes from prompts, names or the command is escaped.
    """
    title = f"Report of {document['job']['model']}"
    evaluated = document["eval"]
    body = [
        heading(title, evaluated),
        summary(document),
        proofs(document["verify"]),
        methods(document["methods"]),
        steps(document["steps"]),
        conclusions(evaluated),
        warnings(evaluated["warnings"]),
        losslessness(evaluated),
        fidelity(evaluated),
        side_by_side(evaluated, pictures),
        making(evaluated),
    ]
    return whole_page(title, body)


def summary(document: Mapping[str, Any]) -> str:
    """One line for each part."""
    names = {"verify": "Proofs", "methods": "Speed", "steps": "Steps", "eval": "Images"}
    lines = []
    for part, name in names.items():
        off = part == "verify" and not document[part]["passed"]
        lines.append(
            f"<li{' class=off' if off else ''}><strong>{name}</strong> {escape(document[part]['summary'])}.</li>"
        )
    return f"<ul class='verdicts'>{''.join(lines)}</ul>"


def proofs(part: Mapping[str, Any]) -> str:
    """How many checks of each method passed, and every check in a part that opens."""
    checks = part["checks"]
    rows = []
    for method in dict.fromkeys(check["method"] for check in checks):
        own = [check for check in checks if check["method"] == method]
        passed = sum(check["passed"] for check in own)
        verifiers = ", ".join(dict.fromkeys(check["verifier"] for check in own))
        kind = "lossless" if all(check["lossless"] for check in own) else "lossy by design: drift measured"
        verdict = badge(passed == len(own), f"{passed} of {len(own)} passed")
        rows.append([method, verifiers, kind, verdict])
    every = [
        [check["method"], check["name"], check["settings"], check["measured"], badge(check["passed"], word(check))]
        for check in checks
    ]
    return (
        "<h2>Proofs of losslessness</h2><p>On tiny targets the exact probability of every image is known. Each method "
        "is compared with it, or with plain AR token by token; the model itself is compared with plain AR, too.</p>"
        + table(["method", "verifier", "kind", "checks"], rows)
        + "<details><summary>Every check</summary>"
        + table(["method", "what", "settings", "measured", "verdict"], every)
        + "</details>"
    )


def word(check: Mapping[str, Any]) -> str:
    """The verdict of a check."""
    return "passed" if check["passed"] else "FAILED"


def methods(part: Mapping[str, Any]) -> str:
    """The table of methods, the fastest first after plain AR."""
    plain, *others = part["rows"]
    rows = [
        [
            method_named(row["method"]).label,
            f"{row['nfe']:.1f}",
            f"{row['accept_length']:.2f}",
            f"{row['seconds_per_image']:.2f}",
            f"{row['speedup_vs_ar']:.2f}",
            f"{row['identical_to_ar']:.0%}",
        ]
        for row in [plain, *sorted(others, key=lambda row: -row["speedup_vs_ar"])]
    ]
    settings = part["environment"]["settings"]
    return (
        f"<h2>Methods</h2><p>{settings['prompts']} prompts, batch {settings['batch']}. All methods draw "
        "the same images in turns. Target forwards and tokens of a forward are means, seconds of an image are the "
        "median from prompt to pixels. Methods that do not promise the tokens of plain AR draw other images.</p>"
        + table(["method", "forwards", "tokens a forward", "seconds", "times as fast as ar", "same images"], rows)
    )


def steps(part: Mapping[str, Any]) -> str:
    """What a step costs by the number of its nodes."""
    rows = [
        [
            str(cost["nodes"]),
            short(1000 * cost["step"]),
            short(1000 * cost["forward"]),
            f"{cost['drafting']:.1%}",
            f"{cost['committed']:.2f}" if cost["committed"] else "-",
        ]
        for cost in part["costs"]
    ]
    return (
        "<h2>What a step costs</h2><p>A step verifies so many nodes in one forward of the target. Milliseconds in the "
        "middle of an image.</p>"
        + table(["nodes", "step ms", "forward ms", "share of drafting", "tokens a step"], rows)
    )
