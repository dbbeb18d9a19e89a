// out = residual + W3 gelu(W2 u + b2) + b3: the hidden units, four times as many as u has channels, are never written to
// memory.
//
// A task is a block of rows and a part of the hidden units, which it takes kHidden at a time: expand, GELU, and their share of
// the projection, which is added up in L2. Where there are few rows, several tasks have a part of the hidden units each, and
// their sums are added in order at the end.
#include "cpu/activation.h"
#include "cpu/prepared.h"
#include "cpu/rows.h"

namespace hifuse {
inline namespace HIFUSE_ISA {
namespace {

constexpr int64_t kMostRows = 4 * 14;
constexpr int64_t kOperandBytes = 512 * 1024;
constexpr int64_t kTasks = 12;  // at least, whatever the threads: the order of the sums, and so the result, depends on it

template <class S>
class MlpKernel {
 public:
  explicit MlpKernel(const Mlp& args)
      : args_(args),
        depth_(padded_depth(args.depth)),
        chunks_(divide_up(args.hidden, kHidden)),
        panels_(divide_up(args.columns, kPanel)) {}

  void run(const Parallel& parallel) const {
    if (args_.rows == 0) return;
    int64_t most = kOperandBytes / static_cast<int64_t>(sizeof(S)) / depth_;
    most = most < 28 ? 28 : most > kMostRows ? kMostRows : most;
    const int64_t blocks = divide_up(args_.rows, most);
    int64_t parts = divide_up(kTasks, blocks);
    if (parts > chunks_) parts = chunks_;
    Scratch scratch;
    const int64_t part_size = args_.rows * panels_ * kPanel;
    float* const sums = scratch.take_dirty<float>(parts * part_size);
    parallel.each(parts * blocks, [&](int64_t task) {
      const int64_t part = task / blocks, block = task % blocks;
      const Block rows{args_.rows * block / blocks, args_.rows * (block + 1) / blocks};
      float* const to = sums + part * part_size + rows.first * panels_ * kPanel;
      run_block(rows, chunks_ * part / parts, chunks_ * (part + 1) / parts, to);
      if (parts == 1) finish(rows, to, 1, part_size);
    });
    if (parts == 1) return;
    parallel.each(blocks * panels_, [&](int64_t task) {
      const int64_t block = task / panels_, panel = task % panels_;
      const Block rows{args_.rows * block / blocks, args_.rows * (block + 1) / blocks};
      finish_panel(rows, panel, sums + rows.first * panels_ * kPanel, parts, part_size);
    });
  }

 private:
  struct Block {
    int64_t first;
    int64_t last;
    int64_t count() const { return last - first; }
  };

  // sums[panel][row][32] of the hidden chunks [chunk, end).
  void run_block(Block rows, int64_t chunk, int64_t end, float* sums) const {
    Scratch scratch;
    const int64_t count = rows.count();
    const Operand<S> u{scratch.take_dirty<S>(count * depth_), count * kChunk};
    float* const row = scratch.take<float>(depth_);
    float* const wide = scratch.take_dirty<float>(count * kPanel);
    const Operand<S> hidden{scratch.take_dirty<S>(count * kHidden), count * kChunk};
    for (int64_t i = 0; i < count; ++i) {
      const S* const from = static_cast<const S*>(args_.u) + (rows.first + i) * args_.depth;
      if (args_.depth == depth_) {
        copy_row(from, depth_, u.rows_from(i));
      } else {
        read_row(from, row, args_.depth);
        write_row(row, args_.depth, u.rows_from(i));
      }
    }
    bool accumulate = false;
    for (; chunk < end; ++chunk, accumulate = true) {
      const int64_t first = chunk * kHidden;
      const int64_t width = padded_depth(args_.hidden - first < kHidden ? args_.hidden - first : kHidden);
      expand(count, {u.at, u.chunk}, first, width, wide, hidden);
      project(count, {hidden.at, hidden.chunk}, first, width, sums, accumulate);
    }
  }

  // A panel of 32 hidden units is a chunk of the next product's depth.
  void expand(int64_t rows, Operand<const S> u, int64_t first, int64_t width, float* wide, Operand<S> hidden) const {
    const S* at = static_cast<const S*>(args_.expand) + first * depth_;
    for (int64_t j = 0; j < width; j += kPanel, at += kPanel * depth_) {
      product<S>(rows, depth_ / kChunk, u, at, wide, kPanel, false, j + kPanel < width ? at + kPanel * depth_ : at, u.at);
      float bias[kPanel] = {};
      for (int64_t i = 0; i < kPanel && first + j + i < args_.hidden; ++i) bias[i] = args_.expand_bias[first + j + i];
      S* const to = hidden.at + j / kPanel * hidden.chunk;
      for (int64_t i = 0; i < rows * kPanel; i += kPanel)
        for (int64_t l = 0; l < kPanel; l += kLanes<float>)
          store_narrow(to + i + l, gelu<S>(load(wide + i + l) + load(bias + l)));
    }
  }

  void project(int64_t rows, Operand<const S> hidden, int64_t first, int64_t width, float* sums, bool accumulate) const {
    const S* at = static_cast<const S*>(args_.project) + first * panels_ * kPanel;
    for (int64_t panel = 0; panel < panels_; ++panel, at += width * kPanel)
      product<S>(rows, width / kChunk, hidden, at, sums + panel * rows * kPanel, kPanel, accumulate,
                 panel + 1 < panels_ ? at + width * kPanel : at, hidden.at);
  }

  void finish(Block rows, float* sums, int64_t parts, int64_t part_size) const {
    for (int64_t panel = 0; panel < panels_; ++panel) finish_panel(rows, panel, sums, parts, part_size);
  }

  void finish_panel(Block rows, int64_t panel, float* sums, int64_t parts, int64_t part_size) const {
    const int64_t column = panel * kPanel;
    const int64_t count = args_.columns - column < kPanel ? args_.columns - column : kPanel;
    float bias[kPanel] = {};
    for (int64_t i = 0; i < count; ++i) bias[i] = args_.project_bias[column + i];
    for (int64_t i = 0; i < rows.count(); ++i) {
      float* const row = sums + (panel * rows.count() + i) * kPanel;
      for (int64_t j = 0; j < kPanel; j += kLanes<float>) {
        Vec<float> total = load(row + j);
        for (int64_t part = 1; part < parts; ++part) total += load(row + part * part_size + j);
        store(row + j, total + load(bias + j));
      }
      const int64_t at = (rows.first + i) * args_.columns + column;
      if (args_.residual) add_columns(static_cast<const S*>(args_.residual) + at, row, count);
      write_columns(row, static_cast<S*>(args_.out) + at, count);
    }
  }

  const Mlp& args_;
  int64_t depth_;
  int64_t chunks_;
  int64_t panels_;
};

}  // namespace

void mlp(const Mlp& args, const Parallel& parallel) { run_prepared<MlpKernel>(args.dtype, args, parallel); }

}  // namespace HIFUSE_ISA
}  // namespace hifuse
