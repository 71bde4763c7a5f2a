"""The identity of an image, a clip or a file: what an engine caches it by, however the client wrote it.

Engines hash the decoded bytes, or take the ``uuid`` that the client gives in their place
(https://docs.vllm.ai/en/latest/features/multimodal_inputs.html). Here nothing is fetched or decoded, so an image is known by
its ``uuid``, else by its base64 text, else by its URL without the signature, which changes each time the URL is signed.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

from xxhash import xxh3_128

from warmroute.request.canonical_json import canonical_json, encode

MEDIA_KEYS = frozenset(
    {
        "image_url",
        "video_url",
        "audio_url",
        "input_audio",
        "image",
        "video",
        "audio",
        "file",
        "file_data",
        "image_embeds",
        "audio_embeds",
    }
)
"""Members that hold an image, a clip or a file."""
_LOCATORS = MEDIA_KEYS | {"source", "url", "data", "file_id"}
# The name and the type of the content, and what is said of the block; all other members may change how it is processed.
_NOT_OPTIONS = frozenset(
    {"type", "text", "cache_control", "id", "status", "media_type", "mime_type", "format", "filename", "title", "uuid"}
)
MAX_URL = 8192
"""Characters of a URL up to which its query is taken apart."""
MAX_PARAMETERS = 32
"""Parameters up to which that is done. Azure signs with 14 at most, others with fewer."""

# Each way to sign a URL, by the parameter that holds the signature: the parameters that change when it is signed again.
_SIGNATURES = {
    "x-amz-signature": r"x-amz-[^&=]*",
    "x-goog-signature": r"x-goog-[^&=]*",
    "x-oss-signature": r"x-oss-[^&=]*",
    "q-signature": r"q-[^&=]*",
    "signature": r"signature|expires|policy|key-pair-id|(?:aws|oss)accesskeyid|googleaccessid|[^&=]*security-token",
    "sig": r"s(?:ig|e|t|p|v|r|pr|ip|k[toesv]|koid|ktid)",
    "hm": r"ex|is|hm",
    "token": r"token",
}
_END = r"(?=[=&]|$)"
_SIGNATURE = re.compile(f"&({'|'.join(_SIGNATURES)}){_END}", re.IGNORECASE | re.ASCII)


def is_media(block: dict[str, Any]) -> bool:
    """Whether the block is an image, a clip or a file. One that was sent before may have nothing but its ``uuid``."""
    if not MEDIA_KEYS.isdisjoint(block) or type(block.get("source")) is dict:
        return True
    kind = block.get("type")
    return "uuid" in block and type(kind) is str and kind in MEDIA_KEYS


def media_digest(media: object, options: bytes, *, whole_url: bool = False) -> bytes:
    """16 bytes that identify the media; ``options`` say how all media of the request are processed. ``whole_url``: with the
    parameters that sign a URL, too."""
    content, own_options = _locate(media)
    digest = xxh3_128(options)
    if own_options:
        digest.update(canonical_json(own_options))
    if type(content) is not str:
        digest.update(canonical_json(content))
    elif content.startswith("data:"):
        data = encode(content)
        digest.update(memoryview(data)[data.find(b",", 0, 256) + 1 :])
    else:
        digest.update(encode(content if whole_url else unsigned(content)))
    return digest.digest()


def unsigned(url: str) -> str:
    """The URL without the parameters that sign it; other texts as they are."""
    if len(url) > MAX_URL or "?" not in url or "://" not in url:
        return url
    address, _, query = url.partition("?")
    if query.count("&") >= MAX_PARAMETERS:
        return url
    members = f"&{query}"
    found = _SIGNATURE.findall(members)
    if not found:
        return url
    kept = _changing(frozenset(map(str.lower, found))).sub("", members)
    return f"{address}?{kept[1:]}"


@lru_cache(maxsize=1 << len(_SIGNATURES))
def _changing(signatures: frozenset[str]) -> re.Pattern[str]:
    """The parameters, each with the mark before it, that change where these hold signatures."""
    names = "|".join([_SIGNATURES[name] for name in sorted(signatures)])
    return re.compile(f"&(?:{names}){_END}[^&]*", re.IGNORECASE | re.ASCII)


def _locate(media: object) -> tuple[object, dict[str, Any]]:
    """The text (or embeddings) that is the content, and what else the block says of it. A uuid stands for the content."""
    options: dict[str, Any] = {}
    place = media
    while type(place) is dict:
        uuid = place.get("uuid")
        if type(uuid) is str and uuid:
            return ("uuid", uuid), options
        inner: object = None
        for name, value in place.items():
            if inner is None and name in _LOCATORS:
                inner = value
            elif name not in _NOT_OPTIONS and value is not None:
                options[name] = value
        place = inner
    return place, options
