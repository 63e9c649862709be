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

/// Equal logits have equal scores, wherever in a row they lie: ties go to the lower index.
template <class T>
bool ties_are_kept(mpi_router::score_function f, bool is_biased, index_t groups) {
  bool kept = true;
  for (index_t n = groups; n <= 70; n += groups) {
    for (int step = -40; step <= 40; ++step) {
      const std::vector<T> logits(static_cast<std::size_t>(n), static_cast<T>(step) * static_cast<T>(0.37));
      const std::vector<T> bias(is_biased ? logits.size() : 0, static_cast<T>(0.25));
      const mpi_router::gating_options options{.top_k = n < 4 ? n : 4,
                                               .score_function = f,
                                               .n_group = groups,
                                               .topk_group = groups > 1 ? groups - 1 : 1};
      if (options.top_k > options.topk_group * (n / groups)) continue;
      std::vector<T> weights(static_cast<std::size_t>(options.top_k));
      std::vector<T> workspace(static_cast<std::size_t>(mpi_router::gating_workspace(1, n)));
      std::vector<mpi_router::expert_id> ids(weights.size());
      mpi_router::gate<T>(mpi_router::row_major(logits.data(), 1, n), options, bias,
                          {mpi_router::row_major(weights.data(), 1, options.top_k), ids}, workspace);
      for (std::size_t k = 0; k < ids.size(); ++k) {
        kept = kept && ids[k] == static_cast<mpi_router::expert_id>(k) && weights[k] == weights[0];
      }
    }
  }
  return kept;
}

template <class T>
void check_ties() {
  using mpi_router::score_function;
  for (const auto f : {score_function::softmax, score_function::sigmoid, score_function::sqrtsoftplus}) {
    check(ties_are_kept<T>(f, false, 1), "ties of logits");
    check(ties_are_kept<T>(f, true, 1), "ties of scores with a bias");
    check(ties_are_kept<T>(f, false, 3), "ties of sums of groups");
  }
}

}  // namespace

int main() {
  check_ties<float>();
  check_ties<double>();
  check_all<float>(from_bits<float>(0x7fc00000), from_bits<float>(0x7f800000));
  check_all<double>(from_bits<double>(0x7ff8000000000000), from_bits<double>(0x7ff0000000000000));
  if (failures == 0) std::puts("good");
  return failures == 0 ? 0 : 1;
}
