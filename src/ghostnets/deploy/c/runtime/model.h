/* @TITLE@: the functions of model.c. Written by ghostnets @VERSION@.
 *
 *   model m;
 *   int code = model_init(&m, "model.weights", 1);
 *   if (code) { puts(model_message(code)); return 1; }
 *   model_run(&m, image, answer);
 *   model_free(&m);
 *
 * A model may be run by one thread at a time; any number of models may run at once. model_run allocates nothing.
 */
#ifndef GHOSTNETS_MODEL_H
#define GHOSTNETS_MODEL_H

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

#define MODEL_INPUT @INPUT@ /* the image's values: @LAYOUT@ */
#define MODEL_CHANNELS @CHANNELS@
#define MODEL_HEIGHT @HEIGHT@
#define MODEL_WIDTH @WIDTH@
#define MODEL_IN (MODEL_CHANNELS * MODEL_HEIGHT * MODEL_WIDTH) /* values of an image */
#define MODEL_OUT @OUT@ /* floats of an answer: @ANSWER@ */
#ifdef MODEL_THREADS /* needs pthreads */
#define MODEL_MAX_THREADS 64
#else
#define MODEL_MAX_THREADS 1
#endif
#define MODEL_STEPS @STEPS@ /* of a profile: see README.md */

enum {
  MODEL_OK,
  MODEL_NO_FILE,
  MODEL_NO_MEMORY,
  MODEL_NOT_WEIGHTS,
  MODEL_FOREIGN,
  MODEL_TRUNCATED,
  MODEL_DAMAGED,
  MODEL_BAD_THREADS
};

typedef struct model {
  const float *weights;
  float *arena;
  void *team;
  void *owned;
  size_t owned_bytes;
} model;

/* Read and check the weights, allocate the arena and start the threads beside the caller's. `path` may be NULL where the
 * weights are embedded (make embedded). Returns MODEL_OK, or what model_message() explains. */
int model_init(model *m, const char *path, int threads);

/* The same without allocating: the contents of model.weights, aligned to 64 bytes, and model_arena_bytes() of memory;
 * both must live as long as the model, which must not move. Models may share weights, never an arena. */
int model_init_from(model *m, const void *weights, size_t size, void *arena, int threads);
size_t model_arena_bytes(int threads);

/* One image, MODEL_IN values; its answer, MODEL_OUT floats. */
void model_run(const model *m, const MODEL_INPUT *in, float *out);

void model_free(model *m);

const char *model_message(int code);
const char *model_describe(void); /* "the image's shape;the answer's shape;type of the image's values;name" */
#ifdef MODEL_PROFILE
extern double model_profile[MODEL_STEPS]; /* seconds in each step, over all runs */
const char *model_step(int index); /* its multiply-adds and its name; NULL behind the last */
#endif

#ifdef __cplusplus
}
#endif
#endif
