"""The suites run end to end, in small; how well is not asked here."""

import json

import pytest

from benchmarks import attention, policy, region, sparse


@pytest.fixture
def ready(comfy_host, pack, demo_pack):
    for name in ("nodes_easycache.py", "nodes_flux.py"):
        comfy_host.load_core_nodes(name)
    return comfy_host


def test_the_region_suite_writes_its_rows_and_goes_on_where_it_stopped(ready, tmp_path):
    text = region.run(ready, ["flux"], 2, tmp_path, quick=True)
    log = (tmp_path / "region-flux.jsonl").read_text(encoding="utf-8")
    rows = {(r["method"], r["target"]): r for r in json.loads((tmp_path / "region.json").read_text())["rows"]}
    assert rows["dense", "1.0"]["equal"] == 2 and rows["dense", "1.0"]["cost"] == pytest.approx(1.0)
    assert {r["prompts"] for r in rows.values()} == {2}
    found = rows["region", "0.25"]
    assert 0.25 < found["cost"] < 1 and found["psnr"] > rows["region_paper", "0.25"]["psnr"]
    assert rows["cache_reuse", "0.25"]["cost"] <= found["cost"] + 0.05
    assert "flux: region/0.25 - fewer_heun/0.25, psnr_ode" in text
    region.run(ready, ["flux"], 2, tmp_path, cost_of="flux-dev", quick=True)
    assert (tmp_path / "region-flux.jsonl").read_text(encoding="utf-8") == log


def test_figures_of_other_weights_are_not_mixed_in(ready, tmp_path):
    (tmp_path / "region-flux.json").write_text('{"weights": "of another time"}')
    with pytest.raises(SystemExit, match="other flux weights"):
        region.run(ready, ["flux"], 2, tmp_path, quick=True)


def test_the_sparse_suite_writes_what_is_kept_how_long_it_takes_and_its_rows(ready, tmp_path, capsys):
    sparse.run(ready, sparse.parser().parse_args(["--quick", "--models", "sd3", "--out", str(tmp_path)]))
    masses = {(r["selection"], r["density"]): r for r in json.loads((tmp_path / "sparse_mass.json").read_text())}
    for density in attention.DENSITIES:
        ours, best = masses["ours", density], masses["oracle", density]
        assert masses["random", density]["mass"] < ours["mass"] <= best["mass"] <= 1.0
        assert ours["of_oracle"] > 0.95
    clock = json.loads((tmp_path / "sparse_clock.json").read_text())
    assert {r["backend"] for r in clock} == {"host", "torch", "gather"} and all(r["seconds"] > 0 for r in clock)
    rows = {(r["method"], r["target"]): r for r in json.loads((tmp_path / "sparse.json").read_text())["rows"]}
    assert rows["sparse", "0.25"]["cost"] < 1.0 and rows["sparse", "0.25"]["equal"] == 0
    assert rows["sparse", "0.25"]["psnr"] > rows["sparse_dropped", "0.25"]["psnr"]


def test_the_policy_suite_compares_plans_at_the_cost_of_a_speed_up(ready, tmp_path):
    flags = ["--quick", "--models", "flux", "--speedups", "2", "--out", str(tmp_path), "--methods", "default_plan",
             "cache_reuse", "fewer_euler", "plan_dense"]  # fmt: skip
    text = policy.run(ready, policy.parser().parse_args(flags))
    rows = {(r["method"], r["target"]): r for r in json.loads((tmp_path / "policy.json").read_text())["rows"]}
    assert rows["default_plan", "2x"]["computed"] == 14 and rows["default_plan", "2x"]["cost"] == pytest.approx(0.5)
    assert rows["fewer_euler", "2x"]["cost"] == pytest.approx(0.5) and rows["cache_reuse", "2x"]["cost"] <= 0.55
    assert "flux: default_plan/2x - fewer_euler/2x, psnr_ode" in text
