// What a selection reads, writes and needs; see select.c.
#pragma once
#include "vector.h"

#define BLOCK 256  // columns whose 16 maxima lie in one vector

typedef struct {
    long batch, beams, vocabulary, k, normalize, words;
    const float *logits;       // [B * W, V]
    const float *cumulative;   // [B * W]
    const int32_t *node;       // [B * W], row of `bitmask` of each beam, -1: nothing is allowed; or none
    const int32_t *bitmask;    // [nodes, words]
    float *maxima;             // [B * W, blocks * 16], out of `scan`
    float *offset;             // [B * W]
    float *score;              // [B, k]
    int32_t *parent, *token;   // [B, k]
} Selection;

// Maxima and offsets of rows; the rows of one request must all be there before its `finish`.
API void scan(const Selection *s, long first, long last);

// 64-bit numbers that `finish` needs room for.
API long selection_keys(const Selection *s);

// The best of one request.
API void finish(const Selection *s, long request, uint64_t *keys);
