"""A frozen target whose layers are spread over two processes gives the grids, states and drafter of a whole one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from fixtures import spread_target
from fixtures.tiny_training import GRID, prompts, tiny_target
from fixtures.tiny_transformers import save, tiny
from hawk.cli.app import app
from hawk.decoding.sampling import SamplingParams
from hawk.errors import HawkError
from hawk.training.drafters.grids import Drawing, hidden_states
from hawk.training.spread import Spread
from hawk.training.world import World

SOURCE = Path(__file__).parents[1] / "src"


@pytest.mark.proofs
@pytest.mark.parametrize("name", ["llamagen", "janus", "emu3"])
def test_a_spread_target_teaches_what_a_whole_one_teaches(saved_model: Path, tmp_path: Path, name: str) -> None:
    """Two processes have an unequal number of shards, and the first one alone fits the pool."""
    model = saved_model if name == "llamagen" else save(tiny(name), tmp_path / name)
    one, two = tmp_path / "one", tmp_path / "two"
    alone, together = [sys.executable], [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"}
    for command, out in ((alone, one), ([*together, "--nproc-per-node", "2"], two)):
        words = [*command, spread_target.__file__, str(model), str(out)]
        done = subprocess.run(words, capture_output=True, text=True, env=environment, check=False, timeout=120)
        assert done.returncode == 0, done.stderr[-3000:]
    whole = json.loads((one / "bytes-0.json").read_text())
    parts = [json.loads((two / f"bytes-{rank}.json").read_text()) for rank in range(2)]
    assert whole[0] == whole[1] == parts[0][0] + parts[1][0]
    assert parts[0][0] == parts[0][1] == pytest.approx(whole[0] / 2, rel=0.1)  # also after the forwards
    for folder, tolerance in (("grids", 0.0), ("states", 1e-2)):
        shards = sorted(path.name for path in (one / folder).iterdir())
        assert len(shards) == 3
        for shard in shards:
            for key, value in load_file(one / folder / shard).items():
                torch.testing.assert_close(load_file(two / folder / shard)[key], value, atol=tolerance, rtol=tolerance)
    for kind in spread_target.KINDS:
        first, second = (torch.load(run / kind / "state.pt", weights_only=True)["averaged"] for run in (one, two))
        for key, value in first.items():
            torch.testing.assert_close(second[key], value, atol=1e-3, rtol=1e-3)
    assert {path.name for path in (one / "drafter").iterdir()} == {path.name for path in (two / "drafter").iterdir()}


def test_states_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    target = tiny_target()
    spread = Spread((), World(), torch.device("cpu"))
    drawing = Drawing(prompts, GRID, SamplingParams(cfg_scale=2.0), 4, spread=spread)
    with pytest.raises(HawkError, match="all of them must be on disk: give --cache-gb as much"):
        hidden_states(target, torch.zeros(8, GRID.size, dtype=torch.long), drawing, tmp_path, 4.0 * GRID.size * 32 * 2)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ((), "start the command with torchrun"),
        (("--engine", "graph"), "no step can be recorded: leave --engine graph out"),
    ],
)
def test_one_process_and_recorded_steps_are_refused(
    saved_model: Path, tmp_path: Path, words: tuple[str, ...], complaint: str
) -> None:
    (tmp_path / "prompts.txt").write_text("a cat\n")
    train = ("train", "drafter", "--target", str(saved_model), "--prompts", str(tmp_path / "prompts.txt"))
    done = CliRunner().invoke(app, [*train, "--out", str(tmp_path / "out"), "--shard-target", *words])
    assert done.exit_code == 2
    assert complaint in done.stderr.splitlines()[-1]
