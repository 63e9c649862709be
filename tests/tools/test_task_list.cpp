// The experts of a run: which wait, whose turn each is.
#include <task_list.hpp>

#include <doctest/doctest.h>

#include <set>

namespace test_task_list {
using namespace verify;

namespace {

/// A checkpoint of layers of so many experts.
struct model {
  explicit model(const std::vector<index_t>& experts) : layers(experts.size()) {
    for (std::size_t i = 0; i < experts.size(); ++i) {
      layers[i].num_experts = experts[i];
      checkpoints[i % 2].layers.push_back({&layers[i], {}});
    }
  }
  std::vector<moe_layer> layers;
  std::vector<checkpoint_result> checkpoints{2};
};

placed_result result_of(const expert_task& task) {
  placed_result one{task.layer, {}};
  one.result.expert = task.expert;
  return one;
}

std::set<std::pair<std::size_t, index_t>> set_of(const std::vector<expert_task>& tasks) {
  std::set<std::pair<std::size_t, index_t>> out;
  for (const auto& task : tasks) {
    out.emplace(task.layer, task.expert);
  }
  return out;
}

}  // namespace

TEST_CASE("any number of ranks: each expert that waits is one's, and shares differ by one at most") {
  for (const auto sample : {std::optional<index_t>(), {3}}) {
    model m({5, 1, 0, 7});
    task_list tasks(m.checkpoints, sample);
    CHECK(tasks.size() == (sample ? 3 + 1 + 0 + 3 : 13));
    for (bool more = true; more;) {
      const auto open = tasks.open();
      CHECK(static_cast<index_t>(open.size()) == tasks.size() - tasks.finished());
      for (const int size : {1, 2, 3, 20}) {
        std::set<std::pair<std::size_t, index_t>> all;
        std::size_t count = 0;
        for (int rank = 0; rank < size; ++rank) {
          const auto share = tasks.open(rank, size);
          CHECK(share.size() >= open.size() / static_cast<std::size_t>(size));
          CHECK(share.size() <= open.size() / static_cast<std::size_t>(size) + 1);
          count += share.size();
          all.merge(set_of(share));
        }
        CHECK(count == open.size());
        CHECK(all == set_of(open));
      }
      more = !open.empty();
      if (more) {
        CHECK(tasks.put(result_of(open[open.size() / 2])));
        CHECK_FALSE(tasks.put(result_of(open[open.size() / 2])));
      }
    }
  }
}

TEST_CASE("a result goes to its place, and none that nobody waits for is taken") {
  model m({5, 3});
  task_list tasks(m.checkpoints, 2);
  for (const auto& task : tasks.open()) {
    auto one = result_of(task);
    one.result.sigma_1 = static_cast<double>(10 * task.layer) + static_cast<double>(task.expert);
    CHECK(tasks.put(one));
  }
  for (std::size_t c = 0; c < 2; ++c) {
    for (const auto& e : m.checkpoints[c].layers[0].experts) {
      CHECK(e.sigma_1 == static_cast<double>(10 * c) + static_cast<double>(e.expert));
    }
  }
  task_list again(m.checkpoints, 2);
  for (const auto& [layer, expert] : {std::pair<std::size_t, index_t>{0, 0}, {0, 5}, {1, 1}, {2, 0}}) {
    CHECK_FALSE(again.put(result_of({layer, 0, expert})));  // a sample of two has 1 and 3, or 0 and 2
  }
  CHECK(again.finished() == 0);
  again.set_marks(tasks.marks());
  CHECK(again.open().empty());
}

}  // namespace test_task_list
