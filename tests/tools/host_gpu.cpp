// A stand-in for the GPU that verify_checkpoint uses, on the host: what is asked of one, in plain loops.
#include "host_gpu.hpp"

#include <gpu.hpp>
#include <mpi_router/backend/eigen.hpp>

#include <atomic>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <vector>

namespace host_gpu {
std::atomic<int> spaces = 0;
std::atomic<int> launches = 0;
}  // namespace host_gpu

namespace verify {

using namespace mpi_router;

struct gpu::implementation {
  std::string name = "host";
};
struct gpu_expert::implementation {
  Eigen::MatrixXd a;

  template <class T>
  explicit implementation(T /*element*/, const stored_bytes& s) : a(s.rows, s.cols) {
    for (index_t f = 0; f < s.rows; ++f) {
      for (index_t d = 0; d < s.cols; ++d) {
        T x{};
        const auto at = s.start + (f * s.row_stride + d * s.col_stride) * static_cast<index_t>(sizeof(T));
        if (at < 0 || static_cast<std::size_t>(at) + sizeof(T) > s.size) {
          throw std::logic_error("an element beyond the bytes that are copied");
        }
        std::memcpy(&x, s.first + at, sizeof x);
        a(f, d) = widen<double>(x);
      }
    }
  }
  auto vectors(double* data, index_t count) const {
    return Eigen::Map<Eigen::MatrixXd>(data, a.cols(), count);
  }
};

gpu::gpu(int /*rank*/) : implementation_(std::make_unique<implementation>()), cores_(1) {}
gpu::~gpu() = default;
const std::string& gpu::name() const noexcept { return implementation_->name; }
int gpu::make_room(index_t /*ffn_dim*/, index_t /*hidden_dim*/) { return 1; }

gpu_expert::gpu_expert(gpu& /*device*/, const stored_bytes& s) {
  const auto load = [&](auto element) { implementation_ = std::make_unique<implementation>(element, s); };
  switch (s.format) {
    case storage_format::f64: load(double{}); break;
    case storage_format::f32: load(float{}); break;
    case storage_format::bf16: load(bf16{}); break;
    case storage_format::f16: load(f16{}); break;
  }
}
gpu_expert::~gpu_expert() = default;

double gpu_expert::apply(vector_view<const double> x, vector_view<double> u) {
  ++host_gpu::launches;
  const Eigen::VectorXd y = implementation_->a * map(x);
  map(u) = implementation_->a.transpose() * y;
  return y.squaredNorm();
}
double* gpu_expert::take_vectors(index_t count) {
  ++host_gpu::spaces;
  return new double[static_cast<std::size_t>(count * implementation_->a.cols())];
}
void gpu_expert::give_back(double* vectors) noexcept {
  --host_gpu::spaces;
  delete[] vectors;
}
void gpu_expert::store(double* vectors, index_t k, vector_view<const double> x) {
  implementation_->vectors(vectors, k + 1).col(k) = map(x);
}
void gpu_expert::combine(double* vectors, index_t from, vector_view<const double> y,
                         vector_view<double> out) {
  map(out) = implementation_->vectors(vectors, from + y.size()).rightCols(y.size()) * map(y);
}
index_t gpu_expert::lanczos(double* vectors, index_t newest, bool is_first, double scale, double before,
                            std::span<mpi_router::lanczos_step> found) {
  ++host_gpu::launches;
  const auto& a = implementation_->a;
  index_t taken = 0;
  for (auto& step : found) {
    const auto q = implementation_->vectors(vectors, newest + 1);
    const Eigen::VectorXd y = a * q.col(newest);
    Eigen::VectorXd u = a.transpose() * y / scale - y.squaredNorm() / scale * q.col(newest);
    u -= is_first ? Eigen::VectorXd::Zero(u.size()).eval() : (before * q.col(newest - 1)).eval();
    const double whole = u.norm();
    for (int twice = 0; twice < 2; ++twice) {
      u -= q * (q.transpose() * u).eval();
    }
    const double norm = u.norm();
    const bool is_nothing = norm <= 1e-13 * std::max(whole, 1.0) || newest + 1 >= a.cols();
    step = {y.squaredNorm() / scale, !std::isfinite(norm) ? std::nan("") : is_nothing ? 0 : norm};
    ++taken;
    if (!(step.left > 0)) {
      break;
    }
    implementation_->vectors(vectors, newest + 2).col(newest + 1) = u / norm;
    before = step.left;
    is_first = false;
    ++newest;
  }
  return taken;
}

}  // namespace verify
