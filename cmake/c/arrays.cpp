#include "arrays.hpp"

#include <mpi_router/backend/reference.hpp>

#include <algorithm>
#include <array>
#include <cstdint>
#include <functional>
#include <numeric>
#include <span>
#include <string_view>
#include <vector>

namespace mpi_router_c {
namespace {

static_assert(sizeof(index_t) == sizeof(std::int64_t), "shapes and strides of 64 bits");

using extents = std::span<const std::int64_t>;

std::string text_of(extents shape) {
  std::string text = "[";
  for (const std::int64_t extent : shape) {
    text += (text.size() > 1 ? ", " : "") + std::to_string(extent);
  }
  return text + "]";
}

std::size_t size_of(mpi_router_dtype dtype) {
  return with_type(dtype, []<class T>(std::type_identity<T>) { return sizeof(T); });
}

bool is_aligned(const void* data, mpi_router_dtype dtype) {
  return reinterpret_cast<std::uintptr_t>(data) % size_of(dtype) == 0;
}

/// "mpi_router_rows" of "mpi_router_cuda_rows", and the other way round; "" where there is no such call.
std::string on_the_other_side(std::string_view call) {
  constexpr std::string_view host = "mpi_router_", gpu = "mpi_router_cuda_";
  constexpr std::array both{"rows", "stateful_rows", "rows_vjp", "rows_vjp_detached", "rows_vjp_factored",
                            "gate"};
  const bool is_gpu = call.starts_with(gpu);
  const std::string_view of = call.substr((is_gpu ? gpu : host).size());
  const bool is_both = std::find(both.begin(), both.end(), of) != both.end();
  return is_both ? std::string(is_gpu ? host : gpu).append(of) : std::string();
}

void expect_device(const char* what, const char* name, mpi_router_device device, mpi_router_device wanted) {
  core::expect(device == MPIROUTER_HOST || device == MPIROUTER_CUDA, what, ": ", name, " has the device ",
               device, ", which is none: MPIROUTER_HOST or _CUDA");
  if (device == wanted) {
    return;
  }
  const std::string other = on_the_other_side(what);
  const std::string advice = other.empty() ? std::string() : ": call " + other + ", with all of it there";
  if (device == MPIROUTER_HOST) {
    unsupported(what, ": ", name, " is on the host, and this call takes memory on a GPU", advice);
  }
  unsupported(what, ": ", name, " is on a GPU, and this call takes memory of the host", advice,
              is_built_with_cuda ? "" : " (this library was built without CUDA)");
}

/// What all arrays have in common. Returns whether there are elements.
bool check_type_and_shape(const char* what, const char* name, mpi_router_dtype dtype,
                          mpi_router_device device, extents shape, extents strides, place where) {
  core::expect(dtype >= MPIROUTER_F64 && dtype <= MPIROUTER_F16, what, ": ", name, " has the dtype ", dtype,
               ", which is none: MPIROUTER_F64, _F32, _BF16 or _F16");
  expect_device(what, name, device, where.device);
  double elements = 1;
  double farthest = 0;
  for (std::size_t axis = 0; axis < shape.size(); ++axis) {
    core::expect(shape[axis] >= 0, what, ": ", name, " has the shape ", text_of(shape),
                 ", with a negative extent");
    elements *= static_cast<double>(shape[axis] < 1 ? 1 : shape[axis]);
    farthest += core::reach(shape[axis], strides[axis]);
  }
  constexpr double most = 0x1p+52;  // bytes; sums of some sizes of scratch stay in 64 bits
  const auto bytes = static_cast<double>(size_of(dtype));
  core::expect(elements * bytes <= most && farthest * bytes <= most, what, ": ", name, " of shape ",
               text_of(shape), " and strides ", text_of(strides), " does not fit in memory");
  return where.has_memory &&
         std::none_of(shape.begin(), shape.end(), [](std::int64_t extent) { return extent == 0; });
}

void check_data(const char* what, const char* name, const void* data, mpi_router_dtype dtype, extents shape) {
  core::expect(data != nullptr, what, ": ", name, " of shape ", text_of(shape), " has null data");
  core::expect(is_aligned(data, dtype), what, ": ", name, " is not aligned to its type, ", name_of(dtype));
}

/// f(range) of what experts take: of each where there are pointers.
template <class F>
void for_each_range_of(const mpi_router_experts& experts, const F& f) {
  with_type(experts.dtype, [&]<class T>(std::type_identity<T>) {
    const auto view = view_of<const T>(experts);
    if (!view.empty()) {
      core::for_each_range(view, f);
    }
  });
}

}  // namespace

const char* name_of(mpi_router_dtype dtype) noexcept {
  constexpr std::array names{"unknown", "f64", "f32", "bf16", "f16"};
  return dtype < MPIROUTER_F64 || dtype > MPIROUTER_F16 ? names[0] : names[static_cast<std::size_t>(dtype)];
}

void check(const char* what, const char* name, const mpi_router_matrix& m, place where) {
  if (check_type_and_shape(what, name, m.dtype, m.device, m.shape, m.strides, where)) {
    check_data(what, name, m.data, m.dtype, m.shape);
  }
}
void check(const char* what, const char* name, const mpi_router_vector& v, place where) {
  if (check_type_and_shape(what, name, v.dtype, v.device, {&v.size, 1}, {&v.stride, 1}, where)) {
    check_data(what, name, v.data, v.dtype, {&v.size, 1});
  }
}
void check(const char* what, const char* name, const mpi_router_experts& e, place where) {
  std::int64_t strides[] = {e.pointers != nullptr ? 0 : e.strides[0], e.strides[1], e.strides[2]};
  if (!check_type_and_shape(what, name, e.dtype, e.device, e.shape, strides, where)) {
    return;
  }
  if (e.pointers == nullptr) {
    check_data(what, name, e.data, e.dtype, e.shape);
    return;
  }
  for (index_t i = 0; where.device == MPIROUTER_HOST && i < e.shape[0]; ++i) {
    core::expect(e.pointers[i] != nullptr, what, ": ", name, " of shape ", text_of(e.shape),
                 " have a null pointer for expert ", i);
    core::expect(is_aligned(e.pointers[i], e.dtype), what, ": expert ", i, " of ", name,
                 " is not aligned to its type, ", name_of(e.dtype));
  }
}

void expect_shape(const char* what, const char* name, const mpi_router_matrix& matrix, index_t rows,
                  index_t cols, const char* because) {
  core::expect(matrix.shape[0] == rows && matrix.shape[1] == cols, what, ": ", name, " is ",
               text_of(matrix.shape), ", not [", rows, ", ", cols, "], ", because);
}

namespace {

/// Whether two of n × d elements, a and b apart, are one: i a + j b = 0 for some |i| < n, |j| < d, not both
/// 0.
bool fold(index_t n, index_t a, index_t d, index_t b) {
  a = n > 1 ? (a < 0 ? -a : a) : 0;
  b = d > 1 ? (b < 0 ? -b : b) : 0;
  const index_t g = std::gcd(a, b);
  return n > 0 && d > 0 && (g == 0 ? n > 1 || d > 1 : b / g < n && a / g < d);
}

}  // namespace

void expect_distinct(const char* what, const char* name, const mpi_router_matrix& m) {
  core::expect(!fold(m.shape[0], m.strides[0], m.shape[1], m.strides[1]), what, ": ", name,
               " is written, and with the strides [", m.strides[0], ", ", m.strides[1], "] some elements of ",
               text_of(m.shape), " are one");
}

void expect_distinct(const char* what, const char* name, const mpi_router_experts& e) {
  const auto meet = [&](int i, int j) { return fold(e.shape[i], e.strides[i], e.shape[j], e.strides[j]); };
  const bool has_table = e.pointers != nullptr;
  const bool any = e.shape[0] > 0 && e.shape[1] > 0 && e.shape[2] > 0;
  core::expect(!any || !(meet(1, 2) || (!has_table && (meet(0, 1) || meet(0, 2)))), what, ": ", name,
               " are written, and with the strides [", e.strides[0], ", ", e.strides[1], ", ", e.strides[2],
               "] some elements of ", text_of(e.shape), " are one");
  if (has_table && any && e.device == MPIROUTER_HOST) {
    std::vector<const void*> table(e.pointers, e.pointers + e.shape[0]);
    std::sort(table.begin(), table.end(), std::less<>{});
    core::expect(std::adjacent_find(table.begin(), table.end()) == table.end(), what, ": ", name,
                 " are written, and two of their pointers are one");
  }
}

void expect_meets(const char* what, const char* name, mpi_router_dtype dtype, mpi_router_dtype sums) {
  if (dtype == MPIROUTER_F64 && sums != MPIROUTER_F64) {
    unsupported(what, ": ", name, " is f64, and the sums are taken in ", name_of(sums),
                ": f64 goes with experts of f64 alone");
  }
}

core::address_range range_of(const mpi_router_matrix& m) {
  return with_type(m.dtype, [&]<class T>(std::type_identity<T>) { return core::addresses(view_of<T>(m)); });
}
core::address_range range_of(const mpi_router_vector& v) {
  return with_type(v.dtype, [&]<class T>(std::type_identity<T>) { return core::addresses(view_of<T>(v)); });
}

void memory_of_call::reads(const char* name, const mpi_router_experts& experts) {
  for_each_range_of(experts, [&](const core::address_range& range) { reads(name, range); });
}

void memory_of_call::writes(const char* name, const core::address_range& range) {
  detail::expect_apart(what_, {name, range}, read_);
  detail::expect_apart(what_, {name, range}, written_);
  written_.push_back({name, range});
}

void memory_of_call::writes(const char* name, const mpi_router_matrix& matrix) {
  expect_distinct(what_, name, matrix);
  writes(name, range_of(matrix));
}

void memory_of_call::writes(const char* name, const mpi_router_experts& experts) {
  expect_distinct(what_, name, experts);
  for_each_range_of(experts, [&](const core::address_range& range) {
    detail::expect_apart(what_, {name, range}, read_);
    detail::expect_apart(what_, {name, range}, written_);
  });
}

template <Accumulator S>
matrix_in_sums<S>::matrix_in_sums(const mpi_router_matrix& matrix, use u) : matrix_(matrix) {
  const index_t rows = matrix.shape[0];
  const index_t cols = matrix.shape[1];
  with_type(matrix.dtype, [&]<class T>(std::type_identity<T>) {
    if constexpr (std::is_same_v<T, S>) {
      view_ = view_of<S>(matrix);
    } else if constexpr (sizeof(T) <= sizeof(S)) {
      copy_.reset(new S[static_cast<std::size_t>(rows * cols)]);
      view_ = row_major(copy_.get(), rows, cols);
      for (index_t i = 0; u != use::write && i < rows; ++i) {
        detail::copy_into<S>(view_of<const T>(matrix).row(i), view_.row(i));
      }
    }
  });
}

template <Accumulator S>
void matrix_in_sums<S>::store() const {
  with_type(matrix_.dtype, [&]<class T>(std::type_identity<T>) {
    for (index_t i = 0; copy_ != nullptr && i < matrix_.shape[0]; ++i) {
      detail::copy_into<S>(view_.row(i), view_of<T>(matrix_).row(i));
    }
  });
}

template class matrix_in_sums<float>;
template class matrix_in_sums<double>;

}  // namespace mpi_router_c

