/* Calls the library, as the tests beside this file ask:
 *
 *     calls run NETWORK IMAGES DTYPE BATCH HEIGHT WIDTH THREADS RESULTS    runs a network: once, again, at once
 *     calls pair NETWORK NETWORK                                           runs two at once, of sizes at the edge
 *     calls open FILES...                                                  opens each, runs what is opened, prints the messages
 *     calls misuse NETWORK                                                 prints the messages of wrong calls
 *     calls ops WEIGHT X RESULT ALGORITHM BATCH HEIGHT WIDTH CHANNELS      a linear, then a mixer, float32
 */
#define _POSIX_C_SOURCE 200809L
#include <hifuse/cuda.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_THREADS = 16 };

static void* read_file(const char* path, size_t* bytes) {
  FILE* const file = fopen(path, "rb");
  if (!file) exit(2);
  fseek(file, 0, SEEK_END);
  *bytes = (size_t)ftell(file);
  rewind(file);
  void* const memory = malloc(*bytes + 1);
  if (fread(memory, 1, *bytes, file) != *bytes) exit(2);
  fclose(file);
  return memory;
}

static void write_file(const char* path, const void* memory, size_t bytes) {
  FILE* const file = fopen(path, "wb");
  if (!file || fwrite(memory, 1, bytes, file) != bytes || fclose(file)) exit(2);
}

static void check(const char* error) {
  if (!error) return;
  fprintf(stderr, "%s\n", error);
  exit(1);
}

/* ---- A parallel-for -------------------------------------------------------------------------------------------------------
 */

typedef struct region {
  pthread_mutex_t lock;
  int64_t next, tasks;
  void (*task)(void*, int64_t);
  void* work;
} region;

static void* serve(void* argument) {
  region* const r = argument;
  for (;;) {
    pthread_mutex_lock(&r->lock);
    const int64_t index = r->next < r->tasks ? r->tasks - 1 - r->next++ : -1; /* from the last one on */
    pthread_mutex_unlock(&r->lock);
    if (index < 0) return NULL;
    r->task(r->work, index);
  }
}

static void run_on_threads(void* context, int64_t tasks, void (*task)(void*, int64_t), void* work) {
  const int64_t count = *(const int64_t*)context;
  region r = {PTHREAD_MUTEX_INITIALIZER, 0, tasks, task, work};
  pthread_t threads[MOST_THREADS];
  for (int64_t i = 0; i < count; ++i)
    if (pthread_create(&threads[i], NULL, serve, &r)) exit(2);
  for (int64_t i = 0; i < count; ++i) pthread_join(threads[i], NULL);
}

static void run_in_turn(void* context, int64_t tasks, void (*task)(void*, int64_t), void* work) {
  (void)context;
  for (int64_t i = 0; i < tasks; ++i) task(work, i);
}

static void run_none(void* context, int64_t tasks, void (*task)(void*, int64_t), void* work) {
  (void)context, (void)tasks, (void)task, (void)work;
}

static void run_beyond(void* context, int64_t tasks, void (*task)(void*, int64_t), void* work) {
  (void)context;
  for (int64_t i = 1; i <= tasks; ++i) task(work, i);
}

/* ---- Networks -------------------------------------------------------------------------------------------------------------
 */

typedef struct job {
  hifuse_network* network;
  const hifuse_images* images;
  float* results;
  int failed;
} job;

static void* do_job(void* argument) {
  job* const j = argument;
  j->failed = hifuse_network_run(j->network, j->images, j->results, NULL) != NULL;
  return NULL;
}

/* Several threads run one network at once, and each gets these results. */
static void run_at_once(hifuse_network* network, const hifuse_images* images, const float* expected, size_t bytes) {
  enum { JOBS = 3 };
  job jobs[JOBS];
  pthread_t threads[JOBS];
  for (int i = 0; i < JOBS; ++i) {
    const job each = {network, images, malloc(bytes), 0};
    jobs[i] = each;
    if (pthread_create(&threads[i], NULL, do_job, &jobs[i])) exit(2);
  }
  for (int i = 0; i < JOBS; ++i) {
    pthread_join(threads[i], NULL);
    if (jobs[i].failed || memcmp(jobs[i].results, expected, bytes)) check("a call beside others gave other bits");
    free(jobs[i].results);
  }
}

