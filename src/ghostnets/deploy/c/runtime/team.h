/* Threads that run a network together: each computes its share of a layer, then all meet. */
#ifdef MODEL_THREADS
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>

#if defined(__x86_64__) || defined(__i386__)
#define RELAX() __builtin_ia32_pause()
#elif defined(__aarch64__)
#define RELAX() __asm__ volatile("yield")
#else
#define RELAX() (void)0
#endif

#define PATIENCE 2000 /* looks at what others write before the processor is given away */

typedef struct team {
  _Alignas(64) atomic_int arrived;
  _Alignas(64) atomic_int phase; /* how often all have met */
  _Alignas(64) atomic_int turn;  /* runs begun */
  int threads, stop;
  pthread_mutex_t mutex;
  pthread_cond_t begun;
  const float *weights, *in;
  float *arena, *out;
  pthread_t workers[MODEL_MAX_THREADS];
} team;

static void meet(team *all) {
  const int phase = atomic_load_explicit(&all->phase, memory_order_relaxed);
  if (atomic_fetch_add_explicit(&all->arrived, 1, memory_order_acq_rel) + 1 == all->threads) {
    atomic_store_explicit(&all->arrived, 0, memory_order_relaxed);
    atomic_store_explicit(&all->phase, phase + 1, memory_order_release);
    return;
  }
  for (int looks = 0; atomic_load_explicit(&all->phase, memory_order_acquire) == phase; looks++)
    if (looks < PATIENCE) RELAX();
    else sched_yield();
}

/* Where the share of a thread begins: whole blocks, as equal as they can be. */
static inline int share(int total, int block, int thread, int threads) {
  const int blocks = (total + block - 1) / block;
  const int at = (int)((long)blocks * thread / threads) * block;
  return at < total ? at : total;
}

/* The row of tile n at which the share of a thread begins: tiles of v channels come one after the other, but the whole
 * work, of so many channels and rows, is cut into parts as equal as whole blocks of rows allow. */
INLINE int cut(int channels, int v, int n, int rows, int block, int thread, int threads) {
  const long at = (long)channels * rows * thread / threads - (long)n * v * rows;
  const long unit = (long)block * least(v, channels - n * v);
  const long y = at <= 0 ? 0 : (at + unit / 2) / unit * block;
  return y < rows ? (int)y : rows;
}

/* What each thread has found for its own rows, in memory of its own, added up. */
INLINE void gathered(const float *parts, size_t each, float *out, int floats, int threads) {
  for (int i = 0; i < floats; i += LANES) {
    vec s = load(parts + i);
    for (int t = 1; t < threads; t++) s += load(parts + (size_t)t * each + i);
    store(out + i, s);
  }
}

@KERNELS_MANY@
static void run_many(const float *w, float *a, const float *in, float *out, team *all, int t, int threads) {
#ifdef MODEL_PROFILE
  double before = now();
#endif
@SHARED@
}

typedef struct seat { team *all; int thread; } seat;

static void *work(void *given) {
  team *all = ((seat *)given)->all;
  const int thread = ((seat *)given)->thread;
  atomic_fetch_add(&all->arrived, 1); /* the seat has been read */
  for (int seen = 0;;) {
    for (int looks = 0; looks < PATIENCE && atomic_load_explicit(&all->turn, memory_order_acquire) == seen; looks++) RELAX();
    if (atomic_load_explicit(&all->turn, memory_order_acquire) == seen) { /* nothing came: sleep */
      pthread_mutex_lock(&all->mutex);
      while (atomic_load_explicit(&all->turn, memory_order_acquire) == seen) pthread_cond_wait(&all->begun, &all->mutex);
      pthread_mutex_unlock(&all->mutex);
    }
    seen = atomic_load_explicit(&all->turn, memory_order_acquire);
    if (all->stop) return NULL;
    run_many(all->weights, all->arena, all->in, all->out, all, thread, all->threads);
  }
}

static void begin(team *all) {
  pthread_mutex_lock(&all->mutex);
  atomic_fetch_add_explicit(&all->turn, 1, memory_order_release);
  pthread_cond_broadcast(&all->begun);
  pthread_mutex_unlock(&all->mutex);
}

static void dismiss(team *all, int workers) {
  all->stop = 1;
  begin(all);
  for (int i = 1; i <= workers; i++) pthread_join(all->workers[i], NULL);
  pthread_cond_destroy(&all->begun);
  pthread_mutex_destroy(&all->mutex);
}

static int assembled(team *all, int threads) {
  memset(all, 0, sizeof *all);
  all->threads = threads;
  if (pthread_mutex_init(&all->mutex, NULL) || pthread_cond_init(&all->begun, NULL)) return MODEL_NO_MEMORY;
  for (int i = 1; i < threads; i++) {
    seat one = {all, i};
    if (pthread_create(&all->workers[i], NULL, work, &one)) {
      dismiss(all, i - 1);
      return MODEL_NO_MEMORY;
    }
    while (atomic_load(&all->arrived) != i) sched_yield(); /* until it has read its seat */
  }
  atomic_store(&all->arrived, 0);
  return MODEL_OK;
}
#endif
