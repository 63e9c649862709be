// The dense parts of a transformer block, forward and backward: normalisation and causal attention.
#pragma once

#include "tensor.hpp"

namespace train {

/// y = x / rms(x) ∘ gain, row by row.
class rms_norm {
 public:
  rms_norm(const std::string& name, index_t dimension);
  const matrix& forward(const matrix& x);
  /// Adds to the gain's gradient; returns the gradient to x.
  matrix backward(const matrix& grad);
  parameter gain;

 private:
  matrix unit_;  ///< x / rms
  matrix out_;
  Eigen::VectorXf scale_;  ///< 1 / rms
};

/// Causal attention with several heads over sequences of equal length.
class attention {
 public:
  attention(const std::string& name, index_t dimension, index_t heads, index_t length, random_source& random,
            float output_deviation);
  matrix forward(const matrix& x);
  matrix backward(const matrix& grad);
  parameter qkv, output;

 private:
  [[nodiscard]] index_t dimension() const { return output.value.rows(); }
  index_t heads_;
  index_t length_;
  matrix x_, qkv_, mixed_;
  std::vector<matrix> weights_;  ///< one L × L matrix for each sequence and head
};

}  // namespace train
