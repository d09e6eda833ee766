/* A joined layer of an encoder that normalises after each residual, in one pass: a tile of items goes through attention,
   out-projection, layer norm, feed-forward and layer norm while it lies in the second cache; in the last layer what comes
   out are its dot products with the score's vectors.

   Items lie across the lanes from the first product to the last, so nothing is transposed, a layer norm and the scale of
   an item's bytes need no sum inside of a vector, and a number does not depend on which items share a tile. Sums are
   float32 throughout (int32 for bytes, of at most CHUNK products of one scale). Weights lie in panels of PANEL outputs,
   word by word along the depth of the product, and are read in one stream. */
#include "kernel.h"

#if defined(__AVX512F__)
#define PANEL 12 /* x 2 sums, 2 states and a weight fit 32 registers */
#else
#define PANEL 6
#endif

struct dense {
    const char *weights;  /* chunks of panels */
    const float *bias;    /* of the layer's outputs */
    const float *scale;   /* INT8: of each output, as the panels lie */
    const int32_t *zeros; /* INT8: what the ZEROs of the states add up to, for each output of each chunk */
};

struct norm {
    const float *weight, *bias;
    double epsilon;
};

struct layer {
    struct dense query, key, value, out, inner, outer;
    struct norm first, second;
    long n_heads, width, hidden, n_inner, chunk; /* n_inner is 0 without a feed-forward, else a multiple of chunk */
};

/* The weights of a panel lie tile by tile where tiles multiply them, two tiles of outputs for each step along the depth. */
INLINE int has_tiles(const int kind)
{
#if defined(HAS_TILES)
    return kind != FP32;
#else
    (void)kind;
    return 0;
#endif
}

/* Outputs of a panel, and words of a step along the depth of a product: weights and states are filled up to both. */
INLINE long panel_of(const int kind) { return has_tiles(kind) ? 32 : PANEL; }
INLINE long step_of(const int kind) { return has_tiles(kind) ? 16 : 1; }
INLINE long padded(long n, const int kind) { return (n + panel_of(kind) - 1) / panel_of(kind) * panel_of(kind); }
INLINE long filled(long words, const int kind) { return (words + step_of(kind) - 1) / step_of(kind) * step_of(kind); }

#define PRODUCT                                                                                                                \
    const char *weights, const float *scale, const int32_t *zeros, const vec(*x)[2], long depth, long n,                       \
        const vec factor[2], vec(*y)[2]

INLINE void multiply_floats(const float *w, const vec (*x)[2], long depth, long n, vec (*y)[2], const int is_bf16,
                            const int vecs)
{
    for (long m = 0; m < n; m += PANEL) {
        vec sum[PANEL][2];
#pragma GCC unroll 12
        for (int r = 0; r < PANEL; r++) sum[r][0] = sum[r][1] = (vec){};
        for (long k = 0; k < depth; k++, w += PANEL) {
            vec first = x[k][0], second = x[k][1];
#pragma GCC unroll 12
            for (int r = 0; r < PANEL; r++) {
                sum[r][0] = multiplied(sum[r][0], w[r], first, is_bf16);
                if (vecs == 2) sum[r][1] = multiplied(sum[r][1], w[r], second, is_bf16);
            }
        }
#pragma GCC unroll 12
        for (int r = 0; r < PANEL; r++)
            for (int i = 0; i < vecs; i++) y[m + r][i] += sum[r][i];
    }
}

#define FLOATS const float *w, const vec(*x)[2], long depth, long n, vec(*y)[2]
APART void multiply_fp32_2(FLOATS) { multiply_floats(w, x, depth, n, y, 0, 2); }
APART void multiply_fp32_1(FLOATS) { multiply_floats(w, x, depth, n, y, 0, 1); }

#if defined(HAS_BF16)
APART void multiply_bf16_2(FLOATS) { multiply_floats(w, x, depth, n, y, 1, 2); }
APART void multiply_bf16_1(FLOATS) { multiply_floats(w, x, depth, n, y, 1, 1); }
#endif

