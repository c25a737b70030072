/* The register block of the GEMMs whose lanes lie across output channels: MP x NV vectors of sums, to which every step
 * of a run adds MP broadcast scalars times NV vectors. The scalars of one step lie EVEN elements apart (`even`), or
 * anywhere: at[m] from x. With FETCH_AHEAD the scalars of the next MP are asked for a run before they are needed: rows
 * of a few cache lines are too short for the hardware to see them coming. */
#define LINE (64 / (int)sizeof(T)) /* elements of a cache line */
INLINE void multiply_run(vec acc[MP][NV], const T *b, long ldb, const T *x, const long *at, int length, const int nv,
                         const int even)
{
    const T *from[MP];
    _Pragma("GCC unroll 32")
    for (int m = 0; m < MP; m++)
        from[m] = x + (even ? m * EVEN : at[m]);
    for (int j0 = 0; j0 < length; j0 += FETCH_AHEAD ? LINE : length) {
        if (FETCH_AHEAD && even)
            _Pragma("GCC unroll 32")
            for (int m = 0; m < MP; m++)
                __builtin_prefetch(x + (MP + m) * EVEN + j0);
        for (int j = j0; j < (FETCH_AHEAD ? MIN(length, j0 + LINE) : length); j++, b += ldb) {
            vec column[NV];
            _Pragma("GCC unroll 8")
            for (int v = 0; v < nv; v++)
                column[v] = load(b + v * VW);
            _Pragma("GCC unroll 32")
            for (int m = 0; m < MP; m++) {
                vec scalar = splat(even ? x[j * X_STEP + m * EVEN] : from[m][j * X_STEP]);
                _Pragma("GCC unroll 8")
                for (int v = 0; v < nv; v++)
                    acc[m][v] += scalar * column[v];
            }
        }
    }
}
