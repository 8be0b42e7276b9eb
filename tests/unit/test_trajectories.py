"""What sampling is like on demo models: the solvers, and figures that are kept."""

import json
import math

import pytest
import torch

from demo import trajectories
from demo.demo_model import DemoModel, export
from demo.emoji import demo_model as emoji_model


def linear(x, sigma):
    return -x * (1 + sigma)  # dx / dsigma; from 1 to 0 the solution grows by exp(1.5)


@pytest.mark.parametrize(("solver", "steps"), [(trajectories.heun, 40), (trajectories.adams, 80)])
def test_the_solvers_are_of_second_order(solver, steps):
    start = torch.ones(1, 1)
    wanted = math.exp(1.5)
    coarse, fine = (abs(float(solver(linear, start, n)) - wanted) for n in (steps // 2, steps))
    assert fine < 1e-3 * wanted
    assert coarse / fine > 3


def test_changes_are_those_of_the_velocity_relative_to_the_one_before():
    _, changes = trajectories.euler(lambda x, sigma: x * 0 + 1 + sigma, torch.ones(1, 4), 8)
    v = [1 + sigma for sigma in trajectories.grid(8)[:-1]]
    assert changes == pytest.approx([(a - b) / a for a, b in zip(v[:-1], v[1:], strict=True)])


@pytest.mark.parametrize("rate", [0.5, 4.0])
def test_a_rougher_field_needs_more_evaluations_and_one_fewer_does_not_do(rate):
    def field(x, sigma):
        return (rate * math.cos(3 * rate * sigma)) * torch.ones_like(x)

    start = torch.zeros(1, 4)
    found = trajectories.needed(field, start, lambda x: x, 40.0)
    truth = trajectories.heun(field, start, 101)
    assert trajectories.psnr(trajectories.adams(field, start, found), truth) >= 40
    if found > trajectories.LEAST:
        assert trajectories.psnr(trajectories.adams(field, start, found - 1), truth) < 40
    assert found == 3 if rate < 1 else found > 6


@pytest.mark.parametrize(
    ("model", "export_model"), [(DemoModel, export), (emoji_model.DemoModel, emoji_model.export)]
)
def test_figures_of_a_model_of_either_world_are_kept_and_gone_on_from(
    model, export_model, tmp_path, monkeypatch
):
    torch.manual_seed(0)
    made = model("flux")
    with torch.no_grad():
        for p in made.parameters():
            p.add_(0.02 * torch.randn_like(p))
    weights, out = tmp_path / "flux.safetensors", tmp_path / "flux.json"
    export_model("flux", made.state_dict(), weights, 0)
    flags = ["--weights", str(weights), "--size", "32", "--truth", "4", "--json", str(out)]
    first = trajectories.measure(trajectories.parser().parse_args([*flags, "--prompts", "1"]))
    assert len(first["velocity_change"]) == 27 and 3 <= first["pictures"][0]["needed"] <= 40
    both = trajectories.measure(trajectories.parser().parse_args([*flags, "--prompts", "2"]))
    assert both["pictures"][0] == first["pictures"][0] and both["prompts"] == 2
    assert json.loads(out.read_text()) == both
    monkeypatch.setattr(trajectories, "picture", None)
    assert (
        trajectories.measure(trajectories.parser().parse_args([*flags, "--prompts", "2"])) == both
    )
    with pytest.raises(SystemExit, match="of other weights or settings"):
        trajectories.measure(trajectories.parser().parse_args([*flags, "--goal", "30"]))
