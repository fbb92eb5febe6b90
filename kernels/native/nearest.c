// The places nearest to wanted ones: see `kernels/nearest/reference.py`.
//
// A product in float32 tells, to within its rounding, who may be near; those few are measured again in float64. What is among the k nearest
// so far bounds who may still be: only the first rows need a bound of their own, the k-th smallest of the minima of groups of rows.
#include "keys.h"
#include "product.h"

#define STRIP 2048  // rows whose distances to a panel of wanted places stay in the cache
#define GROUP 16    // rows of a minimum
#define ROUNDING 4.0f  // the product is wrong by less than this many epsilons per dimension, times the largest squared lengths

typedef struct {
    long wanted, places, width, k;
    const float *want, *place;  // [M, d], [N, d]
    double *distance;           // [M, k]
    int64_t *row;               // [M, k]
} Nearest;

typedef double wide __attribute__((vector_size(64)));

API long nearest_scratch(const Nearest *n) {
    return 4 * (padded(n->places) + PANEL * n->width + STRIP * PANEL) + 2 * 8 * (STRIP / GROUP);
}

INLINE double measured(const float *a, const float *b, long n) {
    wide acc = {0};
    long i = 0;
    for (; i + 8 <= n; i += 8) {
        wide apart;
        for (int j = 0; j < 8; j++) apart[j] = (double)a[i + j] - (double)b[i + j];
        acc += apart * apart;
    }
    double total = ((acc[0] + acc[4]) + (acc[2] + acc[6])) + ((acc[1] + acc[5]) + (acc[3] + acc[7]));
    for (; i < n; i++) total += ((double)a[i] - (double)b[i]) * ((double)a[i] - (double)b[i]);
    return total;
}

// The rows come in ascending order, so equal distances stay in that of their rows.
INLINE void keep(const Nearest *n, long query, double distance, long row) {
    double *best = n->distance + query * n->k;
    int64_t *who = n->row + query * n->k;
    if (!(distance < best[n->k - 1])) return;
    long at = n->k - 1;
    for (; at && distance < best[at - 1]; at--) best[at] = best[at - 1], who[at] = who[at - 1];
    best[at] = distance, who[at] = row;
}

// The k-th smallest minimum of a column of half distances less the own half length; infinite where there are not so many groups.
INLINE float first_bound(const float *half, long rows, long k, uint64_t *keys) {
    long groups = rows / GROUP;
    if (groups < k) return __builtin_inff();
    for (long g = 0; g < groups; g++) {
        float least = half[g * GROUP * PANEL];
        for (long i = 1; i < GROUP; i++) {
            float other = half[(g * GROUP + i) * PANEL];
            least = other < least ? other : least;
        }
        keys[g] = key_of(-least, g);
    }
    smallest_first(keys, groups, k, keys + STRIP / GROUP);
    float bound = -__builtin_inff();
    for (long i = 0; i < k; i++) bound = -score_of(keys[i]) > bound ? -score_of(keys[i]) : bound;
    return bound;
}

// The nearest of the wanted places [first, last).
API void nearest_rows(const Nearest *n, long first, long last, float *scratch) {
    float *length = scratch, *packed = length + padded(n->places), *half = packed + PANEL * n->width, longest = 0.0f;
    uint64_t *keys = (uint64_t *)(half + STRIP * PANEL);
    for (long row = 0; row < n->places; row++) {
        const float *place = n->place + row * n->width;
        length[row] = dot(place, place, n->width);
        // A length that is no number makes the longest none, too, and then everybody is measured.
        if (!(length[row] <= longest)) longest = length[row] > longest ? length[row] : __builtin_inff();
    }
    for (; first < last; first += PANEL) {
        long queries = last - first < PANEL ? last - first : PANEL;
        float own[PANEL], error[PANEL], limit[PANEL];
        for (long q = 0; q < PANEL; q++) {
            if (q >= queries) {
                limit[q] = -__builtin_inff();
                continue;
            }
            const float *want = n->want + (first + q) * n->width;
            own[q] = dot(want, want, n->width);
            error[q] = ROUNDING * (float)n->width * 0x1p-23f * (own[q] + longest);
            for (long i = 0; i < n->k; i++) n->distance[(first + q) * n->k + i] = __builtin_inf(), n->row[(first + q) * n->k + i] = -1;
        }
        pack_float(queries, n->width, n->want + first * n->width, n->width, 1, packed);
        for (long begin = 0; begin < n->places; begin += STRIP) {
            long rows = n->places - begin < STRIP ? n->places - begin : STRIP, width = panel_width(queries);
            float_product(rows, width, n->width, n->place + begin * n->width, n->width, packed, half, PANEL, PLAIN);
            for (long row = 0; row < rows; row++)
                for (long q = 0; q < width; q += LANES)
                    store(half + row * PANEL + q, splat(0.5f * length[begin + row]) - load(half + row * PANEL + q));
            for (long q = 0; q < queries; q++) {
                double known = n->distance[(first + q) * n->k + n->k - 1];
                float bound = known < __builtin_inf() ? (float)(0.5 * (known - own[q])) : first_bound(half + q, rows, n->k, keys);
                limit[q] = bound + error[q];
            }
            for (long row = 0; row < rows; row++)
                for (long q = 0; q < width; q += LANES) {
                    ivec beyond = load(half + row * PANEL + q) > load(limit + q);
                    if (__builtin_reduce_and(beyond)) continue;
                    for (int lane = 0; lane < LANES && q + lane < queries; lane++)
                        if (!beyond[lane])
                            keep(n, first + q + lane,
                                 measured(n->want + (first + q + lane) * n->width, n->place + (begin + row) * n->width, n->width), begin + row);
                }
        }
    }
}