static int run(char** argv) {
  hifuse_network* network = NULL;
  check(hifuse_network_open(argv[0], &network));
  size_t bytes = 0;
  void* const data = read_file(argv[1], &bytes);
  const hifuse_dtype dtype = strcmp(argv[2], "bfloat16") ? HIFUSE_FLOAT32 : HIFUSE_BFLOAT16;
  hifuse_images images = {dtype, data, atol(argv[3]), atol(argv[4]), atol(argv[5]), {0, 0, 0, 0}};
  int64_t count = atol(argv[6]);
  const hifuse_threads lent = {count, &count, run_on_threads}, *const threads = count ? &lent : NULL;
  const size_t outputs = (size_t)hifuse_network_outputs(network), numbers = (size_t)images.batch * outputs;
  float *const first = malloc(numbers * sizeof *first), *const second = malloc(numbers * sizeof *first);
  check(hifuse_network_run(network, &images, first, threads));
  images.strides[3] = 1, images.strides[2] = images.width, images.strides[1] = images.height * images.width;
  images.strides[0] = images.strides[1] * hifuse_network_in_chans(network);
  check(hifuse_network_run(network, &images, second, NULL));
  if (memcmp(first, second, numbers * sizeof *first)) check("a second call gave other bits");
  run_at_once(network, &images, first, numbers * sizeof *first);
  write_file(argv[7], first, numbers * sizeof *first);
  for (int64_t i = 0; hifuse_network_class_name(network, i); ++i) printf("%s\n", hifuse_network_class_name(network, i));
  hifuse_network_close(network);
  free(first), free(second), free(data);
  return 0;
}

static int open_each(int count, char** paths) {
  for (int i = 0; i < count; ++i) {
    hifuse_network* network = NULL;
    const char* error = hifuse_network_open(paths[i], &network);
    if (!error != (network != NULL)) return 3;
    if (!error) {
      const int64_t channels = hifuse_network_in_chans(network);
      const int64_t outputs = hifuse_network_outputs(network);
      if (channels > 64 || outputs > 1 << 20) return 4; /* these files have no tensors for more */
      float* const pixels = calloc((size_t)channels * 33 * 40, sizeof *pixels);
      float* const results = calloc((size_t)outputs, sizeof *results);
      const hifuse_images images = {HIFUSE_FLOAT32, pixels, 1, 33, 40, {0, 0, 0, 0}};
      error = hifuse_network_run(network, &images, results, NULL);
      free(pixels), free(results);
    }
    printf("%s\n", error ? error : "runs");
    hifuse_network_close(network);
  }
  return 0;
}

/* Two networks at once, each of a thread of its own, and each as alone; sizes at the edge of what there is. */
static int pair(char** argv) {
  static const int64_t sizes[][3] = {{1, 1, 1}, {1, 1025, 3}, {2, 3, 1025}, {0, 5, 5}, {3, 32, 33}};
  hifuse_network* networks[2];
  size_t numbers[2];
  for (int i = 0; i < 2; ++i) check(hifuse_network_open(argv[i], &networks[i]));
  for (size_t s = 0; s < sizeof sizes / sizeof *sizes; ++s) {
    float* alone[2];
    job jobs[2];
    pthread_t threads[2];
    hifuse_images images[2];
    for (int i = 0; i < 2; ++i) {
      const size_t pixels = (size_t)(sizes[s][0] * sizes[s][1] * sizes[s][2] * hifuse_network_in_chans(networks[i]));
      float* const data = malloc(pixels * sizeof *data + 1);
      for (size_t p = 0; p < pixels; ++p) data[p] = (float)((p * 7 + s) % 23) / 11.0f - 1.0f;
      const hifuse_images each = {HIFUSE_FLOAT32, data, sizes[s][0], sizes[s][1], sizes[s][2], {0, 0, 0, 0}};
      images[i] = each;
      numbers[i] = (size_t)(sizes[s][0] * hifuse_network_outputs(networks[i]));
      alone[i] = malloc(numbers[i] * sizeof(float) + 1);
      check(hifuse_network_run(networks[i], &images[i], alone[i], NULL));
    }
    for (int i = 0; i < 2; ++i) {
      const job each = {networks[i], &images[i], malloc(numbers[i] * sizeof(float) + 1), 0};
      jobs[i] = each;
      if (pthread_create(&threads[i], NULL, do_job, &jobs[i])) exit(2);
    }
    for (int i = 0; i < 2; ++i) {
      pthread_join(threads[i], NULL);
      if (jobs[i].failed || memcmp(jobs[i].results, alone[i], numbers[i] * sizeof(float)))
        check("beside another network it gave other bits");
      for (size_t n = 0; n < numbers[i]; ++n)
        if (!(alone[i][n] > -1e6f && alone[i][n] < 1e6f)) check("a result is no number");
      free(jobs[i].results), free(alone[i]), free((void*)images[i].data);
    }
  }
  for (int i = 0; i < 2; ++i) hifuse_network_close(networks[i]);
  return 0;
}

