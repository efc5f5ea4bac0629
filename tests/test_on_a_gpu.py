"""The script for a GPU that is at hand for minutes only, rehearsed on the CPU with tiny settings."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "on_a_gpu.py"


@pytest.fixture
def script(monkeypatch):
    spec = importlib.util.spec_from_file_location("on_a_gpu", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "on_a_gpu", module)  # dataclasses look for it there
    spec.loader.exec_module(module)
    return module


def arguments(out: Path, model: Path, *parts: str) -> list[str]:
    return ["--out", str(out), "--device", "cpu", "--tiny", "--model", str(model), "--parts", *parts]


def rows(out: Path, part: str) -> list[dict]:
    return json.loads((out / f"{part}.json").read_text())[part]


@pytest.mark.proofs
def test_every_part_writes_what_it_found(script, saved_model, tmp_path, monkeypatch, capsys):
    called = []

    def run(command, env, **_):
        called.append((command[-1], env.get("HAWK_NO_TYPECHECK")))
        return subprocess.CompletedProcess(command, 0, stdout="some dots\n5 passed\n")

    monkeypatch.delenv("HAWK_NO_TYPECHECK", raising=False)
    monkeypatch.setattr(script.subprocess, "run", run)
    assert script.main(arguments(tmp_path, saved_model, *script.PARTS)) == 0
    assert called == [("not compiled", None), ("compiled and float32", "1")]
    assert [row["said"] for row in rows(tmp_path, "tests")] == [["5 passed"]] * 2
    assert all(row["passed"] for row in rows(tmp_path, "verify"))
    assert [row["series"] for row in rows(tmp_path, "draw")] == ["ar", "scd", "hawk"]
    assert [(row["images"], row["nodes"]) for row in rows(tmp_path, "steps")] == [(1, 1), (1, 4), (4, 1), (4, 4)]
    assert [row["by"] for row in rows(tmp_path, "beside")] == ["transformers", "hawk, plain AR", "hawk"]
    assert rows(tmp_path, "profile")[0]["forwards"] > 1
    assert (tmp_path / "trace.json.gz").stat().st_size > 0
    assert len(capsys.readouterr().out.splitlines()) == sum(len(rows(tmp_path, part)) for part in script.PARTS)


def test_a_failure_is_recorded_and_the_next_job_runs(script, tmp_path, monkeypatch):
    def fails():
        yield {"found": 1}
        raise ValueError("broken")

    def found(number):
        return lambda: iter([{"found": number}])

    monkeypatch.setattr(script, "jobs", lambda settings: {"draw": [fails, found(2)], "steps": [found(3)]})
    assert script.main(arguments(tmp_path, tmp_path, "draw", "steps")) == 1
    assert [row.get("found") or row["error"] for row in rows(tmp_path, "draw")] == [1, "ValueError: broken", 2]
    assert rows(tmp_path, "steps") == [{"found": 3}]
