"""Runs that skip even so, where the pack would compute everything: on random weights, whose
predictions are bad, in few steps, and with samplers that add noise."""

from __future__ import annotations

from dataclasses import replace
from typing import Any


def even_so(model: Any) -> Any:
    """A clone of a model that nodes patched, on which no policy asks for safety."""
    clone = model.clone()
    options = clone.model_options["transformer_options"]
    chain = options["rapid"]
    policies = (replace(p, safe=False) if hasattr(p, "safe") else p for p in chain.policies)
    options["rapid"] = replace(chain, policies=tuple(policies))
    return clone
