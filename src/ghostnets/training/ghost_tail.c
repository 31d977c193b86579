// SPDX-License-Identifier: Apache-2.0
// What follows the primary convolution of a Ghost module (arXiv:1911.11907, section 3.1) with ratio 2, for training on a
// CPU, forward and backward: norm, ReLU, depthwise filters, norm, ReLU, both halves side by side, and where it ends a
// residual branch the shortcut and the ReLU behind their sum. The maps in between stay in the cache; what a backward pass
// needs is computed again from the two that the norms read.
//
// Maps are channels last, float32 or (-DBF16) bfloat16; all else is float32. Sums are made in one order for a given number
// of threads, so a run can be repeated to the bit.
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef __AVX512BF16__
#include <immintrin.h>
#endif
#ifdef _OPENMP
#include <omp.h>
#endif

#define LANES 16
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

static int workers(int64_t images) {
#ifdef _OPENMP
  int most = omp_get_max_threads();
  return images < most ? (int)images : most;
#else
  (void)images;
  return 1;
#endif
}

#define IMAGES 8 // whose sums are added up in float32 before they go on in float64
#define MOST 49  // taps
#define UNROLL _Pragma("GCC unroll 64")
#define INLINE static inline __attribute__((always_inline))

// One row of an image is `n` = width * channels numbers, dealt with LANES at a time; `lanes` is n rounded up. `stride` is
// the length of a row of an image in float32 that has a border of zeros, behind which LANES may still be read.
typedef struct {
  int64_t images, height, width, channels, n, lanes, border, stride;
  int side, taps, workers;
} shape;

static shape shaped(int64_t images, int64_t height, int64_t width, int64_t channels, int side) {
  shape s = {.images = images, .height = height, .width = width, .channels = channels, .side = side};
  s.n = width * channels;
  s.lanes = (s.n + LANES - 1) / LANES * LANES;
  s.border = side / 2;
  s.stride = s.lanes + 2 * s.border * channels;
  s.taps = side * side;
  s.workers = workers(images);
  return s;
}

// Memory that is zero, or the end.
static void *zeros(size_t count, size_t size) {
  void *p = calloc(count ? count : 1, size);
  if (!p)
    abort();
  return p;
}

// Figures of each channel, for every lane of a row; zero behind it.
static float *along(const shape *s, const float *each) {
  float *out = zeros(s->lanes, 4);
  for (int64_t k = 0; k < s->width; k++)
    memcpy(out + k * s->channels, each, 4 * s->channels);
  return out;
}

static float *filters(const shape *s, const float *weight, int flipped) {
  float *out = zeros((size_t)s->taps * s->lanes, 4);
  for (int t = 0; t < s->taps; t++)
    for (int64_t k = 0; k < s->width; k++)
      memcpy(out + t * s->lanes + k * s->channels, weight + (flipped ? s->taps - 1 - t : t) * s->channels,
             4 * s->channels);
  return out;
}

// Sums of all workers by lane, as sums by channel.
static void by_channel(const shape *s, const double *sums, int64_t rows, double *out) {
  for (int64_t r = 0; r < rows; r++)
    for (int64_t c = 0; c < s->channels; c++) {
      double a = 0;
      for (int w = 0; w < s->workers; w++)
        for (int64_t k = 0; k < s->width; k++)
          a += sums[(w * rows + r) * s->lanes + k * s->channels + c];
      out[r * s->channels + c] = a;
    }
}

