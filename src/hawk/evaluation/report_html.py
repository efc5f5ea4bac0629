"""The page of a report: one HTML file without scripts, which loads nothing, in dark or light as the reader prefers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from hawk.evaluation.drawn_on import in_words, processors
from hawk.evaluation.report_pictures import galleries, interval_plot, short, with_interval
from hawk.evaluation.run import CONTROL, label_of

STYLE = """
:root { color-scheme: light dark; --text: #1c2024; --soft: #60646c; --page: #ffffff; --card: #f6f7f9; --line: #d9dce1;
  --band: #cfe3ff; --good: #0b6bcb; --bad: #c4320a; --plain: #6b7280; }
@media (prefers-color-scheme: dark) { :root { --text: #e8eaed; --soft: #a3a8b0; --page: #14161a; --card: #1d2025;
  --line: #343941; --band: #1f3a5c; --good: #6cb2ff; --bad: #ff8a5c; --plain: #a3a8b0; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.2rem 1rem 3rem; max-width: 62rem; color: var(--text); background: var(--page);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .3rem; } h2 { font-size: 1.25rem; margin: 2.2rem 0 .5rem; }
h3 { font-size: 1rem; margin: 1.2rem 0 .4rem; font-weight: 600; } p { margin: .4rem 0; max-width: 46rem; }
.soft { color: var(--soft); } .good { color: var(--good); } .bad { color: var(--bad); font-weight: 600; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-size: .9rem; margin: .5rem 0; }
th, td { text-align: left; padding: .35rem .7rem .35rem 0; border-bottom: 1px solid var(--line); vertical-align: top;
  overflow-wrap: normal; }
th { font-weight: 600; color: var(--soft); } td { font-variant-numeric: tabular-nums; }
pre { background: var(--card); padding: .7rem; border-radius: 6px; white-space: pre-wrap; font-size: .85rem; }
ul { padding-left: 1.2rem; margin: .4rem 0; } li { margin: .2rem 0; }
.verdicts { list-style: none; padding: 0; } .verdicts li { background: var(--card); border-left: 4px solid var(--good);
  padding: .5rem .8rem; margin: .4rem 0; border-radius: 4px; } .verdicts li.off { border-color: var(--bad); }
.warnings { border-left: 4px solid var(--bad); background: var(--card); padding: .4rem .8rem; border-radius: 4px; }
.row { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(7rem, 30%), 1fr)); gap: .6rem; }
figure { margin: 0; } figure img { width: 100%; height: auto; display: block; border-radius: 4px; }
figcaption { font-size: .8rem; color: var(--soft); }
.prompt { border-top: 1px solid var(--line); padding-bottom: .6rem; }
.line { display: grid; grid-template-columns: 9rem 1fr 12rem; gap: .8rem; align-items: center; font-size: .9rem; }
.line svg { width: 100%; height: 22px; background: var(--card); display: block; }
.line .number { font-variant-numeric: tabular-nums; white-space: nowrap; }
.band { fill: var(--band); } .whisker { stroke: var(--good); stroke-width: 2; } circle { fill: var(--good); }
.outside .whisker { stroke: var(--bad); } .outside circle { fill: var(--bad); }
.outside .name, .outside .number { color: var(--bad); }
.plain .whisker { stroke: var(--plain); } .plain circle { fill: var(--plain); }
summary { cursor: pointer; color: var(--good); margin: .5rem 0; }
@media (max-width: 40rem) { table { min-width: 24rem; font-size: .8rem; } th, td { padding-right: .5rem; }
  .line { grid-template-columns: 1fr auto; margin: .5rem 0; gap: .1rem .6rem; }
  .line svg { grid-column: 1 / -1; grid-row: 2; } }
"""


def page(document: Mapping[str, Any], pictures: Sequence[tuple[str, Mapping[str, Sequence[Path]]]]) -> str:
    """The whole page, from the document of `report.json` and the files of the pictures to show.

    Everything that comes from prompts, names or the command is escaped.
    """
    title = f"Evaluation of {document['job']['model']}"
    body = [
        heading(title, document),
        conclusions(document),
        warnings(document["warnings"]),
        losslessness(document),
        fidelity(document),
        decoding(document["decoding"]),
        side_by_side(document, pictures),
        making(document),
    ]
    return whole_page(title, body)


def whole_page(title: str, body: Sequence[str]) -> str:
    """A page with a title and the parts of its body, which are HTML; empty parts are left out."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(part for part in body if part)
        + "\n</body>\n</html>\n"
    )


def heading(title: str, document: Mapping[str, Any]) -> str:
    """The title, and in one line what was drawn."""
    job, prompts = document["job"], document["prompts"]
    of = "" if prompts["used"] == prompts["in the set"] else f" of {prompts['in the set']}"
    drawn = prompts["used"] * prompts["images of each"]
    machines = document.get("drawn on", []) or [document["environment"]]
    where = processors(machines) if machines[0]["device"] == job["device"] else job["device"]
    settings = (
        f"temperature {job['temperature']:g}, CFG {job['cfg_scale']:g}, top-k {job['top_k']}, top-p {job['top_p']:g}"
    )
    return (
        f"<h1>{escape(title)}</h1><p class='soft'>{drawn} images a method: {prompts['used']}{of} prompts "
        f"({escape(prompts['set'])}), {prompts['images of each']} of each; {escape(settings)}, "
        f"{escape(job['dtype'])} on {escape(where)}.</p>"
    )


