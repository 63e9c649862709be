// Matrices, parameters and AdamW.
#pragma once

#include <mpi_router/backend/eigen.hpp>

#include <Eigen/Core>

#include <cmath>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

namespace train {

using mpi_router::index_t;
using matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

/// Numbers that are the same with every standard library: the engine is fixed by the standard, its use here.
class random_source {
 public:
  explicit random_source(std::uint64_t seed) : engine_(seed) {}
  [[nodiscard]] double uniform() { return static_cast<double>(engine_() >> 11U) * 0x1p-53; }
  [[nodiscard]] index_t below(index_t bound) {
    return static_cast<index_t>(engine_() % static_cast<std::uint64_t>(bound));
  }
  /// Standard normal, by Box and Muller.
  [[nodiscard]] float normal() {
    constexpr double tau = 6.283185307179586;
    return static_cast<float>(std::sqrt(-2 * std::log(1 - uniform())) * std::cos(tau * uniform()));
  }

 private:
  std::mt19937_64 engine_;
};

/// A trained matrix with its gradient and the state of its optimiser.
struct parameter {
  std::string name;
  std::vector<index_t> shape;  ///< as it is stored in the checkpoint
  matrix value, gradient, mean, square;
  bool decays = true;

  parameter(std::string called, std::vector<index_t> extents, bool with_decay = true)
      : name(std::move(called)), shape(std::move(extents)), decays(with_decay) {
    const index_t cols = shape.back();
    index_t rows = 1;
    for (std::size_t i = 0; i + 1 < shape.size(); ++i) rows *= shape[i];
    for (matrix* m : {&value, &gradient, &mean, &square}) *m = matrix::Zero(rows, cols);
  }
  void fill_normal(random_source& random, float deviation) {
    for (index_t i = 0; i < value.size(); ++i) value.data()[i] = deviation * random.normal();
  }
};

/// AdamW (Loshchilov & Hutter 2019) with the gradients clipped to a common norm.
struct adamw {
  float beta_1 = 0.9F, beta_2 = 0.95F, epsilon = 1e-8F, decay = 0.1F, clip = 1.0F;
  index_t step = 0;

  void update(const std::vector<parameter*>& parameters, float rate) {
    ++step;
    double square = 0;
    for (const parameter* p : parameters) square += static_cast<double>(p->gradient.squaredNorm());
    const auto norm = static_cast<float>(std::sqrt(square));
    const float scale = norm > clip ? clip / norm : 1.0F;
    const float correct_1 = 1 - std::pow(beta_1, static_cast<float>(step));
    const float correct_2 = 1 - std::pow(beta_2, static_cast<float>(step));
    for (parameter* p : parameters) {
      p->mean = beta_1 * p->mean + (1 - beta_1) * scale * p->gradient;
      p->square = beta_2 * p->square + ((1 - beta_2) * scale * scale) * p->gradient.cwiseAbs2();
      if (p->decays) p->value *= 1 - rate * decay;
      p->value.array() -=
          (rate / correct_1) * p->mean.array() / ((p->square.array() / correct_2).sqrt() + epsilon);
      p->gradient.setZero();
    }
  }
};

}  // namespace train
