/* One call of a generated kernel as a program of its own: operands on standard input, the result on standard output.
 *
 * Every array is a block of exactly its size, on no better boundary than its element's, so that a sanitizer sees the
 * first byte that is read or written beyond it. Scratch and results start as NaN.
 */
#include <stdio.h>
#include <stdlib.h>

#define CACHE_LINE 64

/* `size` bytes that end where the block ends, `skew` beyond a cache line's boundary. */
static void *exact_block(size_t size, size_t skew)
{
    void *whole;
    if (posix_memalign(&whole, CACHE_LINE, size + skew)) abort();
    memset(whole, 0xFF, size + skew);
    return (char *)whole + skew;
}

static T *exact_operand(size_t size)
{
    T *array = exact_block(size, sizeof(T));
    if (fread(array, 1, size, stdin) != size) abort();
    return array;
}

int main(void)
{
    T *a = exact_operand(A_BYTES), *b = exact_operand(B_BYTES), *out = exact_block(OUT_BYTES, sizeof(T));
#if PACKED_BYTES
    void *packed = exact_block(PACKED_BYTES, 0);
    autoconv_pack(b, 0, packed, 0);
    autoconv_run(a, packed, out, exact_block(SCRATCH_BYTES_DECLARED, 0));
    fwrite(out, 1, OUT_BYTES, stdout);
    autoconv_pack_run(a, b, out, exact_block(WORKSPACE_BYTES, 0));
#else
    autoconv_run(a, b, out, exact_block(WORKSPACE_BYTES, 0));
#endif
    fwrite(out, 1, OUT_BYTES, stdout);
    return 0;
}
