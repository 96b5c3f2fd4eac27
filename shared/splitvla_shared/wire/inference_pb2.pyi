from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Scheme(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SCHEME_UNSPECIFIED: _ClassVar[Scheme]
    F32: _ClassVar[Scheme]
    F16: _ClassVar[Scheme]
    BF16: _ClassVar[Scheme]
    INT8: _ClassVar[Scheme]
    INT4: _ClassVar[Scheme]
    F32_ZSTD: _ClassVar[Scheme]
    F16_ZSTD: _ClassVar[Scheme]
    BF16_ZSTD: _ClassVar[Scheme]
    INT8_ZSTD: _ClassVar[Scheme]
    INT4_ZSTD: _ClassVar[Scheme]
    KLT: _ClassVar[Scheme]
    KLT_DELTA: _ClassVar[Scheme]

class Resize(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    RESIZE_UNSPECIFIED: _ClassVar[Resize]
    NAIVE: _ClassVar[Resize]
    LETTERBOX: _ClassVar[Resize]
SCHEME_UNSPECIFIED: Scheme
F32: Scheme
F16: Scheme
BF16: Scheme
INT8: Scheme
INT4: Scheme
F32_ZSTD: Scheme
F16_ZSTD: Scheme
BF16_ZSTD: Scheme
INT8_ZSTD: Scheme
INT4_ZSTD: Scheme
KLT: Scheme
KLT_DELTA: Scheme
RESIZE_UNSPECIFIED: Resize
NAIVE: Resize
LETTERBOX: Resize

class ModelSpec(_message.Message):
    __slots__ = ("name", "fingerprint", "vision_sha256", "language_sha256", "tokenizer_sha256", "statistics_sha256", "patches", "embed_dim", "image_size", "resize", "action_vocab_size", "action_bins", "max_action_dims", "chunk_length", "prompt_template", "suffix_token_id", "max_cameras", "codec_sha256")
    NAME_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    VISION_SHA256_FIELD_NUMBER: _ClassVar[int]
    LANGUAGE_SHA256_FIELD_NUMBER: _ClassVar[int]
    TOKENIZER_SHA256_FIELD_NUMBER: _ClassVar[int]
    STATISTICS_SHA256_FIELD_NUMBER: _ClassVar[int]
    PATCHES_FIELD_NUMBER: _ClassVar[int]
    EMBED_DIM_FIELD_NUMBER: _ClassVar[int]
    IMAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    RESIZE_FIELD_NUMBER: _ClassVar[int]
    ACTION_VOCAB_SIZE_FIELD_NUMBER: _ClassVar[int]
    ACTION_BINS_FIELD_NUMBER: _ClassVar[int]
    MAX_ACTION_DIMS_FIELD_NUMBER: _ClassVar[int]
    CHUNK_LENGTH_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TEMPLATE_FIELD_NUMBER: _ClassVar[int]
    SUFFIX_TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    MAX_CAMERAS_FIELD_NUMBER: _ClassVar[int]
    CODEC_SHA256_FIELD_NUMBER: _ClassVar[int]
    name: str
    fingerprint: str
    vision_sha256: str
    language_sha256: str
    tokenizer_sha256: str
    statistics_sha256: str
    patches: int
    embed_dim: int
    image_size: int
    resize: Resize
    action_vocab_size: int
    action_bins: int
    max_action_dims: int
    chunk_length: int
    prompt_template: str
    suffix_token_id: int
    max_cameras: int
    codec_sha256: str
    def __init__(self, name: _Optional[str] = ..., fingerprint: _Optional[str] = ..., vision_sha256: _Optional[str] = ..., language_sha256: _Optional[str] = ..., tokenizer_sha256: _Optional[str] = ..., statistics_sha256: _Optional[str] = ..., patches: _Optional[int] = ..., embed_dim: _Optional[int] = ..., image_size: _Optional[int] = ..., resize: _Optional[_Union[Resize, str]] = ..., action_vocab_size: _Optional[int] = ..., action_bins: _Optional[int] = ..., max_action_dims: _Optional[int] = ..., chunk_length: _Optional[int] = ..., prompt_template: _Optional[str] = ..., suffix_token_id: _Optional[int] = ..., max_cameras: _Optional[int] = ..., codec_sha256: _Optional[str] = ...) -> None: ...

class DescribeRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DescribeReply(_message.Message):
    __slots__ = ("spec", "schemes", "precision", "server_version", "max_instruction_chars", "draining", "load")
    SPEC_FIELD_NUMBER: _ClassVar[int]
    SCHEMES_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    SERVER_VERSION_FIELD_NUMBER: _ClassVar[int]
    MAX_INSTRUCTION_CHARS_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    spec: ModelSpec
    schemes: _containers.RepeatedScalarFieldContainer[Scheme]
    precision: str
    server_version: str
    max_instruction_chars: int
    draining: bool
    load: ServerLoad
    def __init__(self, spec: _Optional[_Union[ModelSpec, _Mapping]] = ..., schemes: _Optional[_Iterable[_Union[Scheme, str]]] = ..., precision: _Optional[str] = ..., server_version: _Optional[str] = ..., max_instruction_chars: _Optional[int] = ..., draining: bool = ..., load: _Optional[_Union[ServerLoad, _Mapping]] = ...) -> None: ...

class EncodedTensor(_message.Message):
    __slots__ = ("scheme", "data")
    SCHEME_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    scheme: Scheme
    data: bytes
    def __init__(self, scheme: _Optional[_Union[Scheme, str]] = ..., data: _Optional[bytes] = ...) -> None: ...

class CameraEmbedding(_message.Message):
    __slots__ = ("camera", "tensor", "reference_sequence")
    CAMERA_FIELD_NUMBER: _ClassVar[int]
    TENSOR_FIELD_NUMBER: _ClassVar[int]
    REFERENCE_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    camera: str
    tensor: EncodedTensor
    reference_sequence: int
    def __init__(self, camera: _Optional[str] = ..., tensor: _Optional[_Union[EncodedTensor, _Mapping]] = ..., reference_sequence: _Optional[int] = ...) -> None: ...

class InferRequest(_message.Message):
    __slots__ = ("fingerprint", "session", "sequence", "robot", "instruction", "cameras", "state", "action_dims", "draft_tokens")
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    ROBOT_FIELD_NUMBER: _ClassVar[int]
    INSTRUCTION_FIELD_NUMBER: _ClassVar[int]
    CAMERAS_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    ACTION_DIMS_FIELD_NUMBER: _ClassVar[int]
    DRAFT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    fingerprint: str
    session: int
    sequence: int
    robot: str
    instruction: str
    cameras: _containers.RepeatedCompositeFieldContainer[CameraEmbedding]
    state: _containers.RepeatedScalarFieldContainer[float]
    action_dims: int
    draft_tokens: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, fingerprint: _Optional[str] = ..., session: _Optional[int] = ..., sequence: _Optional[int] = ..., robot: _Optional[str] = ..., instruction: _Optional[str] = ..., cameras: _Optional[_Iterable[_Union[CameraEmbedding, _Mapping]]] = ..., state: _Optional[_Iterable[float]] = ..., action_dims: _Optional[int] = ..., draft_tokens: _Optional[_Iterable[int]] = ...) -> None: ...

class ActionTokens(_message.Message):
    __slots__ = ("ids",)
    IDS_FIELD_NUMBER: _ClassVar[int]
    ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, ids: _Optional[_Iterable[int]] = ...) -> None: ...

