// Matrices on the device whose element type is known at run time: elements one at a time, and fours at once.
#pragma once

#include <mpi_router/core/views.hpp>
#include <mpi_router/cuda/detail/device/number.cuh>

#include <type_traits>

MPIROUTER_CUDA_DETAIL_BEGIN

/// A matrix on the device whose element type is known at run time: rows, images, gradients, never the
/// weights.
struct any_matrix {
  void* data = nullptr;
  long long row_stride = 0;
  long long col_stride = 0;
  storage_format format = storage_format::f32;

  template <class T>
  any_matrix(const matrix_view<T, device_space>& m)
      : data(const_cast<std::remove_const_t<T>*>(m.data())),
        row_stride(m.row_stride()),
        col_stride(m.col_stride()),
        format(storage_traits<std::remove_const_t<T>>::format) {
    static_assert(is_stored_here<std::remove_const_t<T>>, "cuda: f64, f32, bf16 or f16");
  }
  any_matrix() = default;
  template <class T>
  any_matrix(T* contiguous, long long cols)
      : data(const_cast<std::remove_const_t<T>*>(contiguous)),
        row_stride(cols),
        col_stride(1),
        format(storage_traits<std::remove_const_t<T>>::format) {
    static_assert(is_stored_here<std::remove_const_t<T>>, "cuda: f64, f32, bf16 or f16");
  }

  /// Whether its numbers are beyond the kernels that read the weights in vectors, whose rows are floats.
  [[nodiscard]] bool is_double() const { return format == storage_format::f64; }
  [[nodiscard]] any_matrix from_row(long long first) const {
    any_matrix m = *this;
    m.data =
        data == nullptr ? nullptr : static_cast<unsigned char*>(data) + first * row_stride * bytes_of(format);
    return m;
  }

  [[nodiscard]] __device__ __forceinline__ double load(int row, int col) const {
    const long long at = row * row_stride + col * col_stride;
    switch (format) {
      case storage_format::f64: return static_cast<const double*>(data)[at];
      case storage_format::f32: return to_double(static_cast<const float*>(data)[at]);
      case storage_format::bf16: return to_double(static_cast<const bf16*>(data)[at]);
      case storage_format::f16: return to_double(static_cast<const f16*>(data)[at]);
    }
    __builtin_unreachable();
  }
  // What follows, up to load_four, is for no matrix that is_double.

