// SPDX-License-Identifier: Apache-2.0
// What our C for training shares: images are dealt to workers, whose sums are added up in one order for a given number of
// them, so a run can be repeated to the bit. The macros want `images`, how many there are, and `team`, their workers.
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef _OPENMP
#include <omp.h>
#endif

#define LANES 16
#define IMAGES 8 // whose sums are added up in float32 before they go on in float64
#define UNROLL _Pragma("GCC unroll 64")
#define INLINE static inline __attribute__((always_inline))

static int workers(int64_t images) {
#ifdef _OPENMP
  int most = omp_get_max_threads();
  return images < most ? (int)images : most;
#else
  (void)images;
  return 1;
#endif
}

// Each worker has images of its own; where fewer come than were asked for, one does the work of several.
#define TEAM _Pragma("omp parallel for schedule(static, 1) num_threads(team)") for (int me = 0; me < team; me++)
#define FROM (images * me / team)
#define TO (images * (me + 1) / team)
#define DUE(k) (((k) - FROM) % IMAGES == IMAGES - 1 || (k) == TO - 1)

static void flush(double *into, float *some, int64_t count) {
  for (int64_t k = 0; k < count; k++) {
    into[k] += some[k];
    some[k] = 0;
  }
}
