"""The OpenAPI description against the service itself: requests made from it, over a real socket."""

import json
import re
import warnings
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, Phase, given, settings

from pasta_ray.serve.config import ServeConfig
from pasta_ray.serve.http import create_app
from pasta_ray.serve.schema import ChatBody, CompletionBody, PastaOptions, StreamOptions
from pasta_ray.serve.security import key_digest
from pasta_ray.serve.service import Service
from tests.fakes import FakeTokenizer, fake_models
from tests.serve.listening import listening
from tests.serve.test_http import LocalBackend

with warnings.catch_warnings():  # its own imports use what is deprecated
    warnings.simplefilter("ignore", DeprecationWarning)
    import schemathesis
    from schemathesis import GenerationMode, checks

checks.load_all_checks()
CHECKS = [
    checks.CHECKS.get_one(name)
    for name in (
        "not_a_server_error",
        "status_code_conformance",
        "content_type_conformance",
        "response_headers_conformance",
        "response_schema_conformance",
        "negative_data_rejection",
    )
]


def explore(num_requests: int) -> dict[int, int]:
    """Right and wrong requests of every operation, as the description has them; how often each status was answered."""
    statuses: dict[int, int] = {}
    with listening(default_max_tokens=5) as service:
        schema = schemathesis.openapi.from_url(f"{service.url}/openapi.json")
        for operation in (result.ok() for result in schema.get_all_operations()):
            for mode in GenerationMode if operation.method == "post" else [GenerationMode.POSITIVE]:

                @settings(
                    max_examples=num_requests // 4 if operation.method == "post" else 4,
                    deadline=None,
                    phases=[Phase.explicit, Phase.generate],
                    database=None,
                    derandomize=True,
                    suppress_health_check=list(HealthCheck),
                )
                @given(case=operation.as_strategy(generation_mode=mode))
                def ask(case: Any) -> None:
                    response = case.call(base_url=service.url, timeout=10)
                    statuses[response.status_code] = statuses.get(response.status_code, 0) + 1
                    case.validate_response(response, checks=CHECKS)

                ask()
        assert service.settles_at_zero()
    return statuses


def test_requests_made_from_the_description_are_answered_as_it_says() -> None:
    """Guards clients that are made from it: no fault, no status, type or shape that it does not have, and what it
    forbids is refused."""
    statuses = explore(100)
    assert {200, 400} <= statuses.keys() <= {200, 400, 404}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_thousand_such_requests() -> None:
    statuses = explore(2100)
    assert sum(statuses.values()) >= 2000
    assert statuses[200] > 200
    assert statuses.keys() <= {200, 400, 404}


def described(keys: frozenset[str] = frozenset()) -> dict[str, Any]:
    served = ServeConfig()
    service = Service(served, fake_models(served), LocalBackend(), FakeTokenizer())
    schema: dict[str, Any] = create_app(service, keys).openapi()
    return schema


def test_every_error_is_described_in_openais_shape_and_keys_where_there_are_some() -> None:
    schema = described()
    for path, operations in schema["paths"].items():
        for operation in operations.values():
            for status, response in operation["responses"].items():
                if status != "200":
                    reference = {"$ref": "#/components/schemas/ErrorBody"}
                    assert response["content"]["application/json"]["schema"] == reference, path
    assert "422" not in json.dumps(schema["paths"])
    assert "security" not in schema
    schema = described(frozenset({key_digest("a-key-that-is-long-enough")}))
    assert schema["security"] == [{"key": []}]
    assert schema["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
    assert schema["paths"]["/health"]["get"]["security"] == []
    assert "security" not in schema["paths"]["/v1/models"]["get"]


def test_the_descriptions_examples_are_answered() -> None:
    with listening() as service:
        num_asked = 0
        for path, operations in httpx.get(f"{service.url}/openapi.json").json()["paths"].items():
            for operation in operations.values():
                content = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
                for example in content.get("examples", {}).values():
                    assert httpx.post(service.url + path, json=example["value"]).status_code == 200
                    num_asked += 1
        assert num_asked == 3


def test_the_page_about_http_has_every_field_and_no_other() -> None:
    """Guards docs/http.md: a field that is served, or refused by name, and not told of; and one that is gone."""
    page = (Path(__file__).parents[2] / "docs" / "http.md").read_text()
    tables = page[page.index("## Fields of both") : page.index("## What an answer carries")]
    told = {name for cell in re.findall(r"^\| (`.+?) \|", tables, re.M) for name in re.findall("`([^`]+)`", cell)}
    declared = {name for body in (ChatBody, CompletionBody) for name in body.model_fields}
    declared |= {f"pasta.{name}" for name in PastaOptions.model_fields}
    declared |= {f"stream_options.{name}" for name in StreamOptions.model_fields}
    refused = {"tools", "tool_choice", "parallel_tool_calls", "functions", "function_call", "web_search_options"}
    refused |= {"prompt_cache_options"}
    assert told == (declared | refused) - {"stream_options"}
