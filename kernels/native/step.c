// One level of a search for a range of rows: embedding, all layers of the decoder at one position of every beam, head, and the scan for the
// selection. `kernels/step/reference.py` says what the layers mean.
//
// Rows are taken 128 at a time through all layers, so that what lies between two products stays in the cache.
#include "product.h"
#include "select.h"

#define CHUNK 128
#define MOST_STEPS 64
#define PAD 16  // floats between rows of scratch: a row that is a power of two long would meet the others in one set of the cache

typedef struct {
    const void *query, *cross_out, *qkv, *self_out, *inner, *out;  // packed; what follows a norm has its gain inside
    const float *context_keys, *context_values;                    // packed, see pack_context
    float *keys, *values;                                          // float[B, L, S, G, D], history
} Layer;

typedef struct {
    long width, heads, groups, context_groups, head, ffn, layers, matrix_unit;
    long batch, beams, step, steps, slots, positions;
    float eps;
    const Layer *layer;
    const int32_t *lengths;    // [B], or none: all positions are valid
    const int32_t *ancestors;  // [B, L, S]
    float *hidden;             // [B * W, d], in and out
} Step;

INLINE long most(long a, long b) { return a > b ? a : b; }
INLINE long least(long a, long b) { return a < b ? a : b; }

// Numbers of packed keys, or of packed values, of one request and group: enough for either type.
INLINE long panels(long n) { return (n + 31) / 32 * 32; }
API long key_size(const Step *s) { return panels(s->positions) * panels(s->head); }
API long value_size(const Step *s) { return panels(s->head) * panels(s->positions); }

INLINE long wide(const Step *s) { return padded(s->width + 2 * s->groups * s->head) + PAD; }
INLINE long inner(const Step *s) { return padded(s->ffn) + 2 * PAD; }

typedef struct {
    float *normed, *heads, *scores, *wide;
#ifdef MATRIX_UNIT
    half *half_normed, *half_wide, *half_scores;
#endif
} Scratch;

// Rows of the attention of one head to one request's context.
INLINE long score_row(const Step *s) { return panels(s->positions) + PAD; }

API long step_scratch(const Step *s) {
    long floats = CHUNK * (2 * (padded(s->width) + PAD) + score_row(s) + most(wide(s), inner(s)));
    return 4 * floats + 2 * CHUNK * (padded(s->width) + inner(s) + panels(s->positions) + 6 * PAD);
}

static Scratch parts(const Step *s, float *at) {
    Scratch made;
    made.normed = at, at += CHUNK * (padded(s->width) + PAD);
    made.heads = at, at += CHUNK * (padded(s->width) + PAD);
    made.scores = at, at += CHUNK * score_row(s);
    made.wide = at, at += CHUNK * most(wide(s), inner(s));
#ifdef MATRIX_UNIT
    made.half_normed = (half *)at;
    made.half_wide = made.half_normed + CHUNK * (padded(s->width) + 2 * PAD);
    made.half_scores = made.half_wide + CHUNK * inner(s);
#endif
    return made;
}

// Rows [m, d] divided by their root mean square.
static void norm(const Step *s, long m, const float *x, float *to, long ldt) {
    long d = s->width;
    for (long row = 0; row < m; row++, x += d, to += ldt) {
        float by = 1.0f / __builtin_sqrtf(dot(x, x, d) / (float)d + s->eps);
        long i = 0;
        for (; i + LANES <= d; i += LANES) store(to + i, load(x + i) * splat(by));
        for (; i < d; i++) to[i] = x[i] * by;
    }
}

// exp(scale · (x - max)) / sum over the first n of a row, 0 up to the end of its last vector.
INLINE void softmax(float *x, long n, float scale) {
    long last = (n - 1) / LANES * LANES;
    store(x + last, first_lanes(load(x + last), n - last, -__builtin_inff()));
    vec top = splat(-__builtin_inff());
    for (long i = 0; i < n; i += LANES) top = larger(load(x + i), top);
    vec pivot = splat(maximum(top)), total = splat(0.0f);
    for (long i = 0; i < n; i += LANES) {
        vec e = exponential((load(x + i) - pivot) * splat(scale));
        store(x + i, e);
        total += e;
    }
    vec by = splat(1.0f / sum(total));
    for (long i = 0; i < n; i += LANES) store(x + i, load(x + i) * by);
}

