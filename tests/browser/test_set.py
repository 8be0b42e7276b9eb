"""RAPID's nodes among others: found first, told at a glance, and put in by a right click, in both renderers."""

import pytest

from rapid_testing import examples

BOTH = pytest.mark.parametrize("vue", [False, True], ids=["litegraph", "nodes2"])
ALL = pytest.mark.parametrize(
    "vue, palette",
    [(False, "dark"), (False, "light"), (True, "dark"), (True, "light")],
    ids=["litegraph-dark", "litegraph-light", "nodes2-dark", "nodes2-light"],
)
FIND = "const f = kind => app.graph._nodes.find(n => n.type === kind);"
# The sampler's latent goes to the decoder itself.
NO_REPORT = f"""() => {{ {FIND} app.graph.remove(f("RAPID_Report"));
  f("KSampler").connect(0, f("VAEDecode"), 0) }}"""
# Loader, sampler and report alone on a wire, far apart, so that nothing lies over it.
PLAIN = f"""() => {{ {FIND} const [u, s, r] = ["UNETLoader", "KSampler", "RAPID_Report"].map(f);
  app.graph.remove(f("RAPID_Accelerate")); u.connect(0, s, 0); u.connect(0, r, 0); s.pos = [1800, -600];
  u.pos = [0, -600]; r.pos = [2300, -600]; app.canvas.ds.scale = 1; app.canvas.ds.offset = [-400, 900];
  app.canvas.draw(true, true) }}"""
WIRE = """() => { const c = app.canvas, r = c.canvas.getBoundingClientRect();
  const { _pos: p } = [...c.renderedPaths].find(l => l.type === "MODEL");
  return [(p[0] + c.ds.offset[0]) * c.ds.scale + r.left, (p[1] + c.ds.offset[1]) * c.ds.scale + r.top] }"""
TITLE = f"""kind => {{ {FIND} const c = app.canvas, r = c.canvas.getBoundingClientRect(), n = f(kind);
  const [x, y] = [n.pos[0] + 60, n.pos[1] - 14];
  return [(x + c.ds.offset[0]) * c.ds.scale + r.left, (y + c.ds.offset[1]) * c.ds.scale + r.top] }}"""
LOOKS = "() => app.graph._nodes.map(n => [n.type, n.color ?? null, n.bgcolor ?? null])"
LINKS = """() => app.graph._nodes.flatMap(n => (n.inputs ?? []).filter(i => i.link != null).map(i => {
  const l = app.graph.getLink(i.link); return [app.graph.getNodeById(l.origin_id).title, n.title, i.name] }))"""
OVERLAPS = """() => { const boxes = app.graph._nodes.map(n =>
    [n.title, n.pos[0], n.pos[1] - 30, n.size[0], n.size[1] + 30]);
  return boxes.flatMap(([a, x, y, w, h], i) => boxes.slice(i + 1).filter(([, u, v, p, q]) =>
    x < u + p && u < x + w && y < v + q && v < y + h).map(([b]) => [a, b])) }"""

# A second sampler that goes on from the first, with a RAPID node of its own.
TWO_SAMPLERS = f"""() => {{ {FIND} app.graph.remove(f("RAPID_Report"));
  const [s, u, d] = ["KSampler", "UNETLoader", "VAEDecode"].map(f);
  const [t, a] = ["KSampler", "RAPID_CacheReuse"].map(kind => LiteGraph.createNode(kind));
  for (const n of [t, a]) app.graph.add(n);
  t.title = "second"; t.pos = [1200, 900]; a.pos = [600, 1100];
  u.connect(0, a, 0); a.connect(0, t, 0); s.connect(0, t, "latent_image"); t.connect(0, d, 0);
  for (const name of ["positive", "negative"]) {{
    const l = app.graph.getLink(s.inputs[s.findInputSlot(name)].link);
    app.graph.getNodeById(l.origin_id).connect(l.origin_slot, t, name) }} }}"""

# A second sampler on the loader's model, with a report of its own; nothing of RAPID's before it.
OTHER_RUN = f"""() => {{ {FIND} const [u, s] = ["UNETLoader", "KSampler"].map(f);
  const [t, r] = ["KSampler", "RAPID_Report"].map(kind => LiteGraph.createNode(kind));
  for (const n of [t, r]) app.graph.add(n);
  [t.title, r.title] = ["other", "other report"]; t.pos = [1800, 900]; r.pos = [2300, 900];
  u.connect(0, t, 0); u.connect(0, r, 0); t.connect(0, r, "latent") }}"""
