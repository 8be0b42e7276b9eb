"""RAPID Accelerate with `learn` on, in the real ComfyUI: the first pictures in full, the next by them."""

import pytest
import torch

from rapid_testing.loras import hooked, with_lora
from rapid_testing.sampling import empty_latent, make_conditioning, sample, sigmas_of

STEPS = 12
ALL = "#" * STEPS


@pytest.fixture
def learning(pack_module):
    """The module that looks up and keeps."""
    return pack_module("rapid_core.comfy.learning")


@pytest.fixture
def folder(learning, tmp_path, monkeypatch):
    """Where this test's files are kept."""
    library = learning.Library(tmp_path / "learned")
    monkeypatch.setattr(learning, "library", lambda: library)
    monkeypatch.setattr(learning, "_SHOW_NOTHING", set())
    monkeypatch.setattr(learning, "_TRIED", set())
    monkeypatch.setattr(learning, "ENOUGH", 1)  # one test has the real number
    return tmp_path / "learned"


@pytest.fixture
def learn(accelerate, record_of):
    """learn(model, **sampling): the latent, the strip and the codes of the notes of one run."""

    def learn(model, speedup=2.0, given=None, **sampling):
        patched = accelerate(model, speedup, learn=True, **(given or {}))
        latent = sample(patched, **{"steps": STEPS, "cfg": 2.5, **sampling})
        record = record_of(patched)
        return latent, record.strip(0), {note.code: note.params for note in record.notes}

    return learn


def test_the_first_picture_is_full_and_the_next_goes_by_it(learn, folder, tiny_model):
    full = sample(tiny_model, steps=STEPS, cfg=2.5)
    latent, strip, notes = learn(tiny_model)
    assert torch.equal(latent, full) and strip == ALL
    assert "learns_now" in notes and len(list(folder.glob("*.safetensors"))) == 1
    for _ in range(2):
        latent, strip, notes = learn(tiny_model, seed=3)
        assert strip.count("#") == STEPS // 2 and strip[0] == "#"
        assert notes["learned"] == {"pictures": 1} and "learns_now" not in notes
    assert [path.suffix for path in folder.iterdir()] == [".safetensors"]


def test_so_many_pictures_are_watched_as_tell_how_far_they_disagree(
    learn, learning, folder, tiny_flux, monkeypatch
):
    monkeypatch.setattr(learning, "ENOUGH", 4)
    for picture in (1, 2):
        _, strip, notes = learn(tiny_flux, seed=picture)
        assert strip == ALL and notes["learns_now"] == {"picture": picture, "of": 4}
    learn(tiny_flux, latent=empty_latent(2))  # a batch teaches as much as its images
    _, strip, notes = learn(tiny_flux)
    assert strip.count("#") == STEPS // 2 and notes["learned"] == {"pictures": 4}


def test_full_pictures_that_are_drawn_anyway_teach_as_much(learn, folder, tiny_flux):
    full = sample(tiny_flux, steps=STEPS, cfg=2.5)
    latent, strip, notes = learn(tiny_flux, speedup=1.0)
    assert torch.equal(latent, full) and strip == ALL and "learns_now" in notes
    assert learn(tiny_flux)[2]["learned"] == {"pictures": 1}
    assert learn(tiny_flux, speedup=1.0)[1] == ALL  # and stays what was asked for


def test_what_was_learned_outlives_the_server(learn, learning, folder, tiny_flux, monkeypatch):
    learn(tiny_flux)
    again = learning.Library(folder)
    monkeypatch.setattr(learning, "library", lambda: again)
    assert learn(tiny_flux)[2]["learned"] == {"pictures": 1}


def test_off_is_off(accelerate, record_of, folder, tiny_flux):
    patched = accelerate(tiny_flux, 2.0)
    sample(patched, steps=STEPS)
    assert not folder.exists()
    assert not {note.code for note in record_of(patched).notes} & {"learned", "learns_now"}


def test_it_is_about_speed_alone_and_a_policy_comes_first(learn, folder, tiny_flux):
    _, strip, notes = learn(tiny_flux, given={"mode": "quality"})
    assert "learns_now" not in notes and "." in strip and not folder.exists()


