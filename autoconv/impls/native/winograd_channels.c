/* ---- Between planes and vectors of channels ------------------------------------------------------------------- */

/* to[p] = (from[0][p], ..., from[live - 1][p], 0 ...) for p < length; `to` advances by to_step elements. */
INLINE void gather_channels(const T *from, size_t plane, int live, int length, T *to, size_t to_step) {
    for (int p0 = 0; p0 < length; p0 += VW) {
        /* The last square overlaps the one before it: nothing beyond the run is read. */
        const int p = length >= VW ? MIN(p0, length - VW) : 0, count = MIN(length, VW);
        vec square[VW];
        if (live == VW && length >= VW) {
            _Pragma("GCC unroll 16") for (int l = 0; l < VW; l++) square[l] = load(from + l * plane + p);
        } else {
            for (int l = 0; l < VW; l++) square[l] = l < live ? load_first(from + l * plane + p, count) : (vec){0};
        }
        transpose(square);
        if (count == VW) {
            _Pragma("GCC unroll 16") for (int l = 0; l < VW; l++) store(to + (p + l) * to_step, square[l]);
        } else {
            for (int l = 0; l < count; l++) store(to + (p + l) * to_step, square[l]);
        }
    }
}

/* The way back: to[l][p] = from[p][l]. Reads `from` in whole squares. */
INLINE void scatter_channels(const T *from, T *to, size_t plane, int live, int length) {
    for (int p0 = 0; p0 < length; p0 += VW) {
        const int p = length >= VW ? MIN(p0, length - VW) : 0, count = MIN(length, VW);
        vec square[VW];
        _Pragma("GCC unroll 16") for (int l = 0; l < VW; l++) square[l] = load(from + (p + l) * VW);
        transpose(square);
        if (live == VW && length >= VW) {
            _Pragma("GCC unroll 16") for (int l = 0; l < VW; l++) store(to + l * plane + p, square[l]);
        } else {
            for (int l = 0; l < live; l++) store_first(to + l * plane + p, square[l], count);
        }
    }
}

