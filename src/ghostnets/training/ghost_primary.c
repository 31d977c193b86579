// SPDX-License-Identifier: Apache-2.0
// The primary convolution of a Ghost module (3×3, stride 1, padding 1) in training, where its few channels leave oneDNN's
// lanes empty: forward for up to 8 outputs, and backward, in bfloat16 with sums in float32.
//
// For processors that multiply pairs of bfloat16 (AVX512_BF16) and have no tiles (AMX), which oneDNN uses and this does not.
// Maps are channels last; filters and their gradient are (outputs, 3, 3, inputs).
#include "native.h"

#if defined(__AVX512BF16__) && defined(__AVX512BW__) && defined(__AVX512VL__) && !defined(__AMX_BF16__)
#include <immintrin.h>

typedef uint16_t map_t;
typedef uint32_t pair; // two values that are multiplied and added up at once

#define OUTPUTS 8 // at a time
#define TAPS 9
#define UP(n, to) (((n) + (to)-1) / (to) * (to))

// Memory that is zero and begins at a cache line, or the end.
static void *zeros(size_t count, size_t size) {
  size_t bytes = UP(count * size, 64);
  void *p = aligned_alloc(64, bytes ? bytes : 64);
  if (!p)
    abort();
  return memset(p, 0, bytes);
}

// The first `left` lanes of 16.
static inline __mmask16 leading(int64_t left) { return left >= LANES ? 0xffff : (__mmask16)((1u << left) - 1); }

static inline __m512 dot(__m512 sum, __m512i a, __m512i b) { return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b); }

// --- forward: a lane for a pixel

// Pixels (pixels, channels) as planes of pairs of channels, `length` apart: out[pair of channels][pixel].
static void planes(const map_t *x, int64_t pixels, int64_t channels, pair *out, int64_t length) {
  int64_t pairs = channels / 2, p = 0;
  for (; p + 8 <= pixels && pairs % 8 == 0; p += 8)
    for (int64_t c = 0; c < pairs; c += 8) {
      __m256 r[8], s[8];
      UNROLL for (int k = 0; k < 8; k++) r[k] = _mm256_loadu_ps((const float *)(x + (p + k) * channels + 2 * c));
      UNROLL for (int k = 0; k < 4; k++) {
        s[2 * k] = _mm256_unpacklo_ps(r[2 * k], r[2 * k + 1]);
        s[2 * k + 1] = _mm256_unpackhi_ps(r[2 * k], r[2 * k + 1]);
      }
      UNROLL for (int k = 0; k < 8; k += 4) UNROLL for (int j = 0; j < 2; j++) {
        r[k + 2 * j] = _mm256_shuffle_ps(s[k + j], s[k + j + 2], 0x44);
        r[k + 2 * j + 1] = _mm256_shuffle_ps(s[k + j], s[k + j + 2], 0xee);
      }
      UNROLL for (int k = 0; k < 4; k++) {
        _mm256_storeu_ps((float *)(out + (c + k) * length + p), _mm256_permute2f128_ps(r[k], r[k + 4], 0x20));
        _mm256_storeu_ps((float *)(out + (c + k + 4) * length + p), _mm256_permute2f128_ps(r[k], r[k + 4], 0x31));
      }
    }
  for (; p < pixels; p++)
    for (int64_t c = 0; c < pairs; c++)
      memcpy(out + c * length + p, x + p * channels + 2 * c, sizeof(pair));
}