  /// An element in two halves, so that other work can start while the load is under way: its bits, and what
  /// they mean.
  [[nodiscard]] __device__ __forceinline__ unsigned load_bits(int row, int col) const {
    const long long at = row * row_stride + col * col_stride;
    return format == storage_format::f32
               ? static_cast<const unsigned*>(data)[at]
               : static_cast<const unsigned short*>(data)[at];  // the two of 16 bits
  }
  [[nodiscard]] __device__ __forceinline__ float from_bits(unsigned bits) const {
    return format == storage_format::f32 ? __uint_as_float(bits)
           : format == storage_format::bf16
               ? __uint_as_float(bits << 16)
               : __half2float(
                     __ushort_as_half(static_cast<unsigned short>(bits)));  // f16: no others are let in
  }
  /// Elements of a row, four at a time, in two halves again: the bits of n fours, one after another in pieces
  /// of `width` columns that begin at `first` and lie `step` apart, and the numbers that they are; zero
  /// beyond `cols`.
  template <int n, int width>
  __device__ __forceinline__ void load_fours_bits(int row, int cols, int first, int step,
                                                  unsigned (&bits)[n][4]) const {
    const int limit = fours_at_once(row, cols);
    const auto column = [&](int i) { return first + 4 * i / width * step + 4 * i % width; };
    if (limit < cols && column(n - 1) >= limit) [[unlikely]] {
      unsigned gathered[n][4];
      gather_fours_bits<n, width>(row, cols, first, step, gathered);
#pragma unroll
      for (int i = 0; i < n; ++i) {
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          bits[i][k] = gathered[i][k];
        }
      }
      return;
    }
    load_fours_at_once(row, limit, column, bits);
  }
  template <int n>
  __device__ __forceinline__ void fours_from_bits(const unsigned (&bits)[n][4], float (&out)[4 * n]) const {
    const auto halves = [&](auto zero) {
#pragma unroll
      for (int i = 0; i < n; ++i) {
        float x[8];
        unpack<decltype(zero)>(make_uint4(bits[i][0], bits[i][1], 0, 0), x);
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          out[4 * i + k] = x[k];
        }
      }
    };
    if (format == storage_format::f32) {
#pragma unroll
      for (int i = 0; i < 4 * n; ++i) {
        out[i] = __uint_as_float(bits[i / 4][i % 4]);
      }
    } else if (format == storage_format::bf16) {
      halves(bf16{});
    } else {  // f16, for no others are let in
      halves(f16{});
    }
  }
  /// The elements from `col`, a multiple of four, to col + 4, zero beyond `cols`.
  __device__ __forceinline__ void load_four(int row, int col, int cols, double (&out)[4]) const {
    const int limit = fours_at_once(row, cols);
    if (col >= limit) [[unlikely]] {
      const four x = load_four_rarely(row, col, cols);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        out[i] = x.at[i];
      }
      return;
    }
    unsigned bits[1][4];
    float x[4];
    load_fours_at_once(row, limit, [&](int) { return col; }, bits);
    fours_from_bits(bits, x);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      out[i] = x[i];
    }
  }
  __device__ __forceinline__ void store_four(int row, int col, int cols, const double (&in)[4]) const {
    if (col < fours_at_once(row, cols)) {
      const long long at = row * row_stride + col;
      float x[8] = {};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        x[i] = static_cast<float>(in[i]);
      }
      const auto store_halves = [&](const uint4& v) {
        *reinterpret_cast<uint2*>(static_cast<unsigned short*>(data) + at) = make_uint2(v.x, v.y);
      };
      switch (format) {
        case storage_format::f64: break;  // has no fours
        case storage_format::f32:
          *reinterpret_cast<float4*>(static_cast<float*>(data) + at) = make_float4(x[0], x[1], x[2], x[3]);
          break;
        case storage_format::bf16: store_halves(pack<bf16>(x)); break;
        case storage_format::f16: store_halves(pack<f16>(x)); break;
      }
      return;
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (col + i < cols) {
        store(row, col + i, in[i]);
      }
    }
  }
  // What follows is called, not inlined: where it is rare, its code would be in the way of what is not, and
  // code that other kernels have driven from the instruction caches is read at the speed of memory.

  struct four {
    double at[4];
  };
  [[nodiscard]] __device__ __noinline__ four load_four_rarely(int row, int col, int cols) const {
    four x;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      x.at[i] = col + i < cols ? load(row, col + i) : 0.0;
    }
    return x;
  }
  __device__ __noinline__ void store(int row, int col, double value) const {
    const long long at = row * row_stride + col * col_stride;
    switch (format) {
      case storage_format::f64: static_cast<double*>(data)[at] = value; break;
      case storage_format::f32: static_cast<float*>(data)[at] = from_double<float>(value); break;
      case storage_format::bf16: static_cast<bf16*>(data)[at] = from_double<bf16>(value); break;
      case storage_format::f16: static_cast<f16*>(data)[at] = from_double<f16>(value); break;
    }
  }

 private:
  /// The columns of a row, from the first on, that can be moved four at a time: all that make up fours, or
  /// none (of f64, strided, or not aligned to them).
  [[nodiscard]] __device__ __forceinline__ int fours_at_once(int row, int cols) const {
    const unsigned long long bytes = format == storage_format::f32 ? 4 : 2;
    const unsigned long long at = reinterpret_cast<unsigned long long>(data) +
                                  static_cast<unsigned long long>(row * row_stride) * bytes;
    return format == storage_format::f64 || col_stride != 1 || (at & (4 * bytes - 1)) != 0 ? 0 : cols & ~3;
  }
  /// The bits of the fours below `limit`, which is fours_at_once.
  template <int n, class Column>
  __device__ __forceinline__ void load_fours_at_once(int row, int limit, const Column& column,
                                                     unsigned (&bits)[n][4]) const {
#pragma unroll
    for (int i = 0; i < n; ++i) {
      bits[i][0] = bits[i][1] = bits[i][2] = bits[i][3] = 0;
    }
    const long long start = row * row_stride;
    if (format == storage_format::f32) {
#pragma unroll
      for (int i = 0; i < n; ++i) {
        if (column(i) < limit) {
          const uint4 v =
              *reinterpret_cast<const uint4*>(static_cast<const float*>(data) + start + column(i));
          bits[i][0] = v.x;
          bits[i][1] = v.y;
          bits[i][2] = v.z;
          bits[i][3] = v.w;
        }
      }
    } else {
#pragma unroll
      for (int i = 0; i < n; ++i) {
        if (column(i) < limit) {
          const uint2 v =
              *reinterpret_cast<const uint2*>(static_cast<const unsigned short*>(data) + start + column(i));
          bits[i][0] = v.x;
          bits[i][1] = v.y;
        }
      }
    }
  }
  template <int n, int width>
  __device__ __noinline__ void gather_fours_bits(int row, int cols, int first, int step,
                                                 unsigned (&bits)[n][4]) const {
#pragma unroll
    for (int i = 0; i < n; ++i) {
      unsigned own[4];
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const int col = first + 4 * i / width * step + 4 * i % width + k;
        own[k] = col < cols ? load_bits(row, col) : 0U;
      }
      const bool wide = format == storage_format::f32;
      bits[i][0] = wide ? own[0] : own[0] | own[1] << 16;
      bits[i][1] = wide ? own[1] : own[2] | own[3] << 16;
      bits[i][2] = wide ? own[2] : 0U;
      bits[i][3] = wide ? own[3] : 0U;
    }
  }
};

MPIROUTER_CUDA_DETAIL_END
