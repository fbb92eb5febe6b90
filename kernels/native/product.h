// Products of rows with weights that were packed beforehand: panels of columns (the last one 16 wide, if that is enough), padded with zeros.
//
// Every output is summed along the inner dimension in one order, whatever the number of rows: a request alone has the bits that it has in
// a batch. In float32 that order is one number after the other; with bfloat16 weights the matrix unit adds pairs, in float32.
#pragma once

#include "vector.h"

// Columns of a panel and rows of a tile: enough accumulators to hide the latency of fused multiply-add, few enough for the registers.
#ifdef __AVX512F__
#define PANEL 32
#define ROWS 8
#else
#define PANEL 16
#define ROWS 6
#endif

typedef enum { PLAIN, ADD, RELU2 } Epilogue;  // out = product, out += product, out = max(product, 0)²

INLINE long panel_width(long left) { return left > LANES ? PANEL : LANES; }

// Floats of `n` columns in panels.
INLINE long padded(long n) { return (n + LANES - 1) / LANES * LANES; }

// Columns [n, k], `column` and `inner` numbers apart, into panels of [k][PANEL].
INLINE void pack_float(long n, long k, const float *from, long column, long inner, float *to) {
    for (long first = 0; first < n; first += PANEL) {
        long width = panel_width(n - first), real = n - first < width ? n - first : width;
        for (long p = 0; p < k; p++, to += width)
            for (long j = 0; j < width; j++) to[j] = j < real ? from[(first + j) * column + p * inner] : 0.0f;
    }
}

// `vectors` and `rows` are constants where this is inlined. `ahead` is what the next panel will be read from: its first touch is slow.
INLINE void float_tile(int rows, int vectors, long k, const float *x, long ldx, const float *w, const float *ahead, int lines, float *out,
                       long ldo, Epilogue epilogue) {
    vec acc[ROWS][PANEL / LANES];
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < vectors; j++) acc[i][j] = epilogue == ADD ? load(out + i * ldo + j * LANES) : splat(0.0f);
    for (long p = 0; p < k; p++) {
        for (int line = 0; line < lines; line++) __builtin_prefetch(ahead + (p * lines + line) * LANES, 0, 2);
        vec b[PANEL / LANES];
        for (int j = 0; j < vectors; j++) b[j] = load(w + p * vectors * LANES + j * LANES);
        for (int i = 0; i < rows; i++)
            for (int j = 0; j < vectors; j++) acc[i][j] = fma16(splat(x[i * ldx + p]), b[j], acc[i][j]);
    }
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < vectors; j++) {
            vec y = acc[i][j];
            if (epilogue == RELU2) y = larger(y, splat(0.0f)), y *= y;
            store(out + i * ldo + j * LANES, y);
        }
}

#define FLOAT_TILE(R)                                                                                                             \
    static void float_tile_##R(int vectors, long k, const float *x, long ldx, const float *w, const float *ahead, int lines,      \
                               float *out, long ldo, Epilogue epilogue) {                                                         \
        if (vectors > 1)                                                                                                          \
            float_tile(R, PANEL / LANES, k, x, ldx, w, ahead, lines, out, ldo, epilogue);                                         \
        else                                                                                                                      \
            float_tile(R, 1, k, x, ldx, w, ahead, lines, out, ldo, epilogue);                                                     \
    }
FLOAT_TILE(1) FLOAT_TILE(2) FLOAT_TILE(3) FLOAT_TILE(4) FLOAT_TILE(5) FLOAT_TILE(6)
#if ROWS == 8
FLOAT_TILE(7) FLOAT_TILE(8)
#endif

typedef void FloatTile(int, long, const float *, long, const float *, const float *, int, float *, long, Epilogue);
static FloatTile *const FLOAT_TILES[] = {
    0, float_tile_1, float_tile_2, float_tile_3, float_tile_4, float_tile_5, float_tile_6,
#if ROWS == 8
    float_tile_7, float_tile_8,
#endif
};

// x [m, k] times packed w [n, k] into out [m, n].
static void float_product(long m, long n, long k, const float *x, long ldx, const float *w, float *out, long ldo, Epilogue epilogue) {
    float edge[ROWS * PANEL];
    for (long first = 0; first < n; first += PANEL) {
        long width = panel_width(n - first), real = n - first < width ? n - first : width;
        int vectors = (int)(width / LANES), more = first + PANEL < n;
        for (long row = 0; row < m; row += ROWS) {
            int rows = (int)(m - row < ROWS ? m - row : ROWS);
            // Each of the first tiles of rows brings a share of the next panel, a lone one all of it.
            int lines = !more ? 0 : m <= ROWS ? PANEL / LANES : row < PANEL / LANES * ROWS ? 1 : 0;
            const float *ahead = w + width * k + row / ROWS * k * LANES;
            float *to = out + row * ldo + first;
            if (real == width) {
                FLOAT_TILES[rows](vectors, k, x + row * ldx, ldx, w, ahead, lines, to, ldo, epilogue);
                continue;
            }
            if (epilogue == ADD)
                for (int i = 0; i < rows; i++) __builtin_memcpy(edge + i * PANEL, to + i * ldo, real * sizeof(float));
            FLOAT_TILES[rows](vectors, k, x + row * ldx, ldx, w, ahead, lines, edge, PANEL, epilogue);
            for (int i = 0; i < rows; i++) __builtin_memcpy(to + i * ldo, edge + i * PANEL, real * sizeof(float));
        }
        w += width * k;
    }
}

#if defined(__AMX_BF16__) && defined(__AVX512BF16__)
#define MATRIX_UNIT 1
#include <immintrin.h>

