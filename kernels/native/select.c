// The best continuations of beams, exactly, in the order of `kernels.selection`: score descending, then parent and token ascending.
//
// One pass over the logits of a row leaves its log-normalizer and the maxima of groups of its tokens. The k-th largest maximum is a bound: at
// least k candidates reach it, and only groups whose maximum does are looked into. Adding one rounded number to a row keeps its order, so
// maxima of bare logits serve. Ties at the bound are kept in order until there are k: work is bounded on any numbers.
#include "select.h"

#include "keys.h"


#define NOTHING (-__builtin_inff())

INLINE long blocks(const Selection *s) { return (s->vocabulary + BLOCK - 1) / BLOCK; }

// NaN and +inf are as if they were -inf.
INLINE vec valid(vec x) { return choose(x < splat(__builtin_inff()), x, splat(NOTHING)); }

INLINE vec columns(const Selection *s, const float *logits, long column) {
    long left = s->vocabulary - column;
    return valid(left >= LANES ? load(logits + column) : load_part(logits + column, left, NOTHING));
}

// What the mask of a row forbids is -inf.
INLINE vec permitted(vec x, const uint32_t *allowed, long column) {
    if (!allowed) return x;
    const ivec lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    int32_t word = (int32_t)(allowed[column / 32] >> column % 32);
    ivec bit = ((ivec){} + word) >> lane & 1;
    return choose(bit != 0, x, splat(NOTHING));
}

// Words of a row's mask; none where there is no mask. `dead`: it allows nothing.
INLINE const uint32_t *mask_of(const Selection *s, long row, int *dead) {
    *dead = s->node && s->node[row] < 0;
    return !s->node || *dead ? 0 : (const uint32_t *)s->bitmask + (long)s->node[row] * s->words;
}

API void scan(const Selection *s, long first, long last) {
    for (long row = first; row < last; row++) {
        const float *logits = s->logits + row * s->vocabulary;
        float *maxima = s->maxima + row * blocks(s) * LANES;
        int dead;
        const uint32_t *allowed = mask_of(s, row, &dead);
        vec top = splat(NOTHING);
        for (long b = 0; b < blocks(s); b++) {
            vec best = splat(NOTHING), seen = splat(NOTHING);
            for (long column = b * BLOCK; column < s->vocabulary && column < (b + 1) * BLOCK; column += LANES) {
                vec x = columns(s, logits, column);
                seen = larger(x, seen);
                if (allowed) best = larger(permitted(x, allowed, column), best);
            }
            top = larger(seen, top);
            store(maxima + b * LANES, allowed ? best : seen);
        }
        float pivot = maximum(top), normalizer = 0.0f;
        if (s->normalize && pivot > NOTHING) {
            double total = 0.0;  // float32 over all blocks of 100,000 tokens would be 1e-4 off
            for (long b = 0; b < blocks(s); b++) {
                vec part = splat(0.0f);
                for (long column = b * BLOCK; column < s->vocabulary && column < (b + 1) * BLOCK; column += LANES)
                    part += exponential(columns(s, logits, column) - splat(pivot));
                total += sum(part);
            }
            normalizer = pivot + (float)__builtin_log(total);
        }
        float offset = s->cumulative[row] - normalizer;
        // A beam that is dead, or of which nothing is left.
        s->offset[row] = !dead && offset < __builtin_inff() ? offset : NOTHING;
        for (long i = 0; i < blocks(s) * LANES; i += LANES) store(maxima + i, load(maxima + i) + splat(s->offset[row]));
    }
}

