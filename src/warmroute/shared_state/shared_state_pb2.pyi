from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Batch(_message.Message):
    __slots__ = ("endpoints", "adapters", "events", "reports", "decisions", "served", "bytes_per_token", "leaving", "log_time")
    ENDPOINTS_FIELD_NUMBER: _ClassVar[int]
    ADAPTERS_FIELD_NUMBER: _ClassVar[int]
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    REPORTS_FIELD_NUMBER: _ClassVar[int]
    DECISIONS_FIELD_NUMBER: _ClassVar[int]
    SERVED_FIELD_NUMBER: _ClassVar[int]
    BYTES_PER_TOKEN_FIELD_NUMBER: _ClassVar[int]
    LEAVING_FIELD_NUMBER: _ClassVar[int]
    LOG_TIME_FIELD_NUMBER: _ClassVar[int]
    endpoints: _containers.RepeatedCompositeFieldContainer[Endpoint]
    adapters: _containers.RepeatedScalarFieldContainer[str]
    events: _containers.RepeatedCompositeFieldContainer[Event]
    reports: _containers.RepeatedCompositeFieldContainer[Report]
    decisions: Decisions
    served: _containers.RepeatedCompositeFieldContainer[Served]
    bytes_per_token: float
    leaving: bool
    log_time: float
    def __init__(self, endpoints: _Optional[_Iterable[_Union[Endpoint, _Mapping]]] = ..., adapters: _Optional[_Iterable[str]] = ..., events: _Optional[_Iterable[_Union[Event, _Mapping]]] = ..., reports: _Optional[_Iterable[_Union[Report, _Mapping]]] = ..., decisions: _Optional[_Union[Decisions, _Mapping]] = ..., served: _Optional[_Iterable[_Union[Served, _Mapping]]] = ..., bytes_per_token: _Optional[float] = ..., leaving: _Optional[bool] = ..., log_time: _Optional[float] = ...) -> None: ...

class Endpoint(_message.Message):
    __slots__ = ("id", "incarnation")
    ID_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    id: str
    incarnation: int
    def __init__(self, id: _Optional[str] = ..., incarnation: _Optional[int] = ...) -> None: ...

class Decisions(_message.Message):
    __slots__ = ("endpoint", "age", "decisions", "work", "tokens", "cached_tokens", "prompt_bytes", "prompts", "flags", "adapter", "further", "checkpoints", "held_bytes", "new_bytes", "hashes")
    ENDPOINT_FIELD_NUMBER: _ClassVar[int]
    AGE_FIELD_NUMBER: _ClassVar[int]
    DECISIONS_FIELD_NUMBER: _ClassVar[int]
    WORK_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_BYTES_FIELD_NUMBER: _ClassVar[int]
    PROMPTS_FIELD_NUMBER: _ClassVar[int]
    FLAGS_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    FURTHER_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINTS_FIELD_NUMBER: _ClassVar[int]
    HELD_BYTES_FIELD_NUMBER: _ClassVar[int]
    NEW_BYTES_FIELD_NUMBER: _ClassVar[int]
    HASHES_FIELD_NUMBER: _ClassVar[int]
    endpoint: _containers.RepeatedScalarFieldContainer[int]
    age: _containers.RepeatedScalarFieldContainer[int]
    decisions: _containers.RepeatedScalarFieldContainer[int]
    work: _containers.RepeatedScalarFieldContainer[int]
    tokens: _containers.RepeatedScalarFieldContainer[int]
    cached_tokens: _containers.RepeatedScalarFieldContainer[int]
    prompt_bytes: _containers.RepeatedScalarFieldContainer[int]
    prompts: _containers.RepeatedScalarFieldContainer[int]
    flags: _containers.RepeatedScalarFieldContainer[int]
    adapter: _containers.RepeatedScalarFieldContainer[int]
    further: _containers.RepeatedScalarFieldContainer[int]
    checkpoints: _containers.RepeatedScalarFieldContainer[int]
    held_bytes: _containers.RepeatedScalarFieldContainer[int]
    new_bytes: _containers.RepeatedScalarFieldContainer[int]
    hashes: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, endpoint: _Optional[_Iterable[int]] = ..., age: _Optional[_Iterable[int]] = ..., decisions: _Optional[_Iterable[int]] = ..., work: _Optional[_Iterable[int]] = ..., tokens: _Optional[_Iterable[int]] = ..., cached_tokens: _Optional[_Iterable[int]] = ..., prompt_bytes: _Optional[_Iterable[int]] = ..., prompts: _Optional[_Iterable[int]] = ..., flags: _Optional[_Iterable[int]] = ..., adapter: _Optional[_Iterable[int]] = ..., further: _Optional[_Iterable[int]] = ..., checkpoints: _Optional[_Iterable[int]] = ..., held_bytes: _Optional[_Iterable[int]] = ..., new_bytes: _Optional[_Iterable[int]] = ..., hashes: _Optional[_Iterable[int]] = ...) -> None: ...

