/* Classifies an image by a frozen network, without Python:
 *
 *     hifuse_predict NETWORK IMAGE.ppm                 8-bit binary PPM or PGM
 *     hifuse_predict NETWORK IMAGE.f32 HEIGHT WIDTH    float32 [in_chans, height, width], prepared already
 *
 * and prints what `hifuse-fast predict` prints of these pixels. `--device cuda` before NETWORK runs one that was frozen for
 * "cuda" on the first CUDA device, `--device cuda:1` on the second.
 */
#include <ctype.h>
#include <hifuse/cuda.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void fail(const char* what, const char* why) {
  fprintf(stderr, "hifuse_predict: %s%s%s\n", what, *what ? ": " : "", why);
  exit(1);
}

static void* allocate(size_t count, size_t bytes) {
  void* const memory = calloc(count, bytes);
  if (!memory) fail("", "there is not enough memory");
  return memory;
}

/* A number of a PPM's header, after spaces and comments. */
static int64_t read_number(FILE* file) {
  int next = getc(file);
  while (isspace(next) || next == '#') {
    if (next == '#')
      while (next != '\n' && next != EOF) next = getc(file);
    next = getc(file);
  }
  int64_t number = 0;
  if (!isdigit(next)) return -1;
  for (; isdigit(next) && number < 100000; next = getc(file)) number = 10 * number + next - '0';
  return isspace(next) ? number : -1; /* the one space that ends the number has been read */
}

/* The pixels of a PPM or PGM, each channel (value / 255 - mean) / std. */
static float* read_ppm(FILE* file, const char* path, const hifuse_network* network, int64_t* height, int64_t* width) {
  const int64_t channels = hifuse_network_in_chans(network);
  const hifuse_normalisation norm = hifuse_network_normalisation(network);
  char kind[2] = {0};
  if (fread(kind, 1, 2, file) != 2 || kind[0] != 'P' || (kind[1] != '6' && kind[1] != '5'))
    fail(path, "is no binary PPM or PGM");
  if (channels != (kind[1] == '6' ? 3 : 1)) fail(path, "has another number of channels than the network takes");
  *width = read_number(file), *height = read_number(file);
  if (*width < 1 || *height < 1 || *width > 65535 || *height > 65535 || read_number(file) != 255)
    fail(path, "must have from 1 to 65535 pixels along each side, of 8 bits");
  const size_t pixels = (size_t)(*height * *width);
  unsigned char* const bytes = allocate(pixels, (size_t)channels);
  if (fread(bytes, (size_t)channels, pixels, file) != pixels) fail(path, "ends too early");
  float* const image = allocate(pixels * (size_t)channels, sizeof *image);
  for (size_t i = 0; i < pixels; ++i)
    for (int64_t c = 0; c < channels; ++c)
      image[(size_t)c * pixels + i] = ((float)bytes[i * (size_t)channels + (size_t)c] / 255.0f - norm.mean[c]) / norm.std[c];
  free(bytes);
  return image;
}

static float* read_floats(FILE* file, const char* path, int64_t channels, int64_t height, int64_t width) {
  if (height < 1 || width < 1 || height > 65535 || width > 65535) fail(path, "HEIGHT and WIDTH must be from 1 to 65535");
  const size_t count = (size_t)(channels * height * width);
  float* const image = allocate(count, sizeof *image);
  if (fread(image, sizeof *image, count, file) != count || getc(file) != EOF)
    fail(path, "must hold in_chans * HEIGHT * WIDTH float32 numbers");
  return image;
}

static void print_text(const char* text) {
  putchar('"');
  for (; *text; ++text) {
    if (*text == '"') putchar('"');
    putchar(*text);
  }
  putchar('"');
}

static void print_row(const char* path, const hifuse_network* network, const float* logits) {
  const int64_t count = hifuse_network_outputs(network);
  int64_t best = 0;
  for (int64_t i = 1; i < count; ++i)
    if (logits[i] > logits[best]) best = i;
  double sum = 0;
  for (int64_t i = 0; i < count; ++i) sum += exp((double)logits[i] - logits[best]);
  printf("\"path\",\"class\",\"probability\",\"error\"");
  for (int64_t i = 0; i < count; ++i) {
    printf(",\"p(");
    for (const char* name = hifuse_network_class_name(network, i); *name; ++name) printf(*name == '"' ? "\"\"" : "%c", *name);
    printf(")\"");
  }
  putchar('\n');
  print_text(path), putchar(','), print_text(hifuse_network_class_name(network, best));
  printf(",%.9g,\"\"", 1 / sum);
  for (int64_t i = 0; i < count; ++i) printf(",%.9g", exp((double)logits[i] - logits[best]) / sum);
  putchar('\n');
}

/* The network on the CPU, where `device` is "cpu", or on a CUDA device: "cuda", "cuda:1". */
static hifuse_network* open_network(const char* path, const char* device) {
  hifuse_network* network = NULL;
  const char* error = NULL;
  char* end = NULL;
  const long number = !strncmp(device, "cuda:", 5) ? strtol(device + 5, &end, 10) : 0;
  if (!strcmp(device, "cpu"))
    error = hifuse_network_open(path, &network);
  else if (!strcmp(device, "cuda") || (end && end != device + 5 && !*end && number >= 0 && number < 1024))
    error = hifuse_network_open_cuda(path, (int32_t)number, NULL, &network);
  else
    fail(device, "--device must be cpu, cuda or cuda:NUMBER");
  if (error) fail("", error);
  return network;
}

int main(int argc, char** argv) {
  const char* device = "cpu";
  if (argc > 2 && !strcmp(argv[1], "--device")) device = argv[2], argc -= 2, argv += 2;
  if (argc != 3 && argc != 5)
    fail("", "usage: hifuse_predict [--device cuda] NETWORK IMAGE.ppm | NETWORK IMAGE.f32 HEIGHT WIDTH");
  hifuse_network* const network = open_network(argv[1], device);
  if (!hifuse_network_class_name(network, 0)) fail(argv[1], "has no classifier");

  FILE* const file = fopen(argv[2], "rb");
  if (!file) fail(argv[2], "cannot be read");
  const int64_t channels = hifuse_network_in_chans(network);
  int64_t height = argc == 5 ? atol(argv[3]) : 0, width = argc == 5 ? atol(argv[4]) : 0;
  float* const image =
      argc == 5 ? read_floats(file, argv[2], channels, height, width) : read_ppm(file, argv[2], network, &height, &width);
  fclose(file);

  const hifuse_images images = {HIFUSE_FLOAT32, image, 1, height, width, {0, 0, 0, 0}};
  float* const logits = allocate((size_t)hifuse_network_outputs(network), sizeof *logits);
  const char* const error = hifuse_network_run(network, &images, logits, NULL);
  if (error) fail("", error);
  print_row(argv[2], network, logits);

  free(logits);
  free(image);
  hifuse_network_close(network);
  return 0;
}
