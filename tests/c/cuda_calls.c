/* What the tests call on a CUDA device, which the library that this is linked with emulates:
 *
 *     cuda_calls run NETWORK IMAGES DTYPE BATCH HEIGHT WIDTH RESULTS    from device memory; float32 results
 *     cuda_calls threads NETWORK       several threads run one network, from memory of the host
 *     cuda_calls open RUN NETWORK...   says for each why it is refused; "opens", or with RUN=1 what a run says
 *     cuda_calls ops WEIGHT X OUT B H W C    a linear, an MLP and the mean over pixels
 *     cuda_calls host NETWORK IMAGES BATCH HEIGHT WIDTH RESULTS    from memory of the host, float32; says how many launches it
 *         made, and whether these, and then those of an op, could begin early
 *     cuda_calls misuse NETWORK        says what wrong calls are told
 */
#include <hifuse/cuda.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Of the emulated library. */
void* hifuse_emulated_take(int64_t bytes);
void hifuse_emulated_give(void* memory);
int hifuse_emulated_began_early(void);
int64_t hifuse_emulated_launches(void);

static void check(const char* error) {
  if (!error) return;
  fprintf(stderr, "%s\n", error);
  exit(1);
}

static void expect(int holds, const char* what) {
  if (!holds) check(what);
}

static void* read_file(const char* path, size_t* bytes) {
  FILE* const file = fopen(path, "rb");
  if (!file) exit(2);
  fseek(file, 0, SEEK_END);
  *bytes = (size_t)ftell(file);
  rewind(file);
  void* const data = malloc(*bytes + 1);
  if (fread(data, 1, *bytes, file) != *bytes) exit(2);
  fclose(file);
  return data;
}

static void write_file(const char* path, const void* data, size_t bytes) {
  FILE* const file = fopen(path, "wb");
  if (!file || fwrite(data, 1, bytes, file) != bytes) exit(2);
  fclose(file);
}

/* A copy in memory of the device, from which the host can read as well here. */
static void* on_device(const void* data, size_t bytes) {
  void* const memory = hifuse_emulated_take((int64_t)bytes);
  if (data) memcpy(memory, data, bytes);
  return memory;
}

/* ---- Networks, their memory and streams -----------------------------------------------------------------------------------
 */

typedef struct lender {
  int taken, given, refuse;
} lender;

static void* take(void* context, int64_t bytes, void* stream) {
  (void)stream;
  lender* const l = context;
  if (l->refuse) return NULL;
  ++l->taken;
  return hifuse_emulated_take(bytes);
}

static void give(void* context, void* memory, void* stream) {
  (void)stream;
  ++((lender*)context)->given;
  hifuse_emulated_give(memory);
}

static void* take_anywhere(void* context, int64_t bytes, void* stream) { return (char*)take(context, bytes + 16, stream) + 16; }

static void give_anywhere(void* context, void* memory, void* stream) { give(context, (char*)memory - 16, stream); }

