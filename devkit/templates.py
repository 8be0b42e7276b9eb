"""The templates: their names and order, what their notes say, and how they are laid out.

A template's nodes and values are its API twin, `example_workflows/api/<twin>.json`. What the page
opens is made of both:

    python -m devkit.templates     lay out all templates and write their notes anew
    dev.py test tests/browser/test_examples.py --pictures .
                                   make them from the API twins, and their thumbnails"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from devkit.base_folder import REPOSITORY
from devkit.template_layout import Block, Columns, Group, arrange, opening_scale

FOLDER = REPOSITORY / "example_workflows"
# Folders of models/ by loader and input.
FILES = {
    "unet_name": "diffusion_models",
    "model_name": "diffusion_models",
    "text_encoder": "text_encoders",
    "ckpt_name": "checkpoints",
    "vae_name": "vae",
    "clip_name": "text_encoders",
    "clip_name1": "text_encoders",
    "clip_name2": "text_encoders",
    "clip_name3": "text_encoders",
    "lora_name": "loras",
    "policy": "rapid_policies",
}
SMALL = ("taesd3", "taef1")  # names of VAEs that are several files

ROW = 290.0  # pixels from the top at which the sampler's group begins
LANE = 56.0  # pixels from the top that are left free, for the wire from RAPID's node to the report
# How a template's file is seen that is opened as a file; from its list the page fits all into view.
VIEW = {"scale": 0.6, "offset": [120, 160]}
RAPID, RESULT = "#8b7bd8", "#3f7a4d"  # colours of groups
READ_ME = Group("Read me", (("note",),), color="#555")


@dataclass(frozen=True)
class Template:
    """A workflow among the page's templates."""

    twin: str
    """Name of its API twin."""
    title: str
    """Name of its file, which is what the page shows, and what it sorts by."""
    words: str
    """What its note says, as Markdown, before the files."""
    chinese: str
    """The same in Chinese."""
    blocks: tuple[Block, ...]
    """Its layout, from left to right."""

    @property
    def path(self) -> Path:
        """The workflow that the page opens."""
        return FOLDER / f"{self.title}.json"

    @property
    def picture(self) -> Path:
        """Its thumbnail."""
        return FOLDER / f"{self.title}.jpg"

    @property
    def demo(self) -> bool:
        """Whether it needs the demo's nodes and models, which the registry's archive has not."""
        return self.twin.startswith("demo_")


# What comes of a run: the report above the picture; beside it where the report shows a map on the
# picture; before it where the report hands on what is decoded.
PICTURE: Block = (
    Group("Report", (("report",),), color=RESULT),
    Group("Result", (("decode",), ("save",)), color=RESULT),
)
WITH_MAP: Block = (Group("Result", ((340.0, "decode"), ("report", "save")), color=RESULT),)
SERIAL: Block = (Group("Result", (("report",), (430.0, "decode"), ("save",)), color=RESULT),)


def note_above(load: Columns, *under: Group, width: float = 0.0) -> tuple[Block, ...]:
    """The note above what is loaded, and more groups under that. width: at the least."""
    note = replace(READ_ME, widths={"note": width} if width else {})
    return ((note, Group("Load", load), *under),)


def note_below(load: Columns, top: float = 0.0) -> tuple[Block, ...]:
    """What is loaded, and the note under it. top: where they begin."""
    return ((Group("Load", load, top=top), READ_ME),)


def in_rows(
    left: tuple[Block, ...],
    prompt: Columns,
    *,
    first: Columns = (),
    speed: Columns = (("accelerate",),),
    sample: Columns = (("sample", "vae"),),
    low: float = 0.0,
    row: float = ROW,
    results: Block = PICTURE,
) -> tuple[Block, ...]:
    """A workflow with one sampler: RAPID's node and the report in the upper row, the prompt below the
    former, the picture below the latter. The wire between the two passes above the sampler.

    first: what of the prompt stands under RAPID's node, where the rest comes after it. low, row:
    where the prompt and the sampler begin."""
    rapid, given = Group("RAPID", speed, color=RAPID), Group("Prompt and size", prompt, top=low)
    middle: tuple[Block, ...] = ((rapid, given),)
    if first:
        # lower, for the wire from RAPID's node to the sampler
        after = replace(given, title="Guidance and size", top=LANE + 120)
        middle = ((rapid, Group("Prompt", first)), (after,))
    return (*left, *middle, (Group("Sample", sample, top=row),), results)


