"""One image, named in different ways."""

from __future__ import annotations

import json

import pytest

from warmroute.prefix.chain import build
from warmroute.request.inference import InferenceRequest
from warmroute.request.media import unsigned
from warmroute.request.parse import parse
from warmroute.request.prompt import MAX_SIGNED_MEDIA

LONG = "What a long text before an image. " * 300


def chat(*blocks: object, **fields: object) -> InferenceRequest:
    content = [{"type": "text", "text": LONG}, *blocks, {"type": "text", "text": "What is it?"}]
    body = {"model": "m", "messages": [{"role": "user", "content": content}], **fields}
    parsed = parse("/v1/messages", "application/json", json.dumps(body).encode())
    assert isinstance(parsed, InferenceRequest)
    return parsed


def is_one_prompt(one: InferenceRequest, other: InferenceRequest) -> bool:
    first, second = build(one.seed, one.parts), build(other.seed, other.parts)
    assert first.hashes[20] == second.hashes[20], "the text before the image is the same"
    return first.hashes == second.hashes


def image(url: object, **members: object) -> dict[str, object]:
    return {"type": "image_url", "image_url": {"url": url}, **members}


def test_a_uuid_stands_for_the_image() -> None:
    whole = chat(image("https://a/1.png", uuid="u1"))
    for other in (
        image("https://b/2.png?x=1", uuid="u1"),
        {"type": "image_url", "uuid": "u1"},
        {"type": "image_url", "image_url": None, "uuid": "u1"},
    ):
        assert is_one_prompt(whole, chat(other))
    assert not is_one_prompt(whole, chat(image("https://a/1.png", uuid="u2")))


SIGNED = [
    "https://s3.test/a/1.png?versionId=7&X-Amz-Algorithm=AWS4&X-Amz-Date={0}&X-Amz-Expires=600&X-Amz-Signature={0}",
    "https://storage.test/a/1.png?X-Goog-Date={0}&X-Goog-Signature={0}&size=2",
    "https://blob.test/a/1.png?sv=2024-01-01&st={0}&se={0}&sr=b&sp=r&sig={0}",
    "https://cdn.test/a/1.png?Expires={0}&Signature={0}&Key-Pair-Id=K",
    "https://oss.test/a/1.png?OSSAccessKeyId=k&Expires={0}&Signature={0}",
    "https://cdn.test/attachments/1.png?ex={0}&is={0}&hm={0}",
]


@pytest.mark.parametrize("url", SIGNED)
def test_a_url_that_is_signed_anew_is_the_same_image(url: str) -> None:
    one = chat(image(url.format("abc")))
    assert is_one_prompt(one, chat(image(url.format("def"))))
    assert not is_one_prompt(one, chat(image(url.format("abc").replace("1.png", "2.png"))))


@pytest.mark.parametrize(
    "url", ["https://a/1.png", "https://a/i?id=5&v=2", "https://a/?", "AAAA?sig=1", "https://a/i?" + "sig=1&" * 9_000]
)
def test_other_urls_count_as_they_are(url: str) -> None:
    assert unsigned(url) == url


def test_of_a_query_any_member_may_sign_and_all_that_change_are_left_out() -> None:
    assert unsigned("https://a/i?SE=1&id=5&Sig=x=y&sign=2") == "https://a/i?id=5&sign=2"
    assert unsigned("https://a/i?sig") == "https://a/i?"
    assert unsigned("https://a/i?x-security-token=1&token=2&signature&v=Signature") == "https://a/i?v=Signature"
    many = "https://a/i?sig=1" + "&id=5" * 31
    assert unsigned(many) == "https://a/i?" + "&id=5"[1:] + "&id=5" * 30
    assert unsigned(many + "&id=5") == many + "&id=5"


def test_the_images_of_a_request_whose_signature_is_left_out_are_bounded() -> None:
    signed = [image(f"https://a/{k}?sig=1") for k in range(MAX_SIGNED_MEDIA + 1)]
    one = chat(*signed)
    for k, same in ((MAX_SIGNED_MEDIA - 1, True), (MAX_SIGNED_MEDIA, False)):
        anew = [*signed]
        anew[k] = image(f"https://a/{k}?sig=2")
        assert (chat(*anew).parts == one.parts) == same


def test_members_of_a_query_that_choose_the_image_count() -> None:
    assert unsigned("https://a/i?id=5&sig=x&se=1&v=2") == "https://a/i?id=5&v=2"
    assert unsigned("https://a/i?is=5&v=2") == "https://a/i?is=5&v=2"


def test_base64_counts_and_not_how_it_is_wrapped() -> None:
    data = "iVBORw0KGgo" * 500
    one = chat(image(f"data:image/png;base64,{data}"))
    for other in (
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": data}},
        {"type": "input_image", "image_url": f"data:image/webp;base64,{data}"},
        image(f"data:image/png;base64,{data}", cache_control={"type": "ephemeral"}),
    ):
        assert is_one_prompt(one, chat(other))
    assert not is_one_prompt(one, chat(image(f"data:image/png;base64,{data}A")))


def test_how_media_are_processed_counts_where_they_are() -> None:
    picture = image("https://a/1.png")
    plain, scaled = chat(picture), chat(picture, mm_processor_kwargs={"max_pixels": 1_000})
    assert not is_one_prompt(plain, scaled)
    assert not is_one_prompt(plain, chat(image("https://a/1.png", max_pixels=1_000)))
    assert chat(mm_processor_kwargs={"max_pixels": 1_000}) == chat()
