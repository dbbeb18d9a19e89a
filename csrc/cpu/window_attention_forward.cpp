// out = softmax(scale q k^T + bias + mask) v for every window and head, in place of the map.
//
// Per task: pack v, and k as columns; then a block of queries at a time: pack them, their scores against all keys, softmax,
// times v, write. So q and the weights exist for seven queries only, and a task's 30 KB stay in L1.
#include <utility>

#include "cpu/window_attention.h"
#include "cpu/window_attention_pairs.h"

namespace hifuse {
inline namespace HIFUSE_ISA {
namespace {

constexpr int64_t kGroup = 8;  // windows, see task_at
constexpr int64_t kPiecesPerThread = 4;

template <class Stored>
class Forward {
  using T = typename Arithmetic<Stored>::Type;

 public:
  explicit Forward(const WindowAttentionForward& args) : args_(args), sizes_(args.shape) {
    if (kAttendsPairs<Stored>) sizes_.keys = round_up(sizes_.tokens, kPanel);
  }

  void run(const Parallel& parallel) const {
    const int64_t tasks = count(), groups = (tasks + kGroup - 1) / kGroup, wanted = kPiecesPerThread * parallel.threads;
    const int64_t pieces = groups >= wanted ? groups : tasks < wanted ? tasks : wanted;
    parallel.each(pieces, [&](int64_t piece) { run_tasks(tasks * piece / pieces, tasks * (piece + 1) / pieces); });
  }

 private:
  struct Window {
    int64_t* in;    // offsets of the tokens in qkv
    int64_t* next;  // and those of the next task, which begin at next_channel
    int64_t next_channel;
    int64_t* out;  // offsets of the tokens in out
    T* regions;    // [keys], or null where the window is of one region
    T* v;          // [tokens, dim]
    T* k_columns;  // [dim, keys]
    T* rows;       // [kBlockRows or kLanes, dim]: of k, of q, then of the output
    T* scores;     // [kBlockRows, keys]
  };

  Window allocate(Scratch& scratch) const {
    const int64_t n = sizes_.tokens, keys = sizes_.keys, dim = sizes_.dim;
    const auto take = [&](int64_t count) { return scratch.take<T>(count); };
    const auto offsets = [&] { return scratch.take<int64_t>(n); };
    return {offsets(),
            offsets(),
            0,
            offsets(),
            take(keys),
            take(n * dim),
            take(dim * keys),
            take((kBlockRows > kLanes<T> ? kBlockRows : kLanes<T>)*dim),
            take(kBlockRows * keys)};
  }

  struct Task {
    int64_t window;
    int64_t head;
  };

  int64_t count() const { return args_.shape.batch * sizes_.grid.windows() * args_.shape.num_heads; }

  // Tasks are ordered (group of windows, head, window of the group): a head's bias is expanded once for a group and stays in
  // the cache, and the heads of a window, which share its pages of memory, come soon after one another.
  Task task_at(int64_t task) const {
    const int64_t heads = args_.shape.num_heads, windows = args_.shape.batch * sizes_.grid.windows();
    const int64_t first = task / (kGroup * heads) * kGroup;
    const int64_t group = windows - first < kGroup ? windows - first : kGroup;
    const int64_t within = task - first * heads;
    return {first + within % group, within / group};
  }

  void run_tasks(int64_t begin, int64_t end) const {
    Scratch scratch;
    const Window all = allocate(scratch);
    Window w = all;
    Bias<T> bias(sizes_, static_cast<const T*>(args_.bias_table), args_.shape.num_heads);
    std::conditional_t<kAttendsPairs<Stored>, PairsAttention, Nothing> pairs(args_, sizes_);
    locate(sizes_, place_of(sizes_, task_at(begin).window), args_.qkv, w.next);
    for (int64_t i = begin; i < end; ++i) {
      const Task task = task_at(i), next = task_at(i + 1 < count() ? i + 1 : i);
      const Place place = place_of(sizes_, task.window);
      std::swap(w.in, w.next);
      locate(sizes_, place_of(sizes_, next.window), args_.qkv, w.next);
      locate(sizes_, place, args_.out, w.out);
      w.next_channel = next.head * sizes_.head_dim;
      w.regions = nullptr;
      if (sizes_.grid.mixed(place.row, place.column)) mark_regions(sizes_, place, w.regions = all.regions);
      if constexpr (kAttendsPairs<Stored>)
        pairs.attend(task.head, bias.of_head(task.head), w.regions, w.in, w.out,
                     [&](int64_t first, int64_t rows) { prefetch_next(first, rows, w); });
      else
        attend(task.head, bias.of_head(task.head), w);
    }
  }

  void prefetch_next(int64_t first, int64_t rows, const Window& w) const {
    for (int64_t part = 0; part < 3; ++part)
      prefetch<Stored>(sizes_, args_.qkv.data, w.next + first, rows,
                       part * args_.shape.num_heads * sizes_.head_dim + w.next_channel);
  }

  void attend(int64_t head, const T* bias, const Window& w) const {
    const int64_t channels = args_.shape.num_heads * sizes_.head_dim;
    const int64_t channel = head * sizes_.head_dim;
    const T* const padding = static_cast<const T*>(args_.qkv_bias);
    pack_columns(channels + channel, padding, w);
    pack<Stored>(sizes_, args_.qkv.data, w.in, sizes_.tokens, 2 * channels + channel, padding, w.v);
    for (int64_t first = 0; first < sizes_.tokens; first += kBlockRows) {
      const int64_t rows = sizes_.tokens - first < kBlockRows ? sizes_.tokens - first : kBlockRows;
      pack<Stored>(sizes_, args_.qkv.data, w.in + first, rows, channel, padding, w.rows);
      prefetch_next(first, rows, w);
      attend_rows(first, rows, channel, bias, w);
    }
  }

  // k as columns, a vector's width of tokens at a time; tokens that only fill the vector are zeros.
  void pack_columns(int64_t channel, const T* padding, const Window& w) const {
    for (int64_t first = 0; first < sizes_.tokens; first += kLanes<T>) {
      const int64_t count = sizes_.tokens - first < kLanes<T> ? sizes_.tokens - first : kLanes<T>;
      pack<Stored>(sizes_, args_.qkv.data, w.in + first, count, channel, padding, w.rows);
      for (int64_t i = count * sizes_.dim; i < kLanes<T> * sizes_.dim; ++i) w.rows[i] = 0;
      transpose(sizes_, w.rows, w.k_columns + first);
    }
  }

  // A block of q in w.rows -> the same block of the output, in the map.
  void attend_rows(int64_t first, int64_t rows, int64_t channel, const T* bias, const Window& w) const {
    const int64_t keys = sizes_.keys, dim = sizes_.dim;
    gemm<T>(rows, keys, sizes_.head_dim, {w.rows, dim, 1}, w.k_columns, keys, w.scores, keys);
    T inverses[kBlockRows];
    softmax_rows(sizes_, first, rows, w.scores, bias, w.regions, inverses);
    gemm<T>(rows, dim, sizes_.tokens, {w.scores, keys, 1}, w.v, dim, w.rows, dim);
    for (int64_t r = 0; r < rows; ++r)
      if (w.out[first + r] != kPadded)
        narrow_row(w.rows + r * dim, inverses[r], static_cast<Stored*>(args_.out.data) + w.out[first + r] + channel,
                   sizes_.head_dim);
  }

  const WindowAttentionForward& args_;
  WindowSizes<T> sizes_;
};

}  // namespace

void window_attention_forward(const WindowAttentionForward& args, const Parallel& parallel) {
  run_stored<Forward>(args.shape.dtype, &KernelTable::window_attention_forward, args, parallel);
}

}  // namespace HIFUSE_ISA
}  // namespace hifuse
