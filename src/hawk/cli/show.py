"""`hawk show`: how a picture was drawn, as its PNG file says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from hawk.cli.options import JsonOption


def show(
    picture: Annotated[Path, typer.Argument(metavar="FILE.png", help="A picture that `hawk generate` wrote.")],
    as_json: JsonOption = False,
) -> None:
    """Print the prompt, the seed and the settings that a picture was drawn with; `hawk generate --like` uses them."""
    from hawk.cli.wanted import recipe_of
    from hawk.pictures.png import picture_text

    text = picture_text(picture)
    recipe_of(text, picture)
    settings: dict[str, Any] = json.loads(text.pop("settings"))
    if as_json:
        print(json.dumps({"path": str(picture), **text, "settings": settings}))
        return
    rows = {**text, **settings}
    width = max(map(len, rows))
    for name, value in rows.items():
        print(f"{_printable(name):<{width}}  {_printable(str(value))}")


def _printable(text: str) -> str:
    """Text of a picture that anybody may have written, in one line and without commands to the terminal."""
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)
