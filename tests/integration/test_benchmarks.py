"""The suites run end to end, in small; how well is not asked here."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch

from benchmarks import attention, dial, equal_cost, headroom, learn, policy, region, sparse
from benchmarks.dial import samplers as dial_samplers
from demo import measure
from evaluation.decisions import decisions
from evaluation.subjects import FAMILIES, Subject
from rapid_core.policy_file.format import read, write
from rapid_core.policy_file.heads import head_metadata, head_tensors
from rapid_core.policy_file.schedules import schedule_tensors, schedules_of
from rapid_core.techniques.heads.rapid3 import Heads
from rapid_core.techniques.heads.rapid_plus import NUMBERS
from rapid_testing.actors import METADATA
from rapid_testing.texts import text

pytestmark = pytest.mark.main_host


@pytest.fixture
def ready(comfy_host, pack, demo_pack):
    for name in ("nodes_easycache.py", "nodes_flux.py"):
        comfy_host.load_core_nodes(name)
    return comfy_host


def quick(suite, out, *flags, model="flux"):
    """The flags of a suite in small."""
    return suite.parser().parse_args(["--quick", "--models", model, "--out", str(out), *flags])


def test_the_demos_table_compares_with_as_many_steps_as_were_computed(ready, monkeypatch):
    for name, value in {"QUALITY_SIZE": 64, "CLOCK_SIZE": 64, "ODE_STEPS": 2}.items():
        monkeypatch.setattr(measure, name, value)
    with torch.inference_mode():
        rows = measure.Measurement(ready, "flux", 1).rows()
    found = {row.method: row for row in rows}
    assert list(found) == [
        "full",
        "accelerate",
        "cache_reuse",
        "easycache",
        "lazycache",
        "fewer_steps",
    ]
    assert found["fewer_steps"].computed == found["accelerate"].computed == 14
    assert found["cache_reuse"].computed < found["full"].computed == 28
    assert found["full"].speedup_measured == 1 and found["full"].psnr is None
    assert found["accelerate"].psnr > found["fewer_steps"].psnr
    assert found["cache_reuse"].psnr > 20


def test_the_region_suite_writes_its_rows_and_goes_on_where_it_stopped(ready, tmp_path):
    names = ("region", "region_attention", "region_random", "region_paper", "region_paper_equal")
    flags = ("--methods", *names, "cache_reuse", "accelerate_equal", "fewer_heun")
    text = region.run(ready, quick(region, tmp_path, *flags))
    log = (tmp_path / "region-flux.jsonl").read_text(encoding="utf-8")
    rows = {
        (r["method"], r["target"]): r
        for r in json.loads((tmp_path / "region.json").read_text())["rows"]
    }
    assert rows["full", "1.0"]["equal"] == 2 and rows["full", "1.0"]["cost"] == pytest.approx(1.0)
    assert {r["prompts"] for r in rows.values()} == {2}
    found = rows["region", "0.25"]
    assert 0.25 < found["cost"] < 1 and found["psnr"] > rows["region_paper", "0.25"]["psnr"]
    equal = rows["region_paper_equal", "0.25"]
    assert equal["cost"] == pytest.approx(found["cost"], abs=0.02)
    assert equal["cost"] > rows["region_paper", "0.25"]["cost"]
    assert rows["region_attention", "0.25"]["cost"] == pytest.approx(found["cost"])
    assert rows["region_attention", "0.25"]["psnr"] != rows["region_random", "0.25"]["psnr"]
    assert rows["cache_reuse", "0.25"]["cost"] <= found["cost"] + 0.05
    near = rows["accelerate_equal", "0.25"]
    assert found["cost"] <= near["cost"] <= found["cost"] + 1 / 28
    assert "flux: region/0.25 - fewer_heun, to the converged picture: " in text
    region.run(ready, quick(region, tmp_path, *flags, "--cost-of", "flux-dev"))
    assert (tmp_path / "region-flux.jsonl").read_text(encoding="utf-8") == log


@pytest.mark.parametrize("kind", ["sd3", "flux"])
def test_the_cost_of_the_published_preset_is_what_it_comes_to(ready, kind):
    subject = Subject(ready, FAMILIES[kind])
    for share in (0.5, 0.19):
        model = region.region(ready, share, preset="paper")(subject.model)
        with torch.inference_mode():
            drawn = subject.sample_many(
                model, [text("striped", kind)], [0], 128, subject.family.steps
            )
        made = decisions(model, 0, round(drawn.computed))
        came = equal_cost.own_cost(subject, 128)(made) / subject.family.steps
        assert region.paper_cost(subject, 128, share) == pytest.approx(came)


def test_figures_of_an_older_version_are_not_mixed_in(ready, tmp_path):
    (tmp_path / "region-flux.jsonl").write_text("")
    with pytest.raises(SystemExit, match="older version"):
        region.run(ready, quick(region, tmp_path))


def test_figures_of_other_weights_are_not_mixed_in(ready, tmp_path):
    (tmp_path / "region-flux.json").write_text('{"weights": "of another time"}')
    with pytest.raises(SystemExit, match="other flux weights"):
        region.run(ready, quick(region, tmp_path))


def test_the_sparse_suite_writes_what_is_kept_how_long_it_takes_and_its_rows(
    ready, tmp_path, capsys
):
    methods = ("sparse", "sparse_none", "fewer_euler")
    sparse.run(ready, quick(sparse, tmp_path, "--methods", *methods, model="sd3"))
    masses = {
        (r["selection"], r["density"]): r
        for r in json.loads((tmp_path / "sparse_mass.json").read_text())
    }
    for density in attention.DENSITIES:
        ours, best = masses["ours", density], masses["oracle", density]
        assert masses["random", density]["mass"] < ours["mass"] <= best["mass"] <= 1.0
        assert ours["of_oracle"] > 0.95
    clock = json.loads((tmp_path / "sparse_clock.json").read_text())
    assert {r["backend"] for r in clock} == {"host", "torch", "gather"} and all(
        r["seconds"] > 0 for r in clock
    )
    rows = {
        (r["method"], r["target"]): r
        for r in json.loads((tmp_path / "sparse.json").read_text())["rows"]
    }
    assert rows["sparse", "0.25"]["cost"] < 1.0 and rows["sparse", "0.25"]["equal"] == 0
    assert rows["sparse", "0.25"]["psnr"] > rows["sparse_none", "0.25"]["psnr"]
    assert {name for name, _ in rows} == {"full", *methods}


def heads_file(path, hidden):
    """Heads of a demo model that jump as they like, from picture to picture another way."""
    torch.manual_seed(0)
    heads = Heads(16, hidden, ("step",), width=8)
    for layer in (heads.heads["step"].conv1, heads.heads["step"].conv2, heads.heads["step"].fc1):
        layer.weight.data *= 10
    heads.heads["step"].fc2.weight.data *= 100
    return write(
        path,
        "heads",
        {**METADATA, **head_metadata(heads, 1, (0.5, 0.25, 0.125))},
        head_tensors(heads),
    )


def silent_heads_file(path, hidden, schedules):
    """Heads that begin with the schedules of a file, and have learned nothing."""
    heads = Heads(16, hidden, ("pace",), NUMBERS, width=8)
    heads.heads["pace"].fc2.weight.data.zero_()
    about = {
        **METADATA,
        **head_metadata(heads, 1, (0.5, 0.25, 0.125)),
        "structure": "rapid+",
        "budgets": list(schedules.budgets),
    }
    tensors = {**head_tensors(heads), **schedule_tensors(schedules_of(schedules))}
    return write(path, "heads", about, tensors)


def test_the_policy_suite_compares_policies_at_the_cost_of_a_speed_up(ready, tmp_path):
    shutil.copy(policy.SHIPPED / "demo-flux-gaps.safetensors", tmp_path)
    hidden = Subject(ready, FAMILIES["flux"]).model.model.diffusion_model.hidden_size
    heads_file(tmp_path / "demo-flux-some-heads.safetensors", hidden)
    gaps = read(tmp_path / "demo-flux-gaps.safetensors")
    silent_heads_file(tmp_path / "demo-flux-silent.safetensors", hidden, gaps)
    silent = ("silent", "silent_shuffled", "silent_untrained")
    methods = (
        "default_schedule",
        "cache_reuse",
        "easycache",
        "fewer_euler",
        "schedule_gaps",
        "random",
        "some_heads",
        "some_heads_shuffled",
        *silent,
        "full_noise1",
    )
    flags = ("--speedups", "2", "--policies", str(tmp_path), "--methods", *methods)
    text = policy.run(ready, quick(policy, tmp_path, *flags))
    rows = {
        (r["method"], r["target"]): r
        for r in json.loads((tmp_path / "policy_flux.json").read_text())["rows"]
    }
    assert rows["default_schedule", "2x"]["computed"] == 14 and rows["default_schedule", "2x"][
        "cost"
    ] == pytest.approx(0.5)
    assert (
        rows["fewer_euler", "2x"]["cost"] == pytest.approx(0.5)
        and rows["cache_reuse", "2x"]["cost"] <= 0.55
    )
    assert (
        rows["random", "2x"]["computed"] == 14
        and rows["random", "2x"]["psnr"] < rows["default_schedule", "2x"]["psnr"]
    )
    assert rows["schedule_gaps", "2x"]["computed"] == 14 and rows["easycache", "2x"]["cost"] < 1
    # Corrected like the schedule, in RAPID Accelerate and with the decisions of other pictures.
    assert {rows[name, "2x"]["psnr"] for name in silent} == {rows["schedule_gaps", "2x"]["psnr"]}
    assert rows["full_noise1", "1.0"]["psnr"] is rows["full_noise1", "1.0"]["psnr_ode"] is None
    assert rows["full_noise1", "1.0"]["fid"] != rows["full", "1.0"]["fid"]
    assert "/2x computes by objects in the scene: " in text
    own, other = (rows[name, "2x"] for name in ("some_heads", "some_heads_shuffled"))
    assert own["cost"] == pytest.approx(other["cost"]) and own["psnr"] != other["psnr"]
    log = [json.loads(line) for line in (tmp_path / "policy-flux.jsonl").read_text().splitlines()]
    made = {(p["method"], p["seed"]): p["decisions"] for p in log}
    assert made["some_heads_shuffled/2x", 0] == made["some_heads/2x", 1] != made["some_heads/2x", 0]
    assert (
        "flux: default_schedule/2x - fewer_euler, to the converged picture: " in text
        and "flux: random" not in text
    )


def dial_rows(out):
    """Rows of the dial's suites by method and target."""
    rows = json.loads((out / "dial.json").read_text())["rows"]
    return {(r["suite"], r["method"], r["target"]): r for r in rows}