def compared(
    left: Block,
    prompt: Columns,
    low: float,
    *,
    bend: float = 0.0,
    heights: Mapping[str, float] | None = None,
    widths: Mapping[str, float] | None = None,
) -> tuple[Block, ...]:
    """The full run in the upper row, RAPID's in the lower one; they share model, prompt, seed.

    low: where the lower row begins. bend: more room for the wires between the rows. heights: of
    what is shared. widths: of the results."""
    heights, widths = dict(heights or {}), dict(widths or {})
    return (
        left,
        (
            Group("Shared by both", prompt, top=LANE + 50, heights=heights),
            Group("RAPID", (("accelerate",),), top=low, color=RAPID, before=bend),
        ),
        (
            Group("Sample in full", (("sample_full",),), top=LANE),
            # the wire from RAPID's node to its report passes above the VAE
            Group("Sample with RAPID", (("sample_rapid", 160.0, "vae"),), top=LANE + 370),
        ),
        (
            Group("Report on the full run", (("report_full",),), color=RESULT, widths=widths),
            Group("Decode", (("decode_full", "decode_rapid"),)),
            Group("Report on RAPID", (("report_rapid",),), low, color=RESULT, widths=widths),
        ),
        (
            Group(
                "Compare",
                (("compare", "save"),),
                top=66,
                before=bend,
                color=RESULT,
                widths=widths,
                heights={"save": 320},
            ),
        ),
    )


HOW = (
    "Press **Run**. RAPID Report says how many seconds were saved and how close the picture is "
    "predicted to be.\n\nThe one thing to set is **speedup** in RAPID Accelerate: 2 computes half "
    "of the steps, 1 is off. For the full picture set it to 1 and run again; the seed is fixed."
)
HOW_ZH = (
    "点击**运行**。RAPID 报告会显示节省了多少秒，以及预计图像有多接近完整计算的结果。\n\n只需"
    "设置 RAPID 加速的 **speedup**："
    "2 表示只计算一半的步，1 表示关闭。想看完整计算的图像，把它设为 1 再运行一次；种子是固定的。"
)
UNMEASURED = "Nothing was measured on this model's weights yet."
UNMEASURED_ZH = "尚未在该模型的权重上做过测量。"


def for_model(what: str, what_zh: str) -> tuple[str, str]:
    """What the note of a model's template says, in English and Chinese."""
    return f"{what}\n\n{HOW} {UNMEASURED}", f"{what_zh}\n\n{HOW_ZH}{UNMEASURED_ZH}"


PROMPTS: Columns = (("positive", "negative", "latent"),)
GUIDED: Columns = (("guidance", "negative", "latent"),)
PROMPT = Group("Prompt", (("positive",),))
SHIFTED: Columns = (("shift",), ("accelerate",))
FOUR = ("positive", "positive_2", "positive_3", "negative")
CUSTOM: Columns = (("guidance", "negative", "sampler", "sigmas", "latent"),)

