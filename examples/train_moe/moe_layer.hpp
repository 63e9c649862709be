// The mixture of experts: rows, gate, dispatch, SwiGLU experts, and back.
#pragma once

#include "router.hpp"

#include <mpi_router/router/balance.hpp>
#include <mpi_router/router/dispatch.hpp>
#include <mpi_router/router/gating_vjp.hpp>

namespace train {

struct moe_sizes {
  index_t experts = 8;
  index_t ffn = 64;
  index_t hidden = 64;
  index_t top_k = 2;
};

class moe_layer {
 public:
  moe_layer(const std::string& name, const moe_sizes& sizes, router_kind kind, double c_prime, index_t length,
            random_source& random, float output_deviation);

  matrix forward(const matrix& x);
  /// `coefficient` is that of the balance loss in the loss that `grad` comes from.
  matrix backward(const matrix& grad, float coefficient);

  [[nodiscard]] float balance() const { return balance_; }  ///< the last forward's balance loss
  [[nodiscard]] const std::vector<index_t>& load() const { return load_; }  ///< and its load
  [[nodiscard]] const matrix& rows() const { return rows_; }                ///< and the rows that tokens met
  [[nodiscard]] auto gates() const { return mpi_router::experts_nfd(gate.value.data(), shape_); }

  parameter router;  ///< N × D
  parameter gate;    ///< [N, F, D]
  parameter up;      ///< [N, F, D]
  parameter down;    ///< [N, F, D]: y = h · down

 private:
  [[nodiscard]] mpi_router::gating_options gating() const { return {.top_k = sizes_.top_k}; }
  /// Rows of gathered_ before those of an expert: its tokens, and behind them room for the outer products of
  /// its gate's gradient by the router's rows.
  [[nodiscard]] index_t group(index_t expert) const {
    return offsets_[static_cast<std::size_t>(expert)] + expert * maker_.products();
  }
  /// How many tokens it has.
  [[nodiscard]] index_t tokens_of(index_t expert) const {
    return offsets_[static_cast<std::size_t>(expert + 1)] - offsets_[static_cast<std::size_t>(expert)];
  }

  /// From the gradient of its outputs to that of its inputs, and of its matrices.
  void backward_of_expert(index_t e, const matrix& grad_out, matrix& grad_gathered);

  moe_sizes sizes_;
  mpi_router::expert_shape shape_;
  index_t length_;
  row_maker maker_;
  float balance_ = 0;
  std::vector<index_t> load_;

  // Of the last forward.
  matrix x_, rows_, logits_, weights_;
  matrix gathered_;                        ///< T · K rows, sorted by expert, and room
  matrix gate_out_, up_out_, expert_out_;  ///< T · K rows
  std::vector<mpi_router::expert_id> ids_;
  std::vector<index_t> offsets_, tokens_, entries_;
  std::vector<float> scratch_;
};

}  // namespace train
