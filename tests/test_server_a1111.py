"""The calls of the A1111 API that Open WebUI and SillyTavern make, in their order."""

import base64
import io
import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from PIL import Image

from hawk.outputs import tokens_sha256
from serving import PROMPT, alone, serving, tiny_pipe

pytestmark = pytest.mark.usefixtures("unchecked")  # checks of signatures would take most of the time

KEY = "a-key-of-enough-letters"


@pytest.fixture(scope="module")
def served(saved_model):
    with serving(saved_model) as running:
        yield running


def draw(served, **body):
    answer = served.post({"prompt": PROMPT, "sampler_name": "ar", **body}, "/sdapi/v1/txt2img")
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_what_open_webui_sends(served, saved_model):
    assert served.get("/sdapi/v1/options").json()["sd_model_checkpoint"] == "tiny"
    (model,) = served.get("/sdapi/v1/sd-models").json()
    assert served.post({"sd_model_checkpoint": model["title"]}, "/sdapi/v1/options").status_code == 200
    refused = served.post({"sd_model_checkpoint": "other"}, "/sdapi/v1/options")
    assert (refused.status_code, "tiny" in refused.json()["detail"]) == (400, True)
    body = {"batch_size": 2, "width": 512, "height": 512, "steps": 50, "negative_prompt": "", "override_settings": {}}
    answer = draw(served, **body, seed=1)
    info = json.loads(answer["info"])
    assert (info["all_seeds"], info["width"], info["height"]) == ([1, 2], 48, 32)  # the model's own size
    for text, seed in zip(answer["images"], (1, 2), strict=True):
        image = Image.open(io.BytesIO(base64.b64decode(text)))
        assert image.text["tokens_sha256"] == alone(saved_model, PROMPT, seed)
        assert image.text["parameters"].startswith(PROMPT)


def test_what_sillytavern_sends(served, saved_model):
    for path in ("samplers", "schedulers", "upscalers", "latent-upscale-modes", "sd-vae", "sd-models"):
        answer = served.get(f"/sdapi/v1/{path}")
        assert answer.status_code == 200
        assert isinstance(answer.json(), list)
    assert {each["name"] for each in served.get("/sdapi/v1/samplers").json()} == {"ar", "scd", "hawk"}
    assert served.get("/sdapi/v1/progress").json()["progress"] == 0.0
    body = {"negative_prompt": "a cat", "cfg_scale": 3, "scheduler": "automatic", "enable_hr": False, "seed": -1}
    info = json.loads(draw(served, **body)["info"])
    pipe = tiny_pipe(saved_model)
    again = pipe(PROMPT, negative_prompt="a cat", guidance_scale=3.0, seed=info["seed"], method="ar")
    assert info["cfg_scale"] == 3
    assert "CFG scale: 3.0" in info["infotexts"][0]
    assert tokens_sha256(again.tokens[0])


def test_progress_and_interrupt(saved_model):
    with serving(saved_model, pause=0.02) as served, ThreadPoolExecutor(1) as pool:
        body = {"prompt": PROMPT, "batch_size": 10, "sampler_name": "ar"}
        running = pool.submit(served.post, body, "/sdapi/v1/txt2img")
        served.wait(lambda: served.get("/sdapi/v1/progress").json()["progress"] > 0.02)
        assert served.post({}, "/sdapi/v1/interrupt").status_code == 200
        assert running.result(10).status_code == 499
        served.wait(lambda: served.worker.open_images == 0)


def test_a_key_as_a_password(saved_model):
    with serving(saved_model, keys=(KEY,)) as served:
        assert served.get("/sdapi/v1/options").status_code == 401
        assert served.get("/sdapi/v1/options", auth=("anybody", KEY)).status_code == 200
        assert served.get("/sdapi/v1/options", auth=(KEY, "other")).status_code == 401


@pytest.mark.parametrize(
    "body",
    [{"batch_size": 100}, {"seed": -2}, {"width": 0}, {"prompt": "a" * 5000}, {"cfg_scale": "x"}, {"cfg_scale": 0.5}],
)
def test_wrong_requests(served, body):
    answer = served.post({"prompt": PROMPT, **body}, "/sdapi/v1/txt2img")
    assert answer.status_code == 400
    assert answer.json()["detail"]


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-1e400", "0.5"])
def test_a_refused_scale_has_the_name_that_the_client_gave_it(served, number):
    content = f'{{"prompt": "{PROMPT}", "cfg_scale": {number}}}'
    answer = served.http.post(
        f"{served.url}/sdapi/v1/txt2img", content=content, headers={"content-type": "application/json"}
    )
    assert answer.status_code == 400
    assert answer.json()["detail"].startswith("cfg_scale must be")