# The seed comes over a link, and all from the loaders to the picture is a subgraph, which is opened.
INSIDE = f"""kinds => {{ {FIND} const seed = LiteGraph.createNode("PrimitiveInt"), s = f("KSampler");
  app.graph.add(seed); seed.pos = [-900, -600]; seed.widgets[0].value = 7; seed.widgets[1].value = "fixed";
  seed.connect(0, s, s.findInputSlot("seed"));
  const some = app.graph._nodes.filter(n => kinds.includes(n.type));
  app.canvas.selectItems(some);
  const {{ node, subgraph }} = app.graph.convertToSubgraph(new Set(some));
  app.canvas.openSubgraph(subgraph, node) }}"""
INNER_TITLE = """kind => { const c = app.canvas, r = c.canvas.getBoundingClientRect();
  const n = c.graph._nodes.find(n => n.type === kind), [x, y] = [n.pos[0] + 60, n.pos[1] - 14];
  return [(x + c.ds.offset[0]) * c.ds.scale + r.left, (y + c.ds.offset[1]) * c.ds.scale + r.top] }"""
# Links of the open subgraph; "in" and "out" for its own inputs and outputs.
INNER_LINKS = """() => [...app.canvas.graph._links.values()].map(l => { const g = app.canvas.graph;
  const [from, to] = [g.getNodeById(l.origin_id), g.getNodeById(l.target_id)];
  return [from?.title ?? "in", to?.title ?? "out",
    to?.inputs[l.target_slot].name ?? g.outputs[l.target_slot].name] })"""


def choose(page, entry):
    """Choose an entry of the menu that a right click has opened."""
    page.page.get_by_text(entry, exact=True).filter(visible=True).first.click()
    page.page.wait_for_timeout(500)


def right_click(page, kind, title=TITLE):
    """On the title of the first node of a kind; title: the script that finds it."""
    page.look_at(kind)
    page.page.wait_for_timeout(500)
    page.page.mouse.click(*page.do(title, kind), button="right")


def mine(page):
    return [line for line in page.said if "/extensions/rapid/" in " ".join(line)]


def test_who_looks_for_speed_finds_rapid_accelerate_first(graph):
    page = graph()
    search = page.page.get_by_placeholder("Add a node...")
    for word in ("faster", "teacache", "skip steps", "rapid acc"):
        for _ in range(10):
            if not search.is_visible():
                page.page.mouse.dblclick(1200, 850, delay=50)
            if page._soon(search.is_visible):
                break
        search.fill(word)
        page.page.wait_for_function(
            "title => document.querySelector('[role=option]')?.innerText.startsWith(title)",
            arg="RAPID Accelerate",
        )
        page.page.keyboard.press("Escape")
        search.wait_for(state="hidden")


@ALL
def test_rapids_nodes_have_a_colour_and_a_mark_in_a_large_graph(graph, picture, vue, palette):
    page = graph(**{"Comfy.VueNodes.Enabled": vue, "Comfy.ColorPalette": palette})
    workflow = examples.opened("demo_flux")
    page.load(workflow)
    page.do(
        """() => { const kinds = ["KSampler", "VAEDecode", "LoraLoaderModelOnly", "CLIPTextEncode", "ImageScale"];
        for (let i = 0; i < 48; i++) { const n = LiteGraph.createNode(kinds[i % 5]); app.graph.add(n);
          n.pos = [(i % 8) * 420 - 900, 800 + Math.floor(i / 8) * 340] } }"""
    )
    looks = page.do(LOOKS)
    assert all((color is not None) is (kind.startswith("RAPID_")) or kind == "MarkdownNote"
               for kind, color, _ in looks)  # fmt: skip
    badges = page.do(
        """() => app.graph._nodes.filter(n => n.badges.some(b => (b.text ?? b().text) === "⚡")).map(n => n.type)"""
    )
    assert sorted(badges) == ["RAPID_Accelerate", "RAPID_Report"]
    name = f"demo_output/set_{'nodes2' if vue else 'litegraph'}_{palette}.png"
    page.shot(picture(name))
    assert mine(page) == []


def test_a_colour_of_a_saved_workflow_stays_and_one_that_was_taken_away_too(graph):
    page = graph()
    workflow = examples.opened("demo_flux")
    own = {"RAPID_Accelerate": {"color": "#223", "bgcolor": "#335"}}
    for node in workflow["nodes"]:
        node.update(own.get(node["type"], {}))
    page.load(workflow)
    looks = {kind: (color, ground) for kind, color, ground in page.do(LOOKS)}
    assert looks["RAPID_Accelerate"] == ("#223", "#335") and looks["RAPID_Report"][0]
    page.do(
        "() => app.graph._nodes.filter(n => n.type.startsWith('RAPID_')).forEach(n => n.setColorOption(null))"
    )
    saved = page.do("() => app.graph.serialize()")
    page.load(saved)
    looks = {kind: (color, ground) for kind, color, ground in page.do(LOOKS)}
    assert looks["RAPID_Accelerate"] == looks["RAPID_Report"] == (None, None)


