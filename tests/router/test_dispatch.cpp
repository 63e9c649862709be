// Loads, MaxVio, entropy, the bias update, statistics that merge, and dispatch lists.
#include <mpi_router/router/dispatch.hpp>

#include <doctest/doctest.h>
#include <support/messages.hpp>
#include <support/random.hpp>
#include <support/tolerance.hpp>

#include <algorithm>
#include <set>
#include <vector>

namespace test_dispatch {
using namespace mpi_router;
using namespace test_support;

TEST_CASE("loads of known shape") {
  const std::vector<index_t> even{5, 5, 5, 5};
  const std::vector<index_t> one{0, 20, 0, 0};
  const std::vector<index_t> none{0, 0, 0, 0};
  CHECK(max_violation(even) == 0);
  CHECK(max_violation(one) == 3);
  CHECK(max_violation(none) == 0);
  CHECK(close(load_entropy(even), std::log(4.0), 1e-15));
  CHECK(load_entropy(one) == 0);
  CHECK(load_entropy(none) == 0);
  const std::vector<expert_id> ids{0, 1, 1, 2, 0, 2};
  std::vector<index_t> load(3);
  count_load(ids, 2, {}, load);
  CHECK(load == std::vector<index_t>{2, 2, 2});
  const std::vector<status> statuses{status::ok, status::non_finite, status::ok};
  count_load(ids, 2, statuses, load);  // adds
  CHECK(load == std::vector<index_t>{4, 3, 3});
}

TEST_CASE("a tracker of batches, merged from two, is the tracker of all") {
  random_source random(1);
  std::vector<index_t> whole_total(7), left_total(7), right_total(7);
  load_tracker whole(whole_total), left(left_total), right(right_total);
  double mean = 0;
  for (int b = 0; b < 20; ++b) {
    std::vector<index_t> batch;
    batch.reserve(7);
    for (int e = 0; e < 7; ++e) batch.push_back(random.integer(0, 30));
    whole.add(batch);
    (b < 8 ? left : right).add(batch);
    mean += max_violation(batch) / 20;
  }
  CHECK(close(whole.batch_violation().mean, mean, 1e-13));
  CHECK(whole.batch_violation().count == 20);
  CHECK(whole.global_violation() < mean);  // sums are more even than their parts
  left.merge(right);
  CHECK(left_total == whole_total);
  CHECK(close(left.batch_violation().mean, mean, 1e-13));
  CHECK(close(left.batch_violation().variance(), whole.batch_violation().variance(), 1e-12));
  CHECK(left.batch_violation().max == whole.batch_violation().max);
  CHECK(close(left.batch_entropy().mean, whole.batch_entropy().mean, 1e-13));
  CHECK(left.global_entropy() == whole.global_entropy());
}

TEST_CASE("running statistics: the numbers, far from zero too, in any grouping") {
  random_source random(2);
  for (const double offset : {0.0, 1e9}) {
    std::vector<double> x;
    x.reserve(1000);
    for (int i = 0; i < 1000; ++i) x.push_back(offset + random.normal());
    double mean = 0;
    for (const double v : x) mean += v / 1000;
    double squares = 0;
    for (const double v : x) squares += (v - mean) * (v - mean);
    running_statistics all, parts[3], joined, nothing;
    for (std::size_t i = 0; i < x.size(); ++i) {
      all.add(x[i]);
      parts[i % 7 == 0 ? 0 : i % 2 + 1].add(x[i]);
    }
    for (const auto& p : parts) joined.merge(p);
    joined.merge(nothing);
    nothing.merge(joined);
    for (const auto& s : {all, joined, nothing}) {
      CHECK(s.count == 1000);
      CHECK(close(s.mean, mean, 1e-13));
      CHECK(close(s.squares, squares, 1e-6));
      CHECK(s.min == *std::min_element(x.begin(), x.end()));
      CHECK(s.max == *std::max_element(x.begin(), x.end()));
    }
  }
  CHECK(running_statistics{}.variance() == 0);
  running_statistics two;
  two.merge({});
  CHECK(two.mean == 0);
  for (const double x : {1.0, 5.0}) {
    CHECK(two.sample_deviation() == 0);
    two.add(x);
  }
  two.merge({});
  CHECK(two.variance() == 4);
  CHECK(close(two.sample_deviation(), std::sqrt(8.0), 1e-15));
  alignment_statistics a, b;
  a.add(4, 2, 4, -0.5);
  b.add(1, 2, 4, 0.7);
  a.merge(b);
  CHECK(a.spectral.max == 1);
  CHECK(close(a.spectral.mean, 0.75, 1e-15));
  CHECK(close(a.frobenius.mean, 0.375, 1e-15));
  CHECK(close(a.cosine.mean, 0.6, 1e-15));
}

TEST_CASE("the bias moves towards even loads and no further than the rate") {
  std::vector<float> bias{0, 0, 0};
  const std::vector<index_t> load{1, 3, 2};
  update_expert_bias(load, 0.25F, vector_view<float>(bias));
  CHECK(bias == std::vector<float>{0.25F, -0.25F, 0.0F});
  bias = {1, 2, 4};  // no tokens, no update: the mean is left alone too
  update_expert_bias(std::vector<index_t>(3), 0.25F, vector_view<float>(bias));
  CHECK(bias == std::vector<float>{1, 2, 4});
}

TEST_CASE("dispatch lists hold every choice once, sorted by expert, in the order of the tokens") {
  random_source random(3);
  for (const index_t T : {0, 1, 5, 300}) {
    for (const index_t N : {1, 3, 17}) {
      for (const index_t K : {index_t{1}, std::min(N, index_t{3}), N}) {
        for (const bool drops : {false, true}) {
          std::vector<expert_id> ids;
          std::vector<status> statuses;
          for (index_t t = 0; t < T; ++t) {
            const index_t first = random.integer(0, N - 1);
            for (index_t k = 0; k < K; ++k) ids.push_back(static_cast<expert_id>((first + k) % N));
            statuses.push_back(drops && random.integer(0, 3) == 0 ? status::non_finite : status::ok);
          }
          const auto size = static_cast<std::size_t>(T * K);
          std::vector<index_t> offsets(static_cast<std::size_t>(N + 1), 99), tokens(size, -1),
              entries(size, -1);
          const std::span<const status> seen =
              drops ? std::span<const status>(statuses) : std::span<const status>{};
          build_dispatch(ids, K, seen, {offsets, tokens, entries});
          CHECK(offsets.front() == 0);
          CHECK(std::is_sorted(offsets.begin(), offsets.end()));
          std::set<index_t> found;
          bool right = true;
          for (index_t e = 0; e < N; ++e) {
            for (index_t j = offsets[static_cast<std::size_t>(e)];
                 j < offsets[static_cast<std::size_t>(e + 1)]; ++j) {
              const index_t entry = entries[static_cast<std::size_t>(j)];
              const index_t token = tokens[static_cast<std::size_t>(j)];
              right = right && ids[static_cast<std::size_t>(entry)] == e && token == entry / K &&
                      (!drops || statuses[static_cast<std::size_t>(token)] == status::ok) &&
                      (j == offsets[static_cast<std::size_t>(e)] ||
                       tokens[static_cast<std::size_t>(j - 1)] < token);
              found.insert(entry);
            }
          }
          CHECK(right);
          const auto kept = drops ? std::count(statuses.begin(), statuses.end(), status::ok) : T;
          CHECK(static_cast<index_t>(found.size()) == kept * K);
          CHECK(offsets.back() == kept * K);
          std::vector<index_t> again(size, -1);
          build_dispatch(ids, K, seen, {offsets, again});
          CHECK(again == tokens);
        }
      }
    }
  }
}

TEST_CASE_TEMPLATE("the mean of the biases stays 0, however long one expert is hot", S, float, double) {
  std::vector<S> bias(256, S{0});
  std::vector<index_t> load(256, 90);
  load[0] = 5000;
  const auto mean = [&] {
    double sum = 0;
    for (const S b : bias) sum += static_cast<double>(b) / 256;
    return sum;
  };
  for (int step = 0; step < 5000; ++step) update_expert_bias<S>(load, S(0.001), vector_view<S>(bias));
  CHECK(std::abs(mean()) < 1e-6);
  CHECK(close(static_cast<double>(bias[1] - bias[0]), 10, 1e-4));  // 5000 steps, 0.002 apart each
  CHECK(*std::max_element(bias.begin() + 1, bias.end()) == *std::min_element(bias.begin() + 1, bias.end()));
  const auto before = bias;
  update_expert_bias<S>(std::vector<index_t>(256, 0), S(0.001), vector_view<S>(bias));  // nothing was routed
  CHECK(bias == before);
  std::fill(bias.begin(), bias.end(), S{0});
  for (int step = 0; step < 100; ++step)
    update_expert_bias<S>(load, S(0.001), vector_view<S>(bias), bias_mean::free);
  CHECK(close(mean(), 0.1 * 254 / 256, 1e-4));
}

TEST_CASE("closed and forced experts take no part in the update") {
  const double closed = -std::numeric_limits<double>::infinity();
  std::vector<double> bias{0, closed, 0, -closed, 0};
  const std::vector<index_t> load{10, 0, 20, 1000, 30};  // the mean of the others is 20
  update_expert_bias<double>(load, 0.5, vector_view<double>(bias));
  CHECK(bias == std::vector<double>{0.5, closed, 0, -closed, -0.5});
  bias = {3, closed, 2, -closed, 1};  // an old bias with another mean
  update_expert_bias<double>(load, 0.5, vector_view<double>(bias));
  CHECK(bias == std::vector<double>{1.5, closed, 0, -closed, -1.5});
}

#if MPIROUTER_HAS_EXCEPTIONS
TEST_CASE("what is refused leaves loads, lists and biases as they were") {
  std::vector<index_t> offsets{7, 7, 7}, tokens{8, 8}, load{5, 5};
  std::vector<double> bias{1, 2};
  const auto dispatch = [&](const std::vector<expert_id>& ids) {
    return message_of([&] { build_dispatch(ids, 1, {}, {offsets, tokens}); });
  };
  CHECK(contains(dispatch({0, 2}), "build_dispatch: token 1 has expert 2 of 2"));
  CHECK(contains(dispatch({0, -1}), "build_dispatch: token 1 has expert -1 of 2"));
  CHECK(contains(dispatch({0, 1, 1}), "lists of 3, 2 and 0 elements for 3 expert ids"));
  CHECK(refused([&] { build_dispatch(std::vector<expert_id>{0, 1}, 1, {}, {{}, tokens}); }, "lists of 0"));
  CHECK(refused(
      [&] {
        build_dispatch(std::vector<expert_id>{0, 1}, 1, {}, {offsets, tokens, std::span(load).first(1)});
      },
      "2 and 1 elements"));
  CHECK(refused(
      [&] { build_dispatch(std::vector<expert_id>{0, 1}, 1, {}, {offsets, std::span(offsets).first(2)}); },
      "the offsets and the tokens overlap"));
  CHECK(refused([&] { build_dispatch(std::vector<expert_id>{0, 1}, 1, {}, {offsets, tokens, tokens}); },
                "the tokens and the entries overlap"));
  CHECK(refused(
      [&] {
        build_dispatch(std::vector<expert_id>{0, 1}, 1, {}, {offsets, tokens, std::span(offsets).first(2)});
      },
      "the offsets and the entries overlap"));
  CHECK(refused([&] { count_load(std::vector<expert_id>{0, 1, 2}, 1, {}, load); },
                "count_load: token 2 has expert 2 of 2"));
  CHECK(refused([&] { count_load(std::vector<expert_id>{0, 1, 1}, 2, {}, load); },
                "3 expert ids are not rows of 2"));
  CHECK(refused([&] { count_load(std::vector<expert_id>{0, 1}, 0, {}, load); }, "are not rows of 0"));
  CHECK(refused([&] { update_expert_bias<double>(load, -1.0, vector_view<double>(bias)); }, "the rate is"));
  CHECK(refused(
      [&] {
        update_expert_bias<double>(load, std::numeric_limits<double>::infinity(), vector_view<double>(bias));
      },
      "the rate is"));
  CHECK(refused([&] { update_expert_bias<double>(std::vector<index_t>(3), 1.0, vector_view<double>(bias)); },
                "loads of 3 experts, biases of 2"));
  load_tracker tracker(load);
  for (const index_t n : {1, 3}) {
    std::vector<index_t> other(static_cast<std::size_t>(n), 1);
    const load_tracker another(other);
    const std::string text = "load_tracker: loads of " + std::to_string(n) + " and 2 experts";
    CHECK(refused([&] { tracker.add(other); }, text));
    CHECK(refused([&] { tracker.merge(another); }, text));
    CHECK(tracker.batch_violation().count == 0);
  }
  CHECK(offsets == std::vector<index_t>{7, 7, 7});
  CHECK(tokens == std::vector<index_t>{8, 8});
  CHECK(load == std::vector<index_t>{5, 5});
  CHECK(bias == std::vector<double>{1, 2});
}
#endif

}  // namespace test_dispatch
