"""A fit that ends by the clock: its learning rate falls with time, it saves its last step, and it can be continued."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from hawk.training import loop
from hawk.training.loop import FitConfig, fit, learning_rate

CONFIG = FitConfig(
    steps=1000, batch_size=1, minutes=1.0, lr=1.0, warmup=0, dtype="float32", save_every=400, evaluate_every=400
)


@pytest.fixture
def clock(monkeypatch):
    """A clock that goes on by ten seconds whenever it is read."""

    class Clock:
        now = 0.0

        def monotonic(self) -> float:
            self.now += 10
            return self.now

    clock = Clock()
    monkeypatch.setattr(loop, "time", clock)
    return clock


def squares(module: nn.Module, step: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    return {"loss": module(torch.ones(1, 2)).square().sum()}


def test_the_learning_rate_falls_with_time_where_that_is_faster():
    assert learning_rate(10, CONFIG) > 0.99
    assert learning_rate(10, CONFIG, seconds=30.0) == pytest.approx(0.51)
    assert learning_rate(10, CONFIG, seconds=90.0) == pytest.approx(CONFIG.final_lr_fraction)
    assert learning_rate(10, replace(CONFIG, minutes=float("inf")), seconds=1e9) == learning_rate(10, CONFIG)


def test_a_fit_ends_when_its_minutes_are_over_and_goes_on_when_it_is_given_more(clock, tmp_path):
    asked = []
    fitted = fit(nn.Linear(2, 1), squares, CONFIG, tmp_path, lambda module, step: asked.append(step) or {})
    assert 60 <= fitted.seconds < 100
    ended = loop.torch.load(tmp_path / "state.pt", weights_only=True)["step"]
    assert asked == [ended]
    assert 2 < ended < 10
    fit(nn.Linear(2, 1), squares, CONFIG, tmp_path)
    assert loop.torch.load(tmp_path / "state.pt", weights_only=True)["step"] == ended
    fit(nn.Linear(2, 1), squares, replace(CONFIG, minutes=3.0), tmp_path)
    assert loop.torch.load(tmp_path / "state.pt", weights_only=True)["step"] > ended