def test_every_picture_of_a_batch_teaches(learn, folder, tiny_flux):
    learn(tiny_flux, latent=empty_latent(4))
    assert learn(tiny_flux)[2]["learned"] == {"pictures": 4}


@pytest.mark.parametrize(
    ("change", "differs"),
    [
        (dict(cfg=4.0), "guidance"),
        (dict(scheduler="beta"), "sigmas"),
        (dict(sampler="dpmpp_2m"), "sampler"),
    ],
)
def test_what_is_near_is_gone_by_and_said(learn, folder, tiny_flux, change, differs):
    learn(tiny_flux)
    _, strip, notes = learn(tiny_flux, **change)
    assert strip.count("#") == STEPS // 2
    assert notes["learned_nearby"] == {"pictures": 1, "differs": differs}


def test_a_lora_between_two_pictures_is_another_model_nearby(learn, folder, tiny_flux):
    learn(tiny_flux)
    with_one = with_lora(tiny_flux)
    assert learn(with_one)[2]["learned_nearby"]["differs"] == "patches"
    assert learn(tiny_flux)[2]["learned"] == {"pictures": 1}
    assert learn(tiny_flux, positive=hooked())[2]["learned_nearby"]["differs"] == "patches"


@pytest.mark.parametrize("change", [dict(cfg=4.0), dict(lora=True)])
def test_few_pictures_of_other_settings_do_not_stand_in_for_enough(
    learn, learning, folder, tiny_flux, monkeypatch, change
):
    """One changes no steps: where it stood in, settings that are changed after the first picture would
    never be learned. Only who comes back to settings has them drawn in full."""
    monkeypatch.setattr(learning, "ENOUGH", 2)
    learn(tiny_flux)
    change = dict(change)
    model = with_lora(tiny_flux) if change.pop("lora", False) else tiny_flux
    for cfg in (5.0, 5.5, 6.0):  # all others at every picture
        assert learn(tiny_flux, cfg=cfg)[2]["learned_nearby"]["pictures"] == 1
    assert learn(model, **change)[2]["learned_nearby"]["pictures"] == 1
    for picture in (1, 2):
        _, strip, notes = learn(model, seed=picture, **change)
        assert strip == ALL and notes["learns_now"] == {"picture": picture, "of": 2}
    assert learn(model, **change)[2]["learned"] == {"pictures": 2}
    # The other settings have more to show now, and go on where they were.
    assert learn(tiny_flux, seed=5)[2]["learns_now"] == {"picture": 2, "of": 2}
    assert learn(tiny_flux, sampler="dpmpp_2m")[2]["learned_nearby"]["pictures"] == 2


def changing_at(percent):
    """A prompt that another one follows at a share of the schedule."""
    return [
        *make_conditioning(0, start_percent=0.0, end_percent=percent),
        *make_conditioning(5, start_percent=percent, end_percent=1.0),
    ]


def skipping_a_layer(comfy_host, model):
    """Skip-layer guidance, up to the middle of a run."""
    comfy_host.load_core_nodes("nodes_slg.py")
    given = dict(scale=3.0, start_percent=0.0, end_percent=0.5, double_layers="0")
    return comfy_host.run_node("SkipLayerGuidanceDiT", model=model, single_layers="", **given)[0]


def test_a_run_that_is_another_one_on_its_way_is_learned_by_itself(
    learn, comfy_host, folder, tiny_flux
):
    """What derivatives jump by where it changes passes for what skipping costs there: right for such
    runs, and up to 4 dB farther for others (docs/lab.md)."""
    changing = skipping_a_layer(comfy_host, tiny_flux)
    for model in (changing, tiny_flux):
        _, strip, notes = learn(model)
        assert strip == ALL and notes["learns_now"] == {"picture": 1, "of": 1}
    for model in (tiny_flux, changing):
        assert learn(model)[2]["learned"] == {"pictures": 1}


def test_a_run_that_is_known_to_change_is_planned_by_that_and_not_learned(
    learn, learning, folder, tiny_flux
):
    _, strip, notes = learn(tiny_flux, positive=changing_at(0.5))
    assert strip.count("#") == STEPS // 2 and "turns_not_learned" in notes
    assert not list(learning.library().entries())
    learn(tiny_flux)
    assert "turns_not_learned" in learn(tiny_flux, positive=changing_at(0.5))[2]


