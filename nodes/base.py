"""What the nodes share: inputs are checked against the node's own schema, old names of choices are
understood, and errors show their words first."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from comfy_api.latest import io

# Choices that had other names: input id -> old name -> name. Saved workflows and API clients may
# still send the old ones.
OLD_CHOICES = {
    "level": {"hold": "skip"},
    "preset": {"clocks": "per-token error"},
    "inactive": {"hold": "last value", "forecast": "predict"},
    "kv_cache": {"forecast": "predict", "model": "last value", "pooled": "last value"},
    "left_out": {"forecast": "predict", "hold": "last value", "dropped": "none"},
    "backend": {"spargeattn": "auto"},
}


def choice(name: str, options: list[str], **settings: Any) -> io.Combo.Input:
    """A combo input. The page learns the old names of its options, too, and replaces them in saved
    workflows (web/old_choices.js)."""
    old = OLD_CHOICES.get(name)
    extra = {"rapid_old_choices": old} if old else None
    return io.Combo.Input(name, options=options, extra_dict=extra, **settings)


def current(name: str, value: Any) -> Any:
    """The value of an input; where it is an old name of a choice, the name of today."""
    return OLD_CHOICES.get(name, {}).get(value, value) if isinstance(value, str) else value


class RapidNode(io.ComfyNode):
    """A node whose inputs are checked before anything is done with them. The host checks what is
    typed in, but not what comes over links."""

    @classmethod
    def check(cls, **given: Any) -> dict[str, Any]:
        """Values of all inputs that have a default, by id: what was given, under the names of today,
        else the default. Raises ValueError for what the schema does not accept."""
        schema = cls._schema()
        defaults = {slot.id: getattr(slot, "default", None) for slot in schema.inputs}
        defaults = {name: value for name, value in defaults.items() if value is not None}
        return _checked(schema, defaults | given)

    @classmethod
    def refusal(cls, **known: Any) -> bool | str:
        """For `validate_inputs`, which runs before any model is loaded: True, or why these values
        are refused. None stands for a value that comes over a link and is not known yet."""
        try:
            _checked(cls._schema(), {n: value for n, value in known.items() if value is not None})
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def _schema(cls) -> io.Schema:
        """The schema as it was registered; the host runs nodes as locked copies of their classes,
        which cannot make it anew."""
        return cls.SCHEMA or cls.GET_SCHEMA()


def _checked(schema: io.Schema, values: dict[str, Any]) -> dict[str, Any]:
    """These values under the names of today. Raises ValueError for one that is not accepted."""
    values = {name: current(name, value) for name, value in values.items()}
    for slot in schema.inputs:
        if slot.id not in values:
            continue
        accepted = _accepted(slot, values[slot.id])
        if accepted:
            raise ValueError(
                f"{schema.display_name}: {slot.id} = {values[slot.id]!r} was given; accepted "
                f"is {accepted}. The default is {slot.default}."
            )
    start = values.get("start_percent", 0.0)
    end = values.get("end_percent", 1.0)
    if start > end:
        raise ValueError(
            f"{schema.display_name}: start_percent = {start:g} was given with end_percent = "
            f"{end:g}; start_percent must not be above end_percent. Lower the one or raise the "
            f"other."
        )
    return values


def _accepted(slot: Any, value: Any) -> str:
    """What an input accepts, in words; empty where it accepts the value."""
    if isinstance(slot, io.Combo.Input):
        return "" if value in slot.options else f"one of {', '.join(map(str, slot.options))}"
    if isinstance(slot, io.Boolean.Input):
        return "" if isinstance(value, bool) else "true or false"
    if not isinstance(slot, io.Int.Input | io.Float.Input):
        return ""
    whole = isinstance(slot, io.Int.Input)
    kind = int if whole else (int, float)
    if isinstance(value, kind) and math.isfinite(value) and slot.min <= value <= slot.max:
        return ""
    return f"a {'whole number' if whole else 'number'} from {slot.min:g} to {slot.max:g}"


@contextmanager
def words_first() -> Iterator[None]:
    """Errors of the core as plain ValueError: ComfyUI's page shows the module of any other class
    in front of the message."""
    try:
        yield
    except ValueError as error:
        raise ValueError(str(error)) from error
