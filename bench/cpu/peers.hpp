// What people would use instead: two matrix-vector products forward, three and two rank-1 updates backward,
// expert by expert, experts spread over threads.
#pragma once

#include "data.hpp"
#include "measure.hpp"

#include <optional>

namespace bench {

/// OpenBLAS, f32 and f64. Empty where it was not built in or has no such routine.
template <class T>
[[nodiscard]] std::optional<contender> openblas(const problem<T>&) {
  return std::nullopt;
}
template <>
[[nodiscard]] std::optional<contender> openblas(const problem<float>& p);
template <>
[[nodiscard]] std::optional<contender> openblas(const problem<double>& p);

/// The authors' formula in libtorch: batched products of whole tensors.
[[nodiscard]] std::optional<contender> libtorch(const bench_case& c, void* weights, void* rows);

/// body(i) for every expert.
template <class Body>
void for_each_expert(index_t count, int threads, Body&& body) {
  if (threads == 1) {
    for (index_t i = 0; i < count; ++i) body(i);
    return;
  }
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
  for (index_t i = 0; i < count; ++i) body(i);
}

}  // namespace bench
