#include "cases.hpp"

#include <fmt/format.h>

#include <stdexcept>

namespace bench {

std::string shape_name(const expert_shape& s) {
  return fmt::format("{}x{}x{}", s.num_experts, s.ffn_dim, s.hidden_dim);
}

index_t size_of(std::string_view dtype) {
  if (dtype == "f64") return 8;
  if (dtype == "f32") return 4;
  if (dtype == "bf16" || dtype == "f16") return 2;
  throw std::invalid_argument(fmt::format("no element type is called {}", dtype));
}

double bytes_of(const bench_case& c) {
  return static_cast<double>(c.shape.num_experts * c.shape.ffn_dim * c.shape.hidden_dim * size_of(c.dtype));
}

std::vector<bench_case> table_cases(bool quick, int threads) {
  const std::vector<expert_shape> large =
      quick ? std::vector<expert_shape>{{64, 1024, 2048}, {8, 4096, 1024}}
            : std::vector<expert_shape>{{64, 1024, 2048}, {128, 768, 2048}, {8, 4096, 1024}, {4, 2048, 7168}};
  const std::vector<std::string> dtypes =
      quick ? std::vector<std::string>{"f32", "bf16"} : std::vector<std::string>{"f32", "f64", "bf16", "f16"};
  std::vector<int> counts{1};
  if (threads > 1) counts.push_back(threads);

  std::vector<bench_case> out;
  for (const auto& shape : large) {
    for (const auto& dtype : dtypes) {
      for (const int t : counts) {
        out.push_back({shape, dtype, true, work_kind::forward, t});
        if (!quick || dtype == "f32") out.push_back({shape, dtype, false, work_kind::forward, t});
        if (dtype == "f32" || (!quick && dtype == "bf16"))
          out.push_back({shape, dtype, true, work_kind::backward, t});
      }
    }
  }
  if (!quick) {
    for (const expert_shape shape : {expert_shape{8, 128, 256}, expert_shape{16, 64, 64}}) {
      for (const auto& dtype : dtypes) {
        out.push_back({shape, dtype, true, work_kind::forward, 1});
        out.push_back({shape, dtype, false, work_kind::forward, 1});
      }
    }
  }
  return out;
}

}  // namespace bench
