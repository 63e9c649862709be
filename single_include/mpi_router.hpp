// clang-format off: made by scripts/amalgamate, whose parts are formatted
// mpi_router 0.1.0: Manifold Power Iteration for Mixture-of-Experts routers (arXiv 2606.12397).
// The host library in one file, made by scripts/amalgamate from include/mpi_router/mpi_router.hpp and what it includes.
// Needs a C++20 compiler and nothing else.
//
// MIT License
//
// Copyright (c) 2026 the mpi_router authors
//
// Permission is hereby granted, free of charge, to any person obtaining a copy
// of this software and associated documentation files (the "Software"), to deal
// in the Software without restriction, including without limitation the rights
// to use, copy, modify, merge, publish, distribute, sublicense, and/or sell
// copies of the Software, and to permit persons to whom the Software is
// furnished to do so, subject to the following conditions:
//
// The above copyright notice and this permission notice shall be included in all
// copies or substantial portions of the Software.
//
// THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR
// IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY,
// FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE
// AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER
// LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM,
// OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE
// SOFTWARE.
#pragma once

#ifdef MPIROUTER_SINGLE_HEADER
#error "mpi_router: the single header comes after another copy of it; a source file can include one, of one version"
#include <mpi_router twice>
#elif defined(MPIROUTER_VERSION_MAJOR)
#error "mpi_router: the single header comes after headers of include/mpi_router/; include one or the others"
#include <mpi_router twice>
#endif

// ---- mpi_router/core/version.hpp
// Version of mpi_router. CMake parses these three lines: keep their form.

#define MPIROUTER_VERSION_MAJOR 0
#define MPIROUTER_VERSION_MINOR 1
#define MPIROUTER_VERSION_PATCH 0

// ---- mpi_router/core/config.hpp
// Configuration: what the compiler offers, and the namespaces that keep incompatible builds apart.
//
// Types of core/ live in mpi_router::v0_1, named after the version (plus "_nx" without exceptions): they may
// cross translation units that were compiled with different instruction sets, and are never taken for those
// of another minor version. Everything that computes lives one inline namespace deeper, named after the
// instruction set and math flags (…::avx2_fma), so that the linker can never hand code built with -mavx512f
// to a program that asked for less.

// What follows the first error would hide it: a file that is not there ends the compilation at once.
#if defined(_MSVC_LANG) ? _MSVC_LANG < 202002L : __cplusplus < 201709L
#error "mpi_router needs C++20: compile with -std=c++20 (g++, clang++, nvcc) or /std:c++20 (MSVC)"
#include <mpi_router needs C++20>
#endif

#ifdef MPIROUTER_SINGLE_HEADER
#error "mpi_router: headers of include/mpi_router/ come after the single header; include one or the others"
#include <mpi_router twice>
#endif

#include <cstddef>

#if defined(__cpp_exceptions) || defined(__EXCEPTIONS) || defined(_CPPUNWIND)
#define MPIROUTER_HAS_EXCEPTIONS 1
#else
#define MPIROUTER_HAS_EXCEPTIONS 0
#endif

// What types of core/ compute, every object keeps to itself, for objects of one program may be compiled for
// different instruction sets. Where all are compiled for one, -DMPIROUTER_ALWAYS_INLINE=inline makes
// unoptimised builds many times as fast to compile.
#if defined(MPIROUTER_ALWAYS_INLINE)
#elif defined(_MSC_VER) && !defined(__clang__)
#define MPIROUTER_ALWAYS_INLINE __forceinline
#else
#define MPIROUTER_ALWAYS_INLINE [[gnu::always_inline]] inline
#endif

/// Before a function that host and GPU share.
#if defined(__CUDACC__)
#define MPIROUTER_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define MPIROUTER_HOST_DEVICE MPIROUTER_ALWAYS_INLINE
#endif

#define MPIROUTER_DETAIL_CONCAT_(a, b) a##b
#define MPIROUTER_DETAIL_CONCAT(a, b) MPIROUTER_DETAIL_CONCAT_(a, b)

#if MPIROUTER_HAS_EXCEPTIONS
#define MPIROUTER_DETAIL_ABI_SUFFIX
#else
#define MPIROUTER_DETAIL_ABI_SUFFIX _nx
#endif

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#define MPIROUTER_DETAIL_ISA avx512
#elif defined(__AVX512F__)
#define MPIROUTER_DETAIL_ISA avx512f
#elif defined(__AVX2__) && defined(__FMA__)
#define MPIROUTER_DETAIL_ISA avx2_fma
#elif defined(__AVX2__)
#define MPIROUTER_DETAIL_ISA avx2
#elif defined(__AVX__)
#define MPIROUTER_DETAIL_ISA avx
#elif defined(__SSE4_1__)
#define MPIROUTER_DETAIL_ISA sse4
#elif defined(__ARM_FEATURE_SVE)
#define MPIROUTER_DETAIL_ISA sve
#elif defined(__ARM_NEON)
#define MPIROUTER_DETAIL_ISA neon
#else
#define MPIROUTER_DETAIL_ISA generic
#endif

#if defined(__FAST_MATH__)
#define MPIROUTER_DETAIL_MATH_SUFFIX _fast
#else
#define MPIROUTER_DETAIL_MATH_SUFFIX
#endif

#define MPIROUTER_DETAIL_VERSION                                               \
  MPIROUTER_DETAIL_CONCAT(MPIROUTER_DETAIL_CONCAT(v, MPIROUTER_VERSION_MAJOR), \
                          MPIROUTER_DETAIL_CONCAT(_, MPIROUTER_VERSION_MINOR))

/// Inline namespace of the types of core/.
#define MPIROUTER_ABI_NAMESPACE MPIROUTER_DETAIL_CONCAT(MPIROUTER_DETAIL_VERSION, MPIROUTER_DETAIL_ABI_SUFFIX)
/// Inline namespace of everything that computes.
#define MPIROUTER_ISA_NAMESPACE MPIROUTER_DETAIL_CONCAT(MPIROUTER_DETAIL_ISA, MPIROUTER_DETAIL_MATH_SUFFIX)

// clang-format off
#define MPIROUTER_BEGIN_TYPES namespace mpi_router { inline namespace MPIROUTER_ABI_NAMESPACE {
#define MPIROUTER_END_TYPES } }
#define MPIROUTER_BEGIN MPIROUTER_BEGIN_TYPES inline namespace MPIROUTER_ISA_NAMESPACE {
#define MPIROUTER_END } MPIROUTER_END_TYPES
// cuda/: kernels, and the host functions that launch them, have internal linkage. Two shared objects that both
// instantiate a weak __global__ template end up launching a kernel that one of them never registered.
#define MPIROUTER_CUDA_BEGIN MPIROUTER_BEGIN_TYPES namespace cuda { namespace {
#define MPIROUTER_CUDA_END } } MPIROUTER_END_TYPES
#define MPIROUTER_CUDA_DETAIL_BEGIN MPIROUTER_BEGIN_TYPES namespace cuda::detail { namespace {
#define MPIROUTER_CUDA_DETAIL_END } } MPIROUTER_END_TYPES
// clang-format on

MPIROUTER_BEGIN_TYPES
/// Extents, strides and counts are signed, as in std::ssize and Eigen.
using index_t = std::ptrdiff_t;
MPIROUTER_END_TYPES

// ---- mpi_router/core/error.hpp
// What a failure is: numeric events are data (status), mistakes of the caller are usage_error.

#include <string>
#include <string_view>

#if MPIROUTER_HAS_EXCEPTIONS
#include <stdexcept>
#else
#include <cstdio>
#include <cstdlib>
#endif

MPIROUTER_BEGIN_TYPES

/// What became of one expert's row, or of one token. Never thrown: one value for each.
enum class status : unsigned char {
  ok,            ///< the step is defined and was taken; the token has its experts
  zero_row,      ///< the router row is zero: it has no direction
  zero_image,    ///< the row is orthogonal to the row space of A (or A is zero): rM = 0
  non_finite,    ///< a NaN or an infinity in the row or in the image; no finite weights for the token
  masked,        ///< the token is padding: it has no experts and counts for nothing
  closed_expert  ///< fewer than K experts are open to the token: the others that it names have weight zero
};

/// Whether a token of this status has experts, and so counts in losses, loads and dispatch lists.
[[nodiscard]] MPIROUTER_ALWAYS_INLINE constexpr bool is_routed(status s) noexcept {
  switch (s) {
    case status::ok:
    case status::closed_expert: return true;
    case status::zero_row:
    case status::zero_image:
    case status::non_finite:
    case status::masked: break;
  }
  return false;
}

/// What a row without a valid step becomes.
enum class degenerate_row : unsigned char {
  keep,  ///< the old row, unchanged
  zero   ///< zero, as torch.nn.functional.normalize gives for a zero vector
};

[[nodiscard]] MPIROUTER_ALWAYS_INLINE constexpr std::string_view to_string(status s) noexcept {
  switch (s) {
    case status::ok: return "ok";
    case status::zero_row: return "zero_row";
    case status::zero_image: return "zero_image";
    case status::non_finite: return "non_finite";
    case status::masked: return "masked";
    case status::closed_expert: return "closed_expert";
  }
  return "unknown";
}

#if MPIROUTER_HAS_EXCEPTIONS
/// The one exception that the library throws for a mistake of the caller: shapes that do not fit, null
/// data, a radius that is not positive, overlapping input and output. The message names both sides.
class usage_error : public std::invalid_argument {
 public:
  using std::invalid_argument::invalid_argument;
};
#endif

namespace core {

/// Throws usage_error; without exceptions prints the same message to stderr and aborts.
[[noreturn]] inline void usage_failure(const std::string& message) {
#if MPIROUTER_HAS_EXCEPTIONS
  throw usage_error("mpi_router: " + message);
#else
  std::fprintf(stderr, "mpi_router: %s\n", message.c_str());
  std::abort();
#endif
}

template <class... Parts>
[[nodiscard]] std::string concatenate(const Parts&... parts) {
  std::string out;
  const auto append = [&out](const auto& part) {
    if constexpr (requires { std::to_string(part); }) {
      out += std::to_string(part);
    } else {
      out += part;
    }
  };
  (append(parts), ...);
  return out;
}

/// Checks a precondition; always on, O(1). The message is built only on failure.
template <class... Parts>
constexpr void expect(bool condition, const Parts&... parts) {
  if (!condition) [[unlikely]] {
    usage_failure(concatenate(parts...));
  }
}

/// For a value of an enumeration that has no name there, as a cast integer may: never a silent choice.
template <class Enum>
[[noreturn]] void unknown_value(const char* enumeration, Enum value) {
  usage_failure(concatenate(enumeration, ": ", static_cast<int>(value), " is none of its values"));
}

/// Whether a row without a step stays. Throws usage_error where the policy is neither of the two.
[[nodiscard]] MPIROUTER_ALWAYS_INLINE constexpr bool keeps(degenerate_row policy) {
  switch (policy) {
    case degenerate_row::keep: return true;
    case degenerate_row::zero: return false;
  }
  unknown_value("degenerate_row", policy);
}

}  // namespace core

MPIROUTER_END_TYPES

// ---- mpi_router/core/storage_traits.hpp
// What a storage type must say of itself, bf16 and f16 among them: all that a new one takes is its struct and
// one specialisation of storage_traits. Scalar code, vector registers and GPUs follow from the layout of its
// bits.

#include <cstdint>
#include <type_traits>

MPIROUTER_BEGIN_TYPES

namespace core {

[[nodiscard]] MPIROUTER_ALWAYS_INLINE constexpr std::uint32_t format_code(unsigned exponent_bits,
                                                                          unsigned significand_bits,
                                                                          bool has_infinity = true) noexcept {
  return exponent_bits | significand_bits << 8 | (has_infinity ? 1U : 0U) << 16;
}

}  // namespace core

/// How the bits of a storage type are laid out: what a load needs to know. The value says all of it, so that
/// there are more formats than these names (make_storage_format).
enum class storage_format : std::uint32_t {
  f64 = core::format_code(11, 52),
  f32 = core::format_code(8, 23),
  bf16 = core::format_code(8, 7),
  f16 = core::format_code(5, 10)
};

/// A format of one sign bit, so many exponent bits (8 at most, biased by half their range) and significand
/// bits. The largest exponent is kept for infinities and NaN as in IEEE 754; or, without infinities, the
/// pattern of all ones is NaN and every other a number, as in E4M3 of the Open Compute Project ("FN").
[[nodiscard]] MPIROUTER_ALWAYS_INLINE constexpr storage_format make_storage_format(
    unsigned exponent_bits, unsigned significand_bits, bool has_infinity = true) noexcept {
  return static_cast<storage_format>(core::format_code(exponent_bits, significand_bits, has_infinity));
}

namespace core {

/// A storage_format, read.
struct bit_layout {
  unsigned exponent_bits;
  unsigned significand_bits;
  bool has_infinity;

  MPIROUTER_HOST_DEVICE constexpr explicit bit_layout(storage_format format) noexcept
      : exponent_bits(static_cast<std::uint32_t>(format) & 0xffU),
        significand_bits(static_cast<std::uint32_t>(format) >> 8 & 0xffU),
        has_infinity((static_cast<std::uint32_t>(format) >> 16 & 1U) != 0) {}

  [[nodiscard]] MPIROUTER_HOST_DEVICE constexpr unsigned bytes() const noexcept {
    return (1 + exponent_bits + significand_bits) / 8;
  }
  /// The bits of a float's significand that are cut.
  [[nodiscard]] MPIROUTER_HOST_DEVICE constexpr unsigned cut() const noexcept {
    return 23 - significand_bits;
  }
  [[nodiscard]] MPIROUTER_HOST_DEVICE constexpr std::uint32_t sign() const noexcept {
    return 1U << (exponent_bits + significand_bits);
  }
  [[nodiscard]] MPIROUTER_HOST_DEVICE constexpr std::uint32_t bias() const noexcept {
    return (1U << (exponent_bits - 1)) - 1;
  }
  /// What an exponent of this format lacks to one of float, where float has it.
  [[nodiscard]] MPIROUTER_HOST_DEVICE constexpr std::uint32_t rebase() const noexcept {
    return (127 - bias()) << 23;
  }
  /// The least pattern of a magnitude that is no number: infinity, or the NaN of a format that has none.
  [[nodiscard]] MPIROUTER_HOST_DEVICE constexpr std::uint32_t beyond() const noexcept {
    return has_infinity ? ((1U << exponent_bits) - 1) << significand_bits : sign() - 1;
  }
  [[nodiscard]] MPIROUTER_HOST_DEVICE constexpr std::uint32_t quiet_nan() const noexcept {
    return has_infinity ? beyond() | 1U << (significand_bits - 1) : beyond();
  }
  /// The least number but zero, a power of two, as a float.
  [[nodiscard]] MPIROUTER_HOST_DEVICE constexpr float smallest() const noexcept {
    return __builtin_bit_cast(float, (128 - bias() - significand_bits) << 23);
  }
};

// On bit patterns, so that NaN and infinity survive -ffast-math; by the compiler's own bit cast, for
// std::bit_cast is not available in device code.

/// The value of a stored pattern: exact. For formats that float contains.
[[nodiscard]] MPIROUTER_HOST_DEVICE constexpr float widen_bits(std::uint32_t bits, bit_layout l) noexcept {
  if (l.exponent_bits == 8) {
    return __builtin_bit_cast(float, bits << l.cut());
  }
  const std::uint32_t sign = (bits & l.sign()) << (31 - l.exponent_bits - l.significand_bits);
  const std::uint32_t magnitude = bits & (l.sign() - 1);
  if (magnitude >= l.beyond()) {
    return __builtin_bit_cast(float, sign | 0x7f800000U | magnitude << l.cut());  // all ones are NaN, too
  }
  if (magnitude >> l.significand_bits != 0) {
    return __builtin_bit_cast(float, sign | ((magnitude << l.cut()) + l.rebase()));
  }
  const float value = static_cast<float>(magnitude) * l.smallest();
  return sign != 0 ? -value : value;
}

/// The nearest stored pattern, ties to even; what is too large becomes infinite, or NaN in a format without
/// infinities. NaN stays NaN (made quiet).
[[nodiscard]] MPIROUTER_HOST_DEVICE constexpr std::uint32_t narrow_bits(float x, bit_layout l) noexcept {
  const auto bits = __builtin_bit_cast(std::uint32_t, x);
  const std::uint32_t magnitude = bits & 0x7fffffffU;
  const std::uint32_t half_less = (1U << (l.cut() - 1)) - 1U + ((bits >> l.cut()) & 1U);
  const bool is_nan = magnitude > 0x7f800000U;
  if (l.exponent_bits == 8) {
    return is_nan ? bits >> l.cut() | l.quiet_nan() : (bits + half_less) >> l.cut();
  }
  const std::uint32_t sign = bits >> (31 - l.exponent_bits - l.significand_bits) & l.sign();
  if (is_nan) {
    return sign | l.quiet_nan() | (magnitude & 0x7fffffU) >> l.cut();
  }
  if (magnitude < l.rebase() + 0x800000U) {  // subnormal: shift the significand down
    const std::uint32_t exponent = magnitude >> 23;
    const std::uint32_t shift = 151 - l.bias() - l.significand_bits - exponent;
    if (shift > 24) {  // below half of the smallest
      return sign;
    }
    const std::uint32_t significand = (magnitude & 0x7fffffU) | 0x800000U;
    const std::uint32_t half = 1U << (shift - 1);
    const std::uint32_t odd = (significand >> shift) & 1U;
    return sign | ((significand + half - 1U + odd) >> shift);
  }
  const std::uint32_t code = (magnitude + half_less - l.rebase()) >> l.cut();
  return sign | (code < l.beyond() ? code : l.beyond());
}

}  // namespace core

/// bfloat16 storage: 8 exponent and 7 significand bits. Arithmetic is done in float.
struct bf16 {
  std::uint16_t bits = 0;
  bf16() = default;
  MPIROUTER_ALWAYS_INLINE constexpr explicit bf16(float x) noexcept
      : bits(static_cast<std::uint16_t>(core::narrow_bits(x, core::bit_layout(storage_format::bf16)))) {}
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE constexpr explicit operator float() const noexcept {
    return core::widen_bits(bits, core::bit_layout(storage_format::bf16));
  }
};

/// IEEE binary16 storage: 5 exponent and 10 significand bits. Arithmetic is done in float.
struct f16 {
  std::uint16_t bits = 0;
  f16() = default;
  MPIROUTER_ALWAYS_INLINE constexpr explicit f16(float x) noexcept
      : bits(static_cast<std::uint16_t>(core::narrow_bits(x, core::bit_layout(storage_format::f16)))) {}
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE constexpr explicit operator float() const noexcept {
    return core::widen_bits(bits, core::bit_layout(storage_format::f16));
  }
};

/// A few formats, in order.
template <storage_format... Formats>
struct storage_formats {};
/// Those that libraries of kernels are compiled for (mpi_router::dispatch); other formats go by the headers.
using compiled_formats =
    storage_formats<storage_format::f64, storage_format::f32, storage_format::bf16, storage_format::f16>;

/// What is known of a storage type. Specialise it to let another type be the element of a view:
///
///   accumulator   float or double, in which its values are summed
///   format        how its bits are laid out; backends take a type of the same format for the same
///   widen(x)      its value, exact
///   narrow(sum)   the nearest stored value, ties to even
///   name          what files (safetensors) and messages call it
///
/// Derive from bits_storage where the type is a struct of its `bits`, from converted_storage where it
/// converts to and from its accumulator (Eigen::bfloat16 and Eigen::half). Elements that share a scale have
/// no value of their own: such matrices go row by row (MatrixRows, core/matrix_rows.hpp), as operators.
template <class T>
struct storage_traits;

/// Of a struct T whose member `bits` is an unsigned integer of as many bits as the format has.
template <class T, storage_format Format>
struct bits_storage {
  using accumulator = float;
  static constexpr storage_format format = Format;
  [[nodiscard]] MPIROUTER_HOST_DEVICE static constexpr float widen(T x) noexcept {
    return core::widen_bits(x.bits, core::bit_layout(Format));
  }
  [[nodiscard]] MPIROUTER_HOST_DEVICE static constexpr T narrow(float x) noexcept {
    T stored{};
    stored.bits = static_cast<decltype(T::bits)>(core::narrow_bits(x, core::bit_layout(Format)));
    return stored;
  }
};
/// Of a type that converts to and from S.
template <class T, class S, storage_format Format>
struct converted_storage {
  using accumulator = S;
  static constexpr storage_format format = Format;
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE static constexpr S widen(const T& x) noexcept {
    return static_cast<S>(x);
  }
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE static constexpr T narrow(S x) noexcept { return static_cast<T>(x); }
};

template <>
struct storage_traits<double> : converted_storage<double, double, storage_format::f64> {
  static constexpr std::string_view name = "F64";
};
template <>
struct storage_traits<float> : converted_storage<float, float, storage_format::f32> {
  static constexpr std::string_view name = "F32";
};
template <>
struct storage_traits<bf16> : bits_storage<bf16, storage_format::bf16> {
  static constexpr std::string_view name = "BF16";
};
template <>
struct storage_traits<f16> : bits_storage<f16, storage_format::f16> {
  static constexpr std::string_view name = "F16";
};

MPIROUTER_END_TYPES

// ---- mpi_router/core/scalar.hpp
// What a number is: concepts of storage types and of the type that sums of them are taken in; from one to the
// other.

#include <bit>
#include <concepts>
#include <limits>

MPIROUTER_BEGIN_TYPES

namespace core {

// Bit patterns, so that the tests for NaN and infinity survive -ffast-math.
[[nodiscard]] MPIROUTER_ALWAYS_INLINE constexpr bool is_finite_bits(float x) noexcept {
  return (std::bit_cast<std::uint32_t>(x) & 0x7f800000U) != 0x7f800000U;
}
[[nodiscard]] MPIROUTER_ALWAYS_INLINE constexpr bool is_finite_bits(double x) noexcept {
  return (std::bit_cast<std::uint64_t>(x) & 0x7ff0000000000000ULL) != 0x7ff0000000000000ULL;
}

// Cut to what float can hold, with a last bit of 1 where anything was cut off: a second rounding, to fewer
// bits, then ends where one rounding would.
[[nodiscard]] MPIROUTER_ALWAYS_INLINE constexpr float double_to_odd_float(double x) noexcept {
  const auto bits = std::bit_cast<std::uint64_t>(x);
  const auto exponent = (bits >> 52) & 0x7ffU;
  if (exponent == 0x7ffU || exponent < 875U) {  // not finite, or below 2^-148: 0 in every smaller type
    return static_cast<float>(x);
  }
  const auto too_many = exponent < 897U ? 926U - exponent : 29U;  // more for what is subnormal as a float
  const auto one = std::uint64_t{1} << too_many;
  const auto cut = bits & (one - 1U);
  return static_cast<float>(std::bit_cast<double>((bits - cut) | (cut != 0U ? one : 0U)));
}

}  // namespace core

/// A storage type: f64, f32, bf16, f16, or one that storage_traits was specialised for. No integers.
template <class T>
concept Scalar = requires { typename storage_traits<std::remove_const_t<T>>::accumulator; };

/// The element of what is written.
template <class T>
concept WritableScalar = Scalar<T> && !std::is_const_v<T>;

/// A type that sums are taken in.
template <class S>
concept Accumulator = std::same_as<S, float> || std::same_as<S, double>;

/// The type in which values of T are summed: double for f64, float for the rest.
template <Scalar T>
using accumulator_t = typename storage_traits<std::remove_const_t<T>>::accumulator;

/// Stored value to accumulator: exact.
template <Accumulator S, Scalar T>
  requires(sizeof(T) <= sizeof(S))
[[nodiscard]] MPIROUTER_ALWAYS_INLINE constexpr S widen(const T& x) noexcept {
  return static_cast<S>(storage_traits<T>::widen(x));
}

/// Accumulator to stored value, rounded once, to nearest even.
template <Scalar T, Accumulator S>
[[nodiscard]] MPIROUTER_ALWAYS_INLINE constexpr T narrow(S x) noexcept {
  if constexpr (sizeof(T) < sizeof(accumulator_t<T>) && sizeof(accumulator_t<T>) < sizeof(S)) {
    return storage_traits<T>::narrow(core::double_to_odd_float(x));
  } else {
    return storage_traits<T>::narrow(static_cast<accumulator_t<T>>(x));
  }
}

/// True unless x is NaN or infinite. Looks at the bits, so it also holds under -ffast-math.
template <Scalar T>
[[nodiscard]] MPIROUTER_ALWAYS_INLINE constexpr bool is_finite(const T& x) noexcept {
  return core::is_finite_bits(storage_traits<T>::widen(x));
}

MPIROUTER_END_TYPES

// ---- mpi_router/core/views.hpp
// What a vector and a matrix are: pointer, extents, named strides, and the memory space in the type. Nothing
// is owned, and nothing is guessed from shapes: every layout is built by a function that says its name.
//
// Everything here is inlined whatever the optimiser thinks: translation units with different instruction sets
// share these types, and a function left out of line would carry the instructions of one of them into the
// other.

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

// ---- mpi_router/core/experts.hpp
// What a batch of experts is: their gate matrices in every layout that is in use, each built by a named
// function.

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

// ---- mpi_router/core/concepts.hpp
// The seams: what an algorithm asks of an operator, of a backend, of an executor, and of a communicator.

MPIROUTER_BEGIN_TYPES

/// The Gram matrix M = AᵀA of one expert (D × D, symmetric, positive semidefinite), seen only through its
/// action. `apply(x, u)` writes the image u = xM and returns the energy xMxᵀ, so that tracking the Rayleigh
/// quotient costs nothing. x and u have dimension() elements of type `scalar` and do not overlap.
///
/// Dense experts (backend/), Eigen matrices, sparse ones, sharded sums and lambdas (core/operators.hpp) are
/// all models; so is any struct of the caller's with these three members.
template <class Op>
concept GramOperator =
    Accumulator<typename std::remove_cvref_t<Op>::scalar> &&
    requires(std::remove_reference_t<Op>& op, vector_view<const typename std::remove_cvref_t<Op>::scalar> x,
             vector_view<typename std::remove_cvref_t<Op>::scalar> u) {
      { op.dimension() } -> std::convertible_to<index_t>;
      { op.apply(x, u) } -> std::convertible_to<typename std::remove_cvref_t<Op>::scalar>;
    };

/// The type that an operator computes in.
template <GramOperator Op>
using scalar_of = typename std::remove_cvref_t<Op>::scalar;

/// A GramOperator that also shows its factor A (F × D): `project` writes the projection y = A x (F elements)
/// and `lift` writes u = y A (D elements). Gradients to A and sharding along D need it.
template <class Op>
concept FactoredGramOperator =
    GramOperator<Op> && requires(std::remove_reference_t<Op>& op, vector_view<const scalar_of<Op>> in,
                                 vector_view<scalar_of<Op>> out) {
      { op.ffn_dim() } -> std::convertible_to<index_t>;
      op.project(in, out);
      op.lift(in, out);
    };

/// An image whose scale was taken out: xM = u · 2^image_exponent, xMxᵀ = energy · 2^energy_exponent.
template <Accumulator S>
struct scaled_energy {
  S energy = 0;
  int image_exponent = 0;
  int energy_exponent = 0;
};

/// A GramOperator that can also be applied where squares of its elements leave the range of `scalar`.
/// Algorithms call `apply_scaled` only after `apply` over- or underflowed.
template <class Op>
concept ScalableGramOperator =
    GramOperator<Op> && requires(std::remove_reference_t<Op>& op, vector_view<const scalar_of<Op>> x,
                                 vector_view<scalar_of<Op>> u) {
      { op.apply_scaled(x, u) } -> std::same_as<scaled_energy<scalar_of<Op>>>;
    };

/// The experts as operators: `operators(i)` gives the GramOperator of expert i, by value or by reference. It
/// is called from any thread, for each expert once before a call begins and once a step, so that it should
/// do little; different i may be under way at once.
template <class F>
concept GramOperators = requires(const F& operators, index_t i) {
  { operators(i) } -> GramOperator;
};
/// The same with operators that show their factor A.
template <class F>
concept FactoredGramOperators = requires(const F& operators, index_t i) {
  { operators(i) } -> FactoredGramOperator;
};

namespace core {

/// For a type that is not GramOperators any scalar will do: the overload is constrained away, and a failure
/// here would be one error more for one mistake.
template <class F>
struct operators_scalar {
  using type = float;
};
template <GramOperators F>
struct operators_scalar<F> {
  using type = scalar_of<std::invoke_result_t<const F&, index_t>>;
};

}  // namespace core

/// The type that they compute in.
template <class F>
using scalar_of_operators = typename core::operators_scalar<F>::type;

/// A backend, which multiplies: the one-expert kernels over a dense view of any storage type T with sums in
/// S. x, y and u are contiguous or strided vectors of S; `apply` writes u = xAᵀA and returns the energy.
template <class B, class T, class S>
concept DenseBackend =
    requires(const B& backend, matrix_view<const T> a, vector_view<const S> x, vector_view<S> u) {
      { backend.apply(a, x, u) } -> std::same_as<S>;
      backend.project(a, x, u);
      backend.lift(a, x, u);
    };

/// An executor, which runs tasks: `execute(count, task)` calls task(i) once for each i in [0, count), in any
/// order, on any threads, and returns when all are done. Tasks never throw and never depend on each other, so
/// results are bitwise the same for every executor.
template <class E>
concept Executor = requires(const E& execute, void (&task)(index_t)) { execute(index_t{}, task); };

/// A communicator, which the caller owns and the library borrows: `rank()` of `size()` members, each of which
/// makes the same calls in the same order. `all_gather(mine, all)` gives every member the elements of all,
/// those of rank r from r · mine.size() on; mine has equally many on every rank, and `all` lies apart from
/// it. Both are contiguous, of float and of double: numbers stored in fewer bits are never sent.
/// distributed/mpi.hpp adapts MPI_Comm, distributed/loopback.hpp threads, distributed/communicator.hpp
/// lambdas.
template <class C>
concept Communicator =
    requires(const std::remove_cvref_t<C>& comm, vector_view<const float> mine, vector_view<float> all,
             vector_view<const double> my_doubles, vector_view<double> all_doubles) {
      { comm.rank() } -> std::convertible_to<index_t>;
      { comm.size() } -> std::convertible_to<index_t>;
      comm.all_gather(mine, all);
      comm.all_gather(my_doubles, all_doubles);
    };

/// A communicator with a sum of its own: `all_reduce_sum(sums)` replaces the elements by their sums over all
/// ranks, in whatever order it likes.
template <class C>
concept SummingCommunicator =
    Communicator<C> &&
    requires(const std::remove_cvref_t<C>& comm, vector_view<float> sums, vector_view<double> double_sums) {
      comm.all_reduce_sum(sums);
      comm.all_reduce_sum(double_sums);
    };

/// Runs the tasks in order on the calling thread.
struct serial_executor {
  template <class Task>
  constexpr void operator()(index_t count, Task&& task) const {
    for (index_t i = 0; i < count; ++i) {
      task(i);
    }
  }
};

MPIROUTER_END_TYPES

MPIROUTER_BEGIN
namespace detail {
using namespace core;  // expect, overlap: one set for every instruction set
}
MPIROUTER_END

// ---- mpi_router/core/vector_loops.hpp
// Loops over the elements of vectors, which the plain operators share. Sums are taken in an order that
// depends on the size alone.

#include <algorithm>
#include <array>
#include <cmath>

MPIROUTER_BEGIN

namespace detail {

/// 2^exponent as a product of two finite factors, so that it may lie outside the range of S.
template <Accumulator S>
struct power_of_two {
  S first;
  S second;
  explicit power_of_two(int exponent)
      : first(std::ldexp(S{1}, exponent / 2)), second(std::ldexp(S{1}, exponent - exponent / 2)) {}
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE S operator()(S x) const noexcept { return x * first * second; }
};

struct as_stored {
  template <Accumulator S>
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE S operator()(S x) const noexcept {
    return x;
  }
};

template <Accumulator S>
void fill_zero(const vector_view<S>& u) noexcept {
  for (index_t i = 0; i < u.size(); ++i) {
    u[i] = S{0};
  }
}

/// out = in, rounded where out is stored in fewer bits than S.
template <Accumulator S, class T, class O>
void copy_into(const vector_view<T>& in, const vector_view<O>& out) noexcept {
  for (index_t i = 0; i < in.size(); ++i) {
    out[i] = narrow<O>(widen<S>(in[i]));
  }
}

/// Σ over [0, n) in a power of two of lanes, which are added pairwise: add(sum, i) adds term i. Fixed lanes:
/// the compiler may vectorise without being allowed to reorder, and the rounding error grows with n / Lanes.
template <Accumulator S, std::size_t Lanes = 8, class Add>
[[nodiscard]] MPIROUTER_ALWAYS_INLINE S sum_in_lanes(index_t n, const Add& add) noexcept {
  std::array<S, Lanes> lane{};
  const index_t whole = n - n % index_t{Lanes};
  for (index_t i = 0; i < whole; i += index_t{Lanes}) {
    for (std::size_t k = 0; k < Lanes; ++k) {
      add(lane[k], i + static_cast<index_t>(k));
    }
  }
  for (index_t i = whole; i < n; ++i) {
    add(lane[static_cast<std::size_t>(i - whole)], i);
  }
  for (std::size_t half = Lanes / 2; half > 0; half /= 2) {
    for (std::size_t k = 0; k < half; ++k) {
      lane[k] += lane[k + half];
    }
  }
  return lane[0];
}

/// Σ term(i) over [0, n).
template <Accumulator S, class Term>
[[nodiscard]] MPIROUTER_ALWAYS_INLINE S sum_terms(index_t n, const Term& term) noexcept {
  return sum_in_lanes<S>(n, [&](S& sum, index_t i) { sum += term(i); });
}

/// f(stride of v, stride of w), which the compiler knows where both are contiguous.
template <class V, class W, class F>
MPIROUTER_ALWAYS_INLINE auto with_strides(const V& v, const W& w, const F& f) noexcept {
  constexpr std::integral_constant<index_t, 1> one;
  return v.is_contiguous() && w.is_contiguous() ? f(one, one) : f(v.stride(), w.stride());
}

/// ⟨load(a), load_x(x)⟩.
template <Accumulator S, std::size_t Lanes = 8, class T, class Load, class LoadX>
[[nodiscard]] S dot(const vector_view<const T>& a, const vector_view<const S>& x, const Load& load,
                    const LoadX& load_x) noexcept {
  return with_strides(a, x, [&](auto stride_a, auto stride_x) {
    return sum_in_lanes<S, Lanes>(a.size(), [&](S& sum, index_t i) {
      sum += load(widen<S>(a.data()[i * stride_a])) * load_x(x.data()[i * stride_x]);
    });
  });
}

/// u += alpha · load(a).
template <Accumulator S, class T, class Load>
void axpy(S alpha, const vector_view<const T>& a, const vector_view<S>& u, const Load& load) noexcept {
  with_strides(a, u, [&](auto stride_a, auto stride_u) {
    for (index_t i = 0; i < a.size(); ++i) {
      u.data()[i * stride_u] += alpha * load(widen<S>(a.data()[i * stride_a]));
    }
  });
}

/// The largest finite magnitude of the elements that it has seen.
template <Accumulator S>
class largest_magnitude {
 public:
  MPIROUTER_ALWAYS_INLINE void see(S x) noexcept {
    const S magnitude = std::abs(x);
    if (is_finite(magnitude)) {
      largest_ = std::max(largest_, magnitude);
    }
  }
  template <class T>
  void see(const vector_view<const T>& v) noexcept {
    for (index_t i = 0; i < v.size(); ++i) {
      see(widen<S>(v[i]));
    }
  }
  /// Whether there was none but zeros.
  [[nodiscard]] bool is_zero() const noexcept { return largest_ == S{0}; }
  /// In the sense of std::ilogb; 0 where there is none but zeros.
  [[nodiscard]] int exponent() const noexcept { return largest_ > S{0} ? std::ilogb(largest_) : 0; }

 private:
  S largest_{0};
};

/// Below this the squares that went into a sum may have lost bits to underflow.
template <Accumulator S>
inline constexpr S smallest_safe =
    std::numeric_limits<S>::min() / (std::numeric_limits<S>::epsilon() * std::numeric_limits<S>::epsilon());

/// apply_scaled of an A whose elements are divided by 2^a_exponent: gram(e) multiplies x / 2^e, writes the
/// image and returns the energy. Where x lies so nearly across all that A sees that these are lost although
/// x is not, it is called once more, with a larger x.
template <Accumulator S, class Gram>
[[nodiscard]] scaled_energy<S> scaled_gram(int a_exponent, const vector_view<const S>& x, const Gram& gram) {
  using limits = std::numeric_limits<S>;
  // So much that squares of what was below smallest_safe are far below the largest number.
  constexpr int larger = (limits::max_exponent - limits::min_exponent - 2 * limits::digits - 5) / 2;
  largest_magnitude<S> largest_x;
  largest_x.see(x);
  int x_exponent = largest_x.exponent();
  S energy = gram(x_exponent);
  if (energy <= smallest_safe<S> && !largest_x.is_zero()) {
    x_exponent -= larger;
    energy = gram(x_exponent);
  }
  return {energy, 2 * a_exponent + x_exponent, 2 * (a_exponent + x_exponent)};
}

}  // namespace detail

MPIROUTER_END

// ---- mpi_router/backend/reference.hpp
// Plain loops over any view: the default backend, and the oracle of every test.

MPIROUTER_BEGIN

