#include "moe_layer.hpp"

namespace train {

using namespace mpi_router;

moe_layer::moe_layer(const std::string& name, const moe_sizes& sizes, router_kind kind, double c_prime,
                     index_t length, random_source& random, float output_deviation)
    : router(name + ".router.weight", {sizes.experts, sizes.hidden}),
      gate(name + ".experts.gate_proj", {sizes.experts, sizes.ffn, sizes.hidden}),
      up(name + ".experts.up_proj", {sizes.experts, sizes.ffn, sizes.hidden}),
      down(name + ".experts.down_proj", {sizes.experts, sizes.ffn, sizes.hidden}),
      sizes_(sizes),
      shape_{sizes.experts, sizes.ffn, sizes.hidden},
      length_(length),
      maker_(kind, shape_, c_prime),
      load_(static_cast<std::size_t>(sizes.experts)),
      offsets_(static_cast<std::size_t>(sizes.experts + 1)) {
  router.fill_normal(random, 0.02F);
  // Wide enough that the power step alone neither blows up nor starves the logits.
  gate.fill_normal(random, 1 / std::sqrt(static_cast<float>(sizes.hidden)));
  up.fill_normal(random, 1 / std::sqrt(static_cast<float>(sizes.hidden)));
  down.fill_normal(random, output_deviation);
}

matrix moe_layer::forward(const matrix& x) {
  const index_t tokens = x.rows();
  const index_t entries = tokens * sizes_.top_k;
  x_ = x;
  logits_.resize(tokens, sizes_.experts);
  weights_.resize(tokens, sizes_.top_k);
  ids_.resize(static_cast<std::size_t>(entries));
  scratch_.resize(static_cast<std::size_t>(std::max(gating_workspace(tokens, sizes_.experts),
                                                    balance_workspace(tokens, sizes_.experts, length_))));
  maker_.forward(router.value, gate.value, rows_);
  route(view(x_), view(rows_), gating(), {}, view(logits_), gate_output<float>{view(weights_), ids_},
        scratch_);
  balance_ = balance_loss<float>(view(logits_), score_function::softmax, ids_, sizes_.top_k, length_,
                                 vector_view<float>(scratch_));
  std::fill(load_.begin(), load_.end(), index_t{0});
  count_load(ids_, sizes_.top_k, {}, load_);
  tokens_.resize(static_cast<std::size_t>(entries));
  entries_.resize(static_cast<std::size_t>(entries));
  build_dispatch(ids_, sizes_.top_k, {}, {offsets_, tokens_, entries_});

  gathered_.resize(entries + maker_.products() * sizes_.experts, sizes_.hidden);
  gate_out_.resize(entries, sizes_.ffn);
  up_out_.resize(entries, sizes_.ffn);
  expert_out_.resize(entries, sizes_.hidden);
  for (index_t e = 0; e < sizes_.experts; ++e) {
    const index_t first = offsets_[static_cast<std::size_t>(e)];
    const index_t count = tokens_of(e);
    auto in = gathered_.middleRows(group(e), count);
    for (index_t j = 0; j < count; ++j) in.row(j) = x.row(tokens_[static_cast<std::size_t>(first + j)]);
    auto g = gate_out_.middleRows(first, count);
    auto u = up_out_.middleRows(first, count);
    g.noalias() = in * gate.value.middleRows(e * sizes_.ffn, sizes_.ffn).transpose();
    u.noalias() = in * up.value.middleRows(e * sizes_.ffn, sizes_.ffn).transpose();
    const matrix h = g.array() / (1 + (-g.array()).exp()) * u.array();
    expert_out_.middleRows(first, count).noalias() = h * down.value.middleRows(e * sizes_.ffn, sizes_.ffn);
  }
  matrix out = matrix::Zero(tokens, sizes_.hidden);
  for (index_t j = 0; j < entries; ++j) {
    const auto k = static_cast<std::size_t>(j);
    out.row(tokens_[k]) += weights_.data()[entries_[k]] * expert_out_.row(j);
  }
  return out;
}

void moe_layer::backward_of_expert(index_t e, const matrix& grad_out, matrix& grad_gathered) {
  const index_t first = offsets_[static_cast<std::size_t>(e)];
  const index_t count = tokens_of(e);
  const index_t row = e * sizes_.ffn;
  const auto in = gathered_.middleRows(group(e), count);
  const auto g = gate_out_.middleRows(first, count).array();
  const auto u = up_out_.middleRows(first, count).array();
  const auto out = grad_out.middleRows(first, count);
  const matrix sigmoid = (1 / (1 + (-g).exp())).matrix();
  const matrix silu = (g * sigmoid.array()).matrix();
  const matrix h = (silu.array() * u).matrix();
  const matrix grad_h = out * down.value.middleRows(row, sizes_.ffn).transpose();
  down.gradient.middleRows(row, sizes_.ffn).noalias() += h.transpose() * out;
  const matrix grad_u = (grad_h.array() * silu.array()).matrix();
  // The gate matrix has a gradient from its tokens and one from its router row, of two outer products:
  // two more rows of the same product.
  matrix grad_gate(count + maker_.products(), sizes_.ffn);
  auto grad_g = grad_gate.topRows(count);
  grad_g = (grad_h.array() * u * (sigmoid.array() + silu.array() * (1 - sigmoid.array()))).matrix();
  auto in_gate = gathered_.middleRows(group(e), count + maker_.products());
  if (maker_.products() > 0) {
    const auto [projection, dual_row, dual_projection, router_row] = maker_.factors(e);
    grad_gate.row(count) = map(projection);
    grad_gate.row(count + 1) = map(dual_projection);
    in_gate.row(count) = map(dual_row);
    in_gate.row(count + 1) = map(router_row);
  }
  gate.gradient.middleRows(row, sizes_.ffn).noalias() += grad_gate.transpose() * in_gate;
  up.gradient.middleRows(row, sizes_.ffn).noalias() += grad_u.transpose() * in;
  grad_gathered.middleRows(first, count).noalias() =
      grad_g * gate.value.middleRows(row, sizes_.ffn) + grad_u * up.value.middleRows(row, sizes_.ffn);
}

matrix moe_layer::backward(const matrix& grad, float coefficient) {
  const index_t tokens = x_.rows();
  const index_t entries = tokens * sizes_.top_k;
  matrix grad_weights(tokens, sizes_.top_k);
  matrix grad_out(entries, sizes_.hidden);
  for (index_t j = 0; j < entries; ++j) {
    const auto k = static_cast<std::size_t>(j);
    const auto g = grad.row(tokens_[k]);
    grad_weights.data()[entries_[k]] = g.dot(expert_out_.row(j));
    grad_out.row(j) = weights_.data()[entries_[k]] * g;
  }

  // The gate: to logits, to tokens and rows, and through the rows to the router and to the gate matrices.
  matrix grad_logits(tokens, sizes_.experts), grad_x(tokens, sizes_.hidden),
      grad_rows(rows_.rows(), rows_.cols());
  gate_vjp(view(logits_), gating(), ids_, view(grad_weights), view(grad_logits), gradient_mode::write,
           scratch_);
  balance_loss_vjp(view(logits_), score_function::softmax, ids_, sizes_.top_k, length_, coefficient,
                   view(grad_logits), gradient_mode::accumulate, scratch_);
  router_logits_vjp(view(x_), view(rows_), view(grad_logits), view(grad_x), view(grad_rows),
                    gradient_mode::write);
  maker_.backward(router.value, gate.value, grad_rows, router.gradient);

  matrix grad_gathered(entries, sizes_.hidden);
  for (index_t e = 0; e < sizes_.experts; ++e) backward_of_expert(e, grad_out, grad_gathered);
  for (index_t j = 0; j < entries; ++j)
    grad_x.row(tokens_[static_cast<std::size_t>(j)]) += grad_gathered.row(j);
  return grad_x;
}

}  // namespace train
