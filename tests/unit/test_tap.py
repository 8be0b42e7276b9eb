"""What the tap of a run shows to learned heads, and how what conditions show is mixed."""

import pytest
import torch

from rapid_core.engine.tap import FeatureStore, Tap
from rapid_core.reasons import ReasonCode, text
from rapid_core.types import Reason


def store():
    return FeatureStore("tpdm-sd3", (4, 8, 8), ["p", "q"], ["n", "m"])


def test_what_the_conditions_show_is_mixed_as_guidance_mixes_their_outputs():
    kept, tokens, modulation = store(), torch.randn(2, 3, 4).half(), torch.randn(2, 2).half()
    for i, uuid in enumerate("np"):
        kept.add(1, uuid, tokens[i], modulation[i])
    assert kept.end(6, [1], 4.5) is None
    seen, wide = kept.latest[1], tokens.float()
    assert seen.evaluation == 6 and seen.tokens.dtype == torch.float32
    assert torch.allclose(seen.tokens, wide[0] + 4.5 * (wide[1] - wide[0]))
    assert torch.allclose(
        seen.modulation,
        modulation[0].float() + 4.5 * (modulation[1] - modulation[0]).float(),
        atol=1e-2,
    )
    assert kept.bytes == 4 * (12 + 2)
    kept.add(1, "p", tokens[0], modulation[0])
    assert kept.end(7, [1], 1.0) is None and torch.equal(kept.latest[1].tokens, wide[0])


@pytest.mark.parametrize(
    "uuids, words",
    [
        ("", "no conditioning was computed on all tokens"),
        ("p", "at guidance 3 no negative conditioning was computed"),
        ("pqn", "2 positive and 1 negative conditionings were computed"),
        ("pnm", "1 positive and 2 negative conditionings were computed"),
        ("n", "0 positive and 1 negative conditionings were computed"),
    ],
)
def test_what_cannot_be_mixed_is_forgotten_and_said(uuids, words):
    kept = store()
    for uuid in "pn":
        kept.add(0, uuid, torch.ones(3, 4), torch.ones(2))
    assert kept.end(0, [0], 3.0) is None and kept.latest
    for uuid in uuids:
        kept.add(0, uuid, torch.ones(3, 4), torch.ones(2))
    assert words in text(kept.end(1, [0], 3.0)) and not kept.latest
    assert kept.end(2, [], 3.0) is None


def test_what_is_seen_of_a_skipped_image_stays():
    kept = store()
    for image in (0, 1):
        for uuid in "pn":
            kept.add(image, uuid, torch.ones(3, 4), torch.ones(2))
    kept.end(0, [0, 1], 3.0)
    before = kept.latest[1]
    for uuid in "pn":
        kept.add(0, uuid, torch.zeros(3, 4), torch.ones(2))
    kept.end(1, [0], 3.0)
    assert kept.latest[1] is before and kept.latest[0].evaluation == 1


def test_heads_see_nothing_before_the_first_computed_evaluation_and_of_another_size():
    tap, x, error = Tap(), torch.randn(4, 8, 8), torch.tensor(0.1)
    assert tap.head_input(0, x, None, None, error) is None
    assert tap.head_input(0, x, x, None, error) is None
    assert tap.head_input(0, x, x[:, :4], x, error) is None


def test_heads_see_how_far_the_latent_moved_the_first_modulation_and_the_latest_features():
    tap, last, x, derivative = Tap(["p"], store()), *torch.randn(3, 4, 8, 8)
    tap.see_modulation(1, torch.tensor([[1.0, 2.0], [3.0, 4.0]]).half())  # tokens' own are averaged
    for uuid in "pn":
        tap.features.add(1, uuid, torch.ones(3, 4), torch.ones(2))
    assert tap.wants_modulation and tap.end(0, [1], 3.0) is None and not tap.wants_modulation
    tap.see_modulation(1, torch.zeros(2))  # of a later evaluation
    seen = tap.head_input(1, x, last, derivative, torch.tensor(0.1))
    assert torch.equal(seen.latent_change, x - last) and torch.equal(seen.derivative, derivative)
    assert seen.pooled.tolist() == [2.0, 3.0] and seen.features.evaluation == 0
    assert float(seen.error) == pytest.approx(0.1)
    assert tap.head_input(0, x, last, derivative, seen.error).pooled is None
    assert tap.bytes == tap.features.bytes > 0
    tap.drop()
    assert tap.bytes == 0 and not tap.pooled and tap.features is None


def test_what_heads_cannot_see_is_said_by_the_name_of_their_kind():
    tap, why = Tap(["p"], store()), Reason(ReasonCode.NO_FULL_COND)
    blind = Reason(ReasonCode.HEADS_BLIND, kind="tpdm-sd3", why=why)
    assert tap.end(0, [0], 3.0) == blind
    assert Tap().end(0, [0], 3.0) is None and Tap().bytes == 0