namespace detail {

/// Whether walking along a row touches memory in larger steps than walking down a column.
template <class T>
[[nodiscard]] bool stored_by_columns(const matrix_view<const T>& a) noexcept {
  const auto distance = [](index_t stride) { return stride < 0 ? -stride : stride; };
  return distance(a.row_stride()) < distance(a.col_stride());
}

/// u = xAᵀA, returns ‖Ax‖². One read of A from memory: row by row, or by panels of columns that stay in
/// cache.
template <Accumulator S, class T, class Load, class LoadX>
[[nodiscard]] S gram_apply(const matrix_view<const T>& a, const vector_view<const S>& x,
                           const vector_view<S>& u, Load load, LoadX load_x) noexcept {
  fill_zero(u);
  S energy{0};
  if (!stored_by_columns(a)) {
    for (index_t f = 0; f < a.rows(); ++f) {
      const auto row = a.row(f);
      const S y = dot(row, x, load, load_x);
      axpy(y, row, u, load);
      energy += y * y;
    }
    return energy;
  }
  constexpr index_t panel = 64;
  std::array<S, panel> y_storage;
  for (index_t first = 0; first < a.rows(); first += panel) {
    const index_t count = std::min(panel, a.rows() - first);
    const auto columns = a.middle_rows(first, count).transposed();  // D rows of `count` contiguous elements
    const vector_view<S> y(y_storage.data(), count);
    fill_zero(y);
    for (index_t d = 0; d < columns.rows(); ++d) {
      axpy(load_x(x[d]), columns.row(d), y, load);
    }
    for (index_t d = 0; d < columns.rows(); ++d) {
      u[d] += dot(columns.row(d), vector_view<const S>(y), load, as_stored{});
    }
    energy += dot(vector_view<const S>(y), vector_view<const S>(y), as_stored{}, as_stored{});
  }
  return energy;
}

/// The exponent of the largest finite magnitude among the elements, in the sense of std::ilogb; 0 where there
/// is none.
template <Accumulator S, class T>
[[nodiscard]] int largest_exponent(const matrix_view<const T>& a) noexcept {
  largest_magnitude<S> largest;
  const auto m = stored_by_columns(a) ? a.transposed() : a;
  for (index_t f = 0; f < m.rows(); ++f) {
    largest.see(m.row(f));
  }
  return largest.exponent();
}

}  // namespace detail

/// The reference backend: any strides, any storage type, sums in S (float or double), one thread, no
/// scratch. O(F·D) time, A is read from memory once. Deterministic: the order of the sums depends on the
/// shape and layout alone.
struct reference {
  /// u = xM with M = AᵀA; returns the energy ‖Ax‖². A is [F, D], x and u have D elements.
  template <Scalar T, Accumulator S>
  S apply(matrix_view<const T> a, vector_view<const S> x, vector_view<S> u) const {
    return detail::gram_apply(a, x, u, detail::as_stored{}, detail::as_stored{});
  }

  /// The projection y = A x. x has D elements, y has F.
  template <Scalar T, Accumulator S>
  void project(matrix_view<const T> a, vector_view<const S> x, vector_view<S> y) const {
    multiply(a, x, y);
  }

  /// u = y A. y has F elements, u has D.
  template <Scalar T, Accumulator S>
  void lift(matrix_view<const T> a, vector_view<const S> y, vector_view<S> u) const {
    multiply(a.transposed(), y, u);
  }

  /// As apply, with A and x each divided by a power of two near their largest magnitude first, so that no
  /// product leaves the range of S: xM = u · 2^image_exponent.
  template <Scalar T, Accumulator S>
  scaled_energy<S> apply_scaled(matrix_view<const T> a, vector_view<const S> x, vector_view<S> u) const {
    const int a_exponent = detail::largest_exponent<S>(a);
    return detail::scaled_gram<S>(a_exponent, x, [&](int x_exponent) {
      return detail::gram_apply(a, x, u, detail::power_of_two<S>(-a_exponent),
                                detail::power_of_two<S>(-x_exponent));
    });
  }

 private:
  template <Scalar T, Accumulator S>
  static void multiply(matrix_view<const T> a, vector_view<const S> x, vector_view<S> y) {
    if (detail::stored_by_columns(a)) {
      detail::fill_zero(y);
      for (index_t d = 0; d < a.cols(); ++d) {
        detail::axpy(x[d], a.transposed().row(d), y, detail::as_stored{});
      }
    } else {
      for (index_t f = 0; f < a.rows(); ++f) {
        y[f] = detail::dot(a.row(f), x, detail::as_stored{}, detail::as_stored{});
      }
    }
  }
};

MPIROUTER_END

// ---- mpi_router/core/operands.hpp
// The vector that an operator of A, [F, D], reads and the one that it writes: their sizes, and that they lie
// apart.

MPIROUTER_BEGIN_TYPES
namespace core {

/// `matrix` begins the message: "A is".
template <class Op, class In, class Out>
MPIROUTER_ALWAYS_INLINE void expect_sizes(const char* what, const char* matrix, const Op& op, const In& in,
                                          index_t in_size, const Out& out, index_t out_size) {
  expect(in.size() == in_size && out.size() == out_size, what, ": ", matrix, " [F = ", op.ffn_dim(),
         ", D = ", op.dimension(), "], but the vectors have ", in.size(), " and ", out.size(),
         " elements, not ", in_size, " and ", out_size);
}

template <class Op, class In, class Out>
MPIROUTER_ALWAYS_INLINE void expect_operands(const char* what, const Op& op, const In& in, index_t in_size,
                                             const Out& out, index_t out_size) {
  expect_sizes(what, "A is", op, in, in_size, out, out_size);
  expect(!overlap(in, out), what, ": input and output overlap");
}

}  // namespace core
MPIROUTER_END_TYPES

// ---- mpi_router/backend/dense.hpp
// A dense gate matrix as an operator: the view says where A is, the backend says who multiplies.

MPIROUTER_BEGIN

/// M = AᵀA of one dense gate matrix, never formed. A model of GramOperator, FactoredGramOperator and
/// ScalableGramOperator. Build it with gram(). Holds the view, not the data.
///
/// `T` is the storage type of A, `S` the type of the vectors and of the sums, `Backend` the kernels.
template <Scalar T, Accumulator S = accumulator_t<T>, class Backend = reference>
  requires DenseBackend<Backend, T, S>
class dense_operator {
 public:
  using scalar = S;

  explicit dense_operator(matrix_view<const T> a, Backend backend = {}) : a_(a), backend_(backend) {}

  [[nodiscard]] const matrix_view<const T>& matrix() const noexcept { return a_; }
  [[nodiscard]] index_t dimension() const noexcept { return a_.cols(); }
  [[nodiscard]] index_t ffn_dim() const noexcept { return a_.rows(); }

  /// u = xM, returns xMxᵀ. O(F·D), one read of A. Throws usage_error where x or u does not have D elements,
  /// or they overlap.
  S apply(vector_view<const S> x, vector_view<S> u) const {
    detail::expect_operands("apply", *this, x, dimension(), u, dimension());
    return backend_.apply(a_, x, u);
  }
  /// Whether apply_two reads A once.
  [[nodiscard]] bool shares_reads() const {
    if constexpr (requires { backend_.template shares_reads<S>(a_); }) {
      return backend_.template shares_reads<S>(a_);
    } else {
      return false;
    }
  }
  /// Two images, and their energies: one read of A where the backend has it, else two. O(F·D). Throws
  /// usage_error where one of the four does not have D elements, or what is written overlaps another.
  std::array<S, 2> apply_two(const std::array<vector_view<const S>, 2>& x,
                             const std::array<vector_view<S>, 2>& u) const {
    for (std::size_t k = 0; k < 2; ++k) {
      detail::expect_operands("apply_two", *this, x[k], dimension(), u[k], dimension());
      detail::expect(!detail::overlap(x[1 - k], u[k]), "apply_two: input ", 1 - k, " and output ", k,
                     " overlap");
    }
    detail::expect(!detail::overlap(u[0], u[1]), "apply_two: the outputs overlap");
    if constexpr (requires { backend_.apply_two(a_, x, u); }) {
      return backend_.apply_two(a_, x, u);
    } else {
      return {backend_.apply(a_, x[0], u[0]), backend_.apply(a_, x[1], u[1])};
    }
  }
  /// y = A x.
  void project(vector_view<const S> x, vector_view<S> y) const {
    detail::expect_operands("project", *this, x, dimension(), y, ffn_dim());
    backend_.project(a_, x, y);
  }
  /// u = y A.
  void lift(vector_view<const S> y, vector_view<S> u) const {
    detail::expect_operands("lift", *this, y, ffn_dim(), u, dimension());
    backend_.lift(a_, y, u);
  }
  /// apply for elements whose squares leave the range of S: two reads of A by the reference loops.
  scaled_energy<S> apply_scaled(vector_view<const S> x, vector_view<S> u) const {
    detail::expect_operands("apply_scaled", *this, x, dimension(), u, dimension());
    return reference{}.apply_scaled(a_, x, u);
  }

 private:
  matrix_view<const T> a_;
  [[no_unique_address]] Backend backend_;
};

/// The operator of one gate matrix A, [F, D]. Sums are taken in accumulator_t<T>; `gram<double>(a)` takes
/// them in double whatever the storage.
template <class S = void, Scalar T, class Backend = reference>
  requires std::is_void_v<S> || Accumulator<S>
[[nodiscard]] auto gram(const matrix_view<T>& a, Backend backend = {}) {
  using sums = std::conditional_t<std::is_void_v<S>, accumulator_t<T>, S>;
  return dense_operator<std::remove_const_t<T>, sums, Backend>(a, backend);
}

MPIROUTER_END

// ---- mpi_router/backend/executors.hpp
// Executors, which run tasks on threads: OpenMP here, oneTBB in tbb.hpp, which needs that library.

MPIROUTER_BEGIN

#if defined(_OPENMP)
/// Spreads tasks over OpenMP threads: as many as the runtime gives, or `threads`. Needs the compiler's OpenMP
/// flag (mpi_router::openmp).
struct openmp_executor {
  int threads = 0;

  template <class Task>
  void operator()(index_t count, Task&& task) const {
    if (threads > 0) {
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
      for (index_t i = 0; i < count; ++i) {
        task(i);
      }
    } else {
#pragma omp parallel for schedule(dynamic, 1)
      for (index_t i = 0; i < count; ++i) {
        task(i);
      }
    }
  }
};
#endif

MPIROUTER_END

// ---- mpi_router/core/operators.hpp
// Operators made from other things: a callable, a shard whose partial images the caller sums, a latent
// expert.

#include <utility>

MPIROUTER_BEGIN

/// A GramOperator from a callable `energy = f(x, u)` over views of S. Build it with gram_operator().
template <Accumulator S, class Callable>
class callable_operator {
 public:
  using scalar = S;
  callable_operator(index_t dimension, Callable callable)
      : dimension_(dimension), callable_(std::move(callable)) {
    core::expect(dimension >= 0, "gram_operator: negative dimension ", dimension);
  }
  [[nodiscard]] index_t dimension() const noexcept { return dimension_; }
  S apply(vector_view<const S> x, vector_view<S> u) { return callable_(x, u); }

 private:
  index_t dimension_;
  Callable callable_;
};

/// Makes a lambda an operator: `gram_operator<double>(D, [&](auto x, auto u) { …; return energy; })`,
/// where u = xM is written and xMxᵀ returned.
template <Accumulator S, class Callable>
  requires std::is_invocable_r_v<S, Callable&, vector_view<const S>, vector_view<S>>
[[nodiscard]] callable_operator<S, Callable> gram_operator(index_t dimension, Callable callable) {
  return {dimension, std::move(callable)};
}

/// The partial form. The neurons of an expert (rows of A) are spread over shards, M = Σ_s A_sᵀA_s; this shard
/// gives its contribution to the image and to the energy, and `reduce(u, energy)` replaces both by their
/// sums over the shards, an all-reduce say, before anything is normalised. Every shard then goes on with the
/// same bits, if the reduction gives every shard the same bits.
///
/// Sharding along D goes through FactoredGramOperator: project, reduce the projection, lift.
template <GramOperator Shard, class Reduce>
  requires std::is_invocable_v<Reduce&, vector_view<scalar_of<Shard>>, scalar_of<Shard>&>
class reduced_operator {
 public:
  using scalar = scalar_of<Shard>;
  reduced_operator(Shard shard, Reduce reduce) : shard_(std::move(shard)), reduce_(std::move(reduce)) {}
  [[nodiscard]] index_t dimension() const noexcept { return shard_.dimension(); }
  scalar apply(vector_view<const scalar> x, vector_view<scalar> u) {
    scalar energy = shard_.apply(x, u);
    reduce_(u, energy);
    return energy;
  }

 private:
  Shard shard_;
  Reduce reduce_;
};

/// M of a latent expert, whose gate matrix A acts on P x: M = PᵀAᵀA P, and its factor is A P, which is never
/// formed. Build it with composed().
template <FactoredGramOperator Projection, GramOperator Inner>
  requires std::same_as<scalar_of<Projection>, scalar_of<Inner>>
class composed_operator {
 public:
  using scalar = scalar_of<Inner>;
  composed_operator(Projection projection, Inner inner, vector_view<scalar> scratch)
      : projection_(std::move(projection)), inner_(std::move(inner)), latent_dim_(projection_.ffn_dim()) {
    core::expect(static_cast<index_t>(inner_.dimension()) == latent_dim_, "composed: P is [L = ", latent_dim_,
                 ", D = ", dimension(), "], the inner operator has dimension ", inner_.dimension());
    core::expect(scratch.size() >= 2 * latent_dim_ && scratch.is_contiguous(), "composed: the scratch has ",
                 scratch.size(), " elements, not ", 2 * latent_dim_);
    latent_ = {scratch.data(), latent_dim_};
    image_ = {scratch.data() + latent_dim_, latent_dim_};
  }
  [[nodiscard]] index_t dimension() const noexcept { return projection_.dimension(); }
  scalar apply(vector_view<const scalar> x, vector_view<scalar> u) {
    projection_.project(x, latent_);
    const scalar energy = inner_.apply(latent_, image_);
    projection_.lift(image_, u);
    return energy;
  }

  [[nodiscard]] index_t ffn_dim() const noexcept
    requires FactoredGramOperator<Inner>
  {
    return inner_.ffn_dim();
  }
  void project(vector_view<const scalar> x, vector_view<scalar> y)
    requires FactoredGramOperator<Inner>
  {
    projection_.project(x, latent_);
    inner_.project(latent_, y);
  }
  void lift(vector_view<const scalar> y, vector_view<scalar> u)
    requires FactoredGramOperator<Inner>
  {
    inner_.lift(y, image_);
    projection_.lift(image_, u);
  }

 private:
  Projection projection_;
  Inner inner_;
  index_t latent_dim_;
  vector_view<scalar> latent_;  // P x
  vector_view<scalar> image_;   // P x M of the inner operator
};

/// The operator of a latent expert: `projection` shows P [L, D] by project and lift, as gram(P) does; `inner`
/// is that of A, of dimension L; scratch: 2 L contiguous elements, its own for each operator at work. What is
/// multiplied with must not be in it. Throws usage_error on sizes.
template <FactoredGramOperator Projection, GramOperator Inner>
[[nodiscard]] composed_operator<Projection, Inner> composed(Projection projection, Inner inner,
                                                            vector_view<scalar_of<Inner>> scratch) {
  return {std::move(projection), std::move(inner), scratch};
}

MPIROUTER_END

// ---- mpi_router/core/options.hpp
// Choices that host and GPU share: stated once, with one default each.

MPIROUTER_BEGIN_TYPES

/// Whether a gradient replaces what its buffer held or is added to it.
enum class gradient_mode : unsigned char { write, accumulate };

namespace core {

/// Whether what is there already counts. Throws usage_error where the mode is neither of the two.
[[nodiscard]] MPIROUTER_ALWAYS_INLINE constexpr bool accumulates(gradient_mode mode) {
  switch (mode) {
    case gradient_mode::write: return false;
    case gradient_mode::accumulate: return true;
  }
  unknown_value("gradient_mode", mode);
}

}  // namespace core

/// The radius C of the sphere that the rows r′ lie on: a plain number is C itself, scale_free gives C′/√N
/// (Eq. 7). By default C′ = 4, about the paper's.
class router_radius {
 public:
  constexpr router_radius() = default;
  MPIROUTER_ALWAYS_INLINE constexpr router_radius(double c) noexcept : value_(c), is_scale_free_(false) {}

  /// C = C′/√N, so that the logits keep their size when the number of experts changes. N counts the experts
  /// of all ranks: say total_experts where a call is given only some of them. Where it is 0, N is what the
  /// view knows (expert_batch_view::total_experts).
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE static constexpr router_radius scale_free(double c_prime,
                                                                                  index_t total_experts = 0) {
    core::expect(total_experts >= 0, "router_radius: ", total_experts, " experts in all");
    router_radius radius(c_prime);
    radius.is_scale_free_ = true;
    radius.total_experts_ = total_experts;
    return radius;
  }
  /// C itself.
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE static constexpr router_radius fixed(double c) noexcept {
    return {c};
  }

  /// C, for a call whose view knows of `num_experts` experts. Throws usage_error where total_experts is less.
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE double of(index_t num_experts) const {
    if (!is_scale_free_) {
      return value_;
    }
    core::expect(total_experts_ == 0 || total_experts_ >= num_experts, "router_radius: ", total_experts_,
                 " experts in all, where the call has ", num_experts);
    return value_ / std::sqrt(static_cast<double>(total_experts_ > 0 ? total_experts_ : num_experts));
  }

 private:
  double value_ = 4;
  bool is_scale_free_ = true;
  index_t total_experts_ = 0;
};

/// Through which steps the gradient reaches the gate matrices. The gradient to the router rows always goes
/// through all steps; where A is left out, M is a constant (detached) there.
enum class differentiate : unsigned char {
  all,   ///< A of every step: the exact gradient, as the authors' code has it
  last,  ///< A of the last step only
  none   ///< M detached everywhere: no gradient to A
};

/// How the batched step is taken.
struct router_options {
  router_radius radius{};
  index_t steps = 1;                                 ///< power steps from the rows given, each retracted
  degenerate_row degenerate = degenerate_row::keep;  ///< what a row without a step becomes
  differentiate through = differentiate::all;        ///< used by the backward
};

MPIROUTER_END_TYPES

// ---- mpi_router/core/stacked.hpp
// The sum of several Gram operators: α AᵀA + β UᵀU + γ W Wᵀ of an expert's gate, up and down projections is
// the one of the stacked matrix [√α A; √β U; √γ Wᵀ].

#include <tuple>

MPIROUTER_BEGIN

/// An operator and what it counts in a sum. Build it with weighted().
template <GramOperator Op>
struct weighted_operator {
  Op op;
  scalar_of<Op> weight = 1;
};

/// weight · M. Throws usage_error unless the weight is positive and finite.
template <GramOperator Op>
[[nodiscard]] weighted_operator<Op> weighted(Op op, scalar_of<Op> weight = 1) {
  core::expect(weight > 0 && std::isfinite(weight), "weighted: a weight of ", weight,
               " is not positive and finite");
  return {std::move(op), weight};
}

/// M = Σ_k w_k M_k, the Gram operator of the matrices √w_k A_k one below the other, which are never copied.
/// Build it with stacked().
///
/// apply: one application of each M_k, images and energies added in the order given. Where all M_k show their
/// factor so does this: projections are [√w_1 A_1 x; √w_2 A_2 x; …], with F = Σ F_k, and the gradients of a
/// factored backward are to the stacked matrix, so that those to A_k are √w_k times its rows of them.
template <GramOperator First, GramOperator... Rest>
  requires(std::same_as<scalar_of<First>, scalar_of<Rest>> && ...)
class stacked_operator {
  static constexpr bool is_factored = (FactoredGramOperator<First> && ... && FactoredGramOperator<Rest>);
  static constexpr bool is_scalable = (ScalableGramOperator<First> && ... && ScalableGramOperator<Rest>);

 public:
  using scalar = scalar_of<First>;

  /// Throws usage_error on operators of different dimensions and on scratch that has not D contiguous
  /// elements.
  stacked_operator(vector_view<scalar> scratch, weighted_operator<First> first,
                   weighted_operator<Rest>... rest)
      : part_(scratch.data(), std::min(scratch.size(), static_cast<index_t>(first.op.dimension()))),
        parts_(std::move(first), std::move(rest)...) {
    const index_t d = dimension();
    core::expect(scratch.size() >= d && scratch.is_contiguous(), "stacked: the scratch has ", scratch.size(),
                 " elements, not ", d);
    for_each([&](const auto& part) {
      const auto own = static_cast<index_t>(part.op.dimension());
      core::expect(own == d, "stacked: an operator has dimension ", own, ", the first has ", d);
    });
  }

  [[nodiscard]] index_t dimension() const { return static_cast<index_t>(std::get<0>(parts_).op.dimension()); }

  /// u = xM, returns xMxᵀ.
  scalar apply(vector_view<const scalar> x, vector_view<scalar> u) {
    auto& first = std::get<0>(parts_);
    scalar energy = first.weight * static_cast<scalar>(first.op.apply(x, u));
    scale(u, first.weight);
    for_each_after_first([&](auto& part) {
      energy += part.weight * static_cast<scalar>(part.op.apply(x, part_));
      add(u, part.weight);
    });
    return energy;
  }
  /// apply where squares leave the range of the scalar: in units of the largest of the parts.
  scaled_energy<scalar> apply_scaled(vector_view<const scalar> x, vector_view<scalar> u)
    requires is_scalable
  {
    auto& first = std::get<0>(parts_);
    auto sum = first.op.apply_scaled(x, u);
    sum.energy *= first.weight;
    scale(u, first.weight);
    for_each_after_first([&](auto& part) {
      const auto one = part.op.apply_scaled(x, part_);
      if (one.energy == scalar{0}) {
        return;  // no image, and an exponent that says nothing
      }
      if (sum.energy == scalar{0}) {
        sum = {scalar{0}, one.image_exponent, one.energy_exponent};
      }
      const int image = align(sum.image_exponent, one.image_exponent, u);
      add(u, std::ldexp(part.weight, image));
      const int most = std::max(sum.energy_exponent, one.energy_exponent);
      sum.energy = std::ldexp(sum.energy, sum.energy_exponent - most) +
                   part.weight * std::ldexp(one.energy, one.energy_exponent - most);
      sum.energy_exponent = most;
    });
    return sum;
  }

  [[nodiscard]] index_t ffn_dim() const
    requires is_factored
  {
    index_t sum = 0;
    for_each([&](const auto& part) { sum += static_cast<index_t>(part.op.ffn_dim()); });
    return sum;
  }
  /// y = the stacked matrix · x.
  void project(vector_view<const scalar> x, vector_view<scalar> y)
    requires is_factored
  {
    expect_neurons("project", y.size());
    index_t at = 0;
    for_each([&](auto& part) {
      const vector_view<scalar> own = slice(y, at, static_cast<index_t>(part.op.ffn_dim()));
      part.op.project(x, own);
      scale(own, std::sqrt(part.weight));
      at += own.size();
    });
  }
  /// u = y · the stacked matrix.
  void lift(vector_view<const scalar> y, vector_view<scalar> u)
    requires is_factored
  {
    expect_neurons("lift", y.size());
    core::expect(u.size() == dimension(), "stacked: lift to ", u.size(), " elements, not ", dimension());
    for (index_t i = 0; i < u.size(); ++i) {
      u[i] = scalar{0};
    }
    index_t at = 0;
    for_each([&](auto& part) {
      const auto own = slice(y, at, static_cast<index_t>(part.op.ffn_dim()));
      part.op.lift(own, part_);
      add(u, std::sqrt(part.weight));
      at += own.size();
    });
  }

 private:
  void expect_neurons(const char* what, index_t size) const
    requires is_factored
  {
    core::expect(size == ffn_dim(), "stacked: ", what, " of ", size, " neurons, not ", ffn_dim());
  }

  /// Brings u and its exponent to the larger of two; returns the exponent that the other image is then times.
  static int align(int& exponent, int other, const vector_view<scalar>& u) {
    if (other > exponent) {
      scale(u, std::ldexp(scalar{1}, exponent - other));
      exponent = other;
    }
    return other - exponent;
  }
  static void scale(const vector_view<scalar>& v, scalar factor) {
    for (index_t i = 0; i < v.size(); ++i) {
      v[i] *= factor;
    }
  }
  void add(const vector_view<scalar>& u, scalar weight) const {
    for (index_t i = 0; i < u.size(); ++i) {
      u[i] += weight * part_[i];
    }
  }
  template <class T>
  static vector_view<T> slice(const vector_view<T>& v, index_t first, index_t count) {
    return {count > 0 ? v.data() + first * v.stride() : v.data(), count, v.stride()};
  }
  template <class F>
  void for_each(const F& f) {
    std::apply([&](auto&... part) { (f(part), ...); }, parts_);
  }
  template <class F>
  void for_each(const F& f) const {
    std::apply([&](const auto&... part) { (f(part), ...); }, parts_);
  }
  template <class F>
  void for_each_after_first(const F& f) {
    std::apply([&](auto&, auto&... part) { (f(part), ...); }, parts_);
  }

  vector_view<scalar> part_;  // the image of one of them
  std::tuple<weighted_operator<First>, weighted_operator<Rest>...> parts_;
};

/// The operator of Σ_k w_k M_k; scratch: D contiguous elements, its own for each operator at work, and none
/// of what is multiplied. Throws usage_error on sizes.
///
///   auto m = stacked(scratch, weighted(gram(gate)), weighted(gram(up)), weighted(gram(down_transposed)));
template <GramOperator First, GramOperator... Rest>
[[nodiscard]] stacked_operator<First, Rest...> stacked(vector_view<scalar_of<First>> scratch,
                                                       weighted_operator<First> first,
                                                       weighted_operator<Rest>... rest) {
  return {scratch, std::move(first), std::move(rest)...};
}

MPIROUTER_END

// ---- mpi_router/manifold/scaled.hpp
// Numbers and norms with their scale taken out, so that the method works wherever its input can be stored.

MPIROUTER_BEGIN_TYPES

/// value · 2^exponent: what may lie outside of the range of S. A plain number is one.
template <Accumulator S>
struct scaled {
  S value{0};
  int exponent = 0;

  constexpr scaled() = default;
  MPIROUTER_ALWAYS_INLINE constexpr scaled(S number, int power = 0) noexcept
      : value(number), exponent(power) {}

  /// As a number of S: infinite or 0 where S cannot hold it.
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE S unscaled() const noexcept { return std::ldexp(value, exponent); }
  /// The same number with |value| in [1, 2), so that products and quotients stay in range. What is zero or
  /// not finite stays as it is.
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE scaled normalized() const noexcept {
    if (value == S{0} || !is_finite(value)) return *this;
    const int power = std::ilogb(value);
    return {std::ldexp(value, -power), exponent + power};
  }
  MPIROUTER_ALWAYS_INLINE friend scaled operator*(scaled a, scaled b) noexcept {
    return {a.value * b.value, a.exponent + b.exponent};
  }
  MPIROUTER_ALWAYS_INLINE friend scaled operator/(scaled a, scaled b) noexcept {
    return {a.value / b.value, a.exponent - b.exponent};
  }
};

MPIROUTER_END_TYPES

MPIROUTER_BEGIN
namespace detail {

/// A vector times a number: its element i is factor · x_i. The power of two of the factor is applied in two
/// halves, so that it may itself be out of range.
template <Accumulator S, class T = S>
class scaled_vector {
 public:
  scaled_vector(const vector_view<const T>& x, const scaled<S>& factor) noexcept
      : scaled_vector(factor.normalized(), x) {}
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE S operator[](index_t i) const noexcept {
    return widen<S>(x_[i]) * first_ * second_;
  }

 private:
  scaled_vector(const scaled<S>& factor, const vector_view<const T>& x) noexcept
      : x_(x),
        first_(std::ldexp(factor.value, factor.exponent / 2)),
        second_(std::ldexp(S{1}, factor.exponent - factor.exponent / 2)) {}

  vector_view<const T> x_;
  S first_;
  S second_;
};

/// f(element) with element(i) = x_i in S, and without the stride where that is 1, so that loops vectorise.
template <Accumulator S, class T, class F>
[[nodiscard]] auto with_elements(const vector_view<T>& x, const F& f) noexcept {
  return x.is_contiguous() ? f([data = x.data()](index_t i) { return widen<S>(data[i]); })
                           : f([&x](index_t i) { return widen<S>(x[i]); });
}

/// The bits of the largest magnitude of n elements: NaN and infinity come out above every number, also under
/// -ffast-math.
template <Accumulator S, class Element>
[[nodiscard]] MPIROUTER_ALWAYS_INLINE auto largest_magnitude_bits(index_t n,
                                                                  const Element& element) noexcept {
  using bits = std::conditional_t<std::same_as<S, float>, std::uint32_t, std::uint64_t>;
  constexpr bits magnitude = static_cast<bits>(~bits{0}) >> 1;
  bits largest{0};
  for (index_t i = 0; i < n; ++i) {
    largest = std::max(largest, std::bit_cast<bits>(element(i)) & magnitude);
  }
  return largest;
}
template <Accumulator S>
[[nodiscard]] auto largest_magnitude_bits(const vector_view<const S>& x) noexcept {
  return with_elements<S>(x,
                          [&x](const auto& element) { return largest_magnitude_bits<S>(x.size(), element); });
}

enum class magnitude : unsigned char { zero, finite, non_finite };

/// ‖x‖ with its scale taken out: value in [1, 2√n) for a finite x that is not zero.
template <Accumulator S>
struct scaled_norm {
  scaled<S> norm;
  magnitude kind = magnitude::zero;
};

template <Accumulator S, class Element>
[[nodiscard]] MPIROUTER_ALWAYS_INLINE scaled_norm<S> norm_of(index_t n, const Element& element) noexcept {
  const auto bits = largest_magnitude_bits<S>(n, element);
  const auto largest = std::bit_cast<S>(bits);
  if (!is_finite(largest)) {
    return {largest, magnitude::non_finite};
  }
  if (bits == 0) {
    return {};
  }
  const int exponent = std::ilogb(largest);
  const power_of_two<S> unscale(-exponent);
  const S squares = sum_terms<S>(n, [&](index_t i) {
    const S value = unscale(element(i));
    return value * value;
  });
  return {{std::sqrt(squares), exponent}, magnitude::finite};
}
template <Accumulator S, class T>
[[nodiscard]] scaled_norm<S> norm(const vector_view<T>& x) noexcept {
  return with_elements<S>(x, [&x](const auto& element) { return norm_of<S>(x.size(), element); });
}

/// out = factor · x; out may be x itself.
template <Accumulator S>
void scale_into(const std::type_identity_t<vector_view<const S>>& x, const vector_view<S>& out,
                const std::type_identity_t<scaled<S>>& factor) noexcept {
  // What two finite factors do not reach: a third, lest an infinite one makes NaN of a zero.
  constexpr int most = 2 * (std::numeric_limits<S>::max_exponent - 1);
  if (const scaled<S> whole = factor.normalized(); whole.exponent > most) {
    scale_into(x, out, {whole.value, whole.exponent - most});
    return scale_into(out, out, {S{1}, most});
  }
  const scaled_vector<S> product(x, factor);
  for (index_t i = 0; i < x.size(); ++i) {
    out[i] = product[i];
  }
}

}  // namespace detail
MPIROUTER_END

// ---- mpi_router/manifold/sphere.hpp
// The sphere of radius C on which the rows r′ lie: retraction, tangent space, distance (Eq. 5).

MPIROUTER_BEGIN

namespace detail {
template <class V, class... W>
void expect_same_size(const char* what, const V& a, const W&... others) {
  (expect(a.size() == others.size(), what, ": vectors of ", a.size(), " and ", others.size(), " elements"),
   ...);
}
/// Elementwise work may be done in place, but not on vectors that are shifted against each other.
template <class V, class W>
void expect_in_place_or_apart(const char* what, const char* name, const V& in, const W& out) {
  const bool in_place = in.data() == out.data() && in.stride() == out.stride();
  expect(in_place || !overlap(in, out), what, ": ", name, " and the output overlap");
}
template <Accumulator S>
void expect_radius(const char* what, S radius) {
  expect(is_finite(radius) && radius > S{0}, what, ": the radius must be positive and finite, not ", radius);
}
template <Accumulator S>
[[nodiscard]] constexpr status row_status(const scaled_norm<S>& row) noexcept {
  switch (row.kind) {
    case magnitude::zero: return status::zero_row;
    case magnitude::finite: return status::ok;
    case magnitude::non_finite: break;
  }
  return status::non_finite;
}
}  // namespace detail

/// Retraction onto the sphere (Eq. 5): out = C · x / ‖x‖. out may be x. O(D).
/// A zero or non-finite x is copied as it is and named by the status. Throws usage_error on sizes that
/// differ, that overlap without being the same, or on a radius that is not positive.
template <Accumulator S>
status retract(std::type_identity_t<vector_view<const S>> x, vector_view<S> out,
               std::type_identity_t<S> radius) {
  detail::expect_same_size("retract", x, out);
  detail::expect_radius("retract", radius);
  detail::expect_in_place_or_apart("retract", "the vector", x, out);
  const auto length = detail::norm<S>(x);
  const status result = detail::row_status(length);
  detail::scale_into(x, out, result == status::ok ? radius / length.norm : S{1});
  return result;
}

/// Orthogonal projection onto the tangent space at `base`: out = v − (v · b̂) b̂ with b̂ = base / ‖base‖.
/// out may be v, or base. O(D). At a zero base every direction is tangent: out = v. Throws usage_error on
/// sizes that differ and on vectors that overlap without being the same.
template <Accumulator S>
status project_to_tangent(std::type_identity_t<vector_view<const S>> base,
                          std::type_identity_t<vector_view<const S>> v, vector_view<S> out) {
  detail::expect_same_size("project_to_tangent", base, v, out);
  detail::expect_in_place_or_apart("project_to_tangent", "the base", base, out);
  detail::expect_in_place_or_apart("project_to_tangent", "the vector", v, out);
  const auto length = detail::norm<S>(base);
  if (length.kind != detail::magnitude::finite) {
    detail::scale_into(v, out, S{1});
    return detail::row_status(length);
  }
  const detail::scaled_vector<S> unit(base, S{1} / length.norm);
  const S along = detail::sum_terms<S>(v.size(), [&](index_t i) { return v[i] * unit[i]; });
  for (index_t i = 0; i < v.size(); ++i) {
    out[i] = v[i] - along * unit[i];
  }
  return status::ok;
}

/// The angle between x and y in radians, in [0, π]. Accurate for angles near 0 and π too, where the arc
/// cosine is not (Kahan: 2 atan2(‖x̂ − ŷ‖, ‖x̂ + ŷ‖)). NaN where either is zero or non-finite. O(D).
template <Accumulator S>
[[nodiscard]] S angle(vector_view<const S> x, std::type_identity_t<vector_view<const S>> y) {
  detail::expect_same_size("angle", x, y);
  const auto nx = detail::norm<S>(x);
  const auto ny = detail::norm<S>(y);
  if (nx.kind != detail::magnitude::finite || ny.kind != detail::magnitude::finite) {
    return std::numeric_limits<S>::quiet_NaN();
  }
  const detail::scaled_vector<S> unit_x(x, S{1} / nx.norm);
  const detail::scaled_vector<S> unit_y(y, S{1} / ny.norm);
  const auto squared = [](S value) { return value * value; };
  const S apart = detail::sum_terms<S>(x.size(), [&](index_t i) { return squared(unit_x[i] - unit_y[i]); });
  const S together =
      detail::sum_terms<S>(x.size(), [&](index_t i) { return squared(unit_x[i] + unit_y[i]); });
  return S{2} * std::atan2(std::sqrt(apart), std::sqrt(together));
}

/// The angle between the lines through x and y, in [0, π/2]: a singular direction has no sign.
template <Accumulator S>
[[nodiscard]] S line_angle(vector_view<const S> x, std::type_identity_t<vector_view<const S>> y) {
  constexpr S pi = static_cast<S>(3.141592653589793238462643383279502884L);
  const S theta = angle<S>(x, y);
  return theta > pi / S{2} ? pi - theta : theta;
}

/// Geodesic distance of the directions of x and y on the sphere of radius C: C times the angle.
template <Accumulator S>
[[nodiscard]] S geodesic_distance(vector_view<const S> x, std::type_identity_t<vector_view<const S>> y,
                                  std::type_identity_t<S> radius = S{1}) {
  detail::expect_radius("geodesic_distance", radius);
  return radius * angle<S>(x, y);
}

MPIROUTER_END

// ---- mpi_router/manifold/image.hpp
// The multiply half of the step. It leaves the image of a row without its scale, h = r̂M/ρ, of which the rest
// is plain arithmetic:
//
//   cos ψ = 1/‖h‖    tan ψ = ‖h − r̂‖    step C h/‖h‖    ascent r̂ + t(h − r̂), t = ηρ    gradient g = ρ(h − r̂)
//
// Weights of any magnitude work, for ρ has an exponent of its own; so has h, where the row lies nearly across
// all that A sees.

MPIROUTER_BEGIN_TYPES

/// What is known of a row r and its image rM, besides the image itself.
template <Accumulator S>
struct row_image {
  status state = status::ok;  ///< ok, zero_row, zero_image or non_finite; the rest is told of `ok` alone
  scaled<S> row_norm{};       ///< ‖r‖
  scaled<S> image_norm{};     ///< ‖rM‖
  scaled<S> rayleigh{};       ///< ρ = rMrᵀ / ‖r‖² (Eq. 3)
  int exponent = 0;           ///< rM = u · 2^exponent, u the image in memory

  /// ‖h‖ = ‖r̂M‖/ρ = 1/cos ψ, where ψ is the angle between the row and its image; infinite where S cannot
  /// hold it.
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE S length() const noexcept { return scaled_length().unscaled(); }
  /// The same whatever its size.
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE scaled<S> scaled_length() const noexcept {
    return image_norm / (rayleigh * row_norm);
  }
  /// cos ψ, in [0, 1]: 0 only where S cannot hold it.
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE S cosine() const noexcept {
    return std::min((S{1} / scaled_length()).unscaled(), S{1});
  }
};