/* ---- Wrong calls ----------------------------------------------------------------------------------------------------------
 */

static void say(const char* message) { printf("%s\n", message ? message : "nothing"); }

static void misuse_network(const char* path) {
  hifuse_network* network = NULL;
  say(hifuse_network_open(path, NULL));
  say(hifuse_network_open(NULL, &network));
  check(hifuse_network_open(path, &network));
  float pixels[2 * 40 * 40] = {0}, results[64];
  const hifuse_images good = {HIFUSE_FLOAT32, pixels, 1, 40, 40, {0, 0, 0, 0}};
  hifuse_images bad = good;
  say(hifuse_network_run(NULL, &good, results, NULL));
  say(hifuse_network_run(network, NULL, results, NULL));
  say(hifuse_network_run(network, &good, NULL, NULL));
  bad.dtype = HIFUSE_BFLOAT16, say(hifuse_network_run(network, &bad, results, NULL)), bad = good;
  bad.dtype = 7, say(hifuse_network_run(network, &bad, results, NULL)), bad = good;
  bad.data = NULL, say(hifuse_network_run(network, &bad, results, NULL)), bad = good;
  bad.batch = -1, say(hifuse_network_run(network, &bad, results, NULL)), bad = good;
  bad.height = 0, say(hifuse_network_run(network, &bad, results, NULL)), bad = good;
  bad.width = INT64_MAX, say(hifuse_network_run(network, &bad, results, NULL)), bad = good;
  bad.batch = INT64_MAX, say(hifuse_network_run(network, &bad, results, NULL)), bad = good;
  hifuse_threads threads = {0, NULL, run_none};
  say(hifuse_network_run(network, &good, results, &threads));
  threads.count = 2, say(hifuse_network_run(network, &good, results, &threads));
  threads.run = run_beyond, say(hifuse_network_run(network, &good, results, &threads));
  threads.run = NULL, say(hifuse_network_run(network, &good, results, &threads));
  bad.batch = 0, say(hifuse_network_run(network, &bad, results, NULL));
  say(hifuse_network_class_name(network, -1));
  say(hifuse_network_class_name(network, 5));
  threads.count = INT64_MAX, threads.run = run_in_turn, check(hifuse_network_run(network, &good, results, &threads));
  bad.strides[0] = bad.strides[1] = bad.strides[2] = 0, bad.strides[3] = 1; /* every row and channel is the first one */
  bad.batch = 1, check(hifuse_network_run(network, &bad, results, NULL)), bad = good;
  hifuse_network_close(network);
  hifuse_network_close(NULL);
  if (hifuse_network_in_chans(NULL) || hifuse_network_outputs(NULL) || hifuse_network_dtype(NULL)) exit(6);
  if (hifuse_network_class_name(NULL, 0) || hifuse_network_normalisation(NULL).std[0] != 0) exit(6);
  say(hifuse_network_open_cuda(path, 0, NULL, &network));
  hifuse_network_close(network);
  say(hifuse_cuda_mean(NULL, NULL));
}

