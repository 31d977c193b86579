/* Vectors of LANES floats, and what is done with them beside + and *. */
#define INLINE static inline __attribute__((unused)) /* not every network needs every one */

#if LANES == 1
typedef float vec;
typedef int ints;
typedef unsigned bits;
#define splat(x) (x)
#define TO_INTS(v) ((ints)(v))
INLINE vec load(const float *p) { return *p; }
INLINE void store(float *p, vec v) { *p = v; }
INLINE vec vmax(vec a, vec b) { return a > b ? a : b; }
INLINE vec vmin(vec a, vec b) { return a < b ? a : b; }
INLINE vec greatest(vec s, vec a) { return a > s || a != a ? a : s; }
#else
typedef float vec __attribute__((vector_size(4 * LANES)));
typedef float loose __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int ints __attribute__((vector_size(4 * LANES)));
typedef unsigned bits __attribute__((vector_size(4 * LANES)));
#define splat(x) ((x) - (vec){0}) /* x - 0 is x, so that nothing is computed */
#define TO_INTS(v) __builtin_convertvector(v, ints)
INLINE vec load(const float *p) { return *(const loose *)p; }
INLINE void store(float *p, vec v) { *(loose *)p = v; }
#if LANES == 16 && defined(__AVX512F__)
INLINE vec vmax(vec a, vec b) { return (vec)_mm512_max_ps((__m512)a, (__m512)b); }
INLINE vec vmin(vec a, vec b) { return (vec)_mm512_min_ps((__m512)a, (__m512)b); }
#elif LANES == 8 && defined(__AVX__)
INLINE vec vmax(vec a, vec b) { return (vec)_mm256_max_ps((__m256)a, (__m256)b); }
INLINE vec vmin(vec a, vec b) { return (vec)_mm256_min_ps((__m256)a, (__m256)b); }
#elif LANES == 4 && defined(__ARM_NEON)
INLINE vec vmax(vec a, vec b) { return (vec)vmaxq_f32((float32x4_t)a, (float32x4_t)b); }
INLINE vec vmin(vec a, vec b) { return (vec)vminq_f32((float32x4_t)a, (float32x4_t)b); }
#else
INLINE vec vmax(vec a, vec b) { const ints more = a > b; return (vec)(((ints)a & more) | ((ints)b & ~more)); }
INLINE vec vmin(vec a, vec b) { const ints less = a < b; return (vec)(((ints)a & less) | ((ints)b & ~less)); }
#endif

/* The greater one, and what is not a number before any number: s stays where vmax's second operand comes back. */
INLINE vec greatest(vec s, vec a) {
#if LANES == 16 && defined(__AVX512F__)
  return (vec)_mm512_mask_mov_ps((__m512)vmax(a, s), _mm512_cmp_ps_mask((__m512)a, (__m512)a, _CMP_UNORD_Q), (__m512)a);
#else
  const ints none = a != a;
  return (vec)(((ints)a & none) | ((ints)vmax(a, s) & ~none));
#endif
}
#endif

#define prefetch(p) __builtin_prefetch(p)

/* e to the x: 2 to the nearest whole power, times a polynomial (Cephes' expf) of what is left; relative error 1e-7. */
INLINE vec exponential_vec(vec x) {
  x = vmin(splat(88.0f), vmax(splat(-87.0f), x)); /* what is not a number stays none */
  const vec shifted = x * splat(1.44269504088896341f) + splat(12582912.0f); /* 1.5 * 2^23 rounds to a whole number */
  const vec whole = shifted - splat(12582912.0f);
  const vec rest = (x - whole * splat(0.693359375f)) + whole * splat(2.12194440e-4f);
  vec y = splat(1.9875691500e-4f);
  y = y * rest + splat(1.3981999507e-3f);
  y = y * rest + splat(8.3334519073e-3f);
  y = y * rest + splat(4.1665795894e-2f);
  y = y * rest + splat(1.6666665459e-1f);
  y = y * rest + splat(5.0000001201e-1f);
  y = y * rest * rest + rest + splat(1.0f);
  union { bits b; vec v; } power = {.b = ((bits)TO_INTS(whole) + 127u) << 23};
  return y * power.v;
}

#if LANES == 1
INLINE float exponential(float x) { return exponential_vec(x); }
#else
INLINE float exponential(float x) { return exponential_vec(splat(x))[0]; }
#endif

/* The second operand comes back where one is not a number: so that it is seen, as in PyTorch. */
INLINE vec relu(vec x) { return vmax(splat(0.0f), x); }
INLINE vec relu6(vec x) { return vmin(splat(6.0f), relu(x)); }
INLINE vec hard_sigmoid(vec x) { return relu6(x + splat(3.0f)) * splat(1.0f / 6.0f); }
INLINE vec hard_swish(vec x) { return x * hard_sigmoid(x); }
INLINE vec sigmoid(vec x) { return splat(1.0f) / (splat(1.0f) + exponential_vec(splat(0.0f) - x)); }
INLINE vec silu(vec x) { return x * sigmoid(x); }

INLINE int least(int a, int b) { return a < b ? a : b; }
INLINE int most(int a, int b) { return a > b ? a : b; }

/* Row y of a map of so many rows, of which the last `ring` are kept; beyond the map there are zeros. */
INLINE const float *row(const float *base, int y, int rows, int ring, int floats) {
  return y < 0 || y >= rows ? zeros : base + (size_t)(ring == rows ? y : y % ring) * (size_t)floats;
}

/* Zeros in some places beside a row. */
INLINE void clear(float *p, int places, int pixel, int floats) {
  for (int x = 0; x < places; x++)
    for (int n = 0; n < floats; n += LANES) store(p + (ptrdiff_t)x * pixel + n, splat(0.0f));
}

#if LANES > 1
#if defined(__clang__) || __GNUC__ >= 12
#define pick(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define pick(a, b, ...) __builtin_shuffle(a, b, (ints){__VA_ARGS__})
#endif
#if LANES == 16
#define evens(a, b) pick(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30)
#define odds(a, b) pick(a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31)
INLINE vec doubled(vec a) { return pick(a, a, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7); }
static const ints LANE = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
#elif LANES == 8
#define evens(a, b) pick(a, b, 0, 2, 4, 6, 8, 10, 12, 14)
#define odds(a, b) pick(a, b, 1, 3, 5, 7, 9, 11, 13, 15)
INLINE vec doubled(vec a) { return pick(a, a, 0, 0, 1, 1, 2, 2, 3, 3); }
static const ints LANE = {0, 1, 2, 3, 4, 5, 6, 7};
#else
#define evens(a, b) pick(a, b, 0, 2, 4, 6)
#define odds(a, b) pick(a, b, 1, 3, 5, 7)
INLINE vec doubled(vec a) { return pick(a, a, 0, 0, 1, 1); }
static const ints LANE = {0, 1, 2, 3};
#endif

/* The first lanes of a vector, and zeros. */
INLINE vec first(vec v, int lanes) { return (vec)((ints)v & (LANE < lanes)); }

/* The sum of all lanes. */
INLINE float total(vec v) {
  float sum = v[0];
  for (int lane = 1; lane < LANES; lane++) sum += v[lane];
  return sum;
}

/* Zeros beside each of some lines. */
INLINE void clear_lines(float *p, int lines, int line, int start, int floats) {
  for (int n = 0; n < lines; n++)
    for (int x = 0; x < floats; x += LANES) store(p + (ptrdiff_t)n * line + start + x, splat(0.0f));
}
#endif