#if defined(HAS_BYTES)
/* sum + the products of a word's four bytes: unsigned states, signed weights. */
INLINE ints multiplied_bytes(ints sum, ints states, ints weights)
{
#if defined(__AVX512VNNI__)
    /* the intrinsic makes GCC 12 copy every sum to the stack and back */
    __asm__("vpdpbusd %1, %2, %0" : "+v"(sum) : "v"(weights), "v"(states));
    return sum;
#else
    __m256i pairs = _mm256_maddubs_epi16((__m256i)states, (__m256i)weights);
    return sum + (ints)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
#endif
}

INLINE void multiply_bytes(PRODUCT, const int vecs)
{
    const int32_t *w = (const int32_t *)weights;
    for (long m = 0; m < n; m += PANEL) {
        ints sum[PANEL][2];
#pragma GCC unroll 12
        for (int r = 0; r < PANEL; r++) sum[r][0] = sum[r][1] = zeros[m + r] - (ints){};
        for (long k = 0; k < depth; k++, w += PANEL) {
            ints first = (ints)x[k][0], second = (ints)x[k][1];
#pragma GCC unroll 12
            for (int r = 0; r < PANEL; r++) {
                ints weight = w[r] - (ints){};
                sum[r][0] = multiplied_bytes(sum[r][0], first, weight);
                if (vecs == 2) sum[r][1] = multiplied_bytes(sum[r][1], second, weight);
            }
        }
#pragma GCC unroll 12
        for (int r = 0; r < PANEL; r++)
            for (int i = 0; i < vecs; i++)
                y[m + r][i] += __builtin_convertvector(sum[r][i], vec) * (factor[i] * scale[m + r]);
    }
}

APART void multiply_int8_2(PRODUCT) { multiply_bytes(weights, scale, zeros, x, depth, n, factor, y, 2); }
APART void multiply_int8_1(PRODUCT) { multiply_bytes(weights, scale, zeros, x, depth, n, factor, y, 1); }
#endif

#if defined(HAS_TILES)
/* Two tiles of outputs by one or two of items, in tiles 0 .. 3; the compiler does not see what they read. */
#define TILES_OF(product)                                                                                                      \
    for (long k = 0; k < depth; k += SIDE, w += 2 * SIDE * 64) {                                                               \
        _tile_loadd(4, w, 64);                                                                                                 \
        _tile_loadd(5, w + SIDE * 64, 64);                                                                                     \
        _tile_loadd(6, &x[k][0], 128);                                                                                   \
        product(0, 4, 6);                                                                                                      \
        product(2, 5, 6);                                                                                                      \
        if (vecs == 2) {                                                                                                       \
            _tile_loadd(7, &x[k][1], 128);                                                                               \
            product(1, 4, 7);                                                                                                  \
            product(3, 5, 7);                                                                                                  \
        }                                                                                                                      \
    }

INLINE void multiply_bf16_tiles(const char *w, const vec (*x)[2], long depth, long n, vec (*y)[2], const int vecs)
{
    __asm__ volatile("" ::: "memory");
    for (long m = 0; m < n; m += 2 * SIDE) {
        _tile_loadd(0, &y[m][0], 128);
        _tile_loadd(2, &y[m + SIDE][0], 128);
        if (vecs == 2) {
            _tile_loadd(1, &y[m][1], 128);
            _tile_loadd(3, &y[m + SIDE][1], 128);
        }
        TILES_OF(_tile_dpbf16ps)
        _tile_stored(0, &y[m][0], 128);
        _tile_stored(2, &y[m + SIDE][0], 128);
        if (vecs == 2) {
            _tile_stored(1, &y[m][1], 128);
            _tile_stored(3, &y[m + SIDE][1], 128);
        }
    }
}

INLINE void multiply_bytes_tiles(PRODUCT, const int vecs)
{
    const char *w = weights;
    ints sum[2 * SIDE][2];
    __asm__ volatile("" ::: "memory");
    for (long m = 0; m < n; m += 2 * SIDE) {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
        TILES_OF(_tile_dpbsud)
        _tile_stored(0, &sum[0][0], 128);
        _tile_stored(1, &sum[0][1], 128);
        _tile_stored(2, &sum[SIDE][0], 128);
        _tile_stored(3, &sum[SIDE][1], 128);
        for (int r = 0; r < 2 * SIDE; r++)
            for (int i = 0; i < vecs; i++)
                y[m + r][i] += __builtin_convertvector(sum[r][i] + zeros[m + r], vec) * (factor[i] * scale[m + r]);
    }
}