// Rows [m, n] of a head's numbers times packed keys or values [n, k] of a request and group, for attention.
INLINE void attention_product(const Step *s, const Scratch *at, long m, long n, long k, const float *x, long ldx, const float *packed, long place,
                              float *out, long ldo) {
#ifdef MATRIX_UNIT
    if (s->matrix_unit) {
        long ld = deep(k) + 2 * PAD;
        to_half(m, k, x, ldx, at->half_scores, ld);
        half_product(m, n, k, at->half_scores, ld, (const half *)packed + place, out, 0, ldo, PLAIN);
        return;
    }
#endif
    (void)s, (void)at;
    float_product(m, n, k, x, ldx, packed + place, out, ldo, PLAIN);
}

// Queries [m, H * D] of rows of one request against its context, to `out`.
static void attend_context(const Step *s, const Scratch *at, const Layer *layer, long request, long m, const float *query, long ldq, float *out,
                           long ldo) {
    long known = s->lengths ? s->lengths[request] : s->positions, head = s->head, ratio = s->heads / s->context_groups;
    // Whole vectors of scores: the keys beyond the last are zeros, and `softmax` leaves their scores out.
    long scored = s->matrix_unit ? panels(known) : padded(known), ld = score_row(s);
    for (long h = 0; h < s->heads; h++) {
        long group = request * s->context_groups + h / ratio;
        float *to = out + h * head, *scores = at->scores;
        if (!known) {
            for (long row = 0; row < m; row++) __builtin_memset(to + row * ldo, 0, head * sizeof(float));
            continue;
        }
        attention_product(s, at, m, scored, head, query + h * head, ldq, layer->context_keys, group * key_size(s), scores, ld);
        for (long row = 0; row < m; row++) softmax(scores + row * ld, known, 1.0f / __builtin_sqrtf((float)head));
        attention_product(s, at, m, head, known, scores, ld, layer->context_values, group * value_size(s), to, ldo);
    }
}

// Softmax over the rows [n][16] of a matrix, every column by itself.
INLINE void softmax_columns(vec *x, long n, float scale) {
    vec top = x[0], total = splat(0.0f);
    for (long t = 1; t < n; t++) top = larger(x[t], top);
    for (long t = 0; t < n; t++) {
        x[t] = exponential((x[t] - top) * splat(scale));
        total += x[t];
    }
    vec by = splat(1.0f) / total;
    for (long t = 0; t < n; t++) x[t] *= by;
}

// The sum of rows [n, D] of a head by weights that lie 16 apart.
INLINE void mix(const float *const *row, const float *weight, long n, long head, float *out) {
    long i = 0;
    for (; i + LANES <= head; i += LANES) {
        vec acc = splat(0.0f);
        for (long t = 0; t < n; t++) acc = fma16(load(row[t] + i), splat(weight[t * LANES]), acc);
        store(out + i, acc);
    }
    for (; i < head; i++) {
        out[i] = 0.0f;
        for (long t = 0; t < n; t++) out[i] = __builtin_fmaf(row[t][i], weight[t * LANES], out[i]);
    }
}

// The newest queries, keys and values [m, (H + 2 G) * D] of rows from `first` on: keeps the keys and values, attends to the ancestors.
static void attend_self(const Step *s, const Layer *layer, long first, long m, const float *qkv, long ldq, float *out, long ldo) {
    long head = s->head, size = s->groups * head, ratio = s->heads / s->groups, known = s->step + 1;
    float scale = 1.0f / __builtin_sqrtf((float)head);
    for (long row = 0; row < m; row++, qkv += ldq, out += ldo) {
        long request = (first + row) / s->beams, beam = (first + row) % s->beams;
        const int32_t *table = s->ancestors + request * s->steps * s->slots + beam;
        const float *key[MOST_STEPS], *value[MOST_STEPS];
        for (long t = 0; t < known; t++) {
            long at = ((request * s->steps + t) * s->slots + (t < s->step ? table[t * s->slots] : beam)) * size;
            key[t] = layer->keys + at, value[t] = layer->values + at;
        }
        __builtin_memcpy((float *)key[s->step], qkv + s->width, size * sizeof(float));
        __builtin_memcpy((float *)value[s->step], qkv + s->width + size, size * sizeof(float));
        for (long begin = 0; begin < s->heads; begin += LANES) {
            long heads = least(LANES, s->heads - begin);
            vec weight[MOST_STEPS];
            for (long t = 0; t < known; t++) {
                weight[t] = splat(0.0f);
                for (long h = 0; h < heads; h++)
                    ((float *)(weight + t))[h] = dot(qkv + (begin + h) * head, key[t] + (begin + h) / ratio * head, head);
            }
            softmax_columns(weight, known, scale);
            for (long h = begin; h < begin + heads; h++) {
                const float *seen[MOST_STEPS];
                for (long t = 0; t < known; t++) seen[t] = value[t] + h / ratio * head;
                mix(seen, (const float *)weight + h - begin, known, head, out + h * head);
            }
        }
    }
}