@BOTH
def test_a_right_click_on_a_models_wire_inserts_rapid_accelerate(graph, vue):
    page = graph(**{"Comfy.VueNodes.Enabled": vue})
    page.load(examples.opened("demo_flux"))
    page.do(PLAIN)
    page.page.wait_for_timeout(1000)
    before = page.do(LINKS)
    page.page.mouse.click(*page.do(WIRE), button="right")
    choose(page, "Insert RAPID Accelerate")
    links = page.do(LINKS)
    loader, accelerate = "Load Diffusion Model", "RAPID Accelerate"
    assert [loader, accelerate, "model"] in links
    # The report goes along: it needs the model that is sampled.
    assert [accelerate, "KSampler", "model"] in links and [
        accelerate,
        "RAPID Report",
        "model",
    ] in links
    assert len(links) == len(before) + 1
    page.page.mouse.click(*page.do(WIRE), button="right")  # there is one on it now
    page.page.wait_for_timeout(500)
    assert (
        not page.page.get_by_text("Insert RAPID Accelerate", exact=True)
        .filter(visible=True)
        .count()
    )
    page.page.keyboard.press("Escape")
    page.page.mouse.click(800, 850)
    page.page.keyboard.press("Control+z")
    page.page.wait_for_function(f"n => ({LINKS})().length === n", arg=len(before))
    assert mine(page) == []


@BOTH
def test_a_right_click_on_a_sampler_inserts_rapid_accelerate(graph, vue):
    page = graph(**{"Comfy.VueNodes.Enabled": vue})
    page.load(examples.opened("demo_flux"))
    page.do(PLAIN)
    right_click(page, "KSampler")
    choose(page, "Insert RAPID Accelerate")
    assert ["RAPID Accelerate", "KSampler", "model"] in page.do(LINKS)
    page.load(examples.opened("demo_flux"))  # which has one
    right_click(page, "KSampler")
    page.page.get_by_text("Clone", exact=True).filter(visible=True).first.wait_for()
    assert (
        not page.page.get_by_text("Insert RAPID Accelerate", exact=True)
        .filter(visible=True)
        .count()
    )
    page.page.keyboard.press("Escape")


@BOTH
def test_a_right_click_on_a_rapid_node_adds_a_report_and_compares_with_full(graph, picture, vue):
    page = graph(**{"Comfy.VueNodes.Enabled": vue})
    workflow = examples.opened("demo_flux")
    for node in workflow["nodes"]:
        if node["type"] == "KSampler":
            node["widgets_values"][:3] = [80 + vue, "randomize", 8]
        if node["type"] == "EmptySD3LatentImage":
            node["widgets_values"][:2] = [128, 128]
    page.load(workflow)
    page.do(NO_REPORT)
    right_click(page, "RAPID_Accelerate")
    choose(page, "Add RAPID Report")
    links = page.do(LINKS)
    for link in (
        ["RAPID Accelerate", "RAPID Report", "model"],
        ["KSampler", "RAPID Report", "latent"],
        ["RAPID Report", "VAE Decode", "samples"],
    ):
        assert link in links
    right_click(page, "RAPID_Accelerate")
    choose(page, "Compare with full")
    links = page.do(LINKS)
    assert ["Load Diffusion Model", "KSampler · full", "model"] in links
    assert {(a, b) for a, b, name in links if name == "seed"} == {
        ("Seed of both", "KSampler"),
        ("Seed of both", "KSampler · full"),
    }
    page.page.wait_for_timeout(1500)
    if not vue:  # sizes of the other renderer are the page's
        before = {("Demo Prompt", "Demo Prompt (empty)")}
        assert {tuple(pair) for pair in page.do(OVERLAPS)} <= before
    page.page.screenshot(path=str(picture(f"demo_output/compare_with_full_{int(vue)}.png")))
    page.run()
    about = page.outputs("RAPID_Compare")["rapid_compare"][0]
    assert about["record_a"]["full"] and about["record_b"]["skipped"] > 0
    assert 30 < about["psnr"] < 90  # the same seed: of another one it is some 10 dB
    assert mine(page) == []


def test_compare_with_full_copies_every_sampler_on_the_way_and_says_what_it_needs(graph):
    """As with the two experts of Wan 2.2: the second sampler goes on from the first."""
    page = graph()
    page.load(examples.opened("demo_flux"))
    page.do(TWO_SAMPLERS)
    right_click(page, "RAPID_Accelerate")
    choose(page, "Compare with full")
    links = page.do(LINKS)
    for sampler in ("KSampler · full", "second · full"):
        assert ["Load Diffusion Model", sampler, "model"] in links
    assert ["KSampler · full", "second · full", "latent_image"] in links
    assert not [
        link for link in links if link[2] in ("record_a", "record_b")
    ]  # of one sampler only
    page.load(examples.opened("demo_flux"))
    page.do(f"() => {{ {FIND} app.graph.remove(f('VAEDecode')) }}")
    right_click(page, "RAPID_Accelerate")
    choose(page, "Compare with full")
    page.page.get_by_text("Compare with full needs a sampler and a VAE Decode").first.wait_for()
    assert not page.do("() => app.graph._nodes.some(n => n.type === 'RAPID_Compare')")


