#include "task_list.hpp"

#include <algorithm>
#include <utility>

namespace verify {

namespace {
constexpr char waits = '-';
constexpr char done = '+';
}  // namespace

task_list::task_list(std::vector<checkpoint_result>& checkpoints, std::optional<index_t> sample) {
  for (auto& c : checkpoints) {
    for (auto& result : c.layers) {
      const auto experts = experts_of(*result.layer, sample);
      result.experts.resize(experts.size());
      for (std::size_t slot = 0; slot < experts.size(); ++slot) {
        tasks_.push_back({layers_.size(), slot, experts[slot]});
      }
      layers_.push_back(&result);
    }
  }
  marks_.assign(tasks_.size(), waits);
}

std::vector<expert_task> task_list::open(int rank, int size) const {
  std::vector<expert_task> out;
  int next = 0;  // whose turn it is
  for (std::size_t i = 0; i < tasks_.size(); ++i) {
    if (marks_[i] == waits) {
      if (next == rank) {
        out.push_back(tasks_[i]);
      }
      next = (next + 1) % size;
    }
  }
  return out;
}

bool task_list::put(const placed_result& one) {
  const auto key = [](const expert_task& t) { return std::pair(t.layer, t.expert); };
  const auto wanted = std::pair(one.layer, one.result.expert);
  const auto it = std::ranges::lower_bound(tasks_, wanted, {}, key);
  if (it == tasks_.end() || key(*it) != wanted) {
    return false;
  }
  auto& mark = marks_[static_cast<std::size_t>(it - tasks_.begin())];
  if (mark == done) {
    return false;
  }
  mark = done;
  layers_[it->layer]->experts[it->slot] = one.result;
  ++finished_;
  return true;
}

}  // namespace verify
