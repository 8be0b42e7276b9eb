"""Codes of reasons, and their words out of `locales/<language>/main.json`, one table a language."""

from __future__ import annotations

import functools
import json
from enum import Enum
from pathlib import Path
from typing import Any

from .types import Reason

LOCALES = Path(__file__).parent.parent / "locales"


class ReasonCode(Enum):
    """Why something was computed in full, and what else a report says. Parameters are named in the
    words."""

    NOT_PATCHED = "not_patched"
    FULL_RUN = "full_run"
    WRONG_MODEL = "wrong_model"
    OTHER_LATENT = "other_latent"
    BOTH_SKIP = "both_skip"
    SET_TWICE = "set_twice"
    TWO_SCHEDULES = "two_schedules"
    UNKNOWN_TO_REGION = "unknown_to_region"
    TOKENS_MIXED = "tokens_mixed"
    TOKENS_WITH_SOUND = "tokens_with_sound"
    MASK_SCALED = "mask_scaled"
    OTHER_BATCH = "other_batch"
    LATENT_RESIZED = "latent_resized"
    NOT_ONE_TENSOR = "not_one_tensor"
    NOT_PLANNED = "not_planned"
    RECORD_FAILED = "record_failed"
    NOT_LEARNED = "not_learned"
    SIGMAS_RISE = "sigmas_rise"
    FEW_STEPS = "few_steps"
    SHORT_RUN = "short_run"
    SAMPLER_ADDS_NOISE = "sampler_adds_noise"
    SAMPLER_SENSITIVE = "sampler_sensitive"
    OTHER_SIGMAS = "other_sigmas"
    PREDICTIONS_OFF = "predictions_off"
    LEARNS_NOW = "learns_now"
    LEARNED = "learned"
    LEARNED_NEARBY = "learned_nearby"
    NOTHING_LEARNED = "nothing_learned"
    TURNS_NOT_LEARNED = "turns_not_learned"
    CLOSENESS_UNKNOWN = "closeness_unknown"
    POLICY_FOUND = "policy_found"
    POLICY_GIVEN = "policy_given"
    LEARN_BESIDE_FILE = "learn_beside_file"
    AR_VIDEO = "ar_video"
    FOREIGN_COND_BATCH = "foreign_cond_batch"
    CONTEXT_WINDOWS = "context_windows"
    SEVERAL_GPUS = "several_gpus"
    EASYCACHE = "easycache"
    ONE_VIDEO = "one_video"
    BLOCKS_UNKNOWN = "blocks_unknown"
    BLOCKS_UNREAD = "blocks_unread"
    BLOCK_REPLACED = "block_replaced"
    BLOCKS_PATCHED = "blocks_patched"
    CALLED_AGAIN = "called_again"
    TOKENS_MISSING = "tokens_missing"
    HOOKS_NOT_CALLED = "hooks_not_called"
    COND_WITHOUT_HISTORY = "cond_without_history"
    COND_NOT_COUNTED = "cond_not_counted"
    COND_WITHOUT_KV = "cond_without_kv"
    COND_WITHOUT_RESIDUAL = "cond_without_residual"
    COND_AREA = "cond_area"
    COND_GIVEN = "cond_given"
    REFERENCE_AT_ZERO = "reference_at_zero"
    BATCH_NOT_SPLIT = "batch_not_split"
    OTHER_ROWS = "other_rows"
    CONTROL_SHAPE = "control_shape"
    KV_MEMORY = "kv_memory"
    KV_OVER_LIMIT = "kv_over_limit"
    KV_SMALLER = "kv_smaller"
    KV_NEEDS_FLOAT8 = "kv_needs_float8"
    RESIDUAL_MEMORY = "residual_memory"
    RESIDUAL_OVER_LIMIT = "residual_over_limit"
    FEATURES_MEMORY = "features_memory"
    HEADS_BLIND = "heads_blind"
    HEADS_OTHER_FAMILY = "heads_other_family"
    HEADS_OTHER_WIDTH = "heads_other_width"
    HEADS_OTHER_SIZE = "heads_other_size"
    HEADS_OTHER_COND = "heads_other_cond"
    NO_FULL_COND = "no_full_cond"
    COND_NUMBERS = "cond_numbers"
    NO_NEGATIVE_COND = "no_negative_cond"
    SAMPLER_CHOSE = "sampler_chose"
    SAMPLER_HEADS_IDLE = "sampler_heads_idle"
    MODEL_HAS_TECHNIQUES = "model_has_techniques"
    SAMPLER_WITHOUT_BLOCKS = "sampler_without_blocks"
    POOLED_UNKNOWN = "pooled_unknown"
    BUDGET_SPENT = "budget_spent"
    ONE_EVALUATION = "one_evaluation"
    SCHEDULE_UNFIT = "schedule_unfit"
    SCHEDULE_MOVED = "schedule_moved"
    SCHEDULE_TURNS = "schedule_turns"
    SCHEDULE_WITHOUT_WEIGHTS = "schedule_without_weights"
    ALL_TOKENS_COMPUTED = "all_tokens_computed"
    ADVISE_THRESHOLD = "advise_threshold"
    ADVISE_SHARE = "advise_share"
    LITTLE_CLOSENESS = "little_closeness"
    LITTLE_FEW = "little_few"
    LITTLE_SHORT = "little_short"
    LITTLE_WINDOW = "little_window"
    LITTLE_THRESHOLD = "little_threshold"
    LITTLE_ROUGH = "little_rough"
    ATTENTION_DENSE = "attention_dense"
    FEW_TILES = "few_tiles"
    KEYS_MISSING = "keys_missing"
    FEW_TOKENS = "few_tokens"
    NO_SAVING = "no_saving"
    MASK_WITH_BACKEND = "mask_with_backend"
    MASK_PER_QUERY = "mask_per_query"
    ATTENTION_DTYPE = "attention_dtype"
    TILE_WITH_BACKEND = "tile_with_backend"
    AUTO_IS_DENSE = "auto_is_dense"
    BACKEND_FAILS = "backend_fails"
    BACKEND_OUT_OF_MEMORY = "backend_out_of_memory"
    BACKEND_IS_OFF = "backend_is_off"
    FLEX_NEEDS_TORCH = "flex_needs_torch"
    FLEX_NEEDS_COMPILER = "flex_needs_compiler"
    FLEX_NEEDS_TRITON = "flex_needs_triton"
    GATHER_IS_FOR_CPUS = "gather_is_for_cpus"
    XFORMERS_NEEDS_CUDA = "xformers_needs_cuda"
    XFORMERS_MISSING = "xformers_missing"
    LEARNED_NOT_KEPT = "learned_not_kept"
    LEARNED_FILE_DAMAGED = "learned_file_damaged"
    POLICY_FILE_DAMAGED = "policy_file_damaged"
    SAVE_NO_RECORD = "save_no_record"
    SAVE_VERSION = "save_version"
    SAVE_UNFINISHED = "save_unfinished"
    SAVE_FAMILY = "save_family"
    SAVE_REGIONS = "save_regions"
    SAVE_OTHER = "save_other"
    SAVE_IMAGES_DIFFER = "save_images_differ"
    SAVE_SIGMAS = "save_sigmas"
    SAVE_STEPS = "save_steps"
    SAVE_FULL = "save_full"
    SAVE_NAME = "save_name"
    SAVE_EXISTS = "save_exists"
    SAVE_TAKEN = "save_taken"
    SAVE_FAILED = "save_failed"
    SAID = "said"


