"""Every diffusion model class of the host: RAPID Accelerate at its default skips on it, and no node
fails on one whose blocks are not known."""

import gc

import pytest
import torch

from benchmarks.results.files import load
from benchmarks.results.host_models import host_of_models
from evaluation import host_models
from evaluation.host_models import NOT_SAMPLED, TINY, here, unnamed
from rapid_testing.frozen import EVERY
from rapid_testing.safety import even_so

pytestmark = pytest.mark.main_host

STEPS = 8
WHOLE = ("accelerate 2", "skip")  # of EVERY: nodes that skip whole evaluations
ADD = (
    "evaluation/host_models.py does not name these classes of ComfyUI. Add to TINY what makes each "
    "tiny (keywords of its diffusion_model, a latent, its text), or to NOT_SAMPLED, and run "
    "`python3 dev.py bench models`: "
)


@pytest.fixture
def built(comfy_host):
    """built(name, steps): a tiny model of a class, and the latents of a run in full. A host that the
    page was not made on, an older one say, may not know all keywords."""

    def build(name, steps):
        tiny = TINY[name].model
        try:
            model = tiny.build()
            return model, tiny.sample(model, steps=steps)
        except Exception as error:
            if comfy_host.version == host_of_models():
                raise
            pytest.skip(f"ComfyUI {comfy_host.version} has another {name}: {error}")

    yield build
    gc.collect()


def finite(parts):
    return all(part.isfinite().all() for part in parts)


def codes(record):
    found = [*record.notes, *(r for row in record.evaluations for r in row.reasons)]
    found += [r.params["why"] for r in found if "why" in r.params]
    return {reason.code for reason in found}


@pytest.mark.parametrize("name", here())
def test_accelerate_at_its_default_skips_on_every_class(
    name, built, comfy_host, pack, record_of, pack_module
):
    model, full = built(name, 1)
    (accelerated,) = comfy_host.run_node("RAPID_Accelerate", model=model)
    out = TINY[name].model.sample(accelerated, steps=STEPS)
    record = record_of(accelerated)
    assert record.status == "finished" and record.totals["skipped"] > 0, codes(record)
    assert [part.shape for part in out] == [part.shape for part in full]
    assert finite(out) or not finite(full)
    describe = pack_module("rapid_core.architectures").describe
    if describe(model.model.diffusion_model) is None:
        costs = {cost for row in record.evaluations for cost in row.full_cost}
        assert costs == {1.0}  # whole evaluations are counted, and not FLOPs


@pytest.mark.parametrize("name", EVERY)
def test_no_node_fails_on_a_class_whose_blocks_are_not_known(name, built, patched, record_of):
    model, full = built("Omnigen2", STEPS)
    accelerated = even_so(patched(model, name))
    (out,) = TINY["Omnigen2"].model.sample(accelerated, steps=STEPS)
    record = record_of(accelerated)
    assert record.status == "finished"
    assert record.family == "OmniGen2Transformer2DModel (unverified)"
    assert (record.totals["skipped"] > 0) == (name in WHOLE)
    if name not in WHOLE:
        assert torch.equal(out, full[0])
        assert codes(record) & {"blocks_unknown", "unknown_to_region"}


def test_every_class_of_the_host_has_a_tiny_one():
    missing = unnamed()
    assert not missing, ADD + ", ".join(missing)


def test_a_class_of_a_newer_host_is_told(monkeypatch):
    import comfy.supported_models

    newer = [*comfy.supported_models.models, type("Novelty", (), {})]
    monkeypatch.setattr(comfy.supported_models, "models", newer)
    assert host_models.unnamed() == ["Novelty"]


def test_what_no_sampler_draws_with_is_not_among_the_tiny_ones():
    assert not set(NOT_SAMPLED) & set(TINY)


def test_the_page_has_a_row_of_every_class():
    rows = [row["class"] for row in load("models")]
    assert sorted(rows) == sorted(TINY)
