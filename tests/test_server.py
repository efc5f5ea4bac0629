"""The server as OpenAI's own client uses it: images, streams, errors and retries over a real connection."""

import base64
import io
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import openai
import pytest
from PIL import Image

from hawk.server.config import Limits
from serving import PROMPT, alone, serving

KEY = "a-key-of-enough-letters"


@pytest.fixture(scope="module")
def served(saved_model):
    with serving(saved_model) as running:
        yield running


def picture(data: str) -> Image.Image:
    image = Image.open(io.BytesIO(base64.b64decode(data)))
    image.load()
    return image


def generate(client, prompt=PROMPT, **options):
    own = {name: options.pop(name) for name in ("seed", "method", "temperature") if name in options}
    return client.images.generate(model="gpt-image-1", prompt=prompt, extra_body=own, **options)


@pytest.mark.parametrize("method", ["hawk", "scd", "ar"])
def test_images_have_the_tokens_that_they_have_alone(served, saved_model, method):
    answer = generate(served.openai(), n=3, seed=1, method=method)
    assert [each.model_extra["tokens_sha256"] for each in answer.data] == [
        alone(saved_model, PROMPT, seed) for seed in (1, 2, 3)
    ]
    assert [each.model_extra["seed"] for each in answer.data] == [1, 2, 3]
    assert answer.usage.output_tokens == 3 * 24
    assert answer.size == "48x32"
    first = picture(answer.data[0].b64_json)
    assert first.size == (48, 32)
    assert first.text["prompt"] == PROMPT
    assert first.text["tokens_sha256"] == answer.data[0].model_extra["tokens_sha256"]
    assert json.loads(first.text["settings"])["dtype"] == "float64"


@pytest.mark.parametrize(("kind", "name"), [("jpeg", "JPEG"), ("webp", "WEBP"), ("png", "PNG")])
def test_formats(served, kind, name):
    answer = generate(served.openai(), output_format=kind, size="48x32", method="ar")
    assert picture(answer.data[0].b64_json).format == name


def test_a_stream_of_three_partial_images(served, saved_model):
    events = list(generate(served.openai(), stream=True, partial_images=3, seed=1, method="ar"))
    assert [each.type for each in events] == ["image_generation.partial_image"] * 3 + ["image_generation.completed"]
    assert [each.partial_image_index for each in events[:3]] == [0, 1, 2]
    grey = [int((np.asarray(picture(each.b64_json)) == 128).all(2).sum()) for each in events[:3]]
    assert grey == [3 * 6 * 64, 2 * 6 * 64, 1 * 6 * 64]  # a row of 6 cells of 8x8 pixels comes at a time
    assert events[3].model_extra["tokens_sha256"] == alone(saved_model, PROMPT, 1)
    assert events[3].usage.total_tokens == 24


def test_the_model_under_its_names(served):
    client = served.openai()
    assert [each.id for each in client.models.list()] == ["tiny"]
    assert client.models.retrieve("dall-e-3").id == "tiny"
    with pytest.raises(openai.NotFoundError, match="tiny"):
        client.models.retrieve("other")


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"size": "80000x80000"}, "size"),
        ({"prompt": "a" * 5000}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"response_format": "url"}, "response_format"),
        ({"seed": -1}, "seed"),
        ({"temperature": -1.0}, "temperature"),
        ({"method": "medusa"}, "method"),
        ({"output_format": "gif"}, "output_format"),
        ({"background": "transparent"}, "background"),
        ({"partial_images": 2}, "partial_images"),
    ],
)
def test_wrong_requests_name_the_parameter(served, options, param):
    with pytest.raises(openai.BadRequestError) as caught:
        generate(served.openai(), **options)
    assert caught.value.param == param
    assert "Traceback" not in caught.value.message


SIZES = "size must be auto or WIDTHxHEIGHT in pixels, each a multiple of 8, as 48x32"


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({"n": 0}, "n", "n must be 1 or more, not 0"),
        ({"n": 11}, "n", "n must be 10 or less, not 11"),
        ({"n": "two"}, "n", 'n must be a whole number, not "two"'),
        ({"n": 10**25}, "n", "n must be 10 or less"),
        ({"size": "50x32"}, "size", f"{SIZES}, not 50x32"),
        ({"size": "big"}, "size", f"{SIZES}, not big"),
        ({"size": "x" * 1000}, "size", SIZES),
        ({"size": 32}, "size", "size must be text, not 32"),
        (
            {"size": "1024x1024"},
            "size",
            "size must be at most 6144 pixels, width x height, which is this server's limit",
        ),
        ({"output_format": "gif"}, "output_format", "output_format must be 'png', 'jpeg' or 'webp', not \"gif\""),
        ({"stream": "yes"}, "stream", 'stream must be true or false, not "yes"'),
        ({"steps": 3}, "steps", "steps is not a parameter of this route"),
        ({"prompt": None}, "prompt", "prompt must be text, not null"),
        (
            {"guidance_scale": 0.5},
            "guidance_scale",
            "guidance_scale must be 0 or 1 (guidance off), or more than 1, not 0.5",
        ),
        (
            {"guidance_scale": -2},
            "guidance_scale",
            "guidance_scale must be 0 or 1 (guidance off), or more than 1, not -2",
        ),
        ({"prompt": "a\0cat"}, "prompt", "prompt must not have control characters: leave out U+0000"),
        (
            {"negative_prompt": "\x1b[31m"},
            "negative_prompt",
            "negative_prompt must not have control characters: leave out U+001B",
        ),
        (
            {"negative_prompt": "\ud800"},
            "negative_prompt",
            "negative_prompt must be Unicode text: U+D800 is half of a surrogate pair",
        ),
        (
            {"negative_prompt": "red " * 9},
            "negative_prompt",
            "the negative prompt has 9 words, at most 6 fit: shorten it",
        ),
        (
            {"prompt": "red " * 9, "negative_prompt": "red"},
            "prompt",
            "the prompt has 9 words, at most 6 fit: shorten it",
        ),
    ],
)
def test_wrong_fields_are_named_in_one_plain_line(served, body, param, message):
    content = json.dumps({"prompt": PROMPT, **body})
    url, headers = f"{served.url}/v1/images/generations", {"content-type": "application/json"}
    answer = served.http.post(url, content=content, headers=headers)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["message"]) == (400, param, message)