MPIROUTER_END_TYPES

MPIROUTER_BEGIN
namespace detail {

/// r̂ = r/‖r‖, times 2^power.
template <Accumulator S, class T>
[[nodiscard]] scaled_vector<S, std::remove_const_t<T>> direction_of(const vector_view<T>& row,
                                                                    const scaled<S>& row_norm,
                                                                    int power = 0) noexcept {
  return {row, scaled<S>(S{1}, power) / row_norm};
}

/// ‖h‖ is held as a number of S up to this power of two, so that ‖h‖² is one too.
template <Accumulator S>
inline constexpr int longest_image = std::same_as<S, float> ? 60 : 500;

/// h = r̂M/ρ of the image in memory, and r̂ beside it, both times 2^-exponent. The exponent is 0 except for
/// a row so nearly across all that A sees that h would be too long for S.
template <Accumulator S, class U, class R>
struct scale_free_image {
  vector_view<const R> row;
  scaled<S> row_norm;
  int exponent;
  scaled_vector<S, U> h;
  scaled_vector<S, R> r;

  /// g/ρ = h − r̂.
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE S tangent(index_t i) const noexcept { return h[i] - r[i]; }
  /// tan ψ = ‖h − r̂‖. Summed elementwise: ‖h‖² − 1 would cancel.
  [[nodiscard]] scaled<S> tan(index_t n) const noexcept {
    return norm_of<S>(n, [&](index_t i) { return tangent(i); }).norm * scaled<S>(S{1}, exponent);
  }
  /// out = g = ρ(h − r̂); out may be the image.
  void gradient(const scaled<S>& rho, const vector_view<S>& out) const noexcept {
    for (index_t i = 0; i < out.size(); ++i) {
      out[i] = tangent(i);
    }
    scale_into(out, out, rho * scaled<S>(S{1}, exponent));
  }
  /// out = x · 2^-power, x = r̂ + t(h − r̂); returns the power, which is 0 except where h is long. out may be
  /// the image.
  [[nodiscard]] int ascent(const scaled<S>& t, const vector_view<S>& out) const noexcept {
    const scaled<S> step = scaled<S>(t.value, t.exponent + exponent).normalized();
    const int power = exponent > 0 && step.value != S{0} ? std::max(0, step.exponent) : 0;
    const auto start = direction_of(row, row_norm, -power);
    const S along = std::ldexp(step.value, step.exponent - power);
    for (index_t i = 0; i < out.size(); ++i) {
      out[i] = start[i] + along * tangent(i);
    }
    return power;
  }
};
template <Accumulator S, class U, class R>
[[nodiscard]] scale_free_image<S, std::remove_const_t<U>, std::remove_const_t<R>> scale_free(
    const vector_view<U>& u, const vector_view<R>& row, const row_image<S>& image) noexcept {
  const int exponent = std::max(0, image.scaled_length().normalized().exponent - longest_image<S>);
  return {row,
          image.row_norm,
          exponent,
          {u, scaled<S>(S{1}, image.exponent - exponent) / (image.rayleigh * image.row_norm)},
          direction_of(row, image.row_norm, -exponent)};
}

/// An image shorter than this has elements that are subnormal, or none: it counts as zero.
template <Accumulator S>
inline constexpr S smallest_image = std::numeric_limits<S>::min() / std::numeric_limits<S>::epsilon();

/// Stands for an operator that cannot multiply out of range.
struct never_again {};

/// ⟨r, u⟩ of finite vectors, each product with an exponent of its own.
template <Accumulator S, class R, class U>
[[nodiscard]] scaled<S> scaled_dot(const vector_view<R>& row, const vector_view<U>& u) noexcept {
  const auto product = [&](index_t i) {
    const auto r = scaled<S>(widen<S>(row[i])).normalized();
    return r * scaled<S>(widen<S>(u[i])).normalized();
  };
  int largest = std::numeric_limits<int>::min();
  for (index_t i = 0; i < row.size(); ++i) {
    if (const auto p = product(i); p.value != S{0}) largest = std::max(largest, p.exponent);
  }
  return {sum_terms<S>(row.size(),
                       [&](index_t i) {
                         const auto p = product(i);
                         return p.value == S{0} ? S{0} : std::ldexp(p.value, p.exponent - largest);
                       }),
          largest};
}

/// ⟨r̂, û⟩.
template <Accumulator S, class R, class U>
[[nodiscard]] scaled<S> cosine_between(const vector_view<R>& row, scaled<S> row_norm, const vector_view<U>& u,
                                       scaled<S> norm) noexcept {
  const scaled_vector<S, std::remove_const_t<R>> r(row, S{1} / row_norm);
  const scaled_vector<S, std::remove_const_t<U>> direction(u, S{1} / norm);
  const S cosine = sum_terms<S>(row.size(), [&](index_t i) { return r[i] * direction[i]; });
  return std::abs(cosine) > smallest_safe<S> ? scaled<S>(cosine) : scaled_dot<S>(row, u) / (row_norm * norm);
}

/// What is known of the image u of a row from its energy. Where squares have left the range of S, `again()`
/// multiplies anew and gives a scaled_energy; without it, ρ comes from the image.
template <Accumulator S, class R, class U, class Again>
[[nodiscard]] row_image<S> measure_image(const vector_view<R>& row, const vector_view<U>& u, S energy,
                                         const Again& again) {
  const auto row_norm = norm<S>(row);
  if (row_norm.kind != magnitude::finite) return {.state = row_status(row_norm)};
  auto image_norm = norm<S>(u);
  scaled_energy<S> scale{energy, 0, 0};
  bool energy_holds = is_finite(energy) && energy > smallest_safe<S>;
  if constexpr (!std::same_as<Again, never_again>) {
    const bool image_holds =
        image_norm.kind == magnitude::finite && image_norm.norm.unscaled() > smallest_safe<S>;
    if (!energy_holds || !image_holds) {
      scale = again();
      image_norm = norm<S>(u);
      energy_holds = is_finite(scale.energy) && scale.energy > smallest_image<S>;
    }
  }
  if (image_norm.kind == magnitude::non_finite) {
    return {.state = status::non_finite};
  }
  if (image_norm.kind == magnitude::zero || image_norm.norm.unscaled() < smallest_image<S>) {
    return {.state = status::zero_image};
  }
  row_image<S> image{.row_norm = row_norm.norm,
                     .image_norm = image_norm.norm * scaled<S>(S{1}, scale.image_exponent),
                     .exponent = scale.image_exponent};
  image.rayleigh = scaled<S>(scale.energy, scale.energy_exponent) / (image.row_norm * image.row_norm);
  if (!energy_holds) {
    const auto cosine = cosine_between<S>(row, row_norm.norm, u, image_norm.norm);
    if (!(cosine.value > S{0})) {
      return {.state = status::zero_image};
    }
    image.rayleigh = image.image_norm / image.row_norm * cosine;  // ρ = ‖r̂M‖ ⟨r̂, û⟩
  }
  image.rayleigh = image.rayleigh.normalized();
  return image;
}

template <GramOperator Op>
[[nodiscard]] row_image<scalar_of<Op>> image_of_row(const char* what, Op& op,
                                                    vector_view<const scalar_of<Op>> row,
                                                    vector_view<scalar_of<Op>> u) {
  const auto dimension = static_cast<index_t>(op.dimension());
  expect(row.size() == dimension && u.size() == dimension, what, ": the operator has dimension ", dimension,
         ", the row ", row.size(), " and the output ", u.size(), " elements");
  expect(!overlap(row, u), what, ": the row and the output overlap");
  const auto energy = static_cast<scalar_of<Op>>(op.apply(row, u));
  if constexpr (ScalableGramOperator<Op>) {
    return measure_image(row, u, energy, [&] { return op.apply_scaled(row, u); });
  } else {
    return measure_image(row, u, energy, never_again{});
  }
}

}  // namespace detail

/// The multiply half of a step alone: writes the image u and tells what is known of it; retract_image
/// (power_step.hpp) is the other half. One application of M, one more where the first left the range of S and
/// the operator can; O(D). Throws usage_error on sizes and overlap.
template <GramOperator Op>
[[nodiscard]] row_image<scalar_of<Op>> image_of_row(Op&& op, vector_view<const scalar_of<Op>> row,
                                                    vector_view<scalar_of<Op>> u) {
  return detail::image_of_row("image_of_row", op, row, u);
}

MPIROUTER_END

// ---- mpi_router/manifold/momentum.hpp
// Momentum: x_{k+1} = M x_k − β x_{k−1} (Xu et al. 2018, "Accelerated stochastic power iteration").

MPIROUTER_BEGIN_TYPES

/// Which β. With the best one, σ₂⁴/4, about √ of the number of steps is needed.
template <Accumulator S>
struct momentum {
  enum class kind : unsigned char { none, fixed, estimated };
  kind rule = kind::none;
  S beta = 0;  ///< for `fixed`: 0 ≤ β < σ₁⁴/4

  [[nodiscard]] MPIROUTER_ALWAYS_INLINE static constexpr momentum none() { return {}; }
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE static constexpr momentum fixed(S beta) {
    return {kind::fixed, beta};
  }
  /// β from the rate at which the residual falls, taken anew every few steps. A heuristic.
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE static constexpr momentum estimated() {
    return {kind::estimated, S{0}};
  }
};

MPIROUTER_END_TYPES

MPIROUTER_BEGIN
namespace detail {

/// Whether a rule looks at the iterate before. Throws usage_error where it is none of the rules.
template <Accumulator S>
[[nodiscard]] constexpr bool has_momentum(const momentum<S>& m) {
  switch (m.rule) {
    case momentum<S>::kind::none: return false;
    case momentum<S>::kind::fixed:
    case momentum<S>::kind::estimated: return true;
  }
  core::unknown_value("momentum", m.rule);
}

/// Follows how fast the residual falls and infers σ₂²: with momentum β the component along an eigenvalue σᵢ²
/// of M grows by μᵢ = (σᵢ² + √(σᵢ⁴ − 4β))/2 a step, so that an observed ratio μ₂/μ₁ gives σ₂² = μ₂ + β/μ₂.
/// Everything relative to ρ.
template <Accumulator S>
class momentum_estimate {
 public:
  explicit momentum_estimate(const momentum<S>& rule) : rule_(rule) {}

  /// β/ρ to use after an iterate with this relative residual.
  scaled<S> beta_over_rho(index_t step, const scaled<S>& rho, S relative_residual) {
    switch (rule_.rule) {
      case momentum<S>::kind::none: return S{0};
      case momentum<S>::kind::fixed: return rule_.beta / rho;
      case momentum<S>::kind::estimated: break;
    }
    if (step % period == 0) {
      if (step > 0 && relative_residual < static_cast<S>(0.9) * mark_ && relative_residual > S{0}) {
        const S ratio = std::pow(relative_residual / mark_, S{1} / S{period});
        const S mu_1 = (S{1} + std::sqrt(S{1} - S{4} * beta_)) / S{2};
        const S mu_2 = std::max(ratio * mu_1, std::sqrt(beta_));
        const S sigma_2_squared = std::min(mu_2 + beta_ / mu_2, static_cast<S>(0.999));
        beta_ = std::max(beta_, sigma_2_squared * sigma_2_squared / S{4});
      }
      mark_ = relative_residual;
    }
    return beta_ * rho;
  }

 private:
  static constexpr index_t period = 5;
  momentum<S> rule_;
  S beta_ = 0;
  S mark_ = 0;
};

/// The term −β x_{k−1} beside an image.
template <Accumulator S>
class momentum_term {
 public:
  /// `previous` has room for D elements where there is momentum, and is not used otherwise.
  momentum_term(const momentum<S>& rule, S* previous, index_t dimension) : estimate_(rule) {
    if (has_momentum(rule)) previous_ = {previous, dimension};
  }

  [[nodiscard]] bool exists() const noexcept { return previous_.size() != 0; }

  /// next = h − β x_{k−1}, in the scale in which x_k is 2^-both.exponent long and M is M/ρ.
  void add(index_t step, const row_image<S>& image, S tangent, const scale_free_image<S, S, S>& both,
           const vector_view<S>& next) {
    const scaled<S> beta = estimate_.beta_over_rho(step, image.rayleigh, tangent);
    const S pull = step == 0 ? S{0} : (beta / growth_ * scaled<S>(S{1}, -both.exponent)).unscaled();
    for (index_t i = 0; i < next.size(); ++i) {
      next[i] = both.h[i] - pull * (step == 0 ? S{0} : previous_[i]);
    }
  }
  /// x_k is about to become x_{k+1} = next/‖next‖, next_norm in the scale in which x_k is a unit vector.
  void remember(const vector_view<const S>& row, const row_image<S>& image, const scaled<S>& next_norm) {
    const auto unit_row = direction_of(row, image.row_norm);
    for (index_t i = 0; i < previous_.size(); ++i) {
      previous_[i] = unit_row[i];
    }
    growth_ = next_norm * image.rayleigh;
  }

 private:
  momentum_estimate<S> estimate_;
  vector_view<S> previous_;  // x_{k−1}, a unit vector
  scaled<S> growth_;         // ρ_{k−1} ‖next_{k−1}‖
};

}  // namespace detail
MPIROUTER_END

// ---- mpi_router/manifold/power_iteration.hpp
// Many steps: tracking of the Rayleigh quotient, stop rules, momentum, a trace.

#include <optional>

MPIROUTER_BEGIN_TYPES

/// Why an iteration ended.
enum class stop_reason : unsigned char {
  residual,    ///< ‖g‖ ≤ residual_tolerance · ρ
  angle,       ///< the next step would move the row by angle_tolerance or less
  max_steps,   ///< max_steps were taken
  callback,    ///< the callback returned false
  degenerate,  ///< the row has no step; see the status
};

[[nodiscard]] MPIROUTER_ALWAYS_INLINE constexpr std::string_view to_string(stop_reason reason) noexcept {
  switch (reason) {
    case stop_reason::residual: return "residual";
    case stop_reason::angle: return "angle";
    case stop_reason::max_steps: return "max_steps";
    case stop_reason::callback: return "callback";
    case stop_reason::degenerate: return "degenerate";
  }
  return "unknown";
}

/// When an iteration stops, and how it goes.
template <Accumulator S>
struct iteration_options {
  index_t max_steps = 1000;
  S residual_tolerance = 0;  ///< relative to ρ; 0: this rule is off
  S angle_tolerance = 0;     ///< radians between one iterate and the next; 0: this rule is off
  S radius = 1;              ///< of the sphere that the row ends on
  momentum<S> acceleration{};
};

/// What is known of iterate k; the callback sees one for k = 0 (the start), 1, ….
template <Accumulator S>
struct iteration_record {
  index_t step = 0;
  S rayleigh = 0;           ///< ρ of iterate k
  S residual = 0;           ///< ‖g‖ of iterate k
  S relative_residual = 0;  ///< ‖g‖ / ρ
  S step_angle = 0;         ///< radians from iterate k to iterate k + 1
};

/// The record of the row that is returned, why the iteration ended there, and what it cost.
template <Accumulator S>
struct iteration_result {
  status state = status::ok;
  stop_reason reason = stop_reason::max_steps;
  index_t steps = 0;         ///< steps that the returned row is away from the start
  index_t applications = 0;  ///< of M: one a step, and one to judge the last iterate
  iteration_record<S> last{};
};

MPIROUTER_END_TYPES

MPIROUTER_BEGIN

/// Elements of S that power_iteration needs as scratch for dimension D.
template <Accumulator S>
[[nodiscard]] constexpr index_t power_iteration_workspace(index_t dimension,
                                                          const iteration_options<S>& options) {
  return detail::has_momentum(options.acceleration) ? 2 * dimension : dimension;
}

namespace detail {

template <Accumulator S>
void expect_iteration(const vector_view<S>& row, const vector_view<S>& workspace,
                      const iteration_options<S>& options) {
  const index_t needed = power_iteration_workspace(row.size(), options);
  expect_radius("power_iteration", options.radius);
  expect(options.max_steps >= 0, "power_iteration: max_steps is ", options.max_steps);
  expect(is_finite(options.acceleration.beta) && options.acceleration.beta >= S{0},
         "power_iteration: beta must be finite and not negative, not ", options.acceleration.beta);
  expect(workspace.size() >= needed && workspace.is_contiguous(), "power_iteration: the workspace has ",
         workspace.size(), " elements, not ", needed);
  expect(!overlap(row, vector_view<S>(workspace.data(), needed)),
         "power_iteration: the row and the workspace overlap");
}

/// Calls the callback; false where it returned that.
template <class Callback, Accumulator S>
[[nodiscard]] bool call_back(Callback& callback, const iteration_record<S>& record,
                             vector_view<const S> row) {
  if constexpr (std::is_convertible_v<decltype(callback(record, row)), bool>) {
    return callback(record, row);
  } else {
    callback(record, row);
    return true;
  }
}

template <Accumulator S>
[[nodiscard]] std::optional<stop_reason> why_stop(const iteration_options<S>& options,
                                                  const iteration_record<S>& at, bool go_on) {
  const auto within = [](S value, S tolerance) { return tolerance > S{0} && value <= tolerance; };
  if (!go_on) return stop_reason::callback;
  if (within(at.relative_residual, options.residual_tolerance)) return stop_reason::residual;
  if (within(at.step_angle, options.angle_tolerance)) return stop_reason::angle;
  if (at.step >= options.max_steps) return stop_reason::max_steps;
  return std::nullopt;
}

/// x_{k+1} = next/‖next‖, next times 2^-exponent in memory. False where momentum has left the range of S.
template <Accumulator S>
[[nodiscard]] bool advance(momentum_term<S>& momentum, const row_image<S>& image, int exponent,
                           const vector_view<S>& next, const vector_view<S>& row) {
  const auto length = norm<S>(next);
  if (length.kind != magnitude::finite) return false;
  momentum.remember(row, image, length.norm * scaled<S>(S{1}, exponent));
  scale_into(next, row, S{1} / length.norm);
  return true;
}

}  // namespace detail

/// Repeats the step of Eq. 4, 5 on `row` until a rule of `options` says stop, then leaves the row on the
/// sphere of options.radius: it is overwritten. The result describes the row returned.
///
/// row: D elements; workspace: power_iteration_workspace(D, options) elements apart from it. O(D) a step
/// beyond the applications of M; nothing is allocated. `callback(record, row)` is called for every iterate;
/// where it returns bool, false ends the iteration. A degenerate iterate is left as it is. ρ never decreases
/// without momentum, and tan θ_k ≤ (σ₂/σ₁)^{2k} tan θ_0 (Golub & Van Loan, 8.2.1). Throws usage_error on
/// sizes, overlap, radius ≤ 0.
template <GramOperator Op, class Callback>
iteration_result<scalar_of<Op>> power_iteration(Op&& op, vector_view<scalar_of<Op>> row,
                                                vector_view<scalar_of<Op>> workspace,
                                                const iteration_options<scalar_of<Op>>& options,
                                                Callback&& callback) {
  using S = scalar_of<Op>;
  const index_t n = row.size();
  detail::expect_iteration(row, workspace, options);
  const vector_view<S> next(workspace.data(), n);
  detail::momentum_term<S> momentum(options.acceleration, workspace.data() + n, n);
  iteration_result<S> result;
  const auto ended = [&](stop_reason reason) {
    result.reason = reason;
    return result;
  };
  for (index_t step = 0;; ++step) {
    const row_image<S> image = detail::image_of_row<Op>("power_iteration", op, row, next);
    ++result.applications;
    result.steps = step;
    result.state = image.state;
    if (image.state != status::ok) return ended(stop_reason::degenerate);
    const auto both = detail::scale_free(next, row, image);  // h = xM/ρ
    const scaled<S> scaled_tan = both.tan(n);
    const S tan = scaled_tan.unscaled();
    if (momentum.exists()) momentum.add(step, image, tan, both, next);  // h − β x_{k−1}
    const S angle_of_step = step > 0 && momentum.exists() ? angle<S>(row, next) : std::atan(tan);
    result.last = {step, image.rayleigh.unscaled(), (image.rayleigh * scaled_tan).unscaled(), tan,
                   angle_of_step};
    const bool go_on = detail::call_back(callback, std::as_const(result.last), vector_view<const S>(row));
    if (const auto reason = detail::why_stop(options, result.last, go_on)) {
      retract<S>(row, row, options.radius);
      return ended(*reason);
    }
    if (!detail::advance(momentum, image, both.exponent, next, row)) {
      result.state = status::non_finite;
      return ended(stop_reason::degenerate);
    }
  }
}

/// The same without a callback.
template <GramOperator Op>
iteration_result<scalar_of<Op>> power_iteration(Op&& op, vector_view<scalar_of<Op>> row,
                                                vector_view<scalar_of<Op>> workspace,
                                                const iteration_options<scalar_of<Op>>& options = {}) {
  return power_iteration(op, row, workspace, options, [](const auto&, const auto&) {});
}

MPIROUTER_END

// ---- mpi_router/manifold/power_step.hpp
// The step of Manifold Power Iteration: multiply by M, retract onto the sphere of radius C (Eq. 4, 5).

MPIROUTER_BEGIN_TYPES

/// What one step tells for free.
template <Accumulator S>
struct step_result {
  status state = status::ok;
  S rayleigh = 0;  ///< ρ of the row before the step; infinite where S cannot hold it
  S cosine = 0;  ///< cos of the angle between the old row and the new one, ρ / ‖r̂M‖, in [0, 1], 0 only where
                 ///< S cannot hold it
};

/// What the backward of a step needs from the forward, besides the two rows: ‖rM‖. A value of zero stands for
/// a row that had no step.
template <Accumulator S>
using saved_norm = scaled<S>;

MPIROUTER_END_TYPES

MPIROUTER_BEGIN

namespace detail {

/// What becomes of a row that has no step.
template <Accumulator S, class R, class O>
step_result<S> degenerate(status state, const vector_view<R>& row, const vector_view<O>& out,
                          degenerate_row policy) {
  const bool keep = keeps(policy);
  for (index_t i = 0; i < row.size(); ++i) {
    out[i] = narrow<O>(keep ? widen<S>(row[i]) : S{0});
  }
  return {state, S{0}, S{0}};
}

/// The retract half of the step: out = C h/‖h‖, of the image u of the row. out may be u.
template <Accumulator S, class R, class U, class O>
step_result<S> retract_image(const row_image<S>& image, const vector_view<R>& row, const vector_view<U>& u,
                             const vector_view<O>& out, S radius, degenerate_row policy) {
  if (image.state != status::ok) {
    return degenerate<S>(image.state, row, out, policy);
  }
  const scaled<S> u_norm = image.image_norm / scaled<S>(S{1}, image.exponent);
  const scaled_vector<S, std::remove_const_t<U>> step(u, radius / u_norm);  // C h/‖h‖ = C u/‖u‖
  for (index_t i = 0; i < row.size(); ++i) {
    out[i] = narrow<O>(step[i]);
  }
  return {status::ok, image.rayleigh.unscaled(), image.cosine()};
}

}  // namespace detail

/// The retract half of a step alone: out = C h/‖h‖ = C u/‖u‖ (Eq. 5) of the image u that image_of_row wrote
/// for this row; out may be u. O(D). A row without a step becomes what `policy` says. Throws usage_error on
/// sizes, on overlap other than in place, and on radius ≤ 0.
template <Accumulator S>
step_result<S> retract_image(const row_image<S>& image, std::type_identity_t<vector_view<const S>> row,
                             std::type_identity_t<vector_view<const S>> u, vector_view<S> out,
                             std::type_identity_t<S> radius, degenerate_row policy = degenerate_row::keep) {
  detail::expect_radius("retract_image", radius);
  detail::expect_same_size("retract_image", row, u, out);
  detail::expect_in_place_or_apart("retract_image", "the image", u, out);
  detail::expect_in_place_or_apart("retract_image", "the row", row, out);
  return detail::retract_image(image, row, u, out, radius, policy);
}

/// One step: out = C · rM / ‖rM‖ (Eq. 4, 5). Stateless: the row is read, the result is written elsewhere, as
/// in the authors' router, which computes r′ anew from the trained r at every forward.
///
/// row and out have D elements and do not overlap. One application of M and O(D). No scratch. A row without
/// a step (see status) becomes what `policy` says. Throws usage_error on sizes, overlap, or radius ≤ 0.
template <GramOperator Op>
step_result<scalar_of<Op>> power_step(Op&& op, vector_view<const scalar_of<Op>> row,
                                      vector_view<scalar_of<Op>> out, scalar_of<Op> radius,
                                      degenerate_row policy = degenerate_row::keep) {
  detail::expect_radius("power_step", radius);
  const auto image = detail::image_of_row("power_step", op, row, out);
  return detail::retract_image(image, row, out, out, radius, policy);
}

/// power_step that also saves what power_step_vjp needs: r′ itself, and ‖rM‖.
template <GramOperator Op>
step_result<scalar_of<Op>> power_step(Op&& op, vector_view<const scalar_of<Op>> row,
                                      vector_view<scalar_of<Op>> out, scalar_of<Op> radius,
                                      degenerate_row policy, saved_norm<scalar_of<Op>>& saved) {
  detail::expect_radius("power_step", radius);
  const auto image = detail::image_of_row("power_step", op, row, out);
  saved = image.image_norm;
  return detail::retract_image(image, row, out, out, radius, policy);
}

/// One step that writes its result back: row ← C · rM / ‖rM‖. Stateful: use it to track the principal
/// direction of a changing A, never together with the stateless form on the same row. `scratch` has D
/// elements.
template <GramOperator Op>
step_result<scalar_of<Op>> stateful_power_step(Op&& op, vector_view<scalar_of<Op>> row,
                                               vector_view<scalar_of<Op>> scratch, scalar_of<Op> radius,
                                               degenerate_row policy = degenerate_row::keep) {
  const auto result = power_step(op, row, scratch, radius, policy);
  detail::scale_into(scratch, row, scalar_of<Op>{1});
  return result;
}

MPIROUTER_END

// ---- mpi_router/core/by_products.hpp
// What the batched step tells besides the rows: one definition for host and GPU. Plain data.

#include <span>

MPIROUTER_BEGIN_TYPES

namespace core {

/// What takes one T for each expert, or nothing: a view on the host; on a GPU a pointer to as many elements.
template <class T, class Space>
struct each_expert {
  using type = T*;
};
template <Scalar T>
struct each_expert<T, host_space> {
  using type = vector_view<T>;
};
template <>
struct each_expert<status, host_space> {
  using type = std::span<status>;
};

/// A GPU saves for the backward what cuda::saved_step says.
struct no_tape {};

}  // namespace core

/// What router_rows and retract_images tell besides the rows, N elements each. Each may be left empty: not
/// wanted. All numbers are of the row r that the last step started from, zero where a row had no step, and
/// infinite where S cannot hold them.
template <Accumulator S, class Space = host_space>
struct router_by_products {
  using numbers = typename core::each_expert<S, Space>::type;
  using tape_view = std::conditional_t<std::same_as<Space, host_space>, vector_view<S>, core::no_tape>;

  /// What became of each row; of the first step that failed, if there are several.
  typename core::each_expert<status, Space>::type statuses{};
  numbers rayleigh{};    ///< ρ = ‖A r‖² / ‖r‖² (Eq. 3)
  numbers cosine{};      ///< ρ / ‖r̂M‖, cos of the angle of the step, in [0, 1]
  tape_view tape{};      ///< router_tape_size(…) elements: what the backward needs
  numbers residual{};    ///< ‖r̂M − ρ r̂‖: some eigenvalue of M lies within it of ρ
  numbers energy{};      ///< ‖A r‖²; with row_norm, λ = √energy / (row_norm · σ₁)
  numbers row_norm{};    ///< ‖r‖
  numbers image_norm{};  ///< ‖r M‖
};

namespace core {

/// f(name, elements) for each by-product but the tape.
template <class S, class Space, class F>
MPIROUTER_ALWAYS_INLINE constexpr void for_each_by_product(const router_by_products<S, Space>& told,
                                                           const F& f) {
  f("the statuses", told.statuses);
  f("rayleigh", told.rayleigh);
  f("cosine", told.cosine);
  f("residual", told.residual);
  f("energy", told.energy);
  f("row_norm", told.row_norm);
  f("image_norm", told.image_norm);
}

}  // namespace core

MPIROUTER_END_TYPES

// ---- mpi_router/core/apart.hpp
// Memory that a call reads and writes: what must lie apart, and what to call it where it does not.

#include <initializer_list>

MPIROUTER_BEGIN
namespace detail {

/// Memory that a call reads or writes, and what to call it.
struct named_range {
  const char* name;
  address_range range;
};

/// `one` meets none of the others.
inline void expect_apart(const char* what, const named_range& one, std::span<const named_range> others) {
  for (const named_range& other : others) {
    expect(!overlap(one.range, other.range), what, ": ", one.name, " and ", other.name, " overlap");
  }
}
inline void expect_apart(const char* what, const named_range& one,
                         std::initializer_list<named_range> others) {
  expect_apart(what, one, std::span(others.begin(), others.size()));
}

/// What is written meets nothing that is read and nothing else that is written.
inline void expect_apart(const char* what, std::span<const named_range> written,
                         std::initializer_list<named_range> read) {
  for (std::size_t i = 0; i < written.size(); ++i) {
    expect_apart(what, written[i], read);
    expect_apart(what, written[i], written.subspan(i + 1));
  }
}
inline void expect_apart(const char* what, std::initializer_list<named_range> written,
                         std::initializer_list<named_range> read) {
  expect_apart(what, std::span(written.begin(), written.size()), read);
}

/// The elements of the workspace, or of the tape, that a call uses: there may be more.
template <class T>
[[nodiscard]] address_range first_elements(const vector_view<T>& v, index_t size) {
  return addresses(vector_view<T>(v.data(), size));
}

/// `size` elements, or none where there is no pointer.
template <class T>
[[nodiscard]] address_range addresses_of(const T* data, index_t size) noexcept {
  return addresses(data, data == nullptr ? 0 : size, 1, 1, 1);
}
template <class T>
[[nodiscard]] address_range addresses_of(std::span<T> s) noexcept {
  return addresses_of(s.data(), static_cast<index_t>(s.size()));
}

/// The by-products of n experts but the tape, each with its name.
template <class S, class Space>
[[nodiscard]] std::array<named_range, 7> by_product_ranges(const router_by_products<S, Space>& told,
                                                           index_t n) {
  std::array<named_range, 7> ranges{};
  std::size_t at = 0;
  for_each_by_product(told, [&](const char* name, const auto& elements) {
    if constexpr (std::is_pointer_v<std::remove_cvref_t<decltype(elements)>>) {
      ranges[at++] = {name, addresses_of(elements, n)};
    } else if constexpr (requires { addresses(elements); }) {
      ranges[at++] = {name, addresses(elements)};
    } else {
      ranges[at++] = {name, addresses_of(elements)};
    }
  });
  return ranges;
}

/// All of these, one after the other.
template <std::size_t N, class... More>
[[nodiscard]] std::array<named_range, N + sizeof...(More)> joined(const std::array<named_range, N>& ranges,
                                                                  const More&... more) {
  std::array<named_range, N + sizeof...(More)> all{};
  std::size_t at = 0;
  for (const named_range& range : ranges) {
    all[at++] = range;
  }
  ((all[at++] = more), ...);
  return all;
}

}  // namespace detail
MPIROUTER_END

// ---- mpi_router/manifold/rank2.hpp
// The gradient to a gate matrix as two outer products, and what adds them up.

MPIROUTER_BEGIN_TYPES

/// The gradient to A in factored form, Ā = projection · dual_rowᵀ + dual_projection · rowᵀ: two outer
/// products in F + D numbers each. Up to a power of two moved between the factors of each product, so that
/// none leaves the range of S, they are Ar, z̄, Az̄ and r.
template <Accumulator S>
struct rank2_factors {
  vector_view<S> projection;       ///< F elements, Ar
  vector_view<S> dual_row;         ///< D elements, z̄
  vector_view<S> dual_projection;  ///< F elements, Az̄
  vector_view<S> row;              ///< D elements, r
};

MPIROUTER_END_TYPES

MPIROUTER_BEGIN

namespace detail {

/// out ← or += factor · (a bᵀ + c dᵀ), row by row.
template <Accumulator S, Scalar G>
void add_outer(const matrix_view<G>& out, const vector_view<S>& a, const vector_view<S>& b,
               const vector_view<S>& c, const vector_view<S>& d, gradient_mode mode, S factor) {
  const auto run = [&](auto stride, auto stride_b, auto stride_d, auto write) {
    for (index_t i = 0; i < out.rows(); ++i) {
      const S left = factor * a[i];
      const S right = factor * c[i];
      G* const row = out.data() + i * out.row_stride();
      for (index_t j = 0; j < out.cols(); ++j) {
        const S value = left * b.data()[j * stride_b] + right * d.data()[j * stride_d];
        row[j * stride] = narrow<G>(write ? value : widen<S>(row[j * stride]) + value);
      }
    }
  };
  const auto with_strides = [&](auto write) {
    constexpr std::integral_constant<index_t, 1> one{};
    if (out.col_stride() == 1 && b.is_contiguous() && d.is_contiguous()) {
      run(one, one, one, write);
    } else {
      run(out.col_stride(), b.stride(), d.stride(), write);
    }
  };
  if (core::accumulates(mode)) {
    with_strides(std::false_type{});
  } else {
    with_strides(std::true_type{});
  }
}

}  // namespace detail

/// Ā ← or += projection · dual_rowᵀ + dual_projection · rowᵀ, in the storage of `gradient` ([F, D], any
/// strides), times `factor` (−lr takes a step of descent without Ā ever in memory). O(F·D). Throws
/// usage_error on sizes.
template <Accumulator S, WritableScalar G>
void add_rank2(const rank2_factors<S>& factors, const matrix_view<G>& gradient, gradient_mode mode,
               std::type_identity_t<S> factor = S{1}) {
  const index_t ffn_dim = factors.projection.size();
  const index_t dimension = factors.row.size();
  core::expect(gradient.rows() == ffn_dim && gradient.cols() == dimension, "add_rank2: the gradient is [",
               gradient.rows(), ", ", gradient.cols(), "], the factors have F = ", ffn_dim,
               ", D = ", dimension);
  const auto distance = [](index_t stride) { return stride < 0 ? -stride : stride; };
  if (distance(gradient.row_stride()) < distance(gradient.col_stride())) {  // stored [D, F]
    detail::add_outer<S>(gradient.transposed(), factors.dual_row, factors.projection, factors.row,
                         factors.dual_projection, mode, factor);
  } else {
    detail::add_outer<S>(gradient, factors.projection, factors.dual_row, factors.dual_projection, factors.row,
                         mode, factor);
  }
}

MPIROUTER_END

// ---- mpi_router/manifold/power_step_vjp.hpp
// The vector-Jacobian product of the step: gradients to the row and to the gate matrix.
//
// With z = rM, ẑ = z/‖z‖ and the incoming gradient ḡ of r′ = C ẑ:
//   z̄ = (C/‖z‖)(ḡ − ẑ(ẑ·ḡ)),   r̄ = z̄M,   Ā = (Ar) z̄ᵀ + (Az̄) rᵀ.
// So Ā has rank 2 at most, ⟨r̄, r⟩ = 0 and ⟨Ā, A⟩ = 0: r′ depends on neither length.

MPIROUTER_BEGIN

namespace detail {

/// C/‖z‖ = factor · 2^(row + dual), its power of two shared between r and z̄ so that A times either stays in
/// range.
template <Accumulator S>
struct pullback_scale {
  S factor;
  int row;
  int dual;

  pullback_scale(const saved_norm<S>& image, S radius) noexcept {
    const scaled<S> quotient = (scaled<S>(radius).normalized() / image).normalized();
    factor = quotient.value;
    dual = quotient.exponent / 2;
    row = quotient.exponent - dual;
  }
  /// The same for this row: what is nearly across all that A sees may itself be too long for its half.
  pullback_scale(const saved_norm<S>& image, S radius, const vector_view<const S>& row_itself) noexcept
      : pullback_scale(image, radius) {
    if (row <= 0) return;
    const auto largest = std::bit_cast<S>(largest_magnitude_bits<S>(row_itself));
    const int most = std::numeric_limits<S>::max_exponent - 2 - (largest > S{0} ? std::ilogb(largest) : 0);
    if (row > most) {
      dual += row - most;
      row = most;
    }
  }
};

/// dual = z̄ / 2^scale.row = factor · 2^scale.dual · (ḡ − ẑ(ẑ·ḡ)), with ẑ = r′/C. dual may be grad.
template <Accumulator S>
void project_gradient(vector_view<const S> new_row, vector_view<const S> grad, const pullback_scale<S>& scale,
                      S radius, vector_view<S> dual) noexcept {
  const scaled_vector<S> z(new_row, scaled<S>(S{1}) / scaled<S>(radius).normalized());
  const S along = sum_terms<S>(grad.size(), [&](index_t i) { return z[i] * grad[i]; });
  for (index_t i = 0; i < grad.size(); ++i) {
    dual[i] = grad[i] - along * z[i];
  }
  scale_into(dual, dual, {scale.factor, scale.dual});
}

/// What A is multiplied with: factors.row = r · 2^e and factors.dual_row = z̄ / 2^e. Returns e: r̄ = 2^e ·
/// dual_row M.
template <Accumulator S>
[[nodiscard]] int prepare_pullback(vector_view<const S> row, vector_view<const S> new_row,
                                   const saved_norm<S>& saved, vector_view<const S> grad, S radius,
                                   const rank2_factors<S>& factors) noexcept {
  const pullback_scale<S> scale(saved, radius, row);
  scale_into(row, factors.row, {S{1}, scale.row});
  project_gradient<S>(new_row, grad, scale, radius, factors.dual_row);
  return scale.row;
}

template <Accumulator S>
void set_zero(const rank2_factors<S>& factors) noexcept {
  for (const auto& v : {factors.projection, factors.dual_row, factors.dual_projection, factors.row}) {
    fill_zero(v);
  }
}

/// y = A r, w = A z̄, image = wA: three passes over A.
template <FactoredGramOperator Op>
void pull_back(Op& op, const rank2_factors<scalar_of<Op>>& factors, const vector_view<scalar_of<Op>>& image) {
  op.project(factors.row, factors.projection);
  op.project(factors.dual_row, factors.dual_projection);
  op.lift(factors.dual_projection, image);
}

/// The gradient to a row that had no step: it went through unchanged, or became zero.
template <Accumulator S>
void degenerate_gradient(vector_view<const S> grad, vector_view<S> grad_row, degenerate_row policy) {
  const bool keep = keeps(policy);
  for (index_t i = 0; i < grad.size(); ++i) {
    grad_row[i] = keep ? grad[i] : S{0};
  }
}

template <Accumulator S>
void expect_factors_apart(const rank2_factors<S>& factors, const vector_view<const S>& row,
                          const vector_view<const S>& new_row, const vector_view<const S>& grad,
                          const vector_view<S>& grad_row) {
  const std::array all{named_range{"the projection", addresses(factors.projection)},
                       named_range{"the dual projection", addresses(factors.dual_projection)},
                       named_range{"the scaled row", addresses(factors.row)},
                       named_range{"the dual row", addresses(factors.dual_row)},
                       named_range{"the row", addresses(row)},
                       named_range{"the new row", addresses(new_row)},
                       named_range{"the gradient to the row", addresses(grad_row)},
                       named_range{"the gradient", addresses(grad)}};
  for (std::size_t i = 0; i < 4; ++i) {
    const std::size_t end = i == 3 ? all.size() - 1 : all.size();  // dual_row may be grad
    expect_apart("power_step_vjp", all[i], std::span(all).subspan(i + 1, end - i - 1));
  }
}

}  // namespace detail

