"""A one-node ONNX model as bytes: what ONNX Runtime wants to be given, without the `onnx` package.

The wire format is protocol buffers' (varints and length-delimited fields); field numbers are those
of onnx.proto, which never change. Attributes of Conv as in its operator specification, opset 11.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

__all__ = ["conv_model"]

IR_VERSION = 7
OPSET = 11
_INTS, _INT = 7, 2  # AttributeProto.type
_ELEMENT = {"f32": 1, "f64": 11}  # TensorProto.DataType


def _varint(number: int) -> bytes:
    out = bytearray()
    while True:
        number, low = number >> 7, number & 0x7F
        out.append(low | (0x80 if number else 0))
        if not number:
            return bytes(out)


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _block(field: int, payload: bytes | str) -> bytes:
    data = payload.encode() if isinstance(payload, str) else payload
    return _varint(field << 3 | 2) + _varint(len(data)) + data


def _attribute(name: str, value: int | Sequence[int]) -> bytes:
    if isinstance(value, int):
        return _block(1, name) + _number(3, value) + _number(20, _INT)
    return _block(1, name) + b"".join(_number(8, entry) for entry in value) + _number(20, _INTS)


def _value_info(name: str, element: int, shape: Sequence[int]) -> bytes:
    dimensions = b"".join(_block(1, _number(1, size)) for size in shape)
    tensor = _number(1, element) + _block(2, dimensions)
    return _block(1, name) + _block(2, _block(1, tensor))


def conv_model(
    dtype: str,
    shapes: Mapping[str, Sequence[int]],
    attributes: Mapping[str, int | Sequence[int]],
    constant_filters: bytes | None = None,
) -> bytes:
    """Serialised `y = Conv(x, w)`; `shapes` has x, w and y. With `constant_filters` w is an initialiser."""
    element = _ELEMENT[dtype]
    node = b"".join(_block(1, name) for name in ("x", "w")) + _block(2, "y") + _block(4, "Conv")
    node += b"".join(_block(5, _attribute(name, value)) for name, value in attributes.items())
    graph = _block(1, node) + _block(2, "convolution")
    if constant_filters is not None:
        sizes = b"".join(_number(1, size) for size in shapes["w"])
        graph += _block(5, sizes + _number(2, element) + _block(8, "w") + _block(9, constant_filters))
    inputs = ("x",) if constant_filters is not None else ("x", "w")
    graph += b"".join(_block(11, _value_info(name, element, shapes[name])) for name in inputs)
    graph += _block(12, _value_info("y", element, shapes["y"]))
    return _number(1, IR_VERSION) + _block(8, _block(1, "") + _number(2, OPSET)) + _block(7, graph)
