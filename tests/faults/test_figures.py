"""Names are drawn as they are."""

from __future__ import annotations

import warnings
from pathlib import Path

import cv2
import pytest

from wgap.figures import new_figure


@pytest.mark.parametrize("name", ["$x^_$", "$", r"\frac{", "猫", "🦉 owl", "a" * 300])
def test_a_class_name_is_drawn_as_it_is(name: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    figure = new_figure(4, 3)
    axes = figure.add_subplot()
    axes.barh([name, "plain"], [1, 2], label=name)
    axes.set_title(name)
    axes.legend()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a font without the letter
        figure.savefig(tmp_path / "figure.png")
    assert cv2.imread(str(tmp_path / "figure.png")).std() > 10