APART void tiles_bf16_2(const char *w, const vec (*x)[2], long depth, long n, vec (*y)[2])
{
    multiply_bf16_tiles(w, x, depth, n, y, 2);
}
APART void tiles_bf16_1(const char *w, const vec (*x)[2], long depth, long n, vec (*y)[2])
{
    multiply_bf16_tiles(w, x, depth, n, y, 1);
}
APART void tiles_int8_2(PRODUCT) { multiply_bytes_tiles(weights, scale, zeros, x, depth, n, factor, y, 2); }
APART void tiles_int8_1(PRODUCT) { multiply_bytes_tiles(weights, scale, zeros, x, depth, n, factor, y, 1); }
#endif

/* y[n][TILE] += weights[n][depth] x[depth][TILE]; depth in words. y has room for whole panels. */
INLINE void multiply(PRODUCT, int vecs, const int kind)
{
#if defined(HAS_TILES)
    if (kind == BF16) (vecs == 2 ? tiles_bf16_2 : tiles_bf16_1)(weights, x, depth, n, y);
    if (kind == INT8) (vecs == 2 ? tiles_int8_2 : tiles_int8_1)(weights, scale, zeros, x, depth, n, factor, y);
    if (kind != FP32) return;
#endif
    if (kind == FP32 && vecs == 2) multiply_fp32_2((const float *)weights, x, depth, n, y);
    if (kind == FP32 && vecs == 1) multiply_fp32_1((const float *)weights, x, depth, n, y);
#if defined(HAS_BF16)
    if (kind == BF16 && vecs == 2) multiply_bf16_2((const float *)weights, x, depth, n, y);
    if (kind == BF16 && vecs == 1) multiply_bf16_1((const float *)weights, x, depth, n, y);
#endif
#if defined(HAS_BYTES)
    if (kind == INT8 && vecs == 2) multiply_int8_2(weights, scale, zeros, x, depth, n, factor, y);
    if (kind == INT8 && vecs == 1) multiply_int8_1(weights, scale, zeros, x, depth, n, factor, y);
#endif
    (void)scale, (void)zeros, (void)factor;
}

/* x[n][TILE] as the words of a product; bytes get a scale per item, 1 / STEPS of its largest number. */
INLINE void pack(const vec (*x)[2], long n, vec (*words)[2], vec factor[2], int vecs, const int kind)
{
    for (int i = 0; i < vecs; i++) {
        if (kind == FP32)
            for (long k = 0; k < n; k++) words[k][i] = x[k][i];
        if (kind == BF16)
            for (long k = 0; k < n; k += 2) words[k / 2][i] = (vec)paired(x[k][i], x[k + 1][i]);
        if (kind == INT8) {
            vec top = splat(1e-30f);
            for (long k = 0; k < n; k++) top = larger(top, larger(x[k][i], -x[k][i]));
            factor[i] = top * (1.0f / STEPS);
            vec inverse = (float)STEPS / top;
            for (long k = 0; k < n; k += 4) {
                ints byte[4]; /* 1.5 * 2^23 + ZERO: the rounded sum stands in the last bits */
                for (int r = 0; r < 4; r++) byte[r] = (ints)(x[k + r][i] * inverse + (12582912.0f + ZERO)) & 0xff;
                words[k / 4][i] = (vec)(byte[0] | byte[1] << 8 | byte[2] << 16 | byte[3] << 24);
            }
        }
        const long n_words = kind == INT8 ? n / 4 : kind == BF16 ? n / 2 : n;
        for (long k = n_words; k < filled(n_words, kind); k++) words[k][i] = (vec){};
    }
}

