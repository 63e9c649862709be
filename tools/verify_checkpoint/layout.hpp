// How the gate matrices of a layer lie in their tensors. Named, never guessed.
#pragma once

#include <mpi_router/core/experts.hpp>
#include <mpi_router/io/stored_tensor.hpp>

#include <Eigen/Core>

#include <array>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace verify {

using mpi_router::index_t;

enum class layout { nfd, ndf, n2fd_concatenated, n2fd_interleaved, nd2f_concatenated, nd2f_interleaved };

struct layout_name {
  layout value;
  std::string_view flag;     ///< what --layout calls it
  std::string_view meaning;  ///< for people
};

inline constexpr std::array<layout_name, 6> layout_names{{
    {layout::nfd, "nfd", "[N, F, D]"},
    {layout::ndf, "ndf", "[N, D, F]"},
    {layout::n2fd_concatenated, "n2fd-concatenated", "[N, 2F, D], gate before up"},
    {layout::n2fd_interleaved, "n2fd-interleaved", "[N, 2F, D], gate and up in turn"},
    {layout::nd2f_concatenated, "nd2f-concatenated", "[N, D, 2F], gate before up"},
    {layout::nd2f_interleaved, "nd2f-interleaved", "[N, D, 2F], gate and up in turn"},
}};

[[nodiscard]] std::string_view flag_of(layout value);
[[nodiscard]] std::string_view meaning_of(layout value);
[[nodiscard]] std::optional<layout> layout_from_flag(std::string_view flag);

/// The layout with the two axes of an expert exchanged: a square tensor may be either.
[[nodiscard]] layout transposed(layout value);

/// Whether a router is stored as [N, D], a row for each expert, or transposed, a column for each.
enum class router_layout { nd, dn };

/// N and D of a router with two axes.
[[nodiscard]] index_t rows_of(const mpi_router::stored_tensor& router, router_layout how);
[[nodiscard]] index_t hidden_dim_of(const mpi_router::stored_tensor& router, router_layout how);

/// F, if a tensor of this shape can hold the gates of `experts` experts of hidden dimension D so; nothing
/// otherwise. The first axis may be flattened into the second, [N·F, D], and a tensor of one expert may lack
/// it, [F, D].
[[nodiscard]] std::optional<index_t> ffn_dim_of(layout how, std::span<const index_t> shape, index_t experts,
                                                index_t hidden_dim);

/// The gate matrix of one expert: a contiguous block of a tensor.
struct gate_block {
  const mpi_router::stored_tensor* tensor = nullptr;
  index_t index = 0;  ///< of the expert within the tensor
  layout how = layout::nfd;
  index_t ffn_dim = 0;
  index_t hidden_dim = 0;
};

/// Whether the library reads numbers of this type.
[[nodiscard]] bool is_floating(mpi_router::dtype type);

/// A, [F, D], row after row, as the kernels read it.
using gate_matrix = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

/// The gate matrix A, [F, D], widened to double. Reads the one block of the tensor, wherever it is aligned.
[[nodiscard]] gate_matrix read_gate(const gate_block& block);

/// The router's row for expert i, widened to double.
[[nodiscard]] Eigen::VectorXd read_row(const mpi_router::stored_tensor& router, router_layout how, index_t i);

}  // namespace verify
