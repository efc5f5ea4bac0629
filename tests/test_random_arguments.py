"""Random arguments, of the command line and of the pipeline: each set draws, or ends in one line, in bounded memory."""

import inspect
import math
import re
import resource
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import jaxtyping
import numpy as np
import pytest
import torch
import typer
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from hawk import HawkError, HawkPipeline
from hawk.cli.app import app
from hawk.cli.batch import SOME_FAILED
from hawk.drafters.methods import METHODS
from hawk.engine import DrawingEngine
from hawk.outputs import OUTPUT_TYPES

SECONDS = 10
"""Seconds of processor time that a set of arguments may take."""
WAIT = 120
"""Seconds by the clock that it may take, also where it waits and computes nothing."""
ROOM = 2 << 30
"""Bytes that it may take beyond what was taken before."""
STEPS = 25
"""Steps of decoding after which a set counts as one that draws."""


@dataclass
class Budget:
    """The steps that the present set may still take."""

    steps: int = STEPS


class EnoughError(HawkError):
    """The arguments were taken: images are drawn, a module is fitted, or a measurement has begun."""


def ignore(*_: object) -> None:
    """A callback that does nothing."""


def enough(*_: object, **__: object) -> None:
    raise EnoughError("enough")


@contextmanager
def bounded() -> Iterator[None]:
    """In the body, memory ends `ROOM` bytes from here, and a TimeoutError comes after `SECONDS` or after `WAIT`."""

    def late(*_: object) -> None:
        raise TimeoutError(f"not done after {SECONDS} seconds of processor time or {WAIT} by the clock")

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    memory = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + ROOM, memory[1]))
    timers = {signal.ITIMER_VIRTUAL: (signal.SIGVTALRM, SECONDS), signal.ITIMER_REAL: (signal.SIGALRM, WAIT)}
    before = {number: signal.signal(number, late) for number, _ in timers.values()}
    for timer, (_, seconds) in timers.items():
        signal.setitimer(timer, seconds)
    try:
        yield
    finally:
        for timer in timers:
            signal.setitimer(timer, 0)
        for number, handler in before.items():
            signal.signal(number, handler)
        resource.setrlimit(resource.RLIMIT_AS, memory)


@pytest.fixture(scope="module")
def begun_only() -> Iterator[Budget]:
    """What takes long ends soon after it has begun: drawing when its budget is spent, fits and measurements at once."""
    step, budget = DrawingEngine.step, Budget()

    def begin(engine, on_step=None):
        def counted(progress):
            budget.steps -= 1
            if budget.steps < 0:
                enough()
            if on_step is not None:
                on_step(progress)

        return step(engine, counted)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DrawingEngine, "step", begin)
        patch.setattr("hawk.training.drafters.grids.generate", enough)
        for module in ("endless.tokenizer", "endless.target", "drafters.heads", "drafters.spatial", "drafters.feature"):
            patch.setattr(f"hawk.training.{module}.fit", enough)
        for suite in ("scaling.run_scaling", "steps.run_steps"):
            patch.setattr(f"hawk.measure.{suite}", enough)
        patch.setattr("hawk.batch.local.drawn_by_processes", enough)
        patch.setattr("hawk.server.running.run", enough)
        patch.setattr("hawk.cli.serve.replicas_at", enough)
        patch.setattr("hawk.proofs.suite.run_in_processes", lambda every, processes: [])
        patch.setattr("hawk.drafters.settings.step_seconds", lambda target, widths, n, engine: dict.fromkeys(widths, 1))
        patch.setattr("hawk.training.photos.sources.fetch_photos", enough)
        patch.setattr(torch, "set_num_threads", lambda threads: None)
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        yield budget


# --- the command line

