#include "layout.hpp"

#include <mpi_router/backend/eigen.hpp>

#include <cstring>

namespace verify {

namespace {

using namespace mpi_router;

/// Calls use(pointer to the elements) with the stored type, for `count` elements from `first` on; copies them
/// where the file does not align them.
template <class Use>
void with_elements(const stored_tensor& tensor, index_t first, index_t count, Use use) {
  const auto run = [&]<class T>(T) {
    const auto bytes = tensor.bytes().subspan(static_cast<std::size_t>(first) * sizeof(T),
                                              static_cast<std::size_t>(count) * sizeof(T));
    if (tensor.is_aligned<T>()) {
      use(reinterpret_cast<const T*>(bytes.data()));
    } else {
      std::vector<T> copy(static_cast<std::size_t>(count));
      std::memcpy(copy.data(), bytes.data(), bytes.size());
      use(static_cast<const T*>(copy.data()));
    }
  };
  switch (tensor.type()) {
    case dtype::f64: return run(double{});
    case dtype::f32: return run(float{});
    case dtype::bf16: return run(bf16{});
    case dtype::f16: return run(f16{});
    default: tensor.fail("is stored as ", to_string(tensor.type()), ", not as floating point");
  }
}

template <class T>
matrix_view<const T> gate_view(const T* data, const gate_block& block) {
  const expert_shape one{1, block.ffn_dim, block.hidden_dim};
  switch (block.how) {
    case layout::nfd: return experts_nfd(data, one)[0];
    case layout::ndf: return experts_ndf(data, one)[0];
    case layout::n2fd_concatenated: return experts_n2fd_concatenated(data, one)[0];
    case layout::n2fd_interleaved: return experts_n2fd_interleaved(data, one)[0];
    case layout::nd2f_concatenated: return experts_nd2f_concatenated(data, one)[0];
    case layout::nd2f_interleaved: return experts_nd2f_interleaved(data, one)[0];
  }
  return {};
}

bool is_fused(layout how) { return how != layout::nfd && how != layout::ndf; }
bool ffn_comes_first(layout how) {
  return how == layout::nfd || how == layout::n2fd_concatenated || how == layout::n2fd_interleaved;
}

}  // namespace

std::string_view flag_of(layout value) { return layout_names[static_cast<std::size_t>(value)].flag; }
std::string_view meaning_of(layout value) { return layout_names[static_cast<std::size_t>(value)].meaning; }

layout transposed(layout value) {
  switch (value) {
    case layout::nfd: return layout::ndf;
    case layout::ndf: return layout::nfd;
    case layout::n2fd_concatenated: return layout::nd2f_concatenated;
    case layout::n2fd_interleaved: return layout::nd2f_interleaved;
    case layout::nd2f_concatenated: return layout::n2fd_concatenated;
    case layout::nd2f_interleaved: return layout::n2fd_interleaved;
  }
  return value;
}

index_t rows_of(const stored_tensor& router, router_layout how) {
  return router.shape()[how == router_layout::nd ? 0 : 1];
}
index_t hidden_dim_of(const stored_tensor& router, router_layout how) {
  return router.shape()[how == router_layout::nd ? 1 : 0];
}

std::optional<layout> layout_from_flag(std::string_view flag) {
  for (const auto& name : layout_names) {
    if (name.flag == flag) {
      return name.value;
    }
  }
  return std::nullopt;
}

std::optional<index_t> ffn_dim_of(layout how, std::span<const index_t> shape, index_t experts,
                                  index_t hidden_dim) {
  index_t slow = 0;  // the two axes of one expert
  index_t fast = 0;
  if (shape.size() == 3 && shape[0] == experts) {
    slow = shape[1];
    fast = shape[2];
  } else if (shape.size() == 2 && experts > 0 && shape[0] % experts == 0) {
    slow = shape[0] / experts;
    fast = shape[1];
  } else {
    return std::nullopt;
  }
  const index_t hidden = ffn_comes_first(how) ? fast : slow;
  const index_t ffn = ffn_comes_first(how) ? slow : fast;
  if (hidden != hidden_dim || ffn == 0 || (is_fused(how) && ffn % 2 != 0)) {
    return std::nullopt;
  }
  return is_fused(how) ? ffn / 2 : ffn;
}

bool is_floating(dtype type) {
  return type == dtype::f64 || type == dtype::f32 || type == dtype::bf16 || type == dtype::f16;
}

gate_matrix read_gate(const gate_block& block) {
  const index_t size = block.ffn_dim * block.hidden_dim * (is_fused(block.how) ? 2 : 1);
  gate_matrix a(block.ffn_dim, block.hidden_dim);
  with_elements(*block.tensor, block.index * size, size, [&](const auto* data) {
    const auto stored = gate_view(data, block);
    for (index_t f = 0; f < a.rows(); ++f) {
      for (index_t d = 0; d < a.cols(); ++d) {
        a(f, d) = widen<double>(stored(f, d));
      }
    }
  });
  return a;
}

Eigen::VectorXd read_row(const stored_tensor& router, router_layout how, index_t i) {
  const index_t rows = rows_of(router, how);
  const index_t hidden_dim = hidden_dim_of(router, how);
  Eigen::VectorXd row(hidden_dim);
  if (how == router_layout::nd) {
    with_elements(router, i * hidden_dim, hidden_dim, [&](const auto* data) {
      for (index_t d = 0; d < hidden_dim; ++d) {
        row[d] = widen<double>(data[d]);
      }
    });
  } else {
    with_elements(router, 0, rows * hidden_dim, [&](const auto* data) {
      for (index_t d = 0; d < hidden_dim; ++d) {
        row[d] = widen<double>(data[d * rows + i]);
      }
    });
  }
  return row;
}

}  // namespace verify
