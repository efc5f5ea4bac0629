"""`hawk generate`: images of prompts, written to PNG files."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hawk.cli.options import (
    CfgScaleOption,
    DeviceOption,
    DrafterOption,
    DraftTokensOption,
    DtypeOption,
    EngineOption,
    JsonOption,
    ModelOption,
    TemperatureOption,
    ThreadsOption,
    TopKOption,
    TopPOption,
    WindowOption,
    check_printable,
    load_pipeline,
)
from hawk.errors import HawkError

if TYPE_CHECKING:
    from hawk.cli.wanted import Asked, Recipe

SAME_NAMES = ("cfg_scale", "temperature", "top_k", "top_p", "height", "width")
"""Settings that the command line and a picture's own text name alike."""

MOST_IMAGES = 100_000
"""The most images of one command."""


def generate(
    prompts: Annotated[
        list[str] | None, typer.Argument(metavar="PROMPT...", help="What to draw; several prompts draw several images.")
    ] = None,
    file: Annotated[
        str | None,
        typer.Option(
            "--prompts",
            help="File with a prompt a line, or a JSON object with prompt, seed, negative_prompt; - is standard input. "
            "Seeds count from --seed or 0; pictures that are there already are kept.",
        ),
    ] = None,
    like: Annotated[
        Path | None, typer.Option("--like", metavar="FILE.png", help="Draw as this picture says; options come first.")
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            "--method",
            help="hawk, ar, medusa, hawk-vertical, hawk-paper, hawk-spatial, eagle, eagle-topk, sjd, scd, "
            "scd-maximal, sjd-pac or lantern (LOSSY: changes the distribution of the images); default: hawk.",
        ),
    ] = None,
    verifier: Annotated[
        str | None,
        typer.Option(
            "--verifier", help="coupled, residual, traversal or relaxed (LOSSY); default: that of the method."
        ),
    ] = None,
    num_draft_tokens: DraftTokensOption = None,
    window: WindowOption = None,
    model: ModelOption = "bundled",
    drafter: DrafterOption = None,
    seed: Annotated[
        int | None, typer.Option("--seed", help="Seed of the first image; each further image takes the next one.")
    ] = None,
    count: Annotated[
        int, typer.Option("-n", "--count", min=1, max=MOST_IMAGES, help="Number of images of each prompt.")
    ] = 1,
    batch_size: Annotated[
        int, typer.Option("--batch-size", min=1, help="Images decoded together; more than 1 pays on a GPU.")
    ] = 1,
    cfg_scale: CfgScaleOption = None,
    temperature: TemperatureOption = None,
    top_k: TopKOption = None,
    top_p: TopPOption = None,
    negative_prompt: Annotated[
        str | None, typer.Option("--negative-prompt", help="What the images should not show.")
    ] = None,
    height: Annotated[int | None, typer.Option("--height", help="In pixels (default: that of the model).")] = None,
    width: Annotated[int | None, typer.Option("--width", help="In pixels (default: that of the model).")] = None,
    out: Annotated[
        str | None, typer.Option("-o", "--out", help="FILE.png for one image, or a folder (default: this folder).")
    ] = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    threads: ThreadsOption = None,
    engine: EngineOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Draw images of prompts and write them to PNG files, which also hold the settings that they were drawn with."""
    from hawk.cli.drawing import Job, draw
    from hawk.cli.tables import image_metadata, image_settings
    from hawk.cli.wanted import wanted_pictures
    from hawk.drafters.methods import method_named
    from hawk.pictures.png import picture_path, saved_before
    from hawk.pipeline import grid_of, image_seeds, sampling_params

    options = Options(method, verifier, seed, negative_prompt, cfg_scale, temperature, top_k, top_p, height, width)
    earlier = None if like is None else earlier_picture(like)
    if earlier is not None:
        options, dtype = options.like(earlier), earlier.settings["dtype"] if dtype == "auto" else dtype
    asked = asked_for(prompts or [], file, earlier)
    if len(asked) * count > MOST_IMAGES:
        raise HawkError(f"{len(asked)} prompts of {count} images each: at most {MOST_IMAGES} images are drawn at once")
    chosen = method_named(options.method or "hawk")
    verified = options.verifier or chosen.verifier
    first = 0 if file is not None and options.seed is None else options.seed
    wanted = wanted_pictures(asked, count, image_seeds(len(asked) * count, first, None), options.negative)
    is_folder = out is not None and out.endswith(("/", os.sep))
    out_path = None if out is None else Path(out)
    paths = [picture_path(out_path, each.prompt, each.seed, len(wanted), is_folder) for each in wanted]
    for path in paths:  # fail before the first image is drawn, here and below
        check_printable(str(path))
    pipe = load_pipeline(model, device, dtype, drafter, threads, engine)
    if earlier is not None and earlier.model != pipe.model.name:
        raise HawkError(f"{like} was drawn by the model {earlier.model}, not {pipe.model.name}: give --model")
    params = sampling_params(pipe.model, options.cfg_scale, options.temperature, options.top_k, options.top_p)
    settings = image_settings(pipe, params, grid_of(pipe.model, options.height, options.width), verified)
    for some in (asked[i : i + 1000] for i in range(0, len(asked), 1000)):  # features of all would fill the memory
        pipe.condition([line.prompt for line in some], options.height, options.width)
    metadata = [image_metadata(pipe, each, chosen.name, settings) for each in wanted]
    jobs = [Job(each, path, text) for each, path, text in zip(wanted, paths, metadata, strict=True)]
    kept = [None if file is None else saved_before(job.path, job.metadata) for job in jobs]
    lines = [f"{path}  kept" for path in kept if path is not None]
    call = {
        "guidance_scale": options.cfg_scale,
        **{name: getattr(options, name) for name in SAME_NAMES if name != "cfg_scale"},
        **{"method": chosen.name, "verifier": verified, "num_draft_tokens": num_draft_tokens, "window": window},
    }
    reports: list[dict[str, Any]] = []
    try:
        for drawn in draw(pipe, [job for job, path in zip(jobs, kept, strict=True) if path is None], call, batch_size):
            reports.append(drawn.report)
            lines.append(drawn.line)
    finally:  # Ctrl-C or a full disk may end the loop early: name the files that were written until then
        print("".join(f"{line}\n" for line in lines), end="")
    if earlier is not None and reports:
        print(compared(like, earlier, reports[0]["tokens_sha256"]))
    if as_json:
        print(json.dumps(reports[0] if len(reports) == 1 else {**(reports[0] if reports else {}), "images": reports}))


def asked_for(prompts: list[str], file: str | None, earlier: Recipe | None) -> list[Asked]:
    """The prompts of the arguments, of a file, or of an earlier picture; `HawkError` for none, or for two of these."""
    from hawk.cli.wanted import Asked, read_asked

    if prompts and file is not None:
        raise HawkError("give prompts as arguments or by --prompts, not both")
    if file is not None:
        return read_asked(file)
    texts = prompts or ([] if earlier is None else [earlier.prompt])
    if not texts:
        raise HawkError("no prompt given: describe the image, as in hawk generate 'a red apple'")
    return [Asked(text) for text in texts]


@dataclass(frozen=True)
class Options:
    """What the command line may say of all images; None is not said."""

    method: str | None
    verifier: str | None
    seed: int | None
    negative: str | None
    cfg_scale: float | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    height: int | None
    width: int | None

    def like(self, picture: Recipe) -> Options:
        """The options, completed by how a picture was drawn."""
        said = {
            "method": picture.method,
            "verifier": picture.settings["verifier"] if self.method is None else None,
            "seed": picture.seed,
            "negative": picture.negative,
            **{name: picture.settings[name] for name in SAME_NAMES},
        }
        own = {name: value for name, value in asdict(self).items() if value is not None}
        return Options(**{**said, **own})


def earlier_picture(path: Path) -> Recipe:
    """How a picture was drawn; `HawkError` for a file that does not say so."""
    from hawk.cli.wanted import recipe_of
    from hawk.pictures.png import picture_text

    return recipe_of(picture_text(path), path)


def compared(like: Path | None, earlier: Recipe, tokens: str) -> str:
    """Whether a picture's tokens are those of the earlier picture `like`, in one line."""
    if tokens == earlier.tokens:
        return f"the tokens are those of {like}"
    return f"the tokens differ from those of {like}: other options, another machine or another version"