INLINE void normalise(vec (*x)[2], long n, struct norm norm, int vecs)
{
    for (int i = 0; i < vecs; i++) {
        vec sum = {}, squares = {};
        for (long k = 0; k < n; k++) sum += x[k][i];
        vec mean = sum * (1.0f / n);
        for (long k = 0; k < n; k++) {
            vec off = x[k][i] - mean;
            squares += off * off;
        }
        vec variance = squares * (1.0f / n) + (float)norm.epsilon, scale = {};
        for (int lane = 0; lane < LANES; lane++) scale[lane] = 1.0f / __builtin_sqrtf(variance[lane]);
        for (long k = 0; k < n; k++) x[k][i] = (x[k][i] - mean) * scale * norm.weight[k] + norm.bias[k];
    }
}

INLINE vec within(vec x, float limit)
{
#if defined(__AVX512F__)
    return (vec)_mm512_min_ps((__m512)larger(x, splat(-limit)), _mm512_set1_ps(limit));
#else
    return -larger(-larger(x, splat(-limit)), splat(-limit));
#endif
}

/* x / 2 (1 + erf(x / sqrt 2)). For products in fewer bits erf is a polynomial, which is 1 from 4.4 on: absolute error of the
   result 4e-5. In float32 it is Eigen's quotient of polynomials: 1.4e-6. */
INLINE vec gelu(vec x, const int kind)
{
    if (kind != FP32) {
        vec z = within(x, 4.4f), u = z * z, p = splat(7.1387868e-11f);
        p = p * u - 7.5080138e-09f;
        p = p * u + 3.4816551e-07f;
        p = p * u - 9.4496399e-06f;
        p = p * u + 1.6858468e-04f;
        p = p * u - 2.1099739e-03f;
        p = p * u + 1.9286005e-02f;
        p = p * u - 1.3215274e-01f;
        p = p * u + 7.9752308e-01f;
        vec half = x * 0.5f;
        return half * (z * p) + half;
    }
    vec z = within(x * 0.70710678f, 4.0f), u = z * z, p = splat(-2.72614225801306e-10f), q = splat(-1.45660718464996e-05f);
    p = p * u + 2.77068142495902e-08f;
    p = p * u - 2.10102402082508e-06f;
    p = p * u - 5.69250639462346e-05f;
    p = p * u - 7.34990630326855e-04f;
    p = p * u - 2.95459980854025e-03f;
    p = p * u - 1.60960333262415e-02f;
    q = q * u - 2.13374055278905e-04f;
    q = q * u - 1.68282697438203e-03f;
    q = q * u - 7.37332916720468e-03f;
    q = q * u - 1.42647390514189e-02f;
    vec half = x * 0.5f;
    return half * (z * p / q) + half;
}

/* From the attention's output x[heads x width] and the residual y[hidden] on: the layer's output in y. words: room for the
   widest product's states; inner: for one chunk. Both y and inner have room for whole panels. */
INLINE void finish_as(const struct layer *layer, const vec (*x)[2], vec (*y)[2], vec (*words)[2], vec (*inner)[2], int vecs,
                      const int kind)
{
    const int each = kind == INT8 ? 4 : kind == BF16 ? 2 : 1; /* numbers in a word */
    const long hidden = layer->hidden, chunk = layer->chunk, attention = layer->n_heads * layer->width;
    const struct dense *out = &layer->out, *in = &layer->inner, *outer = &layer->outer;
    vec factor[2] = {};
    for (int i = 0; i < vecs; i++)
        for (long m = 0; m < hidden; m++) y[m][i] += out->bias[m];
    pack(x, attention, words, factor, vecs, kind);
    multiply(out->weights, out->scale, out->zeros, (const vec(*)[2])words,
             filled(attention / each, kind), hidden, factor, y, vecs, kind);
    normalise(y, hidden, layer->first, vecs);
    if (!layer->n_inner) return;
    pack((const vec(*)[2])y, hidden, words, factor, vecs, kind);
    const long in_words = filled(hidden / each, kind), out_words = filled(chunk / each, kind);
    const long in_rows = padded(chunk, kind), out_rows = padded(hidden, kind);
    vec(*chunk_words)[2] = words + in_words;
    for (int i = 0; i < vecs; i++)
        for (long m = 0; m < hidden; m++) y[m][i] += outer->bias[m];
    for (long c = 0; c < layer->n_inner / chunk; c++) {
        for (int i = 0; i < vecs; i++)
            for (long m = 0; m < chunk; m++) inner[m][i] = splat(in->bias[c * chunk + m]);
        multiply(in->weights + c * in_rows * in_words * 4, in->scale + c * in_rows, in->zeros + c * in_rows,
                 (const vec(*)[2])words, in_words, chunk, factor, inner, vecs, kind);
        for (int i = 0; i < vecs; i++)
            for (long m = 0; m < chunk; m++) inner[m][i] = gelu(inner[m][i], kind);
        vec own[2] = {};
        pack((const vec(*)[2])inner, chunk, chunk_words, own, vecs, kind);
        multiply(outer->weights + c * out_rows * out_words * 4, outer->scale, outer->zeros + c * out_rows,
                 (const vec(*)[2])chunk_words, out_words, hidden, own, y, vecs, kind);
    }
    normalise(y, hidden, layer->second, vecs);
}