def conclusions(document: Mapping[str, Any]) -> str:
    """What the report says of each method, in one sentence or two."""
    lines = []
    for verdict in document["losslessness"]["verdicts"]:
        placed = document["inside the AR-AR interval"][verdict["method"]]
        off = bool(placed["outside"]) or not verdict["agrees"]
        said = [verdict[key] for key in ("tokens", "laws", "tests") if verdict[key]]
        inside, outside = len(placed["inside"]), len(placed["outside"])
        if inside or outside:
            named = f"; outside: {', '.join(placed['outside'])}" if outside else ""
            said.append(f"{inside} of {inside + outside} figures inside the AR–AR interval{named}")
        word = badge(verdict["agrees"], "as plain AR" if verdict["agrees"] else "not plain AR")
        lines.append(
            f"<li{' class=off' if off else ''}><strong>{escape(verdict['label'])}</strong> "
            f"{word}: {escape('; '.join(said) or 'nothing was compared')}.</li>"
        )
    if not lines:
        return "<p>Only plain AR was drawn: add methods to compare.</p>"
    return (
        "<h2>Result</h2><p>Each method is compared with plain autoregressive decoding (<code>ar</code>). The control "
        f"<code>{CONTROL}</code> is plain AR with other seeds: what it differs by is chance. The AR–AR interval of a "
        "figure is the range that chance alone gives.</p><ul class='verdicts'>" + "".join(lines) + "</ul>"
    )


def warnings(lines: Sequence[str]) -> str:
    """What a reader must know before they trust the figures."""
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f"<div class='warnings'><strong>Read the figures with care</strong><ul>{items}</ul></div>" if lines else ""


def losslessness(document: Mapping[str, Any]) -> str:
    """The three levels: tokens, laws, and tests."""
    found = document["losslessness"]
    parts = []
    if found["tokens"]:
        rows = [
            [
                label_of(row["method"]),
                f"{row['equal_images']} of {row['images']}",
                with_interval({"value": row["rate"], "low": row["low"], "high": row["high"]}),
                f"{row['equal_tokens']:.1%}",
                "yes" if row["promised"] else "no",
            ]
            for row in found["tokens"]
        ]
        parts.append(
            "<h3>1. Tokens</h3><p>A method with coupled verification promises the tokens of plain AR, seed by seed; "
            "the other lossless methods keep the distribution and draw other images.</p>"
            + table(["method", "equal images", "rate", "equal tokens", "promised"], rows)
        )
    if found["laws"]:
        parts.append(laws(found["laws"]))
    if found["tests"]:
        parts.append(tests(found["tests"]))
    return f"<h2>Losslessness, on three levels</h2>{''.join(parts)}" if parts else ""


def laws(rows: Sequence[Mapping[str, Any]]) -> str:
    """The laws on tiny vocabularies, each method in one line, and every check in a part that opens."""
    methods = list(dict.fromkeys(row["method"] for row in rows))
    short_rows = []
    for method in methods:
        own = [row for row in rows if row["method"] == method]
        same = sum(row["same"] for row in own)
        seen = "; ".join(dict.fromkeys(row["seen"] for row in own))
        short_rows.append(
            [method, f"{same} of {len(own)}", badge(same == len(own), "yes" if same == len(own) else "no"), seen]
        )
    every = [[row["method"], row["what"], row["settings"], row["measured"], row["seen"]] for row in rows]
    return (
        "<h3>2. Exact laws on tiny vocabularies</h3><p>On a tiny target the probability of every possible image is "
        "known, and what each method draws is tested against it.</p>"
        + table(
            ["method or verifier", "checks", "plain AR's law", "total variation that it would have seen"],
            short_rows,
        )
        + "<details><summary>Every check</summary>"
        + table(["method or verifier", "what", "settings", "measured", "it would have seen"], every)
        + "</details>"
    )


def tests(rows: Sequence[Mapping[str, Any]]) -> str:
    """The two-sample tests, those of the control first."""
    shown = [
        [
            label_of(row["method"]),
            row["test"],
            short(row["statistic"]),
            short(row["p_value"]),
            badge(not row["differs"], "differs" if row["differs"] else "no difference seen"),
        ]
        for row in sorted(rows, key=lambda row: row["method"] != CONTROL)
    ]
    said = ", ".join(f"{name}: {meaning}" for name, meaning in {row["test"]: row["meaning"] for row in rows}.items())
    return (
        "<h3>3. Two-sample tests</h3><p>Each test asks whether the features of two sets of images come from one "
        f"distribution. A difference counts where p is below {short(rows[0]['threshold'])}: with that, the chance "
        f"of a false alarm in all {len(rows)} tests together is at most 5%. Statistics: {escape(said)}.</p>"
        + table(["method against ar", "test", "statistic", "p", "verdict"], shown)
    )


