// The experts that a run looks at, in order, and which of them have their results.
#pragma once

#include "expert_lines.hpp"
#include "selection.hpp"

#include <string>
#include <vector>

namespace verify {

/// One expert: of which of the run's layers, where in its results, and its number.
struct expert_task {
  std::size_t layer = 0;
  std::size_t slot = 0;
  index_t expert = 0;
};

/// All experts of the layers of a run, or a sample of each. It fills the results of the checkpoints, which
/// must outlive it.
class task_list {
 public:
  task_list(std::vector<checkpoint_result>& checkpoints, std::optional<index_t> sample);

  [[nodiscard]] const moe_layer& layer(const expert_task& task) const { return *layers_[task.layer]->layer; }
  [[nodiscard]] index_t size() const noexcept { return static_cast<index_t>(tasks_.size()); }
  [[nodiscard]] index_t finished() const noexcept { return finished_; }

  /// Those that have no result; or of these every `size`-th from `rank` on, the share of one of so many
  /// ranks. Experts of one layer take about equally long, so none has to hand out work.
  [[nodiscard]] std::vector<expert_task> open(int rank = 0, int size = 1) const;

  /// Takes a result; false, and nothing happens, where no expert waits for it.
  [[nodiscard]] bool put(const placed_result& one);

  /// A letter for each expert, whether it has its result: tells another process what is open.
  [[nodiscard]] const std::string& marks() const noexcept { return marks_; }
  void set_marks(std::string marks) { marks_ = std::move(marks); }

 private:
  std::vector<layer_result*> layers_;
  std::vector<expert_task> tasks_;
  std::string marks_;
  index_t finished_ = 0;
};

}  // namespace verify
