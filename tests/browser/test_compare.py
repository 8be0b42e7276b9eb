"""RAPID Compare in the page: two pictures over each other, by mouse and by keys, and blind votes."""

import pytest

from rapid_testing import examples

ROOT = ".rapid-compare"
PLACE = "() => getComputedStyle(document.querySelector('.rapid-compare .stage')).getPropertyValue('--place')"
LOADED = "() => [...document.querySelectorAll('.rapid-compare img')].every(i => i.naturalWidth)"


def run(page, seed, **changes):
    """The example in small, run and brought into view."""
    nodes = examples.api("demo_compare")
    nodes["latent"]["inputs"].update(width=128, height=128, batch_size=2)
    nodes["seed"]["inputs"]["value"] = seed
    nodes["compare"]["inputs"].update(changes)
    del nodes["save"]  # graphs in API form are laid out by the page, which puts it over the other
    for name in ("sample_full", "sample_rapid"):
        nodes[name]["inputs"]["steps"] = 8
    page.load(nodes)
    page.run()
    page.look_at("RAPID_Compare", f"{ROOT} .stage")
    page.page.wait_for_function(LOADED)
    return page.outputs("RAPID_Compare")["rapid_compare"][0]


@pytest.mark.parametrize(
    "vue, palette", [(False, "dark"), (True, "light")], ids=["litegraph-dark", "nodes2-light"]
)
def test_two_pictures_lie_over_each_other_and_are_told_apart(graph, picture, vue, palette):
    page = graph(**{"Comfy.VueNodes.Enabled": vue, "Comfy.ColorPalette": palette})
    about = run(page, 50 + vue)
    panel = page.page.locator(ROOT)
    text = panel.inner_text()
    assert f"{about['seconds_a'] / about['seconds_b']:.2f}x as fast" in text
    assert f"PSNR {about['psnr']:.1f} dB · SSIM {about['ssim']:.4f}" in text
    assert "A · full" in text and "B · RAPID" in text and "1/2" in text
    page.shot(picture(f"demo_output/compare_{palette}.png"), "RAPID_Compare")

    page.look_at("RAPID_Compare")
    slider = panel.locator("input[type=range]")
    slider.focus()
    for _ in range(4):
        page.page.keyboard.press("ArrowLeft")
    page.page.wait_for_function(f"place => ({PLACE})() === place", arg="48%")
    box = slider.bounding_box()
    page.page.mouse.click(box["x"] + box["width"] / 4, box["y"] + box["height"] / 2)
    assert float(page.do(PLACE).rstrip("%")) == pytest.approx(25, abs=2)
    where = page.do("() => [...app.graph._nodes.find(n => n.comfyClass === 'RAPID_Compare').pos]")

    panel.get_by_role("button", name="Difference").focus()
    page.page.keyboard.press("Enter")
    panel.locator("img.difference").wait_for()
    assert panel.get_by_role("button", name="Difference").get_attribute("aria-pressed") == "true"
    page.page.wait_for_function(LOADED)
    page.page.keyboard.press("Enter")  # the button has the keys still
    panel.locator("img.difference").wait_for(state="detached")
    before = panel.locator("img.over").get_attribute("src")
    panel.get_by_role("button", name="Next").click()
    assert "2/2" in panel.inner_text() and panel.locator("img.over").get_attribute("src") != before
    # None of this has moved the node.
    after = page.do("() => [...app.graph._nodes.find(n => n.comfyClass === 'RAPID_Compare').pos]")
    assert after == where
    assert [line for line in page.said if line[0] == "error" and "rapid" in " ".join(line)] == []


def test_a_blind_comparison_tells_nothing_before_the_vote_and_counts_it(graph):
    page = graph()
    page.do("() => localStorage.clear()")
    about = run(page, 60, blind=True)
    panel = page.page.locator(ROOT)
    text = panel.inner_text()
    assert "Which is better?" in text and "PSNR" not in text and "as fast" not in text
    assert (
        "A ·" not in text
        and "RAPID" not in text
        and panel.locator(".tag.left").inner_text() == "left"
    )
    first = about["pairs"][0]
    left = panel.locator("img.over").get_attribute("src")
    assert ("rapid_b_" in left) is first["swapped"]
    panel.get_by_role("button", name="Left is better").click()
    text = panel.inner_text()
    b = int(first["swapped"])
    assert "PSNR" in text and panel.locator(".tag.left").inner_text()[0] == "AB"[b]
    assert f"B was preferred in {b} of 1" in text
    panel.get_by_role("button", name="Next").click()
    assert "Which is better?" in panel.inner_text()  # of the other pair nothing is told yet
    panel.get_by_role("button", name="No difference").click()
    assert f"B was preferred in {b} of 1" in panel.inner_text()
    assert "1 without a preference" in panel.inner_text()
    page.look_at("RAPID_Compare")  # it has grown since, and its end may be out of the window
    panel.get_by_role("button", name="Forget votes").click()
    assert "without a preference" not in panel.inner_text()


def test_the_interval_of_votes_is_wilsons(graph):
    """Against figures worked out by hand: 7 of 12, none of 5, and all of 5."""
    page = graph()
    found = page.do(
        """async () => { const { wilson } = await import("/extensions/rapid/votes.js");
        return [[7, 12], [0, 5], [5, 5], [0, 0]].map(([n, of]) => wilson(n, of)) }"""
    )
    figures = [(one["low"], one["high"]) for one in found]
    assert figures[0] == pytest.approx((0.3195, 0.8067), abs=1e-3)
    assert figures[1] == pytest.approx((0.0, 0.4345), abs=1e-3)
    assert figures[2] == pytest.approx((0.5655, 1.0), abs=1e-3)
    assert figures[3] == (None, None)


def test_a_vote_counts_where_the_browser_keeps_nothing(graph):
    """As where its room is used up, or a page may keep nothing."""
    page = graph()
    found = page.do(
        """async () => { const { keepVote, noVotes, tally, votesOf } = await import("/extensions/rapid/votes.js");
        const node = { id: 3, graph: { id: "5a3d8c1e-3f57-4c0e-9d0a-6f1f6f2f7b11" } };
        const before = Storage.prototype.setItem, a = () => tally(votesOf(node)).a, counts = [];
        keepVote(node, "first", "a"); counts.push(a());
        Storage.prototype.setItem = () => { throw new DOMException("full", "QuotaExceededError") };
        keepVote(node, "second", "a"); counts.push(a());
        keepVote(node, "third", "a"); counts.push(a());
        Storage.prototype.setItem = before;
        keepVote(node, "fourth", "a"); counts.push(a());
        noVotes(node); counts.push(a());
        return counts }"""
    )
    assert found == [1, 2, 3, 4, 0]


def test_a_comparison_speaks_the_users_language(graph):
    page = graph(**{"Comfy.Locale": "zh"})
    run(page, 70)
    text = page.page.locator(ROOT).inner_text()
    assert "用时" in text and "A · 完整" in text and "差异" in text and "took" not in text
