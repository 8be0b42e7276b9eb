"""The suites run end to end, in small; how well is not asked here."""

import json

import pytest

from benchmarks import region


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
