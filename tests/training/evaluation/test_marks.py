"""Marks cover nothing that they mark, differ from each other, and stay in the picture."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.axes import Axes

from training.evaluation.overlays import ARMS, ROUTE_COLOURS, draw_point, draw_true

SIZE = 41


def drawn(draw: object = None) -> np.ndarray:
    """(H, W, 3) of a grey picture of 41 × 41 pixels, ten screen pixels each, after `draw(axis)`."""
    figure = plt.figure(figsize=(4.1, 4.1), dpi=100)
    axis = figure.add_axes((0, 0, 1, 1))
    axis.imshow(np.full((SIZE, SIZE), 128), cmap="gray", vmin=0, vmax=255)
    axis.set_axis_off()
    if callable(draw):
        draw(axis)
    figure.canvas.draw()
    pixels = np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()  # type: ignore[attr-defined]
    plt.close(figure)
    return pixels


MARKS = [lambda axis: draw_true(axis, 20, 20)]
MARKS += [lambda axis, number=number: draw_point(axis, 20, 20, number) for number in range(len(ARMS))]
MARKS += [lambda axis: draw_point(axis, 20, 20, 0, guessed=True)]


@pytest.mark.parametrize("draw", MARKS)
def test_the_marked_pixel_stays_visible(draw: object) -> None:
    before, after = drawn(), drawn(draw)
    changed = (before != after).any(-1)
    assert changed.any() and not changed[202:208, 202:208].any()


def test_every_mark_looks_otherwise() -> None:
    pictures = [drawn(draw) for draw in MARKS]
    shapes = {(picture != drawn()).any(-1).tobytes() for picture in pictures}
    assert len(shapes) == len(MARKS) and len(ROUTE_COLOURS) == len(ARMS)


@pytest.mark.parametrize(("row", "column"), [(5000, 20), (20, -300), (-7, 99)])
def test_a_point_outside_of_the_picture_is_drawn_on_its_border(row: float, column: float) -> None:
    def draw(axis: Axes) -> None:
        draw_true(axis, row, column)
        assert (axis.get_xlim(), axis.get_ylim()) == ((-0.5, SIZE - 0.5), (SIZE - 0.5, -0.5))

    changed = np.argwhere((drawn(draw) != drawn()).any(-1))
    assert len(changed) and (changed.min() < 10 or changed.max() > 10 * SIZE - 10)
