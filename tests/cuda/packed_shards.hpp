// Layers whose experts are decoded as they are read, cut into parts for ranks, and what ranks make of them.
#pragma once

#include <mpi_router/distributed/device_loopback.cuh>
#include <mpi_router/distributed/packed_run.cuh>
#include <mpi_router/distributed/sharded_router_rows.cuh>
#include <mpi_router/distributed/sharded_router_rows_vjp.cuh>

#include <memory>

#include "packed_problem.hpp"
#include "sharded_support.hpp"

namespace sharded_checks {

/// How experts are cut.
enum class packed_kind { experts, neurons, both, rows, columns };
inline const char* name_of(packed_kind kind) {
  constexpr const char* names[] = {"experts", "neurons", "experts and neurons", "rows", "columns"};
  return names[static_cast<int>(kind)];
}

/// What a rank has of [N, F, D]: a run of rows of [N·F, D], or of the experts [first, end) the neurons
/// [first_neuron, end_neuron) and the columns [first_column, end_column).
struct packed_part {
  index_t first = 0, end = 0, first_neuron = 0, end_neuron = 0, first_column = 0, end_column = 0;
  index_t first_row = 0, end_row = 0;  // of a run; the experts are those that it has rows of

  [[nodiscard]] bool is_run() const { return end_row > first_row; }
  [[nodiscard]] index_t experts() const { return end - first; }
  [[nodiscard]] index_t neurons() const { return end_neuron - first_neuron; }
  [[nodiscard]] index_t columns() const { return end_column - first_column; }
  [[nodiscard]] index_t projections() const { return is_run() ? end_row - first_row : experts() * neurons(); }
};

/// Neurons, and columns, that share scales and are cut between blocks of them; 1 where one block has all.
struct packed_units {
  index_t neurons = 1, columns = 1;
};

/// Where a rank's part of an extent begins: at share cuts[rank] / cuts.back() of it, or where a block of
/// `unit` that share scales does before that.
inline index_t cut_at(index_t extent, const std::vector<index_t>& cuts, index_t rank, index_t unit = 1) {
  const index_t at = extent * cuts[static_cast<std::size_t>(rank)] / cuts.back();
  return at == extent ? at : at / unit * unit;
}
/// The rows of [N·F, D] that a rank has.
inline packed_part run_of(const expert_shape& s, const std::vector<index_t>& cuts, index_t rank,
                          index_t unit) {
  const auto [n, f, d] = s;
  const auto row = [&](index_t r) {
    const index_t at = cut_at(n * f, cuts, r);
    return f == 0 ? at : at / f * f + at % f / unit * unit;
  };
  packed_part p;
  p.first_row = row(rank), p.end_row = row(rank + 1), p.end_column = d;
  if (p.is_run()) p.first = p.first_row / f, p.end = (p.end_row - 1) / f + 1;
  return p;
}
/// What a rank has.
inline packed_part part_of(const expert_shape& s, packed_kind kind, const std::vector<index_t>& cuts,
                           index_t rank, const packed_units& units) {
  const auto [n, f, d] = s;
  const index_t half = (static_cast<index_t>(cuts.size()) - 1) / 2;
  packed_part p{0, n, 0, f, 0, d};
  if (kind == packed_kind::rows) return run_of(s, cuts, rank, units.neurons);
  if (kind == packed_kind::neurons) {
    p.first_neuron = cut_at(f, cuts, rank, units.neurons);
    p.end_neuron = cut_at(f, cuts, rank + 1, units.neurons);
  } else if (kind == packed_kind::columns) {
    p.first_column = cut_at(d, cuts, rank, units.columns);
    p.end_column = cut_at(d, cuts, rank + 1, units.columns);
  } else if (kind == packed_kind::both && cuts.size() % 2 == 1) {  // two by two
    p.first = n * (rank / half) / 2, p.end = n * (rank / half + 1) / 2;
    p.first_neuron = f * (rank % half) / half, p.end_neuron = f * (rank % half + 1) / half;
  } else {
    p.first = cut_at(n, cuts, rank), p.end = cut_at(n, cuts, rank + 1);
  }
  return p;
}

/// Columns of a block, of which a matrix of a format is made.
template <class View>
constexpr index_t packed_unit = 32;
template <>
inline constexpr index_t packed_unit<fp8_view> = 1;
template <>
inline constexpr index_t packed_unit<q4_k_view> = 256;

/// A layer of packed experts, whole on the device at hand.
template <class View>
struct packed_layer : gpu_check::packed_problem<View, float> {
  static constexpr index_t unit = packed_unit<View>;

  packed_layer(const expert_shape& s, gpu_check::generator& g)
      : gpu_check::packed_problem<View, float>(gpu_check::packed_spec{.shape = s}, g) {}