TEMPLATES: tuple[Template, ...] = (
    Template(
        "demo_flux",
        "01 Start here - no download",
        f"A small FLUX-like model that lies in the repository.\n\n{HOW}",
        f"使用仓库自带的小型类 FLUX 模型。\n\n{HOW_ZH}",
        in_rows(note_above((("model",),), PROMPT, width=360), GUIDED),
    ),
    Template(
        "demo_compare",
        "02 Demo - full and RAPID",
        "One seed, drawn twice: with every step, and with half of them. Move the line in RAPID "
        "Compare; above them are both times and how near the pictures are.",
        "同一个种子画两次：一次计算所有步，一次只计算一半。拖动 RAPID 对比中的分界线；上方是"
        "两者的用时和接近程度。",
        compared(
            (Group("Load", (("model",),)), PROMPT, replace(READ_ME, widths={"note": 300})),
            (("guidance", "negative", "latent", "seed"),),
            low=822,
            bend=16,
        ),
    ),
    Template(
        "demo_region",
        "03 Demo - Region Adaptive",
        "RAPID Region Adaptive on a small SD3-like model: most steps compute only some parts of "
        "the picture. The map shows how often: yellow always, blue seldom.",
        "在小型类 SD3 模型上使用 RAPID 区域自适应：多数步只计算图像的一部分。热力图显示各处的"
        "计算频率：黄色为每步都算，蓝色为很少计算。",
        in_rows(
            note_above((("model",),)),
            PROMPTS,
            results=(
                Group(
                    "Result", ((340.0, "decode"), ("report", "save"), ("save_map",)), color=RESULT
                ),
            ),
        ),
    ),
    Template(
        "demo_sd3",
        "04 Demo - with guidance",
        f"A small SD3-like model with cfg 2.5.\n\n{HOW}",
        f"小型类 SD3 模型，cfg 为 2.5。\n\n{HOW_ZH}",
        in_rows(note_above((("model",),), width=360), PROMPTS),
    ),
    Template(
        "demo_policy",
        "05 Demo - with a policy file",
        "RAPID Accelerate computes a quarter of the steps: those that a policy file says, which "
        "was made for this demo model. Up to 4x they are those that it finds without a file, so the "
        "picture is the same here; on other models a file can bring more. RAPID Calibrate makes one "
        "for yours.",
        "RAPID 加速只计算四分之一的步，由为该演示模型制作的策略文件指定。在此模型上，4 倍以内"
        "这些步与没有文件时 RAPID 加速自己找到的相同，图像也相同；在其他模型上文件可能带来更多。"
        "RAPID 校准可以为您的模型制作这样的文件。",
        in_rows(
            note_above((("model", "policy"),), PROMPT, width=360),
            GUIDED,
            speed=(("accelerate", 32.0, "about"),),
            row=340,
        ),
    ),
    Template(
        "z_image",
        "10 Z-Image - start here",
        *for_model("Z-Image, the model that is not distilled.", "Z-Image（未蒸馏的版本）。"),
        in_rows(note_below((("model", "clip"),)), PROMPTS, speed=SHIFTED),
    ),
    Template(
        "ltx2",
        "11 LTX-2.3 video with sound",
        *for_model(
            "Video and sound in one run of 20 steps. With the distilled LoRA and 8 steps RAPID "
            "can save little.",
            "一次采样 20 步，同时生成视频和声音。若使用蒸馏 LoRA 只跑 8 步，RAPID 能节省的很少。",
        ),
        (
            (
                Group("Load", (("checkpoint", "clip"),)),
                replace(READ_ME, top=420),
                Group("Load, sound", (("audio_vae",),), top=1150),
            ),
            (
                Group(
                    "Prompt and size",
                    (("positive", "negative", "latent_video", "latent_audio"),),
                    top=170,
                ),
            ),
            (
                Group("RAPID", (("accelerate",),), top=100, color=RAPID),
                Group("Conditions", (("rate", "latent", "sampler", "sigmas"),)),
            ),
            (Group("Sample", (("sample",),), top=480),),
            (Group("Report", (("report",),), top=100, color=RESULT),),
            (
                Group(
                    "Result",
                    (
                        (400.0, "parts"),
                        ("decode", 970.0, "decode_audio"),
                        (300.0, "video"),
                        (200.0, "save"),
                    ),
                    color=RESULT,
                ),
            ),
        ),
    ),
    Template(
        "wan2.2_t2v",
        "12 Wan 2.2 video",
        *for_model(
            "Wan 2.2 has two models, one for the noisy steps and one for the others. Each has its "
            "own RAPID Accelerate and RAPID Report, and each begins its predictions anew: if "
            "details suffer, set **speedup** to 1.5 on both.",
            "Wan 2.2 有两个模型，分别负责高噪声和低噪声的步。每个都有自己的 RAPID 加速和"
            " RAPID 报告，预测各自从头开始：若细节变差，请把两者的 **speedup** 都设为 1.5。",
        ),
        (
            (
                Group("Load", (("model_high", "clip"),)),
                READ_ME,
                Group("Load, low noise", (("model_low",),), top=1148),
            ),
            (
                Group("RAPID, high noise", (("shift_high",), ("accelerate_high",)), color=RAPID),
                Group("Prompt and size", PROMPTS),
                Group(
                    "RAPID, low noise",
                    (("shift_low",), ("accelerate_low",)),
                    top=1148,
                    color=RAPID,
                ),
            ),
            (Group("Sample, high noise", (("sample_high",),), top=LANE + 44),),
            (Group("Report, high noise", (("report_high",),), color=RESULT),),
            (Group("Sample, low noise", (("sample_low",),), top=800),),
            (
                Group(
                    "Result",
                    (
                        ("vae", "report_low"),
                        (150.0, "decode"),
                        (150.0, "video"),
                        (150.0, "save"),
                    ),
                    top=1004,
                    color=RESULT,
                ),
            ),
        ),
    ),
    Template(
        "qwen_image",
        "13 Qwen-Image",
        *for_model("Qwen-Image, 20 steps.", "Qwen-Image，20 步。"),
        in_rows(note_below((("model", "clip"),)), PROMPTS, speed=SHIFTED),
    ),
    Template(
        "qwen_image_edit",
        "14 Qwen-Image-Edit",
        *for_model(
            "Choose a picture in Load Image and say what to change.",
            "在 Load Image 中选择图片，并写明要改什么。",
        ),
        in_rows(
            note_below(
                (
                    ("model", "clip", "image", 180.0, "vae"),
                    ("shift", 300.0, "scale"),
                    ("norm",),
                ),
            ),
            (("positive", "negative", "encode"),),
            sample=(("sample",),),
            row=500,
            results=(
                Group("Report", (("report",),), color=RESULT),
                Group("Result", ((520.0, "decode"), (200.0, "save")), color=RESULT),
            ),
        ),
    ),
    Template(
        "flux2_dev",
        "15 FLUX.2 dev",
        *for_model("FLUX.2 dev, 20 steps.", "FLUX.2 dev，20 步。"),
        in_rows(note_below((("model", "clip"),)), CUSTOM, first=(("positive",),), row=LANE),
    ),
    Template(
        "flux1_dev",
        "16 FLUX.1 dev",
        *for_model("FLUX.1 dev, 20 steps.", "FLUX.1 dev，20 步。"),
        in_rows(note_below((("model", "clip"),)), GUIDED, first=(("positive",),), row=LANE),
    ),
    Template(
        "flux1_kontext",
        "17 FLUX.1 Kontext",
        *for_model(
            "Choose a picture in Load Image and say what to change.",
            "在 Load Image 中选择图片，并写明要改什么。",
        ),
        (
            (Group("Load", (("model", "clip", "image", "vae"),)),),
            (
                Group("RAPID", (("accelerate",),), color=RAPID),
                Group(
                    "Prompt and picture",
                    (
                        ("positive", "scale"),
                        (100.0, "negative", 40.0, "encode"),
                        ("reference",),
                        ("guidance",),
                    ),
                ),
                replace(READ_ME, top=880),
            ),
            (Group("Sample", (("sample",),), top=480),),
            (
                Group("Report", (("report",),), color=RESULT),
                Group("Result", ((280.0, "decode"), ("save",)), color=RESULT),
            ),
        ),
    ),
    Template(
        "sd3.5_large",
        "18 Stable Diffusion 3.5 Large",
        *for_model("Stable Diffusion 3.5 Large, 28 steps.", "Stable Diffusion 3.5 Large，28 步。"),
        in_rows(
            note_below((("checkpoint",),), top=270),
            PROMPTS,
            sample=(("sample",),),
            low=430,
            row=460,
            results=SERIAL,
        ),
    ),
    Template(
        "lumina2",
        "19 Lumina Image 2",
        *for_model("Lumina Image 2.0, 30 steps.", "Lumina Image 2.0，30 步。"),
        in_rows(
            note_below((("checkpoint",),), top=270),
            PROMPTS,
            speed=SHIFTED,
            sample=(("sample",),),
            low=430,
            row=460,
            results=SERIAL,
        ),
    ),
    Template(
        "lumina_next",
        "20 Lumina-Next (experimental)",
        "RAPID Region Adaptive as the paper on region-adaptive sampling (RAS) has it: of 30 steps "
        "24 "
        "compute half of the picture's tokens on average. " + UNMEASURED,
        "按区域自适应采样（RAS）论文的设置使用 RAPID 区域自适应：30 步中有 24 步平均只计算图"
        "像一半的 token。" + UNMEASURED_ZH,
        in_rows(
            note_below((("model", "clip"),)),
            PROMPTS,
            speed=(("region",),),
            results=WITH_MAP,
        ),
    ),
    Template(
        "compare_full_and_rapid",
        "30 Compare full and RAPID",
        "Z-Image from one seed, drawn twice: with every step, and with half of them. Move the "
        "line in RAPID Compare; above them are both times and how near the pictures are.\n\nFor "
        "another model change what is loaded, and the steps and cfg of **both** samplers.",
        "用同一个种子画两次 Z-Image：一次计算所有步，一次只计算一半。拖动 RAPID 对比中的分界"
        "线；上方是两者的用时和接近程度。\n\n换用其他模型时，"
        "请更改加载的模型，以及**两个**采样器的步数和 cfg。",
        compared(
            (
                Group("Load", (("model", "clip"), ("shift",)), widths={"model": 232, "clip": 232}),
                READ_ME,
            ),
            (("positive", "negative", "latent", "seed"),),
            low=784,
            bend=12,
            heights={"positive": 104, "negative": 104},
            widths={"report_full": 280, "report_rapid": 280, "compare": 330},
        ),
    ),
    Template(
        "calibrate",
        "31 Calibrate your model",
        "RAPID Calibrate draws pictures of your model, as long as 10 full ones at the most, finds "
        "which steps matter, and writes a policy file. Put your own model, prompts and steps here "
        "and press **Run** once. You may cancel: the next run goes on from there.\n\nAfterwards "
        "RAPID Accelerate finds the file by itself, in any workflow with this model.",
        "RAPID 校准会用您的模型画图（最多相当于 10 张完整图像的时间），找出哪些步重要，并写出"
        "策略文件。换上您自己的模型、提示词和步数，点击一次**运行**即可。"
        "可以随时取消：下次会接着进行。\n\n之后，在任何使用该模型的工作流中，RAPID 加速都会自"
        "动找到这个文件。",
        (
            (
                replace(READ_ME, heights={"note": 330}),
                Group("Load", (("model", "clip"), ("shift",)), top=430),
            ),
            (
                Group("How you sample", (("sampler", "sigmas", "latent"),)),
                Group("Prompts like yours", (FOUR,), heights=dict.fromkeys(FOUR, 104)),
            ),
            (Group("RAPID", (("calibrate",),), top=430, color=RAPID),),
            (Group("What was found", (("about", "plot"),), color=RESULT),),
        ),
    ),
    Template(
        "region_mask",
        "32 Region Adaptive with a mask",
        "Most steps compute only some parts of the picture. Paint a mask in Load Image (right "
        "click, *Open in Mask Editor*) over what has to be most exact, such as a face or "
        "lettering: it is computed more often. The picture itself is not used, only its "
        "mask.\n\nAfter the run the map in RAPID Report shows how often each part was computed. "
        "It needs about 6.4 GB of memory at this "
        f"size, or what **memory_limit** says. {UNMEASURED}",
        "多数步只计算图像的一部分。在 Load Image 中右键选择*在遮罩编辑器中打开*，涂出最需要精"
        "确的部分，例如人脸或文字：这些部分会更常计算。只使用遮罩，不使用图片本身。"
        "\n\n运行后，RAPID 报告中的热力图显示各处的计算频率。此尺寸约需 6.4 GB 显存，或以 "
        "**memory_limit** 为限。" + UNMEASURED_ZH,
        (
            (
                Group("RAPID", (("model", "image"), ("region",)), color=RAPID),
                Group("Prompt", (("clip",), ("positive",))),
                replace(READ_ME, heights={"note": 280}),
            ),
            (Group("Guidance and size", GUIDED, top=LANE + 120),),
            (Group("Sample", (("sample", "vae"),), top=LANE),),
            WITH_MAP,
        ),
    ),
)


