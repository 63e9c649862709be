// An operator behind functions: what the searches need of M, so that they are compiled once for each type of
// sums, and not once for each type of operator.
#pragma once

#include <mpi_router/backend/eigen.hpp>
#include <mpi_router/core/concepts.hpp>
#include <mpi_router/verify/gram_in_double.hpp>

#include <Eigen/Core>

#include <array>
#include <concepts>
#include <memory>
#include <type_traits>
#include <utility>

MPIROUTER_BEGIN

/// Some GramOperator with sums in S, a ScalableGramOperator where `scalable`. Owns the operator that it was
/// given by a pointer, and borrows that which it was given by reference. A call of it costs one jump more;
/// the numbers are those of the operator.
template <Accumulator S, bool scalable = true>
class any_operator {
 public:
  using scalar = S;

  template <GramOperator Op>
    requires(!std::same_as<std::remove_const_t<Op>, any_operator>)
  explicit any_operator(Op& op) : any_operator(&op) {}
  template <GramOperator Op>
  explicit any_operator(std::shared_ptr<Op> op) : any_operator(there_is(op.get())) {
    owned_ = std::move(op);
  }

  [[nodiscard]] index_t dimension() const noexcept { return dimension_; }
  /// F; D of an operator that does not tell.
  [[nodiscard]] index_t ffn_dim() const noexcept { return ffn_dim_; }
  /// Whether apply_two takes the reads of one image.
  [[nodiscard]] bool shares_reads() const noexcept { return shares_reads_; }
  S apply(vector_view<const S> x, vector_view<S> u) { return apply_(op_, x, u); }
  /// Two images, and their energies: in one read where the operator has it.
  std::array<S, 2> apply_two(const std::array<vector_view<const S>, 2>& x,
                             const std::array<vector_view<S>, 2>& u) {
    return apply_two_(op_, x, u);
  }
  scaled_energy<S> apply_scaled(vector_view<const S> x, vector_view<S> u)
    requires scalable
  {
    return apply_scaled_(op_, x, u);
  }
  /// The images of the columns of x, [D, n].
  [[nodiscard]] Eigen::MatrixXd images(const Eigen::MatrixXd& x)
    requires std::same_as<S, double>
  {
    return images_(op_, x);
  }

 private:
  template <class Op>
  [[nodiscard]] static Op* there_is(Op* op) {
    detail::expect(op != nullptr, "any_operator: there is no operator");
    return op;
  }
  template <class Op>
  explicit any_operator(Op* op)
      : op_(const_cast<std::remove_const_t<Op>*>(op)),
        dimension_(static_cast<index_t>(op->dimension())),
        ffn_dim_(dimension_) {
    static_assert(std::same_as<scalar_of<Op>, S>);
    if constexpr (requires { op->ffn_dim(); }) {
      ffn_dim_ = static_cast<index_t>(op->ffn_dim());
    }
    if constexpr (requires { op->shares_reads(); }) {
      shares_reads_ = op->shares_reads();
    }
    apply_ = [](void* at, vector_view<const S> x, vector_view<S> u) {
      return static_cast<S>(static_cast<Op*>(at)->apply(x, u));
    };
    apply_two_ = [](void* at, const std::array<vector_view<const S>, 2>& x,
                    const std::array<vector_view<S>, 2>& u) -> std::array<S, 2> {
      auto& it = *static_cast<Op*>(at);
      if constexpr (requires { it.apply_two(x, u); }) {
        return it.apply_two(x, u);
      } else {
        return {static_cast<S>(it.apply(x[0], u[0])), static_cast<S>(it.apply(x[1], u[1]))};
      }
    };
    if constexpr (scalable) {
      apply_scaled_ = [](void* at, vector_view<const S> x, vector_view<S> u) {
        return static_cast<Op*>(at)->apply_scaled(x, u);
      };
    }
    if constexpr (std::same_as<S, double>) {
      images_ = [](void* at, const Eigen::MatrixXd& x) {
        return detail::images_of(*static_cast<Op*>(at), x);
      };
    }
  }

  std::shared_ptr<const void> owned_;
  void* op_;
  index_t dimension_;
  index_t ffn_dim_;
  bool shares_reads_ = false;
  S (*apply_)(void*, vector_view<const S>, vector_view<S>);
  std::array<S, 2> (*apply_two_)(void*, const std::array<vector_view<const S>, 2>&,
                                 const std::array<vector_view<S>, 2>&);
  scaled_energy<S> (*apply_scaled_)(void*, vector_view<const S>, vector_view<S>) = nullptr;
  Eigen::MatrixXd (*images_)(void*, const Eigen::MatrixXd&) = nullptr;
};

namespace detail {

template <class Op>
constexpr bool is_any_operator = false;
template <class S, bool scalable>
constexpr bool is_any_operator<any_operator<S, scalable>> = true;

/// The operator behind functions; itself where it is so already, or keeps its Krylov vectors elsewhere.
template <GramOperator Op>
[[nodiscard]] decltype(auto) behind_functions(Op& op) {
  if constexpr (is_any_operator<Op> || requires { op.make_basis(index_t{}); }) {
    return (op);
  } else {
    return any_operator<scalar_of<Op>, ScalableGramOperator<Op>>(op);
  }
}

}  // namespace detail

MPIROUTER_END
