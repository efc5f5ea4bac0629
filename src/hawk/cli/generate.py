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
    VerifierOption,
    WindowOption,
    check_printable,
    load_pipeline,
)
from hawk.errors import HawkError

if TYPE_CHECKING:
    from hawk.cli.drawing import Job
    from hawk.cli.wanted import Asked, Recipe, Wanted
    from hawk.drafters.methods import Method
    from hawk.pipeline import HawkPipeline

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
    verifier: VerifierOption = None,
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
    options = Options(method, verifier, seed, negative_prompt, cfg_scale, temperature, top_k, top_p, height, width)
    earlier = None if like is None else earlier_picture(like)
    if earlier is not None:
        options, dtype = options.like(earlier), earlier.settings["dtype"] if dtype == "auto" else dtype
    asked = asked_for(prompts or [], file, earlier)
    call = options.call(num_draft_tokens, window)
    wanted = pictures_of(asked, count, options, numbered=file is not None)
    paths = paths_of(wanted, out)
    pipe = load_pipeline(model, device, dtype, drafter, threads, engine)
    if earlier is not None and earlier.model != pipe.model.name:
        raise HawkError(f"{like} was drawn by the model {earlier.model}, not {pipe.model.name}: give --model")
    jobs = jobs_of(pipe, wanted, paths, options)
    check_prompts(pipe, asked, options)
    reports = draw_jobs(pipe, jobs, call, batch_size, keep=file is not None)
    if earlier is not None and reports:
        print(compared(like, earlier, reports[0]["tokens_sha256"]))
    if as_json:
        print(json.dumps(reports[0] if len(reports) == 1 else {**(reports[0] if reports else {}), "images": reports}))


def pictures_of(asked: list[Asked], count: int, options: Options, numbered: bool) -> list[Wanted]:
    """`count` pictures of each prompt; `numbered` seeds count from 0 where the options name no seed."""
    from hawk.cli.wanted import wanted_pictures
    from hawk.pipeline import image_seeds

    images = len(asked) * count
    if images > MOST_IMAGES:
        raise HawkError(f"{len(asked)} prompts of {count} images each: at most {MOST_IMAGES} images are drawn at once")
    first = 0 if numbered and options.seed is None else options.seed
    return wanted_pictures(asked, count, image_seeds(images, first, None), options.negative)


def paths_of(wanted: list[Wanted], out: str | None) -> list[Path]:
    """Where to write each picture; `HawkError` for a path that cannot be written or printed."""
    from hawk.pictures.png import picture_path

    is_folder = out is not None and out.endswith(("/", os.sep))
    folder = None if out is None else Path(out)
    paths = [picture_path(folder, each.prompt, each.seed, len(wanted), is_folder) for each in wanted]
    for path in paths:
        check_printable(str(path))
    return paths


def jobs_of(pipe: HawkPipeline, wanted: list[Wanted], paths: list[Path], options: Options) -> list[Job]:
    """The pictures to draw, each with its path and the text for its file; `HawkError` for a wrong option."""
    from hawk.cli.drawing import Job
    from hawk.models.arguments import OPTIONS, check_negatives
    from hawk.outputs import image_metadata, image_settings
    from hawk.pipeline import grid_of, sampling_params

    sampling = (options.cfg_scale, options.temperature, options.top_k, options.top_p)
    params = sampling_params(pipe.model, *sampling, OPTIONS)
    check_negatives([each.negative for each in wanted], params, OPTIONS)
    grid = grid_of(pipe.model, options.height, options.width)
    settings = image_settings(params, grid, pipe.model.cell, options.verified, pipe.dtype)
    method, name = options.chosen.name, pipe.model.name
    texts = [image_metadata(each.prompt, each.negative, each.seed, name, method, settings) for each in wanted]
    return [Job(each, path, text) for each, path, text in zip(wanted, paths, texts, strict=True)]


def check_prompts(pipe: HawkPipeline, asked: list[Asked], options: Options) -> None:
    """Raise `HawkError` for a prompt that the model does not take, before the first picture is drawn."""
    for some in (asked[i : i + 1000] for i in range(0, len(asked), 1000)):  # features of all would fill the memory
        pipe.condition([line.prompt for line in some], options.height, options.width)


def draw_jobs(
    pipe: HawkPipeline, jobs: list[Job], call: dict[str, Any], batch_size: int, keep: bool
) -> list[dict[str, Any]]:
    """Draw pictures and print a line for each; returns the reports of `--json`.

    `call` holds the pipeline's arguments. With `keep`, a picture that was saved by an earlier command is not drawn.
    """
    from hawk.cli.drawing import Drawn, draw
    from hawk.pictures.png import saved_before

    saved = [saved_before(job.path, job.metadata) if keep else None for job in jobs]
    lines = [f"{path}  kept" for path in saved if path is not None]
    reports: list[dict[str, Any]] = []

    def on_drawn(drawn: Drawn) -> None:
        reports.append(drawn.report)
        lines.append(drawn.line)

    try:
        draw(pipe, [job for job, path in zip(jobs, saved, strict=True) if path is None], call, batch_size, on_drawn)
    finally:  # Ctrl-C or a full disk may end the loop early: name the files that were written until then
        print("".join(f"{line}\n" for line in lines), end="")
    return reports


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

    @property
    def chosen(self) -> Method:
        """The method to draw with; `HawkError` for an unknown name."""
        from hawk.drafters.methods import method_named

        return method_named(self.method or "hawk")

    @property
    def verified(self) -> str:
        """The verifier to draw with."""
        return self.verifier or self.chosen.verifier

    def call(self, num_draft_tokens: int | None, window: int | None) -> dict[str, Any]:
        """The arguments of the pipeline's call that all pictures share."""
        return {
            "guidance_scale": self.cfg_scale,
            **{name: getattr(self, name) for name in SAME_NAMES if name != "cfg_scale"},
            "method": self.chosen.name,
            "verifier": self.verified,
            "num_draft_tokens": num_draft_tokens,
            "window": window,
        }


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
