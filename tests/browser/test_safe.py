"""Runs in which little or nothing may be skipped, as people see them: the picture is the full one, and
the report says why."""

import pytest

from rapid_testing import examples

REPORT = ".rapid-report"


def workflow(sampler, steps):
    """The demo at its own size, by this sampler."""
    nodes = examples.api("demo_flux")
    nodes["latent"]["inputs"].update(width=256, height=256)
    nodes["sample"]["inputs"].update(sampler_name=sampler, steps=steps)
    nodes["accelerate"]["inputs"].update(speedup=2.0, policy_file="none")
    return nodes


@pytest.mark.parametrize(
    ("sampler", "steps", "words"),
    [
        ("euler", 4, "this run has 4 steps"),
        ("euler", 8, "at most 2 of them are skipped"),
        ("lcm", 20, "the sampler lcm adds noise"),
        ("euler_ancestral", 20, "the sampler euler_ancestral adds noise"),
        ("dpmpp_2m_sde", 20, "the sampler dpmpp_2m_sde adds noise"),
        ("euler_cfg_pp", 20, "makes small errors large"),
    ],
)
def test_the_report_says_why_little_is_skipped(graph, picture, sampler, steps, words):
    page = graph()
    page.load(workflow(sampler, steps))
    page.run()
    page.look_at("RAPID_Report", REPORT)
    text = page.page.text_content(REPORT)
    assert words in text
    skipped = 2 if steps == 8 else 0
    assert f"{steps - skipped} of {steps}" in text
    page.page.screenshot(path=picture(f"safe_{sampler}_{steps}.png"))
