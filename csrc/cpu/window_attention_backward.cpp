// The gradients of window attention. With P = softmax(S), dO the gradient of the output and D = rowsum(P * dO v^T):
//
//     dS = P * (dO v^T - D),   dq = scale dS k,   dk = scale dS^T q,   dv = P^T dO,   dbias = sum over windows of dS
//
// P is computed again from q and k. A task is one head and a fixed share ("chunk") of all windows; each keeps its own sums of
// dS and of the padded tokens' gradients, and the chunks are added in order at the end: no result depends on the threads. Those
// sums are long and may cancel, and there are few of them, so they are float64.
#include "cpu/window_attention.h"

namespace hifuse {
inline namespace HIFUSE_ISA {
namespace {

constexpr int64_t kTasks = 96;  // enough to share evenly between the cores of a large CPU; a property of the shape alone

template <class Stored>
class Backward {
  using T = typename Arithmetic<Stored>::Type;

 public:
  explicit Backward(const WindowAttentionBackward& args)
      : args_(args),
        sizes_(args.shape),
        all_windows_(args.shape.batch * sizes_.grid.windows()),
        chunks_(chunks(all_windows_, args.shape.num_heads)),
        partial_(sizes_.table_rows + 3 * sizes_.head_dim) {}

  void run(const Parallel& parallel) const {
    const int64_t tasks = args_.shape.num_heads * chunks_;
    Scratch scratch;
    double* const partials = scratch.take<double>(tasks * partial_);
    parallel.each(tasks, [&](int64_t task) { run_task(task, partials); });
    parallel.each(args_.shape.num_heads, [&](int64_t head) { reduce(head, partials); });
  }

 private:
  static int64_t chunks(int64_t all_windows, int64_t num_heads) {
    const int64_t wanted = (kTasks + num_heads - 1) / num_heads;
    return wanted < all_windows ? wanted : all_windows;
  }

  struct Window {
    int64_t* in;   // offsets of the tokens in qkv
    int64_t* out;  // in grad
    int64_t* to;   // and in grad_qkv
    T* regions;    // [keys], or null where the window is of one region
    T* rows[4];    // q, k, v, dO: [keys, dim]
    T* columns;    // [dim, keys]: k^T, then v^T
    T* weights;    // P  [tokens, keys]
    T* d_scores;   // dS [tokens, keys]
    T* sum;        // of dS over the chunk
    T* grads[3];   // dq, dk, dv: [tokens, dim]
  };

  Window allocate(Scratch& scratch) const {
    const int64_t n = sizes_.tokens, keys = sizes_.keys, dim = sizes_.dim;
    const auto take = [&](int64_t count) { return scratch.take<T>(count); };
    const auto offsets = [&] { return scratch.take<int64_t>(n); };
    return {offsets(),
            offsets(),
            offsets(),
            take(keys),
            {take(keys * dim), take(keys * dim), take(keys * dim), take(keys * dim)},
            take(dim * keys),
            take(n * keys),
            take(n * keys),
            take(n * keys),
            {take(n * dim), take(n * dim), take(n * dim)}};
  }

  void run_task(int64_t task, double* partials) const {
    Scratch scratch;
    const Window w = allocate(scratch);
    Bias<T> bias(sizes_, static_cast<const T*>(args_.bias_table), args_.shape.num_heads);
    const int64_t head = task / chunks_;
    run_chunk(head, task % chunks_, bias.of_head(head), w, partials + task * partial_);
  }

  void run_chunk(int64_t head, int64_t chunk, const T* bias, const Window& all, double* partial) const {
    if (need_table()) __builtin_memset(all.sum, 0, sizeof(T) * static_cast<size_t>(sizes_.tokens * sizes_.keys));
    for (int64_t i = all_windows_ * chunk / chunks_; i < all_windows_ * (chunk + 1) / chunks_; ++i) {
      const Place place = place_of(sizes_, i);
      Window w = all;
      locate(sizes_, place, args_.qkv, w.in);
      locate(sizes_, place, args_.grad, w.out);
      locate(sizes_, place, args_.grad_qkv, w.to);
      mark_regions(sizes_, place, w.regions);
      if (!sizes_.grid.mixed(place.row, place.column)) w.regions = nullptr;
      differentiate(head, bias, w, partial + sizes_.table_rows);
    }
    if (need_table()) fold(all.sum, partial);
  }

  bool need_map() const { return args_.grad_qkv_bias != nullptr; }
  bool need_table() const { return args_.grad_bias_table != nullptr; }

  void differentiate(int64_t head, const T* bias, const Window& w, double* padding_sums) const {
    const int64_t n = sizes_.tokens, keys = sizes_.keys, dim = sizes_.dim, head_dim = sizes_.head_dim;
    const int64_t channels = args_.shape.num_heads * head_dim;
    const T* const padding = static_cast<const T*>(args_.qkv_bias);
    const T scale = static_cast<T>(args_.shape.scale);
    const auto [q, k, v, d_out] = w.rows;

    for (int64_t part = 0; part < 3; ++part)
      pack<Stored>(sizes_, args_.qkv.data, w.in, n, part * channels + head * head_dim, padding, w.rows[part]);
    pack<Stored>(sizes_, args_.grad.data, w.out, n, head * head_dim, static_cast<const T*>(nullptr), d_out);

    for (int64_t i = 0; i < keys; i += kLanes<T>) transpose(sizes_, k + i * dim, w.columns + i);
    gemm<T>(n, keys, head_dim, {q, dim, 1}, w.columns, keys, w.weights, keys);
    for (int64_t i = 0; i < keys; i += kLanes<T>) transpose(sizes_, v + i * dim, w.columns + i);
    gemm<T>(n, keys, head_dim, {d_out, dim, 1}, w.columns, keys, w.d_scores, keys);
    for (int64_t first = 0; first < n; first += kBlockRows) {
      const int64_t rows = n - first < kBlockRows ? n - first : kBlockRows;
      T inverses[kBlockRows];
      softmax_rows(sizes_, first, rows, w.weights + first * keys, bias, w.regions, inverses);
      for (int64_t r = 0; r < rows; ++r) softmax_backward_row(w, first + r, inverses[r]);
    }

    if (!need_map()) return;
    gemm<T>(n, dim, n, {w.d_scores, keys, 1}, k, dim, w.grads[0], dim);
    gemm<T>(n, dim, n, {w.d_scores, 1, keys}, q, dim, w.grads[1], dim);
    gemm<T>(n, dim, n, {w.weights, 1, keys}, d_out, dim, w.grads[2], dim);
    for (int64_t part = 0; part < 3; ++part)
      unpack(w.to, part * channels + head * head_dim, w.grads[part], part < 2 ? scale : T(1), padding_sums + part * head_dim);
  }

  // In: weights before the division by their sum, dO v^T in `d_scores`. Out: P, and dS, which is also added to the chunk's sum.
  void softmax_backward_row(const Window& w, int64_t query, T inverse) const {
    T* const weights = w.weights + query * sizes_.keys;
    T* const d_scores = w.d_scores + query * sizes_.keys;
    T* const chunk_sum = w.sum + query * sizes_.keys;
    Vec<T> dots = {};
    for (int64_t j = 0; j < sizes_.keys; j += kLanes<T>) {
      const Vec<T> p = load(weights + j) * inverse;
      store(weights + j, p);
      dots += p * load(d_scores + j);
    }
    const T dot = sum<T>(dots);
    const bool summed = need_table();
    for (int64_t j = 0; j < sizes_.keys; j += kLanes<T>) {
      const Vec<T> ds = load(weights + j) * (load(d_scores + j) - dot);
      store(d_scores + j, ds);
      if (summed) store(chunk_sum + j, load(chunk_sum + j) + ds);
    }
  }

  // Rows of gradients back to the map; those of padded tokens are summed: they are gradients of the qkv bias.
  void unpack(const int64_t* offsets, int64_t channel, const T* rows, T factor, double* padding_sums) const {
    for (int64_t i = 0; i < sizes_.tokens; ++i) {
      const T* const row = rows + i * sizes_.dim;
      if (offsets[i] != kPadded)
        narrow_row(row, factor, static_cast<Stored*>(args_.grad_qkv.data) + offsets[i] + channel, sizes_.head_dim);
      else
        for (int64_t d = 0; d < sizes_.head_dim; ++d) padding_sums[d] += static_cast<double>(factor) * row[d];
    }
  }

  // partial[row of the table] = sum of the chunk's dS over the pairs that share the row.
  void fold(const T* chunk_sum, double* partial) const {
    const int64_t window = sizes_.window;
    for (int64_t y = 0; y < window; ++y)
      for (int64_t x = 0; x < window; ++x, chunk_sum += sizes_.keys)
        for (int64_t key_row = 0; key_row < window; ++key_row) {
          double* const to = partial + bias_row(window, y, x, key_row);
          for (int64_t i = 0; i < window; ++i) to[-i] += chunk_sum[key_row * window + i];
        }
  }

  void reduce(int64_t head, const double* partials) const {
    const int64_t num_heads = args_.shape.num_heads;
    T* const grad_table = static_cast<T*>(args_.grad_bias_table);
    T* const grad_bias = static_cast<T*>(args_.grad_qkv_bias);
    const auto total = [&](int64_t at) {
      double result = 0;
      for (int64_t chunk = 0; chunk < chunks_; ++chunk) result += partials[(head * chunks_ + chunk) * partial_ + at];
      return static_cast<T>(result);
    };
    if (need_table())
      for (int64_t row = 0; row < sizes_.table_rows; ++row) grad_table[row * num_heads + head] = total(row);
    if (!need_map()) return;
    for (int64_t part = 0; part < 3; ++part)
      for (int64_t d = 0; d < sizes_.head_dim; ++d)
        grad_bias[(part * num_heads + head) * sizes_.head_dim + d] = total(sizes_.table_rows + part * sizes_.head_dim + d);
  }

  const WindowAttentionBackward& args_;
  WindowSizes<T> sizes_;
  int64_t all_windows_;
  int64_t chunks_;
  int64_t partial_;  // elements of one task's sums: the table's rows, then dq, dk, dv of the padded tokens
};

}  // namespace

void window_attention_backward(const WindowAttentionBackward& args, const Parallel& parallel) {
  run_stored<Backward>(args.shape.dtype, &KernelTable::window_attention_backward, args, parallel);
}

}  // namespace HIFUSE_ISA
}  // namespace hifuse
