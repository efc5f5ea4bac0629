"""The bodies of OpenAI's images API, as Hawk takes and gives them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from hawk.decoding.request import MAX_SEED
from hawk.server.config import MOST_IMAGES
from hawk.server.pictures import Format

ALIASES = (
    "chatgpt-image-latest",
    "dall-e-2",
    "dall-e-3",
    "gpt-image-1",
    "gpt-image-1-mini",
    "gpt-image-1.5",
    "hawk",
)
"""Names that clients have built in; each of them means the model that is served."""

METHOD = (
    "hawk, scd or ar, at different speed: ar is plain decoding, scd drafts from the model's own earlier guesses, and "
    "hawk drafts from those and from all other sources that the model has. All draw the same tokens from one seed."
)
"""The description of `method`."""
GUIDANCE = "Scale of classifier-free guidance, more than 1; 0 and 1 turn guidance off, and numbers between are refused."
"""The description of `guidance_scale`."""


class ImageRequest(BaseModel):
    """What to draw. Fields that are left out, or null, take the model's own setting."""

    model_config = ConfigDict(extra="forbid", strict=True)

    prompt: str = Field(description="What to draw.", min_length=1)
    model: str | None = Field(None, description="The served model's name, or a name that clients have built in.")
    n: int | None = Field(1, ge=1, le=MOST_IMAGES, description="Number of images; image i has the seed `seed + i`.")
    size: str | None = Field("auto", description="auto, or WIDTHxHEIGHT in pixels, as 256x256.")
    response_format: Literal["b64_json", "url"] | None = Field(
        None, description="b64_json; url is refused, since the server keeps no files."
    )
    output_format: Format | None = Field("png", description="Only PNG carries the image's settings.")
    output_compression: int | None = Field(None, ge=0, le=100, description="Quality of jpeg and webp.")
    stream: bool | None = Field(False, description="Send server-sent events.")
    partial_images: int | None = Field(None, ge=0, le=3, description="Pictures of each unfinished image in a stream.")
    user: str | None = Field(None, description="Has no effect.")
    quality: str | None = Field(None, description="Has no effect: the model has one quality.")
    style: str | None = Field(None, description="Has no effect.")
    background: Literal["auto", "opaque", "transparent"] | None = Field(None, description="auto or opaque.")
    moderation: str | None = Field(None, description="Has no effect.")
    # Hawk's own
    seed: int | None = Field(None, ge=0, le=MAX_SEED, description="Seed of the first image; random if left out.")
    negative_prompt: str | None = Field(None, description="What the images should not show.")
    guidance_scale: float | None = Field(None, description=GUIDANCE)
    temperature: float | None = Field(None, description="Sampling temperature; 0 is greedy.")
    top_k: int | None = Field(None, description="Sample from the k most likely tokens; 0 turns it off.")
    top_p: float | None = Field(None, description="Sample from the most likely tokens that hold this probability.")
    method: str | None = Field(None, description=METHOD)


class ImageData(BaseModel):
    """A finished image."""

    b64_json: str = Field(description="The file in base64.")
    seed: int = Field(description="The seed, which draws the image again.")
    nfe: int = Field(description="Target forwards of the image, prefill included.")
    accept_length: float = Field(description="Tokens that were committed per target forward.")
    seconds: float = Field(description="The image's share of the time of its steps.")
    tokens_sha256: str = Field(description="A fingerprint of the image's tokens.")


class TokenDetails(BaseModel):
    """Numbers of tokens by kind."""

    text_tokens: int = 0
    image_tokens: int = 0


class Usage(BaseModel):
    """Numbers of tokens; those of the prompt are not counted."""

    input_tokens: int = 0
    output_tokens: int
    total_tokens: int
    input_tokens_details: TokenDetails = TokenDetails()
    output_tokens_details: TokenDetails

    @classmethod
    def of(cls, tokens: int) -> Usage:
        """The usage of so many image tokens."""
        details = TokenDetails(image_tokens=tokens)
        return cls(output_tokens=tokens, total_tokens=tokens, output_tokens_details=details)


class ImagesResponse(BaseModel):
    """The finished images of a request."""

    created: int = Field(description="Seconds since 1970.")
    data: list[ImageData] = Field(description="The images, in the order of their seeds.")
    size: str = Field(description="WIDTHxHEIGHT in pixels.")
    output_format: str
    background: str = "opaque"
    quality: str = "high"
    model: str
    usage: Usage


class ModelEntry(BaseModel):
    """A model, with the size of its images in pixels."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "hawk"
    size: str = Field(description="WIDTHxHEIGHT in pixels.")
    methods: list[str] = Field(description="The methods that a request may name.")


class ModelList(BaseModel):
    """The models of the server."""

    object: Literal["list"] = "list"
    data: list[ModelEntry]


class ErrorBody(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorResponse(BaseModel):
    """An error."""

    error: ErrorBody


ERRORS: dict[int | str, dict[str, Any]] = {
    code: {"model": ErrorResponse, "description": description}
    for code, description in (
        (400, "the request is wrong"),
        (401, "the API key is missing or wrong"),
        (403, "the host or the origin is refused"),
        (404, "there is no such model"),
        (413, "the body is too large"),
        (429, "the queue is full; see retry-after"),
        (500, "the server failed; the log names the reference of the error"),
        (503, "the server is stopping or not ready"),
        (504, "the time of the request is over"),
    )
}
"""The errors of the routes, for the OpenAPI document."""