@BOTH
def test_a_report_of_another_sampler_stays_where_it_is(graph, vue):
    """It tells the time of that one's full run."""
    page = graph(**{"Comfy.VueNodes.Enabled": vue})
    page.load(examples.opened("demo_flux"))
    page.do(PLAIN)
    page.do(OTHER_RUN)
    right_click(page, "KSampler")
    choose(page, "Insert RAPID Accelerate")
    links = page.do(LINKS)
    for link in (
        ["RAPID Accelerate", "KSampler", "model"],
        ["RAPID Accelerate", "RAPID Report", "model"],
        ["Load Diffusion Model", "other", "model"],
        ["Load Diffusion Model", "other report", "model"],
    ):
        assert link in links
    assert mine(page) == []


@BOTH
def test_compare_with_full_inside_a_subgraph_takes_what_comes_from_outside(graph, vue):
    """Without it both pictures would have seeds of their own, and the copy no prompt."""
    page = graph(**{"Comfy.VueNodes.Enabled": vue})
    workflow = examples.opened("demo_flux")
    for node in workflow["nodes"]:
        if node["type"] == "KSampler":
            node["widgets_values"][:3] = [1, "randomize", 8]
        if node["type"] == "EmptySD3LatentImage":
            node["widgets_values"][:2] = [128, 128]
    page.load(workflow)
    page.do(NO_REPORT)
    page.do(INSIDE, ["RAPID_Accelerate", "KSampler", "VAEDecode"])
    right_click(page, "RAPID_Accelerate", INNER_TITLE)
    choose(page, "Compare with full")
    links = page.do(INNER_LINKS)
    for name in ("model", "seed", "positive", "negative", "latent_image"):
        assert ["in", "KSampler · full", name] in links
    assert ["in", "VAE Decode · full", "vae"] in links
    assert len([link for link in links if link[2] in ("record_a", "record_b")]) == 2
    page.page.wait_for_timeout(1000)
    page.run()
    about = page.outputs("RAPID_Compare")["rapid_compare"][0]
    assert about["record_a"]["full"] and about["record_b"]["skipped"] > 0
    assert 30 < about["psnr"] < 90
    assert mine(page) == []


def test_a_report_is_put_before_the_output_of_a_subgraph(graph):
    page = graph()
    page.load(examples.opened("demo_flux"))
    page.do(NO_REPORT)
    page.do(INSIDE, ["UNETLoader", "RAPID_Accelerate", "KSampler"])
    right_click(page, "RAPID_Accelerate", INNER_TITLE)
    choose(page, "Add RAPID Report")
    links = page.do(INNER_LINKS)
    assert ["KSampler", "RAPID Report", "latent"] in links
    assert [(a, b) for a, b, _ in links if b == "out"] == [("RAPID Report", "out")]
    assert mine(page) == []


@BOTH
def test_reroute_nodes_are_part_of_the_way(graph, vue):
    """The page's own ones, which have an input of any type and are no nodes of the server's."""
    page = graph(**{"Comfy.VueNodes.Enabled": vue})
    page.load(examples.opened("demo_flux"))
    page.do(
        f"""() => {{ {FIND} const [a, s, d] = ["RAPID_Accelerate", "KSampler", "VAEDecode"].map(f);
        app.graph.remove(f("RAPID_Report"));
        for (const [from, to, input] of [[a, s, "model"], [s, d, "samples"]]) {{
          const r = LiteGraph.createNode("Reroute"); app.graph.add(r); r.title = input; r.pos = [to.pos[0], -600];
          from.connect(0, r, 0); r.connect(0, to, input) }} }}"""
    )
    right_click(page, "KSampler")
    page.page.get_by_text("Clone", exact=True).filter(visible=True).first.wait_for()
    entry = page.page.get_by_text("Insert RAPID Accelerate", exact=True).filter(visible=True)
    assert not entry.count()  # there is one before it
    page.page.keyboard.press("Escape")
    page.page.mouse.click(800, 850)
    right_click(page, "RAPID_Accelerate")
    choose(page, "Compare with full")
    links = page.do(LINKS)
    for link in (
        ["Load Diffusion Model", "model · full", ""],
        ["model · full", "KSampler · full", "model"],
        ["KSampler · full", "RAPID Report", "latent"],
        ["samples · full", "VAE Decode · full", "samples"],
    ):
        assert link in links
    assert mine(page) == []
