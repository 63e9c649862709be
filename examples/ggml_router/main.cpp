// A MoE block in a ggml graph whose tokens are compared with MPI rows, made from the gate matrices in the
// graph itself; whole, with gates of several types, against plain loops in double.
#include "block.hpp"
#include "reference.hpp"

#include <mpi_router/ggml/router_rows.hpp>

#include <ggml-cpu.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <random>
#include <vector>

namespace {

constexpr int hidden = 256, ffn = 64, num_experts = 8, num_tokens = 33, top_k = 2;
constexpr double radius = 2;

using context = std::unique_ptr<ggml_context, decltype(&ggml_free)>;

ggml_tensor* random_tensor(ggml_context* ctx, std::mt19937& random, const char* name, ggml_type type, int ne0,
                           int ne1, int ne2 = 1) {
  ggml_tensor* t = ggml_new_tensor_3d(ctx, type, ne0, ne1, ne2);
  ggml_set_name(t, name);
  std::normal_distribution<float> normal(0, 1 / std::sqrt(static_cast<float>(ne0)));
  std::vector<float> values(static_cast<std::size_t>(ggml_nelements(t)));
  for (float& x : values) x = normal(random);
  if (type == GGML_TYPE_F32) {
    std::copy(values.begin(), values.end(), static_cast<float*>(t->data));
  } else {
    ggml_quantize_chunk(type, values.data(), t->data, 0, ggml_nrows(t), ne0, nullptr);
  }
  return t;
}

/// A contiguous tensor as ggml itself reads it.
in_double::vector values_of(const ggml_tensor* t) {
  std::vector<float> floats(static_cast<std::size_t>(ggml_nelements(t)));
  if (t->type == GGML_TYPE_F32) {
    std::copy_n(static_cast<const float*>(t->data), floats.size(), floats.begin());
  } else {
    ggml_get_type_traits(t->type)->to_float(t->data, floats.data(), ggml_nelements(t));
  }
  return {floats.begin(), floats.end()};
}

/// ‖a − b‖/‖b‖.
double distance(in_double::row a, in_double::row b) {
  double apart = 0;
  for (std::size_t i = 0; i < b.size(); ++i) apart += (a[i] - b[i]) * (a[i] - b[i]);
  return std::sqrt(apart / in_double::dot(b, b));
}

struct deviations {
  double rows, logits, tokens;
  int other_experts = 0;
};

/// The k-th expert of a token, [K, T]; a token's are the first of all N in the memory of the sort.
std::size_t expert_of(const ggml_tensor* experts, std::size_t t, std::size_t k) {
  const auto* of_token = static_cast<const char*>(experts->data) + t * experts->nb[1];
  return static_cast<std::size_t>(reinterpret_cast<const std::int32_t*>(of_token)[k]);
}

deviations compare(const block_weights& w, const ggml_tensor* x, const ggml_tensor* rows,
                   const block_outputs& got) {
  using namespace in_double;
  const vector gate = values_of(w.gate), up = values_of(w.up), down = values_of(w.down);
  const vector router = values_of(w.router), tokens = values_of(x);
  vector steps, logits, outputs;
  for (std::size_t i = 0; i < num_experts; ++i) {
    const vector r = step(piece(gate, i, num_experts), piece(router, i, num_experts), radius);
    steps.insert(steps.end(), r.begin(), r.end());
  }
  deviations out{};
  for (std::size_t t = 0; t < num_tokens; ++t) {
    const row token = piece(tokens, t, num_tokens);
    const vector l = product(steps, token);
    const auto chosen = largest(l, top_k);
    for (std::size_t k = 0; k < top_k; ++k) out.other_experts += expert_of(got.experts, t, k) != chosen[k];
    const vector y = in_double::token(gate, up, down, token, l, chosen);
    logits.insert(logits.end(), l.begin(), l.end());
    outputs.insert(outputs.end(), y.begin(), y.end());
  }
  out.rows = distance(values_of(rows), steps);
  out.logits = distance(values_of(got.logits), logits);
  out.tokens = distance(values_of(got.tokens), outputs);
  return out;
}

/// Whether the block of a gate of this type is that of the loops. `slack`: what mul_mat_id loses, which
/// rounds the tokens to the type of the weights, or to 8 bits where they are quantised.
bool check(ggml_type type, double slack) {
  const context ctx(ggml_init({.mem_size = std::size_t{64} << 20, .mem_buffer = nullptr, .no_alloc = false}),
                    ggml_free);
  std::mt19937 random(7);
  const block_weights w{random_tensor(ctx.get(), random, "router", GGML_TYPE_F32, hidden, num_experts),
                        random_tensor(ctx.get(), random, "gate", type, hidden, ffn, num_experts),
                        random_tensor(ctx.get(), random, "up", GGML_TYPE_F32, hidden, ffn, num_experts),
                        random_tensor(ctx.get(), random, "down", GGML_TYPE_F32, ffn, hidden, num_experts)};
  ggml_tensor* tokens = random_tensor(ctx.get(), random, "tokens", GGML_TYPE_F32, hidden, num_tokens);

  mpi_router::ggml::router_rows_op<> op({.radius = radius});
  ggml_tensor* rows = op.build(ctx.get(), w.gate, w.router);
  const block_outputs got = moe_block(ctx.get(), w, rows, tokens, top_k);
  ggml_cgraph* graph = ggml_new_graph(ctx.get());
  ggml_build_forward_expand(graph, got.tokens);
  if (ggml_graph_compute_with_ctx(ctx.get(), graph, 3) != GGML_STATUS_SUCCESS) return false;
  op.check();

  const deviations d = compare(w, tokens, rows, got);
  std::printf("gate %-5s  rows %.1e  logits %.1e  output %.1e  other experts %d of %d\n",
              ggml_type_name(type), d.rows, d.logits, d.tokens, d.other_experts, num_tokens * top_k);
  return d.rows < 2e-6 && d.logits < 2e-6 && d.tokens < slack && d.other_experts == 0;
}

}  // namespace

int main() {
  bool good = check(GGML_TYPE_F32, 2e-6);
  good = check(GGML_TYPE_F16, 1e-3) && good;
  good = check(GGML_TYPE_BF16, 8e-3) && good;
  for (const auto type : {GGML_TYPE_Q8_0, GGML_TYPE_Q4_K, GGML_TYPE_MXFP4}) good = check(type, 2e-2) && good;
  std::puts(good ? "The block is that of the formulas." : "WRONG: the block is not that of the formulas.");
  return good ? 0 : 1;
}
