// What a batch of experts is: their gate matrices in every layout that is in use, each built by a named
// function.
#pragma once

#include <mpi_router/core/views.hpp>

#include <type_traits>

MPIROUTER_BEGIN_TYPES

/// Extents of a batch of experts. Named, because nothing can be told from their values.
struct expert_shape {
  index_t num_experts = 0;  ///< N
  index_t ffn_dim = 0;      ///< F, of one expert; the gate half alone where gate and up are fused
  index_t hidden_dim = 0;   ///< D
  friend constexpr bool operator==(const expert_shape&, const expert_shape&) = default;
};

/// Distances in elements along the three axes of a batch of experts.
struct expert_strides {
  index_t expert = 0;
  index_t ffn = 0;
  index_t hidden = 0;
};

namespace core {

/// F · D, the elements of a gate matrix. Throws usage_error where N experts of them cannot be addressed, gate
/// and up fused, so that every layout may multiply extents. Empty shapes too: their strides are products.
template <class T>
[[nodiscard]] MPIROUTER_ALWAYS_INLINE constexpr index_t gate_size(const expert_shape& s) {
  const auto [n, f, d] = s;
  expect(n >= 0 && f >= 0 && d >= 0, "expert_batch_view: negative extent in [", n, ", ", f, ", ", d, "]");
  const double gates = static_cast<double>(n < 1 ? 1 : n) * static_cast<double>(f < 1 ? 1 : f);
  expect(2 * gates * static_cast<double>(d < 1 ? 1 : d) <= most_reach<T>, "expert_batch_view: [", n, ", ", f,
         ", ", d, "] elements do not fit in memory");
  return f * d;
}

}  // namespace core

/// The gate matrices A_i (F × D) of N experts: one base pointer and a stride, or one pointer per expert.
/// A table of pointers stays the caller's and must outlive the view.
template <Scalar T, class Space = host_space>
class expert_batch_view {
 public:
  using element_type = T;
  using value_type = std::remove_const_t<T>;
  using space = Space;

  constexpr expert_batch_view() = default;

  /// Prefer the named functions below. Throws usage_error on null data and on what does not fit in memory.
  MPIROUTER_ALWAYS_INLINE constexpr expert_batch_view(T* data, const expert_shape& shape,
                                                      const expert_strides& strides)
      : data_(data), shape_(shape), strides_(strides), total_experts_(shape.num_experts) {
    check_shape();
    core::expect(data != nullptr || empty(), "expert_batch_view: null data for shape [", shape.num_experts,
                 ", ", shape.ffn_dim, ", ", shape.hidden_dim, "]");
  }
  MPIROUTER_ALWAYS_INLINE constexpr expert_batch_view(T* const* table, const expert_shape& shape,
                                                      const expert_strides& strides)
      : table_(table), shape_(shape), strides_(strides), total_experts_(shape.num_experts) {
    check_shape();
    core::expect(table != nullptr || empty(), "expert_batch_view: null pointer table for ", shape.num_experts,
                 " experts");
  }

  /// A view of const elements from one of mutable elements.
  template <class U>
    requires(std::is_const_v<T> && std::same_as<U, value_type>)
  MPIROUTER_ALWAYS_INLINE constexpr expert_batch_view(const expert_batch_view<U, Space>& other)
      : data_(other.data()),
        table_(other.table()),
        shape_(other.shape()),
        strides_(other.strides()),
        total_experts_(other.total_experts()) {}

  [[nodiscard]] MPIROUTER_ALWAYS_INLINE constexpr T* data() const noexcept { return data_; }
  /// The pointers, one per expert; null where the batch has one base pointer.
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE constexpr T* const* table() const noexcept { return table_; }
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE constexpr const expert_shape& shape() const noexcept {
    return shape_;
  }
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE constexpr const expert_strides& strides() const noexcept {
    return strides_;
  }
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE constexpr index_t num_experts() const noexcept {
    return shape_.num_experts;
  }
  /// Experts of the batch that this one was cut from by middle_experts: N of C′/√N. Otherwise num_experts().
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE constexpr index_t total_experts() const noexcept {
    return total_experts_;
  }
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE constexpr index_t ffn_dim() const noexcept { return shape_.ffn_dim; }
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE constexpr index_t hidden_dim() const noexcept {
    return shape_.hidden_dim;
  }
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE constexpr bool empty() const noexcept {
    return shape_.num_experts == 0 || shape_.ffn_dim == 0 || shape_.hidden_dim == 0;
  }

