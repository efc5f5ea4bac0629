"""What a draft node costs: measured anew on another machine, taken as it is on this one."""

import io
import sys
from dataclasses import replace
from datetime import date

import torch

import hawk.drafters.settings
from hawk.decoding.grid import Grid
from hawk.decoding.planning import MidImage, StepCosts, costs_file, kept_costs, known_seconds, step_seconds
from hawk.drafters.settings import FusedSettings, KnownWindow, costs_of, drifted, known_window, settings_for
from hawk.machine import machine_name
from hawk.proofs.tiny import tiny_target


def test_costs_of_this_machine_or_of_none_are_taken_as_they_are():
    target, fitted = tiny_target(0, torch.float32), FusedSettings.unfitted()
    here = replace(fitted, measured_on=machine_name(torch.device("cpu"), torch.float32))
    assert settings_for(fitted, target, "m") is fitted
    assert settings_for(here, target, "m") is here


def test_costs_of_another_engine_are_measured(monkeypatch):
    """A step of a recorded engine takes another time, so that another window may pay."""
    monkeypatch.setattr(
        hawk.drafters.settings, "step_seconds", lambda target, widths, repeats, engine: dict.fromkeys(widths, 1.0)
    )
    target = tiny_target(0, torch.float32)
    here = replace(FusedSettings.unfitted(), measured_on=machine_name(torch.device("cpu"), torch.float32))
    assert settings_for(here, target, "other engine", "eager") is here
    priced = settings_for(here, target, "other engine", "graph")
    assert priced.measured_on == f"{here.measured_on}, graph"
    assert settings_for(priced, target, "other engine", "graph") is priced


def test_pricing_shows_a_bar_on_a_terminal_only(monkeypatch, capsys):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    step_seconds(tiny_target(0, grid=Grid(1, 2), dim=16), [1, 2], 1)
    assert capsys.readouterr().err == ""
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    step_seconds(tiny_target(0, grid=Grid(1, 2), dim=16), [1, 2], 1)
    assert "timing steps" in terminal.getvalue()


def test_costs_of_another_machine_are_measured_here():
    target = tiny_target(0, torch.float32)
    foreign = replace(FusedSettings.unfitted(), measured_on="abacus", node_cost=123.0)
    priced = settings_for(foreign, target, "m")
    assert priced.measured_on == machine_name(torch.device("cpu"), torch.float32)
    assert 0 <= priced.node_cost < 123
    assert replace(priced, node_cost=123.0, measured_on="abacus") == foreign


def test_every_width_is_timed():
    steps = step_seconds(tiny_target(0), [1, 3, 40], 2)  # the last reaches past the image
    assert list(steps) == [1, 3, 40]
    assert all(value > 0 for value in steps.values())


def test_another_machine_chooses_its_own_window(monkeypatch):
    settings = FusedSettings.unfitted(("stale",))
    foreign = replace(settings, measured_on="abacus", tokens_at={1: 1.8, 7: 4.0, 15: 4.4})
    costs = {"flat": lambda n: 1.0, "steep": lambda n: float(n)}  # seconds of a forward of n nodes
    chosen = {}
    for name, cost in costs.items():
        monkeypatch.setattr(
            hawk.drafters.settings, "step_seconds", lambda target, widths, n, engine, f=cost: {w: f(w) for w in widths}
        )
        chosen[name] = settings_for(foreign, tiny_target(0), name).refresh
    assert chosen == {"flat": 15, "steep": 1}


def test_costs_are_measured_once_for_a_model_and_machine(monkeypatch, tmp_path):
    monkeypatch.setenv("HAWK_CACHE", str(tmp_path))
    measured = []

    def step_seconds(target, widths, repeats, engine):
        measured.append(widths)
        return {width: 1.0 + width for width in widths}

    monkeypatch.setattr(hawk.drafters.settings, "step_seconds", step_seconds)
    foreign = replace(FusedSettings.unfitted(("stale",)), measured_on="abacus", tokens_at={1: 1.8, 7: 4.0})
    target = tiny_target(0)
    first = settings_for(foreign, target, "one")
    assert settings_for(foreign, target, "one") == first
    assert len(measured) == 1
    settings_for(foreign, target, "another")
    settings_for(replace(foreign, tokens_at={1: 1.8, 40: 4.0}), target, "one")  # a width that was not timed
    assert len(measured) == 3
    costs_file().write_text("{damaged")
    assert settings_for(foreign, target, "one") == first
    assert len(measured) == 4
    assert settings_for(foreign, target, "one") == first
    assert len(measured) == 4


