"""What a calibration keeps while it goes on, and its picture."""

import json

import pytest
import torch

from rapid_core.calibration.plans import Chosen, Figures
from rapid_core.calibration.plot import draw
from rapid_core.calibration.state import State
from rapid_core.quadrature.gap_costs import gaps_of

STEPS = 8
TABLE = dict.fromkeys(gaps_of(STEPS), 0.5)


@pytest.fixture
def state(tmp_path):
    return State(tmp_path / "policies", "my model", "abc", STEPS)


@pytest.fixture
def kept(state):
    """A state with two full pictures."""
    figures = Figures({0: [TABLE], 1: [TABLE, TABLE]}, {"#.#.#.##": {0: 41.5}})
    state.write(figures)
    state.write_latents({0: torch.zeros(1, 4), 1: torch.ones(2, 4)})
    return figures


def test_what_was_kept_is_read_again(state, kept):
    figures, latents = state.read()
    assert figures == kept and latents.keys() == {0, 1}
    assert torch.equal(latents[1], torch.ones(2, 4))
    names = sorted(path.name for path in state.path.parent.iterdir())
    assert names == ["my model.calibration.json", "my model.calibration.latents"]
    state.remove()
    state.remove()
    assert state.read() == (Figures(), {}) and not list(state.path.parent.iterdir())


def test_other_inputs_find_nothing(state, kept, tmp_path):
    other = State(tmp_path / "policies", "my model", "abd", STEPS)
    assert other.read() == (Figures(), {})


def test_a_name_with_dots_is_no_ending(tmp_path):
    state = State(tmp_path, "flux.1 dev", "abc", STEPS)
    state.write(Figures())
    assert state.path.name == "flux.1 dev.calibration.json" and state.path.is_file()


@pytest.mark.parametrize("content", [None, b"", b"{}", b"\x08" + bytes(20)])
def test_lost_latents_are_counted_as_drawn_again(state, kept, content):
    if content is None:
        state.latents_path.unlink()
    else:
        state.latents_path.write_bytes(content)
    figures, latents = state.read()
    assert figures.again == 2 and not figures.tables and not latents
    assert figures.psnr == kept.psnr


def test_latents_without_figures_are_nothing(state, kept):
    state.path.write_text("{")
    assert state.read() == (Figures(), {})


def test_a_state_of_another_version_or_length_is_nothing(state, kept, tmp_path):
    assert State(tmp_path / "policies", "my model", "abc", STEPS + 1).read() == (Figures(), {})
    found = json.loads(state.path.read_text())
    state.path.write_text(json.dumps({**found, "version": 2}))
    assert state.read() == (Figures(), {})


def chosen(speedup, psnr, default):
    return Chosen(speedup, (True,) * STEPS, psnr, default, 2)


@pytest.mark.parametrize(
    "some",
    [
        [chosen(1.5, 60.0, 58.0), chosen(2.0, 50.0, 50.0), chosen(5.0, 30.0, 29.0)],
        [chosen(1.5, 60.0, None), chosen(2.0, None, None)],
        [chosen(2.0, 100.0, -100.0)],
        [chosen(2.0, None, None)],
        [],
    ],
)
def test_the_picture_is_drawn_of_whatever_is_known(some):
    picture = draw(some, "my model.safetensors")
    assert picture.shape == (1, 480, 720, 3) and picture.dtype == torch.float32
    assert 0 <= picture.min() and picture.max() <= 1
    blue = (picture[0] - torch.tensor([31, 119, 180]) / 255).abs().sum(-1) < 0.01
    assert bool(blue.any()) == any(one.psnr is not None for one in some)
