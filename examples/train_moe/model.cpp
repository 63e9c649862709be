#include "model.hpp"

namespace train {
namespace {
constexpr index_t vocabulary = 256;
}

model::model(const model_sizes& sizes, router_kind kind, double c_prime, std::uint64_t seed)
    : sizes_(sizes),
      random_(seed),
      embedding_("model.embed_tokens.weight", {vocabulary, sizes.moe.hidden}, false),
      positions_("model.embed_positions.weight", {sizes.length, sizes.moe.hidden}, false),
      head_("lm_head.weight", {vocabulary, sizes.moe.hidden}) {
  const float small = 0.02F / std::sqrt(2.0F * static_cast<float>(sizes.layers));
  embedding_.fill_normal(random_, 0.5F);
  positions_.fill_normal(random_, 0.1F);
  head_.fill_normal(random_, 0.02F);
  for (index_t l = 0; l < sizes.layers; ++l) {
    const std::string name = "model.layers." + std::to_string(l);
    norms_.push_back(std::make_unique<rms_norm>(name + ".input_layernorm.weight", sizes.moe.hidden));
    norms_.push_back(std::make_unique<rms_norm>(name + ".post_attention_layernorm.weight", sizes.moe.hidden));
    attention_.push_back(std::make_unique<attention>(name + ".self_attn", sizes.moe.hidden, sizes.heads,
                                                     sizes.length, random_, small));
    moe_.push_back(
        std::make_unique<moe_layer>(name + ".mlp", sizes.moe, kind, c_prime, sizes.length, random_, small));
  }
  norms_.push_back(std::make_unique<rms_norm>("model.norm.weight", sizes.moe.hidden));
}

std::vector<parameter*> model::parameters() {
  std::vector<parameter*> out{&embedding_, &positions_, &head_};
  for (auto& n : norms_) out.push_back(&n->gain);
  for (auto& a : attention_) out.insert(out.end(), {&a->qkv, &a->output});
  for (auto& m : moe_) out.insert(out.end(), {&m->router, &m->gate, &m->up, &m->down});
  return out;
}

float model::balance() const {
  float sum = 0;
  for (const auto& m : moe_) sum += m->balance();
  return sum / static_cast<float>(moe_.size());
}

float model::forward(const batch& data) {
  const auto tokens = static_cast<index_t>(data.inputs.size());
  matrix x(tokens, sizes_.moe.hidden);
  for (index_t t = 0; t < tokens; ++t) {
    x.row(t) = embedding_.value.row(data.inputs[static_cast<std::size_t>(t)]) +
               positions_.value.row(t % sizes_.length);
  }
  for (std::size_t l = 0; l < moe_.size(); ++l) {
    x += attention_[l]->forward(norms_[2 * l]->forward(x));
    x += moe_[l]->forward(norms_[2 * l + 1]->forward(x));
  }
  last_ = norms_.back()->forward(x);
  probabilities_.noalias() = last_ * head_.value.transpose();
  double loss = 0;
  for (index_t t = 0; t < tokens; ++t) {
    auto row = probabilities_.row(t);
    const float largest = row.maxCoeff();
    const float target = row[data.targets[static_cast<std::size_t>(t)]] - largest;
    row.array() = (row.array() - largest).exp();
    const float sum = row.sum();
    row /= sum;
    loss += static_cast<double>(std::log(sum) - target);
  }
  return static_cast<float>(loss / static_cast<double>(tokens));
}

void model::backward(const batch& data, float coefficient) {
  const auto tokens = static_cast<index_t>(data.inputs.size());
  for (index_t t = 0; t < tokens; ++t) probabilities_(t, data.targets[static_cast<std::size_t>(t)]) -= 1;
  probabilities_ /= static_cast<float>(tokens);
  head_.gradient.noalias() += probabilities_.transpose() * last_;
  matrix grad = norms_.back()->backward(probabilities_ * head_.value);
  const float share = coefficient / static_cast<float>(moe_.size());
  for (std::size_t l = moe_.size(); l-- > 0;) {
    grad += norms_[2 * l + 1]->backward(moe_[l]->backward(grad, share));
    grad += norms_[2 * l]->backward(attention_[l]->backward(grad));
  }
  for (index_t t = 0; t < tokens; ++t) {
    embedding_.gradient.row(data.inputs[static_cast<std::size_t>(t)]) += grad.row(t);
    positions_.gradient.row(t % sizes_.length) += grad.row(t);
  }
}

}  // namespace train
