// What the laws of packed weights share: bytes at an odd address, bits written one by one, grids of scales
// with the numbers that they stand for, and the comparison of a matrix with what its rows should be.
#pragma once

#include <mpi_router/io/packed/any_matrix.hpp>

#include <doctest/doctest.h>
#include <support/messages.hpp>
#include <support/random.hpp>

#include <bit>
#include <cmath>
#include <limits>
#include <vector>

namespace packed_test {

using namespace mpi_router;
using namespace test_support;

/// Bytes that start at an odd address, as a safetensors file may put them.
class odd_bytes {
 public:
  odd_bytes() : storage_(1) {}
  explicit odd_bytes(index_t size) : storage_(static_cast<std::size_t>(size) + 1) {}

  [[nodiscard]] std::span<const std::byte> span() const { return std::span(storage_).subspan(1); }
  [[nodiscard]] index_t size() const { return static_cast<index_t>(storage_.size()) - 1; }
  std::byte& operator[](index_t i) { return storage_[static_cast<std::size_t>(i) + 1]; }
  [[nodiscard]] unsigned at(index_t i) const {
    return static_cast<unsigned>(storage_[static_cast<std::size_t>(i) + 1]);
  }

  /// `bits` bits of `value` from bit `first` on, the least significant bit of byte 0 being bit 0.
  void put(index_t first, index_t bits, unsigned value) {
    for (index_t k = 0; k < bits; ++k) {
      if ((value >> k & 1U) != 0) {
        (*this)[(first + k) / 8] |= std::byte{1} << ((first + k) % 8);
      }
    }
  }
  template <class T>
  void append(T value) {
    const std::size_t end = storage_.size();
    storage_.resize(end + sizeof value);
    std::memcpy(storage_.data() + end, &value, sizeof value);
  }

 private:
  std::vector<std::byte> storage_;
};

inline odd_bytes random_bytes(random_source& random, index_t size) {
  odd_bytes out(size);
  for (index_t i = 0; i < size; ++i) {
    out[i] = static_cast<std::byte>(random.integer(0, 255));
  }
  return out;
}

/// The 16 values of E2M1, from its definition.
inline constexpr double e2m1_values[16] = {0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6};

/// sign · (1 + m/2^bits) · 2^(e − bias), and subnormals, of an eight-bit float.
inline double small_float(unsigned code, int mantissa_bits, int bias) {
  const int e = static_cast<int>((code & 0x7fU) >> mantissa_bits);
  const double m = std::ldexp(static_cast<double>(code & ((1U << mantissa_bits) - 1U)), -mantissa_bits);
  const double magnitude = e == 0 ? std::ldexp(m, 1 - bias) : std::ldexp(1 + m, e - bias);
  return (code & 0x80U) != 0 ? -magnitude : magnitude;
}
inline double e4m3_value(unsigned code) {
  return (code & 0x7fU) == 0x7fU ? std::numeric_limits<double>::quiet_NaN() : small_float(code, 3, 7);
}
inline double e8m0_value(unsigned code) {
  return code == 255 ? std::numeric_limits<double>::quiet_NaN()
                     : std::ldexp(1.0, static_cast<int>(code) - 127);
}

/// A grid of random scales, of either sign where the type has one, and what each is worth.
struct scale_grid {
  odd_bytes bytes;
  std::vector<double> values;
  packed::scale_type type;
  index_t rows;
  index_t cols;

  scale_grid(random_source& random, packed::scale_type kind, index_t r, index_t c)
      : type(kind), rows(r), cols(c) {
    for (index_t i = 0; i < r * c; ++i) {
      const auto number = static_cast<float>(random.normal());
      switch (type) {
        case packed::scale_type::f32: add(number, double{number}); break;
        case packed::scale_type::bf16: add(bf16(number), double{static_cast<float>(bf16(number))}); break;
        case packed::scale_type::f16: add(f16(number), double{static_cast<float>(f16(number))}); break;
        case packed::scale_type::e4m3: {
          const auto code = static_cast<std::uint8_t>(random.integer(0, 255));
          add(code, e4m3_value(code));
          break;
        }
        case packed::scale_type::e8m0: {
          const auto code =
              static_cast<std::uint8_t>(random.integer(0, 9) == 0 ? 255 : random.integer(100, 140));
          add(code, e8m0_value(code));
          break;
        }
        case packed::scale_type::one: values.push_back(1); break;
      }
    }
  }
  template <class T>
  void add(T stored, double value) {
    bytes.append(stored);
    values.push_back(value);
  }
  [[nodiscard]] packed::scales view() const { return {type, bytes.span(), rows, cols}; }
  [[nodiscard]] double at(index_t r, index_t c) const {
    return values[static_cast<std::size_t>(r * cols + c)];
  }
};

inline constexpr packed::scale_type all_scale_types[] = {packed::scale_type::f32,  packed::scale_type::bf16,
                                                         packed::scale_type::f16,  packed::scale_type::e4m3,
                                                         packed::scale_type::e8m0, packed::scale_type::one};

/// The same bits, except that a zero has no sign and every NaN is alike.
template <class S>
bool same(S a, S b) {
  return a == b || (std::isnan(a) && std::isnan(b));
}

/// What an element decodes to in S: expected(f, d), in double, is rounded to S once; expected(f, d, S{})
/// knows of roundings to S on the way.
template <class S, class Expected>
S rounded(const Expected& expected, index_t f, index_t d) {
  if constexpr (std::invocable<Expected, index_t, index_t, S>) {
    return static_cast<S>(expected(f, d, S{}));
  } else {
    return static_cast<S>(expected(f, d));
  }
}

/// How many elements of m, decoded to S, are not the expected ones, whether by rows in any order or all at
/// once. What lies behind a row must not be written.
template <class S, MatrixRows M, class Expected>
index_t differences_in(const M& m, const Expected& expected) {
  constexpr S untouched = S{-12345.5};
  const packed::any_matrix any(m);
  CHECK(any.rows() == m.rows());
  CHECK(any.cols() == m.cols());
  std::vector<S> all(static_cast<std::size_t>(m.rows() * m.cols()) + 1, untouched);
  any.load_all(all.data());
  index_t different = same(all.back(), untouched) ? 0 : 1;
  std::vector<S> row(static_cast<std::size_t>(m.cols()) + 1);
  for (index_t f = m.rows() - 1; f >= 0; --f) {
    row.back() = untouched;
    any.load_row(f, row.data());
    different += same(row.back(), untouched) ? 0 : 1;
    for (index_t d = 0; d < m.cols(); ++d) {
      const S value = row[static_cast<std::size_t>(d)];
      const bool right = same(value, rounded<S>(expected, f, d)) &&
                         same(value, all[static_cast<std::size_t>(f * m.cols() + d)]);
      different += right ? 0 : 1;
    }
  }
  return different;
}

/// differences_in() float and double, where expected() is exact.
template <MatrixRows M, class Expected>
index_t differences(const M& m, const Expected& expected) {
  return differences_in<float>(m, expected) + differences_in<double>(m, expected);
}

}  // namespace packed_test
