// The seams: what an algorithm asks of an operator, of a backend, of an executor, and of a communicator.
#pragma once

#include <mpi_router/core/experts.hpp>

#include <concepts>
#include <type_traits>

MPIROUTER_BEGIN_TYPES

/// The Gram matrix M = AᵀA of one expert (D × D, symmetric, positive semidefinite), seen only through its
/// action. `apply(x, u)` writes the image u = xM and returns the energy xMxᵀ, so that tracking the Rayleigh
/// quotient costs nothing. x and u have dimension() elements of type `scalar` and do not overlap.
///
/// Dense experts (backend/), Eigen matrices, sparse ones, sharded sums and lambdas (core/operators.hpp) are
/// all models; so is any struct of the caller's with these three members.
template <class Op>
concept GramOperator =
    Accumulator<typename std::remove_cvref_t<Op>::scalar> &&
    requires(std::remove_reference_t<Op>& op, vector_view<const typename std::remove_cvref_t<Op>::scalar> x,
             vector_view<typename std::remove_cvref_t<Op>::scalar> u) {
      { op.dimension() } -> std::convertible_to<index_t>;
      { op.apply(x, u) } -> std::convertible_to<typename std::remove_cvref_t<Op>::scalar>;
    };

/// The type that an operator computes in.
template <GramOperator Op>
using scalar_of = typename std::remove_cvref_t<Op>::scalar;

/// A GramOperator that also shows its factor A (F × D): `project` writes the projection y = A x (F elements)
/// and `lift` writes u = y A (D elements). Gradients to A and sharding along D need it.
template <class Op>
concept FactoredGramOperator =
    GramOperator<Op> && requires(std::remove_reference_t<Op>& op, vector_view<const scalar_of<Op>> in,
                                 vector_view<scalar_of<Op>> out) {
      { op.ffn_dim() } -> std::convertible_to<index_t>;
      op.project(in, out);
      op.lift(in, out);
    };

/// An image whose scale was taken out: xM = u · 2^image_exponent, xMxᵀ = energy · 2^energy_exponent.
template <Accumulator S>
struct scaled_energy {
  S energy = 0;
  int image_exponent = 0;
  int energy_exponent = 0;
};

/// A GramOperator that can also be applied where squares of its elements leave the range of `scalar`.
/// Algorithms call `apply_scaled` only after `apply` over- or underflowed.
template <class Op>
concept ScalableGramOperator =
    GramOperator<Op> && requires(std::remove_reference_t<Op>& op, vector_view<const scalar_of<Op>> x,
                                 vector_view<scalar_of<Op>> u) {
      { op.apply_scaled(x, u) } -> std::same_as<scaled_energy<scalar_of<Op>>>;
    };

/// The experts as operators: `operators(i)` gives the GramOperator of expert i, by value or by reference. It
/// is called from any thread, for each expert once before a call begins and once a step, so that it should
/// do little; different i may be under way at once.
template <class F>
concept GramOperators = requires(const F& operators, index_t i) {
  { operators(i) } -> GramOperator;
};
/// The same with operators that show their factor A.
template <class F>
concept FactoredGramOperators = requires(const F& operators, index_t i) {
  { operators(i) } -> FactoredGramOperator;
};

namespace core {

/// For a type that is not GramOperators any scalar will do: the overload is constrained away, and a failure
/// here would be one error more for one mistake.
template <class F>
struct operators_scalar {
  using type = float;
};
template <GramOperators F>
struct operators_scalar<F> {
  using type = scalar_of<std::invoke_result_t<const F&, index_t>>;
};

}  // namespace core

/// The type that they compute in.
template <class F>
using scalar_of_operators = typename core::operators_scalar<F>::type;

/// A backend, which multiplies: the one-expert kernels over a dense view of any storage type T with sums in
/// S. x, y and u are contiguous or strided vectors of S; `apply` writes u = xAᵀA and returns the energy.
template <class B, class T, class S>
concept DenseBackend =
    requires(const B& backend, matrix_view<const T> a, vector_view<const S> x, vector_view<S> u) {
      { backend.apply(a, x, u) } -> std::same_as<S>;
      backend.project(a, x, u);
      backend.lift(a, x, u);
    };

/// An executor, which runs tasks: `execute(count, task)` calls task(i) once for each i in [0, count), in any
/// order, on any threads, and returns when all are done. Tasks never throw and never depend on each other, so
/// results are bitwise the same for every executor.
template <class E>
concept Executor = requires(const E& execute, void (&task)(index_t)) { execute(index_t{}, task); };

/// A communicator, which the caller owns and the library borrows: `rank()` of `size()` members, each of which
/// makes the same calls in the same order. `all_gather(mine, all)` gives every member the elements of all,
/// those of rank r from r · mine.size() on; mine has equally many on every rank, and `all` lies apart from
/// it. Both are contiguous, of float and of double: numbers stored in fewer bits are never sent.
/// distributed/mpi.hpp adapts MPI_Comm, distributed/loopback.hpp threads, distributed/communicator.hpp
/// lambdas.
template <class C>
concept Communicator =
    requires(const std::remove_cvref_t<C>& comm, vector_view<const float> mine, vector_view<float> all,
             vector_view<const double> my_doubles, vector_view<double> all_doubles) {
      { comm.rank() } -> std::convertible_to<index_t>;
      { comm.size() } -> std::convertible_to<index_t>;
      comm.all_gather(mine, all);
      comm.all_gather(my_doubles, all_doubles);
    };

/// A communicator with a sum of its own: `all_reduce_sum(sums)` replaces the elements by their sums over all
/// ranks, in whatever order it likes.
template <class C>
concept SummingCommunicator =
    Communicator<C> &&
    requires(const std::remove_cvref_t<C>& comm, vector_view<float> sums, vector_view<double> double_sums) {
      comm.all_reduce_sum(sums);
      comm.all_reduce_sum(double_sums);
    };

/// Runs the tasks in order on the calling thread.
struct serial_executor {
  template <class Task>
  constexpr void operator()(index_t count, Task&& task) const {
    for (index_t i = 0; i < count; ++i) {
      task(i);
    }
  }
};

MPIROUTER_END_TYPES

MPIROUTER_BEGIN
namespace detail {
using namespace core;  // expect, overlap: one set for every instruction set
}
MPIROUTER_END
