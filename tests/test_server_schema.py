"""Requests made from the OpenAPI document, right and wrong ones: none of them is answered by 500."""

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings

from hawk.server.config import Limits
from hawk.server.live_api import LiveRequest
from hawk.server.openai_schema import ImageRequest
from hawk.server.reference import reference
from hawk.server.sdapi import TextToImage
from serving import serving

pytestmark = pytest.mark.usefixtures("unchecked")  # checks of signatures would take most of the time


@pytest.fixture(scope="module")
def served(saved_model):
    with serving(saved_model, Limits(per_client=1000, area=1.0, timeout=10.0)) as running:
        yield running


def answered(served, cases: int) -> int:
    """Send so many cases to each operation; returns how many were sent."""
    document = schemathesis.openapi.from_dict(served.get("/openapi.json").json())
    sent = 0
    for result in document.get_all_operations():
        operation = result.ok()
        for mode in schemathesis.GenerationMode:
            if mode == schemathesis.GenerationMode.NEGATIVE and not operation.body:
                continue  # nothing of it can be wrong

            @settings(
                max_examples=cases if operation.body else max(1, cases // 10),
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            @given(case=operation.as_strategy(generation_mode=mode))
            def send(case):
                nonlocal sent
                sent += 1
                answer = case.call(base_url=served.url, timeout=30)
                assert answer.status_code < 500, answer.text
                if answer.status_code >= 400:
                    assert answer.json()["error"]

            send()
    return sent


@pytest.mark.proofs
def test_no_case_of_the_document_is_answered_by_500(served):
    assert answered(served, 15) >= 100
    assert 'outcome="error"' not in served.get("/metrics").text


def test_the_document_tells_how_wrong_bodies_are_answered(served):
    document = served.get("/openapi.json").json()
    drawing = document["paths"]["/v1/images/generations"]["post"]["responses"]
    assert {"200", "400", "401", "429", "500", "503", "504"} <= set(drawing)
    assert "422" not in str(document)
    assert set(drawing["200"]["content"]) == {"application/json", "text/event-stream"}


def test_the_reference_has_every_route_and_every_field(served):
    document = served.get("/openapi.json").json()
    text = reference(document)
    for path, operations in document["paths"].items():
        assert all(f"### `{method.upper()} {path}`" in text for method in operations)
    for name, model in (("generations", ImageRequest), ("txt2img", TextToImage), ("draw", LiveRequest)):
        section = text.partition(f"/{name}`")[2].partition("###")[0]
        assert all(f"| `{field}` |" in section for field in model.model_fields)
    assert "| `n` | integer, 1 to 10 | `1` | Number of images; image i has the seed `seed + i`. |" in text
    assert "| `data[].b64_json` | text |" in text
    assert "0 and 1 turn guidance off" in text


@pytest.mark.slow
def test_no_case_of_2000_is_answered_by_500(served):
    assert answered(served, 340) >= 2000
    assert 'outcome="error"' not in served.get("/metrics").text