#define FINISH const struct layer *layer, const vec(*x)[2], vec(*y)[2], vec(*words)[2], vec(*inner)[2], int vecs
APART void finish_columns_fp32(FINISH) { finish_as(layer, x, y, words, inner, vecs, FP32); }
#if defined(HAS_BF16)
APART void finish_columns_bf16(FINISH) { finish_as(layer, x, y, words, inner, vecs, BF16); }
#endif
#if defined(HAS_BYTES)
APART void finish_columns_int8(FINISH) { finish_as(layer, x, y, words, inner, vecs, INT8); }
#endif

INLINE void finish(FINISH, const int kind)
{
    if (kind == FP32) finish_columns_fp32(layer, x, y, words, inner, vecs);
#if defined(HAS_BF16)
    if (kind == BF16) finish_columns_bf16(layer, x, y, words, inner, vecs);
#endif
#if defined(HAS_BYTES)
    if (kind == INT8) finish_columns_int8(layer, x, y, words, inner, vecs);
#endif
}

/* The float32 numbers of words[n / each][TILE]. */
INLINE void unpack(const vec (*words)[2], long n, vec (*x)[2], const int is_bf16)
{
    for (int i = 0; i < 2; i++) {
        if (is_bf16)
            for (long k = 0; k < n; k += 2) {
                ints word = (ints)(words[k / 2][i]);
                x[k][i] = (vec)(word << 16);
                x[k + 1][i] = (vec)(word & (int32_t)0xffff0000);
            }
        else
            for (long k = 0; k < n; k++) x[k][i] = words[k][i];
    }
}

INLINE void score(const struct layer *layer, const float *query, const float *own, const float *own_lse, const float *residual,
                  const float *keys, const float *values, const float *vectors, float *out, long n_tiles, long n_keys,
                  long n_rows, long n_vectors, long stride, char *scratch, const int kind)
{
    const int is_bf16 = is_half(kind), each = is_bf16 ? 2 : 1;
    const long width = layer->width, hidden = layer->hidden, attention = layer->n_heads * width;
    vec(*x)[2] = (vec(*)[2])scratch, (*y)[2] = x + attention, (*inner)[2] = y + padded(hidden, kind);
    vec(*words)[2] = inner + padded(layer->chunk, kind);
    float *weights = (float *)words;
    char before[64];
    begin_tiles(before, has_tiles(kind));
    for (long t = 0; t < n_tiles; t++) {
        for (long h = 0; h < layer->n_heads; h++) {
            vec own_weight[2], (*own_part)[2] = inner;
            attend_tile(query + h * width / each * TILE, TILE, own_lse + h * TILE, keys + h * n_rows * width / each,
                        values + h * width * n_rows / each, n_keys, n_rows, width, 0, n_keys, weights, own_weight, x + h * width,
                        is_bf16);
            unpack((const vec(*)[2])(own + h * width / each * TILE), width, own_part, is_bf16);
            for (long e = 0; e < width; e++)
                for (int i = 0; i < 2; i++) x[h * width + e][i] += own_part[e][i] * own_weight[i];
        }
        unpack((const vec(*)[2])residual, hidden, y, is_bf16);
        finish(layer, (const vec(*)[2])x, y, words, inner, 2, kind);
        for (long v = 0; v < n_vectors; v++) {
            vec sum[2] = {};
            for (long m = 0; m < hidden; m++)
                for (int i = 0; i < 2; i++) sum[i] += y[m][i] * vectors[v * hidden + m];
            for (int i = 0; i < 2; i++) ((vec *)(out + v * stride + t * TILE))[i] = sum[i];
        }
        query += attention / each * TILE, own += attention / each * TILE, own_lse += layer->n_heads * TILE;
        residual += hidden / each * TILE;
    }
    end_tiles(before, has_tiles(kind));
}