def test_the_dials_speed_suite_has_rivals_at_as_many_evaluations(ready, tmp_path):
    rivals = ("taylorseer", "hicache", "spectrum", "teacache", "static_mask", "fewer_deis")
    flags = ("--suites", "speed", "--speedups", "2", "--methods", "full_picture", *rivals)
    text = dial.run(ready, quick(dial, tmp_path, *flags))
    rows = dial_rows(tmp_path)
    for name in ("full_picture", *rivals):
        assert rows["dial_speed", name, "2x"]["computed"] == 14
    assert rows["dial_speed", "teacache", "2x"]["reused"] == 14
    assert rows["dial_speed", "fewer_deis", "2x"]["psnr"] is None
    assert "flux: full_picture/2x - spectrum, to the full picture: " in text
    state = json.loads((tmp_path / "dial_speed-flux.json").read_text())
    assert state["spectrum/14"]["degree"] == 4 and len(state["teacache/changes"]) == 28
    log = (tmp_path / "dial_speed-flux.jsonl").read_text()
    assert dial.run(ready, quick(dial, tmp_path, *flags)) == text
    assert (tmp_path / "dial_speed-flux.jsonl").read_text() == log


def test_the_dials_other_suites_add_to_its_files(ready, tmp_path):
    text = dial.run(ready, quick(dial, tmp_path, "--suites", "few", "curve", "quality"))
    rows = dial_rows(tmp_path)
    assert rows["dial_few_8", "full_picture", "1 skipped"]["computed"] == 7
    assert rows["dial_few_8", "fewer_euler", "1 skipped"]["psnr"] > 20
    assert rows["dial_few_8", "full", "1.0"]["equal"] == 2
    assert rows["dial_curve", "full_picture_dpmpp_2m", "18 computed"]["psnr"] > 30
    curve = json.loads((tmp_path / "curve-flux.json").read_text())
    assert [p["computed"] for p in curve["points"] if p["sampler"] == "euler"] == [18, 7]
    assert (tmp_path / "curve-flux.png").stat().st_size > 1000
    assert [line for line in text.splitlines() if line.startswith("# ")] == [
        "# curve-flux",
        "# few-flux",
        "# quality-flux",
    ]