static int run(char** argv) {
  lender l = {0, 0, 0};
  const hifuse_cuda_memory lent = {&l, take, give};
  hifuse_network* network = NULL;
  check(hifuse_network_open_cuda(argv[0], 0, &lent, &network));
  size_t bytes = 0;
  void *const data = read_file(argv[1], &bytes), *const there = on_device(data, bytes);
  const hifuse_dtype dtype = !strcmp(argv[2], "float32") ? HIFUSE_FLOAT32 : hifuse_network_dtype(network);
  hifuse_images images = {dtype, there, atol(argv[3]), atol(argv[4]), atol(argv[5]), {0, 0, 0, 0}};
  const size_t outputs = (size_t)hifuse_network_outputs(network), numbers = (size_t)images.batch * outputs;
  float *const results = on_device(NULL, numbers * sizeof *results), *const last = malloc(outputs * sizeof *last);

  /* The emulation takes a stream for a pointer to whether it is captured. */
  int stream = 1;
  const char* error = hifuse_network_run_cuda(network, &images, results, &stream);
  expect(error && strstr(error, "cannot be captured: make one run of it on this stream before"), "a first run was captured");
  stream = 0, l.refuse = 1;
  error = hifuse_network_run_cuda(network, &images, results, &stream);
  expect(error && strstr(error, "there is not enough memory on the device, for "), "it ran without memory");
  l.refuse = 0;
  check(hifuse_network_run_cuda(network, &images, results, &stream));
  write_file(argv[6], results, numbers * sizeof *results);
  memcpy(last, results + numbers - outputs, outputs * sizeof *last);

  /* The last image alone, in the maps that are there, as a captured run must. */
  const int taken = l.taken;
  const size_t of_image = bytes / (size_t)images.batch;
  images.batch = 1, images.data = (char*)there + bytes - of_image, stream = 1;
  check(hifuse_network_run_cuda(network, &images, results, &stream));
  expect(l.taken == taken, "a second run took memory");
  expect(!memcmp(last, results, outputs * sizeof *last), "an image alone has other bits");
  hifuse_network_close(network);
  expect(l.taken == l.given, "memory was not given back");
  hifuse_emulated_give(there), hifuse_emulated_give(results);
  free(data), free(last);
  return 0;
}

typedef struct job {
  hifuse_network* network;
  const hifuse_images* images;
  float results[8];
  const char* error;
} job;

static void* do_job(void* argument) {
  job* const j = argument;
  j->error = hifuse_network_run(j->network, j->images, j->results, NULL);
  return NULL;
}

static int threads(char** argv) {
  hifuse_network* network = NULL;
  check(hifuse_network_open_cuda(argv[0], 0, NULL, &network));
  expect(hifuse_network_outputs(network) == 5 && hifuse_network_in_chans(network) == 2, "another network was expected");
  float pixels[2 * 20 * 30];
  for (int i = 0; i < 2 * 20 * 30; ++i) pixels[i] = (float)(i % 17) / 17.0f;
  const hifuse_images images = {HIFUSE_FLOAT32, pixels, 1, 20, 30, {0, 0, 0, 0}};
  job jobs[3];
  pthread_t started[3];
  for (int i = 0; i < 3; ++i) {
    const job each = {network, &images, {0}, NULL};
    jobs[i] = each;
    if (pthread_create(&started[i], NULL, do_job, &jobs[i])) exit(2);
  }
  for (int i = 0; i < 3; ++i) {
    pthread_join(started[i], NULL);
    check(jobs[i].error);
    expect(!memcmp(jobs[i].results, jobs[0].results, 5 * sizeof(float)), "a thread got other bits");
  }
  hifuse_network_close(network);
  return 0;
}

/* ---- What is refused ------------------------------------------------------------------------------------------------------
 */

static void say(const char* message) { printf("%s\n", message ? message : "nothing"); }

static int open_each(int runs, int count, char** paths) {
  for (int i = 0; i < count; ++i) {
    hifuse_network* network = NULL;
    const char* error = hifuse_network_open_cuda(paths[i], 0, NULL, &network);
    if (!error != (network != NULL)) return 3;
    if (!error && runs) {
      const int64_t channels = hifuse_network_in_chans(network), outputs = hifuse_network_outputs(network);
      if (channels > 64 || outputs > 1 << 20) return 4; /* these files have no tensors for more */
      float *const pixels = calloc((size_t)channels * 20 * 30, sizeof *pixels), *const results = calloc((size_t)outputs, 4);
      const hifuse_images images = {HIFUSE_FLOAT32, pixels, 1, 20, 30, {0, 0, 0, 0}};
      error = hifuse_network_run(network, &images, results, NULL);
      free(pixels), free(results);
    }
    printf("%s\n", error ? error : "opens");
    hifuse_network_close(network);
  }
  return 0;
}