static void product(const Step *s, const Scratch *at, long m, long n, const float *x, const void *w, float *out, long ldo, Epilogue epilogue) {
    long ldx = padded(s->width) + PAD;
#ifdef MATRIX_UNIT
    if (s->matrix_unit) {
        to_half(m, s->width, x, ldx, at->half_normed, padded(s->width) + 2 * PAD);
        half_product(m, n, s->width, at->half_normed, padded(s->width) + 2 * PAD, w, out, 0, ldo, epilogue);
        return;
    }
#else
    (void)at;
#endif
    float_product(m, n, s->width, x, ldx, w, out, ldo, epilogue);
}

static void feed_forward(const Step *s, const Scratch *at, const Layer *layer, long m, float *hidden) {
#ifdef MATRIX_UNIT
    if (s->matrix_unit) {
        to_half(m, s->width, at->normed, padded(s->width) + PAD, at->half_normed, padded(s->width) + 2 * PAD);
        half_product(m, s->ffn, s->width, at->half_normed, padded(s->width) + 2 * PAD, layer->inner, 0, at->half_wide, inner(s), RELU2);
        half_product(m, s->width, s->ffn, at->half_wide, inner(s), layer->out, hidden, 0, s->width, ADD);
        return;
    }
#endif
    float_product(m, s->ffn, s->width, at->normed, padded(s->width) + PAD, layer->inner, at->wide, inner(s), RELU2);
    float_product(m, s->width, s->ffn, at->wide, inner(s), layer->out, hidden, s->width, ADD);
}

static void layers(const Step *s, long first, long last, float *scratch) {
    Scratch at = parts(s, scratch);
    long d = s->width, ld = padded(d) + PAD;
    for (; first < last; first += CHUNK) {
        long m = least(CHUNK, last - first);
        float *hidden = s->hidden + first * d;
        for (const Layer *layer = s->layer; layer < s->layer + s->layers; layer++) {
            norm(s, m, hidden, at.normed, ld);
            product(s, &at, m, d, at.normed, layer->query, at.wide, wide(s), PLAIN);
            for (long row = 0, rows; row < m; row += rows) {
                long request = (first + row) / s->beams;
                rows = least((request + 1) * s->beams - first, m) - row;
                attend_context(s, &at, layer, request, rows, at.wide + row * wide(s), wide(s), at.heads + row * ld, ld);
            }
            product(s, &at, m, d, at.heads, layer->cross_out, hidden, d, ADD);
            norm(s, m, hidden, at.normed, ld);
            product(s, &at, m, d + 2 * s->groups * s->head, at.normed, layer->qkv, at.wide, wide(s), PLAIN);
            attend_self(s, layer, first, m, at.wide, wide(s), at.heads, ld);
            product(s, &at, m, d, at.heads, layer->self_out, hidden, d, ADD);
            norm(s, m, hidden, at.normed, ld);
            feed_forward(s, &at, layer, m, hidden);
        }
    }
}

// Keys and values of a context [B, G, S, D] with these strides, for `step`.
API void pack_context(const Step *s, const float *keys, const float *values, const long *key_strides, const long *value_strides,
                      float *packed_keys, float *packed_values) {
    for (long b = 0; b < s->batch; b++) {
        long known = s->lengths ? s->lengths[b] : s->positions;
        for (long g = 0; g < s->context_groups; g++) {
            const float *key = keys + b * key_strides[0] + g * key_strides[1], *value = values + b * value_strides[0] + g * value_strides[1];
            long at = b * s->context_groups + g;
#ifdef MATRIX_UNIT
            if (s->matrix_unit) {
                pack_half(known, s->head, key, key_strides[2], key_strides[3], (half *)packed_keys + at * key_size(s));
                pack_half(s->head, known, value, value_strides[3], value_strides[2], (half *)packed_values + at * value_size(s));
                continue;
            }
#endif
            pack_float(known, s->head, key, key_strides[2], key_strides[3], packed_keys + at * key_size(s));
            pack_float(s->head, known, value, value_strides[3], value_strides[2], packed_values + at * value_size(s));
        }
    }
}

