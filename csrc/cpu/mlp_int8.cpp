// The MLP of mlp.cpp in int8: u is quantised as it is read, the hidden units are as they are made, and both products have exact
// sums in int32. So they may be added in any order, and the bits do not depend on it.
#include "cpu/activation.h"
#include "cpu/int8.h"
#include "cpu/prepared.h"
#include "cpu/rows.h"

namespace hifuse {
inline namespace HIFUSE_ISA {
namespace {

constexpr int64_t kMostRows = kTiles ? 7 * 16 : 4 * 14;
constexpr int64_t kOperandBytes = 256 * 1024;
constexpr int64_t kTasks = 12;  // at least

template <class S, class Arithmetic>
class Int8Mlp {
  using Quantised = typename Arithmetic::Element;

 public:
  explicit Int8Mlp(const Mlp& args)
      : args_(args),
        rows_(args.batch * args.rows),
        depth_(padded_depth(args.depth)),
        chunks_(divide_up(args.hidden, kHidden)),
        panels_(divide_up(args.columns, kPanel)) {}

  // A task is a block of rows and a part of the hidden units, in chunks of kHidden.
  void run(const Parallel& parallel) const {
    if (rows_ == 0) return;
    const int64_t fitting = kOperandBytes / static_cast<int64_t>(sizeof(Quantised)) / depth_;
    const int64_t blocks = divide_up(rows_, fitting < 28 ? 28 : fitting > kMostRows ? kMostRows : fitting);
    const int64_t wanted = divide_up(kTasks, blocks), parts = wanted < chunks_ ? wanted : chunks_;
    const int64_t size = rows_ * panels_ * kPanel;
    Scratch scratch;
    int32_t* const sums = scratch.take_dirty<int32_t>(parts * size);
    float* const lost = scratch.take_dirty<float>(rows_);
    const auto block_at = [&](int64_t i) { return Block{rows_ * i / blocks, rows_ * (i + 1) / blocks}; };
    parallel.each(parts * blocks, [&](int64_t task) {
      const int64_t part = task / blocks;
      const Block block = block_at(task % blocks);
      Scratch own;
      float* const mine = part == 0 ? lost + block.first : own.take_dirty<float>(block.count());
      int32_t* const to = sums + part * size + block.first * panels_ * kPanel;
      run_block(block, chunks_ * part / parts, chunks_ * (part + 1) / parts, mine, to);
      if (parts == 1)
        for (int64_t panel = 0; panel < panels_; ++panel) finish(block, panel, to, 1, size, lost);
    });
    if (parts == 1) return;
    parallel.each(blocks * panels_, [&](int64_t task) {
      const Block block = block_at(task / panels_);
      finish(block, task % panels_, sums + block.first * panels_ * kPanel, parts, size, lost);
    });
  }

 private:
  struct Block {  // of rows
    int64_t first;
    int64_t last;
    int64_t count() const { return last - first; }
  };

  // sums[panel][row][32], and what each row has lost, from the chunks [chunk, end).
  void run_block(Block block, int64_t chunk, int64_t end, float* lost, int32_t* sums) const {
    const int64_t rows = block.count(), whole = int8_panel_size(kHidden) * panels_;
    Scratch scratch;
    const auto u = int8_operand<Arithmetic>(rows, depth_, scratch), hidden = int8_operand<Arithmetic>(rows, kHidden, scratch);
    int32_t* const units = scratch.take_dirty<int32_t>(rows * kPanel);
    float* const row = scratch.take<float>(depth_);
    for (int64_t i = 0; i < rows; ++i) {
      read_row(static_cast<const S*>(args_.u) + (block.first + i) * args_.depth, row, args_.depth);
      lost[i] = quantise_row<Arithmetic>(row, depth_, args_.inverse, u.rows_from(i));
    }
    for (bool accumulate = false; chunk < end; ++chunk, accumulate = true) {
      const int64_t first = chunk * kHidden;
      const int64_t width = padded_depth(args_.hidden - first < kHidden ? args_.hidden - first : kHidden);
      expand(rows, {u.at, u.chunk}, first, width, units, hidden);
      project(rows, {hidden.at, hidden.chunk}, static_cast<const int8_t*>(args_.project) + chunk * whole, width, sums,
              accumulate);
    }
  }

  void expand(int64_t rows, ConstInt8Operand<Arithmetic> u, int64_t first, int64_t width, int32_t* units,
              Int8Operand<Arithmetic> hidden) const {
    const int64_t size = int8_panel_size(args_.depth);
    const int8_t* at = static_cast<const int8_t*>(args_.expand) + first / kPanel * size;
    for (int64_t j = 0; j < width; j += kPanel, at += size) {
      int8_product<Arithmetic>(rows, depth_ / kChunk, u, at, units, false, j + kPanel < width ? at + size : at);
      activate(first + j, rows, units, element(hidden, j));
    }
  }

  // Of the panel of hidden units that begins with `first`: GELU(sums + bias), quantised, to the rows of an operand from `to`
  // on.
  void activate(int64_t first, int64_t rows, const int32_t* sums, Quantised* to) const {
    float bias[kPanel] = {}, scale[kPanel] = {};
    for (int64_t i = 0; i < kPanel && first + i < args_.hidden; ++i) {
      bias[i] = args_.expand_bias[first + i];
      scale[i] = args_.expand_scale[first + i];
    }
    for (int64_t i = 0; i < rows; ++i, sums += kPanel, to += Arithmetic::kWidth)
      for (int64_t l = 0; l < kPanel; l += kLanes<float>)
        store_quantised<Arithmetic>(
            to + l, quantise(gelu<BFloat16>(dequantise(sums + l, scale + l) + load(bias + l)), args_.hidden_inverse));
  }

  void project(int64_t rows, ConstInt8Operand<Arithmetic> hidden, const int8_t* at, int64_t width, int32_t* sums,
               bool accumulate) const {
    const int64_t size = int8_panel_size(width);
    for (int64_t panel = 0; panel < panels_; ++panel, at += size)
      int8_product<Arithmetic>(rows, width / kChunk, hidden, at, sums + panel * rows * kPanel, accumulate,
                               panel + 1 < panels_ ? at + size : at);
  }

  void finish(Block block, int64_t panel, const int32_t* sums, int64_t parts, int64_t part_size, const float* lost) const {
    const int64_t column = panel * kPanel;
    const int64_t count = args_.columns - column < kPanel ? args_.columns - column : kPanel;
    float bias[kPanel] = {}, scale[kPanel] = {}, row[kPanel];
    for (int64_t i = 0; i < count; ++i) {
      bias[i] = args_.project_bias[column + i];
      scale[i] = args_.project_scale[column + i];
    }
    for (int64_t i = 0; i < block.count(); ++i) {
      const int32_t* const from = sums + (panel * block.count() + i) * kPanel;
      for (int64_t j = 0; j < kPanel; j += kLanes<float>) {
        Vec<int32_t> total = load(from + j);
        for (int64_t part = 1; part < parts; ++part) total += load(from + part * part_size + j);
        store(row + j, __builtin_convertvector(total, Vec<float>) * load(scale + j) + load(bias + j) + lost[block.first + i]);
      }
      const int64_t at = (block.first + i) * args_.columns + column;
      if (args_.residual) add_columns(static_cast<const S*>(args_.residual) + at, row, count);
      write_columns(row, static_cast<S*>(args_.out) + at, count);
    }
  }

  const Mlp& args_;
  int64_t rows_;
  int64_t depth_;
  int64_t chunks_;  // of hidden units
  int64_t panels_;
};

template <class Arithmetic>
struct MlpBy {
  template <class S>
  using Kernel = Int8Mlp<S, Arithmetic>;
};

}  // namespace

void mlp_int8(const Mlp& args, const Parallel& parallel) {
  by_fastest_int8([&](auto arithmetic) { run_int8<MlpBy<decltype(arithmetic)>::template Kernel>(args.dtype, args, parallel); });
}

}  // namespace HIFUSE_ISA
}  // namespace hifuse