/// The gradient to the row alone, M held constant (detached): r̄ = z̄M. One application of M.
///
/// new_row and `saved` are what power_step gave for the same operator, radius and policy; grad is ḡ, the
/// gradient of new_row. new_row, grad, grad_row and scratch have D elements; grad_row may be grad, scratch
/// overlaps nothing. A row that had no step passes ḡ on where the policy kept it, and zero where it became
/// zero. Gradients that S cannot hold, as of rows nearly across all that A sees, are not finite. Throws
/// usage_error on sizes, overlap, radius ≤ 0.
template <GramOperator Op>
void power_step_vjp(Op&& op, vector_view<const scalar_of<Op>> new_row, const saved_norm<scalar_of<Op>>& saved,
                    vector_view<const scalar_of<Op>> grad, scalar_of<Op> radius,
                    vector_view<scalar_of<Op>> grad_row, vector_view<scalar_of<Op>> scratch,
                    degenerate_row policy = degenerate_row::keep) {
  using S = scalar_of<Op>;
  detail::expect_radius("power_step_vjp", radius);
  detail::expect_same_size("power_step_vjp", new_row, grad, grad_row, scratch);
  detail::expect_apart("power_step_vjp", {"the scratch", detail::addresses(scratch)},
                       {{"the new row", detail::addresses(new_row)},
                        {"the gradient", detail::addresses(grad)},
                        {"the gradient to the row", detail::addresses(grad_row)}});
  if (saved.value == S{0}) {
    detail::degenerate_gradient<S>(grad, grad_row, policy);
    return;
  }
  const detail::pullback_scale<S> scale(saved, radius);
  detail::project_gradient<S>(new_row, grad, scale, radius, scratch);
  op.apply(scratch, grad_row);
  detail::scale_into(grad_row, grad_row, {S{1}, scale.row});
}

/// Both gradients, that to A in factored form: r̄ = z̄M and Ā = (Ar) z̄ᵀ + (Az̄) rᵀ. Two projections and one
/// lift: three passes over A here, one where a backend has a fused kernel (router/router_rows_vjp.hpp).
///
/// As above; `factors` are written (zeros where the row had no step) and overlap neither each other, nor
/// grad_row, nor an input, except that factors.dual_row may be grad.
template <FactoredGramOperator Op>
void power_step_vjp(Op&& op, vector_view<const scalar_of<Op>> row, vector_view<const scalar_of<Op>> new_row,
                    const saved_norm<scalar_of<Op>>& saved, vector_view<const scalar_of<Op>> grad,
                    scalar_of<Op> radius, vector_view<scalar_of<Op>> grad_row,
                    const rank2_factors<scalar_of<Op>>& factors,
                    degenerate_row policy = degenerate_row::keep) {
  using S = scalar_of<Op>;
  detail::expect_radius("power_step_vjp", radius);
  detail::expect_same_size("power_step_vjp", row, new_row, grad, grad_row, factors.row, factors.dual_row);
  detail::expect_same_size("power_step_vjp", factors.projection, factors.dual_projection);
  detail::expect_factors_apart(factors, row, new_row, grad, grad_row);
  if (saved.value == S{0}) {
    detail::degenerate_gradient<S>(grad, grad_row, policy);
    detail::set_zero(factors);
    return;
  }
  const int row_exponent = detail::prepare_pullback<S>(row, new_row, saved, grad, radius, factors);
  detail::pull_back(op, factors, grad_row);
  detail::scale_into(grad_row, grad_row, {S{1}, row_exponent});
}

MPIROUTER_END

// ---- mpi_router/manifold/rayleigh.hpp
// The Rayleigh quotient (Eq. 3), the tangent gradient that vanishes where it is stationary, and the alignment
// λ (Eq. 11).

MPIROUTER_BEGIN_TYPES

/// What the image of a row tells about it.
template <Accumulator S>
struct rayleigh_result {
  status state = status::ok;
  S rayleigh = 0;           ///< ρ = ‖rW_g‖² / ‖r‖² (Eq. 3), at most σ₁²; infinite or 0 where S cannot hold it
  S residual = 0;           ///< ‖g‖: an eigenvalue of M lies within ‖g‖ of ρ
  S relative_residual = 0;  ///< ‖g‖ / ρ = tan ψ, ψ the angle that a power step would move the row by;
                            ///< infinite where S cannot hold it
};

MPIROUTER_END_TYPES

MPIROUTER_BEGIN

/// The Rayleigh quotient ρ of a row and its residual g = r̂M − ρ r̂, the gradient of ρ on the sphere up
/// to a factor 2, written to `residual`. One application of M and O(D). A row without a quotient (see status)
/// gives zeros. Throws usage_error on sizes that differ or overlap.
template <GramOperator Op>
rayleigh_result<scalar_of<Op>> rayleigh(Op&& op, vector_view<const scalar_of<Op>> row,
                                        vector_view<scalar_of<Op>> residual) {
  using S = scalar_of<Op>;
  const row_image<S> image = detail::image_of_row("rayleigh", op, row, residual);
  if (image.state != status::ok) {
    detail::fill_zero(residual);
    return {image.state, S{0}, S{0}, S{0}};
  }
  const auto both = detail::scale_free(residual, row, image);
  const scaled<S> tan = both.tan(row.size());
  both.gradient(image.rayleigh, residual);
  return {status::ok, image.rayleigh.unscaled(), (image.rayleigh * tan).unscaled(), tan.unscaled()};
}

/// λ with the spectral norm: ‖rW_g‖ / (‖r‖ σ₁) = √ρ / σ₁, in [0, 1]; 1 only for a principal direction.
template <Accumulator S>
[[nodiscard]] S alignment_spectral(S rayleigh, std::type_identity_t<S> sigma_1) {
  return std::sqrt(rayleigh) / sigma_1;
}
/// λ with the Frobenius norm: ‖rW_g‖ / (‖r‖ ‖W_g‖_F) = √ρ / ‖A‖_F; at most σ₁ / ‖A‖_F.
template <Accumulator S>
[[nodiscard]] S alignment_frobenius(S rayleigh, std::type_identity_t<S> frobenius_norm) {
  return std::sqrt(rayleigh) / frobenius_norm;
}

MPIROUTER_END

// ---- mpi_router/manifold/steepest_ascent.hpp
// The same step seen from the tangent space: Riemannian steepest ascent of the Rayleigh quotient (Eq. 9, 10).

MPIROUTER_BEGIN_TYPES

/// How far the adaptive step moves on the unit sphere. Eq. 10 gives the tangential length ‖ηg‖ = tan ψ; the
/// retraction keeps the angle ψ, which is the geodesic length, and the difference is the "≈" of Eq. 10.
template <Accumulator S>
struct step_length {
  S tangential;  ///< tan ψ = ‖g‖ / ρ
  S geodesic;    ///< ψ
};

MPIROUTER_END_TYPES

MPIROUTER_BEGIN

/// The adaptive step of Eq. 10: η = 1/ρ, for which the ascent of Eq. 9, retracted, *is* the power step.
template <Accumulator S>
[[nodiscard]] S adaptive_step(S rayleigh) {
  return S{1} / rayleigh;
}

/// Every η is a shifted power step: r̂ + ηg ∝ r̂(M − sI) with s = ρ − 1/η. η → 0 is Oja's rule (s → −∞), s = 0
/// is MPI.
template <Accumulator S>
[[nodiscard]] S power_shift(S rayleigh, std::type_identity_t<S> eta) {
  return rayleigh - S{1} / eta;
}

/// How far the step with η = 1/ρ goes: tan ψ = ‖g‖/ρ along the tangent, ψ on the sphere.
template <Accumulator S>
[[nodiscard]] step_length<S> adaptive_step_length(const rayleigh_result<S>& at) {
  return {at.relative_residual, std::atan(at.relative_residual)};
}

namespace detail {

/// out = C x/‖x‖ with x = r̂ + t(h − r̂), t = ηρ, which has no scale.
template <GramOperator Op, class RelativeStep>
step_result<scalar_of<Op>> ascend(const char* what, Op& op, vector_view<const scalar_of<Op>> row,
                                  vector_view<scalar_of<Op>> out, scalar_of<Op> radius,
                                  RelativeStep relative_step, degenerate_row policy) {
  using S = scalar_of<Op>;
  expect_radius(what, radius);
  const row_image<S> image = image_of_row(what, op, row, out);
  if (image.state != status::ok) {
    return degenerate<S>(image.state, row, out, policy);
  }
  const scaled<S> t = relative_step(image.rayleigh);
  const int power = scale_free(out, row, image).ascent(t, out);
  const auto length = norm<S>(out);
  // Where t is out of range: g is tangent, so the sum is never zero.
  if (!is_finite(t.unscaled()) || length.kind != magnitude::finite) {
    degenerate<S>(status::non_finite, row, out, policy);
    return {status::non_finite, image.rayleigh.unscaled(), S{0}};
  }
  scale_into(out, out, radius / length.norm);
  // ⟨r̂, r̂ + ηg⟩ = 1, since g is tangent.
  const S cosine = (scaled<S>(S{1}, -power) / length.norm).unscaled();
  return {status::ok, image.rayleigh.unscaled(), std::min(cosine, S{1})};
}

}  // namespace detail

/// Steepest ascent with a given step (Eq. 9), retracted: out = C · (r̂ + ηg) / ‖r̂ + ηg‖, g = r̂M − ρ r̂.
/// η has the unit of 1/ρ; the gradient's factor 2 is in η. η may be negative (descent). Stateless; one
/// application of M. Shapes, statuses and errors are those of power_step.
template <GramOperator Op>
step_result<scalar_of<Op>> steepest_ascent_step(Op&& op, vector_view<const scalar_of<Op>> row,
                                                vector_view<scalar_of<Op>> out, scalar_of<Op> radius,
                                                scalar_of<Op> eta,
                                                degenerate_row policy = degenerate_row::keep) {
  detail::expect(is_finite(eta), "steepest_ascent_step: eta is not finite");
  const auto relative = [eta](const scaled<scalar_of<Op>>& rho) {
    return scaled<scalar_of<Op>>(eta).normalized() * rho;
  };
  return detail::ascend("steepest_ascent_step", op, row, out, radius, relative, policy);
}

/// Steepest ascent with the adaptive step η = 1/ρ (Eq. 10), retracted: equal to power_step, up to rounding.
template <GramOperator Op>
step_result<scalar_of<Op>> adaptive_ascent_step(Op&& op, vector_view<const scalar_of<Op>> row,
                                                vector_view<scalar_of<Op>> out, scalar_of<Op> radius,
                                                degenerate_row policy = degenerate_row::keep) {
  const auto one = [](const scaled<scalar_of<Op>>&) { return scaled<scalar_of<Op>>(1); };
  return detail::ascend("adaptive_ascent_step", op, row, out, radius, one, policy);
}

MPIROUTER_END

// ---- mpi_router/core/scores.hpp
// What a score function is, for the host and for the GPU. A new one is a name, a struct and a line in
// with_score, all of them here.
//
//   is_exponential  the score is eˣ, of which only ratios mean something: logits are taken less the largest
//   is_bounded      whether the score of +∞ is finite
//   has_root        the score is factor · √radicand, with a radicand that loops may take the root of apart
//   factor          the score, or its factor
//   log_value       the logarithm of the score, right however far out the logit is
//   radicand        where there is a root
//   log_derivative  the derivative of the logarithm
//
// A score is monotone and not negative, and the derivative of its logarithm is finite where the logit is: so
// weights, scores over a sum of scores, and their gradients never divide by what may vanish. `Math`: exp(x ≤
// 0), log1p(0 ≤ e ≤ 1), log, abs, by_sign(x, negative, otherwise) of host or device, and `deep`, an |x| from
// which log(1 + e⁻ˣ) rounds to e⁻ˣ.

MPIROUTER_BEGIN_TYPES

/// How a logit becomes a score.
enum class score_function : unsigned char {
  softmax,      ///< over all experts, or over the selected ones (select_then_score)
  sigmoid,      ///< 1 / (1 + e^−x)
  sqrtsoftplus  ///< √log(1 + eˣ)
};

[[nodiscard]] MPIROUTER_ALWAYS_INLINE constexpr std::string_view to_string(score_function s) noexcept {
  switch (s) {
    case score_function::softmax: return "softmax";
    case score_function::sigmoid: return "sigmoid";
    case score_function::sqrtsoftplus: return "sqrtsoftplus";
  }
  return "unknown";
}
namespace core {

/// False for what was cast from another integer.
[[nodiscard]] MPIROUTER_ALWAYS_INLINE constexpr bool exists(score_function s) noexcept {
  return s <= score_function::sqrtsoftplus;
}

/// eˣ: over their sum, the softmax.
struct exponential_score {
  static constexpr bool is_exponential = true;
  static constexpr bool is_bounded = false;
  static constexpr bool has_root = false;
  template <class Math, class S>
  [[nodiscard]] MPIROUTER_HOST_DEVICE static S factor(S x) noexcept {
    return Math::exp(x);
  }
  template <class Math, class S>
  [[nodiscard]] MPIROUTER_HOST_DEVICE static S log_value(S x) noexcept {
    return x;
  }
  template <class Math, class S>
  [[nodiscard]] MPIROUTER_HOST_DEVICE static S log_derivative(S) noexcept {
    return S{1};
  }
};

/// 1 / (1 + e⁻ˣ).
struct sigmoid_score {
  static constexpr bool is_exponential = false;
  static constexpr bool is_bounded = true;
  static constexpr bool has_root = false;
  template <class Math, class S>
  [[nodiscard]] MPIROUTER_HOST_DEVICE static S factor(S x) noexcept {
    const S e = Math::exp(-Math::abs(x));
    return Math::by_sign(x, e, S{1}) / (S{1} + e);
  }
  template <class Math, class S>
  [[nodiscard]] MPIROUTER_HOST_DEVICE static S log_value(S x) noexcept {
    return Math::by_sign(x, x, S{0}) - Math::log1p(Math::exp(-Math::abs(x)));
  }
  template <class Math, class S>
  [[nodiscard]] MPIROUTER_HOST_DEVICE static S log_derivative(S x) noexcept {
    return factor<Math>(-x);
  }
};

/// √log(1 + eˣ), which is √eˣ from −`deep` down: the root of eˣ is above the smallest number where eˣ is not.
struct sqrtsoftplus_score {
  static constexpr bool is_exponential = false;
  static constexpr bool is_bounded = false;
  static constexpr bool has_root = true;
  template <class Math, class S>
  [[nodiscard]] MPIROUTER_HOST_DEVICE static S factor(S x) noexcept {
    return Math::by_sign(x + Math::deep(x), root_of_exp<Math>(x), S{1});
  }
  template <class Math, class S>
  [[nodiscard]] MPIROUTER_HOST_DEVICE static S radicand(S x) noexcept {
    const S root = root_of_exp<Math>(x);
    return Math::by_sign(x + Math::deep(x), S{1}, Math::by_sign(x, S{0}, x) + Math::log1p(root * root));
  }
  template <class Math, class S>
  [[nodiscard]] MPIROUTER_HOST_DEVICE static S log_value(S x) noexcept {
    return (x < -Math::deep(x) ? x : Math::log(softplus<Math>(x))) / S{2};
  }
  /// ½ sigmoid(x) / softplus(x), which tends to ½ where both vanish.
  template <class Math, class S>
  [[nodiscard]] MPIROUTER_HOST_DEVICE static S log_derivative(S x) noexcept {
    return x < -Math::deep(x) ? S{1} / S{2} : sigmoid_score::factor<Math>(x) / softplus<Math>(x) / S{2};
  }

 private:
  /// √e^−|x|.
  template <class Math, class S>
  [[nodiscard]] MPIROUTER_HOST_DEVICE static S root_of_exp(S x) noexcept {
    return Math::exp(-Math::abs(x) / S{2});
  }
  template <class Math, class S>
  [[nodiscard]] MPIROUTER_HOST_DEVICE static S softplus(S x) noexcept {
    return Math::by_sign(x, S{0}, x) + Math::log1p(Math::exp(-Math::abs(x)));
  }
};

#if defined(__CUDACC__)
#pragma nv_exec_check_disable  // the body is the caller's, host or device
#endif
/// body(score) for the score function of that name.
template <class Body>
MPIROUTER_HOST_DEVICE constexpr decltype(auto) with_score(score_function f, Body body) {
  switch (f) {
    case score_function::softmax: return body(exponential_score{});
    case score_function::sigmoid: return body(sigmoid_score{});
    case score_function::sqrtsoftplus: return body(sqrtsoftplus_score{});
  }
#if defined(__CUDA_ARCH__)
  __builtin_unreachable();
#else
  unknown_value("score_function", f);
#endif
}

}  // namespace core

MPIROUTER_END_TYPES

// ---- mpi_router/core/gating_options.hpp
// What a gate is asked to do: which scores, which experts, which weights. Plain data, shared by host and GPU.
//
// Every family of models is one setting; K, groups and factors (else 1) are those of released models. Biases,
// of the selection (last column) or of the logits (gpt-oss), are arguments of the calls.
//
//   model family          score_function  order              renormalize  scaling  groups            bias
//   Switch, K = 1         softmax         score_then_select  false
//   OLMoE, Qwen1.5/2-MoE  softmax         score_then_select  false
//   Mixtral, Qwen3, MPI   softmax         score_then_select  true
//   gpt-oss               softmax         select_then_score  –
//   DeepSeek-V2, K = 6    softmax         score_then_select  false        16       3 of 8, max
//   DeepSeek-V3           sigmoid         score_then_select  true         2.5      4 of 8, top2_sum  yes
//   Kimi-K2               sigmoid         score_then_select  true         2.827                      yes
//   DeepSeek-V4           sqrtsoftplus    score_then_select  true         1.5                        yes
//   Llama-4, K = 1        sigmoid         select_then_score  false
//
// Megatron-Core (moe_router_…): topk; score_function; pre_softmax is score_then_select; renormalize is fixed,
// sigmoid yes, pre_softmax no; topk_scaling_factor; num_groups, group_topk, by top_k_share_sum. FlashInfer:
// RoutingMethodType for function, order and renormalize; routed_scaling_factor; groups by top2_sum.

MPIROUTER_BEGIN_TYPES

/// Whether experts are selected by their scores or by their logits. The two orders select alike except for
/// rounding and for the expert bias, which is added to what is selected by; the softmax differs in its
/// denominator.
enum class selection_order : unsigned char {
  score_then_select,  ///< scores over all experts, then the best K
  select_then_score   ///< the best K logits, then scores over those
};

/// What a group of experts is worth when groups are selected first.
enum class group_score : unsigned char {
  top2_sum,         ///< the sum of its two best experts
  top_k_share_sum,  ///< the sum of its best K / topk_group experts, rounded down, at least one
  max               ///< its best expert
};

/// The name of an expert in index arrays: 0 … N − 1.
using expert_id = std::int32_t;

/// One setting of a gate; see the table above. Biases are data, arguments of the calls.
struct gating_options {
  index_t top_k = 2;  ///< K: experts per token, 1 … N
  mpi_router::score_function score_function = mpi_router::score_function::softmax;
  selection_order order = selection_order::score_then_select;
  /// Divide the weights of a token by their sum; where scores underflow, by their logarithms, so that equal
  /// logits give 1/K at any depth. Nothing but −∞ leaves zeros. Softmax over the selected experts sums to one
  /// already. With one expert the weight would be 1 and without a gradient: by default it is left alone. The
  /// default is taken where the options are made, {.top_k = 1}: top_k set to 1 afterwards leaves it as it
  /// was.
  bool renormalize = top_k > 1;
  double scaling_factor = 1;  ///< multiplies the weights last; above 0, at most 1e30
  index_t n_group = 1;        ///< groups of N / n_group consecutive experts; must divide N
  index_t topk_group = 1;     ///< groups that a token may choose from, 1 … n_group
  mpi_router::group_score group_score = mpi_router::group_score::top2_sum;

  friend constexpr bool operator==(const gating_options&, const gating_options&) = default;
};

[[nodiscard]] MPIROUTER_ALWAYS_INLINE constexpr std::string_view to_string(selection_order o) noexcept {
  switch (o) {
    case selection_order::score_then_select: return "score_then_select";
    case selection_order::select_then_score: return "select_then_score";
  }
  return "unknown";
}
[[nodiscard]] MPIROUTER_ALWAYS_INLINE constexpr std::string_view to_string(group_score s) noexcept {
  switch (s) {
    case group_score::top2_sum: return "top2_sum";
    case group_score::top_k_share_sum: return "top_k_share_sum";
    case group_score::max: return "max";
  }
  return "unknown";
}

namespace core {

/// How many of a group's best experts count towards its score.
[[nodiscard]] MPIROUTER_ALWAYS_INLINE constexpr index_t experts_in_group_score(const gating_options& options,
                                                                               index_t group_size) {
  const auto within = [group_size](index_t wanted) {
    return wanted < 1 ? 1 : wanted > group_size ? group_size : wanted;
  };
  switch (options.group_score) {
    case group_score::top2_sum: return within(2);
    case group_score::top_k_share_sum: return within(options.top_k / options.topk_group);
    case group_score::max: return 1;
  }
  usage_failure("a group score that does not exist");
}

/// Throws usage_error where the options do not fit N experts.
MPIROUTER_ALWAYS_INLINE constexpr void check_gating(const char* what, const gating_options& o,
                                                    index_t num_experts) {
  expect(o.top_k >= 1 && o.top_k <= num_experts, what, ": top_k is ", o.top_k, " for ", num_experts,
         " experts");
  expect(o.n_group >= 1 && num_experts % o.n_group == 0, what, ": ", num_experts,
         " experts do not fall into n_group = ", o.n_group, " groups");
  expect(o.topk_group >= 1 && o.topk_group <= o.n_group, what, ": topk_group is ", o.topk_group,
         " of n_group = ", o.n_group);
  expect(o.top_k <= o.topk_group * (num_experts / o.n_group), what, ": top_k = ", o.top_k,
         " experts cannot come from ", o.topk_group, " groups of ", num_experts / o.n_group);
  expect(o.scaling_factor > 0 && o.scaling_factor <= 1e30, what, ": scaling_factor is ", o.scaling_factor,
         ", not above 0 and at most 1e30");
  expect(exists(o.score_function) && o.order <= selection_order::select_then_score &&
             o.group_score <= group_score::max,
         what, ": a score function, an order or a group score that does not exist");
}

}  // namespace core

MPIROUTER_END_TYPES

// ---- mpi_router/router/mask.hpp
// Which tokens count. One mask for all of router/: the statuses of T tokens, or none at all, where every
// token counts. A token counts if its status is routed (core/error.hpp): what is masked, or was non_finite,
// has no experts, adds nothing to losses, loads and dispatch lists, gets no gradient, and may have any ids,
// −1 among them. Means are over the tokens that count.

MPIROUTER_BEGIN
namespace detail {

[[nodiscard]] inline bool counts(std::span<const status> statuses, index_t token) noexcept {
  return statuses.empty() || is_routed(statuses[static_cast<std::size_t>(token)]);
}

inline void check_mask(const char* what, std::span<const status> statuses, index_t num_tokens) {
  expect(statuses.empty() || static_cast<index_t>(statuses.size()) == num_tokens, what, ": ", statuses.size(),
         " statuses for ", num_tokens, " tokens");
}

/// f(entry, expert) for each entry t · K + k of the tokens that count.
template <class F>
void for_entries(std::span<const expert_id> experts, index_t top_k, std::span<const status> statuses,
                 const F& f) {
  const index_t tokens = static_cast<index_t>(experts.size()) / top_k;
  for (index_t token = 0; token < tokens; ++token) {
    for (index_t entry = token * top_k; counts(statuses, token) && entry < (token + 1) * top_k; ++entry) {
      f(entry, static_cast<index_t>(experts[static_cast<std::size_t>(entry)]));
    }
  }
}

/// Throws usage_error unless there are rows of K ids, all in [0, N) except those of tokens that do not count.
inline void check_ids(const char* what, std::span<const expert_id> experts, index_t top_k,
                      std::span<const status> statuses, index_t num_experts) {
  const auto size = static_cast<index_t>(experts.size());
  expect(top_k >= 1 && size % top_k == 0, what, ": ", size, " expert ids are not rows of ", top_k);
  check_mask(what, statuses, size / top_k);
  for_entries(experts, top_k, statuses, [&](index_t entry, index_t expert) {
    expect(expert >= 0 && expert < num_experts, what, ": token ", entry / top_k, " has expert ", expert,
           " of ", num_experts);
  });
}

/// The same, for T tokens.
inline void check_ids(const char* what, std::span<const expert_id> experts, index_t top_k,
                      std::span<const status> statuses, index_t num_tokens, index_t num_experts) {
  expect(static_cast<index_t>(experts.size()) == num_tokens * top_k, what, ": ", experts.size(),
         " expert ids, not T · K = ", num_tokens, " · ", top_k);
  check_ids(what, experts, top_k, statuses, num_experts);
}

}  // namespace detail
MPIROUTER_END

// ---- mpi_router/router/statistics.hpp
// Running statistics that merge: over experts, layers, batches, threads, ranks.

MPIROUTER_BEGIN_TYPES

/// Count, mean, variance and range of a stream of numbers (Welford), in double. `merge` joins two streams
/// (Chan et al. 1979): statistics gathered apart, by threads or ranks, join in any grouping up to rounding,
/// and bitwise the same when they are joined in the same order. A plain value: send its five numbers as they
/// are.
struct running_statistics {
  index_t count = 0;
  double mean = 0;
  double squares = 0;  ///< Σ (x − mean)²
  double min = std::numeric_limits<double>::max();
  double max = std::numeric_limits<double>::lowest();

  MPIROUTER_ALWAYS_INLINE void add(double x) noexcept { merge({1, x, 0, x, x}); }
  MPIROUTER_ALWAYS_INLINE void merge(const running_statistics& other) noexcept {
    if (other.count == 0) {
      return;
    }
    const double n = static_cast<double>(count);
    const double m = static_cast<double>(other.count);
    const double apart = other.mean - mean;
    mean += apart * (m / (n + m));
    squares += other.squares + apart * apart * (n * m / (n + m));
    min = std::min(min, other.min);
    max = std::max(max, other.max);
    count += other.count;
  }
  /// Of the numbers seen: divided by count. 0 for fewer than two.
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE double variance() const noexcept {
    return count > 1 ? squares / static_cast<double>(count) : 0.0;
  }
  /// Of what they are a sample of: divided by count − 1.
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE double sample_deviation() const noexcept {
    return count > 1 ? std::sqrt(squares / static_cast<double>(count - 1)) : 0.0;
  }
};

/// How close router rows are to the principal directions of their experts (λ of Eq. 11, and the cosine): one
/// `add` an expert, whenever it is measured.
struct alignment_statistics {
  running_statistics spectral;   ///< λ with σ₁: ‖rW_g‖ / (‖r‖ σ₁)
  running_statistics frobenius;  ///< λ with ‖W_g‖_F
  running_statistics
      cosine;  ///< |cos| of the angle between the row and the principal direction, or of the last step

  /// rayleigh: ρ of the row; sigma_1 and frobenius_norm of its gate matrix; cosine: as measured.
  MPIROUTER_ALWAYS_INLINE void add(double rayleigh, double sigma_1, double frobenius_norm,
                                   double cosine_of_row) noexcept {
    spectral.add(std::sqrt(rayleigh) / sigma_1);
    frobenius.add(std::sqrt(rayleigh) / frobenius_norm);
    cosine.add(std::abs(cosine_of_row));
  }
  MPIROUTER_ALWAYS_INLINE void merge(const alignment_statistics& other) noexcept {
    spectral.merge(other.spectral);
    frobenius.merge(other.frobenius);
    cosine.merge(other.cosine);
  }
};

MPIROUTER_END_TYPES

// ---- mpi_router/router/load.hpp
// How many tokens each expert gets: counts, MaxVio, entropy, and the bias that evens them out without a loss.

MPIROUTER_BEGIN

/// Adds to load[i] the number of times that expert i was chosen. experts: T · K ids, all in [0, N), N =
/// load.size(); statuses: T, tokens that these leave out count for nothing (router/mask.hpp), or empty. A
/// place that a closed expert fills counts. Loads of batches, threads and ranks add up. Throws usage_error on
/// sizes and ids, before anything is written.
inline void count_load(std::span<const expert_id> experts, index_t top_k, std::span<const status> statuses,
                       std::span<index_t> load) {
  detail::check_ids("count_load", experts, top_k, statuses, static_cast<index_t>(load.size()));
  detail::expect_apart(
      "count_load", {"the load", detail::addresses_of(load)},
      {{"the expert ids", detail::addresses_of(experts)}, {"the statuses", detail::addresses_of(statuses)}});
  detail::for_entries(experts, top_k, statuses,
                      [&](index_t, index_t expert) { ++load[static_cast<std::size_t>(expert)]; });
}

/// Mean of a load.
[[nodiscard]] inline double mean_load(std::span<const index_t> load) noexcept {
  double sum = 0;
  for (const index_t count : load) {
    sum += static_cast<double>(count);
  }
  return load.empty() ? 0 : sum / static_cast<double>(load.size());
}

/// MaxVio = max load / mean load − 1: 0 for even loads, N/K − 1 if every token goes to the same K experts. Of
/// one batch or, from loads summed over a set, global. 0 where nothing was routed.
[[nodiscard]] inline double max_violation(std::span<const index_t> load) noexcept {
  const double mean = mean_load(load);
  double largest = 0;
  for (const index_t count : load) {
    largest = std::max(largest, static_cast<double>(count));
  }
  return mean > 0 ? largest / mean - 1 : 0;
}

/// Entropy of the load in nats, −Σ p log p with p = load / Σ load; log N for even loads.
[[nodiscard]] inline double load_entropy(std::span<const index_t> load) noexcept {
  const double total = mean_load(load) * static_cast<double>(load.size());
  double entropy = 0;
  for (const index_t count : load) {
    if (count > 0) {
      const double p = static_cast<double>(count) / total;
      entropy -= p * std::log(p);
    }
  }
  return entropy;
}

MPIROUTER_END

MPIROUTER_BEGIN_TYPES

/// Loads over time: MaxVio and entropy of each batch as running statistics, and the summed loads for the
/// global ones. The N counts are the caller's and start at zero (or where an earlier tracker left them).
class load_tracker {
 public:
  MPIROUTER_ALWAYS_INLINE explicit load_tracker(std::span<index_t> total) : total_(total) {}

  MPIROUTER_ALWAYS_INLINE void add(std::span<const index_t> batch) {
    sum(batch);
    violation_.add(max_violation(batch));
    entropy_.add(load_entropy(batch));
  }
  /// The batches that another thread or rank has seen.
  MPIROUTER_ALWAYS_INLINE void merge(const load_tracker& other) {
    sum(other.total_);
    violation_.merge(other.violation_);
    entropy_.merge(other.entropy_);
  }

  /// MaxVio of the batches; its mean is MaxVio_batch.
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE const running_statistics& batch_violation() const noexcept {
    return violation_;
  }
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE const running_statistics& batch_entropy() const noexcept {
    return entropy_;
  }
  /// MaxVio_global: of all tokens seen.
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE double global_violation() const noexcept {
    return max_violation(total_);
  }
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE double global_entropy() const noexcept {
    return load_entropy(total_);
  }
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE std::span<const index_t> total() const noexcept { return total_; }

 private:
  MPIROUTER_ALWAYS_INLINE void sum(std::span<const index_t> load) {
    core::expect(load.size() == total_.size(), "load_tracker: loads of ", load.size(), " and ", total_.size(),
                 " experts");
    for (std::size_t i = 0; i < load.size(); ++i) {
      total_[i] += load[i];
    }
  }

  std::span<index_t> total_;
  running_statistics violation_;
  running_statistics entropy_;
};

/// What update_expert_bias does with the mean of the biases.
enum class bias_mean : unsigned char {
  zero,  ///< shifts all biases so that their mean is 0
  free   ///< lets it drift, as the sum of what was added
};

MPIROUTER_END_TYPES

MPIROUTER_BEGIN

/// Balancing without a loss (Wang et al. 2024, DeepSeek-V3): bias_i += rate · sign(mean load − load_i), then,
/// unless told otherwise, bias_i −= their mean: a shift that all experts share changes no selection, and
/// without it one hot expert lets the others rise without bound. The mean is taken anew in each call, in
/// double, so that rounding does not add up. Experts that are closed (a bias of −∞), or forced (+∞), take no
/// part: their bias stays, and means are over the others. Nothing changes where nothing was routed.
///
/// Call it once a step with the load of the whole batch, summed over ranks. No gradient: the bias only
/// selects. rate: finite, not negative. Throws usage_error, before anything is written.
template <Accumulator S>
void update_expert_bias(std::span<const index_t> load, std::type_identity_t<S> rate,
                        const vector_view<S>& bias, bias_mean mean = bias_mean::zero) {
  detail::expect(static_cast<index_t>(load.size()) == bias.size(), "update_expert_bias: loads of ",
                 load.size(), " experts, biases of ", bias.size());
  detail::expect(is_finite(rate) && rate >= S{0}, "update_expert_bias: the rate is ", rate,
                 ", not finite and at least 0");
  const auto average = [&bias](const auto& value) {  // of value(i) over the experts that take part
    double sum = 0;
    double count = 0;
    for (index_t i = 0; i < bias.size(); ++i) {
      if (is_finite(bias[i])) {
        sum += static_cast<double>(value(i));
        count += 1;
      }
    }
    return count > 0 ? sum / count : 0.0;
  };
  const auto load_of = [load](index_t i) { return static_cast<double>(load[static_cast<std::size_t>(i)]); };
  const double mean_of_loads = average(load_of);
  const auto moved = [&](index_t i) {
    const double lacking = mean_of_loads - load_of(i);
    return bias[i] + (lacking > 0 ? rate : lacking < 0 ? -rate : S{0});
  };
  const double shift = mean == bias_mean::zero && mean_of_loads > 0 ? average(moved) : 0.0;
  for (index_t i = 0; i < bias.size(); ++i) {
    if (is_finite(bias[i])) {
      bias[i] = static_cast<S>(moved(i) - shift);
    }
  }
}

MPIROUTER_END

// ---- mpi_router/router/elementary.hpp
// The exponential and the logarithm that scores need, in a form that compilers vectorise: the loops of a gate
// take most of their time in them. float here; double goes to the standard library.

