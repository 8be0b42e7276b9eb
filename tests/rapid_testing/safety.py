"""Models that nodes patched, with other settings of their policies: above all runs that skip even
so, where the pack would compute everything (on random weights, whose predictions are bad, in few
steps, and with samplers that add noise)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any


def with_settings(model: Any, **settings: Any) -> Any:
    """A clone of a patched model whose policies have these settings, where they have such."""
    clone = model.clone()
    options = clone.model_options["transformer_options"]
    chain = options["rapid"]
    policies = (
        replace(p, **{name: value for name, value in settings.items() if hasattr(p, name)})
        for p in chain.policies
    )
    options["rapid"] = replace(chain, policies=tuple(policies))
    return clone


def even_so(model: Any) -> Any:
    """A clone of a patched model on which no policy asks for safety."""
    return with_settings(model, safe=False)
