// What priors say of the codes that follow each beam: see `kernels/prior/reference.py` for what it means.
//
// Few codes of a level were watched or followed something: only these are summed up and put through a logarithm, not the whole codebook.
#include "product.h"

#define CHUNK 128  // rows of a product: those of the table stay in the cache

typedef struct {
    long beams, level, levels, vocabulary;
    const int64_t *codes;  // [B * W, level]
    long rows, depth;
    const float *table, *spread;  // [rows, depth]; [vocabulary, depth], packed
    long videos, start;           // `start`: level at which the modality of this one begins
    const int64_t *watched;       // [B, videos, levels]
    const uint8_t *liked;         // [B, videos]
    const float *watched_weight;  // [3]
    long followers, scales;
    const int64_t *followed;       // [B, followers, levels]
    const float *mass;             // [B, followers]
    const float *followed_weight;  // [scales]
    const float *scale;            // [scales]
    float *extra;                  // [B * W, vocabulary]
} Prior;

enum { LIKED, OTHER, WHOLE, FOLLOWED, SUMS };

// The codes that something is known of after one beam, and the sums of each, in the order in which they were met.
typedef struct {
    long count, room;
    int32_t *place;  // [vocabulary], of each code among them; -1: it is none
    int32_t *code;   // [room]
    float *sums;     // [SUMS, room]
} Known;

INLINE long voices(const Prior *p) { return padded(p->videos + p->followers); }

API long prior_scratch(const Prior *p) {
    return 4 * (padded(p->vocabulary) + (1 + SUMS) * voices(p) + CHUNK * p->depth);
}

INLINE float *sums_of(Known *known, int64_t code) {
    int32_t at = known->place[code];
    if (at < 0) {
        at = known->place[code] = (int32_t)known->count++;
        known->code[at] = (int32_t)code;
        if (at % LANES == 0)
            for (int sum = 0; sum < SUMS; sum++) store(known->sums + sum * known->room + at, splat(0.0f));
    }
    return known->sums + at;
}

// The level from which on an SID has the codes of a beam.
INLINE long agrees_from(const int64_t *sid, const int64_t *codes, long level) {
    while (level && sid[level - 1] == codes[level - 1]) level--;
    return level;
}

static void count(const Prior *p, long row, Known *known) {
    const int64_t *codes = p->codes + row * p->level;
    long request = row / p->beams;
    for (long at = request * p->videos; at < (request + 1) * p->videos; at++) {
        const int64_t *sid = p->watched + at * p->levels;
        long from = agrees_from(sid, codes, p->level);
        if (from > p->start || (uint64_t)sid[p->level] >= (uint64_t)p->vocabulary) continue;
        float *sums = sums_of(known, sid[p->level]);
        sums[(p->liked[at] ? LIKED : OTHER) * known->room] += 1.0f;
        if (!from) sums[WHOLE * known->room] += 1.0f;
    }
    for (long at = request * p->followers; at < (request + 1) * p->followers; at++) {
        const int64_t *sid = p->followed + at * p->levels;
        if (agrees_from(sid, codes, p->level) || (uint64_t)sid[p->level] >= (uint64_t)p->vocabulary) continue;
        sums_of(known, sid[p->level])[FOLLOWED * known->room] += p->mass[at];
    }
}

// Adds what is known to a row of logits, and forgets it.
static void speak(const Prior *p, Known *known, float *extra) {
    for (long first = 0; first < known->count; first += LANES) {
        vec said = splat(0.0f);
        for (int sum = 0; sum < FOLLOWED; sum++)
            said = fma16(splat(p->watched_weight[sum]), log_of_one_plus(load(known->sums + sum * known->room + first)), said);
        vec mass = load(known->sums + FOLLOWED * known->room + first);
        for (long i = 0; i < p->scales; i++)
            said = fma16(splat(p->followed_weight[i]), log_of_one_plus(mass * splat(p->scale[i])), said);
        for (long i = 0; i < LANES && first + i < known->count; i++) {
            int32_t code = known->code[first + i];
            extra[code] += said[i];
            known->place[code] = -1;
        }
    }
    known->count = 0;
}

// Row of the table: `prefix_row` there.
INLINE long hashed(const Prior *p, const int64_t *codes) {
    uint64_t key = (uint64_t)p->level;
    for (long i = 0; i < p->level; i++) {
        key = (key ^ (uint64_t)(codes[i] + 1)) * 0x9E3779B97F4A7C15u;
        key ^= key >> 29;
    }
    long row = (long)((int64_t)key % p->rows);
    return row < 0 ? row + p->rows : row;
}

API void prior_rows(const Prior *p, long first, long last, float *scratch) {
    Known known = {0, voices(p), (int32_t *)scratch, (int32_t *)scratch + padded(p->vocabulary), 0};
    known.sums = (float *)(known.code + known.room);
    float *found = known.sums + SUMS * known.room;
    for (long code = 0; code < p->vocabulary; code++) known.place[code] = -1;
    for (; first < last; first += CHUNK) {
        long m = last - first < CHUNK ? last - first : CHUNK;
        for (long i = 0; i < m; i++)
            __builtin_memcpy(found + i * p->depth, p->table + hashed(p, p->codes + (first + i) * p->level) * p->depth,
                             p->depth * sizeof *found);
        float *extra = p->extra + first * p->vocabulary;
        float_product(m, p->vocabulary, p->depth, found, p->depth, p->spread, extra, p->vocabulary, PLAIN);
        for (long i = 0; i < m; i++) {
            count(p, first + i, &known);
            speak(p, &known, extra + i * p->vocabulary);
        }
    }
}