#define ARGUMENTS                                                                                                              \
    const struct layer *layer, const float *query, const float *own, const float *own_lse, const float *residual,              \
        const float *keys, const float *values, const float *vectors, float *out, long n_tiles, long n_keys, long n_rows,      \
        long n_vectors, long stride, char *scratch
#define NAMES                                                                                                                  \
    layer, query, own, own_lse, residual, keys, values, vectors, out, n_tiles, n_keys, n_rows, n_vectors, stride, scratch

/* Items in tiles: query, own: [n_tiles][H * E][TILE]; own_lse: [n_tiles][H][TILE], float; residual: [n_tiles][hidden][TILE].
   Keys and values as `attend` takes them. vectors: [n_vectors][hidden]; out: [n_vectors][stride]. Where `is_half`, numbers
   2 i and 2 i + 1 of the items, along H * E or hidden, share a word. scratch: see fused.py. */
void score_fp32(ARGUMENTS) { score(NAMES, FP32); }

#if defined(HAS_BF16)
void score_bf16(ARGUMENTS) { score(NAMES, BF16); }
#endif
#if defined(HAS_BYTES)
void score_int8(ARGUMENTS) { score(NAMES, INT8); }
#endif

/* n_rows of n numbers become columns x[n][TILE], and the other way round; lanes of a vector behind the last row are 0. */
INLINE void columns_as(const char *rows, long n_rows, long n, vec (*x)[2], const int is_bf16)
{
    const int size = is_bf16 ? 2 : 4;
    for (long first = 0; first < n_rows; first += LANES)
        for (long k = 0; k < n; k += LANES) {
            vec part[LANES];
            for (long r = 0; r < LANES; r++)
                part[r] = first + r < n_rows ? loaded(rows + ((first + r) * n + k) * size, is_bf16) : (vec){};
            transpose(part);
            for (long r = 0; r < LANES; r++) x[k + r][first / LANES] = part[r];
        }
}

INLINE void rows_as(const vec (*x)[2], long n_rows, long n, char *rows, const int is_bf16)
{
    const int size = is_bf16 ? 2 : 4;
    for (long first = 0; first < n_rows; first += LANES)
        for (long k = 0; k < n; k += LANES) {
            vec part[LANES];
            for (long r = 0; r < LANES; r++) part[r] = x[k + r][first / LANES];
            transpose(part);
            for (long r = 0; r < LANES && first + r < n_rows; r++)
                store(rows + ((first + r) * n + k) * size, part[r], is_bf16);
        }
}

APART void columns_fp32(const char *rows, long n_rows, long n, vec (*x)[2]) { columns_as(rows, n_rows, n, x, 0); }
APART void columns_bf16(const char *rows, long n_rows, long n, vec (*x)[2]) { columns_as(rows, n_rows, n, x, 1); }
APART void rows_fp32(const vec (*x)[2], long n_rows, long n, char *rows) { rows_as(x, n_rows, n, rows, 0); }
APART void rows_bf16(const vec (*x)[2], long n_rows, long n, char *rows) { rows_as(x, n_rows, n, rows, 1); }