def test_the_dials_sampler_suite_compares_with_the_samplers_own_full_picture(ready, tmp_path):
    flags = ("--suites", "samplers", "--samplers", "dpmpp_2m")
    dial.run(ready, quick(dial, tmp_path, *flags))
    (row,) = json.loads((tmp_path / "samplers.json").read_text())
    assert row["evaluations"] == 28 and row["computed"] == 14 and row["error"] is None
    assert row["psnr"] > 30 and row["difference"] > 0
    assert dial_rows(tmp_path)["dial_samplers", "full_dpmpp_2m", "2x"]["equal"] == 2
    with pytest.raises(SystemExit, match="no sampler of this host: nobody"):
        dial.run(ready, quick(dial, tmp_path, *flags, "nobody"))


def test_the_learn_bench_draws_by_what_full_pictures_and_calibrations_have_shown(ready, tmp_path):
    text = learn.run(
        ready, quick(learn, tmp_path, "--speedups", "3", "--efforts", "few", "--priors")
    )
    rows = {
        (r["method"], r["target"]): r
        for r in json.loads((tmp_path / "learn.json").read_text())["rows"]
    }
    for name in ("learned_0", "learned_1", "fours_2", "learned_8", "calibrated_few", "even"):
        assert rows[name, "3x full"]["computed"] == rows[name, "3x best"]["computed"] == 9
    assert rows["learned_0", "3x full"]["psnr"] > rows["learned_0", "3x best"]["psnr"]
    assert "learn flux: learned_8/3x full - learned_0, to the full picture: " in text
    made = json.loads((tmp_path / "learn-flux.json").read_text())["calibrated_few"]
    assert 4 < made["full_pictures"] <= 10
    found = json.loads((tmp_path / "learn_differences.json").read_text())["rows"]
    assert {r["suite"] for r in found} == {"learn", "wide", "large", "beta"}
    assert all(r["against"] == "learned_0" for r in found)


