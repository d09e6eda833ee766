/* What the kernels share: vectors, products, and the attention of a tile of queries to the keys of one user.

   For item t and head h, with logits s_p = q . k_p over the user's P keys and the item's own log-sum-exp l and
   attention a:  out = (sum_p exp(s_p) v_p + exp(l) a) / (sum_p exp(s_p) + exp(l)).

   Items lie across the lanes of a vector, so the softmax over the keys needs no reduction inside of one. TILE items
   meet a head's keys while both lie in the first cache: product, softmax, product, one pass. Vectors are the compiler's
   own: one source for every instruction set. bf16 needs AVX512-BF16; bytes need AVX512-VNNI, or AVX2 with a bit less. */
#pragma once
#include <stdint.h>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

#if defined(__AVX512BF16__) && defined(__AVX512VNNI__)
#define HAS_BF16
#define HAS_BYTES
#elif defined(__AVX2__) && !defined(__AVX512F__)
#define HAS_BYTES
#endif

/* AMX multiplies tiles: SIDE rows of SIDE words by SIDE words of LANES items. */
#if defined(__AMX_TILE__) && defined(__AMX_BF16__) && defined(__AMX_INT8__) && defined(HAS_BF16)
#define HAS_TILES
#define SIDE 16
#define KEYS 32 /* a user's keys are filled up to a multiple of it: of two tiles, or of a tile's words of two */
#else
#define KEYS 8
#endif

/* LANES floats of a vector; ROWS x 2 sums fit the registers with room for what is multiplied. */
#if defined(__AVX512F__)
#define LANES 16
#define ROWS 8
#elif defined(__AVX__)
#define LANES 8
#define ROWS 4
#elif defined(__aarch64__)
#define LANES 4
#define ROWS 8
#else
#define LANES 4
#define ROWS 4
#endif
#define TILE (2 * LANES) /* items at once */
#define INLINE static inline __attribute__((always_inline))
#define APART static __attribute__((noinline)) /* a function of its own keeps its sums in registers */

typedef float vec __attribute__((vector_size(4 * LANES), aligned(4)));
typedef uint8_t bytes __attribute__((vector_size(LANES), aligned(1)));
typedef int32_t ints __attribute__((vector_size(4 * LANES), aligned(4)));

/* Number formats of states and products. In INT8 a state's bytes hold ZERO for zero, as the instructions want them, and STEPS
   to either side of it. AVX2 adds two products of bytes in 16 bits, where 2 x 127 x 127 has room and 2 x 255 x 127 has not. */
enum { FP32, BF16, INT8 };
#if defined(__AVX512F__)
#define ZERO 128
#define STEPS 127
#else
#define ZERO 64
#define STEPS 63
#endif

/* What attention multiplies, and what lies between the parts of a layer: bf16 but for FP32, where there is such. */
INLINE int is_half(const int kind)
{
#if defined(HAS_BF16)
    return kind != FP32;
#else
    return kind == BF16;
#endif
}

INLINE vec splat(float x) { return x - (vec){}; }

INLINE vec larger(vec x, vec y)
{
#if defined(__AVX512F__)
    return (vec)_mm512_max_ps((__m512)x, (__m512)y);
#else
    ints first = x > y;
    return (vec)(((ints)x & first) | ((ints)y & ~first));
#endif
}

/* Cephes' expf: relative error 2e-7 for x in [-87, 0]; the same as at -87 below. */
INLINE vec exponent(vec x)
{
    x = larger(x, splat(-87.0f));
    vec shifted = x * 1.44269504088896341f + 12582912.0f; /* 1.5 * 2^23: the rounded product stands in the last bits */
    vec n = shifted - 12582912.0f;
    vec r = x - n * 0.693359375f + n * 2.12194440e-4f;
    vec y = splat(1.9875691500e-4f);
    y = y * r + 1.3981999507e-3f;
    y = y * r + 8.3334519073e-3f;
    y = y * r + 4.1665795894e-2f;
    y = y * r + 1.6666665459e-1f;
    y = y * r + 5.0000001201e-1f;
    y = y * (r * r) + r + 1.0f;
    return (vec)((ints)y + ((ints)shifted << 23));
}