static void flush(double *into, float *some, int64_t count) {
  for (int64_t k = 0; k < count; k++) {
    into[k] += some[k];
    some[k] = 0;
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

// --- norms: six figures of each channel

enum { MEAN, VARIANCE, INVERSE, SCALE, OFFSET, FIGURES };

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

// The two halves of an image (height * width, 2 * channels) into images of their own, or out of them.
INLINE void deal(const shape *s, char *whole, char *a, char *b, size_t size, int joined) {
  for (int64_t p = 0; p < s->height * s->width; p++) {
    char *w = whole + 2 * p * size;
    memcpy(joined ? w : a + p * size, joined ? a + p * size : w, size);
    memcpy(joined ? w + size : b + p * size, joined ? b + p * size : w + size, size);
  }
}
static void halves(const shape *s, map_t *whole, map_t *a, map_t *b, int joined) {
  char *w = (char *)whole, *x = (char *)a, *y = (char *)b;
  switch (s->channels * sizeof(map_t)) { // so that one move does
  case 16: joined ? deal(s, w, x, y, 16, 1) : deal(s, w, x, y, 16, 0); break;
  case 32: joined ? deal(s, w, x, y, 32, 1) : deal(s, w, x, y, 32, 0); break;
  case 64: joined ? deal(s, w, x, y, 64, 1) : deal(s, w, x, y, 64, 0); break;
  default: deal(s, w, x, y, s->channels * sizeof(map_t), joined);
  }
}

// y = the filters over `in`, in float32 with its border; sums of (y - shift) and of its square are added to `sums`.
INLINE void forwards(const shape *s, int side, const float *in, const float *weight, const float *shift, map_t *y,
                     float *sums) {
  for (int64_t l = 0; l < s->n; l += LANES) {
    vec w[MOST], from = loadf(shift + l), a = loadf(sums + l), b = loadf(sums + s->lanes + l);
    UNROLL for (int t = 0; t < side * side; t++) w[t] = loadf(weight + t * s->lanes + l);
    for (int64_t h = 0; h < s->height; h++) {
      vec v = {0};
      UNROLL for (int i = 0; i < side; i++) {
        const float *row = in + (h + i) * s->stride + l;
        UNROLL for (int j = 0; j < side; j++) v += loadf(row + j * s->channels) * w[i * side + j];
      }
      v = rounded(v);
      put(y + h * s->n + l, v, s->n - l);
      v -= from;
      a += v;
      b += v * v;
    }
    storef(sums + l, a);
    storef(sums + s->lanes + l, b);
  }
}

// d = the turned filters over `back`, plus `plus`, where `x` scaled is above zero; sums of d and of d * (x - mean).
INLINE void spread(const shape *s, int side, const float *back, const float *weight, const map_t *plus, const map_t *x,
                   const float *mean, const float *scale, const float *offset, int relu, map_t *d, float *sums) {
  for (int64_t l = 0; l < s->n; l += LANES) {
    vec w[MOST], m = loadf(mean + l), k = loadf(scale + l), o = loadf(offset + l);
    vec a = loadf(sums + l), b = loadf(sums + s->lanes + l);
    UNROLL for (int t = 0; t < side * side; t++) w[t] = loadf(weight + t * s->lanes + l);
    for (int64_t h = 0; h < s->height; h++) {
      int64_t at = h * s->n + l, left = s->n - l;
      vec v = part(plus + at, left), from = part(x + at, left);
      UNROLL for (int i = 0; i < side; i++) {
        const float *row = back + (h + i) * s->stride + l;
        UNROLL for (int j = 0; j < side; j++) v += loadf(row + j * s->channels) * w[i * side + j];
      }
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

// y = relu(y + plus), for one image of both halves.
INLINE void join(const shape *s, const map_t *plus, map_t *y) {
  int64_t size = 2 * s->height * s->n;
  for (int64_t l = 0; l < size; l += LANES)
    put(y + l, positive(part(y + l, size - l) + part(plus + l, size - l)), size - l);
}

// dplus = dy where y is above zero, for one image of both halves.
INLINE void part_ways(const shape *s, const map_t *y, const map_t *dy, map_t *dplus) {
  int64_t size = 2 * s->height * s->n;
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

// Each worker has images of its own; where fewer come than were asked for, one does the work of several.
#define TEAM                                                                                                           \
  _Pragma("omp parallel for schedule(static, 1) num_threads(s.workers)") for (int me = 0; me < s.workers; me++)
#define FROM (s.images * me / s.workers)
#define TO (s.images * (me + 1) / s.workers)
#define DUE(k) (((k) - FROM) % IMAGES == IMAGES - 1 || (k) == TO - 1)

// z (images, height, width, channels) -> y (…, 2 * channels); r are the filters' maps before their norm. filter (taps,
// channels); norms (2, FIGURES, channels) are written, from affine (weight 1, bias 1, weight 2, bias 2; channels each).
// Where plus is not NULL, relu(y + plus) is written instead of y.
void ghost_forward(const map_t *z, int64_t images, int64_t height, int64_t width, int64_t channels, int side,
                   const float *filter, const float *affine, float eps1, float eps2, int relu1, int relu2,
                   const map_t *plus, map_t *r, map_t *y, float *norms) {
  shape s = shaped(images, height, width, channels, side);
  int64_t c = channels, size = height * s.n;
  float *norm1 = norms, *norm2 = norms + FIGURES * c, *shift = zeros(c, 4);
  double *sums = zeros((size_t)s.workers * 2 * s.lanes, 8), *each = zeros(2 * c, 8);

  for (int64_t k = 0; k < c; k++)
    shift[k] = load1(z + k); // a value near the mean, against cancellation
  float *from = along(&s, shift);
  TEAM {
    float *some = zeros(2 * s.lanes, 4);
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
        flush(sums + (size_t)me * 2 * s.lanes, some, 2 * s.lanes);
    }
    free(some);
  }
  by_channel(&s, sums, 2, each);
  settle(&s, each, shift, affine, affine + c, eps1, norm1);
  free(from);

  float *scale1 = along(&s, norm1 + SCALE * c), *offset1 = along(&s, norm1 + OFFSET * c);
  float *weight = filters(&s, filter, 0);
  for (int64_t k = 0; k < c; k++) { // what the filter's middle makes of the first pixel
    float v = load1(z + k) * norm1[SCALE * c + k] + norm1[OFFSET * c + k];
    shift[k] = (relu1 && v < 0 ? 0 : v) * filter[s.taps / 2 * c + k];
  }
  from = along(&s, shift);
  memset(sums, 0, (size_t)s.workers * 2 * s.lanes * 8);
  TEAM {
    float *some = zeros(2 * s.lanes, 4), *in = zeros(s.stride * (height + 2 * s.border) + LANES, 4);
    for (int64_t k = FROM; k < TO; k++) {
      if (relu1)
        widen(&s, z + k * size, scale1, offset1, 1, in);
      else
        widen(&s, z + k * size, scale1, offset1, 0, in);
      BY_SIDE(forwards, in, weight, from, r + k * size, some)
      if (DUE(k))
        flush(sums + (size_t)me * 2 * s.lanes, some, 2 * s.lanes);
    }
    free(some);
    free(in);
  }
  by_channel(&s, sums, 2, each);
  settle(&s, each, shift, affine + 2 * c, affine + 3 * c, eps2, norm2);

  float *scale2 = along(&s, norm2 + SCALE * c), *offset2 = along(&s, norm2 + OFFSET * c);
  TEAM {
    map_t *a = zeros(size, sizeof(map_t)), *b = zeros(size, sizeof(map_t));
    for (int64_t k = FROM; k < TO; k++) {
      for (int64_t h = 0; h < height; h++)
        for (int64_t l = 0; l < s.n; l += LANES) {
          int64_t at = h * s.n + l, left = s.n - l;
          vec v = part(z + k * size + at, left) * loadf(scale1 + l) + loadf(offset1 + l);
          vec w = part(r + k * size + at, left) * loadf(scale2 + l) + loadf(offset2 + l);
          put(a + at, relu1 ? positive(v) : v, left);
          put(b + at, relu2 ? positive(w) : w, left);
        }
      halves(&s, y + 2 * k * size, a, b, 1);
      if (plus)
        join(&s, plus + 2 * k * size, y + 2 * k * size);
    }
    free(a);
    free(b);
  }
  free(shift), free(sums), free(each), free(from), free(scale1), free(offset1), free(weight), free(scale2), free(offset2);
}

// dy -> dz, dfilter (taps, channels), daffine (4, channels); the rest as ghost_forward read and wrote it. Where it wrote a
// sum, y is that and dplus is written; else both are NULL.
void ghost_backward(const map_t *z, const map_t *r, const map_t *y, const map_t *dy, int64_t images, int64_t height,
                    int64_t width, int64_t channels, int side, const float *filter, const float *norms, int relu1,
                    int relu2, map_t *dz, map_t *dplus, float *dfilter, float *daffine) {
  shape s = shaped(images, height, width, channels, side);
  int64_t c = channels, size = height * s.n, kept = s.taps + 2;
  const float *norm1 = norms, *norm2 = norms + FIGURES * c;
  const map_t *pull = y ? dplus : dy;
  double *sums = zeros((size_t)s.workers * kept * s.lanes, 8), *each = zeros(kept * c, 8);
  float *mean1 = along(&s, norm1 + MEAN * c), *scale1 = along(&s, norm1 + SCALE * c);
  float *offset1 = along(&s, norm1 + OFFSET * c), *mean2 = along(&s, norm2 + MEAN * c);
  float *scale2 = along(&s, norm2 + SCALE * c), *offset2 = along(&s, norm2 + OFFSET * c);

  TEAM {
    float *some = zeros(2 * s.lanes, 4);
    map_t *a = zeros(size, sizeof(map_t)), *b = zeros(size, sizeof(map_t));
    for (int64_t k = FROM; k < TO; k++) {
      if (y)
        part_ways(&s, y + 2 * k * size, dy + 2 * k * size, dplus + 2 * k * size);
      halves(&s, (map_t *)pull + 2 * k * size, a, b, 0);
      for (int64_t l = 0; l < s.n; l += LANES) {
        vec p = loadf(some + l), q = loadf(some + s.lanes + l);
        vec m = loadf(mean2 + l), scale = loadf(scale2 + l), offset = loadf(offset2 + l);
        for (int64_t h = 0; h < height; h++) {
          vec d = part(b + h * s.n + l, s.n - l), x = part(r + k * size + h * s.n + l, s.n - l);
          if (relu2)
            d = (vec)((ivec)d & (x * scale + offset > 0));
          p += d;
          q += d * (x - m);
        }
        storef(some + l, p);
        storef(some + s.lanes + l, q);
      }
      if (DUE(k))
        flush(sums + (size_t)me * 2 * s.lanes, some, 2 * s.lanes);
    }
    free(some), free(a), free(b);
  }
  float *lines = zeros(4 * c, 4);
  by_channel(&s, sums, 2, each);
  backwards(&s, each, norm2, lines, lines + c, daffine + 2 * c, daffine + 3 * c);
  float *slope2 = along(&s, lines), *level2 = along(&s, lines + c), *weight = filters(&s, filter, 1);
  memset(sums, 0, (size_t)s.workers * kept * s.lanes * 8);
  TEAM {
    size_t wide = s.stride * (height + 2 * s.border) + LANES;
    float *some = zeros(kept * s.lanes, 4), *in = zeros(wide, 4), *back = zeros(wide, 4);
    map_t *a = zeros(size, sizeof(map_t)), *b = zeros(size, sizeof(map_t));
    for (int64_t k = FROM; k < TO; k++) {
      halves(&s, (map_t *)pull + 2 * k * size, a, b, 0);
      if (relu1)
        widen(&s, z + k * size, scale1, offset1, 1, in);
      else
        widen(&s, z + k * size, scale1, offset1, 0, in);
      for (int64_t h = 0; h < height; h++) // the border of `back` has stayed zero
        for (int64_t l = 0; l < s.n; l += LANES) {
          int64_t at = h * s.n + l, left = s.n - l;
          vec d = part(b + at, left), x = part(r + k * size + at, left), scale = loadf(scale2 + l);
          if (relu2)
            d = (vec)((ivec)d & (x * scale + loadf(offset2 + l) > 0));
          d = d * scale + x * loadf(slope2 + l) + loadf(level2 + l);
          storef(back + (h + s.border) * s.stride + s.border * c + l, d); // behind the row: zeros
        }
      BY_SIDE(spread, back, weight, a, z + k * size, mean1, scale1, offset1, relu1, dz + k * size, some)
      BY_SIDE(gather, in, back, some + 2 * s.lanes)
      if (DUE(k))
        flush(sums + (size_t)me * kept * s.lanes, some, kept * s.lanes);
    }
    free(some), free(in), free(back), free(a), free(b);
  }
  by_channel(&s, sums, kept, each);
  backwards(&s, each, norm1, lines + 2 * c, lines + 3 * c, daffine, daffine + c);
  for (int64_t k = 0; k < s.taps * c; k++)
    dfilter[k] = (float)each[2 * c + k];
  float *slope1 = along(&s, lines + 2 * c), *level1 = along(&s, lines + 3 * c);
  TEAM for (int64_t k = FROM; k < TO; k++) for (int64_t h = 0; h < height; h++) for (int64_t l = 0; l < s.n; l += LANES) {
    int64_t at = k * size + h * s.n + l, left = s.n - l;
    put(dz + at, part(dz + at, left) * loadf(scale1 + l) + part(z + at, left) * loadf(slope1 + l) + loadf(level1 + l), left);
  }
  free(sums), free(each), free(mean1), free(scale1), free(offset1), free(mean2), free(scale2), free(offset2);
  free(lines), free(slope2), free(level2), free(weight), free(slope1), free(level1);
}
