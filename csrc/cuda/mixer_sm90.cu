// The entry point of the dense mixer for sm_90a.
#include <algorithm>

#include "mixer_sm90.cuh"
#include "sm90_ops.h"

namespace hifuse::cuda {

template <class Kernel>
static const char* launch_mixer(const MixerSm90& op, int multiprocessors, void* stream) {
  const int64_t c = op.channels, rows = op.batch * op.height * op.width;
  MixerParams p{};
  const char* error = map_images(p.z, op.z, op.batch, op.height, op.width, c, Kernel::kRows);
  if (error == nullptr) error = map_matrix(p.weight, op.weight, c, Kernel::kTaps * c, Kernel::kTaps * c, Kernel::kWide);
  if (error != nullptr) return error;
  p.finish = {nullptr, static_cast<const unsigned char*>(op.z), static_cast<unsigned char*>(op.out), static_cast<int>(rows),
              static_cast<int>(c)};
  p.height = static_cast<int>(op.height);
  p.width = static_cast<int>(op.width);
  p.column_tiles = static_cast<int>((c + Kernel::kColumns - 1) / Kernel::kColumns);
  p.tiles = static_cast<int>((rows + Kernel::kRows - 1) / Kernel::kRows) * p.column_tiles;
  return launch<Kernel>(dim3(static_cast<unsigned>(std::min(p.tiles, multiprocessors))), p, stream);
}

template <class T>
static const char* mixer_of(const MixerSm90& op, int multiprocessors, void* stream) {
  if (op.channels == 288) return launch_mixer<MixerKernel<T, 288>>(op, multiprocessors, stream);
  return launch_mixer<MixerKernel<T, 64>>(op, multiprocessors, stream);
}

const char* mixer_sm90(const MixerSm90& op, int multiprocessors, void* stream) {
  if (op.channels != 288 && (op.channels % 64 || op.channels < 64)) return "the channels must be 288 or a multiple of 64";
  if (op.batch * op.height * op.width >= INT32_MAX - 256) return "the maps have more than 2^31 pixels";
  // A block counts its way to the next tile in an int.
  if (op.channels >= INT32_MAX / 9 || (op.batch * op.height * op.width / 128 + 1) * (op.channels / 288 + 1) >= INT32_MAX / 2)
    return "the maps have more than 2^30 tiles";
  if (op.batch == 0) return nullptr;
  switch (op.dtype) {
    case DType::bfloat16: return mixer_of<bf16>(op, multiprocessors, stream);
    case DType::float16: return mixer_of<f16>(op, multiprocessors, stream);
    default: return "the kernels for sm_90a are for bfloat16 and float16";
  }
}

}  // namespace hifuse::cuda