WRONG = [
    *(
        "",
        " ",
        "0",
        "-1",
        "-0.0",
        "1.5",
        "1e39",
        "-1e39",
        "1e308",
        "1e-320",
        "nan",
        "inf",
        "-inf",
        "9" * 400,
        "1" + "0" * 11,
    ),
    *(
        "9223372036854775808",
        "\uff12",
        "0x10",
        "1_000",
        "True",
        "None",
        "null",
        "--",
        "-",
        "-n",
        "a\u202eb",
        "\U0001f34e",
        "é",
    ),
    *("\udcff", "a\nb", "x" * 5000, "word " * 2000, "{}", "%s", "../x", "taken", "taken/x", "nowhere", "nowhere.txt"),
    *(
        "out/",
        "out",
        "out.png",
        "x.jpg",
        ".",
        "..",
        "a/b",
        "a/b/c",
        "mine.txt",
        "lines.jsonl",
        "first.png",
        "plain.png",
    ),
    *("model", "heads.json", "recipe.yaml"),
]
NUMBERS = ["1", "2", "3", "8", "16", "64"]
REALS = ["0", "0.5", "0.9", "1", "2", "7.5"]
RIGHT = {
    "--method": [*METHODS],
    "--methods": ["ar", "hawk", "ar,scd", "medusa,,hawk"],
    "--verifier": ["coupled", "residual", "traversal", "relaxed"],
    **dict.fromkeys(["--cfg-scale", "--temperature", "--top-p", "--lr", "--blind", "--hazy", "--cache-gb"], REALS),
    "--device": ["cpu", "auto"],
    "--dtype": ["auto", "float32", "bfloat16", "float16", "float64"],
    "--target-dtype": ["auto", "float32"],
    "--engine": ["auto", "eager"],
    "--height": ["8", "16", "32", "256", "1024", "8000"],
    "--width": ["8", "16", "48", "256", "1024", "8000"],
    "--suite": ["paper", "peers", "scaling", "steps"],
    "--prompts": ["1", "2", "mine.txt", "lines.jsonl"],
    "--format": ["webdataset"],
    "--kind": ["heads", "spatial", "heads,spatial", "feature"],
    "--recipe": ["hawk", "mixed", "paper", "recipe.yaml"],
    "--sources": ["horizontal", "stale", "horizontal,stale"],
    **dict.fromkeys(["--minutes", "--weight-decay", "--ema"], REALS),
    "--tokenizer": ["model"],
    "--start": ["model"],
    "--run": ["run"],
    "--photos": ["photos"],
    "--pause": ["nowhere"],
    "--side": ["64", "128"],
    "--dim": ["64", "128"],
    "--levels": ["4,3", "8,8"],
    "--target": ["model"],
    "--model": ["model"],
    "--drafter": ["model/drafters/heads"],
    "--like": ["first.png"],
    "--out": ["new", "new/", "new.png"],
}


def commands() -> dict[tuple[str, ...], list[typer.core.TyperOption]]:
    """Every command by its words, and its options."""
    root, found = typer.main.get_command(app), {}
    for name, one in root.commands.items():
        inner = getattr(one, "commands", None)
        for words, command in [((name,), one)] if inner is None else [((name, n), c) for n, c in inner.items()]:
            found[words] = [param for param in command.params if param.param_type_name == "option"]
    return found


COMMANDS = commands()


def right_values(option: typer.core.TyperOption) -> list[str]:
    """Values of the right kind, or numbers where most options of their name take one."""
    return next((RIGHT[name] for name in option.opts if name in RIGHT), NUMBERS)


TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=()), max_size=12)


PLACES = {
    ("generate",): ["a cat", "red apple", "green cat on blue"],
    ("batch",): ["mine.txt"],
    ("compare",): ["a cat"],
    ("info",): ["model"],
    ("show",): ["first.png"],
    ("convert", "llamagen"): ["llamagen"],
    ("convert", "janus"): ["model"],
}


@st.composite
def command_lines(draw: st.DrawFn) -> list[str]:
    """The words of a command with random options of the right kind, of which up to two words are then spoilt."""
    words = draw(st.sampled_from(sorted(COMMANDS)))
    options = {option.opts[0]: option for option in COMMANDS[words]}
    optional = st.sampled_from([name for name, option in options.items() if not option.required])
    chosen = [name for name, option in options.items() if option.required]
    chosen += ["--model"] * ("--model" in options) + draw(st.lists(optional, max_size=6, unique=True))
    parts = [[word] for word in words]
    for name in dict.fromkeys(chosen):
        value = [] if options[name].is_flag else [draw(st.sampled_from(right_values(options[name])))]
        parts.append([name, *value])
    places = PLACES.get(words, [])
    if words != ("generate",) or not {"--prompts", "--like"} & {*chosen}:
        parts += [[place] for place in places[: draw(st.integers(1, 3))]]
    parts += [["converted"]] * ("convert" in words)
    for _ in range(draw(st.sampled_from([0, 0, 1, 1, 1, 2]))):
        at, wrong = draw(st.integers(len(words), len(parts))), draw(st.one_of(st.sampled_from(WRONG), TEXT))
        if at == len(parts):
            parts.append(draw(st.sampled_from([[wrong], ["--nonsense"], ["-h"]])))
        elif len(parts[at]) == 2:
            parts[at] = [parts[at][0], wrong]
        else:
            parts[at] = draw(st.sampled_from([[], [wrong]]))
    return [word for part in parts for word in part]


@pytest.fixture(scope="module")
def desk(saved_model, tmp_path_factory) -> Path:
    """A folder with what a command line may name: a model, prompts, pictures, a file in the way."""
    folder = tmp_path_factory.mktemp("desk")
    shutil.copytree(saved_model, folder / "model")
    (folder / "taken").write_text("in the way")
    (folder / "mine.txt").write_text("a cat\nred apple\n")
    (folder / "lines.jsonl").write_text('{"prompt": "a cat", "seed": 3}\n')
    (folder / "recipe.yaml").write_text("heads: {steps: 2, batch_size: 2, horizontal: 1, vertical: 1}")
    (folder / "llamagen").mkdir()
    first = ["generate", "a cat", "-m", str(folder / "model"), "-o", str(folder / "first.png"), "--method", "ar"]
    assert CliRunner().invoke(app, first).exit_code == 0
    Image.new("RGB", (8, 8)).save(folder / "plain.png")
    return folder


