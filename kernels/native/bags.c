// Sums of the rows of embedding tables: see `kernels/bags/reference.py`.
#include "vector.h"

#define AHEAD 8  // rows that are on their way from memory while one is added

typedef struct {
    long features, bags, width;
    const float *const *tables;  // [features] of [rows, width]
    const long *rows;            // [features]
    const int64_t *values;       // feature by feature, bag by bag
    const int32_t *lengths;      // [features, bags], whose sum is `count`
    long count;
    float *out;  // [bags, features * width]
} Bags;

// The first value that its table has no row for, that is missing, or that is left over; -1: there is none.
API long pool(const Bags *b) {
    long next = 0;
    for (long feature = 0; feature < b->features; feature++) {
        const float *table = b->tables[feature];
        for (long bag = 0; bag < b->bags; bag++) {
            float *out = b->out + (bag * b->features + feature) * b->width;
            __builtin_memset(out, 0, b->width * sizeof *out);
            for (long end = next + b->lengths[feature * b->bags + bag]; next < end; next++) {
                if (next >= b->count || (uint64_t)b->values[next] >= (uint64_t)b->rows[feature]) return next;
                // A value of the next feature is prefetched from the wrong table, which harms nothing.
                const float *coming = table + (next + AHEAD < b->count ? b->values[next + AHEAD] : 0) * b->width;
                for (long i = 0; i < b->width; i += LANES) __builtin_prefetch(coming + i, 0, 1);
                const float *row = table + b->values[next] * b->width;
                long i = 0;
                for (; i + LANES <= b->width; i += LANES) store(out + i, load(out + i) + load(row + i));
                for (; i < b->width; i++) out[i] += row[i];
            }
        }
    }
    return next == b->count ? -1 : next;
}
