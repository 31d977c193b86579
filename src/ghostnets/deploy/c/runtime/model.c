/* @TITLE@
 *
 * Written by ghostnets @VERSION@ for @TARGET@. Needs a C11 compiler with vector extensions (GCC, Clang) and libc.
 * What a caller needs is in model.h; the weights are in model.weights.
 */
#if defined(__linux__) && !defined(_GNU_SOURCE)
#define _GNU_SOURCE
#endif
#include "model.h"

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#ifdef MODEL_PROFILE
#include <time.h>
#endif
#ifdef __linux__
#include <sys/mman.h>
#endif
#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#define LANES @LANES@

/* What is read above and below a map, from its left margin on. */
static const float zero_row[@ZEROS@] __attribute__((aligned(64)));
#define zeros (zero_row + @MARGIN@)

@VECTOR@
#ifdef MODEL_PROFILE
double model_profile[MODEL_STEPS]; /* seconds in each step, over all runs */

const char *model_step(int index) { /* multiply-adds and name of a step; NULL: there are no more */
  static const char *const steps[] = {
@NAMES@
  };
  return index < 0 || index >= MODEL_STEPS ? NULL : steps[index];
}

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}
#define DONE(step) { const double t = now(); model_profile[step] += t - before; before = t; }
#define ALL_DONE(step) { meet(all); if (t == 0) DONE(step) }
#else
#define DONE(step)
#define ALL_DONE(step) meet(all);
#endif

/* ---- Kernels: one for each shape of layer ---- */

@KERNELS@
/* ---- The network ---- */

static void run(const float *w, float *a, const float *in, float *out) {
#ifdef MODEL_PROFILE
  double before = now();
#endif
@STAGES@
}

@TEAM@
/* ---- What model.h promises ---- */

#define HEADER 64 /* bytes before the weights: "GHOSTNET", key, number of floats, checksum, zeros */

static uint64_t checksum(const unsigned char *bytes, size_t count) { /* digits of a number, modulo 2^64 */
  uint64_t sum = 14695981039346656037u;
  for (size_t i = 0; i < count; i += 8) {
    uint64_t word = 0;
    memcpy(&word, bytes + i, count - i < 8 ? count - i : 8);
    sum = sum * 1099511628211u + word;
  }
  return sum;
}

const char *model_message(int code) {
  switch (code) {
    case MODEL_OK: return "all is well";
    case MODEL_NO_FILE: return "the weights cannot be read: is model.weights there?";
    case MODEL_NO_MEMORY: return "there is not enough memory";
    case MODEL_NOT_WEIGHTS: return "this is no file of weights: give the model.weights that came with model.c";
    case MODEL_FOREIGN: return "these weights belong to another network: give the model.weights that came with model.c";
    case MODEL_TRUNCATED: return "the weights are not complete: copy model.weights again";
    case MODEL_DAMAGED: return "the weights are damaged (their checksum is wrong): copy model.weights again";
    case MODEL_BAD_THREADS: return "give at least 1 thread and no more than MODEL_MAX_THREADS, which is 1 without -DMODEL_THREADS";
    default: return "an unknown message";
  }
}

static int inspected(const unsigned char *bytes, size_t size) {
  uint64_t key, floats, sum;
  if (size < 8 || memcmp(bytes, "GHOSTNET", 8)) return MODEL_NOT_WEIGHTS;
  if (size < HEADER) return MODEL_TRUNCATED;
  memcpy(&key, bytes + 8, 8);
  memcpy(&floats, bytes + 16, 8);
  memcpy(&sum, bytes + 24, 8);
  if (key != @KEY@u || floats != @FLOATS@u) return MODEL_FOREIGN;
  if (size < HEADER + 4 * (size_t)floats) return MODEL_TRUNCATED;
  if (size > HEADER + 4 * (size_t)floats) return MODEL_NOT_WEIGHTS;
  return checksum(bytes + HEADER, size - HEADER) == sum ? MODEL_OK : MODEL_DAMAGED;
}

const char *model_describe(void) { return "@SHAPES@;@KIND@;@TITLE@"; }

static size_t arena_floats(int threads) { return threads == 1 ? @ARENA@ : @ARENA_MANY@ + (size_t)threads * @ARENA_EACH@; }

size_t model_arena_bytes(int threads) {
  size_t bytes = 4 * arena_floats(threads) + 128;
#ifdef MODEL_THREADS
  if (threads > 1) bytes += sizeof(team);
#endif
  return bytes;
}

