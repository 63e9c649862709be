// What a vector and a matrix are: pointer, extents, named strides, and the memory space in the type. Nothing
// is owned, and nothing is guessed from shapes: every layout is built by a function that says its name.
//
// Everything here is inlined whatever the optimiser thinks: translation units with different instruction sets
// share these types, and a function left out of line would carry the instructions of one of them into the
// other.
#pragma once

#include <mpi_router/core/error.hpp>
#include <mpi_router/core/scalar.hpp>

#include <cstdint>
#include <limits>
#include <type_traits>

MPIROUTER_BEGIN_TYPES

/// Memory that the CPU may dereference.
struct host_space {};
/// Memory of an accelerator. Host algorithms do not accept it: the call does not compile.
struct device_space {};

namespace core {

/// How far from the first of `extent` elements the last one lies, `stride` apart. In double: an integer might
/// overflow.
[[nodiscard]] MPIROUTER_ALWAYS_INLINE constexpr double reach(index_t extent, index_t stride) noexcept {
  const double distance = static_cast<double>(extent - 1) * static_cast<double>(stride);
  return distance < 0 ? -distance : distance;
}
/// The farthest that an element of T may lie: offsets in bytes, and sums of a few, stay in index_t.
template <class T>
inline constexpr double most_reach =
    static_cast<double>(std::numeric_limits<index_t>::max()) / (4.0 * static_cast<double>(sizeof(T)));

}  // namespace core

/// A vector of `size` elements, `stride` elements apart.
template <Scalar T, class Space = host_space>
class vector_view {
 public:
  using element_type = T;
  using value_type = std::remove_const_t<T>;
  using space = Space;

  constexpr vector_view() = default;

  /// Throws usage_error on a negative size or null data for a size above zero.
  MPIROUTER_ALWAYS_INLINE constexpr vector_view(T* data, index_t size, index_t stride = 1)
      : data_(data), size_(size), stride_(stride) {
    core::expect(size >= 0, "vector_view: negative size ", size);
    core::expect(data != nullptr || size == 0, "vector_view: null data for size ", size);
  }

  /// A view of anything contiguous with data() and size(): std::vector, std::array, std::span.
  template <class Range>
    requires(!std::same_as<std::remove_cvref_t<Range>, vector_view> && std::same_as<Space, host_space> &&
             requires(Range& range) {
               { range.data() } -> std::convertible_to<T*>;
               { range.size() } -> std::convertible_to<std::size_t>;
               requires !requires { range.stride(); } && !requires { range.innerStride(); };
             })
  MPIROUTER_ALWAYS_INLINE constexpr vector_view(Range&& range)
      : vector_view(range.data(), static_cast<index_t>(range.size())) {}

  /// A view of const elements from one of mutable elements.
  template <class U>
    requires(std::is_const_v<T> && std::same_as<U, value_type>)
  MPIROUTER_ALWAYS_INLINE constexpr vector_view(const vector_view<U, Space>& other)
      : data_(other.data()), size_(other.size()), stride_(other.stride()) {}

  [[nodiscard]] MPIROUTER_ALWAYS_INLINE constexpr T* data() const noexcept { return data_; }
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE constexpr index_t size() const noexcept { return size_; }
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE constexpr index_t stride() const noexcept { return stride_; }
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE constexpr bool is_contiguous() const noexcept {
    return stride_ == 1 || size_ <= 1;
  }
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE constexpr T& operator[](index_t i) const noexcept
    requires(std::same_as<Space, host_space>)
  {
    return data_[i * stride_];
  }

 private:
  T* data_ = nullptr;
  index_t size_ = 0;
  index_t stride_ = 1;
};

template <class Range>
vector_view(Range& range) -> vector_view<std::remove_pointer_t<decltype(range.data())>>;

/// A matrix of `rows` × `cols` elements with any strides. For a gate matrix the rows are the F neurons
/// and the columns the D hidden dimensions, whatever the storage: it is A = W_gᵀ.
template <Scalar T, class Space = host_space>
class matrix_view {
 public:
  using element_type = T;
  using value_type = std::remove_const_t<T>;
  using space = Space;

