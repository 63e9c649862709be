// Everything that is an operator goes through every algorithm and gives what the dense f64 expert gives.
#include <mpi_router/backend/eigen.hpp>
#include <mpi_router/core/operators.hpp>
#include <mpi_router/manifold/power_iteration.hpp>
#include <mpi_router/manifold/power_step.hpp>
#include <mpi_router/manifold/rayleigh.hpp>
#include <mpi_router/manifold/steepest_ascent.hpp>

#include <doctest/doctest.h>
#include <Eigen/SparseCore>
#include <support/oracle.hpp>
#include <support/svd.hpp>

namespace test_operators {
using namespace mpi_router;
using namespace test_support;

namespace {

constexpr index_t F = 12;
constexpr index_t D = 19;

/// Every algorithm of manifold/ on one operator, against the dense matrix in double.
template <GramOperator Op>
void runs_everywhere(Op&& op, const matrix& a) {
  using S = scalar_of<Op>;
  const double bound = tolerance<S>.identity;
  random_source random(23);
  const auto row = random_vector<S>(random, D);
  const column r = values(row);
  const column unit = r.normalized();
  const double rho = (a * unit).squaredNorm();
  std::vector<S> out(row.size());

  CHECK(power_step(op, row, out, S(2)).state == status::ok);
  CHECK(relative_distance(values(out), exact_step(a, r, 2)) < bound);

  auto stateful = row;
  stateful_power_step(op, stateful, out, S(2));
  stateful_power_step(op, stateful, out, S(2));
  CHECK(relative_distance(values(stateful), exact_step(a, exact_step(a, r, 1), 2)) < bound);

  const auto at = rayleigh(op, row, out);
  CHECK(close(at.rayleigh, rho, bound));
  CHECK(close(at.residual, (a.transpose() * (a * unit) - rho * unit).norm(), bound));

  adaptive_ascent_step(op, row, out, S(1));
  CHECK(relative_distance(values(out), exact_step(a, r, 1)) < bound);
  const double eta = 0.3 / rho;
  steepest_ascent_step(op, row, out, S(1), static_cast<S>(eta));
  const column ascended = unit + eta * (a.transpose() * (a * unit) - rho * unit);
  CHECK(relative_distance(values(out), ascended.normalized()) < bound);

  auto iterated = row;
  std::vector<S> workspace(2 * row.size());
  const auto result = power_iteration(
      op, iterated, workspace,
      {.max_steps = 2000, .residual_tolerance = static_cast<S>(10 * tolerance<S>.arithmetic)});
  CHECK(result.reason == stop_reason::residual);
  const auto svd = test_support::jacobi_svd(a);
  CHECK(close(result.last.rayleigh, std::pow(svd.singularValues()[0], 2), 20 * bound));
  CHECK(1 - std::abs(values(iterated).dot(svd.matrixV().col(0))) < 20 * bound);
}

/// What a user writes: a rank-two block kept as two rows, never a matrix.
struct two_neurons {
  using scalar = double;
  column first, second;
  int applications = 0;