/* Every op with NULL, and with a struct of zeros or of -1, which a program has that forgot to fill it in. */
static void misuse_structs(const hifuse_cuda_launch* launch) {
  static union {
    hifuse_cuda_linear_params linear;
    hifuse_cuda_stem_params stem;
    hifuse_cuda_local_block_params local_block;
    hifuse_cuda_global_block_params global_block;
    hifuse_cuda_fuse_path_params fuse_path;
    hifuse_cuda_window_attention_params window_attention;
    hifuse_cuda_gated_concat_params gated_concat;
    hifuse_cuda_mixer_params mixer;
    hifuse_cuda_mlp_params mlp;
    hifuse_mean_params mean;
  } p;
  int64_t bytes = 0;
#define REFUSED(op, params) \
  expect(hifuse_cuda_##op(params, launch) && hifuse_cuda_##op##_scratch(params, &bytes), #op " was not refused")
  for (int fill = -1; fill <= 0; ++fill) {
    memset(&p, fill, sizeof p);
    REFUSED(linear, &p.linear), REFUSED(stem, &p.stem), REFUSED(local_block, &p.local_block);
    REFUSED(global_block, &p.global_block), REFUSED(fuse_path, &p.fuse_path), REFUSED(mean, &p.mean);
    REFUSED(window_attention, &p.window_attention), REFUSED(gated_concat, &p.gated_concat), REFUSED(mixer, &p.mixer);
    REFUSED(mlp, &p.mlp);
  }
  REFUSED(linear, NULL), REFUSED(stem, NULL), REFUSED(local_block, NULL), REFUSED(global_block, NULL);
  REFUSED(fuse_path, NULL), REFUSED(mean, NULL), REFUSED(window_attention, NULL), REFUSED(gated_concat, NULL);
  REFUSED(mixer, NULL), REFUSED(mlp, NULL);
#undef REFUSED
}

static int misuse(char** argv) {
  hifuse_network* network = NULL;
  lender l = {0, 0, 0};
  const hifuse_cuda_memory nobody = {NULL, NULL, NULL}, anywhere = {&l, take_anywhere, give_anywhere};
  say(hifuse_network_open_cuda(NULL, 0, NULL, &network));
  say(hifuse_network_open_cuda(argv[0], 0, NULL, NULL));
  say(hifuse_network_open_cuda(argv[0], 7, NULL, &network));
  say(hifuse_network_open_cuda(argv[0], 0, &nobody, &network));
  say(hifuse_network_open_cuda(argv[0], 0, &anywhere, &network));
  expect(l.taken == 1 && l.given == 1, "memory was not given back");
  say(hifuse_network_open(argv[0], &network));
  check(hifuse_network_open_cuda(argv[0], 0, NULL, &network));
  float pixels[2 * 4 * 4] = {0}, results[8];
  const hifuse_images good = {HIFUSE_FLOAT32, pixels, 1, 4, 4, {0, 0, 0, 0}};
  hifuse_images bad = good;
  say(hifuse_network_run_cuda(NULL, &good, results, NULL));
  say(hifuse_network_run_cuda(network, NULL, results, NULL));
  say(hifuse_network_run_cuda(network, &good, NULL, NULL));
  bad.dtype = 9, say(hifuse_network_run_cuda(network, &bad, results, NULL)), bad = good;
  bad.batch = INT64_MAX, say(hifuse_network_run_cuda(network, &bad, results, NULL)), bad = good;
  bad.batch = INT32_MAX, say(hifuse_network_run_cuda(network, &bad, results, NULL)), bad = good;
  bad.batch = 0, say(hifuse_network_run_cuda(network, &bad, results, NULL)), bad = good;
  bad.strides[3] = 1, bad.strides[0] = -1, say(hifuse_network_run(network, &bad, results, NULL)), bad = good;
  bad.strides[3] = 1, bad.strides[0] = INT64_MAX, bad.batch = 3, say(hifuse_network_run(network, &bad, results, NULL));
  hifuse_network_close(network);

  float* const map = on_device(NULL, 4096);
  hifuse_cuda_launch launch = {NULL, NULL, 0};
  hifuse_mean_params mean = {HIFUSE_FLOAT32, 1, 4, 4, map, map + 512};
  int64_t bytes = 0;
  say(hifuse_cuda_mean(NULL, &launch)), say(hifuse_cuda_mean(&mean, NULL)), say(hifuse_cuda_mean_scratch(&mean, NULL));
  mean.dtype = 9, say(hifuse_cuda_mean(&mean, &launch)), mean.dtype = HIFUSE_FLOAT16;
  mean.x = map + 1, say(hifuse_cuda_mean(&mean, &launch)), mean.x = map;
  hifuse_cuda_linear_params linear = {0};
  linear.batch = linear.width = linear.columns = 1, linear.height = 3, linear.channels[0] = 4;
  linear.maps[0] = linear.weight = linear.bias = map, linear.out = map + 512;
  linear.pool = true, say(hifuse_cuda_linear(&linear, &launch)), linear.pool = false;
  linear.rows = HIFUSE_DEPTHWISE, say(hifuse_cuda_linear(&linear, &launch)), linear.rows = HIFUSE_PIXELS;
  linear.height = 40000, say(hifuse_cuda_linear(&linear, &launch));
  hifuse_cuda_mlp_params mlp = {HIFUSE_FLOAT32, 1, 3, 4, 8, 4, false, map, map, map, map, map, NULL, map + 512};
  say(hifuse_cuda_mlp_scratch(&mlp, &bytes));
  say(hifuse_cuda_mlp(&mlp, &launch));
  launch.scratch_bytes = bytes, say(hifuse_cuda_mlp(&mlp, &launch));
  launch.scratch = map + 3, say(hifuse_cuda_mlp(&mlp, &launch));
  mlp.sm90 = true, say(hifuse_cuda_mlp(&mlp, &launch));
  mlp.dtype = HIFUSE_BFLOAT16, say(hifuse_cuda_mlp_scratch(&mlp, &bytes)), mlp.sm90 = false, mlp.dtype = HIFUSE_FLOAT32;
  hifuse_cuda_mixer_params mixer = {HIFUSE_BFLOAT16, 1, 1, 1, 8, map, true, true, map, map + 512};
  say(hifuse_cuda_mixer(&mixer, &launch));
  mixer.depthwise = false, say(hifuse_cuda_mixer(&mixer, &launch));
  mlp.hidden = INT32_MAX, mlp.batch = mlp.rows = INT32_MAX, say(hifuse_cuda_mlp_scratch(&mlp, &bytes));
  hifuse_cuda_local_block_params block = {0};
  block.batch = block.height = block.width = 1, block.channels = 12, block.whole = true;
  say(hifuse_cuda_local_block(&block, &launch));
  block.dtype = HIFUSE_BFLOAT16, say(hifuse_cuda_local_block(&block, &launch));
  hifuse_cuda_global_block_params whole = {
      {HIFUSE_BFLOAT16, 1, 1, 1, 1, 12, 7, 0, 1.0}, 0, map, map, map, map, map, map, map, map + 512};
  say(hifuse_cuda_global_block(&whole, &launch));
  whole.shape.head_dim = 8, whole.shape.window_size = 8, say(hifuse_cuda_global_block(&whole, &launch));
  hifuse_cuda_fuse_path_params path = {HIFUSE_FLOAT32, 1, 1, 1, 104, 0, map, NULL, map, map, map + 512};
  say(hifuse_cuda_fuse_path(&path, &launch));
  path.dtype = HIFUSE_BFLOAT16, say(hifuse_cuda_fuse_path(&path, &launch));
  path.channels = 8, say(hifuse_cuda_fuse_path(&path, &launch));
  misuse_structs(&launch);
  hifuse_emulated_give(map);
  return 0;
}

/* ---- Ops ------------------------------------------------------------------------------------------------------------------
 */

static int ops(char** argv) {
  size_t bytes = 0, of_map = 0;
  float *const w = read_file(argv[0], &bytes), *const data = read_file(argv[1], &of_map);
  const int64_t batch = atol(argv[3]), height = atol(argv[4]), width = atol(argv[5]), channels = atol(argv[6]);
  float *const weight = on_device(w, bytes), *const x = on_device(data, of_map);
  float *const between = on_device(NULL, of_map), *const out = on_device(NULL, of_map), *const mean = on_device(NULL, of_map);

  hifuse_cuda_linear_params linear = {0};
  linear.batch = batch, linear.height = height, linear.width = width, linear.maps[0] = x;
  linear.channels[0] = linear.columns = channels, linear.weight = weight, linear.bias = x, linear.residual = x;
  linear.activation = HIFUSE_GELU, linear.norm = HIFUSE_ROW_NORM, linear.eps = 1e-6f, linear.out = between;
  const hifuse_cuda_mlp_params mlp = {HIFUSE_FLOAT32, batch, height * width, channels, channels, channels, false, between,
                                      weight,         x,     weight,         x,        x,        out};
  const hifuse_mean_params over_pixels = {HIFUSE_FLOAT32, batch, height * width, channels, out, mean};
  int64_t sizes[3];
  check(hifuse_cuda_linear_scratch(&linear, &sizes[0]));
  check(hifuse_cuda_mlp_scratch(&mlp, &sizes[1]));
  check(hifuse_cuda_mean_scratch(&over_pixels, &sizes[2]));
  expect(sizes[2] == 0 && sizes[1] >= batch * height * width * channels * 4, "scratch memory of another size was expected");
  const int64_t most = sizes[0] > sizes[1] ? sizes[0] : sizes[1];
  const hifuse_cuda_launch launch = {NULL, on_device(NULL, (size_t)most), most};
  check(hifuse_cuda_linear(&linear, &launch));
  check(hifuse_cuda_mlp(&mlp, &launch));
  check(hifuse_cuda_mean(&over_pixels, &launch));
  write_file(argv[2], mean, (size_t)(batch * channels) * sizeof *mean);
  hifuse_emulated_give(weight), hifuse_emulated_give(x), hifuse_emulated_give(between), hifuse_emulated_give(out);
  hifuse_emulated_give(mean), hifuse_emulated_give(launch.scratch);
  free(w), free(data);
  return 0;
}

/* A run from memory of the host, and how it was launched. */
static int host(char** argv) {
  hifuse_network* network = NULL;
  check(hifuse_network_open_cuda(argv[0], 0, NULL, &network));
  size_t bytes = 0;
  void* const data = read_file(argv[1], &bytes);
  const hifuse_images images = {HIFUSE_FLOAT32, data, atol(argv[2]), atol(argv[3]), atol(argv[4]), {0, 0, 0, 0}};
  const size_t numbers = (size_t)(images.batch * hifuse_network_outputs(network));
  float* const results = malloc(numbers * sizeof *results);
  const int64_t before = hifuse_emulated_launches();
  check(hifuse_network_run(network, &images, results, NULL));
  printf("%d\n%d\n", (int)(hifuse_emulated_launches() - before), hifuse_emulated_began_early());
  write_file(argv[5], results, numbers * sizeof *results);
  hifuse_network_close(network);

  float* const map = on_device(NULL, 4096);
  const hifuse_mean_params mean = {HIFUSE_FLOAT32, 1, 4, 4, map, map + 512};
  const hifuse_cuda_launch launch = {NULL, NULL, 0};
  check(hifuse_cuda_mean(&mean, &launch));
  printf("%d\n", hifuse_emulated_began_early());
  hifuse_emulated_give(map);
  free(data), free(results);
  return 0;
}

int main(int argc, char** argv) {
  const char* const mode = argc > 1 ? argv[1] : "";
  if (!strcmp(mode, "run") && argc == 9) return run(argv + 2);
  if (!strcmp(mode, "threads") && argc == 3) return threads(argv + 2);
  if (!strcmp(mode, "open") && argc > 2) return open_each(atoi(argv[2]), argc - 3, argv + 3);
  if (!strcmp(mode, "host") && argc == 8) return host(argv + 2);
  if (!strcmp(mode, "ops") && argc == 9) return ops(argv + 2);
  if (strcmp(mode, "misuse") || argc != 3) return 5;
  return misuse(argv + 2);
}