class ContinuousChunk(_message.Message):
    __slots__ = ("dims", "values")
    DIMS_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    dims: int
    values: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, dims: _Optional[int] = ..., values: _Optional[_Iterable[float]] = ...) -> None: ...

class StageDurations(_message.Message):
    __slots__ = ("decode_payload_ms", "queue_ms", "prefill_ms", "decode_ms", "total_ms")
    DECODE_PAYLOAD_MS_FIELD_NUMBER: _ClassVar[int]
    QUEUE_MS_FIELD_NUMBER: _ClassVar[int]
    PREFILL_MS_FIELD_NUMBER: _ClassVar[int]
    DECODE_MS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_MS_FIELD_NUMBER: _ClassVar[int]
    decode_payload_ms: float
    queue_ms: float
    prefill_ms: float
    decode_ms: float
    total_ms: float
    def __init__(self, decode_payload_ms: _Optional[float] = ..., queue_ms: _Optional[float] = ..., prefill_ms: _Optional[float] = ..., decode_ms: _Optional[float] = ..., total_ms: _Optional[float] = ...) -> None: ...

class ServerLoad(_message.Message):
    __slots__ = ("queued", "sessions", "busy")
    QUEUED_FIELD_NUMBER: _ClassVar[int]
    SESSIONS_FIELD_NUMBER: _ClassVar[int]
    BUSY_FIELD_NUMBER: _ClassVar[int]
    queued: int
    sessions: int
    busy: float
    def __init__(self, queued: _Optional[int] = ..., sessions: _Optional[int] = ..., busy: _Optional[float] = ...) -> None: ...

class InferReply(_message.Message):
    __slots__ = ("sequence", "tokens", "chunk", "stages", "load", "draining", "key_frame_needed", "accepted_draft_tokens")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    STAGES_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    KEY_FRAME_NEEDED_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_DRAFT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    tokens: ActionTokens
    chunk: ContinuousChunk
    stages: StageDurations
    load: ServerLoad
    draining: bool
    key_frame_needed: bool
    accepted_draft_tokens: int
    def __init__(self, sequence: _Optional[int] = ..., tokens: _Optional[_Union[ActionTokens, _Mapping]] = ..., chunk: _Optional[_Union[ContinuousChunk, _Mapping]] = ..., stages: _Optional[_Union[StageDurations, _Mapping]] = ..., load: _Optional[_Union[ServerLoad, _Mapping]] = ..., draining: bool = ..., key_frame_needed: bool = ..., accepted_draft_tokens: _Optional[int] = ...) -> None: ...