def test_the_headroom_suite_finds_no_more_than_the_best_of_each(ready, tmp_path):
    flags = ("--counts", "7", "14", "--plans", "2")
    text = headroom.run(ready, quick(headroom, tmp_path, *flags))
    found = json.loads((tmp_path / "headroom.json").read_text())["models"]["flux"]
    assert found["prompts"] == 2
    for goal in ("full", "converged"):
        for row in found[goal]["plans"].values():
            assert row["own"] <= row["best_for_all"] <= row["best_for_each"]
        assert all(row["gain"] > -0.01 for row in found[goal]["budgets"])
        assert [row["evaluations"] for row in found[goal]["budgets"]][-1] <= 14
    assert "flux, 7 evaluations, to the full picture" in text
    computed = (tmp_path / "headroom-flux.jsonl").read_text(encoding="utf-8").count("plan_1/7")
    assert computed == 2


def test_a_sampler_that_fails_beside_the_node_is_said_to(ready):
    suite = SimpleNamespace(
        subject=Subject(ready, FAMILIES["flux"]),
        prompts=[text("striped")],
        scale=SimpleNamespace(size=64),
        steps=2,
    )

    def broken(model):
        raise TypeError("no such model")

    with torch.inference_mode():
        error = dial_samplers.error_of(suite, "euler", broken)
        assert error == "with the node: TypeError: no such model"
        assert dial_samplers.error_of(suite, "euler", lambda model: model) is None
