#include "blocks.hpp"

namespace train {

rms_norm::rms_norm(const std::string& name, index_t dimension) : gain(name, {1, dimension}, false) {
  gain.value.setOnes();
}

const matrix& rms_norm::forward(const matrix& x) {
  constexpr float epsilon = 1e-6F;
  scale_ = (x.rowwise().squaredNorm().array() / static_cast<float>(x.cols()) + epsilon).rsqrt().matrix();
  unit_ = scale_.asDiagonal() * x;
  out_ = unit_.array().rowwise() * gain.value.row(0).array();
  return out_;
}

matrix rms_norm::backward(const matrix& grad) {
  gain.gradient.row(0) += (grad.array() * unit_.array()).colwise().sum().matrix();
  const matrix inner = grad.array().rowwise() * gain.value.row(0).array();
  const Eigen::VectorXf along =
      (inner.array() * unit_.array()).rowwise().sum().matrix() / static_cast<float>(grad.cols());
  return scale_.asDiagonal() * (inner - along.asDiagonal() * unit_);
}

attention::attention(const std::string& name, index_t dimension, index_t heads, index_t length,
                     random_source& random, float output_deviation)
    : qkv(name + ".qkv_proj.weight", {dimension, 3 * dimension}),
      output(name + ".o_proj.weight", {dimension, dimension}),
      heads_(heads),
      length_(length) {
  qkv.fill_normal(random, 0.02F);
  output.fill_normal(random, output_deviation);
}

matrix attention::forward(const matrix& x) {
  x_ = x;
  qkv_.noalias() = x * qkv.value;
  mixed_.resize(x.rows(), dimension());
  const index_t width = dimension() / heads_;
  const float scale = 1 / std::sqrt(static_cast<float>(width));
  weights_.resize(static_cast<std::size_t>(x.rows() / length_ * heads_));
  for (std::size_t i = 0; i < weights_.size(); ++i) {
    const index_t first = static_cast<index_t>(i) / heads_ * length_;
    const index_t col = static_cast<index_t>(i) % heads_ * width;
    const auto q = qkv_.block(first, col, length_, width);
    const auto k = qkv_.block(first, dimension() + col, length_, width);
    const auto v = qkv_.block(first, 2 * dimension() + col, length_, width);
    matrix& w = weights_[i];
    w.noalias() = scale * (q * k.transpose());
    for (index_t t = 0; t < length_; ++t) {
      auto seen = w.row(t).head(t + 1);
      seen.array() = (seen.array() - seen.maxCoeff()).exp();
      seen /= seen.sum();
      w.row(t).tail(length_ - t - 1).setZero();
    }
    mixed_.block(first, col, length_, width).noalias() = w * v;
  }
  return mixed_ * output.value;
}

matrix attention::backward(const matrix& grad) {
  output.gradient.noalias() += mixed_.transpose() * grad;
  const matrix grad_mixed = grad * output.value.transpose();
  matrix grad_qkv(qkv_.rows(), qkv_.cols());
  const index_t width = dimension() / heads_;
  const float scale = 1 / std::sqrt(static_cast<float>(width));
  for (std::size_t i = 0; i < weights_.size(); ++i) {
    const index_t first = static_cast<index_t>(i) / heads_ * length_;
    const index_t col = static_cast<index_t>(i) % heads_ * width;
    const auto q = qkv_.block(first, col, length_, width);
    const auto k = qkv_.block(first, dimension() + col, length_, width);
    const auto v = qkv_.block(first, 2 * dimension() + col, length_, width);
    const auto g = grad_mixed.block(first, col, length_, width);
    const matrix& w = weights_[i];
    matrix grad_scores = g * v.transpose();
    const Eigen::VectorXf along = (grad_scores.array() * w.array()).rowwise().sum().matrix();
    grad_scores = (scale * w.array() * (grad_scores.colwise() - along).array()).matrix();
    grad_qkv.block(first, col, length_, width).noalias() = grad_scores * k;
    grad_qkv.block(first, dimension() + col, length_, width).noalias() = grad_scores.transpose() * q;
    grad_qkv.block(first, 2 * dimension() + col, length_, width).noalias() = w.transpose() * g;
  }
  qkv.gradient.noalias() += x_.transpose() * grad_qkv;
  return grad_qkv * qkv.value.transpose();
}

}  // namespace train
