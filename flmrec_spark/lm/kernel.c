/* What scoring on a CPU spends its time on beside matrix products: the attention of a join, and bytes for int8.

   Attention of many one-token queries to the keys of one user, their own part merged in as one more key.

   For item t and head h, with logits s_p = q . k_p over the user's P keys and the item's own log-sum-exp l and
   attention a:  out = (sum_p exp(s_p) v_p + exp(l) a) / (sum_p exp(s_p) + exp(l)).

   Items lie across the lanes of a vector, so the softmax over the keys needs no reduction inside of one. TILE items
   meet a head's keys while both lie in the first cache: product, softmax, product, one pass. Vectors are the compiler's
   own: one source for every instruction set. attend_bf16 needs AVX512-BF16 and is left out where that is missing. */
#include <stdint.h>
#if defined(__AVX512F__)
#include <immintrin.h>
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

typedef float vec __attribute__((vector_size(4 * LANES), aligned(4)));
typedef uint8_t bytes __attribute__((vector_size(LANES), aligned(1)));
typedef int32_t ints __attribute__((vector_size(4 * LANES), aligned(4)));

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

/* Two floats as the two bf16 that a product reads together: x in the low half. Rounds to nearest, ties up. */
INLINE ints paired(vec x, vec y)
{
    return (ints)(((((ints)x + 0x8000) >> 16) & 0xffff) | (((ints)y + 0x8000) & (int32_t)0xffff0000));
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
                x[i] = __builtin_shuffle(a, b, low);
                x[i + n] = __builtin_shuffle(a, b, high);
            }
    }
}

/* LANES numbers of type float or bf16. */
INLINE vec loaded(const void *from, const int is_bf16)
{
#if defined(__AVX512BF16__)
    if (is_bf16) return (vec)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(from)), 16);
#endif
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
    *(vec *)to = x;
}

/* One head of TILE queries. Words are floats, or two bf16 that lie side by side along the depth of a product. `mask`
   is added to the logits of the keys from n_free on. */
