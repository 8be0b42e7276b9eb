"""Save as policy in RAPID Report: what worked in one run is replayed on another seed and prompt."""

import json

import pytest

from rapid_testing import examples
from rapid_testing.texts import text

REPORT = ".rapid-report"
PATH = "/rapid/policies"


def workflow(seed, **accelerate):
    """The demo, small; accelerate: inputs of RAPID Accelerate."""
    nodes = examples.api("demo_flux")
    nodes["latent"]["inputs"].update(width=128, height=128)
    nodes["sample"]["inputs"].update(steps=12, seed=seed)
    usual = {"mode": "speed", "policy_file": "none"}  # the page may keep those of the graph before
    nodes["accelerate"]["inputs"].update({**usual, **accelerate})
    return nodes


def run(page, nodes):
    """The record of a run."""
    page.load(nodes)
    page.run()
    page.look_at("RAPID_Report", f"{REPORT} .row")
    return json.loads(page.outputs("RAPID_Report")["rapid_record"][0])


def steps(record):
    return [e["modes"] for e in record["evaluations"]]


def save(page, name):
    """Press the button and give a name."""
    page.page.locator(f"{REPORT} button.save").first.click()
    field = page.page.locator("[role=dialog] input").last
    field.fill(name)
    page.page.keyboard.press("Enter")


def told(page, text):
    page.page.get_by_text(text).filter(visible=True).first.wait_for()


@pytest.mark.parametrize("vue", [False, True], ids=["litegraph", "nodes2"])
def test_a_timeline_is_saved_and_replayed_on_another_seed_and_prompt(graph, picture, vue):
    page = graph(**{"Comfy.VueNodes.Enabled": vue})
    name = f"what worked {int(vue)}"
    first = run(page, workflow(90 + vue, mode="quality", closeness="draft"))
    assert 0 < first["totals"]["skipped"] < 11
    page.shot(picture(f"demo_output/save_{int(vue)}.png"), "RAPID_Report")
    page.look_at("RAPID_Report")
    page.page.locator(f"{REPORT} button.save").first.click()
    field = page.page.locator("[role=dialog] input").last
    field.wait_for()
    computed = first["totals"]["computed"]
    assert field.input_value() == f"flux-euler-{computed}-of-12"
    page.page.screenshot(path=str(picture(f"demo_output/save_dialog_{int(vue)}.png")))
    page.page.keyboard.press("Escape")
    page.page.locator("[role=dialog]").first.wait_for(state="hidden")
    save(page, name)
    told(page, f"Saved as {name}.safetensors. To replay it")

    speedup = int(120 / computed) / 10
    again = run(page, workflow(90 + vue, policy_file=f"{name}.safetensors", speedup=speedup))
    assert steps(again) == steps(first)
    assert again["fingerprint"] == first["fingerprint"]  # the same picture, bit for bit
    assert [note["code"] for note in again["notes"]] == ["policy_given"]

    nodes = workflow(7, speedup=speedup)
    nodes["positive"]["inputs"]["text"] = text("green")
    nodes["load"] = {"class_type": "RAPID_LoadPolicy", "inputs": {"policy": f"{name}.safetensors"}}
    nodes["accelerate"]["inputs"]["policy"] = ["load", 0]
    other = run(page, nodes)
    assert steps(other) == steps(first) and other["fingerprint"] != first["fingerprint"]
    assert [p["source"] for p in other["policies"]] == [f"{name}.safetensors"]
    assert [line for line in page.said if "/extensions/rapid/" in " ".join(line)] == []


def test_auto_does_not_take_a_saved_timeline_by_itself(graph):
    page = graph()
    run(page, workflow(92, speedup=1.5))
    save(page, "not by itself")
    told(page, "Saved as not by itself.safetensors")
    nodes = workflow(93, speedup=2.0)
    nodes["accelerate"]["inputs"]["policy_file"] = "auto"
    source = run(page, nodes)["policies"][0]["source"]
    assert source != "not by itself.safetensors"


def test_a_name_that_exists_is_replaced_after_a_second_yes_only(graph, server):
    page = graph()
    record = run(page, workflow(94, speedup=1.5))
    save(page, "twice")
    told(page, "Saved as twice.safetensors")
    file = next(server.base.rglob("rapid_policies/twice.safetensors"))
    before = file.read_bytes()
    run(page, workflow(94, speedup=3.0))
    save(page, "twice")
    told(page, "twice.safetensors was saved before. Replace it?")
    page.page.keyboard.press("Escape")
    page.page.get_by_text("Replace it?").first.wait_for(state="hidden")
    assert file.read_bytes() == before
    save(page, "twice")
    told(page, "twice.safetensors was saved before. Replace it?")
    page.page.get_by_role("button", name="Overwrite").click()
    told(page, "Saved as twice.safetensors")
    page.page.wait_for_timeout(500)
    assert file.read_bytes() != before

    shipped = "demo-flux-gaps"
    for body, status in (
        ({"name": shipped, "record": record, "replace": True}, 409),
        ({"name": "../outside", "record": record}, 400),
        ({"name": "nonsense", "record": {"format": "rapid-record", "version": 2}}, 400),
        ([], 400),
    ):
        answer = page.do(
            """async ([path, body]) => { const { api } = await import("/scripts/api.js");
            const a = await api.fetchApi(path, { method: "POST", body: JSON.stringify(body) });
            return [a.status, (await a.json()).error] }""",
            [PATH, body],
        )
        assert answer[0] == status and answer[1].startswith("not saved: "), answer


@pytest.mark.parametrize(
    "locale, words",
    [("en", "every step was computed, so there is nothing"), ("zh", "每一步都计算了")],
)
def test_a_run_that_is_no_schedule_is_refused_with_its_reason(graph, locale, words):
    page = graph(**{"Comfy.Locale": locale})
    nodes = workflow(95)
    nodes["sample"]["inputs"]["steps"] = 6  # which are computed in full
    record = run(page, nodes)
    assert record["totals"]["skipped"] == 0
    save(page, "full")
    told(page, words)
