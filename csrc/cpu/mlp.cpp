// out = residual + W3 gelu(W2 u + b2) + b3: the hidden units, four times as many as u has channels, are never written to
// memory.
//
// A task is a block of rows and a part of the hidden units, which it takes kHidden at a time: expand, GELU, and their share of
// the projection, which is added up in L2. Where there are few rows, several tasks have a part of the hidden units each.
//
// An image's rows and the weights decide in which order sums are added, or the result would depend on the batch: the hidden
// units are cut into `leaves`, a power of 2, whose sums are added pair by pair, then the sums of pairs, and so on. A task has
// 1, 2, 4, ... leaves, and what the tasks of a block have is added in the same way at the end.
#include <bit>

#include "cpu/activation.h"
#include "cpu/prepared.h"
#include "cpu/rows.h"
#include "cpu/strassen.h"

namespace hifuse {
inline namespace HIFUSE_ISA {
namespace {

// A block reads all weights of its part, so larger blocks read less. With AVX-512 larger ones were not measured.
constexpr int64_t kMostRows = kTiles ? 7 * 16 : kRegisters == 32 ? 4 * 14 : 112;
constexpr int64_t kOperandBytes = kRegisters == 32 ? 512 * 1024 : 1024 * 1024;
constexpr int64_t kTasks = 12;       // at least
constexpr int64_t kMostLeaves = 16;  // the power of 2 from kTasks on
static_assert(kHidden <= kRun);      // to add a chunk's sums is to go on with them: a chunk is one run

// Of the panel of hidden units that begins with `first`: to[row][32] = GELU(sums + bias).
template <class S>
void activate(const Mlp& args, int64_t first, int64_t rows, const float* sums, S* to) {
  float bias[kPanel] = {};
  for (int64_t i = 0; i < kPanel && first + i < args.hidden; ++i) bias[i] = args.expand_bias[first + i];
  for (int64_t i = 0; i < rows * kPanel; i += kPanel)
    for (int64_t l = 0; l < kPanel; l += kLanes<float>) store_narrow(to + i + l, gelu<S>(load(sums + i + l) + load(bias + l)));
}

// Hidden units of a block of rows of u: GELU(W2 u + b2), a panel of them being a chunk of the next product's depth.
template <class S>
class Expansion {
 public:
  static constexpr int64_t kTogether = 1;  // rows
  // Where slot `slot` of a block of `count` is among its sums.
  static int64_t place(int64_t slot, int64_t) { return slot; }

  // The rows of the slots from `first` on.
  Expansion(const Mlp& args, const Slots&, int64_t first, int64_t rows)
      : args_(args),
        rows_(rows),
        depth_(padded_depth(args.depth)),
        u_{scratch_.take_dirty<S>(rows * depth_), rows * kChunk},
        sums_(scratch_.take_dirty<float>(rows * kPanel)) {
    float* const row = scratch_.take<float>(depth_);
    for (int64_t i = 0; i < rows; ++i) {
      const S* const from = static_cast<const S*>(args.u) + (first + i) * args.depth;
      if (args.depth == depth_) {
        copy_row(from, depth_, u_.rows_from(i));
      } else {
        read_row(from, row, args.depth);
        write_row(row, args.depth, u_.rows_from(i));
      }
    }
  }

  // The units [first, first + width).
  void operator()(int64_t first, int64_t width, Operand<S> hidden) const {
    const S* at = static_cast<const S*>(args_.expand) + first * depth_;
    for (int64_t j = 0; j < width; j += kPanel, at += kPanel * depth_) {
      product<S>(rows_, depth_ / kChunk, {u_.at, u_.chunk}, at, {sums_, kPanel},
                 {j + kPanel < width ? at + kPanel * depth_ : at, u_.at});
      activate<S>(args_, first + j, rows_, sums_, hidden.chunks_from(j / kPanel).at);
    }
  }

 private:
  const Mlp& args_;
  int64_t rows_;
  int64_t depth_;
  Scratch scratch_;
  Operand<S> u_;
  float* sums_;
};

// The same by Strassen's product, over weights that were packed for it. A vector does not reach over the middle of the depth.
class StrassenExpansion {
 public:
  static constexpr int64_t kTogether = 2;
  static int64_t place(int64_t slot, int64_t count) { return slot % 2 * (count / 2) + slot / 2; }

  StrassenExpansion(const Mlp& args, const Slots& slots, int64_t first, int64_t count)
      : args_(args),
        half_(count / 2),
        panel_(padded_depth(args.depth / 2) * kPanel),
        u_{scratch_.take_dirty<float>(StrassenRows::size(half_, args.depth / 2)), half_, args.depth / 2},
        sums_(scratch_.take_dirty<float>(4 * half_ * kPanel)) {
    const float *const u = static_cast<const float*>(args.u), *const zeros = scratch_.take<float>(args.depth);
    for (int64_t i = 0; i < half_; ++i) {
      const int64_t upper = slots.row(first + 2 * i), lower = slots.row(first + 2 * i + 1);
      u_.write(i, u + upper * args.depth, lower != Slots::kSpare ? u + lower * args.depth : zeros);
    }
  }

  void operator()(int64_t first, int64_t width, Operand<float> hidden) const {
    const float* at = static_cast<const float*>(args_.expand) + first / kPanel / 2 * kFactors * panel_;
    for (int64_t j = 0; j < width; j += 2 * kPanel, at += kFactors * panel_) {
      strassen_product(u_, at, sums_, j + 2 * kPanel < width ? at + kFactors * panel_ : at);
      for (int64_t p = 0; p < 2; ++p)
        activate<float>(args_, first + j + p * kPanel, 2 * half_, sums_ + p * 2 * half_ * kPanel,
                        hidden.chunks_from(j / kPanel + p).at);
    }
  }

 private:
  const Mlp& args_;
  int64_t half_;   // of the rows
  int64_t panel_;  // of a factor
  Scratch scratch_;
  StrassenRows u_;
  float* sums_;
};

template <class S, class Expand>
class MlpKernel {
 public:
  explicit MlpKernel(const Mlp& args)
      : args_(args),
        slots_(args.batch, args.rows, Expand::kTogether),
        chunks_(divide_up(args.hidden, kHidden)),
        panels_(divide_up(args.columns, kPanel)),
        leaves_(parts_of(args.rows, chunks_)) {}

  void run(const Parallel& parallel) const {
    if (slots_.count() == 0) return;
    const int64_t blocks = blocks_of(slots_.count()), parts = parts_of(slots_.count(), leaves_), count = leaves_ / parts;
    Scratch scratch;
    const int64_t part_size = slots_.count() * panels_ * kPanel;
    float* const sums = scratch.take_dirty<float>(parts * part_size);
    const auto block_at = [&](int64_t i) {
      const int64_t units = slots_.count() / Expand::kTogether;
      return Block{units * i / blocks * Expand::kTogether, units * (i + 1) / blocks * Expand::kTogether};
    };
    parallel.each(parts * blocks, [&](int64_t task) {
      const int64_t part = task / blocks;
      const Block block = block_at(task % blocks);
      float* const to = sums + part * part_size + block.first * panels_ * kPanel;
      run_block(block, part * count, count, to);
      if (parts == 1) finish(block, to, 1, part_size);
    });
    if (parts == 1) return;
    parallel.each(blocks * panels_, [&](int64_t task) {
      const Block block = block_at(task / panels_);
      finish_panel(block, task % panels_, sums + block.first * panels_ * kPanel, parts, part_size);
    });
  }

 private:
  struct Block {  // of slots
    int64_t first;
    int64_t last;
    int64_t count() const { return last - first; }
  };

  int64_t blocks_of(int64_t rows) const {
    const int64_t fitting = kOperandBytes / static_cast<int64_t>(sizeof(S)) / padded_depth(args_.depth);
    return divide_up(rows, fitting < 28 ? 28 : fitting > kMostRows ? kMostRows : fitting);
  }

  // Into how many parts of the hidden units these rows' work is divided, a power of 2.
  int64_t parts_of(int64_t rows, int64_t most) const {
    int64_t parts = 1;
    while (parts * blocks_of(rows) < kTasks && 2 * parts <= most) parts *= 2;
    return parts;
  }

  int64_t first_chunk(int64_t leaf) const { return chunks_ * leaf / leaves_; }

  // sums[panel][place of a slot][32] of `count` leaves, a power of 2, from `first` on. A leaf whose left neighbours make a sum
  // as large as its own is added to them at once, then to those as large as both: bit by bit as one counts.
  void run_block(Block block, int64_t first, int64_t count, float* sums) const {
    const Expand expand(args_, slots_, block.first, block.count());
    Scratch scratch;
    const Operand<S> hidden{scratch.take_dirty<S>(block.count() * kHidden), block.count() * kChunk};
    const int64_t size = block.count() * panels_ * kPanel;
    float* waiting[std::bit_width(static_cast<uint64_t>(kMostLeaves))] = {sums};
    for (int i = 1; 1 << i <= count; ++i) waiting[i] = scratch.take_dirty<float>(size);
    for (int64_t i = 0; i < count; ++i) {
      int64_t at = std::popcount(static_cast<uint64_t>(i)), chunk = first_chunk(first + i);
      const int64_t end = first_chunk(first + i + 1);
      const bool at_once = i % 2 && chunk + 1 == end;
      if (at_once) --at;
      for (bool accumulate = at_once; chunk < end; ++chunk, accumulate = true)
        run_chunk(expand, block.count(), chunk, hidden, waiting[at], accumulate);
      for (int64_t pairs = at_once ? i / 2 : i; pairs % 2; pairs /= 2, --at)
        for (int64_t j = 0; j < size; j += kLanes<float>)
          store(waiting[at - 1] + j, load(waiting[at - 1] + j) + load(waiting[at] + j));
    }
  }

  void run_chunk(const Expand& expand, int64_t rows, int64_t chunk, Operand<S> hidden, float* sums, bool accumulate) const {
    const int64_t first = chunk * kHidden;
    const int64_t width = padded_depth(args_.hidden - first < kHidden ? args_.hidden - first : kHidden);
    expand(first, width, hidden);
    project(rows, {hidden.at, hidden.chunk}, first, width, sums, accumulate);
  }

  void project(int64_t rows, Operand<const S> hidden, int64_t first, int64_t width, float* sums, bool accumulate) const {
    const S* at = static_cast<const S*>(args_.project) + first * panels_ * kPanel;
    for (int64_t panel = 0; panel < panels_; ++panel, at += width * kPanel)
      product<S>(rows, width / kChunk, hidden, at, {sums + panel * rows * kPanel, kPanel, accumulate},
                 {panel + 1 < panels_ ? at + width * kPanel : at, hidden.at});
  }

  void finish(Block block, float* sums, int64_t parts, int64_t part_size) const {
    for (int64_t panel = 0; panel < panels_; ++panel) finish_panel(block, panel, sums, parts, part_size);
  }

  void finish_panel(Block block, int64_t panel, float* sums, int64_t parts, int64_t part_size) const {
    const int64_t column = panel * kPanel;
    const int64_t count = args_.columns - column < kPanel ? args_.columns - column : kPanel;
    float bias[kPanel] = {};
    for (int64_t i = 0; i < count; ++i) bias[i] = args_.project_bias[column + i];
    for (int64_t slot = 0; slot < block.count(); ++slot) {
      const int64_t place = slots_.row(block.first + slot);
      if (place == Slots::kSpare) continue;
      float* const row = sums + (panel * block.count() + Expand::place(slot, block.count())) * kPanel;
      for (int64_t j = 0; j < kPanel; j += kLanes<float>) {
        Vec<float> totals[kMostLeaves];
        for (int64_t part = 0; part < parts; ++part) totals[part] = load(row + part * part_size + j);
        for (int64_t step = 1; step < parts; step *= 2)
          for (int64_t part = 0; part < parts; part += 2 * step) totals[part] += totals[part + step];
        store(row + j, totals[0] + load(bias + j));
      }
      const int64_t at = place * args_.columns + column;
      if (args_.residual) add_columns(static_cast<const S*>(args_.residual) + at, row, count);
      write_columns(row, static_cast<S*>(args_.out) + at, count);
    }
  }

  const Mlp& args_;
  Slots slots_;
  int64_t chunks_;  // of hidden units
  int64_t panels_;
  int64_t leaves_;  // into which the chunks are cut
};

template <class S>
using DirectMlp = MlpKernel<S, Expansion<S>>;

}  // namespace

void mlp(const Mlp& args, const Parallel& parallel) {
  if (args.algorithm == Algorithm::int8) return mlp_int8(args, parallel);
  if (args.algorithm == Algorithm::strassen)
    return run<float, MlpKernel<float, StrassenExpansion>>(&KernelTable::mlp, args, parallel);
  run_prepared<DirectMlp>(args.dtype, &KernelTable::mlp, args, parallel);
}

}  // namespace HIFUSE_ISA
}  // namespace hifuse