// 16 pixels of 8 outputs each, as 16 × 8 values in the order of the pixels.
static inline void settle(const __m512 sum[OUTPUTS], map_t *out) {
  const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5,
                                         20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  __m512i d[4];
  UNROLL for (int k = 0; k < 4; k++)
    d[k] = _mm512_permutexvar_epi16(order, (__m512i)_mm512_cvtne2ps_pbh(sum[2 * k + 1], sum[2 * k]));
  __m512i a = _mm512_unpacklo_epi32(d[0], d[1]), b = _mm512_unpackhi_epi32(d[0], d[1]);
  __m512i c = _mm512_unpacklo_epi32(d[2], d[3]), e = _mm512_unpackhi_epi32(d[2], d[3]);
  __m512i q[4] = {_mm512_unpacklo_epi64(a, c), _mm512_unpackhi_epi64(a, c), _mm512_unpacklo_epi64(b, e),
                  _mm512_unpackhi_epi64(b, e)};
  UNROLL for (int k = 0; k < 4; k++) { // the k-th of every four pixels
    _mm_storeu_si128((__m128i *)(out + (0 + k) * OUTPUTS), _mm512_extracti32x4_epi32(q[k], 0));
    _mm_storeu_si128((__m128i *)(out + (4 + k) * OUTPUTS), _mm512_extracti32x4_epi32(q[k], 1));
    _mm_storeu_si128((__m128i *)(out + (8 + k) * OUTPUTS), _mm512_extracti32x4_epi32(q[k], 2));
    _mm_storeu_si128((__m128i *)(out + (12 + k) * OUTPUTS), _mm512_extracti32x4_epi32(q[k], 3));
  }
}

// x (images, height, width, inputs) -> z (images, height, width, outputs); inputs even, outputs up to 8.
void primary_forward(const map_t *x, const map_t *weight, int64_t images, int64_t height, int64_t width, int64_t inputs,
                     int64_t outputs, map_t *z) {
  // An image with its border lies in one line, so lanes know no rows: what they find at the two columns of the border is
  // not kept.
  int64_t wide = width + 2, lanes = UP(height * wide, 2 * LANES), length = UP(lanes + 2 * wide + 2, LANES), pairs = inputs / 2;
  pair *filter = zeros((size_t)TAPS * pairs * OUTPUTS, sizeof(pair));
  for (int64_t o = 0; o < outputs; o++)
    for (int64_t t = 0; t < TAPS; t++)
      for (int64_t c = 0; c < pairs; c++)
        memcpy(filter + (t * pairs + c) * OUTPUTS + o, weight + (o * TAPS + t) * inputs + 2 * c, sizeof(pair));
  int team = workers(images);
  TEAM {
    pair *in = zeros((size_t)pairs * length, sizeof(pair));
    map_t *out = zeros((size_t)lanes * OUTPUTS, sizeof(map_t));
    for (int64_t k = FROM; k < TO; k++) {
      for (int64_t h = 0; h < height; h++) // the border stays zero
        planes(x + (k * height + h) * width * inputs, width, inputs, in + (h + 1) * wide + 1, length);
      for (int64_t p = 0; p < lanes; p += 2 * LANES) {
        __m512 a[OUTPUTS], b[OUTPUTS];
        UNROLL for (int o = 0; o < OUTPUTS; o++) a[o] = b[o] = _mm512_setzero_ps();
        for (int t = 0; t < TAPS; t++) {
          const pair *from = in + p + t / 3 * wide + t % 3, *w = filter + t * pairs * OUTPUTS;
          for (int64_t c = 0; c < pairs; c++, from += length, w += OUTPUTS) {
            __m512i u = _mm512_loadu_si512(from), v = _mm512_loadu_si512(from + LANES);
            UNROLL for (int o = 0; o < OUTPUTS; o++) {
              __m512i each = _mm512_set1_epi32((int)w[o]);
              a[o] = dot(a[o], u, each);
              b[o] = dot(b[o], v, each);
            }
          }
        }
        settle(a, out + p * OUTPUTS);
        settle(b, out + (p + LANES) * OUTPUTS);
      }
      for (int64_t h = 0; h < height; h++) {
        map_t *to = z + (k * height + h) * width * outputs, *found = out + h * wide * OUTPUTS;
        if (outputs == OUTPUTS)
          memcpy(to, found, sizeof(map_t) * width * OUTPUTS);
        else
          for (int64_t w = 0; w < width; w++)
            memcpy(to + w * outputs, found + w * OUTPUTS, sizeof(map_t) * outputs);
      }
    }
    free(in);
    free(out);
  }
  free(filter);
}

// --- the gradient of the filters: pairs of pixels, a lane for an input

static inline __m512i some(const map_t *p, int64_t left) {
  return _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(leading(left), p));
}

