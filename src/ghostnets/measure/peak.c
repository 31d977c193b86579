/* SPDX-License-Identifier: Apache-2.0
   The most float32 operations a second that one thread reaches here: independent chains of multiply-adds in registers,
   nothing from memory. More chains than one core has multiply-adds in flight (latency 4, two to four units), and fewer
   than it has registers. */

#define _POSIX_C_SOURCE 200809L
#include <time.h>

#if defined(__AVX512F__)
#define BYTES 64
#elif defined(__AVX__)
#define BYTES 32
#else
#define BYTES 16
#endif

#if defined(__AVX512F__) || defined(__aarch64__)
#define CHAINS 20
#define REST(DO) DO(12) DO(13) DO(14) DO(15) DO(16) DO(17) DO(18) DO(19)
#else
#define CHAINS 12
#define REST(DO)
#endif
#define ALL(DO) DO(0) DO(1) DO(2) DO(3) DO(4) DO(5) DO(6) DO(7) DO(8) DO(9) DO(10) DO(11) REST(DO)

typedef float vector __attribute__((vector_size(BYTES)));

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* The best of the blocks that fit into so many seconds, each short enough to find the core undisturbed. */
double peak_flops(double seconds) {
    const long steps = 200000;
    const double end = now() + seconds;
    const vector half = (vector){0} + 0.5f, one = (vector){0} + 1.0f; /* every chain runs to 2: no denormals, no overflow */
    double best = 0;
    volatile float kept;
#define DECLARE(k) vector a##k = (vector){0} + (float)(seconds + k); /* known here, the compiler would do the sum for us */
    ALL(DECLARE)
    do {
        const double start = now();
        for (long i = 0; i < steps; i++) {
#define STEP(k) a##k = a##k * half + one;
            ALL(STEP)
        }
        vector sum = (vector){0};
#define ADD(k) sum += a##k;
        ALL(ADD)
        kept = sum[0];
        const double rate = (double)steps * CHAINS * 2 * (BYTES / 4) / (now() - start);
        if (rate > best) best = rate;
    } while (now() < end);
    (void)kept;
    return best;
}