static void sort(uint64_t *keys, long n, uint64_t *spare) {
    if (n <= 64) {
        for (long i = 1; i < n; i++) {
            uint64_t key = keys[i];
            long j = i;
            for (; j && keys[j - 1] > key; j--) keys[j] = keys[j - 1];
            keys[j] = key;
        }
        return;
    }
    for (int shift = 0; shift < 64; shift += 8) {
        long place[256] = {0}, sum = 0;
        for (long i = 0; i < n; i++) place[keys[i] >> shift & 255]++;
        for (int d = 0; d < 256; d++) {
            long here = place[d];
            place[d] = sum, sum += here;
        }
        for (long i = 0; i < n; i++) spare[place[keys[i] >> shift & 255]++] = keys[i];
        __builtin_memcpy(keys, spare, n * sizeof *keys);
    }
}

API long selection_keys(const Selection *s) {
    long maxima = s->beams * blocks(s) * LANES, candidates = s->beams * s->vocabulary;
    long opened = s->k * BLOCK < candidates ? s->k * BLOCK : candidates;
    return 2 * ((maxima > opened ? maxima : opened) + s->k);
}

// A score that at least k candidates of a request reach, if it has as many: the k-th largest maximum, of single groups or of whole blocks.
static float bound(const Selection *s, const float *maxima, uint64_t *keys, uint64_t *spare) {
    long all = s->beams * blocks(s), n = 0;
    int coarse = all >= 4 * s->k;
    for (long b = 0; b < all; b++) {
        if (coarse)
            keys[n] = key_of(maximum(load(maxima + b * LANES)), n), n++;
        else
            for (int i = 0; i < LANES; i++) keys[n] = key_of(maxima[b * LANES + i], n), n++;
    }
    if (n < s->k) return NOTHING;
    smallest_first(keys, n, s->k, spare);
    uint64_t last = 0;
    for (long i = 0; i < s->k; i++) last = keys[i] > last ? keys[i] : last;
    return score_of(last);
}

API void finish(const Selection *s, long request, uint64_t *keys) {
    uint64_t *spare = keys + selection_keys(s) / 2;
    const float *maxima = s->maxima + request * s->beams * blocks(s) * LANES;
    float least = bound(s, maxima, keys, spare);
    // Above the bound from the left, ties with it after them, no more than k.
    long above = 0, ties = 0;
    for (long beam = 0; beam < s->beams; beam++) {
        long row = request * s->beams + beam;
        const float *logits = s->logits + row * s->vocabulary;
        int dead;
        const uint32_t *allowed = mask_of(s, row, &dead);
        float offset = s->offset[row];
        if (offset == NOTHING) continue;
        for (long b = 0; b < blocks(s); b++) {
            float best = maximum(load(maxima + (beam * blocks(s) + b) * LANES));
            if (best < least || best == NOTHING) continue;
            for (long column = b * BLOCK; column < s->vocabulary && column < (b + 1) * BLOCK; column += LANES) {
                vec scores = permitted(columns(s, logits, column), allowed, column) + splat(offset);
                float part = maximum(scores);
                if (part < least || part == NOTHING) continue;
                for (int i = 0; i < LANES; i++) {
                    if (scores[i] < least || scores[i] == NOTHING) continue;
                    uint64_t key = key_of(scores[i], beam * s->vocabulary + column + i);
                    if (scores[i] > least)
                        keys[above++] = key;
                    else if (ties < s->k)
                        spare[ties++] = key;
                }
            }
        }
    }
    __builtin_memcpy(keys + above, spare, ties * sizeof *keys);
    long found = above + ties, kept = found < s->k ? found : s->k;
    if (found > kept) smallest_first(keys, found, kept, spare);
    sort(keys, kept, spare);
    float *score = s->score + request * s->k;
    int32_t *parent = s->parent + request * s->k, *token = s->token + request * s->k;
    for (long i = 0; i < s->k; i++) {
        long place = i < kept ? (long)(uint32_t)keys[i] : 0;
        score[i] = i < kept ? score_of(keys[i]) : NOTHING;
        parent[i] = (int32_t)(place / s->vocabulary);
        token[i] = i < kept ? (int32_t)(place % s->vocabulary) : -1;
    }
}
