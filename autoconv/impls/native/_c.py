"""The C vocabulary that every generated kernel starts from.

A kernel family keeps its loops in a `.c` template and its constants in a header of `#define`s made from the spec and
the config. Between the two stands the text made here: the vector type of the wanted width, loads and stores, the
square transpose, and the OpenMP pragmas, which vanish when the kernel is built for one thread.

Vectors are GCC's (and Clang's) vector extensions, so that one text serves AVX-512, AVX2, SSE and NEON.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

__all__ = ["ITEM_BYTES", "defines", "lanes", "literal", "prelude", "registers", "template", "transpose"]

ITEM_BYTES = {"f32": 4, "f64": 8}
_C_TYPE = {"f32": "float", "f64": "double"}
_INT_TYPE = {"f32": "int", "f64": "long long"}


def lanes(dtype: str, vector_bytes: int) -> int:
    """How many elements of `dtype` fit in a vector."""
    return vector_bytes // ITEM_BYTES[dtype]


def registers(vector_bytes: int, machine: str = "x86_64") -> int:
    """Vector registers the compiler may use: AVX-512 and NEON have 32, AVX2 and SSE 16."""
    return 32 if vector_bytes == 64 or machine in ("aarch64", "arm64") else 16


def literal(value: float, dtype: str) -> str:
    """A C constant that reads back as exactly `value` rounded to `dtype`."""
    return f"{value!r}f" if dtype == "f32" else repr(value)


def defines(constants: Mapping[str, int]) -> str:
    """One `#define` a line; negative numbers in brackets, so that `a - X` stays what it looks like."""
    return "".join(f"#define {name} {value if value >= 0 else f'({value})'}\n" for name, value in constants.items())


def template(name: str) -> str:
    """The text of a C template that lies beside the Python of its family."""
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def prelude(dtype: str, vector_bytes: int, threads: int) -> str:
    """Types, loads, stores and pragmas: what stands above every template."""
    width = lanes(dtype, vector_bytes)
    return f"""\
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#define THREADS {threads}
int autoconv_threads = THREADS; /* for num_threads; 1 in a forked child, where OpenMP's pool is gone */
#define VW {width}
#define VECTOR_BYTES {vector_bytes}
typedef {_C_TYPE[dtype]} T;
typedef T vec __attribute__((vector_size({vector_bytes})));
typedef {_INT_TYPE[dtype]} ivec __attribute__((vector_size({vector_bytes})));
typedef T unaligned_vec __attribute__((vector_size({vector_bytes}), aligned({ITEM_BYTES[dtype]}), may_alias));
{_PRELUDE}
{transpose(width)}"""


_PRELUDE = """\
#define INLINE static inline __attribute__((always_inline))
#define MIN(a, b) ((a) < (b) ? (a) : (b))
#define MAX(a, b) ((a) > (b) ? (a) : (b))
#define CEIL_DIV(a, b) (((a) + (b) - 1) / (b))
#define ROUND_UP(a, b) (CEIL_DIV(a, b) * (b))
#if THREADS > 1
#include <omp.h>
#define PRAGMA(text) _Pragma(#text)
#define OMP(text) PRAGMA(omp text)
#define thread_number() omp_get_thread_num()
#else
#define OMP(text)
#define thread_number() 0
#endif
INLINE vec load(const T *p) { return *(const unaligned_vec *)p; }
INLINE void store(T *p, vec v) { *(unaligned_vec *)p = v; }
INLINE vec splat(T s) { return s - (vec){0}; }
/* The first n lanes; the others read as zero, nothing beyond them is touched. A constant n compiles to plain moves. */
INLINE vec load_first(const T *p, int n) {
    vec v = {0};
    if (n >= VW) return load(p);
    __builtin_memcpy(&v, p, (size_t)n * sizeof(T));
    return v;
}
INLINE void store_first(T *p, vec v, int n) {
    if (n >= VW) store(p, v);
    else __builtin_memcpy(p, &v, (size_t)n * sizeof(T));
}
"""


def transpose(width: int) -> str:
    """`transpose(vec r[VW])`: a square of vectors in log2(VW) rounds, each swapping off-diagonal blocks of half size.

    (J. O. Eklundh, "A Fast Computer Method for Matrix Transposing", 1972.)
    """
    rounds = []
    step = width // 2
    while step:
        low = ", ".join(str(j if not j & step else width + j - step) for j in range(width))
        high = ", ".join(str(j + step if not j & step else width + j) for j in range(width))
        rounds.append(f"""\
    _Pragma("GCC unroll 16")
    for (int i = 0; i < VW; i++)
        if (!(i & {step})) {{
            const vec a = r[i], b = r[i + {step}];
            r[i] = __builtin_shuffle(a, b, (ivec){{{low}}});
            r[i + {step}] = __builtin_shuffle(a, b, (ivec){{{high}}});
        }}
""")
        step //= 2
    return "INLINE void transpose(vec *r) {\n" + "".join(rounds) + "}\n"