class Event(_message.Message):
    __slots__ = ("endpoint", "kind", "age")
    class Kind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        UNKNOWN: _ClassVar[Event.Kind]
        RESTARTED: _ClassVar[Event.Kind]
        UNREACHABLE: _ClassVar[Event.Kind]
        REACHABLE: _ClassVar[Event.Kind]
        EJECTED: _ClassVar[Event.Kind]
        CACHE_EMPTIED: _ClassVar[Event.Kind]
    UNKNOWN: Event.Kind
    RESTARTED: Event.Kind
    UNREACHABLE: Event.Kind
    REACHABLE: Event.Kind
    EJECTED: Event.Kind
    CACHE_EMPTIED: Event.Kind
    ENDPOINT_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    AGE_FIELD_NUMBER: _ClassVar[int]
    endpoint: int
    kind: Event.Kind
    age: int
    def __init__(self, endpoint: _Optional[int] = ..., kind: _Optional[_Union[Event.Kind, str]] = ..., age: _Optional[int] = ...) -> None: ...

class Served(_message.Message):
    __slots__ = ("endpoint", "listed", "names", "adapters", "aliases")
    class AliasesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    ENDPOINT_FIELD_NUMBER: _ClassVar[int]
    LISTED_FIELD_NUMBER: _ClassVar[int]
    NAMES_FIELD_NUMBER: _ClassVar[int]
    ADAPTERS_FIELD_NUMBER: _ClassVar[int]
    ALIASES_FIELD_NUMBER: _ClassVar[int]
    endpoint: int
    listed: bool
    names: _containers.RepeatedScalarFieldContainer[str]
    adapters: _containers.RepeatedScalarFieldContainer[str]
    aliases: _containers.ScalarMap[str, str]
    def __init__(self, endpoint: _Optional[int] = ..., listed: _Optional[bool] = ..., names: _Optional[_Iterable[str]] = ..., adapters: _Optional[_Iterable[str]] = ..., aliases: _Optional[_Mapping[str, str]] = ...) -> None: ...

