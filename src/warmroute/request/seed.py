"""The seed of a prompt: what changes it from its first token on. Prompts with different seeds share no prefix."""

from __future__ import annotations

from typing import Any

from warmroute.request.canonical_json import encode
from warmroute.request.prompt import END, NOTHING, encoded_field

SEED_FIELDS = frozenset(
    {
        # part of the engine's block hashes: the tenant's salt, the adapter
        "cache_salt",
        "extra_key",
        "lora_path",
        # rendered by the chat template before the first message
        "chat_template",
        "chat_template_kwargs",
        "add_special_tokens",
        "reasoning_effort",
        "reasoning",
        "thinking",
        "output_config",
        # where the prompt is cut
        "truncate_prompt_tokens",
        "truncation_side",
        # a history that is stored in the engine
        "previous_response_id",
        "conversation",
        "session_params",
    }
)
"""Fields of a request that may change its prompt from the first token on.

``tool_choice`` and grammars (``response_format``, ``structured_outputs``) affect the decoding, ``add_generation_prompt`` and
``continue_final_message`` the end of the prompt. Agents change them from turn to turn, and the cached prefix stays valid.
"""
_RENDERED_MEMBERS = {
    "thinking": ("type",),  # not its budget
    "reasoning": ("effort", "enabled"),  # not what is shown of it
    "output_config": ("effort",),  # not its format, which is a grammar
}
"""Of these seed fields, the members that a template can render."""


def seed(family: bytes, model: str, document: dict[str, Any]) -> bytes:
    """What two prompts must have in common to share a prefix: ``family`` (how they are rendered, and with which tools),
    SEED_FIELDS, model."""
    if not SEED_FIELDS.isdisjoint(document):
        for name in sorted(SEED_FIELDS.intersection(document)):
            value = _rendered(name, document[name])
            if value not in NOTHING:
                family += encoded_field(name, value)
    return family + END + encode(model)


def _rendered(name: str, value: object) -> object:
    """The part of a seed field that a template can render."""
    members = _RENDERED_MEMBERS.get(name)
    if members is None or type(value) is not dict:
        return value
    return {member: value[member] for member in members if value.get(member) not in NOTHING}