MPIROUTER_BEGIN
namespace detail {

/// +∞ by its bits: with -ffast-math a compiler may refuse its name.
template <Accumulator S>
inline constexpr S infinite =
    std::bit_cast<S>(static_cast<std::conditional_t<std::same_as<S, float>, std::uint32_t, std::uint64_t>>(
        std::same_as<S, float> ? 0x7f800000U : 0x7ff0000000000000U));

/// By the bits, so that it holds under -ffast-math.
template <Accumulator S>
[[nodiscard]] bool has_nan(const vector_view<const S>& x) noexcept {
  return largest_magnitude_bits(x) > std::bit_cast<decltype(largest_magnitude_bits(x))>(infinite<S>);
}
template <Accumulator S>
[[nodiscard]] MPIROUTER_ALWAYS_INLINE bool is_nan(S x) noexcept {
  using bits = std::conditional_t<std::same_as<S, float>, std::uint32_t, std::uint64_t>;
  constexpr bits magnitude_mask = static_cast<bits>(~bits{0}) >> 1;
  return (std::bit_cast<bits>(x) & magnitude_mask) > std::bit_cast<bits>(infinite<S>);
}

/// NaN, as an infinite bias can make of a score, counts as −∞: every key has its place in the order.
template <Accumulator S>
[[nodiscard]] MPIROUTER_ALWAYS_INLINE S as_key(S x) noexcept {
  return is_nan(x) ? -infinite<S> : x;
}

template <Accumulator S>
[[nodiscard]] MPIROUTER_ALWAYS_INLINE bool is_minus_infinity(S x) noexcept {
  using bits = std::conditional_t<std::same_as<S, float>, std::uint32_t, std::uint64_t>;
  return std::bit_cast<bits>(x) == std::bit_cast<bits>(-infinite<S>);
}

/// `negative` where the sign bit of x is set, `otherwise` where not: by bits, since a branch would keep a
/// loop from being vectorised.
template <Accumulator S>
[[nodiscard]] MPIROUTER_ALWAYS_INLINE S by_sign(S x, S negative, S otherwise) noexcept {
  using bits = std::conditional_t<std::same_as<S, float>, std::int32_t, std::int64_t>;
  const bits mask = std::bit_cast<bits>(x) >> (8 * sizeof(S) - 1);
  return std::bit_cast<S>((std::bit_cast<bits>(negative) & mask) | (std::bit_cast<bits>(otherwise) & ~mask));
}

/// eˣ for x ≤ 0, −∞ included; within 2 units in the last place where the result is normal.
[[nodiscard]] MPIROUTER_ALWAYS_INLINE float exp_of_nonpositive(float x) noexcept {
  // x = n log 2 + t with |t| ≤ log 2 / 2; eᵗ by its series, 2ⁿ by its bits, in two halves for
  // results that are subnormal. Below e⁻¹⁰⁴ everything rounds to zero; the bits of magnitudes are in the
  // order of their values.
  const auto magnitude_bits =
      std::min(std::bit_cast<std::int32_t>(x) & 0x7fffffff, std::bit_cast<std::int32_t>(104.0F));
  const float at = -std::bit_cast<float>(magnitude_bits);
  const auto n = static_cast<std::int32_t>(at * 1.44269504F - 0.5F);
  const auto whole = static_cast<float>(n);
  const float t = (at - whole * 0.693359375F) + whole * 2.12194440e-4F;
  float p = 1.0F / 5040.0F;
  p = p * t + 1.0F / 720.0F;
  p = p * t + 1.0F / 120.0F;
  p = p * t + 1.0F / 24.0F;
  p = p * t + 1.0F / 6.0F;
  p = p * t + 0.5F;
  p = p * t * t + t + 1.0F;
  const std::int32_t half = n / 2;
  const auto power = [](std::int32_t exponent) { return std::bit_cast<float>((exponent + 127) * (1 << 23)); };
  return p * power(half) * power(n - half);
}
[[nodiscard]] inline double exp_of_nonpositive(double x) noexcept { return std::exp(x); }

/// log(1 + e) for e in [0, 1], to a few units in the last place however small e is.
[[nodiscard]] MPIROUTER_ALWAYS_INLINE float log1p_of_unit(float e) noexcept {
  const float s = e / (2.0F + e);  // log(1 + e) = 2 artanh s, s ≤ 1/3
  const float square = s * s;
  float p = 1.0F / 13.0F;
  p = p * square + 1.0F / 11.0F;
  p = p * square + 1.0F / 9.0F;
  p = p * square + 1.0F / 7.0F;
  p = p * square + 0.2F;
  p = p * square + 1.0F / 3.0F;
  return 2.0F * (s + s * square * p);
}
[[nodiscard]] inline double log1p_of_unit(double e) noexcept { return std::log1p(e); }

/// The largest element, −∞ for none. Sixteen lanes, so that it need not be taken one by one.
template <Accumulator S>
[[nodiscard]] S largest_of(const S* x, index_t n) noexcept {
  constexpr index_t width = 16;
  std::array<S, width> lane;
  lane.fill(-infinite<S>);
  const auto take = [&lane](index_t k, S value) {
    S& held = lane[static_cast<std::size_t>(k)];
    held = value > held ? value : held;
  };
  const index_t whole = n - n % width;
  for (index_t i = 0; i < whole; i += width) {
    for (index_t k = 0; k < width; ++k) {
      take(k, x[i + k]);
    }
  }
  for (index_t i = whole; i < n; ++i) {
    take(0, x[i]);
  }
  S largest = lane[0];
  for (const S value : lane) {
    largest = value > largest ? value : largest;
  }
  return largest;
}

}  // namespace detail
MPIROUTER_END

// ---- mpi_router/router/scores.hpp
// Scores of many logits on the host, their sums, and the probabilities that they make.

MPIROUTER_BEGIN
namespace detail {

/// Scores are computed in whole packs by functions that are never inlined: equal logits have equal scores
/// wherever they lie in a row, whatever a compiler makes of loops and their remainders under -ffast-math.
inline constexpr index_t score_pack_size = 16;

/// The elementary functions that scores are made of: see core/scores.hpp.
struct host_math {
  template <Accumulator S>
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE static S exp(S x) noexcept {
    return exp_of_nonpositive(x);
  }
  template <Accumulator S>
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE static S log1p(S e) noexcept {
    return log1p_of_unit(e);
  }
  template <Accumulator S>
  [[nodiscard]] static S log(S x) noexcept {
    return std::log(x);
  }
  template <Accumulator S>
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE static S abs(S x) noexcept {
    return std::abs(x);
  }
  template <Accumulator S>
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE static S by_sign(S x, S negative, S otherwise) noexcept {
    return detail::by_sign(x, negative, otherwise);
  }
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE static constexpr float deep(float) noexcept { return 17; }
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE static constexpr double deep(double) noexcept { return 37; }
};

template <class Score>
[[nodiscard]] double log_score(double x) noexcept {
  return Score::template log_value<host_math>(x);
}

/// The scores of a pack of logits; where they are relative, in units of the score of `largest`.
template <class Score, Accumulator S>
[[gnu::noinline]] void score_pack(const S* __restrict x, S largest, S* __restrict out) noexcept {
  std::array<S, score_pack_size> factor;
  for (index_t i = 0; i < score_pack_size; ++i) {
    factor[static_cast<std::size_t>(i)] =
        Score::template factor<host_math>(Score::is_exponential ? x[i] - largest : x[i]);
    if constexpr (Score::has_root) out[i] = Score::template radicand<host_math>(x[i]);
  }
  for (index_t i = 0; i < score_pack_size; ++i) {  // std::sqrt may set errno: no loop with it is vectorised
    const S root = Score::has_root ? std::sqrt(out[i]) : S{1};
    out[i] = factor[static_cast<std::size_t>(i)] * root;
  }
}

/// The scores of n logits, in units of that of the largest where they are relative. out is not x.
template <class Score, Accumulator S>
void score_values(const S* x, index_t n, S largest, S* out) noexcept {
  const index_t whole = n - n % score_pack_size;
  for (index_t i = 0; i < whole; i += score_pack_size) {
    score_pack<Score>(x + i, largest, out + i);
  }
  if (whole < n) {
    std::array<S, score_pack_size> in{}, pack;
    std::copy_n(x + whole, n - whole, in.begin());
    score_pack<Score>(in.data(), largest, pack.data());
    std::copy_n(pack.begin(), n - whole, out + whole);
  }
}

/// Below this a score, or a sum of scores, is too near to the smallest normal number to be divided by: what
/// is lost below that number would show.
template <Accumulator S>
inline constexpr S least_divisor = std::numeric_limits<S>::min() / std::numeric_limits<S>::epsilon();

/// Whether a token has probabilities: none of its logits is NaN, and its scores have a finite sum above zero.
/// The largest logit.
template <class Score, Accumulator S>
[[nodiscard]] bool has_probabilities(const S* x, index_t n, S& largest) noexcept {
  largest = largest_of(x, n);
  return !has_nan(vector_view<const S>(x, n)) &&
         (is_finite(largest) || (Score::is_bounded && largest > S{0}));
}

/// A sum of scores that may be out of range: sum · e^largest, with the sum in [1, n].
struct scaled_sum {
  double largest = 0;  ///< of the logarithms; −∞ where all scores vanish
  double sum = 1;
};

/// Σ s(x_i) of n scores.
template <class Score, Accumulator S>
[[nodiscard]] scaled_sum sum_of_scores(const S* x, index_t n) noexcept {
  const double largest = log_score<Score>(largest_of(x, n));  // scores are monotone
  if (!is_finite(largest)) {
    return {largest, 1};
  }
  double sum = 0;
  for (index_t i = 0; i < n; ++i) {
    sum += std::exp(log_score<Score>(x[i]) - largest);
  }
  return {largest, sum};
}

/// p_i = s_i / Σ s over all experts, by logarithms where the sum leaves the normal range. The token has
/// probabilities; p is not x.
template <class Score, Accumulator S>
void probabilities(const S* x, index_t n, S largest, S* p) noexcept {
  score_values<Score>(x, n, largest, p);
  const S sum = sum_terms<S>(n, [p](index_t i) { return p[i]; });
  if (sum >= least_divisor<S>) {
    const S scale = S{1} / sum;
    for (index_t i = 0; i < n; ++i) {
      p[i] *= scale;
    }
    return;
  }
  const scaled_sum scaled = sum_of_scores<Score>(x, n);
  for (index_t i = 0; i < n; ++i) {
    p[i] = static_cast<S>(std::exp(log_score<Score>(x[i]) - scaled.largest) / scaled.sum);
  }
}

template <Accumulator S>
void check_gradient(const char* what, const matrix_view<const S>& logits, const matrix_view<S>& grad) {
  expect(grad.rows() == logits.rows() && grad.cols() == logits.cols(), what,
         ": the gradient to the logits is [", grad.rows(), ", ", grad.cols(), "], not [", logits.rows(), ", ",
         logits.cols(), "]");
}

/// The row itself, or a copy of it where its elements are not contiguous.
template <Accumulator S>
[[nodiscard]] const S* contiguous(const vector_view<const S>& row, S* copy) noexcept {
  if (row.is_contiguous()) {
    return row.data();
  }
  for (index_t i = 0; i < row.size(); ++i) {
    copy[i] = row[i];
  }
  return copy;
}

}  // namespace detail
MPIROUTER_END

// ---- mpi_router/router/token_blocks.hpp
// How tokens are cut into tasks: by their number alone, so that results do not depend on who runs them.

MPIROUTER_BEGIN
namespace detail {

/// Tokens are cut into blocks of this many, whatever runs them.
inline constexpr index_t token_block = 256;

[[nodiscard]] constexpr index_t token_blocks(index_t num_tokens) noexcept {
  return num_tokens / token_block + (num_tokens % token_block != 0 ? 1 : 0);
}

/// Calls body(first, count, block) for each block of tokens.
template <class Run, class Body>
void for_token_blocks(const Run& executor, index_t num_tokens, const Body& body) {
  executor(token_blocks(num_tokens), [&](index_t block) {
    const index_t first = block * token_block;
    body(first, std::min(token_block, num_tokens - first), block);
  });
}

template <Accumulator S>
void set_zero(const vector_view<S>& x) noexcept {
  for (index_t i = 0; i < x.size(); ++i) {
    x[i] = S{0};
  }
}

}  // namespace detail
MPIROUTER_END

// ---- mpi_router/router/sequence_sums.hpp
// What the balance losses are made of: counts of choices and sums of probabilities, block by block of tokens.

MPIROUTER_BEGIN
namespace detail {

/// Blocks of tokens that end at the ends of sequences; a loss is summed block by block.
struct sequence_blocks {
  index_t length;
  index_t per_sequence;
  index_t count;

  sequence_blocks(const char* what, index_t num_tokens, index_t sequence_length)
      : length(num_tokens == 0 && sequence_length == 0 ? 1 : sequence_length),  // L = T = 0 is no work
        per_sequence(token_blocks(length)) {
    expect(length >= 1 && num_tokens % length == 0, what, ": ", num_tokens,
           " tokens do not fall into sequences of length ", length);
    count = num_tokens / length * per_sequence;
  }
  [[nodiscard]] index_t sequences() const noexcept { return count / per_sequence; }
  [[nodiscard]] index_t sequence_of(index_t block) const noexcept { return block / per_sequence; }
  [[nodiscard]] index_t first(index_t block) const noexcept {
    return block / per_sequence * length + block % per_sequence * token_block;
  }
  [[nodiscard]] index_t end(index_t block) const noexcept {
    return std::min(first(block) + token_block, (block / per_sequence + 1) * length);
  }
};

/// One block's part of the workspace. Counts are of at most 256 tokens, so they are exact in S; sums of them
/// are taken as integers.
template <Accumulator S>
struct block_sums {
  S* probabilities;  ///< N: their sums over the tokens that count
  S* choices;        ///< N: how often each expert was chosen by them
  S* tokens;         ///< 1: how many they are
  S* p;              ///< N: scratch, the probabilities of one token
  S* copy;           ///< N: scratch, its logits

  [[nodiscard]] static constexpr index_t size(index_t num_experts) noexcept { return 4 * num_experts + 1; }
  block_sums(S* workspace, index_t block, index_t n)
      : probabilities(workspace + block * size(n)),
        choices(probabilities + n),
        tokens(choices + n),
        p(tokens + 1),
        copy(p + n) {}
};

/// The tokens of a balance loss and their probabilities: which count, and what they add up to.
template <class Score, Accumulator S>
struct sequence_sums {
  sequence_blocks blocks;
  matrix_view<const S> logits;
  std::span<const status> statuses;
  S* workspace;

  [[nodiscard]] block_sums<S> at(index_t block) const { return {workspace, block, logits.cols()}; }
  /// N factors for each sequence, behind the blocks.
  [[nodiscard]] S* factors(index_t sequence) const {
    return workspace + blocks.count * block_sums<S>::size(logits.cols()) + sequence * logits.cols();
  }

  /// use(t, logits, the largest) for each token of the block that counts.
  template <class Use>
  void for_counted(index_t block, const Use& use) const {
    for (index_t t = blocks.first(block); t < blocks.end(block); ++t) {
      const S* const x = contiguous<S>(logits.row(t), at(block).copy);
      S largest{};
      if (counts(statuses, t) && has_probabilities<Score>(x, logits.cols(), largest)) {
        use(t, x, largest);
      }
    }
  }

  /// Counts the tokens, and their choices where there are `experts`; adds up their probabilities where asked.
  template <class Run>
  void gather(std::span<const expert_id> experts, index_t top_k, bool adds, const Run& executor) const {
    const index_t n = logits.cols();
    executor(blocks.count, [&](index_t block) {
      const block_sums<S> sums = at(block);
      std::fill_n(sums.probabilities, n, S{0});
      std::fill_n(sums.choices, n, S{0});
      *sums.tokens = S{0};
      for_counted(block, [&](index_t t, const S* x, S largest) {
        *sums.tokens += S{1};
        for (index_t k = 0; !experts.empty() && k < top_k; ++k) {
          sums.choices[experts[static_cast<std::size_t>(t * top_k + k)]] += S{1};
        }
        if (adds) {
          probabilities<Score>(x, n, largest, sums.p);
          for (index_t i = 0; i < n; ++i) {
            sums.probabilities[i] += sums.p[i];
          }
        }
      });
    });
  }

  /// Σ value(block sums) over the blocks of a sequence.
  template <class Sum, class Value>
  [[nodiscard]] Sum over_sequence(index_t sequence, const Value& value) const {
    Sum sum{0};
    for (index_t j = 0; j < blocks.per_sequence; ++j) {
      sum += static_cast<Sum>(value(at(sequence * blocks.per_sequence + j)));
    }
    return sum;
  }
  [[nodiscard]] index_t tokens(index_t sequence) const {
    return over_sequence<index_t>(sequence, [](const block_sums<S>& sums) { return *sums.tokens; });
  }
  [[nodiscard]] index_t choices(index_t sequence, index_t expert) const {
    return over_sequence<index_t>(sequence,
                                  [expert](const block_sums<S>& sums) { return sums.choices[expert]; });
  }

  /// Σ_s Σ_i factor_s(i) Σ_t p_i over the tokens of each sequence that count.
  [[nodiscard]] S weighted_sum() const {
    double sum = 0;
    for (index_t block = 0; block < blocks.count; ++block) {
      const S* const factor = factors(blocks.sequence_of(block));
      const S* const p = at(block).probabilities;
      sum += sum_terms<S>(logits.cols(), [&](index_t i) { return factor[i] * p[i]; });
    }
    return static_cast<S>(sum);
  }

  /// Its gradient times `scale`: x̄_i = p_i (f_i − Σ f p)(log s_i)′.
  template <class Run>
  void weighted_sum_vjp(S scale, const matrix_view<S>& grad, bool accumulate, const Run& executor) const {
    const index_t n = logits.cols();
    executor(blocks.count, [&](index_t block) {
      const S* const factor = factors(blocks.sequence_of(block));
      S* const p = at(block).p;
      for (index_t t = blocks.first(block); !accumulate && t < blocks.end(block); ++t) {
        set_zero(grad.row(t));
      }
      for_counted(block, [&](index_t t, const S* x, S largest) {
        probabilities<Score>(x, n, largest, p);
        const S mean = sum_terms<S>(n, [&](index_t i) { return factor[i] * p[i]; });
        const vector_view<S> out = grad.row(t);
        for (index_t i = 0; i < n; ++i) {
          out[i] += scale * (p[i] * (factor[i] - mean) * Score::template log_derivative<host_math>(x[i]));
        }
      });
    });
  }
};

}  // namespace detail
MPIROUTER_END

// ---- mpi_router/router/balance.hpp
// The losses that keep the load even, each with its gradient to the logits: N Σ_i f_i P_i, with f_i the share
// of expert i in the choices and P_i the mean over tokens of its score over the sum of scores.
//
// clang-format off
//   variant   f and P of                                   Megatron-Core    also
//   sequence  each sequence by itself; the mean of those   seq_aux_loss     Switch, the paper, DeepSeek
//   batch     all T tokens as one sequence, L = T          aux_loss         1/K of that of transformers
//   global    f of all micro-batches and ranks             global_aux_loss
// clang-format on
//
// Even loads give 1. In the gradient the counts are constants. The loss that keeps logits small: z_loss.hpp.
//
// Tokens count that the statuses leave in (router/mask.hpp) and that have probabilities: a NaN logit, or no
// sum of scores that is finite and above zero, leaves one out without a status. The loss is what the others
// alone would give; a sequence without any is none.

#include <numeric>

MPIROUTER_BEGIN

/// Elements of scratch for the losses of T tokens in sequences of L, and N experts.
[[nodiscard]] constexpr index_t balance_workspace(index_t num_tokens, index_t num_experts,
                                                  index_t sequence_length) noexcept {
  const index_t sequences = sequence_length > 0 ? num_tokens / sequence_length : 0;
  return sequences *
         (detail::token_blocks(sequence_length) * detail::block_sums<float>::size(num_experts) + num_experts);
}

namespace detail {

/// What a balance loss reads.
template <Accumulator S>
struct balance_input {
  const char* what;
  matrix_view<const S> logits;
  std::span<const expert_id> experts;  ///< of the sequence and batch losses
  index_t top_k;
  std::span<const index_t> load;  ///< of the global loss
  std::span<const status> statuses;
};

template <Accumulator S>
void check_balance(const balance_input<S>& in, index_t sequence_length, const vector_view<S>& workspace,
                   const matrix_view<S>& grad) {
  const index_t size = balance_workspace(in.logits.rows(), in.logits.cols(), sequence_length);
  check_mask(in.what, in.statuses, in.logits.rows());
  expect(workspace.size() >= size && workspace.is_contiguous(), in.what, ": the workspace has ",
         workspace.size(), " elements (stride ", workspace.stride(), "), not ", size, " contiguous ones");
  expect_apart(
      in.what,
      {{"the workspace", first_elements(workspace, size)}, {"the gradient to the logits", addresses(grad)}},
      {{"the logits", addresses(in.logits)},
       {"the expert ids", addresses_of(in.experts)},
       {"the load", addresses_of(in.load)},
       {"the statuses", addresses_of(in.statuses)}});
}

/// The factors of the probabilities in N Σ f P, as means over sequences: N f_i / (V S) with V tokens that
/// count in each of S sequences.
template <class Sums, class S>
void set_factors(const Sums& sums, const balance_input<S>& in) {
  const auto n = static_cast<double>(in.logits.cols());
  const index_t loads = std::accumulate(in.load.begin(), in.load.end(), index_t{0});
  index_t sequences = 0;
  for (index_t s = 0; s < sums.blocks.sequences(); ++s) {
    sequences += sums.tokens(s) > 0 ? 1 : 0;
  }
  for (index_t s = 0; s < sums.blocks.sequences(); ++s) {
    const index_t tokens = sums.tokens(s);
    const index_t choices = in.load.empty() ? in.top_k * tokens : loads;
    const double scale =
        static_cast<double>(tokens) * static_cast<double>(sequences) * static_cast<double>(choices);
    for (index_t i = 0; i < in.logits.cols(); ++i) {
      const index_t chosen = in.load.empty() ? sums.choices(s, i) : in.load[static_cast<std::size_t>(i)];
      sums.factors(s)[i] = scale > 0 ? static_cast<S>(n * static_cast<double>(chosen) / scale) : S{0};
    }
  }
}

/// use(sums) once the tokens and their choices are counted, and the factors are there.
template <Accumulator S, class Run, class Use>
void with_sums(score_function f, const balance_input<S>& in, const sequence_blocks& blocks, S* workspace,
               bool adds, const Run& executor, const Use& use) {
  core::with_score(f, [&]<class Score>(Score) {
    const sequence_sums<Score, S> sums{blocks, in.logits, in.statuses, workspace};
    sums.gather(in.experts, in.top_k, adds, executor);
    set_factors(sums, in);
    use(sums);
  });
}

template <Accumulator S, class Run>
[[nodiscard]] S balance(score_function f, const balance_input<S>& in, const sequence_blocks& blocks,
                        S* workspace, const Run& executor) {
  S loss{0};
  with_sums<S>(f, in, blocks, workspace, true, executor,
               [&](const auto& sums) { loss = sums.weighted_sum(); });
  return loss;
}

template <Accumulator S, class Run>
void balance_vjp(score_function f, const balance_input<S>& in, const sequence_blocks& blocks, S grad_loss,
                 const matrix_view<S>& grad, bool accumulate, S* workspace, const Run& executor) {
  with_sums<S>(f, in, blocks, workspace, false, executor,
               [&](const auto& sums) { sums.weighted_sum_vjp(grad_loss, grad, accumulate, executor); });
}

template <Accumulator S>
void check_loads(const balance_input<S>& in) {
  expect(static_cast<index_t>(in.load.size()) == in.logits.cols(), in.what, ": loads of ", in.load.size(),
         " experts, not ", in.logits.cols());
}

}  // namespace detail

/// The sequence-level balance loss, coefficient 1. logits: [T, N]; T/L sequences of L tokens one after the
/// other; experts: T · K ids; workspace: balance_workspace(T, N, L) elements, apart from all else; statuses:
/// T, what the gate told of each token, or empty. L = T is the batch variant; sequences of several lengths
/// are sequences of the longest, with masked tokens. 0 where no token counts. O(T·N); bitwise the same for
/// every executor. Throws usage_error on shapes, overlap, and ids out of range, before anything is written.
template <Accumulator S, class Run = serial_executor>
[[nodiscard]] S balance_loss(std::type_identity_t<matrix_view<const S>> logits, score_function f,
                             std::span<const expert_id> experts, index_t top_k, index_t sequence_length,
                             const vector_view<S>& workspace, const Run& executor = {},
                             std::span<const status> statuses = {}) {
  const detail::balance_input<S> in{"balance_loss", logits, experts, top_k, {}, statuses};
  const detail::sequence_blocks blocks(in.what, logits.rows(), sequence_length);
  detail::check_ids(in.what, experts, top_k, statuses, logits.rows(), logits.cols());
  detail::check_balance<S>(in, sequence_length, workspace, {});
  return detail::balance<S>(f, in, blocks, workspace.data(), executor);
}

/// Its gradient: grad_logits ← or += grad_loss · ∂ loss / ∂ logits. None for tokens that do not count.
template <Accumulator S, class Run = serial_executor>
void balance_loss_vjp(std::type_identity_t<matrix_view<const S>> logits, score_function f,
                      std::span<const expert_id> experts, index_t top_k, index_t sequence_length,
                      std::type_identity_t<S> grad_loss, const matrix_view<S>& grad_logits,
                      gradient_mode mode, std::type_identity_t<vector_view<S>> workspace,
                      const Run& executor = {}, std::span<const status> statuses = {}) {
  const bool accumulate = core::accumulates(mode);
  const detail::balance_input<S> in{"balance_loss_vjp", logits, experts, top_k, {}, statuses};
  const detail::sequence_blocks blocks(in.what, logits.rows(), sequence_length);
  detail::check_ids(in.what, experts, top_k, statuses, logits.rows(), logits.cols());
  detail::check_gradient<S>(in.what, logits, grad_logits);
  detail::check_balance<S>(in, sequence_length, workspace, grad_logits);
  detail::balance_vjp<S>(f, in, blocks, grad_loss, grad_logits, accumulate, workspace.data(), executor);
}

/// The global balance loss of these T tokens, coefficient 1: N Σ_i f_i P_i with f_i = load_i / Σ load.
/// `load`: N counts, summed over all the micro-batches and ranks that are to be even together (count_load); P
/// is of those of these tokens that count, so that the mean of the losses over micro-batches and ranks,
/// weighed by how many count, is the loss of them all. workspace: balance_workspace(T, N, T). 0 where no
/// token counts or nothing was routed. Throws usage_error on shapes and overlap, before anything is written.
template <Accumulator S, class Run = serial_executor>
[[nodiscard]] S global_balance_loss(std::type_identity_t<matrix_view<const S>> logits, score_function f,
                                    std::span<const index_t> load, const vector_view<S>& workspace,
                                    const Run& executor = {}, std::span<const status> statuses = {}) {
  const detail::balance_input<S> in{"global_balance_loss", logits, {}, 1, load, statuses};
  const detail::sequence_blocks blocks(in.what, logits.rows(), logits.rows());
  detail::check_loads(in);
  detail::check_balance<S>(in, logits.rows(), workspace, {});
  return detail::balance<S>(f, in, blocks, workspace.data(), executor);
}

/// Its gradient: grad_logits ← or += grad_loss · ∂ loss / ∂ logits. The load is constant. None for tokens
/// that do not count.
template <Accumulator S, class Run = serial_executor>
void global_balance_loss_vjp(std::type_identity_t<matrix_view<const S>> logits, score_function f,
                             std::span<const index_t> load, std::type_identity_t<S> grad_loss,
                             const matrix_view<S>& grad_logits, gradient_mode mode,
                             std::type_identity_t<vector_view<S>> workspace, const Run& executor = {},
                             std::span<const status> statuses = {}) {
  const bool accumulate = core::accumulates(mode);
  const detail::balance_input<S> in{"global_balance_loss_vjp", logits, {}, 1, load, statuses};
  const detail::sequence_blocks blocks(in.what, logits.rows(), logits.rows());
  detail::check_loads(in);
  detail::check_gradient<S>(in.what, logits, grad_logits);
  detail::check_balance<S>(in, logits.rows(), workspace, grad_logits);
  detail::balance_vjp<S>(f, in, blocks, grad_loss, grad_logits, accumulate, workspace.data(), executor);
}

MPIROUTER_END

// ---- mpi_router/router/dispatch.hpp
// Dispatch lists: which tokens go to which expert, sorted by expert.

MPIROUTER_BEGIN_TYPES

/// The tokens of expert i are tokens[offsets[i]] … tokens[offsets[i + 1] − 1], in ascending order. The memory
/// is the caller's.
struct dispatch_lists {
  std::span<index_t> offsets;  ///< N + 1
  std::span<index_t> tokens;   ///< T · K
  std::span<index_t> entries =
      {};  ///< T · K or empty: t · K + k, where the token's weight for this expert lies
};

MPIROUTER_END_TYPES

MPIROUTER_BEGIN
namespace detail {

inline void check_lists(const char* what, const dispatch_lists& out, std::span<const expert_id> experts,
                        std::span<const status> statuses) {
  expect(!out.offsets.empty() && out.tokens.size() >= experts.size() &&
             (out.entries.empty() || out.entries.size() >= experts.size()),
         what, ": lists of ", out.offsets.size(), ", ", out.tokens.size(), " and ", out.entries.size(),
         " elements for ", experts.size(), " expert ids");
  expect_apart(what,
               {{"the offsets", addresses_of(out.offsets)},
                {"the tokens", addresses_of(out.tokens)},
                {"the entries", addresses_of(out.entries)}},
               {{"the expert ids", addresses_of(experts)}, {"the statuses", addresses_of(statuses)}});
}

}  // namespace detail

/// Sorts the choices of the gate by expert (a stable counting sort), O(T·K + N), nothing allocated.
///
/// experts: T · K ids, all in [0, N), N = offsets.size() − 1; statuses: T, tokens that these leave out are in
/// no list (so that offsets[N] < T · K then), or empty. Throws usage_error on sizes, overlap, and on ids that
/// are out of range, before anything is written.
inline void build_dispatch(std::span<const expert_id> experts, index_t top_k,
                           std::span<const status> statuses, const dispatch_lists& out) {
  detail::check_lists("build_dispatch", out, experts, statuses);
  detail::check_ids("build_dispatch", experts, top_k, statuses, static_cast<index_t>(out.offsets.size()) - 1);
  for (index_t& offset : out.offsets) {
    offset = 0;
  }
  count_load(experts, top_k, statuses, out.offsets.first(out.offsets.size() - 1));
  index_t first = 0;  // counts become offsets of first tokens …
  for (index_t& offset : out.offsets) {
    const index_t count = offset;
    offset = first;
    first += count;
  }
  detail::for_entries(experts, top_k, statuses, [&](index_t entry, index_t expert) {
    const auto at = static_cast<std::size_t>(out.offsets[static_cast<std::size_t>(expert)]++);
    out.tokens[at] = entry / top_k;
    if (!out.entries.empty()) {
      out.entries[at] = entry;
    }
  });
  for (std::size_t i = out.offsets.size() - 1; i > 0; --i) {  // … which moved to their ends: shift them back
    out.offsets[i] = out.offsets[i - 1];
  }
  out.offsets[0] = 0;
}

MPIROUTER_END

// ---- mpi_router/router/selection.hpp
// Which experts a token gets: the best K of N, ties to the lower index.

MPIROUTER_BEGIN
namespace detail {

/// The best `capacity` of what is offered in ascending order of index, best first; ties stay in that order.
/// `keys` holds as many elements.
template <Accumulator S>
class best_list {
 public:
  best_list(expert_id* ids, S* keys, index_t capacity) : ids_(ids), keys_(keys), capacity_(capacity) {}

  MPIROUTER_ALWAYS_INLINE void offer(index_t id, S key) noexcept {
    if (held_ == capacity_ && !(key > worst_)) {
      return;
    }
    index_t at = held_ < capacity_ ? held_++ : capacity_ - 1;
    for (; at > 0 && key > keys_[at - 1]; --at) {
      ids_[at] = ids_[at - 1];
      keys_[at] = keys_[at - 1];
    }
    ids_[at] = static_cast<expert_id>(id);
    keys_[at] = key;
    worst_ = keys_[held_ - 1];
  }

 private:
  expert_id* ids_;
  S* keys_;
  index_t capacity_;
  index_t held_ = 0;
  S worst_{};
};

/// A group's key from the sum of its best experts: one with an open expert comes before all of which no
/// expert is open, though closed ones make its sum −∞ too.
template <Accumulator S>
[[nodiscard]] S group_key(S sum, S best) noexcept {
  const S key = as_key(sum);
  return is_minus_infinity(key) && !is_minus_infinity(best) ? std::numeric_limits<S>::lowest() : key;
}

/// The key of a group by the sum of its `count` largest keys, largest first.
template <Accumulator S>
[[nodiscard]] S score_of_group(const S* keys, index_t size, index_t count, S* best) noexcept {
  if (count <= 2) {  // the usual ones, without a branch
    S first = -infinite<S>;
    S second = first;
    for (index_t i = 0; i < size; ++i) {
      const S less = keys[i] > first ? first : keys[i];
      second = less > second ? less : second;
      first = keys[i] > first ? keys[i] : first;
    }
    return count == 1 ? first : group_key(first + second, first);
  }
  index_t held = 0;
  for (index_t i = 0; i < size; ++i) {
    index_t at = held < count ? held++ : count;
    for (; at > 0 && keys[i] > best[at - 1]; --at) {
      if (at < count) best[at] = best[at - 1];
    }
    if (at < count) best[at] = keys[i];
  }
  S sum{0};
  for (index_t i = 0; i < held; ++i) {
    sum += best[i];
  }
  return group_key(sum, best[0]);
}

/// Writes the K best experts to ids, best first, ties to the lower index, from the best groups alone.
/// `scratch` has 3N elements.
template <Accumulator S>
void select(const gating_options& options, const S* keys, index_t n, S* scratch, expert_id* ids) noexcept {
  best_list<S> best(ids, scratch, options.top_k);
  if (options.n_group == options.topk_group) {
    for (index_t i = 0; i < n; ++i) {
      best.offer(i, keys[i]);
    }
    return;
  }
  const index_t groups = options.n_group;
  const index_t size = n / groups;
  S* const group_scores = scratch + n;
  S* const taken = group_scores + groups;
  for (index_t g = 0; g < groups; ++g) {
    group_scores[g] =
        score_of_group(keys + g * size, size, core::experts_in_group_score(options, size), taken + groups);
    taken[g] = S{0};
  }
  for (index_t round = 0; round < options.topk_group; ++round) {
    index_t chosen = -1;
    for (index_t g = 0; g < groups; ++g) {
      if (taken[g] == S{0} && (chosen < 0 || group_scores[g] > group_scores[chosen])) {
        chosen = g;
      }
    }
    taken[chosen] = S{1};
  }
  for (index_t g = 0; g < groups; ++g) {
    for (index_t i = g * size; taken[g] != S{0} && i < (g + 1) * size; ++i) {
      best.offer(i, keys[i]);
    }
  }
}

/// Whether the order of the logits is the order of the scores that experts are selected by: scores are
/// monotone, so it is where they are neither biased nor added up. The order is exact then: scores that are
/// rounded to the same number, as those of a saturated sigmoid, do not tie.
[[nodiscard]] inline bool selects_by_logits(const gating_options& options, index_t num_experts,
                                            bool is_biased) {
  const bool adds_scores = options.n_group != options.topk_group &&
                           core::experts_in_group_score(options, num_experts / options.n_group) > 1;
  return options.order == selection_order::select_then_score || (!is_biased && !adds_scores);
}

/// Selects K of the experts whose logits are x. `scratch` has 5N elements. No logit is NaN, or the token gets
/// no weights.
template <class Score, Accumulator S>
void select_experts(const gating_options& options, const S* x, index_t n, const vector_view<const S>& bias,
                    S* scratch, expert_id* ids) {
  S* const keys = scratch + 3 * n;
  S* const scores = keys + n;
  const S* selected_by = x;
  if (!selects_by_logits(options, n, bias.size() != 0)) {
    score_values<Score>(x, n, Score::is_exponential ? largest_of(x, n) : S{0}, scores);
    if constexpr (Score::is_exponential) {
      const S scale = S{1} / sum_terms<S>(n, [scores](index_t i) { return scores[i]; });
      for (index_t i = 0; i < n; ++i) {
        scores[i] *= scale;
      }
    }
    selected_by = scores;
  }
  if (bias.size() != 0) {
    for (index_t i = 0; i < n; ++i) {
      keys[i] = as_key(selected_by[i] + bias[i]);
    }
    selected_by = keys;
  }
  select(options, selected_by, n, scratch, ids);
}

}  // namespace detail
MPIROUTER_END

// ---- mpi_router/router/gate_token.hpp
// One token: the weights of its experts, and their backward. What gating.hpp and gating_vjp.hpp share.
//
// A weight is c p_k with p_k = s_k / Σ s, a share of the scores, and x̄_k = c p_k (ḡ_k − Σ_j ḡ_j p_j)(log
// s_k)′. Both need the same shares, and where scores leave the normal range these come from logarithms:
// nothing is divided by what may vanish.

MPIROUTER_BEGIN
namespace detail {

/// Elements of scratch for one token: a copy of its logits, and what selection or weighing needs.
[[nodiscard]] constexpr index_t token_scratch(index_t num_experts) noexcept { return 6 * num_experts; }

/// What the score of a selected expert is divided by: the sum over the selected ones, or over all, or
/// nothing.
enum class share_of : unsigned char { selected, all, one };

template <class Score>
[[nodiscard]] constexpr share_of divisor_of(const gating_options& options) noexcept {
  if (options.renormalize || (Score::is_exponential && options.order == selection_order::select_then_score)) {
    return share_of::selected;
  }
  return Score::is_exponential ? share_of::all : share_of::one;
}

/// factor · e^exponent for an exponent ≤ 0, also where the power by itself is below the smallest number.
[[nodiscard]] inline double times_exp(double factor, double exponent) noexcept {
  const double half = std::exp(exponent / 2);
  return factor * half * half;
}

/// The shares p_k of the K selected experts of a token.
template <class Score, Accumulator S>
class token_shares {
 public:
  /// x: all N logits; selected: those of the K, −∞ for a closed expert; scratch: 2N elements.
  token_shares(const gating_options& options, const S* x, index_t n, const S* selected, S* scratch)
      : divisor_(divisor_of<Score>(options)), selected_(selected), values_(scratch), all_(scratch + n) {
    S* const values = scratch;
    const index_t k = options.top_k;
    if constexpr (Score::is_exponential) {
      largest_ = divisor_ == share_of::all ? largest_of(x, n) : largest_of(selected, k);
      if (!is_finite(largest_)) {  // nothing but −∞: shares of zero where better ones were not selected
        are_defined_ = largest_ < S{0} && options.order == selection_order::score_then_select;
        return;
      }
    }
    score_values<Score>(selected, k, largest_, values);
    const S sum = sum_terms<S>(k, [values](index_t i) { return values[i]; });
    are_defined_ = is_finite(sum);
    if (divisor_ == share_of::all) {
      S* const all = scratch + n;
      score_values<Score>(x, n, largest_, all);
      sum_of_all_ = sum_terms<S>(n, [all](index_t i) { return all[i]; });
    }
    const S divisor = divisor_ == share_of::selected ? sum : sum_of_all_;
    are_direct_ = *std::min_element(values, values + k) >= least_divisor<S> * std::max(divisor, S{1});
    if (are_direct_) {
      for (index_t i = 0; i < k; ++i) {
        values[i] /= divisor;
      }
    } else {
      scaled_divisor_ = divisor_ == share_of::selected ? sum_of_scores<Score>(selected, k)
                        : divisor_ == share_of::all    ? scaled_sum{largest_, sum_of_all_}
                                                       : scaled_sum{};
    }
  }