def template(twin: str) -> Template:
    """The template of an API twin."""
    return next(one for one in TEMPLATES if one.twin == twin)


def api(twin: str) -> dict[str, Any]:
    """A template in API form."""
    return json.loads((FOLDER / "api" / f"{twin}.json").read_text(encoding="utf-8"))


def numbers(graph: Mapping[str, Any]) -> dict[str, int]:
    """Numbers for the nodes of a graph in API form, each after those it takes from."""
    order: list[str] = []

    def visit(node: str) -> None:
        if node in order:
            return
        for value in graph[node]["inputs"].values():
            if isinstance(value, list):
                visit(value[0])
        order.append(node)

    for node in graph:
        visit(node)
    return {node: i + 1 for i, node in enumerate(order)}


def numbered(graph: Mapping[str, Any]) -> dict[str, Any]:
    """The same graph with numbers for names of nodes."""
    ids = {node: str(number) for node, number in numbers(graph).items()}

    def moved(inputs: dict[str, Any]) -> dict[str, Any]:
        return {k: [ids[v[0]], v[1]] if isinstance(v, list) else v for k, v in inputs.items()}

    return {ids[node]: {**graph[node], "inputs": moved(graph[node]["inputs"])} for node in ids}


def files(graph: Mapping[str, Any]) -> list[str]:
    """Model files that a graph loads, as folder/name."""
    return sorted(
        {
            f"{FILES[name]}/{value}"
            for node in graph.values()
            for name, value in node["inputs"].items()
            if name in FILES and isinstance(value, str) and value not in SMALL
        }
    )


