#include "peers.hpp"

#if defined(MPIROUTER_HAVE_TORCH)
#include <torch/torch.h>

namespace bench {

std::optional<contender> libtorch(const bench_case& c, void* weights, void* rows) {
  if (c.work == work_kind::backward) return std::nullopt;
  if (c.dtype == "f16") return std::nullopt;  // no such product on the CPU
  const auto type = c.dtype == "f64"        ? torch::kFloat64
                    : size_of(c.dtype) == 4 ? torch::kFloat32
                                            : torch::kBFloat16;
  const auto [n, f, d] = c.shape;
  const auto shape = c.by_rows ? std::vector<std::int64_t>{n, f, d} : std::vector<std::int64_t>{n, d, f};
  const auto stored = torch::from_blob(weights, shape, type);
  const auto a = c.by_rows ? stored : stored.transpose(1, 2);
  const auto r =
      torch::from_blob(rows, {n, 1, d}, c.dtype == "f64" ? torch::kFloat64 : torch::kFloat32).to(type);
  return contender{"libtorch", [=, threads = c.threads] {
                     torch::NoGradGuard no_grad;
                     torch::set_num_threads(threads);
                     const auto projected = torch::bmm(r, a.transpose(1, 2));
                     auto image = torch::bmm(projected, a);
                     static_cast<void>(image.data_ptr());
                   }};
}

}  // namespace bench
#else
namespace bench {
std::optional<contender> libtorch(const bench_case&, void*, void*) { return std::nullopt; }
}  // namespace bench
#endif