def test_the_list_tells_such_runs_from_others(
    learn, learning, folder, tiny_flux, comfy_host, pack_module
):
    """Or nobody knew which of two alike to forget."""
    as_json = pack_module("rapid_core.comfy.routes").as_json
    for model in (tiny_flux, skipping_a_layer(comfy_host, tiny_flux)):
        learn(model)
    shown = [as_json(entry)["turns"] for entry in learning.library().entries()]
    assert sorted(shown) == ["", "SkipLayerGuidanceDiT"]


def test_a_part_of_the_sigmas_does_not_stand_in_for_all(learn, folder, tiny_flux):
    """Image to image, and the second of two samplers: what they show of their own is no word about noisier
    latents. But whole pictures say something of both."""
    whole = sigmas_of(tiny_flux, STEPS)
    for part in (dict(denoise=0.4), dict(sigmas=whole[4:])):
        assert "learns_now" in learn(tiny_flux, **part)[2]
    _, strip, notes = learn(tiny_flux)
    assert strip == ALL and "learns_now" in notes
    for part in (dict(denoise=0.5), dict(sigmas=whole[:-4])):
        assert learn(tiny_flux, **part)[2]["learned_nearby"]["differs"] == "sigmas"


def test_two_models_in_one_graph_have_their_own(learn, folder, tiny_flux, tiny_sd3, load_tiny):
    other = load_tiny("flux", seed=11)
    for model in (tiny_flux, tiny_sd3, other):
        assert learn(model)[1] == ALL
    for model in (other, tiny_flux, tiny_sd3):
        assert learn(model)[2]["learned"] == {"pictures": 1}
    assert len(list(folder.glob("*.safetensors"))) == 3


def test_an_interrupted_picture_teaches_nothing(learn, accelerate, folder, tiny_flux):
    import comfy.model_management

    def stop(step, *_):
        if step == 4:
            raise comfy.model_management.InterruptProcessingException()

    with pytest.raises(comfy.model_management.InterruptProcessingException):
        sample(accelerate(tiny_flux, 2.0, learn=True), steps=STEPS, cfg=2.5, callback=stop)
    assert not folder.exists()
    assert learn(tiny_flux)[1] == ALL and learn(tiny_flux)[1] != ALL


def test_nothing_is_watched_where_nothing_may_be_skipped(learn, folder, tiny_flux):
    for change in (dict(sampler="euler_ancestral"), dict(steps=4)):
        notes = learn(tiny_flux, **change)[2]
        assert "learns_now" not in notes and not folder.exists()


def test_a_run_that_shows_nothing_is_watched_once(
    learn, folder, tiny_flux, pack_module, monkeypatch
):
    """dpm_fast, were it not known for what it is, has sigmas of its own; or every picture would be
    drawn in full."""
    monkeypatch.setattr(pack_module("rapid_core.comfy.facts"), "is_sensitive", lambda _: False)
    _, strip, notes = learn(tiny_flux, sampler="dpm_fast")
    assert "." not in strip and "nothing_learned" in notes
    _, strip, notes = learn(tiny_flux, sampler="dpm_fast")
    assert "learns_now" not in notes and "nothing_learned" in notes
    assert not folder.exists()


@pytest.mark.parametrize("sampler", ["er_sde", "exp_heun_2_x0"])
def test_samplers_that_begin_a_little_below_pure_noise_are_learned(
    learn, folder, tiny_flux, sampler
):
    """Else their first picture of every session is drawn in full, and shows nothing."""
    _, strip, notes = learn(tiny_flux, sampler=sampler)
    assert "." not in strip and notes.keys() == {"learns_now"}
    _, strip, notes = learn(tiny_flux, sampler=sampler)
    assert "." in strip and notes["learned"] == {"pictures": 1}


def test_numbers_that_are_none_teach_nothing(learn, folder, tiny_flux):
    broken = tiny_flux.clone()
    broken.set_model_unet_function_wrapper(
        lambda apply, arguments: (
            apply(arguments["input"], arguments["timestep"], **arguments["c"]) * torch.nan
        )
    )
    assert "nothing_learned" in learn(broken)[2] and not folder.exists()
    # Nor do they say that this model never shows anything.
    assert "learns_now" in learn(tiny_flux)[2] and learn(tiny_flux)[2]["learned"]


