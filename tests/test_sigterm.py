"""SIGTERM to `hawk train`: the step is ended, the state saved, exit code 143; the same command then goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from fixtures.long_commands import FIT, Workplace, states
from hawk.cli.app import app
from hawk.errors import TERMINATED, HawkError, TerminatedError
from hawk.training.ahead import Ahead
from hawk.training.endless import target
from hawk.training.endless.pause import wait_while_exists
from hawk.training.loop import BatchLoss, FitConfig, fit
from hawk.training.stopping import given_up, heeding_sigterm, saved_first, stop_asked
from hawk.training.world import World

SOURCE = Path(__file__).parents[1] / "src"
CONFIG = FitConfig(steps=12, batch_size=4, lr=1e-2, warmup=2, dtype="float32", save_every=5, evaluate_every=6)
LINE = "hawk: stopped by SIGTERM: what is done is saved, and the same command goes on"


def sigterm() -> None:
    """Send SIGTERM to this process; Python handles it before the next line."""
    os.kill(os.getpid(), signal.SIGTERM)


def squares(module: nn.Module, step: int, generator: torch.Generator) -> dict[str, Tensor]:
    return {"loss": module(torch.randn(4, 3, generator=generator)).square().mean()}


def signalled_at(last: int) -> BatchLoss:
    """The loss, with SIGTERM in the middle of a step."""

    def loss(module: nn.Module, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        if step == last:
            sigterm()
        return squares(module, step, generator)

    return loss


def fresh() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(3, 2)


@pytest.mark.parametrize("step", [0, 7, 11])
def test_the_step_is_ended_and_saved_and_the_rest_is_as_unbroken(tmp_path: Path, step: int) -> None:
    whole = fit(fresh(), squares, CONFIG, tmp_path / "whole")
    with heeding_sigterm(), pytest.raises(TerminatedError):
        fit(fresh(), signalled_at(step), CONFIG, tmp_path / "stopped")
    assert torch.load(tmp_path / "stopped" / "state.pt", weights_only=True)["step"] == step + 1
    resumed = fit(fresh(), squares, CONFIG, tmp_path / "stopped")
    assert all(torch.equal(resumed.averaged[name], value) for name, value in whole.averaged.items())


def test_the_signal_raises_at_once_but_not_where_something_is_saved_first() -> None:
    seen: list[str] = []

    def saves() -> None:
        with saved_first():
            assert not stop_asked()
            sigterm()
            assert stop_asked()
            seen.append("saved")
        seen.append("went on")

    def gives_up() -> None:
        with saved_first():
            with given_up():
                sigterm()
                seen.append("went on")
            assert stop_asked()
            seen.append("gave up")

    def draws() -> None:
        sigterm()
        seen.append("went on")

    def fails() -> None:
        raise RuntimeError("the other process is gone")

    def imports() -> None:
        sigterm()
        seen.append("imported")
        fails()

    for body in (saves, gives_up, draws):
        with pytest.raises(TerminatedError), heeding_sigterm():
            body()
    with pytest.raises(TerminatedError), heeding_sigterm(lambda frame: True):  # where nothing may be raised
        imports()
    assert seen == ["saved", "gave up", "imported"]
    with pytest.raises(RuntimeError), heeding_sigterm():
        fails()
    assert not stop_asked()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_pause_ends_and_workers_stay(tmp_path: Path) -> None:
    def last_steps() -> None:
        with saved_first():
            batches = Ahead(lambda step: step, 10, workers=1)
            assert batches.at(0) == 0
            (worker,) = batches.made._workers  # type: ignore[union-attr]
            os.kill(worker.pid, signal.SIGTERM)  # as schedulers do, which signal every process of a job
            sigterm()
            wait_while_exists(tmp_path)
            assert [batches.at(step) for step in range(1, 10)] == list(range(1, 10))

    with pytest.raises(TerminatedError), heeding_sigterm():
        last_steps()


def test_a_process_that_is_gone_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(*arguments: object) -> None:
        raise RuntimeError("[pair.cc:553] Connection closed\nby peer")

    for name in ("all_reduce", "barrier"):
        monkeypatch.setattr(torch.distributed, name, closed)
    for operation in (World(0, 2).wait, lambda: World(0, 2).agreed([1.0], "cpu")):
        with pytest.raises(HawkError, match=r"is gone \(\[pair.cc:553\] Connection closed by peer\): give the same"):
            operation()
    assert World().agreed([1.0], "cpu") == [1.0]


SMALL = ("--side", "64", "--steps", "4", "--batch-size", "2", "--dtype", "float32", "--dim", "64", "--layers", "1")


def test_the_command_ends_with_143_and_one_line(saved_model: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(target, "CHECK", 2)
    real, calls = target.training_loss, iter(range(2))

    def signalled(*arguments: object) -> object:
        if next(calls, None) == 1:
            sigterm()
        return real(*arguments)

    words = ["train", "target", "--tokenizer", saved_model, *SMALL, "--out"]
    monkeypatch.setattr(target, "training_loss", signalled)
    done = CliRunner().invoke(app, [str(word) for word in (*words, tmp_path / "stopped")])
    assert (done.exit_code, done.stderr.splitlines()[-1]) == (TERMINATED, LINE), done.output
    assert torch.load(tmp_path / "stopped" / "state.pt", weights_only=True)["step"] == 2
    for name in ("stopped", "whole"):
        done = CliRunner().invoke(app, [str(word) for word in (*words, tmp_path / name)])
        assert done.exit_code == 0, done.output
    weights = [(tmp_path / name / "model" / "target.safetensors").read_bytes() for name in ("stopped", "whole")]
    assert weights[0] == weights[1]


RECIPE = """
heads: {steps: 200, batch_size: 4, horizontal: 1, vertical: 1, save_every: 20, evaluate_every: 100}
spatial: {steps: 200, batch_size: 4, width: 8, heads: 2, save_every: 20, evaluate_every: 100}
"""
COMMANDS = {
    "tokenizer": f"train tokenizer --out out --start {{model}} {FIT} --batch-size 2",
    "target": f"train target --out out --tokenizer {{model}} --dim 64 --layers 1 --workers 1 {FIT} --batch-size 2",
    "drafter": "train drafter --target {model} --prompts {here}/prompts.txt --out out --recipe {here}/recipe.yaml "
    "--kind heads,spatial --dtype float32 --images 96 --draw-batch 8 --sources stale",
}
WRITTEN = {
    "tokenizer": ("state.pt", "state.pt"),
    "target": ("state.pt", "state.pt"),
    "drafter": ("grids/*", "states/*", "heads/state.pt", "spatial/state.pt"),
}


def torchrun(words: list[str], folder: Path, *options: str, processes: int = 2) -> subprocess.Popen[str]:
    """A command of Hawk in so many processes, run in a folder."""
    folder.mkdir(exist_ok=True)
    launch = ["-m", "torch.distributed.run", *options, "--nproc-per-node", str(processes), "-m", "--", "hawk"]
    return subprocess.Popen(
        [sys.executable, *launch, *words],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(SOURCE), "HAWK_CACHE": str(folder)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: subprocess.Popen[str]) -> str:
    """What a process that must succeed has written to its standard error stream."""
    _, errors = process.communicate(timeout=280)
    assert process.returncode == 0, errors[-3000:]
    return errors


def ranks(process: subprocess.Popen[str]) -> list[int]:
    """The ids of the processes that torchrun started, the first rank first."""
    listed = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True, check=False
    )
    return sorted(int(line) for line in listed.stdout.split())


def written(folder: Path, pattern: str) -> dict[Path, int]:
    """The files of a pattern and when each was written."""
    return {path: path.stat().st_mtime_ns for path in folder.glob(pattern) if not path.name.endswith(".tmp")}


def wait_for_another(folder: Path, pattern: str, process: subprocess.Popen[str]) -> None:
    """Wait until a file of a pattern is written."""
    before = written(folder, pattern)
    while written(folder, pattern) == before:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)


@pytest.fixture(scope="module")
def place(saved_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    """What the commands read."""
    place = Workplace.fill(tmp_path_factory.mktemp("place"), saved_model)
    (place.folder / "recipe.yaml").write_text(RECIPE)
    return place


@pytest.mark.proofs
@pytest.mark.parametrize("name", COMMANDS)
def test_two_processes_stop_together_and_end_as_unbroken(place: Workplace, tmp_path: Path, name: str) -> None:
    """SIGTERM to one rank, or to torchrun, in every phase: all ranks stop, none by a signal, and the rest is drawn."""
    words = COMMANDS[name].format(model=place.model, here=place.folder).split()
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    ended(torchrun(words, whole, "--standalone"))
    for i, pattern in enumerate(WRITTEN[name]):
        process = torchrun(words, broken, "--standalone")
        wait_for_another(broken / "out", pattern, process)
        os.kill(process.pid if i % 2 else ranks(process)[-1], signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
        assert process.returncode != 0
        assert errors.count(LINE) == 2, errors
        assert "SIGKILL" not in errors, errors
        assert "SIGABRT" not in errors, errors
    ended(torchrun(words, broken, "--standalone"))
    assert states(broken) == states(whole)


@pytest.mark.proofs
def test_torchrun_restarts_all_after_one_was_killed_and_another_number_goes_on(
    place: Workplace, tmp_path: Path
) -> None:
    """kill -9 of one of two: both are started again, from the saved state. Then one process ends what two began."""
    words = COMMANDS["tokenizer"].format(model=place.model, here=place.folder).split()
    whole, killed, alone = (tmp_path / name for name in ("whole", "killed", "alone"))
    ended(torchrun(words, whole, "--standalone"))
    process = torchrun(words, killed, "--standalone", "--max-restarts", "3")
    wait_for_another(killed / "out", "state.pt", process)
    os.kill(ranks(process)[-1], signal.SIGKILL)
    ended(process)
    expected = states(whole)
    assert states(killed) == expected
    process = torchrun(words, alone, "--standalone")
    wait_for_another(alone / "out", "state.pt", process)
    os.kill(process.pid, signal.SIGTERM)
    process.communicate(timeout=60)
    ended(torchrun(words, alone, "--standalone", processes=1))
    found = states(alone)
    assert found.keys() == expected.keys()
    for name, value in found.items():
        torch.testing.assert_close(torch.tensor(value), torch.tensor(expected[name]), atol=1e-4, rtol=1e-3, msg=name)
