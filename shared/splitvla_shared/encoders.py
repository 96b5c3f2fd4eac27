"""The encoders that an edge bundle may hold: the exact one always, smaller ones where `split` was asked for them."""

from __future__ import annotations

from splitvla_shared.errors import ConfigError

FP32, FP16, INT8 = "fp32", "fp16", "int8"

# fp16 stores weights as float16 and computes in float32; int8 multiplies 8-bit integers and is several times faster.
ENCODER_FILES: dict[str, str] = {FP32: "encoder.onnx", FP16: "encoder.fp16.onnx", INT8: "encoder.int8.onnx"}


def parse_encoders(text: str) -> tuple[str, ...]:
    """Names separated by commas, as `--encoder` takes them. fp32 is always among them. Raises ConfigError."""
    names = [name.strip().lower() for name in text.split(",")]
    for name in names:
        if name not in ENCODER_FILES:
            raise ConfigError(f"encoder {name!r} is unknown; any of {', '.join(ENCODER_FILES)}, separated by commas")
    return tuple(name for name in ENCODER_FILES if name == FP32 or name in names)


# An ONNX Runtime session setting for all of them: x86 processors without VNNI sum pairs of 8-bit products in 16 bits,
# which saturate. With it such a processor, and only such a one, takes a slower kernel that does not.
EXACT_INT8_SUMS = ("session.x64quantprecision", "1")