def addresses() -> dict[str, dict[str, str]]:
    """Where ComfyUI's own templates have model files from, by file: url, and directory in
    models/."""
    return json.loads((Path(__file__).parent / "model_files.json").read_text(encoding="utf-8"))


def note(one: Template) -> str:
    """What the note of a template says, as Markdown."""
    graph, known = api(one.twin), addresses()
    if one.demo:
        where = "Its nodes and files come with **python3 dev.py serve**."
        return "\n\n".join([one.words, where, "---", one.chinese])
    lines = []
    for file in files(graph):
        folder, name = file.split("/", 1)
        shown = f"[{name}]({known[name]['url']})" if name in known else name
        lines.append(f"- models/{folder}: {shown}")
    of = (
        "**Model files**, of Alpha-VLLM/Lumina-Next-SFT-diffusers, google/gemma-2b and SDXL"
        if one.twin == "lumina_next"
        else "**Model files** (模型文件), as ComfyUI's own templates have them"
    )
    return "\n\n".join([one.words, f"{of}:", "\n".join(lines), "---", one.chinese])


def complete(workflow: dict[str, Any], one: Template) -> dict[str, Any]:
    """A UI workflow with what the template says: its note, where files can be had (so that the page
    offers those that are missing), its layout, and seeds that stay."""
    ids, known = numbers(api(one.twin)), addresses()
    for node in workflow["nodes"]:
        values = node.get("widgets_values") or []
        found = [
            {"name": value, **known[value]}
            for value in dict.fromkeys(v for v in values if isinstance(v, str))
            if value in known
        ]
        if found:
            node["properties"]["models"] = found
        if node["type"] == "MarkdownNote":
            ids["note"] = node["id"]
            node["widgets_values"] = [note(one)]
            node["title"] = "Read me"
    workflow["id"] = str(uuid.uuid5(uuid.NAMESPACE_URL, one.twin))
    # the mark: web/titles.js says its titles in the page's language
    workflow["extra"] = {"ds": VIEW, "rapid_template": True}
    return arrange(workflow, one.blocks, ids)


def write(workflow: dict[str, Any], path: Path) -> None:
    """A workflow's file."""
    text = json.dumps(workflow, indent=1, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8", newline="\n")


def main() -> None:
    """Lay out all templates that are there, write their notes anew, and say at which scale each opens."""
    for one in TEMPLATES:
        if one.path.is_file():
            workflow = json.loads(one.path.read_text(encoding="utf-8"))
            write(complete(workflow, one), one.path)
            print(f"{opening_scale(workflow):.3f}  {one.path.name}")


if __name__ == "__main__":
    main()
