// Scores with their places as numbers that sort: ascending keys are descending scores, then ascending places.
#pragma once
#include "vector.h"

// -0.0 is 0.0.
INLINE uint64_t key_of(float score, uint64_t place) {
    uint32_t bits;
    score += 0.0f;
    __builtin_memcpy(&bits, &score, 4);
    bits ^= bits >> 31 ? 0xffffffffu : 0x80000000u;
    return (uint64_t)~bits << 32 | place;
}

INLINE float score_of(uint64_t key) {
    uint32_t bits = ~(uint32_t)(key >> 32);
    bits ^= bits >> 31 ? 0x80000000u : 0xffffffffu;
    float score;
    __builtin_memcpy(&score, &bits, 4);
    return score;
}

// The k smallest of n distinct keys come first, in no order: one radix digit after the other, the same work on any numbers.
static inline void smallest_first(uint64_t *keys, long n, long k, uint64_t *spare) {
    for (int shift = 56; shift >= 0 && k < n; shift -= 8) {
        long count[257] = {0}, below = 0, within, digit = 0;
        for (long i = 0; i < n; i++) count[keys[i] >> shift & 255]++;
        while (below + count[digit] < k) below += count[digit++];
        within = count[digit];
        if (within == n) continue;
        // Those of smaller digits stay, those of this one are searched on.
        long stays = 0, open = 0;
        for (long i = 0; i < n; i++) {
            long d = keys[i] >> shift & 255;
            if (d < digit)
                keys[stays++] = keys[i];
            else if (d == digit)
                spare[open++] = keys[i];
        }
        __builtin_memcpy(keys + stays, spare, open * sizeof *keys);
        keys += stays, k -= stays, n = open;
    }
}
