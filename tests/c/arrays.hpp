// Arrays of C++ as those of the C interface, a parallel_for with threads, and experts in every layout.
#pragma once

#include <mpi_router/c/mpi_router.h>

#include <mpi_router/core/experts.hpp>

#include <support/layouts.hpp>
#include <support/random.hpp>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <limits>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

namespace c_tests {

using namespace mpi_router;
using test_support::random_source;

template <class T>
constexpr mpi_router_dtype dtype_of() {
  using U = std::remove_const_t<T>;
  if constexpr (std::is_same_v<U, double>) return MPIROUTER_F64;
  if constexpr (std::is_same_v<U, float>) return MPIROUTER_F32;
  if constexpr (std::is_same_v<U, bf16>) return MPIROUTER_BF16;
  return MPIROUTER_F16;
}

template <class T>
mpi_router_matrix c_matrix(const matrix_view<T>& m) {
  return {const_cast<std::remove_const_t<T>*>(m.data()),
          dtype_of<T>(),
          MPIROUTER_HOST,
          {m.rows(), m.cols()},
          {m.row_stride(), m.col_stride()}};
}

template <class T>
mpi_router_experts c_experts(const expert_batch_view<T>& e) {
  const auto [n, f, d] = e.shape();
  const auto [expert, ffn, hidden] = e.strides();
  return {const_cast<std::remove_const_t<T>*>(e.data()),
          reinterpret_cast<void* const*>(const_cast<std::remove_const_t<T>* const*>(e.table())),
          dtype_of<T>(),
          MPIROUTER_HOST,
          {n, f, d},
          {expert, ffn, hidden}};
}

enum class expert_layout : unsigned char { nfd, ndf, interleaved, reversed, pointers };
inline constexpr std::pair<expert_layout, const char*> expert_layouts[] = {
    {expert_layout::nfd, "nfd"},
    {expert_layout::ndf, "ndf"},
    {expert_layout::interleaved, "interleaved"},
    {expert_layout::reversed, "reversed"},
    {expert_layout::pointers, "pointers"}};

/// Owns experts of random weights, or of zeros, in a layout; what lies between the elements is NaN.
template <class T>
class stored_experts {
 public:
  stored_experts(const expert_shape& s, expert_layout layout) : shape_(s) {
    const auto [n, f, d] = s;
    const index_t size = f * d;
    first_ = 0;
    switch (layout) {
      case expert_layout::nfd: strides_ = {.expert = size, .ffn = d, .hidden = 1}; break;
      case expert_layout::ndf: strides_ = {.expert = size, .ffn = 1, .hidden = f}; break;
      case expert_layout::interleaved: strides_ = {.expert = 2 * size, .ffn = 2, .hidden = 2 * f}; break;
      case expert_layout::pointers: strides_ = {.expert = size, .ffn = d, .hidden = 1}; break;
      case expert_layout::reversed:
        strides_ = {.expert = size, .ffn = -d, .hidden = 1};
        first_ = f > 0 ? (f - 1) * d : 0;
        break;
    }
    elements_.assign(static_cast<std::size_t>(2 * n * size + 1),
                     narrow<T>(std::numeric_limits<accumulator_t<T>>::quiet_NaN()));
    for (index_t i = 0; layout == expert_layout::pointers && i < n; ++i) {
      table_.push_back(elements_.data() + (n - 1 - i) * size);  // the last expert lies first
    }
    fill([] { return 0.0; });
  }

  template <class Next>
  void fill(Next next) {
    const auto [n, f, d] = shape_;
    for (index_t i = 0; i < n; ++i) {
      for (index_t k = 0; k < f * d; ++k) {
        view()[i](k / d, k % d) = narrow<T>(static_cast<accumulator_t<T>>(next()));
      }
    }
  }
  [[nodiscard]] expert_batch_view<T> view() {
    if (!table_.empty()) {
      return {table_.data(), shape_, {.expert = 0, .ffn = strides_.ffn, .hidden = strides_.hidden}};
    }
    return {elements_.data() + first_, shape_, strides_};
  }
  [[nodiscard]] const std::vector<T>& elements() const { return elements_; }

 private:
  expert_shape shape_;
  expert_strides strides_;
  index_t first_;
  std::vector<T> elements_;
  std::vector<T*> table_;
};

/// Whether two buffers hold the same bits, NaN included.
template <class T>
[[nodiscard]] bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  const auto bytes = [](const std::vector<T>& v) {
    const auto* first = reinterpret_cast<const unsigned char*>(v.data());
    return std::vector<unsigned char>(first, first + v.size() * sizeof(T));
  };
  return bytes(a) == bytes(b);
}

/// Three threads that take the tasks from the last to the first, and count them.
struct three_threads {
  std::atomic<std::int64_t> tasks{0};

  static void run(void* context, std::int64_t count, void (*task)(void*, std::int64_t), void* data) {
    static_cast<three_threads*>(context)->tasks += count;
    std::atomic<std::int64_t> left{count};
    const auto work = [&] {
      for (std::int64_t mine = --left; mine >= 0; mine = --left) {
        task(data, mine);
      }
    };
    for (std::thread threads[] = {std::thread(work), std::thread(work), std::thread(work)};
         auto& thread : threads) {
      thread.join();
    }
  }
  [[nodiscard]] mpi_router_threads c() { return {&run, this}; }
};

}  // namespace c_tests
