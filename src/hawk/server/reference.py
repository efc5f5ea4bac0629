"""The reference of the HTTP API in Markdown, made from the OpenAPI document: the site's build fills a page with it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

Json = Mapping[str, Any]

TAGS = {"openai": "OpenAI's images API", "a1111": "The A1111 API", "page": "What the page reads", "health": "Health"}
"""The headings of the groups of routes, in the order of the page."""


def reference(document: Json) -> str:
    """The errors and all routes of an OpenAPI document, group by group."""
    schemas, parts = document.get("components", {}).get("schemas", {}), ["## Errors", errors(document)]
    for tag, heading in TAGS.items():
        parts.append(f"## {heading}")
        for path, operations in document["paths"].items():
            for method, operation in operations.items():
                if tag in operation["tags"]:
                    parts += route(f"{method.upper()} {path}", operation, schemas)
    return "\n\n".join(parts)


def route(name: str, operation: Json, schemas: Json) -> Iterator[str]:
    """The section of one route: what it does, its fields, the fields of its answer, and its errors."""
    yield f"### `{name}`"
    yield operation["description"]
    body = schema_in(operation.get("requestBody", {}))
    if body is not None:
        yield fields(body, schemas, ("field", "type", "default", "meaning"))
    responses = operation["responses"]
    answer = schema_in(responses.get("200", {}))
    if answer is not None and "$ref" in answer:
        yield "The answer:"
        yield fields(answer, schemas, ("field", "type", "meaning"))
    codes = [code for code in responses if code != "200"]
    if codes:
        yield f"Errors: {', '.join(codes)}."


def errors(document: Json) -> str:
    """The table of the errors that routes are answered by."""
    operations = [operation for path in document["paths"].values() for operation in path.values()]
    found = {code: each["description"] for operation in operations for code, each in operation["responses"].items()}
    rows = [f"| {code} | {meaning} |" for code, meaning in sorted(found.items()) if code != "200"]
    return "\n".join(["| status | when |", "|---|---|", *rows])


def schema_in(message: Json) -> Json | None:
    """The schema of the JSON body of a request or an answer, None where it has none."""
    found: Json | None = message.get("content", {}).get("application/json", {}).get("schema")
    return found


def fields(schema: Json, schemas: Json, columns: tuple[str, ...]) -> str:
    """The table of the fields of a schema; the fields of schemas in it follow under the name of the field."""
    rows = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    rows += [f"| {' | '.join(row[column] for column in columns)} |" for row in rows_of(schema, schemas)]
    return "\n".join(rows)


def rows_of(schema: Json, schemas: Json, before: str = "") -> Iterator[dict[str, str]]:
    """The rows of a table: one for each field."""
    own = resolved(schema, schemas)
    for name, field in own.get("properties", {}).items():
        default = "required" if name in own.get("required", ()) else shown(field.get("default"))
        kind = kind_of(field, schemas)
        meaning = field.get("description", "")
        yield {"field": f"`{before}{name}`", "type": kind, "default": default, "meaning": meaning}
        inner = resolved(field.get("items", field), schemas)
        if "properties" in inner:
            yield from rows_of(inner, schemas, f"{before}{name}[]." if "items" in field else f"{before}{name}.")


def resolved(schema: Json, schemas: Json) -> Json:
    """A schema, or the one that it refers to."""
    found: Json = schemas[schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema
    return found


def shown(default: Any) -> str:
    """A default as the table shows it."""
    return "" if default in (None, "") else f"`{str(default).lower() if isinstance(default, bool) else default}`"


def kind_of(field: Json, schemas: Json) -> str:
    """The type of a field in words, with its bounds."""
    if "anyOf" in field:
        return " or ".join(kind_of(each, schemas) for each in field["anyOf"] if each.get("type") != "null")
    if "enum" in field or "const" in field:
        return ", ".join(f"`{each}`" for each in field.get("enum", (field.get("const"),)))
    own = resolved(field, schemas)
    kind = str({"array": "list", "string": "text"}.get(own["type"], own["type"]))
    if kind == "list":
        return f"list of {kind_of(own['items'], schemas)}s"
    low, high = own.get("minimum"), own.get("maximum")
    if low is None:
        return kind
    return f"{kind}, {low:g} or more" if high is None or high >= 2**53 else f"{kind}, {low:g} to {high:g}"
