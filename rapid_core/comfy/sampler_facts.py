"""What a run's sampler does with the derivatives that it is given, as far as its SAMPLER tells."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from functools import partial
from typing import Any

from ..types import SamplerKind

# What the host's samplers are where they add no noise, by the names that people choose. Those with
# `eta` (ancestral, SDE) add none at 0.
KINDS = {
    "euler": SamplerKind.EULER,
    "euler_ancestral": SamplerKind.EULER,
    "heun": SamplerKind.SEVERAL_EVALUATIONS,
    "heunpp2": SamplerKind.SEVERAL_EVALUATIONS,
    "exp_heun_2_x0": SamplerKind.SEVERAL_EVALUATIONS,
    "exp_heun_2_x0_sde": SamplerKind.SEVERAL_EVALUATIONS,
    "dpm_2": SamplerKind.SEVERAL_EVALUATIONS,
    "dpm_2_ancestral": SamplerKind.SEVERAL_EVALUATIONS,
    "dpm_fast": SamplerKind.OWN_SIGMAS,
    "dpm_adaptive": SamplerKind.OWN_SIGMAS,
    "rapid_policy": SamplerKind.OWN_SIGMAS,  # this pack's
    "dpmpp_2s_ancestral": SamplerKind.SEVERAL_EVALUATIONS,
    "dpmpp_2s_ancestral_cfg_pp": SamplerKind.SEVERAL_EVALUATIONS,
    "dpmpp_sde": SamplerKind.SEVERAL_EVALUATIONS,
    "dpmpp_sde_gpu": SamplerKind.SEVERAL_EVALUATIONS,
    "seeds_2": SamplerKind.SEVERAL_EVALUATIONS,
    "seeds_3": SamplerKind.SEVERAL_EVALUATIONS,
    "sa_solver_pece": SamplerKind.SEVERAL_EVALUATIONS,
    # Along the derivative of the negative's prediction, from the guided one: not euler.
    "euler_cfg_pp": SamplerKind.ONE_EVALUATION,
    "euler_pp": SamplerKind.ONE_EVALUATION,
    "euler_ancestral_cfg_pp": SamplerKind.ONE_EVALUATION,
    "lms": SamplerKind.ONE_EVALUATION,
    "dpmpp_2m": SamplerKind.ONE_EVALUATION,
    "dpmpp_2m_cfg_pp": SamplerKind.ONE_EVALUATION,
    "dpmpp_2m_sde": SamplerKind.ONE_EVALUATION,
    "dpmpp_2m_sde_gpu": SamplerKind.ONE_EVALUATION,
    "dpmpp_2m_sde_heun": SamplerKind.ONE_EVALUATION,
    "dpmpp_2m_sde_heun_gpu": SamplerKind.ONE_EVALUATION,
    "dpmpp_3m_sde": SamplerKind.ONE_EVALUATION,
    "dpmpp_3m_sde_gpu": SamplerKind.ONE_EVALUATION,
    "ipndm": SamplerKind.ONE_EVALUATION,
    "ipndm_v": SamplerKind.ONE_EVALUATION,
    "deis": SamplerKind.ONE_EVALUATION,
    "res_multistep": SamplerKind.ONE_EVALUATION,
    "res_multistep_cfg_pp": SamplerKind.ONE_EVALUATION,
    "res_multistep_ancestral": SamplerKind.ONE_EVALUATION,
    "res_multistep_ancestral_cfg_pp": SamplerKind.ONE_EVALUATION,
    "gradient_estimation": SamplerKind.ONE_EVALUATION,
    "gradient_estimation_cfg_pp": SamplerKind.ONE_EVALUATION,
    "er_sde": SamplerKind.ONE_EVALUATION,
    "sa_solver": SamplerKind.ONE_EVALUATION,
    "uni_pc": SamplerKind.ONE_EVALUATION,
    "uni_pc_bh2": SamplerKind.ONE_EVALUATION,
}
ALWAYS_NOISY = frozenset(("lcm", "lcm_upscale", "ddpm"))
# They take `s_noise` and a source of noise. The first two have their step's eta fixed at 0. The third
# does add noise, and can be predicted all the same (docs/lab.md).
MAY_SKIP = frozenset(("res_multistep", "res_multistep_cfg_pp", "er_sde"))
# They make small errors large, and so do all of cfg++ (docs/lab.md). dpm_adaptive chooses its steps by
# how much two evaluations differ; the last three go by four derivatives in a row.
SENSITIVE = frozenset(("dpm_fast", "dpm_adaptive", "euler_pp", "lms", "ipndm", "ipndm_v"))
SHOWN = {
    "unipc": "uni_pc",
    "unipc_bh2": "uni_pc_bh2",
    "dpm_fast_function": "dpm_fast",
    "dpm_adaptive_function": "dpm_adaptive",
}


def sampler_name(sampler: Any) -> str:
    """Name of a SAMPLER, or of a sampler function, as people know it."""
    function = _unwrapped(getattr(sampler, "sampler_function", sampler))
    name = getattr(function, "__name__", type(function).__name__).removeprefix("sample_")
    return SHOWN.get(name, name)


def is_sensitive(sampler: Any) -> bool:
    """Whether a SAMPLER, or the one that it wraps, makes small errors large."""
    inner = _wrapped(sampler)
    if inner is not None:
        return is_sensitive(inner)
    name = sampler_name(sampler)
    return name in SENSITIVE or name.endswith("cfg_pp")


def sampler_kind(sampler: Any, sigmas: Sequence[float] = ()) -> SamplerKind:
    """What a SAMPLER, or a sampler function, does in a run on these sigmas. A sampler that another
    pack made is known by its name and its options; one that wraps another (Detail Daemon) is as
    that, though what euler goes along may not be what it was given."""
    options = _options(sampler)
    inner = _wrapped(sampler)
    if inner is not None:
        kind = sampler_kind(inner, sigmas)
        return SamplerKind.ONE_EVALUATION if kind is SamplerKind.EULER else kind
    name = sampler_name(sampler)
    if _adds_noise(name, options, sigmas):
        return SamplerKind.ADDS_NOISE
    kind = KINDS.get(name, SamplerKind.UNKNOWN)
    if kind is SamplerKind.EULER and _number(options, "eta"):
        return SamplerKind.ONE_EVALUATION  # it steps further down than to the next sigma
    if name == "sa_solver" and options.get("use_pece"):
        return SamplerKind.SEVERAL_EVALUATIONS
    return kind


def _wrapped(sampler: Any) -> Any:
    """The SAMPLER that another one wraps; None where it wraps none."""
    return next((v for v in _options(sampler).values() if hasattr(v, "sampler_function")), None)


def _adds_noise(name: str, options: dict[str, Any], sigmas: Sequence[float]) -> bool:
    """Whether a sampler adds noise between its steps."""
    if name in ALWAYS_NOISY or _number(options, "s_churn") > 0:
        return True
    if name in MAY_SKIP or options.get("s_noise") == 0:
        return False
    if "eta" in options:
        return _number(options, "eta") > 0
    if callable(options.get("tau_func")):  # sa_solver's, by sigma
        return any(float(options["tau_func"](sigma)) > 0 for sigma in sigmas)
    words = name.split("_")
    churns = "s_churn" in options
    draws = "noise_sampler" in options or ("s_noise" in options and not churns)
    return draws or "sde" in words or "ancestral" in words


def _number(options: dict[str, Any], name: str) -> float:
    """An option as a number; 0 where it is none."""
    try:
        return float(options.get(name) or 0.0)
    except (TypeError, ValueError, RuntimeError):  # e.g. a tensor of several
        return 0.0


def _options(sampler: Any) -> dict[str, Any]:
    """Arguments that a sampler function will have beside those of the run: what it takes where it is
    not told, and what it is told."""
    function = getattr(sampler, "sampler_function", sampler)
    options: dict[str, Any] = {}
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        parameters = ()
    for parameter in parameters:
        if parameter.default is not inspect.Parameter.empty:
            options[parameter.name] = parameter.default
    return {**options, **(getattr(sampler, "extra_options", None) or {})}


def _unwrapped(function: Any) -> Any:
    """A sampler function without the arguments that are bound to it."""
    while isinstance(function, partial):
        function = function.func
    return function
