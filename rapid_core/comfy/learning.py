"""What runs of a model have shown, for later runs of it: looked up before a run, kept after it."""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import folder_paths

from ..calibration.library import Learned, Library
from ..calibration.model_key import ModelKey
from ..engine.plan import HostFacts, unsafe
from ..engine.run import Run
from ..policy_file.gaps import sigmas_problem
from ..reasons import ReasonCode, text
from ..techniques.step_skip.schedule import SchedulePolicy
from ..types import Policy, Reason
from .model_key import key_of

FOLDER = "rapid_policies"  # in the host's models folder
LEARNED = "learned"  # in it
# Pictures of a model that are drawn in full and watched. Fewer do not tell how far pictures disagree,
# and single ones have led to plans that were 3 dB farther (docs/lab.md).
ENOUGH = 4

# Names of keys whose runs were watched and showed nothing (a sampler with sigmas of its own): they are
# not watched again, or they would be computed in full for ever.
_SHOW_NOTHING: set[str] = set()
# Why something could not be written, as far as the log says so already.
_NOT_KEPT: list[Reason] = []
# Names of keys of which a run has been planned while nothing was known but too few pictures of others
# nearby: the next run is watched. So settings that stay are learned, and who tries others with every
# picture does not have all of them drawn in full.
_TRIED: set[str] = set()


@functools.cache
def library_in(folder: Path) -> Library:
    """What was learned, one library a folder for as long as the host runs."""
    return Library(folder)


def library() -> Library:
    """That of the host's models folder."""
    return library_in(Path(folder_paths.models_dir) / FOLDER / LEARNED)


@dataclass(frozen=True)
class Lesson:
    """What a run knows of its model, and where what it shows is kept."""

    policies: tuple[Policy, ...]
    notes: tuple[Reason, ...] = ()
    key: ModelKey | None = None
    """Where the run is watched."""

    def end(self, run: Run) -> list[Reason]:
        """Keep what a run has shown that went to its end. What to say about it; what fails here costs
        no picture."""
        if self.key is None:
            return []
        try:
            tables = run.gap_errors()
            if not tables:
                if not run.watched:  # and not a picture of NaN, which says nothing of the next
                    _SHOW_NOTHING.add(self.key.name)
                return [Reason(ReasonCode.NOTHING_LEARNED)]
            failed = library().add(self.key, tables)
            if failed is not None and failed not in _NOT_KEPT:
                _NOT_KEPT.append(failed)  # in the log of a server, once
                logging.warning("RAPID: %s", text(failed))
            return [] if failed is None else [failed]
        except Exception as error:
            logging.exception("RAPID: what this run has shown could not be kept")
            _SHOW_NOTHING.add(self.key.name)
            why = f"{type(error).__name__}: {error}"
            return [Reason(ReasonCode.LEARNED_NOT_KEPT, error=why)]


def lesson_for(policies: Sequence[Policy], guider: Any, facts: HostFacts) -> Lesson:
    """The policies of a run with what is known of its model in those that learn. Until ENOUGH of its
    pictures were watched, or of one nearby, they compute everything and the run is watched; where that
    cannot be found out, a run would show nothing, or it changes at known steps, by which it is planned
    anyway, they are as they were."""
    learns = [p for p in policies if isinstance(p, SchedulePolicy) and p.learn]
    if not learns or unsafe(facts) is not None:
        return Lesson(tuple(policies))
    if facts.turns:
        return Lesson(tuple(policies), (Reason(ReasonCode.TURNS_NOT_LEARNED),))
    key = key_of(guider, facts)
    if isinstance(key, Reason):
        return Lesson(tuple(policies), (key,))
    try:
        known = library().find(key)
        library().keep()  # what could not be written before, as on a disk that was full
        notes = tuple(library().notes())
    except Exception as error:
        logging.exception("RAPID: what was learned could not be read")
        why = f"{type(error).__name__}: {error}"
        return Lesson(tuple(policies), (Reason(ReasonCode.NOT_LEARNED, why=why),))
    pictures = 0 if known is None else len(known.tables)
    if len(policies) == 1 and _shows(guider, key) and _is_asked(key, known):
        own = 0 if known is None or known.differs else pictures
        watching = tuple(replace(p, watch=True) if p in learns else p for p in policies)
        said = Reason(ReasonCode.LEARNS_NOW, picture=own + 1, of=ENOUGH)
        return Lesson(watching, (*notes, said), key)
    if known is None:
        return Lesson(tuple(policies), (*notes, Reason(ReasonCode.NOTHING_LEARNED)))
    said = Reason(ReasonCode.LEARNED, pictures=pictures)
    if known.differs:
        differs = ", ".join(known.differs)
        said = Reason(ReasonCode.LEARNED_NEARBY, pictures=pictures, differs=differs)
    knowing = tuple(replace(p, costs=known.costs) if p in learns else p for p in policies)
    return Lesson(knowing, (*notes, said))


def _shows(guider: Any, key: ModelKey) -> bool:
    """Whether a full run would show what gaps cost: not where ComfyUI's own EasyCache or LazyCache skips
    steps of it, nor where sigmas stand still."""
    other = "easycache" in guider.model_options.get("transformer_options", {})
    return not other and not sigmas_problem(key.sigmas) and key.name not in _SHOW_NOTHING


def _is_asked(key: ModelKey, known: Learned | None) -> bool:
    """Whether more pictures of a key are to be watched, by what is known of it, or of one nearby."""
    if known is None or not known.differs:
        return known is None or len(known.tables) < ENOUGH
    tried = key.name in _TRIED
    _TRIED.add(key.name)
    return tried and len(known.tables) < ENOUGH