/* Every op and packing with NULL, and with a struct of zeros or of -1, which a program has that forgot to fill it in. */
static void misuse_structs(void) {
  static union {
    hifuse_linear_params linear;
    hifuse_stem_params stem;
    hifuse_gated_concat_params gated_concat;
    hifuse_mixer_params mixer;
    hifuse_mlp_params mlp;
    hifuse_mean_params mean;
    hifuse_window_attention_params window_attention;
    hifuse_pack_matrix_params matrix;
    hifuse_pack_filters_params filters;
    char bytes[512];
  } p;
  float packed[4];
  int64_t bytes = 0;
  for (int fill = -1; fill <= 0; ++fill) {
    memset(&p, fill, sizeof p);
    if (!hifuse_linear(&p.linear, NULL) || !hifuse_stem(&p.stem, NULL) || !hifuse_mixer(&p.mixer, NULL)) exit(7);
    if (!hifuse_gated_concat(&p.gated_concat, NULL) || !hifuse_mlp(&p.mlp, NULL) || !hifuse_mean(&p.mean, NULL)) exit(7);
    if (!hifuse_window_attention(&p.window_attention, NULL)) exit(7);
    if (!hifuse_pack_matrix(&p.matrix, packed, NULL) || !hifuse_packed_matrix_size(&p.matrix, &bytes)) exit(7);
    if (!hifuse_pack_filters(&p.filters, packed, NULL) || !hifuse_packed_filters_size(&p.filters, &bytes)) exit(7);
  }
  if (!hifuse_linear(NULL, NULL) || !hifuse_stem(NULL, NULL) || !hifuse_mixer(NULL, NULL) || !hifuse_mlp(NULL, NULL)) exit(8);
  if (!hifuse_gated_concat(NULL, NULL) || !hifuse_window_attention(NULL, NULL)) exit(8);
  if (!hifuse_pack_matrix(NULL, packed, NULL) || !hifuse_packed_matrix_size(NULL, &bytes)) exit(8);
  if (!hifuse_pack_filters(NULL, packed, NULL) || !hifuse_packed_filters_size(NULL, &bytes)) exit(8);
  const hifuse_pack_matrix_params matrix = {HIFUSE_FLOAT32, HIFUSE_DIRECT, packed, 2, 2, 0};
  if (!hifuse_pack_matrix(&matrix, NULL, NULL) || !hifuse_packed_matrix_size(&matrix, NULL)) exit(8);
}

static void misuse_ops(void) {
  float map[64] = {0}, out[64];
  hifuse_mean_params mean = {HIFUSE_FLOAT32, 1, 4, 4, map, out};
  say(hifuse_mean(NULL, NULL));
  mean.dtype = 9, say(hifuse_mean(&mean, NULL)), mean.dtype = HIFUSE_FLOAT32;
  mean.pixels = 0, say(hifuse_mean(&mean, NULL)), mean.pixels = 4;
  mean.x = NULL, say(hifuse_mean(&mean, NULL)), mean.x = map;
  mean.batch = mean.pixels = mean.channels = INT32_MAX, say(hifuse_mean(&mean, NULL));
  hifuse_linear_params linear = {0};
  linear.batch = linear.height = linear.width = 1, linear.columns = linear.channels[0] = 4;
  say(hifuse_linear(&linear, NULL));
  linear.maps[0] = map, linear.channels[2] = 4, say(hifuse_linear(&linear, NULL)), linear.channels[2] = 0;
  linear.algorithm = HIFUSE_STRASSEN, say(hifuse_linear(&linear, NULL));
  linear.algorithm = HIFUSE_WINOGRAD2, say(hifuse_linear(&linear, NULL)), linear.algorithm = HIFUSE_DIRECT;
  linear.pool = true, say(hifuse_linear(&linear, NULL)), linear.pool = false;
  linear.norm = HIFUSE_PIXEL_NORM, say(hifuse_linear(&linear, NULL)), linear.norm = HIFUSE_ROW_NORM;
  linear.eps = -1, say(hifuse_linear(&linear, NULL)), linear.eps = 0;
  say(hifuse_linear(&linear, NULL));
  hifuse_mixer_params mixer = {0};
  mixer.batch = mixer.height = mixer.width = mixer.channels = 1, mixer.z = mixer.out = map, mixer.weight = map;
  say(hifuse_mixer(&mixer, NULL));
  mixer.dtype = HIFUSE_BFLOAT16, mixer.algorithm = HIFUSE_WINOGRAD4_AT_CALL, say(hifuse_mixer(&mixer, NULL));
  hifuse_window_attention_params attention = {{HIFUSE_FLOAT32, 1, 1, 1, 1, 4, 17, 0, 1.0}, map, map, NULL, out};
  say(hifuse_window_attention(&attention, NULL));
  attention.shape.window_size = 4, attention.shape.shift_size = 4, say(hifuse_window_attention(&attention, NULL));
  attention.shape.shift_size = 3, say(hifuse_window_attention(&attention, NULL));
  hifuse_pack_matrix_params matrix = {HIFUSE_FLOAT32, HIFUSE_STRASSEN, map, 4, 4, 0};
  int64_t bytes = 0;
  say(hifuse_packed_matrix_size(&matrix, &bytes));
  matrix.algorithm = HIFUSE_DIRECT, matrix.block = 5, say(hifuse_pack_matrix(&matrix, out, NULL));
}

