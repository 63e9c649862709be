// An operator behind functions is the operator: the same numbers, to the bit, and what it cannot do it does
// not seem to do.
#include <mpi_router/core/operators.hpp>
#include <mpi_router/manifold/image.hpp>
#include <mpi_router/verify/any_operator.hpp>
#include <mpi_router/verify/principal.hpp>

#include <doctest/doctest.h>
#include <support/messages.hpp>
#include <support/random.hpp>

#include <vector>

namespace test_any_operator {
using namespace mpi_router;

namespace {

template <class S>
using matrix_of = Eigen::Matrix<S, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
template <class S>
using vector_of = Eigen::Matrix<S, Eigen::Dynamic, 1>;

template <class S>
matrix_of<S> some_matrix(index_t rows, index_t cols, double scale = 1) {
  test_support::random_source random(70);
  matrix_of<S> out(rows, cols);
  for (auto& x : out.reshaped()) {
    x = static_cast<S>(scale * random.normal());
  }
  return out;
}

/// M of A without F and without apply_scaled; tells whether it lives.
struct bare_operator {
  using scalar = double;
  explicit bare_operator(matrix_of<double> matrix, bool& alive) : a(std::move(matrix)), lives(&alive) {
    *lives = true;
  }
  bare_operator(const bare_operator&) = delete;
  bare_operator& operator=(const bare_operator&) = delete;
  ~bare_operator() { *lives = false; }
  [[nodiscard]] index_t dimension() const { return a.cols(); }
  double apply(vector_view<const double> x, vector_view<double> u) const {
    map(u) = a.transpose() * (a * map(x));
    return map(x).dot(map(u));
  }
  matrix_of<double> a;
  bool* lives;
};

}  // namespace

TEST_CASE_TEMPLATE("the numbers of an operator are the same behind functions", S, float, double) {
  for (const index_t ffn_dim : {1, 5, 40}) {
    const auto a = some_matrix<S>(ffn_dim, 7);
    auto op = gram(a);
    any_operator<S> any(op);
    CHECK(any.dimension() == 7);
    CHECK(any.ffn_dim() == ffn_dim);
    const vector_of<S> x = some_matrix<S>(7, 1);
    vector_of<S> u(7);
    vector_of<S> from_any(7);
    CHECK(op.apply(view(x), view(u)) == any.apply(view(x), view(from_any)));
    CHECK(u == from_any);
    const vector_of<S> other = some_matrix<S>(7, 1, 3);
    vector_of<S> two[2] = {vector_of<S>(7), vector_of<S>(7)};
    auto bare = gram_operator<S>(7, [&](auto in, auto out) { return op.apply(in, out); });
    for (auto seen : {any_operator<S>(op), any_operator<S>(any)}) {
      const auto energies = seen.apply_two({view(x), view(other)}, {view(two[0]), view(two[1])});
      CHECK(two[0] == u);
      CHECK(energies[1] == op.apply(view(other), view(from_any)));
      CHECK(two[1] == from_any);
    }
    any_operator<S, false> without(bare);  // twice one image
    const auto energies = without.apply_two({view(other), view(x)}, {view(two[0]), view(two[1])});
    CHECK(energies[1] == op.apply(view(x), view(from_any)));
    CHECK(two[0] != two[1]);
    CHECK(two[1] == u);
    const auto plain = op.apply_scaled(view(x), view(u));
    const auto scaled = any.apply_scaled(view(x), view(from_any));
    CHECK(plain.energy == scaled.energy);
    CHECK(plain.image_exponent == scaled.image_exponent);
    CHECK(plain.energy_exponent == scaled.energy_exponent);
    CHECK(u == from_any);
  }
}

TEST_CASE("images of many columns too") {
  const auto a = some_matrix<double>(9, 6);
  auto op = gram(a);
  any_operator<double> any(op);
  const Eigen::MatrixXd x = some_matrix<double>(6, 3);
  CHECK(detail::images_of(op, x) == any.images(x));
}

TEST_CASE("what an operator cannot do, it cannot do behind functions, and F that it does not tell is D") {
  bool lives = false;
  bare_operator op(some_matrix<double>(4, 6, 1e-200), lives);
  auto any = detail::behind_functions(op);
  static_assert(!ScalableGramOperator<decltype(any)>);
  static_assert(ScalableGramOperator<any_operator<double>>);
  CHECK(any.ffn_dim() == 6);
  // Its squares underflow: only apply_scaled would see that there is an image.
  const Eigen::VectorXd x = Eigen::VectorXd::Ones(6);
  Eigen::VectorXd u(6);
  CHECK(image_of_row(op, view(x), view(u)).state == status::zero_image);
  CHECK(image_of_row(any, view(x), view(u)).state == status::zero_image);
}

TEST_CASE("given a pointer it owns the operator, given a reference it borrows") {
  bool lives = false;
  {
    any_operator<double, false> any(std::make_shared<bare_operator>(some_matrix<double>(4, 6), lives));
    auto copy = any;
    any = any_operator<double, false>(copy);
    CHECK(lives);
    const Eigen::VectorXd x = Eigen::VectorXd::Ones(6);
    Eigen::VectorXd u(6);
    CHECK(copy.apply(view(x), view(u)) > 0);
  }
  CHECK(!lives);
  bare_operator op(some_matrix<double>(4, 6), lives);
  {
    const any_operator<double, false> borrows(op);
  }
  CHECK(lives);
  using any = any_operator<double, false>;
  CHECK(test_support::refused([] { static_cast<void>(any(std::shared_ptr<bare_operator>())); },
                              "any_operator: there is no operator"));
}

TEST_CASE("a search sees no difference") {
  const auto a = some_matrix<double>(600, 520);
  auto op = gram(a);
  const Eigen::VectorXd start = some_matrix<double>(520, 1);
  auto krylov = krylov_space(op, certify_options{}.basis);
  const auto plain = detail::find_principal_in(op, op, view(start), certify_options{}, krylov);
  any_operator<double> any(op);
  const auto behind = find_principal(any, view(start));
  CHECK(plain.direction == behind.direction);
  CHECK(plain.proof.angle_bound == behind.proof.angle_bound);
  CHECK(plain.applications == behind.applications);
}

}  // namespace test_any_operator
