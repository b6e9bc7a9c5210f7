"""Pictures show the numbers that they were given."""

import math

import pytest
from matplotlib.figure import Figure

from transformer_xl.evaluation import Evaluation
from transformer_xl.plots import plot_quickstart

BIT = math.log(2)


def evaluation(bits):
    return Evaluation(
        loss_nats=sum(bits) / len(bits) * BIT,
        n_tokens=len(bits),
        n_cold_starts=1,
        seconds=1.0,
        loss_by_position=tuple(b * BIT for b in bits),
    )


def draw(path):
    plot_quickstart(
        path,
        training=[{"tokens": 1_000_000 * k, "bits_per_character": 6 / k} for k in (1, 2, 3)],
        validation=[{"tokens": 3_000_000, "bits_per_character": 2.25}],
        with_memory=evaluation([2.0, 2.5, 2.1]),
        without_memory=evaluation([5.0, 3.0, 2.2]),
        references={"counting characters": 4.8},
    )


def test_the_quickstart_picture_holds_the_curves_the_test_and_the_references(tmp_path, monkeypatch):
    figures = []
    save = Figure.savefig

    def kept(figure, *args, **kwargs):
        figures.append(figure)
        save(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", kept)
    draw(tmp_path / "curve.png")
    curve, places = figures[0].axes
    lines = {line.get_label(): line for line in [*curve.get_lines(), *places.get_lines()]}
    assert lines["training"].get_xydata().tolist() == [[1, 6], [2, 3], [3, 2]]
    assert lines["validation"].get_xydata().tolist() == [[3, 2.25]]
    assert lines["with memory"].get_ydata() == pytest.approx([2.0, 2.5, 2.1])
    assert lines["without memory"].get_ydata() == pytest.approx([5.0, 3.0, 2.2])
    assert list(lines["with memory"].get_xdata()) == [1, 2, 3]
    texts = {text.get_text() for text in curve.texts}
    assert texts == {"test with memory\n2.20", "test without memory\n3.40", "counting characters: 4.80"}
    bottom, top = curve.get_ylim()
    assert bottom < 2
    assert top > 4.8


def test_the_picture_is_written_whole(tmp_path):
    draw(tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["curve.png"]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("bits", [0.5, 6.0])
def test_a_run_of_one_step_can_be_drawn(tmp_path, bits):
    """Its numbers lie far above or below the references, which all must fit into the picture."""
    plot_quickstart(
        tmp_path / "curve.png",
        training=[{"tokens": 1024, "bits_per_character": bits}],
        validation=[],
        with_memory=evaluation([bits, bits]),
        without_memory=evaluation([bits, bits]),
        references={"counting characters": 4.85, "counting pairs": 3.59},
    )