def test_costs_keep_their_day_and_older_files_are_read(monkeypatch, tmp_path):
    monkeypatch.setenv("HAWK_CACHE", str(tmp_path))
    costs_file().write_text('{"old": {"1": 2.0, "4": 3.0}, "impossible": {"1": -1.0}, "not JSON": [1]}')
    assert kept_costs() == {"old": StepCosts({1: 2.0, 4: 3.0})}
    assert known_seconds("old", [1, 4], lambda: {}) == {1: 2.0, 4: 3.0}
    assert known_seconds("new", [1], lambda: {1: 5.0}) == {1: 5.0}
    assert kept_costs() == {"old": StepCosts({1: 2.0, 4: 3.0}), "new": StepCosts({1: 5.0}, date.today())}
    assert known_seconds("old", [1], lambda: {1: 7.0}, anew=True) == {1: 7.0}
    assert known_seconds("old", [1], lambda: {}) == {1: 7.0}


def test_the_shortest_round_counts(monkeypatch):
    """Load from other programs makes some rounds longer, never shorter."""
    rounds = iter([9.0, 9.0, 1.0, 8.0, 5.0, 2.0, 7.0, 6.0])  # the first round is a warm-up
    monkeypatch.setattr(MidImage, "seconds", lambda self, call: next(rounds))
    assert step_seconds(tiny_target(0, grid=Grid(1, 2), dim=16), [1, 2], 3) == {1: 1.0, 2: 2.0}


def test_the_known_window_needs_no_measuring(monkeypatch, tmp_path):
    monkeypatch.setenv("HAWK_CACHE", str(tmp_path))
    target, machine = tiny_target(0), machine_name(torch.device("cpu"), torch.float64)
    foreign = replace(FusedSettings.unfitted(("stale",)), measured_on="abacus", tokens_at={1: 1.8, 7: 4.0})
    monkeypatch.setattr(
        hawk.drafters.settings, "step_seconds", lambda target, widths, n, engine: dict.fromkeys(widths, 1.0)
    )
    assert known_window(foreign, "m", machine, "eager") is None
    assert settings_for(foreign, target, "m").refresh == 7
    assert known_window(foreign, "m", machine, "eager") == KnownWindow(7, date.today())
    assert known_window(replace(foreign, measured_on="", refresh=5), "m", machine, "eager") == KnownWindow(5)


def test_drift_is_noticed_both_ways_and_made_sure(monkeypatch, tmp_path):
    monkeypatch.setenv("HAWK_CACHE", str(tmp_path))
    target, timed = tiny_target(0), []
    known_seconds(f"m, {machine_name(target.device, target.dtype)}, eager", [8], lambda: {8: 1.0})
    costs = costs_of(target, "m", "eager")

    def step_seconds(target, widths, repeats, engine):
        timed.append(widths)
        return {8: now}

    monkeypatch.setattr(hawk.drafters.settings, "step_seconds", step_seconds)
    now = 1.2  # an image's steps hold more than the timed ones
    assert [drifted(drawn, target, costs, "eager", 8) for drawn in (1.0, 1.4, 1.6)] == [None, None, False]
    now = 1.6
    assert drifted(1.7, target, costs, "eager", 8)
    assert timed == [[8], [8]]
    assert drifted(0.6, target, costs, "eager", 8)  # measured under load
    assert timed == [[8], [8]]
    assert drifted(1.7, target, costs, "eager", 9)  # the mean of a window that changes: the nearest width is timed
    assert timed == [[8], [8], [8]]
    assert drifted(9.0, target, None, "eager", 8) is None


def test_a_cache_that_cannot_be_written_hinders_nothing(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("HAWK_CACHE", str(tmp_path / "file"))
    assert known_seconds("key", [1], lambda: {1: 2.0}) == {1: 2.0}