  /// The gate matrix of expert i, F × D. Throws usage_error if i is out of range.
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE constexpr matrix_view<T, Space> operator[](index_t i) const {
    core::expect(i >= 0 && i < shape_.num_experts, "expert ", i, " out of ", shape_.num_experts);
    T* base = nullptr;
    if (table_ == nullptr) {
      base = data_ == nullptr ? nullptr : data_ + i * strides_.expert;
    } else if constexpr (std::same_as<Space, host_space>) {
      base = table_[i];
    } else {
      core::usage_failure("a pointer table in device memory cannot be indexed on the host");
    }
    return {base, shape_.ffn_dim, shape_.hidden_dim, strides_.ffn, strides_.hidden};
  }

  /// Experts first … first + count − 1, for engines that split experts over threads or ranks: a step of a
  /// part is the part of the step, since total_experts() stays. Throws usage_error on a range outside.
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE constexpr expert_batch_view middle_experts(index_t first,
                                                                                   index_t count) const {
    core::expect(first >= 0 && count >= 0 && first <= shape_.num_experts - count, "middle_experts: ", count,
                 " experts from ", first, " on, of ", shape_.num_experts);
    expert_batch_view part = *this;
    part.shape_.num_experts = count;
    part.data_ = data_ == nullptr ? nullptr : data_ + first * strides_.expert;
    part.table_ = table_ == nullptr ? nullptr : table_ + first;
    return part;
  }

 private:
  MPIROUTER_ALWAYS_INLINE constexpr void check_shape() const {
    static_cast<void>(core::gate_size<T>(shape_));
    const auto [n, f, d] = shape_;
    const auto [expert, ffn, hidden] = strides_;
    core::expect(core::reach(n, expert) + core::reach(f, ffn) + core::reach(d, hidden) <= core::most_reach<T>,
                 "expert_batch_view: experts, rows and columns ", expert, ", ", ffn, " and ", hidden,
                 " elements apart do not fit in memory");
  }

  T* data_ = nullptr;
  T* const* table_ = nullptr;
  expert_shape shape_;
  expert_strides strides_;
  index_t total_experts_ = 0;
};

/// Which half of a fused gate-and-up tensor a view shows.
enum class fused_half : unsigned char { gate, up };

namespace core {

/// Where a half begins, with the up half `distance` elements after the gate half.
[[nodiscard]] MPIROUTER_ALWAYS_INLINE constexpr index_t start_of(fused_half half, index_t distance) {
  switch (half) {
    case fused_half::gate: return 0;
    case fused_half::up: return distance;
  }
  unknown_value("fused_half", half);
}

}  // namespace core

