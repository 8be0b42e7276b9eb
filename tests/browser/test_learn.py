"""Two pictures with `learn` on, as a new user draws them, and the list of what was learned."""

import pytest

from rapid_testing import examples

REPORT = ".rapid-report"
ROWS = ".rapid-learned tr"


@pytest.fixture
def workflow():
    """The demo, small, with `learn` on."""
    nodes = examples.api("demo_flux")
    nodes["latent"]["inputs"].update(width=128, height=128)
    nodes["sample"]["inputs"].update(steps=12)
    nodes["accelerate"]["inputs"].update(learn=True, policy_file="none")
    return nodes


def test_it_learns_from_the_first_picture_and_the_list_shows_and_forgets_it(graph, workflow):
    page = graph()
    said = []
    for seed in (0, 1):
        workflow["sample"]["inputs"]["seed"] = seed
        page.load(workflow)
        page.run()
        page.look_at("RAPID_Report", REPORT)
        said.append(page.page.text_content(REPORT))
    assert "all steps are computed this once" in said[0] and "12 of 12" in said[0]
    assert "learned from 1 picture(s)" in said[1] and "6 of 12" in said[1]
    page.do("() => app.extensionManager.command.execute('Comfy.ShowSettingsDialog')")
    page.page.get_by_text("RAPID", exact=True).first.click()
    page.page.wait_for_selector(ROWS)
    row = page.page.text_content(ROWS)
    assert "Flux" in row and "euler, 12 steps · cfg 1" in row and "1 picture(s)" in row
    page.page.click(f"{ROWS} button")
    page.page.wait_for_selector(".rapid-learned p")
    page.page.keyboard.press("Escape")