  [[nodiscard]] packed_units units() const {
    const auto batch = this->view().rows();
    const auto [n, f, d] = this->place.shape;
    const bool is_free = unit == 1;  // of FP8 a part may lie within a block
    return {batch.block_rows() >= f ? 1 : batch.block_rows(),
            is_free && batch.block_cols() >= d ? 1 : batch.block_cols()};
  }
  [[nodiscard]] auto experts(const packed_part& p) const {
    return cuda::packed_experts(part(p.first, p.first_neuron, p.neurons(), p.first_column, p.columns()),
                                p.experts(), this->bytes.expert_bytes, this->bytes.scale_bytes);
  }
  [[nodiscard]] auto run(const packed_part& p) const {
    const index_t f = std::max<index_t>(this->place.shape.ffn_dim, 1);
    const View rows = part(p.first_row / f, p.first_row % f, p.end_row - p.first_row, 0, p.columns());
    return cuda::packed_row_run(rows, p.first_row, this->place.shape);
  }

 private:
  /// Some rows of an expert, and those that follow; some of their columns.
  [[nodiscard]] View part(index_t expert, index_t row, index_t rows, index_t column, index_t columns) const {
    View a = this->bytes.at(this->device_codes.data(), this->device_scales.data(), expert);
    const auto move = [](const void*& at, index_t by) { at = static_cast<const unsigned char*>(at) + by; };
    if constexpr (std::is_same_v<View, fp8_view>) {
      move(a.codes, row * a.row_bytes + column);
      move(a.scales, row / a.block_rows * a.scale_row_bytes +
                         column / a.block_cols * mpi_router::detail::kernels::size_of(a.scale_type));
    } else if constexpr (std::is_same_v<View, mxfp4_view>) {
      move(a.codes, row * a.row_bytes + column / 2);
      move(a.scales, row * a.scale_row_bytes + column / 32);
    } else {
      using format = mpi_router::detail::kernels::packed_format<View>;
      move(a.blocks, row * a.row_bytes + column / format::block_cols * format::block_bytes);
    }
    a.rows = rows;
    a.cols = columns;
    return a;
  }
};

/// A layer of a formula: any neuron and any column may be the first.
struct formula_rows {
  int expert, row, column, end;
  struct matrix {
    int expert, row, column, end;
    __device__ void load(int f, int d, float (&out)[8]) const {
      for (int i = 0; i < 8; ++i) {
        const int at = column + d + i;
        out[i] = at < end ? static_cast<float>((expert * 7 + (row + f) * 5 + at * 3) % 11 - 5) / 4 : 0.0F;
      }
    }
  };
  __device__ matrix of(int e) const { return {expert + e, row, column, end}; }
};
struct formula_layer {
  struct {
    expert_shape shape;
  } place;
  gpu_check::device_array<float> device_rows;
  static constexpr index_t unit = 1;

  formula_layer(const expert_shape& s, gpu_check::generator& g) : place{s}, device_rows(random(s, g)) {}
  [[nodiscard]] packed_units units() const { return {}; }
  [[nodiscard]] auto rows() const {
    return row_major<device_space>(const_cast<const float*>(device_rows.data()), place.shape.num_experts,
                                   place.shape.hidden_dim);
  }
  [[nodiscard]] auto experts(const packed_part& p) const {
    return block(p.first, p.first_neuron, p.first_column, {p.experts(), p.neurons(), p.columns()});
  }
  [[nodiscard]] auto run(const packed_part& p) const {
    const index_t f = place.shape.ffn_dim;
    return cuda::decoded_row_run(
        [p, f](index_t k, const expert_shape& s) {
          return block(p.first + k, k == 0 && f > 0 ? p.first_row % f : 0, 0, s);
        },
        p.first_row, p.end_row - p.first_row, place.shape);
  }

 private:
  static cuda::decoded_experts<formula_rows> block(index_t expert, index_t row, index_t column,
                                                   const expert_shape& s) {
    return {formula_rows{static_cast<int>(expert), static_cast<int>(row), static_cast<int>(column),
                         static_cast<int>(column + s.hidden_dim)},
            s};
  }
  static std::vector<float> random(const expert_shape& s, gpu_check::generator& g) {
    std::normal_distribution<float> normal;
    std::vector<float> out(static_cast<std::size_t>(s.num_experts * s.hidden_dim));
    for (auto& x : out) x = normal(g);
    return out;
  }
};

/// A rank's part as a shard.
template <packed_kind kind, class Layer>
auto shard_of(const Layer& layer, const packed_part& p) {
  if constexpr (kind == packed_kind::rows) {
    return layer.run(p);
  } else if constexpr (kind == packed_kind::columns) {
    return cuda::decoded_column_slice(layer.experts(p), p.first_column, layer.place.shape.hidden_dim);
  } else {
    return cuda::decoded_neurons(layer.experts(p), p.first, p.first_neuron, layer.place.shape);
  }
}

}  // namespace sharded_checks