INLINE void attend_tile(const float *query, long stride, const float *own_lse, const float *keys, const float *values,
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
            vec x = exponent(((vec *)(weights + p * TILE))[i] - top[i]);
            total[i] += x;
            if (is_bf16) {
                vec y = exponent(((vec *)(weights + (p + 1) * TILE))[i] - top[i]);
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

INLINE void attend(const float *query, const char *own, const float *own_lse, const float *keys, const float *values,
                   char *out, long first, long n_items, long n_all, long n_padded, long n_heads, long n_keys,
                   long n_rows, long width, float *scratch, const int is_bf16)
{
    const int each = is_bf16 ? 2 : 1, size = is_bf16 ? 2 : 4;
    vec(*attended)[2] = (vec(*)[2])scratch;
    float *weights = scratch + width * TILE;
    for (long h = 0; h < n_heads; h++)
        for (long t = 0; t < n_items; t += TILE) {
            vec own_weight[2], part[LANES];
            attend_tile(query + h * width / each * n_padded + first + t, n_padded, own_lse + h * n_padded + first + t,
                        keys + h * n_rows * width / each, values + h * width * n_rows / each, n_keys, n_rows, width,
                        0, n_keys, weights, own_weight, attended, is_bf16);
            for (long e = 0; e < width; e += LANES)
                for (int i = 0; i < 2; i++) {
                    for (int r = 0; r < LANES; r++) part[r] = attended[e + r][i];
                    transpose(part);
                    for (long r = 0; r < LANES && t + i * LANES + r < n_items; r++) {
                        long item = t + i * LANES + r;
                        vec a = loaded(own + ((h * n_all + first + item) * width + e) * size, is_bf16);
                        store(out + ((item * n_heads + h) * width + e) * size, part[r] + a * own_weight[i][r], is_bf16);
                    }
                }
        }
}

#define ARGUMENTS                                                                                                      \
    const float *query, const char *own, const float *own_lse, const float *keys, const float *values, char *out,      \
        long first, long n_items, long n_all, long n_padded, long n_heads, long n_keys, long n_rows, long width,       \
        float *scratch
#define NAMES                                                                                                          \
    query, own, own_lse, keys, values, out, first, n_items, n_all, n_padded, n_heads, n_keys, n_rows, width, scratch

/* query: [H][E][n_padded], scaled by 1 / sqrt(E); own: [H][n_all][E]; own_lse: [H][n_padded], float; keys: [H][n_rows][E];
   values: [H][E][n_rows]; out: [n_items][H * E]. In bf16 numbers 2 i and 2 i + 1 along E share a word of the query:
   [H][E / 2][n_padded][2]. n_padded is at least TILE more than n_all; n_rows is a multiple of 8, zero from n_keys on, E of 16;
   own_lse may be -inf. scratch: (E + n_keys + 1) * TILE floats. */
void attend_fp32(ARGUMENTS) { attend(NAMES, 0); }

#if defined(__AVX512BF16__)
void attend_bf16(ARGUMENTS) { attend(NAMES, 1); }
#endif

/* Which of a tile's queries see a key: those of the same segment, and in a causal one those at the key or behind it. */
INLINE void mask_key(vec mask[2], long first, long n_tokens, long key, int length, int is_causal)
{
    for (int i = 0; i < 2; i++)
        for (int lane = 0; lane < LANES; lane++) {
            long token = first + i * LANES + lane;
            int sees = token / n_tokens == key / n_tokens && key % n_tokens < length;
            mask[i][lane] = sees && (!is_causal || token >= key) ? 0.0f : -1e30f;
        }
}

/* Every token of n_segments to its own segment and, with n_user > 0, to the user's keys. */
INLINE void attend_segments(const char *query, const char *key, const char *value, const int32_t *lengths,
                            const char *user_keys, const char *user_values, char *out, long n_segments, long n_tokens,
                            long n_user, long n_user_rows, long n_heads, long n_shared, long width, long is_causal,
                            char *scratch, const int is_bf16)
{
    const int size = is_bf16 ? 2 : 4;
    const long at_once = n_tokens < TILE ? TILE / n_tokens : 1, n_own = at_once * n_tokens, n_keys = n_user + n_own;
    const long n_rows = (n_keys + 7) / 8 * 8, words = width * size / 4, n_kept = n_heads / n_shared;
    const long line = n_heads * width * size, key_line = n_kept * width * size;
    vec nothing[2] = {splat(-__builtin_inff()), splat(-__builtin_inff())}, own_weight[2], part[LANES];
    char *keys = scratch, *values = keys + n_kept * n_rows * width * size;
    vec(*mask)[2] = (vec(*)[2])(values + n_kept * n_rows * width * size), (*attended)[2] = mask + n_own;
    float *tokens = (float *)(attended + width), *weights = tokens + words * TILE;

    __builtin_memset(keys, 0, 2 * n_kept * n_rows * width * size);
    for (long h = 0; n_user && h < n_kept; h++) {
        __builtin_memcpy(keys + h * n_rows * width * size, user_keys + h * n_user_rows * width * size,
                         n_user * width * size);
        for (long e = h * width; e < (h + 1) * width; e++)
            __builtin_memcpy(values + e * n_rows * size, user_values + e * n_user_rows * size, n_user * size);
    }
    for (long first = 0; first < n_segments; first += at_once) {
        const long n = (n_segments - first < at_once ? n_segments - first : at_once) * n_tokens, start = first * n_tokens;
        for (long h = 0; h < n_kept; h++)
            for (long p = 0; p < n; p++) {
                const char *from = value + (start + p) * key_line + h * width * size;
                __builtin_memcpy(keys + (h * n_rows + n_user + p) * width * size,
                                 key + (start + p) * key_line + h * width * size, width * size);
                for (long e = 0; e < width; e++) { /* becomes a column */
                    long to = (h * width + e) * n_rows + n_user + p;
                    if (is_bf16) ((uint16_t *)values)[to] = ((const uint16_t *)from)[e];
                    else ((float *)values)[to] = ((const float *)from)[e];
                }
            }
        for (long t = 0; t < n; t += TILE) {
            for (long p = 0; p < n; p++) mask_key(mask[p], t, n_tokens, p, lengths[first + p / n_tokens], is_causal);
            for (long h = 0; h < n_heads; h++) {
                for (long w = 0; w < words; w += LANES)
                    for (int i = 0; i < 2; i++) {
                        for (long r = 0; r < LANES; r++) {
                            long token = t + i * LANES + r;
                            const char *from = query + (start + token) * line + h * width * size;
                            part[r] = token < n ? ((const vec *)from)[w / LANES] : (vec){};
                        }
                        transpose(part);
                        for (long r = 0; r < LANES && w + r < words; r++)
                            ((vec *)(tokens + (w + r) * TILE))[i] = part[r];
                    }
                long kept = h / n_shared * n_rows * width * size;
                attend_tile(tokens, TILE, (float *)nothing, (float *)(keys + kept), (float *)(values + kept), n_user + n,
                            n_rows, width, (const vec(*)[2])mask, n_user, weights, own_weight, attended, is_bf16);
                for (long e = 0; e < width; e += LANES)
                    for (int i = 0; i < 2; i++) {
                        for (int r = 0; r < LANES; r++) part[r] = attended[e + r][i];
                        transpose(part);
                        for (long r = 0; r < LANES && t + i * LANES + r < n; r++)
                            store(out + (start + t + i * LANES + r) * line + (h * width + e) * size, part[r], is_bf16);
                    }
            }
        }
    }
}

#define SEGMENTS                                                                                                       \
    const char *query, const char *key, const char *value, const int32_t *lengths, const char *user_keys,              \
        const char *user_values, char *out, long n_segments, long n_tokens, long n_user, long n_user_rows,             \
        long n_heads, long n_shared, long width, long is_causal, char *scratch
#define SEGMENT_NAMES                                                                                                  \
    query, key, value, lengths, user_keys, user_values, out, n_segments, n_tokens, n_user, n_user_rows, n_heads,       \
        n_shared, width, is_causal, scratch

/* query, out: [n_segments][n_tokens][H * E], scaled; key, value: [n_segments][n_tokens][H / n_shared * E]; lengths, each
   >= 1, say how many of a segment's keys are real; user_keys and user_values as `attend` takes them, of H / n_shared
   heads. E * size of a number is a multiple of 64. scratch: see native.py. */
void attend_segments_fp32(SEGMENTS) { attend_segments(SEGMENT_NAMES, 0); }

#if defined(__AVX512BF16__)
void attend_segments_bf16(SEGMENTS) { attend_segments(SEGMENT_NAMES, 1); }
#endif

/* Rows of floats to bytes of their own scale: x = scale * (byte - 128) to within scale / 2. n is a multiple of LANES. */
void quantize(const float *from, uint8_t *to, float *scales, long n_rows, long n)
{
    for (long row = 0; row < n_rows; row++, from += n, to += n) {
        vec top = {};
        for (long i = 0; i < n; i += LANES) {
            vec x = *(const vec *)(from + i);
            top = larger(top, larger(x, -x));
        }
        float largest = 1e-30f; /* a row of zeros has a scale too */
        for (int i = 0; i < LANES; i++) largest = top[i] > largest ? top[i] : largest;
        float scale = scales[row] = largest / 127.0f, factor = 1.0f / scale;
        for (long i = 0; i < n; i += LANES) {
            /* 1.5 * 2^23 + 128: the rounded sum stands in the last bits */
            ints x = (ints)(*(const vec *)(from + i) * factor + 12583040.0f);
            *(bytes *)(to + i) = __builtin_convertvector(x, bytes);
        }
    }
}

/* x = x * scale of the row + bias, in place. n is a multiple of LANES. */
void rescale(float *x, const float *scales, const float *bias, long n_rows, long n)
{
    for (long row = 0; row < n_rows; row++, x += n)
        for (long i = 0; i < n; i += LANES)
            *(vec *)(x + i) = *(const vec *)(x + i) * scales[row] + *(const vec *)(bias + i);
}

int tile(void) { return TILE; }
