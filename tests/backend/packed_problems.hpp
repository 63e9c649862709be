// Packed matrices of every format that has kernels, at odd addresses, and what they are in double.
#pragma once

#include "packed_backend.hpp"

#include <mpi_router/io/packed/views.hpp>

#include <doctest/doctest.h>
#include <io/packed.hpp>

#include <functional>
#include <string>
#include <vector>

namespace packed_problems {

using namespace packed_test;

/// Codes and scales in memory of its own, as a matrix of io/ and as a view.
struct problem {
  std::string name;
  std::vector<odd_bytes> bytes;  ///< codes, and scales where they lie apart
  std::function<packed::any_matrix(const std::vector<odd_bytes>&)> matrix_of;

  [[nodiscard]] packed::any_matrix matrix() const { return matrix_of(bytes); }
  [[nodiscard]] packed::any_view view() const {
    const auto view = packed::view_of(matrix());
    REQUIRE(view.has_value());
    return *view;
  }
  /// use(operator).
  template <class Use>
  void with_operator(const Use& use) const {
    std::visit([&](const auto& v) { use(operator_of(v)); }, view());
  }
};

struct fp8_shape {
  index_t rows, cols, block_rows, block_cols;
};

/// No NaN among codes and scales.
inline problem fp8(random_source& random, const fp8_shape& s, packed::scale_type type) {
  odd_bytes codes = random_bytes(random, s.rows * s.cols);
  for (index_t i = 0; i < codes.size(); ++i) {
    if ((codes.at(i) & 0x7fU) == 0x7fU) codes[i] = std::byte{0x7e};
  }
  const index_t down = packed::parts_of(s.rows, s.block_rows);
  const index_t across = packed::parts_of(s.cols, s.block_cols);
  odd_bytes scales(0);
  for (index_t i = 0; i < down * across; ++i) {
    const auto number = static_cast<float>(random.normal());
    switch (type) {
      case packed::scale_type::f32: scales.append(number); break;
      case packed::scale_type::bf16: scales.append(bf16(number)); break;
      case packed::scale_type::f16: scales.append(f16(number)); break;
      default: scales.append(static_cast<std::uint8_t>(random.integer(120, 130))); break;
    }
  }
  return {"FP8", {codes, scales}, [=](const std::vector<odd_bytes>& b) {
            return packed::fp8_matrix(b[0].span(), s.rows, s.cols,
                                      packed::scales(type, b[1].span(), down, across), s.block_rows,
                                      s.block_cols);
          }};
}

/// Scales from 2^(least − 127) to 2^(most − 127).
inline problem mxfp4(random_source& random, index_t rows, index_t cols, index_t least = 120,
                     index_t most = 130) {
  odd_bytes scales(rows * cols / 32);
  for (index_t i = 0; i < scales.size(); ++i) scales[i] = static_cast<std::byte>(random.integer(least, most));
  return {"MXFP4", {random_bytes(random, rows * cols / 2), scales}, [=](const std::vector<odd_bytes>& b) {
            return packed::fp4_matrix(b[0].span(), rows, cols,
                                      packed::scales(packed::scale_type::e8m0, b[1].span(), rows, cols / 32),
                                      32);
          }};
}

/// Scales near 1.
inline problem ggml(random_source& random, packed::ggml_type type, index_t rows, index_t cols) {
  const auto block = packed::ggml_block_of(type);
  odd_bytes bytes = random_bytes(random, rows * cols / block.elements * block.bytes);
  const bool is_mxfp4 = type == packed::ggml_type::mxfp4;
  const index_t scales = is_mxfp4 ? 0 : type == packed::ggml_type::q4_k ? 2 : 1;
  for (index_t first = 0; first < bytes.size(); first += block.bytes) {
    for (index_t k = 0; k < scales; ++k) {
      const auto bits = f16(static_cast<float>(random.normal())).bits;
      bytes[first + 2 * k] = static_cast<std::byte>(bits & 255U);
      bytes[first + 2 * k + 1] = static_cast<std::byte>(bits >> 8);
    }
    if (is_mxfp4) bytes[first] = static_cast<std::byte>(random.integer(120, 130));
  }
  return {std::string(packed::name_of(type)), {bytes}, [=](const std::vector<odd_bytes>& b) {
            return packed::ggml_matrix(type, b[0].span(), rows, cols);
          }};
}

inline constexpr packed::scale_type fp8_scales[] = {packed::scale_type::f32, packed::scale_type::bf16,
                                                    packed::scale_type::f16, packed::scale_type::e8m0};

/// Around one and several chunks, groups of rows and blocks, and beyond what is kept of a row.
template <class Use>
void for_each_problem(const Use& use) {
  random_source random(20261128);
  for (const auto& s :
       {fp8_shape{1, 1, 1, 1}, fp8_shape{3, 5, 128, 128}, fp8_shape{5, 63, 2, 16}, fp8_shape{4, 64, 4, 64},
        fp8_shape{8, 65, 1, 65}, fp8_shape{9, 31, 9, 1}, fp8_shape{2, 16, 1, 16}, fp8_shape{7, 33, 2, 7},
        fp8_shape{130, 300, 128, 128}, fp8_shape{129, 257, 128, 128}, fp8_shape{5, 4225, 1, 4225},
        fp8_shape{6, 4480, 128, 128}, fp8_shape{3, 600, 3, 600}, fp8_shape{2, 900, 1, 300},
        fp8_shape{0, 40, 1, 8}, fp8_shape{3, 0, 1, 8}}) {
    for (const auto type : fp8_scales) use(fp8(random, s, type));
  }
  for (const index_t rows : {index_t{1}, index_t{3}, index_t{4}, index_t{5}, index_t{33}}) {
    for (const index_t blocks : {index_t{0}, index_t{1}, index_t{2}, index_t{3}, index_t{67}}) {
      use(mxfp4(random, rows, 32 * blocks));
      use(ggml(random, packed::ggml_type::mxfp4, rows, 32 * blocks));
      use(ggml(random, packed::ggml_type::q8_0, rows, 32 * blocks));
    }
    for (const index_t blocks : {index_t{0}, index_t{1}, index_t{2}, index_t{9}}) {
      use(ggml(random, packed::ggml_type::q4_k, rows, 256 * blocks));
    }
  }
}

/// A in double, by the decoders of io/, and plain sums over it.
struct oracle {
  index_t rows;
  index_t cols;
  std::vector<double> a;