API long weight_bytes(long n, long k, long matrix_unit) {
#ifdef MATRIX_UNIT
    if (matrix_unit) return 2 * (n + PANEL - 1) / PANEL * PANEL * deep(k);
#else
    (void)matrix_unit;
#endif
    return 4 * padded(n) * k;
}

// A weight [n, k], rows next to each other.
API void pack_weight(long n, long k, const float *weight, long matrix_unit, void *to) {
#ifdef MATRIX_UNIT
    if (matrix_unit) {
        pack_half(n, k, weight, k, 1, to);
        return;
    }
#else
    (void)matrix_unit;
#endif
    pack_float(n, k, weight, k, 1, to);
}

typedef struct {
    Step step;
    Selection selection;
    const float *table, *position;  // [V, d] and [d], whose sum is the state of a code; no table: the states are there already
    const int64_t *codes;           // [B * W, length], of which the last says the state; none: the first of the table
    long length;
    const void *head;  // packed [codes, d], with the gain of its norm inside; none: the level ends with the states
    const float *bias;         // [codes]
    const float *extra;        // [B * W, codes], or none
    float *logits;             // [B * W, codes]
    const int32_t *parent, *token;  // [B, K], what `advance` goes on with
    int32_t *next_ancestors;        // [B, L, S]
    int64_t *next_codes;            // [B, K, length + 1]
} Level;

static void embed(const Level *l, long row) {
    long d = l->step.width;
    const float *state = l->table + (l->codes && l->length ? l->codes[(row + 1) * l->length - 1] : 0) * d;
    for (long i = 0; i < d; i++) l->step.hidden[row * d + i] = state[i] + l->position[i];
}

static void logits(const Level *l, long first, long last, float *scratch) {
    const Step *s = &l->step;
    Scratch at = parts(s, scratch);
    long n = l->selection.vocabulary;
    for (; first < last; first += CHUNK) {
        long m = least(CHUNK, last - first);
        for (long row = first; row < first + m; row++)
            for (long i = 0; i < n; i++) l->logits[row * n + i] = l->extra ? l->bias[i] + l->extra[row * n + i] : l->bias[i];
        norm(s, m, s->hidden + first * s->width, at.normed, padded(s->width) + PAD);
        product(s, &at, m, n, at.normed, l->head, l->logits + first * n, n, ADD);
    }
}

// Rows [first, last) up to the logits, and their `scan` where a selection is to follow.
API void level_rows(const Level *l, long first, long last, float *scratch) {
    for (long row = first; l->table && row < last; row++) embed(l, row);
    layers(&l->step, first, last, scratch);
    if (!l->head) return;
    logits(l, first, last, scratch);
    if (l->selection.k) scan(&l->selection, first, last);
}

API void level_choose(const Level *l, uint64_t *keys) {
    for (long request = 0; request < l->selection.batch; request++) finish(&l->selection, request, keys);
}

// The table of ancestors and the codes of the beams that go on, see `kernels.beam_attention.advance`.
API void level_advance(const Level *l, long k) {
    const Step *s = &l->step;
    for (long b = 0; b < s->batch; b++) {
        const int32_t *parent = l->parent + b * k, *token = l->token + b * k;
        const int32_t *from = s->ancestors + b * s->steps * s->slots;
        int32_t *to = l->next_ancestors + b * s->steps * s->slots;
        // After the last step there may be more beams than slots, and nobody asks for their ancestors any more.
        if (s->step < s->steps - 1)
            for (long t = 0; t <= s->step; t++)
                for (long w = 0; w < k; w++) to[t * s->slots + w] = t == s->step ? parent[w] : from[t * s->slots + parent[w]];
        for (long w = 0; w < k; w++) {
            int64_t *codes = l->next_codes + (b * k + w) * (l->length + 1);
            if (l->length) __builtin_memcpy(codes, l->codes + (b * s->beams + parent[w]) * l->length, l->length * sizeof *codes);
            codes[l->length] = token[w] < 0 ? 0 : token[w];
        }
    }
}

// Whether this process may use the matrix unit: Linux gives its registers to whoever asks.
API long permit_matrix_unit(void) {
#ifdef MATRIX_UNIT
    long result;
    __asm__ volatile("syscall" : "=a"(result) : "a"(158), "D"(0x1023), "S"(18) : "rcx", "r11", "memory");
    return result == 0;
#else
    return 0;
#endif
}