/* e^x by a cubic of 2^r: relative error 8e-5, a tenth of a bf16's last bit and less; for x in [-126, 0], the same below. */
INLINE vec rough_exponent(vec x)
{
    x = larger(x * 1.44269504088896341f, splat(-126.0f));
    vec shifted = x + 12582912.0f;
    vec r = x - (shifted - 12582912.0f);
    vec y = splat(5.51717241e-2f);
    y = y * r + 2.42611246e-1f;
    y = y * r + 6.93260977e-1f;
    y = y * r + 9.99928051e-1f;
    return (vec)((ints)y + ((ints)shifted << 23));
}

/* Two floats as the two bf16 that a product reads together: x in the low half. Rounds to nearest, ties up. */
INLINE ints paired(vec x, vec y)
{
    return (ints)(((((ints)x + 0x8000) >> 16) & 0xffff) | (((ints)y + 0x8000) & (int32_t)0xffff0000));
}

#if defined(HAS_TILES)
struct tiles {
    uint8_t palette, start, none[14];
    uint16_t bytes[16];
    uint8_t rows[16];
} __attribute__((aligned(64)));
#endif

/* Whoever computed with tiles in this thread before may rely on how they were laid out (oneDNN does): `before` keeps that. */
INLINE void begin_tiles(char before[64], const int uses_tiles)
{
#if defined(HAS_TILES)
    if (!uses_tiles) return;
    struct tiles own = {.palette = 1};
    for (int i = 0; i < 8; i++) own.bytes[i] = 64, own.rows[i] = SIDE;
    _tile_storeconfig(before);
    __asm__ volatile("" ::"r"(&own) : "memory");
    _tile_loadconfig(&own);
#else
    (void)before, (void)uses_tiles;
#endif
}

INLINE void end_tiles(char before[64], const int uses_tiles)
{
#if defined(HAS_TILES)
    if (!uses_tiles) return;
    if (before[0])
        _tile_loadconfig(before);
    else
        _tile_release();
#else
    (void)before, (void)uses_tiles;
#endif
}

/* sum + left * right: of floats, or of words that hold two bf16 each. */
INLINE vec multiplied(vec sum, float left, vec right, const int is_bf16)
{
#if defined(__AVX512BF16__)
    if (is_bf16) return (vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_ps(left), (__m512bh)right);
#else
    (void)is_bf16;
#endif
    return sum + left * right;
}

/* sum[ROWS][2] = left[ROWS][depth] right[depth][TILE]; rows of `left` are `step` words apart, those of `right` `stride`. */
INLINE void product(vec sum[ROWS][2], const float *left, long step, const float *right, long stride, long depth,
                    const int is_bf16)
{
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++) sum[r][0] = sum[r][1] = (vec){};
    for (long k = 0; k < depth; k++) {
        const vec *columns = (const vec *)(right + k * stride);
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; r++) {
            float factor = left[r * step + k];
            sum[r][0] = multiplied(sum[r][0], factor, columns[0], is_bf16);
            sum[r][1] = multiplied(sum[r][1], factor, columns[1], is_bf16);
        }
    }
}

#ifdef __clang__
INLINE vec shuffled(vec a, vec b, ints from)
{
    vec x;
#pragma GCC unroll 16
    for (int i = 0; i < LANES; i++)
        x[i] = from[i] < LANES ? a[from[i]] : b[from[i] - LANES];
    return x;
}
#else
#define shuffled __builtin_shuffle
#endif

