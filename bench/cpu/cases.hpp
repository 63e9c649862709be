// What is measured: a shape, an element type, a layout, a kind of work, a number of threads.
#pragma once

#include <mpi_router/core/experts.hpp>

#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace bench {

using mpi_router::expert_shape;
using mpi_router::index_t;

enum class work_kind : unsigned char { forward, backward };

struct bench_case {
  expert_shape shape;
  std::string dtype;    ///< f64, f32, bf16, f16
  bool by_rows = true;  ///< [N, F, D]; false: [N, D, F]
  work_kind work = work_kind::forward;
  int threads = 1;
};

[[nodiscard]] inline std::string_view to_string(work_kind w) {
  switch (w) {
    case work_kind::forward: return "forward";
    case work_kind::backward: return "backward";
  }
  return "unknown";
}
[[nodiscard]] inline std::string_view layout_name(const bench_case& c) { return c.by_rows ? "NFD" : "NDF"; }
[[nodiscard]] std::string shape_name(const expert_shape& s);
[[nodiscard]] index_t size_of(std::string_view dtype);
/// Bytes of the experts.
[[nodiscard]] double bytes_of(const bench_case& c);

/// The cases of the table. quick: two shapes that are larger than any cache, two element types.
[[nodiscard]] std::vector<bench_case> table_cases(bool quick, int threads);

/// Seconds per pass over all experts; empty where there is no such contender.
struct timings {
  double floor = 0;
  double ours = 0;
  std::optional<double> eigen;
  std::optional<double> openblas;
  std::optional<double> libtorch;
};

}  // namespace bench