def fidelity(document: Mapping[str, Any]) -> str:
    """A plot for each metric."""
    rows = [{**row, "label": label_of(row["method"])} for row in document["figures"]]
    if not rows:
        return ""
    against = next((row["against"] for row in rows if row["against"]), "")
    beside = {
        "ar": "The pictures of plain AR stand for the real ones.",
        "references": "The references are the real pictures.",
        "": "",
    }
    plots = []
    for metric in dict.fromkeys(row["metric"] for row in rows):
        own = [row for row in rows if row["metric"] == metric]
        plots.append(f"<h3>{escape(own[0]['title'])} <span class='soft'>({escape(own[0]['meaning'])})</span></h3>")
        plots.append(interval_plot(own + limits(document, metric), document["AR-AR intervals"].get(metric)))
    plots.append(nearest(document["nearest references"]))
    return (
        f"<h2>Fidelity and diversity</h2><p>{beside[against]} Lines are intervals ({escape(document['intervals'])}), "
        f"features are those of {escape(document['extractor'])}. The AR–AR interval is shaded.</p>{''.join(plots)}"
    )


def limits(document: Mapping[str, Any], metric: str) -> list[dict[str, Any]]:
    """The ceiling and the floor of a figure of faithfulness, as further lines of its plot."""
    found = (document["faithfulness"] or {"limits": {}})["limits"].get(metric)
    if found is None:
        return []
    labels = {"ceiling": "taught pictures", "floor": "other prompts"}
    return [{**found[key], "label": label, "inside": None} for key, label in labels.items()]


def nearest(rows: Sequence[Mapping[str, Any]]) -> str:
    """How far pictures are from the nearest reference, beside how far references are from each other."""
    if not rows:
        return ""
    shown = [
        [label_of(row["method"]) if row["method"] else "between references", *map(short, row["quantiles"].values())]
        for row in rows
    ]
    return (
        "<h3>Distances to the nearest reference</h3><p>Images that a model has memorised lie much closer to a "
        "reference than references lie to each other.</p>" + table(["images", *rows[0]["quantiles"]], shown)
    )


def decoding(rows: Sequence[Mapping[str, Any]]) -> str:
    """Target forwards and seconds of each method."""
    shown = [
        [
            row["label"],
            row["verifier"],
            "yes" if row["lossless"] else "no",
            with_interval(row["nfe"]),
            with_interval(row["accept_length"]),
            with_interval(row["seconds"]),
        ]
        for row in rows
    ]
    return (
        "<h2>Decoding</h2><p>Target forwards of an image (mean), tokens of a forward, and seconds of an image (median, "
        "from prompt to pixels, on the machine that drew). The methods took turns on every batch.</p>"
        + table(["method", "verifier", "lossless", "forwards", "tokens a forward", "seconds"], shown)
    )


def side_by_side(document: Mapping[str, Any], pictures: Sequence[tuple[str, Mapping[str, Sequence[Path]]]]) -> str:
    """The pictures of some prompts, all methods in a row."""
    labels = {name: label_of(name) for name in document["job"]["methods"]}
    shown = galleries(pictures, labels)
    return (
        f"<h2>Pictures</h2><p>{len(shown)} of {document['prompts']['used']} prompts, the same for every method; up to "
        f"four images each. Methods share their seeds, except {CONTROL}.</p>{''.join(shown)}"
    )


def making(document: Mapping[str, Any]) -> str:
    """The command, the machines that drew and scored with their versions, and the rule of the seeds."""
    scorer = dict(document["environment"])
    facts = document["job"] | {name: scorer.pop(name) for name in ("model", "target_parameters")}
    rows = [[name, ", ".join(map(str, value)) if isinstance(value, list) else value] for name, value in facts.items()]
    rows += [["drawn on", in_words(machine)] for machine in document.get("drawn on", [])]
    rows.append(["scored on", in_words(scorer)])
    return (
        f"<h2>How to repeat this</h2><pre>{escape(document['command'])}</pre><p>{escape(document['seeds'])}</p>"
        f"<details><summary>Model, settings, machines and versions</summary>{table(['what', 'value'], rows)}</details>"
        "<p class='soft'>All figures are in report.json beside this page.</p>"
    )


class Html(str):
    """Text that is HTML already; `table` escapes every other text."""


def badge(good: bool, text: str) -> Html:
    """A short verdict in the colour of a good or a bad one."""
    return Html(f"<span class='{'good' if good else 'bad'}'>{escape(text)}</span>")


def table(heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table that scrolls sideways on a narrow screen."""
    head = "".join(f"<th>{escape(each)}</th>" for each in heads)
    lines = []
    for row in rows:
        cells = (str(cell) if isinstance(cell, Html) else escape(str(cell)) for cell in row)
        lines.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    return f"<div class='scroll'><table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