/* Rows become columns, 16 x 16. */
INLINE void transpose(vec x[LANES])
{
#pragma GCC unroll 4
    for (int n = 1; n < LANES; n *= 2) {
        ints low, high;
#pragma GCC unroll 16
        for (int i = 0; i < LANES; i++) {
            low[i] = i & n ? LANES + (i ^ n) : i;
            high[i] = i & n ? LANES + i : i ^ n;
        }
#pragma GCC unroll 16
        for (int i = 0; i < LANES; i++)
            if (!(i & n)) {
                vec a = x[i], b = x[i + n];
                x[i] = shuffled(a, b, low);
                x[i + n] = shuffled(a, b, high);
            }
    }
}

/* LANES numbers of type float or bf16. */
INLINE vec loaded(const void *from, const int is_bf16)
{
#if defined(__AVX512BF16__)
    if (is_bf16) return (vec)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(from)), 16);
#endif
    (void)is_bf16;
    return *(const vec *)from;
}

INLINE void store(void *to, vec x, const int is_bf16)
{
#if defined(__AVX512BF16__)
    if (is_bf16) {
        _mm256_storeu_si256(to, (__m256i)_mm512_cvtneps_pbh((__m512)x));
        return;
    }
#endif
    (void)is_bf16;
    *(vec *)to = x;
}

/* One head of TILE queries. Words are floats, or two bf16 that lie side by side along the depth of a product. `mask`
   is added to the logits of the keys from n_free on. */
INLINE void attend_tile_as(const float *query, long stride, const float *own_lse, const float *keys, const float *values,
                        long n_keys, long n_rows, long width, const vec (*mask)[2], long n_free, float *weights,
                        vec own_weight[2], vec (*attended)[2], const int is_bf16)
{
    const int each = is_bf16 ? 2 : 1; /* numbers in a word */
    vec top[2], lse[2], total[2] = {}, sum[ROWS][2];
    for (int i = 0; i < 2; i++) top[i] = lse[i] = ((const vec *)own_lse)[i];
    for (long p = 0; p < n_keys; p += ROWS) {
        product(sum, keys + p * width / each, width / each, query, stride, width / each, is_bf16);
        int n = n_keys - p < ROWS ? n_keys - p : ROWS;
        for (int r = 0; r < n; r++)
            for (int i = 0; i < 2; i++) {
                vec logit = p + r < n_free ? sum[r][i] : sum[r][i] + mask[p + r - n_free][i];
                ((vec *)(weights + (p + r) * TILE))[i] = logit;
                top[i] = larger(top[i], logit);
            }
    }
    if (n_keys % each) /* the missing half of the last word weighs nothing */
        for (int i = 0; i < 2; i++) ((vec *)(weights + n_keys * TILE))[i] = splat(-1e30f);
    for (long p = 0; p < n_keys; p += each)
        for (int i = 0; i < 2; i++) {
            vec x = ((vec *)(weights + p * TILE))[i] - top[i];
            x = is_bf16 ? rough_exponent(x) : exponent(x);
            total[i] += x;
            if (is_bf16) {
                vec y = rough_exponent(((vec *)(weights + (p + 1) * TILE))[i] - top[i]);
                total[i] += y;
                x = (vec)paired(x, y);
            }
            ((vec *)(weights + p / each * TILE))[i] = x;
        }
    vec scale[2];
    for (int i = 0; i < 2; i++) {
        vec own = exponent(lse[i] - top[i]);
        scale[i] = 1.0f / (total[i] + own);
        own_weight[i] = own * scale[i];
    }
    for (long e = 0; e < width; e += ROWS) {
        product(sum, values + e * n_rows / each, n_rows / each, weights, TILE, (n_keys + each - 1) / each, is_bf16);
        for (int r = 0; r < ROWS; r++)
            for (int i = 0; i < 2; i++) attended[e + r][i] = sum[r][i] * scale[i];
    }
}

#if defined(HAS_TILES)
/* to[rows][TILE] = left[rows][depth] right[depth][TILE], of bf16: rows a multiple of 32, depth, in words, of 16. Lines of `left`
   are `step` words apart, those of `right` `stride`. The compiler does not see what tiles read. */