class Report(_message.Message):
    __slots__ = ("endpoint", "age", "loaded_adapters", "max_adapters", "running", "waiting", "kv_usage", "sleeping", "capacity_tokens", "max_num_seqs", "max_model_len", "block_size", "prefix_caching", "tier_tokens", "awaiting_first_token", "prefill_rate", "decode_rate", "first_tokens_total", "prompt_tokens_total", "prompt_requests_total", "computed_tokens_total", "prefix_queries_total", "prefix_hits_total", "tier_queries_total", "tier_hits_total", "responses_total", "rejected_responses_total", "failed_responses_total", "first_token_seconds_total")
    ENDPOINT_FIELD_NUMBER: _ClassVar[int]
    AGE_FIELD_NUMBER: _ClassVar[int]
    LOADED_ADAPTERS_FIELD_NUMBER: _ClassVar[int]
    MAX_ADAPTERS_FIELD_NUMBER: _ClassVar[int]
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    KV_USAGE_FIELD_NUMBER: _ClassVar[int]
    SLEEPING_FIELD_NUMBER: _ClassVar[int]
    CAPACITY_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MAX_NUM_SEQS_FIELD_NUMBER: _ClassVar[int]
    MAX_MODEL_LEN_FIELD_NUMBER: _ClassVar[int]
    BLOCK_SIZE_FIELD_NUMBER: _ClassVar[int]
    PREFIX_CACHING_FIELD_NUMBER: _ClassVar[int]
    TIER_TOKENS_FIELD_NUMBER: _ClassVar[int]
    AWAITING_FIRST_TOKEN_FIELD_NUMBER: _ClassVar[int]
    PREFILL_RATE_FIELD_NUMBER: _ClassVar[int]
    DECODE_RATE_FIELD_NUMBER: _ClassVar[int]
    FIRST_TOKENS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    PROMPT_REQUESTS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    COMPUTED_TOKENS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    PREFIX_QUERIES_TOTAL_FIELD_NUMBER: _ClassVar[int]
    PREFIX_HITS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    TIER_QUERIES_TOTAL_FIELD_NUMBER: _ClassVar[int]
    TIER_HITS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    RESPONSES_TOTAL_FIELD_NUMBER: _ClassVar[int]
    REJECTED_RESPONSES_TOTAL_FIELD_NUMBER: _ClassVar[int]
    FAILED_RESPONSES_TOTAL_FIELD_NUMBER: _ClassVar[int]
    FIRST_TOKEN_SECONDS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    endpoint: int
    age: int
    loaded_adapters: _containers.RepeatedScalarFieldContainer[int]
    max_adapters: int
    running: int
    waiting: int
    kv_usage: float
    sleeping: bool
    capacity_tokens: int
    max_num_seqs: int
    max_model_len: int
    block_size: int
    prefix_caching: bool
    tier_tokens: int
    awaiting_first_token: int
    prefill_rate: float
    decode_rate: float
    first_tokens_total: float
    prompt_tokens_total: float
    prompt_requests_total: float
    computed_tokens_total: float
    prefix_queries_total: float
    prefix_hits_total: float
    tier_queries_total: float
    tier_hits_total: float
    responses_total: float
    rejected_responses_total: float
    failed_responses_total: float
    first_token_seconds_total: float
    def __init__(self, endpoint: _Optional[int] = ..., age: _Optional[int] = ..., loaded_adapters: _Optional[_Iterable[int]] = ..., max_adapters: _Optional[int] = ..., running: _Optional[int] = ..., waiting: _Optional[int] = ..., kv_usage: _Optional[float] = ..., sleeping: _Optional[bool] = ..., capacity_tokens: _Optional[int] = ..., max_num_seqs: _Optional[int] = ..., max_model_len: _Optional[int] = ..., block_size: _Optional[int] = ..., prefix_caching: _Optional[bool] = ..., tier_tokens: _Optional[int] = ..., awaiting_first_token: _Optional[int] = ..., prefill_rate: _Optional[float] = ..., decode_rate: _Optional[float] = ..., first_tokens_total: _Optional[float] = ..., prompt_tokens_total: _Optional[float] = ..., prompt_requests_total: _Optional[float] = ..., computed_tokens_total: _Optional[float] = ..., prefix_queries_total: _Optional[float] = ..., prefix_hits_total: _Optional[float] = ..., tier_queries_total: _Optional[float] = ..., tier_hits_total: _Optional[float] = ..., responses_total: _Optional[float] = ..., rejected_responses_total: _Optional[float] = ..., failed_responses_total: _Optional[float] = ..., first_token_seconds_total: _Optional[float] = ...) -> None: ...