  /// False where a score is infinite, or where there is none.
  [[nodiscard]] bool are_defined() const noexcept { return are_defined_; }
  [[nodiscard]] share_of divisor() const noexcept { return divisor_; }

  /// factor · p_k, also where p_k by itself is below the smallest number.
  [[nodiscard]] double times(double factor, index_t k) const noexcept {
    if (are_direct_) {
      return factor * values_[k];
    }
    const double log_score = detail::log_score<Score>(selected_[k]);
    return is_finite(log_score) && is_finite(scaled_divisor_.largest)
               ? times_exp(factor / scaled_divisor_.sum, log_score - scaled_divisor_.largest)
               : 0.0;
  }

  /// out_i −= factor · p_i with p the shares of all N experts.
  void subtract_all(double factor, const S* x, index_t n, const vector_view<S>& out) const {
    const double scale = factor / sum_of_all_;  // may be out of the range of S where its products are not
    const double largest = largest_;
    const S least = std::abs(factor) > 1 ? least_divisor<S> : S{0};  // what is small may come out large
    for (index_t i = 0; i < n; ++i) {
      out[i] -= static_cast<S>(all_[i] < least ? times_exp(scale, x[i] - largest) : all_[i] * scale);
    }
  }

 private:
  share_of divisor_;
  const S* selected_;
  const S* values_;
  S largest_{0};
  const S* all_;     ///< scores of all in units of that of the largest, where they are divided by
  S sum_of_all_{1};  ///< 1 where nothing is divided by
  scaled_sum scaled_divisor_{-infinite<double>, 1};  ///< where shares are not direct
  bool are_defined_ = false;
  bool are_direct_ = false;
};

/// Whether a selection bias closes an expert: −∞ does, and so does NaN, by which none can be preferred.
template <Accumulator S>
[[nodiscard]] bool closes(S bias) noexcept {
  return is_nan(bias) || (bias < S{0} && !is_finite(bias));
}

/// The logits of the selected experts, −∞ for those that the bias closes. Returns how many are open.
template <Accumulator S>
index_t gather_open(const S* x, index_t top_k, const vector_view<const S>& bias, const expert_id* ids,
                    S* selected) noexcept {
  index_t open = 0;
  for (index_t k = 0; k < top_k; ++k) {
    const bool is_open = bias.size() == 0 || !closes(bias[ids[k]]);
    selected[k] = is_open ? x[ids[k]] : -infinite<S>;
    open += is_open ? 1 : 0;
  }
  return open;
}

/// use(shares) for a token that has weights; what became of it. A closed expert has the share zero. x: N
/// logits; ids: K experts; scratch: 3N elements.
template <class Score, Accumulator S, class Use>
status with_shares(const gating_options& options, const S* x, index_t n, const vector_view<const S>& bias,
                   const expert_id* ids, S* scratch, const Use& use) {
  const bool over_all = Score::is_exponential && options.order == selection_order::score_then_select;
  if (has_nan(vector_view<const S>(x, n)) || (over_all && !is_finite(largest_of(x, n)))) {
    return status::non_finite;
  }
  const index_t open = gather_open(x, options.top_k, bias, ids, scratch);
  if (open == 0) {
    return status::closed_expert;
  }
  const token_shares<Score, S> shares(options, x, n, scratch, scratch + n);
  bool is_defined = shares.are_defined();
  for (index_t k = 0; is_defined && k < options.top_k; ++k) {
    is_defined = is_finite(static_cast<S>(shares.times(options.scaling_factor, k)));
  }
  if (!is_defined) {
    return status::non_finite;
  }
  use(shares);
  return open == options.top_k ? status::ok : status::closed_expert;
}

/// The weights of given experts; zeros where there are none.
template <class Score, Accumulator S>
status weigh_token(const gating_options& options, const S* x, index_t n, const vector_view<const S>& bias,
                   const expert_id* ids, S* scratch, const vector_view<S>& weights) {
  for (index_t k = 0; k < options.top_k; ++k) {
    weights[k] = S{0};
  }
  return with_shares<Score>(options, x, n, bias, ids, scratch, [&](const token_shares<Score, S>& shares) {
    for (index_t k = 0; k < options.top_k; ++k) {
      weights[k] = static_cast<S>(shares.times(options.scaling_factor, k));
    }
  });
}

/// Experts and weights of one token. `scratch` has token_scratch(N) elements.
template <class Score, Accumulator S>
status gate_token(const gating_options& options, const vector_view<const S>& logits,
                  const vector_view<const S>& bias, S* scratch, expert_id* ids,
                  const vector_view<S>& weights) {
  const index_t n = logits.size();
  const S* const x = contiguous(logits, scratch);
  select_experts<Score>(options, x, n, bias, scratch + n, ids);
  const status state = weigh_token<Score>(options, x, n, bias, ids, scratch + n, weights);
  for (index_t k = 0; state == status::non_finite && k < options.top_k; ++k) {
    ids[k] = static_cast<expert_id>(k);
  }
  return state;
}

/// grad_logits += the gradient of the weights' inner product with grad; the choice of experts is constant.
template <class Score, Accumulator S>
void gate_token_vjp(const gating_options& options, const vector_view<const S>& logits,
                    const vector_view<const S>& bias, const expert_id* ids, const vector_view<const S>& grad,
                    S* scratch, const vector_view<S>& grad_logits) {
  const index_t n = logits.size();
  const index_t top_k = options.top_k;
  const S* const x = contiguous(logits, scratch);
  (void)with_shares<Score>(options, x, n, bias, ids, scratch + n, [&](const token_shares<Score, S>& shares) {
    const auto sum = [&](double factor) {  // factor · Σ ḡ_k p_k
      double total = 0;
      for (index_t k = 0; k < top_k; ++k) {
        total += shares.times(factor * grad[k], k);
      }
      return total;
    };
    const double mean = shares.divisor() == share_of::one ? 0.0 : sum(1);
    if (shares.divisor() == share_of::all) {
      S* const kept = scratch + 4 * n;  // open experts get p (ḡ − mean) in one: the terms may overflow
      for (index_t k = 0; k < top_k; ++k) {
        kept[k] = grad_logits[ids[k]];
      }
      shares.subtract_all(sum(options.scaling_factor), x, n, grad_logits);
      for (index_t k = 0; k < top_k; ++k) {
        if (bias.size() == 0 || !closes(bias[ids[k]])) {
          grad_logits[ids[k]] = kept[k];
        }
      }
    }
    for (index_t k = 0; k < top_k; ++k) {
      const double upstream = (grad[k] - mean) * options.scaling_factor;
      const double slope = Score::template log_derivative<host_math>(x[ids[k]]);
      grad_logits[ids[k]] += static_cast<S>(shares.times(upstream * slope, k));
    }
  });
}

}  // namespace detail
MPIROUTER_END

// ---- mpi_router/router/products.hpp
// The GEMMs around the router: tokens by rows, and the two of the backward. Plain loops over any view, about
// as fast as a good library on one core; hand in another GEMM to use your own BLAS.

#include <cstring>

MPIROUTER_BEGIN

/// A GEMM: `multiply(a, b, c, mode)` sets c to a b, or adds a b to it. a is [m, k], b is [k, n], c is [m, n]
/// of S, any strides. The result may depend on the shapes and strides of the call and on nothing else, so
/// that it is the same for any number of threads: the callers cut their work by shape alone.
template <class P, class A, class B, class S>
concept MatrixProduct = requires(const P& product, matrix_view<const A> a, matrix_view<const B> b,
                                 matrix_view<S> c, gradient_mode mode) { product.multiply(a, b, c, mode); };

namespace detail {

/// A few contiguous elements of S that the compiler keeps in one register.
template <Accumulator S>
struct pack {
#if defined(__AVX512F__)
  static constexpr index_t bytes = 64;
#elif defined(__AVX__)
  static constexpr index_t bytes = 32;
#else
  static constexpr index_t bytes = 16;
#endif
  static constexpr index_t size = bytes / static_cast<index_t>(sizeof(S));
#if defined(__GNUC__)
  using type [[gnu::vector_size(bytes)]] = S;
  MPIROUTER_ALWAYS_INLINE static void add_product(type& sum, S a, const type& b) noexcept { sum += a * b; }
#else
  using type = std::array<S, size>;
  MPIROUTER_ALWAYS_INLINE static void add_product(type& sum, S a, const type& b) noexcept {
    for (std::size_t i = 0; i < sum.size(); ++i) {
      sum[i] += a * b[i];
    }
  }
#endif
};

}  // namespace detail

/// A GEMM by plain loops: tiles of the result in registers, panels of b packed on the stack. Any strides, any
/// storage types; sums in S, in runs of 128 terms. No allocation, one thread. Takes 18 KiB of stack with
/// registers of 16 bytes, 34 with 32 and 66 with 64 (AVX-512), and 2 more in double.
class plain_products {
 public:
  template <Scalar A, Scalar B, Accumulator S>
  void multiply(const matrix_view<const A>& a, const matrix_view<const B>& b, const matrix_view<S>& c,
                gradient_mode mode) const {
    detail::expect(a.cols() == b.rows() && a.rows() == c.rows() && b.cols() == c.cols(), "multiply: [",
                   a.rows(), ", ", a.cols(), "] times [", b.rows(), ", ", b.cols(), "] is not [", c.rows(),
                   ", ", c.cols(), "]");
    using t = tile<S>;
    if (!core::accumulates(mode)) {
      set_zero(c);
    }
    alignas(64) std::array<S, static_cast<std::size_t>(depth * panels * t::width)> packed;
    alignas(64) std::array<S, static_cast<std::size_t>(depth * height)> copy;
    static_assert(sizeof packed + sizeof copy <= std::size_t{68} * 1024, "as documented above");
    for (index_t k = 0; k < a.cols(); k += depth) {
      const index_t terms = std::min(depth, a.cols() - k);
      for (index_t j = 0; j < c.cols(); j += panels * t::width) {
        const index_t last = std::min(c.cols(), j + panels * t::width);
        for (index_t at = j; at < last; at += t::width) {
          pack_panel(b, k, terms, at, packed.data() + (at - j) * depth);
        }
        for (index_t i = 0; i < c.rows(); i += height) {
          const auto rows = rows_of(a, i, k, terms, copy.data());
          for (index_t at = j; at < last; at += t::width) {
            t::add(rows, packed.data() + (at - j) * depth, terms, c, i, at);
          }
        }
      }
    }
  }

 private:
  static constexpr index_t depth = 128;
  static constexpr index_t height = 4;
  static constexpr index_t panels = 4;

  /// `height` rows of contiguous elements, `stride` elements apart.
  template <class S>
  struct row_block {
    const S* data;
    index_t stride;
  };

  /// height × width elements of the result.
  template <class S>
  struct tile {
    using pack = detail::pack<S>;
    static constexpr index_t packs = 2;
    static constexpr index_t width = packs * pack::size;

    /// c(i.., j..) += rows times panel.
    static void add(row_block<S> rows, const S* panel, index_t terms, const matrix_view<S>& c, index_t i,
                    index_t j) noexcept {
      typename pack::type sum[height][packs] = {};
      const S* row[height];
      for (index_t m = 0; m < height; ++m) {
        row[m] = rows.data + m * rows.stride;
      }
      for (index_t k = 0; k < terms; ++k) {
        typename pack::type b[packs];
        std::memcpy(b, panel + k * width, sizeof b);
        for (index_t m = 0; m < height; ++m) {
          for (index_t n = 0; n < packs; ++n) {
            pack::add_product(sum[m][n], row[m][k], b[n]);
          }
        }
      }
      S out[static_cast<std::size_t>(height)][static_cast<std::size_t>(width)];
      std::memcpy(out, sum, sizeof out);
      const index_t m_count = std::min(height, c.rows() - i);
      const index_t n_count = std::min(width, c.cols() - j);
      for (index_t m = 0; m < m_count; ++m) {
        for (index_t n = 0; n < n_count; ++n) {
          c(i + m, j + n) += out[m][n];
        }
      }
    }
  };

  template <class S>
  static void set_zero(const matrix_view<S>& c) noexcept {
    for (index_t i = 0; i < c.rows(); ++i) {
      for (index_t j = 0; j < c.cols(); ++j) {
        c(i, j) = S{0};
      }
    }
  }

  /// b(k.., j..) as [terms][width], zeros beyond the last column.
  template <class B, class S>
  static void pack_panel(const matrix_view<const B>& b, index_t k, index_t terms, index_t j,
                         S* panel) noexcept {
    constexpr index_t width = tile<S>::width;
    const index_t n = std::min(width, b.cols() - j);
    for (index_t term = 0; term < terms; ++term) {
      for (index_t col = 0; col < width; ++col) {
        panel[term * width + col] = col < n ? widen<S>(b(k + term, j + col)) : S{0};
      }
    }
  }

  /// The rows in place where they are contiguous elements of S, otherwise a copy; zeros beyond the last row.
  template <class A, class S>
  static row_block<S> rows_of(const matrix_view<const A>& a, index_t i, index_t k, index_t terms,
                              S* copy) noexcept {
    const index_t m = std::min(height, a.rows() - i);
    if constexpr (std::same_as<A, S>) {
      if (m == height && a.col_stride() == 1) {
        return {a.data() + i * a.row_stride() + k, a.row_stride()};
      }
    }
    for (index_t term = 0; term < terms; ++term) {
      for (index_t row = 0; row < height; ++row) {
        copy[row * depth + term] = row < m ? widen<S>(a(i + row, k + term)) : S{0};
      }
    }
    return {copy, depth};
  }
};

MPIROUTER_END

// ---- mpi_router/router/logits.hpp
// The logits of tokens, x R′ᵀ + b, and their backward.

MPIROUTER_BEGIN
namespace detail {

template <Accumulator S, class X>
void check_logits(const char* what, const matrix_view<X>& tokens, const matrix_view<const S>& rows,
                  const vector_view<const S>& bias, const matrix_view<S>& logits) {
  expect(tokens.cols() == rows.cols() && logits.rows() == tokens.rows() && logits.cols() == rows.rows(), what,
         ": tokens [", tokens.rows(), ", ", tokens.cols(), "], rows [", rows.rows(), ", ", rows.cols(),
         "], logits [", logits.rows(), ", ", logits.cols(), "]");
  expect(bias.size() == 0 || bias.size() == rows.rows(), what, ": a bias of the logits of ", bias.size(),
         " elements for ", rows.rows(), " experts");
  expect_apart(what, {"the logits", addresses(logits)},
               {{"the tokens", addresses(tokens)},
                {"the rows", addresses(rows)},
                {"the bias of the logits", addresses(bias)}});
}

/// The logits of the tokens [first, first + count).
template <class X, Accumulator S, class Product>
void block_of_logits(const matrix_view<X>& tokens, const matrix_view<const S>& rows,
                     const vector_view<const S>& bias, const matrix_view<S>& logits, const Product& product,
                     index_t first, index_t count) {
  const matrix_view<S> out = logits.middle_rows(first, count);
  for (index_t t = 0; bias.size() != 0 && t < count; ++t) {
    for (index_t i = 0; i < bias.size(); ++i) {
      out(t, i) = bias[i];
    }
  }
  product.multiply(matrix_view<const std::remove_const_t<X>>(tokens.middle_rows(first, count)),
                   rows.transposed(), out,
                   bias.size() != 0 ? gradient_mode::accumulate : gradient_mode::write);
}

/// grad_bias ← or += Σ_t grad_logits, one task for each 64 experts.
template <Accumulator S, class Run>
void sum_of_rows(const matrix_view<const S>& grad_logits, const vector_view<S>& grad_bias, bool accumulate,
                 const Run& executor) {
  constexpr index_t width = 64;
  const index_t n = grad_bias.size();
  executor(n / width + (n % width != 0 ? 1 : 0), [&](index_t block) {
    const index_t first = block * width;
    const index_t count = std::min(width, n - first);
    std::array<double, static_cast<std::size_t>(width)> sum{};
    for (index_t t = 0; t < grad_logits.rows(); ++t) {
      for (index_t i = 0; i < count; ++i) {
        sum[static_cast<std::size_t>(i)] += grad_logits(t, first + i);
      }
    }
    for (index_t i = 0; i < count; ++i) {
      const S before = accumulate ? grad_bias[first + i] : S{0};
      grad_bias[first + i] = before + static_cast<S>(sum[static_cast<std::size_t>(i)]);
    }
  });
}

}  // namespace detail

/// The logits of all tokens, x R′ᵀ + b: tokens [T, D] of any storage type, rows [N, D], bias: N elements, as
/// the routers of gpt-oss have it, or empty; logits [T, N], apart from the others, summed in S. One task for
/// each 256 tokens. Throws usage_error on shapes and overlap.
template <Scalar X, Accumulator S, class Run = serial_executor, class Product = plain_products>
  requires MatrixProduct<Product, std::remove_const_t<X>, S, S>
void router_logits(const matrix_view<X>& tokens, std::type_identity_t<matrix_view<const S>> rows,
                   std::type_identity_t<vector_view<const S>> bias, const matrix_view<S>& logits,
                   const Run& executor = {}, const Product& product = {}) {
  detail::check_logits<S>("router_logits", tokens, rows, bias, logits);
  detail::for_token_blocks(executor, tokens.rows(), [&](index_t first, index_t count, index_t) {
    detail::block_of_logits<X, S>(tokens, rows, bias, logits, product, first, count);
  });
}

/// The same without a bias.
template <Scalar X, Accumulator S, class Run = serial_executor, class Product = plain_products>
  requires MatrixProduct<Product, std::remove_const_t<X>, S, S>
void router_logits(const matrix_view<X>& tokens, std::type_identity_t<matrix_view<const S>> rows,
                   const matrix_view<S>& logits, const Run& executor = {}, const Product& product = {}) {
  router_logits(tokens, rows, {}, logits, executor, product);
}

namespace detail {

template <Accumulator S, class X>
void check_logits_vjp(const char* what, const matrix_view<X>& tokens, const matrix_view<const S>& rows,
                      const matrix_view<const S>& grad_logits, const matrix_view<S>& grad_tokens,
                      const matrix_view<S>& grad_rows, const vector_view<S>& grad_bias) {
  const auto same = [](const auto& a, const auto& b) {
    return (a.rows() == 0 && a.cols() == 0) || (a.rows() == b.rows() && a.cols() == b.cols());
  };
  expect(tokens.cols() == rows.cols() && grad_logits.rows() == tokens.rows() &&
             grad_logits.cols() == rows.rows() && same(grad_tokens, tokens) && same(grad_rows, rows),
         what, ": tokens [", tokens.rows(), ", ", tokens.cols(), "], rows [", rows.rows(), ", ", rows.cols(),
         "], gradients [", grad_logits.rows(), ", ", grad_logits.cols(), "], [", grad_tokens.rows(), ", ",
         grad_tokens.cols(), "], [", grad_rows.rows(), ", ", grad_rows.cols(), "]");
  expect(grad_bias.size() == 0 || grad_bias.size() == rows.rows(), what, ": the gradient to the bias has ",
         grad_bias.size(), " elements for ", rows.rows(), " experts");
  expect_apart(what,
               {{"the gradient to the tokens", addresses(grad_tokens)},
                {"the gradient to the rows", addresses(grad_rows)},
                {"the gradient to the bias", addresses(grad_bias)}},
               {{"the tokens", addresses(tokens)},
                {"the rows", addresses(rows)},
                {"the gradient of the logits", addresses(grad_logits)}});
}

}  // namespace detail

/// The backward of router_logits: grad_tokens ← or += Ḡ R′, grad_rows ← or += Ḡᵀ X, grad_bias ← or += Σ_t
/// Ḡ_t, with Ḡ = grad_logits, [T, N]. An empty view asks for nothing. One task for each 256 tokens, then one
/// for each 64 columns of grad_rows: every element is summed in the order of the tokens, on any executor.
/// Throws usage_error on shapes and overlap.
template <Scalar X, Accumulator S, class Run = serial_executor, class Product = plain_products>
  requires(MatrixProduct<Product, S, S, S> && MatrixProduct<Product, S, std::remove_const_t<X>, S>)
void router_logits_vjp(const matrix_view<X>& tokens, std::type_identity_t<matrix_view<const S>> rows,
                       std::type_identity_t<matrix_view<const S>> grad_logits,
                       const matrix_view<S>& grad_tokens,
                       const std::type_identity_t<matrix_view<S>>& grad_rows,
                       const std::type_identity_t<vector_view<S>>& grad_bias, gradient_mode mode,
                       const Run& executor = {}, const Product& product = {}) {
  const bool accumulate = core::accumulates(mode);
  detail::check_logits_vjp<S>("router_logits_vjp", tokens, rows, grad_logits, grad_tokens, grad_rows,
                              grad_bias);
  if (!grad_tokens.empty()) {
    detail::for_token_blocks(executor, tokens.rows(), [&](index_t first, index_t count, index_t) {
      product.multiply(grad_logits.middle_rows(first, count), rows, grad_tokens.middle_rows(first, count),
                       mode);
    });
  }
  if (!grad_rows.empty()) {
    constexpr index_t width = 64;
    const index_t d = tokens.cols();
    executor(d / width + (d % width != 0 ? 1 : 0), [&](index_t block) {
      const index_t first = block * width;
      const index_t count = std::min(width, d - first);
      product.multiply(grad_logits.transposed(),
                       matrix_view<const std::remove_const_t<X>>(tokens.middle_cols(first, count)),
                       grad_rows.middle_cols(first, count), mode);
    });
  }
  detail::sum_of_rows<S>(grad_logits, grad_bias, accumulate, executor);
}

/// The same without a bias.
template <Scalar X, Accumulator S, class Run = serial_executor, class Product = plain_products>
  requires(MatrixProduct<Product, S, S, S> && MatrixProduct<Product, S, std::remove_const_t<X>, S>)
void router_logits_vjp(const matrix_view<X>& tokens, std::type_identity_t<matrix_view<const S>> rows,
                       std::type_identity_t<matrix_view<const S>> grad_logits,
                       const matrix_view<S>& grad_tokens,
                       const std::type_identity_t<matrix_view<S>>& grad_rows, gradient_mode mode,
                       const Run& executor = {}, const Product& product = {}) {
  router_logits_vjp(tokens, rows, grad_logits, grad_tokens, grad_rows, {}, mode, executor, product);
}

MPIROUTER_END

// ---- mpi_router/router/router_options.hpp
// What the batched step computes in, and the size of its tape.

MPIROUTER_BEGIN_TYPES

/// The type that the batched step computes in: double where the experts or the rows are stored in double.
template <Scalar T, Scalar R>
using router_scalar_t =
    std::conditional_t<std::same_as<accumulator_t<T>, double> || std::same_as<accumulator_t<R>, double>,
                       double, float>;

/// Elements of the tape: of each expert the rows after each step, and their norms before the retraction.
[[nodiscard]] MPIROUTER_ALWAYS_INLINE constexpr index_t router_tape_size(
    const expert_shape& shape, const router_options& options) noexcept {
  return shape.num_experts * options.steps * (shape.hidden_dim + 2);
}

MPIROUTER_END_TYPES

// ---- mpi_router/router/gating.hpp
// From tokens to experts: logits, selection, weights (Eq. 6).

MPIROUTER_BEGIN_TYPES

/// What a gate tells of T tokens. The views are the caller's.
template <Accumulator S>
struct gate_output {
  matrix_view<S> weights;           ///< [T, K], best expert first
  std::span<expert_id> experts;     ///< T · K, row after row
  std::span<status> statuses = {};  ///< T, or empty: ok, non_finite, masked or closed_expert
};

/// The two biases that routers have, of N elements each or empty. They are never the same thing.
template <Accumulator S>
struct router_biases {
  vector_view<const S> logits{};     ///< added to the logits, as in gpt-oss; its gradient is Σ_t grad_logits
  vector_view<const S> selection{};  ///< added to what experts are selected by, never to their weights, as in
                                     ///< DeepSeek-V3; without a gradient. −∞ closes an expert
};

MPIROUTER_END_TYPES

MPIROUTER_BEGIN

/// Elements of scratch for T tokens and N experts.
[[nodiscard]] constexpr index_t gating_workspace(index_t num_tokens, index_t num_experts) noexcept {
  return detail::token_blocks(num_tokens) * detail::token_scratch(num_experts);
}

namespace detail {

/// What gate, gate_weights and gate_vjp ask of their options, the bias, the mask and the workspace.
template <Accumulator S>
void check_gate(const char* what, const matrix_view<const S>& logits, const gating_options& options,
                const vector_view<const S>& selection_bias, std::span<const status> mask,
                const vector_view<S>& workspace) {
  const index_t t = logits.rows();
  const index_t n = logits.cols();
  core::check_gating(what, options, n);
  expect(selection_bias.size() == 0 || selection_bias.size() == n, what, ": a selection bias of ",
         selection_bias.size(), " elements for ", n, " experts");
  check_mask(what, mask, t);
  expect(workspace.size() >= gating_workspace(t, n) && workspace.is_contiguous(), what,
         ": the workspace has ", workspace.size(), " elements (stride ", workspace.stride(), "), not ",
         gating_workspace(t, n), " contiguous ones");
}

template <class S>
void check_weights(const char* what, const char* name, const matrix_view<S>& weights, index_t num_tokens,
                   index_t top_k) {
  expect(weights.rows() == num_tokens && weights.cols() == top_k, what, ": ", name, " are [", weights.rows(),
         ", ", weights.cols(), "], not [T = ", num_tokens, ", K = ", top_k, "]");
}

template <Accumulator S>
[[nodiscard]] named_range used_workspace(const vector_view<S>& workspace,
                                         const matrix_view<const S>& logits) {
  return {"the workspace", first_elements(workspace, gating_workspace(logits.rows(), logits.cols()))};
}

/// Statuses for T tokens, and the mask apart from all that is written, except the statuses: it may be them.
inline void check_statuses(const char* what, std::span<const status> statuses, std::span<const status> mask,
                           index_t num_tokens, std::initializer_list<named_range> written) {
  check_mask(what, statuses, num_tokens);
  const named_range mask_range{"the mask", addresses_of(mask)};
  expect_apart(what, mask_range, written);
  if (mask.data() != statuses.data()) {
    expect_apart(what, mask_range, {{"the statuses", addresses_of(statuses)}});
  }
}

template <Accumulator S>
void check_output(const char* what, const matrix_view<const S>& logits, const gating_options& options,
                  const vector_view<const S>& selection_bias, const gate_output<S>& out,
                  std::span<const status> mask, const vector_view<S>& workspace) {
  check_weights(what, "the weights", out.weights, logits.rows(), options.top_k);
  expect(static_cast<index_t>(out.experts.size()) == logits.rows() * options.top_k, what, ": ",
         out.experts.size(), " expert ids, not T · K = ", logits.rows() * options.top_k);
  const named_range weights{"the weights", addresses(out.weights)};
  const named_range ids{"the expert ids", addresses_of(out.experts)};
  const named_range work = used_workspace(workspace, logits);
  check_statuses(what, out.statuses, mask, logits.rows(), {weights, ids, work});
  expect_apart(what, {weights, ids, work, {"the statuses", addresses_of(out.statuses)}},
               {{"the logits", addresses(logits)}, {"the selection bias", addresses(selection_bias)}});
}

/// token(t) for each of the tokens [first, first + count) that counts, masked(t) for the others; what became
/// of each.
template <class Token, class Masked>
void for_tokens(index_t first, index_t count, std::span<const status> mask, std::span<status> statuses,
                const Token& token, const Masked& masked) {
  for (index_t t = first; t < first + count; ++t) {
    status state = status::masked;
    if (counts(mask, t)) {
      state = token(t);
    } else {
      masked(t);
    }
    if (!statuses.empty()) {
      statuses[static_cast<std::size_t>(t)] = state;
    }
  }
}

template <class Score, Accumulator S>
void gate_block(const matrix_view<const S>& logits, const gating_options& options,
                const vector_view<const S>& selection_bias, const gate_output<S>& out, S* scratch,
                std::span<const status> mask, index_t first, index_t count) {
  const auto ids = [&](index_t t) { return out.experts.data() + t * options.top_k; };
  for_tokens(
      first, count, mask, out.statuses,
      [&](index_t t) {
        return gate_token<Score, S>(options, logits.row(t), selection_bias, scratch, ids(t),
                                    out.weights.row(t));
      },
      [&](index_t t) {
        std::fill_n(ids(t), options.top_k, expert_id{-1});
        set_zero(out.weights.row(t));
      });
}

/// Throws usage_error where a token that counts names an expert twice.
inline void check_distinct(const char* what, std::span<const expert_id> experts, index_t top_k,
                           std::span<const status> statuses) {
  for_entries(experts, top_k, statuses, [&](index_t entry, index_t expert) {
    for (index_t other = entry / top_k * top_k; other < entry; ++other) {
      expect(experts[static_cast<std::size_t>(other)] != expert, what, ": token ", entry / top_k,
             " has expert ", expert, " twice");
    }
  });
}

}  // namespace detail

/// Selects K experts for each token and weighs them, as `options` says (table: core/gating_options.hpp).
///
/// logits: [T, N], any strides; selection_bias: N elements, or empty: added to what experts are selected by,
/// never to their weights; a NaN that it makes counts as −∞. out: see gate_output; workspace:
/// gating_workspace(T, N) elements; mask: T statuses, or empty (router/mask.hpp); it may be out.statuses. A
/// token's experts come best first, ties to the lower index, also under -ffast-math: by logits in their exact
/// order, or, where there is a bias or a group's scores are added up, by scores as rounded to S.
///
/// Statuses: `ok`; `non_finite`, experts 0 … K − 1 with weights zero: a NaN logit, or weights that would not
/// be finite (softmax of +∞ or of nothing but −∞); `masked`, ids −1 with weights zero; `closed_expert`: the
/// selection bias (−∞ or NaN) leaves fewer than K experts open; closed ones fill up with weight zero, and the
/// open ones share the weights.
///
/// O(T·N) plus the insertions into K places. Nothing is allocated; bitwise the same for every executor.
/// Throws usage_error on shapes, options and overlap, before anything is written.
template <Accumulator S, class Run = serial_executor>
void gate(std::type_identity_t<matrix_view<const S>> logits, const gating_options& options,
          std::type_identity_t<vector_view<const S>> selection_bias, const gate_output<S>& out,
          std::type_identity_t<vector_view<S>> workspace, const Run& executor = {},
          std::span<const status> mask = {}) {
  detail::check_gate<S>("gate", logits, options, selection_bias, mask, workspace);
  detail::check_output<S>("gate", logits, options, selection_bias, out, mask, workspace);
  core::with_score(options.score_function, [&]<class Score>(Score) {
    detail::for_token_blocks(executor, logits.rows(), [&](index_t first, index_t count, index_t block) {
      detail::gate_block<Score, S>(logits, options, selection_bias, out,
                                   workspace.data() + block * detail::token_scratch(logits.cols()), mask,
                                   first, count);
    });
  });
}

/// The weights of experts that were chosen before (router replay): what gate gives where it chooses
/// `experts`, from the logits of now. Its backward is gate_vjp.
///
/// experts: T · K ids, K different ones in [0, N) for each token that counts, in any order; weights: [T, K];
/// workspace: gating_workspace(T, N) elements; mask: which tokens count, or empty; statuses: T, or empty:
/// what became of each token, as gate tells it; they may be the mask. selection_bias: N elements, or empty:
/// which experts are closed. Throws usage_error on shapes, ids and overlap, before anything is written.
template <Accumulator S, class Run = serial_executor>
void gate_weights(std::type_identity_t<matrix_view<const S>> logits, const gating_options& options,
                  std::span<const expert_id> experts, const matrix_view<S>& weights,
                  std::type_identity_t<vector_view<S>> workspace, const Run& executor = {},
                  std::span<const status> mask = {}, std::span<status> statuses = {},
                  std::type_identity_t<vector_view<const S>> selection_bias = {}) {
  constexpr const char* what = "gate_weights";
  const index_t n = logits.cols();
  detail::check_gate<S>(what, logits, options, selection_bias, mask, workspace);
  detail::check_weights(what, "the weights", weights, logits.rows(), options.top_k);
  detail::check_ids(what, experts, options.top_k, mask, logits.rows(), n);
  detail::check_distinct(what, experts, options.top_k, mask);
  const detail::named_range out{"the weights", detail::addresses(weights)};
  const detail::named_range work = detail::used_workspace<S>(workspace, logits);
  detail::check_statuses(what, statuses, mask, logits.rows(), {out, work});
  detail::expect_apart(what, {out, work, {"the statuses", detail::addresses_of(statuses)}},
                       {{"the logits", detail::addresses(logits)},
                        {"the selection bias", detail::addresses(selection_bias)},
                        {"the expert ids", detail::addresses_of(experts)}});
  core::with_score(options.score_function, [&]<class Score>(Score) {
    detail::for_token_blocks(executor, logits.rows(), [&](index_t first, index_t count, index_t block) {
      S* const scratch = workspace.data() + block * detail::token_scratch(n);
      detail::for_tokens(
          first, count, mask, statuses,
          [&](index_t t) {
            return detail::weigh_token<Score, S>(options, detail::contiguous<S>(logits.row(t), scratch), n,
                                                 selection_bias, experts.data() + t * options.top_k,
                                                 scratch + n, weights.row(t));
          },
          [&](index_t t) { detail::set_zero(weights.row(t)); });
    });
  });
}

/// router_logits and gate in one pass over the tokens: each block of logits is used while it is in the cache.
/// The logits are kept, for the backward and the losses. See both for the arguments; `biases` has one for
/// each, say {.selection = b}, and {} is none. Logits of masked tokens are written, and not looked at.
template <Scalar X, Accumulator S, class Run = serial_executor, class Product = plain_products>
  requires MatrixProduct<Product, std::remove_const_t<X>, S, S>
void route(const matrix_view<X>& tokens, std::type_identity_t<matrix_view<const S>> rows,
           const gating_options& options, const std::type_identity_t<router_biases<S>>& biases,
           const matrix_view<S>& logits, const gate_output<S>& out,
           std::type_identity_t<vector_view<S>> workspace, const Run& executor = {},
           const Product& product = {}, std::span<const status> mask = {}) {
  const matrix_view<const S> written = logits;
  detail::check_logits<S>("route", tokens, rows, biases.logits, logits);
  detail::check_gate<S>("route", written, options, biases.selection, mask, workspace);
  detail::check_output<S>("route", written, options, biases.selection, out, mask, workspace);
  const detail::named_range inputs[] = {{"the tokens", detail::addresses(tokens)},
                                        {"the rows", detail::addresses(rows)},
                                        {"the bias of the logits", detail::addresses(biases.logits)}};
  for (const detail::named_range& input : inputs) {
    detail::expect_apart("route", input,
                         {{"the weights", detail::addresses(out.weights)},
                          {"the expert ids", detail::addresses_of(out.experts)},
                          {"the statuses", detail::addresses_of(out.statuses)},
                          detail::used_workspace<S>(workspace, written)});
  }
  detail::expect_apart("route", {"the logits", detail::addresses(logits)},
                       {{"the selection bias", detail::addresses(biases.selection)},
                        {"the mask", detail::addresses_of(mask)}});
  core::with_score(options.score_function, [&]<class Score>(Score) {
    detail::for_token_blocks(executor, tokens.rows(), [&](index_t first, index_t count, index_t block) {
      detail::block_of_logits<X, S>(tokens, rows, biases.logits, logits, product, first, count);
      detail::gate_block<Score, S>(written, options, biases.selection, out,
                                   workspace.data() + block * detail::token_scratch(logits.cols()), mask,
                                   first, count);
    });
  });
}

/// One bias, without its name: it is the selection bias here, and that of the logits in other libraries.
template <Scalar X, Accumulator S, std::convertible_to<vector_view<const S>> Bias,
          class Run = serial_executor, class Product = plain_products>
[[deprecated("say which bias: {.logits = b} or {.selection = b}")]] void route(
    const matrix_view<X>& tokens, std::type_identity_t<matrix_view<const S>> rows,
    const gating_options& options, const Bias& bias, const matrix_view<S>& logits, const gate_output<S>& out,
    std::type_identity_t<vector_view<S>> workspace, const Run& executor = {}, const Product& product = {}) {
  route<X, S>(tokens, rows, options, {.selection = bias}, logits, out, workspace, executor, product);
}

MPIROUTER_END

// ---- mpi_router/router/gating_vjp.hpp
// The backward of the gate: from the weights of the experts to the logits. That of the logits, on to tokens
// and rows, is in logits.hpp.

MPIROUTER_BEGIN

namespace detail {

/// Whoever names closed experts says by which bias.
template <Accumulator S>
void check_closed(const char* what, std::span<const status> statuses,
                  const vector_view<const S>& selection_bias) {
  const bool is_closed = std::find(statuses.begin(), statuses.end(), status::closed_expert) != statuses.end();
  expect(!is_closed || selection_bias.size() != 0, what,
         ": some tokens have closed experts, and no selection bias says which these are");
}

}  // namespace detail