@functools.cache
def table(language: str = "en") -> dict[str, str]:
    """Words by code; parameters stand in braces."""
    text = (LOCALES / language / "main.json").read_text(encoding="utf-8")
    return json.loads(text)["rapid"]["reasons"]


def text(reason: Reason, language: str = "en") -> str:
    """A reason in words; its code where the table has none."""
    words = table(language).get(reason.code, reason.code)
    return words.format_map(
        {name: _shown(value, language) for name, value in reason.params.items()}
    )


def _shown(value: Any, language: str) -> str:
    if isinstance(value, Reason):
        return text(value, language)
    return f"{value:g}" if isinstance(value, float) else str(value)


def to_json(reason: Reason) -> dict[str, Any]:
    """Code, parameters and English words, as a record has them."""
    params = {
        name: to_json(value) if isinstance(value, Reason) else value
        for name, value in reason.params.items()
    }
    return {"code": reason.code, "params": params, "text": text(reason)}


def from_json(found: dict[str, Any] | str) -> Reason:
    """What `to_json` wrote; a plain sentence of version 1 becomes a reason with these words."""
    if isinstance(found, str):
        return Reason(ReasonCode.SAID, text=found)
    params = {
        name: from_json(value) if isinstance(value, dict) and "code" in value else value
        for name, value in found["params"].items()
    }
    return Reason(found["code"], **params)
