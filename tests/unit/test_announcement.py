"""Memory of a run, announced to the host as a wider latent."""

import math
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rapid_core.comfy.memory import Announcement, announced_shape


def linear(factor, constant=0.0):
    """A host's estimate: so many bytes a latent pixel, and a constant."""

    def required(shape):
        return constant + factor * shape[0] * math.prod(shape[2:])

    return required


sizes = st.integers(1, 200)


@given(
    st.tuples(st.integers(1, 4), st.just(16), sizes, sizes),
    st.floats(1.0, 1e5),
    st.floats(0.0, 1e9),
    st.integers(1, 2**40),
)
def test_a_wider_latent_stands_for_the_extra_and_less_than_one_column_more(
    shape, factor, constant, extra
):
    required = linear(factor, constant)
    wider = announced_shape(required, shape, extra)
    assert wider[:-1] == shape[:-1]
    more = required(wider) - required(shape)
    column = required((*shape[:-1], shape[-1] + 1)) - required(shape)
    rounding = 1e-6 * (required(wider) + extra)
    assert extra - rounding <= more <= extra + column + rounding


@pytest.mark.parametrize("extra", [0, -1])
def test_where_nothing_is_kept_the_shape_stays(extra):
    assert announced_shape(linear(5.0), (1, 16, 8, 8), extra) == (1, 16, 8, 8)


@pytest.mark.parametrize("factor", [0.0, -1.0, math.inf, math.nan])
def test_an_estimate_that_makes_no_sense_leaves_the_shape(factor):
    assert announced_shape(linear(factor), (1, 16, 8, 8), 100) == (1, 16, 8, 8)


def test_packed_latents_are_widened_along_their_last_axis():
    assert announced_shape(linear(2.0), (1, 1, 30), 41) == (1, 1, 51)


def test_the_host_is_given_the_wider_shape_and_all_else_as_it_came():
    """It reckons with two latents for each, for a positive and a negative."""
    asked = []

    def memory_required(shape):
        asked.append(list(shape))
        return linear(1.0)(shape)

    model = SimpleNamespace(model=SimpleNamespace(memory_required=memory_required))
    given_on = []

    def executor(*args, **named):
        given_on.append((args, named))
        return "loaded"

    announce = Announcement(160)
    assert announce(executor, model, [1, 16, 8, 8], "conds", model_options={}) == "loaded"
    assert given_on == [((model, (1, 16, 8, 18), "conds"), {"model_options": {}})]
    assert all(shape[0] == 2 for shape in asked)
