"""Learning in the page, as a new user does it: pictures with `learn` on, the list of what was
learned, a calibration that is cancelled and goes on, and its file found."""

import pytest

from rapid_testing import examples

REPORT = ".rapid-report"
ROWS = ".rapid-learned tr"
# Whether a node of the graph says this on its line.
LINE = """words => app.graph._nodes.some(n => (n.widgets ?? []).some(w => String(w.value ?? "").includes(words)))"""


@pytest.fixture
def workflow():
    """The demo, small, with `learn` on."""
    nodes = examples.api("demo_flux")
    nodes["latent"]["inputs"].update(width=128, height=128)
    nodes["sample"]["inputs"].update(steps=12)
    nodes["accelerate"]["inputs"].update(learn=True, policy_file="none")
    return nodes


def test_it_learns_from_the_first_pictures_and_the_list_shows_and_forgets_it(graph, workflow):
    page = graph()
    said = []
    for seed in range(5):
        workflow["sample"]["inputs"]["seed"] = seed
        page.load(workflow)
        page.run()
        page.look_at("RAPID_Report", REPORT)
        said.append(page.page.text_content(REPORT))
    for number, words in enumerate(said[:4], 1):
        assert f"this is picture {number}" in words and "12 of 12" in words
    assert "learned from 4 picture(s)" in said[4] and "6 of 12" in said[4]
    page.do("() => app.extensionManager.command.execute('Comfy.ShowSettingsDialog')")
    page.page.get_by_text("RAPID", exact=True).first.click()
    page.page.wait_for_selector(ROWS)
    row = page.page.text_content(ROWS)
    assert "Flux" in row and "euler, 12 steps · cfg 1" in row and "4 picture(s)" in row
    page.page.click(f"{ROWS} button")
    page.page.wait_for_selector(".rapid-learned p")
    page.page.keyboard.press("Escape")


def test_an_entry_stays_usable_where_the_server_does_not_answer(graph):
    page = graph()
    entry = dict(name="a.safetensors", size=2048, modified=0, pictures=4, error=None)
    entry |= dict(family="Flux", patched=True, sampler="euler", steps=12, guidance="cfg 1")
    entry["turns"] = "0.5"
    answers = [lambda route: route.fulfill(json=[entry])]
    gone = lambda route: route.abort()  # noqa: E731
    page.page.route("**/rapid/learned**", lambda r: (answers.pop() if answers else gone)(r))
    page.do("() => app.extensionManager.command.execute('Comfy.ShowSettingsDialog')")
    page.page.get_by_text("RAPID", exact=True).first.click()
    page.page.wait_for_selector(ROWS)
    row = page.page.text_content(ROWS)
    assert "cfg 1 · changes on its way: 0.5 · with LoRAs or other patches" in row
    page.page.click(f"{ROWS} button")
    page.page.get_by_text("The list could not be read").wait_for(timeout=10_000)
    page.page.unroute("**/rapid/learned**")
    page.page.keyboard.press("Escape")


@pytest.fixture
def calibration(workflow):
    """RAPID Calibrate in the place of RAPID Accelerate and the sampler, with a preview of its plot."""
    nodes = {
        name: workflow[name] for name in ("model", "positive", "negative", "guidance", "latent")
    }
    nodes["sampler"] = {"class_type": "KSamplerSelect", "inputs": {"sampler_name": "euler"}}
    scheduler = dict(model=["model", 0], scheduler="simple", steps=12, denoise=1.0)
    nodes["sigmas"] = {"class_type": "BasicScheduler", "inputs": scheduler}
    inputs = dict(
        model=["model", 0],
        noise_seed=5,
        cfg=1.0,
        positive=["guidance", 0],
        negative=["negative", 0],
        sampler=["sampler", 0],
        sigmas=["sigmas", 0],
        latent_image=["latent", 0],
        name="from the page",
        effort="few",
    )
    nodes["calibrate"] = {"class_type": "RAPID_Calibrate", "inputs": inputs}
    nodes["plot"] = {"class_type": "PreviewImage", "inputs": {"images": ["calibrate", 2]}}
    return nodes


def test_a_calibration_is_cancelled_goes_on_and_its_file_is_found(
    graph, server, workflow, calibration
):
    page = graph()
    folder = server.base / "models" / "rapid_policies"
    state = folder / "from the page.calibration.json"
    page.load(calibration)
    page.page.get_by_test_id("queue-button").click()
    page.page.wait_for_function(LINE, arg="of 10 pictures")
    assert page._soon(state.exists) and not (folder / "from the page.safetensors").exists()
    server.client.interrupt()
    page.page.wait_for_timeout(2000)
    kept = state.read_text(encoding="utf-8")
    assert '"tables"' in kept
    page.run()
    assert (folder / "from the page.safetensors").exists() and not state.exists()
    about = page.outputs("RAPID_Calibrate")["text"][0]
    assert "drawn: 4 seeds" in about and "of 10 at the most" in about and "2x: 6 of 12" in about
    page.page.wait_for_function(LINE, arg="done")
    workflow["accelerate"]["inputs"].update(learn=False, policy_file="auto")
    page.load(workflow)
    page.run()
    assert "from the page.safetensors" in page.outputs("RAPID_Report")["text"][0]
