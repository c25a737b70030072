"""`THEANO_FLAGS`, as far as they steer convolution, as settings of a block.

| flag | setting |
| --- | --- |
| `optimizer_including=conv_meta` | races decide (`on_miss="tune"`); without it the order of old: FFT, cuDNN, GEMM, legacy |
| `optimizer_including=conv_fft`, `conv_fft_valid`, `conv_fft_full`, `conv3d_fft`, `convgrad3d_fft`, `convtransp3d_fft` | FFT takes part, and precedes the others |
| `optimizer_including=conv_gemm`, `conv3d_gemm`, `convgrad3d_gemm`, `convtransp3d_gemm` | GEMM takes part (it does by default) |
| `optimizer_including=cudnn` or `conv_dnn` | raises where cuDNN cannot be used, and says why |
| `optimizer_excluding=` the same words | leaves them out |
| `metaopt.verbose=N` | `verbose=N` |
"""  # noqa: E501  a table

from __future__ import annotations

from autoconv import options
from autoconv.errors import BackendMissing, InvalidOption
from autoconv.registry import default_registry

__all__ = ["theano_flags"]

META = "conv_meta"
WORDS = {
    **dict.fromkeys(
        ("conv_fft", "conv_fft_valid", "conv_fft_full", "conv3d_fft", "convgrad3d_fft", "convtransp3d_fft"), "fft"
    ),
    **dict.fromkeys(("conv_gemm", "conv3d_gemm", "convgrad3d_gemm", "convtransp3d_gemm"), "gemm"),
    **dict.fromkeys(("cudnn", "conv_dnn"), "cudnn"),
}
PRECEDENCE = ("fft", "cudnn", "gemm", "legacy")  # Theano's, of October 2014


def theano_flags(flags: str) -> options.settings:
    """Settings that stand for `flags`, to be used in a `with` block or as a decorator.

    `flags` is what `THEANO_FLAGS` would hold: `name=value` pairs between commas, several words of a value between
    colons. FFT takes part only when it is included, as in Theano. Raises `InvalidOption` for a flag or a word that has
    nothing to do with convolution, `BackendMissing` when `cudnn` is included and cannot be used.

    >>> from autoconv.compat.theano import theano_flags
    >>> with theano_flags("optimizer_including=conv_meta:conv_fft,metaopt.verbose=0") as settings:
    ...     settings.on_miss, settings.exclude
    ('tune', ())
    """
    including: set[str] = set()
    excluding: set[str] = set()
    verbose: int | None = None
    for flag in filter(None, (part.strip() for part in flags.split(","))):
        name, equals, value = flag.partition("=")
        if not equals:
            raise InvalidOption(f"a flag is name=value, got {flag!r}")
        if name == "optimizer_including":
            including |= _words(name, value)
        elif name == "optimizer_excluding":
            excluding |= _words(name, value)
        elif name == "metaopt.verbose":
            verbose = _level(value)
        else:
            raise InvalidOption(
                f"no flag of convolution is called {name!r}: optimizer_including, optimizer_excluding, metaopt.verbose"
            )
    if "cudnn" in including:
        _need_cudnn()
    if "fft" not in including:
        excluding.add("fft")
    tagged = {word for one in default_registry() for word in (one.name.partition(".")[0], *one.tags, *one.config_tags)}
    changes: dict[str, object] = {
        "on_miss": "tune" if META in including and META not in excluding else "heuristic",
        "prefer": tuple(word for word in PRECEDENCE if word in tagged and word not in excluding),
        "exclude": tuple(sorted(word for word in excluding - {META} if word in tagged)),
    }
    if verbose is not None:
        changes["verbose"] = verbose
    return options.settings(**changes)


def _words(name: str, value: str) -> set[str]:
    found = set()
    for word in filter(None, value.split(":")):
        if word not in (META, *WORDS):
            raise InvalidOption(f"{name} knows {', '.join((META, *WORDS))}, got {word!r}")
        found.add(WORDS.get(word, word))
    return found


def _level(value: str) -> int:
    try:
        return int(value)
    except ValueError:
        raise InvalidOption(f"metaopt.verbose must be an integer, got {value!r}") from None


def _need_cudnn() -> None:
    engines = [one for one in default_registry() if one.name.partition(".")[0] == "cudnn"]
    reasons = [one.unavailable() for one in engines]
    if not engines or None not in reasons:
        why = "; ".join(reason for reason in reasons if reason) or "this version of autoconv has no engine for it"
        raise BackendMissing(f"optimizer_including=cudnn, but cuDNN cannot be used: {why}")
