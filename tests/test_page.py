"""The page in a real browser: drawing, the race, where cells came from, errors, a phone, the keyboard."""

import base64
import io
import json
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

import hawk
from hawk.models.bundled_prompts import BENCH_PROMPTS
from hawk.models.llamagen.words import StaticTextEncoder
from hawk.outputs import image_metadata
from hawk.pictures.png import png_bytes
from serving import PROMPT, alone, serving

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

if CHROMIUM is None:
    pytest.skip("needs Debian's package chromium", allow_module_level=True)
playwright = pytest.importorskip("playwright.sync_api")


@pytest.fixture(scope="module")
def served(saved_model):
    with serving(saved_model) as running:
        yield running


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser, served):
    """Opens the page in a window of its own; at the end no script has failed and no other host was asked."""
    contexts, wrong = [], []

    def opened(url=None, **options):
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(60_000)  # a crowded machine starts a page slowly
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
        page.on(
            "request", lambda asked: asked.url.startswith((served.url, "data:", "blob:")) or wrong.append(asked.url)
        )
        page.goto(url or served.url)
        page.wait_for_selector("#method option", state="attached")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert [each for each in wrong if "Failed to load resource" not in each] == []


def drawn(page) -> None:
    page.wait_for_selector("#look:not([hidden])")


def settings_of(page) -> dict:
    """The text of the PNG that the page offers for download."""
    content = page.get_attribute("#download", "href").removeprefix("data:image/png;base64,")
    image = Image.open(io.BytesIO(base64.b64decode(content)))
    image.load()
    return image.text


def test_a_picture_is_drawn_with_the_keyboard_alone_and_its_cells_are_explained(open_page, saved_model):
    page = open_page()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "prompt"
    page.keyboard.type(PROMPT)
    page.evaluate("document.getElementById('seed').value = '9007199254740993'")  # no number of JavaScript's
    page.keyboard.press("Enter")
    drawn(page)
    text = settings_of(page)
    assert (text["prompt"], text["seed"]) == (PROMPT, "9007199254740993")
    assert text["tokens_sha256"] == alone(saved_model, PROMPT, 9007199254740993)
    assert page.inner_text("[data-of=committed]") == "24"
    page.check("#overlay")
    counts = [int(entry.rpartition(":")[2]) for entry in page.inner_text("#legend").splitlines() if ":" in entry]
    assert sum(counts) == 24
    page.focus("#replay")
    page.keyboard.press("Home")
    assert re.fullmatch(r"Forward 1 of \d+ committed 1 token; 1 of 24 are there\.", page.inner_text("#replay-text"))
    page.keyboard.press("End")
    assert page.inner_text("#replay-text").endswith("24 of 24 are there.")


def test_a_race_ends_with_identical_pictures(open_page):
    page = open_page(color_scheme="dark")
    page.fill("#prompt", PROMPT)
    page.click("#race")
    page.wait_for_selector("#verdict:not([hidden])")
    verdict = page.inner_text("#verdict")
    assert verdict.startswith("Identical: all 24 tokens. Hawk took"), verdict
    assert page.locator("#panels figure").count() == 2
    plain, hawk = (int(text) for text in page.locator("[data-of=nfe]").all_inner_texts())
    assert plain == 24 > hawk


WRONG_INPUT = (
    ("prompt", "one two three four five six seven eight", "6 fit"),
    ("temperature", "-1", "temperature"),
    ("seed", "red", "The seed must be a whole number"),
    ("prompt", "  ", "Say what to draw"),
    ("guidance_scale", "1e30", "guidance_scale"),
    ("guidance_scale", "0.5", "guidance_scale must be 0 or 1 (guidance off), or more than 1, not 0.5"),
)


def test_wrong_input_is_one_sentence_on_the_page(open_page):
    page = open_page()
    for name, value, message in WRONG_INPUT:
        page.evaluate("document.getElementById('reset').click()")
        page.fill("#prompt", PROMPT)
        page.evaluate("([name, value]) => { document.getElementById(name).value = value; }", [name, value])
        page.evaluate("document.getElementById('form').requestSubmit()")
        playwright.expect(page.locator("#error")).to_contain_text(message)
        playwright.expect(page.locator("#draw")).to_be_enabled()
        assert page.is_hidden("#stage")
    assert page.get_attribute("#guidance_scale", "aria-invalid") == "true"
    assert page.locator("[aria-invalid]").count() == 1


def test_a_drawing_is_stopped_and_a_server_that_is_gone_is_told(open_page, served):
    page = open_page()
    served.studio.pause = 0.3
    try:
        page.fill("#prompt", PROMPT)
        page.click("#draw")
        page.wait_for_selector("#stop:not([hidden])")
        page.keyboard.press("Escape")
        page.wait_for_selector("#error:not([hidden])")
        assert page.inner_text("#error") == "Stopped."
        served.wait(lambda: served.worker.open_images == 0)
    finally:
        served.studio.pause = 0.0
    page.route("**/live/draw", lambda route: route.abort())
    page.click("#draw")
    page.wait_for_selector("#error:not([hidden])")
    assert "The server cannot be reached" in page.inner_text("#error")