/// The backward of gate and of gate_weights: grad_logits ← or += the gradient of Σ weights · grad_weights
/// with respect to the logits. The choice of experts is constant, and so are the biases. Finite logits give
/// finite gradients, however far from zero or from the best ones they are.
///
/// logits, options, experts: as in the forward; grad_weights: [T, K]; grad_logits: [T, N]; workspace:
/// gating_workspace(T, N) elements; statuses: T, what the gate told of each token, or empty. Tokens that they
/// leave out or that have no weights (non_finite) give nothing: rows of zeros where gradients are written.
/// selection_bias: as in the forward, or empty; it closes experts, whose weights are constants: needed where
/// statuses have closed_expert. O(T·(N + K²)). Bitwise the same for every executor. Throws usage_error on
/// shapes, overlap, ids out of range, and an expert that a token has twice, before anything is written.
template <Accumulator S, class Run = serial_executor>
void gate_vjp(std::type_identity_t<matrix_view<const S>> logits, const gating_options& options,
              std::span<const expert_id> experts, std::type_identity_t<matrix_view<const S>> grad_weights,
              const matrix_view<S>& grad_logits, gradient_mode mode,
              std::type_identity_t<vector_view<S>> workspace, const Run& executor = {},
              std::span<const status> statuses = {},
              std::type_identity_t<vector_view<const S>> selection_bias = {}) {
  constexpr const char* what = "gate_vjp";
  const index_t n = logits.cols();
  const bool accumulate = core::accumulates(mode);
  detail::check_gate<S>(what, logits, options, selection_bias, statuses, workspace);
  detail::check_ids(what, experts, options.top_k, statuses, logits.rows(), n);
  detail::check_weights(what, "the gradients of the weights", grad_weights, logits.rows(), options.top_k);
  detail::check_gradient<S>(what, logits, grad_logits);
  detail::check_closed<S>(what, statuses, selection_bias);
  detail::expect_apart(what,
                       {{"the gradient to the logits", detail::addresses(grad_logits)},
                        detail::used_workspace<S>(workspace, logits)},
                       {{"the logits", detail::addresses(logits)},
                        {"the gradients of the weights", detail::addresses(grad_weights)},
                        {"the selection bias", detail::addresses(selection_bias)},
                        {"the expert ids", detail::addresses_of(experts)},
                        {"the statuses", detail::addresses_of(statuses)}});
  detail::check_distinct(what, experts, options.top_k, statuses);
  core::with_score(options.score_function, [&]<class Score>(Score) {
    detail::for_token_blocks(executor, logits.rows(), [&](index_t first, index_t count, index_t block) {
      for (index_t t = first; t < first + count; ++t) {
        if (!accumulate) {
          detail::set_zero(grad_logits.row(t));
        }
        if (detail::counts(statuses, t)) {
          detail::gate_token_vjp<Score, S>(
              options, logits.row(t), selection_bias, experts.data() + t * options.top_k, grad_weights.row(t),
              workspace.data() + block * detail::token_scratch(n), grad_logits.row(t));
        }
      }
    });
  });
}

MPIROUTER_END

// ---- mpi_router/router/router_factors.hpp
// The gradient to the gate matrices in factored form, over one buffer.

MPIROUTER_BEGIN_TYPES

/// The gradient to the gate matrices as sums of outer products, two for each expert and step that is
/// differentiated: Ā_i = Σ_j projection_j dual_row_jᵀ + dual_projection_j row_jᵀ with j = s · N + i over the
/// steps s. Built over one buffer of size(…) elements.
template <Accumulator S>
class router_factors {
 public:
  /// Steps through which A is differentiated, the last so many.
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE static constexpr index_t terms(const router_options& options) {
    switch (options.through) {
      case differentiate::all: return options.steps;
      case differentiate::last: return 1;
      case differentiate::none: return 0;
    }
    core::unknown_value("differentiate", options.through);
  }
  /// Elements that the factors take: 2 (F + D) for each expert and term.
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE static constexpr index_t size(const expert_shape& shape,
                                                                      const router_options& options) {
    return terms(options) * shape.num_experts * 2 * (shape.ffn_dim + shape.hidden_dim);
  }

  /// Throws usage_error where the buffer is smaller than size(shape, options) or not contiguous.
  MPIROUTER_ALWAYS_INLINE router_factors(vector_view<S> buffer, const expert_shape& shape,
                                         const router_options& options)
      : data_(buffer.data()), shape_(shape), terms_(terms(options)) {
    core::expect(buffer.is_contiguous() && buffer.size() >= size(shape, options),
                 "router_factors: the buffer has ", buffer.size(), " elements, not ", size(shape, options));
  }

  [[nodiscard]] MPIROUTER_ALWAYS_INLINE const expert_shape& shape() const noexcept { return shape_; }
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE index_t terms() const noexcept { return terms_; }
  /// All that the factors take of the buffer.
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE vector_view<S> elements() const {
    return {data_, terms_ * shape_.num_experts * 2 * (shape_.ffn_dim + shape_.hidden_dim)};
  }
  /// The factors of one expert and term.
  [[nodiscard]] MPIROUTER_ALWAYS_INLINE rank2_factors<S> at(index_t term, index_t expert) const {
    core::expect(term >= 0 && term < terms_ && expert >= 0 && expert < shape_.num_experts,
                 "router_factors: term ", term, " of ", terms_, ", expert ", expert, " of ",
                 shape_.num_experts);
    const index_t f = shape_.ffn_dim;
    const index_t d = shape_.hidden_dim;
    S* const base = data_ + (term * shape_.num_experts + expert) * 2 * (f + d);
    return {{base, f}, {base + f, d}, {base + f + d, f}, {base + 2 * f + d, d}};
  }

 private:
  S* data_;
  expert_shape shape_;
  index_t terms_;
};

MPIROUTER_END_TYPES

// ---- mpi_router/router/latent_vjp.hpp
// The backward of latent experts, whose operators are M = PᵀAᵀA P: from the gradient to A P, the factor that
// router_rows_vjp_factored knows, to those of A and of the projection P that all experts of a layer share.

MPIROUTER_BEGIN

/// Elements of scratch that latent_vjp takes: 2 L for each expert and term of the factors of A P.
template <Accumulator S>
[[nodiscard]] index_t latent_vjp_workspace(const router_factors<S>& of_products, index_t latent_dim) {
  return 2 * of_products.terms() * of_products.shape().num_experts * latent_dim;
}

namespace detail {

/// What latent_vjp is given, except the operators.
template <Accumulator S>
struct latent_call {
  const router_factors<S>& of_products;
  const router_factors<S>& of_gates;
  const matrix_view<S>& grad_projection;
  const vector_view<S>& workspace;

  [[nodiscard]] index_t latent_dim() const { return of_gates.shape().hidden_dim; }
  /// Aᵀp or Aᵀq of one expert and term, L elements.
  [[nodiscard]] vector_view<S> lifted(index_t term, index_t expert, index_t which) const {
    const index_t slot = 2 * (term * of_products.shape().num_experts + expert) + which;
    return {workspace.data() + slot * latent_dim(), latent_dim()};
  }

  void check() const {
    const char* const what = "latent_vjp";
    const auto [n, f, d] = of_products.shape();
    const auto [gate_n, gate_f, l] = of_gates.shape();
    expect(n == gate_n && f == gate_f && of_products.terms() == of_gates.terms(), what, ": ",
           of_products.terms(), " factors of A P for [", n, ", ", f, ", ", d, "], ", of_gates.terms(),
           " of A for [", gate_n, ", ", gate_f, ", ", l, "]");
    expect(grad_projection.rows() == l && grad_projection.cols() == d, what, ": P is [L = ", l, ", D = ", d,
           "], its gradient is [", grad_projection.rows(), ", ", grad_projection.cols(), "]");
    const index_t scratch = latent_vjp_workspace(of_products, l);
    expect(workspace.is_contiguous() && workspace.size() >= scratch, what, ": the workspace has ",
           workspace.size(), " elements, not ", scratch);
    expect_apart(what,
                 {{"the factors of A", addresses(of_gates.elements())},
                  {"the gradient of P", addresses(grad_projection)},
                  {"the workspace", first_elements(workspace, scratch)}},
                 {{"the factors of A P", addresses(of_products.elements())}});
  }

  /// Ā = Ā′Pᵀ of one expert, and the lifts that P̄ is made of.
  template <class Gate, class Projection>
  void pull_expert(index_t i, Gate&& gate, Projection&& projection) const {
    const auto copy = [](const vector_view<S>& from, const vector_view<S>& to) {
      std::copy_n(from.data(), from.size(), to.data());
    };
    for (index_t term = 0; term < of_products.terms(); ++term) {
      const auto product = of_products.at(term, i);
      const auto own = of_gates.at(term, i);
      copy(product.projection, own.projection);
      copy(product.dual_projection, own.dual_projection);
      projection.project(product.dual_row, own.dual_row);
      projection.project(product.row, own.row);
      gate.lift(product.projection, lifted(term, i, 0));
      gate.lift(product.dual_projection, lifted(term, i, 1));
    }
  }

  /// Row l of P̄ = Σ AᵀĀ′, experts and terms in their order.
  void add_row(index_t l, bool accumulate) const {
    const auto out = grad_projection.row(l);
    for (index_t d = 0; !accumulate && d < out.size(); ++d) {
      out[d] = S{0};
    }
    for (index_t term = 0; term < of_products.terms(); ++term) {
      for (index_t i = 0; i < of_products.shape().num_experts; ++i) {
        const auto product = of_products.at(term, i);
        const S left = lifted(term, i, 0)[l];
        const S right = lifted(term, i, 1)[l];
        for (index_t d = 0; d < out.size(); ++d) {
          out[d] += left * product.dual_row[d] + right * product.row[d];
        }
      }
    }
  }
};

}  // namespace detail

/// With Ā′ = Σ p w̄ᵀ + q rᵀ the gradient to A P in factored form: Ā = Ā′Pᵀ for each expert, whose factors are
/// p, P w̄, q and P r, and P̄ = Σ_i A_iᵀĀ′_i, over all experts, in S.
///
/// gates(i), projections(i): operators that show A_i, [F, L], and P, [L, D], by project and lift, as gram()
/// does; P is asked of for each expert: tasks run at once. of_products: for {N, F, D}, from
/// router_rows_vjp_factored; of_gates: for {N, F, L}, as many terms, written (add_factors makes matrices of
/// them); grad_projection: [L, D], written or added to as `mode` says; workspace: latent_vjp_workspace
/// elements. What is written lies apart from all else.
///
/// A projection by P and a lift by A for each of the 2 N terms() vectors, and 2 N L D terms() products for P̄.
/// Nothing is allocated; one task an expert, then one a row of P̄; bitwise the same for every executor. An
/// expert without a step gives no gradient. Throws usage_error on shapes and overlap.
template <FactoredGramOperators Gates, FactoredGramOperators Projections, class Run = serial_executor,
          Accumulator S = scalar_of_operators<Gates>>
void latent_vjp(const Gates& gates, const Projections& projections,
                const std::type_identity_t<router_factors<S>>& of_products,
                const std::type_identity_t<router_factors<S>>& of_gates,
                const std::type_identity_t<matrix_view<S>>& grad_projection, gradient_mode mode,
                std::type_identity_t<vector_view<S>> workspace, const Run& executor = {}) {
  const detail::latent_call<S> call{of_products, of_gates, grad_projection, workspace};
  call.check();
  const bool accumulate = core::accumulates(mode);
  const auto [n, f, l] = of_gates.shape();
  for (index_t i = 0; i < n; ++i) {
    auto&& gate = gates(i);
    auto&& projection = projections(i);
    core::expect(static_cast<index_t>(gate.ffn_dim()) == f && static_cast<index_t>(gate.dimension()) == l &&
                     static_cast<index_t>(projection.ffn_dim()) == l &&
                     static_cast<index_t>(projection.dimension()) == of_products.shape().hidden_dim,
                 "latent_vjp: expert ", i, " is [", gate.ffn_dim(), ", ", gate.dimension(), "], P is [",
                 projection.ffn_dim(), ", ", projection.dimension(), "], the factors are for F = ", f,
                 ", L = ", l, ", D = ", of_products.shape().hidden_dim);
  }
  executor(n, [&](index_t i) { call.pull_expert(i, gates(i), projections(i)); });
  executor(l, [&](index_t row) { call.add_row(row, accumulate); });
}

MPIROUTER_END

// ---- mpi_router/backend/apply_experts.hpp
// The batched product u_i = r_i M_i of all experts, spread over threads; the result does not depend on them.
//
// Experts alone are too few tasks where N is small, so the sums over the F neurons of an expert are split
// into blocks. How many, and where they end, depends on F, D and the layout: not on threads, not on N.
// Each block gives a partial image, and the partial images of an expert are added in order. So the bits are
// the same for every executor, and for an expert on its own or in any batch.

MPIROUTER_BEGIN

namespace detail {

/// A block reads at least this many weights, so that adding its D partial sums costs little beside it.
inline constexpr index_t block_weights = index_t{1} << 18;
/// And no expert has more blocks than this.
inline constexpr index_t most_blocks = 16;
/// With this many experts each is one task: threads enough for anyone have work, and partial images stay in
/// cache.
inline constexpr index_t many_experts = 64;

/// Blocks end at multiples of so many neurons: a group of rows, or, where neurons are contiguous in memory,
/// as many as a panel of floats has, for memory gives short pieces slowly. An expert of fewer is one task.
[[nodiscard]] constexpr index_t block_unit(const expert_strides& strides) noexcept {
  return strides.ffn == 1 ? 2048 : 8;
}
/// Blocks of neurons of one expert, none of them empty; an empty expert has one.
[[nodiscard]] constexpr index_t blocks_of(const expert_shape& s, index_t unit) noexcept {
  const index_t units = (s.ffn_dim + unit - 1) / unit;
  const index_t by_size = s.ffn_dim * s.hidden_dim / block_weights;
  const index_t most = units < most_blocks ? units : most_blocks;
  return most <= 1 || by_size <= 1 ? 1 : (by_size < most ? by_size : most);
}
/// First neuron of a block.
[[nodiscard]] constexpr index_t block_start(const expert_shape& s, index_t unit, index_t block) noexcept {
  const index_t units = (s.ffn_dim + unit - 1) / unit;
  const index_t first = unit * (units * block / blocks_of(s, unit));
  return first < s.ffn_dim ? first : s.ffn_dim;
}

/// image += partial.
template <Accumulator S>
void add_to(const vector_view<S>& image, const vector_view<S>& partial) noexcept {
  for (index_t d = 0; d < image.size(); ++d) {
    image[d] += partial[d];
  }
}

/// Where the partial images and energies of one task's block are.
template <Accumulator S>
struct partial_sums {
  S* data;
  index_t dimension;
  [[nodiscard]] vector_view<S> image(index_t slot) const {
    return {data + slot * (dimension + 1), dimension};
  }
  [[nodiscard]] S& energy(index_t slot) const { return data[slot * (dimension + 1) + dimension]; }
  /// Those of the slots [first, end), in order.
  void add_up(index_t first, index_t end, const vector_view<S>& to, S& energies) const {
    copy_into<S>(image(first), to);
    energies = energy(first);
    for (index_t slot = first + 1; slot < end; ++slot) {
      add_to(to, image(slot));
      energies += energy(slot);
    }
  }
};

}  // namespace detail

/// Elements of S that apply_experts needs as scratch.
[[nodiscard]] constexpr index_t apply_experts_workspace(const expert_shape& shape) noexcept {
  const index_t blocks = detail::blocks_of(shape, 8);  // in the layout that has most
  const index_t slots = blocks == 1 ? 0 : (shape.num_experts >= detail::many_experts ? 1 : blocks);
  return shape.num_experts * slots * (shape.hidden_dim + 1);
}

namespace detail {

template <Accumulator S>
void expect_apply_experts(const expert_shape& shape, const matrix_view<const S>& rows,
                          const matrix_view<S>& images, const vector_view<S>& energies,
                          const vector_view<S>& workspace) {
  const auto [n, f, d] = shape;
  expect(rows.rows() == n && rows.cols() == d && images.rows() == n && images.cols() == d &&
             energies.size() == n,
         "apply_experts: the experts are [", n, ", ", f, ", ", d, "], but the rows are [", rows.rows(), ", ",
         rows.cols(), "], the images [", images.rows(), ", ", images.cols(), "] and there are ",
         energies.size(), " energies");
  const index_t needed = apply_experts_workspace(shape);
  expect(workspace.size() >= needed && workspace.is_contiguous(), "apply_experts: the workspace has ",
         workspace.size(), " elements, not ", needed);
  expect_apart("apply_experts",
               {{"the images", addresses(images)},
                {"the energies", addresses(energies)},
                {"the workspace", first_elements(workspace, needed)}},
               {{"the rows", addresses(rows)}});
}

}  // namespace detail

/// images[i] = rows[i] · M_i and energies[i] = rows[i] M_i rows[i]ᵀ for all experts, M_i = A_iᵀA_i. The
/// partial form: no row is scaled or normalised, so shards of F can be summed before that. O(N·F·D), one read
/// of A from memory.
///
/// experts: [N, F, D] in any layout; rows and images: [N, D]; energies: N elements; workspace:
/// apply_experts_workspace(shape) elements, contiguous. Tasks run on `executor`; nothing is allocated.
/// Bitwise the same for every executor and number of threads. Throws usage_error on shapes and overlap.
template <Scalar T, Accumulator S, class Backend, class Run = serial_executor>
  requires DenseBackend<Backend, std::remove_const_t<T>, S>
void apply_experts(const Backend& backend, const expert_batch_view<T>& experts,
                   const std::type_identity_t<matrix_view<const S>>& rows, const matrix_view<S>& images,
                   const std::type_identity_t<vector_view<S>>& energies,
                   const std::type_identity_t<vector_view<S>>& workspace, const Run& executor = {}) {
  using element = const std::remove_const_t<T>;
  const expert_shape shape = experts.shape();
  const index_t n = shape.num_experts;
  detail::expect_apply_experts<S>(shape, rows, images, energies, workspace);
  const index_t unit = detail::block_unit(experts.strides());
  const index_t blocks = detail::blocks_of(shape, unit);
  const auto apply_block = [&](index_t i, index_t block, const vector_view<S>& image) {
    const index_t first = detail::block_start(shape, unit, block);
    const index_t count = detail::block_start(shape, unit, block + 1) - first;
    const matrix_view<element> a = experts[i];
    return backend.template apply<std::remove_const_t<T>, S>(a.middle_rows(first, count), rows.row(i), image);
  };
  const detail::partial_sums<S> partial{workspace.data(), shape.hidden_dim};
  if (blocks == 1) {
    executor(n, [&](index_t i) { energies[i] = apply_block(i, 0, images.row(i)); });
    return;
  }
  if (n >= detail::many_experts) {  // the same sums, one block after the other
    executor(n, [&](index_t i) {
      energies[i] = apply_block(i, 0, images.row(i));
      for (index_t block = 1; block < blocks; ++block) {
        energies[i] += apply_block(i, block, partial.image(i));
        detail::add_to(images.row(i), partial.image(i));
      }
    });
    return;
  }
  executor(n * blocks, [&](index_t task) {
    partial.energy(task) = apply_block(task / blocks, task % blocks, partial.image(task));
  });
  executor(n, [&](index_t i) { partial.add_up(i * blocks, (i + 1) * blocks, images.row(i), energies[i]); });
}

MPIROUTER_END

// ---- mpi_router/router/expect_rows.hpp
// What the batched step, its halves and its backward refuse.

#include <cstdio>

MPIROUTER_BEGIN
namespace detail {

template <class R>
void expect_rows(const char* what, const char* name, const expert_shape& shape, const matrix_view<R>& rows) {
  const auto [n, f, d] = shape;
  expect(rows.rows() == n && rows.cols() == d, what, ": the experts are [N = ", n, ", F = ", f, ", D = ", d,
         "], ", name, " is [", rows.rows(), ", ", rows.cols(), "]");
}

/// m is like `other`, N × D.
template <class R, class U>
void expect_like(const char* what, const char* of, const matrix_view<U>& other, const char* name,
                 const matrix_view<R>& m) {
  expect(m.rows() == other.rows() && m.cols() == other.cols(), what, ": ", of, " [", other.rows(), ", ",
         other.cols(), "], ", name, " is [", m.rows(), ", ", m.cols(), "]");
}

template <class S>
void expect_workspace(const char* what, const vector_view<S>& workspace, index_t size) {
  expect(workspace.size() >= size && workspace.is_contiguous(), what, ": the workspace has ",
         workspace.size(), " elements (stride ", workspace.stride(), "), not ", size, " contiguous ones");
}

/// No expert meets what is written, and every pointer of the batch is there. O(1) where the batch has one
/// base pointer, otherwise O(N).
template <class T>
void expect_experts_apart(const char* what, const expert_batch_view<T>& experts,
                          std::span<const named_range> written) {
  for_each_range(experts,
                 [&](const address_range& range) { expect_apart(what, {"a gate matrix", range}, written); });
}

/// The radius is checked as the type that steps are taken in, which may be too narrow for it.
template <Accumulator S>
[[nodiscard]] S expect_options(const char* what, const router_options& options, index_t num_experts) {
  expect(options.steps >= 1, what, ": steps is ", options.steps);
  static_cast<void>(keeps(options.degenerate));  // throws here, not in a task
  const double radius = options.radius.of(num_experts > 0 ? num_experts : 1);
  const S narrowed = static_cast<S>(radius);
  if (!is_finite(narrowed) || !(narrowed > S{0})) {
    std::array<char, 32> digits{};
    std::snprintf(digits.data(), digits.size(), "%.9g", radius);
    core::usage_failure(concatenate(what, ": the radius must be positive and finite as ",
                                    sizeof(S) == sizeof(float) ? "float" : "double", ", not ",
                                    digits.data()));
  }
  return narrowed;
}

/// Elements of the tape that are used: all that it needs, or none where it is empty.
template <class S>
[[nodiscard]] index_t expect_tape(const char* what, const vector_view<S>& tape, const expert_shape& shape,
                                  const router_options& options) {
  const index_t needed = router_tape_size(shape, options);
  expect(tape.size() == 0 || (tape.size() >= needed && tape.is_contiguous()), what, ": the tape has ",
         tape.size(), " elements, not ", needed);
  return tape.size() == 0 ? 0 : needed;
}

/// By-products for n experts, or none, and the tape. Returns where they are.
template <Accumulator S>
[[nodiscard]] std::array<named_range, 8> expect_by_products(const char* what,
                                                            const router_by_products<S>& told,
                                                            const expert_shape& shape,
                                                            const router_options& options) {
  const index_t n = shape.num_experts;
  for_each_by_product(told, [&](const char* name, const auto& elements) {
    const auto size = static_cast<index_t>(elements.size());
    expect(size == 0 || size == n, what, ": by-products for ", size, " experts in ", name, ", not ", n);
  });
  const index_t tape = expect_tape(what, told.tape, shape, options);
  return joined(by_product_ranges(told, n), named_range{"the tape", first_elements(told.tape, tape)});
}

}  // namespace detail
MPIROUTER_END

// ---- mpi_router/router/pullback.hpp
// How one step is pulled back through the experts: what a backend may offer for it, where the gradient goes,
// and how the work is cut. What router_rows_vjp.hpp is made of.

MPIROUTER_BEGIN

/// A backend with the one read that the backward needs: y = A p, w = A q and u = wA.
template <class B, class T, class S>
concept PullbackBackend =
    DenseBackend<B, T, S> && requires(const B& backend, matrix_view<const T> a, vector_view<const S> in,
                                      vector_view<S> out) { backend.pull_back(a, in, in, out, out, out); };

/// A backend whose read also writes or adds y qᵀ + w pᵀ to a gradient of element type G as it goes.
template <class B, class T, class S, class G>
concept AccumulatingBackend =
    PullbackBackend<B, T, S> && requires(const B& backend, matrix_view<const T> a, vector_view<const S> in,
                                         vector_view<S> out, matrix_view<G> gradient, gradient_mode mode) {
      backend.pull_back(a, in, in, out, out, out, gradient, mode);
    };

namespace detail {

/// y = A p, w = A q, u = wA: one read of A where the backend has it, three where not.
template <Accumulator S, class T, class Backend>
void pull_back(const Backend& backend, const matrix_view<const T>& a, const rank2_factors<S>& factors,
               const vector_view<S>& image) {
  if constexpr (PullbackBackend<Backend, T, S>) {
    const vector_view<const S> p(factors.row);
    const vector_view<const S> q(factors.dual_row);
    backend.pull_back(a, p, q, factors.projection, factors.dual_projection, image);
  } else {
    const dense_operator<T, S, Backend> op(a, backend);
    pull_back(op, factors, image);
  }
}

/// The gradient goes into matrices, a batch or whatever gives one for each expert; the factors live in
/// scratch.
template <Accumulator S, class G, class Gradient = expert_batch_view<G>>
struct into_matrices {
  const Gradient& gradient;
  gradient_mode mode;

  [[nodiscard]] rank2_factors<S> factors(index_t, index_t, const rank2_factors<S>& scratch) const {
    return scratch;
  }
  /// f(range) for the memory that is written.
  template <class F>
  void for_each_range(const F& f) const {
    detail::for_each_range(gradient, f);
  }
  /// The neurons [first, first + a.rows()) of an expert; f and image are theirs.
  template <class T, class Backend>
  void pull(const Backend& backend, index_t expert, index_t first, bool is_last_step,
            const matrix_view<const T>& a, const rank2_factors<S>& f, const vector_view<S>& image) const {
    const matrix_view<G> to = gradient[expert].middle_rows(first, a.rows());
    const gradient_mode at = is_last_step ? mode : gradient_mode::accumulate;
    if constexpr (AccumulatingBackend<Backend, T, S, G>) {
      backend.pull_back(a, vector_view<const S>(f.row), vector_view<const S>(f.dual_row), f.projection,
                        f.dual_projection, image, to, at);
    } else {
      pull_back<S>(backend, a, f, image);
      add_rank2<S>(f, to, at);
    }
  }
  void degenerate(index_t expert, bool is_last_step, const rank2_factors<S>& zeros) const {
    if (is_last_step && mode == gradient_mode::write) {
      add_rank2<S>(zeros, gradient[expert], mode);
    }
  }
};

/// The gradient stays in factors, which are the caller's.
template <Accumulator S>
struct into_factors {
  const router_factors<S>& all;

  [[nodiscard]] rank2_factors<S> factors(index_t term, index_t expert, const rank2_factors<S>&) const {
    return all.at(term, expert);
  }
  template <class F>
  void for_each_range(const F& f) const {
    f(addresses(all.elements()));
  }
  template <class T, class Backend>
  void pull(const Backend& backend, index_t, index_t, bool, const matrix_view<const T>& a,
            const rank2_factors<S>& f, const vector_view<S>& image) const {
    pull_back<S>(backend, a, f, image);
  }
  void degenerate(index_t, bool, const rank2_factors<S>&) const {}
};

/// The factors of a block of neurons of an expert.
template <Accumulator S>
[[nodiscard]] rank2_factors<S> part_of(const rank2_factors<S>& f, index_t first, index_t count) {
  const auto part = [&](const vector_view<S>& v) { return vector_view<S>(v.data() + first, count); };
  return {part(f.projection), f.dual_row, part(f.dual_projection), f.row};
}

/// images[i] = Σ over blocks of neurons of what pull(i, first, count, image) writes, for all experts: the
/// blocks of apply_experts, their partial images added in order. Many experts are not cut: the bits of one
/// may differ from those that it has in a smaller batch.
template <Accumulator S, class Experts, class Pull, class Run>
void pull_experts(const Experts& experts, const matrix_view<S>& images, const vector_view<S>& workspace,
                  const Run& executor, const Pull& pull) {
  const expert_shape shape = experts.shape();
  const index_t n = shape.num_experts;
  const index_t unit = block_unit(experts.strides());
  const index_t blocks = n >= many_experts ? 1 : blocks_of(shape, unit);
  if (blocks == 1) {
    executor(n, [&](index_t i) { pull(i, index_t{0}, shape.ffn_dim, images.row(i)); });
    return;
  }
  const partial_sums<S> partial{workspace.data(), shape.hidden_dim};
  executor(n * blocks, [&](index_t task) {
    const index_t first = block_start(shape, unit, task % blocks);
    const index_t end = block_start(shape, unit, task % blocks + 1);
    pull(task / blocks, first, end - first, partial.image(task));
  });
  executor(n, [&](index_t i) {
    fill_zero(images.row(i));
    for (index_t task = i * blocks; task < (i + 1) * blocks; ++task) {
      add_to(images.row(i), partial.image(task));
    }
  });
}

}  // namespace detail

MPIROUTER_END

// ---- mpi_router/router/batched_experts.hpp
// How the rows of all experts are multiplied, forward and backward: by a backend where gate matrices are
// dense, by operators of any kind. What the loops of the batched step are written over.

MPIROUTER_BEGIN

namespace detail {

/// Dense gate matrices, multiplied by a backend.
template <Accumulator S, class T, class Backend>
struct dense_experts {
  using element = const std::remove_const_t<T>;
  const expert_batch_view<T>& experts;
  const Backend& backend;

  [[nodiscard]] const expert_shape& shape() const { return experts.shape(); }
  [[nodiscard]] index_t total() const { return experts.total_experts(); }
  /// Elements of scratch for partial images.
  [[nodiscard]] index_t partial() const { return apply_experts_workspace(shape()); }

  void expect_apart(const char* what, std::span<const named_range> written) const {
    expect_experts_apart(what, experts, written);
  }
  /// images_i = rows_i M_i, and the energies.
  template <class Run>
  void multiply(const matrix_view<const S>& rows, const matrix_view<S>& images,
                const vector_view<S>& energies, const vector_view<S>& scratch, const Run& executor) const {
    apply_experts(backend, experts, rows, images, energies, scratch, executor);
  }
  [[nodiscard]] row_image<S> measure(index_t i, const vector_view<const S>& row, const vector_view<S>& u,
                                     S energy) const {
    return measure_image(row, u, energy,
                         [&] { return reference{}.apply_scaled(matrix_view<element>(experts[i]), row, u); });
  }
  /// images_i = dual_row_i M_i, and the rest of the gradient to A_i, where an expert has a step.
  template <class Target, class Has, class Factors, class Run>
  void pull_back(const Target& target, bool is_last_step, const Has& has_step, const Factors& factors_of,
                 const matrix_view<S>& images, const vector_view<S>& scratch, const Run& executor) const {
    pull_experts<S>(experts, images, scratch, executor,
                    [&](index_t i, index_t first, index_t count, const vector_view<S>& image) {
                      if (has_step(i) && count > 0) {
                        const matrix_view<element> a = experts[i];
                        target.pull(backend, i, first, is_last_step, a.middle_rows(first, count),
                                    part_of(factors_of(i), first, count), image);
                      } else {
                        fill_zero(image);
                      }
                    });
  }
};

/// Operators of any kind, each expert one task.
template <GramOperators Operators>
class operator_experts {
 public:
  using S = scalar_of_operators<Operators>;

  /// Throws usage_error where an operator does not have the dimension D or, with F, not F neurons.
  operator_experts(const char* what, const Operators& operators, const expert_shape& extents)
      : operators_(operators), shape_(extents) {
    for (index_t i = 0; i < shape_.num_experts; ++i) {
      auto&& op = operators_(i);
      const auto d = static_cast<index_t>(op.dimension());
      expect(d == shape_.hidden_dim, what, ": operator ", i, " has dimension ", d, ", the router is [",
             shape_.num_experts, ", ", shape_.hidden_dim, "]");
      if constexpr (FactoredGramOperator<decltype(op)>) {
        const auto f = static_cast<index_t>(op.ffn_dim());
        expect(shape_.ffn_dim == 0 || f == shape_.ffn_dim, what, ": operator ", i, " has F = ", f,
               ", the factors have F = ", shape_.ffn_dim);
      }
    }
  }

  [[nodiscard]] const expert_shape& shape() const { return shape_; }
  [[nodiscard]] index_t total() const { return shape_.num_experts; }
  [[nodiscard]] index_t partial() const { return 0; }
  void expect_apart(const char*, std::span<const named_range>) const {}  // where they are, they know

  template <class Run>
  void multiply(const matrix_view<const S>& rows, const matrix_view<S>& images,
                const vector_view<S>& energies, const vector_view<S>&, const Run& executor) const {
    executor(shape_.num_experts, [&](index_t i) {
      auto&& op = operators_(i);
      energies[i] = static_cast<S>(op.apply(rows.row(i), images.row(i)));
    });
  }
  [[nodiscard]] row_image<S> measure(index_t i, const vector_view<const S>& row, const vector_view<S>& u,
                                     S energy) const {
    if constexpr (ScalableGramOperator<std::invoke_result_t<const Operators&, index_t>>) {
      return measure_image(row, u, energy, [&] {
        auto&& op = operators_(i);
        return op.apply_scaled(row, u);
      });
    } else {
      return measure_image(row, u, energy, never_again{});
    }
  }
  template <class Target, class Has, class Factors, class Run>
  void pull_back(const Target&, bool, const Has& has_step, const Factors& factors_of,
                 const matrix_view<S>& images, const vector_view<S>&, const Run& executor) const {
    executor(shape_.num_experts, [&](index_t i) {
      if constexpr (FactoredGramOperators<Operators>) {
        if (has_step(i)) {
          auto&& op = operators_(i);
          return detail::pull_back(op, factors_of(i), images.row(i));
        }
      }
      fill_zero(images.row(i));
    });
  }

 private:
  const Operators& operators_;
  expert_shape shape_;
};

/// One operator for each row of the router.
template <GramOperators Operators, class R>
[[nodiscard]] operator_experts<Operators> operators_of(const char* what, const Operators& operators,
                                                       const matrix_view<R>& router) {
  return {what, operators, {.num_experts = router.rows(), .ffn_dim = 0, .hidden_dim = router.cols()}};
}

}  // namespace detail

MPIROUTER_END

// ---- mpi_router/router/step_tape.hpp
// What a batched step leaves behind: the tape for the backward, the by-products; and the workspace it stands
// in.

MPIROUTER_BEGIN
namespace detail {

/// The tape: of each step the rows after it, [N, D], and ‖rM‖ before the retraction as value and exponent.
template <class Element>
class step_tape {
 public:
  using S = std::remove_const_t<Element>;
  step_tape(const vector_view<Element>& storage, const expert_shape& extents, index_t steps)
      : base_(storage.data()), steps_(steps), shape_(extents) {}

  [[nodiscard]] matrix_view<Element> rows(index_t step) const {
    return row_major(base_ + step * shape_.num_experts * shape_.hidden_dim, shape_.num_experts,
                     shape_.hidden_dim);
  }
  [[nodiscard]] saved_norm<S> norm(index_t step, index_t expert) const {
    const auto* at = norm_at(step, expert);
    return {at[0], static_cast<int>(at[1])};
  }
  void save(index_t step, index_t expert, const saved_norm<S>& norm) const {
    Element* at = norm_at(step, expert);
    at[0] = norm.value;
    at[1] = static_cast<S>(norm.exponent);
  }

 private:
  [[nodiscard]] Element* norm_at(index_t step, index_t expert) const {
    return base_ + shape_.num_experts * (steps_ * shape_.hidden_dim + 2 * step) + 2 * expert;
  }

  Element* base_;
  index_t steps_;
  expert_shape shape_;
};

/// Hands out the workspace, piece by piece.
template <Accumulator S>
class workspace_pieces {
 public:
  explicit workspace_pieces(const vector_view<S>& workspace) : at_(workspace.data()) {}
  [[nodiscard]] vector_view<S> vector(index_t size) { return {std::exchange(at_, at_ + size), size}; }
  [[nodiscard]] matrix_view<S> matrix(index_t rows, index_t cols) {
    return row_major(std::exchange(at_, at_ + rows * cols), rows, cols);
  }

 private:
  S* at_;
};

/// What is told of the step of row i, of which u is the image.
template <Accumulator S, class R>
void tell_step(const router_by_products<S>& told, index_t i, bool is_first_step, const row_image<S>& image,
               const vector_view<R>& row, const vector_view<const S>& u) {
  const bool ok = image.state == status::ok;
  if (!told.statuses.empty()) {
    status& state = told.statuses[static_cast<std::size_t>(i)];
    state = is_first_step || state == status::ok ? image.state : state;
  }
  const auto put = [&](const vector_view<S>& where, const auto& number) {
    if (where.size() != 0) where[i] = ok ? number() : S{0};
  };
  put(told.rayleigh, [&] { return image.rayleigh.unscaled(); });
  put(told.cosine, [&] { return image.cosine(); });
  put(told.residual, [&] {  // ‖g‖ = ρ tan ψ
    return (image.rayleigh * scale_free(u, row, image).tan(row.size())).unscaled();
  });
  put(told.energy, [&] { return (image.rayleigh * image.row_norm * image.row_norm).unscaled(); });
  put(told.row_norm, [&] { return image.row_norm.unscaled(); });
  put(told.image_norm, [&] { return image.image_norm.unscaled(); });
}

}  // namespace detail
MPIROUTER_END

// ---- mpi_router/router/router_rows.hpp
// The batched step over all experts: the rows that tokens are compared with (Eq. 4, 5, 7).

MPIROUTER_BEGIN

/// Elements of scratch that router_rows of operators needs: N · (2D + 1).
[[nodiscard]] constexpr index_t router_rows_workspace(index_t num_experts, index_t hidden_dim) noexcept {
  return num_experts * (2 * hidden_dim + 1);
}
/// Elements of scratch that router_rows needs: as many, and partial images where large experts are split into
/// blocks of neurons so that few of them keep many threads busy; at most N · 18 (D + 1).
[[nodiscard]] constexpr index_t router_rows_workspace(const expert_shape& shape) noexcept {
  return router_rows_workspace(shape.num_experts, shape.hidden_dim) + apply_experts_workspace(shape);
}

