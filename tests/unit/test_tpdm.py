"""TPDM's head: how tokens lie, what it sees, when it decides, and files of another size."""

import pytest
import torch

from rapid_core.engine.features import FeatureStore
from rapid_core.policy_file.format import PolicyError, write
from rapid_core.policy_file.policies import check_model, head_metadata, policy_of, tpdm_metadata
from rapid_core.techniques.heads.rapid3 import Heads
from rapid_core.techniques.heads.tpdm import TPDMHeads, TPDMPolicy, squares
from rapid_core.types import Features, HeadInput, ImageState, Mode, Observation
from rapid_testing.actors import METADATA

HIDDEN, SIDE = 6, 4


def heads(bias=None):
    """Heads of a small model; bias: logits that they give whatever they see."""
    torch.manual_seed(0)
    found = TPDMHeads(HIDDEN, SIDE, 8)
    if bias is not None:
        found.heads["step"].fc2.weight.data.zero_()
        found.heads["step"].fc2.bias.data.copy_(torch.tensor(bias))
    return found


def look(evaluation, **changes):
    x = torch.zeros(4, 8, 8)
    features = Features(torch.randn(SIDE**2, 2 * HIDDEN), torch.randn(HIDDEN), evaluation)
    return HeadInput(x, x, x, **{"features": features, **changes})


def test_four_tokens_that_follow_one_another_are_a_square():
    found = squares(torch.arange(16.0).view(1, 16, 1), 4)
    assert found[0, 0].tolist() == [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]


def decide(policy, levels, shown):
    """Actions over a schedule; shown: evaluations that could be seen when they were computed."""
    schedule, actor, ran, out, features = (*levels, 0.0), policy.start(None), (), [], None
    for i, level in enumerate(levels):
        asked = actor.ask([features if ran else None], torch.tensor(level))
        since = i - 1 - levels.index(ran[-1]) if ran else 0
        seen = Observation(
            i,
            level,
            (ImageState(len(ran), since, 0.1, levels=ran[-4:]),),
            i,
            len(levels),
            schedule=schedule,
            answers=() if asked is None else tuple(asked.tolist()),
        )
        (action,) = actor.act(seen)
        if action.level is Mode.RUN:
            ran, features = (*ran, level), look(i) if i in shown else look(i, features=None)
        out.append(action.level)
    return "".join("#" if level is Mode.RUN else "." for level in out), actor


LEVELS = (1.0, 0.9, 0.7, 0.6, 0.5005, 0.45, 0.3, 0.2505, 0.1)


def test_a_jump_goes_to_its_share_of_the_noise_level_and_not_to_a_thousandth_below():
    """The evaluation at 0.5004 is below 0.50049, where the jump goes, and above 0.5."""
    share = 0.50049
    bias = float(torch.logit(torch.tensor(share, dtype=torch.float64)))
    marks, _ = decide(TPDMPolicy(heads([bias, 0.0]), 1.0), (1.0, 0.6, 0.5004, 0.3, 0.1), range(9))
    assert marks == "#.#.#"
    marks, _ = decide(TPDMPolicy(heads([0.0, 0.0]), 1.0), LEVELS, range(9))
    assert marks == "#....#..#"  # half of 1 is 0.5, half of 0.45 is 0.225


def test_an_image_that_could_not_be_seen_is_computed():
    marks, _ = decide(TPDMPolicy(heads([0.0, 0.0]), 1.0), LEVELS, [0, 6])
    assert marks == "#....##.#"
    assert decide(TPDMPolicy(heads([0.0, 0.0]), 1.0), LEVELS, [])[0] == "#" * 9


def test_the_budget_is_a_ceiling():
    marks, _ = decide(TPDMPolicy(heads([9.0, -9.0]), 3.0), LEVELS, range(9))
    assert marks == "###......"


def test_every_computed_evaluation_is_looked_at_once_and_each_image_by_itself():
    actor, sigma = TPDMPolicy(heads(), 1.0).start(None), torch.tensor(0.5)
    first, second = look(0), look(0)
    both = actor.ask([first, None, second], sigma)
    assert actor.asked == actor.known == [0, 2] and both.shape == (4,)
    assert actor.ask([first, None, second], sigma) is None and actor.known == [0, 2]
    assert actor.ask([first, None, look(3)], sigma).shape == (2,) and actor.asked == [2]
    alone = TPDMPolicy(heads(), 1.0).start(None).ask([second], sigma)
    assert torch.equal(both[2:], alone)


def store():
    return FeatureStore("tpdm-sd3", (4, 8, 8), ["p", "q"], ["n", "m"])


