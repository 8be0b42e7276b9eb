"""What a sampler does, told by its function and its options; the host's own are in
`tests/integration/test_safety.py`."""

from functools import partial
from types import SimpleNamespace

import pytest

from rapid_core.comfy.sampler_facts import sampler_kind, sampler_name
from rapid_core.types import SamplerKind

EULER = SamplerKind.EULER
ONE = SamplerKind.ONE_EVALUATION
SEVERAL = SamplerKind.SEVERAL_EVALUATIONS
NOISE = SamplerKind.ADDS_NOISE
UNKNOWN = SamplerKind.UNKNOWN


def named(name, **defaults):
    """A sampler function of that name, with these arguments beside those of the run."""
    arguments = "".join(f", {key}={value!r}" for key, value in defaults.items())
    space = {}
    exec(f"def sample_{name}(model, x, sigmas, extra_args=None{arguments}): ...", space)  # noqa: S102
    return space[f"sample_{name}"]


def sampler(function, **options):
    return SimpleNamespace(sampler_function=function, extra_options=options)


CHURNS = dict(s_churn=0.0, s_noise=1.0)
DRAWS = dict(eta=1.0, s_noise=1.0, noise_sampler=None)


@pytest.mark.parametrize(
    "function, options, kind",
    [
        (named("euler", **CHURNS), {}, EULER),
        (named("euler", **CHURNS), {"s_churn": 0.5}, NOISE),
        (named("euler", **CHURNS), {"s_churn": 0.5, "s_noise": 0.0}, NOISE),  # sigmas of its own
        (named("euler_ancestral", **DRAWS), {}, NOISE),
        (named("euler_ancestral", **DRAWS), {"eta": 0.3}, NOISE),
        (named("euler_ancestral", **DRAWS), {"eta": 0.0}, EULER),
        (named("euler_ancestral", **DRAWS), {"s_noise": 0.0}, ONE),  # below the next sigma
        (named("dpmpp_2m_sde", **DRAWS), {"eta": 0}, ONE),
        (named("seeds_2", **DRAWS), {"eta": 0.0}, SEVERAL),
        (named("er_sde", s_noise=1.0, noise_sampler=None), {}, ONE),
        (named("er_sde", s_noise=1.0, noise_sampler=None), {"s_noise": 0}, ONE),
        (named("res_multistep", s_noise=1.0, noise_sampler=None), {}, ONE),
        (named("lcm", s_noise=1.0, noise_sampler=None), {"s_noise": 0.0}, NOISE),
    ],
)
def test_a_known_sampler_is_told_by_its_options(function, options, kind):
    assert sampler_kind(sampler(function, **options)) is kind


@pytest.mark.parametrize("eta, kind", [(1.0, NOISE), (0.0, ONE)])
def test_noise_by_sigma_counts_on_the_runs_sigmas(eta, kind):
    sa_solver = named("sa_solver", tau_func=None, s_noise=1.0, noise_sampler=None)
    assert sampler_kind(sampler(sa_solver), (1.0, 0.0)) is NOISE
    between = sampler(sa_solver, tau_func=lambda sigma: eta if 0.2 < sigma < 0.8 else 0.0)
    assert sampler_kind(between, (1.0, 0.5, 0.0)) is kind
    assert sampler_kind(between, (1.0, 0.9, 0.1)) is ONE
    pece = sampler(sa_solver, tau_func=lambda _: 0.0, use_pece=True)
    assert sampler_kind(pece, (1.0, 0.0)) is SEVERAL


@pytest.mark.parametrize(
    "function, options, kind",
    [
        (named("novel"), {}, UNKNOWN),
        (named("novel", noise_sampler=None), {}, NOISE),
        (named("novel", eta=0.5), {}, NOISE),
        (named("novel", eta=0.5), {"eta": 0.0}, UNKNOWN),
        (named("novel", eta=0.0), {"eta": 0.5}, NOISE),
        (named("restart", s_noise=1.0, restart_list=None), {}, NOISE),
        (named("restart", s_noise=1.0, restart_list=None), {"s_noise": 0.0}, UNKNOWN),
        (named("novel", **CHURNS), {}, UNKNOWN),
        (named("res_2m"), {}, UNKNOWN),
        (named("res_2m_sde"), {}, NOISE),
        (named("novel_ancestral"), {}, NOISE),
        (named("beside"), {}, UNKNOWN),  # no word of it is sde
        (named("novel", eta=None), {"eta": "much"}, UNKNOWN),
    ],
)
def test_a_sampler_of_another_pack_is_told_by_what_it_takes(function, options, kind):
    assert sampler_kind(sampler(function, **options)) is kind


@pytest.mark.parametrize(
    "inner, kind",
    [
        (sampler(named("euler")), ONE),
        (sampler(named("heun")), SEVERAL),
        (sampler(named("lcm")), NOISE),
        (sampler(named("novel")), UNKNOWN),
        (sampler(named("around"), wrapped=sampler(named("ddpm"))), NOISE),
    ],
)
def test_a_sampler_around_another_is_of_its_kind(inner, kind):
    """As Detail Daemon and Lying Sigma keep it; what euler goes along may be another derivative."""
    assert sampler_kind(sampler(named("detail_daemon"), dds_wrapped_sampler=inner)) is kind


def test_bound_arguments_are_options():
    function = partial(named("euler_ancestral", **DRAWS), eta=0.0)
    assert sampler_kind(sampler(function)) is EULER
    assert sampler_name(sampler(function)) == "euler_ancestral"


def test_what_is_no_function_is_unknown():
    class Sampler:
        def sample(self): ...

    assert sampler_kind(Sampler()) is UNKNOWN and sampler_name(Sampler()) == "Sampler"
    assert sampler_kind(max) is UNKNOWN
    assert sampler_name(named("unipc_bh2")) == "uni_pc_bh2"
