"""Vectors of eight floats for loops that numba compiles.

By default, LLVM computes short products of vectors number by number, because it must assume that the arrays written
and read overlap. With these functions a loop names what happens in one instruction: ``fma(load(a, i), load(b, j),
total)``. LLVM translates them for any processor.

All arrays are contiguous float32 arrays with one axis. Nothing checks whether an index is inside the array.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import extending
from numba.core import types
from numba.extending import models, register_model

intrinsic: Any = extending.intrinsic
LANES = 8
FLOATS, INTS = ir.VectorType(ir.FloatType(), LANES), ir.VectorType(ir.IntType(32), LANES)


class Floats(types.Type):
    """The type of a vector, for numba."""

    def __init__(self) -> None:
        super().__init__(name="Floats")


FLOATS_TYPE = Floats()


@register_model(Floats)
class _Model(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, FLOATS)


def _pointer(context: Any, builder: Any, kind: Any, array: Any, index: Any) -> Any:
    data = context.make_array(kind)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), FLOATS.as_pointer())


def _called(builder: Any, name: str, result: Any, arguments: list[Any]) -> Any:
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    return builder.call(builder.module.declare_intrinsic(name, (), kind), arguments)


def _spread(builder: Any, number: Any) -> Any:
    one = builder.insert_element(ir.Constant(FLOATS, ir.Undefined), number, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(one, ir.Constant(FLOATS, ir.Undefined), ir.Constant(INTS, [0] * LANES))


@intrinsic
def load(typing: Any, array: Any, index: Any) -> Any:
    """The eight numbers from ``index`` on."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.load(_pointer(context, builder, signature.args[0], *arguments), align=4)

    return FLOATS_TYPE(array, types.intp), code


@intrinsic
def store(typing: Any, array: Any, index: Any, vector: Any) -> Any:
    """Write eight numbers from ``index`` on."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.store(arguments[2], _pointer(context, builder, signature.args[0], *arguments[:2]), align=4)
        return context.get_dummy_value()

    return types.void(array, types.intp, vector), code


@intrinsic
def prefetch(typing: Any, array: Any, index: Any) -> Any:
    """Ask for the cache line with the number at ``index``, which is read soon."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        byte = builder.bitcast(builder.gep(data, [arguments[1]]), ir.IntType(8).as_pointer())
        read, soon, is_data = (ir.Constant(ir.IntType(32), value) for value in (0, 3, 1))
        kind = ir.FunctionType(ir.VoidType(), [byte.type, *[ir.IntType(32)] * 3])
        builder.call(builder.module.declare_intrinsic("llvm.prefetch", (byte.type,), kind), [byte, read, soon, is_data])
        return context.get_dummy_value()

    return types.void(array, types.intp), code


@intrinsic
def spread(typing: Any, number: Any) -> Any:
    """Eight times the same number."""
    return FLOATS_TYPE(types.float32), lambda context, builder, signature, arguments: _spread(builder, *arguments)


@intrinsic
def repeat(typing: Any, array: Any, index: Any) -> Any:
    """Eight times the number at ``index``."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        return _spread(builder, builder.load(builder.gep(data, [arguments[1]])))

    return FLOATS_TYPE(array, types.intp), code


@intrinsic
def fma(typing: Any, a: Any, b: Any, c: Any) -> Any:
    """A · b + c."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _called(builder, f"llvm.fma.v{LANES}f32", FLOATS, list(arguments))

    return FLOATS_TYPE(FLOATS_TYPE, FLOATS_TYPE, FLOATS_TYPE), code


@intrinsic
def largest(typing: Any, a: Any, b: Any) -> Any:
    """The larger one in each lane."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.select(builder.fcmp_ordered(">", *arguments), *arguments)

    return FLOATS_TYPE(FLOATS_TYPE, FLOATS_TYPE), code


@intrinsic
def total(typing: Any, vector: Any) -> Any:
    """The sum of the lanes."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        lanes = [builder.extract_element(arguments[0], ir.Constant(ir.IntType(32), i)) for i in range(LANES)]
        while len(lanes) > 1:
            half = len(lanes) // 2
            lanes = [builder.fadd(a, b) for a, b in zip(lanes[:half], lanes[half:], strict=True)]
        return lanes[0]

    return types.float32(FLOATS_TYPE), code


@intrinsic
def exponential(typing: Any, vector: Any) -> Any:
    """Exp of numbers that are not above 88, within 2 units in the last place (Cephes' expf); e^-87 below -87."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        def constant(value: float) -> Any:
            return ir.Constant(FLOATS, [value] * LANES)

        def fused(*three: Any) -> Any:
            return _called(builder, f"llvm.fma.v{LANES}f32", FLOATS, list(three))

        x = builder.select(builder.fcmp_ordered(">", arguments[0], constant(-87.0)), arguments[0], constant(-87.0))
        # x = n ln 2 + r; ln 2 in two parts, so that n times the first one is exact
        n = _called(builder, f"llvm.rint.v{LANES}f32", FLOATS, [builder.fmul(x, constant(1.44269504088896341))])
        r = fused(n, constant(2.12194440e-4), fused(n, constant(-0.693359375), x))
        p = constant(1.9875691500e-4)
        for factor in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1):
            p = fused(p, r, constant(factor))
        p = fused(p, builder.fmul(r, r), builder.fadd(r, constant(1.0)))
        whole = builder.add(builder.fptosi(n, INTS), ir.Constant(INTS, [127] * LANES))
        power = builder.bitcast(builder.shl(whole, ir.Constant(INTS, [23] * LANES)), FLOATS)
        return builder.fmul(p, power)

    return FLOATS_TYPE(FLOATS_TYPE), code
