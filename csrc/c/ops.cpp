// The ops, and how their weights are packed.
#include <string>

#include "c/attention.h"
#include "c/border.h"
#include "c/checks.h"
#include "cpu/isa.h"
#include "cpu/packed_sizes.h"

namespace hifuse::c {
namespace {

thread_local std::string kept;

template <class Params>
using Kernel = void (*KernelTable::*)(const Params&, const Parallel&);

template <class Params>
const char* call(const Params* params, Kernel<Params> kernel, const hifuse_threads* threads) {
  return guarded([&] {
    require(params, "params must not be NULL");
    check(*params);
    Lent lent(threads);
    (isa::kernels().*kernel)(*params, lent.parallel());
  });
}

void check_pack(const hifuse_pack_matrix_params* p) {
  require(p, "params must not be NULL");
  check_matrix(p->dtype, p->algorithm, p->columns, p->depth);
  require(p->block == 0 || p->block == HIFUSE_MLP_BLOCK, "block must be 0 or HIFUSE_MLP_BLOCK, got ", p->block);
  require(p->block == 0 || p->algorithm != Algorithm::strassen, "block must be 0 with HIFUSE_STRASSEN, got ", p->block);
}

void check_pack(const hifuse_pack_filters_params* p) {
  require(p, "params must not be NULL");
  check_filters(p->dtype, p->algorithm, p->channels);
  require(p->algorithm != Algorithm::depthwise, "algorithm HIFUSE_DEPTHWISE_CONVOLUTION needs no packing");
}

void pack_matrix(const hifuse_pack_matrix_params& p, void* packed, const Parallel& parallel) {
  const KernelTable& kernels = isa::kernels();
  const int64_t block = p.block ? p.block : padded(p.depth);
  switch (p.algorithm) {
    case Algorithm::int8:
      kernels.pack_int8({static_cast<const int8_t*>(p.weight), p.columns, p.depth, block, static_cast<int8_t*>(packed)},
                        parallel);
      break;
    case Algorithm::strassen:
      kernels.pack_strassen({static_cast<const float*>(p.weight), p.columns, p.depth, static_cast<float*>(packed)}, parallel);
      break;
    default: kernels.pack_linear({p.dtype, p.weight, p.columns, p.depth, 1, block, packed}, parallel);
  }
}

void pack_filters(const hifuse_pack_filters_params& p, void* packed, const Parallel& parallel) {
  const KernelTable& kernels = isa::kernels();
  const int64_t channels = p.channels;
  if (in_int8(p.algorithm))
    return kernels.pack_int8_filters({static_cast<const int8_t*>(p.weight), channels, p.algorithm, packed}, parallel);
  if (p.algorithm == Algorithm::winograd4_at_call)
    return kernels.pack_linear({p.dtype, p.weight, channels, 9 * channels, 1, padded(9 * channels), packed}, parallel);
  if (p.algorithm == Algorithm::direct)
    return kernels.pack_linear({p.dtype, p.weight, channels, channels, 9, padded(channels), packed}, parallel);
  kernels.pack_winograd({static_cast<const float*>(p.weight), channels, channels, false, tile_of(p.algorithm), p.dtype, packed},
                        parallel);
}

}  // namespace

const char* keep(const char* message) noexcept {
  try {
    kept = message;
    // Names of a file may hold what a terminal would obey.
    for (char& each : kept)
      if (static_cast<unsigned char>(each) < 0x20 || each == 0x7f) each = '?';
    return kept.c_str();
  } catch (...) {
    return "there is not enough memory for a message";
  }
}

}  // namespace hifuse::c

using namespace hifuse;
using namespace hifuse::c;

const char* hifuse_version(void) { return HIFUSE_VERSION; }

const char* hifuse_isa(void) {
  static const std::string name = isa::current();
  return name.c_str();
}

const char* hifuse_linear(const hifuse_linear_params* params, const hifuse_threads* threads) {
  return call(params, &KernelTable::linear, threads);
}
const char* hifuse_stem(const hifuse_stem_params* params, const hifuse_threads* threads) {
  return call(params, &KernelTable::stem, threads);
}
const char* hifuse_gated_concat(const hifuse_gated_concat_params* params, const hifuse_threads* threads) {
  return call(params, &KernelTable::gated_concat, threads);
}
const char* hifuse_mixer(const hifuse_mixer_params* params, const hifuse_threads* threads) {
  return call(params, &KernelTable::mixer, threads);
}
const char* hifuse_mlp(const hifuse_mlp_params* params, const hifuse_threads* threads) {
  return call(params, &KernelTable::mlp, threads);
}
const char* hifuse_mean(const hifuse_mean_params* params, const hifuse_threads* threads) {
  return call(params, &KernelTable::mean, threads);
}

const char* hifuse_window_attention(const hifuse_window_attention_params* params, const hifuse_threads* threads) {
  if (!params) return "params must not be NULL";
  const WindowAttentionForward arguments = attention(*params);
  return call(&arguments, &KernelTable::window_attention_forward, threads);
}

const char* hifuse_packed_matrix_size(const hifuse_pack_matrix_params* params, int64_t* bytes) {
  return guarded([&] {
    check_pack(params);
    require(bytes, "bytes must not be NULL");
    const hifuse_pack_matrix_params& p = *params;
    *bytes = p.algorithm == Algorithm::int8 ? packed_int8_size(p.columns, p.depth, p.block)
                                            : packed_matrix_size(p.columns, p.depth, p.algorithm) * bytes_of(p.dtype);
  });
}

const char* hifuse_pack_matrix(const hifuse_pack_matrix_params* params, void* packed, const hifuse_threads* threads) {
  return guarded([&] {
    check_pack(params);
    require(params->weight, "weight must not be NULL");
    require(packed, "packed must not be NULL");
    Lent lent(threads);
    pack_matrix(*params, packed, lent.parallel());
  });
}

const char* hifuse_packed_filters_size(const hifuse_pack_filters_params* params, int64_t* bytes) {
  return guarded([&] {
    check_pack(params);
    require(bytes, "bytes must not be NULL");
    const hifuse_pack_filters_params& p = *params;
    *bytes = in_int8(p.algorithm) ? packed_int8_filters_size(p.channels, p.algorithm)
                                  : packed_filters_size(p.channels, p.dtype, p.algorithm) * bytes_of(p.dtype);
  });
}

const char* hifuse_pack_filters(const hifuse_pack_filters_params* params, void* packed, const hifuse_threads* threads) {
  return guarded([&] {
    check_pack(params);
    require(params->weight, "weight must not be NULL");
    require(packed, "packed must not be NULL");
    Lent lent(threads);
    pack_filters(*params, packed, lent.parallel());
  });
}
