"""The OpenAPI document tells the truth: examples work, schemas hold, and nothing it allows breaks the service."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import jsonschema
import pytest
import pytest_asyncio
import schemathesis
import uvicorn
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import (
    content_type_conformance,
    not_a_server_error,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from schemathesis.core.result import Ok

from llmsched.gateway.schemas import EXAMPLE_RECORDING
from tests.integration.service import InProcessService, in_process_service

pytestmark = pytest.mark.asyncio(loop_scope="module")

#: Requests per operation and kind (such as the document allows, and such as it does not).
EXAMPLES = 10
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]

Document = dict[str, Any]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[InProcessService]:
    async with in_process_service(tmp_path_factory.mktemp("service"), emulate=1) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def document(service: InProcessService) -> Document:
    found: Document = (await service.get("/openapi.json")).json()
    return found


def operations(document: Document) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield method.upper(), path, operation


def resolved(document: Document, schema: Document) -> Document:
    if "$ref" not in schema:
        return schema
    found: Document = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    return found


def has_example(document: Document, schema: Document) -> bool:
    """Of its own, or of what it is a page of."""
    schema = resolved(document, schema)
    if "items" in (properties := schema.get("properties", {})):
        return has_example(document, properties["items"]["items"])
    return bool(schema.get("examples"))


async def test_every_operation_is_described(document: Document) -> None:
    ids = [operation["operationId"] for _, _, operation in operations(document)]
    assert len(set(ids)) == len(ids)
    for method, path, operation in operations(document):
        assert operation["description"], (method, path)
        assert operation["tags"], (method, path)


async def test_every_body_and_every_answer_has_an_example(document: Document) -> None:
    bare = []
    for method, path, operation in operations(document):
        contents = [operation.get("requestBody", {}).get("content", {})]
        contents += [response.get("content", {}) for response in operation["responses"].values()]
        schemas = [c["schema"] for content in contents for kind, c in content.items() if kind != "text/plain"]
        bare += [(method, path, schema) for schema in schemas if not has_example(document, schema)]
    assert bare == []


async def test_every_error_is_a_problem_document(document: Document) -> None:
    problem = {"schema": {"$ref": "#/components/schemas/Problem"}}
    for method, path, operation in operations(document):
        for status, response in operation["responses"].items():
            if status >= "400":
                assert response["content"] == {"application/problem+json": problem}, (method, path, status)
        if path.startswith("/v1/"):
            assert {"401", "503"} <= operation["responses"].keys(), (method, path)
        if "requestBody" in operation:
            assert {"400", "413", "415", "422"} <= operation["responses"].keys(), (method, path)


async def test_the_examples_keep_to_their_schemas(document: Document) -> None:
    for schema in document["components"]["schemas"].values():
        for example in schema.get("examples", ()):
            whole = schema | {"components": document["components"]}
            jsonschema.Draft202012Validator(whole).validate(example)


async def test_the_examples_of_requests_are_accepted(document: Document, service: InProcessService) -> None:
    expected = {
        ("POST", "/v1/jobs"): 202,
        ("POST", "/v1/jobs:batch"): 202,
        ("PUT", "/v1/applications/{name}"): 200,
        ("POST", "/v1/engines"): 201,
        ("PUT", "/v1/policies/active"): 200,
        ("POST", "/v1/whatif"): 202,
    }
    answered = {}
    for method, path, operation in operations(document):
        if "requestBody" in operation:
            schema = resolved(document, operation["requestBody"]["content"]["application/json"]["schema"])
            for example in schema["examples"]:
                answer = await service.http.request(method, path.format(name="summarize"), json=example)
                answered[method, path] = answer.status_code
    assert answered == expected
    await service.delete("/v1/engines/engine-2")


async def test_keys_are_in_the_document_where_they_are_needed(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("keys")
    async with in_process_service(folder, emulate=0, api_keys="ann:ann-key-1") as service:
        document = (await service.get("/openapi.json")).json()
        assert document["components"]["securitySchemes"] == {"key": {"type": "http", "scheme": "bearer"}}
        for _, path, operation in operations(document):
            assert operation.get("security") == ([{"key": []}] if path.startswith("/v1/") else None), path


# ------------------------------------------------------------------------------------------------ schemathesis


@asynccontextmanager
async def listening(service: InProcessService) -> AsyncIterator[str]:
    """The gateway on a port, for a client that has its own thread."""
    config = uvicorn.Config(service.app, port=0, lifespan="off", log_config=None, access_log=False)
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110 (it tells nobody)
        await asyncio.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        await serving


def explore(document: Document, url: str, job: str) -> list[str]:
    """Asks everything the document describes, as it allows and as it does not; the operations that were asked."""
    schema = schemathesis.openapi.from_dict(document).exclude(path="/v1/events")  # which never ends
    asked = []
    for result in schema.get_all_operations():
        assert isinstance(result, Ok), result.err()
        operation = result.ok()
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
            try:
                ask(operation, mode, url, job)
            except Unsatisfiable:
                continue  # nothing can be wrong with a request that says nothing
            asked.append(f"{mode.value} {operation.label}")
    return asked


def ask(operation: schemathesis.APIOperation[Any, Any, Any, Any], mode: GenerationMode, url: str, job: str) -> None:
    """Sends requests of one kind. Such as are allowed mostly name things that exist."""
    known = {"name": "explored", "id": job if "/jobs/" in operation.path else "engine-1"}
    sane = {"application": "code_generation", "url": "http://127.0.0.1:9"}  # and nobody out there is called

    @settings(
        max_examples=EXAMPLES,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def once(case: schemathesis.Case[Any]) -> None:
        if mode is GenerationMode.POSITIVE:
            if case.method != "DELETE":
                case.path_parameters = {key: known[key] for key in case.path_parameters or {}}
            if isinstance(case.body, dict):
                case.body |= {key: value for key, value in sane.items() if key in case.body}
        case.call_and_validate(base_url=url, checks=CHECKS, timeout=10)

    once()


async def test_schemathesis_finds_no_server_error_and_no_false_answer(
    document: Document, service: InProcessService
) -> None:
    job = await service.submit(recording=EXAMPLE_RECORDING)
    await service.story(job["id"])
    async with listening(service) as url:
        asked = await asyncio.to_thread(explore, document, url, job["id"])
    everything = {f"{method} {path}" for method, path, _ in operations(document)} - {"GET /v1/events"}
    assert {label.partition(" ")[2] for label in asked if label.startswith("positive")} == everything
    assert (await service.get("/health")).status_code == 200
