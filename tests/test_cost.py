"""What a draft node costs: measured anew on another machine, taken as it is on this one."""

from dataclasses import replace

import torch

from hawk.cost import forward_seconds, settings_for
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
