// Batches of experts in every layout, and central differences.
#pragma once

#include <mpi_router/core/concepts.hpp>
#include <mpi_router/core/experts.hpp>

#include <support/executors.hpp>
#include <support/random.hpp>
#include <support/tolerance.hpp>

#include <array>
#include <limits>
#include <string_view>
#include <vector>

namespace test_support {

using mpi_router::expert_batch_view;
using mpi_router::expert_shape;

enum class batch_layout : unsigned char {
  nfd,
  ndf,
  n2fd_concatenated,
  n2fd_interleaved,
  nd2f_concatenated,
  nd2f_interleaved,
  fd_pointers,
  df_pointers,
  strided
};
inline constexpr std::array all_batch_layouts{batch_layout::nfd,
                                              batch_layout::ndf,
                                              batch_layout::n2fd_concatenated,
                                              batch_layout::n2fd_interleaved,
                                              batch_layout::nd2f_concatenated,
                                              batch_layout::nd2f_interleaved,
                                              batch_layout::fd_pointers,
                                              batch_layout::df_pointers,
                                              batch_layout::strided};

[[nodiscard]] constexpr std::string_view to_string(batch_layout l) noexcept {
  constexpr std::array<std::string_view, 9> names{"nfd",
                                                  "ndf",
                                                  "n2fd_concatenated",
                                                  "n2fd_interleaved",
                                                  "nd2f_concatenated",
                                                  "nd2f_interleaved",
                                                  "fd_pointers",
                                                  "df_pointers",
                                                  "strided"};
  return names[static_cast<std::size_t>(l)];
}

/// Owns the experts in a layout. What is not an element of them is NaN.
template <mpi_router::Scalar T>
class stored_batch {
 public:
  stored_batch(const expert_shape& shape, batch_layout l) : shape_(shape), layout_(l) {
    const auto size = static_cast<std::size_t>(4 * shape.num_experts * shape.ffn_dim * shape.hidden_dim + 8);
    elements_.assign(size,
                     mpi_router::narrow<T>(std::numeric_limits<mpi_router::accumulator_t<T>>::quiet_NaN()));
    for (index_t i = 0; i < shape.num_experts; ++i) {  // pointers in reverse order: not a regular stride
      table_.push_back(elements_.data() + 1 + (shape.num_experts - 1 - i) * shape.ffn_dim * shape.hidden_dim);
    }
  }
  /// A copy of values [N, F, D], rounded to T.
  template <class U>
  stored_batch(const std::vector<U>& values, const expert_shape& shape, batch_layout l)
      : stored_batch(shape, l) {
    for (index_t i = 0; i < shape.num_experts; ++i) {
      for (index_t f = 0; f < shape.ffn_dim; ++f) {
        for (index_t d = 0; d < shape.hidden_dim; ++d) {
          view()[i](f, d) = mpi_router::narrow<T>(static_cast<mpi_router::accumulator_t<T>>(
              values[static_cast<std::size_t>((i * shape.ffn_dim + f) * shape.hidden_dim + d)]));
        }
      }
    }
  }
  stored_batch(const stored_batch&) = delete;
  stored_batch& operator=(const stored_batch&) = delete;

  [[nodiscard]] expert_batch_view<T> view() {
    T* const data = elements_.data() + 1;
    switch (layout_) {
      case batch_layout::nfd: return mpi_router::experts_nfd(data, shape_);
      case batch_layout::ndf: return mpi_router::experts_ndf(data, shape_);
      case batch_layout::n2fd_concatenated: return mpi_router::experts_n2fd_concatenated(data, shape_);
      case batch_layout::n2fd_interleaved: return mpi_router::experts_n2fd_interleaved(data, shape_);
      case batch_layout::nd2f_concatenated: return mpi_router::experts_nd2f_concatenated(data, shape_);
      case batch_layout::nd2f_interleaved: return mpi_router::experts_nd2f_interleaved(data, shape_);
      case batch_layout::fd_pointers: return mpi_router::experts_fd_pointers(table_.data(), shape_);
      case batch_layout::df_pointers: return mpi_router::experts_df_pointers(table_.data(), shape_);
      case batch_layout::strided: break;
    }
    return mpi_router::experts_strided(
        data, shape_,
        {.expert = 4 * shape_.ffn_dim * shape_.hidden_dim, .ffn = 2 * shape_.hidden_dim, .hidden = 2});
  }
  /// The elements in the order [N, F, D], in double.
  [[nodiscard]] std::vector<double> values() {
    std::vector<double> out;
    for (index_t i = 0; i < shape_.num_experts; ++i) {
      for (index_t f = 0; f < shape_.ffn_dim; ++f) {
        for (index_t d = 0; d < shape_.hidden_dim; ++d) {
          out.push_back(mpi_router::widen<double>(view()[i](f, d)));
        }
      }
    }
    return out;
  }
  /// Whether everything outside the experts is still NaN.
  [[nodiscard]] bool gaps_untouched() {
    index_t finite = 0;
    for (const T& x : elements_) {
      finite += mpi_router::is_finite(x) ? 1 : 0;
    }
    return finite <= shape_.num_experts * shape_.ffn_dim * shape_.hidden_dim;
  }

 private:
  expert_shape shape_;
  batch_layout layout_;
  std::vector<T> elements_;
  std::vector<T*> table_;
};

/// ∂f/∂x_i for all i by central differences of fourth order with step h.
template <class F>
[[nodiscard]] std::vector<double> numeric_gradient(std::vector<double>& x, F f, double h = 1e-4) {
  std::vector<double> out(x.size());
  for (std::size_t i = 0; i < x.size(); ++i) {
    const double at = x[i];
    const auto value = [&](double offset) {
      x[i] = at + offset;
      return f();
    };
    out[i] = (8 * (value(h) - value(-h)) - (value(2 * h) - value(-2 * h))) / (12 * h);
    x[i] = at;
  }
  return out;
}

/// ‖a − b‖ / max(‖b‖, floor): for gradients that may be zero up to rounding.
template <class A, class B>
[[nodiscard]] double distance_above(const A& a, const B& b, double floor) {
  double difference = 0;
  double norm = 0;
  for (std::size_t i = 0; i < b.size(); ++i) {
    difference = std::hypot(difference, static_cast<double>(a[i]) - static_cast<double>(b[i]));
    norm = std::hypot(norm, static_cast<double>(b[i]));
  }
  return a.size() == b.size() ? difference / std::fmax(norm, floor) : std::numeric_limits<double>::infinity();
}

}  // namespace test_support