  explicit oracle(const packed::any_matrix& m)
      : rows(m.rows()), cols(m.cols()), a(static_cast<std::size_t>(rows * cols)) {
    m.load_all(a.data());
  }
  [[nodiscard]] double at(index_t f, index_t d) const { return a[static_cast<std::size_t>(f * cols + d)]; }
  [[nodiscard]] double size() const {
    double sum = 0;
    for (const double x : a) sum += x * x;
    return std::sqrt(sum);
  }
  template <class X>
  [[nodiscard]] std::vector<double> project(const X& x) const {
    std::vector<double> y(static_cast<std::size_t>(rows));
    for (index_t f = 0; f < rows; ++f) {
      for (index_t d = 0; d < cols; ++d) {
        y[static_cast<std::size_t>(f)] += at(f, d) * static_cast<double>(x[static_cast<std::size_t>(d)]);
      }
    }
    return y;
  }
  template <class Y>
  [[nodiscard]] std::vector<double> lift(const Y& y) const {
    std::vector<double> u(static_cast<std::size_t>(cols));
    for (index_t f = 0; f < rows; ++f) {
      for (index_t d = 0; d < cols; ++d) {
        u[static_cast<std::size_t>(d)] += static_cast<double>(y[static_cast<std::size_t>(f)]) * at(f, d);
      }
    }
    return u;
  }
};

template <class X>
double norm(const X& x) {
  double sum = 0;
  for (const auto v : x) sum += static_cast<double>(v) * static_cast<double>(v);
  return std::sqrt(sum);
}
template <class A, class B>
double distance(const A& a, const B& b) {
  double sum = 0;
  for (std::size_t i = 0; i < b.size(); ++i) {
    const double d = static_cast<double>(a[i]) - static_cast<double>(b[i]);
    sum += d * d;
  }
  return std::sqrt(sum);
}

}  // namespace packed_problems