/* ---- Ops ------------------------------------------------------------------------------------------------------------------
 */

static int ops(char** argv) {
  size_t bytes = 0;
  float *const weight = read_file(argv[0], &bytes), *const x = read_file(argv[1], &bytes);
  const hifuse_algorithm algorithm = atoi(argv[3]);
  const int64_t batch = atol(argv[4]), height = atol(argv[5]), width = atol(argv[6]), channels = atol(argv[7]);
  const size_t map = (size_t)(batch * height * width * channels);
  float *const between = malloc(map * sizeof *between), *const out = malloc(map * sizeof *out);
  int64_t count = 3;
  const hifuse_threads threads = {count, &count, run_on_threads};

  /* The weight of the linear is the first tap of the filters, its bias the first row of x. */
  float* const first = malloc((size_t)(channels * channels) * sizeof *first);
  for (int64_t i = 0; i < channels * channels; ++i) first[i] = weight[9 * i];
  const hifuse_pack_matrix_params matrix = {HIFUSE_FLOAT32, HIFUSE_DIRECT, first, channels, channels, 0};
  int8_t* const integers = malloc((size_t)(9 * channels * channels));
  float* const scale = malloc((size_t)channels * sizeof *scale);
  for (int64_t i = 0; i < 9 * channels * channels; ++i) integers[i] = (int8_t)(weight[i] * 200);
  for (int64_t i = 0; i < channels; ++i) scale[i] = 0.0009765625f;
  const bool int8 = algorithm == HIFUSE_INT8 || algorithm == HIFUSE_INT8_WINOGRAD2;
  const void* const numbers = int8 ? (const void*)integers : weight;
  const hifuse_pack_filters_params filters = {HIFUSE_FLOAT32, algorithm, numbers, channels};
  int64_t sizes[2];
  check(hifuse_packed_matrix_size(&matrix, &sizes[0]));
  check(hifuse_packed_filters_size(&filters, &sizes[1]));
  void *const packed = malloc((size_t)sizes[0]), *const packed_filters = malloc((size_t)sizes[1]);
  check(hifuse_pack_matrix(&matrix, packed, &threads));
  check(hifuse_pack_filters(&filters, packed_filters, NULL));

  hifuse_linear_params linear = {0};
  linear.batch = batch, linear.height = height, linear.width = width, linear.maps[0] = x;
  linear.channels[0] = linear.columns = channels, linear.weight = packed, linear.bias = x, linear.residual = x;
  linear.activation = HIFUSE_GELU, linear.norm = HIFUSE_ROW_NORM, linear.eps = 1e-6f, linear.out = between;
  check(hifuse_linear(&linear, &threads));
  const hifuse_mixer_params mixer = {HIFUSE_FLOAT32, batch,          height, width, channels, between,
                                     algorithm,      packed_filters, scale,  50,    false,    out};
  check(hifuse_mixer(&mixer, &threads));
  write_file(argv[2], out, map * sizeof *out);
  free(weight), free(x), free(between), free(out), free(first), free(packed), free(packed_filters);
  free(integers), free(scale);
  return 0;
}

int main(int argc, char** argv) {
  const char* const mode = argc > 1 ? argv[1] : "";
  if (!strcmp(mode, "run") && argc == 10) return run(argv + 2);
  if (!strcmp(mode, "pair") && argc == 4) return pair(argv + 2);
  if (!strcmp(mode, "open")) return open_each(argc - 2, argv + 2);
  if (!strcmp(mode, "ops") && argc == 10) return ops(argv + 2);
  if (strcmp(mode, "misuse") || argc != 3) return 5;
  misuse_network(argv[2]);
  misuse_ops();
  misuse_structs();
  return 0;
}