// One row of pixels (width, channels) behind `border` pixels of zeros, in pairs: out[pair][channel], `count` pairs,
// `channels` rounded up to `padded`. `first` is the pixel that the first pair begins with, counted with the border.
static void paired(const map_t *x, int64_t width, int64_t channels, int64_t border, int64_t first, int64_t count,
                   int64_t padded, pair *out) {
  for (int64_t k = 0; k < count; k++)
    for (int64_t c = 0; c < padded; c += LANES) {
      int64_t p = first + 2 * k - border, left = channels - c;
      __m512i low = p >= 0 && p < width ? some(x + p * channels + c, left) : _mm512_setzero_si512();
      __m512i high = p + 1 >= 0 && p + 1 < width ? some(x + (p + 1) * channels + c, left) : _mm512_setzero_si512();
      _mm512_storeu_si512(out + k * padded + c, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
    }
}

// Adds to found (outputs rounded up, 3, 3, in) what one image says about the filters; `in` and `out` are the channels with
// those that fill lanes, even and odd the image's pairs of pixels, pull those of its gradient.
static void gather(const pair *even, const pair *odd, const pair *pull, int64_t height, int64_t pairs, int64_t in, int64_t out,
                   int64_t outputs, float *found) {
  int64_t line = (pairs + 1) * in;
  for (int64_t o = 0; o < outputs; o += OUTPUTS)
    for (int64_t c = 0; c < in; c += LANES)
      for (int i = 0; i < 3; i++) {
        __m512 sum[3][OUTPUTS];
        UNROLL for (int j = 0; j < 3 * OUTPUTS; j++) sum[j / OUTPUTS][j % OUTPUTS] = _mm512_setzero_ps();
        for (int64_t h = 0; h < height; h++) {
          const pair *e = even + (h + i) * line + c, *u = odd + (h + i) * line + c, *d = pull + h * pairs * out + o;
          for (int64_t p = 0; p < pairs; p++, e += in, u += in, d += out) {
            __m512i v[3] = {_mm512_load_si512(e), _mm512_load_si512(u), _mm512_load_si512(e + in)};
            UNROLL for (int j = 0; j < OUTPUTS; j++) {
              __m512i each = _mm512_set1_epi32((int)d[j]);
              UNROLL for (int q = 0; q < 3; q++) sum[q][j] = dot(sum[q][j], v[q], each);
            }
          }
        }
        UNROLL for (int j = 0; j < OUTPUTS; j++) UNROLL for (int q = 0; q < 3; q++) {
          float *to = found + ((o + j) * TAPS + 3 * i + q) * in + c;
          _mm512_store_ps(to, _mm512_add_ps(_mm512_load_ps(to), sum[q][j]));
        }
      }
}

// --- the gradient of the images: a lane for an input

// So many pixels of a row by `vectors` times 16 inputs. from is the corner of the first pixel's window, `channels` a pixel and
// `line` a row; weight is (taps, pairs of channels, in).
INLINE void tile(int pixels, int vectors, const map_t *from, int64_t line, int64_t channels, const pair *weight, int64_t in,
                 int64_t inputs, int64_t left, map_t *dx) {
  __m512 sum[16][2];
  UNROLL for (int p = 0; p < pixels; p++) UNROLL for (int v = 0; v < vectors; v++) sum[p][v] = _mm512_setzero_ps();
  for (int t = 0; t < TAPS; t++) {
    const map_t *at = from + t / 3 * line + t % 3 * channels;
    for (int64_t c = 0; c < channels; c += 2, weight += in) {
      __m512i w[2];
      UNROLL for (int v = 0; v < vectors; v++) w[v] = _mm512_load_si512(weight + v * LANES);
      UNROLL for (int p = 0; p < pixels; p++) {
        int each;
        memcpy(&each, at + p * channels + c, sizeof each);
        UNROLL for (int v = 0; v < vectors; v++) sum[p][v] = dot(sum[p][v], _mm512_set1_epi32(each), w[v]);
      }
    }
  }
  UNROLL for (int p = 0; p < pixels; p++) UNROLL for (int v = 0; v < vectors; v++)
    _mm256_mask_storeu_epi16(dx + p * inputs + v * LANES, leading(left - v * LANES), (__m256i)_mm512_cvtneps_pbh(sum[p][v]));
}
#define TILES(pixels, vectors)                                                                                         \
  for (; w + pixels <= width; w += pixels)                                                                             \
    tile(pixels, vectors, from + w * channels, line, channels, weight + c, in, inputs, inputs - c, dx + w * inputs + c);

// One row of dx; from is the row above it with its border.
static void spread(const map_t *from, int64_t width, int64_t line, int64_t channels, const pair *weight, int64_t in,
                   int64_t inputs, map_t *dx) {
  for (int64_t c = 0; c < inputs; c += 2 * LANES) {
    int64_t w = 0;
    if (inputs - c > LANES) {
      TILES(8, 2) TILES(4, 2) TILES(1, 2)
    } else {
      TILES(16, 1) TILES(8, 1) TILES(4, 1) TILES(1, 1)
    }
  }
}

// x (images, height, width, inputs), dz (images, height, width, outputs) -> dx like x, or NULL, and dweight (outputs, 3, 3,
// inputs).
void primary_backward(const map_t *x, const map_t *weight, const map_t *dz, int64_t images, int64_t height, int64_t width,
                      int64_t inputs, int64_t outputs, map_t *dx, float *dweight) {
  int64_t in = UP(inputs, LANES), out = UP(outputs, LANES), pairs = (width + 1) / 2, line = pairs + 1;
  int64_t channels = UP(outputs, 2), wide = (width + 2) * channels;
  size_t values = (size_t)UP(outputs, OUTPUTS) * TAPS * in;
  map_t *turned = zeros((size_t)TAPS * channels * in, sizeof(map_t)); // by 180°, in pairs of outputs
  for (int64_t o = 0; o < outputs; o++)
    for (int64_t t = 0; t < TAPS; t++)
      for (int64_t c = 0; c < inputs; c++)
        turned[(((TAPS - 1 - t) * channels / 2 + o / 2) * in + c) * 2 + o % 2] = weight[(o * TAPS + t) * inputs + c];
  int team = workers(images);
  double *sums = zeros(values * team, sizeof(double));
  TEAM {
    float *found = zeros(values, sizeof(float));
    pair *even = zeros((size_t)(height + 2) * line * in, sizeof(pair));
    pair *odd = zeros((size_t)(height + 2) * line * in, sizeof(pair));
    pair *pull = zeros((size_t)height * pairs * out, sizeof(pair));
    map_t *back = zeros((size_t)(height + 2) * wide, sizeof(map_t));
    for (int64_t k = FROM; k < TO; k++) {
      for (int64_t h = 0; h < height; h++) { // borders stay zero
        const map_t *row = x + (k * height + h) * width * inputs, *drow = dz + (k * height + h) * width * outputs;
        paired(row, width, inputs, 1, 0, line, in, even + (h + 1) * line * in);
        paired(row, width, inputs, 1, 1, line, in, odd + (h + 1) * line * in);
        paired(drow, width, outputs, 0, 0, pairs, out, pull + h * pairs * out);
        if (channels == outputs)
          memcpy(back + (h + 1) * wide + channels, drow, sizeof(map_t) * width * outputs);
        else
          for (int64_t w = 0; w < width; w++)
            memcpy(back + (h + 1) * wide + (w + 1) * channels, drow + w * outputs, sizeof(map_t) * outputs);
      }
      gather(even, odd, pull, height, pairs, in, out, outputs, found);
      for (int64_t h = 0; h < height && dx; h++)
        spread(back + h * wide, width, wide, channels, (const pair *)turned, in, inputs,
               dx + (k * height + h) * width * inputs);
      if (DUE(k))
        flush(sums + me * values, found, values);
    }
    free(found), free(even), free(odd), free(pull), free(back);
  }
  for (int64_t r = 0; r < outputs * TAPS; r++)
    for (int64_t c = 0; c < inputs; c++) {
      double a = 0;
      for (int w = 0; w < team; w++)
        a += sums[w * values + r * in + c];
      dweight[r * inputs + c] = (float)a;
    }
  free(sums), free(turned);
}

int primary_pays(void) { return 1; }
#else
int primary_pays(void) { return 0; }
#endif