  constexpr matrix_view() = default;

  /// Prefer the named functions below. Throws usage_error on a negative extent, on null data for a matrix
  /// that is not empty, and where the last element lies out of reach of index_t.
  MPIROUTER_ALWAYS_INLINE constexpr matrix_view(T* data, index_t rows, index_t cols, index_t row_stride,
                                                index_t col_stride)
      : data_(data), rows_(rows), cols_(cols), row_stride_(row_stride), col_stride_(col_stride) {
    core::expect(rows >= 0 && cols >= 0, "matrix_view: negative extent in [", rows, ", ", cols, "]");
    core::expect(data != nullptr || rows == 0 || cols == 0, "matrix_view: null data for shape [", rows, ", ",
                 cols, "]");
    core::expect(core::reach(rows, row_stride) + core::reach(cols, col_stride) <= core::most_reach<T>,
                 "matrix_view: [", rows, ", ", cols, "] elements, ", row_stride, " and ", col_stride,
                 " apart, do not fit in memory");
  }

  /// A view of const elements from one of mutable elements.
  template <class U>
    requires(std::is_const_v<T> && std::same_as<U, value_type>)
  MPIROUTER_ALWAYS_INLINE constexpr matrix_view(const matrix_view<U, Space>& other)
      : data_(other.data()),
        rows_(other.rows()),
        cols_(other.cols()),
        row_stride_(other.row_stride()),
        col_stride_(other.col_stride()) {}

  [[nodiscard]] MPIROUTER_ALWAYS_INLINE constexpr T* data() const noexcept { return data_; }
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE constexpr index_t rows() const noexcept { return rows_; }
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE constexpr index_t cols() const noexcept { return cols_; }
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE constexpr index_t row_stride() const noexcept { return row_stride_; }
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE constexpr index_t col_stride() const noexcept { return col_stride_; }
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE constexpr bool empty() const noexcept {
    return rows_ == 0 || cols_ == 0;
  }

  [[nodiscard]] MPIROUTER_ALWAYS_INLINE constexpr T& operator()(index_t row, index_t col) const noexcept
    requires(std::same_as<Space, host_space>)
  {
    return data_[row * row_stride_ + col * col_stride_];
  }

  /// Row i, a vector of cols() elements.
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE constexpr vector_view<T, Space> row(index_t i) const {
    return {cols_ == 0 ? data_ : data_ + i * row_stride_, cols_, col_stride_};
  }
  /// The rows [first, first + count): a shard along the first axis.
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE constexpr matrix_view middle_rows(index_t first,
                                                                          index_t count) const {
    core::expect(first >= 0 && count >= 0 && first <= rows_ && count <= rows_ - first, "matrix_view: rows [",
                 first, ", ", first, " + ", count, ") out of ", rows_);
    return {data_ + first * row_stride_, count, cols_, row_stride_, col_stride_};
  }
  /// The columns [first, first + count): a shard along the second axis.
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE constexpr matrix_view middle_cols(index_t first,
                                                                          index_t count) const {
    return transposed().middle_rows(first, count).transposed();
  }
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE constexpr matrix_view transposed() const {
    return {data_, cols_, rows_, col_stride_, row_stride_};
  }

 private:
  T* data_ = nullptr;
  index_t rows_ = 0;
  index_t cols_ = 0;
  index_t row_stride_ = 0;
  index_t col_stride_ = 1;
};