INLINE void product_by_tiles(const float *left, long step, const float *right, long stride, long depth, long rows, vec (*to)[2])
{
    __asm__ volatile("" ::: "memory");
    for (long r = 0; r < rows; r += 2 * SIDE) {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
        for (long k = 0; k < depth; k += SIDE) {
            _tile_loadd(4, left + r * step + k, 4 * step);
            _tile_loadd(5, left + (r + SIDE) * step + k, 4 * step);
            _tile_loadd(6, right + k * stride, 4 * stride);
            _tile_loadd(7, right + k * stride + LANES, 4 * stride);
            _tile_dpbf16ps(0, 4, 6);
            _tile_dpbf16ps(1, 4, 7);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
        }
        _tile_stored(0, &to[r][0], 128);
        _tile_stored(1, &to[r][1], 128);
        _tile_stored(2, &to[r + SIDE][0], 128);
        _tile_stored(3, &to[r + SIDE][1], 128);
    }
}

/* As attend_tile_as in bf16, for a width that is a multiple of 32. */
INLINE void attend_by_tiles(const float *query, long stride, const float *own_lse, const float *keys, const float *values,
                            long n_keys, long n_rows, long width, const vec (*mask)[2], long n_free, float *weights,
                            vec own_weight[2], vec (*attended)[2])
{
    const long filled = (n_keys + KEYS - 1) / KEYS * KEYS;
    vec(*x)[2] = (vec(*)[2])weights, top[2], lse[2], total[2] = {}, scale[2];
    product_by_tiles(keys, width / 2, query, stride, width / 2, filled, x);
    for (int i = 0; i < 2; i++) {
        top[i] = lse[i] = ((const vec *)own_lse)[i];
        for (long p = n_free; p < n_keys; p++) x[p][i] += mask[p - n_free][i];
        for (long p = 0; p < n_keys; p++) top[i] = larger(top[i], x[p][i]);
        for (long p = n_keys; p < filled; p++) x[p][i] = splat(-1e30f);
    }
    for (long p = 0; p < filled; p += 2)
        for (int i = 0; i < 2; i++) {
            vec first = rough_exponent(x[p][i] - top[i]), second = rough_exponent(x[p + 1][i] - top[i]);
            total[i] += first + second;
            x[p / 2][i] = (vec)paired(first, second);
        }
    for (int i = 0; i < 2; i++) {
        vec own = exponent(lse[i] - top[i]);
        scale[i] = 1.0f / (total[i] + own);
        own_weight[i] = own * scale[i];
    }
    product_by_tiles(values, n_rows / 2, weights, TILE, filled / 2, width, attended);
    for (long e = 0; e < width; e++)
        for (int i = 0; i < 2; i++) attended[e][i] *= scale[i];
}
#endif

#define TILE_ARGUMENTS                                                                                                 \
    const float *query, long stride, const float *own_lse, const float *keys, const float *values, long n_keys,        \
        long n_rows, long width, const vec(*mask)[2], long n_free, float *weights, vec own_weight[2],                  \
        vec(*attended)[2]
#define TILE_NAMES                                                                                                     \
    query, stride, own_lse, keys, values, n_keys, n_rows, width, mask, n_free, weights, own_weight, attended

APART void attend_tile_fp32(TILE_ARGUMENTS) { attend_tile_as(TILE_NAMES, 0); }
#if defined(__AVX512BF16__)
APART void attend_tile_bf16(TILE_ARGUMENTS)
{
#if defined(HAS_TILES)
    if (width % (2 * SIDE) == 0) {
        attend_by_tiles(TILE_NAMES);
        return;
    }
#endif
    attend_tile_as(TILE_NAMES, 1);
}
#endif

INLINE void attend_tile(TILE_ARGUMENTS, const int is_bf16)
{
#if defined(__AVX512BF16__)
    if (is_bf16) {
        attend_tile_bf16(TILE_NAMES);
        return;
    }
#endif
    (void)is_bf16;
    attend_tile_fp32(TILE_NAMES);
}