@pytest.mark.slow
@settings(max_examples=200, suppress_health_check=list(HealthCheck))
@given(line=command_lines())
def test_a_random_command_line_draws_or_ends_in_one_line(desk, begun_only, tmp_path, line):
    begun_only.steps = STEPS
    with pytest.MonkeyPatch.context() as patch:
        folder = Path(shutil.copytree(desk, tmp_path / "here"))
        patch.chdir(folder)
        patch.setenv("HAWK_CACHE", str(folder))
        with bounded():
            result = CliRunner().invoke(app, line, input="a cat\n")
    shutil.rmtree(folder)
    assert isinstance(result.exception, SystemExit | None), (line, result.exc_info)
    rows_failed = result.exit_code == SOME_FAILED and line[0] == "batch" and "names the reasons" in result.stdout
    assert result.exit_code in (0, 2) or rows_failed, (line, result.output)
    refused = result.exit_code == 2 and "Usage" not in result.stdout
    assert not refused or result.stderr.splitlines()[-1].startswith("hawk: "), (line, result.stderr)
    assert "Traceback" not in result.stderr
    event("refused" if refused and "hawk: enough" not in result.stderr else "draws")


# --- the pipeline

NUMBERS_OF_ANY_KIND = st.one_of(
    st.integers(-2, 70),
    st.integers(),
    st.floats(),
    st.sampled_from([10**11, 2**63, -(2**63), 10**400, -(10**5000), 1e39, 1e-320, math.nan, math.inf, True, 8 * 10**6]),
    st.sampled_from(
        [np.int64(3), np.float16(2), np.array(4), np.array([4]), np.nan, torch.tensor(5), torch.tensor([1, 2])]
    ),
)
ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    NUMBERS_OF_ANY_KIND,
    TEXT,
    st.binary(max_size=4),
    st.lists(st.one_of(NUMBERS_OF_ANY_KIND, TEXT, st.none()), max_size=3),
    st.dictionaries(TEXT, NUMBERS_OF_ANY_KIND, max_size=2),
    st.sampled_from(
        [object(), object, 3j, range(3), {1, 2}, (), Path("a"), "word " * 3000, "x" * 20_000, "a cat", slice(3)]
    ),
    st.builds(torch.Generator),
    st.builds(lambda: iter(["a cat"])),
)
RIGHT_ARGUMENTS = {
    "prompt": st.sampled_from(["a cat", ["a cat", "red apple"], ("green cat",), "apple on blue " * 2]),
    "negative_prompt": st.sampled_from([None, "a cat", "", [None, "red"]]),
    "method": st.sampled_from([*METHODS]),
    "verifier": st.sampled_from([None, *RIGHT["--verifier"]]),
    "output_type": st.sampled_from(OUTPUT_TYPES),
    "height": st.sampled_from([8, 16, 32, 64, 800]),
    "width": st.sampled_from([8, 48, 64, 800]),
    "guidance_scale": st.floats(0, 9),
    "temperature": st.floats(0, 2),
    "top_p": st.floats(0.01, 1),
    "generator": st.builds(torch.Generator),
    "return_dict": st.booleans(),
    "callback_on_step_end": st.just(ignore),
    "progress": st.booleans(),
}
"""Arguments of the right kind; the others are whole numbers."""
NAMES = [name for name in inspect.signature(HawkPipeline.__call__).parameters if name != "self"]


@st.composite
def calls(draw: st.DrawFn) -> dict[str, object]:
    """Arguments of a call of the pipeline, most of them of the right kind."""
    names = draw(st.lists(st.sampled_from(NAMES), max_size=7, unique=True))
    if draw(st.integers(0, 9)):
        names = list(dict.fromkeys(["prompt", *names]))
    wrong = draw(st.lists(st.sampled_from([*names, "steps"]), max_size=2, unique=True)) if names else []
    right = {name: draw(RIGHT_ARGUMENTS.get(name, st.integers(1, 40))) for name in names if name not in wrong}
    return right | {name: draw(ANYTHING) for name in wrong}


@pytest.mark.slow
@settings(max_examples=200, suppress_health_check=list(HealthCheck))
@given(call=calls())
def test_a_random_call_of_the_pipeline_draws_or_is_refused_in_one_line(saved_model, begun_only, call):
    begun_only.steps = STEPS
    pipe = HawkPipeline.from_pretrained(saved_model, "cpu")
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        with bounded():
            pipe(**call)
        refusal = None
    except EnoughError:
        refusal = None
    except (HawkError, TypeError) as error:  # TypeError: as Python refuses a keyword, or a call without a prompt
        refusal = error
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
    event("draws" if refusal is None else "refused")
    assert "\n" not in str(refusal)
    assert len(str(refusal)) < 400
    assert not isinstance(refusal, TypeError) or re.search("unexpected keyword|missing 1 required", str(refusal))