/// [N, F, D]: each stored row one neuron. PyTorch, MegaBlocks (flattened to [N·F, D]), this project.
template <class Space = host_space, Scalar T>
[[nodiscard]] MPIROUTER_ALWAYS_INLINE constexpr expert_batch_view<T, Space> experts_nfd(
    T* data, const expert_shape& s) {
  return {data, s, {.expert = core::gate_size<T>(s), .ffn = s.hidden_dim, .hidden = 1}};
}
/// [N, D, F]: the paper's W_g of each expert, used as x · W.
template <class Space = host_space, Scalar T>
[[nodiscard]] MPIROUTER_ALWAYS_INLINE constexpr expert_batch_view<T, Space> experts_ndf(
    T* data, const expert_shape& s) {
  return {data, s, {.expert = core::gate_size<T>(s), .ffn = 1, .hidden = s.ffn_dim}};
}
/// [N, 2F, D], the F gate rows before the F up rows of each expert.
template <class Space = host_space, Scalar T>
[[nodiscard]] MPIROUTER_ALWAYS_INLINE constexpr expert_batch_view<T, Space> experts_n2fd_concatenated(
    T* data, const expert_shape& s, fused_half half = fused_half::gate) {
  const index_t size = core::gate_size<T>(s);
  const index_t offset = core::start_of(half, size);
  return {data == nullptr ? data : data + offset, s, {.expert = 2 * size, .ffn = s.hidden_dim, .hidden = 1}};
}
/// [N, 2F, D], gate rows (even) and up rows (odd) in turn.
template <class Space = host_space, Scalar T>
[[nodiscard]] MPIROUTER_ALWAYS_INLINE constexpr expert_batch_view<T, Space> experts_n2fd_interleaved(
    T* data, const expert_shape& s, fused_half half = fused_half::gate) {
  const index_t size = core::gate_size<T>(s);
  const index_t offset = core::start_of(half, s.hidden_dim);
  return {
      data == nullptr ? data : data + offset, s, {.expert = 2 * size, .ffn = 2 * s.hidden_dim, .hidden = 1}};
}
/// [N, D, 2F], the gate columns before the up columns: Llama-4, Qwen3-VL.
template <class Space = host_space, Scalar T>
[[nodiscard]] MPIROUTER_ALWAYS_INLINE constexpr expert_batch_view<T, Space> experts_nd2f_concatenated(
    T* data, const expert_shape& s, fused_half half = fused_half::gate) {
  const index_t size = core::gate_size<T>(s);
  const index_t offset = core::start_of(half, s.ffn_dim);
  return {data == nullptr ? data : data + offset, s, {.expert = 2 * size, .ffn = 1, .hidden = 2 * s.ffn_dim}};
}
/// [N, D, 2F], gate columns (even) and up columns (odd) in turn: gpt-oss.
template <class Space = host_space, Scalar T>
[[nodiscard]] MPIROUTER_ALWAYS_INLINE constexpr expert_batch_view<T, Space> experts_nd2f_interleaved(
    T* data, const expert_shape& s, fused_half half = fused_half::gate) {
  const index_t size = core::gate_size<T>(s);
  const index_t offset = core::start_of(half, 1);
  return {data == nullptr ? data : data + offset, s, {.expert = 2 * size, .ffn = 2, .hidden = 2 * s.ffn_dim}};
}
/// Any strides, in elements.
template <class Space = host_space, Scalar T>
[[nodiscard]] MPIROUTER_ALWAYS_INLINE constexpr expert_batch_view<T, Space> experts_strided(
    T* data, const expert_shape& s, const expert_strides& strides) {
  return {data, s, strides};
}
/// One pointer per expert, each to a matrix stored [F, D].
template <class Space = host_space, Scalar T>
[[nodiscard]] MPIROUTER_ALWAYS_INLINE constexpr expert_batch_view<T, Space> experts_fd_pointers(
    T* const* table, const expert_shape& s) {
  return {table, s, {.expert = 0, .ffn = s.hidden_dim, .hidden = 1}};
}
/// One pointer per expert, each to a matrix stored [D, F].
template <class Space = host_space, Scalar T>
[[nodiscard]] MPIROUTER_ALWAYS_INLINE constexpr expert_batch_view<T, Space> experts_df_pointers(
    T* const* table, const expert_shape& s) {
  return {table, s, {.expert = 0, .ffn = 1, .hidden = s.ffn_dim}};
}

namespace core {

/// The memory from the first element of any expert to the last, of a batch with one base pointer.
template <class T, class Space>
[[nodiscard]] MPIROUTER_ALWAYS_INLINE address_range
addresses(const expert_batch_view<T, Space>& experts) noexcept {
  const auto [n, f, d] = experts.shape();
  const auto one =
      addresses(experts.data(), n == 0 ? 0 : f, d, experts.strides().ffn, experts.strides().hidden);
  const index_t apart = (n - 1) * experts.strides().expert * static_cast<index_t>(sizeof(T));
  if (one.first == one.last) {
    return one;
  }
  return {one.first + static_cast<std::uintptr_t>(apart < 0 ? apart : 0),
          one.last + static_cast<std::uintptr_t>(apart > 0 ? apart : 0)};
}

/// f(range) for the memory of a batch: once where it has one base pointer, O(1), otherwise for each expert.
/// Throws usage_error where a pointer of the table is null.
template <class T, class F>
void for_each_range(const expert_batch_view<T>& experts, const F& f) {
  if (experts.table() == nullptr) {
    f(addresses(experts));
    return;
  }
  for (index_t i = 0; i < experts.num_experts(); ++i) {
    f(addresses(experts[i]));
  }
}

}  // namespace core

MPIROUTER_END_TYPES
