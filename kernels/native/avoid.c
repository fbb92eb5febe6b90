// What may follow each beam without going on as its request is to avoid: see `kernels/avoid/reference.py`.
#include "vector.h"

typedef struct {
    long rows, beams, level, vocabulary, prefixes;
    const int64_t *codes;    // [B * W, level]
    const int64_t *avoided;  // [B, prefixes, level + 1]
    uint32_t *allowed;       // [B * W, words], bit t % 32 of word t / 32 is code t
} Avoid;

API void avoid(const Avoid *a) {
    long words = (a->vocabulary + 31) / 32, rest = a->vocabulary % 32;
    for (long row = 0; row < a->rows; row++) {
        const int64_t *codes = a->codes + row * a->level;
        const int64_t *prefix = a->avoided + row / a->beams * a->prefixes * (a->level + 1);
        uint32_t *allowed = a->allowed + row * words;
        for (long i = 0; i < words; i++) allowed[i] = ~0u;
        if (rest) allowed[words - 1] = (1u << rest) - 1;
        for (long i = 0; i < a->prefixes; i++, prefix += a->level + 1) {
            uint64_t code = (uint64_t)prefix[a->level];
            long same = 0;
            while (same < a->level && prefix[same] == codes[same]) same++;
            if (same == a->level && code < (uint64_t)a->vocabulary) allowed[code / 32] &= ~(1u << code % 32);
        }
    }
}
