// A MoE block as a ggml graph, as llama.cpp builds one: router, softmax, top k, experts with SwiGLU.
#pragma once

#include <ggml.h>

/// The weights of a block, in the layouts of GGUF files.
struct block_weights {
  ggml_tensor* router;  ///< [D, N]
  ggml_tensor* gate;    ///< [D, F, N]
  ggml_tensor* up;      ///< [D, F, N]
  ggml_tensor* down;    ///< [F, D, N]
};

/// What the graph computes.
struct block_outputs {
  ggml_tensor* logits;   ///< [N, T]
  ggml_tensor* experts;  ///< [K, T], i32: which experts each token has
  ggml_tensor* tokens;   ///< [D, T]
};

/// out_t = Σ_k w_k down_k(silu(gate_k x_t) ∘ up_k x_t) over the K experts of the largest logits ⟨rows_i,
/// x_t⟩; w is the softmax of all logits, normalised over the K. `rows`: what tokens are compared with, [D,
/// N]: the router itself, or r′.
inline block_outputs moe_block(ggml_context* ctx, const block_weights& w, ggml_tensor* rows,
                               ggml_tensor* tokens, int top_k) {
  const auto d = tokens->ne[0];
  const auto t = tokens->ne[1];
  const auto n = rows->ne[1];
  ggml_tensor* logits = ggml_mul_mat(ctx, rows, tokens);
  ggml_tensor* scores = ggml_soft_max(ctx, logits);
  ggml_tensor* chosen = ggml_argsort_top_k(ctx, scores, top_k);                              // [K, T]
  ggml_tensor* weights = ggml_get_rows(ctx, ggml_reshape_3d(ctx, scores, 1, n, t), chosen);  // [1, K, T]
  weights = ggml_reshape_2d(ctx, weights, top_k, t);
  weights = ggml_div(ctx, weights, ggml_sum_rows(ctx, weights));

  ggml_tensor* x = ggml_reshape_3d(ctx, tokens, d, 1, t);
  ggml_tensor* up = ggml_mul_mat_id(ctx, w.up, x, chosen);      // [F, K, T]
  ggml_tensor* gate = ggml_mul_mat_id(ctx, w.gate, x, chosen);  // [F, K, T]
  ggml_tensor* hidden = ggml_mul(ctx, ggml_silu(ctx, gate), up);
  ggml_tensor* down = ggml_mul_mat_id(ctx, w.down, hidden, chosen);  // [D, K, T]
  down = ggml_mul(ctx, down, ggml_reshape_3d(ctx, weights, 1, top_k, t));

  ggml_tensor* sum = nullptr;
  for (int k = 0; k < top_k; ++k) {
    ggml_tensor* one = ggml_view_2d(ctx, down, d, t, down->nb[2], static_cast<size_t>(k) * down->nb[1]);
    sum = sum == nullptr ? ggml_cont(ctx, one) : ggml_add(ctx, sum, one);
  }
  return {logits, chosen, sum};
}