INLINE void project_tile(const struct layer *layer, const float *hidden, char *const to[3], long first, long n_rows, char *scratch,
                         const int kind)
{
    const int each = kind == INT8 ? 4 : kind == BF16 ? 2 : 1, vecs = n_rows > LANES ? 2 : 1;
    const long attention = layer->n_heads * layer->width, at = first * attention * (is_half(kind) ? 2 : 4);
    const struct dense *dense[3] = {&layer->query, &layer->key, &layer->value};
    vec(*x)[2] = (vec(*)[2])scratch, (*y)[2] = x + layer->hidden, (*words)[2] = y + padded(attention, kind), factor[2] = {};
    columns_fp32((const char *)(hidden + first * layer->hidden), n_rows, layer->hidden, x);
    pack((const vec(*)[2])x, layer->hidden, words, factor, vecs, kind);
    for (int part = 0; part < 3; part++) {
        for (int i = 0; i < vecs; i++)
            for (long m = 0; m < attention; m++) y[m][i] = splat(dense[part]->bias[m]);
        multiply(dense[part]->weights, dense[part]->scale, dense[part]->zeros, (const vec(*)[2])words,
                 filled(layer->hidden / each, kind), attention, factor, y, vecs, kind);
        (is_half(kind) ? rows_bf16 : rows_fp32)((const vec(*)[2])y, n_rows, attention, to[part] + at);
    }
}

INLINE void finish_tile(const struct layer *layer, const char *attended, const float *residual, float *out, long first,
                        long n_rows, char *scratch, const int kind)
{
    const long attention = layer->n_heads * layer->width, hidden = layer->hidden;
    vec(*x)[2] = (vec(*)[2])scratch, (*y)[2] = x + attention, (*inner)[2] = y + padded(hidden, kind);
    vec(*words)[2] = inner + padded(layer->chunk, kind);
    (is_half(kind) ? columns_bf16 : columns_fp32)(attended + first * attention * (is_half(kind) ? 2 : 4), n_rows, attention, x);
    columns_fp32((const char *)(residual + first * hidden), n_rows, hidden, y);
    finish(layer, (const vec(*)[2])x, y, words, inner, n_rows > LANES ? 2 : 1, kind);
    rows_fp32((const vec(*)[2])y, n_rows, hidden, (char *)(out + first * hidden));
}

/* hidden: [n_rows][hidden], float -> query, key and value: [n_rows][heads x width], bf16 where `is_half`; the query scaled.
   Half a tile is enough for the last LANES rows. */
INLINE void project_rows(const struct layer *layer, const float *hidden, char *query, char *key, char *value, long n_rows,
                         char *scratch, const int kind)
{
    char *const to[3] = {query, key, value};
    char before[64];
    begin_tiles(before, has_tiles(kind));
    for (long first = 0; first < n_rows; first += TILE)
        project_tile(layer, hidden, to, first, n_rows - first < TILE ? n_rows - first : TILE, scratch, kind);
    end_tiles(before, has_tiles(kind));
}

/* attended: [n_rows][heads x width], as above; residual and out: [n_rows][hidden], float. */
INLINE void finish_rows(const struct layer *layer, const char *attended, const float *residual, float *out, long n_rows,
                        char *scratch, const int kind)
{
    char before[64];
    begin_tiles(before, has_tiles(kind));
    for (long first = 0; first < n_rows; first += TILE)
        finish_tile(layer, attended, residual, out, first, n_rows - first < TILE ? n_rows - first : TILE, scratch, kind);
    end_tiles(before, has_tiles(kind));
}

#define PROJECT                                                                                                                \
    const struct layer *layer, const float *hidden, char *query, char *key, char *value, long n_rows, char *scratch
#define FINISH_ROWS                                                                                                            \
    const struct layer *layer, const char *attended, const float *residual, float *out, long n_rows, char *scratch

void project_fp32(PROJECT) { project_rows(layer, hidden, query, key, value, n_rows, scratch, FP32); }
void finish_fp32(FINISH_ROWS) { finish_rows(layer, attended, residual, out, n_rows, scratch, FP32); }

#if defined(HAS_BF16)
void project_bf16(PROJECT) { project_rows(layer, hidden, query, key, value, n_rows, scratch, BF16); }
void finish_bf16(FINISH_ROWS) { finish_rows(layer, attended, residual, out, n_rows, scratch, BF16); }
#endif
#if defined(HAS_BYTES)
void project_int8(PROJECT) { project_rows(layer, hidden, query, key, value, n_rows, scratch, INT8); }
void finish_int8(FINISH_ROWS) { finish_rows(layer, attended, residual, out, n_rows, scratch, INT8); }
#endif

int panel(int kind) { return panel_of(kind); }
int step(int kind) { return step_of(kind); }
