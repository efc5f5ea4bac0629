"""What a draft node costs: measured anew on another machine, taken as it is on this one."""

from dataclasses import replace

import torch

import hawk.cost
from hawk.cost import forward_seconds, settings_for, widest_of_the_fast
from hawk.drafters.pool import FusedSettings
from hawk.evaluation.tiny import tiny_target
from hawk.machine import machine_name


def test_costs_of_this_machine_or_of_none_are_taken_as_they_are():
    target, fitted = tiny_target(0, torch.float32), FusedSettings.unfitted()
    here = replace(fitted, measured_on=machine_name(torch.device("cpu"), torch.float32))
    assert settings_for(fitted, target) is fitted
    assert settings_for(here, target) is here


def test_costs_of_another_machine_are_measured_here():
    target = tiny_target(0, torch.float32)
    foreign = replace(FusedSettings.unfitted(), measured_on="abacus", node_cost=123.0)
    priced = settings_for(foreign, target)
    assert priced.measured_on == machine_name(torch.device("cpu"), torch.float32)
    assert 0 <= priced.node_cost < 123
    assert replace(priced, node_cost=123.0, measured_on="abacus") == foreign


def test_every_width_is_timed():
    seconds = forward_seconds(tiny_target(0), (1, 3, 5), 2)
    assert list(seconds) == [1, 3, 5]
    assert all(value > 0 for value in seconds.values())


def test_the_widest_window_of_those_as_fast_is_taken():
    assert widest_of_the_fast({1: 4.0, 8: 2.0, 16: 2.05, 32: 2.2}) == 16
    assert widest_of_the_fast({1: 1.0, 8: 2.0}) == 1


def test_another_machine_chooses_its_own_window(monkeypatch):
    settings = FusedSettings.unfitted(("stale",))
    foreign = replace(settings, measured_on="abacus", tokens_at={1: 1.8, 7: 4.0, 15: 4.4})
    costs = {"flat": lambda n: 1.0, "steep": lambda n: float(n)}  # seconds of a forward of n nodes
    chosen = {}
    for name, cost in costs.items():
        monkeypatch.setattr(hawk.cost, "forward_seconds", lambda target, widths, n, f=cost: {w: f(w) for w in widths})
        chosen[name] = settings_for(foreign, tiny_target(0)).refresh
    assert chosen == {"flat": 15, "steep": 1}