int model_init_from(model *m, const void *weights, size_t size, void *arena, int threads) {
  memset(m, 0, sizeof *m);
  if (threads < 1 || threads > MODEL_MAX_THREADS) return MODEL_BAD_THREADS;
  const int code = inspected(weights, size);
  if (code) return code;
  m->weights = (const float *)(const void *)((const unsigned char *)weights + HEADER);
  m->arena = (float *)(((uintptr_t)arena + 63) & ~(uintptr_t)63);
#ifdef MODEL_THREADS
  if (threads > 1) {
    team *all = (team *)(((uintptr_t)(m->arena + arena_floats(threads)) + 63) & ~(uintptr_t)63);
    const int failed = assembled(all, threads);
    if (failed) return failed;
    m->team = all;
  }
#endif
  return MODEL_OK;
}

#ifdef MODEL_EMBED /* the weights are a part of the program */
__asm__(".section .rodata\n.balign 64\nmodel_embedded:\n.incbin \"" MODEL_EMBED "\"\nmodel_embedded_end:\n.byte 0\n.previous\n");
extern const unsigned char model_embedded[] __attribute__((visibility("hidden")));
extern const unsigned char model_embedded_end[] __attribute__((visibility("hidden")));
#endif

/* Memory in large pages, where there are any: looking up small ones costs more than reading weights. Fresh from the
 * system, because a heap's pages have been small before. */
static void *allocated(model *m, size_t bytes) {
#if defined(__linux__)
  const size_t large = (size_t)1 << 21;
  const size_t whole = (bytes + large - 1) / large * large + large;
  void *start = mmap(NULL, whole, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (start == MAP_FAILED) return NULL;
  void *memory = (void *)(((uintptr_t)start + large - 1) & ~(uintptr_t)(large - 1));
  if (bytes >= large / 4) madvise(memory, whole - large, MADV_HUGEPAGE);
  m->owned = start;
  m->owned_bytes = whole;
  return memory;
#else
  m->owned = aligned_alloc(64, (bytes + 63) / 64 * 64);
  return m->owned;
#endif
}

static void released(void *memory, size_t bytes) {
#if defined(__linux__)
  if (memory) munmap(memory, bytes);
#else
  (void)bytes;
  free(memory);
#endif
}

#define WEIGHTS_BYTES (HEADER + 4 * (size_t)@FLOATS@)

/* The file's contents; one byte more than there should be is asked for, to see that there is not. */
static int fetched(const char *path, unsigned char *bytes, size_t *size) {
  FILE *file = fopen(path, "rb");
  if (!file) return MODEL_NO_FILE;
  *size = fread(bytes, 1, WEIGHTS_BYTES + 1, file);
  const int failed = ferror(file);
  fclose(file);
  return failed ? MODEL_NO_FILE : MODEL_OK;
}

int model_init(model *m, const char *path, int threads) {
  memset(m, 0, sizeof *m);
  if (threads < 1 || threads > MODEL_MAX_THREADS) return MODEL_BAD_THREADS;
  const size_t room = path ? (WEIGHTS_BYTES + 64) / 64 * 64 : 0; /* for the weights, before the arena */
  unsigned char *memory = allocated(m, room + model_arena_bytes(threads));
  if (!memory) return MODEL_NO_MEMORY;
  const model kept = *m;
  const unsigned char *weights = memory;
  size_t size = 0;
  int code = MODEL_OK;
  if (path) {
    code = fetched(path, memory, &size);
  } else {
#ifdef MODEL_EMBED
    weights = model_embedded;
    size = (size_t)(model_embedded_end - model_embedded);
#else
    code = MODEL_NO_FILE;
#endif
  }
  if (!code) code = model_init_from(m, weights, size, memory + room, threads);
  m->owned = code ? NULL : kept.owned;
  m->owned_bytes = kept.owned_bytes;
  if (code) released(kept.owned, kept.owned_bytes);
  return code;
}

void model_run(const model *m, const MODEL_INPUT *in, float *out) {
  const float *image = (const float *)(const void *)in;
#ifdef MODEL_THREADS
  team *all = m->team;
  if (all) {
    all->weights = m->weights, all->arena = m->arena, all->in = image, all->out = out;
    begin(all);
    run_many(m->weights, m->arena, image, out, all, 0, all->threads);
    return;
  }
#endif
  run(m->weights, m->arena, image, out);
}

void model_free(model *m) {
#ifdef MODEL_THREADS
  if (m->team) dismiss(m->team, ((team *)m->team)->threads - 1);
#endif
  released(m->owned, m->owned_bytes);
  memset(m, 0, sizeof *m);
}
