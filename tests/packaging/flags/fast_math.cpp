// A user with -ffast-math: the compiler may assume that there are no NaNs, the library must find them anyway.
#include <mpi_router/mpi_router.hpp>

#include <bit>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

#ifndef __FAST_MATH__
#error "this test is about -ffast-math"
#endif

namespace {

using mpi_router::index_t;
using mpi_router::status;

// From bits that the compiler does not see: under -ffast-math it may do anything with a NaN that it knows of.
template <class T>
T from_bits(std::uint64_t bits) {
  volatile std::uint64_t hidden = bits;
  if constexpr (sizeof(T) == 8) {
    return std::bit_cast<T>(std::uint64_t{hidden});
  } else {
    return std::bit_cast<T>(static_cast<std::uint32_t>(hidden));
  }
}

template <class T>
status step_with(index_t bad_in_a, index_t bad_in_row, T bad) {
  constexpr index_t ffn_dim = 5;
  constexpr index_t hidden_dim = 19;
  std::vector<T> a(static_cast<std::size_t>(ffn_dim * hidden_dim), T{1});
  std::vector<T> row(static_cast<std::size_t>(hidden_dim), T{1});
  std::vector<T> out(row.size());
  if (bad_in_a >= 0) a[static_cast<std::size_t>(bad_in_a)] = bad;
  if (bad_in_row >= 0) row[static_cast<std::size_t>(bad_in_row)] = bad;
  return mpi_router::power_step(mpi_router::gram(mpi_router::gate_fd(a.data(), ffn_dim, hidden_dim)), row,
                                out, T{1})
      .state;
}

int failures = 0;

void check(bool condition, const char* what) {
  if (!condition) {
    std::printf("WRONG: %s\n", what);
    ++failures;
  }
}

template <class T>
void check_all(T nan, T infinity) {
  check(step_with<T>(-1, -1, T{1}) == status::ok, "ones are ok");
  check(step_with<T>(-1, 0, nan) == status::non_finite, "NaN at the start of the row");
  check(step_with<T>(-1, 18, nan) == status::non_finite, "NaN at the end of the row");
  check(step_with<T>(-1, 7, infinity) == status::non_finite, "infinity in the row");
  check(step_with<T>(0, -1, nan) == status::non_finite, "NaN at the start of the matrix");
  check(step_with<T>(94, -1, nan) == status::non_finite, "NaN at the end of the matrix");
  check(step_with<T>(40, -1, infinity) == status::non_finite, "infinity in the matrix");
}

}  // namespace

int main() {
  check_all<float>(from_bits<float>(0x7fc00000), from_bits<float>(0x7f800000));
  check_all<double>(from_bits<double>(0x7ff8000000000000), from_bits<double>(0x7ff0000000000000));
  if (failures == 0) std::puts("good");
  return failures == 0 ? 0 : 1;
}