namespace {

/// The product of extents, or what no array can have.
std::int64_t times(std::int64_t a, std::int64_t b) {
  return a < 0 || b < 0 || (b != 0 && a > INT64_MAX / b) ? INT64_MAX : a * b;
}

/// Experts one behind the other, each with these strides along F and D.
mpi_router_experts contiguous(const void* data, mpi_router_dtype dtype,
                              const std::array<std::int64_t, 3>& shape, std::int64_t along_f,
                              std::int64_t along_d) {
  const auto [n, f, d] = shape;
  return {const_cast<void*>(data), nullptr,   dtype,
          MPIROUTER_HOST,          {n, f, d}, {times(f, d), along_f, along_d}};
}

}  // namespace

extern "C" {

mpi_router_experts mpi_router_experts_nfd(const void* data, mpi_router_dtype dtype, std::int64_t num_experts,
                                          std::int64_t ffn_dim, std::int64_t hidden_dim) {
  return contiguous(data, dtype, {num_experts, ffn_dim, hidden_dim}, hidden_dim, 1);
}

mpi_router_experts mpi_router_experts_ndf(const void* data, mpi_router_dtype dtype, std::int64_t num_experts,
                                          std::int64_t ffn_dim, std::int64_t hidden_dim) {
  return contiguous(data, dtype, {num_experts, ffn_dim, hidden_dim}, 1, ffn_dim);
}

mpi_router_experts mpi_router_experts_fd_pointers(void* const* pointers, mpi_router_dtype dtype,
                                                  std::int64_t num_experts, std::int64_t ffn_dim,
                                                  std::int64_t hidden_dim) {
  return {nullptr, pointers, dtype, MPIROUTER_HOST, {num_experts, ffn_dim, hidden_dim}, {0, hidden_dim, 1}};
}

mpi_router_matrix mpi_router_row_major(const void* data, mpi_router_dtype dtype, std::int64_t rows,
                                       std::int64_t cols) {
  return {const_cast<void*>(data), dtype, MPIROUTER_HOST, {rows, cols}, {cols, 1}};
}

}  // extern "C"
