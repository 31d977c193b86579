/* @TITLE@: what is in a picture, on the command line. Written by ghostnets @VERSION@.
 *
 *   ./model picture.ppm            the five likeliest answers for a binary PPM (P6)
 *   ./model values.raw             the same for the image's values, just as model_run() takes them
 *   ./model picture.ppm 100        and how long a run takes, measured 100 times
 *   ./model picture.ppm 100 2      on two threads
 *
 * Names of classes are read from labels.txt, one a line, where there is such a file.
 */
#if !defined(_POSIX_C_SOURCE)
#define _POSIX_C_SOURCE 200809L
#endif
#include "model.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define SHOWN 5

static const float MEAN[MODEL_CHANNELS] = {@MEAN@}, STD[MODEL_CHANNELS] = {@STD@};

static int failed(const char *path, const char *why) {
  fprintf(stderr, "%s: %s\n", path, why);
  return 0;
}

static int number(FILE *file) { /* the next one of a PPM's header, behind spaces and comments; -1: none */
  int c = fgetc(file), value = 0, digits = 0;
  while (c == ' ' || c == '\t' || c == '\n' || c == '\r' || c == '#') {
    if (c == '#') while (c != '\n' && c != EOF) c = fgetc(file);
    c = fgetc(file);
  }
  for (; c >= '0' && c <= '9' && value < 100000; c = fgetc(file), digits++) value = value * 10 + c - '0';
  return digits ? value : -1;
}

static void put(MODEL_INPUT *in, int c, int y, int x, float value) { /* a value from 0 to 255 */
  const size_t place = @IS_PLANES@ ? ((size_t)c * MODEL_HEIGHT + y) * MODEL_WIDTH + x : ((size_t)y * MODEL_WIDTH + x) * MODEL_CHANNELS + c;
  in[place] = (MODEL_INPUT)(@IS_BYTES@ ? value + 0.5f : (value / 255.0f - MEAN[c]) / STD[c]);
}

/* The middle of a picture in the network's proportions, every place the mean of the pixels that it covers. */
static int from_ppm(FILE *file, const char *path, MODEL_INPUT *in) {
  const int width = number(file), height = number(file), most = number(file);
  if (width < 1 || height < 1 || most != 255) return failed(path, "is no binary PPM with 8 bits a channel");
  unsigned char *pixels = malloc((size_t)width * height * 3);
  if (!pixels) return failed(path, "there is not enough memory");
  if (fread(pixels, 3, (size_t)width * height, file) != (size_t)width * height) {
    free(pixels);
    return failed(path, "ends too early");
  }
  double scale = (double)width / MODEL_WIDTH;
  if ((double)height / MODEL_HEIGHT < scale) scale = (double)height / MODEL_HEIGHT;
  const double left = (width - scale * MODEL_WIDTH) / 2, top = (height - scale * MODEL_HEIGHT) / 2;
  for (int y = 0; y < MODEL_HEIGHT; y++)
    for (int x = 0; x < MODEL_WIDTH; x++) {
      int y0 = (int)(top + scale * y), y1 = (int)(top + scale * (y + 1));
      int x0 = (int)(left + scale * x), x1 = (int)(left + scale * (x + 1));
      if (y0 >= height) y0 = height - 1;
      if (x0 >= width) x0 = width - 1;
      if (y1 <= y0) y1 = y0 + 1;
      if (x1 <= x0) x1 = x0 + 1;
      if (y1 > height) y1 = height;
      if (x1 > width) x1 = width;
      for (int c = 0; c < MODEL_CHANNELS; c++) {
        double sum = 0;
        for (int i = y0; i < y1; i++)
          for (int j = x0; j < x1; j++) {
            const unsigned char *p = pixels + 3 * ((size_t)i * width + j);
            sum += MODEL_CHANNELS == 1 ? (p[0] + p[1] + p[2]) / 3.0 : p[c < 3 ? c : 2];
          }
        put(in, c, y, x, (float)(sum / ((double)(y1 - y0) * (x1 - x0))));
      }
    }
  free(pixels);
  return 1;
}

static int from_file(const char *path, MODEL_INPUT *in) {
  FILE *file = fopen(path, "rb");
  if (!file) return failed(path, "cannot be opened");
  char magic[2] = {0};
  int done = 0;
  if (fread(magic, 1, 2, file) == 2 && magic[0] == 'P' && magic[1] == '6') {
    done = from_ppm(file, path, in);
  } else {
    rewind(file);
    done = fread(in, sizeof *in, MODEL_IN, file) == MODEL_IN && fgetc(file) == EOF;
    if (!done) failed(path, "is neither a binary PPM (P6) nor the values of one image");
  }
  fclose(file);
  return done;
}

static void print_label(int index) {
  char line[256] = "";
  FILE *file = fopen("labels.txt", "r");
  if (file) {
    for (int i = 0; i <= index && fgets(line, sizeof line, file); i++) {}
    fclose(file);
    line[strcspn(line, "\r\n")] = 0;
  }
  printf("%d %s\n", index, line);
}

int main(int argc, char **argv) {
  if (argc < 2) {
    fprintf(stderr, "usage: %s picture.ppm|values.raw [runs [threads]]\n", argv[0]);
    return 2;
  }
  static MODEL_INPUT in[MODEL_IN];
  static float out[MODEL_OUT];
  model m;
  const int threads = argc > 3 ? atoi(argv[3]) : 1;
#ifdef MODEL_EMBED
  const int code = model_init(&m, NULL, threads);
#else
  const int code = model_init(&m, "model.weights", threads);
#endif
  if (code) {
    fprintf(stderr, "model: %s\n", model_message(code));
    return 1;
  }
  if (!from_file(argv[1], in)) {
    model_free(&m);
    return 1;
  }
  model_run(&m, in, out);
  const int runs = argc > 2 ? atoi(argv[2]) : 0;
  double best = 1e9;
  for (int i = 0; i < runs; i++) {
    struct timespec a, b;
    clock_gettime(CLOCK_MONOTONIC, &a);
    model_run(&m, in, out);
    clock_gettime(CLOCK_MONOTONIC, &b);
    const double ms = 1e3 * (double)(b.tv_sec - a.tv_sec) + 1e-6 * (double)(b.tv_nsec - a.tv_nsec);
    if (ms < best) best = ms;
  }
  if (runs > 0) printf("fastest of %d runs: %.3f ms\n", runs, best);
  for (int shown = 0; shown < SHOWN && shown < MODEL_OUT; shown++) {
    int top = -1;
    for (int i = 0; i < MODEL_OUT; i++)
      if (out[i] == out[i] && (top < 0 || out[i] > out[top])) top = i;
    if (top < 0) break;
    printf("%9.4f  ", (double)out[top]);
    print_label(top);
    out[top] = -1e38f;
  }
  model_free(&m);
  return 0;
}