@pytest.mark.parametrize("scale", [0, 1])
def test_guidance_is_turned_off_by_0_and_by_1(served, saved_model, scale):
    answer = served.post({"prompt": f"{PROMPT}\n", "seed": 3, "guidance_scale": scale, "method": "scd"})
    assert answer.json()["data"][0]["tokens_sha256"] == alone(saved_model, PROMPT, 3, guidance_scale=1)


def test_an_unknown_parameter_is_refused_and_openais_own_are_taken(served):
    refused = served.post({"prompt": PROMPT, "steps": 3})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "steps")
    taken = {"quality": "high", "style": "vivid", "background": "auto", "moderation": "low", "user": "me", "n": None}
    assert served.post({"prompt": PROMPT, **taken}).status_code == 200


def test_a_wrong_key(saved_model):
    with serving(saved_model, keys=("another-key-of-some-length", KEY)) as served:
        for key in ("wrong", KEY + "x"):
            with pytest.raises(openai.AuthenticationError, match="API key"):
                generate(served.openai(key))
        assert generate(served.openai(KEY)).data
        assert served.get("/metrics").status_code == 401
        assert served.get("/readyz").status_code == 200


def test_a_full_queue_is_429_and_a_retry_succeeds(saved_model, unchecked):
    with serving(saved_model, Limits(queue=0), pause=0.01, places=1) as served, ThreadPoolExecutor(2) as pool:
        first = pool.submit(generate, served.openai(), seed=1, method="ar")
        served.wait(lambda: served.worker.open_images == 1)
        with pytest.raises(openai.RateLimitError) as caught:
            generate(served.openai(), seed=2, method="ar")
        assert int(caught.value.response.headers["retry-after"]) >= 1
        second = pool.submit(generate, served.openai(retries=3), seed=2, method="ar")
        assert first.result(20).data[0].model_extra["tokens_sha256"] == alone(saved_model, PROMPT, 1)
        assert second.result(20).data[0].model_extra["tokens_sha256"] == alone(saved_model, PROMPT, 2)


def test_a_client_may_have_so_many_requests(saved_model):
    with serving(saved_model, Limits(per_client=1), pause=0.02) as served, ThreadPoolExecutor(1) as pool:
        first = pool.submit(generate, served.openai(), method="ar")
        served.wait(lambda: served.worker.open_images == 1)
        with pytest.raises(openai.RateLimitError, match="1 requests at once"):
            generate(served.openai())
        assert first.result(20).data


def test_the_time_of_a_request(saved_model):
    with serving(saved_model, Limits(timeout=0.4), pause=0.1) as served:
        with pytest.raises(openai.InternalServerError) as caught:
            generate(served.openai(), method="ar")
        assert caught.value.status_code == 504
        with pytest.raises(openai.APIError, match="time of the request"):
            list(generate(served.openai(), method="ar", stream=True))
        served.wait(lambda: served.worker.open_images == 0)
        assert served.get("/readyz").status_code == 200


def test_concurrent_requests_share_the_steps(served, saved_model, unchecked):
    seeds = range(1, 7)
    start = threading.Barrier(len(seeds))

    def draw(seed):
        start.wait()
        own = {"temperature": 0.5} if seed > 4 else {}
        answer = generate(served.openai(), seed=seed, method=("scd", "ar")[seed % 2], **own)
        return answer.data[0].model_extra["tokens_sha256"], alone(saved_model, PROMPT, seed, **own)

    with ThreadPoolExecutor(len(seeds)) as pool:
        for got, wanted in pool.map(draw, seeds):
            assert got == wanted
    figures = served.get("/metrics").text
    assert 'hawk_jobs_total{outcome="finished"}' in figures
    assert 'hawk_accepted_drafts_total{source="stale"}' in figures


def test_the_page_on_serving_names_every_route(served):
    page = (Path(__file__).parents[1] / "docs" / "serve.md").read_text(encoding="utf-8")
    assert [path for path in served.get("/openapi.json").json()["paths"] if path not in page] == []


def test_a_body_that_is_no_json_object_is_told_what_to_send(served):
    url = f"{served.url}/v1/images/generations"
    plain = served.http.post(url, content=b'{"prompt": "a cat"}', headers={"content-type": "text/plain"})
    assert (plain.status_code, plain.json()["error"]["message"]) == (
        400,
        "send a JSON object, with the header content-type: application/json",
    )
    broken = served.http.post(url, content=b'{"prompt": "\xff"}', headers={"content-type": "application/json"})
    assert (broken.status_code, broken.json()["error"]["message"]) == (400, "the body is no JSON text in UTF-8")
