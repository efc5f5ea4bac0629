"""Raster positions, and the canvas that drafters see."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hawk.decoding.canvas import RECOVERED, Canvas
from hawk.decoding.grid import Grid

sides = st.integers(1, 9)


@given(sides, sides)
def test_positions_run_row_by_row(height, width):
    grid = Grid(height, width)
    assert grid.size == height * width
    cells = [[row, col] for row in range(height) for col in range(width)]
    assert grid.coordinates(torch.arange(grid.size)).tolist() == cells
    assert [grid.position(row, col) for row, col in cells] == list(range(grid.size))


def test_coordinates_keep_the_shape_of_the_positions():
    assert Grid(2, 5).coordinates(torch.tensor([[4, 5], [9, 0]])).tolist() == [[[0, 4], [1, 0]], [[1, 4], [0, 0]]]


@pytest.fixture
def canvas():
    return Canvas.blank(Grid(2, 3), torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float64))


def test_a_blank_canvas_knows_only_the_caption(canvas):
    assert canvas.batch == 2
    assert canvas.committed == [0, 0]
    assert canvas.roots() == [-1, -1]
    assert not canvas.done
    assert canvas.tokens.shape == (2, 6)
    assert canvas.states.shape == (2, 7, 2)
    assert canvas.states.dtype == torch.float64
    assert canvas.states[:, 0].tolist() == [[1, 2], [3, 4]]
    assert canvas.states[:, 1:].count_nonzero() == 0
    assert bool((canvas.origins == RECOVERED).all())


def test_commit_appends_to_one_image_only(canvas):
    canvas.commit(0, [7, 8], [0, RECOVERED])
    canvas.commit(0, [9], [1])
    assert canvas.tokens.tolist() == [[7, 8, 9, 0, 0, 0], [0] * 6]
    assert canvas.origins.tolist() == [[0, RECOVERED, 1, *[RECOVERED] * 3], [RECOVERED] * 6]
    assert canvas.committed == [3, 0]
    assert canvas.roots() == [2, -1]
    assert (canvas.room(0), canvas.room(1)) == (3, 6)


def test_commit_drops_what_lies_past_the_end(canvas):
    canvas.commit(1, [1, 2, 3, 4], [0] * 4)
    canvas.commit(1, [5, 6, 7, 8], [0, 1, 2, 3])
    assert canvas.tokens[1].tolist() == [1, 2, 3, 4, 5, 6]
    assert canvas.origins[1].tolist() == [0, 0, 0, 0, 0, 1]
    assert canvas.room(1) == 0
    canvas.commit(1, [9], [0])
    assert canvas.tokens[1].tolist() == [1, 2, 3, 4, 5, 6]


def test_done_means_every_image(canvas):
    canvas.commit(0, [1] * 6, [0] * 6)
    assert not canvas.done
    canvas.commit(1, [1] * 6, [0] * 6)
    assert canvas.done
