/* The attention of a join, for any model, and bytes for int8. What it computes and how: kernel.h. */
#include "kernel.h"

INLINE void attend(const float *query, const char *own, const float *own_lse, const float *keys, const float *values,
                   char *out, long first, long n_items, long n_all, long n_padded, long n_heads, long n_keys,
                   long n_rows, long width, float *scratch, const int is_bf16)
{
    const int each = is_bf16 ? 2 : 1, size = is_bf16 ? 2 : 4;
    vec(*attended)[2] = (vec(*)[2])scratch;
    float *weights = scratch + width * TILE;
    char before[64];
    begin_tiles(before, is_bf16);
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
    end_tiles(before, is_bf16);
}

#define ARGUMENTS                                                                                                      \
    const float *query, const char *own, const float *own_lse, const float *keys, const float *values, char *out,      \
        long first, long n_items, long n_all, long n_padded, long n_heads, long n_keys, long n_rows, long width,       \
        float *scratch
#define NAMES                                                                                                          \
    query, own, own_lse, keys, values, out, first, n_items, n_all, n_padded, n_heads, n_keys, n_rows, width, scratch

/* query: [H][E][n_padded], scaled by 1 / sqrt(E); own: [H][n_all][E]; own_lse: [H][n_padded], float; keys: [H][n_rows][E];
   values: [H][E][n_rows]; out: [n_items][H * E]. In bf16 numbers 2 i and 2 i + 1 along E share a word of the query:
   [H][E / 2][n_padded][2]. n_padded is at least TILE more than n_all; n_rows is a multiple of KEYS, zero from n_keys on, E of 16;
   own_lse may be -inf. scratch: (E + n_keys + KEYS) * TILE floats. */
void attend_fp32(ARGUMENTS) { attend(NAMES, 0); }

#if defined(__AVX512BF16__)
void attend_bf16(ARGUMENTS) { attend(NAMES, 1); }
#endif

/* Which of a tile's queries, the tokens from `first` on, see a key: those of the same segment, and in a causal one those at
   the key or behind it. */
INLINE void mask_key(vec mask[2], long first, long n_tokens, long key, int length, int is_causal)
{
    long start = key / n_tokens * n_tokens, from = is_causal ? key : start, to = key - start < length ? start + n_tokens : 0;
    for (int i = 0; i < 2; i++) {
        ints token;
        for (int lane = 0; lane < LANES; lane++) token[lane] = (int)(first + i * LANES + lane);
        ints sees = (token >= (int)from) & (token < (int)to);
        mask[i] = (vec)(~sees & (ints)splat(-1e30f));
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
    const long n_rows = (n_keys + KEYS - 1) / KEYS * KEYS, words = width * size / 4, n_kept = n_heads / n_shared;
    const long line = n_heads * width * size, key_line = n_kept * width * size;
    vec nothing[2] = {splat(-__builtin_inff()), splat(-__builtin_inff())}, own_weight[2], part[LANES];
    char *keys = scratch, *values = keys + n_kept * n_rows * width * size;
    vec(*mask)[2] = (vec(*)[2])(values + n_kept * n_rows * width * size), (*attended)[2] = mask + n_own;
    float *tokens = (float *)(attended + width), *weights = tokens + words * TILE;

    char before[64];
    begin_tiles(before, is_bf16);
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
    end_tiles(before, is_bf16);
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

/* Rows of floats to bytes of their own scale: x = scale * (byte - ZERO) to within scale / 2. n is a multiple of LANES. */
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
        float scale = scales[row] = largest / STEPS, factor = 1.0f / scale;
        for (long i = 0; i < n; i += LANES) {
            /* 1.5 * 2^23 + ZERO: the rounded sum stands in the last bits */
            ints x = (ints)(*(const vec *)(from + i) * factor + (12582912.0f + ZERO));
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
int key_step(void) { return KEYS; }
int zero(void) { return ZERO; }
