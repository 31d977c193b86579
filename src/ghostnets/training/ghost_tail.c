// SPDX-License-Identifier: Apache-2.0
// What follows the primary convolution of a Ghost module (arXiv:1911.11907, section 3.1) for training on a CPU, forward and
// backward: norm, ReLU, depthwise filters, norm, ReLU, the maps and their ghosts side by side, and where it ends a residual
// branch the shortcut and the ReLU behind their sum. The maps in between stay in the cache; what a backward pass
// needs is computed again from the two that the norms read.
//
// Maps are channels last, float32 or (-DBF16) bfloat16; all else is float32. Sums are made in one order for a given number
// of threads, so a run can be repeated to the bit.
#include "native.h"
#include <math.h>
#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

typedef float vec __attribute__((vector_size(4 * LANES)));
typedef int32_t ivec __attribute__((vector_size(4 * LANES)));
typedef uint32_t uvec __attribute__((vector_size(4 * LANES)));
typedef uint16_t hvec __attribute__((vector_size(2 * LANES)));

#ifdef BF16
typedef uint16_t map_t;
static inline vec load(const map_t *p) {
  hvec h;
  memcpy(&h, p, sizeof h);
  uvec u = __builtin_convertvector(h, uvec) << 16;
  return (vec)u;
}
#ifdef __AVX512BF16__
static inline void store(map_t *p, vec v) {
  __m256bh h = _mm512_cvtneps_pbh((__m512)v);
  memcpy(p, &h, sizeof h);
}
static inline vec rounded(vec v) { // what `store` keeps
  return (vec)_mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)v)), 16);
}
#else
static inline void store(map_t *p, vec v) { // to the nearest, ties to even; a NaN stays one
  uvec u = (uvec)v;
  uvec r = (u + 0x7fff + ((u >> 16) & 1)) >> 16;
  uvec nan = (uvec)(v != v);
  r = (r & ~nan) | (nan & 0x7fc0);
  hvec h = __builtin_convertvector(r, hvec);
  memcpy(p, &h, sizeof h);
}
static inline vec rounded(vec v) { // what `store` keeps
  uvec u = (uvec)v;
  return (vec)((u + 0x7fff + ((u >> 16) & 1)) & 0xffff0000);
}
#endif
static inline float load1(const map_t *p) {
  uint32_t u = (uint32_t)*p << 16;
  float f;
  memcpy(&f, &u, 4);
  return f;
}
static inline void store1(map_t *p, float f) {
  uint32_t u;
  memcpy(&u, &f, 4);
  *p = f != f ? 0x7fc0 : (uint16_t)((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}
#else
typedef float map_t;
static inline vec load(const map_t *p) {
  vec v;
  memcpy(&v, p, sizeof v);
  return v;
}
static inline void store(map_t *p, vec v) { memcpy(p, &v, sizeof v); }
static inline vec rounded(vec v) { return v; }
static inline float load1(const map_t *p) { return *p; }
static inline void store1(map_t *p, float f) { *p = f; }
#endif

static inline vec loadf(const float *p) {
  vec v;
  memcpy(&v, p, sizeof v);
  return v;
}
static inline void storef(float *p, vec v) { memcpy(p, &v, sizeof v); }

#define MOST 49 // taps

// One row of an image is `n` = width * channels numbers, dealt with LANES at a time; `lanes` is n rounded up. `stride` is
// the length of a row of an image in float32 that has a border of zeros, behind which LANES may still be read. Each map has
// `ghosts` ghosts, which are dealt with one after the other: the first ghosts of all maps, then the second. `outputs` are
// kept of what is made.
typedef struct {
  int64_t images, height, width, channels, ghosts, outputs, n, size, lanes, border, stride;
  int side, taps, team;
} shape;

static shape shaped(int64_t images, int64_t height, int64_t width, int64_t channels, int64_t ghosts, int64_t outputs,
                    int side) {
  shape s = {.images = images, .height = height, .width = width, .channels = channels, .side = side};
  s.ghosts = ghosts;
  s.outputs = outputs;
  s.n = width * channels;
  s.size = height * s.n;
  s.lanes = (s.n + LANES - 1) / LANES * LANES;
  s.border = side / 2;
  s.stride = s.lanes + 2 * s.border * channels;
  s.taps = side * side;
  s.team = workers(images);
  return s;
}

// Memory that is zero, or the end.
static void *zeros(size_t count, size_t size) {
  void *p = calloc(count ? count : 1, size);
  if (!p)
    abort();
  return p;
}

// Rows of figures of each channel, for every lane of a row; zero behind it.
static float *along(const shape *s, const float *each, int64_t rows) {
  float *out = zeros(rows * s->lanes, 4);
  for (int64_t r = 0; r < rows; r++)
    for (int64_t k = 0; k < s->width; k++)
      memcpy(out + r * s->lanes + k * s->channels, each + r * s->channels, 4 * s->channels);
  return out;
}

// Sums of all workers by lane, as sums by channel.
static void by_channel(const shape *s, const double *sums, int64_t rows, double *out) {
  for (int64_t r = 0; r < rows; r++)
    for (int64_t c = 0; c < s->channels; c++) {
      double a = 0;
      for (int w = 0; w < s->team; w++)
        for (int64_t k = 0; k < s->width; k++)
          a += sums[(w * rows + r) * s->lanes + k * s->channels + c];
      out[r * s->channels + c] = a;
    }
}

INLINE vec part(const map_t *p, int64_t left) { // of the end of a row; zeros behind it
  if (left >= LANES)
    return load(p);
  vec v = {0};
  for (int k = 0; k < left; k++)
    v[k] = load1(p + k);
  return v;
}
INLINE void put(map_t *p, vec v, int64_t left) {
  if (left >= LANES)
    store(p, v);
  else
    for (int k = 0; k < left; k++)
      store1(p + k, v[k]);
}
INLINE vec positive(vec v) { return (vec)((ivec)v & ~(v < 0)); } // a NaN goes through

// --- norms: five figures of each channel

enum { MEAN, VARIANCE, INVERSE, SCALE, OFFSET, FIGURES };

// One figure of all norms, for every lane of a row.
static float *figures(const shape *s, const float *norms, int figure) {
  float *each = zeros((1 + s->ghosts) * s->channels, 4);
  for (int64_t g = 0; g <= s->ghosts; g++)
    memcpy(each + g * s->channels, norms + (g * FIGURES + figure) * s->channels, 4 * s->channels);
  float *out = along(s, each, 1 + s->ghosts);
  free(each);
  return out;
}

// From sums of differences to `shift` and of their squares.
static void settle(const shape *s, const double *sums, const float *shift, const float *weight, const float *bias,
                   float eps, float *norm) {
  int64_t c = s->channels;
  double count = (double)s->images * s->height * s->width;
  for (int64_t k = 0; k < c; k++) {
    double mean = sums[k] / count, variance = sums[c + k] / count - mean * mean;
    if (variance < 0)
      variance = 0;
    mean += shift[k];
    double inverse = 1 / sqrt(variance + eps);
    norm[MEAN * c + k] = (float)mean;
    norm[VARIANCE * c + k] = (float)variance;
    norm[INVERSE * c + k] = (float)inverse;
    norm[SCALE * c + k] = (float)(weight[k] * inverse);
    norm[OFFSET * c + k] = (float)(bias[k] - mean * weight[k] * inverse);
  }
}

// dx = scale * d + slope * x + level, from the sums of d and of d * (x - mean); sums become those for bias and weight.
static void backwards(const shape *s, const double *sums, const float *norm, float *slope, float *level, float *dweight,
                      float *dbias) {
  int64_t c = s->channels;
  double count = (double)s->images * s->height * s->width;
  for (int64_t k = 0; k < c; k++) {
    double inverse = norm[INVERSE * c + k], scale = norm[SCALE * c + k], product = sums[c + k] * inverse;
    double p = -scale * inverse * product / count;
    slope[k] = (float)p;
    level[k] = (float)(-scale * sums[k] / count - p * norm[MEAN * c + k]);
    dbias[k] = (float)sums[k];
    dweight[k] = (float)product;
  }
}

// --- images on their way through the cache

// relu(x * scale + offset) in float32 with a border of zeros.
INLINE void widen(const shape *s, const map_t *x, const float *scale, const float *offset, int relu, float *out) {
  int64_t inner = s->border * s->channels;
  memset(out, 0, 4 * s->stride * s->border);
  memset(out + (s->border + s->height) * s->stride, 0, 4 * s->stride * s->border);
  for (int64_t h = 0; h < s->height; h++) {
    float *row = out + (s->border + h) * s->stride;
    memset(row, 0, 4 * inner);
    for (int64_t l = 0; l < s->n; l += LANES) {
      vec v = part(x + h * s->n + l, s->n - l) * loadf(scale + l) + loadf(offset + l);
      storef(row + inner + l, relu ? positive(v) : v); // figures behind the row are zeros
    }
    memset(row + inner + s->n, 0, 4 * (s->stride - inner - s->n));
  }
}

// The maps of an image (height * width, outputs) and their ghosts into images of their own, one behind the other, or out of
// them.
INLINE void deal(const shape *s, char *whole, char *parts, size_t size, int joined) {
  char *ghosts = parts + s->size * sizeof(map_t);
  for (int64_t p = 0; p < s->height * s->width; p++) {
    char *w = whole + 2 * p * size;
    memcpy(joined ? w : parts + p * size, joined ? parts + p * size : w, size);
    memcpy(joined ? w + size : ghosts + p * size, joined ? ghosts + p * size : w + size, size);
  }
}
static void apart(const shape *s, map_t *whole, map_t *parts, int joined) {
  char *w = (char *)whole, *q = (char *)parts;
  if (s->ghosts == 1 && s->outputs == 2 * s->channels)
    switch (s->channels * sizeof(map_t)) { // so that one move does
    case 16: joined ? deal(s, w, q, 16, 1) : deal(s, w, q, 16, 0); return;
    case 32: joined ? deal(s, w, q, 32, 1) : deal(s, w, q, 32, 0); return;
    case 64: joined ? deal(s, w, q, 64, 1) : deal(s, w, q, 64, 0); return;
    default: deal(s, w, q, s->channels * sizeof(map_t), joined); return;
    }
  for (int64_t c = 0; c < s->outputs; c++) {
    int64_t ghost = c - s->channels; // ghosts of one map are neighbours
    map_t *of = parts + (ghost < 0 ? c : (1 + ghost % s->ghosts) * s->size + ghost / s->ghosts);
    for (int64_t p = 0; p < s->height * s->width; p++)
      if (joined)
        whole[p * s->outputs + c] = of[p * s->channels];
      else
        of[p * s->channels] = whole[p * s->outputs + c];
  }
}

// v plus the filters w over an image in float32 with its border, at one place.
INLINE vec filtered(const shape *s, int side, const float *image, const vec *w, int64_t h, int64_t l, vec v) {
  UNROLL for (int i = 0; i < side; i++) {
    const float *row = image + (h + i) * s->stride + l;
    UNROLL for (int j = 0; j < side; j++) v += loadf(row + j * s->channels) * w[i * side + j];
  }
  return v;
}

// y = the filters over `in`, in float32 with its border; sums of (y - shift) and of its square are added to `sums`.
INLINE void forwards(const shape *s, int side, const float *in, const float *weight, const float *shift, map_t *y,
                     float *sums) {
  for (int64_t l = 0; l < s->n; l += LANES) {
    vec w[MOST], from = loadf(shift + l), a = loadf(sums + l), b = loadf(sums + s->lanes + l);
    UNROLL for (int t = 0; t < side * side; t++) w[t] = loadf(weight + t * s->lanes + l);
    for (int64_t h = 0; h < s->height; h++) {
      vec v = rounded(filtered(s, side, in, w, h, l, (vec){0}));
      put(y + h * s->n + l, v, s->n - l);
      v -= from;
      a += v;
      b += v * v;
    }
    storef(sums + l, a);
    storef(sums + s->lanes + l, b);
  }
}

// so_far (height, lanes) = the turned filters over `back`, plus `plus` or, where that is NULL, plus so_far.
INLINE void pile(const shape *s, int side, const float *back, const float *weight, const map_t *plus, float *so_far) {
  for (int64_t l = 0; l < s->n; l += LANES) {
    vec w[MOST];
    UNROLL for (int t = 0; t < side * side; t++) w[t] = loadf(weight + (side * side - 1 - t) * s->lanes + l);
    for (int64_t h = 0; h < s->height; h++) {
      vec v = plus ? part(plus + h * s->n + l, s->n - l) : loadf(so_far + h * s->lanes + l);
      storef(so_far + h * s->lanes + l, filtered(s, side, back, w, h, l, v));
    }
  }
}

// d = the turned filters over `back`, plus `plus` (or so_far, where that is not NULL), where `x` scaled is above zero; sums
// of d and of d * (x - mean).
INLINE void spread(const shape *s, int side, const float *back, const float *weight, const map_t *plus,
                   const float *so_far, const map_t *x, const float *mean, const float *scale, const float *offset,
                   int relu, map_t *d, float *sums) {
  for (int64_t l = 0; l < s->n; l += LANES) {
    vec w[MOST], m = loadf(mean + l), k = loadf(scale + l), o = loadf(offset + l);
    vec a = loadf(sums + l), b = loadf(sums + s->lanes + l);
    UNROLL for (int t = 0; t < side * side; t++) w[t] = loadf(weight + (side * side - 1 - t) * s->lanes + l);
    for (int64_t h = 0; h < s->height; h++) {
      int64_t at = h * s->n + l, left = s->n - l;
      vec from = part(x + at, left);
      vec v = filtered(s, side, back, w, h, l, so_far ? loadf(so_far + h * s->lanes + l) : part(plus + at, left));
      if (relu)
        v = (vec)((ivec)v & (from * k + o > 0));
      v = rounded(v);
      put(d + at, v, left);
      a += v;
      b += v * (from - m);
    }
    storef(sums + l, a);
    storef(sums + s->lanes + l, b);
  }
}

// Adds to `sums` (taps, lanes) what one image says about the filters.
INLINE void gather(const shape *s, int side, const float *in, const float *back, float *sums) {
  for (int64_t l = 0; l < s->n; l += LANES) {
    vec a[MOST];
    UNROLL for (int t = 0; t < side * side; t++) a[t] = loadf(sums + t * s->lanes + l);
    for (int64_t h = 0; h < s->height; h++) {
      vec d = loadf(back + (h + s->border) * s->stride + s->border * s->channels + l);
      UNROLL for (int i = 0; i < side; i++) {
        const float *row = in + (h + i) * s->stride + l;
        UNROLL for (int j = 0; j < side; j++) a[i * side + j] += loadf(row + j * s->channels) * d;
      }
    }
    UNROLL for (int t = 0; t < side * side; t++) storef(sums + t * s->lanes + l, a[t]);
  }
}

// y = relu(y + plus), for one image of all outputs.
INLINE void join(const shape *s, const map_t *plus, map_t *y) {
  int64_t size = s->height * s->width * s->outputs;
  for (int64_t l = 0; l < size; l += LANES)
    put(y + l, positive(part(y + l, size - l) + part(plus + l, size - l)), size - l);
}

// dplus = dy where y is above zero, for one image of all outputs.
INLINE void part_ways(const shape *s, const map_t *y, const map_t *dy, map_t *dplus) {
  int64_t size = s->height * s->width * s->outputs;
  for (int64_t l = 0; l < size; l += LANES)
    put(dplus + l, (vec)((ivec)part(dy + l, size - l) & (part(y + l, size - l) > 0)), size - l);
}

#define BY_SIDE(function, ...)                                                                                         \
  switch (s.side) {                                                                                                    \
  case 1: function(&s, 1, __VA_ARGS__); break;                                                                         \
  case 3: function(&s, 3, __VA_ARGS__); break;                                                                         \
  case 5: function(&s, 5, __VA_ARGS__); break;                                                                         \
  default: function(&s, 7, __VA_ARGS__);                                                                               \
  }

// z (images, height, width, channels) -> y (images, height, width, outputs); r (ghosts, images, height, width, channels) are
// the filters' maps before their norm. filter (ghosts, taps, channels); norms (1 + ghosts, FIGURES, channels) are written,
// from affine (1 + ghosts, weight and bias, channels). Where plus is not NULL, relu(y + plus) is written instead of y.
void ghost_forward(const map_t *z, int64_t images, int64_t height, int64_t width, int64_t channels, int64_t ghosts,
                   int64_t outputs, int side, const float *filter, const float *affine, float eps1, float eps2, int relu1,
                   int relu2, const map_t *plus, map_t *r, map_t *y, float *norms) {
  shape s = shaped(images, height, width, channels, ghosts, outputs, side);
  int team = s.team;
  int64_t c = channels, size = s.size, whole = height * width * outputs, rows = 2 * s.lanes;
  float *shift = zeros(ghosts * c, 4);
  double *sums = zeros((size_t)team * ghosts * rows, 8), *each = zeros(2 * ghosts * c, 8);

  for (int64_t k = 0; k < c; k++)
    shift[k] = load1(z + k); // a value near the mean, against cancellation
  float *from = along(&s, shift, 1);
  TEAM {
    float *some = zeros(rows, 4);
    for (int64_t k = FROM; k < TO; k++) {
      for (int64_t l = 0; l < s.n; l += LANES) {
        vec a = loadf(some + l), b = loadf(some + s.lanes + l), m = loadf(from + l);
        for (int64_t h = 0; h < height; h++) {
          vec v = part(z + k * size + h * s.n + l, s.n - l) - m;
          a += v;
          b += v * v;
        }
        storef(some + l, a);
        storef(some + s.lanes + l, b);
      }
      if (DUE(k))
        flush(sums + me * rows, some, rows);
    }
    free(some);
  }
  by_channel(&s, sums, 2, each);
  settle(&s, each, shift, affine, affine + c, eps1, norms);
  free(from);

  float *scale1 = along(&s, norms + SCALE * c, 1), *offset1 = along(&s, norms + OFFSET * c, 1);
  float *weight = along(&s, filter, ghosts * s.taps);
  for (int64_t g = 0; g < ghosts; g++)
    for (int64_t k = 0; k < c; k++) { // what the filter's middle makes of the first pixel
      float v = load1(z + k) * norms[SCALE * c + k] + norms[OFFSET * c + k];
      shift[g * c + k] = (relu1 && v < 0 ? 0 : v) * filter[(g * s.taps + s.taps / 2) * c + k];
    }
  from = along(&s, shift, ghosts);
  memset(sums, 0, (size_t)team * ghosts * rows * 8);
  TEAM {
    float *some = zeros(ghosts * rows, 4), *in = zeros(s.stride * (height + 2 * s.border) + LANES, 4);
    for (int64_t k = FROM; k < TO; k++) {
      if (relu1)
        widen(&s, z + k * size, scale1, offset1, 1, in);
      else
        widen(&s, z + k * size, scale1, offset1, 0, in);
      for (int64_t g = 0; g < ghosts; g++) {
        BY_SIDE(forwards, in, weight + g * s.taps * s.lanes, from + g * s.lanes, r + (g * images + k) * size,
                some + g * rows)
      }
      if (DUE(k))
        flush(sums + me * ghosts * rows, some, ghosts * rows);
    }
    free(some);
    free(in);
  }
  by_channel(&s, sums, 2 * ghosts, each);
  for (int64_t g = 0; g < ghosts; g++)
    settle(&s, each + 2 * g * c, shift + g * c, affine + (2 * g + 2) * c, affine + (2 * g + 3) * c, eps2,
           norms + (1 + g) * FIGURES * c);

  float *scales = figures(&s, norms, SCALE), *offsets = figures(&s, norms, OFFSET);
  TEAM {
    map_t *parts = zeros((1 + ghosts) * size, sizeof(map_t));
    for (int64_t k = FROM; k < TO; k++) {
      for (int64_t g = 0; g <= ghosts; g++) {
        const map_t *x = g ? r + ((g - 1) * images + k) * size : z + k * size;
        const float *scale = scales + g * s.lanes, *offset = offsets + g * s.lanes;
        int relu = g ? relu2 : relu1;
        for (int64_t h = 0; h < height; h++)
          for (int64_t l = 0; l < s.n; l += LANES) {
            int64_t at = h * s.n + l, left = s.n - l;
            vec v = part(x + at, left) * loadf(scale + l) + loadf(offset + l);
            put(parts + g * size + at, relu ? positive(v) : v, left);
          }
      }
      apart(&s, y + k * whole, parts, 1);
      if (plus)
        join(&s, plus + k * whole, y + k * whole);
    }
    free(parts);
  }
  free(shift), free(sums), free(each), free(from), free(scale1), free(offset1), free(weight), free(scales), free(offsets);
}

// dy -> dz, dfilter (ghosts, taps, channels), daffine (1 + ghosts, weight and bias, channels); the rest as ghost_forward read
// and wrote it. Where it wrote a sum, y is that and dplus is written; else both are NULL.
void ghost_backward(const map_t *z, const map_t *r, const map_t *y, const map_t *dy, int64_t images, int64_t height,
                    int64_t width, int64_t channels, int64_t ghosts, int64_t outputs, int side, const float *filter,
                    const float *norms, int relu1, int relu2, map_t *dz, map_t *dplus, float *dfilter, float *daffine) {
  shape s = shaped(images, height, width, channels, ghosts, outputs, side);
  int team = s.team;
  int64_t c = channels, size = s.size, whole = height * width * outputs;
  int64_t rows = 2 * s.lanes, taps = s.taps * s.lanes, kept = rows + ghosts * taps;
  const map_t *pull = y ? dplus : dy;
  double *sums = zeros((size_t)team * (ghosts * rows + kept), 8), *each = zeros((2 * ghosts + 2 + ghosts * s.taps) * c, 8);
  float *means = figures(&s, norms, MEAN), *scales = figures(&s, norms, SCALE), *offsets = figures(&s, norms, OFFSET);

  TEAM {
    float *some = zeros(ghosts * rows, 4);
    map_t *parts = zeros((1 + ghosts) * size, sizeof(map_t));
    for (int64_t k = FROM; k < TO; k++) {
      if (y)
        part_ways(&s, y + k * whole, dy + k * whole, dplus + k * whole);
      apart(&s, (map_t *)pull + k * whole, parts, 0);
      for (int64_t g = 1; g <= ghosts; g++) {
        const map_t *from = r + ((g - 1) * images + k) * size, *to = parts + g * size;
        float *sum = some + (g - 1) * rows;
        for (int64_t l = 0; l < s.n; l += LANES) {
          vec p = loadf(sum + l), q = loadf(sum + s.lanes + l);
          vec m = loadf(means + g * s.lanes + l), scale = loadf(scales + g * s.lanes + l);
          vec offset = loadf(offsets + g * s.lanes + l);
          for (int64_t h = 0; h < height; h++) {
            vec d = part(to + h * s.n + l, s.n - l), x = part(from + h * s.n + l, s.n - l);
            if (relu2)
              d = (vec)((ivec)d & (x * scale + offset > 0));
            p += d;
            q += d * (x - m);
          }
          storef(sum + l, p);
          storef(sum + s.lanes + l, q);
        }
      }
      if (DUE(k))
        flush(sums + me * ghosts * rows, some, ghosts * rows);
    }
    free(some), free(parts);
  }
  float *lines = zeros(2 * (1 + ghosts) * c, 4); // slope and level of every norm
  by_channel(&s, sums, 2 * ghosts, each);
  for (int64_t g = 1; g <= ghosts; g++)
    backwards(&s, each + 2 * (g - 1) * c, norms + g * FIGURES * c, lines + 2 * g * c, lines + (2 * g + 1) * c,
              daffine + 2 * g * c, daffine + (2 * g + 1) * c);
  float *slopes = along(&s, lines, 2 * (1 + ghosts)), *weight = along(&s, filter, ghosts * s.taps);
  memset(sums, 0, (size_t)team * kept * 8);
  TEAM {
    size_t wide = s.stride * (height + 2 * s.border) + LANES;
    float *some = zeros(kept, 4), *in = zeros(wide, 4), *back = zeros(wide, 4);
    float *so_far = ghosts > 1 ? zeros(height * s.lanes, 4) : NULL;
    map_t *parts = zeros((1 + ghosts) * size, sizeof(map_t));
    for (int64_t k = FROM; k < TO; k++) {
      apart(&s, (map_t *)pull + k * whole, parts, 0);
      if (relu1)
        widen(&s, z + k * size, scales, offsets, 1, in);
      else
        widen(&s, z + k * size, scales, offsets, 0, in);
      for (int64_t g = 1; g <= ghosts; g++) {
        const map_t *from = r + ((g - 1) * images + k) * size, *to = parts + g * size;
        const float *scale = scales + g * s.lanes, *offset = offsets + g * s.lanes;
        const float *slope = slopes + 2 * g * s.lanes, *level = slope + s.lanes, *w = weight + (g - 1) * taps;
        for (int64_t h = 0; h < height; h++) // the border of `back` has stayed zero
          for (int64_t l = 0; l < s.n; l += LANES) {
            int64_t at = h * s.n + l, left = s.n - l;
            vec d = part(to + at, left), x = part(from + at, left), by = loadf(scale + l);
            if (relu2)
              d = (vec)((ivec)d & (x * by + loadf(offset + l) > 0));
            d = d * by + x * loadf(slope + l) + loadf(level + l);
            storef(back + (h + s.border) * s.stride + s.border * c + l, d); // behind the row: zeros
          }
        BY_SIDE(gather, in, back, some + rows + (g - 1) * taps)
        if (g < ghosts) {
          BY_SIDE(pile, back, w, g == 1 ? parts : NULL, so_far)
        } else if (ghosts > 1) {
          BY_SIDE(spread, back, w, parts, so_far, z + k * size, means, scales, offsets, relu1, dz + k * size, some)
        } else {
          BY_SIDE(spread, back, w, parts, NULL, z + k * size, means, scales, offsets, relu1, dz + k * size, some)
        }
      }
      if (DUE(k))
        flush(sums + me * kept, some, kept);
    }
    free(some), free(in), free(back), free(so_far), free(parts);
  }
  by_channel(&s, sums, 2 + ghosts * s.taps, each);
  backwards(&s, each, norms, lines, lines + c, daffine, daffine + c);
  for (int64_t k = 0; k < ghosts * s.taps * c; k++)
    dfilter[k] = (float)each[2 * c + k];
  float *slope1 = along(&s, lines, 2), *level1 = slope1 + s.lanes;
  TEAM for (int64_t k = FROM; k < TO; k++) for (int64_t h = 0; h < height; h++) for (int64_t l = 0; l < s.n; l += LANES) {
    int64_t at = k * size + h * s.n + l, left = s.n - l;
    put(dz + at, part(dz + at, left) * loadf(scales + l) + part(z + at, left) * loadf(slope1 + l) + loadf(level1 + l), left);
  }
  free(sums), free(each), free(means), free(scales), free(offsets), free(lines), free(slopes), free(weight);
  free(slope1);
}
