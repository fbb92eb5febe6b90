// Vectors of 16 floats on every machine: half as many registers on AVX2, a quarter on NEON, and the same order of every sum.
#pragma once
#include <stdint.h>

#if !defined(__FMA__) && !defined(__aarch64__)
#error "a processor with fused multiply-add is needed"
#endif

#define LANES 16
#define API __attribute__((visibility("default")))
#define INLINE static inline __attribute__((always_inline))

typedef float vec __attribute__((vector_size(64)));
typedef float loose __attribute__((vector_size(64), aligned(4)));
typedef int32_t ivec __attribute__((vector_size(64)));

INLINE vec splat(float x) { return (vec){x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x}; }
INLINE vec load(const float *at) { return *(const loose *)at; }
INLINE void store(float *at, vec x) { *(loose *)at = x; }
INLINE vec fma16(vec a, vec b, vec c) { return __builtin_elementwise_fma(a, b, c); }
INLINE vec choose(ivec mask, vec yes, vec no) { return (vec)(((ivec)yes & mask) | ((ivec)no & ~mask)); }
INLINE vec larger(vec a, vec b) { return choose(a > b, a, b); }

// The first `count` lanes, and `rest` in the others.
INLINE vec first_lanes(vec x, long count, float rest) {
    const ivec lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    return choose(lane < (ivec){} + (int32_t)count, x, splat(rest));
}

// The first `count` < 16 floats of memory that may end there, and `rest` after them.
INLINE vec load_part(const float *at, long count, float rest) {
    vec x = splat(rest);
    for (long i = 0; i < count; i++) x[i] = at[i];
    return x;
}

INLINE float sum(vec x) {
    for (int half = 8; half; half /= 2)
        for (int i = 0; i < half; i++) x[i] += x[i + half];
    return x[0];
}

INLINE float maximum(vec x) {
    for (int half = 8; half; half /= 2)
        for (int i = 0; i < half; i++) x[i] = x[i] > x[i + half] ? x[i] : x[i + half];
    return x[0];
}

// e^x of x ≤ 0 within 2 units in the last place; 0 below -87 (the exponent of what is left out would be a denormal's) and of -inf.
INLINE vec exponential(vec x) {
    ivec gone = x < splat(-87.0f);
    vec in = choose(gone, splat(0.0f), x);
    vec n = __builtin_elementwise_rint(in * splat(1.44269504f));
    vec f = fma16(n, splat(-0.693145752f), in);  // ln 2 in two parts: the first is exact in 14 bits
    f = fma16(n, splat(-1.42860677e-6f), f);
    vec p = splat(1.98756926e-4f);
    p = fma16(p, f, splat(1.39819994e-3f));
    p = fma16(p, f, splat(8.33345205e-3f));
    p = fma16(p, f, splat(4.16657962e-2f));
    p = fma16(p, f, splat(1.66666657e-1f));
    p = fma16(p, f, splat(0.5f));
    p = fma16(p, f * f, f + splat(1.0f));
    vec scaled = (vec)((ivec)p + (__builtin_convertvector(n, ivec) << 23));
    return choose(gone, splat(0.0f), scaled);
}

// ln(1 + x) of x ≥ 0 within 3 units in the last place: 1 + x = 2^n · m with m from √½ to √2, and ln m = 2 artanh((m - 1) / (m + 1)).
INLINE vec log_of_one_plus(vec x) {
    const int32_t least = 0x3f3504f3;  // √½
    ivec above = (ivec)(x + splat(1.0f)) - least, n = above >> 23;
    vec m = (vec)((above & 0x7fffff) + least);
    vec f = choose(n == 0, x, m - splat(1.0f));  // the sum has lost digits of a small x
    vec s = f / (f + splat(2.0f)), z = s * s;
    vec p = splat(2.0f / 9);
    p = fma16(p, z, splat(2.0f / 7));
    p = fma16(p, z, splat(2.0f / 5));
    p = fma16(p, z, splat(2.0f / 3));
    p = fma16(p * z, s, s + s);
    return fma16(__builtin_convertvector(n, vec), splat(0.69314718f), p);
}

INLINE float dot(const float *a, const float *b, long n) {
    vec acc = splat(0.0f);
    long i = 0;
    for (; i + LANES <= n; i += LANES) acc = fma16(load(a + i), load(b + i), acc);
    float total = sum(acc);
    for (; i < n; i++) total += a[i] * b[i];
    return total;
}