def test_what_the_conditions_show_is_mixed_as_guidance_mixes_their_outputs():
    kept, tokens, modulation = store(), torch.randn(2, 3, 4).half(), torch.randn(2, 2).half()
    for i, uuid in enumerate("np"):
        kept.keep(1, uuid, tokens[i], modulation[i])
    assert kept.end(6, [1], 4.5) is None and not kept.streams
    seen, wide = kept.mixed[1], tokens.float()
    assert seen.evaluation == 6 and seen.tokens.dtype == torch.float32
    assert torch.allclose(seen.tokens, wide[0] + 4.5 * (wide[1] - wide[0]))
    assert torch.allclose(
        seen.modulation,
        modulation[0].float() + 4.5 * (modulation[1] - modulation[0]).float(),
        atol=1e-2,
    )
    assert kept.bytes == 4 * (12 + 2)
    kept.keep(1, "p", tokens[0], modulation[0])
    assert kept.end(7, [1], 1.0) is None and torch.equal(kept.mixed[1].tokens, wide[0])


@pytest.mark.parametrize(
    "uuids, said",
    [
        ("", "no condition was computed on all tokens"),
        ("p", "at guidance 3 no negative condition was computed"),
        ("pqn", "2 positive and 1 negative conditions were computed"),
        ("pnm", "1 positive and 2 negative conditions were computed"),
        ("n", "0 positive and 1 negative conditions were computed"),
    ],
)
def test_what_cannot_be_mixed_is_forgotten_and_said(uuids, said):
    kept = store()
    for uuid in "pn":
        kept.keep(0, uuid, torch.ones(3, 4), torch.ones(2))
    assert kept.end(0, [0], 3.0) is None and kept.mixed
    for uuid in uuids:
        kept.keep(0, uuid, torch.ones(3, 4), torch.ones(2))
    assert said in kept.end(1, [0], 3.0) and not kept.mixed
    assert kept.end(2, [], 3.0) is None


def test_what_is_seen_of_a_held_image_stays():
    kept = store()
    for image in (0, 1):
        for uuid in "pn":
            kept.keep(image, uuid, torch.ones(3, 4), torch.ones(2))
    kept.end(0, [0, 1], 3.0)
    before = kept.mixed[1]
    for uuid in "pn":
        kept.keep(0, uuid, torch.zeros(3, 4), torch.ones(2))
    kept.end(1, [0], 3.0)
    assert kept.mixed[1] is before and kept.mixed[0].evaluation == 1


def saved(tmp_path, ours, **changes):
    metadata = {**METADATA, "architecture": "sd3", **tpdm_metadata(ours), **changes}
    return write(tmp_path / "tpdm.safetensors", "heads", metadata, ours.state_dict())


def test_heads_are_written_and_read(tmp_path):
    file = saved(tmp_path, heads())
    policy = policy_of(file, 2.0)
    assert (
        policy.levels == {Mode.SKIP, Mode.RUN}
        and policy.sparsity is None
        and policy.forecast_order == 0
    )
    tokens, modulation = torch.randn(2, SIDE**2, 2 * HIDDEN), torch.randn(2, HIDDEN)
    assert torch.equal(
        policy.heads(tokens, modulation)["step"], heads()(tokens, modulation)["step"]
    )
    assert policy.settings()["technique"] == "tpdm" and "view" not in policy.settings()
    check_model(file, 16, HIDDEN)
    with pytest.raises(PolicyError, match="hidden = 6, trained on demo flux; this model has 1536"):
        check_model(file, 16, 1536)


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"structure": "mlp"}, "structure = 'mlp'; known are rapid3, rapid+, tpdm-sd3"),
        (
            {"architecture": "flux"},
            "architecture = 'flux'; heads of structure tpdm-sd3 look at the tokens of sd3 models",
        ),
        ({"heads": ["step", "cache"]}, "heads = ['step', 'cache']; wanted is the step head alone"),
        ({"side": 3}, "side = 3; wanted is an even number"),
        (
            {"width": 16},
            "heads.step.conv1.weight has shape (8, 12, 3, 3); wanted is 16 x 12 x 3 x 3",
        ),
        ({"hidden": 10**6}, "hidden = 1000000; wanted is a whole number from 1 to 16384"),
    ],
)
def test_wrong_heads_are_named(tmp_path, changes, said):
    with pytest.raises(PolicyError) as error:
        policy_of(saved(tmp_path, heads(), **changes), 2.0)
    assert "tpdm.safetensors" in str(error.value) and said in str(error.value)


def test_heads_of_the_other_structure_are_told_apart(tmp_path):
    ours = Heads(4, HIDDEN, ("step",), width=8)
    body = {name: value for name, value in ours.state_dict().items() if name.startswith("heads.")}
    metadata = {
        **METADATA,
        "architecture": "sd3",
        **head_metadata(ours, 0, (0.5, 0.25, 0.125)),
        **tpdm_metadata(heads()),
    }
    with pytest.raises(PolicyError, match="heads.step.conv1.weight has shape"):
        policy_of(write(tmp_path / "x.safetensors", "heads", metadata, body), 2.0)