def test_history_and_a_dropped_png_bring_settings_back(open_page, tmp_path, saved_model):
    page = open_page()
    page.fill("#prompt", PROMPT)
    page.click("#draw")
    drawn(page)
    page.fill("#prompt", "something else")
    page.click("#history button")
    assert page.input_value("#prompt") == PROMPT
    assert page.input_value("#seed") == settings_of(page)["seed"]
    settings = {"cfg_scale": 2.55, "temperature": 0.33, "top_k": 3, "top_p": 0.05}
    text = image_metadata("a\n cat", "red apple", 2**62, "tiny", "scd", settings)
    (tmp_path / "cat.png").write_bytes(png_bytes(Image.new("RGB", (8, 8)), text))
    page.set_input_files("#file", tmp_path / "cat.png")
    playwright.expect(page.locator("#prompt")).to_have_value("a cat")
    named = ("negative_prompt", "seed", "guidance_scale", "temperature", "top_k", "top_p", "method")
    values = [page.input_value(f"#{name}") for name in named]
    assert values == ["red apple", str(2**62), "2.55", "0.33", "3", "0.05", "scd"]
    page.click("#draw")
    drawn(page)
    again = settings_of(page)
    assert again["tokens_sha256"] == alone(
        saved_model,
        "a cat",
        2**62,
        negative_prompt="red apple",
        guidance_scale=2.55,
        temperature=0.33,
        top_k=3,
        top_p=0.05,
    )
    for number, wrong in enumerate(({}, {"prompt": "x", "settings": "null"}, {"prompt": "x", "settings": "3"})):
        (tmp_path / f"{number}.png").write_bytes(png_bytes(Image.new("RGB", (8, 8)), wrong))
        page.set_input_files("#file", tmp_path / f"{number}.png")
        playwright.expect(page.locator("#error")).to_have_text("This PNG carries no settings of Hawk's.")
        assert page.input_value("#prompt") == "a cat"
    (tmp_path / "cut.png").write_bytes((tmp_path / "cat.png").read_bytes()[:-20])
    page.set_input_files("#file", tmp_path / "cut.png")
    playwright.expect(page.locator("#error")).to_have_text(
        "This PNG file is cut off: its end is missing. Copy or download it again."
    )
    page.reload()
    assert page.locator("#history button").count() == 2
    page.click("#forget")
    assert page.is_hidden("#past")


def test_nothing_leaves_a_phones_screen(open_page):
    page = open_page(viewport={"width": 360, "height": 640}, is_mobile=True)
    page.fill("#prompt", PROMPT)
    page.click("#draw")
    drawn(page)
    page.click("#settings summary")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_every_control_has_a_name(open_page):
    page = open_page()
    nameless = page.evaluate(
        """() => [...document.querySelectorAll("input, select, button, a, canvas[role], progress")]
        .filter((each) => !(each.labels?.length || each.ariaLabel || each.textContent.trim() || each.title
          || each.getAttribute("aria-label"))).map((each) => each.outerHTML)"""
    )
    assert nameless == []


def test_a_key_is_asked_for_where_the_server_wants_one(browser, saved_model):
    key = "a-key-of-enough-letters"
    with serving(saved_model, keys=(key,)) as served:
        page = browser.new_page()
        page.goto(served.url)
        page.wait_for_selector("#error:not([hidden])")
        assert "asks for an API key" in page.inner_text("#error")
        page.fill("#key", "another-key-of-letters")
        page.press("#key", "Tab")
        playwright.expect(page.locator("#error")).to_have_text("The API key is wrong.")
        page.fill("#key", key)
        page.press("#key", "Tab")
        page.wait_for_selector("#method option", state="attached")
        page.fill("#prompt", PROMPT)
        page.click("#draw")
        drawn(page)
        page.close()


def test_steps_are_told_one_by_one(served, saved_model):
    body = {"prompt": PROMPT, "seed": 1, "partials": 2}
    with served.http.stream("POST", f"{served.url}/live/draw", json=body) as answer:
        parts = "".join(answer.iter_text()).strip().split("\n\n")
    events = [(part.split("\n")[0].removeprefix("event: "), json.loads(part.split("data: ")[1])) for part in parts]
    names = [name for name, _ in events]
    assert (names[0], names[-1], names.count("partial")) == ("accepted", "drawn", 2)
    steps = [data for name, data in events if name == "step"]
    committed = [data["committed"] for data in steps]
    assert committed == sorted(set(committed))
    assert [data["nfe"] for data in steps] == list(range(2, 2 + len(steps)))
    seconds = [data["seconds"] for data in steps] + [events[-1][1]["seconds"]]
    assert seconds == sorted(seconds)
    last = events[-1][1]
    assert last["tokens_sha256"] == alone(saved_model, PROMPT, 1)
    assert last["nfe"] == steps[-1]["nfe"] + 1
    assert len(last["origins"]) == 24
    assert last["forwards"] == [1, *committed, 24]


def test_a_client_that_missed_the_steps_gets_all_that_a_replay_needs(open_page):
    page = open_page()
    page.evaluate("""() => import("/static/panel.js").then(({ Panel }) => { Panel.prototype.step = () => {}; })""")
    page.fill("#prompt", PROMPT)
    page.click("#draw")
    drawn(page)
    forwards = page.inner_text("[data-of=nfe]")
    assert page.inner_text("#replay-text").startswith(f"Forward {forwards} of {forwards} committed")
    assert page.get_attribute("#replay", "max") == forwards


def test_the_chips_name_what_the_bundled_model_was_taught(unchecked):
    text = StaticTextEncoder.load(Path(hawk.__file__).parent / "weights/bundled")
    assert len(BENCH_PROMPTS) >= 4
    assert text.hint(BENCH_PROMPTS) is None
    assert text.hint(["a red apple"]) is None
    assert "not taught: fox, snow;" in text.hint(["a fox in snow", "a red apple"])


@pytest.mark.parametrize("name", ["../app.py", "%2e%2e%2fapp.py", "..%5capp.py", "nothing.js"])
def test_only_the_pages_own_files_are_served(served, name):
    assert served.get(f"/static/{name}").status_code == 404