/// Row-major, contiguous, as in C, PyTorch and NumPy: router rows [N, D], tokens [T, D].
template <class Space = host_space, Scalar T>
[[nodiscard]] MPIROUTER_ALWAYS_INLINE constexpr matrix_view<T, Space> row_major(T* data, index_t rows,
                                                                                index_t cols) {
  return {data, rows, cols, cols, 1};
}
/// Column-major, contiguous, as in Fortran and by default in Eigen.
template <class Space = host_space, Scalar T>
[[nodiscard]] MPIROUTER_ALWAYS_INLINE constexpr matrix_view<T, Space> column_major(T* data, index_t rows,
                                                                                   index_t cols) {
  return {data, rows, cols, 1, rows};
}
/// One gate matrix stored [F, D], each stored row one neuron: PyTorch's `gate_proj.weight`.
template <class Space = host_space, Scalar T>
[[nodiscard]] MPIROUTER_ALWAYS_INLINE constexpr matrix_view<T, Space> gate_fd(T* data, index_t ffn_dim,
                                                                              index_t hidden_dim) {
  return row_major<Space>(data, ffn_dim, hidden_dim);
}
/// One gate matrix stored [D, F], as the paper writes W_g. The view is its transpose A, F × D.
template <class Space = host_space, Scalar T>
[[nodiscard]] MPIROUTER_ALWAYS_INLINE constexpr matrix_view<T, Space> gate_df(T* data, index_t hidden_dim,
                                                                              index_t ffn_dim) {
  return column_major<Space>(data, ffn_dim, hidden_dim);
}

namespace core {

struct address_range {
  std::uintptr_t first;
  std::uintptr_t last;  // one past the end
};

template <class T>
[[nodiscard]] MPIROUTER_ALWAYS_INLINE address_range addresses(const T* data, index_t rows, index_t cols,
                                                              index_t row_stride,
                                                              index_t col_stride) noexcept {
  const auto base = reinterpret_cast<std::uintptr_t>(data);
  if (rows == 0 || cols == 0) {
    return {base, base};
  }
  if (reach(rows, row_stride) + reach(cols, col_stride) > most_reach<T>) {  // no such memory: meets all
    return {0, std::numeric_limits<std::uintptr_t>::max()};
  }
  const index_t a = (rows - 1) * row_stride;
  const index_t b = (cols - 1) * col_stride;
  const index_t low = (a < 0 ? a : 0) + (b < 0 ? b : 0);
  const index_t high = (a > 0 ? a : 0) + (b > 0 ? b : 0) + 1;
  constexpr auto size = static_cast<index_t>(sizeof(T));
  return {base + static_cast<std::uintptr_t>(low * size), base + static_cast<std::uintptr_t>(high * size)};
}
template <class T, class Space>
[[nodiscard]] MPIROUTER_ALWAYS_INLINE address_range addresses(const vector_view<T, Space>& v) noexcept {
  return addresses(v.data(), v.size(), 1, v.stride(), 1);
}
template <class T, class Space>
[[nodiscard]] MPIROUTER_ALWAYS_INLINE address_range addresses(const matrix_view<T, Space>& m) noexcept {
  return addresses(m.data(), m.rows(), m.cols(), m.row_stride(), m.col_stride());
}

[[nodiscard]] MPIROUTER_ALWAYS_INLINE address_range addresses(const address_range& range) noexcept {
  return range;
}

/// Whether the address ranges of two views meet. O(1); interleaved views that share no element still count.
template <class A, class B>
[[nodiscard]] MPIROUTER_ALWAYS_INLINE bool overlap(const A& a, const B& b) noexcept {
  const auto p = addresses(a);
  const auto q = addresses(b);
  return p.first < p.last && q.first < q.last && p.first < q.last && q.first < p.last;
}

/// Whether b is written where a is read, each element where it was.
template <class T, class U, class Space>
[[nodiscard]] MPIROUTER_ALWAYS_INLINE constexpr bool is_in_place(const matrix_view<T, Space>& a,
                                                                 const matrix_view<U, Space>& b) noexcept {
  return static_cast<const void*>(a.data()) == static_cast<const void*>(b.data()) &&
         std::same_as<std::remove_const_t<T>, std::remove_const_t<U>> && a.row_stride() == b.row_stride() &&
         a.col_stride() == b.col_stride();
}

}  // namespace core

MPIROUTER_END_TYPES