  [[nodiscard]] index_t dimension() const { return first.size(); }
  double apply(vector_view<const double> x, vector_view<double> u) {
    ++applications;
    const double y1 = first.dot(map(x));
    const double y2 = second.dot(map(x));
    map(u) = y1 * first + y2 * second;
    return y1 * y1 + y2 * y2;
  }
};

template <class E>
concept has_view = requires { view(std::declval<E>()); };
template <class E>
concept has_gram = requires { gram(std::declval<E>()); };

matrix random_dense(std::uint64_t seed, index_t rows = F) {
  random_source random(seed);
  const auto elements = random_matrix<double>(random, rows, D);
  return values(row_major(elements.data(), rows, D));
}

}  // namespace

TEST_CASE("dense views and Eigen objects are operators, without a copy") {
  const matrix a = random_dense(1);
  const Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor> by_rows = a;
  runs_everywhere(gram(row_major(by_rows.data(), F, D)), a);
  runs_everywhere(gram(a), a);
  runs_everywhere(gram(by_rows), a);
  runs_everywhere(gram(Eigen::Map<const matrix>(a.data(), F, D)), a);
  const Eigen::Ref<const matrix> ref(a);
  runs_everywhere(gram(ref), a);
  const Eigen::Ref<const matrix> of_expression(2 * a);  // holds a copy, which a temporary takes with it
  runs_everywhere(gram(of_expression), 2 * a);
  static_assert(!has_view<Eigen::Ref<const matrix>> && !has_view<matrix> && has_view<Eigen::Ref<matrix>>);
  static_assert(has_view<const Eigen::Ref<const matrix>&> && has_view<Eigen::Map<const matrix>>);
  matrix larger = matrix::Constant(F + 4, D + 4, std::nan(""));
  larger.block(1, 2, F, D) = a;
  runs_everywhere(gram(larger.block(1, 2, F, D)), a);
  CHECK(view(a).data() == a.data());
  CHECK(view(larger.block(1, 2, F, D)).data() == &larger(1, 2));
  const matrix paper = a.transpose();  // W_g, D × F
  runs_everywhere(gram(view(paper).transposed()), a);
  const Eigen::Matrix<float, F, D> fixed = a.cast<float>();
  runs_everywhere(gram(fixed), fixed.cast<double>());
  runs_everywhere(gram<double>(view(fixed)), fixed.cast<double>());
  const Eigen::Matrix<Eigen::bfloat16, Eigen::Dynamic, Eigen::Dynamic> brain = a.cast<Eigen::bfloat16>();
  runs_everywhere(gram(brain), brain.cast<double>());
  const Eigen::Matrix<Eigen::half, Eigen::Dynamic, Eigen::Dynamic> half = a.cast<Eigen::half>();
  runs_everywhere(gram(half), half.cast<double>());
}

TEST_CASE("sparse Eigen matrices of either order are operators") {
  matrix a = random_dense(2);
  a = (a.array().abs() < 0.7).select(0.0, a);
  const Eigen::SparseMatrix<double> by_columns = a.sparseView();
  const Eigen::SparseMatrix<double, Eigen::RowMajor> by_rows = a.sparseView();
  const Eigen::SparseMatrix<float> single = a.cast<float>().sparseView();
  runs_everywhere(gram(by_columns), a);
  runs_everywhere(gram(by_rows), a);
  runs_everywhere(gram(single), matrix(a.cast<float>().cast<double>()));
  static_assert(FactoredGramOperator<decltype(gram(by_rows))>);

  using sparse = Eigen::SparseMatrix<double>;
  const Eigen::Map<const sparse> mapped(F, D, by_columns.nonZeros(), by_columns.outerIndexPtr(),
                                        by_columns.innerIndexPtr(), by_columns.valuePtr());
  runs_everywhere(gram(mapped), a);
  const Eigen::Ref<const sparse> ref(by_columns);
  runs_everywhere(gram(ref), a);
  static_assert(has_gram<const sparse&> && !has_gram<sparse> && !has_gram<const sparse> &&
                !has_gram<Eigen::Ref<const sparse>>);
}

TEST_CASE("lambdas and structs of the user are operators") {
  const matrix a = random_dense(3);
  int calls = 0;
  runs_everywhere(gram_operator<double>(D,
                                        [&](vector_view<const double> x, vector_view<double> u) {
                                          ++calls;
                                          const column y = a * map(x);
                                          map(u) = a.transpose() * y;
                                          return y.squaredNorm();
                                        }),
                  a);
  CHECK(calls > 5);
  const matrix two = random_dense(4, 2);
  two_neurons block{two.row(0).transpose(), two.row(1).transpose()};
  runs_everywhere(block, two);
  CHECK(block.applications > 5);
  static_assert(GramOperator<two_neurons> && !FactoredGramOperator<two_neurons> &&
                !ScalableGramOperator<two_neurons>);
}

TEST_CASE("partial form: shards of neurons, summed by the caller before retraction") {
  const matrix a = random_dense(5);
  const auto whole = view(a);
  // Shard 0 is this one; the reduction asks the other two and adds their contributions, as an all-reduce
  // would.
  std::vector<double> now(D);
  const auto shard = [&](index_t first, index_t count) { return gram(whole.middle_rows(first, count)); };
  auto watched = gram_operator<double>(D, [&](vector_view<const double> x, vector_view<double> u) {
    for (index_t i = 0; i < D; ++i) now[static_cast<std::size_t>(i)] = x[i];
    return shard(0, 5).apply(x, u);
  });
  reduced_operator op(watched, [&](vector_view<double> u, double& energy) {
    for (const auto& [first, count] : {std::pair<index_t, index_t>{5, 3}, {8, 4}}) {
      std::vector<double> contribution(D);
      energy += shard(first, count).apply(now, contribution);
      map(u) += values(contribution);
    }
  });
  runs_everywhere(op, a);

  // A shard alone is an operator of its own.
  runs_everywhere(shard(0, 5), a.topRows(5));
}

TEST_CASE("partial form: shards of the hidden dimension, through project, reduce, lift") {
  const matrix a = random_dense(6);
  const auto left = gram(view(a).middle_cols(0, 7));
  const auto right = gram(view(a).middle_cols(7, D - 7));
  static_assert(FactoredGramOperator<decltype(left)>);
  runs_everywhere(gram_operator<double>(D,
                                        [&](vector_view<const double> x, vector_view<double> u) {
                                          column y(F), part(F);
                                          left.project({x.data(), 7}, view(y));
                                          right.project({x.data() + 7, D - 7}, view(part));
                                          y += part;  // the reduction
                                          left.lift(view(std::as_const(y)), {u.data(), 7});
                                          right.lift(view(std::as_const(y)), {u.data() + 7, D - 7});
                                          return y.squaredNorm();
                                        }),
                  a);
}

TEST_CASE_TEMPLATE("project and lift are A x and y A, and energy is ‖A x‖²", T, double, float, bf16, f16) {
  using S = accumulator_t<T>;
  random_source random(29);
  for (const auto& [rows, cols] : shapes) {
    for (const layout stored_as : all_layouts) {
      const stored_matrix<T> stored(random_matrix<T>(random, rows, cols), rows, cols, stored_as);
      const matrix a = values(stored.view());
      const auto op = gram(stored.view());
      const auto x = random_vector<S>(random, cols);
      const auto y = random_vector<S>(random, rows);
      std::vector<S> ax(y.size()), ya(x.size()), u(x.size());
      op.project(x, ax);
      op.lift(y, ya);
      const S energy = op.apply(x, u);
      CHECK((values(ax) - a * values(x)).norm() <= tolerance<T>.arithmetic * a.norm() * values(x).norm());
      CHECK((values(ya) - a.transpose() * values(y)).norm() <=
            tolerance<T>.arithmetic * a.norm() * values(y).norm());
      CHECK(close(energy, (a * values(x)).squaredNorm(), tolerance<T>.identity));
    }
  }
}

TEST_CASE("shapes that do not fit are refused, and both are named") {
  const matrix a = random_dense(7);
  const auto op = gram(a);
  std::vector<double> right(D), wrong(D + 1), out(D);
  const auto message = [](auto call) -> std::string {
    try {
      call();
    } catch (const usage_error& error) {
      return error.what();
    }
    return "nothing was thrown";
  };
  const auto names = [](const std::string& text, const std::string& one, const std::string& two) {
    CAPTURE(text);
    CHECK(text.find(one) != std::string::npos);
    CHECK(text.find(two) != std::string::npos);
  };
  names(message([&] { power_step(op, wrong, out, 1.0); }), "dimension 19", "row 20");
  names(message([&] { power_step(op, right, wrong, 1.0); }), "dimension 19", "output 20");
  names(message([&] { power_step(op, right, out, 0.0); }), "radius", "0.0");
  names(message([&] { power_step(op, right, out, std::nan("")); }), "radius", "nan");
  names(message([&] { power_step(op, right, right, 1.0); }), "power_step", "overlap");
  names(message([&] { op.apply(wrong, out); }), "[F = 12, D = 19]", "20");
  names(message([&] { rayleigh(op, wrong, out); }), "rayleigh", "20");
  names(message([&] { power_iteration(op, vector_view<double>(right), vector_view<double>(out.data(), 3)); }),
        "workspace has 3", "19");
  names(message([&] { steepest_ascent_step(op, right, out, 1.0, std::nan("")); }), "eta", "finite");
  names(message([&] { retract<double>(right, wrong, 1.0); }), "19", "20");

  const Eigen::SparseMatrix<double> thin = a.sparseView();
  auto sparse = gram(thin);
  std::vector<double> projection(F);
  names(message([&] { sparse.apply(wrong, out); }), "[F = 12, D = 19]", "20");
  names(message([&] { sparse.apply(right, right); }), "apply", "overlap");
  names(message([&] { sparse.project(right, vector_view<double>(projection.data(), 2)); }), "project", "2");
  names(message([&] { sparse.lift(vector_view<const double>(right.data(), 2), out); }), "lift", "2");
  CHECK(message([&] { sparse.project(right, projection); }) == "nothing was thrown");
}

}  // namespace test_operators