typedef uint16_t half;  // bfloat16

#define DEEP 32  // bfloat16 numbers of one row of a tile

INLINE long deep(long k) { return (k + DEEP - 1) / DEEP * DEEP; }

INLINE uint32_t bits_of(float x) {
    uint32_t bits;
    __builtin_memcpy(&bits, &x, 4);
    return bits;
}

// Rounded to the nearest, ties to even.
INLINE half narrow(float x) {
    uint32_t bits = bits_of(x);
    return (half)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// Columns [n, k], `column` and `inner` numbers apart, into tiles of 32 numbers times 16 columns, two neighbours in a word, two tiles side
// by side.
static inline void pack_half(long n, long k, const float *from, long column, long inner, half *to) {
    for (long first = 0; first < n; first += PANEL)
        for (long p = 0; p < k; p += DEEP)
            for (long j = first; j < first + PANEL; j += LANES)
                for (long q = p; q < p + DEEP; q += 2)
                    for (long c = j; c < j + LANES; c++)
                        for (long i = q; i < q + 2; i++) *to++ = c < n && i < k ? narrow(from[c * column + i * inner]) : 0;
}

// Rows [m, k] of floats as rows of bfloat16, padded with zeros to a whole tile.
INLINE void to_half(long m, long k, const float *x, long ldx, half *to, long ldt) {
    for (long row = 0; row < m; row++)
        for (long p = 0; p < deep(k); p += LANES) {
            vec part = p + LANES <= k ? load(x + row * ldx + p) : load_part(x + row * ldx + p, k > p ? k - p : 0, 0.0f);
            *(__m256bh *)(to + row * ldt + p) = _mm512_cvtneps_pbh((__m512)part);
        }
}

typedef struct {
    uint8_t palette, start, unused[14];
    uint16_t bytes[16];
    uint8_t rows[16];
} TileShapes;

// Tiles 0 to 3 are sums (two of rows times two of columns), 4 and 5 rows of x, 6 and 7 weights.
INLINE void shape_tiles(int upper, int lower) {
    TileShapes shapes = {.palette = 1};
    const int rows[] = {upper, upper, lower, lower, upper, lower, LANES, LANES};
    for (int i = 0; i < 8; i++) shapes.bytes[i] = 64, shapes.rows[i] = (uint8_t)(rows[i] ? rows[i] : 1);
    _tile_loadconfig(&shapes);
}

// x [m, k] of bfloat16 times packed w [n, k] into out [m, n]; `out16` instead, if given, takes it rounded.
static inline void half_product(long m, long n, long k, const half *x, long ldx, const half *w, float *out, half *out16, long ldo,
                                Epilogue epilogue) {
    float sums[PANEL * PANEL];
    long steps = deep(k) / DEEP;
    for (long row = 0; row < m; row += 2 * LANES) {
        int upper = (int)(m - row < LANES ? m - row : LANES), lower = (int)(m - row < 2 * LANES ? m - row - upper : LANES);
        shape_tiles(upper, lower);
        const half *from = x + row * ldx, *panel = w;
        for (long first = 0; first < n; first += PANEL) {
            long real = n - first < PANEL ? n - first : PANEL;
            // Where whole tiles can be written, the matrix unit writes them, and adds to what is there.
            int whole = epilogue != RELU2 && real == PANEL;
            float *to = whole ? out + row * ldo + first : sums;
            long ld = whole ? ldo * 4 : PANEL * 4, under = whole ? LANES * ldo : LANES * PANEL;
            if (whole && epilogue == ADD) {
                _tile_loadd(0, to, ld), _tile_loadd(1, to + LANES, ld);
                if (lower) _tile_loadd(2, to + under, ld), _tile_loadd(3, to + under + LANES, ld);
            } else
                _tile_zero(0), _tile_zero(1), _tile_zero(2), _tile_zero(3);
            for (long step = 0; step < steps; step++, panel += PANEL * DEEP) {
                _tile_loadd(4, from + step * DEEP, ldx * 2);
                _tile_loadd(6, panel, 64);
                _tile_dpbf16ps(0, 4, 6);
                _tile_loadd(7, panel + LANES * DEEP, 64);
                _tile_dpbf16ps(1, 4, 7);
                if (lower) {
                    _tile_loadd(5, from + LANES * ldx + step * DEEP, ldx * 2);
                    _tile_dpbf16ps(2, 5, 6);
                    _tile_dpbf16ps(3, 5, 7);
                }
                for (int line = 0; !row && line < 32; line++) __builtin_prefetch(panel + steps * PANEL * DEEP + line * DEEP, 0, 2);
            }
            _tile_stored(0, to, ld), _tile_stored(1, to + LANES, ld);
            if (lower) _tile_stored(2, to + under, ld), _tile_stored(3, to + under + LANES, ld);
            if (whole) continue;
            for (int i = 0; i < upper + lower; i++) {
                float *part = sums + i * PANEL;
                for (long j = 0; epilogue == RELU2 && j < PANEL; j += LANES) {
                    vec y = larger(load(part + j), splat(0.0f));
                    store(part + j, y * y);
                }
                if (out16)
                    to_half(1, real, part, 0, out16 + (row + i) * ldo + first, 0);
                else if (epilogue == ADD)
                    for (long j = 0; j < real; j++) out[(row + i) * ldo + first + j] += part[j];
                else
                    __builtin_memcpy(out + (row + i) * ldo + first, part, real * sizeof(float));
            }
        }
    }
    _tile_release();
}
#endif