def test_beside_other_nodes_nothing_is_watched(
    learn, record_of, accelerate, comfy_host, folder, tiny_flux
):
    region = comfy_host.run_node("RAPID_RegionAdaptive", model=tiny_flux)[0]
    _, strip, notes = learn(region)
    assert "nothing_learned" in notes and strip != ALL and not folder.exists()
    learn(tiny_flux)
    assert learn(region)[2]["learned"] == {"pictures": 1}


@pytest.mark.parametrize("node", ["EasyCache", "LazyCache"])
def test_a_cache_that_skips_by_itself_teaches_nothing(
    learn, accelerate, record_of, comfy_host, folder, tiny_flux, node
):
    """What it predicts would pass for what the model does, also once it is gone."""
    comfy_host.load_core_nodes("nodes_easycache.py")
    settings = dict(reuse_threshold=0.2, start_percent=0.15, end_percent=0.95, verbose=False)
    (cached,) = comfy_host.run_node(node, model=tiny_flux, **settings)
    _, strip, notes = learn(cached)
    assert "nothing_learned" in notes and "." in strip and not folder.exists()
    (cached,) = comfy_host.run_node(node, model=accelerate(tiny_flux, learn=True), **settings)
    sample(cached, steps=STEPS, cfg=2.5)  # in the other order
    assert not folder.exists()


@pytest.mark.parametrize("equal", [2, 3])
def test_sigmas_that_stand_still_are_not_watched_in_vain(learn, folder, tiny_flux, equal):
    learn(tiny_flux)  # what is near is gone by there, too
    sigmas = torch.cat([torch.linspace(1, 0.5, 7), torch.full((equal - 1,), 0.5)])
    sigmas = torch.cat([sigmas, torch.linspace(0.5, 0, 7)[1:]])
    latent, strip, notes = learn(tiny_flux, sigmas=sigmas)
    assert latent.isfinite().all() and "." in strip
    assert notes["learned_nearby"]["differs"] == "sigmas" and "learned_not_kept" not in notes
    for file in folder.iterdir():
        file.unlink()
    _, strip, notes = learn(tiny_flux, sigmas=sigmas)
    assert "." in strip and "nothing_learned" in notes and "learns_now" not in notes


def test_what_could_not_be_written_is_once_it_can_be(learn, folder, tiny_flux):
    """Without another picture that is watched: none is, once enough is known."""
    folder.write_text("a file where the folder should be")
    assert "learned_not_kept" in learn(tiny_flux)[2]
    folder.unlink()
    assert learn(tiny_flux)[2]["learned"] == {"pictures": 1}
    assert len(list(folder.glob("*.safetensors"))) == 1


def test_a_folder_that_cannot_be_written_is_said_and_it_is_known_for_now(learn, folder, tiny_flux):
    folder.write_text("a file where the folder should be")
    _, strip, notes = learn(tiny_flux)
    assert strip == ALL and "learned_not_kept" in notes
    _, strip, notes = learn(tiny_flux)
    assert strip != ALL and notes["learned"] == {"pictures": 1}


def test_a_damaged_file_is_set_aside_named_and_learned_anew(learn, folder, tiny_flux):
    learn(tiny_flux)
    (path,) = folder.iterdir()
    path.write_bytes(path.read_bytes()[:-40])
    _, strip, notes = learn(tiny_flux)
    assert strip == ALL and notes["learned_file_damaged"]["file"] == path.name
    assert learn(tiny_flux)[2]["learned"] == {"pictures": 1}


def test_what_fails_in_learning_costs_neither_picture_nor_skips(
    learn, learning, folder, tiny_flux, monkeypatch
):
    class Broken:
        def find(self, key):
            raise RuntimeError("no library")

    monkeypatch.setattr(learning, "library", Broken)
    _, strip, notes = learn(tiny_flux)
    assert strip.count("#") == STEPS // 2 and "no library" in notes["not_learned"]["why"]