namespace detail {

/// Shapes, options and memory of the batched step. Returns C.
template <Accumulator S, class Experts, class R, class O>
[[nodiscard]] S expect_router_rows(const char* what, const Experts& experts, const matrix_view<R>& router,
                                   const matrix_view<O>& rows, const router_options& options,
                                   const vector_view<S>& workspace, const router_by_products<S>& told) {
  const expert_shape& shape = experts.shape();
  const index_t scratch = router_rows_workspace(shape.num_experts, shape.hidden_dim) + experts.partial();
  const S radius = expect_options<S>(what, options, experts.total());
  expect_rows(what, "the router", shape, router);
  expect_rows(what, "the output", shape, rows);
  expect_workspace(what, workspace, scratch);
  const auto told_at = expect_by_products(what, told, shape, options);
  const auto apart = joined(told_at, named_range{"the workspace", first_elements(workspace, scratch)});
  const bool in_place = static_cast<const void*>(rows.data()) == static_cast<const void*>(router.data());
  const auto written = joined(apart, named_range{in_place ? "the router" : "the output", addresses(rows)});
  experts.expect_apart(what, written);
  expect_apart(what, {"the router", addresses(router)}, apart);
  expect_apart(what, written, {});
  return radius;
}

/// r′_i = C · r_i M_i / ‖r_i M_i‖ (Eq. 4, 5) for all i, options.steps times; C is radius_of(i).
template <Accumulator S, class Experts, class Router, class Rows, class Radius, class Run>
void step_rows(const Experts& experts, const Router& router, const Rows& rows, const router_options& options,
               const Radius& radius_of, const vector_view<S>& workspace, const router_by_products<S>& told,
               const Run& executor) {
  const expert_shape shape = experts.shape();
  const index_t n = shape.num_experts;
  workspace_pieces<S> pieces(workspace);
  matrix_view<S> from = pieces.matrix(n, shape.hidden_dim);
  matrix_view<S> spare = pieces.matrix(n, shape.hidden_dim);
  const vector_view<S> energies = pieces.vector(n);
  const vector_view<S> partial = pieces.vector(experts.partial());
  const step_tape<S> tape(told.tape, shape, options.steps);
  const bool saves = told.tape.size() != 0;

  executor(n, [&](index_t i) { copy_into<S>(router.row(i), from.row(i)); });
  for (index_t step = 0; step < options.steps; ++step) {
    const matrix_view<S> to = saves ? tape.rows(step) : spare;
    experts.multiply(from, to, energies, partial, executor);  // u = rM
    executor(n, [&](index_t i) {
      const auto r = from.row(i);
      const auto u = to.row(i);
      const row_image<S> image = experts.measure(i, r, u, energies[i]);
      if (saves) tape.save(step, i, image.image_norm);
      tell_step<S>(told, i, step == 0, image, r, u);
      retract_image(image, r, u, u, radius_of(i), options.degenerate);  // r′ = C u/‖u‖
    });
    spare = from;
    from = to;
  }
  executor(n, [&](index_t i) { copy_into<S>(from.row(i), rows.row(i)); });
}

template <Accumulator S, class Experts, class R, class O, class Run>
void take_steps(const char* what, const Experts& experts, const matrix_view<R>& router,
                const matrix_view<O>& rows, const router_options& options, const vector_view<S>& workspace,
                const router_by_products<S>& told, const Run& executor) {
  const S radius = expect_router_rows(what, experts, router, rows, options, workspace, told);
  const auto radius_of = [radius](index_t) { return radius; };
  step_rows<S>(experts, router, rows, options, radius_of, workspace, told, executor);
}

}  // namespace detail

/// The rows of the router: row i is C · r_i M_i / ‖r_i M_i‖, repeated options.steps times (Eq. 4, 5; C =
/// C′/√N by Eq. 7). Stateless, as the authors' router: `router` is the trained parameter and stays as it is.
///
/// experts: [N, F, D] in any layout; router and rows: [N, D] of any storage type and strides, apart from each
/// other; workspace: router_rows_workspace(shape) elements, apart from all else; told: see
/// router_by_products, `tape` is what router_rows_vjp needs. Sums in router_scalar_t<T, R>. One read of the
/// experts a step. Nothing is allocated; tasks are experts, or blocks of neurons of theirs where they are few
/// and large, and the result is bitwise the same for every executor. Degenerate rows are named by their
/// status and become what options.degenerate says. Throws usage_error on shapes, overlap, radius, steps.
template <Scalar T, Scalar R, WritableScalar O, class Backend = reference, class Run = serial_executor,
          Accumulator S = router_scalar_t<T, R>>
  requires DenseBackend<Backend, std::remove_const_t<T>, S>
void router_rows(const expert_batch_view<T>& experts, const matrix_view<R>& router,
                 const matrix_view<O>& rows, const router_options& options,
                 std::type_identity_t<vector_view<S>> workspace,
                 const std::type_identity_t<router_by_products<S>>& told = {}, const Backend& backend = {},
                 const Run& executor = {}) {
  detail::expect(!detail::overlap(router, rows), "router_rows: the router and the output overlap");
  detail::take_steps<S>("router_rows", detail::dense_experts<S, T, Backend>{experts, backend}, router, rows,
                        options, workspace, told, executor);
}

/// The same, written back: router ← the rows after options.steps steps. Stateful: it tracks the principal
/// directions of gate matrices that change, with an angle floor of about κ²δ/(1 − κ²) for a drift δ. Use one
/// of the two forms for a router, never both. No tape: what is written back is state, not a function of a
/// parameter.
template <Scalar T, WritableScalar R, class Backend = reference, class Run = serial_executor,
          Accumulator S = router_scalar_t<T, R>>
  requires DenseBackend<Backend, std::remove_const_t<T>, S>
void stateful_router_rows(const expert_batch_view<T>& experts, const matrix_view<R>& router,
                          const router_options& options, std::type_identity_t<vector_view<S>> workspace,
                          const std::type_identity_t<router_by_products<S>>& told = {},
                          const Backend& backend = {}, const Run& executor = {}) {
  constexpr const char* what = "stateful_router_rows";
  detail::expect(told.tape.size() == 0, what, ": a tape is for the stateless form");
  detail::take_steps<S>(what, detail::dense_experts<S, T, Backend>{experts, backend}, router, router, options,
                        workspace, told, executor);
}

/// The same over operators, for experts that are packed, sparse, composed or spread over shards: row i is a
/// step with operators(i), a GramOperator. Statuses, by-products, tape and steps are those of dense experts;
/// so are the bits where an operator is gram() of a gate matrix that is one task (of fewer than 2¹⁹ weights).
///
/// operators: called for each of the router.rows() experts, see GramOperators; a scale-free radius takes N
/// from the router; workspace: router_rows_workspace(N, D) elements. One application of each operator a step,
/// one more where squares left the range of S and it is a ScalableGramOperator. Tasks are experts and must
/// not throw; an operator that talks to other ranks (reduced_operator) needs the serial executor, so that all
/// go the same way. Throws usage_error as above, and on an operator of another dimension than D.
template <GramOperators Operators, Scalar R, WritableScalar O, class Run = serial_executor,
          Accumulator S = scalar_of_operators<Operators>>
void router_rows(const Operators& operators, const matrix_view<R>& router, const matrix_view<O>& rows,
                 const router_options& options, std::type_identity_t<vector_view<S>> workspace,
                 const std::type_identity_t<router_by_products<S>>& told = {}, const Run& executor = {}) {
  constexpr const char* what = "router_rows";
  detail::expect(!detail::overlap(router, rows), what, ": the router and the output overlap");
  detail::take_steps<S>(what, detail::operators_of(what, operators, router), router, rows, options, workspace,
                        told, executor);
}

/// The stateful form over operators: router ← the rows after options.steps steps.
template <GramOperators Operators, WritableScalar R, class Run = serial_executor,
          Accumulator S = scalar_of_operators<Operators>>
void stateful_router_rows(const Operators& operators, const matrix_view<R>& router,
                          const router_options& options, std::type_identity_t<vector_view<S>> workspace,
                          const std::type_identity_t<router_by_products<S>>& told = {},
                          const Run& executor = {}) {
  constexpr const char* what = "stateful_router_rows";
  detail::expect(told.tape.size() == 0, what, ": a tape is for the stateless form");
  detail::take_steps<S>(what, detail::operators_of(what, operators, router), router, router, options,
                        workspace, told, executor);
}

MPIROUTER_END

// ---- mpi_router/router/backward_steps.hpp
// The steps of a forward pulled back, the last first: what router_rows_vjp.hpp is made of.

MPIROUTER_BEGIN
namespace detail {

/// Of each step z̄ = (C/‖z‖)(ḡ − ẑ(ẑ·ḡ)), r̄ = z̄M, Ā = (Ar) z̄ᵀ + (Az̄) rᵀ; C is radius_of(i).
template <Accumulator S, class Experts, class Target, class Run, class Radius>
class backward_steps {
 public:
  backward_steps(const Experts& experts, const Target& target, const Run& executor,
                 const router_options& options, const Radius& radius_of, const vector_view<const S>& tape,
                 const vector_view<S>& workspace)
      : experts_(experts),
        target_(target),
        executor_(executor),
        options_(options),
        radius_of_(radius_of),
        saved_(tape, experts.shape(), options.steps) {
    const auto [n, f, d] = experts.shape();
    workspace_pieces<S> pieces(workspace);
    first_rows_ = pieces.matrix(n, d);
    incoming_ = pieces.matrix(n, d);
    outgoing_ = pieces.matrix(n, d);
    dual_rows_ = pieces.matrix(n, d);
    scaled_rows_ = pieces.matrix(n, d);
    projections_ = pieces.matrix(n, f);
    dual_projections_ = pieces.matrix(n, f);
    energies_ = pieces.vector(n);
    partial_ = pieces.vector(experts.partial());
  }

  /// The gradient to the rows of `router` from that of the rows after the last step.
  template <class Router, class Gradient>
  [[nodiscard]] matrix_view<S> run(const Router& router, const Gradient& grad_rows) {
    executor_(router.rows(), [&](index_t i) {
      copy_into<S>(router.row(i), first_rows_.row(i));
      copy_into<S>(grad_rows.row(i), incoming_.row(i));
    });
    for (index_t step = options_.steps - 1; step >= 0; --step) {
      prepare(step);
      multiply(step);
      finish(step);
      std::swap(incoming_, outgoing_);
    }
    return incoming_;
  }

 private:
  [[nodiscard]] bool is_last(index_t step) const { return step == options_.steps - 1; }
  /// Which of the factors' terms a step is; negative where A is not differentiated through it.
  [[nodiscard]] index_t term(index_t step) const {
    return step - (options_.steps - router_factors<S>::terms(options_));
  }
  [[nodiscard]] bool has_step(index_t step, index_t i) const { return saved_.norm(step, i).value != S{0}; }
  [[nodiscard]] rank2_factors<S> factors(index_t step, index_t i) const {
    const rank2_factors<S> scratch{projections_.row(i), dual_rows_.row(i), dual_projections_.row(i),
                                   scaled_rows_.row(i)};
    return term(step) >= 0 ? target_.factors(term(step), i, scratch) : scratch;
  }

  [[nodiscard]] matrix_view<const S> rows_before(index_t step) const {
    return step == 0 ? matrix_view<const S>(first_rows_) : saved_.rows(step - 1);
  }

  /// What the experts are multiplied with: r and z̄.
  void prepare(index_t step) {
    const matrix_view<const S> rows = rows_before(step);
    executor_(rows.rows(), [&](index_t i) {
      const auto f = factors(step, i);
      if (has_step(step, i)) {
        static_cast<void>(prepare_pullback<S>(rows.row(i), saved_.rows(step).row(i), saved_.norm(step, i),
                                              incoming_.row(i), radius_of_(i), f));
      } else {
        set_zero(f);
        if (term(step) >= 0) target_.degenerate(i, is_last(step), f);
      }
    });
  }
  /// r̄ = z̄M, and Ā where A is differentiated.
  void multiply(index_t step) {
    if (term(step) >= 0) {
      experts_.pull_back(
          target_, is_last(step), [&](index_t i) { return has_step(step, i); },
          [&](index_t i) { return factors(step, i); }, outgoing_, partial_, executor_);
    } else {
      experts_.multiply(dual_rows_, outgoing_, energies_, partial_, executor_);
    }
  }
  /// The powers of two that were taken out; and the gradient to rows that had no step.
  void finish(index_t step) {
    const matrix_view<const S> rows = rows_before(step);
    executor_(outgoing_.rows(), [&](index_t i) {
      const auto out = outgoing_.row(i);
      if (has_step(step, i)) {
        const pullback_scale<S> scale(saved_.norm(step, i), radius_of_(i), rows.row(i));
        scale_into<S>(vector_view<const S>(out), out, scaled<S>{S{1}, scale.row});
      } else {
        degenerate_gradient<S>(incoming_.row(i), out, options_.degenerate);
      }
    });
  }

  const Experts& experts_;
  const Target& target_;
  const Run& executor_;
  const router_options& options_;
  const Radius& radius_of_;
  step_tape<const S> saved_;
  matrix_view<S> first_rows_, incoming_, outgoing_, dual_rows_, scaled_rows_, projections_, dual_projections_;
  vector_view<S> energies_, partial_;
};

}  // namespace detail
MPIROUTER_END

// ---- mpi_router/router/router_rows_vjp.hpp
// The backward of the batched step: gradients to the router rows and to the gate matrices, materialised,
// accumulated, or factored.

MPIROUTER_BEGIN

/// Elements of scratch that the backward of operators needs: N · (5D + 2F + 1); F may be 0 where M is
/// detached.
[[nodiscard]] constexpr index_t router_rows_vjp_workspace(index_t num_experts, index_t ffn_dim,
                                                          index_t hidden_dim) noexcept {
  return num_experts * (5 * hidden_dim + 2 * ffn_dim + 1);
}
/// Elements of scratch that the backward needs: as many, and partial images as in the forward.
[[nodiscard]] constexpr index_t router_rows_vjp_workspace(const expert_shape& shape) noexcept {
  return router_rows_vjp_workspace(shape.num_experts, shape.ffn_dim, shape.hidden_dim) +
         apply_experts_workspace(shape);
}

namespace detail {

/// What a call of the backward is given, whatever becomes of the gradient to the experts.
template <Accumulator S, class R, class GR, class RG>
struct backward_call {
  const char* what;
  const matrix_view<R>& router;
  const vector_view<const S>& tape;
  const matrix_view<GR>& grad_rows;
  const router_options& options;
  const matrix_view<RG>& grad_router;
  gradient_mode mode;
  const vector_view<S>& workspace;
};

/// Shapes, options and memory of a backward. Returns C.
template <Accumulator S, class R, class GR, class RG, class Experts, class Target>
[[nodiscard]] S expect_backward(const backward_call<S, R, GR, RG>& call, const Experts& experts,
                                const Target& target) {
  const char* const what = call.what;
  const auto [n, f, d] = experts.shape();
  const index_t scratch = router_rows_vjp_workspace(n, f, d) + experts.partial();
  const index_t taped = router_tape_size(experts.shape(), call.options);
  const S radius = expect_options<S>(what, call.options, experts.total());
  static_cast<void>(accumulates(call.mode));  // what is wrong throws here, not in a task
  expect_rows(what, "the router", experts.shape(), call.router);
  expect_rows(what, "the gradient of the rows", experts.shape(), call.grad_rows);
  expect_rows(what, "the gradient to the router", experts.shape(), call.grad_router);
  expect_workspace(what, call.workspace, scratch);
  expect(call.tape.size() >= taped && call.tape.is_contiguous(), what, ": the tape has ", call.tape.size(),
         " elements, not ", taped);
  const named_range work{"the workspace", first_elements(call.workspace, scratch)};
  const named_range to_router{"the gradient to the router", addresses(call.grad_router)};
  const named_range input{"the router", addresses(call.router)};
  const named_range of_rows{"the gradient of the rows", addresses(call.grad_rows)};
  const named_range tape{"the tape", first_elements(call.tape, taped)};
  experts.expect_apart(what, std::array{to_router, work});
  expect_apart(what, to_router, {input, tape, work});  // it may be the gradient of the rows
  expect_apart(what, work, {input, of_rows, tape});
  target.for_each_range([&](const address_range& range) {
    const named_range to_experts{"the gradient to the experts", range};
    experts.expect_apart(what, std::array{to_experts});
    expect_apart(what, to_experts, {input, of_rows, tape, to_router, work});
  });
  return radius;
}

template <Accumulator S, class R, class GR, class RG, class Experts, class Target, class Run>
void pull_back_steps(const backward_call<S, R, GR, RG>& call, const Experts& experts, const Target& target,
                     const Run& executor) {
  const S radius = expect_backward(call, experts, target);
  const auto radius_of = [radius](index_t) { return radius; };
  backward_steps<S, Experts, Target, Run, decltype(radius_of)> steps(experts, target, executor, call.options,
                                                                     radius_of, call.tape, call.workspace);
  const matrix_view<S> gradient = steps.run(call.router, call.grad_rows);
  const bool accumulate = accumulates(call.mode);
  executor(gradient.rows(), [&](index_t i) {
    const auto out = call.grad_router.row(i);
    for (index_t k = 0; k < gradient.cols(); ++k) {
      const S value = gradient(i, k);
      out[k] = narrow<RG>(accumulate ? widen<S>(out[k]) + value : value);
    }
  });
}

template <Accumulator S>
void expect_factors(const char* what, const router_factors<S>& factors, const expert_shape& shape,
                    const router_options& options) {
  expect(factors.shape() == shape && factors.terms() == router_factors<S>::terms(options), what,
         ": the factors have ", factors.terms(), " terms for other experts or options");
}

}  // namespace detail

/// The backward of router_rows: r̄ to grad_router and Ā to grad_experts, both written or both added to what is
/// there.
///
/// experts, router, options: as in the forward; tape: what it saved; grad_rows: the gradient of its output,
/// [N, D]; grad_router: [N, D]; grad_experts: like the experts, in any layout and storage type; workspace:
/// router_rows_vjp_workspace(shape) elements of scratch. What is written lies apart from all else, except
/// that grad_router may be grad_rows. Ā is two outer products a step, each added in the gradient's storage
/// (one rounding a step). options.through: the steps that A is differentiated through; not `none`. A row
/// without a step passes its gradient on as options.degenerate says, and gives none to A.
///
/// One read of the experts and one update of the gradient a step where the backend has the fused read, else
/// three. Nothing is allocated; tasks as in the forward; bitwise the same for every executor. Throws
/// usage_error on shapes and overlap: of each expert and gradient where both are tables of pointers.
template <Scalar T, Scalar R, Scalar GR, WritableScalar RG, WritableScalar G, class Backend = reference,
          class Run = serial_executor, Accumulator S = router_scalar_t<T, R>>
  requires DenseBackend<Backend, std::remove_const_t<T>, S>
void router_rows_vjp(const expert_batch_view<T>& experts, const matrix_view<R>& router,
                     std::type_identity_t<vector_view<const S>> tape, const matrix_view<GR>& grad_rows,
                     const router_options& options, const matrix_view<RG>& grad_router,
                     const expert_batch_view<G>& grad_experts, gradient_mode mode,
                     std::type_identity_t<vector_view<S>> workspace, const Backend& backend = {},
                     const Run& executor = {}) {
  constexpr const char* what = "router_rows_vjp";
  detail::expect(
      options.through != differentiate::none,
      "router_rows_vjp: nothing is differentiated; router_rows_vjp_detached takes no gradient to A");
  const auto [n, f, d] = experts.shape();
  const auto [gn, gf, gd] = grad_experts.shape();
  detail::expect(experts.shape() == grad_experts.shape(), what, ": the experts are [", n, ", ", f, ", ", d,
                 "], their gradient is [", gn, ", ", gf, ", ", gd, "]");
  detail::pull_back_steps<S, R, GR, RG>(
      {what, router, tape, grad_rows, options, grad_router, mode, workspace},
      detail::dense_experts<S, T, Backend>{experts, backend}, detail::into_matrices<S, G>{grad_experts, mode},
      executor);
}

/// The same with Ā in factored form, for those who never want it in memory: N · 2(F + D) numbers a step in
/// place of N · F · D. `mode` is that of grad_router; the factors are written. add_factors turns them into
/// matrices.
template <Scalar T, Scalar R, Scalar GR, WritableScalar RG, class Backend = reference,
          class Run = serial_executor, Accumulator S = router_scalar_t<T, R>>
  requires DenseBackend<Backend, std::remove_const_t<T>, S>
void router_rows_vjp_factored(const expert_batch_view<T>& experts, const matrix_view<R>& router,
                              std::type_identity_t<vector_view<const S>> tape,
                              const matrix_view<GR>& grad_rows, const router_options& options,
                              const matrix_view<RG>& grad_router,
                              const std::type_identity_t<router_factors<S>>& factors, gradient_mode mode,
                              std::type_identity_t<vector_view<S>> workspace, const Backend& backend = {},
                              const Run& executor = {}) {
  constexpr const char* what = "router_rows_vjp_factored";
  detail::expect_factors(what, factors, experts.shape(), options);
  detail::pull_back_steps<S, R, GR, RG>(
      {what, router, tape, grad_rows, options, grad_router, mode, workspace},
      detail::dense_experts<S, T, Backend>{experts, backend}, detail::into_factors<S>{factors}, executor);
}

/// The gradient to the router rows alone, M constant in every step, whatever options.through says.
template <Scalar T, Scalar R, Scalar GR, WritableScalar RG, class Backend = reference,
          class Run = serial_executor, Accumulator S = router_scalar_t<T, R>>
  requires DenseBackend<Backend, std::remove_const_t<T>, S>
void router_rows_vjp_detached(const expert_batch_view<T>& experts, const matrix_view<R>& router,
                              std::type_identity_t<vector_view<const S>> tape,
                              const matrix_view<GR>& grad_rows, router_options options,
                              const matrix_view<RG>& grad_router, gradient_mode mode,
                              std::type_identity_t<vector_view<S>> workspace, const Backend& backend = {},
                              const Run& executor = {}) {
  options.through = differentiate::none;
  const router_factors<S> none({}, experts.shape(), options);
  detail::pull_back_steps<S, R, GR, RG>(
      {"router_rows_vjp_detached", router, tape, grad_rows, options, grad_router, mode, workspace},
      detail::dense_experts<S, T, Backend>{experts, backend}, detail::into_factors<S>{none}, executor);
}

/// The backward of router_rows over operators that show their factor A: r̄ to grad_router, Ā in factored form.
/// router_factors are built for {N, F, D} with the F of all operators; where an operator is composed, its
/// factor is too: of latent experts it is A P, of whose gradient Ā′ come Ā = Ā′Pᵀ and P̄ = AᵀĀ′.
///
/// operators as in the forward; workspace: router_rows_vjp_workspace(N, F, D) elements; the rest as
/// router_rows_vjp_factored of dense experts. Two projections and a lift of each operator a step.
template <FactoredGramOperators Operators, Scalar R, Scalar GR, WritableScalar RG,
          class Run = serial_executor, Accumulator S = scalar_of_operators<Operators>>
void router_rows_vjp_factored(const Operators& operators, const matrix_view<R>& router,
                              std::type_identity_t<vector_view<const S>> tape,
                              const matrix_view<GR>& grad_rows, const router_options& options,
                              const matrix_view<RG>& grad_router,
                              const std::type_identity_t<router_factors<S>>& factors, gradient_mode mode,
                              std::type_identity_t<vector_view<S>> workspace, const Run& executor = {}) {
  constexpr const char* what = "router_rows_vjp_factored";
  const expert_shape shape{router.rows(), factors.shape().ffn_dim, router.cols()};
  detail::expect_factors(what, factors, shape, options);
  const detail::operator_experts<Operators> experts(what, operators, shape);
  detail::pull_back_steps<S, R, GR, RG>(
      {what, router, tape, grad_rows, options, grad_router, mode, workspace}, experts,
      detail::into_factors<S>{factors}, executor);
}

/// The gradient to the router rows alone, of any operators: one application of each a step; workspace:
/// router_rows_vjp_workspace(N, 0, D) elements.
template <GramOperators Operators, Scalar R, Scalar GR, WritableScalar RG, class Run = serial_executor,
          Accumulator S = scalar_of_operators<Operators>>
void router_rows_vjp_detached(const Operators& operators, const matrix_view<R>& router,
                              std::type_identity_t<vector_view<const S>> tape,
                              const matrix_view<GR>& grad_rows, router_options options,
                              const matrix_view<RG>& grad_router, gradient_mode mode,
                              std::type_identity_t<vector_view<S>> workspace, const Run& executor = {}) {
  constexpr const char* what = "router_rows_vjp_detached";
  options.through = differentiate::none;
  const auto experts = detail::operators_of(what, operators, router);
  const router_factors<S> none({}, experts.shape(), options);
  detail::pull_back_steps<S, R, GR, RG>(
      {what, router, tape, grad_rows, options, grad_router, mode, workspace}, experts,
      detail::into_factors<S>{none}, executor);
}

/// gradient ← or += factor · Ā from its factors; factor = −lr takes a step of descent on the weights
/// themselves. O(terms · N · F · D), one task an expert. Throws usage_error on shapes.
template <Accumulator S, WritableScalar G, class Run = serial_executor>
void add_factors(const router_factors<S>& factors, const expert_batch_view<G>& gradient, gradient_mode mode,
                 std::type_identity_t<S> factor = S{1}, const Run& executor = {}) {
  const auto [n, f, d] = factors.shape();
  const auto [gn, gf, gd] = gradient.shape();
  detail::expect(factors.shape() == gradient.shape() && factors.terms() > 0, "add_factors: ", factors.terms(),
                 " factors for experts [", n, ", ", f, ", ", d, "] and a gradient of [", gn, ", ", gf, ", ",
                 gd, "]");
  static_cast<void>(core::accumulates(mode));  // what is wrong throws here, not in a task
  for (index_t i = 0; i < n; ++i) {
    static_cast<void>(gradient[i]);  // so does a null pointer in a table
  }
  executor(n, [&](index_t i) {
    for (index_t term = factors.terms() - 1; term >= 0; --term) {
      const bool first = term == factors.terms() - 1;
      add_rank2<S>(factors.at(term, i), gradient[i], first ? mode : gradient_mode::accumulate, factor);
    }
  });
}

MPIROUTER_END

// ---- mpi_router/router/row_images.hpp
// The batched step in its two halves: multiply, retract. Where the neurons of the experts are spread over
// shards, M = Σ_s A_sᵀA_s, images and energies are summed over them in between.

MPIROUTER_BEGIN

/// Elements of scratch that images_of_rows needs: N · D, and partial images as router_rows.
[[nodiscard]] constexpr index_t images_of_rows_workspace(const expert_shape& shape) noexcept {
  return shape.num_experts * shape.hidden_dim + apply_experts_workspace(shape);
}

namespace detail {

template <Accumulator S, class Experts, class R, class Run>
void multiply_rows(const Experts& experts, const matrix_view<R>& router, const matrix_view<S>& images,
                   const vector_view<S>& energies, const vector_view<S>& workspace, const Run& executor) {
  constexpr const char* what = "images_of_rows";
  const auto [n, f, d] = experts.shape();
  const index_t needed = n * d + experts.partial();
  expect_rows(what, "the router", experts.shape(), router);
  expect_rows(what, "the images", experts.shape(), images);
  expect(energies.size() == n, what, ": there are ", energies.size(), " energies for ", n, " experts");
  expect_workspace(what, workspace, needed);
  const std::array written{named_range{"the images", addresses(images)},
                           named_range{"the energies", addresses(energies)},
                           named_range{"the workspace", first_elements(workspace, needed)}};
  experts.expect_apart(what, written);
  expect_apart(what, written, {{"the router", addresses(router)}});
  workspace_pieces<S> pieces(workspace);
  const matrix_view<S> rows = pieces.matrix(n, d);
  executor(n, [&](index_t i) { copy_into<S>(router.row(i), rows.row(i)); });
  experts.multiply(rows, images, energies, pieces.vector(experts.partial()), executor);
}

}  // namespace detail

/// images_i = r_i M_i and energies_i = r_i M_i r_iᵀ of the neurons at hand, before any normalising. Sum both
/// over the shards, if there are several, then retract_images.
///
/// experts: [N, F, D] in any layout; router: [N, D] of any storage type; images: [N, D] and energies: N
/// elements of S; workspace: images_of_rows_workspace(shape) elements. Weights whose squares leave the range
/// of S give images that are not finite, or so small that they count as zero, which the status says: take S =
/// double for them. Cost, determinism and errors as of router_rows.
template <Scalar T, Scalar R, Accumulator S, class Backend = reference, class Run = serial_executor>
  requires DenseBackend<Backend, std::remove_const_t<T>, S> &&
           (std::same_as<S, double> || std::same_as<router_scalar_t<T, R>, float>)
void images_of_rows(const expert_batch_view<T>& experts, const matrix_view<R>& router,
                    const matrix_view<S>& images, const std::type_identity_t<vector_view<S>>& energies,
                    const std::type_identity_t<vector_view<S>>& workspace, const Backend& backend = {},
                    const Run& executor = {}) {
  detail::multiply_rows<S>(detail::dense_experts<S, T, Backend>{experts, backend}, router, images, energies,
                           workspace, executor);
}

/// The same over operators, one for each row of the router; workspace: N · D elements.
template <GramOperators Operators, Scalar R, class Run = serial_executor,
          Accumulator S = scalar_of_operators<Operators>>
void images_of_rows(const Operators& operators, const matrix_view<R>& router,
                    const std::type_identity_t<matrix_view<S>>& images,
                    const std::type_identity_t<vector_view<S>>& energies,
                    const std::type_identity_t<vector_view<S>>& workspace, const Run& executor = {}) {
  detail::multiply_rows<S>(detail::operators_of("images_of_rows", operators, router), router, images,
                           energies, workspace, executor);
}

namespace detail {

/// Shapes, options and memory of retract_images. Returns C.
template <Accumulator S, class U, class R, class O>
[[nodiscard]] S expect_retract(const char* what, const matrix_view<U>& images,
                               const vector_view<const S>& energies, const matrix_view<R>& router,
                               const matrix_view<O>& rows, const router_options& options,
                               const router_by_products<S>& told) {
  const index_t n = images.rows();
  expect(options.steps == 1, what, ": steps is ", options.steps, ", not 1");
  const S radius = expect_options<S>(what, options, n);
  expect_like(what, "the images are", images, "the router", router);
  expect_like(what, "the images are", images, "the output", rows);
  expect(energies.size() == 0 || energies.size() == n, what, ": ", energies.size(), " energies for ", n,
         " experts");
  const auto told_at = expect_by_products(what, told, {n, 0, images.cols()}, options);
  expect(is_in_place(router, rows) || !overlap(router, rows), what, ": the router and the output overlap");
  const named_range input{"the images", addresses(images)};
  const named_range energy{"the energies", addresses(energies)};
  const named_range output{"the output", addresses(rows)};
  expect_apart(what, told_at, {input, energy, {"the router", addresses(router)}, output});
  expect_apart(what, output, {input, energy});
  return radius;
}

}  // namespace detail

/// rows_i = C · u_i/‖u_i‖ (Eq. 5) from images and energies that were summed over all shards.
///
/// images: [N, D]; energies: N elements, or none, and ρ comes from the images; router: [N, D], as
/// images_of_rows was given it; rows: [N, D] of any storage type, the router itself or apart from it and from
/// the images; told: as of router_rows, the tape is that of one step. options.steps is 1. A scale-free radius
/// takes N from the images: where they are a part of the experts, give it the total. O(N·D). Throws
/// usage_error on shapes, overlap, radius, steps.
template <Scalar U, Scalar R, WritableScalar O, class Run = serial_executor,
          Accumulator S = std::remove_const_t<U>>
void retract_images(const matrix_view<U>& images, const std::type_identity_t<vector_view<const S>>& energies,
                    const matrix_view<R>& router, const matrix_view<O>& rows, const router_options& options,
                    const std::type_identity_t<router_by_products<S>>& told = {}, const Run& executor = {}) {
  const S radius = detail::expect_retract<S>("retract_images", images, energies, router, rows, options, told);
  const index_t n = images.rows();
  const detail::step_tape<S> tape(told.tape, {n, 0, images.cols()}, 1);
  executor(n, [&](index_t i) {
    const auto u = images.row(i);
    const S energy_of_row = energies.size() != 0 ? energies[i] : std::numeric_limits<S>::quiet_NaN();
    const auto image = detail::measure_image(router.row(i), u, energy_of_row, detail::never_again{});
    detail::tell_step<S>(told, i, true, image, router.row(i), u);
    if (told.tape.size() != 0) {
      tape.save(0, i, image.image_norm);
      detail::retract_image(image, router.row(i), u, tape.rows(0).row(i), radius, options.degenerate);
    }
    detail::retract_image(image, router.row(i), u, rows.row(i), radius, options.degenerate);
  });
}

MPIROUTER_END

// ---- mpi_router/router/z_loss.hpp
// The loss that keeps the logits small, and its gradient.

#include <atomic>

MPIROUTER_BEGIN
namespace detail {

/// The largest logit; false where log Σ e^x is not finite, and the token does not count.
template <Accumulator S>
[[nodiscard]] bool finite_largest(const vector_view<const S>& x, S& largest) noexcept {
  if (x.is_contiguous()) {
    largest = largest_of(x.data(), x.size());
  } else {
    largest = -infinite<S>;
    for (index_t i = 0; i < x.size(); ++i) {
      largest = std::max(largest, x[i]);
    }
  }
  return is_finite(largest) && !has_nan(x);
}

/// log Σ e^x; false where it is not finite.
template <Accumulator S>
[[nodiscard]] bool log_sum_exp(const vector_view<const S>& x, S& result) noexcept {
  S largest{};
  if (!finite_largest(x, largest)) {
    return false;
  }
  result = largest +
           std::log(sum_terms<S>(x.size(), [&](index_t i) { return exp_of_nonpositive(x[i] - largest); }));
  return true;
}

/// Σ over blocks of count_in(first, count, block), numbers of tokens: they add up to the same in any order.
template <class Run, class Count>
[[nodiscard]] index_t count_tokens(const Run& executor, index_t num_tokens, const Count& count_in) {
  std::atomic<index_t> total{0};
  for_token_blocks(executor, num_tokens, [&](index_t first, index_t count, index_t block) {
    total += count_in(first, count, block);
  });
  return total;
}

}  // namespace detail

/// The router z-loss, coefficient 1: the mean over tokens of (log Σ_i e^{x_i})² (Zoph et al. 2022, ST-MoE).
/// logits: [T, N]; workspace: T elements are enough, ⌈T/256⌉ are used; statuses: T, which tokens count
/// (router/mask.hpp), or empty. Tokens where it is not finite do not count. 0 where none counts. O(T·N);
/// bitwise the same for every executor. Throws usage_error on shapes and overlap.
template <Accumulator S, class Run = serial_executor>
[[nodiscard]] S z_loss(std::type_identity_t<matrix_view<const S>> logits, const vector_view<S>& workspace,
                       const Run& executor = {}, std::span<const status> statuses = {}) {
  const index_t blocks = detail::token_blocks(logits.rows());
  detail::check_mask("z_loss", statuses, logits.rows());
  detail::expect(workspace.size() >= blocks && workspace.is_contiguous(), "z_loss: the workspace has ",
                 workspace.size(), " elements, not ", blocks, " contiguous ones");
  detail::expect_apart(
      "z_loss", {"the workspace", detail::first_elements(workspace, blocks)},
      {{"the logits", detail::addresses(logits)}, {"the statuses", detail::addresses_of(statuses)}});
  const auto sum_block = [&](index_t first, index_t count, index_t block) {
    index_t counted = 0;
    workspace[block] = S{0};
    for (index_t t = first; t < first + count; ++t) {
      S value{};
      if (detail::counts(statuses, t) && detail::log_sum_exp<S>(logits.row(t), value)) {
        workspace[block] += value * value;
        ++counted;
      }
    }
    return counted;
  };
  const index_t counted = detail::count_tokens(executor, logits.rows(), sum_block);
  double total = 0;
  for (index_t block = 0; block < blocks; ++block) {
    total += workspace[block];
  }
  return counted > 0 ? static_cast<S>(total / static_cast<double>(counted)) : S{0};
}

/// Its gradient: grad_logits ← or += grad_loss · 2 log Σ e^x · softmax(x) / V, V the tokens that count. None
/// for the others.
template <Accumulator S, class Run = serial_executor>
void z_loss_vjp(std::type_identity_t<matrix_view<const S>> logits, std::type_identity_t<S> grad_loss,
                const matrix_view<S>& grad_logits, gradient_mode mode, const Run& executor = {},
                std::span<const status> statuses = {}) {
  const bool accumulate = core::accumulates(mode);
  detail::check_mask("z_loss_vjp", statuses, logits.rows());
  detail::check_gradient<S>("z_loss_vjp", logits, grad_logits);
  detail::expect_apart(
      "z_loss_vjp", {"the gradient to the logits", detail::addresses(grad_logits)},
      {{"the logits", detail::addresses(logits)}, {"the statuses", detail::addresses_of(statuses)}});
  const auto count_block = [&](index_t first, index_t count, index_t) {
    index_t counted = 0;
    for (index_t t = first; t < first + count; ++t) {
      S largest{};
      counted += detail::counts(statuses, t) && detail::finite_largest<S>(logits.row(t), largest) ? 1 : 0;
    }
    return counted;
  };
  const index_t counted = detail::count_tokens(executor, logits.rows(), count_block);
  const S factor = counted > 0 ? grad_loss * S{2} / static_cast<S>(counted) : S{0};
  detail::for_token_blocks(executor, logits.rows(), [&](index_t first, index_t count, index_t) {
    for (index_t t = first; t < first + count; ++t) {
      S value{};
      if (!accumulate) {
        detail::set_zero(grad_logits.row(t));
      }
      if (detail::counts(statuses, t) && detail::log_sum_exp<S>(logits.row(t), value)) {
        for (index_t i = 0; i < logits.cols(); ++i) {
          grad_logits(t, i) += factor * value * detail::exp_of_nonpositive(logits(t, i) - value);
        }
      }
    }
  });
}

MPIROUTER_END

// ---- mpi_router/mpi_router.hpp
// mpi_router: Manifold Power Iteration for Mixture-of-Experts routers (arXiv 2606.12397).
// The host library in one include. Needs a C++20 compiler and nothing else.

#define MPIROUTER_SINGLE_HEADER  // core/config.hpp refuses to come after it
